"""The engine's kernels and PyTorch's on the same card in the same run, as one table of ratios.

    cargo bench --bench cuda --no-run                     # says where the executable is
    python benches/peers/table.py target/release/deps/cuda-... [gemm attention layernorm spectral adamw]

Each row of the engine's bench is timed, then every way PyTorch has of computing the same; the ratio is
the fastest of those over the engine's. Both run as one CUDA graph, so that kernels alone are compared;
layer normalisation's peers are timed as Python calls them as well. `of ceiling` is bytes over the copy
speed of this card in this run, or products over cuBLAS's rate at 8192^3. Backward is forward+backward
less forward.
"""

import json
import subprocess
import sys

import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

import common
from models import SpectralGain

DTYPES = {"f32": torch.float32, "bf16": torch.bfloat16}
SDPA = {
    "flash": SDPBackend.FLASH_ATTENTION,
    "efficient": SDPBackend.EFFICIENT_ATTENTION,
    "cudnn": SDPBackend.CUDNN_ATTENTION,
}


def own(bench: str, wanted: str) -> dict:
    """Milliseconds of the engine's rows whose name holds `wanted`."""
    lines = subprocess.run([bench, wanted], capture_output=True, text=True, check=True).stdout
    rows = [json.loads(line) for line in lines.splitlines() if line.startswith("{")]
    return {row["row"]: row["ms"] for row in rows}


def timed(op, arguments, inner: int = 20) -> float:
    return common.measure_op(op, arguments, inner)["median_ms"]


def timed_as_called(op, arguments) -> float:
    """Without a graph: what the device takes and, where it is more, what Python does."""
    return common.measure(op, arguments)["median_ms"]


def numbers(text: str) -> list[int]:
    """The sizes in a row's name: "b64_t200_c128" or "4096x4096x4096"."""
    digits = "".join(c if c.isdigit() else " " for c in text)
    return [int(n) for n in digits.split()]


def both_ways(forward, inputs, upstream, arguments) -> tuple[float, float]:
    """Forward, and forward with backward."""

    def both():
        return torch.autograd.grad(forward(), inputs, upstream)

    return timed(forward, arguments), timed(both, arguments)


def backward_as_called(forward, inputs, upstream, arguments) -> float:
    """Gradients of a result that is there already."""
    y = forward()
    return timed_as_called(
        lambda: torch.autograd.grad(y, inputs, upstream, retain_graph=True), arguments
    )


def attention(shape: str, arguments) -> dict:
    batch, time, heads, d = numbers(shape)
    inputs = [
        torch.randn(batch, heads, time, d, device="cuda", dtype=torch.bfloat16, requires_grad=True)
        for _ in range(3)
    ]
    upstream = torch.randn_like(inputs[0])
    result = {}
    for name, backend in SDPA.items():

        def forward(backend=backend):
            with sdpa_kernel(backend):
                return F.scaled_dot_product_attention(*inputs)

        result[name] = both_ways(forward, inputs, upstream, arguments)
    return result


def layernorm(shape: str, arguments) -> dict:
    """Of each peer also the backward pass as Python calls it."""
    rows, cols = numbers(shape.split("_")[0])
    make = {"device": "cuda", "dtype": DTYPES[shape.split("_")[1]]}
    x = torch.randn(rows, cols, **make, requires_grad=True)
    weight, bias = (torch.randn(cols, **make, requires_grad=True) for _ in range(2))
    upstream = torch.randn_like(x)

    def forward():
        return F.layer_norm(x, (cols,), weight, bias, 1e-5)

    torch._dynamo.reset()
    ways = {"eager": forward, "compile": torch.compile(forward)}
    inputs = [x, weight, bias]
    called = {k: backward_as_called(way, inputs, upstream, arguments) for k, way in ways.items()}
    return {k: (*both_ways(way, inputs, upstream, arguments), called[k]) for k, way in ways.items()}


def spectral(shape: str, arguments) -> dict:
    batch, time, channels = numbers(shape.split("_f32")[0].split("_bf16")[0])
    block = SpectralGain(time, channels).cuda()
    x = torch.randn(batch, time, channels, device="cuda", requires_grad=True)
    upstream = torch.randn_like(x)
    inputs = [x, block.gain]
    return {"torch.fft f32": both_ways(lambda: block(x), inputs, upstream, arguments)}


