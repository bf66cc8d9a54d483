//! Which of the ways an op can run is preferred on which machine, and why: the one table that the
//! ops' plans ask and `engine devices` prints.

use std::fmt;

use super::{Arch, Machine, Route, measured};
use crate::config::{Gemm, Route as Wish};
use crate::{Error, Result};

/// A way to run an op: a [`Route`] without its geometry.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Choice {
    /// A kernel of the engine's own.
    Kernel,
    /// The vendor's matrix product: cuBLAS or hipBLAS, never hipBLASLt.
    Blas,
    /// The CPU.
    Host,
}

impl Choice {
    /// The choice that a route took.
    pub fn of(route: &Route) -> Self {
        match route {
            Route::Kernel(_) => Self::Kernel,
            Route::Blas => Self::Blas,
            Route::Host => Self::Host,
        }
    }
}

impl fmt::Display for Choice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Kernel => "kernel",
            Self::Blas => "blas",
            Self::Host => "cpu",
        })
    }
}

/// Where one kind of op runs.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct Preference {
    /// The kind of op, as in `--route`: "gemm", "spectral".
    pub op: &'static str,
    /// How it runs.
    pub choice: Choice,
    /// Why.
    pub reason: String,
}

/// Kinds of ops, each with the names of its ops. A kind is routed as one.
const KINDS: &[(&str, &[&str])] = &[
    ("gemm", &["gemm"]),
    ("attention", &["attention", "attention_backward"]),
    ("spectral", &["spectral", "spectral_grad"]),
    ("layernorm", &["layernorm", "layernorm_backward", "layernorm_params", "layernorm_both"]),
    ("batchnorm", &["batchnorm", "batchnorm_stats", "batchnorm_sums", "batchnorm_backward"]),
    ("softmax", &["softmax", "softmax_backward"]),
    (
        "conv",
        &[
            "conv1d",
            "conv1d_input",
            "conv1d_weight",
            "conv1d_bias",
            "compose_filters",
            "compose_filters_backward",
        ],
    ),
    ("pool", &["pool", "pool_backward", "mean_time"]),
    (
        "elementwise",
        &[
            "patchify",
            "add_table",
            "fill",
            "axpy",
            "binary",
            "unary",
            "unary_backward",
            "dropout",
            "column_sums",
        ],
    ),
    ("window", &["window_gather"]),
    ("loss", &["point_loss", "point_loss_backward", "cross_entropy", "cross_entropy_backward"]),
    ("optimizer", &["grad_norm", "adamw", "sgd"]),
];

/// One line of the table.
struct Rule {
    /// None: every kind.
    op: Option<&'static str>,
    applies: fn(&Arch) -> bool,
    choice: Choice,
    reason: &'static str,
}

/// The first line that applies counts; the last applies always.
const RULES: &[Rule] = &[
    Rule {
        op: None,
        applies: |arch| arch.machine == Machine::Cpu,
        choice: Choice::Host,
        reason: "the only device of a CPU run",
    },
    Rule {
        op: Some("gemm"),
        applies: |arch| arch.is_rdna1() && arch.blas && arch.wishes.gemm == Gemm::Vendor,
        choice: Choice::Blas,
        reason: "--gemm vendor: this machine's rocBLAS has files for the card",
    },
    Rule {
        op: Some("gemm"),
        applies: Arch::is_rdna1,
        choice: Choice::Kernel,
        reason: "rocBLAS has no code for RDNA1 and aborts the process that asks",
    },
    Rule {
        op: Some("gemm"),
        applies: measured::covers,
        choice: Choice::Blas,
        reason: "cuBLAS where it had the nearest measured product in less time; else a kernel",
    },
    Rule {
        op: Some("gemm"),
        applies: |arch| matches!(arch.machine, Machine::Cuda { .. }),
        choice: Choice::Blas,
        reason: "cuBLAS, where its library is present: nothing was measured on such cards",
    },
    Rule {
        op: Some("gemm"),
        applies: |arch| matches!(arch.machine, Machine::Hip { .. }),
        choice: Choice::Blas,
        reason: "hipBLAS, where it is present with code for the card; else a kernel",
    },
    Rule {
        op: Some("spectral"),
        applies: Arch::is_rdna1,
        choice: Choice::Host,
        reason: "GPU FFTs hung the systems of RX 5600 XT owners",
    },
    Rule { op: None, applies: |_| true, choice: Choice::Kernel, reason: "written for it" },
];

