//! Colour maps that the colour-blind read and that print in order of lightness.

/// Colours of a map, from low to high.
pub(super) const SHADES: usize = 255;

/// Blue to white to orange-red for values around a centre; its upper half for magnitudes.
const ANCHORS: [[u8; 3]; 9] = [
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
    shown: [f64; 2],
}

impl Colours {
    /// For values between `low` and `high`: two hues that meet at `center` where values lie on both
    /// sides of it, else one scale of lightness, from `center` where that is near.
    pub(super) fn new(low: f64, high: f64, center: f64) -> Self {
        let spread = high - low;
        if low < center && high > center {
            let reach = (high - center).max(center - low);
            let shown = [low, high];
            return Self { low: center - reach, high: center + reach, diverging: true, shown };
        }
        let low = if low > center && low - center < spread { center } else { low };
        let high = if high > low { high } else { low + 1.0 };
        Self { low, high, diverging: false, shown: [low, high] }
    }

    /// What the colour bar covers.
    pub(super) fn shown(&self) -> [f64; 2] {
        self.shown
    }

    /// Place of `value` in the palette.
    pub(super) fn shade(&self, value: f64) -> u8 {
        let share = (value - self.low) / (self.high - self.low);
        (share.clamp(0.0, 1.0) * (SHADES - 1) as f64).round() as u8
    }

    /// The palette, `[SHADES]`.
    pub(super) fn palette(&self) -> Vec<[u8; 3]> {
        let anchors = if self.diverging { &ANCHORS[..] } else { &ANCHORS[4..] };
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
