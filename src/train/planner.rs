//! The batch that fits into memory, found without a device: the null backend gives the exact peak
//! of every candidate.

use std::fs;
use std::path::Path;

use crate::backend::{Arch, Machine, MemoryUse};
use crate::train::recipe::eval_batch;
use crate::train::step::{Step, StepSpec};
use crate::{Error, Result};

/// Largest batch on a CPU where the caller names none: larger ones are no faster there.
const CPU_MOST: usize = 64;
/// Largest batch on a card: elements of a tensor are counted in 32 bits there.
const CARD_MOST: usize = 1 << 16;

/// What of `memory` bytes a plan may take: 90 %, the rest is for the driver and for what else
/// lives there.
pub fn budget(memory: u64) -> u64 {
    memory - memory / 10
}

/// The largest batch whose training step needs at most `limit` bytes on `arch`, and the memory it
/// takes, exact to the byte.
///
/// Candidates are the powers of two. On a CPU they end with `spec.batch` itself (64 where that is
/// 0), elsewhere `spec.batch` does not matter. A `spec.eval_batch` above 0 follows the batch.
///
/// # Errors
/// [`Error::OutOfMemory`] naming the tensor with which a batch of 1 passes the limit;
/// [`Error::Input`] for a model that cannot be built.
pub fn plan_batch(arch: &Arch, limit: u64, spec: &StepSpec) -> Result<(usize, MemoryUse)> {
    let most = match (arch.machine, spec.batch) {
        (Machine::Cpu, 0) => CPU_MOST,
        (Machine::Cpu, batch) => batch,
        _ => CARD_MOST,
    };
    let one = plan(arch, limit, spec, 1).map_err(not_even_one)?;
    if most == 1 {
        return Ok((1, one));
    }
    // A plan of a large model takes a while, and memory grows in proportion to the batch: where
    // that leads is tried first.
    let second = plan(arch, u64::MAX, spec, 2)?.peak();
    let per_window = second.saturating_sub(one.peak()).max(1);
    let guess = 1 + (limit - one.peak()) / per_window;
    let guess = usize::try_from(guess).unwrap_or(most).clamp(1, most);
    let mut batch = if guess == most { most } else { 1 << guess.ilog2() };
    let mut found = fitting(arch, limit, spec, batch)?;
    if found.is_some() {
        while let Some(larger) = Some((2 * batch).min(most)).filter(|&larger| larger > batch)
            && let Some(memory) = fitting(arch, limit, spec, larger)?
        {
            (batch, found) = (larger, Some(memory));
        }
    }
    while found.is_none() && batch > 1 {
        batch = 1 << (batch - 1).ilog2();
        found = fitting(arch, limit, spec, batch)?;
    }
    Ok((batch, found.unwrap_or(one)))
}

/// As [`plan_batch`], but at most `most` windows, which need be no power of two.
///
/// # Errors
/// As [`plan_batch`].
pub fn plan_batch_up_to(arch: &Arch, limit: u64, spec: &StepSpec, most: usize) -> Result<usize> {
    let (planned, _) = plan_batch(arch, limit, spec)?;
    let mut batch = planned.min(most.max(1));
    // How a sum is split, and so what workspace it takes, depends on the batch: a smaller one need not
    // take less.
    while batch > 1 && batch != planned && fitting(arch, limit, spec, batch)?.is_none() {
        batch /= 2;
    }
    Ok(batch)
}

/// The memory that a training step of `spec.batch` windows a pass needs, exact to the byte.
///
/// # Errors
/// [`Error::OutOfMemory`] naming the tensor with which it passes the limit, and a batch that
/// does not; [`Error::Input`] for a model that cannot be built.
pub fn plan_exactly(arch: &Arch, limit: u64, spec: &StepSpec) -> Result<MemoryUse> {
    let asked = Step::plan(arch, limit, spec);
    let Err(Error::OutOfMemory { what, requested, held, capacity, .. }) = asked else {
        return asked;
    };
    plan(arch, limit, spec, 1).map_err(not_even_one)?;
    let fits = largest_below(arch, limit, spec)?;
    let accumulation = match spec.accumulation {
        1 => "train.accumulation keeps an update's size".to_string(),
        n => format!("train.accumulation is {n}"),
    };
    Err(Error::OutOfMemory {
        what: format!("{what}, with a batch of {}", spec.batch),
        requested,
        held,
        capacity,
        remedy: format!(
            "a batch of {fits} fits (--batch {fits}; --batch auto plans one), {accumulation}; \
             train.recompute=\"layers\" keeps less"
        ),
    })
}

