//! Both models against PyTorch: forward pass, every gradient, ten updates. `tests/golden/make.py`
//! made the numbers, in f64 from f32 inputs.

use std::path::PathBuf;
use std::sync::Arc;

use engine::backend::Backend;
use engine::backend::cpu::Cpu;
use engine::model::{EegFormerConfig, ModelConfig, ShallowConfig};
use engine::ops::loss::Pointwise;
use engine::optim::{Control, Rates, Rule};
use engine::train::step::{Objective, Step, StepSpec};
use engine::{DType, Tape, Var};
use safetensors::SafeTensors;
use serde_json::Value;

struct Golden {
    bytes: Vec<u8>,
    about: Value,
    name: String,
}

impl Golden {
    fn open(name: &str) -> Self {
        let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(name);
        let bytes = std::fs::read(&path).expect("committed with the tests");
        let (_, header) = SafeTensors::read_metadata(&bytes).expect("valid file");
        let json = header.metadata().as_ref().expect("has metadata")["golden"].clone();
        let about = serde_json::from_str(&json).expect("valid JSON");
        Self { bytes, about, name: name.into() }
    }

    fn get(&self, name: &str) -> (Vec<usize>, Vec<f64>) {
        let file = SafeTensors::deserialize(&self.bytes).expect("valid file");
        let tensor = file.tensor(name).unwrap_or_else(|_| panic!("{}: no {name}", self.name));
        let data = tensor.data();
        let values = match tensor.dtype() {
            safetensors::Dtype::F32 => data
                .chunks_exact(4)
                .map(|b| f64::from(f32::from_le_bytes(b.try_into().expect("four"))))
                .collect(),
            safetensors::Dtype::F64 => data
                .chunks_exact(8)
                .map(|b| f64::from_le_bytes(b.try_into().expect("eight")))
                .collect(),
            safetensors::Dtype::I64 => data
                .chunks_exact(8)
                .map(|b| i64::from_le_bytes(b.try_into().expect("eight")) as f64)
                .collect(),
            other => panic!("{other:?}"),
        };
        (tensor.shape().to_vec(), values)
    }

    fn floats(&self, name: &str) -> Vec<f32> {
        self.get(name).1.into_iter().map(|x| x as f32).collect()
    }

    fn number(&self, path: &str) -> f64 {
        self.about.pointer(path).and_then(Value::as_f64).unwrap_or_else(|| panic!("no {path}"))
    }

    fn size(&self, field: &str) -> usize {
        self.number(&format!("/config/{field}")) as usize
    }

    fn model(&self) -> ModelConfig {
        let (n_channels, window) = (self.size("n_channels"), self.size("window"));
        let num_classes = self.size("num_classes");
        match self.about["model"].as_str() {
            Some("eegformer") => ModelConfig::EegFormer(EegFormerConfig {
                n_channels,
                window,
                num_classes,
                d_model: self.size("d_model"),
                n_heads: self.size("n_heads"),
                n_layers: self.size("n_layers"),
                patch: self.size("patch"),
                n_spectral: self.size("n_spectral"),
                dropout: 0.0,
                recompute: false,
            }),
            _ => ModelConfig::Shallow(ShallowConfig {
                n_channels,
                window,
                num_classes,
                dropout: 0.0,
                ..ShallowConfig::default()
            }),
        }
    }

    fn objective(&self) -> Objective {
        let loss = &self.about["loss"];
        let field = |name: &str| loss[name].as_f64();
        match loss["kind"].as_str() {
            Some("mse") => Objective::Pointwise(Pointwise::Mse),
            Some("huber") => Objective::Pointwise(Pointwise::Huber {
                delta: field("delta").expect("has delta") as f32,
            }),
            Some("bce_with_logits") => Objective::Pointwise(Pointwise::BceWithLogits {
                positive_weight: self.number("/loss/pos_weight/0") as f32,
            }),
            _ => Objective::CrossEntropy {
                weights: match loss["class_weights"].as_array() {
                    Some(all) => all.iter().map(|w| w.as_f64().expect("number") as f32).collect(),
                    None => vec![1.0; self.size("num_classes")],
                },
                smoothing: field("label_smoothing").unwrap_or(0.0) as f32,
            },
        }
    }

    fn step(&self, dtype: DType, recompute: bool) -> Step {
        let rows = self.get("input.0").0[0];
        let mut model = self.model();
        if let ModelConfig::EegFormer(config) = &mut model {
            config.recompute = recompute;
        }
        let optimizer = |field: &str| self.number(&format!("/optimizer/{field}"));
        let spec = StepSpec {
            model,
            batch: rows,
            accumulation: 1,
            eval_batch: 3,
            objective: self.objective(),
            rule: Rule::AdamW {
                beta1: optimizer("beta1"),
                beta2: optimizer("beta2"),
                epsilon: optimizer("eps"),
            },
            average: false,
            dtype,
            compute: None,
            seed: 1,
        };
        let cpu: Arc<dyn Backend> = Arc::new(Cpu::new(2, 1 << 30).expect("starts"));
        let step = Step::new(cpu, spec).expect("builds");
        for id in step.params().ids() {
            let (shape, values) = self.get(&format!("param.{}", step.params().spec(id).name));
            assert_eq!(shape, step.params().spec(id).shape.dims());
            step.params().write(id, &values).expect("fits");
        }
        step
    }

