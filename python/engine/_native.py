"""The shared library's functions, as engine.h declares them."""

from __future__ import annotations

import ctypes
import os
from ctypes import POINTER, c_char_p, c_double, c_float, c_int32, c_size_t, c_uint32, c_uint64, c_void_p
from pathlib import Path

ABI_VERSION = 1
MAX_RANK = 5
HOST, DEVICE = 0, 1
F32, F64, BF16, F16, I32 = range(5)
STATUS = (
    "ok", "argument", "handle", "input", "io", "memory", "not finite", "device", "cancelled", "internal",
)

LOG = ctypes.CFUNCTYPE(None, c_int32, c_char_p, c_void_p)
CANCEL = ctypes.CFUNCTYPE(c_int32, c_void_p)
LOSS = ctypes.CFUNCTYPE(
    c_int32, POINTER(c_float), c_size_t, c_size_t, c_size_t, POINTER(c_float), POINTER(c_double), c_void_p
)


class Array(ctypes.Structure):
    _fields_ = [
        ("data", c_void_p),
        ("shape", c_size_t * MAX_RANK),
        ("rank", c_uint32),
        ("dtype", c_int32),
        ("memory", c_int32),
    ]


class Sized(ctypes.Structure):
    """A structure that begins with its size."""

    def __init__(self, **members):
        super().__init__(**members)
        self.size = ctypes.sizeof(type(self))


class Options(Sized):
    _fields_ = [
        ("size", c_size_t),
        ("device", c_char_p),
        ("ordinal", c_uint32),
        ("threads", c_uint32),
        ("memory", c_uint64),
        ("use_stream", c_int32),
        ("stream", c_void_p),
        ("cache_dir", c_char_p),
        ("log", LOG),
        ("log_user", c_void_p),
        ("cancel", CANCEL),
        ("cancel_user", c_void_p),
    ]


class DeviceInfo(Sized):
    _fields_ = [
        ("size", c_size_t),
        ("is_card", c_int32),
        ("units", c_uint32),
        ("memory", c_uint64),
        ("memory_used", c_uint64),
        ("name", ctypes.c_char * 64),
    ]


class ModelInfo(Sized):
    _fields_ = [
        ("size", c_size_t),
        ("n_channels", c_size_t),
        ("window", c_size_t),
        ("n_outputs", c_size_t),
        ("n_predictions", c_size_t),
        ("n_parameters", c_uint64),
        ("sample_rate", c_double),
        ("is_classifier", c_int32),
        ("reads_recordings", c_int32),
    ]


class Training(Sized):
    _fields_ = [
        ("size", c_size_t),
        ("batch", c_uint32),
        ("accumulation", c_uint32),
        ("loss", c_int32),
        ("optimizer", c_int32),
        ("beta1", c_double),
        ("beta2", c_double),
        ("epsilon", c_double),
        ("momentum", c_double),
        ("weight_decay", c_double),
        ("clip", c_double),
        ("seed", c_uint64),
        ("compute", c_int32),
    ]


class StepResult(Sized):
    _fields_ = [("size", c_size_t), ("step", c_uint64), ("loss", c_double), ("grad_norm", c_double)]


class Error(RuntimeError):
    """What the engine refused: its message (place, problem, remedy) and `status`, a word."""

    def __init__(self, message: str, status: str):
        super().__init__(message)
        self.status = status


def _open() -> ctypes.CDLL:
    path = os.environ.get("ENGINE_LIBRARY") or str(Path(__file__).with_name("libengine.so"))
    library = ctypes.CDLL(path)
    found = library.engine_abi_version()
    if found != ABI_VERSION:
        raise ImportError(
            f"{path}: has binary interface {found}, this package {ABI_VERSION}\n"
            "  remedy: install the package and the library of one version"
        )
    return library


lib = _open()
_array, _handle, _out = POINTER(Array), c_void_p, POINTER(c_void_p)

_FUNCTIONS = {
    "context_new": [POINTER(Options), _out],
    "context_free": [_handle],
    "context_sync": [_handle],
    "context_get_info": [_handle, POINTER(DeviceInfo)],
    "buffer_new": [_handle, c_size_t, _out],
    "buffer_data": [_handle, _out],
    "buffer_free": [_handle],
    "copy": [_handle, _array, _array],
    "gemm": [_handle, _array, _array, _array, _array, c_uint32],
    "attention": [_handle, _array, c_uint32, _array, _array],
    "attention_backward": [_handle, _array, _array, _array, _array, c_uint32, _array],
    "layernorm": [_handle, _array, _array, _array, c_float, _array, _array, _array],
    "layernorm_backward": [_handle] + [_array] * 8,
    "spectral": [_handle, _array, _array, _array],
    "spectral_backward": [_handle] + [_array] * 5,
    "model_load": [_handle, c_char_p, c_uint32, _out],
    "model_free": [_handle],
    "model_get_info": [_handle, POINTER(ModelInfo)],
    "model_describe": [_handle, _out],
    "model_forward": [_handle, _array, _array],
    "model_predict": [_handle, _array, _array],
    "model_predict_file": [_handle, c_char_p, _out],
    "predictions_free": [_handle],
    "predictions_extents": [_handle, POINTER(c_size_t), POINTER(c_size_t)],
    "predictions_read": [_handle, _array, _array, _array],
    "trainer_new": [_handle, c_char_p, POINTER(Training), _out],
    "trainer_load": [_handle, c_char_p, POINTER(Training), _out],
    "trainer_free": [_handle],
    "trainer_get_info": [_handle, POINTER(ModelInfo)],
    "trainer_step": [_handle, _array, _array, c_double, POINTER(StepResult)],
    "trainer_step_with": [_handle, _array, LOSS, c_void_p, c_double, POINTER(StepResult)],
    "trainer_forward": [_handle, _array, _array],
    "trainer_save": [_handle, c_char_p],
}
for _name, _arguments in _FUNCTIONS.items():
    _function = getattr(lib, "engine_" + _name)
    _function.argtypes, _function.restype = _arguments, c_int32
lib.engine_last_error.restype = c_char_p
lib.engine_version.restype = c_char_p
lib.engine_live_handles.restype = c_size_t
lib.engine_string_free.argtypes = [c_void_p]
lib.engine_string_free.restype = None


def call(name: str, *arguments) -> None:
    """Calls a function of the library; raises what it refuses."""
    status = getattr(lib, "engine_" + name)(*arguments)
    if status != 0:
        message = lib.engine_last_error().decode("utf-8", "replace")
        raise Error(message, STATUS[status] if status < len(STATUS) else "unknown")


def make(name: str, *arguments) -> int:
    """Calls a function that gives a handle or pointer."""
    out = c_void_p()
    call(name, *arguments, ctypes.byref(out))
    return out.value or 0
