//! Finds the compilers of kernels and says what they compile for.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::{env, fs};

/// Cards with code of their own, and the assembly (PTX) from which a driver makes code for others.
const CUDA_ARCHS: [&str; 7] = ["80", "86", "89", "90a", "120", "compute_80", "compute_90"];
/// PTX that cards from its number on take, the later first. The compiler's front end makes it once a
/// source, and machine code is made from the latest that its card takes: the front end takes more than
/// half of the time. There are two, since a kernel waits for its predecessor (`after_previous` of
/// kernels/portable.h) by an instruction that cards before 9.0 do not have.
const COMMON: [(u32, &str); 2] = [(90, "compute_90"), (80, "compute_80")];
const HIP_ARCHS: [&str; 6] = ["gfx1010", "gfx1030", "gfx1100", "gfx1201", "gfx90a", "gfx942"];

/// A compiler, and what it compiles for.
pub struct Toolkit {
    pub compiler: PathBuf,
    /// Name and version, as `engine devices` prints them.
    pub version: String,
    /// Before the flags of a target.
    pub flags: Vec<String>,
    pub targets: Vec<Target>,
    /// What a source is compiled to first: other targets are made from these.
    pub common: Vec<Target>,
}

/// One architecture.
pub struct Target {
    /// As in the list of architectures and in `// archs:`: "90a", "gfx1010".
    pub asked: String,
    /// As images are named: "sm_90a", "compute_80", "gfx1010".
    pub name: String,
    pub flags: Vec<String>,
    /// Name of the toolkit's common target whose object it can be made from.
    pub made_from: Option<&'static str>,
    /// How the object's name ends.
    pub extension: &'static str,
}

/// Why there is no code for a maker's cards, and the remedy.
pub type Missing = (String, String);

/// The outer error ends the build: what was asked for by name is not there.
pub type Found = Result<Result<Toolkit, Missing>, String>;

fn variable(name: &str) -> Option<String> {
    println!("cargo:rerun-if-env-changed={name}");
    env::var(name).ok().filter(|value| !value.is_empty())
}

/// The architectures that `name` asks for; None for `none`.
fn asked(name: &str, default: &[&str], prefix: &str) -> Result<Option<Vec<String>>, String> {
    let Some(value) = variable(name) else {
        return Ok(Some(default.iter().map(ToString::to_string).collect()));
    };
    if value == "none" {
        return Ok(None);
    }
    let mut archs = Vec::new();
    for arch in value.split(',').map(str::trim) {
        let digits = arch.trim_start_matches("compute_").trim_start_matches(prefix);
        if !digits.starts_with(|c: char| c.is_ascii_digit())
            || !digits.bytes().all(|b| b.is_ascii_alphanumeric())
        {
            return Err(format!(
                "{name}: \"{arch}\" names no architecture\n  remedy: a comma list as in {}, or none",
                default.join(",")
            ));
        }
        archs.push(arch.to_string());
    }
    Ok(Some(archs))
}

/// The file `name` in a folder of PATH.
fn on_path(name: &str) -> Option<PathBuf> {
    let folders = env::var_os("PATH")?;
    env::split_paths(&folders).map(|folder| program(folder.join(name))).find(|path| path.is_file())
}

fn program(path: PathBuf) -> PathBuf {
    if path.extension().is_some() || env::consts::EXE_EXTENSION.is_empty() {
        return path;
    }
    path.with_extension(env::consts::EXE_EXTENSION)
}

/// A compiler that a variable names, by path or by a name on PATH.
fn named(variable: &str, value: &str) -> Result<PathBuf, String> {
    let path = PathBuf::from(value);
    let found = if path.components().count() > 1 { Some(path) } else { on_path(value) };
    found.filter(|path| path.is_file()).ok_or_else(|| {
        format!("{variable}={value}: no such file\n  remedy: give the compiler's path, or unset it")
    })
}

fn output(program: &Path, args: &[&str]) -> Result<String, String> {
    let said = Command::new(program).args(args).output();
    let said = said.map_err(|e| format!("{}: cannot run: {e}", program.display()))?;
    if !said.status.success() {
        let error = String::from_utf8_lossy(&said.stderr);
        return Err(format!("{} {}: {}", program.display(), args.join(" "), error.trim()));
    }
    Ok(String::from_utf8_lossy(&said.stdout).into_owned())
}

