//! Settings through their files: what is written reads back the same, the top layer wins, and a
//! refusal names the place, the name that was meant and the remedy.

use std::path::PathBuf;
use std::process::Command;

use engine::config::{
    Amp, Assignment, AugmentSettings, Bytes, ClassWeights, DataSettings, DeviceName,
    DeviceSettings, Gemm, LossName, ModelName, ModelSettings, Notch, OptimizerName, Origin,
    PROFILES, Recompute, Reference, Resolved, Route, RunSettings, Scale, ScheduleName, Settings,
    TrainSettings, Warmup, resolve,
};
use proptest::collection::vec;
use proptest::option::of;
use proptest::prelude::*;
use proptest::sample::select;

/// A file in a folder of its own.
fn file(text: &str) -> (tempfile::TempDir, PathBuf) {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let path = folder.path().join("my.toml");
    std::fs::write(&path, text).expect("written");
    (folder, path)
}

fn from_text(text: &str) -> engine::Result<Resolved> {
    let (_folder, path) = file(text);
    resolve(Some(&path), &[], None)
}

/// Any text, with quotes, line ends and other alphabets.
fn text() -> impl Strategy<Value = String> {
    "[a-zA-Z\"'\\\\#\n\u{1}é脑= ]{1,12}".prop_filter("not blank", |text| !text.trim().is_empty())
}

/// A path that is not one of the words that stand for none.
fn path() -> impl Strategy<Value = PathBuf> {
    text().prop_map(|text| PathBuf::from(format!("/{text}")))
}

fn data() -> impl Strategy<Value = DataSettings> {
    let reference = prop_oneof![
        Just(Reference::Average),
        Just(Reference::Recorded),
        vec(text(), 1..4).prop_map(Reference::Channels)
    ];
    let notch =
        prop_oneof![Just(Notch::Auto), Just(Notch::Off), (1.0..99.0_f64).prop_map(Notch::Hz)];
    let lists = (vec(text(), 0..4), vec(text(), 0..4), vec(text(), 0..4));
    let ways = (reference, notch, select(Scale::ALL), of(0.1..99.0_f64), of(path()));
    let shares = (0.0..0.5_f64, 0.0..0.5_f64, select(vec![0_usize, 2, 5]), any::<bool>());
    (of(path()), text(), lists, ways, shares, of(0.1..1.0_f64), of(1.0..49.0_f64)).prop_map(
        |(dir, target, lists, ways, shares, low_hz, high_hz)| DataSettings {
            dir,
            target,
            tasks: lists.0,
            channels: lists.1,
            events: lists.2,
            reference: ways.0,
            notch_hz: ways.1,
            scale: ways.2,
            clip: ways.3,
            cache_dir: ways.4,
            val_fraction: shares.0,
            test_fraction: shares.1,
            folds: shares.2,
            balanced: shares.3,
            shuffle_labels: !shares.3,
            low_hz,
            high_hz,
            ..DataSettings::default()
        },
    )
}

fn train() -> impl Strategy<Value = TrainSettings> {
    let warmup =
        prop_oneof![(0..9_u64).prop_map(Warmup::Steps), (0.0..0.9_f64).prop_map(Warmup::Fraction)];
    let weights = prop_oneof![
        Just(ClassWeights::Off),
        Just(ClassWeights::Balanced),
        vec(0.1..9.0_f64, 1..4).prop_map(ClassWeights::Given)
    ];
    let choices = (
        select(ScheduleName::ALL),
        select(OptimizerName::ALL),
        select(LossName::ALL),
        select(Amp::ALL),
        select(Recompute::ALL),
    );
    let counts = (of(10..99_u64), of(1..99_usize), of(1..9_u64), of(1..9_u64), of(1..9_usize));
    let rates = (1e-9..1.0_f64, of(1e-9..1.0_f64), of(1e-3..9.0_f64), of(0.01..0.99_f64));
    let rest = (0..i64::MAX as u64, of(path()), of(0.1..1e6_f64), of(1..999_u64));
    (warmup, weights, choices, counts, rates, rest).prop_map(|(warmup, weights, c, n, r, rest)| {
        TrainSettings {
            warmup,
            class_weights: weights,
            schedule: c.0,
            optimizer: c.1,
            loss: c.2,
            amp: c.3,
            recompute: c.4,
            max_steps: n.0,
            batch: n.1,
            patience: n.2,
            unfreeze: n.3,
            threads: n.4,
            lr: r.0,
            min_lr: r.0 / 7.0,
            head_lr: r.1,
            clip: r.2,
            ema: r.3,
            seed: rest.0,
            init: rest.1,
            checkpoint_every_s: rest.2,
            checkpoint_every_steps: rest.3,
            ..TrainSettings::default()
        }
    })
}

