//! The HIP driver, its host path and every portable kernel, with no card: on the stand-in runtime of
//! `kernels/emulator`, as several cards, under the address sanitizer and the race detector, and with
//! faults on demand.
//!
//! # Layout
//! This file builds the stand-ins and starts the tests of [`child`], each in a process of its own, as
//! the runtime is opened once in a process and some faults end it. `planted.cu` holds mistakes that the
//! emulator must find, [`seeded`] puts one into every family of the program's own kernels. [`program`]
//! runs the program itself on an emulated card, [`rocm`] on machines where AMD's stack is absent,
//! incomplete or broken.

#[path = "../cases/mod.rs"]
mod cases;
mod child;
#[path = "../common/mod.rs"]
mod common;
#[path = "../cases/compare.rs"]
mod compare;
mod program;
mod rocm;
mod seeded;
mod stand_in;

use stand_in::{Build, Child};

/// A card, the lanes of its waves, and what permutes them.
const CARDS: [(&str, u32, &str); 3] =
    [("gfx1010", 32, "0"), ("gfx1100", 32, "7"), ("gfx90a", 64, "1")];

/// With parameters in f32 beside activations of 16 bits; the types that are alone are compared where
/// memory is watched.
#[test]
fn every_op_of_mixed_types_on_every_card() {
    for (arch, wave, seed) in CARDS {
        let Some(child) = Build::plain(wave).child("op_table") else { return };
        let child = child.env("ENGINE_EMULATOR_ARCH", arch).env("ENGINE_EMULATOR_SEED", seed);
        child.env("ENGINE_EMULATOR_CASES", "mixed bf16,mixed f16").succeeds();
    }
}

#[test]
fn every_op_stays_in_its_memory() {
    for (arch, wave, seed) in CARDS {
        let Some(child) = Build::asan(wave).child("op_table") else { return };
        let child = child.env("ENGINE_EMULATOR_ARCH", arch).env("ENGINE_EMULATOR_SEED", seed);
        child.env("ENGINE_EMULATOR_CASES", "f32,bf16,f16").succeeds();
    }
}

#[test]
fn no_op_races() {
    for (arch, wave, seed) in CARDS {
        // On RDNA the products of f16 have code of their own.
        let types = if wave == 32 { "bf16,f16" } else { "bf16" };
        let Some(child) = Build::race(wave).child("op_table") else { return };
        let child = child.env("ENGINE_EMULATOR_SEED", seed);
        child.env("ENGINE_EMULATOR_ARCH", arch).env("ENGINE_EMULATOR_CASES", types).succeeds();
    }
}

#[test]
fn products_by_hipblas() {
    let Some(libraries) = Build::plain(32).libraries() else { return };
    let files = tempfile::tempdir().expect("a folder");
    std::fs::write(files.path().join("TensileLibrary_lazy_gfx1100.dat"), b"").expect("writes");
    // The three interfaces that hipBLAS has had.
    for name in ["libhipblas.so.1", "libhipblas.so", "libhipblas.so.3"] {
        let library = libraries.hipblas.with_file_name(name);
        let Some(child) = Build::plain(32).child("vendor_products") else { return };
        let child = child.env("ENGINE_HIPBLAS_LIBRARY", &library.to_string_lossy());
        let child = child.env("ENGINE_EMULATOR_ARCH", "gfx1100");
        child.env("ROCBLAS_TENSILE_LIBPATH", &files.path().to_string_lossy()).succeeds();
    }
    // Without files for the card hipBLAS is not touched.
    let Some(child) = Build::plain(32).child("no_vendor") else { return };
    child.env("ROCBLAS_TENSILE_LIBPATH", &files.path().to_string_lossy()).succeeds();
}

#[test]
fn recorded_steps_give_the_same_numbers() {
    for graphs in ["1", "0"] {
        let Some(child) = Build::plain(32).child("replay") else { return };
        child.env("ENGINE_HIP_GRAPHS", graphs).succeeds();
    }
}

