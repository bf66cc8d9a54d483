"""Arrays in and out without copies: NumPy's, and anything that speaks DLPack."""

from __future__ import annotations

import ctypes
from ctypes import POINTER, c_int32, c_int64, c_uint8, c_uint16, c_uint64, c_void_p
from typing import Any, Optional, Tuple

import numpy as np

from . import _native as native

# https://dmlc.github.io/dlpack/latest/c_api.html
CPU, CUDA, CUDA_HOST, ROCM, ROCM_HOST = 1, 2, 3, 10, 11
_NAME = b"dltensor"


class _Device(ctypes.Structure):
    _fields_ = [("device_type", c_int32), ("device_id", c_int32)]


class _DataType(ctypes.Structure):
    _fields_ = [("code", c_uint8), ("bits", c_uint8), ("lanes", c_uint16)]


class _Tensor(ctypes.Structure):
    _fields_ = [
        ("data", c_void_p),
        ("device", _Device),
        ("ndim", c_int32),
        ("dtype", _DataType),
        ("shape", POINTER(c_int64)),
        ("strides", POINTER(c_int64)),
        ("byte_offset", c_uint64),
    ]


class _Managed(ctypes.Structure):
    pass


_DELETER = ctypes.CFUNCTYPE(None, POINTER(_Managed))
_Managed._fields_ = [("tensor", _Tensor), ("context", c_void_p), ("deleter", _DELETER)]

_DTYPES = {(2, 32): native.F32, (2, 64): native.F64, (4, 16): native.BF16, (2, 16): native.F16, (0, 32): native.I32}
_CODES = {dtype: code for code, dtype in _DTYPES.items()}
_NUMPY = {"float32": native.F32, "float64": native.F64, "float16": native.F16, "int32": native.I32}
_SIZES = {native.F32: 4, native.F64: 8, native.BF16: 2, native.F16: 2, native.I32: 4}
_WORDS = {native.F32: "float32", native.F64: "float64", native.BF16: "bfloat16", native.F16: "float16", native.I32: "int32"}

_api = ctypes.pythonapi
_api.PyCapsule_GetPointer.restype = c_void_p
_api.PyCapsule_GetPointer.argtypes = [ctypes.py_object, ctypes.c_char_p]
_DESTRUCTOR = ctypes.PYFUNCTYPE(None, c_void_p)
_new_capsule = ctypes.PYFUNCTYPE(ctypes.py_object, c_void_p, ctypes.c_char_p, _DESTRUCTOR)(
    ("PyCapsule_New", _api)
)
_is_valid = ctypes.PYFUNCTYPE(ctypes.c_int, c_void_p, ctypes.c_char_p)(("PyCapsule_IsValid", _api))
_pointer_of = ctypes.PYFUNCTYPE(c_void_p, c_void_p, ctypes.c_char_p)(("PyCapsule_GetPointer", _api))


class View:
    """An array of the caller's as the library sees it. It keeps the caller's alive."""

    def __init__(self, array: native.Array, owner: Any):
        self.array, self.owner = array, owner
        self.pointer = ctypes.pointer(array)

    @property
    def shape(self) -> Tuple[int, ...]:
        return tuple(self.array.shape[: self.array.rank])

    @property
    def dtype(self) -> int:
        return self.array.dtype

    @property
    def on_device(self) -> bool:
        return self.array.memory == native.DEVICE


def _array(data: int, shape: Tuple[int, ...], dtype: int, memory: int, name: str) -> native.Array:
    if len(shape) > native.MAX_RANK:
        raise ValueError(f"{name}: has {len(shape)} axes, at most {native.MAX_RANK} are known")
    extents = (ctypes.c_size_t * native.MAX_RANK)(*shape)
    return native.Array(data, extents, len(shape), dtype, memory)


