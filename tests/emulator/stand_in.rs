//! Building the stand-in libraries, and running a test of this program on them.

use std::hash::{DefaultHasher, Hash, Hasher};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::Mutex;

use engine::backend::gpu::images;
use engine::backend::{Arch, Machine};

/// One build of the emulator.
pub struct Build {
    kind: &'static str,
    wave: u32,
    /// Other kernels than the program's: a name for the set, and the files.
    kernels: Option<(&'static str, Vec<PathBuf>)>,
}

/// What a program needs to run on a build.
pub struct Libraries {
    pub hip: PathBuf,
    pub hipblas: PathBuf,
    pub image: PathBuf,
}

impl Build {
    pub fn plain(wave: u32) -> Self {
        Self { kind: "plain", wave, kernels: None }
    }

    pub fn asan(wave: u32) -> Self {
        Self { kind: "asan", wave, kernels: None }
    }

    pub fn race(wave: u32) -> Self {
        Self { kind: "race", wave, kernels: None }
    }

    /// These files' kernels instead of the program's.
    pub fn with_kernels(mut self, name: &'static str, files: Vec<PathBuf>) -> Self {
        self.kernels = Some((name, files));
        self
    }

    /// The libraries, built where the sources are newer; None without a compiler.
    pub fn libraries(&self) -> Option<Libraries> {
        let folder = self.folder()?;
        Some(Libraries {
            hip: folder.join("libamdhip64.so"),
            hipblas: folder.join("libhipblas.so"),
            image: folder.join("emulator.image"),
        })
    }

    /// The folder with the libraries, built where the sources are newer; None without a compiler.
    pub fn folder(&self) -> Option<PathBuf> {
        static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());
        let _turn = ONE_AT_A_TIME.lock().unwrap_or_else(|e| e.into_inner());
        let cxx = std::env::var("CXX").unwrap_or_else(|_| "g++".into());
        if Command::new(&cxx).arg("--version").output().is_err() {
            eprintln!("skipped: no {cxx} to build the emulator with");
            return None;
        }
        let root = Path::new(env!("CARGO_MANIFEST_DIR"));
        let set = self.kernels.as_ref().map_or("kernels", |(name, _)| name);
        let name = format!("emulator/{set}-{}-{}", self.kind, self.wave);
        let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
        let stamp = folder.join("sources");
        let own = self.kernels.as_ref().map(|(_, files)| files.clone()).unwrap_or_default();
        let sources = format!("{:x}", sources(root, &own));
        if std::fs::read_to_string(&stamp).is_ok_and(|built| built == sources) {
            return Some(folder);
        }
        let mut build = Command::new(root.join("kernels/emulator/build"));
        build.arg(&folder).args(["--wave", &self.wave.to_string()]);
        if self.kind != "plain" {
            build.arg(format!("--{}", self.kind));
        }
        if !own.is_empty() {
            build.arg("--kernels").args(own);
        }
        let output = build.output().expect("bash runs the script");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        std::fs::write(stamp, sources).expect("writes");
        Some(folder)
    }

    /// The test `child::NAME` on this build; None, having said why, where it cannot be built.
    pub fn child(&self, name: &str) -> Option<Child> {
        let folder = self.folder()?;
        let mut command = Command::new(std::env::current_exe().expect("this program"));
        let test = format!("child::{name}");
        command.args(["--exact", &test, "--ignored", "--nocapture", "--test-threads=1"]);
        clear(&mut command);
        command.env("ENGINE_EMULATOR_CHILD", "1");
        command.env("ENGINE_HIP_LIBRARY", folder.join("libamdhip64.so"));
        command.env("ENGINE_HIPBLAS_LIBRARY", folder.join("libhipblas.so"));
        if self.kind == "asan" {
            // The sanitizer must be the first library of the process.
            let file = Command::new("g++").arg("-print-file-name=libasan.so").output();
            let file = String::from_utf8(file.expect("g++ runs").stdout).expect("a path");
            command.env("LD_PRELOAD", file.trim());
            command.env("ASAN_OPTIONS", "detect_leaks=0:verify_asan_link_order=0");
        }
        let image = folder.join("emulator.image").to_string_lossy().into_owned();
        let planted = self.kernels.is_some();
        Some(Child { command, image, planted, name: format!("{} {name}", folder.display()) })
    }
}

