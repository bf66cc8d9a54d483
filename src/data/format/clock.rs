//! Time of a file whose recording was interrupted, placed on the samples in memory.

/// A stretch recorded without interruption.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Segment {
    file_s: f64,
    memory_s: f64,
    length_s: f64,
}

/// Maps seconds of the file to seconds from the first sample in memory. The default maps every
/// time to itself.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct Clock {
    segments: Vec<Segment>,
}

impl Clock {
    /// A clock over records of `length_s` each, stored one after the other, that began at
    /// `onsets_s` of the file's time. Records that follow each other within `tolerance_s` are one
    /// segment.
    pub fn from_records(onsets_s: &[f64], length_s: f64, tolerance_s: f64) -> Self {
        let mut segments: Vec<Segment> = Vec::new();
        for (i, &file_s) in onsets_s.iter().enumerate() {
            let memory_s = i as f64 * length_s;
            match segments.last_mut() {
                Some(last) if (last.file_s + last.length_s - file_s).abs() <= tolerance_s => {
                    last.length_s = memory_s + length_s - last.memory_s;
                }
                _ => segments.push(Segment { file_s, memory_s, length_s }),
            }
        }
        Self { segments }
    }

    /// Seconds from the first sample in memory. A time inside a gap becomes the gap's place;
    /// times before the first and after the last sample keep their distance to it.
    pub fn to_memory(&self, file_s: f64) -> f64 {
        let holds = |s: &&Segment| (s.file_s..s.file_s + s.length_s).contains(&file_s);
        let (Some(first), Some(last)) = (self.segments.first(), self.segments.last()) else {
            return file_s;
        };
        if let Some(segment) = self.segments.iter().find(holds) {
            return segment.memory_s + (file_s - segment.file_s);
        }
        if file_s < first.file_s {
            return first.memory_s + (file_s - first.file_s);
        }
        match self.segments.iter().find(|s| s.file_s > file_s) {
            Some(next) => next.memory_s,
            None => last.memory_s + (file_s - last.file_s),
        }
    }

    /// Onset and duration in memory of something that happened in the file's time. What lies in
    /// gaps does not count towards the duration.
    pub fn place(&self, onset_s: f64, duration_s: f64) -> (f64, f64) {
        let placed_s = self.to_memory(onset_s);
        if self.segments.len() < 2 || duration_s == 0.0 {
            return (placed_s, duration_s);
        }
        (placed_s, (self.to_memory(onset_s + duration_s) - placed_s).max(0.0))
    }

    /// The file's time of the first sample.
    pub fn start_s(&self) -> f64 {
        self.segments.first().map_or(0.0, |segment| segment.file_s)
    }

    /// Where two segments meet, seconds from the first sample in memory.
    pub fn boundaries_s(&self) -> impl Iterator<Item = f64> + '_ {
        self.segments.iter().skip(1).map(|s| s.memory_s)
    }
}

#[cfg(test)]
mod tests {
    use super::Clock;

    #[test]
    fn places_times_around_a_gap() {
        // Records of 2 s at 0.25, 2.25, then at 10.25.
        let clock = Clock::from_records(&[0.25, 2.25, 10.25], 2.0, 1e-3);
        assert_eq!(clock.boundaries_s().collect::<Vec<_>>(), [4.0]);
        let cases =
            [(0.25, 0.0), (3.5, 3.25), (7.0, 4.0), (10.25, 4.0), (11.0, 4.75), (13.25, 7.0)];
        for (file, memory) in cases {
            assert_eq!(clock.to_memory(file), memory, "{file}");
        }
        assert_eq!((clock.to_memory(0.0), clock.start_s()), (-0.25, 0.25));
        assert_eq!(clock.place(3.25, 8.0), (3.0, 2.0));
        assert_eq!(Clock::from_records(&[0.5], 2.0, 1e-3).place(0.7, 0.1), (0.7 - 0.5, 0.1));
        assert_eq!(Clock::default().to_memory(17.5), 17.5);
    }
}
