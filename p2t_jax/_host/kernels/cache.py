"""How kernels are compiled: without the GIL, and cached on disk, safely.

Numba numbers the files of its cache, and names them in an index before it writes them. Two
processes that compile a kernel for different dtypes at the same time (parallel tests, the processes
of a cluster) can give their files the same name, and one of them then runs what the other compiled.
So here a file is named after what is in it, and written before it is in the index.
"""

import hashlib
from collections.abc import Callable
from typing import Any, TypeVar, cast

import numba
from numba.core import caching

_Function = TypeVar("_Function", bound=Callable[..., Any])


class CacheFile(caching.IndexDataCacheFile):
    """A kernel's compiled code, one file for each combination of dtypes."""

    def save(self, key: Any, data: Any) -> None:
        """Write what was compiled for `key`."""
        digest = hashlib.sha256(repr((self._source_stamp, key)).encode()).hexdigest()
        name = self._data_name(int(digest[:12], 16))
        self._save_data(name, data)
        self._save_index(self._load_index() | {key: name})


def jit(function: _Function, **options: Any) -> _Function:
    """Compile a kernel when it first meets its dtypes; `options` are those of `numba.njit`."""
    dispatcher = numba.njit(nogil=True, cache=True, **options)(function)
    # Not Numba's public interface: without it we would have its own cache, race and all.
    file = getattr(getattr(dispatcher, "_cache", None), "_cache_file", None)
    if type(file) is caching.IndexDataCacheFile:
        file.__class__ = CacheFile
    return cast(_Function, dispatcher)