def gemm(shape: str, arguments) -> dict:
    m, n, k = numbers(shape)
    make = {"device": "cuda", "dtype": torch.bfloat16, "requires_grad": True}
    x, weight = torch.randn(m, k, **make), torch.randn(n, k, **make)
    upstream = torch.randn(m, n, device="cuda", dtype=torch.bfloat16)
    return {"cuBLAS": both_ways(lambda: F.linear(x, weight), [x, weight], upstream, arguments)}


def adamw(n: int, clips: bool, arguments) -> dict:
    """Over 78 tensors, as the rtx3060 profile's model has."""
    each = -(-n // 78)
    parameters = [torch.nn.Parameter(torch.randn(each, device="cuda")) for _ in range(78)]
    for p in parameters:
        p.grad = torch.randn_like(p)
    result = {}
    for kind in ("fused", "foreach"):
        optimizer = torch.optim.AdamW(parameters, lr=1e-3, capturable=True, **{kind: True})

        def step(optimizer=optimizer):
            if clips:
                torch.nn.utils.clip_grad_norm_(parameters, 1.0)
            optimizer.step()

        result[kind] = timed(step, arguments, 5)
    return result


def of_ceiling(group: str, shape: str, mode: str, ms: float, copy: float, matrix: float) -> str:
    """Part of the card's own ceilings that a row reaches."""
    if group == "gemm" and mode == "forward":
        m, n, k = numbers(shape)
        return f"{2e-9 * m * n * k / ms / matrix:.0%} of cuBLAS at 8192^3"
    if group == "layernorm" and mode == "forward":
        rows, cols = numbers(shape.split("_")[0])
        return f"{2e-6 * rows * cols * DTYPES[shape.split('_')[1]].itemsize / ms / copy:.0%} of copy"
    if group == "adamw" and mode == "update":
        return f"{28e-6 * int(shape) / ms / copy:.0%} of copy"
    return ""


def best(peers: dict) -> tuple[float, str]:
    """Milliseconds and name of the fastest."""
    return min((ms, name) for name, ms in peers.items())


def show(row: str, ms: float, peers: dict, note: str) -> None:
    peer, name = best(peers)
    print(f"{row:48} {ms:9.4f} {peer:9.4f} {peer / ms:5.2f}x  {name:14} {note}", flush=True)


def main() -> None:
    arguments = common.parse(__doc__.splitlines()[0], lambda parser: (
        parser.add_argument("bench", help="the executable of `cargo bench --bench cuda`"),
        parser.add_argument("groups", nargs="*", default=["gemm", "attention", "layernorm", "spectral", "adamw"]),
    ))
    common.set_precision("tf32")
    copy_ms = own(arguments.bench, "ceiling/copy")["ceiling/copy 2x256MiB"]
    copy = 2 * 256 * 2**20 / copy_ms / 1e6
    big = torch.randn(8192, 8192, device="cuda", dtype=torch.bfloat16)
    matrix = 2e-9 * 8192**3 / timed(lambda: big @ big, arguments, 3)
    print(f"{torch.cuda.get_device_name()}: copy {copy / 1e3:.2f} TB/s, cuBLAS {matrix:.0f} TFLOP/s")
    print(f"{'row':48} {'own ms':>9} {'peer ms':>9} ratio   best peer")
    for group in arguments.groups:
        rows = own(arguments.bench, f"{group}/")
        if group == "gemm":
            rows = {k.replace("/own", ""): v for k, v in rows.items() if "/own" in k}
        peers = {"attention": attention, "layernorm": layernorm, "spectral": spectral, "gemm": gemm}
        if group == "adamw":
            for row, ms in rows.items():
                _, n, mode = row.split("/")
                note = of_ceiling(group, n, mode, ms, copy, matrix)
                show(row, ms, adamw(int(n), mode == "with clip", arguments), note)
            continue
        for shape in dict.fromkeys(row.split("/")[1] for row in rows):
            forward, both = (rows[f"{group}/{shape}/{m}"] for m in ("forward", "forward+backward"))
            times = peers[group](shape, arguments)
            note = of_ceiling(group, shape, "forward", forward, copy, matrix)
            show(f"{group}/{shape}/forward", forward, {k: t[0] for k, t in times.items()}, note)
            backward = {k: t[1] - t[0] for k, t in times.items()}
            note, called = "", {k: t[2] for k, t in times.items() if len(t) > 2}
            if called:
                peer, name = best(called)
                note = f"as called {peer / (both - forward):5.2f}x  {name} {peer:.4f}"
            show(f"{group}/{shape}/backward", both - forward, backward, note)
            show(f"{group}/{shape}/both", both, {k: t[1] for k, t in times.items()}, "")


if __name__ == "__main__":
    sys.exit(main())
