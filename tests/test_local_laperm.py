"""LAPerm on devices that look ahead alone and average their weights once in k steps."""

import functools
import re
import socket

import helpers
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from helpers import OPTIMIZERS, PARAMS, assert_identical, member
from jax.sharding import PartitionSpec as P
from layouts import COLLECTIVES, make_mesh
from local_devices import PERIOD, first, gradients, over_a_mesh, simulated

import p2t_jax as p2t

DEVICES = 8
LOCAL = {
    way: OPTIMIZERS["laperm"](average_over="batch", host_callback=way == "host")
    for way in ("host", "plain JAX")
}
SHARD_MAP = {"shard_map": True, "shard_map, check_vma=False": False}
FEEDBACK = 0.75
REMEMBERING = OPTIMIZERS["laperm"](average_over="batch", error_feedback=FEEDBACK)
WAYS = ["vmap", "pmap", *SHARD_MAP]


def on_devices(how, tx, params=PARAMS):
    """Parameters and state at the start, a step, and how gradients are given to it.

    Everything has a leading device axis.
    """
    if how in SHARD_MAP:
        start, step, put = over_a_mesh(tx, params, SHARD_MAP[how])
        return *start(params), step, put
    step = functools.partial(helpers.step, tx=tx)
    step = jax.jit(jax.vmap(step, axis_name="batch")) if how == "vmap" else jax.pmap(step, "batch")
    start = jax.tree.map(lambda x: np.stack([x] * DEVICES), (params, tx.init(params)))
    return *start, step, lambda grads: grads


def trained(how, tx, params=PARAMS, grads=None):
    """Yields parameters and state after every step."""
    grads = gradients(DEVICES) if grads is None else grads
    params, state, step, put = on_devices(how, tx, params)
    for i in range(len(jax.tree.leaves(grads)[0])):
        params, state = jax.block_until_ready(step(params, state, put(member(grads, i))))
        yield params, state


def final_on(device, params, state):
    """The exact parameters of one device, from its own parameters and state alone."""
    params = member(params, device)
    state = jax.tree.map(lambda x: np.asarray(x)[min(device, len(x) - 1)], state)
    return p2t.permuted_params(state, params)


@pytest.mark.parametrize("ranking", LOCAL)
@pytest.mark.parametrize("how", WAYS)
def test_every_step_is_that_of_the_simulated_devices(how, ranking):
    run = trained(how, LOCAL[ranking])
    for (params, state), (expected, agreed) in zip(run, simulated(DEVICES), strict=True):
        assert_identical(params, expected)
        if agreed:
            for device in range(DEVICES):
                assert_identical(final_on(device, params, state), agreed)
    # Between synchronizations there is the permutation by the mean.
    mean = jax.tree.map(lambda w: np.asarray(w).mean(axis=0), params)
    final = p2t.permuted_params(first(state), mean)
    helpers.assert_permuted("laperm", final, PARAMS, mean)
    assert min(helpers.moved(final, PARAMS)) > 0.3
    kernel = np.asarray(params["Dense_0"]["kernel"])
    assert np.all(kernel[1:] != kernel[:1], axis=(1, 2)).any()  # it was the last step's


@pytest.mark.parametrize("how", WAYS)
def test_all_devices_remember_what_was_cut_off_from_the_mean(how):
    run = trained(how, REMEMBERING)
    for (params, state), (expected, agreed) in zip(run, simulated(DEVICES, FEEDBACK), strict=True):
        assert_identical(params, expected)
        error = state[1].feedback_error
        assert_identical(error, helpers.stack([member(error, 0)] * DEVICES))
        if agreed:
            for device in range(DEVICES):
                assert_identical(final_on(device, params, state), agreed)
    assert np.count_nonzero(error["Dense_0"]["kernel"])
    assert min(helpers.moved(agreed_last(FEEDBACK), agreed_last(0.0))) > 0.01


def agreed_last(m):
    return [agreed for _, agreed in simulated(DEVICES, m) if agreed][-1]


@pytest.mark.parametrize("how", ["vmap", "pmap", "shard_map"])
def test_all_devices_agree_where_adding_updates_rounds(how):
    """Weights closer to each other than the rounding: from parameters alone, orders would differ.

    No update turns 1 into 2^-30, for 1 - 2^-30 is no float32.
    """
    rng = np.random.default_rng(0)
    kernel = rng.normal(size=(64, 16)) * 10.0 ** rng.uniform(-9, 0, (64, 16))
    params = {"kernel": kernel.astype(np.float32), "bias": np.zeros(16, np.float32)}
    grads = jax.tree.map(lambda w: rng.normal(size=(4, 8, *w.shape)).astype(np.float32), params)
    tx = p2t.laperm(optax.adam(0.1), 2, average_over="batch")
    *_, (replicas, state) = trained(how, tx, params, grads)
    assert len(np.unique(np.asarray(replicas["kernel"]), axis=0)) > 1  # else nothing is shown
    np.testing.assert_allclose(*np.asarray(replicas["kernel"])[:2], rtol=0, atol=1e-6)
    final = [final_on(device, replicas, state) for device in range(DEVICES)]
    assert p2t.is_permutation(final[0], params)
    for other in final[1:]:
        assert_identical(other, final[0])
    by_params = [
        p2t.permuted_params((state[1]._replace(sync_step=np.int32(0)),), member(replicas, device))
        for state in [first(state)]
        for device in range(DEVICES)
    ]
    assert len({w["kernel"].tobytes() for w in map(np_tree, by_params)}) > 1


