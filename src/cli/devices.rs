//! `engine devices`: what was found, what is missing, and what would run where.

use std::path::PathBuf;

use serde_json::{Value, json};

use super::amd::{self, Amd};
use super::args::DevicesArgs;
use super::data_info::{row, section};
use super::{device_report, text};
use crate::backend::cpu::Cpu;
use crate::backend::gpu::cuda::Cuda;
use crate::backend::gpu::driver::Driver;
use crate::backend::gpu::images;
use crate::backend::route::{self, Choice, Preference};
use crate::backend::{Arch, Backend, Machine, MemoryUse};
use crate::config::{
    Assignment, DeviceName, DeviceSettings, Gemm, ModelName, PROFILES, Profile, Recompute,
    Settings, resolve,
};
use crate::console::Console;
use crate::model::{EegFormerConfig, ModelConfig, ShallowConfig};
use crate::ops::loss::Pointwise;
use crate::optim::Rule;
use crate::train::device::Found;
use crate::train::planner::{HostMemory, budget, host_memory, plan_batch};
use crate::train::step::{Objective, StepSpec};
use crate::{DType, Error, Result};

/// EEG channels of the windows that batches are planned for: the geodesic net's.
const CHANNELS: usize = 129;

/// The card that each profile of one is named after.
const CARD_OF_PROFILE: &[(&str, &str)] = &[
    ("rx5600xt", "gfx1010"),
    ("rx6800", "gfx1030"),
    ("rtx3060", "sm_86"),
    ("rtx4090", "sm_89"),
    ("h200", "sm_90"),
];

/// Drivers that a GPU needs: (what, family, file names on Linux, macOS and Windows).
const LIBRARIES: &[(&str, &str, &[&str])] = &[
    ("NVIDIA driver (libcuda)", "cuda", &["libcuda.so.1", "libcuda.so", "nvcuda.dll"]),
    (
        "AMD runtime (libamdhip64)",
        "hip",
        &[
            "libamdhip64.so",
            "libamdhip64.so.7",
            "libamdhip64.so.6",
            "libamdhip64.so.5",
            "amdhip64.dll",
        ],
    ),
];

/// Says what this machine has, and which operation would run where.
///
/// # Errors
/// [`Error::Input`] for flags that make no sense; [`Error::Device`] where threads cannot be
/// started.
pub fn run(args: &DevicesArgs, console: &Console) -> Result<()> {
    let flags = args.device.assignments();
    let settings = resolve(None, &flags, None)?.settings;
    let wanted = settings.device;
    route::check(&wanted.route)?;
    let memory = host_memory();
    let limit = wanted.memory.map(|bytes| bytes.0);
    let cpu = Cpu::new(settings.train.threads.unwrap_or(0), limit.unwrap_or(u64::MAX))?;
    let amd = amd::look(wanted.gemm == Gemm::Vendor);
    let in_use = in_use(&wanted, &amd);
    let (tables, refused) = tables(cpu.arch(), in_use.as_ref(), &wanted)?;
    let report = Report {
        in_use: in_use.unwrap_or_else(|| cpu.arch().clone()),
        amd,
        cpu_name: cpu_name(),
        cpu: cpu.arch().clone(),
        memory,
        libraries: libraries(),
        tables,
        refused,
        batches: batches(cpu.arch(), memory, &wanted, &flags)?,
    };
    let words = report.words();
    let Some(path) = &args.report else {
        console.finish(words.trim_end(), &report.json());
        return Ok(());
    };
    let said = device_report::text(&words, &wanted);
    std::fs::write(path, said).map_err(|error| {
        let remedy = "give --report a file in a folder that is there and can be written to";
        Error::input(path.display(), format!("cannot be written: {error}"), remedy)
    })?;
    let text = format!("{}: read it, then send it with what you saw", path.display());
    console.finish(&text, &json!({ "report": path }));
    Ok(())
}

/// The card that a run would take, with the flags' wishes where it can fulfil them; None for the CPU.
fn in_use(wanted: &DeviceSettings, amd: &Amd) -> Option<Arch> {
    let arch = match Found::search(wanted) {
        Ok(Found::Cuda(card)) => Some(card.arch().clone()),
        Ok(Found::Hip(_)) => amd.card.clone(),
        // What keeps a card from being used is said in its row.
        Ok(Found::Cpu(_)) | Err(_) => None,
    };
    arch.map(|arch| route::with_wishes(&arch, wanted.gemm, &wanted.route).unwrap_or(arch))
}

