//! The value types of settings: named choices, sizes in bytes, and the words "off" and "auto" that
//! stand in place of a value.

use std::fmt;
use std::marker::PhantomData;
use std::path::PathBuf;

use serde::de::{self, Deserialize, Deserializer, IntoDeserializer, Unexpected, Visitor};
use serde::{Serialize, Serializer};

/// An enum whose variants are written as the given words, in files, on flags and in messages.
macro_rules! choice {
    ($(#[$doc:meta])* $name:ident { $($(#[$variant_doc:meta])* $variant:ident = $word:literal,)+ }) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
        pub enum $name {
            $($(#[$variant_doc])* #[serde(rename = $word)] $variant,)+
        }

        impl $name {
            /// Every choice, in order.
            pub const ALL: &'static [Self] = &[$(Self::$variant,)+];
            /// The words they are written as, in the same order.
            pub const WORDS: &'static [&'static str] = &[$($word,)+];

            /// The word this choice is written as.
            pub const fn word(self) -> &'static str {
                match self {
                    $(Self::$variant => $word,)+
                }
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.pad(self.word())
            }
        }
    };
}

choice! {
    /// What becomes of channels marked bad or found flat.
    BadChannels {
        /// Replaced from their neighbours by spherical splines (Perrin et al. 1989).
        Interpolate = "interpolate",
        /// Set to zero, so that every recording keeps the same channels.
        Zero = "zero",
        /// Left as they are.
        Keep = "keep",
    }
}
choice! {
    /// How samples in µV become numbers near 1, after each channel's median was subtracted.
    Scale {
        /// All channels of a recording by its median channel's robust deviation (IQR / 1.349).
        Recording = "recording",
        /// Each channel of a recording by its own robust deviation.
        Channel = "channel",
        /// One factor for all recordings: 1 unit is 10 µV.
        Fixed = "fixed",
    }
}
choice! {
    /// The model that is trained.
    ModelName {
        /// The transformer over patches of time with a spectral front.
        EegFormer = "eegformer",
        /// ShallowFBCSPNet (Schirrmeister et al. 2017), the convolutional model to beat.
        Shallow = "shallow",
    }
}
choice! {
    /// The course of the learning rate after warm-up.
    ScheduleName {
        /// Half a cosine down to `min_lr`.
        Cosine = "cosine",
        /// Stays at `lr`.
        Constant = "constant",
        /// A straight line down to `min_lr`.
        Linear = "linear",
        /// Up by half a cosine over the warm-up, then down by half a cosine (Smith & Topin 2018).
        OneCycle = "one-cycle",
    }
}
choice! {
    /// The optimizer.
    OptimizerName {
        /// Adam with decoupled weight decay (Loshchilov & Hutter 2019).
        AdamW = "adamw",
        /// Stochastic gradient descent with momentum.
        Sgd = "sgd",
    }
}
choice! {
    /// The loss.
    LossName {
        /// By the target: Huber for numbers, cross-entropy for classes.
        Auto = "auto",
        /// Mean squared error.
        Mse = "mse",
        /// Huber, quadratic within one standard deviation.
        Huber = "huber",
        /// Mean absolute error.
        L1 = "l1",
        /// Binary cross-entropy of one logit.
        Bce = "bce",
        /// Cross-entropy over classes.
        Ce = "ce",
    }
}
choice! {
    /// Storage type of activations in mixed precision; master weights stay f32.
    Amp {
        /// All in f32.
        Off = "off",
        /// f32 storage, products of operands rounded to TF32.
        Tf32 = "tf32",
        /// bfloat16: no loss scaling needed.
        Bf16 = "bf16",
        /// IEEE half with dynamic loss scaling.
        F16 = "f16",
    }
}
choice! {
    /// What is computed again in backward instead of being kept.
    Recompute {
        /// Nothing.
        None = "none",
        /// Each layer's inside; only its input is kept (Chen et al. 2016).
        Layers = "layers",
    }
}
choice! {
    /// The device that trains.
    DeviceName {
        /// The first GPU that works, else the CPU.
        Auto = "auto",
        /// The CPU.
        Cpu = "cpu",
        /// An NVIDIA GPU.
        Cuda = "cuda",
        /// An AMD GPU.
        Hip = "hip",
    }
}
choice! {
    /// Whose matrix product runs.
    Gemm {
        /// The vendor's where it is present and has code for the card, else the engine's own.
        Auto = "auto",
        /// cuBLAS or hipBLAS, or an error.
        Vendor = "vendor",
        /// The engine's own.
        Native = "native",
    }
}

#[allow(clippy::derivable_impls, reason = "`choice!` derives for all alike")]
impl Default for Gemm {
    fn default() -> Self {
        Self::Auto
    }
}

/// The reference electrode of the signal that the model sees.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Reference {
    /// As recorded. Written "recorded".
    Recorded,
    /// The mean of all good EEG channels. Written "average".
    Average,
    /// The mean of these channels. Written as a list of names.
    Channels(Vec<String>),
}

