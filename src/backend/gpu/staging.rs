//! Where uploads lie in pinned memory on their way to a card. The few words that every step brings
//! share a buffer: were each to take one of its own, the host would wait for the step before to end
//! as soon as there are more of them than buffers, and the card would have nothing to do meanwhile.

/// Bytes of one pinned buffer.
pub(super) const BUFFER: usize = 16 << 20;
/// Pinned buffers in turn: the host fills one while the card reads another.
pub(super) const BUFFERS: usize = 3;
/// Uploads begin at multiples of this.
const ALIGN: usize = 256;

/// A place for one upload.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Place {
    /// Which buffer.
    pub buffer: usize,
    /// Where in it.
    pub offset: usize,
    /// What was copied from the buffer before must have been: it is filled from its start again.
    pub anew: bool,
}

/// Fills buffers in turn.
#[derive(Debug, Default)]
pub(super) struct Ring {
    buffer: usize,
    filled: usize,
    begun: bool,
}

impl Ring {
    /// The place of the next upload, of at most [`BUFFER`] bytes.
    pub fn place(&mut self, bytes: usize) -> Place {
        let anew = !self.begun || self.filled + bytes > BUFFER;
        if anew {
            self.buffer = if self.begun { (self.buffer + 1) % BUFFERS } else { 0 };
            (self.filled, self.begun) = (0, true);
        }
        let offset = self.filled;
        self.filled = (offset + bytes).next_multiple_of(ALIGN);
        Place { buffer: self.buffer, offset, anew }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::rng::Rng;

    /// No upload overwrites one that may not have been copied yet.
    #[test]
    fn what_is_on_its_way_is_not_overwritten() {
        let (mut ring, mut rng) = (Ring::default(), Rng::new(2, 2));
        let mut ends = [0; BUFFERS];
        let (mut waits, mut last) = (0, BUFFERS - 1);
        for _ in 0..10_000 {
            let bytes =
                if rng.uniform() < 0.05 { rng.below(BUFFER) + 1 } else { 1 + rng.below(9000) };
            let Place { buffer, offset, anew } = ring.place(bytes);
            assert!(offset % ALIGN == 0 && offset + bytes <= BUFFER);
            if anew {
                assert_eq!(buffer, (last + 1) % BUFFERS);
                ends[buffer] = 0;
                waits += 1;
            }
            assert!(offset >= ends[buffer]);
            (ends[buffer], last) = (offset + bytes, buffer);
        }
        assert!(waits < 1000, "{waits}");
    }
}