struct Report {
    /// The card, or the CPU, that a run would take.
    in_use: Arch,
    amd: Amd,
    cpu_name: Option<String>,
    cpu: Arch,
    memory: Option<HostMemory>,
    libraries: Vec<Library>,
    tables: Vec<Table>,
    refused: Vec<Refused>,
    batches: Vec<Batch>,
}

/// A driver's library: a file is looked for, nothing is loaded.
struct Library {
    what: &'static str,
    family: &'static str,
    found: Option<PathBuf>,
}

/// Machines that share one table of preferences.
struct Table {
    archs: Vec<String>,
    preferences: Vec<Preference>,
}

/// What the planner finds for one profile.
struct Batch {
    profile: &'static str,
    model: String,
    host: Option<Planned>,
    /// The profile's card, its bytes of memory.
    card: Option<(String, u64, Planned)>,
}

/// A card on which the flags are impossible.
struct Refused {
    arch: String,
    why: String,
}

type Planned = std::result::Result<(usize, MemoryUse), String>;

pub(super) fn cpu_name() -> Option<String> {
    let text = std::fs::read_to_string("/proc/cpuinfo").ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix("model name"))?;
    Some(line.trim_start_matches([' ', '\t', ':']).trim().to_string())
}

/// Folders that the system's loader looks into, as far as they are known without asking it.
fn loader_folders() -> Vec<PathBuf> {
    let variables = ["LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH"];
    let named = variables.into_iter().filter_map(std::env::var_os);
    let mut folders: Vec<PathBuf> =
        named.flat_map(|value| std::env::split_paths(&value).collect::<Vec<_>>()).collect();
    let usual = [
        "/usr/lib/x86_64-linux-gnu",
        "/usr/lib/aarch64-linux-gnu",
        "/lib/x86_64-linux-gnu",
        "/usr/lib64",
        "/usr/lib",
        "/usr/local/lib",
        "/usr/local/nvidia/lib64",
        "/usr/lib/wsl/lib",
        "/run/opengl-driver/lib",
        "/opt/rocm/lib",
        "/opt/rocm/lib64",
        r"C:\Windows\System32",
    ];
    folders.extend(usual.into_iter().map(PathBuf::from));
    folders.retain(|folder| folder.is_absolute());
    folders
}

fn libraries() -> Vec<Library> {
    let folders = loader_folders();
    let find = |names: &[&str]| {
        let all = folders.iter().flat_map(|folder| names.iter().map(move |n| folder.join(n)));
        all.into_iter().find(|path| path.is_file())
    };
    let library = |&(what, family, names): &(&'static str, &'static str, &[&str])| Library {
        what,
        family,
        found: find(names),
    };
    LIBRARIES.iter().map(library).collect()
}

/// The tables of preferences: that of the card which is in force, the CPU's, and those of other cards;
/// and the cards on which the flags are impossible.
fn tables(
    cpu: &Arch,
    in_use: Option<&Arch>,
    wanted: &DeviceSettings,
) -> Result<(Vec<Table>, Vec<Refused>)> {
    let family = |arch: &Arch| match arch.machine {
        Machine::Cpu => DeviceName::Cpu,
        Machine::Cuda { .. } => DeviceName::Cuda,
        Machine::Hip { .. } => DeviceName::Hip,
    };
    let asked = |arch: &Arch| [DeviceName::Auto, family(arch)].contains(&wanted.device);
    let own = in_use.map(|arch| (arch.name.clone(), route::routes(arch)));
    let table = |(name, preferences)| Table { archs: vec![name], preferences };
    let mut tables: Vec<Table> = own.into_iter().map(table).collect();
    if asked(cpu) {
        // Wishes about a GPU say nothing about a run on the CPU, unless that is what was asked for.
        let preferences = match wanted.device {
            DeviceName::Cpu => route::routes(&route::with_wishes(cpu, wanted.gemm, &wanted.route)?),
            _ => route::routes(cpu),
        };
        tables.push(Table { archs: vec![cpu.name.clone()], preferences });
    }
    let mut refused = Vec::new();
    let impossible = |arch: &Arch| route::with_wishes(arch, wanted.gemm, &wanted.route).is_err();
    let other = |arch: &Arch| in_use.is_none_or(|own| own.name != arch.name) || impossible(arch);
    for arch in Arch::claimable().filter_map(Arch::claim).filter(asked).filter(other) {
        let preferences = match route::with_wishes(&arch, wanted.gemm, &wanted.route)
            .map(|arch| route::routes(&arch))
        {
            Ok(preferences) => preferences,
            // "--gemm vendor" is possible on some cards only.
            Err(Error::Input { place, problem, .. }) => {
                refused.push(Refused { arch: arch.name, why: format!("{place}: {problem}") });
                continue;
            }
            Err(error) => return Err(error),
        };
        let others = tables.iter_mut().skip(usize::from(in_use.is_some()));
        match others.into_iter().find(|table| table.preferences == preferences) {
            Some(table) => table.archs.push(arch.name),
            None => tables.push(Table { archs: vec![arch.name], preferences }),
        }
    }
    Ok((tables, refused))
}

