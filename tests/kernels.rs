//! The compiled kernels against what the ops ask for: every kernel that a plan names is in the images
//! of its card, with the parameters the op has and room for the launch; none of them spills; matrix
//! instructions are where they should be. Nothing here needs a card; what needs a compiler says when
//! it is skipped.

#[allow(dead_code, reason = "values are for tests that compute")]
mod cases;
#[path = "kernels/image.rs"]
mod image;
#[path = "kernels/planned.rs"]
mod planned;
#[path = "kernels/rdna1.rs"]
mod rdna1;

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::{env, fs};

use engine::backend::gpu::driver::Operands;
use engine::backend::gpu::images::{self, Image};
use engine::backend::{Arch, Machine};

/// Kernels that may spill, or keep an array in memory: (kernel, architecture, why). A name that ends
/// with `*` stands for all that begin so; the architecture `*` for all.
const MAY_SPILL: &[(&str, &str, &str)] = &[
    ("layernorm_bf16", "sm_120", MORE_BLOCKS),
    ("layernorm_f16", "sm_120", MORE_BLOCKS),
    ("layernorm_f32", "sm_120", MORE_BLOCKS),
    ("layernorm_backward_f16", "sm_120", MORE_BLOCKS),
    ("layernorm_backward_f32", "sm_120", MORE_BLOCKS),
    ("layernorm_wide_f32", "sm_120", MORE_BLOCKS),
    ("softmax_backward_bf16", "sm_80", MORE_BLOCKS),
    ("softmax_backward_bf16", "sm_86", MORE_BLOCKS),
    ("softmax_backward_bf16", "sm_89", MORE_BLOCKS),
    ("pool_backward_f32", "sm_80", MORE_BLOCKS),
    ("gemm_nn_128_bf16", "sm_80", MORE_BLOCKS),
    ("gemm_nn_128_f16", "sm_80", MORE_BLOCKS),
    ("gemm_nn_128_f16", "sm_86", MORE_BLOCKS),
    ("gemm_nn_128_f16", "sm_89", MORE_BLOCKS),
    ("gemm_nt_64_tf32", "sm_80", MORE_BLOCKS),
    ("gemm_nt_64_tf32", "sm_86", MORE_BLOCKS),
    ("gemm_nt_64_tf32", "sm_89", MORE_BLOCKS),
    ("gemm_nn_64_bf16", "sm_120", MORE_BLOCKS),
    ("gemm_nn_32_bf16", "sm_120", MORE_BLOCKS),
    ("gemm_nn_32_f16", "sm_120", MORE_BLOCKS),
    ("gemm_nt_64_bf16", "sm_120", MORE_BLOCKS),
    ("gemm_nt_32_bf16", "sm_120", MORE_BLOCKS),
    ("gemm_nt_32_f16", "sm_120", MORE_BLOCKS),
    ("gemm_tn_32_bf16", "sm_120", MORE_BLOCKS),
    ("gemm_tn_32_f16", "sm_120", MORE_BLOCKS),
];

/// Without these spills a thread takes up to a third more registers, and fewer blocks fit.
const MORE_BLOCKS: &str = "8 to 40 bytes, outside the loop over k or once a row: ptxas trades them \
                           for one more block a multiprocessor";

/// Bytes that such a kernel may spill.
const FEW: u32 = 40;

/// What the compilers reported: source, architecture, kernel, registers, stack, spills, shared bytes.
const RESOURCES: &str = include_str!(concat!(env!("OUT_DIR"), "/resources.tsv"));

/// One line of [`RESOURCES`].
struct Resources {
    arch: &'static str,
    kernel: &'static str,
    stack: u32,
    spills: u32,
    shared: u32,
}

fn resources() -> Vec<Resources> {
    let line = |line: &'static str| {
        let fields: Vec<&str> = line.split('\t').collect();
        let number = |i: usize| fields[i].parse().expect("a number");
        let (arch, kernel) = (fields[1], fields[2]);
        Resources { arch, kernel, stack: number(4), spills: number(5), shared: number(6) }
    };
    RESOURCES.lines().skip(1).map(line).collect()
}

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn read(path: &str) -> String {
    fs::read_to_string(root().join(path)).unwrap_or_else(|e| panic!("{path}: {e}"))
}

