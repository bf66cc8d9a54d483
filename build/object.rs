//! One source compiled for one architecture, once for as long as nothing changes.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Mutex;
use std::time::{Duration, SystemTime};
use std::{env, fs, thread};

use xxhash_rust::xxh3::xxh3_128;

use crate::toolkit::{Target, Toolkit};
use crate::usage::{self, Usage};

/// Objects that no build has used for so long are removed.
const KEPT: Duration = Duration::from_secs(14 * 24 * 3600);

/// What is compiled, and where it goes.
pub struct Object<'a> {
    toolkit: &'a Toolkit,
    pub target: &'a Target,
    source: PathBuf,
    /// What the compiler is given: the source, or what was made from it before.
    input: PathBuf,
    pub path: PathBuf,
}

impl<'a> Object<'a> {
    /// # Errors
    /// A source or folder that cannot be read or made.
    pub fn new(
        toolkit: &'a Toolkit,
        target: &'a Target,
        source: &Path,
        out: &Path,
    ) -> Result<Self, String> {
        let mut texts = BTreeMap::new();
        collect(source, &mut texts)?;
        let environment = ["NVCC_PREPEND_FLAGS", "NVCC_APPEND_FLAGS", "NVCC_CCBIN"].map(env::var);
        let flags = (&toolkit.flags, &target.flags, target.made_from, &environment);
        let all = format!("{source:?} {} {flags:?} {texts:?}", toolkit.version);
        let folder = store(out);
        fs::create_dir_all(&folder)
            .map_err(|e| format!("{}: cannot create the folder: {e}", folder.display()))?;
        let stem = source.file_stem().unwrap_or_default().to_string_lossy();
        let key = xxh3_128(all.as_bytes());
        let name = format!("{stem}-{}-{key:032x}.{}", target.name, target.extension);
        let (source, path) = (source.to_path_buf(), folder.join(name));
        Ok(Self { toolkit, target, input: source.clone(), source, path })
    }

    /// The same, made from an object of the same source that is compiled before.
    pub fn made_from(self, common: &Object<'_>) -> Self {
        Self { input: common.path.clone(), ..self }
    }

    /// PTX: text that drivers read to a NUL.
    pub fn is_text(&self) -> bool {
        self.target.extension == "ptx"
    }

    /// "gemm", "cuda/gemm_wgmma": the source below kernels/ without its ending.
    pub fn source_name(&self) -> String {
        let name = self.source.with_extension("");
        let name = name.strip_prefix("kernels").unwrap_or(&name);
        name.display().to_string().replace('\\', "/")
    }

    /// What its kernels use, as the compiler reported.
    ///
    /// # Errors
    /// A report that cannot be read or understood.
    pub fn usages(&self) -> Result<Vec<Usage>, String> {
        let path = if self.is_text() { self.path.clone() } else { self.log() };
        let text = fs::read_to_string(&path).map_err(|e| format!("{}: {e}", path.display()))?;
        let usages = usage::parse(&text, self.target.extension);
        usages.ok_or_else(|| format!("{}: a report of another form", path.display()))
    }

    fn log(&self) -> PathBuf {
        self.path.with_extension("log")
    }

    fn compile(&self) -> Result<(), String> {
        if let Ok(file) = fs::File::options().append(true).open(&self.path)
            && self.log().exists()
        {
            // Only for KEPT; a read-only file loses nothing.
            let _ = file.set_modified(SystemTime::now());
            return Ok(());
        }
        // Another build may be making the same object: what has its name is always whole.
        let part = self.path.with_extension(format!("part{}", std::process::id()));
        let mut command = Command::new(&self.toolkit.compiler);
        command.args(&self.toolkit.flags).args(&self.target.flags);
        command.arg("-o").arg(&part).arg(&self.input);
        let failed = |e: std::io::Error| format!("{}: {e}", self.path.display());
        let said = command.output().map_err(|e| format!("{command:?}: {e}"))?;
        let report = String::from_utf8_lossy(&said.stderr);
        if !said.status.success() {
            let (name, version) = (&self.target.name, &self.toolkit.version);
            return Err(format!(
                "{}: {version} fails for {name}:\n{}{report}\n{command:?}\n  remedy: \
                 ENGINE_CUDA_ARCHS=none or ENGINE_HIP_ARCHS=none builds without the kernels of a maker",
                self.source.display(),
                String::from_utf8_lossy(&said.stdout),
            ));
        }
        fs::write(self.log(), report.as_bytes()).map_err(failed)?;
        fs::rename(&part, &self.path).map_err(failed)
    }
}

