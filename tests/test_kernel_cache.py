"""The compiled kernels on disk, when several processes compile at once."""

import shutil
import threading
from pathlib import Path

import helpers
import numba
import numpy as np
from numba.core import caching

import p2t_jax
from p2t_jax._host.kernels import (
    bits,
    cache,
    coder,
    columns,
    cycles,
    depth_first,
    numba_internals,
    radix,
    subsets,
)

CacheFile = numba_internals.safe_cache_file()
IGNORED = shutil.ignore_patterns("__pycache__")


def doubled(x):
    return x + x


def test_every_kernel_has_a_cache_of_this_kind():
    dispatchers = [
        value
        for module in (bits, coder, columns, cycles, depth_first, radix, subsets)
        for value in vars(module).values()
        if isinstance(value, numba.core.registry.CPUDispatcher)
    ]
    assert len(dispatchers) > 10
    for dispatcher in dispatchers:
        assert isinstance(dispatcher._cache._cache_file, CacheFile), dispatcher


def cache_file(folder, kind=CacheFile):
    return kind(str(folder), "kernel-1.py3", ("stamp", 1))


def test_processes_that_save_at_once_never_get_each_others_code(tmp_path, monkeypatch):
    """Both have read the index before either has written it."""
    barrier = threading.Barrier(2)
    load_index = caching.IndexDataCacheFile._load_index

    def load_index_together(self):
        index = load_index(self)
        barrier.wait(timeout=20)
        return index

    def save(key):
        cache_file(tmp_path).save(key, f"code of {key}")

    with monkeypatch.context() as patch:
        patch.setattr(caching.IndexDataCacheFile, "_load_index", load_index_together)
        threads = [threading.Thread(target=save, args=(key,)) for key in ("float32", "float64")]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    found = {key: cache_file(tmp_path).load(key) for key in ("float32", "float64")}
    assert all(code in (None, f"code of {key}") for key, code in found.items())
    assert any(found.values())


def test_what_was_compiled_before_an_upgrade_is_not_run(tmp_path):
    cache_file(tmp_path).save("float32", "old")
    upgraded = CacheFile(str(tmp_path), "kernel-1.py3", ("stamp", 2))
    assert upgraded.load("float32") is None
    upgraded.save("float32", "new")
    assert upgraded.load("float32") == "new"


def test_a_kernel_is_compiled_once_for_all_processes(tmp_path, monkeypatch):
    monkeypatch.setattr(numba.config, "CACHE_DIR", str(tmp_path))
    first, second = cache.jit(doubled), cache.jit(doubled)
    assert first(np.float32(2)) == second(np.float32(2)) == 4
    assert sum(first.stats.cache_misses.values()) == 1
    assert sum(second.stats.cache_hits.values()) == 1


def test_a_change_in_one_file_of_kernels_is_seen_by_those_of_another(tmp_path):
    package = tmp_path / "p2t_jax"
    shutil.copytree(Path(p2t_jax.__file__).parent, package, ignore=IGNORED)
    kernels = package / "_host" / "kernels"
    header = "from p2t_jax._host.kernels.cache import jit\n"
    (kernels / "caller.py").write_text(
        f"{header}from p2t_jax._host.kernels.called import called\n"
        "caller = jit(lambda x: called(x))\n"
    )
    printed = []
    for number in (1, 2, 2):
        (kernels / "called.py").write_text(f"{header}called = jit(lambda x: x + {number})\n")
        printed.append(
            helpers.in_a_new_process(
                "from p2t_jax._host.kernels.caller import caller\n"
                "print(caller(10), sum(caller.stats.cache_hits.values()))",
                NUMBA_CACHE_DIR=str(tmp_path / "cache"),
                PYTHONPATH=str(tmp_path),
            )
        )
    assert printed == ["11 0", "12 0", "12 1"]


def test_a_cache_of_numba_with_other_methods_is_left_alone(monkeypatch):
    class Changed(caching.IndexDataCacheFile):
        def save(self, key, data, *, protocol): ...

    for base in (Changed, type("Without", (), {})):
        with monkeypatch.context() as patch:
            patch.setattr(caching, "IndexDataCacheFile", base)
            assert numba_internals.safe_cache_file.__wrapped__() is base
    assert numba_internals.safe_cache_file.__wrapped__().__mro__[1] is caching.IndexDataCacheFile
