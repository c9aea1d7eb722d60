"""Many devices: the same parameters to the bit, on whatever devices and in whatever layout.

Where no weight vector is split, LAPerm's synchronization needs no communication. Where a program
runs device by device (pmap, shard_map), each device calls the host itself; where XLA partitions it,
SGPerm gives each device its share of the vectors.
"""

import contextlib
import functools
import socket

import helpers
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from helpers import GRADS, OPTIMIZERS, PARAMS, STEPS, TX, assert_identical, expected, member, shares
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P
from layouts import (
    AUTO,
    DEVICES,
    EXPLICIT,
    LAYOUTS,
    WHOLE,
    assert_same_shardings,
    collectives,
    make_mesh,
    put,
    state_specs,
    whole,
)

import p2t_jax as p2t


def step_of(tx):
    return functools.partial(helpers.step, tx=tx)


def in_context(mesh, kind):
    """Explicit axes ask for their mesh in context."""
    return jax.set_mesh(mesh) if kind == EXPLICIT else contextlib.nullcontext()


def expected_calls(name, parts=1, devices=DEVICES):
    """Of the host, over the whole run, if each device has 1 / parts of the vectors."""
    times = STEPS // 3 if name == "laperm" else STEPS
    return [shares(parts)] * devices * times


@pytest.fixture(autouse=True)
def _before_spying(request):
    """The run that all are compared with is not counted."""
    if "name" in request.fixturenames:
        expected(request.getfixturevalue("name"))


# jit, over a mesh


@pytest.mark.parametrize(
    ("mode", "layout"),
    [
        ("auto", "replicated"),
        helpers.slow("auto", "whole on x"),
        ("auto", "split"),
        helpers.slow("auto, mesh in context", "whole"),
        ("auto, mesh in context", "split and shared"),
        helpers.slow("explicit", "whole on x"),
        ("explicit", "split and shared"),
    ],
)
def test_jit_over_a_mesh(mode, layout, name, host_calls):
    shape, spec = LAYOUTS[layout]
    mesh, tx = make_mesh(shape, EXPLICIT if mode == "explicit" else AUTO), TX[name]
    specs = jax.tree.map(spec, PARAMS)
    with contextlib.nullcontext() if mode == "auto" else jax.set_mesh(mesh):
        initial = put(PARAMS, mesh, specs)
        first = put(tx.init(PARAMS), mesh, state_specs(specs, tx))
        grads = put(member(GRADS, 0), mesh, specs)
        out = None
        if name == "sgperm" and mode != "explicit":
            # With auto axes XLA chooses the layout of what a host call has made, if nobody else.
            out = jax.tree.map(lambda x: x.sharding, (initial, first))
        step = jax.jit(step_of(tx), out_shardings=out).lower(initial, first, grads).compile()
        host_calls.clear()
        params, state = helpers.train(
            lambda p, s, g: step(p, s, put(g, mesh, specs)), initial, first
        )
    assert_identical(params, expected(name)[0])
    assert_same_shardings((params, state), (initial, first))
    if mode == "explicit":
        assert jax.tree.map(jax.typeof, state) == jax.tree.map(jax.typeof, first)
    if name == "laperm":
        # A callback would gather everything on one device.
        assert not host_calls
        assert not helpers.doors_in(step)
        # Where vectors are split there must be some, or this test would not know one.
        assert bool(collectives(step)) == (layout not in WHOLE)
    else:
        assert host_calls == expected_calls(name, parts=8)


@pytest.mark.parametrize("kind", [AUTO, EXPLICIT])
def test_init_keeps_shardings(kind, name):
    mesh, tx = make_mesh({"x": 4, "y": 2}, kind), TX[name]
    with in_context(mesh, kind):
        params = put(PARAMS, mesh, jax.tree.map(whole, PARAMS))
        compiled = jax.jit(tx.init).lower(params).compile()
        for state in (tx.init(params), compiled(params)):
            weights = optax.tree.get(state, OPTIMIZERS[name].weights_name)
            assert_same_shardings(weights, params)
            assert_identical(state, tx.init(PARAMS))
    assert not collectives(compiled)