/// The mains filter.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Notch {
    /// At the recording's own `PowerLineFrequency` (BIDS sidecar), where that lies inside the band
    /// kept. Written "auto".
    Auto,
    /// None. Written "off".
    Off,
    /// At this frequency, Hz, and its harmonics. Written as a number.
    Hz(f64),
}

/// Weights of the classes in the loss.
#[derive(Debug, Clone, PartialEq)]
pub enum ClassWeights {
    /// All 1. Written "off".
    Off,
    /// Inverse to their frequency among the training windows, mean 1. Written "balanced".
    Balanced,
    /// These, in the order of the class names. Written as a list of numbers.
    Given(Vec<f64>),
}

/// Length of the warm-up.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Warmup {
    /// Optimizer steps. Written as a whole number.
    Steps(u64),
    /// A share of all steps, in [0, 1). Written with a point, as in 0.05.
    Fraction(f64),
}

impl Warmup {
    /// Warm-up steps of a run of `total` optimizer steps; always less than `total` for a fraction.
    pub fn steps(self, total: u64) -> u64 {
        match self {
            Self::Steps(steps) => steps,
            Self::Fraction(share) => (share * total as f64) as u64,
        }
    }
}

/// One preference "op=device" of `--route`, as in "spectral=cpu".
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Route {
    /// The op's name.
    pub op: String,
    /// "cpu" or "gpu".
    pub device: String,
}

/// A number of bytes, written "6GB" (10^9), "512MiB" (2^20) or as a plain whole number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Bytes(pub u64);

/// Units from long to short suffix, so that "MiB" is not taken for "B".
const UNITS: [(&str, u64); 7] = [
    ("kib", 1 << 10),
    ("mib", 1 << 20),
    ("gib", 1 << 30),
    ("kb", 1_000),
    ("mb", 1_000_000),
    ("gb", 1_000_000_000),
    ("b", 1),
];

impl std::str::FromStr for Bytes {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let lower = text.trim().to_ascii_lowercase();
        let (digits, factor) = UNITS
            .iter()
            .find_map(|&(unit, factor)| lower.strip_suffix(unit).map(|digits| (digits, factor)))
            .unwrap_or((lower.as_str(), 1));
        let digits = digits.trim();
        if let Some(bytes) = digits.parse().ok().and_then(|count: u64| count.checked_mul(factor)) {
            return Ok(Self(bytes));
        }
        let count: f64 = digits.parse().map_err(|_| format!("`{text}` is not a size"))?;
        let bytes = (count * factor as f64).round();
        if !(0.0..1e18).contains(&bytes) {
            return Err(format!("`{text}` is not a size below 1e18 bytes"));
        }
        Ok(Self(bytes as u64))
    }
}

impl fmt::Display for Bytes {
    /// Exact: the largest unit that divides it.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let whole = |unit: u64| self.0 != 0 && self.0.is_multiple_of(unit);
        let exact = [
            (1_000_000_000, "GB"),
            (1 << 30, "GiB"),
            (1_000_000, "MB"),
            (1 << 20, "MiB"),
            (1_000, "kB"),
            (1 << 10, "KiB"),
        ];
        match exact.into_iter().find(|&(unit, _)| whole(unit)) {
            Some((unit, name)) => write!(f, "{}{name}", self.0 / unit),
            None => write!(f, "{}B", self.0),
        }
    }
}

/// How a value is described in a message.
pub(super) trait Kind {
    const KIND: &'static str;
}

