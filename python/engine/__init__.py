"""The engine from Python: kernels, trained models and training on NumPy and DLPack arrays, in place.

    import engine
    context = engine.Context()                        # the CPU; device="cuda" for a card
    model = context.load("runs/age")
    found = model.predict_file("subject.bdf")
    print(found.mean)

Arrays are used where they lie: NumPy's, and those of anything that speaks DLPack (`torch.Tensor`). On a
card, work is enqueued on the context's stream and not waited for.
"""

from __future__ import annotations

import ctypes
import json
import os
from ctypes import byref
from dataclasses import dataclass
from typing import Any, Callable, Dict, Mapping, Optional, Sequence, Tuple, Union

import numpy as np

from . import _arrays, _native as native
from ._arrays import Tensor, View, view
from ._native import Error

__all__ = ["Context", "Error", "Model", "Predictions", "Step", "Tensor", "Trainer", "__version__"]
__version__: str = native.lib.engine_version().decode()

Array = Union[np.ndarray, Tensor, Any]
Path = Union[str, "os.PathLike[str]"]

_LOSSES = {"mse": 0, "huber": 1, "l1": 2, "bce": 3, "cross_entropy": 4}
_OPTIMIZERS = {"adamw": 0, "sgd": 1}
_COMPUTE = {"float32": native.F32, "bfloat16": native.BF16}


def _word(table: Mapping[str, int], word: str, name: str) -> int:
    if word not in table:
        raise ValueError(f"{name}: {word!r} is none of {', '.join(table)}")
    return table[word]


def _path(path: Path) -> bytes:
    return os.fsencode(path)


class _Handle:
    """A handle of the library, freed with the object."""

    _kind = ""

    def __init__(self, handle: int):
        self._handle = handle

    def __del__(self) -> None:
        if getattr(self, "_handle", 0):
            getattr(native.lib, f"engine_{self._kind}_free")(self._handle)


@dataclass(frozen=True)
class Predictions:
    """What a model predicts of a recording's windows."""

    values: np.ndarray  #: [windows, width]: a number in its own unit, or probabilities of the classes
    starts_s: np.ndarray  #: [windows]: seconds from the first sample
    mean: np.ndarray  #: [width]: over the windows


@dataclass(frozen=True)
class Step:
    """What one step of training found."""

    step: int  #: steps done
    loss: float  #: before the update
    grad_norm: float  #: before clipping


