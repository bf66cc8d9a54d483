"""Writes the golden training runs `tests/golden/<case>.safetensors` from PyTorch.

    pip install torch==2.11.0 numpy safetensors
    python tests/golden/make.py            # rewrite every file, models and single operations
    python tests/golden/make.py --check    # recompute and compare with the committed files

Each file holds ten AdamW steps of one small model with every source of randomness stored, so that
a second implementation can repeat them. All is computed in float64 from float32-rounded parameters
and inputs: the file is the truth, not another rounding. PyTorch's own float32 run of the same
steps is stored beside it, as the yardstick of what float32 can reach.

Tensors (f32 unless said; `<name>` as in `state_dict()`, batch normalisation's buffers included):
    param.<name>        before the first step
    input.<step>        [batch, n_channels, window], step 0..9
    target.<step>       [batch, num_classes], or class indices [batch] i64 for cross_entropy
    output              [batch, num_classes]: train-mode forward of batch 0 at the initial parameters
    grad.<name>         gradient of loss.0, before clipping
    loss.<step>         f64 scalar, before that step's update
    grad_norm.<step>    f64 scalar, 2-norm of all gradients before clipping
    loss_f32.<step>, grad_norm_f32.<step>   the same from PyTorch in float32
    final.<name>        after ten steps
    eval_output         eval-mode forward of batch 0 at the final parameters and running statistics

The safetensors header holds one metadata entry, `golden`, a JSON object: `model`, `config`, `loss`,
`optimizer`, the parameter groups `decay` and `no_decay`, `zero_grad` (below), `f32_error`, `torch`.

`zero_grad` names what has gradient zero in exact arithmetic, with the rows or indices concerned:
key biases (softmax ignores a shift), a bias that batch normalisation subtracts again, imaginary
gains at 0 Hz and Nyquist. In float32 they get rounding noise, which AdamW divides by its own size:
`final` differs there by up to steps * lr whatever the implementation. The loss does not see it.
After batch normalisation the drifting bias moves `final.bnorm.running_mean` with it, and (running
statistics lag behind) `eval_output` by about 1e-4: PyTorch's own float32 run does the same.

`f32_error` is what PyTorch's float32 loses: the greatest absolute difference from float64 in
`output`, `eval_output`, and per name in `grad` and `final`.
"""

import argparse
import json
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from safetensors import safe_open
from safetensors.numpy import save_file

import ops
from models import MODELS, decay_groups, decays

HERE = Path(__file__).parent
STEPS = 10
OPTIMIZER = {
    "kind": "adamw",
    "lr": 1e-3,
    "beta1": 0.9,
    "beta2": 0.999,
    "eps": 1e-8,
    "weight_decay": 0.01,
    "clip_norm": 1.0,
    "steps": STEPS,
}

EEGFORMER = {
    "n_channels": 7,
    "num_classes": 1,
    "d_model": 24,
    "n_heads": 3,
    "n_layers": 2,
    "window": 33,
    "patch": 1,
    "dropout": 0.0,
    "n_spectral": 1,
}
SHALLOW = {"n_channels": 5, "num_classes": 2, "window": 150, "dropout": 0.0}

# name: (model, config, loss, batch)
CASES = {
    "eegformer_mse": ("eegformer", EEGFORMER, {"kind": "mse"}, 5),
    "eegformer_patch3_huber": (
        "eegformer",
        EEGFORMER | {"patch": 3, "num_classes": 2},
        {"kind": "huber", "delta": 0.7},
        5,
    ),
    "eegformer_cross_entropy": (
        "eegformer",
        EEGFORMER | {"num_classes": 3},
        {"kind": "cross_entropy", "label_smoothing": 0.1, "class_weights": [0.5, 1.25, 2.0]},
        6,
    ),
    "eegformer_spectral2": (
        "eegformer",
        EEGFORMER | {"n_spectral": 2, "window": 20},
        {"kind": "mse"},
        3,
    ),
    "eegformer_head16_bce": (
        "eegformer",
        EEGFORMER | {"n_channels": 9, "d_model": 32, "n_heads": 2, "window": 17},
        {"kind": "bce_with_logits", "pos_weight": [1.75]},
        7,
    ),
    "shallow_cross_entropy": ("shallow", SHALLOW, {"kind": "cross_entropy"}, 5),
    "shallow_bce": (
        "shallow",
        SHALLOW | {"num_classes": 1},
        {"kind": "bce_with_logits", "pos_weight": [2.75]},
        4,
    ),
}


