//! The order in which windows are seen: a pure function of the seed and the epoch (one pass over
//! the training data), so that a resumed run goes on exactly where it stopped.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::rng::Rng;
use crate::{Error, Result};

/// What is seen equally often.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Balance {
    /// Every window, once an epoch.
    #[default]
    Windows,
    /// Every class.
    Classes,
    /// Every subject, so that long recordings do not dominate.
    Subjects,
    /// Every class, and within it every subject.
    ClassesAndSubjects,
}

/// Draws training windows. An epoch has as many windows as there are, rounded down to whole batches.
/// Where something is balanced, what is rare is repeated, but no window comes an (n+1)th time before
/// all others of its group have come n times.
#[derive(Debug, Clone)]
pub struct Sampler {
    /// Windows of each group, with the group's share of an epoch.
    groups: Vec<(Vec<u32>, f64)>,
    n_windows: usize,
    batch: usize,
    seed: u64,
}

impl Sampler {
    /// A sampler over windows `0..subjects.len()`. `subjects` and `classes` number the subject and
    /// class of each window; `classes` is needed where classes are balanced.
    ///
    /// # Errors
    /// Fewer windows than a batch, a batch of 0, no classes where they are to be balanced.
    pub fn new(
        subjects: &[u32],
        classes: Option<&[u32]>,
        balance: Balance,
        batch: usize,
        seed: u64,
    ) -> Result<Self> {
        let n_windows = subjects.len();
        if batch == 0 || n_windows < batch || u32::try_from(n_windows).is_err() {
            return Err(Error::input(
                "batch",
                format!("{n_windows} training windows do not fill one batch of {batch}"),
                "choose a smaller batch, or a smaller window stride for more windows",
            ));
        }
        let by_class = matches!(balance, Balance::Classes | Balance::ClassesAndSubjects);
        let by_subject = matches!(balance, Balance::Subjects | Balance::ClassesAndSubjects);
        let classes = match classes.filter(|_| by_class) {
            Some(classes) if classes.len() == n_windows => Some(classes),
            None if !by_class => None,
            other => {
                let given = other.map_or(0, <[u32]>::len);
                let problem = format!("{given} classes for {n_windows} windows");
                return Err(Error::shape("balanced sampling", problem));
            }
        };
        let mut tree: BTreeMap<u32, BTreeMap<u32, Vec<u32>>> = BTreeMap::new();
        for (i, &subject) in (0..).zip(subjects) {
            let class = classes.map_or(0, |c| c[i as usize]);
            let leaf = tree.entry(class).or_default().entry(if by_subject { subject } else { 0 });
            leaf.or_default().push(i);
        }
        let class_share = 1.0 / tree.len() as f64;
        let groups = tree
            .into_values()
            .flat_map(|subjects| {
                let share = class_share / subjects.len() as f64;
                subjects.into_values().map(move |windows| (windows, share))
            })
            .collect();
        Ok(Self { groups, n_windows, batch, seed })
    }

    /// Batches of an epoch; all of the same size.
    pub fn batches(&self) -> usize {
        self.n_windows / self.batch
    }

    /// Windows of a batch.
    pub fn batch(&self) -> usize {
        self.batch
    }

    /// Windows of epoch `epoch`, counted from 0, in order: [`Self::batches`] times
    /// [`Self::batch`]. Batch `b` is `order[b * batch..][..batch]`.
    pub fn order(&self, epoch: u64) -> Vec<u32> {
        let mut rng = Rng::new(self.seed ^ 0x5a4d_504c_4552, epoch);
        let total = self.batches() * self.batch;
        // A single group gives all its windows first, so that it is drawn which ones the last,
        // partial batch takes out.
        let drawn = if self.groups.len() == 1 { self.n_windows } else { total };
        let mut order = Vec::with_capacity(drawn);
        let mut share_so_far = 0.0;
        // Rounding must not favour the groups that come first: their order is drawn too.
        let mut turns: Vec<usize> = (0..self.groups.len()).collect();
        rng.shuffle(&mut turns);
        for g in turns {
            let (windows, share) = &self.groups[g];
            share_so_far += share;
            let goal = ((share_so_far * drawn as f64).round() as usize).min(drawn);
            while order.len() < goal {
                let from = order.len();
                order.extend_from_slice(windows);
                rng.shuffle(&mut order[from..]);
                order.truncate(goal);
            }
        }
        rng.shuffle(&mut order);
        order.truncate(total);
        order
    }
}