/// Cards that ops plan for and this build has images for; says which it has not.
fn cards() -> Vec<Arch> {
    let (with, without): (Vec<Arch>, Vec<Arch>) = Arch::claimable()
        .filter_map(Arch::claim)
        .partition(|arch| !images::of(arch.machine).is_empty());
    for arch in without {
        let why = images::why_not(arch.machine).expect("no images without a reason");
        eprintln!("skipped: {}: {}; remedy: {}", arch.name, why.0, why.1);
    }
    with
}

/// True where the kernels of a file of params.h were written for a maker's cards.
fn is_written(file: &str, machine: Machine) -> bool {
    let folder = if matches!(machine, Machine::Hip { .. }) { "hip" } else { "cuda" };
    let stem = file.trim_end_matches(".cu");
    let path = |name: String| root().join("kernels").join(name);
    path(file.into()).is_file()
        || path(format!("{folder}/{file}")).is_file()
        || path(format!("{folder}/{stem}.hip")).is_file()
}

/// `params.h`: of each struct its size and the file of its kernels.
fn structs() -> BTreeMap<String, (usize, String)> {
    let (mut structs, mut file) = (BTreeMap::new(), String::new());
    for line in read("kernels/params.h").lines() {
        if let Some(name) = line.strip_prefix("// --- ") {
            file = name.split_whitespace().next().expect("a file").to_string();
        } else if let Some(rest) = line.strip_prefix("SIZE(") {
            let (name, bytes) = rest.trim_end_matches(");").split_once(", ").expect("two");
            let bytes = bytes.parse().expect("bytes");
            assert!(structs.insert(name.to_string(), (bytes, file.clone())).is_none(), "{name}");
        }
    }
    assert!(structs.len() > 10, "params.h has another form");
    structs
}

/// The struct of an op: of those whose names its own begins with, the longest.
fn struct_of<'a>(structs: &'a BTreeMap<String, (usize, String)>, op: &str) -> &'a str {
    let op = op.replace('_', "");
    let names = structs.keys().filter(|name| op.starts_with(&name.to_lowercase()));
    names.max_by_key(|name| name.len()).unwrap_or_else(|| panic!("params.h has no struct for {op}"))
}

#[test]
fn params_are_as_large_on_both_sides() {
    let structs = structs();
    let mut used = BTreeSet::new();
    for (op, bytes) in planned::ops() {
        let name = struct_of(&structs, op);
        assert_eq!(structs[name].0, bytes, "{op}: bytes of {name} in params.h");
        used.insert(name);
    }
    let unused: Vec<_> = structs.keys().filter(|name| !used.contains(name.as_str())).collect();
    assert!(unused.is_empty(), "structs of params.h that no op has: {unused:?}");
}

/// The cases and models that the tests plan with leave no op out.
#[test]
fn every_op_is_planned() {
    let mut declared = BTreeSet::new();
    for entry in fs::read_dir(root().join("src/ops")).expect("src/ops").flatten() {
        let text = fs::read_to_string(entry.path()).unwrap_or_default();
        let ops = text.split("\nop!(").skip(1);
        declared.extend(ops.filter_map(|op| Some(op.split('"').nth(1)?.to_string())));
    }
    let planned: BTreeSet<String> = planned::ops().into_keys().map(String::from).collect();
    assert!(declared.len() > 20, "ops are declared in another form: {declared:?}");
    assert_eq!(planned, declared);
}

#[test]
fn every_planned_kernel_is_in_the_images() {
    let structs = structs();
    let mut findings = BTreeSet::new();
    for arch in cards() {
        let images = images::of(arch.machine);
        let entries: BTreeSet<String> = images.iter().flat_map(|i| image::entries(i)).collect();
        for launch in planned::launches(&arch) {
            let (_, file) = &structs[struct_of(&structs, launch.op)];
            if entries.contains(&launch.kernel) {
                continue;
            }
            if is_written(file, arch.machine) {
                findings.insert(format!("{}: {} of {}", arch.name, launch.kernel, launch.op));
            } else {
                eprintln!("skipped: {}: {} (no {file} yet)", arch.name, launch.kernel);
            }
        }
    }
    let findings: Vec<String> = findings.into_iter().collect();
    assert!(
        findings.is_empty(),
        "{} kernels are missing:\n{}",
        findings.len(),
        findings.join("\n")
    );
}

