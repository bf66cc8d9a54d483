//! Expected numbers come from scikit-learn 1.9.1 and scipy 1.17.1 (`mean_absolute_error`,
//! `root_mean_squared_error`, `r2_score`, `pearsonr`, `spearmanr`, `balanced_accuracy_score`,
//! `roc_auc_score(multi_class="ovr")`, `average_precision_score`, `f1_score`, `brier_score_loss`,
//! `log_loss`, `confusion_matrix`, `roc_curve`, `binomtest.proportion_ci`), `numpy.percentile`.

use super::*;
use crate::data::rng::Rng;

fn close(got: f64, expected: f64) {
    assert!((got - expected).abs() <= 1e-12 * expected.abs().max(1.0), "{got} != {expected}");
}

fn close_all(got: &[Option<f64>], expected: &[f64]) {
    assert_eq!(got.len(), expected.len());
    got.iter().zip(expected).for_each(|(g, e)| close(g.expect("defined"), *e));
}

fn task_of(predictions: &Predictions) -> Task {
    match predictions.outputs() {
        Outputs::Regression { .. } => Task::Regression { name: "age".into(), unit: "y".into() },
        Outputs::Classification { classes, .. } => Task::Classification {
            name: "group".into(),
            classes: (0..*classes).map(|k| format!("class {k}")).collect(),
        },
    }
}

fn binary() -> Predictions {
    let truth = vec![0, 0, 1, 1, 0, 1, 0, 1, 1, 0, 0, 0, 1];
    let p = [0.1, 0.4, 0.4, 0.8, 0.5, 0.5, 0.2, 0.9, 0.3, 0.8, 0.05, 0.6, 0.6];
    let rows = p.iter().flat_map(|p| [1.0 - p, *p]).collect();
    Predictions::classification((0..13).collect(), truth, rows, 2).unwrap()
}

/// Random labels and outputs on a coarse grid, so that ties abound.
fn random(rng: &mut Rng, n: usize, classes: usize) -> Predictions {
    let subject = (0..n).map(|_| rng.below(n / 3 + 1)).collect();
    if classes == 0 {
        let truth: Vec<f64> = (0..n).map(|_| (rng.normal() * 4.0).round() / 2.0 + 12.0).collect();
        let predicted =
            truth.iter().map(|t| (0.5 * t + rng.normal() * 3.0).round() / 2.0).collect();
        return Predictions::regression(subject, truth, predicted).unwrap();
    }
    let truth = (0..n).map(|i| if i < classes { i } else { rng.below(classes) }).collect();
    let mut probability = Vec::new();
    for _ in 0..n {
        let row: Vec<f64> = (0..classes).map(|_| 1.0 + rng.below(4) as f64).collect();
        let sum: f64 = row.iter().sum();
        probability.extend(row.iter().map(|v| v / sum));
    }
    Predictions::classification(subject, truth, probability, classes).unwrap()
}

#[test]
fn regression_matches_scikit_learn_with_ties() {
    let y = vec![5.5, 7.25, 7.25, 9.0, 11.5, 12.0, 12.0, 14.75, 18.0, 20.5, 21.0];
    let p = vec![7.0, 6.5, 9.0, 9.0, 10.25, 13.0, 9.0, 16.0, 15.5, 15.5, 19.0];
    let predictions = Predictions::regression((0..11).collect(), y, p).unwrap();
    let expected = [
        1.8181818181818181,
        2.220769727328383,
        0.8124754497603897,
        0.9274099944580334,
        0.909952556340079,
        0.4330410491392362,
    ];
    close_all(&Metric::REGRESSION.map(|m| m.of(&predictions)), &expected);
    assert_eq!(Metric::Auroc.of(&predictions), None);
}

