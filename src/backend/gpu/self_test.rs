//! A card's kernels against the CPU, on small random operands, before a run relies on them.
//!
//! Kernels that end well and leave zeros behind are a known fault of cards at the edge of what their
//! maker supports; so are those that were compiled wrongly for one architecture. Every kind of op that
//! the card is to run is run once here, forward and backward, and one that gives other numbers than the
//! CPU is refused by name.

use std::sync::Arc;
use std::time::{Duration, Instant};

use half::{bf16, f16};

use crate::backend::cpu::Cpu;
use crate::backend::route::{Choice, choose};
use crate::backend::{Arch, Backend};
use crate::data::rng::Rng;
use crate::nn::params::{Builder, Init, Params};
use crate::ops::attention::attention;
use crate::ops::batchnorm::{Norm, batchnorm};
use crate::ops::conv::{Steps, conv1d};
use crate::ops::elementwise::{self, Function};
use crate::ops::filters::compose;
use crate::ops::gemm::{After, linear, matmul};
use crate::ops::layernorm::layernorm;
use crate::ops::loss::{Pointwise, cross_entropy, pointwise};
use crate::ops::patch::patchify;
use crate::ops::pool::{Kind, mean_time, pool};
use crate::ops::positions::add_positions;
use crate::ops::softmax::softmax;
use crate::ops::spectral::spectral;
use crate::ops::{dropout::dropout, philox, window};
use crate::optim::{Control, Optimizer, Rates, Rule};
use crate::tensor::Tensor;
use crate::{DType, Error, Result, Tape, Var};

/// Error relative to the norm of the CPU's numbers from which numbers are wrong: sums come in another
/// order on a card, which changes the last digits.
fn limit(dtype: DType) -> f64 {
    if dtype == DType::F32 { 1e-4 } else { 3e-2 }
}

/// How one test ended.
#[derive(Debug)]
pub struct Tested {
    /// Kind of op, as `--route` names it.
    pub kind: &'static str,
    /// What was computed.
    pub name: &'static str,
    /// Type of its activations.
    pub dtype: DType,
    /// Largest relative error among the result and the gradients; None where the card did not get so
    /// far.
    pub error: Option<f64>,
    /// What is wrong; None where nothing is.
    pub problem: Option<String>,
    /// The device's error, where it is one that ended the tests.
    pub failure: Option<Error>,
    /// Time on both machines.
    pub took: Duration,
}

/// What an operand is.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Draw {
    /// An activation, or the weight of a product.
    Activation,
    /// Any other parameter: f32 in mixed precision.
    Parameter,
    /// f32 around 1, without a gradient.
    Fixed,
    /// 0 or 1, without a gradient.
    Binary,
    /// Numbers of three classes.
    Label,
}

type Function1 = fn(&Tape<'_>, &[Var]) -> Result<Var>;

struct Case {
    kind: &'static str,
    name: &'static str,
    /// Runs in mixed precision as well.
    mixed: bool,
    operands: &'static [(&'static [usize], Draw)],
    run: Function1,
}

use Draw::{Activation, Binary, Fixed, Label, Parameter};

/// The rest depends on these, so they come first.
const POINTWISE: &[Case] = &[
    Case {
        kind: "elementwise",
        name: "sum, product and GELU",
        mixed: true,
        operands: &[(&[5, 67], Activation), (&[5, 67], Activation)],
        run: |tape, v| {
            let sum = elementwise::add(tape, &v[0], &v[1])?;
            let product = elementwise::mul(tape, &sum, &v[0])?;
            elementwise::apply(tape, Function::Gelu, &product)
        },
    },
    Case {
        kind: "elementwise",
        name: "patches, positions and dropout",
        mixed: true,
        operands: &[(&[2, 5, 18], Activation), (&[6, 15], Parameter)],
        run: |tape, v| {
            let patches = patchify(tape, &v[0], 3, v[0].dtype())?;
            dropout(tape, &add_positions(tape, &patches, &v[1])?, 0.4)
        },
    },
];

