//! Training steps and single kernels on an NVIDIA card, timed by the card's own events.
//!
//! `cargo bench --bench cuda -- step` runs one group; `-- step/rtx3060/256` one row. Each line is a JSON
//! object. The peers are `benches/peers/*.py`, which print the same names. `-- products` prints the lines of
//! `benches/record/<gpu>/gemm.tsv` instead, by which `--gemm auto` chooses.

use std::sync::Arc;

use engine::backend::Backend;
use engine::backend::gpu::Gpu;
use engine::backend::gpu::cuda::{self, Cuda};
use engine::backend::gpu::driver::Driver;
use engine::backend::route::with_wishes;
use engine::config::Gemm;
use engine::data::rng::Rng;
use engine::model::{EegFormerConfig, ModelConfig};
use engine::nn::params::{Builder, Params};
use engine::ops::elementwise::Axpy;
use engine::ops::gemm::{self, After, linear};
use engine::ops::loss::Pointwise;
use engine::ops::optimizer::{AdamW, BLOCK, CONTROL, GradNorm, HYPER};
use engine::ops::{attention, layernorm, philox, spectral};
use engine::optim::{Control, Rates, Rule};
use engine::train::step::{Objective, Step, StepSpec};
use engine::{DType, Result, Tape, Tensor, Var};
use half::bf16;

/// Name, d_model, heads, layers.
const PROFILES: [(&str, usize, usize, usize); 3] =
    [("rx5600xt", 96, 6, 4), ("rtx3060", 128, 8, 6), ("rtx4090", 256, 16, 12)];
const BATCHES: [usize; 4] = [8, 32, 256, 1024];

/// A backend of its own for each row: no memory is kept between them.
fn card(gemm: Gemm) -> Arc<Gpu<Cuda>> {
    card_with(gemm, false)
}

/// The same; `tf32`: f32 may be rounded.
fn card_with(gemm: Gemm, tf32: bool) -> Arc<Gpu<Cuda>> {
    let card = Cuda::open(0, None).unwrap_or_else(|error| panic!("{error}"));
    let mut arch = with_wishes(card.arch(), gemm, &[]).expect("possible");
    arch.wishes.tf32 = tf32;
    let memory = arch.memory * 9 / 10;
    Arc::new(Gpu::new(card, arch, memory))
}

/// Median milliseconds of `f` over `runs` stretches of `inner` calls.
fn median(gpu: &Gpu<Cuda>, runs: usize, inner: usize, mut f: impl FnMut()) -> f64 {
    let driver = gpu.driver();
    f();
    let mut times: Vec<f64> = (0..runs)
        .map(|_| {
            let start = driver.stamp().expect("stamps");
            (0..inner).for_each(|_| f());
            driver.elapsed(&start, &driver.stamp().expect("stamps")).expect("passes")
        })
        .collect();
    times.sort_by(f64::total_cmp);
    times[times.len() / 2] / inner as f64
}

fn step(gpu: &Arc<Gpu<Cuda>>, profile: (&str, usize, usize, usize), batch: usize) -> Step {
    let (_, d_model, n_heads, n_layers) = profile;
    let model = EegFormerConfig { d_model, n_heads, n_layers, ..EegFormerConfig::default() };
    let (channels, window) = (model.n_channels, model.window);
    let spec = StepSpec {
        model: ModelConfig::EegFormer(model),
        batch,
        accumulation: 1,
        eval_batch: 0,
        objective: Objective::Pointwise(Pointwise::Mse),
        rule: Rule::AdamW { beta1: 0.9, beta2: 0.999, epsilon: 1e-8 },
        average: false,
        dtype: DType::F32,
        compute: Some(DType::Bf16),
        seed: 1,
    };
    let planned = Step::plan(gpu.arch(), gpu.arch().memory, &spec).expect("plans");
    gpu.reserve(&planned).expect("fits");
    let step = Step::new(Arc::clone(gpu) as Arc<dyn Backend>, spec).expect("builds");
    let mut rng = Rng::new(3, 0);
    let mut draw = |n: usize| (0..n).map(|_| rng.normal() as f32).collect::<Vec<_>>();
    step.load_windows(&draw(batch * channels * window)).expect("fits");
    step.load_targets(&draw(batch)).expect("fits");
    step
}

fn train(step: &Step, i: u64) {
    let control = Control { step: i, clip: 1.0, loss_scale: 1.0, average: 0.0 };
    let rates = |_| Rates { lr: 1e-3, decay: 0.01, trained: true };
    step.train(1, control, rates).expect("runs");
}