impl Kind for f64 {
    const KIND: &'static str = "a number";
}
impl Kind for u64 {
    const KIND: &'static str = "a whole number above 0";
}
impl Kind for usize {
    const KIND: &'static str = "a whole number above 0";
}
impl Kind for String {
    const KIND: &'static str = "a text";
}
impl Kind for PathBuf {
    const KIND: &'static str = "a path";
}
impl Kind for Bytes {
    const KIND: &'static str = "a size such as \"6GB\"";
}

/// Reads either one word (`None`) or a `T`.
struct WordOr<T> {
    word: &'static str,
    value: PhantomData<T>,
}

impl<'de, T: Deserialize<'de> + Kind> Visitor<'de> for WordOr<T> {
    type Value = Option<T>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "\"{}\" or {}", self.word, T::KIND)
    }

    fn visit_str<E: de::Error>(self, text: &str) -> Result<Self::Value, E> {
        if text == self.word {
            return Ok(None);
        }
        T::deserialize(text.into_deserializer())
            .map(Some)
            .map_err(|_: E| E::invalid_value(Unexpected::Str(text), &self))
    }

    fn visit_i64<E: de::Error>(self, value: i64) -> Result<Self::Value, E> {
        T::deserialize(value.into_deserializer())
            .map(Some)
            .map_err(|_: E| E::invalid_value(Unexpected::Signed(value), &self))
    }

    fn visit_f64<E: de::Error>(self, value: f64) -> Result<Self::Value, E> {
        T::deserialize(value.into_deserializer())
            .map(Some)
            .map_err(|_: E| E::invalid_value(Unexpected::Float(value), &self))
    }
}

/// A module for `#[serde(with = ...)]` that reads and writes `None` as the given word, so that
/// "no value" can be said at any layer and stands in the recorded settings.
macro_rules! word_module {
    ($name:ident, $word:literal) => {
        pub(super) mod $name {
            use super::*;

            pub fn serialize<T: Serialize, S: Serializer>(
                value: &Option<T>,
                serializer: S,
            ) -> Result<S::Ok, S::Error> {
                match value {
                    Some(value) => value.serialize(serializer),
                    None => serializer.serialize_str($word),
                }
            }

            pub fn deserialize<'de, T: Deserialize<'de> + Kind, D: Deserializer<'de>>(
                deserializer: D,
            ) -> Result<Option<T>, D::Error> {
                deserializer.deserialize_any(WordOr { word: $word, value: PhantomData })
            }
        }
    };
}

word_module!(off, "off");
word_module!(auto, "auto");
word_module!(generated, "generated");

impl Serialize for Reference {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Recorded => serializer.serialize_str("recorded"),
            Self::Average => serializer.serialize_str("average"),
            Self::Channels(names) => names.serialize(serializer),
        }
    }
}

impl<'de> Deserialize<'de> for Reference {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let words = "\"average\", \"recorded\" or a list of channel names";
        deserializer.deserialize_any(WordsOr {
            words,
            word: |text: &str| match text {
                "recorded" => Some(Self::Recorded),
                "average" => Some(Self::Average),
                _ => None,
            },
            list: Some(Self::Channels),
            number: None,
        })
    }
}

impl Serialize for Notch {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Auto => serializer.serialize_str("auto"),
            Self::Off => serializer.serialize_str("off"),
            Self::Hz(hz) => serializer.serialize_f64(*hz),
        }
    }
}

impl<'de> Deserialize<'de> for Notch {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(WordsOr {
            words: "\"auto\", \"off\" or a frequency in Hz",
            word: |text: &str| match text {
                "auto" => Some(Self::Auto),
                "off" => Some(Self::Off),
                _ => None,
            },
            list: None::<fn(Vec<String>) -> Self>,
            number: Some(|number: Number| Some(Self::Hz(number.as_f64()))),
        })
    }
}

impl Serialize for ClassWeights {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Off => serializer.serialize_str("off"),
            Self::Balanced => serializer.serialize_str("balanced"),
            Self::Given(weights) => weights.serialize(serializer),
        }
    }
}

impl<'de> Deserialize<'de> for ClassWeights {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(WordsOr {
            words: "\"balanced\", \"off\" or a list of numbers",
            word: |text: &str| match text {
                "off" => Some(Self::Off),
                "balanced" => Some(Self::Balanced),
                _ => None,
            },
            list: Some(Self::Given),
            number: None,
        })
    }
}

impl Serialize for Warmup {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Steps(steps) => serializer.serialize_u64(*steps),
            Self::Fraction(share) => serializer.serialize_f64(*share),
        }
    }
}

