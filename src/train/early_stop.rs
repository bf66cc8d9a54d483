//! Patience: the best validation score so far, and when to stop waiting for a better one.

use serde::{Deserialize, Serialize};

/// Which way a score improves.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Better {
    /// An error: MAE, loss.
    Lower,
    /// A merit: balanced accuracy, AUROC, r.
    Higher,
}

/// What follows from an epoch's score.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// The best so far: keep this checkpoint.
    Best,
    /// Not better; go on.
    Wait,
    /// Not better for as many epochs as patience lasts.
    Stop,
}

/// The best score and the epochs since, part of a checkpoint so that a resumed run stops where the
/// uninterrupted one would have.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct EarlyStop {
    better: Better,
    patience: Option<u64>,
    min_delta: f64,
    best: Option<Best>,
    since: u64,
}

/// The best score and its epoch.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Best {
    /// The epoch, as given to [`EarlyStop::update`].
    pub epoch: u64,
    /// The score.
    pub score: f64,
}

impl EarlyStop {
    /// Stops after `patience` epochs without a score better by more than `min_delta`; `None` never
    /// stops.
    pub fn new(better: Better, patience: Option<u64>, min_delta: f64) -> Self {
        Self { better, patience, min_delta, best: None, since: 0 }
    }

    /// Takes an epoch's score. A score that is not finite is never better.
    pub fn update(&mut self, epoch: u64, score: f64) -> Verdict {
        if self.improves(score) {
            self.best = Some(Best { epoch, score });
            self.since = 0;
            return Verdict::Best;
        }
        self.since += 1;
        match self.patience {
            Some(patience) if self.since >= patience => Verdict::Stop,
            _ => Verdict::Wait,
        }
    }

    fn improves(&self, score: f64) -> bool {
        let Some(best) = self.best else { return score.is_finite() };
        let gain = match self.better {
            Better::Lower => best.score - score,
            Better::Higher => score - best.score,
        };
        score.is_finite() && gain > self.min_delta
    }

    /// The best so far.
    pub fn best(&self) -> Option<Best> {
        self.best
    }

    /// Epochs since the best.
    pub fn since(&self) -> u64 {
        self.since
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn waits_as_long_as_patience_lasts() {
        let mut stop = EarlyStop::new(Better::Lower, Some(2), 0.1);
        let scores = [f64::NAN, 5.0, 4.95, 4.8, f64::INFINITY, 4.75];
        let verdicts: Vec<Verdict> = (1..).zip(scores).map(|(e, s)| stop.update(e, s)).collect();
        use Verdict::{Best as B, Stop, Wait};
        assert_eq!(verdicts, [Wait, B, Wait, B, Wait, Stop]);
        assert_eq!(stop.best(), Some(Best { epoch: 4, score: 4.8 }));
    }

    proptest! {
        /// Against the definition, computed from the whole history; and through JSON after every
        /// epoch, as in a resumed run.
        #[test]
        fn agrees_with_the_history(
            scores in proptest::collection::vec(-3.0..3.0_f64, 1..40),
            patience in proptest::option::of(1..6_u64),
            higher: bool,
        ) {
            let better = if higher { Better::Higher } else { Better::Lower };
            let sign = if higher { 1.0 } else { -1.0 };
            let mut stop = EarlyStop::new(better, patience, 0.0);
            for (i, &score) in scores.iter().enumerate() {
                let verdict = stop.update(i as u64, score);
                let seen = &scores[..=i];
                let top = seen.iter().map(|s| s * sign).fold(f64::NEG_INFINITY, f64::max);
                let first = seen.iter().position(|s| s * sign == top).expect("it is one of them");
                let since = (i - first) as u64;
                let expected = match patience {
                    _ if since == 0 => Verdict::Best,
                    Some(patience) if since >= patience => Verdict::Stop,
                    _ => Verdict::Wait,
                };
                prop_assert_eq!(verdict, expected);
                prop_assert_eq!(stop.since(), since);
                let json = serde_json::to_string(&stop).expect("plain numbers");
                let read: EarlyStop = serde_json::from_str(&json).expect("its own JSON");
                prop_assert_eq!(read, stop, "to the last bit");
                stop = read;
            }
        }
    }
}
