//! What the user sees of a command: a bar on a terminal, plain lines elsewhere, JSON lines for
//! programs, or next to nothing.

use std::fs::{File, OpenOptions};
use std::io::{self, IsTerminal, Write};
use std::path::Path;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use serde::Serialize;
use serde_json::{Value, json};

use crate::error::{Error, Result};

/// How progress is shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// A bar on a terminal's last line.
    Bar,
    /// Plain lines, ever more seldom.
    Lines,
    /// Errors and the final line.
    Quiet,
    /// JSON lines on stdout; on stderr errors only.
    Json,
}

/// The bar is drawn anew at most this often.
const BAR_EVERY: Duration = Duration::from_millis(100);
/// A JSON line of progress comes at most this often.
const JSON_EVERY: Duration = Duration::from_secs(1);
/// Plain lines double their distance from the first of these to the second.
const LINES_EVERY: [Duration; 2] = [Duration::from_secs(5), Duration::from_secs(60)];

/// A command's output. Shared between threads; a reader that has gone away is no error.
pub struct Console {
    mode: Mode,
    streams: Mutex<Streams>,
}

struct Streams {
    out: Box<dyn Write + Send>,
    err: Box<dyn Write + Send>,
    log: Option<File>,
    bar: Option<ProgressBar>,
}

impl Streams {
    /// A line on stderr, above the bar where there is one.
    fn line(&mut self, text: &str) {
        let Self { err, bar, .. } = self;
        let mut write = || drop(writeln!(err, "{text}"));
        match bar {
            Some(bar) => bar.suspend(write),
            None => write(),
        }
    }

    fn log(&mut self, text: &str) {
        if let Some(log) = &mut self.log {
            drop(writeln!(log, "{text}"));
        }
    }

    fn json(&mut self, event: &Value) {
        drop(writeln!(self.out, "{event}").and_then(|()| self.out.flush()));
    }
}

impl Console {
    /// The console of the process: JSON where asked, else quiet where asked, else a bar where
    /// stderr is a terminal.
    pub fn new(quiet: bool, json: bool) -> Self {
        let plain = std::env::var_os("TERM").is_none_or(|term| term == "dumb");
        let mode = match (json, quiet) {
            (true, _) => Mode::Json,
            (_, true) => Mode::Quiet,
            _ if io::stderr().is_terminal() && !plain => Mode::Bar,
            _ => Mode::Lines,
        };
        Self::with_streams(mode, Box::new(io::stdout()), Box::new(io::stderr()))
    }

    /// A console that writes to the given streams instead of stdout and stderr (the bar excepted).
    pub fn with_streams(
        mode: Mode,
        out: Box<dyn Write + Send>,
        err: Box<dyn Write + Send>,
    ) -> Self {
        Self { mode, streams: Mutex::new(Streams { out, err, log: None, bar: None }) }
    }

    /// How progress is shown.
    pub fn mode(&self) -> Mode {
        self.mode
    }

    /// From now on everything said is appended to this file as well, whatever the mode.
    ///
    /// # Errors
    /// [`Error::Io`] where the file cannot be opened.
    pub fn log_to(&self, path: &Path) -> Result<()> {
        let file = OpenOptions::new().create(true).append(true).open(path);
        self.lock().log = Some(file.map_err(Error::io(path, "open the log"))?);
        Ok(())
    }

    /// Streams stay usable where a thread has panicked with them.
    fn lock(&self) -> MutexGuard<'_, Streams> {
        self.streams.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A line for a human, on stderr.
    pub fn say(&self, text: &str) {
        let mut streams = self.lock();
        streams.log(text);
        if matches!(self.mode, Mode::Bar | Mode::Lines) {
            streams.line(text);
        }
    }

    /// Something a human should know although the work goes on.
    pub fn warn(&self, text: &str) {
        self.event("warning", &json!({ "text": text }));
        self.say(&format!("warning: {text}"));
    }

    /// An error, on stderr in every mode; in JSON on stdout as well.
    pub fn error(&self, error: &Error) {
        self.event("error", &json!({ "text": error.to_string(), "exit_code": error.exit_code() }));
        let text = format!("error: {error}");
        let mut streams = self.lock();
        streams.log(&text);
        streams.line(&text);
    }

    /// A line of JSON on stdout, where JSON was asked for: `fields`, an object, with "event" added.
    pub fn event(&self, event: &str, fields: &impl Serialize) {
        if self.mode != Mode::Json {
            return;
        }
        let mut line = json!({ "event": event });
        match (serde_json::to_value(fields), &mut line) {
            (Ok(Value::Object(fields)), Value::Object(line)) => line.extend(fields),
            (Ok(other), line) => line["value"] = other,
            (Err(error), line) => line["value"] = error.to_string().into(),
        }
        self.lock().json(&line);
    }

