//! Splits by subject. One window identifies its subject almost surely, so a subject's windows must
//! all lie in one part; [`Split::assert_disjoint`] proves it for the run's log.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use super::rng::Rng;
use crate::{Error, Result};

/// What the parts should have in equal shares.
#[derive(Debug, Clone, Copy)]
pub enum Strata<'a> {
    /// Nothing.
    None,
    /// A class for each subject. Every class must come up in training.
    Classes(&'a [u32]),
    /// A number for each subject, such as the age, cut at quantiles into `bins`.
    Values {
        /// One finite value for each subject.
        values: &'a [f64],
        /// Number of quantile bins, 1 or more.
        bins: usize,
    },
}

/// A part of a split.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Part {
    /// Gradients come from these subjects.
    Train,
    /// Checkpoints are chosen on these.
    Validation,
    /// Results are reported on these.
    Test,
}

/// Subject labels by part, each list sorted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Split {
    /// Gradients come from these subjects.
    pub train: Vec<String>,
    /// Checkpoints are chosen on these.
    pub validation: Vec<String>,
    /// Results are reported on these.
    pub test: Vec<String>,
}

/// Shows that no subject is in two parts. `{}` prints the counts, `{:#}` the subjects as well.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Proof {
    split: Split,
}

/// Splits into shares of `fractions` (training, validation, test; they need not sum to 1). `subjects`
/// and the strata run side by side and may name a subject more than once. The result depends on the
/// set of subjects and the seed, not on their order. Of classes, the test part has two subjects each
/// where it has the places and training the subjects: of one, no interval could be given.
///
/// # Errors
/// One subject only, fractions that make no sense, too few subjects to give every part with a
/// fraction above 0 at least one, a subject of two classes, a class missing in training.
pub fn by_fractions(
    subjects: &[String],
    strata: Strata<'_>,
    fractions: [f64; 3],
    seed: u64,
) -> Result<Split> {
    let sum: f64 = fractions.iter().sum();
    if !(fractions.iter().all(|f| *f >= 0.0) && fractions[0] > 0.0 && sum.is_finite()) {
        return Err(Error::input(
            "split.fractions",
            format!("{fractions:?} are not three shares"),
            "give training, validation and test shares, as in [0.7, 0.15, 0.15]",
        ));
    }
    let people = people(subjects, strata)?;
    let order = shuffled_by_stratum(&people, seed, 0);
    let mut parts = deal(&order, fractions.map(|f| f / sum));
    if matches!(strata, Strata::Classes(_)) {
        two_of_each_class(&people, &mut parts);
    }
    let [train, validation, test] = parts;
    let split = Split::new(&people, train, validation, test);
    for (part, fraction, list) in [
        ("validation", fractions[1], &split.validation),
        ("test", fractions[2], &split.test),
        ("training", fractions[0], &split.train),
    ] {
        if fraction > 0.0 && list.is_empty() {
            return Err(Error::input(
                "split.fractions",
                format!("{} subjects are too few: the {part} part is empty", people.len()),
                "add subjects, raise that part's share, or use cross-validation",
            ));
        }
    }
    check_classes(&people, &split, strata)?;
    Ok(split)
}

