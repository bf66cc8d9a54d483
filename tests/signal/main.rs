//! From a recording to a batch: preprocessing, the cache, windows, splits, together.

mod caching;
mod preprocessing;

use engine::data::preprocess::Processed;
use engine::data::rng::Rng;
use engine::data::{Annotation, Channel, ChannelKind, Recording};

/// An oscillation of random frequency under noise, tens of µV, on an offset.
fn channel(name: &str, n: usize, rate: f64, rng: &mut Rng) -> Channel {
    let (hz, phase, offset) = (rng.range(2.0, 30.0), rng.range(0.0, 6.0), rng.range(-4e3, 4e3));
    let wave = |i: usize| (std::f64::consts::TAU * hz * i as f64 / rate + phase).sin();
    let samples = (0..n).map(|i| (offset + 20.0 * wave(i) + 15.0 * rng.normal()) as f32).collect();
    Channel {
        name: name.into(),
        kind: ChannelKind::Eeg,
        unit: "uV".into(),
        bad: false,
        sample_rate: rate,
        samples,
    }
}

fn recording(channels: usize, n: usize, rate: f64, seed: u64) -> Recording {
    let mut rng = Rng::new(seed, 1);
    let channels = (0..channels).map(|c| channel(&format!("E{}", c + 1), n, rate, &mut rng));
    Recording {
        path: "a.set".into(),
        channels: channels.collect(),
        annotations: Vec::new(),
        notes: Vec::new(),
    }
}

fn boundary(onset_s: f64) -> Annotation {
    Annotation { onset_s, duration_s: f64::NAN, text: "boundary".into() }
}

fn row<'a>(processed: &'a Processed, name: &str) -> &'a [f32] {
    let at = processed.channels.iter().position(|c| c == name).expect("the channel is there");
    &processed.samples[at * processed.n_samples..][..processed.n_samples]
}
