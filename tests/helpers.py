"""What the tests share: parameters, gradients, both optimizers, training loops, assertions.

All arithmetic of a run of `OPTIMIZERS` over `GRADS` is exact, or the same on every path. So the way
of running it (eager, jit, scan, any number of devices, any layout) must not change a single bit.
"""

import contextlib
import functools
import multiprocessing
import os
import subprocess
import sys
import threading
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import chex
import jax
import numpy as np
import optax
import pytest
from oracles import laperm as oracle

import p2t_jax as p2t

STEPS = 7
TESTS = Path(__file__).parent

_rng = np.random.default_rng(0)


def grid(*shape, unit):
    """Multiples of `unit` between -2 and 2: sums of them are exact, and many are equal."""
    bound = int(2 / unit)
    return (_rng.integers(-bound, bound, shape) * unit).astype(np.float32)


# 16, 24 and 10 vectors: 8 devices divide the first two. SGPerm needs 20 weights for two subsets.
PARAMS = {
    "Conv_0": {"kernel": grid(3, 3, 8, 16, unit=1 / 4), "bias": grid(16, unit=1 / 4)},
    "Dense_0": {"kernel": _rng.normal(size=(32, 24)).astype(np.float32), "bias": grid(24, unit=1)},
    "Dense_1": {"kernel": _rng.normal(size=(40, 10)).astype(np.float32)},
}
AXES = {
    "Conv_0": {"kernel": (0, 1, 2), "bias": None},
    "Dense_0": {"kernel": (0,), "bias": None},
    "Dense_1": {"kernel": (0,)},
}
GRADS = jax.tree.map(lambda w: grid(STEPS, *w.shape, unit=1 / 256), PARAMS)


def normalized_params(dtype=np.float32):
    """Normal weights of two layers, and a normalization that stays as it is."""
    rng = np.random.default_rng(0)

    def draw(*shape):
        return jax.numpy.asarray(rng.normal(size=shape), dtype)

    return {
        "Conv_0": {"bias": draw(40), "kernel": draw(3, 3, 10, 40)},
        "Dense_0": {"bias": draw(6), "kernel": draw(200, 6)},
        "LayerNorm_0": {
            "bias": jax.numpy.full(6, 5.0, dtype),
            "scale": jax.numpy.full(6, 7.0, dtype),
        },
    }


SGD, MOMENTUM = optax.sgd(0.5), optax.sgd(1.0, momentum=0.5)


class Optimizer(NamedTuple):
    """What the tests know of an optimizer. Called, it makes one.

    Attributes:
        make: `(inner, **options)`.
        injected: `(inner, **options)`: makes it with its hyperparameters in the state.
        hyperparameter: the name of one of these, and its value.
        step_name: its counter in the state.
        weights_name: its weights in the state.
        numbers: how many numbers its state has besides.
        link: makes it without an inner optimizer.
        follows_params: whether exact parameters have the ranking of `params`; else the state knows.
    """

    make: Callable[..., Any]
    injected: Callable[..., Any]
    hyperparameter: tuple[str, Any]
    step_name: str
    weights_name: str
    numbers: int
    link: Callable[..., Any] | None = None
    follows_params: bool = False

    def __call__(self, *inner, **options):
        return self.make(*inner, **options)


def inject(function, *static, **hyperparameters):
    """`function` with hyperparameters in the state, unless its caller gives others."""
    make = optax.inject_hyperparams(function, static_args=static)
    return lambda **options: make(**{**hyperparameters, **options})


INJECT_LAPERM = inject(p2t.laperm, "vectors", sync_period=3)
INJECT_SGPERM = inject(
    p2t.sgperm, "key", "inner", "priority", "vectors", "share_over",
    key=0, aggressiveness=0.3, partition_ratio=0.25,
)  # fmt: skip
OPTIMIZERS = {
    "laperm": Optimizer(
        make=lambda inner=SGD, **options: p2t.laperm(inner, 3, **options),
        link=lambda **options: p2t.synchronize(3, **options),
        injected=lambda inner=SGD, **options: INJECT_LAPERM(inner=inner, **options),
        hyperparameter=("sync_period", 3.0),
        step_name="sync_step",
        weights_name="theta_sorted",
        numbers=2,
        follows_params=True,
    ),
    "sgperm": Optimizer(
        make=lambda inner=MOMENTUM, **options: p2t.sgperm(0, 0.3, 0.25, inner=inner, **options),
        link=lambda **options: p2t.cycle_permutation(0, 0.3, 0.25, **options),
        injected=lambda inner=MOMENTUM, **options: INJECT_SGPERM(inner=inner, **options),
        hyperparameter=("aggressiveness", 0.3),
        step_name="sgperm_step",
        weights_name="theta",
        numbers=3,  # a counter, and two words of a key
    ),
}
FEEDBACK = functools.partial(OPTIMIZERS["laperm"], error_feedback=1.0)
TX = {name: make() for name, make in OPTIMIZERS.items()}