/// `folds` splits; every subject is tested in exactly one. From the subjects that a fold does not
/// test, the share `validation` is held out to choose checkpoints on, so that the choice never sees
/// the test subjects.
///
/// # Errors
/// As [`by_fractions`], and fewer subjects than folds.
pub fn k_fold(
    subjects: &[String],
    strata: Strata<'_>,
    folds: usize,
    validation: f64,
    seed: u64,
) -> Result<Vec<Split>> {
    let people = people(subjects, strata)?;
    if folds < 2 || folds > people.len() {
        return Err(Error::input(
            "split.folds",
            format!("{folds} folds of {} subjects are not possible", people.len()),
            format!("choose 2 to {} folds", people.len()),
        ));
    }
    if !(0.0..1.0).contains(&validation) {
        let remedy = "give a share of at least 0 and below 1, as in 0.2";
        return Err(Error::input("split.validation", format!("{validation} is no share"), remedy));
    }
    let order = shuffled_by_stratum(&people, seed, 0);
    let mut splits = Vec::with_capacity(folds);
    for fold in 0..folds {
        let test = order.iter().copied().skip(fold).step_by(folds).collect();
        let tested: BTreeSet<usize> = order.iter().copied().skip(fold).step_by(folds).collect();
        let others: Vec<usize> = shuffled_by_stratum(&people, seed, fold as u64 + 1)
            .into_iter()
            .filter(|i| !tested.contains(i))
            .collect();
        let [train, held_out, _] = deal(&others, [1.0 - validation, validation, 0.0]);
        let split = Split::new(&people, train, held_out, test);
        if split.train.is_empty() || (validation > 0.0 && split.validation.is_empty()) {
            return Err(Error::input(
                "split.folds",
                format!("fold {} of {folds} leaves a part empty", fold + 1),
                "add subjects, or change the folds or the validation share",
            ));
        }
        check_classes(&people, &split, strata)?;
        splits.push(split);
    }
    Ok(splits)
}

/// Distinct subjects, sorted, each with its stratum.
type People = Vec<(String, u32)>;

fn people(subjects: &[String], strata: Strata<'_>) -> Result<People> {
    let given = match strata {
        Strata::None => subjects.len(),
        Strata::Classes(classes) => classes.len(),
        Strata::Values { values, .. } => values.len(),
    };
    if given != subjects.len() {
        let problem = format!("{given} labels for {} subjects", subjects.len());
        return Err(Error::shape("split", problem));
    }
    let people = match strata {
        Strata::None => {
            let distinct: BTreeSet<&String> = subjects.iter().collect();
            distinct.into_iter().map(|s| (s.clone(), 0)).collect()
        }
        Strata::Classes(classes) => by_class(subjects, classes)?,
        Strata::Values { values, bins } => by_quantile(subjects, values, bins)?,
    };
    if people.len() < 2 {
        let only = people.first().map_or("there is none", |(s, _)| s.as_str());
        return Err(Error::input(
            "split",
            format!("one subject only ({only}): nothing is left to test on"),
            "add subjects",
        ));
    }
    Ok(people)
}

fn by_class(subjects: &[String], classes: &[u32]) -> Result<People> {
    let mut distinct: BTreeMap<&String, u32> = BTreeMap::new();
    for (subject, &class) in subjects.iter().zip(classes) {
        let first = *distinct.entry(subject).or_insert(class);
        if first != class {
            return Err(Error::input(
                format!("subject {subject}"),
                format!("has classes {first} and {class}"),
                "a split by subject needs one class for each: correct participants.tsv, or do not \
                 stratify",
            ));
        }
    }
    Ok(distinct.into_iter().map(|(s, class)| (s.clone(), class)).collect())
}

/// Stratum: quantile bin of the subject's lowest value.
fn by_quantile(subjects: &[String], values: &[f64], bins: usize) -> Result<People> {
    let mut distinct: BTreeMap<&String, f64> = BTreeMap::new();
    for (subject, &value) in subjects.iter().zip(values) {
        if !value.is_finite() {
            let remedy = "leave out subjects without a label before splitting";
            return Err(Error::input(format!("subject {subject}"), "has no label", remedy));
        }
        let lowest = distinct.entry(subject).or_insert(value);
        *lowest = lowest.min(value);
    }
    let mut ranked: Vec<(&String, f64)> = distinct.into_iter().collect();
    ranked.sort_by(|a, b| a.1.total_cmp(&b.1).then(a.0.cmp(b.0)));
    let n = ranked.len().max(1);
    let mut people: People = (ranked.into_iter().enumerate())
        .map(|(rank, (s, _))| (s.clone(), (rank * bins.max(1) / n) as u32))
        .collect();
    people.sort();
    Ok(people)
}

/// Indices of people, stratum by stratum, shuffled within.
fn shuffled_by_stratum(people: &People, seed: u64, stream: u64) -> Vec<usize> {
    let mut order: Vec<usize> = (0..people.len()).collect();
    Rng::new(seed, stream).shuffle(&mut order);
    order.sort_by_key(|&i| people[i].1);
    order
}

