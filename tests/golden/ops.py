"""Golden cases of single operations, forward and backward: `tests/golden/ops.safetensors`.

Written by `python tests/golden/make.py`. Computed in float64 from float32-rounded inputs; tensors
are stored as f32, scalar losses and norms as f64, class indices as i64.

Tensors are `case.<op>.<n>.<tensor>`; attributes are in the header's `golden` entry, a JSON object
`{"cases": {"<op>.<n>": {...}}, "torch": ...}`. For a differentiable operation the tensors are its
inputs by PyTorch's names, `output`, `grad_output` (the upstream gradient; absent for a mean loss,
where it is 1) and `grad_<input>` for each float input. Optimizers hold `param` (before),
`grad.<step>` and `param.<step>` (after that step); clip_grad_norm holds `grad.<i>`, `clipped.<i>`
and `norm` (before clipping).
"""

import numpy as np
import torch
import torch.nn.functional as F


class Cases:
    """Collects tensors under `case.<op>.<n>.` and attributes under `<op>.<n>`."""

    def __init__(self, seed: int):
        self.rng = np.random.default_rng(seed)
        self.tensors: dict[str, np.ndarray] = {}
        self.attributes: dict[str, dict] = {}

    def normal(self, *shape: int, scale=1.0, offset=0.0) -> torch.Tensor:
        """float64 values that float32 holds exactly."""
        values = offset + scale * self.rng.standard_normal(shape)
        return torch.from_numpy(values.astype(np.float32)).double()

    def uniform(self, *shape: int, low: float, high: float) -> torch.Tensor:
        values = self.rng.uniform(low, high, shape)
        return torch.from_numpy(values.astype(np.float32)).double()

    def classes(self, count: int, n_classes: int) -> torch.Tensor:
        return torch.from_numpy(self.rng.integers(0, n_classes, count))

    def store(self, op: str, attributes: dict, tensors: dict[str, torch.Tensor]) -> None:
        case = f"{op}.{sum(key.startswith(op + '.') for key in self.attributes)}"
        self.attributes[case] = attributes
        for name, tensor in tensors.items():
            value = tensor.detach().numpy()
            if value.ndim > 0 and value.dtype == np.float64:
                value = value.astype(np.float32)
            self.tensors[f"case.{case}.{name}"] = value.copy()

    def gradients(self, op: str, function, inputs: dict, fixed=None, **attributes) -> None:
        """One case of `function(**inputs, **fixed, **attributes)`; `fixed` gets no gradient."""
        fixed = fixed or {}
        leaves = {name: value.clone().requires_grad_() for name, value in inputs.items()}
        output = function(**leaves, **fixed, **attributes)
        tensors = inputs | fixed | {"output": output}
        if output.ndim == 0:
            output.backward()
        else:
            tensors["grad_output"] = self.normal(*output.shape)
            output.backward(tensors["grad_output"])
        tensors |= {f"grad_{name}": leaf.grad for name, leaf in leaves.items()}
        self.store(op, attributes, tensors)


def pointwise(c: Cases) -> None:
    c.gradients("gelu", F.gelu, {"input": c.normal(3, 5, 7, scale=2.5)}, approximate="none")
    c.gradients("elu", F.elu, {"input": c.normal(3, 5, 7, scale=2.5)}, alpha=1.0)
    c.gradients("elu", F.elu, {"input": c.normal(11, 3, scale=2.5)}, alpha=0.6)
    c.gradients("square", torch.square, {"input": c.normal(3, 5, 7, scale=2.5)})
    # A third of the values lie below the clamp, where the gradient is zero.
    c.gradients(
        "safe_log",
        lambda input, min: input.clamp(min=min).log(),
        {"input": c.uniform(7, 9, low=-0.5, high=1.0)},
        min=1e-6,
    )
    # Logits of +-50 overflow a softmax that does not subtract the maximum.
    c.gradients("softmax", F.softmax, {"input": c.normal(2, 3, 13)}, dim=-1)
    c.gradients("softmax", F.softmax, {"input": c.normal(5, 129, scale=50.0)}, dim=-1)


def regression_losses(c: Cases) -> None:
    def pair(*shape):
        return {"input": c.normal(*shape, scale=1.5)}, {"target": c.normal(*shape, scale=1.5)}

    c.gradients("mse", F.mse_loss, *pair(7, 3))
    c.gradients("l1", F.l1_loss, *pair(7, 3))
    c.gradients("huber", F.huber_loss, *pair(7, 3), delta=1.0)
    c.gradients("huber", F.huber_loss, *pair(13, 1), delta=0.3)
    c.gradients("smooth_l1", F.smooth_l1_loss, *pair(7, 3), beta=1.0)
    c.gradients("smooth_l1", F.smooth_l1_loss, *pair(13, 1), beta=0.3)


