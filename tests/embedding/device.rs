//! The device path: arrays in a card's memory that the caller allocated, on the caller's stream. The
//! emulator's stand-in for the HIP runtime is the card.

use std::path::Path;
use std::process::Command;

use engine::backend::gpu::images;
use engine::backend::{Arch, Machine};

use crate::fixture::{folder, run};
use crate::linking::examples_in_c;
use crate::stand_in::Build;

#[test]
fn arrays_of_a_card_on_the_caller_s_stream() {
    let Some(examples) = examples_in_c(false) else { return };
    for (arch, wave) in [("gfx1010", 32), ("gfx90a", 64)] {
        let Some(stand_in) = Build::plain(wave).folder() else { return };
        let library = stand_in.join("libamdhip64.so");
        let mut command = Command::new(examples.join("device"));
        command.arg("hip").arg(&library).arg(folder("device").join("model.safetensors"));
        command.env("ENGINE_HIP_LIBRARY", &library).env("ENGINE_EMULATOR_ARCH", arch);
        let machine = Arch::claim(arch).map_or(Machine::Cpu, |arch| arch.machine);
        if images::of(machine).is_empty() {
            command.env("ENGINE_HIP_IMAGE", stand_in.join("emulator.image"));
        }
        let said = run(&mut command);
        assert!(said.contains("the default stream") && said.contains("training"), "{said}");
        eprint!("{said}");
    }
}

/// The guide's op with its kernel: on the CPU, and as the emulator's image of docs/guide/softsign.cu.
#[test]
fn the_guide_s_kernel_runs() {
    let softsign = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/guide/softsign.cu");
    let build = Build::plain(32).with_kernels("softsign", vec![softsign]);
    let Some(stand_in) = build.folder() else { return };
    let said = run(crate::examples::rust_example("custom_op")
        .arg("hip")
        .env("ENGINE_HIP_LIBRARY", stand_in.join("libamdhip64.so"))
        .env("ENGINE_HIP_IMAGE", stand_in.join("emulator.image"))
        .env("ENGINE_EMULATOR_ARCH", "gfx1100"));
    assert!(said.contains("the kernel on gfx1100: the same"), "{said}");
}
