//! The compiled kernels that this program carries: build.rs made them, drivers load them.
//!
//! An image is one source of `kernels/` for one architecture: a cubin or PTX for
//! `cuModuleLoadData`, a code object for `hipModuleLoadData`. A card needs one image of each source.

use crate::backend::Machine;

/// Compute capability, times ten, from which kernels run: they use bf16 and asynchronous copies.
const OLDEST: u32 = 80;

/// One source of `kernels/`, compiled for one architecture.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Image {
    /// The source below `kernels/`, without its ending: "gemm", "cuda/gemm_wgmma".
    pub source: &'static str,
    /// "sm_86", "sm_90a" (this card alone), "compute_80" (PTX), "gfx1010".
    pub arch: &'static str,
    /// Names of its entries.
    pub kernels: &'static [&'static str],
    /// What the driver loads: machine code, aligned to 16 bytes, or PTX with its final NUL.
    pub bytes: &'static [u8],
}

impl Image {
    /// True where its kernels wait for the one before them (`after_previous` of kernels/portable.h),
    /// so that they may be launched while that one still runs: code for 9.0 and later has the
    /// instruction, older code does not, also when it runs on a newer card.
    pub fn waits(&self) -> bool {
        let digits = self.arch.strip_prefix("sm_").or(self.arch.strip_prefix("compute_"));
        let digits = digits.map(|digits| digits.trim_end_matches(char::is_alphabetic));
        digits.and_then(|digits| digits.parse::<u32>().ok()).is_some_and(|sm| sm >= 90)
    }
}

/// What was built for the cards of one maker.
#[derive(Debug)]
struct Family {
    /// The compiler's name and version.
    compiler: Option<&'static str>,
    /// Why there are no images, and the remedy.
    why_not: Option<(&'static str, &'static str)>,
    images: &'static [Image],
}

#[allow(dead_code, reason = "a build without compilers has no images")]
#[repr(C, align(16))]
struct Aligned<T: ?Sized>(T);

#[allow(unused_macros, reason = "a build without compilers has no images")]
macro_rules! aligned {
    ($path:literal) => {{
        static BYTES: &Aligned<[u8]> = &Aligned(*include_bytes!($path));
        &BYTES.0
    }};
}

/// PTX with the NUL that ends it.
#[allow(unused_macros, reason = "a build without compilers has no images")]
macro_rules! text {
    ($path:literal) => {
        concat!(include_str!($path), "\0").as_bytes()
    };
}

include!(concat!(env!("OUT_DIR"), "/images.rs"));

/// Why there is no CUDA code in this program, and the remedy; None where there is.
pub fn why_no_cuda() -> Option<(&'static str, &'static str)> {
    CUDA.why_not
}

/// Why there is no HIP code in this program, and the remedy; None where there is.
pub fn why_no_hip() -> Option<(&'static str, &'static str)> {
    HIP.why_not
}

/// Name and version of the compiler of the CUDA images.
pub fn cuda_compiler() -> Option<&'static str> {
    CUDA.compiler
}

/// Name and version of the compiler of the HIP images.
pub fn hip_compiler() -> Option<&'static str> {
    HIP.compiler
}

/// Every image of this program.
pub fn all() -> impl Iterator<Item = &'static Image> {
    CUDA.images.iter().chain(HIP.images)
}

/// Architectures of the CUDA images, in the order of building.
pub fn cuda_archs() -> Vec<&'static str> {
    archs_of(CUDA.images)
}

/// Architectures of the HIP images, in the order of building.
pub fn hip_archs() -> Vec<&'static str> {
    archs_of(HIP.images)
}

fn archs_of(images: &[Image]) -> Vec<&'static str> {
    let mut archs = Vec::new();
    for image in images {
        if !archs.contains(&image.arch) {
            archs.push(image.arch);
        }
    }
    archs
}

/// The images that a card loads: of each source the one made for it, or else the nearest that runs
/// there. Empty for a CPU, and where there are none: [`why_not`].
pub fn of(machine: Machine) -> Vec<&'static Image> {
    match machine {
        Machine::Cpu => Vec::new(),
        Machine::Cuda { .. } => chosen(CUDA.images, machine),
        Machine::Hip { .. } => chosen(HIP.images, machine),
    }
}

/// Why [`of`] is empty for a card, and the remedy; None where it is not, and for a CPU.
pub fn why_not(machine: Machine) -> Option<(String, String)> {
    let (family, variable, name) = match machine {
        Machine::Cpu => return None,
        Machine::Cuda { sm } => (&CUDA, "ENGINE_CUDA_ARCHS", sm.to_string()),
        Machine::Hip { gfx } => (&HIP, "ENGINE_HIP_ARCHS", format!("gfx{gfx:x}")),
    };
    if let Some((problem, remedy)) = family.why_not {
        return Some((problem.to_string(), remedy.to_string()));
    }
    if let Machine::Cuda { sm } = machine
        && sm < OLDEST
    {
        let problem = format!("the card's compute capability is {}.{}", sm / 10, sm % 10);
        return Some((problem, "take a card of 8.0 (Ampere) or later, or the CPU".to_string()));
    }
    if !chosen(family.images, machine).is_empty() {
        return None;
    }
    let built = archs_of(family.images).join(", ");
    let problem = format!("this program holds kernels for {built}, none for this card ({name})");
    Some((problem, format!("{variable}={name} cargo build --release")))
}

