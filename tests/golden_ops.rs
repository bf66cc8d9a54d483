//! Single ops against PyTorch, forward and backward, and optimizers step by step.
//! `tests/golden/ops.py` made the numbers, in f64 from f32 inputs.

use std::collections::BTreeSet;
use std::sync::Arc;

use engine::backend::Backend;
use engine::backend::cpu::Cpu;
use engine::nn::params::{Builder, Init, Params};
use engine::ops::attention::attention;
use engine::ops::batchnorm::{Norm, batchnorm};
use engine::ops::conv::{Steps, conv1d};
use engine::ops::elementwise::{Function, LOG_FLOOR, apply};
use engine::ops::layernorm::layernorm;
use engine::ops::loss::{Pointwise, cross_entropy, pointwise};
use engine::ops::pool::{Kind, pool};
use engine::ops::softmax::softmax;
use engine::ops::spectral::spectral;
use engine::optim::{Control, Optimizer, Rates, Rule};
use engine::{DType, Result, Tape, Tensor, Var};
use safetensors::SafeTensors;
use serde_json::{Map, Value};

/// Cases of the file that no op of the engine computes, each with what is missing.
const NOT_COVERED: [(&str, &str); 4] = [
    ("elu.1", "alpha is 1"),
    ("bce_with_logits.1", "one weight for all outputs"),
    ("avg_pool1d.3", "pools have no padding"),
    ("max_pool1d.3", "pools have no padding"),
];

/// Loss scales, which the update must undo.
const SCALES: [f64; 2] = [1.0, 1024.0];

struct Golden {
    bytes: Vec<u8>,
    cases: Map<String, Value>,
}

impl Golden {
    fn open() -> Self {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/golden/ops.safetensors");
        let bytes = std::fs::read(path).expect("committed with the tests");
        let (_, header) = SafeTensors::read_metadata(&bytes).expect("valid file");
        let json = header.metadata().as_ref().expect("has metadata")["golden"].clone();
        let mut about: Value = serde_json::from_str(&json).expect("valid JSON");
        let Value::Object(cases) = about["cases"].take() else { panic!("cases are an object") };
        Self { bytes, cases }
    }

    fn cases(&self) -> impl Iterator<Item = Case<'_>> {
        let file = SafeTensors::deserialize(&self.bytes).expect("valid file");
        let file = Arc::new(file);
        self.cases.iter().map(move |(name, about)| {
            let (op, _) = name.rsplit_once('.').expect("op.number");
            Case { file: Arc::clone(&file), name, op, about }
        })
    }
}

struct Case<'a> {
    file: Arc<SafeTensors<'a>>,
    name: &'a str,
    op: &'a str,
    about: &'a Value,
}

impl Case<'_> {
    fn find(&self, tensor: &str) -> Option<(Vec<usize>, Vec<f64>)> {
        let view = self.file.tensor(&format!("case.{}.{tensor}", self.name)).ok()?;
        let data = view.data();
        let eight = |b: &[u8]| <[u8; 8]>::try_from(b).expect("eight");
        let values = match view.dtype() {
            safetensors::Dtype::F32 => data
                .chunks_exact(4)
                .map(|b| f64::from(f32::from_le_bytes(b.try_into().expect("four"))))
                .collect(),
            safetensors::Dtype::F64 => {
                data.chunks_exact(8).map(|b| f64::from_le_bytes(eight(b))).collect()
            }
            _ => data.chunks_exact(8).map(|b| i64::from_le_bytes(eight(b)) as f64).collect(),
        };
        Some((view.shape().to_vec(), values))
    }

    fn get(&self, tensor: &str) -> (Vec<usize>, Vec<f64>) {
        self.find(tensor).unwrap_or_else(|| panic!("{} has no {tensor}", self.name))
    }

    fn number(&self, attribute: &str) -> f64 {
        self.about[attribute].as_f64().unwrap_or_else(|| panic!("{}: {attribute}", self.name))
    }

    fn size(&self, attribute: &str) -> usize {
        self.number(attribute) as usize
    }
}

/// One case on its way through the engine, in one precision.
struct Bench<'a> {
    case: &'a Case<'a>,
    params: &'a Params,
    dtype: DType,
    /// Name of each differentiated input, and where its gradient gathers.
    leaves: Vec<(&'static str, Tensor)>,
}

