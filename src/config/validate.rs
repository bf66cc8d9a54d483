//! What settings mean together: sizes that divide, shares that add up, a warm-up that ends.

use super::settings::{DataSettings, DeviceSettings, ModelSettings, Settings, TrainSettings};
use super::values::{ClassWeights, ModelName, Notch, Reference, Warmup};

/// A setting that cannot be.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Problem {
    /// Dotted name of the field to change.
    pub(super) field: &'static str,
    /// Another field that it does not go together with, and that may be the one to change.
    pub(super) with: Option<&'static str>,
    pub(super) problem: String,
    pub(super) remedy: String,
}

type Check = Result<(), Problem>;

/// More take minutes to start.
const MOST_THREADS: usize = 256;

fn require(
    holds: bool,
    field: &'static str,
    problem: impl FnOnce() -> String,
    remedy: impl Into<String>,
) -> Check {
    if holds {
        return Ok(());
    }
    Err(Problem { field, with: None, problem: problem(), remedy: remedy.into() })
}

/// Of a check of two fields: the other one.
fn with(other: &'static str, check: Check) -> Check {
    check.map_err(|problem| Problem { with: Some(other), ..problem })
}

/// A finite number above 0.
fn positive(field: &'static str, value: f64, usual: &str) -> Check {
    let problem = || match value {
        f64::INFINITY => "inf is not finite".to_string(),
        _ => format!("{value} is not above 0"),
    };
    let holds = value.is_finite() && value > 0.0;
    require(holds, field, problem, format!("{usual} is usual"))
}

/// As [`positive`], where there is a value.
fn positive_if(field: &'static str, value: Option<f64>, usual: &str) -> Check {
    value.map_or(Ok(()), |value| positive(field, value, usual))
}

fn at_least_one(field: &'static str, value: usize, usual: &str) -> Check {
    require(value > 0, field, || "0 is too few".to_string(), format!("{usual} is usual"))
}

/// A share in [0, 1).
fn share(field: &'static str, value: f64, usual: &str) -> Check {
    let remedy = format!("give a number from 0 to below 1; {usual} is usual");
    require((0.0..1.0).contains(&value), field, || format!("{value} is not in [0, 1)"), remedy)
}

/// The first thing wrong with the settings.
pub(super) fn check(settings: &Settings) -> Check {
    check_data(&settings.data)?;
    check_model(&settings.model, &settings.data)?;
    check_steps(&settings.train)?;
    check_optimizer(&settings.train)?;
    if let Some((field, problem, remedy)) = settings.augment.wrong() {
        return require(false, field, || problem, remedy);
    }
    check_device(&settings.device)
}

fn check_data(data: &DataSettings) -> Check {
    require(
        !data.target.trim().is_empty(),
        "data.target",
        || "is empty".to_string(),
        "name a column of participants.tsv, such as age or sex",
    )?;
    positive("data.window_s", data.window_s, "2.0")?;
    positive("data.stride_s", data.stride_s, "window_s, for windows that do not overlap,")?;
    let offset = data.event_offset_s;
    require(
        offset.is_finite(),
        "data.event_offset_s",
        || format!("{offset} is no time"),
        "give seconds, such as -0.5",
    )?;
    check_filters(data)?;
    positive_if("data.clip", data.clip, "15.0")?;
    require(
        data.reference != Reference::Channels(Vec::new()),
        "data.reference",
        || "the list of channels is empty".to_string(),
        "name at least one channel, or write \"average\" or \"recorded\"",
    )?;
    share("data.val_fraction", data.val_fraction, "0.15")?;
    share("data.test_fraction", data.test_fraction, "0.15")?;
    let held_out = data.val_fraction + data.test_fraction;
    let leaves_some = require(
        held_out < 1.0,
        "data.test_fraction",
        || format!("val_fraction + test_fraction = {held_out} leaves no subject to train on"),
        "make them sum to less than 1; 0.15 each is usual",
    );
    with("data.val_fraction", leaves_some)?;
    let scores_some = require(
        held_out > 0.0 || data.folds > 0,
        "data.test_fraction",
        || "val_fraction + test_fraction = 0 leaves no subject to score".to_string(),
        "give a test_fraction above 0; 0.15 is usual",
    );
    with("data.val_fraction", scores_some)?;
    require(
        data.folds != 1,
        "data.folds",
        || "one fold is no cross-validation".to_string(),
        "give 2 or more folds, or 0 for a single split",
    )
}

