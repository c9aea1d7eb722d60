"""How kernels are compiled: without the GIL, and cached on disk where that can be written."""

import functools
import hashlib
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar, cast

import numba

from p2t_jax._host.kernels.numba_internals import compiling, use_safe_cache

_Function = TypeVar("_Function", bound=Callable[..., Any])


def jit(function: _Function, **options: Any) -> _Function:
    """Compiles a kernel at the first call with new dtypes; `options` are those of `numba.njit`."""
    compile_ = functools.partial(numba.njit, nogil=True, **options)
    with compiling():
        try:
            dispatcher = compile_(cache=True)(function)
        except RuntimeError:  # neither the package nor the user's cache directory can be written
            _say_once()
            dispatcher = compile_()(function)
        else:
            use_safe_cache(dispatcher, _stamp())
    return cast(_Function, dispatcher)


@functools.cache
def _stamp() -> str:
    """A hash of all kernels, which call each other."""
    files = sorted(Path(__file__).parent.glob("*.py"))
    return hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()


@functools.cache
def _say_once() -> None:
    warnings.warn(
        "p2t_jax compiles its kernels in every process, because no directory for compiled code "
        "can be written. Set NUMBA_CACHE_DIR to one that can.",
        stacklevel=2,
    )
