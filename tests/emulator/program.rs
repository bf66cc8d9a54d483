//! The program on an emulated card: what it finds and says, ten losses against the CPU's, and faults in
//! the middle of work.

use std::path::Path;
use std::process::{Command, Output};

use serde_json::Value;

use crate::common::{Bench, bytes, said};
use crate::stand_in::{Build, clear};

/// A model with every part of the real one, whose step the emulator runs in a moment.
const SMALL: &[&str] = &[
    "--batch",
    "4",
    "model.d_model=24",
    "model.n_heads=3",
    "model.n_layers=2",
    "model.patch=10",
    "train.accumulation=2",
];

/// Gives `command` the emulated card of a build, and the variables ("NAME=VALUE"); false, having said
/// why, where the emulator cannot be built.
pub fn on_card(command: &mut Command, build: &Build, variables: &[&str]) -> bool {
    let Some(libraries) = build.libraries() else { return false };
    clear(command);
    command.env("ENGINE_HIP_LIBRARY", libraries.hip);
    command.env("ENGINE_HIPBLAS_LIBRARY", libraries.hipblas);
    command.env("ENGINE_HIP_IMAGE", libraries.image);
    command.env("ENGINE_EMULATOR_BOOKS", "1");
    command.env("ROCBLAS_TENSILE_LIBPATH", "/nowhere");
    for variable in variables {
        let (name, value) = variable.split_once('=').expect("NAME=VALUE");
        command.env(name, value);
    }
    true
}

/// `engine train` on an emulated RX 5600 XT; None without an emulator.
fn train(bench: &Bench, run: &str, variables: &[&str], more: &[&str]) -> Option<Output> {
    let mut command = bench.train(run, &[SMALL, &["--device", "hip"], more].concat());
    on_card(&mut command, &Build::plain(32), variables).then(|| command.output().expect("started"))
}

/// The program must end with `status`, having said all of these words ("one|two") and, where it came
/// to use the card, having given everything back.
fn expect(output: &Output, status: i32, words: &str) {
    let text = said(output);
    assert_eq!(output.status.code(), Some(status), "{text}");
    for word in words.split('|') {
        assert!(text.contains(word), "{word:?} is not in what it said: {text}");
    }
    if text.contains("kernels run") {
        assert!(text.contains("emulator: everything was given back"), "{text}");
    }
}

fn losses(run: &Path) -> Vec<f64> {
    let text = String::from_utf8(bytes(run.join("metrics.jsonl"))).expect("UTF-8");
    let records = text.lines().map(|line| serde_json::from_str::<Value>(line).expect("JSON"));
    records.filter(|r| r["kind"] == "step").map(|r| r["loss"].as_f64().expect("a loss")).collect()
}

/// A number that the emulator says at the end, before `what`.
fn counted(output: &Output, what: &str) -> u64 {
    let text = said(output);
    let before = text.split(what).next().expect("a part");
    let number = before.trim_end().rsplit([' ', '\n']).next().and_then(|n| n.parse().ok());
    number.unwrap_or_else(|| panic!("no number of{what}: {text}"))
}

fn weights(run: &Path) -> Vec<u8> {
    bytes(run.join("checkpoints/last.safetensors"))
}

/// Ten updates on the emulated RX 5600 XT give the CPU's losses: with the spectral transform on the
/// host, as it is by default, and on the card; with and without graphs.
#[test]
fn ten_losses_are_those_of_the_cpu() {
    let bench = Bench::new(12);
    let ten = ["--max-steps", "10", "--epochs", "10", "--profile", "rx5600xt"];
    let cpu = bench.train("cpu", &[SMALL, &ten, &["--device", "cpu"]].concat()).output();
    expect(&cpu.expect("started"), 0, "device cpu");
    let want = losses(&bench.path("cpu"));
    assert_eq!(want.len(), 10);
    let on_host = "spectral runs on the CPU: GPU FFTs hung|1.0 GiB are left|HIP 6.3";
    for (name, variables, more, words) in [
        ("host", &[][..], &[][..], on_host),
        ("eager", &["ENGINE_HIP_GRAPHS=0"], &[], on_host),
        (
            "card",
            &["ENGINE_EMULATOR_SEED=5"],
            &["--route", "spectral=gpu", "device.pinned=true"],
            "RX 5600 XT (gfx1010)",
        ),
        ("recomputed", &[], &["train.recompute=layers", "model.n_spectral=2"], on_host),
    ] {
        let Some(output) = train(&bench, name, variables, &[&ten[..], more].concat()) else {
            return;
        };
        expect(&output, 0, words);
        if name == "recomputed" {
            continue;
        }
        let found = losses(&bench.path(name));
        let off = want.iter().zip(&found).map(|(a, b)| (a - b).abs() / a.abs().max(1.0));
        let off = off.fold(0.0, f64::max);
        eprintln!("ten losses, {name}: off by {off:.1e} at most");
        assert_eq!(found.len(), 10);
        assert!(off < 1e-5, "{name}: {want:?}\n{found:?}");
    }
    scored_alike(&bench);
}