    /// The command's last line, on stdout in every mode; `fields` are its form in JSON.
    pub fn finish(&self, text: &str, fields: &impl Serialize) {
        self.event("finished", fields);
        let mut streams = self.lock();
        streams.log(text);
        if self.mode != Mode::Json {
            drop(writeln!(streams.out, "{text}").and_then(|()| streams.out.flush()));
        }
    }

    /// Shows the progress of `what` ("training", "fold 2 of 5") from `done` to `total` steps.
    pub fn progress(&self, what: &str, done: u64, total: u64) -> Progress<'_> {
        let target = match self.mode {
            Mode::Bar => ProgressDrawTarget::stderr_with_hz(10),
            _ => ProgressDrawTarget::hidden(),
        };
        let bar = ProgressBar::with_draw_target(Some(total), target);
        if let Ok(style) = ProgressStyle::with_template("{prefix} [{bar:24}] {wide_msg}") {
            bar.set_style(style.progress_chars("=> "));
        }
        bar.set_prefix(what.to_string());
        if self.mode == Mode::Bar {
            self.lock().bar = Some(bar.clone());
        }
        let now = Status { done, total, ..Status::default() };
        Progress {
            console: self,
            what: what.to_string(),
            bar,
            start: Instant::now(),
            first: done,
            now,
            next: Duration::ZERO,
        }
    }
}

/// How far something has come.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize)]
struct Status {
    done: u64,
    total: u64,
    windows: u64,
    loss: Option<f64>,
    seconds: f64,
    windows_per_s: f64,
    seconds_left: Option<f64>,
}

/// Progress of one piece of work; the bar goes when this is dropped.
pub struct Progress<'a> {
    console: &'a Console,
    what: String,
    bar: ProgressBar,
    start: Instant,
    first: u64,
    now: Status,
    next: Duration,
}

impl Progress<'_> {
    /// True when [`Progress::update`] would show something: a loss that must be fetched from a
    /// device is worth fetching only then.
    pub fn is_due(&self) -> bool {
        self.console.mode != Mode::Quiet && self.start.elapsed() >= self.next
    }

    /// `done` steps of the total are done, `windows` windows since the start of this progress; the
    /// latest loss where there is one. Costs nothing much where nothing is due.
    pub fn update(&mut self, done: u64, windows: u64, loss: Option<f64>) {
        self.now.done = done;
        self.now.windows = windows;
        self.now.loss = loss.or(self.now.loss);
        if self.is_due() {
            self.show(self.start.elapsed());
        }
    }

    /// Shows where it stands, whether due or not, and ends.
    pub fn finish(mut self) {
        if self.console.mode != Mode::Quiet {
            self.show(self.start.elapsed());
        }
    }

    fn show(&mut self, elapsed: Duration) {
        self.now.take_time(self.first, elapsed);
        match self.console.mode {
            Mode::Bar => {
                self.bar.set_position(self.now.done);
                self.bar.set_message(self.now.to_string());
                self.next = elapsed + BAR_EVERY;
            }
            Mode::Json => {
                let mut fields = json!(self.now);
                fields["what"] = self.what.clone().into();
                self.console.event("progress", &fields);
                self.next = elapsed + JSON_EVERY;
            }
            Mode::Lines => {
                self.console.say(&format!("{}: {}", self.what, self.now));
                self.next = elapsed + elapsed.clamp(LINES_EVERY[0], LINES_EVERY[1]);
            }
            Mode::Quiet => {}
        }
    }
}

impl Drop for Progress<'_> {
    fn drop(&mut self) {
        let mut streams = self.console.lock();
        streams.bar = None;
        self.bar.finish_and_clear();
        if self.console.mode == Mode::Bar {
            // The bar leaves the screen; its last state stays as a line.
            let line = format!("{}: {}", self.what, self.now);
            streams.log(&line);
            streams.line(&line);
        }
    }
}

impl Status {
    /// Rates and the time left, `elapsed` after work began at step `first`.
    fn take_time(&mut self, first: u64, elapsed: Duration) {
        self.seconds = elapsed.as_secs_f64();
        let worked = self.done.saturating_sub(first) as f64;
        let left = self.total.saturating_sub(self.done) as f64;
        self.windows_per_s =
            if self.seconds > 0.0 { self.windows as f64 / self.seconds } else { 0.0 };
        self.seconds_left = (worked > 0.0).then(|| self.seconds / worked * left);
    }
}

impl std::fmt::Display for Status {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}", self.done, self.total)?;
        if let Some(loss) = self.loss {
            write!(f, "  loss {loss:.4}")?;
        }
        if self.windows > 0 {
            write!(f, "  {} windows/s", rate(self.windows_per_s))?;
        }
        match self.seconds_left {
            Some(left) if self.done < self.total => write!(f, "  {} left", time(left)),
            _ if self.done > 0 => write!(f, "  {}", time(self.seconds)),
            _ => Ok(()),
        }
    }
}

