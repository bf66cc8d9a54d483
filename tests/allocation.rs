//! A recorded step asks nothing of the heap: all it works with was taken when it was recorded or in
//! its first runs.

#![allow(unsafe_code)]

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use engine::backend::cpu::Cpu;
use engine::backend::null::Null;
use engine::backend::{Arch, Backend};
use engine::data::rng::Rng;
use engine::model::{EegFormerConfig, ModelConfig, ShallowConfig};
use engine::nn::params::{Builder, Init};
use engine::ops::batchnorm::{Norm, batchnorm};
use engine::ops::elementwise::{self, Function, apply};
use engine::ops::loss::{Pointwise, pointwise};
use engine::ops::{dropout, layernorm, patch, philox, pool, positions, softmax, spectral};
use engine::optim::{Control, Optimizer, Rates, Rule};
use engine::train::step::{Objective, Step, StepSpec};
use engine::{DType, Result, Tape, Tensor, Var};

/// Requests of up to so many bytes are counted together; the last class has no end.
const CLASSES: [usize; 4] = [256, 4096, 65_536, usize::MAX];

static COUNTS: [AtomicU64; CLASSES.len()] = [const { AtomicU64::new(0) }; CLASSES.len()];

/// The system's allocator, counting.
struct Counting;

impl Counting {
    fn count(bytes: usize) {
        let class = CLASSES.iter().position(|&most| bytes <= most).unwrap_or(0);
        COUNTS[class].fetch_add(1, Ordering::Relaxed);
    }
}

