//! AMD's stack absent, incomplete or broken: what `engine devices` says, how a run that asked for the
//! card ends, and that one which did not goes on to the CPU.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use crate::common::{Bench, said};
use crate::program::on_card;
use crate::stand_in::{Build, clear};

/// A library with some of the runtime's functions, as older ones are.
const OLD: &str = "int hipInit(unsigned flags) { return 0; }\n\
                   int hipGetDeviceCount(int* count) { return *count = 0; }\n";

fn compiled(folder: &Path, name: &str, text: &str) -> Option<PathBuf> {
    let (source, library) = (folder.join("library.c"), folder.join(name));
    std::fs::write(&source, text).expect("written");
    let cc = std::env::var("CXX").unwrap_or_else(|_| "g++".into());
    let mut command = Command::new(&cc);
    command.args(["-x", "c", "-shared", "-fPIC", "-o"]).args([&library, &source]);
    match command.output() {
        Ok(output) if output.status.success() => Some(library),
        Ok(output) => panic!("{}", String::from_utf8_lossy(&output.stderr)),
        Err(_) => {
            eprintln!("skipped: no {cc} to build stand-in libraries with");
            None
        }
    }
}

fn is_installed() -> bool {
    let engine = Command::new(env!("CARGO_BIN_EXE_engine")).arg("devices").output();
    String::from_utf8_lossy(&engine.expect("started").stdout).contains("HIP runtime")
}

/// One state of AMD's stack.
struct Machine {
    name: &'static str,
    variables: Vec<String>,
    /// The stand-in runtime and its kernels are there.
    emulated: bool,
    /// What all commands say of it.
    words: &'static str,
}

fn machines(folder: &Path) -> Option<Vec<Machine>> {
    let old = compiled(folder, "libamdhip64-old.so", OLD)?;
    let text = folder.join("libamdhip64-broken.so");
    std::fs::write(&text, "no library").expect("written");
    let library = |path: &Path| vec![format!("ENGINE_HIP_LIBRARY={}", path.display())];
    let fails = |fault: &str| vec![format!("ENGINE_EMULATOR_FAIL={fault}")];
    let machine = |name, variables, emulated, words| Machine { name, variables, emulated, words };
    let mut all = vec![
        machine("old", library(&old), false, "too old|undefined symbol|ROCm 5.2 or newer"),
        machine("broken", library(&text), false, "libamdhip64-broken.so|ENGINE_HIP_LIBRARY"),
        machine("gone", library(Path::new("/nowhere/x.so")), false, "/nowhere/x.so"),
        machine("deviceless", fails("nodevice"), true, "hipErrorNoDevice|/dev/kfd"),
        // Debian 12's libamdhip64 5.2.3 loads on any machine, and says this without a card.
        machine("debian", fails("nodevice:101"), true, "hipErrorInvalidDevice|/dev/kfd"),
        machine("cardless", fails("nocards"), true, "finds no card|/dev/kfd"),
        machine("strange", vec!["ENGINE_EMULATOR_ARCH=gfx90a".into()], true, "hipErrorNoDevice"),
        machine(
            "kernelless",
            vec!["ENGINE_HIP_IMAGE=/nowhere/image".into()],
            true,
            "/nowhere/image",
        ),
        machine(
            "misbuilt",
            vec![format!("ENGINE_HIP_IMAGE={}", text.display())],
            true,
            "InvalidImage",
        ),
    ];
    if !is_installed() {
        all.push(machine(
            "none",
            Vec::new(),
            false,
            "libamdhip64.so is not on this machine|install ROCm",
        ));
    }
    Some(all)
}

impl Machine {
    fn run(&self, mut command: Command) -> Output {
        let variables: Vec<&str> = self.variables.iter().map(String::as_str).collect();
        if self.emulated {
            assert!(on_card(&mut command, &Build::plain(32), &variables));
        } else {
            clear(&mut command);
            for variable in variables {
                let (name, value) = variable.split_once('=').expect("NAME=VALUE");
                command.env(name, value);
            }
        }
        command.output().expect("started")
    }

    fn expect(&self, output: &Output, status: i32, more: &str) {
        let text = said(output);
        assert_eq!(output.status.code(), Some(status), "{}: {text}", self.name);
        for word in more.split('|').filter(|word| !word.is_empty()) {
            assert!(text.contains(word), "{}: {word:?} is not in {text}", self.name);
        }
    }
}

#[test]
fn every_state_of_the_stack_has_its_line_and_auto_goes_on() {
    let folder = tempfile::tempdir().expect("a folder");
    let Some(machines) = machines(folder.path()) else { return };
    if Build::plain(32).libraries().is_none() {
        return;
    }
    let nvidia = engine::backend::gpu::cuda::driver_is_present();
    let bench = Bench::new(10);
    for machine in machines {
        let devices = machine.run(bench.engine(&["devices"]));
        let words = format!("AMD card|none: |AMD kernels|NVIDIA kernels|{}", machine.words);
        machine.expect(&devices, 0, &words);
        let hip = machine.run(bench.train("hip", &["--device", "hip", "--max-steps", "3"]));
        let status = if machine.name == "kernelless" { 2 } else { 1 };
        machine.expect(&hip, status, machine.words);
        assert!(!bench.path("hip").exists(), "{}", machine.name);
        if nvidia {
            continue;
        }
        let auto =
            ["--device", "auto", "--max-steps", "3", "--profile", "cpu", "device.device=auto"];
        let auto = machine.run(bench.train(machine.name, &auto));
        let why = if machine.name == "none" { "" } else { machine.words };
        machine.expect(&auto, 0, &format!("device cpu|{why}"));
    }
}

