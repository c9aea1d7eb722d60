"""XLA's foreign function interface: a Python function that gets XLA's own buffers.

The C interface is public and versioned: `xla/ffi/api/c_api.h`, which comes with jaxlib. Its structs
stand here as ctypes, under their names there and up to the last field that is used. Without a new
major version, XLA only appends fields.
"""

import atexit
import contextlib
import ctypes
import functools
import math
import os
import re
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, ClassVar, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
import numpy.typing as npt

Array: TypeAlias = npt.NDArray[Any]
# From the attribute of a call, and what the call reads, to what it writes.
Handler: TypeAlias = Callable[[str, list[Array], list[Array]], None]

ATTRIBUTE = "call"  # The name of the only attribute, a string.

_MAJOR_VERSION = 0
_METADATA_EXTENSION, _BUFFER, _STRING = 1, 1, 4
_INTERNAL_ERROR = 13
_PyBUF_READ, _PyBUF_WRITE = 0x100, 0x200
# Of `XLA_FFI_DataType`.
_DTYPES: dict[int, Any] = {
    1: np.bool_,
    2: np.int8,
    3: np.int16,
    4: np.int32,
    5: np.int64,
    6: np.uint8,
    7: np.uint16,
    8: np.uint32,
    9: np.uint64,
    10: np.float16,
    11: np.float32,
    12: np.float64,
    16: jnp.bfloat16,
    19: jnp.float8_e5m2,
    20: jnp.float8_e4m3fn,
    23: jnp.float8_e4m3b11fnuz,
    24: jnp.float8_e5m2fnuz,
    25: jnp.float8_e4m3fnuz,
}


class _Struct(ctypes.Structure):
    """All begin like this."""

    _fields_: ClassVar[Sequence[tuple[str, Any]]] = (
        ("struct_size", ctypes.c_size_t),
        ("extension_start", ctypes.c_void_p),
    )


class _ByteSpan(ctypes.Structure):
    _fields_ = (("ptr", ctypes.c_void_p), ("len", ctypes.c_size_t))


class _ExtensionBase(ctypes.Structure):
    _fields_ = (
        ("struct_size", ctypes.c_size_t),
        ("type", ctypes.c_int),
        ("next", ctypes.c_void_p),
    )


class _ApiVersion(_Struct):
    _fields_ = (("major_version", ctypes.c_int), ("minor_version", ctypes.c_int))


class _Metadata(ctypes.Structure):
    _fields_ = (
        ("struct_size", ctypes.c_size_t),
        ("api_version", _ApiVersion),
        ("traits", ctypes.c_uint32),
    )


class _MetadataExtension(ctypes.Structure):
    _fields_ = (("extension_base", _ExtensionBase), ("metadata", ctypes.POINTER(_Metadata)))


class _ErrorCreateArgs(_Struct):
    _fields_ = (("message", ctypes.c_char_p), ("errc", ctypes.c_int))


_ErrorCreate = ctypes.CFUNCTYPE(ctypes.c_void_p, ctypes.POINTER(_ErrorCreateArgs))


class _Api(_Struct):
    _fields_ = (
        ("api_version", _ApiVersion),
        ("internal_api", ctypes.c_void_p),
        ("XLA_FFI_Error_Create", _ErrorCreate),
    )


class _Buffer(_Struct):
    _fields_ = (
        ("dtype", ctypes.c_int),
        ("data", ctypes.c_void_p),
        ("rank", ctypes.c_int64),
        ("dims", ctypes.POINTER(ctypes.c_int64)),
    )


class _Buffers(_Struct):
    """`XLA_FFI_Args` and `XLA_FFI_Rets`."""

    _fields_ = (
        ("size", ctypes.c_int64),
        ("types", ctypes.POINTER(ctypes.c_int)),
        ("buffers", ctypes.POINTER(ctypes.POINTER(_Buffer))),
    )


class _Attrs(_Struct):
    _fields_ = (
        ("size", ctypes.c_int64),
        ("types", ctypes.POINTER(ctypes.c_int)),
        ("names", ctypes.POINTER(ctypes.POINTER(_ByteSpan))),
        ("attrs", ctypes.POINTER(ctypes.POINTER(_ByteSpan))),
    )


class _CallFrame(_Struct):
    _fields_ = (
        ("api", ctypes.POINTER(_Api)),
        ("ctx", ctypes.c_void_p),
        ("stage", ctypes.c_int),
        ("args", _Buffers),
        ("rets", _Buffers),
        ("attrs", _Attrs),
    )


_Handler = ctypes.CFUNCTYPE(ctypes.c_void_p, ctypes.POINTER(_CallFrame))