/// The names that images carry are those of their entries, and no two sources have the same.
#[test]
fn images_hold_what_they_say() {
    let mut owners: BTreeMap<(&str, &str), &str> = BTreeMap::new();
    for image in images::all() {
        let place = format!("{} for {}", image.source, image.arch);
        let names: BTreeSet<String> = image.kernels.iter().map(ToString::to_string).collect();
        assert_eq!(names, image::entries(image), "{place}");
        image::check_machine(image).unwrap_or_else(|problem| panic!("{place}: {problem}"));
        for kernel in image.kernels {
            let other = owners.insert((image.arch, kernel), image.source);
            assert_eq!(other, None, "{place}: {kernel} is defined twice");
        }
    }
}

#[test]
fn nothing_spills() {
    let allowed = |row: &Resources| {
        MAY_SPILL.iter().any(|&(kernel, arch, _)| {
            let same = match kernel.strip_suffix('*') {
                Some(start) => row.kernel.starts_with(start),
                None => row.kernel == kernel,
            };
            same && (arch == "*" || arch == row.arch) && row.spills <= FEW
        })
    };
    let rows = resources();
    if rows.is_empty() {
        eprintln!("skipped: registers and spills: this build has no kernels");
    }
    let spilling = rows.iter().filter(|row| (row.spills > 0 || row.stack > 0) && !allowed(row));
    let findings: Vec<String> = spilling
        .map(|row| {
            format!(
                "{} on {}: {} spilled, stack of {} bytes",
                row.kernel, row.arch, row.spills, row.stack
            )
        })
        .collect();
    assert!(findings.is_empty(), "{} kernels:\n{}", findings.len(), findings.join("\n"));
    let idle: Vec<_> = MAY_SPILL
        .iter()
        .filter(|(kernel, ..)| {
            !rows.is_empty()
                && !rows.iter().any(|row| row.kernel.starts_with(kernel.trim_end_matches('*')))
        })
        .collect();
    assert!(idle.is_empty(), "there are no such kernels: {idle:?}");
}

/// A launch that a driver would refuse, or that would leave a kernel's bounds.
#[test]
fn launches_fit_their_kernels_and_cards() {
    let mut shared: BTreeMap<(&str, &str), u32> = BTreeMap::new();
    for row in resources() {
        shared.insert((row.arch, row.kernel), row.shared);
    }
    let bounds: BTreeMap<String, u32> =
        images::all().filter(|i| i.arch.starts_with("compute_")).flat_map(image::bounds).collect();
    for arch in Arch::claimable().filter_map(Arch::claim) {
        let images = images::of(arch.machine);
        for launch in planned::launches(&arch) {
            let place = format!("{}: {launch:?}", arch.name);
            let [x, y, z] = launch.grid;
            assert!(
                x > 0 && x < 1 << 31 && y > 0 && y < 1 << 16 && z > 0 && z < 1 << 16,
                "{place}"
            );
            assert!(launch.block <= 1024 && launch.block.is_multiple_of(arch.wave), "{place}");
            assert!(launch.block > 0, "{place}");
            let holder = images.iter().find(|i| i.kernels.contains(&launch.kernel.as_str()));
            let fixed = holder.and_then(|i| shared.get(&(i.arch, launch.kernel.as_str())));
            assert!(launch.shared + fixed.unwrap_or(&0) <= arch.shared, "{place}, {fixed:?} fixed");
            if let Some(&bound) = bounds.get(&launch.kernel) {
                assert!(launch.block <= bound, "{place}: the kernel is bounded by {bound}");
            }
        }
    }
}

/// A program beside nvcc, or on PATH.
fn tool(name: &str) -> Option<PathBuf> {
    let beside = Path::new(env!("ENGINE_NVCC")).parent().map(Path::to_path_buf);
    let path = env::var_os("PATH").unwrap_or_default();
    let mut folders: Vec<PathBuf> = beside.into_iter().chain(env::split_paths(&path)).collect();
    folders.retain(|folder| folder.is_absolute());
    folders.iter().map(|folder| folder.join(name)).find(|path| path.is_file())
}