/// Gives each in turn to the part that lags furthest behind its share, so that totals and strata
/// are both met to within one or two.
fn deal(order: &[usize], shares: [f64; 3]) -> [Vec<usize>; 3] {
    let mut parts: [Vec<usize>; 3] = Default::default();
    for (dealt, &i) in order.iter().enumerate() {
        let lag = |p: usize| shares[p] * (dealt + 1) as f64 - parts[p].len() as f64;
        // Of equal lags the first part's counts: training's.
        let behind = |a: usize, b: usize| if lag(b) > lag(a) { b } else { a };
        let most = [1, 2].into_iter().filter(|&p| shares[p] > 0.0).fold(0, behind);
        parts[most].push(i);
    }
    parts
}

/// Exchanges subjects of training and test until the test part has two of each class, or nobody to
/// exchange: classes that have more than two there give, and training keeps two.
fn two_of_each_class(people: &People, parts: &mut [Vec<usize>; 3]) {
    let [train, _, test] = parts;
    let of = |part: &[usize], class: u32| part.iter().filter(|&&i| people[i].1 == class).count();
    let classes: BTreeSet<u32> = people.iter().map(|(_, class)| *class).collect();
    for &class in &classes {
        while of(test, class) < 2 && of(train, class) > 2 {
            let Some(most) = classes.iter().copied().max_by_key(|&c| of(test, c)) else { return };
            if of(test, most) <= 2 {
                break;
            }
            let giver = test.iter_mut().rev().find(|i| people[**i].1 == most);
            let taker = train.iter_mut().rev().find(|i| people[**i].1 == class);
            let (Some(giver), Some(taker)) = (giver, taker) else { break };
            std::mem::swap(giver, taker);
        }
    }
}

fn check_classes(people: &People, split: &Split, strata: Strata<'_>) -> Result<()> {
    if !matches!(strata, Strata::Classes(_)) {
        return Ok(());
    }
    let mut counts: BTreeMap<u32, (usize, usize)> = BTreeMap::new();
    for (subject, class) in people {
        let count = counts.entry(*class).or_default();
        count.0 += 1;
        count.1 += usize::from(split.part_of(subject) == Some(Part::Train));
    }
    match counts.into_iter().find(|(_, (_, trained))| *trained == 0) {
        None => Ok(()),
        Some((class, (all, _))) => Err(Error::input(
            "split",
            format!("class {class} ({all} subjects in all) is missing in the training part"),
            "add subjects of that class, leave it out, or give training a larger share",
        )),
    }
}

impl Split {
    fn new(people: &People, train: Vec<usize>, validation: Vec<usize>, test: Vec<usize>) -> Self {
        let names = |part: Vec<usize>| {
            let mut names: Vec<String> = part.into_iter().map(|i| people[i].0.clone()).collect();
            names.sort_unstable();
            names
        };
        Self { train: names(train), validation: names(validation), test: names(test) }
    }

    /// The part of a subject, where it has one.
    pub fn part_of(&self, subject: &str) -> Option<Part> {
        let has = |list: &[String]| list.binary_search_by(|s| s.as_str().cmp(subject)).is_ok();
        match () {
            () if has(&self.train) => Some(Part::Train),
            () if has(&self.validation) => Some(Part::Validation),
            () if has(&self.test) => Some(Part::Test),
            () => None,
        }
    }

    /// Proves that no subject is in two parts, "sub-01" and "01" being one subject.
    ///
    /// # Errors
    /// Names a subject that is, and where.
    pub fn assert_disjoint(&self) -> Result<Proof> {
        let mut seen: BTreeMap<&str, &str> = BTreeMap::new();
        for (part, list) in self.parts() {
            for subject in list {
                let label = subject.strip_prefix("sub-").unwrap_or(subject);
                if let Some(other) = seen.insert(label, part) {
                    return Err(Error::input(
                        "split",
                        format!("subject {subject} is in {other} and again in {part}"),
                        "give every subject to one part: results on a leaked subject are void",
                    ));
                }
            }
        }
        Ok(Proof { split: self.clone() })
    }