def classification_losses(c: Cases) -> None:
    def binary(n_outputs, scale):
        target = (c.uniform(9, n_outputs, low=0, high=1) > 0.4).double()
        return {"input": c.normal(9, n_outputs, scale=scale)}, {"target": target}

    bce = F.binary_cross_entropy_with_logits
    c.gradients("bce_with_logits", bce, *binary(1, 2.0))
    inputs, fixed = binary(3, 2.0)
    fixed["pos_weight"] = c.uniform(3, low=0.3, high=4.0)
    c.gradients("bce_with_logits", bce, inputs, fixed)
    inputs, fixed = binary(1, 60.0)  # exp(60) overflows nothing if written as max + log1p
    fixed["pos_weight"] = c.uniform(1, low=2.0, high=3.0)
    c.gradients("bce_with_logits", bce, inputs, fixed)

    for n_classes, weighted, smoothing, scale in [
        (2, False, 0.0, 1.0),
        (5, True, 0.0, 2.0),
        (5, False, 0.1, 2.0),
        (3, True, 0.15, 40.0),
    ]:
        fixed = {"target": c.classes(11, n_classes)}
        if weighted:
            fixed["weight"] = c.uniform(n_classes, low=0.2, high=2.0)
        inputs = {"input": c.normal(11, n_classes, scale=scale)}
        c.gradients("cross_entropy", F.cross_entropy, inputs, fixed, label_smoothing=smoothing)


def norms(c: Cases) -> None:
    def layer_norm(input, weight, bias, eps):
        return F.layer_norm(input, input.shape[-1:], weight, bias, eps)

    # A mean of 60 standard deviations: a one-pass variance in float32 loses it.
    for shape, scale, offset in [((3, 5, 7), 1.5, 0.2), ((5, 129), 0.5, 30.0)]:
        inputs = {
            "input": c.normal(*shape, scale=scale, offset=offset),
            "weight": c.normal(shape[-1], scale=0.4, offset=1.0),
            "bias": c.normal(shape[-1], scale=0.4),
        }
        c.gradients("layer_norm", layer_norm, inputs, eps=1e-5)

    for shape, offset in [((5, 3, 11), 0.3), ((2, 7, 1, 9), 20.0), ((9, 5), 0.3)]:
        n_features = shape[1]
        inputs = {
            "input": c.normal(*shape, scale=0.7, offset=offset),
            "weight": c.normal(n_features, scale=0.4, offset=1.0),
            "bias": c.normal(n_features, scale=0.4),
        }
        running = {
            "running_mean": c.normal(n_features),
            "running_var": c.uniform(n_features, low=0.5, high=1.5),
        }
        after = {name: value.clone() for name, value in running.items()}

        def batch_norm(input, weight, bias, momentum, eps):
            mean, var = after["running_mean"], after["running_var"]
            return F.batch_norm(input, mean, var, weight, bias, True, momentum, eps)

        c.gradients("batch_norm", batch_norm, inputs, momentum=0.1, eps=1e-5)
        case = list(c.attributes)[-1]
        for name in running:
            c.tensors[f"case.{case}.{name}"] = running[name].numpy().astype(np.float32)
            c.tensors[f"case.{case}.{name}_after"] = after[name].numpy().astype(np.float32)


