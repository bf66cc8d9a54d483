//! What would be launched on a card: the cases of the op table and whole training steps, on a device
//! that only listens.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Display;
use std::sync::{Arc, Mutex};

use engine::backend::null::Null;
use engine::backend::{Arch, Backend, Io, Mem, MemoryUse, Op, Replay, Route, Stage};
use engine::model::{EegFormerConfig, ModelConfig, ShallowConfig};
use engine::nn::params::{Builder, Params};
use engine::ops::loss::Pointwise;
use engine::optim::Rule;
use engine::tensor::View;
use engine::train::step::{Objective, Step, StepSpec};
use engine::{DType, Result, Tape, Tensor, Var};

use crate::cases::{self, Case, Draw};

/// One launch on one card.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Launch {
    pub op: &'static str,
    pub kernel: String,
    pub grid: [u32; 3],
    pub block: u32,
    pub shared: u32,
}

#[derive(Default)]
struct Heard {
    /// Bytes of each op's parameters.
    ops: BTreeMap<&'static str, usize>,
    launches: BTreeSet<Launch>,
    /// In the order of calls: op, bytes of its operands, words of its parameters, stages.
    trace: String,
}

/// The null device with an ear.
struct Listener {
    null: Null,
    heard: Mutex<Heard>,
}

impl std::fmt::Debug for Listener {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Listener")
    }
}

impl Backend for Listener {
    fn arch(&self) -> &Arch {
        self.null.arch()
    }

    fn alloc(&self, bytes: usize, what: &dyn Display) -> Result<Mem> {
        self.null.alloc(bytes, what)
    }

    fn upload(&self, to: &View, from: &[u8]) -> Result<()> {
        self.null.upload(to, from)
    }

    fn download(&self, from: &View, to: &mut [u8]) -> Result<()> {
        self.null.download(from, to)
    }

    fn run(&self, op: Box<dyn Op>, io: Io<'_>) -> Result<()> {
        let mut heard = self.heard.lock().expect("not poisoned");
        heard.ops.insert(op.name(), op.params().len());
        let mut operands = io.inputs.iter().chain(io.outputs);
        let float = operands.find(|view| view.dtype.is_float());
        let dtype = float.map_or(DType::F32, |view| view.dtype);
        if let Route::Kernel(plan) = op.plan(self.arch(), dtype) {
            let bytes: usize = io.inputs.iter().chain(io.outputs).map(View::span_bytes).sum();
            let words: Vec<String> = op.params().chunks_exact(4).map(word).collect();
            let stages: Vec<String> = plan.stages.iter().map(stage).collect();
            let line = [op.name(), &bytes.to_string(), &words.join(","), &stages.join(";")];
            heard.trace += &(line.join("\t") + "\n");
            let other = plan.otherwise.map(|plan| plan.stages).unwrap_or_default();
            for stage in plan.stages.into_iter().chain(other) {
                heard.launches.insert(Launch {
                    op: op.name(),
                    kernel: stage.kernel,
                    grid: stage.grid,
                    block: stage.block,
                    shared: stage.shared,
                });
            }
        }
        drop(heard);
        self.null.run(op, io)
    }

    fn sync(&self) -> Result<()> {
        self.null.sync()
    }

    fn record(&self, step: &mut dyn FnMut() -> Result<()>) -> Result<Option<Replay>> {
        // What was run before is no part of it.
        self.heard.lock().expect("not poisoned").trace.clear();
        self.null.record(step)
    }

    fn replay(&self, replay: &Replay) -> Result<()> {
        self.null.replay(replay)
    }

    fn reserve(&self, planned: &MemoryUse) -> Result<()> {
        self.null.reserve(planned)
    }

    fn memory(&self) -> MemoryUse {
        self.null.memory()
    }
}

/// A word of parameters as a number.
fn word(bytes: &[u8]) -> String {
    bytemuck::pod_read_unaligned::<u32>(bytes).to_string()
}

/// Kernel, blocks, threads of a block, bytes of dynamic shared memory.
fn stage(stage: &Stage) -> String {
    let [x, y, z] = stage.grid.map(u64::from);
    format!("{}:{}:{}:{}", stage.kernel, x * y * z, stage.block, stage.shared)
}

/// The launches of one training step of the profile for the RX 5600 XT, for scripts/rdna-report.
pub fn trace_of_profile() -> String {
    let model = EegFormerConfig { d_model: 96, n_heads: 6, n_layers: 4, ..Default::default() };
    let spec = StepSpec {
        model: ModelConfig::EegFormer(model),
        batch: 8,
        accumulation: 1,
        eval_batch: 0,
        objective: Objective::Pointwise(Pointwise::Mse),
        rule: Rule::AdamW { beta1: 0.9, beta2: 0.95, epsilon: 1e-8 },
        average: false,
        dtype: DType::F32,
        compute: None,
        seed: 1,
    };
    let arch = Arch { blas: false, ..Arch::claim("gfx1010").expect("known") };
    let listener = Arc::new(Listener { null: Null::new(arch, u64::MAX), heard: Mutex::default() });
    drop(Step::new(Arc::clone(&listener) as _, spec).expect("plans"));
    let heard = listener.heard.lock().expect("not poisoned");
    heard.trace.clone()
}