class Context(_Handle):
    """A device with its memory and its threads or stream.

    `device` is "cpu", "cuda", "hip" or "auto"; `threads` 0 is one a core; `memory` in bytes, 0 is what is
    free. On a card, `stream` is the address of the stream to work on, 0 the default one (as
    `torch.cuda.current_stream().cuda_stream`); steps are recorded as graphs on other streams only. `log`
    gets (is_warning, message); `cancel` is asked now and then, True ends the call.
    """

    _kind = "context"

    def __init__(
        self,
        device: str = "cpu",
        *,
        ordinal: int = 0,
        threads: int = 0,
        memory: int = 0,
        stream: int = 0,
        cache_dir: Optional[Path] = None,
        log: Optional[Callable[[bool, str], None]] = None,
        cancel: Optional[Callable[[], bool]] = None,
    ):
        self._raised: Optional[BaseException] = None
        if device == "auto":
            device = self._first(ordinal)
        # The library calls these for as long as anything of the context lives.
        self._log = native.LOG(self._on_log(log)) if log else native.LOG()
        self._cancel = native.CANCEL(self._on_cancel(cancel)) if cancel else native.CANCEL()
        options = native.Options(
            device=device.encode(),
            ordinal=ordinal,
            threads=threads,
            memory=memory,
            use_stream=int(device in ("cuda", "hip")),
            stream=stream,
            cache_dir=None if cache_dir is None else _path(cache_dir),
            log=self._log,
            cancel=self._cancel,
        )
        self.ordinal, self.stream = ordinal, stream
        super().__init__(native.make("context_new", byref(options)))
        info = native.DeviceInfo()
        native.call("context_get_info", self._handle, byref(info))
        self.name: str = info.name.decode()
        self.is_card: bool = info.is_card != 0
        self._check()

    @staticmethod
    def _first(ordinal: int) -> str:
        """The first kind of card that works, else the CPU."""
        for device in ("cuda", "hip"):
            options = native.Options(device=device.encode(), ordinal=ordinal, use_stream=1)
            try:
                made = native.make("context_new", byref(options))
            except Error:
                continue
            native.lib.engine_context_free(made)
            return device
        return "cpu"

    def _on_log(self, log: Callable[[bool, str], None]) -> Callable[..., None]:
        def on_log(level: int, message: bytes, _: Any) -> None:
            try:
                log(level == 1, message.decode("utf-8", "replace"))
            except BaseException as error:  # An exception cannot pass through the library.
                self._raised = self._raised or error

        return on_log

    def _on_cancel(self, cancel: Callable[[], bool]) -> Callable[..., int]:
        def on_cancel(_: Any) -> int:
            try:
                return int(bool(cancel()))
            except BaseException as error:
                self._raised = self._raised or error
                return 1

        return on_cancel

    def _check(self) -> None:
        raised, self._raised = self._raised, None
        if raised is not None:
            raise raised

    def _call(self, name: str, *arguments: Any) -> None:
        try:
            native.call(name, *arguments)
        finally:
            self._check()

    def _make(self, name: str, *arguments: Any) -> int:
        try:
            return native.make(name, *arguments)
        finally:
            self._check()

    def _dlpack_device(self) -> Tuple[int, int]:
        if not self.is_card:
            return (_arrays.CPU, 0)
        return (_arrays.CUDA if self.name.startswith("sm_") else _arrays.ROCM, self.ordinal)

    def _view(self, thing: Array, name: str, writable: bool = False) -> View:
        if isinstance(thing, Tensor):
            return thing._view
        return view(thing, name, self.stream if self.is_card else None, writable)

    def _out(self, out: Optional[Array], shape: Sequence[int], dtype: int) -> Tuple[Any, View]:
        """The caller's result, or a new one: NumPy's on the CPU, a Tensor on a card."""
        if out is None and self.is_card:
            out = Tensor(self, tuple(shape), dtype)
        elif out is None:
            out = np.empty(tuple(shape), _arrays._WORDS[dtype])
        return out, self._view(out, "out", writable=True)

    def sync(self) -> None:
        """Waits until all work is done."""
        self._call("context_sync", self._handle)

    def empty(self, shape: Sequence[int], dtype: str = "float32") -> Tensor:
        """An array in the context's memory, uninitialised."""
        codes = {word: code for code, word in _arrays._WORDS.items()}
        return Tensor(self, tuple(shape), _word(codes, dtype, "dtype"))

    def gemm(
        self,
        a: Array,
        b: Array,
        *,
        bias: Optional[Array] = None,
        transpose_a: bool = False,
        transpose_b: bool = False,
        out: Optional[Array] = None,
        accumulate: bool = False,
    ) -> Any:
        """a @ b + bias of matrices [m, k] and [k, n], or of as many in front. `accumulate` adds to `out`."""
        if accumulate and out is None:
            raise ValueError("out: accumulate adds to it, so it must be given")
        left, right = self._view(a, "a"), self._view(b, "b")
        row = None if bias is None else self._view(bias, "bias")
        if len(left.shape) < 2 or len(right.shape) < 2:
            raise ValueError(f"a and b: have shapes {left.shape} and {right.shape}, not of matrices")
        m = left.shape[-1] if transpose_a else left.shape[-2]
        n = right.shape[-2] if transpose_b else right.shape[-1]
        result, to = self._out(out, (*left.shape[:-2], m, n), left.dtype)
        flags = int(transpose_a) | int(transpose_b) << 1 | int(accumulate) << 2
        extra = None if row is None else row.pointer
        self._call("gemm", self._handle, left.pointer, right.pointer, extra, to.pointer, flags)
        return result

    def attention(self, qkv: Array, heads: int, *, out: Optional[Array] = None) -> Any:
        """softmax(Q Kᵀ / √head_dim) V by heads of qkv [batch, time, 3 * heads * head_dim]; gives [batch,
        time, heads * head_dim]."""
        given = self._view(qkv, "qkv")
        if len(given.shape) != 3:
            raise ValueError(f"qkv: has shape {given.shape}, expected [batch, time, 3 * width]")
        batch, time, packed = given.shape
        result, to = self._out(out, (batch, time, packed // 3), given.dtype)
        self._call("attention", self._handle, given.pointer, heads, to.pointer, None)
        return result

    def layernorm(
        self, x: Array, gamma: Array, beta: Array, *, epsilon: float = 1e-5, out: Optional[Array] = None
    ) -> Any:
        """Normalises the last axis of x [.., cols], scaled by gamma [cols] and shifted by beta [cols]."""
        views = [self._view(t, n) for t, n in ((x, "x"), (gamma, "gamma"), (beta, "beta"))]
        result, to = self._out(out, views[0].shape, views[0].dtype)
        pointers = [v.pointer for v in views]
        self._call("layernorm", self._handle, *pointers, epsilon, to.pointer, None, None)
        return result

    def spectral(self, x: Array, gain: Array, *, out: Optional[Array] = None) -> Any:
        """irfft(rfft(x) * gain) along time: x [batch, time, channels], gain [time // 2 + 1, channels, 2]."""
        given, factor = self._view(x, "x"), self._view(gain, "gain")
        result, to = self._out(out, given.shape, given.dtype)
        self._call("spectral", self._handle, given.pointer, factor.pointer, to.pointer)
        return result

    def spectral_backward(
        self, dy: Array, x: Array, gain: Array, *, dx: Optional[Array] = None, d_gain: Optional[Array] = None
    ) -> Tuple[Any, Any]:
        """The gradients (dx, d_gain) of `spectral`. A given d_gain is added to."""
        views = [self._view(t, n) for t, n in ((dy, "dy"), (x, "x"), (gain, "gain"))]
        if d_gain is None:
            d_gain = np.zeros(views[2].shape, _arrays._WORDS[views[2].dtype])
        result, to = self._out(dx, views[1].shape, views[1].dtype)
        into = self._view(d_gain, "d_gain", writable=True)
        pointers = [v.pointer for v in views]
        self._call("spectral_backward", self._handle, *pointers, to.pointer, into.pointer)
        return result, d_gain

    def load(self, path: Path, *, batch: int = 0) -> "Model":
        """A run's folder (its best weights), or a checkpoint. `batch` windows are computed at a time."""
        return Model(self, self._make("model_load", self._handle, _path(path), batch))

    def trainer(self, definition: Mapping[str, Any], **training: Any) -> "Trainer":
        """A new model to train: `{"model": {"name": "eegformer", "n_channels": 19, ...}}`, and the
        keywords of `Trainer`."""
        return Trainer._make(self, "trainer_new", json.dumps(definition).encode(), training)

    def resume(self, path: Path, **training: Any) -> "Trainer":
        """A checkpoint to train on, with the keywords of `Trainer`."""
        return Trainer._make(self, "trainer_load", _path(path), training)


class _Modelled(_Handle):
    """What models and trainers have in common."""

    def __init__(self, context: Context, handle: int):
        super().__init__(handle)
        self.context = context
        info = native.ModelInfo()
        native.call(f"{self._kind}_get_info", handle, byref(info))
        self.n_channels: int = info.n_channels
        self.window: int = info.window
        self.n_outputs: int = info.n_outputs
        self.n_predictions: int = info.n_predictions
        self.n_parameters: int = info.n_parameters
        self.sample_rate: float = info.sample_rate
        self.is_classifier: bool = info.is_classifier != 0

    def forward(self, windows: Array, *, out: Optional[Array] = None) -> Any:
        """Outputs [n, n_outputs] of windows [n, n_channels, window] of float32, in the host's memory or,
        where the context has one, the card's."""
        given = self.context._view(windows, "windows")
        shape = (given.shape[0] if given.shape else 0, self.n_outputs)
        if out is None and self.context.is_card and not given.on_device:
            out = np.empty(shape, np.float32)
        result, to = self.context._out(out, shape, native.F32)
        self.context._call(f"{self._kind}_forward", self._handle, given.pointer, to.pointer)
        return result


class Model(_Modelled):
    """A trained model: `Context.load`."""

    _kind = "model"

    def describe(self) -> Dict[str, Any]:
        """What it is: sizes, channels, what it predicts."""
        text = native.make("model_describe", self._handle)
        try:
            return json.loads(ctypes.string_at(text))
        finally:
            native.lib.engine_string_free(text)

    def predict(self, windows: Array) -> np.ndarray:
        """Predictions [n, n_predictions] of windows [n, n_channels, window]: a number in its own unit, or
        probabilities of the classes."""
        given = view(windows, "windows")
        to = np.empty((given.shape[0] if given.shape else 0, self.n_predictions))
        self.context._call("model_predict", self._handle, given.pointer, view(to, "out").pointer)
        return to

    def predict_file(self, path: Path) -> Predictions:
        """Predictions of a recording's windows, read as the model's run read its own."""
        made = self.context._make("model_predict_file", self._handle, _path(path))
        try:
            windows, width = ctypes.c_size_t(), ctypes.c_size_t()
            native.call("predictions_extents", made, byref(windows), byref(width))
            values = np.empty((windows.value, width.value))
            starts, mean = np.empty(windows.value), np.empty(width.value)
            parts = [view(part, "out").pointer for part in (values, starts, mean)]
            native.call("predictions_read", made, *parts)
        finally:
            native.lib.engine_predictions_free(made)
        return Predictions(values, starts, mean)


class Trainer(_Modelled):
    """A model in training: `Context.trainer`, `Context.resume`.

    Keywords: `batch` (16), `accumulation` (1), `loss` ("mse", "huber", "l1", "bce", "cross_entropy"),
    `optimizer` ("adamw", "sgd"), `betas` ((0.9, 0.95)), `epsilon` (1e-8), `momentum`, `weight_decay`,
    `clip` (0: none), `seed`, `compute` ("float32"; "bfloat16" on a card).
    """

    _kind = "trainer"
    loss = "mse"

    @classmethod
    def _make(cls, context: Context, function: str, what: bytes, given: Dict[str, Any]) -> "Trainer":
        loss = given.pop("loss", "mse")
        beta1, beta2 = given.pop("betas", (0.0, 0.0))
        training = native.Training(
            loss=_word(_LOSSES, loss, "loss"),
            optimizer=_word(_OPTIMIZERS, given.pop("optimizer", "adamw"), "optimizer"),
            compute=_word(_COMPUTE, given.pop("compute", "float32"), "compute"),
            beta1=beta1,
            beta2=beta2,
        )
        numbers = ("batch", "accumulation", "epsilon", "momentum", "weight_decay", "clip", "seed")
        for name in numbers:
            if name in given:
                setattr(training, name, given.pop(name))
        if given:
            raise TypeError(f"unknown keywords: {', '.join(given)}")
        made = cls(context, context._make(function, context._handle, what, byref(training)))
        made.loss = loss
        return made

    def step(self, windows: Array, targets: Union[Array, Callable[..., Any]], lr: float) -> Step:
        """One step: windows [batch * accumulation, n_channels, window] of float32, targets [batch *
        accumulation, n_outputs] of float32 (class numbers of int32 for "cross_entropy"). In place of
        targets, a function of the outputs [batch, n_outputs] and the pass that gives (loss, gradient)."""
        given = view(windows, "windows")
        result = native.StepResult()
        if callable(targets) and not hasattr(targets, "__dlpack__"):
            self._step_with(given, targets, lr, result)
        else:
            to = view(targets, "targets")
            self.context._call(
                "trainer_step", self._handle, given.pointer, to.pointer, lr, byref(result)
            )
        return Step(result.step, result.loss, result.grad_norm)

    def _step_with(
        self, given: View, loss: Callable[..., Any], lr: float, result: native.StepResult
    ) -> None:
        raised = []

        def on_loss(outputs, batch, n_outputs, number, gradient, value, _) -> int:
            try:
                found = np.ctypeslib.as_array(outputs, (batch, n_outputs))
                total, slope = loss(found, number)
                np.ctypeslib.as_array(gradient, (batch, n_outputs))[:] = slope
                value[0] = float(total)
                return 0
            except BaseException as error:  # An exception cannot pass through the library.
                raised.append(error)
                return 1

        function = native.LOSS(on_loss)
        try:
            self.context._call(
                "trainer_step_with", self._handle, given.pointer, function, None, lr, byref(result)
            )
        except Error:
            if raised:
                raise raised[0]
            raise

    def save(self, path: Path) -> None:
        """Saves weights, what the model is, and the optimizer's state."""
        self.context._call("trainer_save", self._handle, _path(path))
