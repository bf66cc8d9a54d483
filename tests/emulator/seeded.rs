//! One mistake in every family of the program's own kernels, each of a kind that is easily made. What
//! runs a family is the self-test of the program's start; the emulator or the self-test must catch it.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use crate::stand_in::Build;

/// A mistake: in which files, what is replaced where, and what catches it.
struct Mistake {
    /// Kind of op, as `--route` names it.
    kind: &'static str,
    what: &'static str,
    /// How the files' names begin, below kernels/ and kernels/hip/.
    stem: &'static str,
    from: &'static str,
    to: &'static str,
    /// Which of the occurrences, counted from 0.
    at: usize,
    caught: Catch,
}

/// Who catches a mistake; the first needs the build that looks for it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Catch {
    Races,
    Addresses,
    Scheduler,
    Numbers,
}

impl Catch {
    fn words(self) -> (&'static str, &'static str) {
        match self {
            Self::Races => ("the race detector", "emulator: |: a race in "),
            Self::Addresses => {
                ("the address sanitizer", "AddressSanitizer: global-buffer-overflow")
            }
            Self::Scheduler => ("the scheduler", "emulator: |shuffle"),
            Self::Numbers => ("the self-test", "self-test: the kernels of "),
        }
    }

    fn build(self) -> Build {
        match self {
            Self::Races => Build::race(32),
            Self::Addresses => Build::asan(32),
            Self::Scheduler | Self::Numbers => Build::plain(32),
        }
    }
}

const BARRIER: &str = "a missing barrier";
const STORE: &str = "an off-by-one store";
const SHUFFLE: &str = "a divergent shuffle";

const fn barrier(kind: &'static str, stem: &'static str) -> Mistake {
    let (what, caught) = (BARRIER, Catch::Races);
    Mistake { kind, what, stem, from: "barrier();", to: ";", at: 0, caught }
}

const MISTAKES: &[Mistake] = &[
    barrier("gemm", "gemm"),
    barrier("attention", "attention"),
    barrier("spectral", "spectral"),
    barrier("conv", "conv"),
    barrier("optimizer", "optimizer"),
    barrier("pool", "reduce"),
    Mistake {
        kind: "layernorm",
        what: SHUFFLE,
        stem: "norm",
        from: "row_sums<LANES>(",
        to: "if (walk.lane != 1) row_sums<LANES>(",
        at: 0,
        caught: Catch::Scheduler,
    },
    Mistake {
        kind: "softmax",
        what: SHUFFLE,
        stem: "softmax",
        from: "row_sums<LANES>(",
        to: "if (walk.lane != 1) row_sums<LANES>(",
        at: 0,
        caught: Catch::Scheduler,
    },
    Mistake {
        kind: "loss",
        what: SHUFFLE,
        stem: "loss",
        from: "sum = block_sum<",
        to: "if (thread_x() != 1) sum = block_sum<",
        at: 0,
        caught: Catch::Scheduler,
    },
    Mistake {
        kind: "batchnorm",
        what: STORE,
        stem: "batchnorm",
        from: "memory[THREADS / WAVE];",
        to: "memory[THREADS / WAVE - 1];",
        at: 0,
        caught: Catch::Addresses,
    },
    Mistake {
        kind: "pool",
        what: STORE,
        stem: "pool",
        from: "      y[i] = ",
        to: "      y[i + 1] = ",
        at: 0,
        caught: Catch::Numbers,
    },
    // In the code that RDNA has for itself.
    Mistake {
        kind: "attention",
        what: STORE,
        stem: "attention",
        from: "store_pack(d_qkv, dk);",
        to: "store_pack(d_qkv + 1, dk);",
        at: 0,
        caught: Catch::Numbers,
    },
    Mistake {
        kind: "window",
        what: STORE,
        stem: "window",
        from: "    out[t] = ",
        to: "      out[t + 1] = ",
        at: 0,
        caught: Catch::Numbers,
    },
    Mistake {
        kind: "elementwise",
        what: STORE,
        stem: "elementwise",
        from: "T* z = output<T>(io, 2);",
        to: "T* z = output<T>(io, 2) + 1;",
        at: 0,
        caught: Catch::Numbers,
    },
];

/// What else the families above call, without a mistake, in the builds that look at one number.
const BESIDE: &[&str] = &["reduce", "patch"];

fn sources(stem: &str) -> Vec<PathBuf> {
    let kernels = Path::new(env!("CARGO_MANIFEST_DIR")).join("kernels");
    let mut found = Vec::new();
    for folder in [kernels.clone(), kernels.join("hip")] {
        for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
            let path = entry.path();
            let ending = path.extension().is_some_and(|e| e == "cu" || e == "hip");
            let name = path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
            if ending && (name == stem || name.starts_with(&format!("{stem}_"))) {
                found.push(path);
            }
        }
    }
    found.sort();
    assert!(!found.is_empty(), "no kernels/{stem}*: say in seeded.rs where they are now");
    found
}

/// Copies of a family's sources with the mistake in each of them that has a place for it.
fn with_mistake(mistake: &Mistake, folder: &Path) -> Vec<PathBuf> {
    let Mistake { kind, stem, from, to, at, .. } = mistake;
    let mut seeded = 0;
    let copies = sources(stem).into_iter().map(|path| {
        let mut text = fs::read_to_string(&path).expect("read");
        if let Some((place, _)) = text.match_indices(from).nth(*at) {
            text.replace_range(place..place + from.len(), to);
            seeded += 1;
        }
        // Includes that go up a folder are found by the compiler's search path.
        let copy = folder.join(path.file_name().expect("a name"));
        fs::write(&copy, text).expect("written");
        copy
    });
    let copies: Vec<PathBuf> = copies.collect();
    assert!(seeded > 0, "{kind}: kernels/{stem}* has no {from:?}: choose another place for it");
    copies
}

#[test]
fn a_mistake_in_any_family_is_caught() {
    let families: Vec<&str> = engine::backend::route::kinds().collect();
    let seeded: Vec<&str> = MISTAKES.iter().map(|mistake| mistake.kind).collect();
    assert!(families.iter().all(|kind| seeded.contains(kind)), "{families:?} {seeded:?}");
    let mut sets: BTreeMap<Catch, Vec<&Mistake>> = BTreeMap::new();
    for mistake in MISTAKES {
        let set = if mistake.caught == Catch::Numbers { Catch::Scheduler } else { mistake.caught };
        sets.entry(set).or_default().push(mistake);
    }
    for (set, mistakes) in sets {
        let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("seeded-{set:?}"));
        fs::create_dir_all(&folder).expect("made");
        let mut files: Vec<PathBuf> =
            mistakes.iter().flat_map(|mistake| with_mistake(mistake, &folder)).collect();
        if set == Catch::Scheduler {
            files.extend(BESIDE.iter().flat_map(|stem| sources(stem)));
        }
        let build = set.build().with_kernels("seeded", files);
        for mistake in mistakes {
            let Some(child) = build.child("family") else { return };
            let (who, words) = mistake.caught.words();
            child.env("ENGINE_EMULATOR_KIND", mistake.kind).ends_saying(words);
            eprintln!(
                "{:12} {:20} in kernels/{}*: caught by {who}",
                mistake.kind, mistake.what, mistake.stem
            );
        }
    }
}
