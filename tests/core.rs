//! The recorded step as a whole: what the planner promises, how a card would be driven, that the
//! same seed gives the same bytes, and what one update may and may not change.

use std::collections::BTreeMap;
use std::sync::Arc;

use engine::backend::cpu::Cpu;
use engine::backend::null::{Launch, Null};
use engine::backend::{Arch, Backend, MemoryUse, Route};
use engine::data::rng::Rng;
use engine::model::{EegFormerConfig, ModelConfig, ShallowConfig};
use engine::nn::params::{Builder, Part};
use engine::ops::dropout::dropout;
use engine::ops::elementwise::Fill;
use engine::ops::loss::Pointwise;
use engine::ops::philox;
use engine::optim::{Control, Rates, Rule};
use engine::train::step::{Objective, Step, StepSpec};
use engine::{DType, Error, Tape, Var};

const ADAMW: Rule = Rule::AdamW { beta1: 0.9, beta2: 0.999, epsilon: 1e-8 };
const DESCENT: Rule = Rule::Sgd { momentum: 0.0, nesterov: false };
const ROOM: u64 = 1 << 30;

fn eegformer() -> EegFormerConfig {
    EegFormerConfig {
        n_channels: 5,
        window: 27,
        num_classes: 3,
        d_model: 12,
        n_heads: 3,
        n_layers: 2,
        patch: 2,
        dropout: 0.2,
        n_spectral: 1,
        recompute: false,
    }
}

fn shallow() -> ShallowConfig {
    ShallowConfig {
        n_channels: 7,
        window: 61,
        num_classes: 3,
        filters: 5,
        kernel: 9,
        pool: 13,
        pool_stride: 5,
        dropout: 0.3,
    }
}

fn spec(model: ModelConfig) -> StepSpec {
    StepSpec {
        model,
        batch: 3,
        accumulation: 1,
        eval_batch: 2,
        objective: Objective::Pointwise(Pointwise::Mse),
        rule: ADAMW,
        average: false,
        dtype: DType::F32,
        compute: None,
        seed: 7,
    }
}

fn former(change: impl FnOnce(&mut EegFormerConfig)) -> StepSpec {
    let mut config = eegformer();
    change(&mut config);
    spec(ModelConfig::EegFormer(config))
}

fn cpu(threads: usize, limit: u64) -> Arc<dyn Backend> {
    Arc::new(Cpu::new(threads, limit).expect("starts"))
}

fn make(spec: &StepSpec, threads: usize) -> Step {
    Step::new(cpu(threads, ROOM), spec.clone()).expect("fits")
}

/// Fresh windows and targets for one update.
fn load(step: &Step, rng: &mut Rng) {
    let (channels, window, outputs) = step.spec().model.extents();
    let mut draw = |n: usize| (0..n).map(|_| rng.normal() as f32).collect::<Vec<_>>();
    step.load_windows(&draw(step.rows() * channels * window)).expect("fits");
    step.load_targets(&draw(step.rows() * outputs)).expect("fits");
}

fn control(step: u64) -> Control {
    Control { step, clip: 1.0, loss_scale: 1.0, average: 0.9 }
}

fn rates(_: Part) -> Rates {
    Rates { lr: 1e-2, decay: 0.1, trained: true }
}

/// Trains on random windows and gives every parameter's bits.
fn bits_after(spec: &StepSpec, threads: usize, seed: u64, updates: u64) -> Vec<u32> {
    let step = make(spec, threads);
    let mut rng = Rng::new(99, 1);
    for i in 1..=updates {
        load(&step, &mut rng);
        step.train(seed, control(i), rates).expect("runs");
    }
    bits(&step)
}

fn bits(step: &Step) -> Vec<u32> {
    let values = step.params().read_floats(step.params().values()).expect("reads");
    assert!(values.iter().all(|x| x.is_finite()));
    values.into_iter().map(f32::to_bits).collect()
}

fn close(found: &[f64], want: &[f64], limit: f64, what: &str) {
    assert_eq!(found.len(), want.len(), "{what}");
    for (i, (found, want)) in found.iter().zip(want).enumerate() {
        let error = (found - want).abs() / want.abs().max(1.0);
        assert!(error < limit, "{what} {i}: {found} for {want}");
    }
}

fn wide(step: &Step, tensor: &engine::Tensor) -> Vec<f64> {
    match tensor.dtype() {
        DType::F64 => step.params().backend().read::<f64>(tensor).expect("reads"),
        _ => step.params().read_floats(tensor).expect("reads").iter().map(|&x| x.into()).collect(),
    }
}

