//! Bytes of a cache file.
//!
//! ```text
//! header  64 bytes: magic, version, tile, key, where the index is, its checksum, own checksum
//! data    one block a recording, each at a multiple of 64 bytes:
//!         scales f32 [channels], zeros to a multiple of 64 bytes,
//!         samples i16 [tiles, channels, TILE], the last tile filled up with zeros
//! index   JSON
//! footer  16 bytes: magic, length of the whole file
//! ```
//! Little-endian throughout. Samples are cut into tiles so that a window touches a few contiguous
//! ranges, not one page per channel: 129 page faults would cost more than all the arithmetic.

use serde::{Deserialize, Serialize};
use xxhash_rust::xxh3::xxh3_64;

use super::Skipped;
use crate::data::preprocess::{Processed, Settings};

const _: () = assert!(cfg!(target_endian = "little"), "cache files are mapped as they lie");

/// Changes whenever these bytes, or what preprocessing makes of a recording, change.
pub(crate) const VERSION: u32 = 2;
/// Samples of one channel that lie side by side.
pub(crate) const TILE: usize = 64;
pub(super) const ALIGN: usize = 64;
pub(super) const HEADER: usize = 64;
pub(super) const FOOTER: usize = 16;
const MAGIC: [u8; 8] = *b"EEGCACHE";
const END_MAGIC: [u8; 8] = *b"EEGC_END";

/// Everything about the recordings but their samples.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Index {
    /// For people who open the file; the key holds what counts.
    pub settings: Settings,
    /// Common channels, in order.
    pub channels: Vec<String>,
    /// Hz.
    pub sample_rate: f64,
    /// Checksum of the positions of all channels in `channel_sets`.
    pub positions: u64,
    /// Channel names as they lie in the blocks.
    pub channel_sets: Vec<Vec<String>>,
    pub recordings: Vec<Entry>,
    pub skipped: Vec<Skipped>,
}

/// One recording of the index.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Entry {
    pub subject: String,
    pub session: Option<String>,
    pub task: Option<String>,
    pub run: Option<String>,
    pub path: std::path::PathBuf,
    /// Index into `channel_sets`.
    pub channel_set: usize,
    pub n_samples: usize,
    /// Of its block, bytes from the file's start.
    pub offset: u64,
    pub xxh3: u64,
    /// Onset and duration, s, and text.
    pub annotations: Vec<(f64, f64, String)>,
    pub bad: Vec<(String, String)>,
    pub notes: Vec<String>,
}

/// The header's fields.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Header {
    pub key: u128,
    pub index_offset: u64,
    pub index_len: u64,
    pub index_xxh3: u64,
}

impl Header {
    pub(super) fn to_bytes(self) -> [u8; HEADER] {
        let mut bytes = [0; HEADER];
        bytes[..8].copy_from_slice(&MAGIC);
        bytes[8..12].copy_from_slice(&VERSION.to_le_bytes());
        bytes[12..16].copy_from_slice(&(TILE as u32).to_le_bytes());
        bytes[16..32].copy_from_slice(&self.key.to_le_bytes());
        bytes[32..40].copy_from_slice(&self.index_offset.to_le_bytes());
        bytes[40..48].copy_from_slice(&self.index_len.to_le_bytes());
        bytes[48..56].copy_from_slice(&self.index_xxh3.to_le_bytes());
        let check = xxh3_64(&bytes[..56]);
        bytes[56..].copy_from_slice(&check.to_le_bytes());
        bytes
    }

    /// The header of a whole file, once header, footer and lengths agree.
    pub(super) fn of_file(file: &[u8]) -> Result<Self, &'static str> {
        let word = |at: usize| -> u64 {
            let bytes = file.get(at..at + 8).and_then(|b| b.try_into().ok());
            bytes.map_or(0, u64::from_le_bytes)
        };
        if file.len() < HEADER + FOOTER {
            return Err("is cut off: it is shorter than its header");
        }
        if file[..8] != MAGIC {
            return Err("does not begin as a cache does");
        }
        if word(8) != u64::from(VERSION) | (TILE as u64) << 32 {
            return Err("is of another version");
        }
        if word(56) != xxh3_64(&file[..56]) {
            return Err("has a damaged header");
        }
        let end = file.len() - FOOTER;
        if file[end..end + 8] != END_MAGIC || word(end + 8) != file.len() as u64 {
            return Err("is cut off or was added to: its end is not where it was written");
        }
        let key = u128::from(word(16)) | u128::from(word(24)) << 64;
        let header =
            Self { key, index_offset: word(32), index_len: word(40), index_xxh3: word(48) };
        if header.index_offset.checked_add(header.index_len) != Some(end as u64)
            || header.index_offset < HEADER as u64
        {
            return Err("has an index that is not where its header says");
        }
        Ok(header)
    }
}

pub(super) fn footer(file_len: u64) -> [u8; FOOTER] {
    let mut bytes = [0; FOOTER];
    bytes[..8].copy_from_slice(&END_MAGIC);
    bytes[8..].copy_from_slice(&file_len.to_le_bytes());
    bytes
}

/// Bytes of the scales, before the samples.
pub(super) fn scales_len(channels: usize) -> usize {
    (4 * channels).next_multiple_of(ALIGN)
}

/// Bytes of a recording's block; `None` where the numbers overflow.
pub(super) fn block_len(channels: usize, n_samples: usize) -> Option<usize> {
    let samples = n_samples.div_ceil(TILE).checked_mul(TILE)?.checked_mul(channels)?;
    channels.checked_mul(4)?.checked_next_multiple_of(ALIGN)?.checked_add(samples.checked_mul(2)?)
}

/// Samples as a block. Each channel's scale is its largest magnitude over 32767, so a sample is off
/// by at most 1/65534 of it: by 0.0003 in the unit of the result where that is clipped at 20.
pub(crate) fn encode(recording: &Processed) -> Vec<u8> {
    let (channels, n) = (recording.channels.len(), recording.n_samples);
    let header = scales_len(channels);
    let mut block = vec![0u8; block_len(channels, n).unwrap_or(header)];
    let (scales, samples) = block.split_at_mut(header);
    for (c, row) in recording.samples.chunks_exact(n.max(1)).enumerate() {
        let peak = row.iter().fold(0.0f32, |m, x| m.max(x.abs()));
        let scale = peak / 32767.0;
        scales[4 * c..4 * c + 4].copy_from_slice(&scale.to_le_bytes());
        let inverse = if scale > 0.0 { 1.0 / f64::from(scale) } else { 0.0 };
        for (tile, part) in row.chunks(TILE).enumerate() {
            let at = 2 * TILE * (tile * channels + c);
            for (bytes, &x) in samples[at..].chunks_exact_mut(2).zip(part) {
                let code = (f64::from(x) * inverse).round().clamp(-32767.0, 32767.0) as i16;
                bytes.copy_from_slice(&code.to_le_bytes());
            }
        }
    }
    block
}