/// Takes out of a program's environment what would change which card it sees.
pub fn clear(command: &mut Command) {
    for (name, _) in std::env::vars_os() {
        let name = name.to_string_lossy().into_owned();
        let ours = ["ENGINE_HIP_", "ENGINE_EMULATOR", "HSA_", "ROC", "HIP_"];
        if ours.iter().any(|start| name.starts_with(start)) {
            command.env_remove(name);
        }
    }
}

/// A hash of everything the emulator is built from.
fn sources(root: &Path, more: &[PathBuf]) -> u64 {
    let mut hasher = DefaultHasher::new();
    let mut folders = vec![root.join("kernels"), root.join("tests/emulator")];
    let mut files = vec![root.join("src/backend/gpu/hip/engine_hip.h")];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
            let path = entry.path();
            if path.is_dir() { folders.push(path) } else { files.push(path) }
        }
    }
    files.retain(|file| file.extension().is_none_or(|e| e != "rs"));
    files.extend_from_slice(more);
    files.sort();
    for file in files {
        (file.to_string_lossy(), std::fs::read(&file).unwrap_or_default()).hash(&mut hasher);
    }
    hasher.finish()
}

/// A test that is to run in a process of its own.
pub struct Child {
    command: Command,
    image: String,
    planted: bool,
    name: String,
}

impl Child {
    pub fn env(mut self, name: &str, value: &str) -> Self {
        self.command.env(name, value);
        self
    }

    fn run(mut self) -> (Output, String) {
        // Where this program has machine code for the card, the emulator checks launches against it.
        let envs: Vec<_> =
            self.command.get_envs().map(|(n, v)| (n.to_owned(), v.map(|v| v.to_owned()))).collect();
        let of = |name: &str| envs.iter().find(|(n, _)| n == name).and_then(|(_, v)| v.clone());
        let arch = of("ENGINE_EMULATOR_ARCH")
            .map_or("gfx1010".into(), |a| a.to_string_lossy().into_owned());
        let machine = Arch::claim(&arch).map_or(Machine::Cpu, |arch| arch.machine);
        let none = images::of(machine).is_empty();
        if of("ENGINE_HIP_IMAGE").is_none() && (none || self.planted) {
            self.command.env("ENGINE_HIP_IMAGE", &self.image);
        }
        let output = self.command.output().expect("this program runs");
        let text = [&output.stdout[..], &output.stderr[..]].concat();
        let text = String::from_utf8_lossy(&text).into_owned();
        (output, format!("{}:\n{text}", self.name))
    }

    /// The test must pass.
    pub fn succeeds(self) {
        let (output, text) = self.run();
        assert!(output.status.success(), "{text}");
        assert!(text.contains("1 passed"), "no such test: {text}");
        eprint!(
            "{}",
            text.lines()
                .filter(|l| l.starts_with("emulated"))
                .map(|l| format!("{l}\n"))
                .collect::<String>()
        );
    }

    /// The test must pass, and print all of these words ("one|two").
    pub fn says(self, words: &str) {
        let (output, text) = self.run();
        assert!(output.status.success(), "{text}");
        expect(&text, words);
    }

    /// The process must end with a failure, having printed all of these words.
    pub fn ends_saying(self, words: &str) {
        let (output, text) = self.run();
        assert!(!output.status.success(), "{text}");
        expect(&text, words);
    }
}

fn expect(text: &str, words: &str) {
    for word in words.split('|') {
        assert!(text.contains(word), "{word:?} is not in what it said, {text}");
    }
}