fn planned_specs() -> Vec<StepSpec> {
    let shallow = || spec(ModelConfig::Shallow(shallow()));
    let cross_entropy = Objective::CrossEntropy { weights: vec![1.0, 0.5, 2.0], smoothing: 0.1 };
    vec![
        former(|_| ()),
        former(|c| (c.recompute, c.n_layers) = (true, 5)),
        StepSpec { accumulation: 3, average: true, ..former(|c| c.patch = 1) },
        StepSpec { rule: DESCENT, eval_batch: 0, ..former(|c| c.n_spectral = 2) },
        StepSpec { dtype: DType::F64, eval_batch: 17, ..former(|c| c.n_spectral = 0) },
        StepSpec { objective: cross_entropy, batch: 1, ..former(|c| c.n_layers = 0) },
        StepSpec { accumulation: 3, ..shallow() },
        StepSpec { dtype: DType::F64, average: true, rule: DESCENT, ..shallow() },
    ]
}

fn plan(spec: &StepSpec, arch: &str) -> MemoryUse {
    Step::plan(&Arch::claim(arch).expect("in the table"), ROOM, spec).expect("fits")
}

#[test]
fn a_plan_is_what_the_step_takes() {
    for spec in planned_specs() {
        let planned = Step::plan(cpu(2, ROOM).arch(), ROOM, &spec).expect("fits");
        assert!(planned.held == 0 && planned.step == 0, "the planner's step was given back");
        // A card holds the same, and its kernels' workspaces besides.
        for arch in Arch::claimable() {
            let card = plan(&spec, arch);
            assert!(card.step_peak >= planned.step_peak, "{arch} needs less: {spec:?}");
            assert!(card.held_peak >= planned.held_peak, "{arch} holds less: {spec:?}");
        }
        for reserved in [true, false] {
            let cpu = cpu(2, ROOM);
            if reserved {
                cpu.reserve(&planned).expect("fits");
            }
            let step = Step::new(Arc::clone(&cpu), spec.clone()).expect("fits");
            let made = cpu.memory();
            // Cross-entropy reads targets as class numbers, so draws are not for it.
            if let Objective::Pointwise(_) = spec.objective {
                load(&step, &mut Rng::new(5, 5));
                step.train(1, control(1), rates).expect("runs");
                assert_eq!(cpu.memory(), made, "training takes nothing that recording did not");
            }
            drop(step);
            assert_eq!(cpu.memory(), planned, "reserved {reserved}: {spec:?}");
        }
    }
}

#[test]
fn recomputation_lowers_the_peak() {
    let deep = |recompute| former(|c| (c.recompute, c.n_layers) = (recompute, 6));
    let (kept, again) = (plan(&deep(false), "sm_90"), plan(&deep(true), "sm_90"));
    assert!(2 * again.step_peak < kept.step_peak, "{} of {}", again.step_peak, kept.step_peak);
    assert_eq!(again.held_peak, kept.held_peak);
}

#[test]
fn a_plan_is_the_least_limit_that_works() {
    let arch = cpu(2, ROOM).arch().clone();
    for spec in planned_specs() {
        let planned = Step::plan(&arch, ROOM, &spec).expect("fits");
        let (limit, less) = (planned.peak(), planned.peak() - 256);
        assert_eq!(Step::plan(&arch, limit, &spec).expect("fits"), planned);
        let exact = cpu(2, limit);
        exact.reserve(&planned).expect("fits");
        Step::new(exact, spec.clone()).expect("the planned bytes are enough");
        assert!(matches!(cpu(2, less).reserve(&planned), Err(Error::OutOfMemory { .. })));
        let refusals = [
            Step::plan(&arch, less, &spec).map(|_| ()),
            Step::new(cpu(2, less), spec.clone()).map(|_| ()),
        ];
        for refusal in refusals {
            let Err(Error::OutOfMemory { what, requested, held, capacity, .. }) = refusal else {
                panic!("one block less is enough: {spec:?}")
            };
            let (name, shape) = what.split_once(' ').expect("a name and a shape");
            assert!(!name.is_empty() && shape.contains('['), "{what}");
            assert!(held + requested > capacity && capacity == less, "{what}");
        }
    }
}