/// The kinds of ops that `--route` can name.
pub fn kinds() -> impl Iterator<Item = &'static str> {
    KINDS.iter().map(|&(kind, _)| kind)
}

/// The kind that an op of this name ("spectral_grad") belongs to.
pub fn kind_of(op: &str) -> Option<&'static str> {
    KINDS.iter().find(|(_, ops)| ops.contains(&op)).map(|&(kind, _)| kind)
}

/// What the user wants instead of what the table says: `--gemm`, `--route`, and TF32.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Wishes {
    gemm: Gemm,
    /// f32 products may round their operands to TF32 where the card has it.
    pub tf32: bool,
    /// Kinds on the CPU, one bit each in the order of the table.
    host: u32,
    /// Kinds on the card.
    device: u32,
}

impl Wishes {
    /// Products are to be the vendor's.
    pub fn wants_vendor(self) -> bool {
        self.gemm == Gemm::Vendor
    }

    fn of(self, kind: &str) -> Option<Choice> {
        let bit = 1 << KINDS.iter().position(|&(name, _)| name == kind)?;
        match (self.host & bit != 0, self.device & bit != 0) {
            (true, _) => Some(Choice::Host),
            (_, true) => Some(Choice::Kernel),
            _ => None,
        }
    }
}

/// What is in force for an op, by its name; the CPU for a name that has no kind.
pub fn choose_op(op: &str, arch: &Arch) -> Choice {
    kind_of(op).map_or(Choice::Host, |kind| choose(kind, arch))
}

/// What is in force for a kind of op.
pub fn choose(kind: &str, arch: &Arch) -> Choice {
    find(kind, arch).0
}

fn find(kind: &str, arch: &Arch) -> (Choice, String) {
    let fits = |rule: &&Rule| rule.op.is_none_or(|op| op == kind) && (rule.applies)(arch);
    let found = RULES.iter().find(fits);
    let (mut choice, mut reason) =
        found.map_or((Choice::Host, String::new()), |rule| (rule.choice, rule.reason.into()));
    if choice == Choice::Blas && (!arch.blas || arch.wishes.gemm == Gemm::Native) {
        choice = Choice::Kernel;
        reason = match arch.blas {
            true => "--gemm native".into(),
            false => "the vendor's library is not on this machine".into(),
        };
    }
    match arch.wishes.of(kind) {
        // A wish for what is so anyway has the better reason.
        Some(Choice::Host) if choice == Choice::Host => (choice, reason),
        Some(Choice::Host) => (Choice::Host, format!("--route {kind}=cpu")),
        Some(_) if choice == Choice::Host => (Choice::Kernel, format!("--route {kind}=gpu")),
        Some(_) => (choice, format!("--route {kind}=gpu")),
        None => (choice, reason),
    }
}

/// The table for one machine: every kind of op once.
pub fn routes(arch: &Arch) -> Vec<Preference> {
    let preference = |op| {
        let (choice, reason) = find(op, arch);
        Preference { op, choice, reason }
    };
    kinds().map(preference).collect()
}