/// `kernels/` of the target folder, which cargo marks by a file; OUT_DIR where it does not.
fn store(out: &Path) -> PathBuf {
    let target = out.ancestors().skip(1).find(|folder| folder.join("CACHEDIR.TAG").is_file());
    target.unwrap_or(out).join("kernels")
}

/// The text of a file and of all that it includes by `#include "..."`, but for the emulator, which
/// is no part of device code.
fn collect(path: &Path, texts: &mut BTreeMap<PathBuf, String>) -> Result<(), String> {
    let text =
        fs::read_to_string(path).map_err(|e| format!("{}: cannot read: {e}", path.display()))?;
    let directives = text.lines().map(str::trim_start);
    let included =
        directives.filter_map(|line| line.strip_prefix("#include \"")?.split('"').next());
    let included: Vec<String> = included.map(String::from).collect();
    texts.insert(path.to_path_buf(), text);
    for name in included.iter().filter(|name| !name.contains("emulator/")) {
        let beside = path.parent().unwrap_or(Path::new("")).join(name);
        let found = [beside, Path::new("kernels").join(name)].into_iter().find(|p| p.is_file());
        let Some(found) = found.and_then(|path| path.canonicalize().ok()) else { continue };
        // A checkout elsewhere has the same objects.
        let root = env::current_dir().and_then(|root| root.canonicalize()).unwrap_or_default();
        let found = found.strip_prefix(root).unwrap_or(&found);
        if !texts.contains_key(found) {
            collect(found, texts)?;
        }
    }
    Ok(())
}

/// Compiles what is not there yet, as many at a time as cargo allows, and forgets what is old.
///
/// # Errors
/// The first failure; what had not begun by then is not tried.
pub fn compile_all<'a>(objects: impl Iterator<Item = &'a Object<'a>>) -> Result<(), String> {
    let objects: Vec<&Object<'_>> = objects.collect();
    let jobs = env::var("NUM_JOBS").ok().and_then(|jobs| jobs.parse().ok()).unwrap_or(1);
    let next = Mutex::new(objects.iter());
    let problem = Mutex::new(None);
    let take = || {
        let stop = problem.lock().is_ok_and(|problem| problem.is_some());
        next.lock().ok().filter(|_| !stop)?.next()
    };
    thread::scope(|scope| {
        for _ in 0..jobs.clamp(1, objects.len().max(1)) {
            scope.spawn(|| {
                while let Some(object) = take() {
                    if let Err(e) = object.compile()
                        && let Ok(mut problem) = problem.lock()
                    {
                        problem.get_or_insert(e);
                    }
                }
            });
        }
    });
    if let Some(folder) = objects.first().and_then(|object| object.path.parent()) {
        forget(folder);
    }
    problem.into_inner().unwrap_or(None).map_or(Ok(()), Err)
}

/// Removes objects that were not used for long; what cannot be removed stays.
fn forget(folder: &Path) {
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        let path = entry.path();
        let log = path.extension().is_some_and(|extension| extension == "log");
        let age = entry.metadata().and_then(|data| data.modified());
        let age = age.map(|time| time.elapsed().unwrap_or_default());
        if !log && age.is_ok_and(|age| age > KEPT) {
            let _ = fs::remove_file(path.with_extension("log"));
            let _ = fs::remove_file(path);
        }
    }
}