/// Launches of one update.
fn launches(arch: &str, spec: StepSpec) -> Vec<Launch> {
    let null = Arc::new(Null::new(Arch::claim(arch).expect("in the table"), ROOM));
    let backend = Arc::clone(&null) as Arc<dyn Backend>;
    let mut step = Step::new(backend, StepSpec { eval_batch: 0, ..spec }).expect("fits");
    null.take_log();
    step.record().expect("fits");
    null.take_log()
}

#[test]
fn every_op_has_a_route_on_every_card() {
    for name in Arch::claimable() {
        let arch = Arch::claim(name).expect("in the table");
        for spec in planned_specs() {
            let dtype = spec.dtype.name();
            let mut gemms = 0;
            for launch in launches(name, spec) {
                let gemm = launch.op == "gemm";
                gemms += usize::from(gemm);
                match &launch.route {
                    Route::Host => {
                        let spectral = launch.op.starts_with("spectral");
                        assert!(arch.is_rdna1() && spectral, "{name}: {} on the host", launch.op);
                    }
                    Route::Blas => assert!(gemm && !arch.is_rdna1(), "{name}: {}", launch.op),
                    Route::Kernel(plan) => {
                        assert!(!plan.stages.is_empty(), "{name}: {plan:?}");
                        for stage in &plan.stages {
                            let kernel = &stage.kernel;
                            assert!(kernel.starts_with(launch.op), "{name}: {kernel}");
                            assert!(kernel.ends_with(dtype), "{name}: {kernel}");
                            assert!(stage.grid.iter().all(|&n| n > 0), "{name}: {stage:?}");
                            assert!((32..=1024).contains(&stage.block), "{name}: {stage:?}");
                            assert!(stage.block % arch.wave == 0, "{name}: {stage:?}");
                            assert!(stage.shared <= arch.shared, "{name}: {stage:?}");
                        }
                        let spectral = launch.op.starts_with("spectral");
                        assert!(!(spectral && arch.is_rdna1()), "{name}: {plan:?}");
                    }
                }
            }
            assert!(gemms > 0, "{name}: a model without products");
        }
    }
}

fn counts(spec: StepSpec) -> BTreeMap<&'static str, usize> {
    let mut counts = BTreeMap::new();
    for launch in launches("sm_90", spec) {
        *counts.entry(launch.op).or_default() += 1;
    }
    counts
}

/// A launch more is a fusion lost; a launch less wants a new number here.
#[test]
fn launches_of_one_update() {
    let small = counts(former(|c| c.n_layers = 1));
    let expected = [
        ("adamw", 1),
        ("add_table", 1),
        ("attention", 1),
        ("attention_backward", 1),
        ("axpy", 1),
        ("column_sums", 1),
        ("dropout", 2),
        ("fill", 3),
        ("gemm", 17),
        ("grad_norm", 1),
        ("layernorm", 3),
        ("layernorm_backward", 3),
        ("layernorm_params", 3),
        ("mean_time", 2),
        ("patchify", 1),
        ("point_loss", 1),
        ("point_loss_backward", 1),
        ("spectral", 1),
        ("spectral_grad", 1),
    ];
    assert_eq!(small, BTreeMap::from(expected), "eegformer of one layer");
    let expected = [
        ("adamw", 1),
        ("axpy", 3),
        ("batchnorm", 1),
        ("batchnorm_backward", 1),
        ("batchnorm_stats", 1),
        ("batchnorm_sums", 1),
        ("compose_filters", 1),
        ("compose_filters_backward", 1),
        ("conv1d", 1),
        ("conv1d_bias", 1),
        ("conv1d_weight", 1),
        ("dropout", 2),
        ("fill", 6),
        ("gemm", 3),
        ("grad_norm", 1),
        ("point_loss", 1),
        ("point_loss_backward", 1),
        ("pool", 1),
        ("pool_backward", 1),
        ("unary", 2),
        ("unary_backward", 2),
    ];
    let small = counts(spec(ModelConfig::Shallow(shallow())));
    assert_eq!(small, BTreeMap::from(expected), "shallow");
}

