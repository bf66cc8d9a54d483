"""Arrays go in and out without copies, and what cannot is refused. Run as a program: `python
python/tests/test_arrays.py`; PyTorch is used where it is there.
"""

import gc
import tempfile
from pathlib import Path

import numpy as np

import engine
from engine import _arrays, _native


def refused(kind, words, function, *arguments, **keywords):
    try:
        function(*arguments, **keywords)
    except kind as error:
        assert words in str(error), error
        return error
    raise AssertionError(f"{words}: was not refused")


def test_numpy_is_used_in_place():
    context = engine.Context(threads=1)
    x = np.random.default_rng(1).standard_normal((3, 8)).astype(np.float32)
    seen = _arrays.view(x, "x")
    assert seen.array.data == x.ctypes.data, "the pointer is NumPy's"
    out = np.full((3, 3), np.nan, np.float32)
    result = context.gemm(x, x, transpose_b=True, out=out)
    assert result is out
    np.testing.assert_allclose(out, x @ x.T, rtol=1e-5)
    # Rows of a larger array: written where they lie, the rest untouched.
    large = np.zeros((9, 3), np.float32)
    context.gemm(x, x, transpose_b=True, out=large[3:6])
    np.testing.assert_array_equal(large[3:6], out)
    assert not large[:3].any() and not large[6:].any()
    doubles = context.gemm(x.astype(np.float64), x.astype(np.float64), transpose_b=True)
    assert doubles.dtype == np.float64
    context.gemm(x, x, transpose_b=True, out=out, accumulate=True)
    np.testing.assert_allclose(out, 2 * (x @ x.T), rtol=1e-5)


def test_what_would_need_a_copy_is_refused():
    context = engine.Context(threads=1)
    x = np.ones((4, 6), np.float32)
    refused(ValueError, "not dense", context.gemm, x.T, x)
    refused(ValueError, "not dense", context.gemm, x[:, ::2], x)
    refused(TypeError, "int64", context.gemm, x.astype(np.int64), x)
    refused(TypeError, ">f4", context.gemm, x.astype(">f4"), x)
    refused(TypeError, "no array", context.gemm, [[1.0]], x)
    frozen = np.zeros((4, 4), np.float32)
    frozen.flags.writeable = False
    refused(ValueError, "read-only", context.gemm, x, x, transpose_b=True, out=frozen)
    error = refused(engine.Error, "remedy", context.gemm, x, x)
    assert error.status == "argument"
    refused(engine.Error, "overlaps", context.gemm, x, x, transpose_b=True, out=x.reshape(-1)[:16].reshape(4, 4))
    refused(engine.Error, "no device", engine.Context, "tpu")
    refused(engine.Error, "nowhere", context.load, "/nowhere/run")


def test_results_are_lent_by_dlpack():
    context = engine.Context(threads=1)
    tensor = context.empty((2, 5))
    x = np.arange(10, dtype=np.float32).reshape(2, 5)
    context.gemm(np.eye(2, dtype=np.float32), x, out=tensor)
    lent = np.from_dlpack(tensor)
    assert lent.ctypes.data == tensor._view.array.data, "the same memory"
    np.testing.assert_array_equal(lent, x)
    del tensor
    gc.collect()
    np.testing.assert_array_equal(lent, x)  # what is lent lives on
    before = _native.lib.engine_live_handles()
    del lent
    gc.collect()
    assert _native.lib.engine_live_handles() == before - 1, "and is freed with its last user"
    unused = context.empty((3,)).__dlpack__()
    del unused
    gc.collect()
    assert not _arrays._exported, "a capsule that nobody took is freed too"


def test_torch_on_the_cpu():
    try:
        import torch
    except ImportError:
        print("skipped: no torch")
        return
    context = engine.Context(threads=1)
    x, w = torch.randn(7, 5), torch.randn(3, 5)
    out = torch.empty(7, 3)
    assert context.gemm(x, w, transpose_b=True, out=out) is out
    torch.testing.assert_close(out, x @ w.T)
    tensor = context.empty((7, 3))
    context.gemm(x, w, transpose_b=True, out=tensor)
    lent = torch.from_dlpack(tensor)
    assert lent.data_ptr() == tensor._view.array.data
    torch.testing.assert_close(lent, x @ w.T)
    refused(ValueError, "contiguous", context.gemm, x.T, w)
    print("torch", torch.__version__, "on the CPU: in place")


def test_callbacks_and_exceptions():
    said = []
    context = engine.Context(threads=1, log=lambda warning, message: said.append(message))
    assert any("device" in message for message in said), said

    class Mine(Exception):
        pass

    def stop():
        raise Mine("from the callback")

    definition = {"model": {"name": "eegformer", "n_channels": 2, "window": 8, "d_model": 4, "n_heads": 2, "n_layers": 1, "patch": 2}}
    trainer = context.trainer(definition, batch=2)
    windows = np.zeros((2, 2, 8), np.float32)
    refused(Mine, "from the loss", trainer.step, windows, lambda *_: (_ for _ in ()).throw(Mine("from the loss")), lr=1e-3)
    assert trainer.step(windows, lambda outputs, _: (0.0, 0 * outputs), lr=1e-3).step == 1
    stopping = engine.Context(threads=1, cancel=stop)
    held = stopping.trainer(definition, batch=2)
    refused(Mine, "from the callback", held.forward, windows)
    windows[0, 0, 0] = np.nan
    error = refused(engine.Error, "not finite", trainer.step, windows, np.zeros((2, 1), np.float32), lr=1e-3)
    assert error.status == "not finite"
    refused(TypeError, "unknown keywords", context.trainer, definition, bach=3)
    refused(ValueError, "hinge", context.trainer, definition, loss="hinge")


def test_going_on_equals_never_having_stopped():
    context = engine.Context(threads=1)
    definition = {"model": {"name": "eegformer", "n_channels": 2, "window": 8, "num_classes": 3, "d_model": 4, "n_heads": 2, "n_layers": 1, "patch": 2}}
    settings = dict(batch=4, accumulation=2, loss="cross_entropy", seed=3, clip=1.0, weight_decay=0.1)
    rng = np.random.default_rng(5)
    batches = [(rng.standard_normal((8, 2, 8)).astype(np.float32), rng.integers(0, 3, 8).astype(np.int32)) for _ in range(6)]
    whole = context.trainer(definition, **settings)
    losses = [whole.step(x, y, lr=1e-2).loss for x, y in batches]
    first = context.trainer(definition, **settings)
    again = [first.step(x, y, lr=1e-2).loss for x, y in batches[:3]]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "half.safetensors"
        first.save(path)
        second = context.resume(path, **settings)
        model = context.load(path)
        assert model.is_classifier and model.describe()["task"]["classification"]["classes"] == ["0", "1", "2"]
        probabilities = model.predict(batches[0][0])
        np.testing.assert_allclose(probabilities.sum(1), 1)
    steps = [second.step(x, y, lr=1e-2) for x, y in batches[3:]]
    assert again + [step.loss for step in steps] == losses
    assert steps[-1].step == 6
    refused(engine.Error, "of 3 classes", whole.step, batches[0][0], np.full(8, 3, np.int32), lr=1e-2)


if __name__ == "__main__":
    tests = [(name, test) for name, test in globals().items() if name.startswith("test_")]
    for name, test in tests:
        test()
    gc.collect()
    print(f"{len(tests)} tests of the Python package passed")
