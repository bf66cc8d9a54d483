//! `engine devices --report`: one text file with what a maintainer needs to know of a machine. It holds
//! no names of people or machines: home, user and host are replaced.

use std::fmt::Write as _;
use std::fs;
use std::path::Path;
use std::sync::Arc;

use super::amd::kernel_driver_words;
use crate::backend::gpu::hip::{self, facts};
use crate::backend::gpu::self_test::{self, Tested};
use crate::backend::gpu::{Gpu, driver::Driver};
use crate::backend::{Arch, Backend, route};
use crate::config::DeviceSettings;
use crate::train::device::Found;
use crate::{DType, Result};

/// Memory that the self-test may take, bytes.
const TEST_MEMORY: u64 = 256 << 20;

/// Variables that change what drivers and this program do.
const VARIABLES: &[&str] = &[
    "ENGINE_",
    "HSA_",
    "HIP_",
    "ROC",
    "AMD_",
    "GPU_",
    "CUDA_",
    "NVIDIA_",
    "TENSILE_",
    "MIOPEN_",
    "LD_LIBRARY_PATH",
    "LD_PRELOAD",
    "OMP_",
];

/// The report's text; `devices` is what the command says by itself.
pub(super) fn text(devices: &str, wanted: &DeviceSettings) -> String {
    let mut out = String::new();
    let mut section = |heading: &str, lines: Vec<String>| {
        let _ = writeln!(out, "== {heading}");
        for line in lines {
            let _ = writeln!(out, "{}", line.trim_end());
        }
        out.push('\n');
    };
    section("program", program());
    section("system", system());
    section("graphics cards", cards_of_the_bus());
    section("AMD's stack", amd_stack());
    match facts_and_tests(wanted) {
        Ok((arch, tests)) => {
            section("card", vec![format!("{arch:#?}")]);
            let row = |p: route::Preference| format!("{:12} {:7} {}", p.op, p.choice, p.reason);
            section("routing", route::routes(&arch).into_iter().map(row).collect());
            section("self-test", tests.iter().map(test_words).collect());
        }
        Err(error) => section("card", vec![error.to_string()]),
    }
    section("environment", environment());
    section("engine devices", devices.lines().map(String::from).collect());
    without_names(&out, &private_names())
}

fn program() -> Vec<String> {
    let kernels = super::devices::kernel_rows().map(|[name, words]| format!("{name}: {words}"));
    let mut lines = vec![
        format!("engine {}", env!("CARGO_PKG_VERSION")),
        format!("for {} {}", std::env::consts::OS, std::env::consts::ARCH),
    ];
    lines.extend(kernels);
    lines
}

fn first_line(path: impl AsRef<Path>) -> Option<String> {
    let text = fs::read_to_string(path).ok()?;
    text.lines().next().map(|line| line.trim().to_string())
}

fn system() -> Vec<String> {
    let release = fs::read_to_string("/etc/os-release").unwrap_or_default();
    let name = release.lines().find_map(|line| line.strip_prefix("PRETTY_NAME="));
    let kernel = first_line("/proc/sys/kernel/osrelease");
    let memory = crate::train::planner::host_memory();
    let memory = memory.map(|m| format!("memory {} of {} bytes free", m.available, m.total));
    [
        Some(format!("system {}", name.unwrap_or("unknown").trim_matches('"'))),
        kernel.map(|kernel| format!("kernel {kernel}")),
        super::devices::cpu_name().map(|cpu| format!("processor {cpu}")),
        memory,
    ]
    .into_iter()
    .flatten()
    .collect()
}

/// What the kernel knows of the cards, whether or not a compute stack does.
fn cards_of_the_bus() -> Vec<String> {
    let folder = Path::new("/sys/class/drm");
    let mut cards: Vec<String> = fs::read_dir(folder)
        .into_iter()
        .flatten()
        .flatten()
        .map(|entry| entry.file_name().to_string_lossy().into_owned())
        .filter(|name| name.strip_prefix("card").is_some_and(|n| n.parse::<u32>().is_ok()))
        .collect();
    cards.sort();
    let facts = [
        "vendor",
        "device",
        "subsystem_device",
        "revision",
        "mem_info_vram_total",
        "mem_info_vram_used",
        "current_link_speed",
        "current_link_width",
        "vbios_version",
    ];
    let mut lines = Vec::new();
    for card in cards {
        let device = folder.join(&card).join("device");
        let driver = fs::read_link(device.join("driver")).ok();
        let driver = driver.and_then(|path| Some(path.file_name()?.to_string_lossy().into_owned()));
        lines.push(format!("{card}: driver {}", driver.unwrap_or_else(|| "none".into())));
        let known = facts.iter().filter_map(|name| Some((name, first_line(device.join(name))?)));
        lines.extend(known.map(|(name, value)| format!("  {name} {value}")));
    }
    if lines.is_empty() {
        lines.push(format!("{} lists none", folder.display()));
    }
    lines
}

