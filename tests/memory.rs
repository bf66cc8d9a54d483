//! A limit on memory is kept to the byte: what cannot fit is refused before training with the tensor
//! and the batch that fits, and `--batch auto` trains within any limit that one window fits into.

mod common;

use common::{Bench, said};

/// The batch that a refusal names.
fn named(text: &str) -> usize {
    let after = text.split("--batch ").nth(1).unwrap_or_else(|| panic!("no batch: {text}"));
    let digits: String = after.chars().take_while(char::is_ascii_digit).collect();
    digits.parse().unwrap_or_else(|_| panic!("no number: {text}"))
}

/// What a run says it planned, MB.
fn planned(text: &str) -> f64 {
    let line = text.lines().find(|line| line.contains("MB planned")).expect("says what it planned");
    let words: Vec<&str> = line.split_whitespace().collect();
    let at = words.iter().position(|word| *word == "MB").expect("a unit");
    words[at - 1].parse().expect("a number")
}

/// Bytes that a run holds when it is refused `capacity`: the second number of the message.
fn capacity_in(text: &str) -> u64 {
    let after = text.split("held of ").nth(1).expect("says what there is");
    let digits: String = after.chars().take_while(char::is_ascii_digit).collect();
    digits.parse().expect("a number")
}

/// Long enough windows that a batch of 64 is much more than the weights.
const WIDE: &[&str] =
    &["--epochs", "1", "model.patch=2", "model.d_model=32", "train.workers=1", "train.warmup=0.0"];

#[test]
fn a_batch_that_cannot_fit_is_refused_with_tensor_and_batch() {
    let bench = Bench::new(16);
    let run = |name: &str, more: &[&str]| {
        bench.train(name, &[WIDE, more].concat()).output().expect("started")
    };
    let limit = ["--memory", "6000000"];
    let output = run("first", &[&limit[..], &["--batch", "64"]].concat());
    let text = said(&output);
    assert_eq!(output.status.code(), Some(2), "{text}");
    assert!(text.contains("out of memory for") && text.contains("f32["), "{text}");
    assert!(text.contains("batch of 64"), "{text}");
    assert_eq!(capacity_in(&text), 6_000_000);
    assert!(!bench.path("first").exists(), "nothing was trained: its folder is gone");
    let fits = named(&text);
    assert!((1..64).contains(&fits), "{text}");
    // The batch named trains with that limit, one more window does not.
    let batch = fits.to_string();
    let output = run("second", &[&limit[..], &["--batch", &batch]].concat());
    assert!(output.status.success(), "{}", said(&output));
    assert!(planned(&said(&output)) <= 6.0, "{}", said(&output));
    let batch = (fits + 1).to_string();
    let output = run("third", &[&limit[..], &["--batch", &batch]].concat());
    assert_eq!(output.status.code(), Some(2), "{}", said(&output));
    assert_eq!(named(&said(&output)), fits);
}

#[test]
fn auto_trains_within_any_limit_that_one_window_fits_into() {
    let bench = Bench::new(16);
    let mut batches = Vec::new();
    for accumulation in ["train.accumulation=1", "train.accumulation=3"] {
        for limit in ["200000", "2500000", "3700001", "9000000", "23456789"] {
            let name = format!("{accumulation}-{limit}");
            let more = ["--batch", "auto", "--memory", limit, accumulation, "train.ema=0.9"];
            let output = bench.train(&name, &[WIDE, &more].concat()).output().expect("started");
            let text = said(&output);
            if output.status.code() == Some(2) {
                // Not even one: the tensor and what would help.
                assert!(text.contains("with a batch of 1") && text.contains("remedy"), "{text}");
                assert!(limit == "200000" || limit == "2500000", "{limit}: {text}");
                continue;
            }
            assert!(output.status.success(), "{name}: {text}");
            let bytes: f64 = limit.parse().expect("a number");
            assert!(planned(&text) <= bytes / 1e6 + 0.05, "{name}: {text}");
            let batch = text.split("batch ").nth(1).and_then(|rest| rest.split(' ').next());
            batches.push(batch.expect("says its batch").to_string());
        }
    }
    batches.sort();
    batches.dedup();
    assert!(batches.len() > 2, "the limits made a difference: {batches:?}");
}

/// Each fold gives its memory back: a limit that holds one holds them all.
#[test]
fn folds_train_within_the_limit_of_one() {
    let bench = Bench::new(15);
    let more = ["--batch", "auto", "--memory", "6MB", "--folds", "3"];
    let output = bench.train("run", &[WIDE, &more].concat()).output().expect("started");
    assert!(output.status.success(), "{}", said(&output));
}