fn device() -> impl Strategy<Value = DeviceSettings> {
    let route = of(("[a-z_\"]{1,8}", select(vec!["cpu", "gpu"])));
    (select(DeviceName::ALL), of(1..1_u64 << 62), select(Gemm::ALL), route).prop_map(
        |(device, memory, gemm, route)| DeviceSettings {
            device,
            memory: memory.map(Bytes),
            gemm,
            route: route.into_iter().map(|(op, to)| Route { op, device: to.to_string() }).collect(),
            ..DeviceSettings::default()
        },
    )
}

fn augment() -> impl Strategy<Value = AugmentSettings> {
    (0.0..1.0_f64, 0.0..1.0_f64, 0.0..9.0_f64).prop_map(|(mixup, sign_flip, time_masking_s)| {
        AugmentSettings { mixup, sign_flip, time_masking_s, ..AugmentSettings::default() }
    })
}

fn settings() -> impl Strategy<Value = Settings> {
    let run = (of(path()), of(text()), any::<bool>()).prop_map(|(dir, name, quiet)| RunSettings {
        profile: None,
        dir,
        name: name.map(|name| format!("my {name}")),
        quiet,
        json: !quiet,
    });
    let model = (1..9_usize, 1..9_usize, 0.0..0.9_f64, any::<bool>()).prop_map(
        |(n_heads, width, dropout, shallow)| ModelSettings {
            name: if shallow { ModelName::Shallow } else { ModelName::EegFormer },
            n_heads,
            d_model: n_heads * width * 4,
            dropout,
            ..ModelSettings::default()
        },
    );
    (data(), model, train(), augment(), device(), run).prop_map(
        |(data, model, train, augment, device, run)| Settings {
            data,
            model,
            train,
            augment,
            device,
            run,
        },
    )
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn written_settings_read_back_the_same(settings in settings()) {
        settings.validate()?;
        let read = from_text(&settings.to_toml()?)?;
        prop_assert_eq!(&read.settings, &settings);
        // With the origins as comments, and over a profile which must not show through.
        let mut expected = settings;
        expected.run.profile = Some("h200".to_string());
        let (_folder, path) = file(&expected.to_toml()?);
        let recorded = resolve(Some(&path), &[], None)?.to_toml()?;
        prop_assert_eq!(from_text(&recorded)?.settings, expected);
    }

    /// Whatever subset of the layers sets a field, the highest wins and is named.
    #[test]
    fn the_highest_layer_wins(in_profile: bool, in_file: bool, in_flag: bool, lr in 1e-5..1.0_f64) {
        let text = if in_file { format!("[train]\n# peak\nlr = {lr:?}\n") } else { String::new() };
        let (_folder, path) = file(&text);
        let flag = Assignment::new("--lr", "train.lr", lr / 2.0);
        let flags = if in_flag { vec![flag] } else { vec![] };
        let found = resolve(Some(&path), &flags, in_profile.then_some("h200"))?;
        let (value, origin) = match (in_flag, in_file, in_profile) {
            (true, _, _) => (lr / 2.0, Origin::Flag("--lr".to_string())),
            (_, true, _) => (lr, Origin::File { path, line: 3 }),
            (_, _, true) => (0.0005, Origin::Profile("h200".to_string())),
            _ => (TrainSettings::default().lr, Origin::Default),
        };
        prop_assert_eq!(found.settings.train.lr, value);
        prop_assert_eq!(found.origin("train.lr"), &origin);
        let noted = found.to_toml()?;
        let noted = noted.lines().find(|line| line.starts_with("lr = ")).unwrap_or_default();
        prop_assert!(noted.ends_with(&format!("# {origin}")), "{}", noted);
    }

    #[test]
    fn no_file_makes_it_panic(
        text in "(\\[?[a-z.]{0,9}\\]?( ?= ?[0-9a-z\"\\[\\].-]{0,9})?\n){0,6}",
        name in "(data|model|train|device|run|augment)\\.[a-z_]{1,12}",
        value in "[0-9a-z\"\\[\\]{}.=, -]{0,12}",
    ) {
        let _ = from_text(&text);
        let given = Assignment::parse(&format!("{name}={value}"))?;
        let _ = resolve(None, &[given], None);
    }
}