/// `arch` with the user's wishes: `--gemm`, and `--route` on top of it.
///
/// # Errors
/// [`Error::Input`] naming the flag for an op or device there is not, and for a wish that the
/// machine cannot fulfil.
pub fn with_wishes(arch: &Arch, gemm: Gemm, wishes: &[Wish]) -> Result<Arch> {
    check(wishes)?;
    let mut arch = arch.clone();
    arch.wishes.gemm = gemm;
    let (choice, reason) = find("gemm", &arch);
    if gemm == Gemm::Vendor && choice != Choice::Blas {
        let problem = format!("not on {}: {reason}", arch.name);
        let remedy = "give --gemm auto, or native: the engine's own products";
        return Err(Error::input("--gemm vendor", problem, remedy));
    }
    for wish in wishes {
        let bit = KINDS.iter().position(|&(name, _)| name == wish.op).map_or(0, |i| 1 << i);
        if wish.device == "cpu" {
            arch.wishes.host |= bit;
        } else if arch.machine == Machine::Cpu {
            let flag = format!("--route {}={}", wish.op, wish.device);
            let remedy = "leave the flag away, or train on a GPU (--device)";
            return Err(Error::input(flag, "a CPU run has no GPU", remedy));
        } else {
            arch.wishes.device |= bit;
        }
    }
    Ok(arch)
}

