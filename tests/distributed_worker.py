"""What tests run in processes of their own, because it would hang where it fails.

python distributed_worker.py train PORT PROCESS_ID NUM_PROCESSES RESULTS.npz
python distributed_worker.py train_local PORT PROCESS_ID NUM_PROCESSES RESULTS.npz
python distributed_worker.py stress laperm|sgperm [ffi]
python distributed_worker.py local
"""

import functools
import sys

import helpers
import jax
import jax.numpy as jnp
import numpy as np
import optax
from helpers import OPTIMIZERS, PARAMS, TX
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P
from layouts import split, state_specs, whole
from local_devices import first, gradients, over_a_mesh, stacked

import p2t_jax as p2t


def join(port, process_id, num_processes):
    jax.distributed.initialize(f"127.0.0.1:{port}", int(num_processes), int(process_id))
    assert jax.process_count() == int(num_processes)
    assert jax.device_count() == int(num_processes) * jax.local_device_count()


def train(port, process_id, num_processes, results):
    """Trains over the devices of all processes, in every way that needs no other process's help."""
    join(port, process_id, num_processes)
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


def train_local(port, process_id, num_processes, results):
    """Every device looks ahead alone; saves its parameters, and what all then agree on."""
    join(port, process_id, num_processes)
    tx = OPTIMIZERS["laperm"](average_over="batch")
    start, step, put = over_a_mesh(tx, PARAMS)
    (params, state), grads = start(PARAMS), gradients(jax.device_count())
    specs = jax.tree.map(lambda x: x.sharding.spec, (state, params))
    mesh = jax.tree.leaves(params)[0].sharding.mesh
    exact = jax.shard_map(
        lambda *args: stacked(p2t.permuted_params(*first(args))),
        mesh=mesh, in_specs=specs, out_specs=P("batch"),
    )  # fmt: skip
    everywhere = jax.jit(lambda *args: args, out_shardings=NamedSharding(mesh, P()))
    arrays = {}
    for i in range(helpers.STEPS):
        params, state = step(params, state, put(helpers.member(grads, i)))
        found = everywhere(params, jax.jit(exact)(state, params))
        for what, tree in zip(("params", "final"), jax.block_until_ready(found), strict=True):
            arrays |= {f"{i}/{what}/{j}": w for j, w in enumerate(jax.tree.leaves(tree))}
    if process_id == "0":
        np.savez(results, **arrays)


def local():
    """Hundreds of steps of devices that look ahead alone: a synchronization in every other one."""
    tx = p2t.laperm(optax.sgd(0.5), 2, average_over="batch")
    params = {"kernel": helpers.grid(176, 176, unit=1 / 64)}
    offsets = np.arange(jax.device_count(), dtype=np.float32)

    def step(params, state, offset):
        grads = jax.tree.map(lambda w: jnp.sin(100 * w + offset), params)
        return helpers.step(params, state, grads, tx)

    start, step_on_mesh, put = over_a_mesh(tx, params)
    mapped = jax.pmap(step, "batch", donate_argnums=(0, 1))
    replicas, states = jax.pmap(lambda _: (params, tx.init(params)))(offsets)
    sharded, state = start(params)
    for _ in range(300):  # waits for each: see `helpers.train`
        replicas, states = jax.block_until_ready(mapped(replicas, states, offsets))
        grads = put({"kernel": np.sin(100 * np.asarray(sharded["kernel"]))})
        sharded, state = jax.block_until_ready(step_on_mesh(sharded, state, grads))
    for end, now in ((states, replicas), (state, sharded)):
        agreed = np.asarray(end[1].theta_synchronized["kernel"])
        np.testing.assert_array_equal(agreed, np.stack([agreed[0]] * len(offsets)))
        assert p2t.is_permutation({"kernel": agreed[0]}, params)
        np.testing.assert_allclose(np.asarray(now["kernel"]), agreed, rtol=0, atol=1e-6)


def stress(name, door=None):
    """Calls the host on all devices at once, hundreds of times, between collectives.

    121 KiB a leaf: from about 100 on, a callback that waits for XLA's threads hangs (JAX 0.10).
    """
    steps, size, devices = 300, 176, jax.device_count()
    assert devices == 8
    params = {"kernel": helpers.grid(size, size, unit=1 / 64)}
    grads = {"kernel": helpers.grid(size, size, unit=1 / 256)}
    offsets = 2 * np.arange(devices, dtype=np.float32) - (devices - 1)  # their mean is exact
    if name == "laperm":
        tx, alone = 2 * [p2t.laperm(optax.sgd(0.5), sync_period=1, host_callback=door)]
    else:
        make = functools.partial(p2t.sgperm, 0, 0.1, 0.1, inner=optax.sgd(1.0), host_callback=door)
        tx, alone = make(share_over="x"), make()

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
    functions = {f.__name__: f for f in (train, train_local, stress, local)}
    functions[sys.argv[1]](*sys.argv[2:])
    print("done")