fn steps(wanted: &str) {
    for profile in PROFILES {
        for batch in BATCHES {
            for (mode, gemm) in [("auto", Gemm::Auto), ("native", Gemm::Native)] {
                let name = format!("step/{}/{batch}/{mode}", profile.0);
                if !name.contains(wanted) {
                    continue;
                }
                let gpu = card(gemm);
                let step = step(&gpu, profile, batch);
                let mut i = 0;
                let mut next = || {
                    i += 1;
                    train(&step, i);
                };
                (0..3).for_each(|_| next());
                let inner = if batch >= 256 { 5 } else { 20 };
                let ms = median(&gpu, 15, inner, next);
                let loss = step.loss().expect("reads");
                println!("{{\"row\": \"{name}\", \"ms\": {ms:.4}, \"loss\": {loss:.4}}}");
                if std::env::var_os("ENGINE_BENCH_OPS").is_some() && mode == "auto" {
                    print_ops(&gpu, &step);
                }
            }
        }
    }
}

/// Where the time of a step goes, op by op, each launched alone.
fn print_ops(gpu: &Gpu<Cuda>, step: &Step) {
    train(step, 90);
    gpu.timings(true).expect("starts");
    (0..3).for_each(|i| train(step, 91 + i));
    let mut sums: Vec<(&str, usize, f64)> = Vec::new();
    for timed in gpu.timings(false).expect("runs").unwrap_or_default() {
        match sums.iter_mut().find(|(op, ..)| *op == timed.op) {
            Some((_, count, ms)) => (*count, *ms) = (*count + 1, *ms + timed.ms),
            None => sums.push((timed.op, 1, timed.ms)),
        }
    }
    sums.sort_by(|a, b| b.2.total_cmp(&a.2));
    for (op, count, ms) in sums {
        println!("  {op:<24} {:>4} runs {:8.4} ms", count / 3, ms / 3.0);
    }
}

fn random(gpu: &Gpu<Cuda>, shape: &[usize], dtype: DType, seed: u64) -> Tensor {
    let mut rng = Rng::new(seed, 9);
    let n: usize = shape.iter().product();
    // A short period is random enough for timing, and quick to draw.
    let some: Vec<f32> = (0..n.min(1 << 20)).map(|_| rng.normal() as f32).collect();
    let values = some.iter().copied().cycle().take(n);
    let backend: &dyn Backend = gpu;
    match dtype {
        DType::Bf16 => {
            let values: Vec<bf16> = values.map(bf16::from_f32).collect();
            backend.tensor(shape, &values, "operand").expect("fits")
        }
        _ => backend.tensor(shape, &values.collect::<Vec<_>>(), "operand").expect("fits"),
    }
}

