//! The device of a run: the first card that works, or the one that was asked for.

use std::sync::Arc;

use super::planner::{budget, host_memory};
use crate::backend::cpu::Cpu;
use crate::backend::gpu::driver::Driver;
use crate::backend::gpu::hip::{self, Hip};
use crate::backend::gpu::{Gpu, cuda, self_test};
use crate::backend::route::{self, Choice, with_wishes};
use crate::backend::{Arch, Backend};
use crate::config::{Amp, DeviceName, DeviceSettings, Gemm, Settings};
use crate::train::recipe::compute_type;
use crate::{Error, Result};

/// Memory of a CPU run where the system does not say what is free.
const MEMORY_UNKNOWN: u64 = 4 << 30;

/// A device that was found, before anything was put on it.
#[derive(Debug)]
pub enum Found {
    /// The host's processor, with why no card is used where one was looked for.
    Cpu(Option<String>),
    /// An NVIDIA card.
    Cuda(Box<cuda::Cuda>),
    /// An AMD card.
    Hip(Box<Hip>),
}

impl Found {
    /// The device of that name; for `auto` the first card that works, else the CPU.
    ///
    /// # Errors
    /// [`Error::Device`] with what is missing where a card was asked for by name.
    pub fn search(wanted: &DeviceSettings) -> Result<Self> {
        let vendor = wanted.gemm == Gemm::Vendor;
        match wanted.device {
            DeviceName::Cpu => Ok(Self::Cpu(None)),
            DeviceName::Cuda => Ok(Self::Cuda(Box::new(cuda::Cuda::open(0, None)?))),
            DeviceName::Hip => Ok(Self::Hip(Box::new(Hip::first(vendor)?))),
            DeviceName::Auto => {
                let mut why = Vec::new();
                match cuda::Cuda::open(0, None) {
                    Ok(card) => return Ok(Self::Cuda(Box::new(card))),
                    // A machine without the driver's library has no such card: nothing to say.
                    Err(_) if !cuda::driver_is_present() => {}
                    Err(error) => why.push(error.to_string()),
                }
                match Hip::first(vendor) {
                    Ok(card) => return Ok(Self::Hip(Box::new(card))),
                    Err(_) if !hip::facts::is_here() => {}
                    Err(error) => why.push(error.to_string()),
                }
                Ok(Self::Cpu((!why.is_empty()).then(|| why.join("\n"))))
            }
        }
    }

    /// The profile that suits the device.
    pub fn profile(&self) -> &'static str {
        match self {
            Self::Cpu(_) => "cpu",
            Self::Cuda(card) => profile_of(card.arch()),
            Self::Hip(card) => profile_of(card.arch()),
        }
    }

    /// The device as a backend, as the settings want it, and what to tell about it.
    ///
    /// # Errors
    /// [`Error::Input`] for a wish the device cannot fulfil; [`Error::Device`].
    pub fn open(self, settings: &Settings) -> Result<(Arc<dyn Backend>, Vec<String>)> {
        let (d, amp) = (&settings.device, settings.train.amp);
        let limit = d.memory.map(|bytes| bytes.0);
        let mut said = Vec::new();
        match self {
            Self::Cpu(why) => {
                said.extend(why.map(|why| format!("no card is used: {why}")));
                let free = || host_memory().map_or(MEMORY_UNKNOWN, |memory| memory.available);
                let limit = limit.unwrap_or_else(free);
                let cpu = Cpu::new(settings.train.threads.unwrap_or(0), limit)?;
                let arch = cpu.arch();
                said.push(format!("device {} with {} threads", arch.name, arch.units));
                if amp != Amp::Off {
                    said.push(format!("--amp {amp} is for GPUs: the CPU computes in f32"));
                }
                Ok((Arc::new(cpu), said))
            }
            Self::Cuda(card) => {
                let mut arch = with_wishes(card.arch(), d.gemm, &d.route)?;
                arch.wishes.tf32 = amp == Amp::Tf32;
                card.use_pinned(d.pinned);
                let (free, total) = card.memory()?;
                let limit = within(limit, free, &mut said);
                arch.memory = limit;
                let name = format!("{} ({})", card.name(), arch.name);
                let gib = |bytes: u64| bytes as f64 / (1u64 << 30) as f64;
                let memory = format!("{:.1} of {:.1} GiB", gib(limit), gib(total));
                said.push(format!("device {name}, {memory}, CUDA {}", card.driver_words()));
                Ok((Arc::new(Gpu::new(*card, arch, limit)), said))
            }
            Self::Hip(card) => {
                let backend = open_hip(*card, settings, &mut said)?;
                Ok((backend, said))
            }
        }
    }
}

/// Bytes that a run may take of a card: the limit asked for, but never more than is free, less what
/// recordings of steps and the driver take later on.
fn within(limit: Option<u64>, free: u64, said: &mut Vec<String>) -> u64 {
    let most = budget(free);
    if let Some(limit) = limit.filter(|&limit| limit > most) {
        let gib = |bytes: u64| bytes as f64 / (1u64 << 30) as f64;
        said.push(format!(
            "--memory asks for {:.2} GiB, of the card {:.2} are free: {:.2} are taken, the rest is for \
             the driver",
            gib(limit),
            gib(free),
            gib(most)
        ));
    }
    limit.map_or(most, |limit| limit.min(most))
}

/// The profile for a card by its memory, and by whether it has bf16, which the larger ones want.
fn profile_of(arch: &Arch) -> &'static str {
    match (arch.bf16, arch.memory >> 30) {
        (false, 0..=9) => "rx5600xt",
        (false, _) => "rx6800",
        (true, 0..=20) => "rtx3060",
        (true, 21..=70) => "rtx4090",
        (true, _) => "h200",
    }
}

