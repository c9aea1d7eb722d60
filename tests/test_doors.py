"""The doors to the host: which one is taken, that all give the same bits, and what the FFI can do.

The suite has eight CPU devices; other numbers of devices, and whatever could hang, are in processes
of their own.
"""

import functools
import json
import os

import helpers
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import OPTIMIZERS, assert_identical, expected

from p2t_jax._host import by_ffi, by_pure_callback, ffi, permute

CORES = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
SAFE = jax.__version_info__ >= (0, 12)  # for `jax.pure_callback`
STEP = """
import jax, helpers, numpy as np, p2t_jax as p2t
from helpers import OPTIMIZERS
params = {"kernel": np.random.default_rng(0).normal(size=(24, 3)).astype(np.float32)}
"""


# Which door


def doors_of(name, host_callback):
    tx = OPTIMIZERS[name](host_callback=host_callback)
    params = {"kernel": jnp.arange(60.0).reshape(20, 3)}
    return helpers.doors_in(jax.jit(tx.update).lower(params, tx.init(params), params).compile())


def test_many_devices():
    assert doors_of("laperm", True) == doors_of("laperm", "ffi") == ["ffi"]
    assert doors_of("sgperm", True) == (["pure_callback"] if SAFE else ["ffi"])
    assert doors_of("sgperm", "ffi") == ["ffi"]
    assert doors_of("laperm", False) == doors_of("sgperm", False) == []


@pytest.mark.slow
@pytest.mark.parametrize("cores", sorted({1, CORES}))
@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="no way to take cores away")
def test_one_device(cores):
    """SGPerm's door is `jax.pure_callback`, unless that could hang."""
    found = helpers.in_a_new_process(
        f"""
import os
os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:{cores}])
import test_doors
for host_callback in (True, "ffi", False):
    print(*[test_doors.doors_of(name, host_callback) for name in ("laperm", "sgperm")])
""",
        timeout=240,
        XLA_FLAGS="",
    )
    safe = SAFE or cores > 1
    assert found.splitlines() == [
        f"['ffi'] ['{'pure_callback' if safe else 'ffi'}']",
        "['ffi'] ['ffi']",
        "[] []",
    ]


def test_the_environment_can_choose_the_ffi():
    code = "import test_doors; print(test_doors.doors_of('sgperm', None))"
    assert helpers.in_a_new_process(code, P2T_JAX_HOST_CALLBACK="ffi") == "['ffi']"


# The same bits


@pytest.mark.parametrize("door", [by_ffi.by_ffi, by_pure_callback.by_pure_callback])
def test_both_doors_lead_to_the_same_parameters(door, name, monkeypatch):
    monkeypatch.setattr(permute, "door", lambda *_: door)
    params, state = helpers.train_jit(OPTIMIZERS[name]())  # anew, since programs are kept
    assert_identical((params, state), expected(name)[:2])


def test_plain_jax_ranks_likewise():
    tx = OPTIMIZERS["laperm"](host_callback=False)
    assert_identical(helpers.train_jit(tx), expected("laperm")[:2])


# Other processes


EXPORT = (
    STEP
    + """
import sys
target = jax.export.DisabledSafetyCheck.custom_call("p2t_jax.permute")
for name, make in OPTIMIZERS.items():
    tx = make(host_callback="ffi")
    leaves, treedef = jax.tree.flatten((params, tx.init(params)))

    @jax.jit
    def step(leaves):
        return jax.tree.leaves(helpers.step(*treedef.unflatten(leaves), params, tx=tx))

    for _ in range(3):
        leaves = step(leaves)
    exported = jax.export.export(step, disabled_checks=[target])(leaves)
    with open(f"{sys.argv[1]}/{name}", "wb") as file:
        file.write(exported.serialize())
    np.savez(f"{sys.argv[1]}/{name}.npz", *leaves, **{f"then_{i}": x for i, x in
             enumerate(step(leaves))})
"""
)
CALL = """
import pathlib, sys
import jax, jax.export, numpy as np, p2t_jax
assert "numba" not in sys.modules
for name in ("laperm", "sgperm"):
    exported = jax.export.deserialize(pathlib.Path(sys.argv[1], name).read_bytes())
    with np.load(f"{sys.argv[1]}/{name}.npz") as arrays:
        count = len(arrays.files) // 2
        found = exported.call([arrays[f"arr_{i}"] for i in range(count)])
        for i, x in enumerate(found):
            np.testing.assert_array_equal(x, arrays[f"then_{i}"])
print("same")
"""


@pytest.mark.slow
def test_an_exported_step_runs_in_another_process(tmp_path):
    folder = f"import sys; sys.argv.append({str(tmp_path)!r})\n"
    helpers.in_a_new_process(folder + EXPORT)
    assert helpers.in_a_new_process(folder + CALL) == "same"


@pytest.mark.slow
def test_steps_are_kept_in_the_compilation_cache(tmp_path):
    code = (
        STEP
        + """
hits = []
jax.monitoring.register_event_listener(lambda event, **_: hits.append(event.endswith("cache_hits")))
for make in OPTIMIZERS.values():
    tx = make(host_callback="ffi")
    update = jax.jit(lambda params, state: tx.update(params, state, params))
    state = tx.init(params)
    hits.clear()
    updates, _ = update(params, state)
    print(sum(hits), float(abs(updates["kernel"]).sum()))
"""
    )
    settings = {
        "JAX_COMPILATION_CACHE_DIR": str(tmp_path),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "0",
    }
    first, second = (
        [line.split() for line in helpers.in_a_new_process(code, **settings).splitlines()]
        for _ in range(2)
    )
    assert [hits for hits, _ in first] == ["0", "0"]
    assert [hits for hits, _ in second] == ["1", "1"]
    assert [moved for _, moved in first] == [moved for _, moved in second]


