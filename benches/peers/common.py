"""What the PyTorch peers share: the profiles, the model of tests/golden/models.py, timing, output.

Every script prints one JSON object per measurement. `--dry-run` shrinks all sizes and counts, so
that a machine without a GPU can show that a script runs; its times mean nothing.
"""

import argparse
import json
import statistics
import sys
import time
from contextlib import nullcontext
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parents[2] / "tests" / "golden"))
from models import EegFormer, decay_groups  # noqa: E402

N_CHANNELS, WINDOW = 129, 200
PROFILES = {
    "rx5600xt": {"batch": 8, "d_model": 96, "n_heads": 6, "n_layers": 4},
    "rtx3060": {"batch": 16, "d_model": 128, "n_heads": 8, "n_layers": 6},
    "rtx4090": {"batch": 32, "d_model": 256, "n_heads": 16, "n_layers": 12},
}
DRY_RUN = {"batch": 2, "d_model": 32, "n_heads": 2, "n_layers": 1}
PRECISIONS = ("fp32", "tf32", "bf16")


def parse(description: str, extra=None, cpu: bool = False) -> argparse.Namespace:
    """The arguments every script takes; `extra(parser)` adds its own."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--profile", choices=[*PROFILES, "all"], default="all")
    parser.add_argument("--batch", type=int, help="instead of the profile's own")
    parser.add_argument("--seconds", type=float, default=3.0, help="time spent per measurement")
    parser.add_argument("--dry-run", action="store_true", help="tiny sizes, two iterations")
    if not cpu:
        parser.add_argument("--device", default="cuda", choices=["cuda", "cpu"])
    if extra:
        extra(parser)
    arguments = parser.parse_args()
    arguments.device = "cpu" if cpu else arguments.device
    if arguments.device == "cuda" and not torch.cuda.is_available():
        parser.error("no CUDA device: use one, or try the script with --device cpu --dry-run")
    return arguments


def profiles(arguments):
    """(name, sizes) of every profile asked for; one tiny one in a dry run."""
    chosen = PROFILES
    if arguments.profile != "all":
        chosen = {arguments.profile: PROFILES[arguments.profile]}
    if arguments.dry_run:
        chosen = {"dry-run": DRY_RUN}
    for name, sizes in chosen.items():
        yield name, sizes | ({"batch": arguments.batch} if arguments.batch else {})


def build(sizes: dict, device: str, dropout: float):
    """The model in train mode, with one batch of inputs and regression targets."""
    torch.manual_seed(0)
    shape = {k: sizes[k] for k in ("d_model", "n_heads", "n_layers")}
    model = EegFormer(N_CHANNELS, window=WINDOW, dropout=dropout, **shape).to(device).train()
    x = torch.randn(sizes["batch"], N_CHANNELS, WINDOW, device=device)
    y = torch.randn(sizes["batch"], 1, device=device)
    return model, x, y


def adamw(model, **options) -> torch.optim.AdamW:
    """The engine's default optimizer; `fused` is PyTorch's fastest on CPU and CUDA."""
    groups = decay_groups(model, weight_decay=0.01)
    return torch.optim.AdamW(groups, lr=1e-3, eps=1e-8, fused=True, **options)


def set_precision(precision: str) -> None:
    """TF32 for products and convolutions, or not; bf16 is `autocast` with TF32 for the rest."""
    tf32 = precision != "fp32"
    torch.set_float32_matmul_precision("high" if tf32 else "highest")
    torch.backends.cudnn.allow_tf32 = tf32


def autocast(precision: str, device: str):
    return torch.autocast(device, torch.bfloat16) if precision == "bf16" else nullcontext()


def graphed(step):
    """`step` as one CUDA graph, replayed by the returned function."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(5):
            step()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step()

    def replay(alive=step):  # the graph knows addresses only: `alive` owns what lies there
        graph.replay()

    return replay


def measure(step, arguments, inner: int = 1) -> dict:
    """Milliseconds of one `step()`, which runs `inner` equal pieces: median and minimum per piece.

    CUDA is timed by events around each call, so the device's time counts, launch gaps included.
    """
    cuda = arguments.device == "cuda"
    for _ in range(2 if arguments.dry_run else 3):
        step()
    if cuda:
        torch.cuda.synchronize()
    start = time.perf_counter()
    step()
    if cuda:
        torch.cuda.synchronize()
    once = time.perf_counter() - start
    count = 2 if arguments.dry_run else max(7, min(1000, int(arguments.seconds / once)))
    times = cuda_times(step, count) if cuda else cpu_times(step, count)
    return {
        "median_ms": round(statistics.median(times) / inner, 5),
        "min_ms": round(min(times) / inner, 5),
        "iterations": count * inner,
    }


def cpu_times(step, count: int) -> list[float]:
    times = []
    for _ in range(count):
        start = time.perf_counter()
        step()
        times.append(1e3 * (time.perf_counter() - start))
    return times


def cuda_times(step, count: int) -> list[float]:
    events = [torch.cuda.Event(enable_timing=True) for _ in range(count + 1)]
    events[0].record()
    for event in events[1:]:
        step()
        event.record()
    torch.cuda.synchronize()
    return [a.elapsed_time(b) for a, b in zip(events, events[1:])]


def measure_op(op, arguments, inner: int = 20) -> dict:
    """Device time of one small operation: on CUDA, `inner` calls in one graph, so that the cost of
    launching from Python does not count; inputs stay in the cache between calls."""
    if arguments.device == "cpu":
        return measure(op, arguments)

    def repeated():
        for _ in range(inner):
            op()

    return measure(graphed(repeated), arguments, inner)


def report(bench: str, arguments, **fields) -> None:
    device = "cpu"
    if arguments.device == "cuda":
        device = torch.cuda.get_device_name()
    head = {"bench": bench, "device": device, "torch": torch.__version__}
    print(json.dumps(head | fields), flush=True)