/// Checks the names in `--route op=device`, whatever the machine.
///
/// # Errors
/// [`Error::Input`] with the ops or devices there are.
pub fn check(wishes: &[Wish]) -> Result<()> {
    for wish in wishes {
        let flag = format!("--route {}={}", wish.op, wish.device);
        if !kinds().any(|kind| kind == wish.op) {
            let remedy = match kind_of(&wish.op) {
                Some(kind) => format!("it is routed as a part of `{kind}`"),
                None => format!("the ops are {}", kinds().collect::<Vec<_>>().join(", ")),
            };
            return Err(Error::input(flag, format!("no op `{}` is routed", wish.op), remedy));
        }
        if !["cpu", "gpu"].contains(&wish.device.as_str()) {
            let problem = format!("there is no device `{}`", wish.device);
            return Err(Error::input(flag, problem, "the devices are cpu and gpu"));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::DType;
    use crate::backend::Backend;
    use crate::backend::null::Null;
    use crate::model::{EegFormerConfig, ModelConfig, ShallowConfig};
    use crate::ops::loss::Pointwise;
    use crate::optim::Rule as Update;
    use crate::train::step::{Objective, Step, StepSpec};
    use std::sync::Arc;

    fn wish(op: &str, device: &str) -> Vec<Wish> {
        vec![Wish { op: op.to_string(), device: device.to_string() }]
    }

    fn of(all: &[Preference], op: &str) -> Choice {
        all.iter().find(|p| p.op == op).expect("in the table").choice
    }

    fn cpu() -> Arch {
        Arch { machine: Machine::Cpu, name: "cpu".into(), ..Arch::claim("sm_90").expect("known") }
    }

    fn specs() -> Vec<StepSpec> {
        let size = |n_spectral| EegFormerConfig {
            n_channels: 7,
            window: 60,
            d_model: 24,
            n_heads: 3,
            n_layers: 2,
            patch: 3,
            n_spectral,
            ..EegFormerConfig::default()
        };
        let shallow = ShallowConfig {
            n_channels: 5,
            window: 110,
            num_classes: 3,
            ..ShallowConfig::default()
        };
        let of = |model, objective, rule| StepSpec {
            model,
            batch: 3,
            accumulation: 2,
            eval_batch: 5,
            objective,
            rule,
            average: true,
            dtype: DType::F32,
            compute: None,
            seed: 9,
        };
        let adamw = Update::AdamW { beta1: 0.9, beta2: 0.95, epsilon: 1e-8 };
        let classes = Objective::CrossEntropy { weights: vec![1.0, 2.0, 0.5], smoothing: 0.1 };
        vec![
            of(ModelConfig::EegFormer(size(1)), Objective::Pointwise(Pointwise::Mse), adamw),
            of(
                ModelConfig::Shallow(shallow),
                classes,
                Update::Sgd { momentum: 0.9, nesterov: true },
            ),
        ]
    }

    /// What the ops plan on every machine is what the table says, and every op is in the table.
    #[test]
    fn plans_follow_the_table() {
        let archs = Arch::claimable().map(|name| Arch::claim(name).expect("claimable"));
        for arch in archs.chain([cpu()]) {
            for spec in specs() {
                let null = Arc::new(Null::new(arch.clone(), 1 << 40));
                let step = Step::new(Arc::clone(&null) as Arc<dyn Backend>, spec);
                drop(step.expect("plans"));
                let log = null.take_log();
                assert!(log.len() > 50);
                for launch in log {
                    let kind = kind_of(launch.op);
                    let kind = kind.unwrap_or_else(|| panic!("{} has no kind", launch.op));
                    let (choice, wanted) = (Choice::of(&launch.route), choose(kind, &arch));
                    // Where the vendor's product is preferred, what it cannot do is a kernel's.
                    let falls_back = wanted == Choice::Blas && choice == Choice::Kernel;
                    assert!(choice == wanted || falls_back, "{} on {}", launch.op, arch.name);
                }
            }
        }
    }

    #[test]
    fn every_kind_is_routed_once_and_no_op_twice() {
        let names: Vec<&str> = KINDS.iter().flat_map(|&(_, ops)| ops.iter().copied()).collect();
        let distinct: std::collections::HashSet<&&str> = names.iter().collect();
        assert_eq!(distinct.len(), names.len());
        for rule in RULES {
            assert!(rule.op.is_none_or(|op| kinds().any(|kind| kind == op)), "{:?}", rule.op);
        }
        assert_eq!(routes(&cpu()).len(), KINDS.len());
    }

    #[test]
    fn wishes_replace_preferences() {
        let rdna1 = Arch::claim("gfx1010").expect("known");
        let hopper = Arch::claim("sm_90").expect("known");
        assert_eq!(of(&routes(&rdna1), "spectral"), Choice::Host);
        // Where rocBLAS' files for such a card were seen, the user may have it.
        let with_files = Arch { blas: true, ..rdna1.clone() };
        assert_eq!(of(&routes(&with_files), "gemm"), Choice::Kernel);
        let all = routes(&with_wishes(&with_files, Gemm::Vendor, &[]).expect("possible"));
        assert_eq!(of(&all, "gemm"), Choice::Blas);
        let routes_with = |arch, gemm, wishes: &[Wish]| {
            routes(&with_wishes(arch, gemm, wishes).expect("possible"))
        };
        let all = routes_with(&rdna1, Gemm::Auto, &wish("spectral", "gpu"));
        assert_eq!(of(&all, "spectral"), Choice::Kernel);
        assert!(all.iter().any(|p| p.reason == "--route spectral=gpu"));
        let all = routes_with(&hopper, Gemm::Native, &wish("attention", "cpu"));
        assert_eq!((of(&all, "gemm"), of(&all, "attention")), (Choice::Kernel, Choice::Host));
        // A wish for the GPU leaves the better of its two ways.
        let all = routes_with(&hopper, Gemm::Vendor, &wish("gemm", "gpu"));
        assert_eq!(of(&all, "gemm"), Choice::Blas);
    }

    #[test]
    fn impossible_wishes_are_refused_with_a_remedy() {
        let (rdna1, cpu) = (Arch::claim("gfx1010").expect("known"), cpu());
        for (arch, gemm, wishes, parts) in [
            (&rdna1, Gemm::Auto, wish("fft", "cpu"), ["--route fft=cpu", "gemm, attention"]),
            (&rdna1, Gemm::Auto, wish("conv1d", "cpu"), ["--route conv1d=cpu", "`conv`"]),
            (&rdna1, Gemm::Auto, wish("conv", "npu"), ["`npu`", "cpu and gpu"]),
            (&rdna1, Gemm::Vendor, Vec::new(), ["--gemm vendor", "rocBLAS"]),
            (&cpu, Gemm::Vendor, Vec::new(), ["--gemm vendor", "cpu"]),
            (&cpu, Gemm::Auto, wish("gemm", "gpu"), ["--route gemm=gpu", "no GPU"]),
        ] {
            let error = with_wishes(arch, gemm, &wishes).expect_err("impossible");
            assert_eq!(error.exit_code(), 2);
            let text = error.to_string();
            assert!(parts.iter().all(|part| text.contains(part)), "{text}");
        }
    }
}