/// The batches of all profiles, on this machine and on the card each is made for.
fn batches(
    cpu: &Arch,
    memory: Option<HostMemory>,
    wanted: &DeviceSettings,
    flags: &[Assignment],
) -> Result<Vec<Batch>> {
    let limit = wanted.memory.map(|bytes| bytes.0);
    let host_limit = limit.or_else(|| memory.map(|memory| budget(memory.available)));
    let batch = |profile: &'static Profile| -> Result<Batch> {
        // The device's own flags are not the profile's business, and its routes may repeat theirs.
        let kept = flags.iter().filter(|flag| !flag.field.starts_with("device."));
        let kept: Vec<Assignment> = kept.cloned().collect();
        let settings = resolve(None, &kept, Some(profile.name))?.settings;
        let spec = spec(&settings);
        let planned = |arch: &Arch, limit: u64| -> Result<Planned> {
            match plan_batch(arch, limit, &spec) {
                Ok(found) => Ok(Ok(found)),
                Err(Error::OutOfMemory { what, .. }) => Ok(Err(what)),
                Err(error) => Err(error),
            }
        };
        let card = CARD_OF_PROFILE.iter().find(|(name, _)| *name == profile.name);
        let card = card.and_then(|(_, name)| Arch::claim(name));
        let card = match card {
            Some(arch) => {
                let bytes = limit.unwrap_or(budget(arch.memory));
                Some((arch.name.clone(), arch.memory, planned(&arch, bytes)?))
            }
            None => None,
        };
        let host = host_limit.map(|bytes| planned(cpu, bytes)).transpose()?;
        Ok(Batch { profile: profile.name, model: model_words(&settings), host, card })
    };
    PROFILES.iter().map(batch).collect()
}

/// The step of a profile: one output, windows of the net with 129 channels.
fn spec(settings: &Settings) -> StepSpec {
    let (model, train) = (&settings.model, &settings.train);
    let rate = settings.data.resample_hz.unwrap_or(100.0);
    let window = (settings.data.window_s * rate).round() as usize;
    let config = match model.name {
        ModelName::EegFormer => ModelConfig::EegFormer(EegFormerConfig {
            n_channels: CHANNELS,
            window,
            num_classes: 1,
            d_model: model.d_model,
            n_heads: model.n_heads,
            n_layers: model.n_layers,
            patch: model.patch,
            dropout: model.dropout as f32,
            n_spectral: model.n_spectral,
            recompute: train.recompute != Recompute::None,
        }),
        ModelName::Shallow => ModelConfig::Shallow(ShallowConfig {
            n_channels: CHANNELS,
            window,
            num_classes: 1,
            filters: model.shallow_filters,
            kernel: model.shallow_kernel,
            pool: model.shallow_pool,
            pool_stride: model.shallow_pool_stride,
            dropout: model.dropout as f32,
        }),
    };
    let [beta1, beta2] = train.betas;
    StepSpec {
        model: config,
        batch: train.batch.unwrap_or(0),
        accumulation: train.accumulation,
        eval_batch: 1,
        objective: Objective::Pointwise(Pointwise::Mse),
        rule: Rule::AdamW { beta1, beta2, epsilon: train.eps },
        average: train.ema.is_some(),
        dtype: DType::F32,
        compute: None,
        seed: train.seed,
    }
}

