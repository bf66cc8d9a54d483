//! Colour maps that the colour-blind read and that print in order of lightness.

/// Colours of a map, from low to high.
pub(super) const SHADES: usize = 255;

/// Anchors of viridis (van der Walt and Smith 2015): magnitudes.
const VIRIDIS: [[u8; 3]; 9] = [
    [68, 1, 84],
    [71, 44, 122],
    [59, 81, 139],
    [44, 113, 142],
    [33, 144, 141],
    [39, 173, 129],
    [92, 200, 99],
    [170, 220, 50],
    [253, 231, 37],
];

/// Blue to white to orange-red: values around a centre.
const DIVERGING: [[u8; 3]; 9] = [
    [5, 60, 115],
    [33, 102, 172],
    [92, 154, 200],
    [170, 206, 228],
    [247, 247, 247],
    [250, 205, 170],
    [235, 145, 95],
    [203, 80, 45],
    [130, 30, 20],
];

/// How values turn into colours.
pub(super) struct Colours {
    low: f64,
    high: f64,
    diverging: bool,
}

impl Colours {
    /// Magnitudes from `low` to `high`.
    pub(super) fn sequential(low: f64, high: f64) -> Self {
        Self { low, high: if high > low { high } else { low + 1.0 }, diverging: false }
    }

    /// Values around `center`, equally far both ways.
    pub(super) fn diverging(center: f64, reach: f64) -> Self {
        let reach = if reach > 0.0 { reach } else { 1.0 };
        Self { low: center - reach, high: center + reach, diverging: true }
    }

    /// For values between `low` and `high`: diverging where both signs matter, else sequential, from
    /// zero where that is near.
    pub(super) fn for_range(low: f64, high: f64) -> Self {
        if low < 0.0 && high > 0.0 {
            return Self::diverging(0.0, high.max(-low));
        }
        let start = if low > 0.0 && low < 0.5 * high { 0.0 } else { low };
        Self::sequential(start, high)
    }

    pub(super) fn ends(&self) -> [f64; 2] {
        [self.low, self.high]
    }

    /// Place of `value` in the palette.
    pub(super) fn shade(&self, value: f64) -> u8 {
        let share = (value - self.low) / (self.high - self.low);
        (share.clamp(0.0, 1.0) * (SHADES - 1) as f64).round() as u8
    }

    /// The palette, `[SHADES]`.
    pub(super) fn palette(&self) -> Vec<[u8; 3]> {
        let anchors = if self.diverging { &DIVERGING } else { &VIRIDIS };
        (0..SHADES)
            .map(|shade| {
                let place = shade as f64 / (SHADES - 1) as f64 * (anchors.len() - 1) as f64;
                let below = (place as usize).min(anchors.len() - 2);
                let share = place - below as f64;
                std::array::from_fn(|channel| {
                    let [a, b] = [anchors[below][channel], anchors[below + 1][channel]];
                    (f64::from(a) + share * (f64::from(b) - f64::from(a))).round() as u8
                })
            })
            .collect()
    }
}