    /// Rows of a parameter whose gradient is 0 but for rounding, where AdamW turns noise into
    /// steps: neither run is right there.
    fn is_noise(&self, name: &str, index: usize, shape: &[usize]) -> bool {
        let width: usize = shape.iter().skip(1).product();
        let row = (index / width.max(1)) as u64;
        let listed = self.about["zero_grad"].as_array().into_iter().flatten();
        listed.filter(|z| z["name"] == name).any(|z| match z["rows"].as_array() {
            Some(rows) => rows[0].as_u64() <= Some(row) && Some(row) < rows[1].as_u64(),
            None => true,
        })
    }
}

const FILES: [&str; 7] = [
    "eegformer_mse",
    "eegformer_patch3_huber",
    "eegformer_cross_entropy",
    "eegformer_spectral2",
    "eegformer_head16_bce",
    "shallow_cross_entropy",
    "shallow_bce",
];

fn close(found: f64, want: f64, limit: f64, what: &str) {
    let error = (found - want).abs() / want.abs().max(1.0);
    assert!(error < limit, "{what}: {found} for {want}");
}

fn check(name: &str, dtype: DType, limit: f64, recompute: bool) {
    let golden = Golden::open(&format!("{name}.safetensors"));
    let what = |part: &str| format!("{name} in {}: {part}", dtype.name());
    let step = golden.step(dtype, recompute);
    let lr = golden.number("/optimizer/lr");
    let decay = golden.number("/optimizer/weight_decay");
    let clip = golden.number("/optimizer/clip_norm");
    for i in 0..10 {
        step.load_windows(&golden.floats(&format!("input.{i}"))).expect("fits");
        step.load_targets(&golden.floats(&format!("target.{i}"))).expect("fits");
        let control = Control { step: i + 1, clip, loss_scale: 1.0, average: 0.0 };
        step.train(0, control, |_| Rates { lr, decay, trained: true }).expect("runs");
        let norm = step.optimizer().norm(step.params()).expect("reads");
        let want = golden.get(&format!("grad_norm.{i}")).1[0];
        close(norm, want, 2.0 * limit, &what(&format!("gradient norm {i}")));
        let want = golden.get(&format!("loss.{i}")).1[0];
        close(step.loss().expect("reads"), want, limit, &what(&format!("loss {i}")));
        if i > 0 {
            continue;
        }
        for id in step.params().ids() {
            let Some(grad) = step.params().grad(id) else { continue };
            let name = &step.params().spec(id).name;
            let found = step.params().read_floats(&grad).expect("reads");
            for (found, want) in found.iter().zip(golden.get(&format!("grad.{name}")).1) {
                close(f64::from(*found), want, limit, &what(&format!("gradient of {name}")));
            }
        }
    }
    // AdamW divides a gradient by its own size: where it is near 0, rounding becomes a step.
    let final_limit = if dtype == DType::F32 { 5.0 * limit } else { limit };
    for id in step.params().ids() {
        let spec = step.params().spec(id);
        let found = step.params().read(id).expect("reads");
        let want = golden.get(&format!("final.{}", spec.name)).1;
        for (at, (found, want)) in found.iter().zip(want).enumerate() {
            let drifts = name.starts_with("shallow") && spec.name == "bnorm.running_mean";
            if !drifts && !golden.is_noise(&spec.name, at, spec.shape.dims()) {
                let what = what(&format!("final {} {at}", spec.name));
                close(f64::from(*found), want, final_limit, &what);
            }
        }
    }
    let found = step.evaluate(&golden.floats("input.0")).expect("runs");
    let drift = if name.starts_with("shallow") && dtype == DType::F32 { 300.0 } else { 1.0 };
    for (found, want) in found.iter().zip(golden.get("eval_output").1) {
        close(f64::from(*found), want, drift * limit, &what("evaluation"));
    }
}

#[test]
fn ten_updates_match_pytorch() {
    for name in FILES {
        check(name, DType::F32, 1e-5, false);
        check(name, DType::F64, 1e-6, false);
    }
}

#[test]
fn recomputation_changes_nothing() {
    check("eegformer_spectral2", DType::F32, 1e-5, true);
    check("eegformer_cross_entropy", DType::F64, 1e-6, true);
}

#[test]
fn outputs_match_pytorch() {
    for name in FILES {
        let golden = Golden::open(&format!("{name}.safetensors"));
        let step = golden.step(DType::F32, false);
        let params = step.params();
        let (shape, windows) = golden.get("input.0");
        let windows: Vec<f32> = windows.iter().map(|&x| x as f32).collect();
        let windows = params.backend().tensor(shape.as_slice(), &windows, "windows").expect("fits");
        let mut builder = engine::nn::params::Builder::default();
        let model = golden.model().build(&mut builder).expect("builds");
        let tape = Tape::training(params, None);
        let output = model.forward(&tape, &Var::constant(windows)).expect("runs");
        let found = params.backend().read::<f32>(output.tensor()).expect("reads");
        for (found, want) in found.iter().zip(golden.get("output").1) {
            close(f64::from(*found), want, 1e-5, &format!("{name}: output"));
        }
    }
}
