"""The training run that all devices must agree on; as a script, what needs other processes.

    python distributed_worker.py train PORT PROCESS_ID NUM_PROCESSES RESULTS.npz
    python distributed_worker.py stress

All arithmetic of the run is exact, or the same on every path: how many devices there are, and how
the arrays lie on them, must not change a single bit of the parameters.
"""

import sys
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import p2t_jax as p2t

STEPS = 7
DEVICES = 8

_rng = np.random.default_rng(0)


def grid(*shape: int, unit: float) -> np.ndarray:
    """Multiples of `unit` between -2 and 2: sums of them are exact, and many are equal."""
    bound = int(2 / unit)
    return (_rng.integers(-bound, bound, shape) * unit).astype(np.float32)


PARAMS: dict[str, Any] = {
    "Conv_0": {"kernel": grid(3, 3, 8, 16, unit=1 / 4), "bias": grid(16, unit=1 / 4)},
    "Dense_0": {
        "kernel": _rng.normal(size=(16, 32)).astype(np.float32),
        "bias": np.zeros(32, np.float32),
    },
}
GRADS = jax.tree.map(lambda w: grid(STEPS, *w.shape, unit=1 / 256), PARAMS)
TX = p2t.laperm(optax.sgd(0.5), sync_period=3)
SGPERM = p2t.sgperm(0, aggressiveness=0.3, partition_ratio=0.25)


def step(params: Any, state: Any, grads: Any, tx: Any = TX) -> tuple[Any, Any]:
    updates, state = tx.update(grads, state, params)
    return optax.apply_updates(params, updates), state


def train(step_fn: Any, params: Any, state: Any, grads: Any) -> tuple[Any, Any]:
    """Runs `step_fn` on every `grads[i]`; waits for each, as JAX on few cores wants it.

    Without the wait, JAX 0.10.2 with more CPU devices than cores hangs in the collectives of a
    pmap, whatever the optimizer.
    """
    for i in range(len(jax.tree.leaves(grads)[0])):
        params, state = jax.block_until_ready(step_fn(params, state, member(grads, i)))
    return params, state


def member(tree: Any, i: int, axis: int = 0) -> Any:
    return jax.tree.map(lambda x: np.take(np.asarray(x), i, axis), tree)


def whole(w: Any, axes: Any = "x") -> P:
    """Splits the vectors of a kernel among devices, none of them within; biases are everywhere."""
    return P(*[None] * (w.ndim - 1), axes) if w.ndim > 1 else P()


def split(w: Any, inputs: Any = "x", outputs: Any = None) -> P:
    """Splits every vector of a kernel among devices."""
    return P(*[None] * (w.ndim - 2), inputs, outputs) if w.ndim > 1 else P()


def state_specs(specs: Any, tx: Any = TX, params: Any = PARAMS) -> Any:
    """PartitionSpecs of the optimizer's state, as Optax gives them to a user."""
    return optax.tree.map_params(
        tx,
        lambda _, spec: spec,
        jax.eval_shape(tx.init, params),
        specs,
        transform_non_params=lambda _: P(),
    )


def _train(port: str, process_id: str, num_processes: str, results: str) -> None:
    """Trains over the devices of all processes, in every way that needs no other process's help."""
    jax.distributed.initialize(f"127.0.0.1:{port}", int(num_processes), int(process_id))
    assert jax.process_count() == int(num_processes)
    assert jax.device_count() == int(num_processes) * jax.local_device_count()
    mesh = jax.make_mesh((jax.device_count(),), ("x",), axis_types=(AxisType.Auto,))

    def put(tree: Any, specs: Any) -> Any:
        return jax.tree.map(
            lambda x, spec: jax.make_array_from_callback(
                x.shape, NamedSharding(mesh, spec), np.asarray(x).__getitem__
            ),
            tree,
            specs,
        )

    def run(name: str, step_fn: Any, specs: Any, tx: Any = TX) -> None:
        step_fn, params = jax.jit(step_fn), put(PARAMS, specs)
        final, _ = train(
            lambda params, state, grads: step_fn(params, state, put(grads, specs)),
            params,
            put(tx.init(PARAMS), state_specs(specs, tx)),
            GRADS,
        )
        everywhere = jax.jit(lambda tree: tree, out_shardings=NamedSharding(mesh, P()))
        arrays.update({f"{name}/{i}": w for i, w in enumerate(jax.tree.leaves(everywhere(final)))})

    arrays: dict[str, Any] = {}
    specs = jax.tree.map(split, PARAMS)
    run("split", step, specs)
    specs = jax.tree.map(whole, PARAMS)
    run("whole", step, specs)
    run("sgperm", partial(step, tx=SGPERM), specs, SGPERM)
    every_spec = (specs, state_specs(specs))
    sharded = jax.shard_map(step, mesh=mesh, in_specs=(*every_spec, specs), out_specs=every_spec)
    run("shard_map", sharded, specs)
    if process_id == "0":
        np.savez(results, **arrays)


def _stress() -> None:
    """Synchronizes on all devices at once, 200 times, between collectives that wait for all."""
    assert jax.device_count() == DEVICES
    steps, size = 200, 176  # 121 KiB: from about 100 on, jax.pure_callback hangs here (JAX 0.10)
    params = {"kernel": grid(size, size, unit=1 / 64)}
    grads = {"kernel": grid(size, size, unit=1 / 256)}
    tx = p2t.laperm(optax.sgd(0.5), sync_period=1)
    offsets = 2 * np.arange(DEVICES, dtype=np.float32) - (DEVICES - 1)

    def step_with(mean: Any, params: Any, state: Any, i: Any, offset: Any) -> Any:
        local = jax.tree.map(lambda g: jnp.roll(g, i) + offset, grads)
        return step(params, state, mean(local), tx)

    def scan(mean: Any, params: Any, state: Any, offset: Any) -> Any:
        def body(carry: Any, i: Any) -> Any:
            return step_with(mean, *carry, i, offset), None

        return jax.lax.scan(body, (params, state), jnp.arange(steps))[0]

    def pmean(tree: Any) -> Any:
        return jax.lax.pmean(tree, "x")

    expected, _ = jax.jit(lambda p, s: scan(lambda g: g, p, s, 0.0))(params, tx.init(params))

    mesh = jax.make_mesh((DEVICES,), ("x",), axis_types=(AxisType.Auto,))
    sharded = jax.shard_map(
        lambda params, state, offset: scan(pmean, params, state, offset[0]),
        mesh=mesh,
        in_specs=(P(), P(), P("x")),
        out_specs=(P(), P()),
    )
    final, _ = jax.jit(sharded)(params, tx.init(params), offsets)
    for shard in final["kernel"].addressable_shards:
        np.testing.assert_array_equal(shard.data, expected["kernel"])

    mapped = jax.pmap(
        lambda *args: step_with(pmean, *args), "x", in_axes=(0, 0, None, 0), donate_argnums=(0, 1)
    )
    replicas = jax.pmap(lambda _: params)(offsets)
    state = jax.pmap(tx.init)(replicas)
    for i in range(steps):
        replicas, state = jax.block_until_ready(mapped(replicas, state, i, offsets))
    for replica in np.asarray(replicas["kernel"]):
        np.testing.assert_array_equal(replica, expected["kernel"])


if __name__ == "__main__":
    {"train": _train, "stress": _stress}[sys.argv[1]](*sys.argv[2:])
    print("done")