fn model_words(settings: &Settings) -> String {
    let model = &settings.model;
    match model.name {
        ModelName::EegFormer => {
            format!("{} wide, {} heads, {} layers", model.d_model, model.n_heads, model.n_layers)
        }
        ModelName::Shallow => format!("shallow, {} filters", model.shallow_filters),
    }
}

/// A card and its memory in words; in words too what keeps it from being used.
pub(super) fn card_and_memory<D: Driver>(
    found: &Result<D>,
) -> std::result::Result<(&D, String), String> {
    let card = match found {
        Ok(card) => card,
        Err(Error::Device { problem, remedy, .. }) => {
            return Err(format!("none: {problem}; {remedy}"));
        }
        Err(error) => return Err(format!("none: {error}")),
    };
    let memory = match card.memory() {
        Ok((free, total)) => format!("{} free of {}", text::bytes(free), text::bytes(total)),
        Err(error) => error.to_string(),
    };
    Ok((card, memory))
}

/// The first NVIDIA card with its memory and libraries, or what keeps it from being used.
fn nvidia_words() -> String {
    let found = Cuda::open(0, None);
    let (card, memory) = match card_and_memory(&found) {
        Ok(both) => both,
        Err(words) => return words,
    };
    let blas = match card.cublas_version() {
        Some(version) => format!("cuBLAS {version}"),
        None => "no cuBLAS: the engine's own products".to_string(),
    };
    let (name, arch, driver) = (card.name(), &card.arch().name, card.driver_words());
    format!("{name}, {arch}, {memory}, driver for CUDA {driver}, {blas}")
}

/// The kernels that this program carries, for the cards of each maker; where it carries none, why and
/// what brings them. That matters also on a machine without a card: it may build for one that has.
pub(super) fn kernel_rows() -> [[String; 2]; 2] {
    let words = |compiler: Option<&str>, archs: Vec<&str>, why: Option<(&str, &str)>| match why {
        Some((problem, remedy)) => format!("none: {problem}; {remedy}"),
        None => {
            format!("for {} by {}", archs.join(", "), compiler.unwrap_or("an unknown compiler"))
        }
    };
    let cuda = words(images::cuda_compiler(), images::cuda_archs(), images::why_no_cuda());
    let hip = words(images::hip_compiler(), images::hip_archs(), images::why_no_hip());
    [["NVIDIA kernels".into(), cuda], ["AMD kernels".into(), hip]]
}

fn planned_words(planned: &Planned) -> String {
    match planned {
        Ok((batch, memory)) => format!("{batch}, {}", text::bytes(memory.peak())),
        Err(what) => format!("none: no room for {what}"),
    }
}

impl Report {
    fn words(&self) -> String {
        let mut out = String::new();
        let threads = text::count(self.cpu.units as usize, "thread");
        let name = self.cpu_name.as_deref().unwrap_or(std::env::consts::ARCH);
        let isa = self.cpu.name.trim_start_matches("cpu ");
        let memory = match self.memory {
            Some(HostMemory { total, available }) => {
                format!("{}, {} free", text::bytes(total), text::bytes(available))
            }
            None => "unknown on this system; --memory plans for a size".to_string(),
        };
        let head = [row(["cpu", &format!("{name}, {threads}, {isa}")]), row(["memory", &memory])];
        section(&mut out, "Devices", &head);
        let mut gpu = vec![row(["NVIDIA card", &nvidia_words()])];
        gpu.extend(self.amd.rows.iter().map(|[name, words]| row([name, words])));
        for library in &self.libraries {
            let found = match &library.found {
                Some(path) => path.display().to_string(),
                None => "not on the loader's usual paths".to_string(),
            };
            gpu.push(row([library.what, &found]));
        }
        gpu.extend(kernel_rows().iter().map(|[name, words]| row([name, words])));
        section(&mut out, "GPUs", &gpu);
        for table in &self.tables {
            let in_force = match table.archs.contains(&self.in_use.name) {
                true => ", in force",
                false => ", as it will be planned",
            };
            let heading = format!("What runs where on {}{in_force}", table.archs.join(", "));
            section(&mut out, &heading, &grouped(&table.preferences));
        }
        let refused = |refused: &Refused| row([&refused.arch, &refused.why]);
        let refused: Vec<Vec<String>> = self.refused.iter().map(refused).collect();
        section(&mut out, "Impossible with these flags", &refused);
        let heading = format!(
            "Largest batch in f32, windows of {CHANNELS} channels and 2 s at 100 Hz (a CPU's ends \
             at the profile's)"
        );
        section(&mut out, &heading, &self.batch_rows());
        out
    }