/// The run of the CPU, scored and used on the card.
fn scored_alike(bench: &Bench) {
    let on = |args: &[&str]| {
        let mut command = bench.engine(args);
        assert!(on_card(&mut command, &Build::plain(32), &[]));
        let output = command.output().expect("started");
        assert!(output.status.success(), "{}", said(&output));
        String::from_utf8(output.stdout).expect("UTF-8")
    };
    for args in [&["evaluate", "cpu"][..], &["predict", "cpu", "--data", "data"]] {
        let cpu = on(&[args, &["--device", "cpu"]].concat());
        let card = on(&[args, &["--device", "hip"]].concat());
        let numbers = |text: &str| -> Vec<f64> {
            text.split([',', '\n', ' ']).filter_map(|word| word.parse().ok()).collect()
        };
        let (cpu, card) = (numbers(&cpu), numbers(&card));
        assert!(!cpu.is_empty() && cpu.len() == card.len(), "{args:?}");
        assert!(cpu.iter().zip(&card).all(|(a, b)| (a - b).abs() < 1e-3 * a.abs().max(1.0)));
    }
}

/// `auto` takes the card where there is no NVIDIA card, with the profile that suits it; waves of 64
/// lanes too.
#[test]
fn auto_finds_the_card_and_its_profile() {
    if engine::backend::gpu::cuda::driver_is_present() {
        return eprintln!("skipped: --device auto for AMD (this machine has NVIDIA's driver)");
    }
    let bench = Bench::new(10);
    let auto = ["--device", "auto", "--max-steps", "3", "model.n_layers=1", "--amp", "off"];
    for (arch, wave, profile) in [("gfx1010", 32, "rx5600xt"), ("gfx90a", 64, "rtx4090")] {
        let mut command = bench.train(arch, &auto);
        let arch = format!("ENGINE_EMULATOR_ARCH={arch}");
        if !on_card(&mut command, &Build::plain(wave), &[&arch]) {
            return;
        }
        expect(&command.output().expect("started"), 0, &format!("profile {profile} ("));
    }
}

/// Mixed precision and the vendor's products on RDNA1: what is possible, and what is refused how.
#[test]
fn wishes_are_met_or_refused() {
    let bench = Bench::new(10);
    let files = tempfile::tempdir().expect("a folder");
    std::fs::write(files.path().join("TensileLibrary_lazy_gfx1010.dat"), b"").expect("writes");
    let library = format!("ROCBLAS_TENSILE_LIBPATH={}", files.path().display());
    let harm =
        ["HSA_OVERRIDE_GFX_VERSION=10.3.0", "HIP_LAUNCH_BLOCKING=1", "ROCBLAS_USE_HIPBLASLT=1"];
    let vendor = [&library[..], harm[0], harm[1], harm[2]];
    for (name, variables, more, status, words) in [
        ("bf16", &[][..], &["--amp", "bf16"][..], 2, "has no bf16|--amp f16"),
        ("tf32", &[], &["--amp", "tf32"], 2, "TF32 is NVIDIA's|--amp off"),
        ("f16", &[], &["--amp", "f16", "--max-steps", "3"], 0, "RX 5600 XT"),
        ("none", &[], &["--gemm", "vendor"], 2, "--gemm vendor|rocBLAS has no code for RDNA1"),
        (
            "vendor",
            &vendor,
            &["--gemm", "vendor", "--max-steps", "3"],
            0,
            "hipBLAS, without hipBLASLt|HSA_OVERRIDE_GFX_VERSION=10.3.0|HIP_LAUNCH_BLOCKING=1|\
             ROCBLAS_USE_HIPBLASLT=1",
        ),
        ("unasked", &[&library], &["--max-steps", "3"], 0, "RX 5600 XT"),
        ("folds", &[], &["--folds", "2", "--epochs", "1"], 0, "fold 2 of 2|RX 5600 XT"),
        (
            "shallow",
            &[],
            &["--model", "shallow", "model.shallow_pool=40", "--max-steps", "3"],
            0,
            "RX 5600",
        ),
    ] {
        let Some(output) = train(&bench, name, variables, more) else { return };
        expect(&output, status, words);
        let by_library = said(&output).contains("products by hipBLAS");
        assert_eq!(by_library, name == "vendor", "{}", said(&output));
    }
}