def initial_state(model: torch.nn.Module, rng: np.random.Generator) -> dict[str, np.ndarray]:
    """Values that hide no mistake: nothing zero or one, norms and gains far from the identity."""
    state = {}
    for name, value in model.state_dict().items():
        if name.endswith("num_batches_tracked"):
            continue
        noise = rng.standard_normal(tuple(value.shape))
        if name.endswith("running_var"):
            value = rng.uniform(0.5, 1.5, tuple(value.shape))
        elif name.endswith(".gain"):
            value = value.numpy() + 0.4 * noise
        elif "norm" in name and name.endswith(".weight"):
            value = 1.0 + 0.3 * noise
        elif value.ndim >= 2 and name != "pos_embed":
            value = noise / np.sqrt(np.prod(value.shape[1:]))
        else:
            value = 0.3 * noise
        state[name] = value.astype(np.float32)
    return state


def batches(config: dict, loss: dict, batch: int, rng: np.random.Generator) -> list:
    """Ten (input, target) pairs; channels differ in offset and scale, as electrodes do."""
    shape = (batch, config["n_channels"], config["window"])
    scale = rng.uniform(0.5, 1.5, (1, shape[1], 1))
    offset = 0.5 * rng.standard_normal((1, shape[1], 1))
    pairs = []
    for _ in range(STEPS):
        x = (offset + scale * rng.standard_normal(shape)).astype(np.float32)
        if loss["kind"] == "cross_entropy":
            y = rng.integers(0, config["num_classes"], batch)
        elif loss["kind"] == "bce_with_logits":
            y = rng.integers(0, 2, (batch, config["num_classes"])).astype(np.float32)
        else:
            y = (0.3 + rng.standard_normal((batch, config["num_classes"]))).astype(np.float32)
        pairs.append((x, y))
    return pairs