def np_tree(tree):
    return jax.tree.map(np.asarray, tree)


@pytest.mark.parametrize("how", ["pmap", "shard_map"])
@pytest.mark.parametrize("ranking", LOCAL)
def test_every_collective_of_the_compiled_step_is_in_the_synchronization(how, ranking):
    params, state, step, put = on_devices(how, LOCAL[ranking])
    lowered = step.lower(params, state, put(member(gradients(DEVICES), 0)))
    text = lowered.compile().as_text()
    loops = set(re.findall(r"body=%([\w.-]+)", text))
    having = {
        re.match(r"(?:ENTRY )?%?([\w.-]+)", computation)[1]
        for computation in re.split(r"\n(?=%|ENTRY )", text)
        if re.search(rf"({COLLECTIVES})\S*\(", computation)
    }
    assert having
    assert having <= loops


@pytest.mark.parametrize("how", ["vmap", "shard_map"])
def test_no_weight_is_lost_to_a_device_that_is_not_finite(how):
    grads = jax.tree.map(lambda g: g[:PERIOD], gradients(DEVICES))
    kernel, bias = grads["Dense_0"]["kernel"], grads["Dense_0"]["bias"]
    kernel[1, 2, :4, 0] = np.nan  # of one device, in one step
    kernel[1, 3, 4, 0], kernel[1, 4, 4, 0] = np.inf, -np.inf  # the mean is NaN
    kernel[1, 3, 5, 0], kernel[1, 3, 6, 0] = np.inf, -np.inf  # and these are infinite
    bias[1, 5, 0] = np.nan
    *_, (params, state) = trained(how, LOCAL["host"], grads=grads)
    final = [final_on(device, params, state) for device in range(DEVICES)]
    for other in final:
        assert p2t.is_permutation(other, PARAMS)
        assert_identical(other, final[0])
    # NaN is ranked last, by position, after infinity; updates are negative gradients.
    column, largest = (
        final[0]["Dense_0"]["kernel"][:, 0],
        np.sort(PARAMS["Dense_0"]["kernel"][:, 0]),
    )
    np.testing.assert_array_equal(column[:5], largest[-5:])
    assert (column[5], column[6]) == (largest[0], largest[-6])
    # What is no weight vector becomes NaN on all devices, in that place alone.
    assert np.isnan(final[0]["Dense_0"]["bias"]).tolist() == [True] + [False] * 23


def test_the_inner_states_stay_local():
    tx = OPTIMIZERS["laperm"](optax.sgd(0.5, momentum=0.5), average_over="batch")
    *_, (_, state) = trained("vmap", tx)
    *_, (_, alone) = trained("vmap", optax.sgd(0.5, momentum=0.5))
    assert_identical(state[0], alone)


@pytest.mark.parametrize("how", ["vmap", "shard_map"])
def test_a_device_may_skip_steps_of_its_inner_optimizer(how):
    tx = OPTIMIZERS["laperm"](optax.apply_if_finite(optax.sgd(0.5), 5), average_over="batch")
    grads = gradients(DEVICES)
    grads["Dense_0"]["kernel"][1, 2] = np.nan
    *_, (params, state) = trained(how, tx, grads=grads)
    assert np.asarray(state[0].total_notfinite).tolist() == [0, 0, 1, 0, 0, 0, 0, 0]
    assert all(np.isfinite(w).all() for w in jax.tree.leaves(params))


def test_a_line_search_forgets_on_every_device():
    inner = optax.chain(optax.sgd(1.0), optax.scale_by_backtracking_linesearch(3))
    tx = p2t.laperm(inner, 2, vectors=0, average_over="batch")
    targets = np.random.default_rng(0).normal(size=(DEVICES, 6, 2)).astype(np.float32)

    def step(params, state, target):
        def loss(params):
            return jnp.sum((params - target) ** 2)

        value, grad = jax.value_and_grad(loss)(params)
        updates, state = tx.update(grad, state, params, value=value, grad=grad, value_fn=loss)
        return optax.apply_updates(params, updates), state

    params = jnp.stack([targets[0]] * DEVICES)
    state = jax.vmap(tx.init)(params)
    for i in (1, 2, 3):
        params, state = jax.vmap(step, axis_name="batch")(params, state, targets)
        assert (np.asarray(optax.tree.get(state, "value")) == np.inf).all() == (i == 2)