#[test]
fn refusals_name_place_meaning_and_remedy() {
    let cases: &[(&str, &[&str])] = &[
        ("[train]\n\nlearning_rate = 1\n", &["my.toml:3", "learning_rate", "fields are epochs"]),
        ("[train]\nlrr = 1\n", &["my.toml:2, train.lrr", "[train] has no", "did you mean `lr`?"]),
        ("[trian]\nlr = 1\n", &["my.toml:1", "no section", "did you mean `train`?"]),
        ("lr = 1\n", &["my.toml:1, lr", "under [train]"]),
        ("[train]\nd_model = 64\n", &["my.toml:2", "under [model]"]),
        ("[train]\nschedule = \"cosin\"\n", &["my.toml:2", "\"cosine\"", "one-cycle"]),
        ("[train]\nepochs = \"ten\"\n", &["my.toml:2", "\"ten\"", "whole number", "epochs = 30"]),
        ("[train]\nepochs = -1\n", &["my.toml:2", "-1", "whole number from 0"]),
        ("[train]\nepochs = 2.5\n", &["my.toml:2", "2.5", "whole number from 0"]),
        ("[train]\nlr = true\n", &["my.toml:2", "a number", "lr = 0.001"]),
        ("[train]\nbetas = [0.9]\n", &["my.toml:2, train.betas"]),
        ("[train]\nbatch = \"all\"\n", &["my.toml:2", "\"auto\" or a whole number"]),
        ("[train]\nwarmup = \"long\"\n", &["my.toml:2", "share of all steps"]),
        ("train = 5\n", &["my.toml:1, train", "a section of fields"]),
        ("[data]\ntasks = \"Rest\"\n", &["my.toml:2", "a list"]),
        ("[data]\ntasks = [\"a\", 3]\n", &["my.toml:2", "integer `3`", "text"]),
        ("[device]\nmemory = \"6 gigs\"\n", &["my.toml:2", "\"6GB\""]),
        ("[train]\nlr = \n", &["my.toml:2", "remedy"]),
        ("[train]\nlr = 1\nlr = 2\n", &["my.toml:3", "duplicate"]),
        ("[augment]\nsign_flipp = 1\n", &["my.toml:2, augment.sign_flipp", "`sign_flip`"]),
        ("[augment]\nmixup = \"much\"\n", &["my.toml:2, augment.mixup", "a number", "mixup = 0"]),
        ("[run]\nprofile = \"rtx306\"\n", &["my.toml:2", "did you mean `rtx3060`?"]),
    ];
    for (text, parts) in cases {
        let error = from_text(text).expect_err(text);
        let message = error.to_string();
        for part in *parts {
            assert!(message.contains(part), "{part:?} is missing in: {message}");
        }
        assert_eq!(error.exit_code(), 2);
    }
}