const TRANSFORMER: &[Case] = &[
    Case {
        kind: "gemm",
        name: "linear layer of odd sizes",
        mixed: true,
        operands: &[(&[33, 17], Activation), (&[65, 17], Activation), (&[65], Parameter)],
        run: |t, v| linear(t, &v[0], &v[1], After { bias: Some(&v[2]), ..After::default() }),
    },
    Case {
        kind: "gemm",
        name: "linear layer with GELU",
        mixed: true,
        operands: &[(&[72, 40], Activation), (&[136, 40], Activation), (&[136], Parameter)],
        run: |t, v| {
            let after = After { bias: Some(&v[2]), gelu: true, ..After::default() };
            linear(t, &v[0], &v[1], after)
        },
    },
    Case {
        kind: "gemm",
        name: "products of a batch",
        mixed: true,
        operands: &[(&[3, 24, 16], Activation), (&[3, 40, 16], Activation)],
        run: |tape, v| matmul(tape, &v[0], &v[1], false, true),
    },
    Case {
        kind: "attention",
        name: "attention",
        mixed: true,
        operands: &[(&[2, 33, 3 * 2 * 16], Activation)],
        run: |tape, v| attention(tape, &v[0], 2),
    },
    Case {
        kind: "attention",
        name: "attention of odd heads",
        mixed: true,
        operands: &[(&[2, 33, 3 * 3 * 5], Activation)],
        run: |tape, v| attention(tape, &v[0], 3),
    },
    Case {
        kind: "spectral",
        name: "spectral filter",
        mixed: true,
        operands: &[(&[2, 20, 5], Activation), (&[11, 5, 2], Parameter)],
        run: |tape, v| spectral(tape, &v[0], &v[1]),
    },
    Case {
        kind: "spectral",
        name: "spectral filter of a length without fast transform",
        mixed: true,
        operands: &[(&[2, 22, 3], Activation), (&[12, 3, 2], Parameter)],
        run: |tape, v| spectral(tape, &v[0], &v[1]),
    },
    Case {
        kind: "layernorm",
        name: "layer norm",
        mixed: true,
        operands: &[(&[13, 96], Activation), (&[96], Parameter), (&[96], Parameter)],
        run: |tape, v| layernorm(tape, &v[0], &v[1], &v[2], 1e-5),
    },
    Case {
        kind: "layernorm",
        name: "layer norm of odd rows",
        mixed: true,
        operands: &[(&[9, 33], Activation), (&[33], Parameter), (&[33], Parameter)],
        run: |tape, v| layernorm(tape, &v[0], &v[1], &v[2], 1e-5),
    },
    Case {
        kind: "softmax",
        name: "softmax",
        mixed: true,
        operands: &[(&[5, 40], Activation)],
        run: |tape, v| softmax(tape, &v[0]),
    },
    Case {
        kind: "softmax",
        name: "softmax of odd rows",
        mixed: true,
        operands: &[(&[5, 33], Activation)],
        run: |tape, v| softmax(tape, &v[0]),
    },
    Case {
        kind: "pool",
        name: "mean over time",
        mixed: true,
        operands: &[(&[3, 17, 8], Activation)],
        run: |tape, v| mean_time(tape, &v[0]),
    },
];