    fn parts(&self) -> [(&'static str, &[String]); 3] {
        [("training", &self.train), ("validation", &self.validation), ("test", &self.test)]
    }
}

impl fmt::Display for Proof {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let parts = self.split.parts();
        let counts = parts.map(|(name, list)| format!("{} {name}", list.len()));
        write!(f, "split by subject: {}; no subject is in two parts", counts.join(", "))?;
        if f.alternate() {
            for (name, list) in parts {
                write!(f, "\n  {name}: {}", list.join(" "))?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::{Part, Split, Strata, by_fractions, k_fold};

    fn names(n: usize) -> Vec<String> {
        (0..n).map(|i| format!("NDAR{:03}", i * 7 % 1000)).collect()
    }

    fn sizes(split: &Split) -> [usize; 3] {
        [split.train.len(), split.validation.len(), split.test.len()]
    }

    #[test]
    fn eegmat_like_classes_are_shared_out() {
        // 27 of one sex, 9 of the other.
        let subjects = names(36);
        let classes: Vec<u32> = (0..36).map(|i| u32::from(i % 4 == 0)).collect();
        let split = by_fractions(&subjects, Strata::Classes(&classes), [0.6, 0.2, 0.2], 4).unwrap();
        let [train, validation, test] = sizes(&split);
        assert!(train.abs_diff(22) <= 1 && validation.abs_diff(7) <= 1 && test.abs_diff(7) <= 1);
        let minority = |list: &[String]| {
            let of = |s: &String| classes[subjects.iter().position(|x| x == s).unwrap()] as usize;
            list.iter().map(of).sum::<usize>()
        };
        assert!(minority(&split.train).abs_diff(5) <= 1);
        assert!(minority(&split.validation) >= 1 && minority(&split.test) >= 1);
        let proof = split.assert_disjoint().unwrap();
        assert!(format!("{proof}").contains("no subject is in two parts"));
        assert!(format!("{proof:#}").contains(&split.test[0]));
        assert_eq!(split.part_of(&split.test[0]), Some(Part::Test));
        assert_eq!(split.part_of("nobody"), None);
    }

    /// Six to test, of which one or two would be of the smaller class by its share.
    #[test]
    fn the_test_part_has_two_of_each_class() {
        let subjects = names(36);
        let classes: Vec<u32> = (0..36).map(|i| u32::from(i % 4 == 0)).collect();
        let of = |list: &[String], class: u32| {
            let class_of = |s: &String| classes[subjects.iter().position(|x| x == s).unwrap()];
            list.iter().filter(|s| class_of(s) == class).count()
        };
        for seed in 0..60 {
            let shares = [0.7, 0.15, 0.15];
            let split = by_fractions(&subjects, Strata::Classes(&classes), shares, seed).unwrap();
            split.assert_disjoint().unwrap();
            let [train, validation, test] = sizes(&split);
            assert_eq!(train + validation + test, 36);
            assert!(test.abs_diff(5) <= 1 && validation.abs_diff(5) <= 1, "seed {seed}");
            assert!(of(&split.test, 0) >= 2 && of(&split.test, 1) >= 2, "seed {seed}: {split:?}");
            assert!(of(&split.train, 1) >= 4, "seed {seed}");
        }
    }

    #[test]
    fn order_and_repeats_do_not_matter_but_the_seed_does() {
        let subjects = names(30);
        let mut twice: Vec<String> = subjects.iter().rev().cloned().collect();
        twice.extend(subjects.iter().take(11).cloned());
        let split =
            |s: &[String], seed| by_fractions(s, Strata::None, [0.8, 0.1, 0.1], seed).unwrap();
        assert_eq!(split(&subjects, 1), split(&twice, 1));
        assert_ne!(split(&subjects, 1), split(&subjects, 2));
    }

    #[test]
    fn what_cannot_be_split_is_refused() {
        let message = |r: crate::Result<Split>| r.unwrap_err().to_string();
        let one = by_fractions(&names(1), Strata::None, [0.8, 0.1, 0.1], 0);
        assert!(message(one).contains("one subject only (NDAR000)"));
        let few = by_fractions(&names(3), Strata::None, [0.98, 0.01, 0.01], 0);
        assert!(message(few).contains("part is empty"));
        let lone = |seed| {
            by_fractions(
                &names(9),
                Strata::Classes(&[0, 0, 0, 0, 0, 0, 0, 0, 1]),
                [0.3, 0.3, 0.4],
                seed,
            )
        };
        assert!((0..40).any(|s| lone(s).is_err_and(|e| e.to_string().contains("class 1 (1 subj"))));
        let two = by_fractions(
            &["a".into(), "b".into(), "a".into()],
            Strata::Classes(&[0, 1, 1]),
            [0.5, 0.0, 0.5],
            0,
        );
        assert!(message(two).contains("subject a"));
        let nan = Strata::Values { values: &[1.0, f64::NAN], bins: 2 };
        assert!(message(by_fractions(&names(2), nan, [0.5, 0.0, 0.5], 0)).contains("no label"));
        for fractions in [[0.0, 0.5, 0.5], [1.0, -0.1, 0.1], [f64::NAN, 0.1, 0.1]] {
            assert!(by_fractions(&names(9), Strata::None, fractions, 0).is_err());
        }
        assert!(k_fold(&names(4), Strata::None, 5, 0.2, 0).is_err());
        assert!(k_fold(&names(4), Strata::None, 1, 0.2, 0).is_err());
        assert!(by_fractions(&names(4), Strata::Classes(&[0]), [0.5, 0.2, 0.3], 0).is_err());
    }

    #[test]
    fn a_planted_leak_is_found() {
        let leak = Split {
            train: vec!["01".into(), "02".into()],
            validation: vec!["03".into()],
            test: vec!["sub-02".into()],
        };
        let message = leak.assert_disjoint().unwrap_err().to_string();
        assert!(message.contains("sub-02 is in training and again in test"), "{message}");
    }

    proptest! {
        #[test]
        fn every_subject_is_in_exactly_one_part(n in 2usize..200, seed: u64, a in 0.05f64..1.0,
                                                b in 0.0f64..1.0, c in 0.0f64..1.0, bins in 1usize..7) {
            let subjects = names(n);
            let ages: Vec<f64> = (0..n).map(|i| 5.0 + (i * 37 % 17) as f64).collect();
            let strata = Strata::Values { values: &ages, bins };
            let Ok(split) = by_fractions(&subjects, strata, [a, b, c], seed) else {
                return Ok(());
            };
            split.assert_disjoint().unwrap();
            let all: BTreeSet<&String> =
                split.train.iter().chain(&split.validation).chain(&split.test).collect();
            prop_assert_eq!(all.len(), n);
            prop_assert_eq!(sizes(&split).iter().sum::<usize>(), n);
            for (size, share) in sizes(&split).into_iter().zip([a, b, c]) {
                prop_assert!((size as f64 - share / (a + b + c) * n as f64).abs() <= 1.5);
            }
        }

        #[test]
        fn folds_test_everyone_once(n in 6usize..90, k in 2usize..6, seed: u64) {
            let subjects = names(n);
            let classes: Vec<u32> = (0..n).map(|i| (i % 2) as u32).collect();
            let Ok(folds) = k_fold(&subjects, Strata::Classes(&classes), k, 0.25, seed) else {
                return Ok(());
            };
            let mut tested = Vec::new();
            for fold in &folds {
                fold.assert_disjoint().unwrap();
                prop_assert_eq!(sizes(fold).iter().sum::<usize>(), n);
                prop_assert!(fold.test.len().abs_diff(n / k) <= 1);
                prop_assert!(!fold.validation.is_empty());
                tested.extend(fold.test.iter().cloned());
            }
            tested.sort();
            let mut all = subjects;
            all.sort();
            prop_assert_eq!(tested, all);
        }
    }
}