fn check_filters(data: &DataSettings) -> Check {
    positive_if("data.resample_hz", data.resample_hz, "100.0")?;
    positive_if("data.low_hz", data.low_hz, "0.5")?;
    positive_if("data.high_hz", data.high_hz, "45.0")?;
    if let Notch::Hz(hz) = data.notch_hz {
        positive("data.notch_hz", hz, "50.0 or 60.0")?;
    }
    if let (Some(low), Some(high)) = (data.low_hz, data.high_hz) {
        let has_width = require(
            low < high,
            "data.high_hz",
            || format!("the band from low_hz {low} to high_hz {high} is empty"),
            "give a low_hz below high_hz; 0.5 and 45.0 are usual",
        );
        with("data.low_hz", has_width)?;
    }
    if let (Some(high), Some(rate)) = (data.high_hz, data.resample_hz) {
        let is_below_half = require(
            high < rate / 2.0,
            "data.high_hz",
            || format!("high_hz {high} cannot be represented at resample_hz {rate}"),
            format!("give a high_hz below {}, or a higher resample_hz", rate / 2.0),
        );
        with("data.resample_hz", is_below_half)?;
    }
    Ok(())
}

fn check_model(model: &ModelSettings, data: &DataSettings) -> Check {
    at_least_one("model.d_model", model.d_model, "128")?;
    at_least_one("model.n_heads", model.n_heads, "8")?;
    at_least_one("model.n_layers", model.n_layers, "6")?;
    at_least_one("model.patch", model.patch, "4")?;
    at_least_one("model.shallow_filters", model.shallow_filters, "40")?;
    at_least_one("model.shallow_kernel", model.shallow_kernel, "25")?;
    at_least_one("model.shallow_pool", model.shallow_pool, "75")?;
    at_least_one("model.shallow_pool_stride", model.shallow_pool_stride, "15")?;
    share("model.dropout", model.dropout, "0.1")?;
    let (width, heads) = (model.d_model, model.n_heads);
    let divides = require(
        width.is_multiple_of(heads),
        "model.d_model",
        || format!("d_model {width} is not divisible by n_heads {heads}"),
        format!(
            "give a d_model that is a multiple of {heads}, such as {}, or an n_heads such as {}",
            width.div_ceil(heads).saturating_mul(heads),
            largest_divisor(width, heads)
        ),
    );
    with("model.n_heads", divides)?;
    let is_narrow = require(
        width / heads <= 128,
        "model.n_heads",
        || format!("each of n_heads {heads} would be {} wide, the limit is 128", width / heads),
        format!("give at least {} heads that divide d_model {width}", width.div_ceil(128)),
    );
    with("model.d_model", is_narrow)?;
    check_window(model, data)
}

/// The window against the model's lengths in samples, where the rate is known beforehand.
fn check_window(model: &ModelSettings, data: &DataSettings) -> Check {
    let Some(rate) = data.resample_hz else { return Ok(()) };
    let samples = (data.window_s * rate).round() as usize;
    let has_samples = require(
        samples > 0,
        "data.window_s",
        || format!("a window_s of {} has no sample at resample_hz {rate}", data.window_s),
        "give a longer window_s; 2.0 is usual",
    );
    with("data.resample_hz", has_samples)?;
    let fits = match model.name {
        ModelName::EegFormer => require(
            samples.is_multiple_of(model.patch),
            "model.patch",
            || {
                format!(
                    "patch {} does not divide a window of {samples} samples ({} s at {rate} Hz)",
                    model.patch, data.window_s
                )
            },
            format!(
                "give a patch of {}, or another data.window_s",
                largest_divisor(samples, model.patch)
            ),
        ),
        ModelName::Shallow => {
            let least = model.shallow_kernel + model.shallow_pool - 1;
            require(
                samples >= least,
                "model.shallow_pool",
                || {
                    format!(
                        "kernel and pool need {least} samples, a window has {samples} ({} s at {rate} Hz)",
                        data.window_s
                    )
                },
                "give a longer data.window_s, or a shorter shallow_kernel or shallow_pool",
            )
        }
    };
    with("data.window_s", fits)
}

fn largest_divisor(of: usize, at_most: usize) -> usize {
    (1..=at_most.min(of)).rev().find(|&length| of.is_multiple_of(length)).unwrap_or(1)
}