/// A batch below `spec.batch` that fits while the next does not, where 1 does. Memory grows with the
/// batch but for some workspaces, so that a larger one may fit again.
fn largest_below(arch: &Arch, limit: u64, spec: &StepSpec) -> Result<usize> {
    let (mut fits, mut not) = (1, spec.batch);
    while fits + 1 < not {
        let middle = usize::midpoint(fits, not);
        match fitting(arch, limit, spec, middle)? {
            Some(_) => fits = middle,
            None => not = middle,
        }
    }
    Ok(fits)
}

/// The plan of a batch; None where it does not fit.
fn fitting(arch: &Arch, limit: u64, spec: &StepSpec, batch: usize) -> Result<Option<MemoryUse>> {
    match plan(arch, limit, spec, batch) {
        Ok(memory) => Ok(Some(memory)),
        Err(Error::OutOfMemory { .. }) => Ok(None),
        Err(error) => Err(error),
    }
}

fn plan(arch: &Arch, limit: u64, spec: &StepSpec, batch: usize) -> Result<MemoryUse> {
    let eval_batch = if spec.eval_batch > 0 { eval_batch(batch, spec.accumulation) } else { 0 };
    Step::plan(arch, limit, &StepSpec { batch, eval_batch, ..spec.clone() })
}

/// A smaller batch is no remedy where there is none.
fn not_even_one(error: Error) -> Error {
    match error {
        Error::OutOfMemory { what, requested, held, capacity, .. } => Error::OutOfMemory {
            what: format!("{what}, with a batch of 1"),
            requested,
            held,
            capacity,
            remedy: "take a smaller model (model.d_model, model.n_layers, a larger model.patch), \
                     shorter windows (data.window_s), or more memory (--memory)"
                .into(),
        },
        other => other,
    }
}

/// The host's memory, bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
pub struct HostMemory {
    /// What this process could have at most: the machine's, or its control group's.
    pub total: u64,
    /// What it can have now without pushing anything else out.
    pub available: u64,
}

/// The host's memory by /proc/meminfo and the control group of this process (containers, SLURM);
/// None on systems without /proc/meminfo.
pub fn host_memory() -> Option<HostMemory> {
    let memory = of_meminfo(&fs::read_to_string("/proc/meminfo").ok()?)?;
    let group = fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
    Some(within_groups(memory, &group, Path::new("/sys/fs/cgroup")))
}

fn of_meminfo(text: &str) -> Option<HostMemory> {
    let field = |name: &str| -> Option<u64> {
        let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))?;
        line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()?.checked_mul(1024)
    };
    let total = field("MemTotal")?;
    let available = field("MemAvailable").or_else(|| field("MemFree"))?;
    Some(HostMemory { total, available })
}