# Calls that do not fit, as from another version of the library


def call(attributes, operands, out=(6, 2), dtype=np.uint16, **more):
    types = [jax.ShapeDtypeStruct(out, dtype)]
    ffi_call = jax.ffi.ffi_call(by_ffi.TARGET, types)
    attribute = attributes if isinstance(attributes, str) else json.dumps(attributes)
    (positions,) = jax.jit(lambda *x: ffi_call(*x, call=attribute, **more))(*operands)
    return np.asarray(positions)


RANK = {"format": 1, "permutation": "rank", "options": {}, "axes": [[0]], "dtypes": [["float32"]]}
SEARCH = RANK | {
    "permutation": "search",
    "options": {"lower": 0, "priority": 0},
    "dtypes": [["float32", "float32", "float32", "float32", "uint32"]],
}
PHI = np.array([[3, 1], [1, 2], [2, 3], [9, 8], [8, 7], [7, 9]], np.float32)
NUMBER = np.ones((1, 2), np.float32)
SEED = np.ones((1, 2), np.uint32)


def test_a_call_that_fits_is_carried_out():
    np.testing.assert_array_equal(call(RANK, [PHI])[:, 0], [2, 0, 1, 5, 4, 3])
    found = call(SEARCH, [PHI, PHI, NUMBER, NUMBER, SEED])
    np.testing.assert_array_equal(np.sort(found, axis=0)[:, 0], range(6))


@pytest.mark.parametrize(
    "changed",
    [
        functools.partial(call, "{", [PHI]),
        functools.partial(call, RANK | {"format": 2}, [PHI]),
        functools.partial(call, RANK | {"permutation": "shuffle"}, [PHI]),
        functools.partial(call, RANK | {"options": {"lower": 0}}, [PHI]),
        functools.partial(call, RANK | {"axes": [[0], [0]]}, [PHI]),
        functools.partial(call, RANK | {"axes": [[2]]}, [PHI]),
        functools.partial(call, RANK | {"axes": [[1, 0]]}, [PHI]),
        functools.partial(call, RANK | {"axes": [[]]}, [PHI]),
        functools.partial(call, RANK | {"dtypes": [["float16"]]}, [PHI]),
        functools.partial(call, RANK, []),
        functools.partial(call, RANK, [PHI, PHI]),
        functools.partial(call, RANK, [PHI[:5]]),
        functools.partial(call, RANK, [PHI], out=(12,)),
        functools.partial(call, RANK, [PHI], dtype=np.uint32),
        functools.partial(call, RANK, [PHI], another="attribute"),
        functools.partial(call, RANK, [PHI + 1j]),
        functools.partial(call, SEARCH, [PHI, PHI, NUMBER[:, :1], NUMBER, SEED]),
        functools.partial(call, SEARCH, [PHI, PHI, PHI, NUMBER, SEED]),
        functools.partial(call, SEARCH, [PHI, PHI, NUMBER, NUMBER, NUMBER]),
    ],
)
def test_a_call_that_does_not_fit_is_refused(changed):
    with pytest.raises(Exception, match=r"p2t_jax: |attributes: must|XLA's number"):
        changed()


def test_without_the_ffi_the_library_says_so_once(tmp_path):
    """As with a jaxlib whose interface has another major version."""
    header = tmp_path / "xla" / "ffi" / "api" / "c_api.h"
    header.parent.mkdir(parents=True)
    header.write_text("#define XLA_FFI_API_MAJOR 1\n")
    found = helpers.in_a_new_process(
        f"""
import warnings
said = []
warnings.simplefilter("always")
warnings.showwarning = lambda message, *args: said.append(str(message))
import jax
jax.ffi.include_dir = lambda: {str(tmp_path)!r}
"""
        + STEP
        + """
for make in OPTIMIZERS.values():
    tx = make(host_callback="ffi")
    compiled = jax.jit(tx.update).lower(params, tx.init(params), params).compile()
    print(*helpers.doors_in(compiled))
print(sum("FFI" in text for text in said))
""",
        XLA_FLAGS="",
    )
    assert found.split() == ["pure_callback", "pure_callback", "1"]
    assert ffi.fits()


# No hang


@pytest.mark.slow
@pytest.mark.parametrize("threads", [2, 4])
def test_python_threads_that_train_at_once(threads, name):
    """With `jax.pure_callback` they can hang, where they are at least as many as cores."""
    helpers.in_a_new_process(
        f"""
import threading
import jax, numpy as np, helpers
tx = helpers.OPTIMIZERS[{name!r}](host_callback="ffi")
initial = {{"kernel": np.random.default_rng(0).normal(size=(176, 176)).astype(np.float32)}}
step = helpers.jitted_step(tx)
step(initial, tx.init(initial), initial)
ends = []

def train():
    params, state = initial, tx.init(initial)
    for _ in range(300):
        params, state = step(params, state, initial)
    ends.append(jax.block_until_ready(params))

for _ in range(3):
    threads = [threading.Thread(target=train) for _ in range({threads})]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
for end in ends:
    helpers.assert_identical(end, ends[0])
assert len(ends) == 3 * {threads}
""",
        timeout=300,
        XLA_FLAGS="",
    )
