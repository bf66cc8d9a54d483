//! Files whose checksums are right but whose contents lie: refused, never a panic.

use std::io::Cursor;

use super::layout::block_len;
use super::{Cache, Entry, Index, Writer, encode};
use crate::data::preprocess::{Processed, Settings};
use crate::data::rng::Rng;

const CHANNELS: usize = 3;
const SAMPLES: usize = 150;

fn processed() -> Processed {
    let mut rng = Rng::new(6, 6);
    Processed {
        channels: (0..CHANNELS).map(|c| format!("C{c}")).collect(),
        sample_rate: 100.0,
        n_samples: SAMPLES,
        samples: (0..CHANNELS * SAMPLES).map(|_| rng.normal() as f32).collect(),
        annotations: Vec::new(),
        bad: Vec::new(),
        notes: Vec::new(),
    }
}

/// A cache of one recording whose index `spoil` has changed.
fn open(spoil: impl Fn(&mut Index)) -> crate::Result<Cache> {
    let processed = processed();
    let block = encode(&processed);
    let mut writer = Writer::new(Cursor::new(Vec::new())).unwrap();
    let offset = writer.block(&block).unwrap();
    let entry = Entry {
        subject: "01".into(),
        session: None,
        task: None,
        run: None,
        path: "a.set".into(),
        channel_set: 0,
        n_samples: SAMPLES,
        offset,
        xxh3: xxhash_rust::xxh3::xxh3_64(&block),
        annotations: Vec::new(),
        bad: Vec::new(),
        notes: Vec::new(),
    };
    let mut index = Index {
        settings: Settings::default(),
        channels: processed.channels.clone(),
        sample_rate: processed.sample_rate,
        positions: 0,
        channel_sets: vec![processed.channels],
        recordings: vec![entry],
        skipped: Vec::new(),
    };
    spoil(&mut index);
    let file = tempfile::NamedTempFile::new().unwrap();
    let bytes = writer.finish(1, &index).unwrap().into_inner();
    std::fs::write(file.path(), bytes).unwrap();
    Cache::open(file.path())
}

#[test]
fn an_index_that_lies_is_refused() {
    let cache = open(|_| {}).unwrap();
    cache.verify().unwrap();
    let mut out = [0.0; CHANNELS * SAMPLES];
    cache.read_window(0, 0, &mut out).unwrap();
    assert!(out.iter().zip(&processed().samples).all(|(a, b)| (a - b).abs() < 1e-4));

    type Spoil = fn(&mut Index);
    let lies: [Spoil; 9] = [
        |i| i.recordings[0].n_samples = usize::MAX,
        |i| i.recordings[0].n_samples = usize::MAX / 6,
        |i| i.recordings[0].n_samples += 64,
        |i| i.recordings[0].offset = u64::MAX,
        |i| i.recordings[0].offset += 64,
        |i| i.recordings[0].offset = 0,
        |i| i.recordings[0].channel_set = 1,
        |i| i.channels.push("C9".into()),
        |i| i.channels.clear(),
    ];
    for (n, lie) in lies.into_iter().enumerate() {
        let message = open(lie).unwrap_err().to_string();
        assert!(message.contains("has an index"), "{n}: {message}");
    }
    let shifted = open(|i| i.recordings[0].offset += 1);
    assert!(shifted.is_err(), "unaligned");
}

#[test]
fn quantisation_is_within_its_promise() {
    let mut rng = Rng::new(8, 8);
    for amplitude in [1e-30f32, 1e-3, 1.0, 20.0, 3e38] {
        let mut processed = processed();
        for x in &mut processed.samples {
            *x = amplitude * (2.0 * rng.uniform() as f32 - 1.0);
        }
        processed.samples[..SAMPLES].fill(0.0);
        let block = encode(&processed);
        assert_eq!(Some(block.len()), block_len(CHANNELS, SAMPLES));
        let scale = |c: usize| f32::from_le_bytes(block[4 * c..4 * c + 4].try_into().unwrap());
        assert_eq!(scale(0), 0.0);
        for (c, row) in processed.samples.chunks(SAMPLES).enumerate() {
            let peak = row.iter().fold(0.0f32, |m, x| m.max(x.abs()));
            for (t, &x) in row.iter().enumerate() {
                let tile = super::TILE;
                let at = 64 + 2 * (t / tile * tile * CHANNELS + c * tile + t % tile);
                let code = i16::from_le_bytes(block[at..at + 2].try_into().unwrap());
                let error = (f64::from(code) * f64::from(scale(c)) - f64::from(x)).abs();
                assert!(error <= 1.001 * f64::from(peak) / 65534.0, "{amplitude}: {error}");
            }
        }
    }
}