/// Says what is missing where the machine has a card that would want it; others want no noise.
fn missing(card: &str, what: &str, which: &str) -> Missing {
    let problem = format!("no compiler of {what} kernels was found when this program was built");
    let remedy = format!("scripts/toolchain {which} && cargo build --release");
    if Path::new(card).exists() {
        println!("cargo:warning={problem}; remedy: {remedy}");
    }
    (problem, remedy)
}

/// The user wanted none.
fn unwanted(variable: &str) -> Missing {
    let problem = format!("this program was built with {variable}=none");
    (problem, format!("build it again without {variable}"))
}

/// None of the architectures is known to the compiler.
fn unknown(version: &str) -> Missing {
    let problem = format!("this program was built by {version}, which knows none of its cards");
    (problem, "build it again with a newer compiler".into())
}

fn find_nvcc() -> Result<Option<PathBuf>, String> {
    if let Some(value) = variable("NVCC") {
        return named("NVCC", &value).map(Some);
    }
    let mut homes = Vec::new();
    for name in ["CUDA_HOME", "CUDA_PATH"] {
        homes.extend(variable(name).map(PathBuf::from));
    }
    homes.extend(
        fs::read_dir(".toolchain/cuda/nvidia").into_iter().flatten().flatten().map(|e| e.path()),
    );
    let at_home =
        |home: &PathBuf| Some(program(home.join("bin/nvcc"))).filter(|path| path.is_file());
    let usual = || at_home(&PathBuf::from("/usr/local/cuda"));
    Ok(homes.iter().find_map(at_home).or_else(|| on_path("nvcc")).or_else(usual))
}

/// nvcc: what NVCC names, of CUDA_HOME or CUDA_PATH, of .toolchain, on PATH, of /usr/local/cuda.
pub fn cuda() -> Found {
    let Some(archs) = asked("ENGINE_CUDA_ARCHS", &CUDA_ARCHS, "sm_")? else {
        return Ok(Err(unwanted("ENGINE_CUDA_ARCHS")));
    };
    let Some(nvcc) = find_nvcc()? else {
        return Ok(Err(missing("/proc/driver/nvidia", "CUDA", "cuda")));
    };
    // nvcc looks for its other parts beside the path that it was called by.
    let nvcc = nvcc.canonicalize().map_err(|e| format!("{}: {e}", nvcc.display()))?;
    let text = output(&nvcc, &["--version"])?;
    let version = text.split_whitespace().find_map(|word| word.strip_prefix('V'));
    let version = version.ok_or_else(|| format!("{}: no version in {text}", nvcc.display()))?;
    let known = output(&nvcc, &["--list-gpu-code"])?;
    let (mut targets, mut left_out) = (Vec::new(), Vec::new());
    for arch in archs {
        let digits: String = arch.chars().filter(char::is_ascii_digit).collect();
        if known.split_whitespace().any(|code| code.strip_prefix("sm_") == Some(&digits)) {
            targets.push(cuda_target(&arch));
        } else {
            left_out.push(arch);
        }
    }
    let version = format!("nvcc {}", version.trim_end_matches(','));
    left_out_words(&version, &left_out);
    // nvcc reads these two itself.
    for name in ["NVCC_PREPEND_FLAGS", "NVCC_APPEND_FLAGS", "NVCC_CCBIN"] {
        variable(name);
    }
    if targets.is_empty() {
        return Ok(Err(unknown(&version)));
    }
    let flags = ["-std=c++17", "-O3", "-Ikernels"].map(String::from).into();
    let wanted = |name: &str| targets.iter().any(|target| target.made_from == Some(name));
    let common = COMMON.map(|(_, name)| name).into_iter().filter(|name| wanted(name));
    let common = common.map(cuda_target).collect();
    Ok(Ok(Toolkit { compiler: nvcc, version, flags, targets, common }))
}

fn left_out_words(version: &str, left_out: &[String]) {
    if !left_out.is_empty() {
        println!("cargo:warning={version} does not know {}: left out", left_out.join(", "));
    }
}

fn cuda_target(arch: &str) -> Target {
    let words = |words: &[&str]| words.iter().map(ToString::to_string).collect::<Vec<_>>();
    if arch.starts_with("compute_") {
        let flags = words(&["--ptx", &format!("-arch={arch}")]);
        let (asked, name) = (arch.into(), arch.into());
        return Target { asked, name, flags, made_from: None, extension: "ptx" };
    }
    let digits = arch.trim_start_matches("sm_");
    let number: u32 = digits.trim_end_matches(char::is_alphabetic).parse().unwrap_or(0);
    let code = format!("arch=compute_{digits},code=sm_{digits}");
    let flags = words(&["--cubin", "-gencode", &code, "-Xptxas", "-v"]);
    let (asked, name) = (digits.into(), format!("sm_{digits}"));
    let made_from = COMMON.iter().find(|(from, _)| number >= *from).map(|&(_, name)| name);
    Target { asked, name, flags, made_from, extension: "cubin" }
}

