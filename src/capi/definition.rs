//! A model in JSON, as engine_trainer_new takes it: what engine_model_describe gives, most of which may
//! be left out.

use serde_json::{Map, Value, json};

use super::status::{EngineStatus, Failure, Outcome};
use crate::model::{EegFormerConfig, ModelConfig, ShallowConfig};
use crate::train::state::About;

/// Largest extents that make sense: beyond them products of extents could not be trusted.
const LARGEST: [(&str, u64); 12] = [
    ("n_channels", 1 << 14),
    ("window", 1 << 20),
    ("num_classes", 1 << 14),
    ("d_model", 1 << 14),
    ("n_heads", 1 << 14),
    ("n_layers", 1 << 10),
    ("patch", 1 << 20),
    ("n_spectral", 1 << 6),
    ("filters", 1 << 12),
    ("kernel", 1 << 16),
    ("pool", 1 << 16),
    ("pool_stride", 1 << 16),
];

fn refused(place: &str, problem: impl ToString, remedy: &str) -> Failure {
    Failure::with(EngineStatus::Input, place, problem, remedy)
}

/// Reads a definition. `classes` is the number of classes that the loss wants; 0: it wants numbers.
pub(super) fn parse(text: &str, classes: impl Fn(usize) -> usize) -> Outcome<About> {
    let given: Value = serde_json::from_str(text).map_err(|error| {
        refused("definition", format!("is no JSON: {error}"), "give an object with a member model")
    })?;
    let Value::Object(given) = given else {
        let remedy = "give {\"model\": {\"name\": \"eegformer\", ...}}";
        return Err(refused("definition", "is no JSON object", remedy));
    };
    let model = model(given.get("model").unwrap_or(&Value::Null))?;
    let (channels, _, outputs) = model.extents();
    let task = match classes(outputs) {
        0 => json!({ "regression": { "name": "target", "unit": "" } }),
        n => {
            let names: Vec<String> = (0..n).map(|i| i.to_string()).collect();
            json!({ "classification": { "name": "target", "classes": names } })
        }
    };
    let names: Vec<String> = (1..=channels).map(|i| i.to_string()).collect();
    let mut whole = Map::new();
    whole.insert("task".into(), task);
    whole.insert("standard".into(), Value::Null);
    whole.insert("channels".into(), json!(names));
    whole.insert("sample_rate".into(), json!(100.0));
    whole.insert("by_recording".into(), json!(false));
    for (name, value) in given {
        if name == "model" {
            continue;
        }
        match whole.get_mut(&name) {
            Some(member) => *member = value,
            None => {
                let remedy = "the members are model, task, standard, channels, sample_rate, \
                              by_recording";
                return Err(refused(&format!("definition.{name}"), "is no member", remedy));
            }
        }
    }
    let model = serde_json::to_value(&model).map_err(|error| crate::Error::shape("json", error))?;
    whole.insert("model".into(), model);
    let about: About = serde_json::from_value(Value::Object(whole)).map_err(|error| {
        refused("definition", error, "compare it with what engine_model_describe gives")
    })?;
    check(&about, classes(outputs), "definition")?;
    Ok(about)
}

/// The model, its left-out members from the defaults.
fn model(given: &Value) -> Outcome<ModelConfig> {
    let place = "definition.model";
    let name = given.get("name").and_then(Value::as_str);
    let base = match name {
        Some("eegformer") => ModelConfig::EegFormer(EegFormerConfig::default()),
        Some("shallow") => ModelConfig::Shallow(ShallowConfig::default()),
        _ => {
            let problem = "has no name that is known";
            return Err(refused(place, problem, "give \"name\": \"eegformer\" or \"shallow\""));
        }
    };
    let mut whole = serde_json::to_value(base).map_err(|e| crate::Error::shape("json", e))?;
    let (Some(known), Some(given)) = (whole.as_object_mut(), given.as_object()) else {
        return Err(refused(place, "is no object", "give an object"));
    };
    for (name, value) in given {
        let place = format!("{place}.{name}");
        let largest = LARGEST.iter().find(|(field, _)| field == name).map(|(_, most)| *most);
        if let (Some(largest), Some(number)) = (largest, value.as_u64())
            && number > largest
        {
            return Err(refused(&place, format!("{number} is too large"), "give less"));
        }
        if !known.contains_key(name) {
            let all: Vec<&str> = known.keys().map(String::as_str).collect();
            let remedy = format!("the members are {}", all.join(", "));
            return Err(refused(&place, "is no member", &remedy));
        }
        known.insert(name.clone(), value.clone());
    }
    serde_json::from_value(whole)
        .map_err(|error| refused(place, error, "compare it with what engine_model_describe gives"))
}

/// What the parts of a definition, or of a checkpoint, must agree on; `place` names it.
pub(super) fn check(about: &About, classes: usize, place: &str) -> Outcome {
    let (channels, _, _) = about.model.extents();
    if about.channels.len() != channels {
        let problem = format!("{} names for {channels} channels", about.channels.len());
        return Err(refused(&format!("{place}.channels"), problem, "give one a channel, or none"));
    }
    if !(about.sample_rate > 0.0 && about.sample_rate.is_finite()) {
        let problem = format!("{} Hz", about.sample_rate);
        return Err(refused(
            &format!("{place}.sample_rate"),
            problem,
            "give the windows' rate in Hz",
        ));
    }
    let found = match &about.task {
        crate::metrics::Task::Regression { .. } => 0,
        crate::metrics::Task::Classification { classes, .. } => classes.len(),
    };
    if found != classes {
        let problem = format!("has {found} classes, the loss and num_classes make {classes}");
        let remedy = "give classes with ENGINE_LOSS_BCE (two, one output) or \
                      ENGINE_LOSS_CROSS_ENTROPY (one output each), numbers with the others";
        return Err(refused(&format!("{place}.task"), problem, remedy));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(text: &str) -> String {
        parse(text, |_| 0).expect_err("refused").message
    }

    #[test]
    fn what_is_left_out_has_defaults() {
        let text = r#"{"model": {"name": "eegformer", "n_channels": 3, "n_layers": 1}}"#;
        let about = parse(text, |_| 0).expect("is whole");
        let (channels, window, outputs) = about.model.extents();
        assert_eq!((channels, window, outputs), (3, 200, 1));
        assert_eq!(about.channels, ["1", "2", "3"]);
        let again = serde_json::to_string(&about).expect("prints");
        assert_eq!(parse(&again, |_| 0).expect("reads its own"), about);
    }

    #[test]
    fn mistakes_are_named() {
        for (text, words) in [
            ("", "is no JSON"),
            ("[]", "no JSON object"),
            ("{}", "definition.model"),
            (r#"{"model": {"name": "mlp"}}"#, "eegformer"),
            (r#"{"model": {"name": "shallow", "d_model": 4}}"#, "definition.model.d_model"),
            (r#"{"model": {"name": "shallow", "kernel": "x"}}"#, "definition.model"),
            (r#"{"model": {"name": "shallow", "window": 9999999}}"#, "too large"),
            (r#"{"model": {"name": "shallow"}, "chanels": []}"#, "definition.chanels"),
            (r#"{"model": {"name": "shallow"}, "channels": ["Cz"]}"#, "definition.channels"),
            (r#"{"model": {"name": "shallow"}, "sample_rate": 0}"#, "definition.sample_rate"),
            (
                r#"{"model": {"name": "shallow"}, "task": {"classification": {"name": "s", "classes": ["a"]}}}"#,
                "definition.task",
            ),
        ] {
            let found = message(text);
            assert!(found.contains(words) && found.contains("remedy"), "{text}: {found}");
        }
    }
}
