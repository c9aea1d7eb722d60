"""Forks, exits, installations that cannot be written to, switches of Numba, late imports."""

import shutil
from pathlib import Path

import helpers
import pytest

import p2t_jax as p2t

# Both optimizers train for three steps; `final` has the exact permutations.
TRAIN = """
import jax, numpy as np, helpers, p2t_jax as p2t
from helpers import TX, member

PARAMS, GRADS = ({"Dense_0": tree["Dense_0"]} for tree in (helpers.PARAMS, helpers.GRADS))

def train(name):
    params, state = PARAMS, TX[name].init(PARAMS)
    for i in range(3):
        params, state = helpers.jitted_step(TX[name])(params, state, member(GRADS, i))
    return p2t.permuted_params(state, params), params, state

final = {name: train(name)[0] for name in TX}
for tree in final.values():
    assert p2t.is_permutation(tree, PARAMS)
"""
HASH = """
import hashlib
leaves = [np.asarray(x).tobytes() for x in jax.tree.leaves(final)]
print(hashlib.sha256(b"".join(leaves)).hexdigest())
"""


@pytest.fixture(scope="module")
def expected():
    return helpers.in_a_new_process(TRAIN + HASH)


def test_the_host_goes_on_in_a_forked_child():
    """The parent has used the threads of the host; the child has none of them."""
    helpers.in_a_new_process(
        TRAIN
        + """
import multiprocessing, warnings
rng = np.random.default_rng(0)  # several parameters, which are shared among threads
initial = [rng.normal(size=(200, 30)).astype(np.float32) for _ in range(4)]
params = [w[::-1] for w in initial]
packed = p2t.pack(params, initial, vectors=0)
context = multiprocessing.get_context("fork")
queue = context.SimpleQueue()

def child():
    queue.put(p2t.pack(params, initial, vectors=0) == packed)

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # JAX warns of any fork
    process = context.Process(target=child)
    process.start()
process.join(30)
alive = process.is_alive()
process.kill()
assert not alive and process.exitcode == 0, process.exitcode
assert queue.get()
""",
        timeout=90,
    )


def test_the_interpreter_ends_while_steps_are_running():
    helpers.in_a_new_process(
        TRAIN
        + """
def run(tx):
    params, state = PARAMS, tx.init(PARAMS)
    for i in range(50):
        params, state = helpers.jitted_step(tx)(params, state, member(GRADS, 0))

for tx in TX.values():  # nobody keeps the results
    run(tx)
for make in helpers.OPTIMIZERS.values():
    run(make(host_callback="ffi"))
"""
    )


def unwritable_copy(folder):
    """A copy of the package beside which nobody, not even root, can write a cache."""
    package = folder / "p2t_jax"
    source = Path(p2t.__file__).parent
    shutil.copytree(source, package, ignore=shutil.ignore_patterns("__pycache__"))
    for directory in [package, *(d for d in package.rglob("*") if d.is_dir())]:
        (directory / "__pycache__").write_text("a file where a folder should be")
    return f"{folder}:{Path(__file__).parent}"


@pytest.mark.slow
def test_nothing_can_be_cached(tmp_path, expected):
    """Read-only site-packages, and a user without a home: a warning says what to do."""
    path = unwritable_copy(tmp_path)
    nowhere = {"HOME": "/dev/null", "XDG_CACHE_HOME": "/dev/null/cache"}
    before = """
import warnings
said = []
warnings.simplefilter("always")
warnings.showwarning = lambda message, *args: said.append(str(message))
"""
    after = "assert sum('NUMBA_CACHE_DIR' in text for text in said) == 1, said"
    code = before + TRAIN + HASH + after
    output = helpers.in_a_new_process(
        code, PYTHONPATH=path, PYTHONDONTWRITEBYTECODE="1", NUMBA_CACHE_DIR="", **nowhere
    )
    assert output == expected


SWITCHES = {
    "interpreted": {"NUMBA_DISABLE_JIT": "1"},
    "compiled otherwise": {
        "NUMBA_BOUNDSCHECK": "1",
        "NUMBA_CACHE_DIR": "/dev/null/cache",
        "NUMBA_CPU_NAME": "generic",
        "NUMBA_NUM_THREADS": "1",
    },
}


@pytest.mark.slow
@pytest.mark.parametrize("switches", SWITCHES)
def test_switches_of_numba_change_nothing(switches, expected):
    code = "import warnings\nwarnings.simplefilter('ignore')\n" + TRAIN + HASH
    assert helpers.in_a_new_process(code, timeout=240, **SWITCHES[switches]) == expected


@pytest.mark.parametrize("when", ["before", "after"])
def test_flax_serializes_states_whenever_it_was_imported(when):
    flax = "from flax import serialization\n"
    test = """
for name, tx in TX.items():
    final, params, state = train(name)
    blank = tx.init(PARAMS)
    {late}
    for restored in (
        serialization.from_bytes(blank, serialization.to_bytes(state)),
        serialization.from_state_dict(blank, serialization.to_state_dict(state)),
    ):
        assert jax.tree.structure(restored) == jax.tree.structure(state)
        helpers.assert_identical(p2t.permuted_params(restored, params), final)
"""
    late = flax.strip() if when == "after" else ""
    early = flax if when == "before" else ""
    helpers.in_a_new_process(early + TRAIN + test.format(late=late))


def test_nothing_is_computed_before_init():
    """So that optimizers may be made before `jax.distributed.initialize`."""
    helpers.in_a_new_process(
        """
import jax, optax, p2t_jax as p2t
optax.chain(p2t.laperm(optax.adam(1e-3), 20), p2t.sgperm(0))
jax.config.update("jax_num_cpu_devices", 3)  # an error, once JAX has looked for devices
assert jax.device_count() == 3
""",
        XLA_FLAGS="",
    )