const CONVOLUTION: &[Case] = &[
    Case {
        kind: "window",
        name: "windows of recordings",
        mixed: false,
        operands: &[(&[5], Fixed), (&[3, 5, 90], Parameter)],
        run: |tape, v| {
            let backend = tape.backend();
            // One recording of 5 channels and 3 tiles; windows of it cross their edges.
            let codes: Vec<i32> =
                (0..5 * 3 * window::TILE as i32 / 2).map(|i| i * 61_861).collect();
            let samples = backend.tensor([codes.len()], &codes, "samples of the self-test")?;
            let mut table = Vec::new();
            for i in 0..3 {
                let source = window::Source {
                    block: 0,
                    scales: 0,
                    stored: 5,
                    start: 40 * i,
                    shift: 11 * i,
                    reversed: i == 1,
                    factor: 1e-3,
                    mask: (7, 3 * i),
                };
                window::describe(&mut table, &source, (0..5).map(|c| (c != i).then_some(4 - c)));
            }
            let table = backend.tensor([3, window::HEAD + 5], &table, "table of the self-test")?;
            let windows = tape.empty([3, 5, 90], v[0].dtype(), "windows of the self-test")?;
            window::gather(backend, (&samples, v[0].tensor(), &table), 3, &windows)?;
            elementwise::mul(tape, &Var::constant(windows), &v[1])
        },
    },
    Case {
        kind: "conv",
        name: "composed convolution",
        mixed: false,
        operands: &[
            (&[3, 7], Parameter),
            (&[3], Parameter),
            (&[4, 3, 5], Parameter),
            (&[2, 5, 31], Parameter),
        ],
        run: |tape, v| {
            let (w, b) = compose(tape, &v[0], &v[1], &v[2])?;
            conv1d(tape, &v[3], &w, Some(&b), Steps::default())
        },
    },
    Case {
        kind: "batchnorm",
        name: "batch norm",
        mixed: false,
        operands: &[
            (&[4, 5, 9], Parameter),
            (&[5], Parameter),
            (&[5], Parameter),
            (&[5], Fixed),
            (&[5], Fixed),
        ],
        run: |tape, v| {
            let norm = Norm {
                gamma: v[1].clone(),
                beta: v[2].clone(),
                running_mean: v[3].tensor().clone(),
                running_var: v[4].tensor().clone(),
            };
            batchnorm(tape, &v[0], &norm, 1e-5, 0.1)
        },
    },
    Case {
        kind: "pool",
        name: "mean pool",
        mixed: false,
        operands: &[(&[2, 3, 23], Parameter)],
        run: |tape, v| pool(tape, &v[0], Kind::Average, 5, 3),
    },
    Case {
        kind: "loss",
        name: "squared error",
        mixed: false,
        operands: &[(&[17, 1], Parameter), (&[17, 1], Fixed)],
        run: |tape, v| pointwise(tape, Pointwise::Mse, &v[0], v[1].tensor()),
    },
    Case {
        kind: "loss",
        name: "log loss of two classes",
        mixed: false,
        operands: &[(&[17, 1], Parameter), (&[17, 1], Binary)],
        run: |tape, v| {
            let kind = Pointwise::BceWithLogits { positive_weight: 2.5 };
            pointwise(tape, kind, &v[0], v[1].tensor())
        },
    },
    Case {
        kind: "loss",
        name: "cross-entropy",
        mixed: false,
        operands: &[(&[11, 3], Parameter), (&[11], Label), (&[3], Fixed)],
        run: |t, v| cross_entropy(t, &v[0], v[1].tensor(), v[2].tensor(), 0.1),
    },
];

/// Tests every kind of op that `device` is to run, in f32 and, where `compute` is a 16-bit type, the
/// ops of mixed precision in that too. An error of the device ends the tests.
///
/// # Errors
/// [`Error::Device`] where the CPU's threads cannot be started; [`Error::OutOfMemory`].
pub fn run(device: &Arc<dyn Backend>, compute: Option<DType>) -> Result<Vec<Tested>> {
    let cpu: Arc<dyn Backend> = Arc::new(Cpu::new(1, u64::MAX)?);
    let empty = |on: &Arc<dyn Backend>| Builder::default().build(Arc::clone(on), DType::F32, 0);
    let (reference, card) = (empty(&cpu)?, empty(device)?);
    let mut all = Vec::new();
    let is_here = |kind: &str| choose(kind, device.arch()) != Choice::Host;
    for dtype in std::iter::once(DType::F32).chain(compute) {
        let cases = POINTWISE.iter().chain(TRANSFORMER).chain(CONVOLUTION);
        for case in cases.filter(|case| is_here(case.kind)) {
            if dtype != DType::F32 && !case.mixed {
                continue;
            }
            let test = |params: &Params| outcome(params, case, dtype);
            all.push(compared((case.kind, case.name, dtype), || test(&reference), || test(&card)));
            if all.last().is_some_and(|last| last.failure.is_some()) {
                return Ok(all);
            }
        }
    }
    if is_here("optimizer") {
        let adamw = Rule::AdamW { beta1: 0.9, beta2: 0.95, epsilon: 1e-8 };
        let sgd = Rule::Sgd { momentum: 0.9, nesterov: true };
        for (name, rule) in [("AdamW", adamw), ("gradient descent", sgd)] {
            let what = ("optimizer", name, DType::F32);
            all.push(compared(what, || updated(&cpu, rule), || updated(device, rule)));
        }
    }
    Ok(all)
}