# Training


def step(params, state, grads, tx):
    updates, state = tx.update(grads, state, params)
    return optax.apply_updates(params, updates), state


@functools.cache
def jitted_step(tx):
    return jax.jit(functools.partial(step, tx=tx))


def train(step, params, state, grads=GRADS):
    """Runs `step` on every `grads[i]`; waits for each, which JAX needs on few cores.

    Without the wait, JAX 0.10.2 with more CPU devices than cores hangs in the collectives of a
    pmap, with any optimizer.
    """
    for i in range(len(jax.tree.leaves(grads)[0])):
        params, state = jax.block_until_ready(step(params, state, member(grads, i)))
    return params, state


def train_jit(tx, params=PARAMS, grads=GRADS):
    return train(jitted_step(tx), params, tx.init(params), grads)


def train_scan(tx, params=PARAMS, grads=GRADS):
    def body(carry, grads):
        return step(*carry, grads, tx), None

    return jax.lax.scan(body, (params, tx.init(params)), grads)[0]


@functools.cache
def expected(name):
    """Parameters, state, and exact permutation after the run, by the plainest of loops."""
    params, state = train_jit(TX[name])
    return params, state, p2t.permuted_params(state, params)


def member(tree, i, axis=0):
    return jax.tree.map(lambda x: np.take(np.asarray(x), i, axis), tree)


def stack(trees, axis=0):
    return jax.tree.map(lambda *x: np.stack(x, axis), *trees)


def weight_vectors_of(params):
    """Without what the inner optimizer trains alone."""
    return {layer: leaves["kernel"] for layer, leaves in params.items()}