def convolutions(c: Cases) -> None:
    # (batch, in, time, out, kernel, stride, padding, groups, bias)
    for batch, n_in, time, n_out, kernel, stride, padding, groups, bias in [
        (3, 5, 23, 7, 5, 1, 0, 1, True),
        (2, 7, 31, 3, 4, 3, 0, 1, True),
        (2, 3, 17, 5, 7, 2, 3, 1, False),
        (2, 6, 19, 9, 3, 1, 1, 3, True),
        (3, 5, 21, 5, 5, 1, 2, 5, True),
        (2, 5, 21, 10, 6, 2, 4, 5, False),
        (2, 9, 11, 13, 1, 1, 0, 1, True),
        (2, 3, 33, 5, 3, 3, 0, 1, True),
    ]:
        inputs = {
            "input": c.normal(batch, n_in, time),
            "weight": c.normal(n_out, n_in // groups, kernel, scale=0.5),
        }
        if bias:
            inputs["bias"] = c.normal(n_out)
        c.gradients(
            "conv1d", F.conv1d, inputs, stride=stride, padding=padding, groups=groups
        )

    # (time, kernel, stride, padding): overlapping, with gaps, with a remainder, padded
    shapes = [(29, 5, 3, 0), (23, 3, 5, 0), (31, 4, 4, 0), (19, 7, 2, 3)]
    for time, kernel, stride, padding in shapes:
        attributes = {"kernel_size": kernel, "stride": stride, "padding": padding}
        c.gradients("avg_pool1d", F.avg_pool1d, {"input": c.normal(2, 3, time)}, **attributes)
        c.gradients("max_pool1d", F.max_pool1d, {"input": c.normal(2, 3, time)}, **attributes)


def attention(c: Cases) -> None:
    for batch, n_heads, n_tokens, head_dim, scale in [
        (2, 3, 13, 8, 1.0),
        (1, 2, 37, 16, 1.0),
        (3, 1, 1, 5, 1.0),
        (1, 3, 21, 8, 6.0),  # logits up to +-100: one key takes nearly all
    ]:
        shape = (batch, n_heads, n_tokens, head_dim)
        inputs = {
            "query": c.normal(*shape, scale=scale),
            "key": c.normal(*shape, scale=scale),
            "value": c.normal(*shape),
        }
        c.gradients("scaled_dot_product_attention", F.scaled_dot_product_attention, inputs)


def spectral(c: Cases) -> None:
    def filtered(input, gain):
        spectrum = torch.fft.rfft(input, dim=1) * torch.view_as_complex(gain)
        return torch.fft.irfft(spectrum, n=input.shape[1], dim=1)

    for batch, n_tokens, d_model in [(2, 33, 5), (3, 20, 7), (1, 1, 3), (2, 2, 3), (1, 200, 2)]:
        inputs = {
            "input": c.normal(batch, n_tokens, d_model),
            "gain": c.normal(n_tokens // 2 + 1, d_model, 2),
        }
        c.gradients("spectral_gain", filtered, inputs)


def optimizers(c: Cases) -> None:
    def trajectory(op, build, **attributes):
        start = c.normal(5, 7)
        parameter = torch.nn.Parameter(start.clone())
        optimizer = build([parameter], **attributes, foreach=False)
        tensors = {"param": start}
        for step in range(5):
            gradient = c.normal(5, 7, scale=10.0 ** (1 - step))
            parameter.grad = gradient.clone()
            optimizer.step()
            tensors |= {f"grad.{step}": gradient, f"param.{step}": parameter.detach().clone()}
        c.store(op, attributes, tensors)

    adamw = {"lr": 3e-3, "betas": [0.9, 0.999], "eps": 1e-8}
    trajectory("adamw", torch.optim.AdamW, **adamw, weight_decay=0.01)
    trajectory("adamw", torch.optim.AdamW, **adamw, weight_decay=0.0)
    other = {"lr": 1e-1, "betas": [0.8, 0.95], "eps": 1e-3}
    trajectory("adamw", torch.optim.AdamW, **other, weight_decay=0.1)
    for momentum, nesterov, weight_decay in [
        (0.0, False, 0.0),
        (0.9, False, 0.0),
        (0.9, False, 0.02),
        (0.9, True, 0.02),
    ]:
        attributes = {"momentum": momentum, "nesterov": nesterov, "weight_decay": weight_decay}
        trajectory("sgd", torch.optim.SGD, lr=1e-2, **attributes)

    for scale, max_norm in [(3.0, 1.0), (0.01, 1.0), (1.0, 2.5)]:
        gradients = [c.normal(*shape, scale=scale) for shape in [(5, 7), (3,), (2, 3, 5)]]
        parameters = [torch.nn.Parameter(torch.zeros_like(g)) for g in gradients]
        for parameter, gradient in zip(parameters, gradients):
            parameter.grad = gradient.clone()
        norm = torch.nn.utils.clip_grad_norm_(parameters, max_norm, foreach=False)
        tensors = {"norm": norm}
        for i, (parameter, gradient) in enumerate(zip(parameters, gradients)):
            tensors |= {f"grad.{i}": gradient, f"clipped.{i}": parameter.grad}
        c.store("clip_grad_norm", {"max_norm": max_norm}, tensors)


def make() -> tuple[dict[str, np.ndarray], dict]:
    """Every case: tensors and metadata."""
    cases = Cases(seed=20251016)
    for family in [
        pointwise,
        regression_losses,
        classification_losses,
        norms,
        convolutions,
        attention,
        spectral,
        optimizers,
    ]:
        family(cases)
    return cases.tensors, {"cases": cases.attributes, "torch": torch.__version__}