const FLOATS: [DType; 3] = [DType::F32, DType::Bf16, DType::F16];

/// An op's forward and backward pass, as tests/ops.rs runs them.
fn run_case(params: &Params, case: &Case, dtype: DType) -> Result<()> {
    let backend = params.backend();
    let rng = backend.empty([4], DType::I32, "rng")?;
    let tensor = |shape: &Vec<usize>, draw: Draw| -> Result<Tensor> {
        let dtype = match draw {
            Draw::Label(_) => DType::I32,
            _ if draw.differentiated() => dtype,
            _ => DType::F32,
        };
        backend.empty(shape.as_slice(), dtype, "operand")
    };
    let mut vars = Vec::new();
    for (shape, draw) in &case.operands {
        let value = tensor(shape, *draw)?;
        vars.push(match draw.differentiated() {
            true => Var::leaf(value, tensor(shape, *draw)?),
            false => Var::constant(value),
        });
    }
    let tape = if case.training { Tape::training(params, Some(rng)) } else { Tape::frozen(params) };
    let output = (case.run)(&tape, &vars)?;
    let dy = backend.empty(*output.shape(), dtype, "dy")?;
    tape.backward_from(&output, dy)
}

/// Steps of both models, as small as a test's and as large as a profile's.
fn specs() -> Vec<StepSpec> {
    let former = |d_model, n_heads, n_layers, patch| {
        ModelConfig::EegFormer(EegFormerConfig {
            d_model,
            n_heads,
            n_layers,
            patch,
            ..EegFormerConfig::default()
        })
    };
    let shallow = ModelConfig::Shallow(ShallowConfig {
        n_channels: 129,
        window: 200,
        num_classes: 3,
        filters: 40,
        kernel: 25,
        pool: 75,
        pool_stride: 15,
        dropout: 0.5,
    });
    let adamw = Rule::AdamW { beta1: 0.9, beta2: 0.95, epsilon: 1e-8 };
    let sgd = Rule::Sgd { momentum: 0.9, nesterov: true };
    let point = Objective::Pointwise(Pointwise::Mse);
    let classes = Objective::CrossEntropy { weights: vec![1.0; 3], smoothing: 0.1 };
    let spec = |model, batch, objective: &Objective, rule, compute| StepSpec {
        model,
        batch,
        accumulation: 2,
        eval_batch: batch,
        objective: objective.clone(),
        rule,
        average: true,
        dtype: DType::F32,
        compute,
        seed: 1,
    };
    let mut specs = Vec::new();
    for compute in [None, Some(DType::Bf16), Some(DType::F16)] {
        specs.extend([
            spec(former(36, 3, 1, 10), 3, &point, sgd, compute),
            spec(former(96, 6, 2, 1), 8, &point, adamw, compute),
            spec(former(128, 8, 2, 4), 16, &point, adamw, compute),
            spec(former(512, 8, 2, 1), 512, &point, adamw, compute),
            spec(shallow.clone(), 32, &classes, adamw, compute),
        ]);
    }
    specs
}

fn listen(arch: Arch) -> Heard {
    let null = Null::new(arch, u64::MAX);
    let listener = Arc::new(Listener { null, heard: Mutex::default() });
    let backend: Arc<dyn Backend> = Arc::clone(&listener) as _;
    let params = Builder::default().build(Arc::clone(&backend), DType::F32, 0).expect("empty");
    for case in cases::table().into_iter().chain(cases::that_fill_cards()) {
        for dtype in FLOATS {
            run_case(&params, &case, dtype).unwrap_or_else(|e| panic!("{}: {e}", case.name));
        }
    }
    for spec in specs() {
        drop(Step::new(Arc::clone(&backend), spec).expect("plans"));
    }
    let mut heard = listener.heard.lock().expect("not poisoned");
    std::mem::take(&mut *heard)
}

/// Every op there is, by name, with the bytes of its parameters.
pub fn ops() -> BTreeMap<&'static str, usize> {
    listen(Arch::claim("sm_90").expect("known")).ops
}

/// What a card would launch, with the vendor's library and without, and with f32 rounded.
pub fn launches(arch: &Arch) -> BTreeSet<Launch> {
    let mut launches = BTreeSet::new();
    for (blas, tf32) in [(true, false), (false, false), (false, true)] {
        let mut arch = Arch { blas, ..arch.clone() };
        arch.wishes.tf32 = tf32;
        launches.extend(listen(arch).launches);
    }
    launches
}
