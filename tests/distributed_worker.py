"""What tests run in processes of their own, because it would hang where it fails.

python distributed_worker.py train PORT PROCESS_ID NUM_PROCESSES RESULTS.npz
python distributed_worker.py stress laperm|sgperm
"""

import functools
import sys

import helpers
import jax
import jax.numpy as jnp
import numpy as np
import optax
from helpers import PARAMS, TX
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P
from layouts import split, state_specs, whole

import p2t_jax as p2t


def train(port, process_id, num_processes, results):
    """Trains over the devices of all processes, in every way that needs no other process's help."""
    jax.distributed.initialize(f"127.0.0.1:{port}", int(num_processes), int(process_id))
    assert jax.process_count() == int(num_processes)
    assert jax.device_count() == int(num_processes) * jax.local_device_count()
    mesh = jax.make_mesh((jax.device_count(),), ("x",), axis_types=(AxisType.Auto,))

    def put(tree, specs):
        def leaf(x, spec):
            sharding = NamedSharding(mesh, spec)
            return jax.make_array_from_callback(x.shape, sharding, np.asarray(x).__getitem__)

        return jax.tree.map(leaf, tree, specs)

    arrays = {}

    def run(title, name, specs, wrap=lambda step, specs: step):
        tx = TX[name]
        both = specs, state_specs(specs, tx)
        step = jax.jit(wrap(functools.partial(helpers.step, tx=tx), both))
        final, _ = helpers.train(
            lambda params, state, grads: step(params, state, put(grads, specs)),
            put(PARAMS, specs),
            put(tx.init(PARAMS), both[1]),
        )
        everywhere = jax.jit(lambda tree: tree, out_shardings=NamedSharding(mesh, P()))
        leaves = jax.tree.leaves(everywhere(final))
        arrays.update({f"{name}/{title}/{i}": w for i, w in enumerate(leaves)})

    def shard_map(step, both):
        return jax.shard_map(step, mesh=mesh, in_specs=(*both, both[0]), out_specs=both)

    run("split", "laperm", jax.tree.map(split, PARAMS))
    run("whole", "laperm", jax.tree.map(whole, PARAMS))
    run("shard_map", "laperm", jax.tree.map(whole, PARAMS), shard_map)
    run("whole", "sgperm", jax.tree.map(whole, PARAMS))
    if process_id == "0":
        np.savez(results, **arrays)


def stress(name):
    """Calls the host on all devices at once, hundreds of times, between collectives.

    121 KiB a leaf: from about 100 on, a callback that waits for XLA's threads hangs (JAX 0.10).
    """
    steps, size, devices = 200, 176, jax.device_count()
    assert devices == 8
    params = {"kernel": helpers.grid(size, size, unit=1 / 64)}
    grads = {"kernel": helpers.grid(size, size, unit=1 / 256)}
    offsets = 2 * np.arange(devices, dtype=np.float32) - (devices - 1)  # their mean is exact
    if name == "laperm":
        tx, alone = 2 * [p2t.laperm(optax.sgd(0.5), sync_period=1)]
    else:
        make = functools.partial(p2t.sgperm, 0, 0.1, 0.1, inner=optax.sgd(1.0))
        tx, alone = make(axis_name="x"), make()

    def step(params, state, i, offset):
        local = jax.tree.map(lambda g: jnp.roll(g, i) + offset, grads)
        return helpers.step(params, state, jax.lax.pmean(local, "x"), tx)

    def scan(step, params, state):
        body = lambda carry, i: (step(*carry, i), None)  # noqa: E731
        return jax.lax.scan(body, (params, state), jnp.arange(steps))[0]

    def step_alone(params, state, i):
        return helpers.step(params, state, jax.tree.map(lambda g: jnp.roll(g, i), grads), alone)

    expected, _ = jax.jit(functools.partial(scan, step_alone))(params, alone.init(params))

    mesh = jax.make_mesh((devices,), ("x",), axis_types=(AxisType.Auto,))
    sharded = jax.shard_map(
        lambda params, state, offset: scan(lambda *args: step(*args, offset[0]), params, state),
        mesh=mesh,
        in_specs=(P(), P(), P("x")),
        out_specs=(P(), P()),
    )
    final, _ = jax.jit(sharded)(params, tx.init(params), offsets)
    for shard in final["kernel"].addressable_shards:
        np.testing.assert_array_equal(shard.data, expected["kernel"])

    mapped = jax.pmap(step, "x", in_axes=(0, 0, None, 0), donate_argnums=(0, 1))
    replicas = jax.pmap(lambda _: params)(offsets)
    state = jax.pmap(tx.init)(replicas)
    for i in range(steps):  # waits for each: see `helpers.train`
        replicas, state = jax.block_until_ready(mapped(replicas, state, i, offsets))
    for replica in np.asarray(replicas["kernel"]):
        np.testing.assert_array_equal(replica, expected["kernel"])


if __name__ == "__main__":
    {"train": train, "stress": stress}[sys.argv[1]](*sys.argv[2:])
    print("done")
