"""The two ways of ranking, on the host and on a device, give the same bits for any floats.

A program for one CPU ranks on the host. One that XLA partitions over a mesh ranks as accelerators
do, whatever the layout; that is the second way here.
"""

import math
import os

import helpers
import jax
import ml_dtypes
import numpy as np
import optax
import pytest
from helpers import bits
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

import p2t_jax as p2t

FLOATS = [np.float16, ml_dtypes.bfloat16, np.float32, np.float64]
SHAPES = [
    ((40, 7), (0,)),
    ((3, 3, 4, 5), (0, 1, 2)),
    ((6, 5, 4, 3), (0, 2)),
    ((1, 5), (0,)),
    ((0, 5), (0,)),
    ((5, 0), (0,)),
]
AXES = [axes for _, axes in SHAPES]


def special(rng, shape, dtype):
    """Ties, both zeros, infinities, and NaNs of either sign, among normal numbers."""
    values = [0.0, -0.0, np.inf, -np.inf, np.nan, -np.nan, 1.0, -1.0, 1.5, -1.5, 1e-3, 65504.0]
    mixed = np.where(rng.random(shape) < 0.5, rng.choice(values, shape), rng.normal(size=shape))
    return mixed.astype(dtype)


def sort_and_synchronize(initial, phi, axes, place):
    """Section 3.1, through the public interface: the sorted weights, and those in phi's order."""
    tx = p2t.laperm(optax.identity(), 1, vectors=axes)

    @jax.jit
    def run(initial, phi):
        state = tx.init(initial)
        return state[1].theta_sorted, p2t.permuted_params(state, phi)

    return run(*map(place, (initial, phi)))


def over_a_mesh(tree):
    mesh = jax.make_mesh((8,), ("x",), axis_types=(jax.sharding.AxisType.Auto,))
    return jax.device_put(tree, NamedSharding(mesh, P()))


def both_ways(initial, phi, axes, dtype, host_calls):
    with helpers.config("jax_enable_x64", np.dtype(dtype).itemsize == 8):
        host = jax.block_until_ready(sort_and_synchronize(initial, phi, axes, lambda tree: tree))
        assert len(host_calls) == 2
        device = jax.block_until_ready(sort_and_synchronize(initial, phi, axes, over_a_mesh))
        assert len(host_calls) == 2
    helpers.assert_identical(host, device)
    return host


def oracle(phi, theta_sorted, axes):
    """Section 3.1 in NumPy, whose sort is stable, ranks NaN last and -0.0 as 0.0."""
    last = tuple(range(-len(axes), 0))
    moved = np.moveaxis(phi, axes, last)
    split = moved.ndim - len(axes)
    shape = math.prod(moved.shape[:split]), math.prod(moved.shape[split:])
    order = np.argsort(moved.reshape(shape).astype(np.float64), axis=1, kind="stable")
    out = np.empty(shape, phi.dtype)
    np.put_along_axis(out, order, np.moveaxis(theta_sorted, axes, last).reshape(shape), 1)
    return np.moveaxis(out.reshape(moved.shape), last, axes)


@pytest.mark.filterwarnings("ignore:vectors. the weight vectors of:UserWarning")
@pytest.mark.parametrize("dtype", FLOATS)
def test_any_shape(dtype, host_calls):
    rng = np.random.default_rng(0)
    initial, phi = ([special(rng, shape, dtype) for shape, _ in SHAPES] for _ in range(2))
    theta_sorted, permuted = both_ways(initial, phi, AXES, dtype, host_calls)
    for i, axes in enumerate(AXES):
        assert permuted[i].dtype == dtype
        want = oracle(phi[i], np.asarray(theta_sorted[i]), axes)
        helpers.assert_identical(np.asarray(permuted[i]), want)


@pytest.mark.parametrize("dtype", FLOATS)
def test_any_bit_pattern(dtype, host_calls):
    """Subnormal numbers are among these."""
    unsigned = np.dtype(f"u{np.dtype(dtype).itemsize}")
    rng, sign = np.random.default_rng(0), 1 << 8 * unsigned.itemsize - 1
    any_bits = rng.integers(0, 2 * sign - 1, (15, 4096), dtype=np.uint64, endpoint=True)
    subnormal = rng.integers(0, 64, (1, 4096), dtype=np.uint64)
    subnormal |= rng.integers(0, 2, subnormal.shape, dtype=np.uint64) * np.uint64(sign)
    patterns = np.vstack([any_bits, subnormal]).astype(unsigned)
    # The payload of a NaN is lost where XLA computes with bfloat16, its sign is not.
    infinity, nan = (bits(np.asarray(x, dtype)) for x in (np.inf, np.nan))
    is_nan = patterns & ~unsigned.type(sign) > infinity
    patterns[is_nan] = patterns[is_nan] & unsigned.type(sign) | nan
    phi = patterns.view(dtype)
    both_ways(phi, phi, 1, dtype, host_calls)


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="no way to take cores away")
def test_a_single_core_does_not_hang():
    """`jax.pure_callback` does, before JAX 0.12, where the input of a callback is not ready."""
    done = helpers.in_a_new_process(
        """
import os
os.sched_setaffinity(0, [min(os.sched_getaffinity(0))])
import jax, jax.numpy as jnp, optax, p2t_jax as p2t
params, big = jax.random.normal(jax.random.key(0), (784, 500)), jnp.ones((1000, 1000))
later = jax.jit(lambda params, big: params + 0 * (big @ big @ big).sum())
for tx in (p2t.laperm(optax.sgd(0.1), 1, vectors=(0,)), p2t.sgperm(0, vectors=(0,))):
    state, update = tx.init(params), jax.jit(tx.update)
    for _ in range(10):
        updates, state = update(params, state, later(params, big))
    jax.block_until_ready(updates)
print("done")
""",
        XLA_FLAGS="",
    )
    assert done.split() == ["done"]


@pytest.mark.parametrize("weights", [1, 100, 500])
def test_very_large_parameters_are_done_piecewise(weights, name, monkeypatch):
    """With the limit moved down: every parameter of the suite is as large as that."""
    from p2t_jax._host import by_pure_callback

    params, _, exact = helpers.expected(name)
    monkeypatch.setattr(by_pure_callback, "WEIGHTS_PER_CALLBACK", weights)
    tx = helpers.OPTIMIZERS[name]()  # anew, since programs are compiled once for each
    trained, state = helpers.train_jit(tx)
    helpers.assert_identical(trained, params)
    helpers.assert_identical(p2t.permuted_params(state, trained), exact)
