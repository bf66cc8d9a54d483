//! Dynamic loss scaling (Micikevicius et al. 2018): gradients in f16 are kept off its small end by a
//! factor that is halved when something overflows and doubled when nothing has for long.

use std::collections::VecDeque;

use serde::{Deserialize, Serialize};

use crate::DType;

/// Steps without overflow after which the scale is doubled, as in PyTorch's `GradScaler`.
const PATIENCE: u32 = 2000;
const FIRST: f64 = 65_536.0;
const LARGEST: f64 = 16_777_216.0;

/// Steps between a result and the first step that it bears on: one is under way when it is read.
const LAG: u64 = 2;

/// The factor, and for how long it was right.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct LossScale {
    value: f64,
    good_steps: u32,
    is_dynamic: bool,
    /// Steps whose outcome is known but not yet in force, and whether they were good.
    outcomes: VecDeque<(u64, bool)>,
}

impl Default for LossScale {
    fn default() -> Self {
        Self { value: 1.0, good_steps: 0, is_dynamic: false, outcomes: VecDeque::new() }
    }
}

impl LossScale {
    /// Dynamic for activations in f16, 1 for every other type.
    pub fn new(compute: DType) -> Self {
        match compute {
            DType::F16 => Self { value: FIRST, is_dynamic: true, ..Self::default() },
            _ => Self::default(),
        }
    }

    /// What the loss of step number `step` is multiplied by. It follows from the outcomes of the
    /// steps up to the last but one, whenever those were read: so a resumed run scales alike.
    pub fn at(&mut self, step: u64) -> f64 {
        while let Some(&(known, good)) = self.outcomes.front().filter(|o| o.0 + LAG <= step) {
            debug_assert!(known < step);
            self.outcomes.pop_front();
            if good { self.grow() } else { self.halve() }
        }
        self.value
    }

    /// Notes how step number `step` ended. False where an overflow cannot be helped: the scale is
    /// fixed, or 1 already.
    pub fn observe(&mut self, step: u64, good: bool) -> bool {
        if self.is_dynamic {
            self.outcomes.push_back((step, good));
        }
        good || (self.is_dynamic && self.value > 1.0)
    }

    fn grow(&mut self) {
        self.good_steps += 1;
        if self.good_steps >= PATIENCE {
            self.value = (2.0 * self.value).min(LARGEST);
            self.good_steps = 0;
        }
    }

    fn halve(&mut self) {
        self.value = (0.5 * self.value).max(1.0);
        self.good_steps = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_f16_is_scaled() {
        for dtype in [DType::F32, DType::Bf16, DType::F64] {
            let mut scale = LossScale::new(dtype);
            assert!(!scale.observe(1, false));
            assert!((2..9_000).all(|step| scale.observe(step, true) && scale.at(step + 2) == 1.0));
        }
    }

    #[test]
    fn overflow_halves_and_patience_doubles() {
        let mut scale = LossScale::new(DType::F16);
        assert_eq!(scale.at(1), FIRST);
        assert!(scale.observe(1, false));
        // One step is under way when the result is read.
        assert_eq!((scale.at(2), scale.at(3)), (FIRST, FIRST / 2.0));
        for step in 2..2 + u64::from(PATIENCE) {
            assert!(scale.observe(step, true));
        }
        assert_eq!(scale.at(2 + u64::from(PATIENCE)), FIRST / 2.0);
        assert_eq!(scale.at(3 + u64::from(PATIENCE)), FIRST);
        for step in 5_000..5_016 {
            assert!(scale.observe(step, false), "step {step}");
            scale.at(step + 2);
        }
        assert!(!scale.observe(6_000, false), "a scale of 1 cannot be halved");
    }

    /// A pause, after which all results have been read, changes no scale.
    #[test]
    fn when_results_are_read_does_not_matter() {
        let good = |step: u64| !step.is_multiple_of(7);
        let (mut late, mut early) = (LossScale::new(DType::F16), LossScale::new(DType::F16));
        for step in 1..60 {
            if step > 1 {
                late.observe(step - 1, good(step - 1));
            }
            assert_eq!(late.at(step + 1), early.at(step + 1));
            early.observe(step, good(step));
        }
    }
}