fn chosen(images: &'static [Image], machine: Machine) -> Vec<&'static Image> {
    let mut best: Vec<(u32, &'static Image)> = Vec::new();
    for image in images {
        let Some(rank) = rank(image.arch, machine) else { continue };
        match best.iter_mut().find(|(_, other)| other.source == image.source) {
            Some(held) if held.0 < rank => *held = (rank, image),
            Some(_) => {}
            None => best.push((rank, image)),
        }
    }
    best.into_iter().map(|(_, image)| image).collect()
}

/// How well code for `arch` suits a card, larger is better; None where it does not run there.
///
/// CUDA C++ Programming Guide, "Application Compatibility": machine code runs on cards of the same
/// major capability and at least its minor one, that of an architecture with a letter on this alone;
/// PTX on everything later. AMD's code runs on its own architecture only.
fn rank(arch: &str, machine: Machine) -> Option<u32> {
    match machine {
        Machine::Cpu => None,
        Machine::Hip { gfx } => (arch == format!("gfx{gfx:x}")).then_some(0),
        Machine::Cuda { sm } => {
            if let Some(digits) = arch.strip_prefix("compute_") {
                return digits.parse().ok().filter(|&from| from <= sm);
            }
            let digits = arch.strip_prefix("sm_")?;
            if let Some(digits) = digits.strip_suffix('a') {
                return (digits.parse() == Ok(sm)).then_some(3000);
            }
            let code: u32 = digits.parse().ok()?;
            (code / 10 == sm / 10 && code <= sm).then_some(2000 + code)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn image(source: &'static str, arch: &'static str) -> Image {
        Image { source, arch, kernels: &[], bytes: &[] }
    }

    fn archs_for(machine: Machine) -> Vec<(&'static str, &'static str)> {
        let archs = ["sm_80", "sm_86", "sm_89", "sm_90a", "sm_120", "compute_80", "compute_90"];
        let mut images: Vec<Image> = archs.into_iter().map(|arch| image("norm", arch)).collect();
        images.extend(["gfx1010", "gfx90a"].map(|arch| image("norm", arch)));
        images.push(image("cuda/wgmma", "sm_90a"));
        let images: &'static [Image] = images.leak();
        chosen(images, machine).into_iter().map(|image| (image.source, image.arch)).collect()
    }

    #[test]
    fn a_card_gets_the_nearest_code_that_runs_on_it() {
        for (sm, arch) in [
            (80, "sm_80"),
            (86, "sm_86"),
            (87, "sm_86"),
            (89, "sm_89"),
            (100, "compute_90"),
            (103, "compute_90"),
            (120, "sm_120"),
            (121, "sm_120"),
            (130, "compute_90"),
        ] {
            assert_eq!(archs_for(Machine::Cuda { sm }), [("norm", arch)], "sm_{sm}");
        }
        let hopper = [("norm", "sm_90a"), ("cuda/wgmma", "sm_90a")];
        assert_eq!(archs_for(Machine::Cuda { sm: 90 }), hopper);
        assert_eq!(archs_for(Machine::Cuda { sm: 75 }), []);
        assert_eq!(archs_for(Machine::Hip { gfx: 0x1010 }), [("norm", "gfx1010")]);
        assert_eq!(archs_for(Machine::Hip { gfx: 0x90a }), [("norm", "gfx90a")]);
        assert_eq!(archs_for(Machine::Hip { gfx: 0x1012 }), []);
        assert_eq!(archs_for(Machine::Cpu), []);
    }

    #[test]
    fn only_code_for_hopper_and_later_waits_for_its_predecessor() {
        let waits = |arch| image("norm", arch).waits();
        assert!(["sm_90a", "sm_120", "compute_90", "sm_100a"].into_iter().all(waits));
        assert!(!["sm_80", "sm_89", "compute_80", "gfx90a", "gfx1100"].into_iter().any(waits));
    }

    #[test]
    fn what_is_missing_has_a_reason() {
        assert_eq!(why_not(Machine::Cpu), None);
        for machine in [Machine::Cuda { sm: 90 }, Machine::Hip { gfx: 0x1010 }] {
            assert_eq!(why_not(machine).is_some(), of(machine).is_empty(), "{machine:?}");
        }
        assert!(why_not(Machine::Hip { gfx: 0x906 }).is_some());
        assert!(why_not(Machine::Cuda { sm: 61 }).is_some());
    }

    #[test]
    fn machine_code_is_aligned() {
        for image in all() {
            let text = image.arch.starts_with("compute_");
            let misaligned = image.bytes.as_ptr() as usize % 16;
            assert!(text || misaligned == 0, "{} {}", image.source, image.arch);
            assert!(!image.kernels.is_empty(), "{} {}", image.source, image.arch);
        }
    }
}