@pytest.mark.parametrize(
    ("layout", "kind"), [("whole on x", AUTO), ("whole on x", EXPLICIT), ("split", AUTO)]
)
def test_permuted_params_over_a_mesh(layout, kind, name):
    shape, spec = LAYOUTS[layout]
    mesh, specs = make_mesh(shape, kind), jax.tree.map(spec, PARAMS)
    params, state, final = expected(name)
    with in_context(mesh, kind):
        initial = put(PARAMS, mesh, specs)
        state = put(state, mesh, state_specs(specs, TX[name]))
        params = put(params, mesh, specs)
        compiled = jax.jit(p2t.permuted_params).lower(state, params).compile()
        permuted = compiled(state, params)
        is_permutation = jax.jit(p2t.is_permutation)
        assert is_permutation(permuted, initial)
        assert not is_permutation(params, initial)
    assert_identical(permuted, final)
    if layout in WHOLE:
        assert_same_shardings(permuted, initial)
        assert not collectives(compiled)


# shard_map


@pytest.mark.parametrize("kind", [AUTO, EXPLICIT])
@pytest.mark.parametrize(
    ("name", "layout", "axis_name"),
    [
        ("laperm", "replicated", None),
        ("laperm", "whole on x", None),
        ("sgperm", "replicated", None),
        ("sgperm", "replicated", "x"),
    ],
)
def test_shard_map(name, layout, axis_name, kind, host_calls):
    shape, spec = LAYOUTS[layout]
    tx = OPTIMIZERS[name](share_over=axis_name) if axis_name else TX[name]
    mesh, specs = make_mesh(shape, kind), jax.tree.map(spec, PARAMS)
    both = (specs, state_specs(specs, tx))
    with in_context(mesh, kind):
        initial = put(PARAMS, mesh, specs)
        grads = put(member(GRADS, 0), mesh, specs)
        init = jax.jit(jax.shard_map(tx.init, mesh=mesh, in_specs=(specs,), out_specs=both[1]))
        mapped = jax.shard_map(step_of(tx), mesh=mesh, in_specs=(*both, specs), out_specs=both)
        first = jax.block_until_ready(init(initial))
        host_calls.clear()
        step = jax.jit(mapped).lower(initial, first, grads).compile()
        params, state = helpers.train(
            lambda p, s, g: step(p, s, put(g, mesh, specs)), initial, first
        )
    assert_identical(params, expected(name)[0])
    assert_same_shardings((params, state), (initial, first))
    assert bool(collectives(step)) == bool(axis_name)
    if layout == "whole on x":  # the third kernel, of ten vectors, is everywhere
        quarters, all_ = shares(4), shares()
        assert host_calls == [(*quarters[:2], all_[2])] * DEVICES * (STEPS // 3)
    else:
        assert host_calls == expected_calls(name, parts=8 if axis_name else 1)


def test_each_shard_of_a_shard_map_is_permuted_within_itself():
    """SGPerm sees only the device's vectors: another partition, but a permutation all the same."""
    tx, mesh, specs = TX["sgperm"], make_mesh({"x": 8}), jax.tree.map(whole, PARAMS)
    both = (specs, state_specs(specs, tx))
    step = jax.shard_map(step_of(tx), mesh=mesh, in_specs=(*both, specs), out_specs=both)
    params, state = helpers.train(jax.jit(step), PARAMS, tx.init(PARAMS))
    final = p2t.permuted_params(state, params)
    helpers.assert_permuted("sgperm", final, PARAMS, params)
    assert min(helpers.moved(final, PARAMS)) > 0.3


@pytest.mark.parametrize("inner", [None, {"y"}])
def test_shard_map_over_some_axes(inner, host_calls):
    """Over x alone, y is the partitioner's, which must not meet a callback.

    With a second shard_map over y inside, no axis is.
    """
    mesh, tx = make_mesh({"x": 4, "y": 2}), TX["laperm"]

    def mapped(fn, axis, **kwargs):
        specs = jax.tree.map(functools.partial(whole, axes=axis), PARAMS)
        both = (specs, state_specs(specs, tx))
        return jax.shard_map(
            fn, axis_names={axis}, in_specs=(*both, specs), out_specs=both, **kwargs
        )

    step = mapped(step_of(tx), "y") if inner else step_of(tx)
    step = jax.jit(mapped(step, "x", mesh=mesh))
    specs = jax.tree.map(functools.partial(whole, axes=("x", "y")), PARAMS)
    initial = put(PARAMS, mesh, specs)
    first = jax.jit(tx.init)(initial)
    params, state = helpers.train(step, initial, first)
    assert_identical(params, expected("laperm")[0])
    assert_same_shardings((params, state), (initial, first))
    compiled = step.lower(params, state, put(member(GRADS, 0), mesh, specs)).compile()
    assert not collectives(compiled)
    assert bool(helpers.doors_in(compiled)) == bool(inner)
    assert bool(host_calls) == bool(inner)


@pytest.mark.parametrize("first", ["shard_map", "jit"])
def test_shard_map_beside_the_partitioner(first, name):
    """The same shapes in one program, on each device and across them."""
    mesh = make_mesh({"x": 8})
    params = {"kernel": PARAMS["Dense_0"]["kernel"]}
    tx = p2t.laperm(optax.sgd(0.5), sync_period=1) if name == "laperm" else TX[name]

    def step(params, state):
        return helpers.step(params, state, jax.tree.map(jnp.sin, params), tx)[0]

    ways = [jax.shard_map(step, mesh=mesh, in_specs=P(), out_specs=P()), step] * 2
    program = jax.jit(lambda *args: [way(*args) for way in ways[first == "jit" :]])
    alone = jax.jit(step)(params, tx.init(params))
    params = put(params, mesh, jax.tree.map(whole, params))
    for result in program(params, tx.init(params)):
        assert_identical(result, alone)


# Updates in another layout than the parameters: `optax.apply_updates` can add them


@pytest.mark.parametrize("how", ["explicit", "shard_map"])
@pytest.mark.parametrize(
    "tx",
    # A single subset (the last argument) leaves SGPerm nothing to draw.
    [optax.identity(), p2t.synchronize(1), p2t.cycle_permutation(0, 0.3, 1.0)],
    ids=["optax", "laperm", "sgperm"],
)
def test_replicated_updates_of_sharded_params(tx, how):
    mesh = make_mesh({"x": 8}, EXPLICIT if how == "explicit" else AUTO)
    params = PARAMS["Dense_0"]
    specs = jax.tree.map(whole, params)
    both = (specs, state_specs(specs, tx, params))

    def step(params, state):
        return helpers.step(params, state, jax.tree.map(lambda w: jnp.ones(w.shape), params), tx)

    alone, _ = jax.jit(step)(params, tx.init(params))
    if how == "shard_map":
        step = jax.shard_map(step, mesh=mesh, in_specs=both, out_specs=both)
    with jax.set_mesh(mesh):
        params = put(params, mesh, specs)
        after, _ = jax.jit(step)(params, tx.init(params))
    assert_identical(after, alone)


# pmap, and ensembles


@pytest.mark.parametrize(
    ("name", "axis_name"), [("laperm", None), ("sgperm", None), ("sgperm", "x")]
)
def test_pmap_of_the_mean_gradients(name, axis_name, host_calls):
    """The mean of these is exact, and the gradients of the run."""
    tx = OPTIMIZERS[name](share_over=axis_name) if axis_name else TX[name]
    offsets = 2 * np.arange(8, dtype=np.float32) - 7
    grads = jax.tree.map(lambda g: np.stack([g + offset for offset in offsets]), GRADS)

    def train(params, state, grads):
        def body(carry, grads):
            return helpers.step(*carry, jax.lax.pmean(grads, "x"), tx), None

        return jax.lax.scan(body, (params, state), grads)[0]

    state = jax.block_until_ready(tx.init(PARAMS))  # which calls the host, too
    host_calls.clear()
    train = jax.pmap(train, "x", in_axes=(None, None, 0))
    replicas, states = jax.block_until_ready(train(PARAMS, state, grads))
    assert host_calls == expected_calls(name, parts=8 if axis_name else 1)

    final = jax.vmap(p2t.permuted_params)(states, replicas)
    for i in range(8):
        assert_identical(member(replicas, i), expected(name)[0])
        assert_identical(member(final, i), expected(name)[2])
    is_permutation = jax.vmap(p2t.is_permutation, in_axes=(0, None))
    assert is_permutation(final, PARAMS).all()
    assert not is_permutation(replicas, PARAMS).any()
    with pytest.raises(ValueError, match="vmap"):
        p2t.permuted_params(states, replicas)


def rolled(tree, axis=0):
    return jax.tree.map(lambda x: np.stack([np.roll(x, i, -1) for i in range(8)], axis), tree)


def test_ensemble_over_a_mesh(name):
    mesh, tx = make_mesh({"x": 8}), TX[name]
    ensemble = jax.device_put(rolled(PARAMS), NamedSharding(mesh, P("x")))
    grads = rolled(GRADS, axis=1)
    out = None if name == "laperm" else NamedSharding(mesh, P("x"))
    step = jax.jit(jax.vmap(step_of(tx)), out_shardings=out)
    params, state = helpers.train(step, ensemble, jax.vmap(tx.init)(ensemble), grads)
    assert_same_shardings(params, ensemble)
    final = jax.jit(jax.vmap(p2t.permuted_params))(state, params)
    for i in (0, 5):
        run = helpers.train_jit(tx, member(rolled(PARAMS), i), member(grads, i, axis=1))
        assert_identical(member(params, i), run[0])
        assert_identical(member(final, i), p2t.permuted_params(run[1], run[0]))
    with pytest.raises(ValueError, match="vmap"):
        p2t.permuted_params(state, params)


def test_ensemble_of_one_beginning_over_explicit_axes(name):
    """All begin alike: only the gradients have an ensemble axis, the state's weights have none."""
    mesh = make_mesh({"x": 8}, EXPLICIT)

    with jax.set_mesh(mesh):
        grads = jax.tree.map(lambda g: np.stack([g] * 8), GRADS)
        grads = jax.device_put(grads, NamedSharding(mesh, P("x")))
        params = jax.device_put(PARAMS, NamedSharding(mesh, P()))
        train = functools.partial(helpers.train_scan, TX[name])
        params, _ = jax.jit(jax.vmap(train, in_axes=(None, 0)))(params, grads)
    for i in range(8):
        assert_identical(member(params, i), expected(name)[0])


# Other processes, because these would hang where they fail


@pytest.mark.slow
@pytest.mark.parametrize("door", [(), ("ffi",)])
def test_hundreds_of_steps_with_collectives_around_the_host(door, name):
    helpers.wait_for([helpers.worker("stress", name, *door, devices=8)], 360)


@pytest.mark.slow
def test_two_processes(tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    results = tmp_path / "params.npz"
    helpers.wait_for(
        [helpers.worker("train", port, str(i), "2", str(results), devices=2) for i in range(2)], 120
    )
    with np.load(results) as arrays:
        for run in ("laperm/whole", "laperm/split", "laperm/shard_map", "sgperm/whole"):
            leaves = jax.tree.leaves(expected(run.split("/")[0])[0])
            assert_identical([arrays[f"{run}/{i}"] for i in range(len(leaves))], leaves)