/// The smallest of `memory` and the limits of the control groups that `listed`, the text of
/// /proc/self/cgroup, names, with all groups around them. A group sees its own files below the
/// root of its mount inside a container, so those are looked at in any case.
fn within_groups(mut memory: HostMemory, listed: &str, mount: &Path) -> HostMemory {
    for line in listed.lines() {
        let mut parts = line.splitn(3, ':').skip(1);
        let (Some(controllers), Some(path)) = (parts.next(), parts.next()) else { continue };
        let (base, limit, used, cache) = match controllers {
            "" => (mount.to_path_buf(), "memory.max", "memory.current", "inactive_file"),
            "memory" => (
                mount.join("memory"),
                "memory.limit_in_bytes",
                "memory.usage_in_bytes",
                "total_inactive_file",
            ),
            _ => continue,
        };
        let path = path.trim_start_matches('/');
        // Never above the mount, whatever the text says.
        let path = if path.split('/').any(|part| part == "..") { "" } else { path };
        for folder in base.join(path).ancestors().take_while(|folder| folder.starts_with(&base)) {
            let number = |name: &str| -> Option<u64> {
                fs::read_to_string(folder.join(name)).ok()?.trim().parse().ok()
            };
            let (Some(limit), Some(used)) = (number(limit), number(used)) else { continue };
            // Pages of files that nobody reads any more make room when asked.
            let stat = fs::read_to_string(folder.join("memory.stat")).unwrap_or_default();
            let idle = stat.lines().find_map(|line| line.strip_prefix(cache)?.trim().parse().ok());
            let used = used.saturating_sub(idle.unwrap_or(0));
            memory.total = memory.total.min(limit);
            memory.available = memory.available.min(limit.saturating_sub(used));
        }
    }
    memory
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::DType;
    use crate::backend::Backend;
    use crate::backend::cpu::Cpu;
    use crate::backend::null::Null;
    use crate::data::rng::Rng;
    use crate::model::{EegFormerConfig, ModelConfig};
    use crate::nn::params::Part;
    use crate::ops::loss::Pointwise;
    use crate::optim::Rule;
    use crate::train::step::Objective;

    fn spec(rng: &mut Rng) -> StepSpec {
        let n_heads = 1 + rng.below(4);
        let model = EegFormerConfig {
            n_channels: 3 + rng.below(20),
            window: 40 + rng.below(30),
            d_model: n_heads * (4 + rng.below(9)),
            n_heads,
            n_layers: 1 + rng.below(3),
            patch: 1 + rng.below(5),
            ..EegFormerConfig::default()
        };
        let model = EegFormerConfig { window: model.window / model.patch * model.patch, ..model };
        StepSpec {
            model: ModelConfig::EegFormer(model),
            batch: 0,
            accumulation: 1 + rng.below(3),
            eval_batch: rng.below(2),
            objective: Objective::Pointwise(Pointwise::Mse),
            rule: Rule::AdamW { beta1: 0.9, beta2: 0.95, epsilon: 1e-8 },
            average: false,
            dtype: DType::F32,
            compute: None,
            seed: 1,
        }
    }

    /// What fits is planned with its exact peak as the limit, and twice as much never fits.
    #[test]
    fn the_batch_is_the_largest_power_of_two_that_fits() {
        let mut rng = Rng::new(41, 0);
        let card = Arch::claim("gfx1010").expect("known");
        for _ in 0..12 {
            let spec = spec(&mut rng);
            let one = plan(&card, u64::MAX, &spec, 1).expect("no limit").peak();
            let limit = one + rng.below(40 * one as usize) as u64;
            let (batch, memory) = plan_batch(&card, limit, &spec).expect("one fits");
            assert!(batch.is_power_of_two() && memory.peak() <= limit);
            assert!(plan(&card, u64::MAX, &spec, 2 * batch).expect("no limit").peak() > limit);
            assert_eq!(plan_batch(&card, memory.peak(), &spec).expect("exactly"), (batch, memory));
            let below = plan_batch(&card, memory.peak() - 1, &spec);
            assert!(
                below.is_err() == (batch == 1) && below.is_ok_and(|b| b.0 < batch) == (batch > 1)
            );
        }
    }

    /// The batch that a refusal names fits and the next does not; the tensor is one of the step's.
    #[test]
    fn a_batch_that_cannot_fit_is_told_which_one_does() {
        let mut rng = Rng::new(43, 0);
        let card = Arch::claim("sm_86").expect("known");
        for _ in 0..12 {
            let spec = StepSpec { eval_batch: 1, ..spec(&mut rng) };
            let fits = 1 + rng.below(40);
            let limit = plan(&card, u64::MAX, &spec, fits).expect("no limit").peak();
            let batch = fits + 1 + rng.below(60);
            let asked = |batch| {
                let eval_batch = eval_batch(batch, spec.accumulation);
                plan_exactly(&card, limit, &StepSpec { batch, eval_batch, ..spec.clone() })
            };
            let text = asked(batch).expect_err("too much").to_string();
            let named = text.split("--batch ").nth(1).expect("names one");
            let named: usize = named.split(';').next().expect("a number").parse().expect("one");
            assert!((1..batch).contains(&named), "{text}");
            assert!(asked(named).expect("fits").peak() <= limit);
            assert!(asked(named + 1).is_err(), "{named} is not the largest: {text}");
            assert!(text.contains('[') && text.contains(&format!("batch of {batch}")), "{text}");
        }
    }

    /// Layers that learn later on are recorded again, within the plan of all of them.
    #[test]
    fn frozen_layers_need_no_more_than_was_planned() {
        let mut rng = Rng::new(47, 0);
        let card = Arch::claim("sm_86").expect("known");
        for _ in 0..20 {
            let spec = StepSpec { batch: 1 + rng.below(9), eval_batch: 1, ..spec(&mut rng) };
            let planned = Step::plan(&card, u64::MAX, &spec).expect("no limit");
            let null = std::sync::Arc::new(Null::new(card.clone(), planned.peak()));
            let mut step = Step::new(null, spec).expect("fits exactly");
            for thawed in 0..4 {
                let frozen = |part| match part {
                    Part::Head => false,
                    Part::Layer(layer) => u64::from(layer) + thawed < 3,
                    Part::Embedding => thawed <= 3,
                };
                step.freeze(frozen).expect("within the plan");
            }
        }
    }

    /// Steps of any size after each other, each with exactly its own plan as the limit of all.
    #[test]
    fn what_a_step_gave_back_is_there_for_a_larger_one() {
        let mut rng = Rng::new(53, 0);
        for _ in 0..4 {
            let spec = spec(&mut rng);
            let sized = |batch| StepSpec { batch, eval_batch: 1, ..spec.clone() };
            let cpu = Cpu::new(1, u64::MAX).expect("starts");
            let plan = |batch| Step::plan(cpu.arch(), u64::MAX, &sized(batch)).expect("no limit");
            let backend: std::sync::Arc<dyn Backend> =
                std::sync::Arc::new(Cpu::new(1, plan(9).peak()).expect("starts"));
            for batch in [3, 9, 1, 9] {
                backend.reserve(&plan(batch)).expect("what was there is given back");
                drop(Step::new(std::sync::Arc::clone(&backend), sized(batch)).expect("fits"));
                backend.trim().expect("gives back");
            }
        }
    }

    /// A card of 6 GB holds what is planned for it, by every profile and with every limit near it.
    #[test]
    fn six_gigabytes_hold_every_profile() {
        let limit = 6_000_000_000;
        for (card, compute) in [("gfx1010", None), ("sm_86", Some(DType::Bf16))] {
            let card = Arch::claim(card).expect("known");
            for (d_model, n_heads, n_layers) in [(64, 4, 2), (96, 6, 4), (128, 8, 6), (256, 16, 12)]
            {
                let model = EegFormerConfig { d_model, n_heads, n_layers, ..Default::default() };
                let model = ModelConfig::EegFormer(model);
                let spec = StepSpec { model, compute, eval_batch: 1, ..spec(&mut Rng::new(1, 0)) };
                let (batch, memory) = plan_batch(&card, limit, &spec).expect("one fits");
                assert!(memory.peak() <= limit, "{batch}: {memory:?}");
                // What is reserved for it is all that the step takes.
                let eval_batch = eval_batch(batch, spec.accumulation);
                let exact = StepSpec { batch, eval_batch, ..spec };
                assert_eq!(plan_exactly(&card, memory.peak(), &exact).expect("fits"), memory);
                assert!(plan_exactly(&card, memory.peak() - 1, &exact).is_err());
            }
        }
    }

    #[test]
    fn a_cpu_ends_at_the_batch_asked() {
        let mut rng = Rng::new(5, 0);
        let cpu = Arch { machine: Machine::Cpu, ..Arch::claim("sm_90").expect("known") };
        let spec = spec(&mut rng);
        for (asked, found) in [(0, 64), (1, 1), (24, 24), (32, 32)] {
            let spec = StepSpec { batch: asked, ..spec.clone() };
            let (batch, memory) = plan_batch(&cpu, u64::MAX, &spec).expect("fits");
            assert_eq!(batch, found);
            assert_eq!(memory, plan(&cpu, u64::MAX, &spec, found).expect("fits"));
        }
    }

    #[test]
    fn what_never_fits_names_the_tensor() {
        let card = Arch::claim("gfx1010").expect("known");
        let spec = spec(&mut Rng::new(6, 0));
        let error = plan_batch(&card, 20_000, &spec).expect_err("too little");
        assert_eq!(error.exit_code(), 2);
        let text = error.to_string();
        assert!(text.contains("f32[") && text.contains("batch of 1"), "{text}");
        assert!(text.contains("20000") && text.contains("model.d_model"), "{text}");
    }

    #[test]
    fn the_hosts_memory_is_what_its_group_leaves() {
        let text = "MemTotal:       16000 kB\nMemFree: 100 kB\nMemAvailable:    9000 kB\n";
        let memory = of_meminfo(text).expect("complete");
        assert_eq!(memory, HostMemory { total: 16_384_000, available: 9_216_000 });
        assert_eq!(of_meminfo("MemTotal: 12 kB\n"), None);
        let mount = tempfile::tempdir().expect("a folder");
        let group = mount.path().join("job/step");
        fs::create_dir_all(&group).expect("made");
        let write = |folder: &Path, name: &str, text: &str| {
            fs::write(folder.join(name), text).expect("written");
        };
        write(&group, "memory.max", "max\n");
        write(&group, "memory.current", "1\n");
        let job = mount.path().join("job");
        write(&job, "memory.max", "8000000\n");
        write(&job, "memory.current", "5000000\n");
        write(&job, "memory.stat", "anon 77\ninactive_file 1000000\n");
        let found = within_groups(memory, "0::/job/step\n", mount.path());
        assert_eq!(found, HostMemory { total: 8_000_000, available: 4_000_000 });
        for other in ["0::/../../x", "4:cpu:/job", "nonsense", ""] {
            assert_eq!(within_groups(memory, other, mount.path()), memory, "{other}");
        }
    }
}
