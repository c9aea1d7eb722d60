"""SGPerm on many devices: the same parameters, each device searching its share of the rows."""

import contextlib
import functools
import math
import subprocess
import sys
import threading

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import p2t_jax as p2t
from p2t_jax._host import per_row as host

VECTORS = {"kernel": 0, "conv": (0, 1, 2), "bias": 0}
ROWS = 64 + 10 + 1
SHARE = (
    64 // 8 + 16 // 8 + 1
)  # of 8 devices: 10 rows are filled up to 16, a single row is everyone's
STEPS = 2


@functools.cache
def params():
    keys = jax.random.split(jax.random.key(0), 3)
    return {
        "kernel": jax.random.uniform(keys[0], (48, 64)),
        "conv": jax.random.uniform(keys[1], (3, 3, 4, 10)),
        "bias": jax.random.uniform(keys[2], (50,)),
    }


def grads():
    keys = jax.random.split(jax.random.key(1), STEPS)
    return [
        jax.tree.map(lambda p, key=key: jax.random.normal(key, p.shape), params()) for key in keys
    ]


def make_step(axis_name=None):
    tx = p2t.sgperm(3, 0.3, 0.2, vectors=VECTORS, axis_name=axis_name)

    def step(params, state, grads):
        updates, state = tx.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    return tx, step


def run(step, params, state, grads):
    for g in grads:
        params, state = step(params, state, g)
    return jax.block_until_ready((params, state))


@functools.cache
def expected():
    tx, step = make_step()
    final, state = run(jax.jit(step), params(), tx.init(params()), grads())
    return p2t.permuted_params(state, final)


def check(state, final):
    exact = p2t.permuted_params(state, final)
    jax.tree.map(np.testing.assert_array_equal, exact, expected())
    assert p2t.is_permutation(exact, params(), vectors=VECTORS)


@pytest.fixture
def rows_of_calls(monkeypatch):
    """The number of rows that each call of the host was given."""
    expected()
    calls, lock, original = [], threading.Lock(), host._run

    def counted(kernel, axes, first, *others):
        rows = sum(
            x.size // math.prod(x.shape[i] for i in a) for x, a in zip(first, axes, strict=True)
        )
        with lock:
            calls.append(rows)
        return original(kernel, axes, first, *others)

    monkeypatch.setattr(host, "_run", counted)
    return calls


def replicate(tree):
    return jax.tree.map(lambda x: jnp.stack([x] * 8), tree)


@pytest.mark.parametrize(("axis_name", "rows"), [(None, ROWS), ("batch", SHARE)])
def test_pmap(axis_name, rows, rows_of_calls):
    tx, step = make_step(axis_name)
    final, state = run(
        jax.pmap(step, axis_name="batch"),
        replicate(params()),
        replicate(tx.init(params())),
        [replicate(g) for g in grads()],
    )
    assert rows_of_calls == [rows] * 8 * STEPS
    for device in (0, 5):
        check(*jax.tree.map(lambda x, device=device: x[device], (state, final)))


@pytest.mark.parametrize("axis_type", [AxisType.Auto, AxisType.Explicit])
@pytest.mark.parametrize(("axis_name", "rows"), [(None, ROWS), (("x", "y"), SHARE)])
def test_shard_map_over_replicated_parameters(axis_type, axis_name, rows, rows_of_calls):
    mesh = jax.make_mesh((4, 2), ("x", "y"), axis_types=(axis_type,) * 2)
    tx, step = make_step(axis_name)
    sharded = jax.jit(jax.shard_map(step, mesh=mesh, in_specs=P(), out_specs=P()))
    final, state = run(sharded, params(), tx.init(params()), grads())
    assert rows_of_calls == [rows] * 8 * STEPS
    check(state, final)


@pytest.mark.parametrize("in_context", [False, True])
@pytest.mark.parametrize("axis_type", [AxisType.Auto, AxisType.Explicit])
@pytest.mark.parametrize("spec", [P(None, "y"), P("x", None), P()])
def test_a_mesh(spec, axis_type, in_context, rows_of_calls):
    mesh = jax.make_mesh((4, 2), ("x", "y"), axis_types=(axis_type,) * 2)
    shardings = jax.tree.map(lambda x: NamedSharding(mesh, spec if x.ndim == 2 else P()), params())
    tx, step = make_step()
    with jax.set_mesh(mesh) if in_context else contextlib.nullcontext():
        placed = jax.device_put(params(), shardings)
        # With auto axes XLA chooses the layout of what leaves a jit, if nobody else does.
        out = None if axis_type is AxisType.Explicit else (shardings, None)
        step = jax.jit(step, out_shardings=out)
        state = jax.jit(tx.init)(placed)
        final, state = run(step, placed, state, [jax.device_put(g, shardings) for g in grads()])
        assert rows_of_calls == [SHARE] * 8 * STEPS
        check(state, final)
        for name, sharding in shardings.items():
            assert final[name].sharding.is_equivalent_to(sharding, final[name].ndim)


STRESS = """
import jax, jax.numpy as jnp, numpy as np, optax, p2t_jax as p2t
initial = {"kernel": jax.random.uniform(jax.random.key(0), (512, 160))}
tx = p2t.sgperm(0, 0.1, 0.1, axis_name="d")

def step(params, state, key):
    key = jax.random.fold_in(key, jax.lax.axis_index("d"))
    grads = jax.lax.pmean({"kernel": jax.random.normal(key, (512, 160))}, "d")
    updates, state = tx.update(grads, state, params)
    params = optax.apply_updates(params, updates)
    return params, state, jax.lax.psum(jnp.abs(updates["kernel"]).sum(), "d")

step = jax.pmap(step, axis_name="d")
stack = lambda tree: jax.tree.map(lambda x: jnp.stack([x] * 8), tree)
params, state = stack(initial), stack(tx.init(initial))
for i in range(300):
    params, state, _ = step(params, state, stack(jax.random.key_data(jax.random.key(i))))
state, params = jax.tree.map(lambda x: np.asarray(x)[3], (state, params))
assert p2t.is_permutation(p2t.permuted_params(state, params), initial)
print("done")
"""


def test_hundreds_of_steps_with_collectives_around_the_callback():
    """In a process of its own: a deadlock has to end."""
    done = subprocess.run(
        [sys.executable, "-c", STRESS], capture_output=True, text=True, timeout=300, check=False
    )
    assert done.stdout == "done\n", done.stderr