#[test]
fn the_same_seed_gives_the_same_bytes_on_any_number_of_threads() {
    // Large enough that every op cuts its work into several pieces.
    let large = former(|c| {
        (c.n_channels, c.window, c.d_model, c.n_heads, c.patch) = (19, 131, 48, 4, 1);
    });
    let filters = ShallowConfig { n_channels: 19, window: 301, filters: 13, ..shallow() };
    for base in [large, spec(ModelConfig::Shallow(filters))] {
        let spec = StepSpec { batch: 5, accumulation: 2, eval_batch: 0, ..base };
        let want = bits_after(&spec, 1, 42, 20);
        for threads in [1, 2, 2, 5, 5] {
            assert!(bits_after(&spec, threads, 42, 20) == want, "{threads} threads: {spec:?}");
        }
        assert!(bits_after(&spec, 2, 43, 20) != want, "another seed drops other elements");
        let other = StepSpec { seed: 8, ..spec };
        assert!(bits_after(&other, 2, 42, 20) != want, "another seed draws other weights");
    }
}

#[test]
fn recomputation_repeats_dropout_bit_for_bit() {
    for accumulation in [1, 3] {
        let run = |recompute| {
            let spec = former(|c| (c.recompute, c.n_layers) = (recompute, 3));
            bits_after(&StepSpec { accumulation, ..spec }, 2, 42, 6)
        };
        assert!(run(true) == run(false), "{accumulation} passes");
    }
}

#[test]
fn masks_are_philox_of_seed_step_stream_and_index() {
    let params = Builder::default().build(cpu(2, ROOM), DType::F32, 0).expect("empty");
    let backend = params.backend();
    let (seed, step, probability) = (0x9876_5432_1234_5678u64, (7u64 << 32) + 5, 0.3f32);
    let rng = backend.tensor([4], &philox::state(seed, step), "rng").expect("fits");
    let n = 70_001;
    let ones = backend.tensor([n], &vec![1.0f32; n], "ones").expect("fits");
    let tape = Tape::training(&params, Some(rng));
    tape.streams_from(11);
    for stream in [11, 12] {
        let dropped = dropout(&tape, &Var::constant(ones.clone()), probability).expect("runs");
        let found = backend.read::<f32>(dropped.tensor()).expect("reads");
        for (i, found) in found.into_iter().enumerate() {
            let counter = [i as u32 / 4, stream, step as u32, (step >> 32) as u32];
            let word = philox::block(counter, [seed as u32, (seed >> 32) as u32])[i % 4];
            let kept = f64::from(word) / f64::from(u32::MAX) >= f64::from(probability);
            assert_eq!(found, if kept { 1.0 / 0.7 } else { 0.0 }, "stream {stream} at {i}");
        }
    }
}

/// Gradients of one update on `passes` copies of the same windows.
fn gradient_of_copies(dropout: f32, passes: usize, at: u64) -> Vec<f64> {
    let spec = former(|c| c.dropout = dropout);
    let step = make(&StepSpec { accumulation: passes, dtype: DType::F64, ..spec }, 2);
    let (mut rng, (channels, window, outputs)) = (Rng::new(3, 3), step.spec().model.extents());
    let mut draw = |n: usize| -> Vec<f32> {
        let one: Vec<f32> = (0..n * step.spec().batch).map(|_| rng.normal() as f32).collect();
        one.repeat(passes)
    };
    step.load_windows(&draw(channels * window)).expect("fits");
    step.load_targets(&draw(outputs)).expect("fits");
    step.train(42, control(at), rates).expect("runs");
    wide(&step, step.params().grads())
}

fn apart(a: &[f64], b: &[f64]) -> f64 {
    let square = |x: f64| x * x;
    let norm: f64 = b.iter().map(|&b| square(b)).sum();
    (a.iter().zip(b).map(|(a, b)| square(a - b)).sum::<f64>() / norm).sqrt()
}

#[test]
fn every_pass_and_every_step_has_masks_of_its_own() {
    let still = gradient_of_copies(0.0, 1, 1);
    assert!(apart(&gradient_of_copies(0.0, 3, 1), &still) < 1e-6, "copies have one gradient");
    assert!(apart(&gradient_of_copies(0.0, 1, 2), &still) == 0.0);
    let one = gradient_of_copies(0.2, 1, 1);
    assert!(apart(&gradient_of_copies(0.2, 1, 1), &one) == 0.0);
    assert!(apart(&gradient_of_copies(0.2, 2, 1), &one) > 0.05, "passes share a mask");
    assert!(apart(&gradient_of_copies(0.2, 1, 2), &one) > 0.05, "steps share a mask");
}

