//! Random calls from 16 threads, under valgrind where it is there. ENGINE_HAMMER_SECONDS is the length:
//! 10 by default, 300 for the whole measure.

use std::process::Command;

use crate::fixture::{folder, have, prefix, root, run, said, trained};

/// A model small enough for the hammer's arrays, in a folder of its own; a checkpoint without a run.
fn checkpoint() -> std::path::PathBuf {
    let to = folder("hammer").join("small.safetensors");
    std::fs::copy(trained().run.join("checkpoints/best.safetensors"), &to).expect("copies");
    to
}

fn hammer(program: &str, flags: &[&str], wrap: &[&str]) {
    if !have("cc", "build-essential") {
        return;
    }
    let seconds = std::env::var("ENGINE_HAMMER_SECONDS").unwrap_or_else(|_| "10".into());
    let (to, files) = (folder("hammer").join(program), folder("hammer-files"));
    run(Command::new("cc")
        .args(["-O1", "-g", "-Wall", "-Wextra", "-Werror", "-std=gnu11"])
        .args(flags)
        .arg(format!("-I{}", prefix().join("include").display()))
        .arg(root().join("tests/embedding/hammer.c"))
        .arg(prefix().join("lib/libengine.a"))
        .args(["-lm", "-lpthread", "-ldl", "-o"])
        .arg(&to));
    let mut command = match wrap {
        [] => Command::new(&to),
        [tool, arguments @ ..] => {
            let mut command = Command::new(tool);
            command.args(arguments).arg(&to);
            command
        }
    };
    command.args([seconds.as_str(), "16", "2026"]).arg(&files).arg(checkpoint());
    let output = command.output().expect("the program starts");
    let text = said(&output);
    eprintln!("{program}, {seconds} s: {}", text.lines().next_back().unwrap_or_default());
    assert!(output.status.success(), "{text}");
    for line in text.lines().filter(|line| line.contains(" calls by ")) {
        eprintln!("{line}");
    }
}

#[test]
fn under_the_address_sanitizer() {
    hammer("hammer-asan", &["-fsanitize=address"], &[]);
}

#[test]
fn under_valgrind() {
    if !have("valgrind", "valgrind") {
        return;
    }
    let leaks = ["valgrind", "--error-exitcode=9", "--leak-check=full", "--quiet"];
    let kinds = ["--errors-for-leak-kinds=definite", "--show-leak-kinds=definite"];
    hammer("hammer-valgrind", &[], &[&leaks[..], &kinds[..]].concat());
}