/// Faults before the first step: each in words of its own, and nothing left behind.
#[test]
fn faults_at_the_start_are_told_apart() {
    let bench = Bench::new(10);
    let one = ["--max-steps", "3"];
    for (fault, status, words) in [
        (
            "alloc:1",
            2,
            "out of memory|a chunk of AMD Radeon RX 5600 XT's memory|close other programs",
        ),
        (
            "alloc:2",
            2,
            "out of memory|a chunk of AMD Radeon RX 5600 XT's memory|close other programs",
        ),
        ("busy", 2, "out of memory|left to the desktop|--memory"),
        ("launch:5", 1, "hipErrorLaunchOutOfResources|self-test of elementwise|--route OP=cpu"),
        ("lost:3", 1, "hipErrorLaunchFailure|self-test of elementwise|dmesg"),
        ("wrong:gemm*", 1, "self-test|the kernels of gemm|linear layer|--route gemm=cpu"),
        ("wrong:layernorm_both*", 1, "self-test|the kernels of layernorm|--route layernorm=cpu"),
        ("wrong:adamw_f32", 1, "self-test|the kernels of optimizer|AdamW|--report"),
        ("nodevice", 1, "hipErrorNoDevice"),
        ("nocards", 1, "finds no card"),
    ] {
        let fault_is = format!("ENGINE_EMULATOR_FAIL={fault}");
        let Some(output) = train(&bench, "fault", &[&fault_is], &one) else { return };
        expect(&output, status, words);
        assert!(!bench.path("fault").exists(), "{fault}: the mended command can have the folder");
    }
    // What the message says does help.
    let wrong = ["ENGINE_EMULATOR_FAIL=wrong:layernorm_both*"];
    let output =
        train(&bench, "mended", &wrong, &[&one[..], &["--route", "layernorm=cpu"]].concat());
    let Some(output) = output else { return };
    expect(&output, 0, "layernorm runs on the CPU");
}

/// Faults in the middle of training: the last checkpoint is whole, and going on from it gives the
/// bytes of the run that nothing befell.
#[test]
fn a_fault_in_training_costs_no_more_than_a_step() {
    let bench = Bench::new(10);
    let five = ["--max-steps", "5", "--epochs", "9", "train.checkpoint_every_steps=1"];
    let Some(whole) = train(&bench, "whole", &[], &five) else { return };
    expect(&whole, 0, "everything was given back");
    let finished = weights(&bench.path("whole"));
    for (fault, what, words) in [
        ("launch", " launches", "hipErrorLaunchOutOfResources"),
        ("lost", " kernels run", "hipErrorLaunchFailure|--resume"),
    ] {
        // The latest of these moments that is neither after the last step nor before the first.
        let all = counted(&whole, what);
        let befallen = (1..20).rev().find_map(|part| {
            let (name, at) = (format!("{fault}-{part}"), all * part / 20);
            let fault_is = format!("ENGINE_EMULATOR_FAIL={fault}:{at}");
            let output = train(&bench, &name, &[&fault_is], &five)?;
            expect(&output, 1, words);
            let last = bench.path(&name).join("checkpoints/last.safetensors");
            (last.exists() && bytes(&last) != finished).then_some(name)
        });
        let name = befallen.expect("a fault between two steps");
        let run = bench.path(&name);
        let before = losses(&run).len();
        let mut resume = bench.engine(&["train", "--resume", &name]);
        assert!(on_card(&mut resume, &Build::plain(32), &[]));
        expect(&resume.output().expect("started"), 0, "going on after step");
        assert!(weights(&run) == finished, "{name}: other weights");
        assert_eq!(losses(&run), losses(&bench.path("whole")), "{name}");
        eprintln!("{fault} in the middle: {before} losses known, resumed to the same bytes");
    }
}
