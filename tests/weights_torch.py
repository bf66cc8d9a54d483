"""Loads weights as docs/weights.md tells it and compares PyTorch's outputs with the engine's.

    python tests/weights_torch.py forward CHECKPOINT PAIRS   # engine -> PyTorch: same outputs?
    python tests/weights_torch.py make CHECKPOINT INIT PAIRS # PyTorch -> INIT, its inputs and outputs
    python tests/weights_torch.py kept INIT CHECKPOINT       # did --init take all but the head?

PAIRS is a safetensors file of `windows` [n, channels, time] and `outputs` [n, num_classes]. Exits
with a message and a status other than 0 where something differs.
"""

import json
import sys
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

sys.path.insert(0, str(Path(__file__).parent / "golden"))
from models import MODELS  # noqa: E402

# Differences of f32 outputs of order 1 that another order of summation makes.
TOLERANCE = 2e-4


def config_of(checkpoint: str) -> tuple[str, dict]:
    """The model's name and its constructor's arguments, from the checkpoint's header."""
    with safe_open(checkpoint, "pt") as file:
        config = json.loads(file.metadata()["engine"])["model"]
    name = config.pop("name")
    if name == "shallow":  # the rest is fixed in the class of this name
        config = {k: config[k] for k in ("n_channels", "num_classes", "window", "dropout")}
    config.pop("recompute", None)
    return name, config


def model_of(checkpoint: str) -> torch.nn.Module:
    name, config = config_of(checkpoint)
    return MODELS[name](**config)


def forward(checkpoint: str, pairs: str) -> None:
    model = model_of(checkpoint)
    names = model.state_dict().keys()
    tensors = load_file(checkpoint)
    kept = {name: t for name, t in tensors.items() if name in names}
    model.load_state_dict(kept)
    model.eval()
    expected = load_file(pairs)
    with torch.no_grad():
        error = (model(expected["windows"]) - expected["outputs"]).abs().max().item()
    scale = expected["outputs"].abs().max().item()
    print(f"greatest difference {error:.1e} of outputs up to {scale:.2f}")
    assert error <= TOLERANCE * max(scale, 1.0), error


def make(checkpoint: str, init: str, pairs: str) -> None:
    torch.manual_seed(11)
    model = model_of(checkpoint)
    with torch.no_grad():
        for tensor in model.state_dict().values():
            if tensor.is_floating_point():
                # Everything off its first value, also what starts at 0 or 1.
                tensor.mul_(torch.rand_like(tensor) * 0.4 + 0.8).add_(torch.rand_like(tensor) * 0.02)
    model.eval()
    _, config = config_of(checkpoint)
    windows = torch.randn(37, config["n_channels"], config["window"])
    with torch.no_grad():
        outputs = model(windows)
    save_file({k: v.float().contiguous() for k, v in model.state_dict().items()}, init)
    save_file({"windows": windows, "outputs": outputs}, pairs)


def kept(init: str, checkpoint: str) -> None:
    """After one update at a learning rate of next to nothing only the head and the running
    statistics may differ."""
    first, last = load_file(init), load_file(checkpoint)
    fresh = ("head.", "norm.", "final_layer.", "bnorm.running_")
    for name, tensor in last.items():
        if not name.startswith(fresh):
            error = (tensor - first[name]).abs().max().item()
            assert error <= 1e-6, f"{name} differs by {error}"
    heads = [n for n in last if n.startswith(("head.", "final_layer."))]
    assert heads and any(not torch.allclose(last[n], first[n], atol=1e-3) for n in heads)


if __name__ == "__main__":
    command, *paths = sys.argv[1:]
    {"forward": forward, "make": make, "kept": kept}[command](*paths)