/// Refuses a card whose tests found something wrong.
///
/// # Errors
/// [`Error::Device`] naming the kinds of ops, each with what is wrong with it; the device's own error
/// where that ended the tests.
pub fn check(arch: &Arch, mut tests: Vec<Tested>) -> Result<()> {
    if let Some(last) = tests.last_mut()
        && let Some(failure) = last.failure.take()
    {
        return Err(match failure {
            Error::Device { device, problem, remedy } => {
                let problem = format!("self-test of {} ({}): {problem}", last.kind, last.name);
                Error::Device { device, problem, remedy }
            }
            other => other,
        });
    }
    let problem =
        |test: &Tested| Some((test.kind, format!("{} ({})", test.name, test.problem.as_ref()?)));
    let found: Vec<(&str, String)> = tests.iter().filter_map(problem).collect();
    let Some((first, _)) = found.first() else { return Ok(()) };
    let mut kinds: Vec<&str> = found.iter().map(|(kind, _)| *kind).collect();
    kinds.dedup();
    let what: Vec<String> = found.iter().map(|(kind, what)| format!("{kind}: {what}")).collect();
    let native = match arch.blas && *first == "gemm" {
        true => " (--gemm native, if these are the library's)",
        false => "",
    };
    Err(Error::Device {
        device: arch.name.clone(),
        problem: format!(
            "self-test: the kernels of {} do not compute what the CPU does: {}",
            kinds.join(", "),
            what.join("; ")
        ),
        remedy: format!(
            "--route {} takes them to the CPU{native}; `engine devices --report` writes a file that \
             helps us mend it",
            kinds.iter().map(|kind| format!("{kind}=cpu")).collect::<Vec<_>>().join(","),
        ),
    })
}

fn compared(
    (kind, name, dtype): (&'static str, &'static str, DType),
    reference: impl FnOnce() -> Result<Vec<Vec<f64>>>,
    device: impl FnOnce() -> Result<Vec<Vec<f64>>>,
) -> Tested {
    let start = Instant::now();
    let both = reference().and_then(|exact| Ok((exact, device()?)));
    let (error, problem) = match both {
        Ok((exact, found)) => {
            let parts = exact.iter().zip(&found);
            let wrong = parts.clone().enumerate().find_map(|(i, (exact, found))| {
                let words = wrong(exact, found, limit(dtype))?;
                let part = if i == 0 { "result".into() } else { format!("gradient {i}") };
                Some(format!("{part} {words}"))
            });
            let largest = parts.map(|(exact, found)| distance(exact, found));
            (Some(largest.fold(0.0, |a, b| if a >= b { a } else { b })), wrong)
        }
        Err(error) => {
            let (problem, took) = (Some(error.to_string()), start.elapsed());
            return Tested { kind, name, dtype, error: None, problem, failure: Some(error), took };
        }
    };
    Tested { kind, name, dtype, error, problem, failure: None, took: start.elapsed() }
}