fn amd_stack() -> Vec<String> {
    let mut lines = vec![kernel_driver_words()];
    lines.extend(first_line("/sys/module/amdgpu/version").map(|v| format!("amdgpu {v}")));
    lines.extend(first_line("/opt/rocm/.info/version").map(|v| format!("ROCm {v} in /opt/rocm")));
    lines.push(match hip::runtime() {
        Ok((path, version)) => format!("runtime {path}, version {version:?}"),
        Err(error) => format!("runtime: {error}"),
    });
    lines.push(match hip::count() {
        Ok(cards) => format!("{cards} cards"),
        Err(error) => format!("cards: {error}"),
    });
    let (folders, _) = facts::rocblas_files("");
    for folder in folders.iter().filter(|folder| folder.is_dir()) {
        let mut archs = std::collections::BTreeSet::new();
        for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
            let name = entry.file_name().to_string_lossy().into_owned();
            let library = name.starts_with("TensileLibrary");
            let arch = name.split(['_', '.', '-']).find(|word| word.starts_with("gfx"));
            archs.extend(arch.filter(|_| library).map(String::from));
        }
        let archs = archs.into_iter().collect::<Vec<_>>().join(" ");
        lines.push(format!("rocBLAS files in {}: {archs}", folder.display()));
    }
    lines.extend(hip::warnings().into_iter().map(|warning| format!("warning: {warning}")));
    lines
}

/// The card that a run would take, with its routing, and the tests of what it would run.
fn facts_and_tests(wanted: &DeviceSettings) -> Result<(Arch, Vec<Tested>)> {
    fn tested<D: Driver>(card: D, wanted: &DeviceSettings) -> Result<(Arch, Vec<Tested>)> {
        let arch = route::with_wishes(card.arch(), wanted.gemm, &wanted.route)?;
        let device: Arc<dyn Backend> = Arc::new(Gpu::new(card, arch.clone(), TEST_MEMORY));
        let mut tests = self_test::run(&device, Some(DType::F16))?;
        if arch.bf16 {
            let bf16 = self_test::run(&device, Some(DType::Bf16))?;
            tests.extend(bf16.into_iter().filter(|test| test.dtype == DType::Bf16));
        }
        Ok((arch, tests))
    }
    match Found::search(wanted)? {
        Found::Cuda(card) => tested(*card, wanted),
        Found::Hip(card) => tested(*card, wanted),
        Found::Cpu(why) => {
            let problem = why.unwrap_or_else(|| "there is no card".into());
            Err(crate::Error::input("card", problem, "see above what was found"))
        }
    }
}

fn test_words(test: &Tested) -> String {
    let verdict = match (&test.problem, test.error) {
        (Some(problem), _) => format!("WRONG: {problem}"),
        (None, Some(error)) => format!("ok, {error:.1e}"),
        (None, None) => "not run".into(),
    };
    let ms = test.took.as_secs_f64() * 1e3;
    format!("{:12} {:5} {}: {verdict} ({ms:.1} ms)", test.kind, test.dtype.name(), test.name)
}

fn environment() -> Vec<String> {
    let relevant = |name: &str| VARIABLES.iter().any(|start| name.starts_with(start));
    let mut lines: Vec<String> = std::env::vars_os()
        .map(|(name, value)| (name.to_string_lossy().into_owned(), value))
        .filter(|(name, _)| relevant(name))
        .map(|(name, value)| format!("{name}={}", value.to_string_lossy()))
        .collect();
    lines.sort();
    if lines.is_empty() {
        lines.push("nothing that matters is set".into());
    }
    lines
}

/// Texts that would tell who or where, and what stands for them.
fn private_names() -> Vec<(String, &'static str)> {
    let variable = |name: &str| std::env::var(name).ok();
    let all = [
        (variable("HOME"), "~"),
        (first_line("/proc/sys/kernel/hostname"), "HOST"),
        (variable("HOSTNAME"), "HOST"),
        (variable("USER"), "USER"),
        (variable("LOGNAME"), "USER"),
    ];
    // "/" or "pi" would be found in half of the words.
    let telling = |name: &String| name.len() >= 4 && name != "root";
    all.into_iter().filter_map(|(name, sign)| Some((name.filter(telling)?, sign))).collect()
}

fn without_names(text: &str, names: &[(String, &'static str)]) -> String {
    names.iter().fold(text.to_string(), |text, (name, sign)| text.replace(name.as_str(), sign))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_people_and_machines_are_replaced() {
        let names = [
            ("/home/marie".to_string(), "~"),
            ("workstation7".to_string(), "HOST"),
            ("marie".to_string(), "USER"),
        ];
        let text = "/home/marie/rocm:/media/marie/x on workstation7";
        assert_eq!(without_names(text, &names), "~/rocm:/media/USER/x on HOST");
    }

    #[test]
    fn only_variables_that_matter_are_told() {
        let told = environment();
        let known = |line: &String| VARIABLES.iter().any(|start| line.starts_with(start));
        assert!(told.iter().all(|line| known(line) || line.starts_with("nothing")), "{told:?}");
    }
}