/// An AMD card as a backend, once its kernels have been tested.
fn open_hip(card: Hip, settings: &Settings, said: &mut Vec<String>) -> Result<Arc<dyn Backend>> {
    let (d, amp) = (&settings.device, settings.train.amp);
    let mut arch = with_wishes(card.arch(), d.gemm, &d.route)?;
    check_amp(amp, &arch)?;
    card.use_pinned(d.pinned);
    let (free, total) = card.memory()?;
    let (limit, left) = hip_memory(&card, d, free, said)?;
    arch.memory = limit;
    let (_, version) = hip::runtime()?;
    let gib = |bytes: u64| bytes as f64 / (1u64 << 30) as f64;
    said.push(format!(
        "device {} ({}), {:.1} of {:.1} GiB{left}, HIP {}",
        card.name(),
        arch.name,
        gib(limit),
        gib(total),
        version.unwrap_or_else(|| "of unknown version".into())
    ));
    if arch.blas && route::choose("gemm", &arch) == Choice::Blas {
        said.push("products by hipBLAS, without hipBLASLt (ROCBLAS_USE_HIPBLASLT=0)".into());
    }
    let on_host = route::routes(&arch).into_iter().filter(|p| p.choice == Choice::Host);
    said.extend(on_host.map(|p| format!("{} runs on the CPU: {}", p.op, p.reason)));
    said.extend(hip::warnings().into_iter().map(|warning| format!("warning: {warning}")));
    let backend: Arc<dyn Backend> = Arc::new(Gpu::new(card, arch.clone(), limit));
    let tests = self_test::run(&backend, compute_type(amp, arch.machine))?;
    self_test::check(&arch, tests)?;
    backend.trim()?;
    Ok(backend)
}

/// Bytes that may be taken of a card, and what to say about those that are not.
fn hip_memory(
    card: &Hip,
    wanted: &DeviceSettings,
    free: u64,
    said: &mut Vec<String>,
) -> Result<(u64, String)> {
    let reserve = card.reserve();
    if let Some(limit) = wanted.memory {
        return Ok((within(Some(limit.0), free, said), String::new()));
    }
    let gib = |bytes: u64| bytes as f64 / (1u64 << 30) as f64;
    if free <= reserve {
        return Err(Error::OutOfMemory {
            what: format!(
                "anything on {}, {:.1} GiB being left to the desktop",
                card.name(),
                gib(reserve)
            ),
            requested: reserve,
            held: card.arch().memory.saturating_sub(free),
            capacity: card.arch().memory,
            remedy: "close other programs on the card, or say with --memory what may be taken"
                .into(),
        });
    }
    let left = match reserve {
        0 => String::new(),
        _ => {
            format!(" ({:.1} GiB are left to the desktop; --memory SIZE takes them)", gib(reserve))
        }
    };
    Ok((budget(free - reserve), left))
}

/// Refuses mixed precision that an AMD card does not have.
fn check_amp(amp: Amp, arch: &Arch) -> Result<()> {
    let place = format!("train.amp = \"{amp}\"");
    match amp {
        Amp::Bf16 if !arch.bf16 => {
            let problem = format!("{} has no bf16", arch.name);
            let remedy = "give --amp off, or --amp f16, which takes less memory";
            Err(Error::input(place, problem, remedy))
        }
        Amp::Tf32 => {
            let problem = format!("TF32 is NVIDIA's, {} has none", arch.name);
            Err(Error::input(place, problem, "give --amp off, or a 16-bit type"))
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_card_has_a_profile_that_it_can_run() {
        for (name, profile) in [
            ("gfx1010", "rx5600xt"),
            ("gfx1030", "rx6800"),
            ("gfx1100", "rtx4090"),
            ("gfx90a", "rtx4090"),
            ("gfx942", "h200"),
            ("sm_86", "rtx3060"),
            ("sm_90", "h200"),
        ] {
            let arch = Arch::claim(name).expect("known");
            assert_eq!(profile_of(&arch), profile, "{name}");
            let settings =
                crate::config::resolve(None, &[], Some(profile)).expect("valid").settings;
            check_amp(settings.train.amp, &arch).expect(name);
        }
    }

    #[test]
    fn a_limit_is_kept_and_never_more_than_is_free() {
        let mut said = Vec::new();
        assert_eq!(within(Some(6_000_000_000), 80 << 30, &mut said), 6_000_000_000);
        assert_eq!(within(None, 1000, &mut said), 900);
        assert!(said.is_empty());
        // A card of 6 GB, of which a desktop and the driver have taken some.
        assert_eq!(within(Some(6_000_000_000), 5_600_000_000, &mut said), 5_040_000_000);
        assert_eq!(said.len(), 1, "{said:?}");
    }

    #[test]
    fn precision_that_a_card_lacks_is_refused_with_a_remedy() {
        let card = |name| Arch::claim(name).expect("known");
        for (amp, name, word) in
            [(Amp::Bf16, "gfx1010", "--amp f16"), (Amp::Tf32, "gfx1100", "--amp off")]
        {
            let error = check_amp(amp, &card(name)).expect_err("refused");
            assert_eq!(error.exit_code(), 2);
            assert!(error.to_string().contains(word), "{error}");
        }
        for amp in [Amp::Off, Amp::F16] {
            check_amp(amp, &card("gfx1010")).expect("possible");
        }
        check_amp(Amp::Bf16, &card("gfx1100")).expect("possible");
    }
}