#[test]
fn memory_goes_back_when_nothing_needs_it() {
    let Some(child) = Build::plain(32).child("trims") else { return };
    child.succeeds();
}

/// Every fault has its own message, and none ends the process.
#[test]
fn faults_are_errors() {
    let start = |test: &str| Build::plain(32).child(test);
    let faults = [
        ("nodevice", "opens_not", "hipErrorNoDevice|/dev/kfd"),
        ("alloc:1", "allocates_not", "out of memory|close other programs"),
        ("busy", "allocates_not", "out of memory|close other programs"),
        ("launch:3", "fails_in_work", "kernel fill_f32|hipErrorLaunchOutOfResources|--route"),
        ("lost:2", "fails_in_work", "work on the card|hipErrorLaunchFailure|--resume"),
        ("wrong:fill_f32", "fill_is_wrong", "fill is off"),
    ];
    for (fault, test, words) in faults {
        let Some(child) = start(test) else { return };
        child.env("ENGINE_EMULATOR_FAIL", fault).says(words);
    }
    let setups = [
        ("ENGINE_HIP_LIBRARY", "/nowhere/libamdhip64.so", "/nowhere|ENGINE_HIP_LIBRARY"),
        ("ENGINE_HIP_LIBRARY", file!(), "invalid ELF|ENGINE_HIP_LIBRARY"),
        ("ENGINE_HIP_IMAGE", file!(), "hipErrorInvalidImage|ENGINE_HIP_ARCHS"),
        ("ENGINE_HIP_IMAGE", "/nowhere/image", "/nowhere/image"),
        ("ENGINE_EMULATOR_ARCH", "gfx90a", "hipErrorNoDevice"),
    ];
    for (variable, value, words) in setups {
        let Some(child) = start("opens_not") else { return };
        child.env(variable, value).says(words);
    }
    let Some(child) = start("warns") else { return };
    child.env("HSA_OVERRIDE_GFX_VERSION", "10.3.0").says("HSA_OVERRIDE_GFX_VERSION=10.3.0|unset");
}

fn planted(build: &Build, kernel: &str) -> Option<Child> {
    Some(build.child("planted")?.env("ENGINE_EMULATOR_PLANTED", kernel))
}

/// What the emulator must say of each planted mistake; "" where it must say nothing.
#[test]
fn planted_mistakes_are_found() {
    let plain = [
        ("clean", ""),
        ("in_wave_right", ""),
        ("unset_shared", ""),
        ("divergent_barrier", "a barrier or shuffle that not all threads reach|planted.cu"),
        ("two_barriers", "threads meet from different lines|planted.cu"),
        ("divergent_shuffle", "a barrier or shuffle that not all threads reach|planted.cu"),
        ("absent_lane", "a shuffle from a lane that is not there|thread 4"),
    ];
    let asan = [
        ("clean", ""),
        ("past_shared", "global-buffer-overflow|planted.cu"),
        ("past_dynamic", "heap-buffer-overflow|planted.cu"),
        ("past_global", "heap-buffer-overflow|planted.cu"),
    ];
    let race = [
        ("clean", ""),
        ("in_wave_right", ""),
        ("no_barrier", "a race in shared memory|planted.cu"),
        ("write_after_read", "a race in shared memory|planted.cu"),
        ("in_wave", "a race in dynamic shared memory|planted.cu"),
        ("across_blocks", "a race in global memory|block 0|block 1"),
        ("reads_other_block", "a race in global memory|block 0|block 1"),
    ];
    let builds = [
        (Build::plain(32), &plain[..]),
        (Build::plain(64), &plain[..]),
        (Build::asan(32), &asan[..]),
        (Build::race(32), &race[..]),
        (Build::race(64), &race[..]),
    ];
    let file = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/emulator/planted.cu");
    for (build, mistakes) in builds {
        let build = build.with_kernels("planted", vec![file.clone()]);
        for (kernel, words) in mistakes {
            let Some(child) = planted(&build, kernel) else { return };
            if words.is_empty() { child.succeeds() } else { child.ends_saying(words) }
        }
    }
}