def view(thing: Any, name: str, stream: Optional[int] = None, writable: bool = False) -> View:
    """A view of a NumPy array, or of anything with `__dlpack__`. Nothing is copied: what does not lie
    densely, row by row, is refused. `stream` is where a card's array must be ready."""
    if isinstance(thing, View):
        return thing
    if isinstance(thing, np.ndarray):
        return _of_numpy(thing, name, writable)
    if not hasattr(thing, "__dlpack__"):
        raise TypeError(f"{name}: is no array: give a NumPy array or one with __dlpack__")
    device, _ = thing.__dlpack_device__()
    on_device = device in (CUDA, ROCM)
    if not on_device and device not in (CPU, CUDA_HOST, ROCM_HOST):
        raise TypeError(f"{name}: lies on a device that DLPack numbers {device}")
    # A stream of 0 is the default one, which DLPack numbers 1 for CUDA.
    if on_device and stream is not None:
        capsule = thing.__dlpack__(stream=1 if stream == 0 and device == CUDA else stream)
    else:
        capsule = thing.__dlpack__()
    managed = ctypes.cast(_api.PyCapsule_GetPointer(capsule, _NAME), POINTER(_Managed)).contents
    tensor = managed.tensor
    dtype = _DTYPES.get((tensor.dtype.code, tensor.dtype.bits)) if tensor.dtype.lanes == 1 else None
    if dtype is None:
        raise TypeError(f"{name}: its type is none of float32, float64, bfloat16, float16, int32")
    shape = tuple(tensor.shape[i] for i in range(tensor.ndim))
    if tensor.strides:
        expected = 1
        for i in reversed(range(tensor.ndim)):
            if shape[i] > 1 and tensor.strides[i] != expected:
                raise ValueError(f"{name}: is not dense, row by row: give its contiguous() copy")
            expected *= shape[i]
    memory = native.DEVICE if on_device else native.HOST
    data = (tensor.data or 0) + tensor.byte_offset
    return View(_array(data, shape, dtype, memory, name), (thing, capsule))


def _of_numpy(thing: np.ndarray, name: str, writable: bool) -> View:
    dtype = _NUMPY.get(thing.dtype.name)
    if dtype is None or not thing.dtype.isnative:
        raise TypeError(f"{name}: is {thing.dtype}, none of float32, float64, float16, int32")
    if not thing.flags.c_contiguous:
        raise ValueError(f"{name}: is not dense, row by row: give numpy.ascontiguousarray of it")
    if writable and not thing.flags.writeable:
        raise ValueError(f"{name}: is read-only")
    return View(_array(thing.ctypes.data, thing.shape, dtype, native.HOST, name), thing)


_exported: dict = {}


@_DELETER
def _delete(managed):
    _exported.pop(ctypes.addressof(managed.contents), None)


@_DESTRUCTOR
def _destroy(capsule):
    # A capsule that was taken has another name, and its taker calls the deleter.
    if _is_valid(capsule, _NAME):
        managed = ctypes.cast(_pointer_of(capsule, _NAME), POINTER(_Managed))
        managed.contents.deleter(managed)


class Tensor:
    """A result in the memory of a context, for anything that takes DLPack: `torch.from_dlpack(t)`,
    `numpy.from_dlpack(t)`. Nothing is copied."""

    def __init__(self, context: Any, shape: Tuple[int, ...], dtype: int = native.F32):
        count = int(np.prod(shape, dtype=np.int64))
        self._context = context
        self._buffer = native.make("buffer_new", context._handle, count * _SIZES[dtype])
        self._view: View
        data = native.make("buffer_data", self._buffer)
        memory = native.DEVICE if context.is_card else native.HOST
        self._view = View(_array(data, tuple(shape), dtype, memory, "tensor"), self)
        self._view.owner = None

    @property
    def shape(self) -> Tuple[int, ...]:
        return self._view.shape

    @property
    def dtype(self) -> str:
        return _WORDS[self._view.dtype]

    def numpy(self) -> np.ndarray:
        """A copy in the host's memory."""
        if self._view.dtype == native.BF16:
            raise TypeError("NumPy has no bfloat16: use torch.from_dlpack")
        if not self._context.is_card:
            return np.from_dlpack(self).copy()
        to = np.empty(self.shape, self.dtype)
        native.call("copy", self._context._handle, self._view.pointer, view(to, "to").pointer)
        return to

    def __dlpack_device__(self) -> Tuple[int, int]:
        return self._context._dlpack_device()

    def __dlpack__(self, *, stream: Optional[int] = None, **_: Any) -> Any:
        own = self._context.stream
        known = stream is not None and (stream == own or (stream == 1 and own == 0))
        if self._context.is_card and stream != -1 and not known:
            self._context.sync()
        return _export(self)

    def __del__(self) -> None:
        if getattr(self, "_buffer", 0):
            native.lib.engine_buffer_free(self._buffer)


def _export(tensor: Tensor) -> Any:
    shape = tensor.shape
    extents = (c_int64 * max(len(shape), 1))(*shape)
    steps = (c_int64 * max(len(shape), 1))()
    step = 1
    for i in reversed(range(len(shape))):
        steps[i], step = step, step * shape[i]
    code, bits = _CODES[tensor._view.dtype]
    device = _Device(*tensor.__dlpack_device__())
    inner = _Tensor(
        tensor._view.array.data, device, len(shape), _DataType(code, bits, 1), extents, steps, 0
    )
    managed = _Managed(inner, None, _delete)
    _exported[ctypes.addressof(managed)] = (managed, extents, steps, tensor)
    return _new_capsule(ctypes.addressof(managed), _NAME, _destroy)