#[test]
fn binary_matches_scikit_learn_with_ties() {
    let expected = [
        0.6071428571428572,
        0.7142857142857143,
        0.6153846153846154,
        0.6656084656084655,
        0.5454545454545454,
        0.21326923076923077,
        0.5970953244224493,
    ];
    let predictions = binary();
    close_all(&Metric::CLASSIFICATION.map(|m| m.of(&predictions)), &expected);
    let baseline = Baseline::majority(&[0, 1, 1, 0, 0], 2).unwrap();
    let scores = score(
        &task_of(&predictions),
        Level::Subject,
        &predictions,
        &baseline,
        &Bootstrap::default(),
    )
    .unwrap();
    assert_eq!(scores.confusion, [[5, 2], [3, 3]]);
    let of = |m| scores.get(m).unwrap().baseline.unwrap();
    close(of(Metric::BalancedAccuracy), 0.5);
    close(of(Metric::Auroc), 0.5);
    close(of(Metric::Accuracy), 7.0 / 13.0);
    close(of(Metric::AveragePrecision), 6.0 / 13.0);
    close(of(Metric::F1), 0.0);
    close(of(Metric::Brier), (7.0 * 0.16 + 6.0 * 0.36) / 13.0);
}

#[test]
fn four_classes_match_scikit_learn_with_ties() {
    let truth = vec![0, 1, 2, 2, 1, 0, 3, 3, 1, 2, 0, 3, 1, 2];
    #[rustfmt::skip]
    let rows = vec![
        0.42, 0.17, 0.17, 0.24, 0.45, 0.09, 0.18, 0.28, 0.25, 0.38, 0.25, 0.12, 0.09, 0.09, 0.36,
        0.46, 0.29, 0.24, 0.29, 0.18, 0.25, 0.33, 0.25, 0.17, 0.4, 0.2, 0.3, 0.1, 0.17, 0.08, 0.33,
        0.42, 0.31, 0.31, 0.31, 0.07, 0.36, 0.18, 0.36, 0.1, 0.18, 0.27, 0.18, 0.37, 0.36, 0.21,
        0.36, 0.07, 0.25, 0.33, 0.08, 0.34, 0.27, 0.27, 0.27, 0.19,
    ];
    let predictions = Predictions::classification((0..14).collect(), truth, rows, 4).unwrap();
    let expected = [
        0.16666666666666666,
        0.5326704545454546,
        0.14285714285714285,
        0.38093486374736374,
        0.11688311688311688,
        0.7729857142857143,
        1.475126914359448,
    ];
    close_all(&Metric::CLASSIFICATION.map(|m| m.of(&predictions)), &expected);
}

#[test]
fn roc_calibration_and_quantiles_match_their_oracles() {
    let x = [0.0, 0.0, 1.0, 2.0, 3.0, 4.0, 4.0, 5.0, 6.0, 7.0].map(|v| v / 7.0);
    let y = [0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 6.0, 6.0, 6.0].map(|v| v / 6.0);
    let got = roc(&binary(), 1).unwrap().points;
    assert_eq!(got.len(), x.len());
    for (point, expected) in got.iter().zip(x.iter().zip(y)) {
        close(point[0], *expected.0);
        close(point[1], expected.1);
    }
    let sorted = [1.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 9.0];
    close(quantile(&sorted, 0.975).unwrap(), 8.475);
    close(quantile(&sorted, 0.33).unwrap(), 2.31);
    let truth = (0..20).map(|i| usize::from(i < 7)).collect();
    let rows = (0..20).flat_map(|_| [0.75, 0.25]).collect();
    let flat = Predictions::classification((0..20).collect(), truth, rows, 2).unwrap();
    let bins = calibration(&flat, 1, 1);
    close(bins[0].predicted, 0.25);
    close(bins[0].observed, 0.35);
    close(bins[0].interval.low, 0.1811918241010821);
    close(bins[0].interval.high, 0.5671457233147637);
    assert_eq!(calibration(&binary(), 1, 4).iter().map(|b| b.count).sum::<usize>(), 13);
}