    fn batch_rows(&self) -> Vec<Vec<String>> {
        let heading = ["profile", "eegformer", "on this CPU", "on its card"];
        let mut rows = vec![heading.map(str::to_string).to_vec()];
        for batch in &self.batches {
            let card = match &batch.card {
                Some((name, bytes, planned)) => {
                    format!("{} ({name}, {})", planned_words(planned), text::bytes(*bytes))
                }
                None => "-".to_string(),
            };
            let host = batch.host.as_ref().map_or("unknown".to_string(), planned_words);
            rows.push(vec![batch.profile.to_string(), batch.model.clone(), host, card]);
        }
        rows
    }

    fn json(&self) -> Value {
        let library =
            |l: &Library| json!({ "family": l.family, "library": l.what, "path": l.found });
        let refused = |r: &Refused| json!({ "arch": r.arch, "why": r.why });
        let table = |t: &Table| json!({ "archs": t.archs, "preferences": t.preferences });
        let planned = |planned: &Planned| match planned {
            Ok((batch, memory)) => json!({ "batch": batch, "bytes": memory.peak() }),
            Err(what) => json!({ "batch": null, "no_room_for": what }),
        };
        let batch = |b: &Batch| {
            let card = b.card.as_ref().map(|(arch, memory, found)| {
                let mut fields = planned(found);
                fields["arch"] = arch.as_str().into();
                fields["memory"] = (*memory).into();
                fields
            });
            json!({ "profile": b.profile, "cpu": b.host.as_ref().map(planned), "card": card })
        };
        let backends: &[&str] = match self.in_use.machine {
            Machine::Cpu => &[],
            Machine::Cuda { .. } => &["cuda"],
            Machine::Hip { .. } => &["hip"],
        };
        json!({
            "in_use": self.in_use.name,
            "cpu": { "name": self.cpu_name, "threads": self.cpu.units },
            "memory": self.memory,
            "gpu_backends": backends,
            "amd": self.amd.rows,
            "kernels": kernel_rows(),
            "libraries": self.libraries.iter().map(library).collect::<Vec<_>>(),
            "routes": self.tables.iter().map(table).collect::<Vec<_>>(),
            "impossible": self.refused.iter().map(refused).collect::<Vec<_>>(),
            "batches": self.batches.iter().map(batch).collect::<Vec<_>>(),
        })
    }
}

/// Ops that run the same way for the same reason share a row; the row of most comes last.
fn grouped(preferences: &[Preference]) -> Vec<Vec<String>> {
    let mut groups: Vec<(Choice, &str, Vec<&str>)> = Vec::new();
    for p in preferences {
        match groups.iter_mut().find(|(c, reason, _)| (*c, *reason) == (p.choice, &*p.reason)) {
            Some((_, _, ops)) => ops.push(p.op),
            None => groups.push((p.choice, &p.reason, vec![p.op])),
        }
    }
    groups.sort_by_key(|(_, _, ops)| ops.len());
    let (last, alone) = (groups.len().saturating_sub(1), groups.len() == 1);
    let row = |(i, (choice, reason, ops)): (usize, &(Choice, &str, Vec<&str>))| {
        let ops = match (i == last, alone) {
            (true, true) => "every op".to_string(),
            (true, false) => "every other op".to_string(),
            (false, _) => ops.join(", "),
        };
        vec![ops, choice.to_string(), reason.to_string()]
    };
    groups.iter().enumerate().map(row).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kernels_that_are_missing_are_named_with_what_brings_them() {
        let families = [
            (images::why_no_cuda(), images::cuda_archs()),
            (images::why_no_hip(), images::hip_archs()),
        ];
        for ([name, words], (why, archs)) in kernel_rows().into_iter().zip(families) {
            match why {
                Some((problem, remedy)) => {
                    assert!(words.contains(problem) && words.ends_with(remedy), "{name}: {words}");
                    assert!(
                        remedy.contains("scripts/toolchain") || remedy.contains("build it again")
                    );
                }
                None => assert!(archs.iter().all(|arch| words.contains(arch)), "{name}: {words}"),
            }
        }
    }
}