# The sync period is the same on all devices


def test_a_schedule_of_the_step_is_the_same_on_all_devices():
    schedule = optax.piecewise_constant_schedule(2, {3: 1.5})  # 2, then 3
    tx = p2t.laperm(optax.sgd(0.5), schedule, average_over="batch")
    for how in WAYS:
        counts = [int(np.asarray(state[1].lookahead_step)[0]) for _, state in trained(how, tx)]
        assert counts == [1, 0, 1, 2, 0, 1, 2], how


def update_with(sync_period, how):
    """An update on devices where `sync_period(device, k)` is k, or its schedule."""

    def step(device, k):
        tx = p2t.laperm(optax.sgd(0.5), sync_period(device, k), average_over="batch")
        params = {"kernel": jnp.ones((4, 2))}
        grads = {"kernel": params["kernel"] + device.sum()}
        return tx.update(grads, tx.init(params), params)[0]["kernel"]

    devices, k = jnp.arange(DEVICES), jnp.int32(2)
    if how == "shard_map":
        mesh = make_mesh({"batch": DEVICES})
        specs = {"in_specs": (P("batch"), P()), "out_specs": P("batch")}
        return jax.jit(jax.shard_map(step, mesh=mesh, **specs))(devices, k)
    return jax.pmap(step, "batch", in_axes=(0, None))(devices, k)


DIFFERS = {
    "its own number": lambda device, k: device.sum() + 1,
    "a schedule of its own number": lambda device, k: lambda step: step + device.sum() + 1,
    "a schedule of its place": lambda device, k: (
        lambda step: step + 1 + jax.jit(lambda: jax.lax.axis_index("batch"))()
    ),
}


@pytest.mark.parametrize("how", ["pmap", "shard_map"])
@pytest.mark.parametrize("k", DIFFERS)
def test_a_sync_period_that_differs_between_devices_is_refused(k, how):
    with pytest.raises(ValueError, match=r"^sync_period: must be the same .*'batch'"):
        update_with(DIFFERS[k], how)


def test_a_traced_sync_period_is_accepted_where_jax_knows_that_it_is_the_same():
    update_with(lambda device, k: k, "shard_map")
    with pytest.raises(ValueError, match=r"^sync_period: must be the same"):
        update_with(lambda device, k: k, "pmap")


def test_counters_that_may_differ_between_devices_are_refused():
    tx = LOCAL["host"]
    state = jax.tree.map(lambda x: np.stack([x] * DEVICES), tx.init(PARAMS))
    params = jax.tree.map(lambda x: np.stack([x] * DEVICES), PARAMS)
    mapped = jax.shard_map(
        lambda *args: helpers.step(*first(args), tx),
        mesh=make_mesh({"batch": DEVICES}), in_specs=P("batch"), out_specs=P("batch"),
    )  # fmt: skip
    with pytest.raises(ValueError, match=r"^sync_period: .* counters .*P\(\)"):
        jax.jit(mapped)(params, state, params)


def test_an_axis_that_is_not_bound_is_refused():
    tx = LOCAL["host"]
    with pytest.raises(ValueError, match=r"^average_over: .*'batch'"):
        tx.update(PARAMS, tx.init(PARAMS), PARAMS)


def test_parameters_that_are_no_floats_stay_on_their_device():
    params = {"kernel": jnp.arange(8.0).reshape(4, 2), "count": jnp.int32(7)}
    tx = p2t.synchronize(1, average_over="batch")

    def step(device):
        mine = params | {"count": params["count"] + device}
        updates = {"kernel": jnp.full((4, 2), device, jnp.float32), "count": device}
        updates, state = tx.update(updates, tx.init(mine), mine)
        new = optax.apply_updates(mine, updates)
        return new, p2t.permuted_params(state, new)

    for tree in jax.vmap(step, axis_name="batch")(jnp.arange(DEVICES)):
        assert tree["count"].tolist() == [7 + 2 * i for i in range(DEVICES)]


# In processes of their own, because these would hang where they fail


@pytest.mark.slow
def test_hundreds_of_steps_without_a_hang():
    helpers.wait_for([helpers.worker("local", devices=DEVICES)], 240)


@pytest.mark.slow
def test_two_processes(tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    results = tmp_path / "params.npz"
    args = [("train_local", port, str(i), "2", str(results)) for i in range(2)]
    helpers.wait_for([helpers.worker(*each, devices=2) for each in args], 120)
    with np.load(results) as arrays:
        for step, (params, agreed) in enumerate(simulated(4)):
            for what, tree in (("params", params), ("final", agreed)):
                for i, leaf in enumerate(jax.tree.leaves(tree)):
                    found = arrays[f"{step}/{what}/{i}"]
                    assert_identical(found, leaf if what == "params" else np.stack([leaf] * 4))