#[test]
fn auroc_counts_pairs() {
    let mut rng = Rng::new(5, 0);
    for n in [7, 31, 64] {
        let predictions = random(&mut rng, n, 2);
        let Outputs::Classification { truth, probability, .. } = predictions.outputs() else {
            unreachable!()
        };
        let (mut won, mut pairs) = (0.0, 0.0);
        for i in (0..n).filter(|&i| truth[i] == 1) {
            for j in (0..n).filter(|&j| truth[j] == 0) {
                let difference = probability[2 * i + 1] - probability[2 * j + 1];
                won += if difference == 0.0 { 0.5 } else { f64::from(u8::from(difference > 0.0)) };
                pairs += 1.0;
            }
        }
        close(Metric::Auroc.of(&predictions).unwrap(), won / pairs);
    }
}

/// The weighted pass is the plain score of the sample written out.
#[test]
fn weights_are_repetitions() {
    let mut rng = Rng::new(11, 0);
    for (n, classes) in [(29, 0), (41, 2), (53, 3), (17, 5)] {
        let predictions = random(&mut rng, n, classes);
        let weights: Vec<usize> =
            (0..n).map(|i| if i < classes { 2 } else { rng.below(4) }).collect();
        let copies: Vec<usize> = (0..n).flat_map(|i| std::iter::repeat_n(i, weights[i])).collect();
        let repeated = match predictions.outputs() {
            Outputs::Regression { truth, predicted } => Predictions::regression(
                copies.clone(),
                copies.iter().map(|&i| truth[i]).collect(),
                copies.iter().map(|&i| predicted[i]).collect(),
            ),
            Outputs::Classification { truth, probability, classes } => Predictions::classification(
                copies.clone(),
                copies.iter().map(|&i| truth[i]).collect(),
                copies
                    .iter()
                    .flat_map(|&i| probability[i * classes..(i + 1) * classes].to_vec())
                    .collect(),
                *classes,
            ),
        }
        .unwrap();
        let weights: Vec<f64> = weights.iter().map(|&w| w as f64).collect();
        let weighted = Prepared::new(&predictions).values(&weights);
        let plain = Prepared::new(&repeated).values(&vec![1.0; copies.len()]);
        for (a, b) in weighted.iter().zip(&plain) {
            close(a.unwrap(), b.unwrap());
        }
    }
}

#[test]
fn interval_of_the_mae_follows_the_central_limit() {
    let mut rng = Rng::new(2, 0);
    let n = 400;
    let truth: Vec<f64> = (0..n).map(|_| rng.range(5.0, 22.0)).collect();
    let predicted: Vec<f64> = truth.iter().map(|t| t + 2.0 * rng.normal()).collect();
    let errors: Vec<f64> = truth.iter().zip(&predicted).map(|(t, p)| (p - t).abs()).collect();
    let mean = errors.iter().sum::<f64>() / n as f64;
    let sd = (errors.iter().map(|e| (e - mean).powi(2)).sum::<f64>() / n as f64).sqrt();
    let half = 1.96 * sd / (n as f64).sqrt();
    let baseline = Baseline::mean(&truth).unwrap();
    let one = Predictions::regression((0..n).collect(), truth.clone(), predicted.clone()).unwrap();
    let scores =
        score(&task_of(&one), Level::Subject, &one, &baseline, &Bootstrap::default()).unwrap();
    let mae = scores.get(Metric::Mae).unwrap();
    let interval = mae.interval.unwrap();
    assert!((interval.low - (mean - half)).abs() < 0.15 * half, "{interval:?} {mean} {half}");
    assert!((interval.high - (mean + half)).abs() < 0.15 * half, "{interval:?} {mean} {half}");
    assert_eq!(mae.verdict(), Verdict::Beats);

    // Seven identical windows a subject carry no more information than one.
    let thrice = |v: &[f64]| v.iter().flat_map(|x| [*x; 7]).collect::<Vec<_>>();
    let subject = (0..7 * n).map(|i| i / 7).collect();
    let many = Predictions::regression(subject, thrice(&truth), thrice(&predicted)).unwrap();
    let windows =
        score(&task_of(&one), Level::Window, &many, &baseline, &Bootstrap::default()).unwrap();
    let clustered = windows.get(Metric::Mae).unwrap().interval.unwrap();
    close(clustered.low, interval.low);
    close(clustered.high, interval.high);
    let merged = many.by_subject().unwrap();
    assert_eq!(merged.len(), n);
    close(Metric::Mae.of(&merged).unwrap(), mean);
}

