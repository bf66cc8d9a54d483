//! include/engine.h, made of src/capi by cbindgen: what is committed must be what would be made.

use crate::fixture::root;

/// Sources of the header, in the order of its parts.
const SOURCES: [&str; 8] =
    ["mod", "status", "context", "array", "buffer", "kernels", "model", "trainer"];

fn made() -> String {
    let config = cbindgen::Config::from_file(root().join("capi/cbindgen.toml"));
    let mut builder = cbindgen::Builder::new().with_config(config.expect("the file is in order"));
    for name in SOURCES {
        builder = builder.with_src(root().join(format!("src/capi/{name}.rs")));
    }
    let mut text = Vec::new();
    builder.generate().expect("the sources are in order").write(&mut text);
    let text = String::from_utf8(text).expect("the header is text");
    // Safety sections are for Rust: the header's first comment says what holds for C.
    let mut lines = Vec::new();
    let mut skipping = false;
    for line in text.lines() {
        skipping |= line.trim() == "// # Safety";
        skipping &= line.starts_with("//");
        if !skipping {
            lines.push(line);
        } else if lines.last().is_some_and(|line| line.trim() == "//") {
            lines.pop();
        }
    }
    lines.join("\n") + "\n"
}

#[test]
fn header_is_of_the_source() {
    let (path, made) = (root().join("include/engine.h"), made());
    if std::env::var_os("ENGINE_WRITE_HEADER").is_some() {
        std::fs::write(&path, &made).expect("include can be written");
    }
    let committed = std::fs::read_to_string(&path).expect("the header is there");
    let differs = made.lines().zip(committed.lines()).find(|(a, b)| a != b);
    assert!(
        made == committed,
        "include/engine.h is not what src/capi makes: {differs:?}\n  remedy: ENGINE_WRITE_HEADER=1 \
         cargo test --release --test embedding header"
    );
}

#[test]
fn the_shared_library_is_named_by_its_interface() {
    let build = std::fs::read_to_string(root().join("capi/build.rs")).expect("it is there");
    let name = format!("libengine.so.{}\"", engine::capi::ENGINE_ABI_VERSION);
    assert!(build.contains(&name), "capi/build.rs does not name {name}");
}
