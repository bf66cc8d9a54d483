"""The engine's attention and spectral block called from PyTorch, on its tensors and its stream, against
PyTorch's own, in one process.

    ENGINE_LIBRARY=libengine.so PYTHONPATH=python python benches/peers/embedded.py

Without a graph: what Python and the two libraries spend on a call counts on both sides, so shapes are
large. Attention's peer is the fastest backend of SDPA on tensors laid out as it likes them.
"""

import json
import statistics

import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

import engine

BACKENDS = (SDPBackend.FLASH_ATTENTION, SDPBackend.CUDNN_ATTENTION, SDPBackend.EFFICIENT_ATTENTION)


def milliseconds(call, runs: int = 9, inner: int = 20) -> float:
    """The median over `runs` stretches of `inner` calls, by the card's events."""
    times = []
    for _ in range(runs + 1):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        for _ in range(inner):
            call()
        end.record()
        end.synchronize()
        times.append(start.elapsed_time(end) / inner)
    return statistics.median(times[1:])


def report(row: str, own: float, peer: float, error: float) -> None:
    fields = {"row": row, "engine_ms": round(own, 4), "torch_ms": round(peer, 4)}
    print(json.dumps(fields | {"ratio": round(peer / own, 2), "error": float(f"{error:.1e}")}), flush=True)


def distance(found, expected) -> float:
    return ((found.float() - expected.float()).norm() / expected.float().norm()).item()


def attention(context, batch: int, time: int, heads: int, d: int) -> None:
    qkv = torch.randn(batch, time, 3 * heads * d, device="cuda", dtype=torch.bfloat16)
    out = torch.empty(batch, time, heads * d, device="cuda", dtype=torch.bfloat16)
    q, k, v = (x.contiguous() for x in qkv.view(batch, time, 3, heads, d).permute(2, 0, 3, 1, 4))
    peers = []
    for backend in BACKENDS:
        try:
            with sdpa_kernel(backend):
                peers.append(milliseconds(lambda: F.scaled_dot_product_attention(q, k, v)))
        except RuntimeError:  # not for this shape
            continue
    own = milliseconds(lambda: context.attention(qkv, heads, out=out))
    expected = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(out.shape)
    report(f"attention/b{batch}_t{time}_h{heads}_d{d}", own, min(peers), distance(out, expected))


def spectral(context, batch: int, time: int, channels: int) -> None:
    x = torch.randn(batch, time, channels, device="cuda")
    gain = torch.randn(time // 2 + 1, channels, 2, device="cuda")
    # The first bin and the last are real: what cuFFT makes of an imaginary part there depends on the length.
    gain[0, :, 1] = gain[time // 2, :, 1] = 0.0
    out = torch.empty_like(x)
    weight = torch.view_as_complex(gain)
    own_block = lambda: torch.fft.irfft(torch.fft.rfft(x, dim=1) * weight, time, dim=1)
    own = milliseconds(lambda: context.spectral(x, gain, out=out))
    peer = milliseconds(own_block)
    report(f"spectral/b{batch}_t{time}_c{channels}", own, peer, distance(out, own_block()))


def main() -> None:
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        context = engine.Context("cuda", stream=stream.cuda_stream)
        attention(context, 1024, 200, 8, 16)
        attention(context, 64, 1000, 8, 16)
        spectral(context, 1024, 200, 128)
        spectral(context, 64, 1024, 256)


if __name__ == "__main__":
    main()