/// Norm of the difference relative to that of `exact`.
fn distance(exact: &[f64], found: &[f64]) -> f64 {
    let norm = |x: &mut dyn Iterator<Item = f64>| x.map(|x| x * x).sum::<f64>().sqrt();
    let difference = norm(&mut exact.iter().zip(found).map(|(a, b)| a - b));
    difference / norm(&mut exact.iter().copied()).max(1e-3)
}

/// What is wrong with `found`, in words.
fn wrong(exact: &[f64], found: &[f64], limit: f64) -> Option<String> {
    let error = distance(exact, found);
    if error < limit {
        return None;
    }
    if found.iter().any(|x| !x.is_finite()) {
        let count = found.iter().filter(|x| !x.is_finite()).count();
        return Some(format!("has {count} of {} elements that are no numbers", found.len()));
    }
    if found.iter().all(|&x| x == 0.0) {
        return Some("is all zeros".into());
    }
    Some(format!("is off by {error:.1e} of its size, {limit:.0e} is allowed"))
}

/// The numbers of an operand, the same on every machine.
fn values(draw: Draw, n: usize, rng: &mut Rng) -> Vec<f64> {
    let one = |rng: &mut Rng| match draw {
        Activation | Parameter => rng.normal(),
        Fixed => rng.range(0.5, 2.0),
        Binary => f64::from(rng.uniform() < 0.4),
        Label => rng.below(3) as f64,
    };
    (0..n).map(|_| f64::from(one(rng) as f32)).collect()
}

fn upload(params: &Params, shape: &[usize], values: &[f64], dtype: DType) -> Result<Tensor> {
    let backend = params.backend();
    let name = "operand of the self-test";
    let each = |f: &dyn Fn(f64) -> f32| values.iter().map(|&x| f(x)).collect::<Vec<f32>>();
    match dtype {
        DType::I32 => {
            let whole: Vec<i32> = values.iter().map(|&x| x as i32).collect();
            backend.tensor(shape, &whole, name)
        }
        DType::Bf16 => {
            let short: Vec<bf16> = values.iter().map(|&x| bf16::from_f64(x)).collect();
            backend.tensor(shape, &short, name)
        }
        DType::F16 => {
            let short: Vec<f16> = values.iter().map(|&x| f16::from_f64(x)).collect();
            backend.tensor(shape, &short, name)
        }
        _ => backend.tensor(shape, &each(&|x| x as f32), name),
    }
}

fn read(params: &Params, x: &Tensor) -> Result<Vec<f64>> {
    let backend = params.backend();
    Ok(match x.dtype() {
        DType::Bf16 => backend.read::<bf16>(x)?.into_iter().map(f64::from).collect(),
        DType::F16 => backend.read::<f16>(x)?.into_iter().map(f64::from).collect(),
        _ => backend.read::<f32>(x)?.into_iter().map(f64::from).collect(),
    })
}

/// Result of a case and the gradients of its operands.
fn outcome(params: &Params, case: &Case, dtype: DType) -> Result<Vec<Vec<f64>>> {
    let mut rng = Rng::new(2026, case.name.len() as u64);
    let state = params.backend().tensor([philox::STATE_WORDS], &philox::state(5, 1), "rng")?;
    let (mut vars, mut leaves) = (Vec::new(), Vec::new());
    for &(shape, draw) in case.operands {
        let n: usize = shape.iter().product();
        let own = match draw {
            Activation => dtype,
            Label => DType::I32,
            _ => DType::F32,
        };
        let value = upload(params, shape, &values(draw, n, &mut rng), own)?;
        vars.push(match draw {
            Activation | Parameter => {
                let grad = upload(params, shape, &vec![0.0; n], own)?;
                leaves.push(grad.clone());
                Var::leaf(value, grad)
            }
            _ => Var::constant(value),
        });
    }
    let tape = Tape::training(params, Some(state));
    let output = (case.run)(&tape, &vars)?;
    let dy = values(Activation, output.tensor().numel(), &mut rng);
    let dy = upload(params, output.dims(), &dy, output.dtype())?;
    tape.backward_from(&output, dy)?;
    let mut all = vec![read(params, output.tensor())?];
    for grad in &leaves {
        all.push(read(params, grad)?);
    }
    Ok(all)
}