// SAFETY: every call goes to the system's allocator unchanged; counting allocates nothing.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        Self::count(layout.size());
        // SAFETY: the caller keeps the contract of `GlobalAlloc::alloc`.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        // SAFETY: `at` came from `System`, with this layout.
        unsafe { System.dealloc(at, layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        Self::count(layout.size());
        // SAFETY: the caller keeps the contract of `GlobalAlloc::alloc_zeroed`.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn realloc(&self, at: *mut u8, layout: Layout, bytes: usize) -> *mut u8 {
        Self::count(bytes);
        // SAFETY: `at` came from `System`, with this layout; the caller checked `bytes`.
        unsafe { System.realloc(at, layout, bytes) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

type Counts = [u64; CLASSES.len()];

/// Runs before counting: every thread has met every op, every queue has its size.
const WARM: u64 = 100;
const RUNS: u64 = 252;

/// Requests per size class in `RUNS` calls of `f`, after `WARM` of them.
fn requests(mut f: impl FnMut()) -> Counts {
    (0..WARM).for_each(|_| f());
    let now = || COUNTS.each_ref().map(|count| count.load(Ordering::Relaxed));
    let before = now();
    (0..RUNS).for_each(|_| f());
    let after = now();
    std::array::from_fn(|i| after[i] - before[i])
}

/// Rayon's queue of calls from outside of the pool takes a block of some 1.5 KB for every 63 of
/// them, and a replay is one call.
const QUEUE_BLOCKS: u64 = RUNS.div_ceil(63) + 1;

fn random(backend: &dyn Backend, shape: &[usize], rng: &mut Rng) -> Tensor {
    let values: Vec<f32> =
        (0..shape.iter().product()).map(|_| 1.0 + 0.3 * rng.normal() as f32).collect();
    backend.tensor(shape, &values, "drawn").expect("fits")
}

/// The same elements with the last two axes' extents exchanged.
fn transposed(tape: &Tape<'_>, x: &Var) -> Result<Var> {
    elementwise::reshape(tape, x, &[x.dims()[0], x.dims()[2], x.dims()[1]])
}

/// Every kind of op without matrix products: normalisations, activations, masks, transforms,
/// pools, patches, a loss.
fn chain(tape: &Tape<'_>, v: &[Var], mean: &Tensor, var: &Tensor, y: &Tensor) -> Result<()> {
    let x = positions::add_positions(tape, &v[0], &v[1])?;
    let x = spectral::spectral(tape, &x, &v[2])?;
    let x = layernorm::layernorm(tape, &x, &v[3], &v[4], 1e-5)?;
    let x = apply(tape, Function::Gelu, &x)?;
    let x = dropout::dropout(tape, &x, 0.25)?;
    let x = softmax::softmax(tape, &x)?;
    let x = elementwise::add(tape, &x, &v[0])?;
    let running = (mean.clone(), var.clone());
    let (gamma, beta) = (v[5].clone(), v[6].clone());
    let norm = Norm { gamma, beta, running_mean: running.0, running_var: running.1 };
    let x = batchnorm(tape, &x, &norm, 1e-5, 0.1)?;
    let x = apply(tape, Function::Square, &x)?;
    let x = pool::pool(tape, &x, pool::Kind::Average, 5, 3)?;
    let x = pool::pool(tape, &x, pool::Kind::Max, 3, 2)?;
    let x = apply(tape, Function::Log, &x)?;
    // [11, 67, 5] to [11, 22, 15] and [11, 15].
    let x = pool::mean_time(tape, &patch::patchify(tape, &transposed(tape, &x)?, 3, x.dtype())?)?;
    let loss = pointwise(tape, Pointwise::Mse, &x, y)?;
    tape.backward(&loss, 1.0)
}

fn requests_of_ops(threads: usize) -> Counts {
    let cpu: Arc<dyn Backend> = Arc::new(Cpu::new(threads, 1 << 30).expect("starts"));
    let mut builder = Builder::default();
    builder.param("weight", [301, 67], Init::Normal { deviation: 1.0 });
    let params = builder.build(Arc::clone(&cpu), DType::F32, 0).expect("fits");
    let rule = Rule::AdamW { beta1: 0.9, beta2: 0.999, epsilon: 1e-8 };
    let optimizer = Optimizer::new(&params, rule, 0, true).expect("fits");
    let control = Control { step: 1, clip: 1.0, loss_scale: 1.0, average: 0.9 };
    let rates = |_| Rates { lr: 1e-3, decay: 0.1, trained: true };
    optimizer.prepare(&params, control, rates).expect("fits");
    let (batch, time, width) = (11, 67, 40);
    let mut rng = Rng::new(4, 4);
    let shapes: [&[usize]; 7] = [
        &[batch, time, width],
        &[time, width],
        &[time / 2 + 1, width, 2],
        &[width],
        &[width],
        &[time],
        &[time],
    ];
    let leaf = |shape: &&[usize]| {
        let value = random(cpu.as_ref(), shape, &mut rng);
        Var::leaf(
            value,
            cpu.tensor(*shape, &vec![0.0f32; shape.iter().product()], "d").expect("fits"),
        )
    };
    let leaves: Vec<Var> = shapes.iter().map(leaf).collect();
    let [mean, var] = [0, 1].map(|_| random(cpu.as_ref(), &[time], &mut rng));
    let y = random(cpu.as_ref(), &[batch, 15], &mut rng);
    let state = cpu.tensor([4], &philox::state(3, 1), "rng").expect("fits");
    let mut step = || {
        chain(&Tape::training(&params, Some(state.clone())), &leaves, &mean, &var, &y)?;
        optimizer.enqueue(&Tape::inference(&params))
    };
    let replay = cpu.record(&mut step).expect("fits").expect("the CPU records");
    requests(|| cpu.replay(&replay).expect("runs"))
}

fn requests_of_training(backend: Arc<dyn Backend>, model: ModelConfig, batch: usize) -> Counts {
    let spec = StepSpec {
        model,
        batch,
        accumulation: 1,
        eval_batch: 0,
        objective: Objective::Pointwise(Pointwise::Mse),
        rule: Rule::AdamW { beta1: 0.9, beta2: 0.999, epsilon: 1e-8 },
        average: true,
        dtype: DType::F32,
        compute: None,
        seed: 1,
    };
    let step = Step::new(backend, spec).expect("fits");
    let (channels, window, outputs) = step.spec().model.extents();
    let mut rng = Rng::new(6, 6);
    let mut draw = |n: usize| (0..n).map(|_| rng.normal() as f32).collect::<Vec<_>>();
    step.load_windows(&draw(batch * channels * window)).expect("fits");
    step.load_targets(&draw(batch * outputs)).expect("fits");
    let mut i = 0;
    requests(|| {
        i += 1;
        let control = Control { step: i, clip: 1.0, loss_scale: 1.0, average: 0.9 };
        step.train(1, control, |_| Rates { lr: 1e-3, decay: 0.1, trained: true }).expect("runs");
    })
}

// One test, because the counts are of the whole process.
#[test]
fn replays_allocate_nothing() {
    let [small, medium, large, huge] = requests_of_ops(1);
    eprintln!("ops without products, 1 thread, {RUNS} replays: {small} {medium} {large} {huge}");
    assert!(small + large + huge == 0 && medium <= QUEUE_BLOCKS);

    let counts = requests_of_ops(3);
    eprintln!("ops without products, 3 threads, {RUNS} replays: {counts:?}");
    // Which thread meets which op is chance: a late first meeting is not a request per step.
    assert!(counts.iter().sum::<u64>() < RUNS / 4);

    let former = ModelConfig::EegFormer(EegFormerConfig {
        n_channels: 7,
        window: 33,
        d_model: 24,
        n_heads: 3,
        n_layers: 2,
        ..EegFormerConfig::default()
    });
    let shallow =
        ModelConfig::Shallow(ShallowConfig { n_channels: 7, window: 131, ..Default::default() });
    for model in [former, shallow] {
        let arch = Arch::claim("sm_90").expect("in the table");
        let counts = requests_of_training(Arc::new(Null::new(arch, 1 << 30)), model.clone(), 3);
        eprintln!("{model:?}: tables of {RUNS} updates {counts:?}");
        assert!(counts.iter().all(|&n| n == 0), "tables of rates: {counts:?}");
        for batch in [3, 12] {
            let cpu = Arc::new(Cpu::new(1, 1 << 30).expect("starts"));
            let counts = requests_of_training(cpu, model.clone(), batch);
            eprintln!("{model:?}, batch {batch}: requests of {RUNS} updates {counts:?}");
            assert!(counts.iter().sum::<u64>() <= QUEUE_BLOCKS);
        }
    }
}