/// What a program says about an image.
fn said(program: &Path, args: &[&str], image: &Image) -> String {
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("image");
    fs::write(&file, image.bytes).expect("written");
    let output = Command::new(program).args(args).arg(&file).output().expect("runs");
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{} of {}: {error}", program.display(), image.source);
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// Sources that use the matrix units or the copy engine have their instructions in the machine code:
/// `mma.sync` becomes HMMA, `wgmma` HGMMA and a box's copy UTMALDG, the latter on Hopper only.
#[test]
fn matrix_units_are_used() {
    let Some(nvdisasm) = tool("nvdisasm") else {
        eprintln!("skipped: matrix instructions: no nvdisasm (scripts/toolchain cuda)");
        return;
    };
    let mut checked = 0;
    for image in images::all().filter(|image| image.arch.starts_with("sm_")) {
        let text = read(&format!("kernels/{}.cu", image.source));
        for (word, instruction) in
            [("mma<", "HMMA"), ("multiply<", "HGMMA"), ("load_box(", "UTMALDG")]
        {
            if text.contains(word) {
                let machine = said(&nvdisasm, &["-c"], image);
                let place = format!("{} for {}", image.source, image.arch);
                assert!(machine.contains(instruction), "{place}: no {instruction}");
                checked += 1;
            }
        }
    }
    if checked == 0 {
        eprintln!("skipped: matrix instructions: no kernel uses mma.sync or wgmma yet");
    }
}

/// Kernels that may be launched while their predecessor runs wait for it: each has the instruction
/// (ACQBULK in machine code, `griddepcontrol.wait` in PTX). One without it reads what is not there yet.
#[test]
fn kernels_wait_for_their_predecessor() {
    let nvdisasm = tool("nvdisasm");
    if nvdisasm.is_none() {
        eprintln!("skipped: waiting in machine code: no nvdisasm (scripts/toolchain cuda)");
    }
    for image in images::all().filter(|image| image.waits()) {
        let (text, word) = match (&nvdisasm, image.arch.starts_with("compute_")) {
            (_, true) => (String::from_utf8_lossy(image.bytes).into_owned(), "griddepcontrol.wait"),
            (Some(nvdisasm), false) => (said(nvdisasm, &["-c"], image), "ACQBULK"),
            (None, false) => continue,
        };
        let waits = text.matches(word).count();
        let place = format!("{} for {}", image.source, image.arch);
        assert!(waits >= image.kernels.len(), "{place}: {waits} of {}", image.kernels.len());
    }
}

/// What AMD's runtime goes by, out of the objects' own bytes: version 4, which ROCm 5 loads, and
/// descriptors that fit what is launched. No hidden argument: none is passed.
#[test]
fn code_objects_are_what_the_runtime_expects() {
    let structs = structs();
    let shared: BTreeMap<(&str, &str), u32> =
        resources().iter().map(|row| ((row.arch, row.kernel), row.shared)).collect();
    let mut bytes = BTreeMap::new();
    for arch in cards().iter().filter(|arch| matches!(arch.machine, Machine::Hip { .. })) {
        for launch in planned::launches(arch) {
            bytes.insert(launch.kernel, structs[struct_of(&structs, launch.op)].0);
        }
    }
    for image in images::all().filter(|image| image.arch.starts_with("gfx")) {
        let notes = String::from_utf8_lossy(image.bytes);
        let version = image.bytes.windows(14).position(|part| part == b"amdhsa.version");
        let version = version.map(|at| &image.bytes[at + 14..at + 17]);
        assert_eq!(version, Some(&[0x92, 1, 1][..]), "{} for {}", image.source, image.arch);
        for word in ["hidden_", "uses_dynamic_stack"] {
            assert!(!notes.contains(word), "{} for {}: {word}", image.source, image.arch);
        }
        let undefined = image::undefined(image);
        assert!(undefined.is_empty(), "{} for {}: {undefined:?}", image.source, image.arch);
        let descriptors = image::descriptors(image);
        assert_eq!(descriptors.len(), image.kernels.len(), "{} for {}", image.source, image.arch);
        for (kernel, found) in descriptors {
            let place = format!("{kernel} for {}", image.arch);
            assert_eq!(found.shared, shared[&(image.arch, kernel.as_str())], "{place}: LDS");
            assert_eq!(found.scratch, 0, "{place}: scratch");
            let rdna = image.arch.len() == "gfx1010".len();
            assert_eq!(found.wave, if rdna { 32 } else { 64 }, "{place}: lanes of a wave");
            assert!(!rdna || !found.spread, "{place}: blocks spread over two compute units");
            if let Some(params) = bytes.get(&kernel) {
                let arguments = params.next_multiple_of(8) + size_of::<Operands>();
                assert_eq!(found.arguments as usize, arguments, "{place}: bytes of arguments");
            }
        }
    }
}

/// The code for RDNA1 is made of what that card has.
#[test]
fn rdna1_has_every_instruction() {
    // What the list is for is found.
    let bad = "\tv_dot2_f32_f16 v0, v1, v2, v3\n\tglobal_atomic_add_f32 v0, v1, s[0:1]\n\
               \tv_mov_b32_dpp v0, v1 row_bcast:15\n\tv_fma_legacy_f32 v0, v1, v2, v3\n\
               \tv_fma_mix_f32 v0, v1, v2, v3\n";
    assert_eq!(rdna1::absent(bad).len(), 4, "{:?}", rdna1::absent(bad));
    let Some(objdump) = ["llvm-objdump-19", "llvm-objdump"].into_iter().find_map(tool) else {
        eprintln!("skipped: instructions of gfx1010: no llvm-objdump (scripts/toolchain hip)");
        return;
    };
    let mut findings = BTreeSet::new();
    for image in images::all().filter(|image| image.arch == "gfx1010") {
        let code = said(&objdump, &["-d", "--no-show-raw-insn"], image);
        assert!(code.contains("s_endpgm"), "{}: no code found", image.source);
        findings
            .extend(rdna1::absent(&code).iter().map(|what| format!("{}: {what}", image.source)));
    }
    let findings: Vec<String> = findings.into_iter().collect();
    assert!(findings.is_empty(), "{} findings:\n{}", findings.len(), findings.join("\n"));
}

/// The table of predictions is what the script makes of the kernels and plans as they are. Where
/// ENGINE_RDNA_REPORT names a folder, which the script does, they are put there instead.
#[test]
fn predictions_are_of_these_kernels() {
    let images: Vec<&Image> = images::all().filter(|image| image.arch == "gfx1010").collect();
    let wanted = env::var_os("ENGINE_RDNA_REPORT").map(PathBuf::from);
    let folder = tempfile::tempdir().expect("a folder");
    let folder = wanted.as_deref().unwrap_or(folder.path());
    for image in &images {
        let name = format!("{}.co", image.source.replace('/', "_"));
        fs::write(folder.join(name), image.bytes).expect("written");
    }
    fs::write(folder.join("launches.tsv"), planned::trace_of_profile()).expect("written");
    let compiler = images::hip_compiler().unwrap_or("none");
    fs::write(folder.join("compiler.txt"), compiler).expect("written");
    if wanted.is_some() || images.is_empty() || tool("llvm-mca-19").is_none() {
        eprintln!("skipped: predictions: no code for gfx1010, or no llvm-mca-19");
        return;
    }
    let mut command = Command::new("python3");
    command.arg(root().join("scripts/rdna-report")).arg("--folder").arg(folder);
    command.arg("--check").arg(root().join("docs/rx5600xt-prediction.md"));
    match command.output() {
        Err(error) => eprintln!("skipped: predictions: no python3: {error}"),
        Ok(said) => {
            let words = String::from_utf8_lossy(&said.stderr);
            assert!(said.status.success(), "{words}");
            eprint!("{words}");
        }
    }
}

/// The metadata that AMD's runtime reads say the same as the compiler: no scratch, no spills.
#[test]
fn code_objects_need_no_scratch() {
    let Some(readelf) = ["llvm-readelf-19", "llvm-readelf"].into_iter().find_map(tool) else {
        eprintln!("skipped: metadata of code objects: no llvm-readelf (scripts/toolchain hip)");
        return;
    };
    for image in images::all().filter(|image| image.arch.starts_with("gfx")) {
        let place = format!("{} for {}", image.source, image.arch);
        let notes = said(&readelf, &["--notes"], image);
        let field = |name: &str| -> Vec<&str> {
            let values = notes.lines().filter_map(|line| line.trim().strip_prefix(name));
            values.map(str::trim).collect()
        };
        assert_eq!(field(".kernarg_segment_size:").len(), image.kernels.len(), "{place}");
        // Kernels stand in order of their symbols; the check of each name is `nothing_spills`'s.
        let may = MAY_SPILL.iter().any(|(_, arch, _)| *arch == "*" || *arch == image.arch);
        for name in [".private_segment_fixed_size:", ".vgpr_spill_count:", ".sgpr_spill_count:"] {
            assert!(
                may || field(name).iter().all(|&n| n == "0"),
                "{place}: {name} {:?}",
                field(name)
            );
        }
    }
}
