//! The learning rate as a function of the step.

use std::f64::consts::PI;

use crate::config::{ScheduleName, TrainSettings};
use crate::error::{Error, Result};

/// One-cycle starts at this part of the peak (Smith & Topin 2018, and PyTorch's `OneCycleLR`).
const ONE_CYCLE_START: f64 = 1.0 / 25.0;

/// A learning-rate schedule, as factors of the peak: several groups of parameters with peaks of
/// their own follow one schedule.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Schedule {
    name: ScheduleName,
    warmup: u64,
    total: u64,
    floor: f64,
}

impl Schedule {
    /// A schedule of `total` optimizer steps, the first `warmup` of them rising, that ends at
    /// `floor` times the peak.
    ///
    /// # Errors
    /// [`Error::Input`] naming the field where there are no steps, the warm-up never ends, or the
    /// floor is not in [0, 1].
    pub fn new(name: ScheduleName, warmup: u64, total: u64, floor: f64) -> Result<Self> {
        if total == 0 {
            let remedy = "give more windows, a smaller train.batch or more train.epochs";
            return Err(Error::input("train.epochs", "the run has no optimizer step", remedy));
        }
        if warmup >= total {
            let problem = format!("{warmup} steps of warm-up never end in a run of {total} steps");
            let remedy = format!("give fewer than {total} steps, or a share such as 0.05");
            return Err(Error::input("train.warmup", problem, remedy));
        }
        if !(0.0..=1.0).contains(&floor) {
            let problem = format!("the final rate is {floor} times the peak");
            return Err(Error::input("train.min_lr", problem, "give a rate from 0 to train.lr"));
        }
        Ok(Self { name, warmup, total, floor })
    }

    /// The schedule of a run of `total` optimizer steps.
    ///
    /// # Errors
    /// As [`Schedule::new`].
    pub fn from_settings(train: &TrainSettings, total: u64) -> Result<Self> {
        let floor = train.min_lr / train.lr;
        Self::new(train.schedule, train.warmup.steps(total), total, floor)
    }

    /// Optimizer steps in all.
    pub fn total(&self) -> u64 {
        self.total
    }

    /// The factor, in [0, 1], of the peak learning rate at `step`, counted from 0. It is 1 at
    /// step `warmup`; at `total` and after, the end's. The first step already moves: a linear
    /// warm-up begins at 1 / (warmup + 1), not at 0.
    pub fn factor(&self, step: u64) -> f64 {
        if step < self.warmup {
            return self.rising(step);
        }
        let done = (step.min(self.total) - self.warmup) as f64 / (self.total - self.warmup) as f64;
        match self.name {
            ScheduleName::Constant => 1.0,
            ScheduleName::Linear => between(1.0, self.floor, done),
            ScheduleName::Cosine | ScheduleName::OneCycle => {
                between(1.0, self.floor, half_cosine(done))
            }
        }
    }

    fn rising(&self, step: u64) -> f64 {
        match self.name {
            ScheduleName::OneCycle => {
                let done = half_cosine(step as f64 / self.warmup as f64);
                between(ONE_CYCLE_START, 1.0, done)
            }
            _ => (step + 1) as f64 / (self.warmup + 1) as f64,
        }
    }

    /// The learning rate at `step`, counted from 0, of a group whose peak is `peak`.
    pub fn lr(&self, peak: f64, step: u64) -> f64 {
        peak * self.factor(step)
    }
}

fn between(from: f64, to: f64, done: f64) -> f64 {
    from + (to - from) * done
}

/// From 0 to 1 along half a cosine (Loshchilov & Hutter 2017).
fn half_cosine(done: f64) -> f64 {
    0.5 - 0.5 * (PI * done).cos()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn any_schedule() -> impl Strategy<Value = Schedule> {
        let name = proptest::sample::select(ScheduleName::ALL.to_vec());
        (name, 1..5000_u64, 0.0..1.0_f64, 0.0..=1.0_f64).prop_map(|(name, total, part, floor)| {
            let warmup = (part * total as f64) as u64;
            Schedule::new(name, warmup, total, floor).expect("a warm-up that ends")
        })
    }

    proptest! {
        #[test]
        fn ends_are_exact(schedule in any_schedule(), beyond in 0..1_000_000_u64) {
            prop_assert_eq!(schedule.factor(schedule.warmup), 1.0);
            let end = match schedule.name {
                ScheduleName::Constant => 1.0,
                _ => schedule.floor,
            };
            prop_assert!((schedule.factor(schedule.total) - end).abs() < 1e-12);
            prop_assert_eq!(schedule.factor(schedule.total + beyond), schedule.factor(schedule.total));
            prop_assert!(schedule.factor(0) > 0.0);
        }

        /// Neighbouring steps differ by no more than the steepest slope of the curve, PI / 2 over
        /// its length.
        #[test]
        fn has_no_jump(schedule in any_schedule(), at in 0.0..1.0_f64) {
            let step = (at * schedule.total as f64) as u64;
            let (now, next) = (schedule.factor(step), schedule.factor(step + 1));
            let length = match step < schedule.warmup {
                true => schedule.warmup,
                false => schedule.total - schedule.warmup,
            };
            prop_assert!((now - next).abs() <= PI / 2.0 / length as f64 + 1e-12, "{} {}", now, next);
        }

        #[test]
        fn rises_then_falls_within_bounds(schedule in any_schedule(), at in 0.0..1.0_f64) {
            let step = (at * schedule.total as f64) as u64;
            let (now, next) = (schedule.factor(step), schedule.factor(step + 1));
            prop_assert!((0.0..=1.0).contains(&now));
            if step < schedule.warmup { prop_assert!(next > now) } else { prop_assert!(next <= now) }
        }
    }

    #[test]
    fn hand_computed_values() {
        let schedule = |name, warmup, total| Schedule::new(name, warmup, total, 0.1).expect("fits");
        let close = |a: f64, b: f64| assert!((a - b).abs() < 1e-12, "{a} {b}");
        let cosine = schedule(ScheduleName::Cosine, 4, 12);
        close(cosine.factor(0), 0.2);
        close(cosine.factor(3), 0.8);
        close(cosine.factor(8), 0.55);
        close(cosine.lr(2e-3, 12), 2e-4);
        close(schedule(ScheduleName::Linear, 0, 10).factor(5), 0.55);
        let cycle = schedule(ScheduleName::OneCycle, 6, 20);
        close(cycle.factor(0), 0.04);
        close(cycle.factor(3), 0.52);
        close(cycle.factor(13), 0.55);
    }

    #[test]
    fn refuses_a_warmup_without_end() {
        for (warmup, total) in [(5, 5), (1, 1), (9, 3), (0, 0)] {
            assert!(Schedule::new(ScheduleName::Cosine, warmup, total, 0.0).is_err());
        }
        assert!(Schedule::new(ScheduleName::Cosine, 0, 1, f64::NAN).is_err());
    }
}