/// What is said of a card that works, of rocBLAS without files for it, and of what is set wrongly.
#[test]
fn a_card_and_what_is_around_it_are_described() {
    let folder = tempfile::tempdir().expect("a folder");
    std::fs::write(folder.path().join("TensileLibrary_lazy_gfx1030.dat"), b"").expect("written");
    std::fs::write(folder.path().join("Kernels.so-000-gfx1010.hsaco"), b"").expect("written");
    let bench = Bench::new(4);
    let at = format!("ROCBLAS_TENSILE_LIBPATH={}", folder.path().display());
    let devices = |variables: &[&str], args: &[&str]| {
        let mut command = bench.engine(&[&["devices"], args].concat());
        on_card(&mut command, &Build::plain(32), variables).then(|| {
            let output = command.output().expect("started");
            assert!(output.status.success(), "{}", said(&output));
            String::from_utf8(output.stdout).expect("UTF-8")
        })
    };
    let Some(text) = devices(&[&at, "HSA_OVERRIDE_GFX_VERSION=10.3.0"], &[]) else { return };
    for words in [
        "AMD Radeon RX 5600 XT, gfx1010, 36 compute units, waves of 32",
        "no files for gfx1010 in ",
        "it would end the process, and is not touched",
        "HSA_OVERRIDE_GFX_VERSION=10.3.0",
        "What runs where on gfx1010, in force",
        "GPU FFTs hung the systems",
    ] {
        assert!(text.contains(words), "{words:?} is not in {text}");
    }
    std::fs::write(folder.path().join("TensileLibrary_lazy_gfx1010.dat"), b"").expect("written");
    let text = devices(&[&at], &[]).expect("as before");
    assert!(text.contains("not used unless --gemm vendor asks for it"), "{text}");
    let text = devices(&[&at], &["--gemm", "vendor"]).expect("as before");
    assert!(text.contains("in use, without hipBLASLt; files for gfx1010 in"), "{text}");
    let text = devices(&[], &[]).expect("as before");
    assert!(text.contains("rocBLAS") && text.contains("not on this machine"), "{text}");
    let json = devices(&[], &["--json"]).expect("as before");
    let json: serde_json::Value = serde_json::from_str(&json).expect("JSON");
    let cuda = engine::backend::gpu::cuda::driver_is_present();
    assert!(cuda || (json["in_use"] == "gfx1010" && json["gpu_backends"][0] == "hip"), "{json}");
}

/// The report has what a maintainer needs and nothing that tells who or where.
#[test]
fn the_report_is_complete_and_tells_no_names() {
    let bench = Bench::new(4);
    let home = bench.path("home-of-marie");
    let (home_is, user) = (format!("HOME={}", home.display()), "USER=marie-curie");
    let rocm = format!("ROCM_PATH={}/rocm", home.display());
    for (fault, words) in [
        ("ENGINE_EMULATOR_SEED=1", "attention    f32   attention: ok"),
        ("ENGINE_EMULATOR_FAIL=wrong:softmax*", "softmax      f32   softmax: WRONG: result"),
        ("ENGINE_EMULATOR_FAIL=nodevice", "hipErrorNoDevice"),
    ] {
        let mut command = bench.engine(&["devices", "--device", "hip", "--report"]);
        let secrets = ["SECRET_TOKEN=abcdef", user, &home_is, &rocm, fault];
        if !on_card(&mut command, &Build::plain(32), &secrets) {
            return;
        }
        let output = command.output().expect("started");
        assert!(output.status.success(), "{}", said(&output));
        let text = std::fs::read_to_string(bench.path("engine-devices.txt")).expect("written");
        for section in [
            "program",
            "system",
            "graphics cards",
            "AMD's stack",
            "card",
            "environment",
            "engine devices",
        ] {
            assert!(text.contains(&format!("== {section}\n")), "{section}: {text}");
        }
        assert!(text.contains(words), "{words}: {text}");
        if !fault.contains("nodevice") {
            for known in
                ["gfx: 4112", "spectral     cpu", "version Some(\"6.3\")", "f16   attention"]
            {
                assert!(text.contains(known), "{known}: {text}");
            }
        }
        assert!(text.contains("ROCM_PATH=~/rocm"), "{text}");
        let host = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
        let host = host.trim();
        for secret in ["SECRET_TOKEN", "marie", &home.to_string_lossy()[..]] {
            assert!(!text.contains(secret), "{secret}: {text}");
        }
        assert!(host.len() < 4 || !text.contains(host), "{host}: {text}");
    }
}