fn find_hipcc() -> Result<Option<PathBuf>, String> {
    if let Some(value) = variable("HIPCC") {
        return named("HIPCC", &value).map(Some);
    }
    let rocm = [variable("ROCM_PATH").map(PathBuf::from), Some(PathBuf::from("/opt/rocm"))];
    let inside = ["bin/amdclang++", "llvm/bin/clang++", "bin/hipcc"];
    let mut all: Vec<PathBuf> = Vec::new();
    for home in rocm.into_iter().flatten() {
        all.extend(inside.iter().map(|name| program(home.join(name))));
    }
    let mut names = vec!["amdclang++".to_string(), "hipcc".to_string()];
    names.extend((17..=22).rev().map(|version| format!("clang++-{version}")));
    // The version that scripts/toolchain installs before others of its kind.
    names.insert(2, "clang++-19".to_string());
    names.push("clang++".to_string());
    all.extend(names.iter().filter_map(|name| on_path(name)));
    Ok(all.into_iter().find(|path| path.is_file() && compiles(path, "gfx1010").is_ok()))
}

/// Whether the compiler, its linker included, makes code objects for an architecture.
fn compiles(compiler: &Path, arch: &str) -> Result<(), String> {
    let out = PathBuf::from(env::var_os("OUT_DIR").unwrap_or_default());
    let (empty, object) = (out.join("empty.hip"), out.join("empty.co"));
    fs::write(&empty, "").map_err(|e| format!("{}: cannot write: {e}", empty.display()))?;
    let mut args = vec![format!("--offload-arch={arch}")];
    args.extend(hip_flags());
    args.extend(["-o".into(), object.display().to_string(), empty.display().to_string()]);
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    output(compiler, &args).map(drop)
}

/// No header and no library of HIP is used: kernels/portable.h has what they would give.
fn hip_flags() -> Vec<String> {
    let flags = [
        "-x",
        "hip",
        "--cuda-device-only",
        "--no-gpu-bundle-output",
        "-nogpuinc",
        "-nogpulib",
        // No symbol that differs from checkout to checkout.
        "-fuse-cuid=none",
        // Version 5 is not known to load under the ROCm 5 that RDNA1's owners have.
        "-mcode-object-version=4",
        "-std=c++17",
        "-O3",
        "-Ikernels",
        "-Rpass-analysis=kernel-resource-usage",
    ];
    flags.map(String::from).into()
}

/// ROCm's compiler where it is installed, a plain clang of version 17 or later elsewhere.
pub fn hip() -> Found {
    let Some(archs) = asked("ENGINE_HIP_ARCHS", &HIP_ARCHS, "gfx")? else {
        return Ok(Err(unwanted("ENGINE_HIP_ARCHS")));
    };
    let Some(compiler) = find_hipcc()? else {
        return Ok(Err(missing("/dev/kfd", "HIP", "hip")));
    };
    let text = output(&compiler, &["--version"])?;
    let line = text.lines().find(|line| line.contains("clang version")).unwrap_or(&text);
    let version = line.split('(').next().unwrap_or(line).trim().to_string();
    let (mut targets, mut left_out) = (Vec::new(), Vec::new());
    for arch in archs {
        let arch = if arch.starts_with("gfx") { arch } else { format!("gfx{arch}") };
        if compiles(&compiler, &arch).is_ok() {
            targets.push(hip_target(arch));
        } else {
            left_out.push(arch);
        }
    }
    left_out_words(&version, &left_out);
    if targets.is_empty() {
        return Ok(Err(unknown(&version)));
    }
    Ok(Ok(Toolkit { compiler, version, flags: hip_flags(), targets, common: Vec::new() }))
}

fn hip_target(arch: String) -> Target {
    let mut flags = vec![format!("--offload-arch={arch}")];
    // RDNA (four digits): a block stays on one compute unit, so barriers need not flush its cache.
    if arch.len() == "gfx1010".len() {
        flags.push("-mcumode".into());
    }
    Target { asked: arch.clone(), name: arch, flags, made_from: None, extension: "co" }
}