#[test]
fn meanings_are_checked_with_the_field_and_the_remedy() {
    for (text, parts) in [
        ("[model]\nd_model = 100\n", ["my.toml:2, model.d_model", "n_heads 8", "104"]),
        ("[model]\nn_heads = 7\n", ["my.toml:2, model.n_heads", "d_model 128", "such as 4"]),
        ("[model]\nd_model = 1040\n", ["my.toml:2, model.d_model", "130 wide", "at least 9 heads"]),
        ("[model]\npatch = 7\n", ["my.toml:2, model.patch", "200 samples", "a patch of 5"]),
        ("[model]\ndropout = 1\n", ["my.toml:2", "[0, 1)", "0.1 is usual"]),
        ("[model]\nn_layers = 0\n", ["my.toml:2", "0 is too few", "6"]),
        ("[model]\nname = \"shallow\"\nshallow_pool = 190\n", ["my.toml:3", "214 samples", "200"]),
        ("[data]\nval_fraction = 0.5\ntest_fraction = 0.5\n", ["my.toml:3", "no subject", "0.15"]),
        ("[data]\nval_fraction = 0\ntest_fraction = 0\n", ["my.toml:3", "to score", "0.15"]),
        ("[data]\nfolds = 1\n", ["my.toml:2", "one fold", "2 or more"]),
        ("[data]\nhigh_hz = 50\n", ["my.toml:2", "resample_hz 100", "below 50"]),
        ("[data]\nlow_hz = 46\n", ["my.toml:2, data.low_hz", "empty", "below high_hz"]),
        ("[data]\nresample_hz = 80\n", ["my.toml:2, data.resample_hz", "high_hz 45", "below 40"]),
        ("[data]\nwindow_s = 0.001\n", ["my.toml:2, data.window_s", "no sample", "2.0 is usual"]),
        (
            "[data]\nwindow_s = 1.99\n[model]\npatch = 2\n",
            ["my.toml:4", "199 samples", "patch of 1"],
        ),
        ("[data]\nval_fraction = 0.9\n", ["my.toml:2, data.val_fraction", "no subject", "0.15"]),
        ("[data]\nwindow_s = -2\n", ["my.toml:2", "-2 is not above 0", "2.0"]),
        ("[data]\nwindow_s = nan\n", ["my.toml:2", "not above 0", "2.0"]),
        ("[data]\nreference = []\n", ["my.toml:2", "empty", "average"]),
        ("[train]\nlr = 0\n", ["my.toml:2", "not above 0", "0.001"]),
        ("[train]\nlr = inf\n", ["my.toml:2, train.lr", "inf is not finite", "0.001"]),
        ("[train]\nlr = 1e-7\n", ["my.toml:2, train.lr", "min_lr 0.000001", "min_lr at or below"]),
        ("[train]\nmin_lr = 0.1\n", ["my.toml:2", "lr 0.001", "at or below"]),
        ("[train]\nwarmup = 50\nmax_steps = 50\n", ["my.toml:2", "never end", "fewer than 50"]),
        ("[train]\nwarmup = 1.0\n", ["my.toml:2", "[0, 1)", "0.05"]),
        ("[train]\nvalidation_share = 0\n", ["my.toml:2", "(0, 1]", "0.05"]),
        ("[train]\nvalidation_share = 1.5\n", ["my.toml:2", "(0, 1]", "0.05"]),
        ("[train]\nbatch = 0\n", ["my.toml:2", "no batch", "auto"]),
        ("[train]\nema = 1.0\n", ["my.toml:2", "(0, 1)", "0.999"]),
        ("[train]\nbetas = [0.9, 1.0]\n", ["my.toml:2", "[0, 1)", "0.95"]),
        ("[train]\nclass_weights = [1.0, 0.0]\n", ["my.toml:2", "above 0", "balanced"]),
        ("[augment]\nmixup = 1.5\n", ["my.toml:2, augment.mixup", "1.5 is out of range", "0 to 1"]),
        ("[augment]\nmixup_alpha = 0\n", ["my.toml:2, augment.mixup_alpha", "range", "at least"]),
        ("[device]\nroute = [\"a=cpu\", \"a=gpu\"]\n", ["my.toml:2", "twice", "once"]),
    ] {
        let message = from_text(text).expect_err(text).to_string();
        for part in parts {
            assert!(message.contains(part), "{part:?} is missing in: {message}");
        }
    }
}