/// As in 7.3, 850, 12.4k, 1.2M.
fn rate(per_second: f64) -> String {
    match per_second {
        r if r < 10.0 => format!("{r:.1}"),
        r if r < 9_999.5 => format!("{r:.0}"),
        r if r < 999_950.0 => format!("{:.1}k", r / 1e3),
        r => format!("{:.1}M", r / 1e6),
    }
}

/// A time in s in its two largest units: 42s, 3m07s, 2h05m, 4d01h.
pub fn time(seconds: f64) -> String {
    let s = seconds.round().max(0.0) as u64;
    match s {
        0..60 => format!("{s}s"),
        60..3600 => format!("{}m{:02}s", s / 60, s % 60),
        3600..86_400 => format!("{}h{:02}m", s / 3600, s / 60 % 60),
        _ => format!("{}d{:02}h", s / 86_400, s / 3600 % 24),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;

    #[derive(Clone, Default)]
    struct Sink(Arc<Mutex<Vec<u8>>>);

    impl Write for Sink {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().expect("no panic").extend(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    impl Sink {
        fn text(&self) -> String {
            String::from_utf8(self.0.lock().expect("no panic").clone()).expect("UTF-8")
        }
    }

    /// Output on stdout and stderr, and the log, of one little command.
    fn outputs(mode: Mode) -> (String, String, String) {
        let (out, err) = (Sink::default(), Sink::default());
        let log = tempfile::NamedTempFile::new().expect("a temporary file");
        let console = Console::with_streams(mode, Box::new(out.clone()), Box::new(err.clone()));
        console.log_to(log.path()).expect("opened");
        console.say("reading 3 subjects");
        console.warn("sub-02 skipped");
        console.event("split", &json!({ "train": 2 }));
        let mut progress = console.progress("training", 10, 40);
        for step in 11..=40 {
            progress.update(step, (step - 10) * 8, Some(1.0 / step as f64));
        }
        progress.finish();
        console.error(&Error::input("a.toml:3", "bad", "mend it"));
        console.finish("balanced accuracy 0.8", &json!({ "score": f64::NAN }));
        let log = std::fs::read_to_string(log.path()).expect("read");
        (out.text(), err.text(), log)
    }

    #[test]
    fn lines_go_to_stderr_and_the_result_to_stdout() {
        let (out, err, log) = outputs(Mode::Lines);
        assert_eq!(out, "balanced accuracy 0.8\n");
        assert!(err.contains("warning: sub-02 skipped\n") && err.contains("remedy: mend it"));
        // The first update and the end; nothing is due in between within milliseconds.
        assert_eq!(err.matches("training: ").count(), 2, "{err}");
        assert!(err.contains("training: 40/40  loss 0.0250  "), "{err}");
        assert_eq!(log, err + &out);
    }

    #[test]
    fn quiet_is_the_error_and_the_final_line() {
        let (out, err, log) = outputs(Mode::Quiet);
        assert_eq!(out, "balanced accuracy 0.8\n");
        assert_eq!(err, "error: a.toml:3: bad\n  remedy: mend it\n");
        assert!(log.contains("reading 3 subjects\nwarning: sub-02"));
    }

    #[test]
    fn json_is_one_object_a_line() {
        let (out, err, _) = outputs(Mode::Json);
        assert!(err.starts_with("error: ") && !err.contains("reading"));
        let lines: Vec<Value> =
            out.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect();
        let events: Vec<&str> = lines.iter().filter_map(|line| line["event"].as_str()).collect();
        assert_eq!(events, ["warning", "split", "progress", "progress", "error", "finished"]);
        assert_eq!(lines[1]["train"], 2);
        assert_eq!((&lines[3]["done"], &lines[3]["windows"]), (&json!(40), &json!(240)));
        assert_eq!(lines[4]["exit_code"], 2);
        assert_eq!(lines[5]["score"], Value::Null);
    }

    #[test]
    fn rates_and_times() {
        let mut status = Status { done: 30, total: 90, windows: 640, ..Status::default() };
        status.take_time(10, Duration::from_secs(20));
        assert_eq!((status.windows_per_s, status.seconds_left), (32.0, Some(60.0)));
        assert_eq!(status.to_string(), "30/90  32 windows/s  1m00s left");
        for (s, text) in [
            (0.4, "0s"),
            (59.6, "1m00s"),
            (187.0, "3m07s"),
            (7500.0, "2h05m"),
            (349_300.0, "4d01h"),
        ] {
            assert_eq!(time(s), text);
        }
        for (r, text) in [(7.25, "7.2"), (850.4, "850"), (12_440.0, "12.4k"), (1.23e6, "1.2M")] {
            assert_eq!(rate(r), text);
        }
    }
}