/// Times `f`, recorded `inner` times in one graph; forward, then forward and backward. The first of
/// `leaves` is handed over as a result of another op, as an op within a model has it: its gradient is
/// written, not added to one that is there.
fn both(
    name: &str,
    gpu: &Arc<Gpu<Cuda>>,
    leaves: &[Tensor],
    f: impl Fn(&Tape<'_>, &[Var]) -> Result<Var>,
) {
    let params: Params = Builder::default()
        .build(Arc::clone(gpu) as Arc<dyn Backend>, DType::F32, 0)
        .expect("empty");
    let backend: &dyn Backend = gpu.as_ref();
    let rng = backend.tensor([4], &philox::state(1, 1), "rng").expect("fits");
    let vars: Vec<Var> = leaves
        .iter()
        .map(|x| Var::leaf(x.clone(), backend.empty(*x.shape(), x.dtype(), "grad").expect("fits")))
        .collect();
    let inner = 20;
    for (mode, backward) in [("forward", false), ("forward+backward", true)] {
        let replay = gpu
            .record(&mut || {
                for _ in 0..inner {
                    let tape = Tape::training(&params, Some(rng.clone()));
                    let mut vars = vars.clone();
                    vars[0] = tape.push(vars[0].tensor().clone(), &[&vars[0]], |_, _| Ok(()));
                    let y = f(&tape, &vars)?;
                    if backward {
                        let dy = y.tensor().clone();
                        tape.backward_from(&y, dy)?;
                    }
                }
                Ok(())
            })
            .expect("records")
            .expect("a graph");
        let ms = median(gpu, 11, 1, || gpu.replay(&replay).expect("runs")) / f64::from(inner);
        println!("{{\"row\": \"{name}/{mode}\", \"ms\": {ms:.5}}}");
    }
}

fn attentions(wanted: &str) {
    for (batch, time, heads, d) in [
        (256, 200, 8, 16),
        (64, 1000, 8, 16),
        (32, 1024, 16, 16),
        (32, 1024, 8, 32),
        (8, 2048, 16, 64),
        (2, 8192, 8, 128),
    ] {
        let name = format!("attention/b{batch}_t{time}_h{heads}_d{d}");
        if !name.contains(wanted) {
            continue;
        }
        let gpu = card(Gemm::Auto);
        let qkv = random(&gpu, &[batch, time, 3 * heads * d], DType::Bf16, 1);
        both(&name, &gpu, &[qkv], |tape, v| attention::attention(tape, &v[0], heads));
    }
}

fn norms(wanted: &str) {
    for (rows, cols, dtype) in [
        (65_536, 256, DType::F32),
        (262_144, 128, DType::Bf16),
        (262_144, 128, DType::F32),
        (16_384, 8192, DType::Bf16),
        (51_200, 128, DType::Bf16),
    ] {
        let name = format!("layernorm/{rows}x{cols}_{}", dtype.name());
        if !name.contains(wanted) {
            continue;
        }
        let gpu = card(Gemm::Auto);
        let leaves = [
            random(&gpu, &[rows, cols], dtype, 1),
            random(&gpu, &[cols], DType::F32, 2),
            random(&gpu, &[cols], DType::F32, 3),
        ];
        both(&name, &gpu, &leaves, |t, v| layernorm::layernorm(t, &v[0], &v[1], &v[2], 1e-5));
    }
}

fn spectra(wanted: &str) {
    for (batch, time, channels) in [(64, 200, 128), (64, 1024, 256), (256, 200, 128)] {
        for dtype in [DType::F32, DType::Bf16] {
            let name = format!("spectral/b{batch}_t{time}_c{channels}_{}", dtype.name());
            if !name.contains(wanted) {
                continue;
            }
            let gpu = card(Gemm::Auto);
            let leaves = [
                random(&gpu, &[batch, time, channels], dtype, 1),
                random(&gpu, &[time / 2 + 1, channels, 2], DType::F32, 2),
            ];
            both(&name, &gpu, &leaves, |t, v| spectral::spectral(t, &v[0], &v[1]));
        }
    }
}

fn linears(wanted: &str) {
    for (m, n, k) in [
        (4096, 4096, 4096),
        (8192, 8192, 8192),
        (1024, 1024, 1024),
        (16_384, 384, 128),
        (16_384, 128, 128),
        (16_384, 512, 128),
        (16_384, 128, 512),
        (65_536, 1024, 256),
        (65_536, 256, 1024),
        (51_200, 384, 128),
    ] {
        for (mode, gemm) in [("own", Gemm::Native), ("vendor", Gemm::Vendor)] {
            let name = format!("gemm/{m}x{n}x{k}/{mode}");
            if !name.contains(wanted) {
                continue;
            }
            let gpu = card(gemm);
            let x = random(&gpu, &[m, k], DType::Bf16, 1);
            let w = random(&gpu, &[n, k], DType::Bf16, 2);
            both(&name, &gpu, &[x, w], |t, v| linear(t, &v[0], &v[1], After::default()));
        }
    }
}

/// Single products, the engine's and the vendor's.
fn products() {
    println!("layout\tdtype\tm\tn\tk\town_us\tvendor_us");
    let widths = [(128, 128), (384, 128), (512, 128), (128, 512), (1024, 256), (256, 1024)];
    let skinny =
        [1600, 6400, 51_200].into_iter().flat_map(|rows| widths.map(|(n, k)| (rows, n, k)));
    let square = [256, 512, 1024, 2048, 4096, 8192].map(|n| (n, n, n));
    let shapes: Vec<_> = skinny.chain(square).collect();
    for (kind, dtype) in [("bf16", DType::Bf16), ("tf32", DType::F32), ("f32", DType::F32)] {
        let [own, vendor] = [Gemm::Native, Gemm::Vendor].map(|wish| {
            let gpu = card_with(wish, kind == "tf32");
            // Each product takes of them what it needs.
            let operands = [1, 2, 3].map(|seed| random(&gpu, &[8192 * 8192], dtype, seed));
            (gpu, operands)
        });
        for (layout, a_t, b_t) in [("nt", false, true), ("nn", false, false), ("tn", true, false)] {
            for &(rows, n, k) in shapes.iter().filter(|shape| kind != "f32" || shape.2 < 8192) {
                // Gradients of weights: sums over all rows.
                let dims = if a_t { (n, k, rows) } else { (rows, n, k) };
                let op = gemm::Gemm::dense(dims, a_t, b_t, 0);
                let [own, vendor] = [&own, &vendor].map(|(gpu, [a, b, c])| {
                    let inner = (40_000_000_000 / (rows * n * k)).clamp(2, 40);
                    let backend: &dyn Backend = gpu.as_ref();
                    let launch = || backend.launch(op, &[a, b], &[c]);
                    let replay = gpu.record(&mut || (0..inner).try_for_each(|_| launch()));
                    let replay = replay.expect("records").expect("a graph");
                    1e3 * median(gpu, 7, 1, || gpu.replay(&replay).expect("runs")) / inner as f64
                });
                let (m, n, k) = dims;
                println!("{layout}\t{kind}\t{m}\t{n}\t{k}\t{own:.2}\t{vendor:.2}");
            }
        }
    }
}

/// The update of so many parameters, alone and with the gradients' norm and clipping before it.
fn updates(wanted: &str) {
    for n in [1_200_000, 9_500_000, 134_000_000] {
        let n = (n as usize).next_multiple_of(BLOCK);
        for clips in [false, true] {
            let name = format!("adamw/{n}/{}", if clips { "with clip" } else { "update" });
            if !name.contains(wanted) {
                continue;
            }
            let gpu = card(Gemm::Auto);
            let backend: &dyn Backend = gpu.as_ref();
            let vector = |seed| random(&gpu, &[n], DType::F32, seed);
            let (grads, params, first, second) = (vector(1), vector(2), vector(3), vector(4));
            let small =
                |values: &[f32]| backend.tensor([values.len()], values, "table").expect("fits");
            let groups =
                backend.tensor([n / BLOCK], &vec![0i32; n / BLOCK], "groups").expect("fits");
            let hyper = small(&[1e-3, 0.01, 1.0][..HYPER]);
            let control = small(&[1.0, 1.0, 0.0, 0.5, 0.5][..CONTROL]);
            let norm = small(&[1.0, 1.0]);
            let update = AdamW { n: n as u32, pad: 0, beta1: 0.9, beta2: 0.999, epsilon: 1e-8 };
            let (tables, outputs) =
                ([&grads, &groups, &hyper, &control], [&params, &first, &second]);
            let replay = gpu
                .record(&mut || {
                    (0..5).try_for_each(|_| {
                        if clips {
                            backend.launch(GradNorm { n: n as u32 }, &tables, &[&norm])?;
                        }
                        let inputs = [&grads, &groups, &hyper, &control, &norm];
                        backend.launch(update, &inputs, &outputs)
                    })
                })
                .expect("records")
                .expect("a graph");
            let ms = median(&gpu, 11, 1, || gpu.replay(&replay).expect("runs")) / 5.0;
            println!("{{\"row\": \"{name}\", \"ms\": {ms:.5}}}");
        }
    }
}

/// What the card can do at most: bytes copied, counted in both directions.
fn ceilings(wanted: &str) {
    let name = "ceiling/copy 2x256MiB";
    if !name.contains(wanted) {
        return;
    }
    let gpu = card(Gemm::Auto);
    let n = 64 << 20;
    let (from, to) = (random(&gpu, &[n], DType::F32, 1), random(&gpu, &[n], DType::F32, 2));
    let backend: &dyn Backend = gpu.as_ref();
    let ms = median(&gpu, 11, 10, || {
        backend.launch(Axpy::scaling(n, 1.0), &[&from], &[&to]).expect("runs");
    });
    println!("{{\"row\": \"{name}\", \"ms\": {ms:.5}}}");
}

fn main() {
    if !cuda::driver_is_present() {
        println!("skipped: no NVIDIA driver");
        return;
    }
    let wanted = std::env::args().skip(1).find(|a| !a.starts_with("--")).unwrap_or_default();
    if wanted == "products" {
        return products();
    }
    ceilings(&wanted);
    linears(&wanted);
    attentions(&wanted);
    norms(&wanted);
    spectra(&wanted);
    updates(&wanted);
    steps(&wanted);
}
