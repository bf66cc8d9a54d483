"""On a card: PyTorch's tensors go in and out through DLPack without copies, on PyTorch's stream. Run as a
program: `python python/tests/test_cuda.py`. It needs torch with CUDA and a library that was built with
the kernels of the card (`cargo build --release -p engine-c` where nvcc is; ENGINE_LIBRARY names it).
"""

import sys
import tempfile
from pathlib import Path

import numpy as np
import torch

import engine

if not torch.cuda.is_available():
    sys.exit("no card: torch.cuda.is_available() is False")


def close(found, expected, tolerance):
    error = ((found - expected).abs() / (1 + expected.abs())).max().item()
    assert error < tolerance, error
    return error


def on(stream):
    """The kernels on tensors of a stream, against torch's."""
    with torch.cuda.stream(stream):
        context = engine.Context("cuda", stream=stream.cuda_stream)
        print(context.name, torch.cuda.get_device_name(), f"stream {stream.cuda_stream:#x}")
        for dtype, tolerance in ((torch.float32, 1e-4), (torch.bfloat16, 2e-2), (torch.float16, 4e-3)):
            draw = lambda *shape: torch.randn(*shape, device="cuda", dtype=dtype)
            a, b, out = draw(256, 96), draw(128, 96), torch.empty(256, 128, device="cuda", dtype=dtype)
            assert context.gemm(a, b, transpose_b=True, out=out) is out
            # No synchronisation: torch's work follows on the same stream.
            errors = [close(out.float(), a.float() @ b.float().T, 10 * tolerance)]
            heads, d = 4, 32
            qkv = draw(2, 200, 3 * heads * d)
            q, k, v = qkv.view(2, 200, 3, heads, d).permute(2, 0, 3, 1, 4).float()
            expected = torch.nn.functional.scaled_dot_product_attention(q, k, v)
            mixed = torch.from_dlpack(context.attention(qkv, heads))
            assert mixed.is_cuda and mixed.dtype == dtype
            errors.append(close(mixed.float(), expected.transpose(1, 2).reshape(2, 200, -1), tolerance))
            x, gamma, beta = draw(64, 128), torch.randn(128, device="cuda"), torch.randn(128, device="cuda")
            normal = torch.from_dlpack(context.layernorm(x, gamma, beta))
            errors.append(close(normal.float(), torch.nn.functional.layer_norm(x.float(), (128,), gamma, beta), tolerance))
            x, gain = draw(3, 100, 16), torch.randn(51, 16, 2, device="cuda")
            spectrum = torch.fft.rfft(x.float(), dim=1) * torch.view_as_complex(gain)
            filtered = torch.from_dlpack(context.spectral(x, gain))
            errors.append(close(filtered.float(), torch.fft.irfft(spectrum, 100, dim=1), 4 * tolerance))
            print(f"  {dtype}: gemm, attention, layernorm, spectral differ by", *(f"{e:.1e}" for e in errors))
    return context


def zero_copy(context, stream):
    with torch.cuda.stream(stream):
        tensor = context.empty((4, 4))
        lent = torch.from_dlpack(tensor)
        assert lent.data_ptr() == tensor._view.array.data, "the same memory out"
        x = torch.eye(4, device="cuda")
        assert context._view(x, "x").array.data == x.data_ptr(), "the same memory in"
        context.gemm(x, x, out=tensor)
        assert torch.equal(lent, x)
        # A consumer on another stream sees finished results.
        other = torch.cuda.Stream()
        big = torch.randn(4096, 4096, device="cuda")
        result = context.gemm(big, big)
        with torch.cuda.stream(other):
            taken = torch.from_dlpack(result).clone()
        other.synchronize()
        close(taken, big @ big, 1e-2)
        host = torch.eye(4)
        try:
            context.gemm(host, x)
        except engine.Error as error:
            assert error.status == "argument" and "host's memory" in str(error), error
        else:
            raise AssertionError("a host's tensor was taken for the card's")


def models(context, stream):
    definition = {"model": {"name": "eegformer", "n_channels": 8, "window": 64, "d_model": 32, "n_heads": 4, "n_layers": 2, "patch": 4}}
    cpu = engine.Context()
    rng = np.random.default_rng(1)
    windows = rng.standard_normal((16, 8, 64)).astype(np.float32)
    targets = windows[:, 0].mean(1, keepdims=True)
    here, there = cpu.trainer(definition, batch=16, seed=2), context.trainer(definition, batch=16, seed=2)
    for _ in range(5):
        a, b = here.step(windows, targets, lr=1e-3), there.step(windows, targets, lr=1e-3)
        assert abs(a.loss - b.loss) < 1e-4 * max(a.loss, 1e-2), (a, b)
    with tempfile.TemporaryDirectory() as folder, torch.cuda.stream(stream):
        path = Path(folder) / "model.safetensors"
        here.save(path)
        model, expected = context.load(path), cpu.load(path).forward(windows)
        card = torch.from_numpy(windows).cuda()
        found = torch.from_dlpack(model.forward(card))
        assert found.is_cuda
        close(found.cpu(), torch.from_numpy(expected), 1e-4)
        np.testing.assert_allclose(model.forward(windows), expected, rtol=1e-3, atol=1e-4)
    print("  a model's forward pass on tensors, and 5 steps of training, are the CPU's")


if __name__ == "__main__":
    for stream in (torch.cuda.default_stream(), torch.cuda.Stream()):
        context = on(stream)
        zero_copy(context, stream)
        models(context, stream)
    print("passed on", torch.cuda.get_device_name())