#[test]
fn verdicts_tell_noise_from_signal() {
    let mut rng = Rng::new(3, 0);
    let n = 150;
    let truth: Vec<f64> = (0..n).map(|_| rng.range(5.0, 22.0)).collect();
    let baseline = Baseline::mean(&truth).unwrap();
    let run = |predicted: Vec<f64>| {
        let p = Predictions::regression((0..n).collect(), truth.clone(), predicted).unwrap();
        score(&task_of(&p), Level::Subject, &p, &baseline, &Bootstrap::default()).unwrap()
    };
    let slightly_off: Vec<f64> = (0..n).map(|_| 13.5 + 0.3 * rng.normal()).collect();
    let noise = run(slightly_off);
    assert_eq!(noise.primary().unwrap().verdict(), Verdict::DoesNotBeat);
    assert!(
        noise.headline().ends_with("does not beat the mean predictor."),
        "{}",
        noise.headline()
    );
    let wild = run((0..n).map(|_| 13.5 + 8.0 * rng.normal()).collect());
    assert_eq!(wild.primary().unwrap().verdict(), Verdict::Worse);
    assert!(wild.headline().contains(": worse by"), "{}", wild.headline());
    let good = run(truth.iter().map(|t| t + rng.normal()).collect());
    assert!(good.table().contains("beats the mean predictor"), "{}", good.table());
    eprintln!("{}\n{}", good.table(), good.headline());
    assert!(good.headline().contains("against"), "{}", good.headline());
    let json = serde_json::to_string(&good).unwrap();
    assert_eq!(serde_json::from_str::<Scores>(&json).unwrap().table(), good.table());
}

/// An R² whose interval reaches far below zero is still read against 1.
#[test]
fn wide_intervals_leave_two_decimals_of_what_has_no_unit() {
    let truth: Vec<f64> = (0..12).map(|i| 10.0 + f64::from(i % 3)).collect();
    let predicted = (0..12).map(|i| 10.0 + f64::from(i * i % 7) * 5.0).collect();
    let p = Predictions::regression((0..12).collect(), truth.clone(), predicted).unwrap();
    let baseline = Baseline::mean(&truth).unwrap();
    let scores = score(&task_of(&p), Level::Subject, &p, &baseline, &Bootstrap::default()).unwrap();
    let r2 = scores.get(Metric::R2).unwrap();
    let interval = r2.interval.unwrap();
    assert!(interval.high - interval.low > 20.0, "{interval:?}");
    assert_eq!((r2.decimals(), scores.get(Metric::Mae).unwrap().decimals()), (2, 1));
    let shown = format!("[{:.2}, {:.2}]", interval.low, interval.high);
    assert!(scores.table().contains(&shown), "{}", scores.table());
}

#[test]
fn degenerate_input_has_no_score_and_prints_no_nan() {
    let settings = Bootstrap { resamples: 50, ..Bootstrap::default() };
    let constant =
        Predictions::regression((0..9).collect(), vec![0.1; 9], vec![0.7 / 3.0; 9]).unwrap();
    let baseline = Baseline::mean(&[0.1, 0.2]).unwrap();
    let scores =
        score(&task_of(&constant), Level::Subject, &constant, &baseline, &settings).unwrap();
    for metric in [Metric::R2, Metric::Pearson, Metric::Spearman, Metric::Nrmse] {
        assert_eq!(scores.get(metric).unwrap().value, None, "{metric:?}");
    }
    assert!(!scores.table().contains("NaN") && scores.table().contains("undefined: needs"));
    assert!(scores.table().contains("9 subjects are too few"), "{}", scores.table());

    let rows = (0..9).flat_map(|i| [1.0 - i as f64 / 10.0, i as f64 / 10.0]).collect::<Vec<_>>();
    for class in [0, 1] {
        let one =
            Predictions::classification((0..9).collect(), vec![class; 9], rows.clone(), 2).unwrap();
        let baseline = Baseline::majority(&[0, 1, 1], 2).unwrap();
        let scores = score(&task_of(&one), Level::Subject, &one, &baseline, &settings).unwrap();
        for metric in [Metric::Auroc, Metric::BalancedAccuracy] {
            assert_eq!(scores.get(metric).unwrap().value, None);
        }
        assert!(!scores.table().contains("NaN") && !scores.headline().contains("NaN"));
        assert_eq!(roc(&one, 1), None);
        assert_eq!(roc_band(&one, 1, 11, &settings), None);
    }
    let alone = Predictions::regression(vec![4; 3], vec![1.0, 2.0, 3.0], vec![1.0, 2.5, 3.0]);
    let alone = alone.unwrap();
    let scores = score(&task_of(&alone), Level::Window, &alone, &baseline, &settings).unwrap();
    assert!(scores.scores.iter().all(|s| s.interval.is_none() && s.value.is_some()));
    assert_eq!(scores.primary().unwrap().verdict(), Verdict::Unknown);
}