impl Bench<'_> {
    fn upload(&self, shape: &[usize], values: &[f64]) -> Tensor {
        let tensor = self.params.backend().empty(shape, self.dtype, "golden").expect("fits");
        self.params.write_floats(&tensor, values).expect("fits");
        tensor
    }

    fn constant(&self, name: &str) -> Tensor {
        let (shape, values) = self.case.get(name);
        self.upload(&shape, &values)
    }

    fn leaf_of(&mut self, name: &'static str, shape: &[usize], values: &[f64]) -> Var {
        let grad = self.upload(shape, &vec![0.0; values.len()]);
        self.leaves.push((name, grad.clone()));
        Var::leaf(self.upload(shape, values), grad)
    }

    fn leaf(&mut self, name: &'static str) -> Var {
        let (shape, values) = self.case.get(name);
        self.leaf_of(name, &shape, &values)
    }

    fn read(&self, tensor: &Tensor) -> Vec<f64> {
        match tensor.dtype() {
            DType::F64 => self.params.backend().read::<f64>(tensor).expect("f64"),
            _ => {
                let values = self.params.read_floats(tensor).expect("f32");
                values.into_iter().map(f64::from).collect()
            }
        }
    }

    /// Relative to the largest element: what a sum's rounding is proportional to.
    fn expect(&self, what: &str, found: &[f64], want: &[f64]) {
        let (name, dtype) = (self.case.name, self.dtype.name());
        assert_eq!(found.len(), want.len(), "{name}: {what}");
        let limit = if self.dtype == DType::F64 { 1e-6 } else { 1e-5 };
        let scale = want.iter().fold(1.0f64, |top, x| top.max(x.abs()));
        for (i, (found, want)) in found.iter().zip(want).enumerate() {
            let error = (found - want).abs() / scale;
            assert!(error < limit, "{name} in {dtype}: {what} {i}: {found} for {want}");
        }
    }

    /// Runs the op's backward pass from the file's gradient, and compares everything.
    fn finish(&self, tape: &Tape<'_>, output: &Var, divisor: f64) {
        let found: Vec<f64> = self.read(output.tensor()).iter().map(|y| y / divisor).collect();
        self.expect("output", &found, &self.case.get("output").1);
        match self.case.find("grad_output") {
            Some((_, dy)) => {
                let dy = self.upload(output.dims(), &dy);
                tape.backward_from(output, dy).expect("runs");
            }
            None => tape.backward(output, (1.0 / divisor) as f32).expect("runs"),
        }
        for (name, grad) in &self.leaves {
            let want = self.case.get(&format!("grad_{name}")).1;
            self.expect(&format!("gradient of {name}"), &self.read(grad), &want);
        }
    }
}

/// Runs a differentiable op; false where the engine has none of this name.
fn run(bench: &mut Bench<'_>) -> Result<bool> {
    let params = bench.params;
    let tape = Tape::training(params, None);
    let case = bench.case;
    let unary = |bench: &mut Bench<'_>, function| apply(&tape, function, &bench.leaf("input"));
    let output = match case.op {
        "gelu" => unary(bench, Function::Gelu)?,
        "elu" => unary(bench, Function::Elu)?,
        "square" => unary(bench, Function::Square)?,
        "safe_log" => {
            assert_eq!(case.number("min"), LOG_FLOOR);
            unary(bench, Function::Log)?
        }
        "softmax" => softmax(&tape, &bench.leaf("input"))?,
        "layer_norm" => {
            let [x, w, b] = ["input", "weight", "bias"].map(|name| bench.leaf(name));
            layernorm(&tape, &x, &w, &b, case.number("eps") as f32)?
        }
        "conv1d" => {
            let (x, w) = (bench.leaf("input"), bench.leaf("weight"));
            let bias = case.find("bias").map(|_| bench.leaf("bias"));
            let [stride, padding, groups] =
                ["stride", "padding", "groups"].map(|name| case.size(name));
            conv1d(&tape, &x, &w, bias.as_ref(), Steps { stride, padding, groups })?
        }
        "avg_pool1d" | "max_pool1d" => {
            let kind = if case.op == "avg_pool1d" { Kind::Average } else { Kind::Max };
            pool(&tape, &bench.leaf("input"), kind, case.size("kernel_size"), case.size("stride"))?
        }
        "spectral_gain" => {
            let (x, gain) = (bench.leaf("input"), bench.leaf("gain"));
            spectral(&tape, &x, &gain)?
        }
        "batch_norm" => {
            run_batch_norm(bench, &tape)?;
            return Ok(true);
        }
        "scaled_dot_product_attention" => {
            run_attention(bench, &tape)?;
            return Ok(true);
        }
        _ => return run_loss(bench, &tape),
    };
    bench.finish(&tape, &output, 1.0);
    Ok(true)
}