/// Weights, their average and the gradient's norm after two updates.
fn updated(backend: &Arc<dyn Backend>, rule: Rule) -> Result<Vec<Vec<f64>>> {
    let mut builder = Builder::default();
    builder.param("weight", [7, 30], Init::Normal { deviation: 1.0 });
    builder.param("bias", [5], Init::Normal { deviation: 1.0 });
    let params = builder.build(Arc::clone(backend), DType::F32, 3)?;
    let optimizer = Optimizer::new(&params, rule, 0, true)?;
    let tape = Tape::inference(&params);
    let mut rng = Rng::new(2026, 77);
    for step in 1..=2 {
        // What pads a parameter to whole blocks has no gradient.
        params.write_floats(params.grads(), &vec![0.0; params.grads().numel()])?;
        for id in params.ids() {
            let Some(grad) = params.grad(id) else { continue };
            params.write_floats(&grad, &values(Activation, grad.numel(), &mut rng))?;
        }
        let control = Control { step, clip: 1.0, loss_scale: 2.0, average: 0.5 };
        let rates = |_| Rates { lr: 0.01, decay: 0.1, trained: true };
        optimizer.prepare(&params, control, rates)?;
        optimizer.enqueue(&tape)?;
    }
    let mut all = vec![read(&params, &params.trained_values()?)?];
    for (_, array) in optimizer.arrays() {
        all.push(read(&params, array)?);
    }
    all.push(vec![optimizer.norm(&params)?]);
    Ok(all)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backend::route;

    /// A card that only listens returns zeros: every kind must be found wrong.
    #[test]
    fn zeros_are_refused_in_every_kind() {
        let arch = Arch::claim("gfx1100").expect("known");
        let null = crate::backend::null::Null::new(arch.clone(), 1 << 40);
        let device: Arc<dyn Backend> = Arc::new(null);
        let tests = run(&device, Some(DType::Bf16)).expect("runs");
        for kind in route::kinds() {
            let of: Vec<&Tested> = tests.iter().filter(|test| test.kind == kind).collect();
            assert!(!of.is_empty(), "{kind} is not tested");
            assert!(of.iter().all(|test| test.problem.is_some()), "{of:?}");
        }
        let text = check(&arch, tests).expect_err("zeros").to_string();
        for kind in route::kinds() {
            assert!(text.contains(&format!("{kind}=cpu")), "{kind}: {text}");
        }
        assert!(text.contains("is all zeros"), "{text}");
    }

    #[test]
    fn the_cpu_agrees_with_itself_and_hosts_are_left_out() {
        let cpu: Arc<dyn Backend> = Arc::new(Cpu::new(1, 1 << 30).expect("starts"));
        assert!(run(&cpu, None).expect("runs").is_empty());
        for case in POINTWISE.iter().chain(TRANSFORMER).chain(CONVOLUTION) {
            let params = Builder::default().build(Arc::clone(&cpu), DType::F32, 0).expect("empty");
            let found = outcome(&params, case, DType::F32).expect(case.name);
            assert!(found.iter().flatten().any(|&x| x != 0.0), "{}", case.name);
        }
    }

    #[test]
    fn what_is_wrong_has_words() {
        let exact = [1.0, -2.0, 3.0];
        assert_eq!(wrong(&exact, &[1.0, -2.0, 3.00001], 1e-4), None);
        let words = |found: &[f64]| wrong(&exact, found, 1e-4).expect("wrong");
        assert!(words(&[0.0; 3]).contains("zeros"));
        assert!(words(&[1.0, f64::NAN, 3.0]).contains("1 of 3"));
        assert!(words(&[1.0, -2.0, 3.5]).contains("off by"));
    }
}