#[test]
fn files_that_cannot_be_read_are_named() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    for (path, part) in
        [(folder.path().join("absent.toml"), "absent.toml"), (folder.path().into(), "config.toml")]
    {
        let message = resolve(Some(&path), &[], None).expect_err("unreadable").to_string();
        assert!(message.contains(part) && message.contains("remedy"), "{message}");
    }
}

#[test]
fn the_profile_of_a_flag_goes_before_that_of_the_file() {
    let (_folder, path) = file("[run]\nprofile = \"rtx3060\"\n");
    let width = |flags: &[Assignment], fallback| {
        let found = resolve(Some(&path), flags, fallback).expect("valid");
        (found.settings.run.profile.clone(), found.settings.model.d_model)
    };
    assert_eq!(width(&[], Some("h200")), (Some("rtx3060".to_string()), 128));
    let flag = |name: &str| [Assignment::new("--profile", "run.profile", name)];
    assert_eq!(width(&flag("rx5600xt"), None), (Some("rx5600xt".to_string()), 96));
    assert_eq!(width(&flag("off"), Some("h200")).0, None);
    let error = resolve(None, &flag("rtx3O60"), None).expect_err("unknown").to_string();
    assert!(error.contains("--profile") && error.contains("rtx3060"), "{error}");
}

/// Profiles hold together, and those of the table say what the table says: batch, accumulation,
/// d_model, heads, layers, workers, pinned, mixed precision.
#[test]
fn profiles_are_valid_and_as_documented() {
    for profile in PROFILES {
        let found = resolve(None, &[], Some(profile.name)).expect(profile.name);
        assert_eq!(found.settings.run.profile.as_deref(), Some(profile.name));
    }
    for (name, numbers, pinned, mixed) in [
        ("rx5600xt", [8, 4, 96, 6, 4, 2], false, false),
        ("rtx3060", [16, 2, 128, 8, 6, 4], true, true),
        ("rtx4090", [32, 1, 256, 16, 12, 8], true, true),
    ] {
        let s = resolve(None, &[], Some(name)).expect(name).settings;
        let (m, t) = (&s.model, &s.train);
        let batch = t.batch.unwrap_or(0);
        let found = [batch, t.accumulation, m.d_model, m.n_heads, m.n_layers, t.workers];
        assert_eq!(found, numbers, "{name}");
        assert_eq!((s.device.pinned, t.amp != Amp::Off), (pinned, mixed), "{name}");
    }
}

/// Another reader of TOML finds the same values in a recorded run.
#[test]
fn python_reads_the_recorded_settings() {
    let flags = [
        Assignment::new("--target", "data.target", "p \"factor\"\n#é"),
        Assignment::new("--set", "augment.mixup", 0.25),
    ];
    let text = resolve(None, &flags, Some("rx5600xt")).and_then(|r| r.to_toml()).expect("valid");
    let (_folder, path) = file(&text);
    let script =
        "import sys, json, tomllib; json.dump(tomllib.load(open(sys.argv[1], 'rb')), sys.stdout)";
    let python = std::env::var("ENGINE_PYTHON").unwrap_or_else(|_| "python3".to_string());
    let probe = Command::new(&python).args(["-c", "import tomllib"]).output();
    if !probe.is_ok_and(|output| output.status.success()) {
        return eprintln!("skipped: {python} with tomllib (Python 3.11) is not at hand");
    }
    let output = Command::new(&python).args(["-c", script]).arg(&path).output().expect("runs");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let read: serde_json::Value = serde_json::from_slice(&output.stdout).expect("JSON");
    assert_eq!(read["data"]["target"], "p \"factor\"\n#é");
    assert_eq!(read["augment"]["mixup"], 0.25);
    assert_eq!(read["model"]["d_model"], 96);
    assert_eq!(read["device"]["route"][0], "spectral=cpu");
    assert_eq!(read["train"]["ema"], "off");
    let sections = read.as_object().expect("sections").values();
    let fields: usize = sections.filter_map(|section| Some(section.as_object()?.len())).sum();
    let defaults = toml::Table::try_from(Settings::default()).expect("TOML");
    let known: usize = defaults.values().filter_map(|s| Some(s.as_table()?.len())).sum();
    assert_eq!(fields, known, "every field is recorded");
}
