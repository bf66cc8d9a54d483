//! Ctrl-C and termination: the first asks the run to save and stop, the second ends it at once.

use std::io::{self, Write};
use std::sync::atomic::{AtomicBool, Ordering};

use crate::error::{Error, Result};

/// Exit status of a program ended by Ctrl-C (128 + SIGINT).
pub const EXIT_INTERRUPTED: u8 = 130;

static STOP: AtomicBool = AtomicBool::new(false);

/// From now on Ctrl-C, SIGTERM and SIGHUP make [`stop_requested`] true; a second one ends the
/// process with [`EXIT_INTERRUPTED`]. Call it once, at the start of a command that saves its state.
///
/// # Errors
/// [`Error::Device`] where the system refuses, or a handler is installed already.
pub fn install() -> Result<()> {
    let handler = || {
        if STOP.swap(true, Ordering::SeqCst) {
            std::process::exit(i32::from(EXIT_INTERRUPTED));
        }
        // Not eprintln: a closed stderr would panic this thread, and no signal be heard again.
        let text = "\nstopping: saving the state; once more (Ctrl-C) to quit at once";
        let _ = writeln!(io::stderr(), "{text}");
    };
    ctrlc::set_handler(handler).map_err(|error| Error::Device {
        device: "signals".to_string(),
        problem: format!("Ctrl-C cannot be caught: {error}"),
        remedy: "install the handler once in a process".to_string(),
    })
}

/// True once the user or the system has asked the run to stop.
pub fn stop_requested() -> bool {
    STOP.load(Ordering::Relaxed)
}

/// The flag behind [`stop_requested`], for code that polls it.
pub fn stop_flag() -> &'static AtomicBool {
    &STOP
}

#[cfg(all(test, unix))]
mod tests {
    use super::*;
    use std::io::{BufRead, BufReader};
    use std::process::{Command, Stdio};
    use std::time::{Duration, Instant};

    const CHILD: &str = "ENGINE_TEST_SIGNAL_CHILD";

    /// Not a test of its own: the process that the tests below send signals to.
    #[test]
    #[ignore = "started by the other tests"]
    fn child() {
        let Ok(kind) = std::env::var(CHILD) else { return };
        install().expect("first handler");
        assert!(install().is_err());
        println!("\nready");
        let deadline = Instant::now() + Duration::from_secs(20);
        while Instant::now() < deadline && !stop_requested() {
            std::thread::sleep(Duration::from_millis(2));
        }
        println!("asked {}", stop_requested());
        if kind == "busy" {
            std::thread::sleep(Duration::from_secs(20));
        }
        std::process::exit(7);
    }

    /// Starts the child, sends it `signals` in turn (the next one when it has said that it heard
    /// the last) and returns its exit status.
    fn exit_after(kind: &str, signals: &[&str]) -> Option<i32> {
        let mut child = Command::new(std::env::current_exe().expect("this test's program"))
            .args(["--exact", "train::signal::tests::child", "--ignored", "--nocapture"])
            .env(CHILD, kind)
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .expect("the child starts");
        let mut lines = BufReader::new(child.stdout.take().expect("piped")).lines();
        let mut wait_for = |word: &str| {
            let found = lines.by_ref().map_while(|line| line.ok()).any(|line| line == word);
            assert!(found, "the child never said {word}");
        };
        wait_for("ready");
        for (i, signal) in signals.iter().enumerate() {
            if i > 0 {
                wait_for("asked true");
            }
            let sent = Command::new("kill").arg(signal).arg(child.id().to_string()).status();
            assert!(sent.expect("kill runs").success());
        }
        child.wait().expect("the child ends").code()
    }

    #[test]
    fn the_first_signal_asks_and_the_second_ends() {
        for signal in ["-INT", "-TERM"] {
            assert_eq!(exit_after("polite", &[signal]), Some(7), "{signal}");
        }
        assert_eq!(exit_after("busy", &["-INT", "-INT"]), Some(130));
    }
}
