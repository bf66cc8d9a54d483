//! The declarations of HIP and hipBLAS: made again from the headers by bindgen, where there is a
//! libclang, and compared with the committed ones. ENGINE_UPDATE_SYS=1 writes them instead.

use std::path::{Path, PathBuf};
use std::process::Command;

use bindgen::{Builder, Formatter};

const HEADING: &str =
    "//! Declarations of HIP and hipBLAS, made by bindgen from engine_hip.h and engine_hipblas.h
//! (tests/hip_sys.rs). Do not edit: ENGINE_UPDATE_SYS=1 cargo test --test hip_sys
";

/// The folder of a libclang: LIBCLANG_PATH, or where Debian and others put LLVM.
fn libclang() -> Option<PathBuf> {
    let given = std::env::var_os("LIBCLANG_PATH").map(PathBuf::from);
    let versions = (14..30).rev().map(|v| PathBuf::from(format!("/usr/lib/llvm-{v}/lib")));
    let others =
        ["/usr/lib64", "/usr/lib/x86_64-linux-gnu", "/opt/rocm/llvm/lib"].map(PathBuf::from);
    let has_it = |folder: &PathBuf| {
        let names = std::fs::read_dir(folder).into_iter().flatten().flatten();
        names.map(|e| e.file_name()).any(|n| n.to_string_lossy().starts_with("libclang"))
    };
    given.into_iter().chain(versions).chain(others).find(has_it)
}

fn builder(header: &Path) -> Builder {
    bindgen::builder()
        .header(header.to_string_lossy())
        .formatter(Formatter::Prettyplease)
        .generate_comments(false)
        .layout_tests(false)
        .disable_header_comment()
        .default_macro_constant_type(bindgen::MacroTypeVariation::Signed)
        .prepend_enum_name(false)
        .rust_target(bindgen::RustTarget::stable(85, 0).unwrap_or_else(|_| unreachable!("known")))
        .rust_edition(bindgen::RustEdition::Edition2024)
}

fn generated(folder: &Path) -> String {
    let (hip, blas) = (folder.join("engine_hip.h"), folder.join("engine_hipblas.h"));
    let properties = "hipGetDeviceProperties.*";
    let make = |builder: Builder| builder.generate().expect("the header compiles").to_string();
    let constants = make(builder(&hip).allowlist_type("hip.*").allowlist_var("hip.*|engine.*"));
    let runtime = make(
        builder(&hip)
            .allowlist_function("hip.*")
            .blocklist_function(properties)
            .allowlist_recursively(false)
            .raw_line("use super::*;")
            .dynamic_library_name("HipLib")
            .dynamic_link_require_all(true),
    );
    let versions = make(
        builder(&hip)
            .allowlist_function(properties)
            .allowlist_recursively(false)
            .raw_line("use super::*;")
            .dynamic_library_name("PropertiesLib"),
    );
    let blas = make(builder(&blas).dynamic_library_name("BlasLib"));
    format!(
        "{HEADING}{constants}\n/// What every version has.\npub mod runtime {{\n{runtime}}}\n\
         /// What one version has or another.\npub mod properties {{\n{versions}}}\n\
         /// hipBLAS; its functions differ between versions too.\npub mod blas {{\n{blas}}}\n"
    )
}

#[test]
fn declarations_are_those_of_the_headers() {
    let Some(libclang) = libclang() else {
        eprintln!("skipped: no libclang (apt-get install libclang1-19, or LIBCLANG_PATH)");
        return;
    };
    // bindgen finds the library by this variable, which only a new process can be given.
    if std::env::var_os("LIBCLANG_PATH").is_none() {
        let this = std::env::current_exe().expect("this program");
        let done = Command::new(this).env("LIBCLANG_PATH", libclang).status();
        assert!(done.expect("runs").success(), "see above");
        return;
    }
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/backend/gpu/hip");
    let file = folder.join("sys.rs");
    let fresh = generated(&folder);
    if std::env::var_os("ENGINE_UPDATE_SYS").is_some() {
        std::fs::write(&file, &fresh).expect("writes");
    }
    let committed = std::fs::read_to_string(&file).unwrap_or_default();
    let differs = committed.lines().zip(fresh.lines()).position(|(a, b)| a != b);
    assert!(
        committed == fresh,
        "{} is not what the headers give (line {:?}): ENGINE_UPDATE_SYS=1 writes it",
        file.display(),
        differs.map(|line| line + 1)
    );
}
