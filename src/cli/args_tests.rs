//! Command lines: what they say about the settings, and which are refused.

use super::*;
use crate::config::{Origin, resolve};
use clap::CommandFactory;
use std::path::Path;

fn parse(line: &str) -> Result<Cli, clap::Error> {
    Cli::try_parse_from(line.split_whitespace())
}

fn train(line: &str) -> TrainArgs {
    match parse(line).expect("valid").command {
        Command::Train(args) => *args,
        other => panic!("{other:?}"),
    }
}

#[test]
fn the_commands_are_consistent() {
    Cli::command().debug_assert();
}

/// Each line "engine ..." of each help text is a command line that works.
#[test]
fn the_examples_of_the_help_parse() {
    fn walk(command: &clap::Command, seen: &mut usize) {
        let help = command.get_after_help().map(ToString::to_string).unwrap_or_default();
        for line in help.lines().map(str::trim).filter(|line| line.starts_with("engine ")) {
            let args = parse(line).unwrap_or_else(|error| panic!("{line}: {error}"));
            if let Command::Train(args) = args.command {
                args.assignments().expect("valid flags");
            }
            *seen += 1;
        }
        command.get_subcommands().for_each(|inner| walk(inner, seen));
    }
    let mut seen = 0;
    walk(&Cli::command(), &mut seen);
    assert!(seen > 20, "{seen} examples");
}

#[test]
fn every_flag_reaches_its_field() {
    let args = train(
        "engine train --data d --target sex --task A,B --task C --model shallow --batch 24 \
         --epochs 3 --max-steps 99 --lr 1e-4 --seed 5 --folds 4 --shuffle-labels --amp f16 \
         --init i.safetensors --run r --device cpu --memory 6GB --gemm native --route \
         spectral=gpu --threads 3 --quiet --profile off --set train.warmup=7 --set \
         data.reference=recorded",
    );
    let flags = args.assignments().expect("valid");
    let found = resolve(None, &flags, Some("h200")).expect("valid settings");
    let s = &found.settings;
    assert_eq!(s.data.dir.as_deref(), Some(Path::new("d")));
    assert_eq!((s.data.target.as_str(), s.data.tasks.join(" ")), ("sex", "A B C".to_string()));
    assert_eq!((s.data.folds, s.data.shuffle_labels), (4, true));
    assert_eq!(s.data.reference, crate::config::Reference::Recorded);
    assert_eq!((s.train.batch, s.train.epochs, s.train.max_steps), (Some(24), 3, Some(99)));
    assert_eq!((s.train.lr, s.train.seed, s.train.amp), (1e-4, 5, Amp::F16));
    assert_eq!(s.train.warmup, crate::config::Warmup::Steps(7));
    assert_eq!(s.train.init.as_deref(), Some(Path::new("i.safetensors")));
    assert_eq!(s.run.dir.as_deref(), Some(Path::new("r")));
    assert_eq!((s.device.device, s.device.gemm), (DeviceName::Cpu, Gemm::Native));
    assert_eq!(s.device.memory.map(|m| m.0), Some(6_000_000_000));
    assert_eq!((s.train.threads, s.run.quiet, s.run.json), (Some(3), true, false));
    assert_eq!((s.model.name, s.run.profile.as_deref()), (ModelName::Shallow, None));
    assert_eq!(s.device.route.len(), 1);
    // Every flag given is the origin of a field, and no profile was laid under them.
    for flag in &flags {
        assert_eq!(found.origin(&flag.field), &Origin::Flag(flag.flag.clone()));
    }
    assert_eq!(flags.len(), 23);
    assert_eq!(found.origin("model.d_model"), &Origin::Default);
}

#[test]
fn no_flag_says_nothing() {
    assert_eq!(train("engine train").assignments().expect("valid"), []);
}

#[test]
fn a_wrong_value_names_its_flag() {
    for (line, parts) in [
        ("engine train --batch many", ["--batch", "auto"]),
        ("engine train --memory 6XB", ["--memory", "6GB"]),
        ("engine train --batch -1", ["--batch", "a whole number above 0"]),
        ("engine train --memory -5", ["--memory", "6GB"]),
        ("engine train --threads -1", ["--threads", "a whole number above 0"]),
        ("engine train --epochs -3", ["--epochs", "a whole number"]),
        ("engine train --route spectral", ["--route", "spectral=cpu"]),
        ("engine train --threads 0", ["--threads", "all cores"]),
        ("engine train --set train.epoch=3", ["--set train.epoch=3", "`epochs`"]),
        ("engine train --set d_model=3", ["--set d_model=3", "section.field"]),
        ("engine train --folds 1", ["--folds", "2 or more"]),
    ] {
        let flags = train(line).assignments();
        let error = flags.and_then(|flags| resolve(None, &flags, None)).expect_err(line);
        let text = error.to_string();
        assert!(parts.iter().all(|part| text.contains(part)), "{line}: {text}");
        assert_eq!(error.exit_code(), 2);
    }
}

#[test]
fn contradictions_are_refused() {
    for line in [
        "engine train --quiet --json",
        "engine train --resume r --config c",
        "engine train --resume r --run s",
        "engine train --profile --profile rtx3061",
        "engine train --profile rtx3061",
        "engine data synth d --ages 5",
    ] {
        assert!(parse(line).is_err(), "{line}");
    }
}

#[test]
fn a_profile_is_a_starting_point_or_of_the_steps() {
    let profile = |line: &str| {
        let args = train(line);
        let flags = args.assignments().expect("valid");
        (args.wants_trace(), flags.first().map(|flag| flag.value.clone()))
    };
    let named = Some(Value::String("rtx3060".into()));
    assert_eq!(profile("engine train"), (false, None));
    assert_eq!(profile("engine train --profile"), (true, None));
    assert_eq!(profile("engine train --profile trace"), (true, None));
    assert_eq!(profile("engine train --profile --resume r"), (true, None));
    assert_eq!(profile("engine train --profile rtx3060"), (false, named.clone()));
    assert_eq!(profile("engine train --profile --profile=rtx3060"), (true, named));
    for (line, word) in [
        ("engine train --profile cpu --profile off", "two starting points, cpu and off"),
        ("engine train --profile cpu --resume r", "--resume"),
    ] {
        let error = train(line).assignments().expect_err(line);
        assert!(error.to_string().contains(word) && error.exit_code() == 2, "{error}");
    }
    let parsed = parse("engine data prepare --profile").expect("valid").command;
    let Command::Data(DataCommand::Prepare(args)) = parsed else { panic!("{parsed:?}") };
    let error = args.assignments().expect_err("no steps").to_string();
    assert!(error.contains("name one of cpu, ") && !error.contains("trace"), "{error}");
}
