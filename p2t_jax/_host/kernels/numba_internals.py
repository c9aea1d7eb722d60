"""Every interface of Numba used here that its documentation does not promise.

Nothing else in the library imports one, so that a change in Numba concerns this file alone. Each
has a line on what it stands for and what would replace it.
"""

import contextlib
import functools
import hashlib
import inspect
from collections.abc import Iterator
from typing import Any

from numba.core import caching, config


def use_safe_cache(dispatcher: Any, stamp: str) -> None:
    """Makes Numba's cache on disk safe for several processes, and valid for one stamp only.

    Stands for: a private class of Numba, left alone where it is another than it was. Replaced by: a
    `numba.njit(cache=True)` that is safe, and that knows which files a function was compiled from.

    Args:
        dispatcher: what `numba.njit(cache=True)` returned.
        stamp: what was compiled earlier is run only if its stamp was the same. Numba's own is that
            of one file, although kernels call those of others.
    """
    file: Any = getattr(getattr(dispatcher, "_cache", None), "_cache_file", None)
    if hasattr(file, "_source_stamp"):
        file._source_stamp = stamp
    safe = safe_cache_file()
    if type(file) is safe.__base__:
        file.__class__ = safe


# The methods of Numba's class that are overridden or called, and their parameters.
_OF_CACHE_FILE = {
    "save": "self, key, data",
    "_load_index": "self",
    "_save_index": "self, overloads",
    "_save_data": "self, name, data",
    "_data_name": "self, number",
}


@functools.cache
def safe_cache_file() -> Any:
    """The class of the compiled code of a kernel, one file for each combination of dtypes.

    Numba numbers these files, and names them in an index before it writes them. Two processes that
    compile a kernel for different dtypes at the same time (parallel tests, the processes of a
    cluster) can give their files the same name, and one of them then runs what the other compiled.
    So here the name of a file is a hash of what was compiled, from which source and for which
    dtypes, and the file is written before the index names it. A class of Numba with other methods
    is returned as it is.
    """
    base: Any = caching.IndexDataCacheFile
    methods = {name: getattr(base, name) for name in _OF_CACHE_FILE if hasattr(base, name)}
    found = {
        name: ", ".join(inspect.signature(method).parameters) for name, method in methods.items()
    }
    if found != _OF_CACHE_FILE:
        return base

    class SafeCacheFile(base):  # type: ignore[misc]
        def save(self, key: Any, data: Any) -> None:
            digest = hashlib.sha256(repr((self._source_stamp, key)).encode()).hexdigest()
            name = self._data_name(int(digest[:12], 16))
            self._save_data(name, data)
            self._save_index(self._load_index() | {key: name})

    return SafeCacheFile


@contextlib.contextmanager
def compiling() -> Iterator[None]:
    """Lets Numba compile under NUMBA_DISABLE_JIT, too: Python cannot run the kernels' intrinsics.

    Stands for: the module behind Numba's environment variables. Replaced by: an option of
    `numba.njit`.
    """
    settings: Any = config
    disabled, settings.DISABLE_JIT = settings.DISABLE_JIT, 0
    try:
        yield
    finally:
        settings.DISABLE_JIT = disabled
