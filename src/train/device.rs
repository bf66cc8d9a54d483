//! The device of a run: the first card that works, or the one that was asked for.

use std::sync::Arc;

use super::planner::{budget, host_memory};
use crate::backend::Backend;
use crate::backend::cpu::Cpu;
use crate::backend::gpu::{Gpu, cuda};
use crate::backend::route::with_wishes;
use crate::config::{Amp, DeviceName, Settings};
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
}

impl Found {
    /// The device of that name; for `auto` the first card that works, else the CPU.
    ///
    /// # Errors
    /// [`Error::Device`] with what is missing where a card was asked for by name.
    pub fn search(wanted: DeviceName) -> Result<Self> {
        match wanted {
            DeviceName::Cpu => Ok(Self::Cpu(None)),
            DeviceName::Cuda => Ok(Self::Cuda(Box::new(cuda::Cuda::open(0, None)?))),
            DeviceName::Hip => {
                let problem = "this build has no kernels for hip";
                let remedy = "use --device cpu, or auto; `engine devices` says what was found";
                Err(Error::input("--device hip", problem, remedy))
            }
            DeviceName::Auto => Ok(match cuda::Cuda::open(0, None) {
                Ok(card) => Self::Cuda(Box::new(card)),
                // A machine without the driver's library has no such card: nothing to say.
                Err(_) if !cuda::driver_is_present() => Self::Cpu(None),
                Err(error) => Self::Cpu(Some(error.to_string())),
            }),
        }
    }

    /// The profile that suits the device.
    pub fn profile(&self) -> &'static str {
        let Self::Cuda(card) = self else { return "cpu" };
        let memory = crate::backend::gpu::driver::Driver::arch(card.as_ref()).memory;
        match memory >> 30 {
            0..=20 => "rtx3060",
            21..=70 => "rtx4090",
            _ => "h200",
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
                use crate::backend::gpu::driver::Driver;
                let mut arch = with_wishes(card.arch(), d.gemm, &d.route)?;
                arch.wishes.tf32 = amp == Amp::Tf32;
                let (free, total) = card.memory()?;
                let limit = limit.unwrap_or_else(|| budget(free));
                arch.memory = limit;
                let name = format!("{} ({})", card.name(), arch.name);
                let gib = |bytes: u64| bytes as f64 / (1u64 << 30) as f64;
                let memory = format!("{:.1} of {:.1} GiB", gib(limit), gib(total));
                said.push(format!("device {name}, {memory}, CUDA {}", card.driver_words()));
                Ok((Arc::new(Gpu::new(*card, arch, limit)), said))
            }
        }
    }
}