#[test]
fn two_passes_of_four_are_one_of_eight() {
    for (dtype, rule, limit) in [(DType::F32, DESCENT, 1e-6), (DType::F64, ADAMW, 1e-6)] {
        let run = |batch, accumulation| {
            let base = former(|c| c.dropout = 0.0);
            let step = make(&StepSpec { batch, accumulation, dtype, rule, ..base }, 2);
            let mut rng = Rng::new(8, 8);
            let mut losses = Vec::new();
            for i in 1..=4 {
                load(&step, &mut rng);
                step.train(0, control(i), rates).expect("runs");
                losses.push(step.loss().expect("reads"));
            }
            (wide(&step, step.params().values()), losses)
        };
        let (whole, losses) = run(8, 1);
        for (batch, accumulation) in [(4, 2), (2, 4), (1, 8)] {
            let (parts, sums) = run(batch, accumulation);
            close(&parts, &whole, limit, &format!("{accumulation} passes, parameter"));
            close(&sums, &losses, limit, &format!("{accumulation} passes, loss"));
        }
    }
}

/// Which parts have a parameter that one update changed.
fn moved(step: &Step, before: &[f64]) -> BTreeMap<Part, bool> {
    let (params, after) = (step.params(), wide(step, step.params().values()));
    let mut moved = BTreeMap::new();
    for id in params.ids() {
        let range = params.offset(id)..params.offset(id) + params.spec(id).shape.numel();
        *moved.entry(params.spec(id).part).or_default() |= before[range.clone()] != after[range];
    }
    moved
}

#[test]
fn frozen_parts_stay() {
    use Part::{Embedding, Head, Layer};
    let all = [Embedding, Layer(0), Layer(1), Head];
    let sets: [&[Part]; 5] = [&[], &[Embedding], &[Embedding, Layer(0), Layer(1)], &[Head], &all];
    for (rule, recompute) in [(ADAMW, false), (ADAMW, true), (DESCENT, false)] {
        let mut step = make(&StepSpec { rule, ..former(|c| c.recompute = recompute) }, 2);
        for (i, frozen) in sets.iter().enumerate() {
            step.freeze(|part| frozen.contains(&part)).expect("fits");
            load(&step, &mut Rng::new(13, i as u64));
            let before = wide(&step, step.params().values());
            let trained = |part: Part| Rates { trained: !frozen.contains(&part), ..rates(part) };
            step.train(1, control(i as u64 + 1), trained).expect("runs");
            let want = all.map(|part| (part, !frozen.contains(&part)));
            assert_eq!(moved(&step, &before), BTreeMap::from(want), "{rule:?} {recompute}");
        }
    }
}

#[test]
fn each_part_moves_at_its_own_rate() {
    let spec = StepSpec { rule: DESCENT, dtype: DType::F64, ..former(|_| ()) };
    let step = make(&spec, 2);
    load(&step, &mut Rng::new(21, 1));
    let before = wide(&step, step.params().values());
    let lr = |part| match part {
        Part::Embedding => 0.0,
        Part::Layer(i) => 0.01 * f64::from(i + 1),
        Part::Head => 0.5,
    };
    let own = |part| Rates { lr: lr(part), decay: 0.25, trained: true };
    step.train(1, Control { clip: 0.0, ..control(1) }, own).expect("runs");
    let (after, grads) = (wide(&step, step.params().values()), wide(&step, step.params().grads()));
    for id in step.params().ids() {
        let spec = step.params().spec(id);
        let decay = if spec.decay { 0.25 } else { 0.0 };
        for i in step.params().offset(id)..step.params().offset(id) + spec.shape.numel() {
            let want = before[i] - lr(spec.part) * (grads[i] + decay * before[i]);
            assert!((after[i] - want).abs() < 1e-12, "{} {i}", spec.name);
        }
    }
    assert!(step.params().specs().iter().any(|s| s.decay && s.part == Part::Head));
}

#[test]
fn averages_follow_the_weights() {
    for rule in [ADAMW, DESCENT] {
        let spec = StepSpec { rule, dtype: DType::F64, average: true, ..former(|_| ()) };
        let step = make(&spec, 2);
        let weights = || wide(&step, &step.params().trained_values().expect("in range"));
        let (mut mean, mut rng) = (weights(), Rng::new(31, 1));
        for i in 1..=7 {
            load(&step, &mut rng);
            let average = 0.5 + 0.05 * i as f64;
            step.train(1, Control { average, ..control(i) }, rates).expect("runs");
            for (mean, weight) in mean.iter_mut().zip(weights()) {
                *mean = average * *mean + (1.0 - average) * weight;
            }
        }
        let found = wide(&step, step.optimizer().average().expect("kept"));
        close(&found, &mean, 1e-12, "average");
        assert!(apart(&found, &weights()) > 1e-4, "an average is not the last weights");
    }
}