def loss_value(loss: dict, output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """The mean loss; cross entropy divides by the summed class weights, as PyTorch does."""

    def weights(field):
        return None if field not in loss else output.new_tensor(loss[field])

    match loss["kind"]:
        case "mse":
            return F.mse_loss(output, target)
        case "huber":
            return F.huber_loss(output, target, delta=loss["delta"])
        case "bce_with_logits":
            return F.binary_cross_entropy_with_logits(
                output, target, pos_weight=weights("pos_weight")
            )
        case "cross_entropy":
            return F.cross_entropy(
                output,
                target,
                weight=weights("class_weights"),
                label_smoothing=loss.get("label_smoothing", 0.0),
            )
        case kind:
            raise ValueError(f"unknown loss {kind}")


def train(model_kind: str, config: dict, loss: dict, state: dict, pairs: list, dtype) -> dict:
    """Ten steps in `dtype`; returns every tensor the golden file names, as float64 or i64."""
    model = MODELS[model_kind](**config).to(dtype)
    model.load_state_dict({k: torch.from_numpy(v).to(dtype) for k, v in state.items()})
    optimizer = torch.optim.AdamW(
        decay_groups(model, OPTIMIZER["weight_decay"]),
        lr=OPTIMIZER["lr"],
        betas=(OPTIMIZER["beta1"], OPTIMIZER["beta2"]),
        eps=OPTIMIZER["eps"],
        foreach=False,
    )
    model.train()
    tensors = {}
    for step, (x, y) in enumerate(pairs):
        x = torch.from_numpy(x).to(dtype)
        y = torch.from_numpy(y) if y.dtype == np.int64 else torch.from_numpy(y).to(dtype)
        optimizer.zero_grad()
        output = model(x)
        value = loss_value(loss, output, y)
        value.backward()
        if step == 0:
            first = x
            tensors["output"] = output
            tensors |= {f"grad.{n}": p.grad.clone() for n, p in model.named_parameters()}
        tensors[f"loss.{step}"] = value
        tensors[f"grad_norm.{step}"] = torch.nn.utils.clip_grad_norm_(
            model.parameters(), OPTIMIZER["clip_norm"], foreach=False
        )
        optimizer.step()
    tensors |= {f"final.{n}": v for n, v in model.state_dict().items() if n in state}
    model.eval()
    with torch.no_grad():
        tensors["eval_output"] = model(first)
    return {name: t.detach().double().numpy() for name, t in tensors.items()}


def zero_grad(model_kind: str, config: dict) -> list[dict]:
    """Where the gradient is zero in exact arithmetic: rows `from..to` of axis 0, or a last index."""
    if model_kind == "shallow":
        return [{"name": "conv_time_spat.conv_time.bias", "rows": [0, 40]}]
    d_model, n_tokens = config["d_model"], config["window"] // config["patch"]
    zeros = [
        {"name": f"layers.{i}.self_attn.in_proj_bias", "rows": [d_model, 2 * d_model]}
        for i in range(config["n_layers"])
    ]
    for i in range(config["n_spectral"]):
        real_bins = [0] if n_tokens % 2 else [0, n_tokens // 2]
        for k in real_bins:
            zeros.append({"name": f"spectral.{i}.gain", "rows": [k, k + 1], "last": 1})
    return zeros


def f32_error(truth: dict, f32: dict) -> dict:
    """The greatest absolute difference per stored tensor."""

    def worst(name):
        return float(f"{np.abs(truth[name] - f32[name]).max():.3g}")

    def group(prefix):
        names = sorted(n for n in truth if n.startswith(prefix))
        return {n.removeprefix(prefix): worst(n) for n in names}

    return {
        "output": worst("output"),
        "eval_output": worst("eval_output"),
        "grad": group("grad."),
        "final": group("final."),
    }


def make(name: str) -> tuple[dict[str, np.ndarray], dict]:
    """One golden file: its tensors and its metadata."""
    model_kind, config, loss, batch = CASES[name]
    rng = np.random.default_rng([20251015, list(CASES).index(name)])
    model = MODELS[model_kind](**config)
    state = initial_state(model, rng)
    pairs = batches(config, loss, batch, rng)
    truth = train(model_kind, config, loss, state, pairs, torch.float64)
    f32 = train(model_kind, config, loss, state, pairs, torch.float32)

    tensors = {f"param.{n}": v for n, v in state.items()}
    for step, (x, y) in enumerate(pairs):
        tensors |= {f"input.{step}": x, f"target.{step}": y}
        for scalar in ("loss", "grad_norm"):
            tensors[f"{scalar}.{step}"] = truth[f"{scalar}.{step}"]
            tensors[f"{scalar}_f32.{step}"] = f32[f"{scalar}.{step}"].astype(np.float32)
    rest = (n for n in truth if not n.startswith(("loss.", "grad_norm.")))
    tensors |= {n: truth[n].astype(np.float32) for n in rest}

    named = list(model.named_parameters())
    metadata = {
        "model": model_kind,
        "config": config,
        "loss": loss,
        "optimizer": OPTIMIZER,
        "decay": [n for n, p in named if decays(n, p)],
        "no_decay": [n for n, p in named if not decays(n, p)],
        "zero_grad": zero_grad(model_kind, config),
        "f32_error": f32_error(truth, f32),
        "torch": torch.__version__,
    }
    return tensors, metadata


def write(path: Path, tensors: dict[str, np.ndarray], metadata: dict) -> None:
    """One metadata entry only: the order of several is not fixed, and the bytes should be."""
    tensors = {n: np.array(t, order="C") for n, t in tensors.items()}
    save_file(tensors, path, metadata={"golden": json.dumps(metadata)})
    print(f"{path.name}: {len(tensors)} tensors, {path.stat().st_size:,} bytes")


def check(path: Path, tensors: dict[str, np.ndarray]) -> None:
    """Another CPU may round float64 sums in another order; a changed model differs by far more."""
    with safe_open(path, "np") as file:
        assert set(file.keys()) == set(tensors), f"{path.name}: other tensor names"
        for name, fresh in tensors.items():
            tolerance = 1e-4 if "_f32." in name else 1e-6
            stored = file.get_tensor(name)
            assert stored.shape == fresh.shape and stored.dtype == fresh.dtype, (path.name, name)
            np.testing.assert_allclose(
                fresh, stored, rtol=tolerance, atol=tolerance, err_msg=f"{path.name} {name}"
            )
    print(f"{path.name}: {len(tensors)} tensors agree")


def main() -> None:
    parser = argparse.ArgumentParser(description="golden files of training runs and operations")
    parser.add_argument("--check", action="store_true", help="compare instead of writing")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    for name, builder in [(n, lambda n=n: make(n)) for n in CASES] + [("ops", ops.make)]:
        path = HERE / f"{name}.safetensors"
        tensors, metadata = builder()
        if arguments.check:
            check(path, tensors)
        else:
            write(path, tensors, metadata)


if __name__ == "__main__":
    main()