impl<'de> Deserialize<'de> for Warmup {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(WordsOr {
            words: "steps as a whole number, or a share of all steps such as 0.05",
            word: |_: &str| None,
            list: None::<fn(Vec<String>) -> Self>,
            number: Some(|number: Number| match number {
                Number::Whole(steps) => u64::try_from(steps).ok().map(Self::Steps),
                Number::Real(share) => Some(Self::Fraction(share)),
            }),
        })
    }
}

impl Serialize for Bytes {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Bytes {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(WordsOr {
            words: "a size such as \"6GB\"",
            word: |text: &str| text.parse().ok(),
            list: None::<fn(Vec<String>) -> Self>,
            number: Some(|number: Number| match number {
                Number::Whole(bytes) => u64::try_from(bytes).ok().map(Self),
                Number::Real(_) => None,
            }),
        })
    }
}

impl Serialize for Route {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(&format_args!("{}={}", self.op, self.device))
    }
}

impl<'de> Deserialize<'de> for Route {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(WordsOr {
            words: "\"op=cpu\" or \"op=gpu\", as in \"spectral=cpu\"",
            word: |text: &str| {
                let (op, device) = text.split_once('=')?;
                let known = !op.is_empty() && matches!(device, "cpu" | "gpu");
                known.then(|| Self { op: op.to_string(), device: device.to_string() })
            },
            list: None::<fn(Vec<String>) -> Self>,
            number: None,
        })
    }
}

/// A TOML number, whole or not.
#[derive(Clone, Copy)]
enum Number {
    Whole(i64),
    Real(f64),
}

impl Number {
    fn as_f64(self) -> f64 {
        match self {
            Self::Whole(whole) => whole as f64,
            Self::Real(real) => real,
        }
    }
}

/// Reads a value that is one of some words, a list, or a number, whichever of these it may be.
struct WordsOr<V, I> {
    words: &'static str,
    word: fn(&str) -> Option<V>,
    list: Option<fn(Vec<I>) -> V>,
    number: Option<fn(Number) -> Option<V>>,
}

impl<'de, V, I: Deserialize<'de>> Visitor<'de> for WordsOr<V, I> {
    type Value = V;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.words)
    }

    fn visit_str<E: de::Error>(self, text: &str) -> Result<V, E> {
        (self.word)(text).ok_or_else(|| E::invalid_value(Unexpected::Str(text), &self))
    }

    fn visit_i64<E: de::Error>(self, value: i64) -> Result<V, E> {
        self.number
            .and_then(|number| number(Number::Whole(value)))
            .ok_or_else(|| E::invalid_type(Unexpected::Signed(value), &self))
    }

    fn visit_f64<E: de::Error>(self, value: f64) -> Result<V, E> {
        self.number
            .and_then(|number| number(Number::Real(value)))
            .ok_or_else(|| E::invalid_type(Unexpected::Float(value), &self))
    }

    fn visit_seq<A: de::SeqAccess<'de>>(self, mut items: A) -> Result<V, A::Error> {
        let Some(list) = self.list else {
            return Err(de::Error::invalid_type(Unexpected::Seq, &self));
        };
        let mut all = Vec::new();
        while let Some(item) = items.next_element()? {
            all.push(item);
        }
        Ok(list(all))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_read_and_written_exactly() {
        for (text, bytes) in
            [("6GB", 6_000_000_000), ("1.5 GiB", 3 << 29), ("512mib", 512 << 20), ("77", 77)]
        {
            assert_eq!(text.parse::<Bytes>(), Ok(Bytes(bytes)), "{text}");
        }
        for text in ["", "GB", "-1GB", "6TBB", "nan", "1e30GB", "six"] {
            assert!(text.parse::<Bytes>().is_err(), "{text}");
        }
        for bytes in [0, 1, 1023, 6_000_000_000, 3 << 29, 123_456_789, 1000, 4096, u64::MAX] {
            assert_eq!(Bytes(bytes).to_string().parse::<Bytes>(), Ok(Bytes(bytes)));
        }
    }

    #[test]
    fn warmup_counts_steps() {
        assert_eq!(Warmup::Steps(12).steps(100), 12);
        assert_eq!(Warmup::Fraction(0.05).steps(110), 5);
        assert_eq!(Warmup::Fraction(0.999).steps(1), 0);
    }
}