/// Windows `0..n_windows` for evaluation: in order, in batches of `batch`, the last one as long as it
/// comes.
pub fn in_order(n_windows: usize, batch: usize) -> impl Iterator<Item = std::ops::Range<usize>> {
    let batch = batch.max(1);
    (0..n_windows).step_by(batch).map(move |start| start..(start + batch).min(n_windows))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::{Balance, Sampler, in_order};

    fn counts(order: &[u32], key: impl Fn(u32) -> u32) -> BTreeMap<u32, usize> {
        order.iter().fold(BTreeMap::new(), |mut map, &w| {
            *map.entry(key(w)).or_default() += 1;
            map
        })
    }

    /// 7 subjects of very unequal length in 2 classes.
    fn uneven() -> (Vec<u32>, Vec<u32>) {
        let lengths = [400u32, 3, 57, 20, 11, 101, 8];
        let subjects: Vec<u32> =
            (0u32..).zip(lengths).flat_map(|(s, n)| vec![s; n as usize]).collect();
        let classes = subjects.iter().map(|&s| u32::from(s == 3 || s == 1)).collect();
        (subjects, classes)
    }

    #[test]
    fn an_epoch_sees_each_window_once() {
        let (subjects, _) = uneven();
        let sampler = Sampler::new(&subjects, None, Balance::Windows, 32, 9).unwrap();
        let order = sampler.order(3);
        assert_eq!(order.len(), sampler.batches() * 32);
        assert!(counts(&order, |w| w).values().all(|&n| n == 1));
        assert_eq!(order, sampler.clone().order(3), "pure");
        assert_ne!(order, sampler.order(4));
        let other = Sampler::new(&subjects, None, Balance::Windows, 32, 10).unwrap();
        assert_ne!(order, other.order(3));
        // What one epoch leaves out, another has.
        let mut seen: Vec<u32> = (0..8).flat_map(|e| sampler.order(e)).collect();
        seen.sort_unstable();
        seen.dedup();
        assert_eq!(seen.len(), subjects.len());
    }

    #[test]
    fn classes_and_subjects_come_equally_often() {
        let (subjects, classes) = uneven();
        let class_of = |w: u32| classes[w as usize];
        let subject_of = |w: u32| subjects[w as usize];
        let order =
            |balance| Sampler::new(&subjects, Some(&classes), balance, 16, 5).unwrap().order(0);
        let by_class = counts(&order(Balance::Classes), class_of);
        assert!(by_class[&0].abs_diff(by_class[&1]) <= 1, "{by_class:?}");
        let by_subject = counts(&order(Balance::Subjects), subject_of);
        assert_eq!(by_subject.len(), 7);
        let (low, high) = (by_subject.values().min(), by_subject.values().max());
        assert!(high.unwrap() - low.unwrap() <= 1, "{by_subject:?}");
        let both = order(Balance::ClassesAndSubjects);
        let by_class = counts(&both, class_of);
        assert!(by_class[&0].abs_diff(by_class[&1]) <= 1, "{by_class:?}");
        let by_subject = counts(&both, subject_of);
        assert!(by_subject[&1].abs_diff(by_subject[&3]) <= 1, "{by_subject:?}");
        assert!(by_subject[&0].abs_diff(by_subject[&6]) <= 1, "{by_subject:?}");
        // Repeats are spread evenly within a group.
        let three = counts(&both, |w| w);
        let of_subject_1: Vec<usize> = (400..403).map(|w| three[&w]).collect();
        assert!(of_subject_1.iter().max().unwrap() - of_subject_1.iter().min().unwrap() <= 1);
    }

    #[test]
    fn evaluation_keeps_the_last_batch() {
        let ranges: Vec<_> = in_order(23, 8).collect();
        assert_eq!(ranges, [0..8, 8..16, 16..23]);
        assert_eq!(in_order(0, 8).count(), 0);
    }

    #[test]
    fn impossible_batches_are_refused() {
        let (subjects, classes) = uneven();
        assert!(Sampler::new(&subjects, None, Balance::Windows, 0, 1).is_err());
        assert!(Sampler::new(&subjects, None, Balance::Windows, 601, 1).is_err());
        assert!(Sampler::new(&subjects, None, Balance::Classes, 8, 1).is_err());
        assert!(Sampler::new(&subjects, Some(&classes[1..]), Balance::Classes, 8, 1).is_err());
    }
}