_view_memory: Any = ctypes.pythonapi.PyMemoryView_FromMemory
_view_memory.restype = ctypes.py_object
_view_memory.argtypes = (ctypes.c_void_p, ctypes.c_ssize_t, ctypes.c_int)


@functools.cache
def fits() -> bool:
    """Whether the interface of the installed jaxlib is the one that is written down here."""
    header = Path(jax.ffi.include_dir(), "xla", "ffi", "api", "c_api.h")
    try:
        major = re.search(r"#define XLA_FFI_API_MAJOR (\d+)", header.read_text(errors="replace"))
    except OSError:
        return False
    return major is not None and int(major[1]) == _MAJOR_VERSION


def register(name: str, handler: Handler) -> None:
    """Lets programs on CPUs call a Python function, if the interface fits.

    The function runs on a thread of XLA's. It must not use JAX, which could wait for that thread.
    What it raises becomes the error of the program.

    Args:
        name: what programs call it by: `jax.ffi.ffi_call(name, ...)(..., call=attribute)`.
        handler: gets the attribute, and views of XLA's buffers: those that it reads, and those that
            it writes. They are valid until it returns.
    """
    if not fits():
        return

    @_Handler
    def handle(frame: Any) -> Any:
        frame = frame.contents
        try:
            if frame.extension_start:
                _describe(frame)
            else:
                _called_in.add(os.getpid())
                attribute = _attribute(frame.attrs)
                handler(attribute, _views(frame.args, False), _views(frame.rets, True))
        except BaseException:
            return _error(frame.api.contents, traceback.format_exc())
        return None

    # XLA may call it until the process ends, when modules are gone.
    ctypes.pythonapi.Py_IncRef(ctypes.py_object(handle))
    jax.ffi.register_ffi_target(name, jax.ffi.pycapsule(handle), platform="cpu")


_called_in: set[int] = set()  # Processes: a forked child has no programs that run.


@atexit.register
def _wait_for_programmes() -> None:
    """Lets programs end before the interpreter does: a later call would have none to run in.

    JAX itself waits for those with callbacks. Not found here are programs of other Python
    threads, or with collectives, whose results nobody has kept.
    """
    if os.getpid() not in _called_in:
        return
    for array in jax.live_arrays():
        with contextlib.suppress(Exception):  # its program has failed
            array.block_until_ready()
    for device in jax.local_devices(backend="cpu"):
        # XLA runs what one thread starts one after the other, kept or not.
        jnp.add(jax.device_put(np.float32(0), device), 1).block_until_ready()


def _describe(frame: Any) -> None:
    """Answers XLA's question for the version: a refusal would leave JAX without CPUs."""
    extension = _MetadataExtension.from_address(frame.extension_start)
    if extension.extension_base.type == _METADATA_EXTENSION:
        version, mine = frame.api.contents.api_version, extension.metadata.contents.api_version
        mine.major_version, mine.minor_version = version.major_version, version.minor_version


def _attribute(attrs: Any) -> str:
    found = {}
    for i in range(attrs.size):
        span = attrs.names[i].contents
        found[ctypes.string_at(span.ptr, span.len).decode()] = i
    if list(found) != [ATTRIBUTE] or attrs.types[0] != _STRING:
        raise ValueError(f"attributes: must be a string named {ATTRIBUTE!r}, got {list(found)}.")
    span = attrs.attrs[0].contents
    return ctypes.string_at(span.ptr, span.len).decode()


def _views(buffers: Any, written: bool) -> list[Array]:
    if any(buffers.types[i] != _BUFFER for i in range(buffers.size)):
        raise TypeError("operands and results: must be arrays.")
    return [_view(buffers.buffers[i].contents, written) for i in range(buffers.size)]


def _view(buffer: Any, written: bool) -> Array:
    if buffer.dtype not in _DTYPES:
        raise TypeError(f"dtype: XLA's number {buffer.dtype} is not known here.")
    shape, dtype = tuple(buffer.dims[: buffer.rank]), np.dtype(_DTYPES[buffer.dtype])
    size = math.prod(shape)
    if not size:  # It need not have an address.
        return np.empty(shape, dtype)
    memory = _view_memory(
        buffer.data, size * dtype.itemsize, _PyBUF_WRITE if written else _PyBUF_READ
    )
    return np.frombuffer(memory, dtype).reshape(shape)


def _error(api: Any, message: str) -> Any:
    size = _ErrorCreateArgs.errc.offset + _ErrorCreateArgs.errc.size
    args = _ErrorCreateArgs(size, None, message.encode(errors="replace"), _INTERNAL_ERROR)
    return api.XLA_FFI_Error_Create(args)