/// Six subjects, as a tenth or so of a small study leaves for the test: a third of the plain
/// resamples of two women and four men would have no woman.
#[test]
fn a_handful_of_subjects_of_two_classes_has_intervals() {
    let truth = vec![0, 1, 0, 0, 1, 0];
    let score_of = |truth: &[usize], positive: &[f64]| {
        let rows = positive.iter().flat_map(|p| [1.0 - p, *p]).collect();
        let subject = (0..truth.len()).collect();
        let p = Predictions::classification(subject, truth.to_vec(), rows, 2).unwrap();
        let baseline = Baseline::majority(&[0, 0, 1], 2).unwrap();
        score(&task_of(&p), Level::Subject, &p, &baseline, &Bootstrap::default()).unwrap()
    };
    let right = score_of(&truth, &[0.1, 0.9, 0.3, 0.2, 0.7, 0.4]);
    let mixed = score_of(&truth, &[0.6, 0.9, 0.3, 0.8, 0.2, 0.4]);
    for metric in [Metric::BalancedAccuracy, Metric::Auroc] {
        let score = mixed.get(metric).unwrap();
        assert_eq!(score.verdict(), Verdict::DoesNotBeat, "{metric:?}");
        let interval = score.interval.unwrap();
        assert!(interval.low <= score.value.unwrap() && score.value.unwrap() <= interval.high);
        // All right by chance in one of fifteen orders: that all resamples agree proves nothing.
        let score = right.get(metric).unwrap();
        assert_eq!((score.value, score.interval), (Some(1.0), None), "{metric:?}");
        assert_eq!(score.verdict(), Verdict::Unknown);
    }
    // So it is where all are taken for one class: not for want of subjects of the other.
    let one_class = score_of(&truth, &[0.1, 0.2, 0.3, 0.1, 0.3, 0.2]);
    for scores in [&right, &one_class] {
        let table = scores.table();
        let line = table.lines().find(|line| line.starts_with("balanced accuracy"));
        assert!(line.is_some_and(|line| line.contains("give the same score")), "{table}");
    }
    assert!(mixed.method().contains("class by class"));
    // Six errors of one year, where the mean's are of several: better, but of how many?
    let ages = vec![5.0, 8.0, 11.0, 14.0, 17.0, 20.0];
    let near = ages.iter().zip([1.0, -1.2, 0.8, -1.0, 1.1, -0.9]).map(|(a, e)| a + e).collect();
    let six = Predictions::regression((0..6).collect(), ages.clone(), near).unwrap();
    let baseline = Baseline::mean(&ages).unwrap();
    let six =
        score(&task_of(&six), Level::Subject, &six, &baseline, &Bootstrap::default()).unwrap();
    assert_eq!(six.primary().unwrap().verdict(), Verdict::TooFew);
    assert!(six.headline().ends_with("too few subjects to tell."), "{}", six.headline());
    let caution = mixed.caution().unwrap();
    assert!(caution.starts_with("6 subjects, 2 of the rarest class, are too few"), "{caution}");
    // Ten of them, five of each class, are few enough to be warned of, not to be refused.
    let truth: Vec<usize> = (0..10).map(|i| i % 2).collect();
    let ten = score_of(&truth, &[0.1, 0.9, 0.3, 0.8, 0.2, 0.9, 0.1, 0.7, 0.2, 0.6]);
    assert_eq!(ten.primary().unwrap().verdict(), Verdict::Beats);
    assert!(ten.caution().unwrap().contains("too narrow"));
    // Every resample holds two of the one and four of the other class, so that no share of right
    // answers but those of halves and quarters can occur.
    let interval = mixed.get(Metric::BalancedAccuracy).unwrap().interval.unwrap();
    assert_eq!((interval.low * 8.0).fract(), 0.0, "{interval:?}");
    // One subject of a class tells nothing about the spread of that class.
    let lonely = score_of(&[0, 1, 0, 0], &[0.1, 0.9, 0.3, 0.2]);
    assert_eq!(lonely.primary().unwrap().verdict(), Verdict::Unknown);
    assert!(lonely.table().contains("too few of a class"), "{}", lonely.table());
}

