//! What a batch costs: random 2 s windows of 129 channels at 100 Hz out of the cache, one at a time
//! and in batches of 64, and what preparing a minute of 129 channels at 500 Hz costs.

use std::hint::black_box;
use std::path::Path;
use std::sync::atomic::AtomicBool;

use criterion::{BatchSize, Criterion, Throughput, criterion_group, criterion_main};
use engine::Result;
use engine::data::cache::Cache;
use engine::data::prepare::{Source, prepare};
use engine::data::preprocess::{Settings, preprocess};
use engine::data::rng::Rng;
use engine::data::window::Window;
use engine::data::{Channel, ChannelKind, Recording};

const CHANNELS: usize = 129;
const WINDOW: usize = 200;

/// `seconds` of noise with one slow wave, µV.
fn recording(seconds: usize, rate: f64, seed: u64) -> Recording {
    let samples = (seconds as f64 * rate) as usize;
    let channels = (0..CHANNELS).map(|c| {
        let mut rng = Rng::new(seed, c as u64);
        let noise = (0..samples).map(|i| {
            let wave = (std::f64::consts::TAU * 10.0 * i as f64 / rate).sin();
            (20.0 * wave + 10.0 * (rng.uniform() - 0.5)) as f32
        });
        Channel {
            name: format!("E{}", c + 1),
            kind: ChannelKind::Eeg,
            unit: "uV".into(),
            bad: false,
            sample_rate: rate,
            samples: noise.collect(),
        }
    });
    Recording {
        path: "bench".into(),
        channels: channels.collect(),
        annotations: Vec::new(),
        notes: Vec::new(),
    }
}

/// 40 recordings of five minutes at 100 Hz: 310 MB.
fn cache(dir: &Path) -> Result<Cache> {
    let sources: Vec<Source> = (0..40)
        .map(|i| Source {
            subject: format!("S{i}"),
            path: format!("{i}").into(),
            ..Source::default()
        })
        .collect();
    let settings = Settings { high_pass_hz: 0.0, low_pass_hz: 0.0, ..Settings::default() };
    let read = |source: &Source| {
        let seed = source.path.to_str().and_then(|s| s.parse().ok()).unwrap_or(0);
        Ok(recording(300, 100.0, seed))
    };
    prepare(&sources, &read, &settings, None, dir, &|_| {}, &AtomicBool::new(false))
}

fn windows(criterion: &mut Criterion) {
    let dir = tempfile::tempdir().expect("a temporary folder");
    let cache = cache(dir.path()).expect("a cache");
    let mut rng = Rng::new(1, 1);
    let mut draw = move || Window {
        recording: rng.below(40) as u32,
        start: rng.below(30_000 - WINDOW) as u32,
        event: 0,
    };
    let mut group = criterion.benchmark_group("window");
    group.throughput(Throughput::Elements(1));
    let mut out = vec![0.0f32; CHANNELS * WINDOW];
    group.bench_function("read 129 x 200, random", |bench| {
        bench.iter(|| {
            let w = draw();
            let done = cache.read_window(w.recording as usize, w.start as usize, &mut out);
            black_box((&out, done.is_ok()));
        });
    });
    group.bench_function("read 129 x 200, again and again", |bench| {
        bench.iter(|| {
            let done = cache.read_window(3, 1234, &mut out);
            black_box((&out, done.is_ok()));
        });
    });
    group.throughput(Throughput::Elements(64));
    let mut batch = vec![0.0f32; 64 * CHANNELS * WINDOW];
    let mut chosen = vec![draw(); 64];
    group.bench_function("batch of 64, random", |bench| {
        bench.iter(|| {
            chosen.iter_mut().for_each(|w| *w = draw());
            let done = cache.fill_batch(&chosen, &mut batch);
            black_box((&batch, done.is_ok()));
        });
    });
    group.finish();
}

fn preparing(criterion: &mut Criterion) {
    let raw = recording(60, 500.0, 7);
    let settings = Settings { notch_hz: 60.0, ..Settings::default() };
    let mut group = criterion.benchmark_group("preprocess");
    group.sample_size(10);
    group.bench_function("60 s x 129 at 500 Hz", |bench| {
        bench.iter_batched(
            || raw.clone(),
            |raw| black_box(preprocess(raw, &settings, None).is_ok()),
            BatchSize::PerIteration,
        );
    });
    group.finish();
}

criterion_group!(benches, windows, preparing);
criterion_main!(benches);
