//! Compiles the GPU kernels into images that the program embeds (src/backend/gpu/images.rs).
//!
//! `kernels/*.cu` are compiled for NVIDIA's and for AMD's cards, `kernels/cuda/*.cu` and
//! `kernels/hip/*.hip` for those of one maker; a file whose first lines hold `// archs: 90a gfx942`
//! is compiled for these only (`gfx1*` stands for all that begin so, `cuda` and `hip` for all of a
//! maker's). An image is one source for one architecture: all are compiled side by
//! side, and only those whose text, headers, flags or compiler changed are compiled again. Objects
//! lie in `kernels/` of the target folder, by a hash of all these, so that debug and release builds
//! share them.
//!
//! Nothing here fails for want of a compiler: the program is then built without these images, with
//! the reason inside it. Variables: ENGINE_CUDA_ARCHS and ENGINE_HIP_ARCHS (a comma list, or
//! `none`), NVCC or CUDA_HOME, HIPCC or ROCM_PATH.

#[path = "build/object.rs"]
mod object;
#[path = "build/toolkit.rs"]
mod toolkit;
#[path = "build/usage.rs"]
mod usage;

use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::{env, fs, process};

use object::Object;
use toolkit::{Missing, Target, Toolkit};

/// Where kernels lie, by who makes the cards, and how their names end.
const SOURCES: [(&str, &[(&str, &str)]); 2] = [
    ("CUDA", &[("kernels", "cu"), ("kernels/cuda", "cu")]),
    ("HIP", &[("kernels", "cu"), ("kernels/hip", "hip")]),
];

fn main() {
    if let Err(problem) = build() {
        eprintln!("{problem}");
        process::exit(1);
    }
}

fn build() -> Result<(), String> {
    println!("cargo:rerun-if-changed=build.rs");
    println!("cargo:rerun-if-changed=build");
    println!("cargo:rerun-if-changed=kernels");
    let out = PathBuf::from(env::var_os("OUT_DIR").ok_or("OUT_DIR is not set: run by cargo")?);
    let toolkits = [toolkit::cuda()?, toolkit::hip()?];
    let mut all = Vec::new();
    for ((name, folders), toolkit) in SOURCES.iter().zip(&toolkits) {
        if let Ok(toolkit) = toolkit {
            println!("cargo:rerun-if-changed={}", toolkit.compiler.display());
            all.push(planned(toolkit, &name.to_lowercase(), folders, &out)?);
        } else {
            all.push(Planned::default());
        }
    }
    object::compile_all(all.iter().flat_map(|planned| &planned.common))?;
    object::compile_all(all.iter().flat_map(|planned| &planned.objects))?;
    let (mut rust, mut table) = (String::new(), String::from(usage::HEADING));
    for (((name, _), toolkit), planned) in SOURCES.iter().zip(&toolkits).zip(&all) {
        let objects = &planned.objects;
        write_family(&mut rust, &mut table, name, toolkit, objects).map_err(|e| e.to_string())?;
    }
    write(&out.join("images.rs"), &rust)?;
    write(&out.join("resources.tsv"), &table)?;
    let nvcc = toolkits[0].as_ref().map(|toolkit| toolkit.compiler.display().to_string());
    println!("cargo:rustc-env=ENGINE_NVCC={}", nvcc.unwrap_or_default());
    Ok(())
}

fn write(path: &Path, text: &str) -> Result<(), String> {
    fs::write(path, text).map_err(|e| format!("{}: cannot write: {e}", path.display()))
}

/// Every source for every architecture that it is meant for, the largest first: what takes longest
/// should not begin last. Where the toolkit has a common front end, its output comes besides.
fn planned<'a>(
    toolkit: &'a Toolkit,
    maker: &str,
    folders: &[(&str, &str)],
    out: &Path,
) -> Result<Planned<'a>, String> {
    let mut planned = Planned::default();
    for source in &sources(folders) {
        let text = fs::read_to_string(source)
            .map_err(|e| format!("{}: cannot read: {e}", source.display()))?;
        let only = text.lines().take(10).find_map(|line| line.strip_prefix("// archs:"));
        let only: Option<Vec<&str>> = only.map(|archs| archs.split_whitespace().collect());
        let for_all = only.as_ref().is_none_or(|only| only.contains(&maker));
        let is = |name: &str, asked: &str| match name.strip_suffix('*') {
            Some(start) => asked.starts_with(start),
            None => name == asked,
        };
        let named = |target: &Target| only.iter().flatten().any(|name| is(name, &target.asked));
        let common = toolkit.common.iter().filter(|_| for_all);
        let common = common.map(|common| Object::new(toolkit, common, source, out));
        let common = common.collect::<Result<Vec<_>, _>>()?;
        for target in toolkit.targets.iter().filter(|target| for_all || named(target)) {
            let object = Object::new(toolkit, target, source, out)?;
            let made_from = common.iter().find(|c| target.made_from == Some(&c.target.name));
            planned.objects.push(match made_from {
                Some(common) => object.made_from(common),
                None => object,
            });
        }
        planned.common.extend(common);
    }
    Ok(planned)
}

/// What is compiled first, and the images, which may be made from it.
#[derive(Default)]
struct Planned<'a> {
    common: Vec<Object<'a>>,
    objects: Vec<Object<'a>>,
}

fn sources(folders: &[(&str, &str)]) -> Vec<PathBuf> {
    let mut sources = Vec::new();
    for (folder, extension) in folders {
        // A folder that is not there holds no kernels.
        let entries = fs::read_dir(folder).into_iter().flatten().flatten();
        let paths = entries.map(|entry| entry.path());
        sources.extend(paths.filter(|path| path.extension().is_some_and(|e| e == *extension)));
    }
    let size = |path: &PathBuf| fs::metadata(path).map_or(0, |data| data.len());
    sources.sort_by_key(|path| (u64::MAX - size(path), path.clone()));
    sources
}

/// One constant `CUDA` or `HIP` for images.rs, and the lines of its kernels for the table.
fn write_family(
    rust: &mut String,
    table: &mut String,
    name: &str,
    toolkit: &Result<Toolkit, Missing>,
    objects: &[Object<'_>],
) -> std::result::Result<(), Box<dyn std::error::Error>> {
    let (compiler, why_not) = match toolkit {
        Ok(toolkit) => (Some(&toolkit.version), None),
        Err(reason) => (None, Some(reason)),
    };
    writeln!(rust, "const {name}: Family = Family {{")?;
    writeln!(rust, "    compiler: {compiler:?},\n    why_not: {why_not:?},\n    images: &[")?;
    for object in objects {
        let usages = object.usages()?;
        let kernels: Vec<&String> = usages.iter().map(|usage| &usage.kernel).collect();
        let (source, arch) = (object.source_name(), &object.target.name);
        writeln!(rust, "        Image {{")?;
        writeln!(rust, "            source: {source:?},\n            arch: {arch:?},")?;
        writeln!(rust, "            kernels: &{kernels:?},")?;
        let embed = if object.is_text() { "text" } else { "aligned" };
        writeln!(rust, "            bytes: {embed}!({:?}),\n        }},", object.path)?;
        for usage in &usages {
            writeln!(table, "{source}\t{arch}\t{}", usage.row())?;
        }
    }
    writeln!(rust, "    ],\n}};")?;
    Ok(())
}
