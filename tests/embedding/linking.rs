//! What the libraries hold and what programs that use them need.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

use crate::fixture::{folder, have, prefix, root, run};

/// Most bytes of the stripped example in C, with the CPU's path alone.
const MOST: u64 = 15 << 20;

/// The examples in C, built once in a folder of their own; None without a compiler.
pub fn examples_in_c(shared: bool) -> Option<PathBuf> {
    static BUILT: [OnceLock<Option<PathBuf>>; 2] = [const { OnceLock::new() }; 2];
    BUILT[usize::from(shared)].get_or_init(|| build_in_c(shared)).clone()
}

fn build_in_c(shared: bool) -> Option<PathBuf> {
    if !have("cc", "build-essential") || !have("make", "build-essential") {
        return None;
    }
    let to = folder(if shared { "c-shared" } else { "c" });
    for entry in std::fs::read_dir(root().join("examples/c")).expect("it is there").flatten() {
        std::fs::copy(entry.path(), to.join(entry.file_name())).expect("can be copied");
    }
    let mut make = Command::new("make");
    make.arg("-C").arg(&to).arg(format!("PREFIX={}", prefix().display())).arg("-B");
    if shared {
        make.arg("SHARED=1");
    }
    run(make.env("CFLAGS", "-O2 -Wall -Wextra -Werror -std=c11"));
    Some(to)
}

/// Libraries that a file asks the loader for.
fn needed(file: &Path) -> Vec<String> {
    let text = run(Command::new("readelf").arg("-d").arg(file));
    let names = text.lines().filter(|line| line.contains("(NEEDED)"));
    names.filter_map(|line| Some(line.split_once('[')?.1.trim_end_matches(']').into())).collect()
}

/// Of the C library alone; what a distribution of another age splits off is named as well.
const SYSTEM: [&str; 5] =
    ["libc.so.6", "libm.so.6", "libpthread.so.0", "libdl.so.2", "ld-linux-x86-64.so.2"];

#[test]
fn a_static_program_needs_the_c_library_alone() {
    let Some(examples) = examples_in_c(false) else { return };
    let program = examples.join("predict");
    let found = needed(&program);
    let bytes = std::fs::metadata(&program).expect("it was built").len();
    let cards = engine::backend::gpu::images::all().count();
    eprintln!("examples/c/predict: {bytes} bytes, {cards} kernels' images inside, needs {found:?}");
    let foreign: Vec<_> = found.iter().filter(|n| !SYSTEM.contains(&n.as_str())).collect();
    assert!(foreign.is_empty(), "{foreign:?}");
    assert!(cards > 0 || bytes < MOST, "{bytes} bytes");
}

#[test]
fn the_shared_library_exports_its_functions_alone() {
    if !have("nm", "binutils") {
        return;
    }
    let library = prefix().join("lib/libengine.so");
    let text = run(Command::new("nm").args(["-D", "--defined-only"]).arg(&library));
    let names: Vec<&str> = text.lines().filter_map(|l| l.split_whitespace().nth(2)).collect();
    let foreign: Vec<_> = names.iter().filter(|name| !name.starts_with("engine_")).collect();
    assert!(foreign.is_empty(), "{foreign:?}");
    let header = std::fs::read_to_string(root().join("include/engine.h")).expect("is there");
    let missing: Vec<&str> =
        declared(&header).into_iter().filter(|name| !names.contains(name)).collect();
    assert!(missing.is_empty() && names.len() > 30, "{missing:?} of {}", names.len());
    eprintln!("libengine.so: {} functions, needs {:?}", names.len(), needed(&library));
    let soname = run(Command::new("readelf").arg("-d").arg(&library));
    assert!(soname.contains("[libengine.so.1]"), "{soname}");
}

/// Functions of the header.
fn declared(header: &str) -> Vec<&str> {
    let lines = header.lines().filter(|line| !line.starts_with([' ', '/', '#', '*', 't']));
    let names = lines.filter_map(|line| line.split_once('(')?.0.split([' ', '*']).next_back());
    names.filter(|name| name.starts_with("engine_")).collect()
}

#[test]
fn pkg_config_knows_both() {
    if !have("pkg-config", "pkgconf") || !have("cc", "build-essential") {
        return;
    }
    let flags = |package: &str| -> Vec<String> {
        let mut command = Command::new("pkg-config");
        command.args(["--cflags", "--libs", package]);
        command.env("PKG_CONFIG_PATH", prefix().join("lib/pkgconfig"));
        run(&mut command).split_whitespace().map(String::from).collect()
    };
    let source = root().join("examples/c/kernels.c");
    for package in ["engine", "engine-static"] {
        let program = folder("pkg-config").join(package);
        run(Command::new("cc")
            .arg(&source)
            .args(flags(package))
            .arg("-lm")
            .arg("-o")
            .arg(&program));
        run(Command::new(&program).env("LD_LIBRARY_PATH", prefix().join("lib")));
    }
}

#[test]
fn destdir_stands_before_the_prefix() {
    let to = folder("destdir");
    let target = Path::new(env!("CARGO_TARGET_TMPDIR")).parent().expect("below target");
    prefix();
    run(Command::new(root().join("scripts/install"))
        .env("PREFIX", "/usr")
        .env("DESTDIR", &to)
        .env("CARGO_TARGET_DIR", target));
    for file in ["include/engine.h", "include/engine.hpp", "lib/libengine.a", "lib/libengine.so"] {
        assert!(to.join("usr").join(file).is_file(), "{file}");
    }
    let text = std::fs::read_to_string(to.join("usr/lib/pkgconfig/engine.pc")).expect("is there");
    assert!(text.contains("prefix=/usr\n"), "{text}");
    let refused = Command::new(root().join("scripts/install")).env("PREFIX", "here").output();
    let refused = refused.expect("bash runs");
    assert_eq!(refused.status.code(), Some(2));
}