#[test]
fn bad_input_is_refused_with_its_place() {
    let nan = Predictions::regression(vec![8, 9], vec![1.0, 2.0], vec![1.0, f64::NAN]);
    let message = nan.unwrap_err().to_string();
    assert!(message.contains("sample 1 (subject 9)") && message.contains("remedy"), "{message}");
    assert!(Predictions::regression(vec![0], vec![1.0, 2.0], vec![1.0, 2.0]).is_err());
    assert!(Predictions::classification(vec![0], vec![2], vec![0.5, 0.5], 2).is_err());
    assert!(Predictions::classification(vec![0], vec![1], vec![0.9, 0.5], 2).is_err());
    assert!(Predictions::classification(vec![0], vec![0], vec![1.0], 1).is_err());
    assert!(Baseline::mean(&[]).is_err());
    assert!(Baseline::majority(&[], 2).is_err() && Baseline::majority(&[2], 2).is_err());
    let empty = Predictions::regression(vec![], vec![], vec![]).unwrap();
    let baseline = Baseline::Mean(1.0);
    let scored = score(&task_of(&empty), Level::Subject, &empty, &baseline, &Bootstrap::default());
    assert!(scored.is_err());
    assert!(Metric::Mae.of(&empty).is_none());
    let mixed = Predictions::regression(vec![3, 3], vec![1.0, 2.0], vec![1.0, 2.0]).unwrap();
    assert!(mixed.by_subject().unwrap_err().to_string().contains("aggregate by recording"));
    assert_eq!(mixed.aggregate(&[0, 1]).unwrap().len(), 2);
    let json = serde_json::to_string(&binary()).unwrap().replace("0.05", "7.05");
    assert!(serde_json::from_str::<Predictions>(&json).is_err());
}

#[test]
fn equal_seeds_give_equal_intervals() {
    let predictions = random(&mut Rng::new(8, 0), 90, 3);
    let baseline = Baseline::majority(&[0, 1, 2, 1], 3).unwrap();
    let run = |seed| {
        let settings = Bootstrap { seed, resamples: 300, ..Bootstrap::default() };
        score(&task_of(&predictions), Level::Window, &predictions, &baseline, &settings).unwrap()
    };
    assert_eq!(run(4), run(4));
    assert_ne!(run(4).scores, run(5).scores);
}

/// 2000 resamples of 3000 subjects, every score with its baseline. Timing: run with --release.
#[test]
#[ignore = "a timing"]
fn bootstrap_is_fast() {
    let mut rng = Rng::new(1, 0);
    for classes in [0, 2] {
        let n = 3000;
        let predictions = random(&mut rng, n, classes);
        let baseline = match classes {
            0 => Baseline::Mean(12.0),
            _ => Baseline::majority(&[0, 1], 2).unwrap(),
        };
        let start = std::time::Instant::now();
        let level = Level::Window;
        let task = task_of(&predictions);
        score(&task, level, &predictions, &baseline, &Bootstrap::default()).unwrap();
        eprintln!("{classes} classes: {:?}", start.elapsed());
        assert!(start.elapsed().as_secs_f64() < 1.0);
    }
}