fn run_loss(bench: &mut Bench<'_>, tape: &Tape<'_>) -> Result<bool> {
    let case = bench.case;
    let beta = case.about["beta"].as_f64().unwrap_or(1.0);
    let kind = match case.op {
        "mse" => Pointwise::Mse,
        "l1" => Pointwise::L1,
        "huber" => Pointwise::Huber { delta: case.number("delta") as f32 },
        // Smooth L1 is the Huber loss over beta.
        "smooth_l1" => Pointwise::Huber { delta: beta as f32 },
        "bce_with_logits" => {
            let weight = case.find("pos_weight").map_or(1.0, |(_, weights)| weights[0]);
            Pointwise::BceWithLogits { positive_weight: weight as f32 }
        }
        "cross_entropy" => {
            let logits = bench.leaf("input");
            let labels: Vec<i32> = case.get("target").1.iter().map(|&x| x as i32).collect();
            let labels = bench.params.backend().tensor([labels.len()], &labels, "labels")?;
            let classes = logits.dims()[1];
            let weights = case.find("weight").map_or(vec![1.0; classes], |(_, w)| w);
            let weights = bench.upload(&[classes], &weights);
            let smoothing = case.number("label_smoothing") as f32;
            let loss = cross_entropy(tape, &logits, &labels, &weights, smoothing)?;
            bench.finish(tape, &loss, 1.0);
            return Ok(true);
        }
        _ => return Ok(false),
    };
    let loss = pointwise(tape, kind, &bench.leaf("input"), &bench.constant("target"))?;
    bench.finish(tape, &loss, beta);
    Ok(true)
}

/// `[batch, channels]` and `[batch, channels, 1, time]` are `[batch, channels, time]` too.
fn run_batch_norm(bench: &mut Bench<'_>, tape: &Tape<'_>) -> Result<()> {
    let case = bench.case;
    let (shape, values) = case.get("input");
    let (batch, channels) = (shape[0], shape[1]);
    let time = shape[2..].iter().product();
    let x = bench.leaf_of("input", &[batch, channels, time], &values);
    let norm = Norm {
        gamma: bench.leaf("weight"),
        beta: bench.leaf("bias"),
        running_mean: bench.constant("running_mean"),
        running_var: bench.constant("running_var"),
    };
    let (epsilon, momentum) = (case.number("eps") as f32, case.number("momentum") as f32);
    let y = batchnorm(tape, &x, &norm, epsilon, momentum)?;
    bench.finish(tape, &y, 1.0);
    for (name, found) in [("running_mean", &norm.running_mean), ("running_var", &norm.running_var)]
    {
        bench.expect(name, &bench.read(found), &case.get(&format!("{name}_after")).1);
    }
    Ok(())
}

/// `[batch, heads, time, d]` as `[batch, time, heads * d]`, or back.
fn swap_heads(x: &[f64], [batch, rows, cols, d]: [usize; 4]) -> Vec<f64> {
    let mut y = Vec::with_capacity(x.len());
    for b in 0..batch {
        for col in 0..cols {
            for row in 0..rows {
                y.extend_from_slice(&x[((b * rows + row) * cols + col) * d..][..d]);
            }
        }
    }
    y
}

/// The engine's attention takes queries, keys and values side by side, `[batch, time, 3, heads,
/// d]`.
fn run_attention(bench: &mut Bench<'_>, tape: &Tape<'_>) -> Result<()> {
    let case = bench.case;
    let parts = ["query", "key", "value"];
    let (shape, _) = case.get("query");
    let [batch, heads, time, d] = shape.as_slice().try_into().expect("four axes");
    let width = heads * d;
    let by_time = |name: &str| swap_heads(&case.get(name).1, [batch, heads, time, d]);
    let pack = |prefix: &str| -> Vec<f64> {
        let parts = parts.map(|name| by_time(&format!("{prefix}{name}")));
        let row = |row: usize| parts.iter().flat_map(move |p| p[row * width..][..width].to_vec());
        (0..batch * time).flat_map(row).collect()
    };
    let packed = bench.upload(&[batch, time, 3 * width], &pack(""));
    let grad = bench.upload(&[batch, time, 3 * width], &vec![0.0; 3 * batch * time * width]);
    let out = attention(tape, &Var::leaf(packed, grad.clone()), heads)?;
    bench.expect("output", &bench.read(out.tensor()), &by_time("output"));
    tape.backward_from(&out, bench.upload(out.dims(), &by_time("grad_output")))?;
    bench.expect("gradient of query, key, value", &bench.read(&grad), &pack("grad_"));
    Ok(())
}

fn params_of(dtype: DType, shapes: &[&[usize]]) -> Params {
    let cpu: Arc<dyn Backend> = Arc::new(Cpu::new(2, 1 << 30).expect("starts"));
    let mut builder = Builder::default();
    for (i, &shape) in shapes.iter().enumerate() {
        builder.param(&format!("p{i}"), shape, Init::Constant(0.0));
    }
    builder.build(cpu, dtype, 0).expect("fits")
}