/// Parameters and optimizer state, by name.
fn state(step: &Step) -> Vec<(&'static str, Vec<f64>)> {
    let arrays = step.optimizer().arrays().map(|(name, tensor)| (name, wide(step, tensor)));
    let values = ("parameters", wide(step, step.params().values()));
    arrays.chain([values]).collect()
}

#[test]
fn one_bad_sample_changes_nothing() {
    for (bad, model) in [
        (f32::NAN, ModelConfig::EegFormer(eegformer())),
        (f32::INFINITY, ModelConfig::EegFormer(eegformer())),
        (f32::NAN, ModelConfig::Shallow(shallow())),
    ] {
        for rule in [ADAMW, DESCENT] {
            let step = make(&StepSpec { rule, average: true, ..spec(model.clone()) }, 2);
            let mut rng = Rng::new(17, 1);
            load(&step, &mut rng);
            step.train(1, control(1), rates).expect("runs");
            assert_eq!(step.find_not_finite().expect("reads"), None);
            let before = state(&step);
            let (channels, window, _) = step.spec().model.extents();
            let mut windows: Vec<f32> =
                (0..step.rows() * channels * window).map(|_| rng.normal() as f32).collect();
            windows[rng.below(window / 2)] = bad;
            step.load_windows(&windows).expect("fits");
            step.train(1, control(2), rates).expect("runs");
            assert!(!step.optimizer().norm(step.params()).expect("reads").is_finite());
            for ((name, after), (_, before)) in state(&step).iter().zip(&before) {
                assert!(after == before, "{name} of {model:?} by {rule:?}");
            }
            let name = step.find_not_finite().expect("reads").expect("there is one");
            let name = name.strip_prefix("gradient of ").expect("weights are finite");
            assert!(step.params().find(name).is_some(), "{name}");
            load(&step, &mut rng);
            step.train(1, control(2), rates).expect("runs");
            assert_eq!(step.find_not_finite().expect("reads"), None);
            assert!(state(&step) != before, "training goes on");
        }
    }
}

#[test]
fn nothing_leaves_a_recording() {
    let cpu = cpu(2, ROOM);
    let mut kept = None;
    let leaked = cpu.record(&mut || {
        kept = Some(cpu.empty([3, 5], DType::F32, "kept")?);
        Ok(())
    });
    assert!(matches!(leaked, Err(Error::Shape { op: "record", .. })), "{leaked:?}");
    drop(kept);
    let nested = cpu.record(&mut || cpu.record(&mut || Ok(())).map(|_| ()));
    assert!(matches!(nested, Err(Error::Shape { op: "record", .. })), "{nested:?}");
    let fill = cpu.tensor([7], &[1.0f32; 7], "filled").expect("fits");
    let fine = cpu.record(&mut || {
        drop(cpu.empty([3, 5], DType::F32, "dropped")?);
        cpu.launch(Fill::new(7, 2.5), &[], &[&fill])
    });
    let replay = fine.expect("nothing leaks").expect("the CPU records");
    assert_eq!(cpu.read::<f32>(&fill).expect("reads"), [1.0; 7], "recording runs nothing");
    cpu.replay(&replay).expect("runs");
    assert_eq!(cpu.read::<f32>(&fill).expect("reads"), [2.5; 7]);
}

#[test]
fn a_replay_outlives_other_allocations() {
    let run = |disturb: bool| {
        let spec = former(|_| ());
        let cpu = cpu(2, ROOM);
        let step = Step::new(Arc::clone(&cpu), spec.clone()).expect("fits");
        let mut rng = Rng::new(77, 1);
        let mut others = Vec::new();
        for i in 1..=5 {
            if disturb {
                // Larger than a chunk at the third time, and of another recording at the fourth.
                let n = if i == 3 { 9 << 20 } else { 1000 + i as usize };
                others.push(cpu.tensor([n], &vec![f32::NAN; n], "other").expect("fits"));
                others.truncate(2);
            }
            if disturb && i == 4 {
                let other = Step::new(Arc::clone(&cpu), spec.clone()).expect("fits");
                load(&other, &mut Rng::new(1, 1));
                other.train(5, control(1), rates).expect("runs");
            }
            load(&step, &mut rng);
            step.train(1, control(i), rates).expect("runs");
        }
        bits(&step)
    };
    assert!(run(true) == run(false));
}
