//! What `engine devices` says of AMD's cards: the card, its runtime, rocBLAS' files, what is set that
//! does harm.

use super::devices::card_and_memory;
use crate::Result;
use crate::backend::Arch;
use crate::backend::gpu::driver::Driver;
use crate::backend::gpu::hip::{self, Hip, facts};

/// The state of AMD's stack on this machine.
pub(super) struct Amd {
    /// What is said: name and words.
    pub(super) rows: Vec<[String; 2]>,
    /// The card that a run would take.
    pub(super) card: Option<Arch>,
}

/// Looks; `vendor` opens hipBLAS on RDNA1 too.
pub(super) fn look(vendor: bool) -> Amd {
    let mut rows = Vec::new();
    let mut say = |name: &str, words: String| rows.push([name.to_string(), words]);
    let found = Hip::first(vendor);
    say("AMD card", card_words(&found));
    if let Ok((path, version)) = hip::runtime() {
        say(
            "HIP runtime",
            format!("{} ({path})", version.unwrap_or_else(|| "of unknown version".into())),
        );
    }
    if facts::is_here() {
        say("AMD's kernel driver", kernel_driver_words());
    }
    if let Ok(card) = &found {
        say("rocBLAS", rocblas_words(card));
        for warning in hip::warnings() {
            say("warning", warning);
        }
    }
    Amd { rows, card: found.ok().map(|card| card.arch().clone()) }
}

fn card_words(found: &Result<Hip>) -> String {
    let (card, memory) = match card_and_memory(found) {
        Ok(both) => both,
        Err(words) => return words,
    };
    let (name, arch) = (card.name(), card.arch());
    let wave = arch.wave;
    format!("{name}, {}, {} compute units, waves of {wave}, {memory}", arch.name, arch.units)
}

/// The device file of the kernel driver, and whether it can be opened.
pub(super) fn kernel_driver_words() -> String {
    let path = facts::kernel_driver();
    if !path.exists() {
        return format!("{} is missing: the amdgpu kernel driver is not loaded", path.display());
    }
    match std::fs::OpenOptions::new().read(true).write(true).open(path) {
        Ok(_) => format!("{} can be opened", path.display()),
        Err(error) => {
            format!("{}: {error}; add your user to the groups render and video", path.display())
        }
    }
}

fn rocblas_words(card: &Hip) -> String {
    let name = &card.arch().name;
    if let Some(files) = card.blas_files() {
        return format!("in use, without hipBLASLt; files for {name} in {}", files.display());
    }
    let (folders, has_files) = facts::rocblas_files(name);
    let there: Vec<String> =
        folders.iter().filter(|f| f.is_dir()).map(|f| f.display().to_string()).collect();
    match (has_files, there.is_empty()) {
        (true, _) if card.arch().is_rdna1() => {
            format!("has files for {name}; not used unless --gemm vendor asks for it")
        }
        (true, _) => format!("has files for {name}, but no libhipblas.so was found: own products"),
        (false, true) => "not on this machine: the engine's own products".into(),
        (false, false) => format!(
            "no files for {name} in {}: it would end the process, and is not touched; the engine's \
             own products",
            there.join(", ")
        ),
    }
}