def in_a_new_process(code, timeout=120, **env):
    """Runs Python code that may hang, or that needs another environment; returns its output."""
    path = os.pathsep.join([str(Path(p2t.__file__).parents[1]), str(Path(__file__).parent)])
    done = subprocess.run(
        [sys.executable, "-P", "-W", "error", "-c", code],
        env={**os.environ, "PYTHONPATH": path, **env},
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert not done.stderr, done.stderr
    return done.stdout.strip()


@contextlib.contextmanager
def config(option, value):
    """A setting of JAX for all threads; the context managers of JAX are for the calling one."""
    old = jax.config.values[option]
    jax.config.update(option, value)
    try:
        yield
    finally:
        jax.config.update(option, old)


def path_of(key_path):
    """The names on a path, in containers of any type: fields count as keys."""
    attributes = ("key", "name", "idx")
    return tuple(
        str(next(getattr(key, a) for a in attributes if hasattr(key, a))) for key in key_path
    )


# Assertions, beside those of chex


def assert_identical(tree, expected):
    """The same bits: not -0.0 for 0.0, not another dtype."""
    chex.assert_trees_all_equal_dtypes(tree, expected)
    chex.assert_trees_all_equal(bits(tree), bits(expected), strict=True)


def bits(tree):
    return jax.tree.map(lambda x: np.asarray(x).view(f"u{np.asarray(x).itemsize}"), tree)


def reordered(initial, phi, axes=AXES):
    """Section 3.1: the initial weights in the order of phi; phi where there are no axes."""

    def leaf(theta, phi, axes):
        if axes is None:
            return np.asarray(phi)
        theta_sorted = oracle.sort_weight_vectors(np.array(theta), axes)
        return oracle.synchronize(theta_sorted, np.asarray(phi), axes)

    return _map_with_axes(leaf, axes, initial, phi)


def assert_permuted(name, final, initial, params, axes=AXES):
    """`final` is what `permuted_params` promises of `params`."""
    chex.assert_trees_all_equal_structs(final, params)
    if name in OPTIMIZERS and OPTIMIZERS[name].follows_params:
        chex.assert_trees_all_equal(final, reordered(initial, params, axes))
        return

    def leaf(final, initial, params, axes):
        if axes is None:
            np.testing.assert_array_equal(final, params)
            return
        vectors = (np.moveaxis(np.asarray(x), axes, range(len(axes))) for x in (final, initial))
        final_rows, initial_rows = (x.reshape(-1, *x.shape[len(axes) :]) for x in vectors)
        np.testing.assert_array_equal(np.sort(final_rows, 0), np.sort(initial_rows, 0))
        # As often as its parameters were updated, an error of rounding.
        tolerance = 4 * float(jax.numpy.finfo(params.dtype).eps)
        chex.assert_trees_all_close(final, params, rtol=tolerance, atol=tolerance)

    _map_with_axes(leaf, axes, final, initial, params)


def _map_with_axes(function, axes, *trees):
    leaves = map(jax.tree.structure(trees[0]).flatten_up_to, (*trees, axes))
    results = [function(*leaf) for leaf in zip(*leaves, strict=True)]
    return jax.tree.unflatten(jax.tree.structure(trees[0]), results)


def uniform_limit(w):
    """The end of the interval that uniform weights are drawn from, nearly."""
    return float(abs(w).max())


def points(collection):
    """Of a scatter plot."""
    return np.ma.getdata(collection.get_offsets()).tolist()


def moved(tree, other):
    """The fraction of the weights of each kernel that are not the same in both trees."""
    return [
        float(np.mean(np.asarray(a) != np.asarray(b)))
        for a, b in zip(*map(jax.tree.leaves, (tree, other)), strict=True)
        if np.ndim(a) > 1
    ]


# The host: what knows how the library calls it stands here and nowhere else in the tests

# In the text of a compiled program.
DOORS = {"pure_callback": "xla_ffi_python_cpu_callback", "ffi": "p2t_jax.permute"}


def doors_in(compiled):
    """The ways in which a compiled program calls the host, one for each call in its text."""
    text = compiled.as_text()
    return [
        door
        for door, target in DOORS.items()
        for _ in range(text.count(f'custom_call_target="{target}"'))
    ]


def spy_on_the_host(monkeypatch):
    """One entry for each call of the host: (vectors, weights in each) of every leaf given to it."""
    from p2t_jax._host import by_ffi, by_pure_callback

    calls, lock, run = [], threading.Lock(), by_ffi.find_positions

    def spy(permutation, axes, operands, outs):
        shapes = []
        for array, leaf_axes in zip(outs, axes, strict=True):
            n = int(np.prod([array.shape[axis] for axis in leaf_axes]))
            shapes.append((array.size // n if n else 0, n))
        with lock:
            calls.append(tuple(shapes))
        run(permutation, axes, operands, outs)

    for door in (by_ffi, by_pure_callback):
        monkeypatch.setattr(door, "find_positions", spy)
    return calls


def shares(parts=1, params=PARAMS):
    """What one of `parts` devices is given: its share of each kernel's vectors, rounded up."""
    return tuple(
        (-(-w.shape[-1] // parts), w.size // w.shape[-1])
        for w in jax.tree.leaves(params)
        if w.ndim > 1
    )


# Cases


def slow(*values):
    """A case that goes another way than its neighbours in few lines: only the slow run has it."""
    return pytest.param(*values, marks=pytest.mark.slow)


# Processes


def run_in_a_forked_child(function):
    """Fails where the child fails, and where it hangs."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # JAX and Python warn of forks of processes with threads
        child = multiprocessing.get_context("fork").Process(target=function)
        child.start()
    child.join(60)
    assert child.exitcode == 0


def worker(*args, devices):
    """Starts distributed_worker.py, with this many CPU devices."""
    env = os.environ | {
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}",
        "PYTHONPATH": os.pathsep.join([str(TESTS.parent), os.environ.get("PYTHONPATH", "")]),
    }
    return subprocess.Popen(
        [sys.executable, "-X", "faulthandler", str(TESTS / "distributed_worker.py"), *args],
        env=env,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def wait_for(workers, seconds):
    """Fails where a worker fails, and where it hangs."""
    try:
        outputs = [process.communicate(timeout=seconds)[0] for process in workers]
    finally:
        for process in workers:
            process.kill()
    for process, output in zip(workers, outputs, strict=True):
        assert process.returncode == 0, output