fn write_grads(params: &Params, grads: &[Vec<f64>]) {
    for (id, values) in params.ids().zip(grads) {
        params.write_floats(&params.grad(id).expect("not frozen"), values).expect("fits");
    }
}

fn step(params: &Params, optimizer: &Optimizer, control: Control, lr: f64, decay: f64) {
    let rates = |_| Rates { lr, decay, trained: true };
    optimizer.prepare(params, control, rates).expect("fits");
    optimizer.enqueue(&Tape::inference(params)).expect("runs");
}

/// Five updates from the file's gradients; a loss scale must cancel.
fn run_trajectory(case: &Case<'_>, dtype: DType, rule: Rule, loss_scale: f64) {
    let (shape, start) = case.get("param");
    let params = params_of(dtype, &[&shape]);
    let id = params.ids().next().expect("one");
    params.write(id, &start).expect("fits");
    let optimizer = Optimizer::new(&params, rule, 0, false).expect("fits");
    let bench = Bench { case, params: &params, dtype, leaves: Vec::new() };
    for i in 0..5 {
        let grad = case.get(&format!("grad.{i}")).1;
        let grad: Vec<f64> = grad.iter().map(|g| g * loss_scale).collect();
        write_grads(&params, &[grad]);
        let control = Control { step: i + 1, clip: 0.0, loss_scale, average: 0.0 };
        step(&params, &optimizer, control, case.number("lr"), case.number("weight_decay"));
        let want = case.get(&format!("param.{i}")).1;
        bench.expect(&format!("step {i}"), &bench.read(&params.value(id)), &want);
    }
}

/// Gradient descent from 0 with rate 1 moves by minus the clipped gradient.
fn run_clip(case: &Case<'_>, dtype: DType) {
    let grads: Vec<_> = (0..3).map(|i| case.get(&format!("grad.{i}"))).collect();
    let shapes: Vec<&[usize]> = grads.iter().map(|(shape, _)| shape.as_slice()).collect();
    let params = params_of(dtype, &shapes);
    let rule = Rule::Sgd { momentum: 0.0, nesterov: false };
    let optimizer = Optimizer::new(&params, rule, 0, false).expect("fits");
    write_grads(&params, &grads.iter().map(|(_, values)| values.clone()).collect::<Vec<_>>());
    let clip = case.number("max_norm");
    step(&params, &optimizer, Control { step: 1, clip, loss_scale: 1.0, average: 0.0 }, 1.0, 0.0);
    let bench = Bench { case, params: &params, dtype, leaves: Vec::new() };
    bench.expect("norm", &[optimizer.norm(&params).expect("reads")], &case.get("norm").1);
    for (i, id) in params.ids().enumerate() {
        let moved: Vec<f64> = bench.read(&params.value(id)).iter().map(|p| -p).collect();
        bench.expect("clipped", &moved, &case.get(&format!("clipped.{i}")).1);
    }
}

/// False where the engine has no such op.
fn run_case(case: &Case<'_>, dtype: DType) -> bool {
    let flag = |name: &str| case.about[name].as_bool().expect("a flag");
    match case.op {
        "adamw" => {
            let beta = |i: usize| case.about["betas"][i].as_f64().expect("a number");
            let rule = Rule::AdamW { beta1: beta(0), beta2: beta(1), epsilon: case.number("eps") };
            SCALES.into_iter().for_each(|scale| run_trajectory(case, dtype, rule, scale));
        }
        "sgd" => {
            let rule = Rule::Sgd { momentum: case.number("momentum"), nesterov: flag("nesterov") };
            SCALES.into_iter().for_each(|scale| run_trajectory(case, dtype, rule, scale));
        }
        "clip_grad_norm" => run_clip(case, dtype),
        _ => {
            let params = params_of(dtype, &[]);
            let mut bench = Bench { case, params: &params, dtype, leaves: Vec::new() };
            return run(&mut bench).unwrap_or_else(|error| panic!("{}: {error}", case.name));
        }
    }
    true
}

#[test]
fn single_ops_match_pytorch() {
    let golden = Golden::open();
    let mut seen = BTreeSet::new();
    for case in golden.cases() {
        if let Some((name, missing)) = NOT_COVERED.iter().find(|(name, _)| *name == case.name) {
            eprintln!("skipped: {name}: {missing}");
            continue;
        }
        for dtype in [DType::F64, DType::F32] {
            assert!(run_case(&case, dtype), "{}: no such op, and not listed as such", case.name);
        }
        seen.insert(case.name);
    }
    eprintln!("{} of {} cases", seen.len(), golden.cases.len());
    assert_eq!(seen.len() + NOT_COVERED.len(), golden.cases.len());
    assert!(seen.len() >= 56, "only {} cases: was the file cut?", seen.len());
}
