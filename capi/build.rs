//! Names the shared library by the version of its binary interface.

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    // As ENGINE_ABI_VERSION of src/capi/mod.rs: tests/embedding compares them.
    if std::env::var("CARGO_CFG_TARGET_OS").is_ok_and(|os| os == "linux") {
        println!("cargo:rustc-cdylib-link-arg=-Wl,-soname,libengine.so.1");
    }
}
