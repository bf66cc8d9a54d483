//! Numbers as binary files store them, and blocks of them taken apart into channels.

use rayon::prelude::*;

/// Channels taken apart together: their f32 of one moment fill a cache line, so that a
/// multiplexed block is read from memory once per group instead of once per channel.
const GROUP: usize = 16;

/// Moments taken apart together: the cache lines of a group's part of them stay in the first
/// level cache while its channels are written one after the other.
const TILE: usize = 128;

/// A stored number type.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Number {
    I8,
    U8,
    I16,
    U16,
    I32,
    U32,
    I64,
    U64,
    F32,
    F64,
}

/// Calls `$body` with `$read` bound to the function from bytes to f64 of one number type.
macro_rules! with_read {
    ($number:expr, $big:expr, $read:ident => $body:expr) => {
        match $number {
            Number::I8 => with_read!(@ i8, $big, $read => $body),
            Number::U8 => with_read!(@ u8, $big, $read => $body),
            Number::I16 => with_read!(@ i16, $big, $read => $body),
            Number::U16 => with_read!(@ u16, $big, $read => $body),
            Number::I32 => with_read!(@ i32, $big, $read => $body),
            Number::U32 => with_read!(@ u32, $big, $read => $body),
            Number::I64 => with_read!(@ i64, $big, $read => $body),
            Number::U64 => with_read!(@ u64, $big, $read => $body),
            Number::F32 => with_read!(@ f32, $big, $read => $body),
            Number::F64 => with_read!(@ f64, $big, $read => $body),
        }
    };
    (@ $type:ty, $big:expr, $read:ident => $body:expr) => {
        if $big {
            let $read = |bytes| <$type>::from_be_bytes(bytes) as f64;
            $body
        } else {
            let $read = |bytes| <$type>::from_le_bytes(bytes) as f64;
            $body
        }
    };
}

impl Number {
    /// Bytes of one number.
    pub fn bytes(self) -> usize {
        match self {
            Self::I8 | Self::U8 => 1,
            Self::I16 | Self::U16 => 2,
            Self::I32 | Self::U32 | Self::F32 => 4,
            Self::I64 | Self::U64 | Self::F64 => 8,
        }
    }

    /// All numbers of `bytes`, in order.
    pub fn values(self, bytes: &[u8], big_endian: bool) -> Vec<f64> {
        with_read!(self, big_endian, read => {
            bytes.as_chunks().0.iter().map(|&word| read(word)).collect()
        })
    }

    /// Takes a block `[time, channels]` (all channels of a moment side by side) apart, each
    /// number times its channel's scale.
    pub fn multiplexed(self, bytes: &[u8], big_endian: bool, scales: &[f64]) -> Vec<Vec<f32>> {
        with_read!(self, big_endian, read => multiplexed(bytes, scales, read))
    }

    /// Takes a block `[channels, time]` of `points` moments apart, each number times its
    /// channel's scale.
    pub fn vectorized(
        self,
        bytes: &[u8],
        big_endian: bool,
        scales: &[f64],
        points: usize,
    ) -> Vec<Vec<f32>> {
        let blocks = bytes.par_chunks((points * self.bytes()).max(1)).zip(scales);
        with_read!(self, big_endian, read => {
            blocks.map(|(block, scale)| {
                block.as_chunks().0.iter().map(|&word| (read(word) * scale) as f32).collect()
            }).collect()
        })
    }
}

fn multiplexed<const N: usize>(
    bytes: &[u8],
    scales: &[f64],
    read: impl Fn([u8; N]) -> f64 + Sync,
) -> Vec<Vec<f32>> {
    let frame = (scales.len() * N).max(1);
    let groups = scales.par_chunks(GROUP).enumerate().map(|(group, scales)| {
        let points = bytes.len() / frame;
        let mut channels: Vec<Vec<f32>> =
            scales.iter().map(|_| Vec::with_capacity(points)).collect();
        for tile in bytes.chunks(frame * TILE) {
            for (i, (channel, scale)) in channels.iter_mut().zip(scales).enumerate() {
                let start = (group * GROUP + i) * N;
                let words = tile.chunks_exact(frame).map(|moment| {
                    moment.get(start..).and_then(|m| m.first_chunk()).copied().unwrap_or([0; N])
                });
                channel.extend(words.map(|word| (read(word) * scale) as f32));
            }
        }
        channels
    });
    groups.flatten().collect()
}

#[cfg(test)]
mod tests {
    use super::Number;
    use crate::data::rng::Rng;

    #[test]
    fn both_layouts_of_odd_sizes() {
        let mut rng = Rng::new(31, 0);
        for channels in [1, 3, 16, 17, 35] {
            let points = 1 + rng.below(9);
            let values: Vec<Vec<i16>> = (0..channels)
                .map(|_| (0..points).map(|_| rng.next_u32() as i16).collect())
                .collect();
            let scales: Vec<f64> = (0..channels).map(|_| rng.range(-2.0, 2.0)).collect();
            let expect: Vec<Vec<f32>> = values
                .iter()
                .zip(&scales)
                .map(|(v, s)| v.iter().map(|&v| (f64::from(v) * s) as f32).collect())
                .collect();
            for big in [false, true] {
                let bytes = |v: i16| if big { v.to_be_bytes() } else { v.to_le_bytes() };
                let by_channel: Vec<u8> = values.iter().flatten().flat_map(|&v| bytes(v)).collect();
                let by_time: Vec<u8> = (0..points)
                    .flat_map(|t| values.iter().flat_map(move |v| bytes(v[t])))
                    .collect();
                assert_eq!(Number::I16.vectorized(&by_channel, big, &scales, points), expect);
                assert_eq!(Number::I16.multiplexed(&by_time, big, &scales), expect);
            }
        }
    }

    #[test]
    fn every_type() {
        assert_eq!(Number::I8.values(&[0xff, 2], false), [-1.0, 2.0]);
        assert_eq!(Number::U16.values(&[1, 2, 3], true), [258.0]);
        assert_eq!(Number::I64.values(&(-5_i64).to_le_bytes(), false), [-5.0]);
        assert_eq!(Number::F32.values(&1.5_f32.to_be_bytes(), true), [1.5]);
        assert_eq!(Number::F64.values(&[0; 7], false), [0.0; 0]);
    }
}