fn check_steps(train: &TrainSettings) -> Check {
    require(
        train.epochs > 0,
        "train.epochs",
        || "0 trains nothing".to_string(),
        "give 1 or more; to end sooner set train.max_steps",
    )?;
    require(
        train.max_steps != Some(0),
        "train.max_steps",
        || "0 trains nothing".to_string(),
        "give 1 or more, or \"off\"",
    )?;
    require(
        train.batch != Some(0),
        "train.batch",
        || "0 windows are no batch".to_string(),
        "give 1 or more, or \"auto\"",
    )?;
    at_least_one("train.accumulation", train.accumulation, "1")?;
    at_least_one("train.workers", train.workers, "2")?;
    require(
        train.threads != Some(0),
        "train.threads",
        || "0 threads compute nothing".to_string(),
        "give 1 or more, or \"auto\" for all cores",
    )?;
    require(
        train.threads.is_none_or(|threads| threads <= MOST_THREADS),
        "train.threads",
        || format!("is more than {MOST_THREADS} threads"),
        "give as many as there are cores, or \"auto\"",
    )?;
    require(
        train.patience != Some(0),
        "train.patience",
        || "0 would stop before the first epoch".to_string(),
        "give 1 or more epochs, or \"off\"",
    )?;
    let part = train.validation_share;
    require(
        part > 0.0 && part <= 1.0,
        "train.validation_share",
        || format!("{part} is not in (0, 1]"),
        "0.05 is usual; 1.0 for as many windows as there are to train on",
    )?;
    require(
        train.unfreeze != Some(0),
        "train.unfreeze",
        || "0 epochs per layer unfreeze all at once".to_string(),
        "give 1 or more epochs, or \"off\"",
    )?;
    require(
        train.checkpoint_every_steps != Some(0),
        "train.checkpoint_every_steps",
        || "0 is no interval".to_string(),
        "give 1 or more steps, or \"off\"",
    )?;
    positive_if("train.checkpoint_every_s", train.checkpoint_every_s, "600.0")?;
    check_warmup(train)
}

fn check_warmup(train: &TrainSettings) -> Check {
    match (train.warmup, train.max_steps) {
        (Warmup::Fraction(part), _) => share("train.warmup", part, "0.05"),
        (Warmup::Steps(steps), Some(total)) => {
            let ends = require(
                steps < total,
                "train.warmup",
                || format!("{steps} steps of warm-up never end in a run of max_steps {total}"),
                format!("give a warmup of fewer than {total} steps, or a share such as 0.05"),
            );
            with("train.max_steps", ends)
        }
        (Warmup::Steps(_), None) => Ok(()),
    }
}

fn check_optimizer(train: &TrainSettings) -> Check {
    positive("train.lr", train.lr, "0.001")?;
    positive_if("train.head_lr", train.head_lr, "0.001")?;
    let is_lower = require(
        (0.0..=train.lr).contains(&train.min_lr),
        "train.min_lr",
        || format!("min_lr {} is not between 0 and lr {}", train.min_lr, train.lr),
        "give a min_lr at or below train.lr; 0 is allowed",
    );
    with("train.lr", is_lower)?;
    let decay = train.weight_decay;
    require(
        decay.is_finite() && decay >= 0.0,
        "train.weight_decay",
        || format!("{decay} is negative or no number"),
        "give 0 or more; 0.05 is usual",
    )?;
    let [beta1, beta2] = train.betas;
    share("train.betas", beta1, "[0.9, 0.95]")?;
    share("train.betas", beta2, "[0.9, 0.95]")?;
    positive("train.eps", train.eps, "1e-8")?;
    share("train.momentum", train.momentum, "0.9")?;
    positive_if("train.clip", train.clip, "1.0")?;
    share("train.label_smoothing", train.label_smoothing, "0.0 or 0.1")?;
    let delta = train.min_delta;
    require(
        delta.is_finite() && delta >= 0.0,
        "train.min_delta",
        || format!("{delta} is negative or no number"),
        "give 0 or more",
    )?;
    if let ClassWeights::Given(weights) = &train.class_weights {
        require(
            !weights.is_empty() && weights.iter().all(|w| w.is_finite() && *w > 0.0),
            "train.class_weights",
            || format!("{weights:?} are not all above 0"),
            "give one number above 0 per class, or \"balanced\" or \"off\"",
        )?;
    }
    if let Some(decay) = train.ema {
        require(
            decay > 0.0 && decay < 1.0,
            "train.ema",
            || format!("{decay} is not in (0, 1)"),
            "0.999 is usual; \"off\" for no average",
        )?;
    }
    Ok(())
}

fn check_device(device: &DeviceSettings) -> Check {
    require(
        device.memory.is_none_or(|limit| limit.0 > 0),
        "device.memory",
        || "0 bytes hold nothing".to_string(),
        "give a size such as \"6GB\", or \"auto\"",
    )?;
    let twice = device
        .route
        .iter()
        .enumerate()
        .find(|(i, route)| device.route.iter().take(*i).any(|earlier| earlier.op == route.op));
    require(
        twice.is_none(),
        "device.route",
        || format!("{} is routed twice", twice.map_or("", |(_, route)| route.op.as_str())),
        "name each op once",
    )
}
