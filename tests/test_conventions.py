"""Both optimizers keep Optax's conventions: arguments, state, dtypes, shardings, wrappers."""

import chex
import equinox as eqx
import helpers
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from conventions import AXES, OPTIMIZERS, assert_close, numbers, reordered, squared_distance
from helpers import INJECT_LAPERM, INJECT_SGPERM
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import p2t_jax as p2t


@pytest.fixture(params=OPTIMIZERS)
def name(request):
    return request.param


# The state


def test_parameters_are_needed_in_update_and_missed_in_the_words_of_optax(name):
    params = numbers(0)
    tx = OPTIMIZERS[name]()
    with pytest.raises(ValueError) as ours:  # noqa: PT011 : the message is compared below
        tx.update(params, tx.init(params))
    theirs = optax.adaptive_grad_clip(0.1)
    with pytest.raises(ValueError, match="params") as optaxes:
        theirs.update(params, theirs.init(params), None)
    assert str(ours.value) == str(optaxes.value)


def test_names_in_the_state_are_unique(name):
    inner = optax.adam(optax.linear_schedule(0.1, 0.01, 10))  # has two fields `count`
    tx = optax.chain(optax.clip(1.0), OPTIMIZERS[name](inner))
    params = numbers(0)
    _, state = jax.jit(tx.update)(params, tx.init(params), params)
    assert int(optax.tree.get(state, OPTIMIZERS[name].step_name)) == 1
    weights = optax.tree.get(state, OPTIMIZERS[name].weights_name)
    chex.assert_trees_all_equal(jnp.sort(weights["kernel"], 0), jnp.sort(params["kernel"], 0))
    with pytest.raises(KeyError, match="count"):
        optax.tree.get(state, "count")


def test_the_state_can_be_set_by_name():
    tx = p2t.laperm(optax.adam(0.1), sync_period=10)
    params = numbers(0)
    state = optax.tree.set(tx.init(params), lookahead_step=jnp.array(9))
    _, state = jax.jit(tx.update)(params, state, params)
    assert int(optax.tree.get(state, "lookahead_step")) == 0  # it has synchronized


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64"])
def test_shapes_and_dtypes_are_stable(dtype, name):
    with helpers.config("jax_enable_x64", dtype == "float64"):
        tx = OPTIMIZERS[name](optax.adam(0.1))
        initial = params = numbers(0, dtype=dtype)
        state = tx.init(params)
        dtypes = jax.tree.map(
            lambda x: x.dtype, optax.tree.get(state, OPTIMIZERS[name].weights_name)
        )
        assert set(jax.tree.leaves(dtypes)) == {jnp.dtype(dtype)}

        @jax.jit
        def step(params, state, skip):
            grads = jax.grad(squared_distance(numbers(1, dtype=dtype)))(params)
            updates, state = jax.lax.cond(  # it compares the types of both branches
                skip,
                lambda: (optax.tree.zeros_like(params), state),
                lambda: tx.update(grads, state, params),
            )
            return optax.apply_updates(params, updates), state, updates

        for skip in (False, True, False, False):
            params, state, updates = step(params, state, skip)
            chex.assert_trees_all_equal_dtypes(params, updates, initial)
        assert int(optax.tree.get(state, OPTIMIZERS[name].step_name)) == 3
        final = p2t.permuted_params(state, params)
        helpers.assert_permuted(name, final, initial, params, AXES)
        assert bool(p2t.is_permutation(final, initial))


def test_a_parameter_without_an_update_is_left_alone(name):
    initial = params = numbers(0)
    tx = OPTIMIZERS[name](optax.sgd(0.1))
    state = tx.init(params)
    for i in range(3):
        grads = {**numbers(i), "conv": {"kernel": None}}
        updates, state = jax.jit(tx.update)(grads, state, params)
        assert updates["conv"] == {"kernel": None}
        params = eqx.apply_updates(params, updates)  # Optax's takes None for parameters only
    chex.assert_trees_all_equal(params["conv"], initial["conv"])
    final = p2t.permuted_params(state, params)
    helpers.assert_permuted(name, final, initial, params, AXES)
    assert helpers.moved(final["kernel"], initial["kernel"])[0] > 0.3


# optax.tree.map_params


@pytest.mark.parametrize("vectors", [p2t.flax_vectors, AXES, None], ids=["rule", "tree", "none"])
def test_map_params(vectors, name):
    params = numbers(0)
    tx = OPTIMIZERS[name](optax.adam(0.1), vectors=vectors)
    state = tx.init(params)
    chex.assert_trees_all_equal(optax.tree.map_params(tx, lambda leaf: leaf, state), state)
    chex.assert_trees_all_equal(optax.tree.map_params(tx.init, lambda leaf: leaf, state), state)

    names = jax.tree.map(lambda leaf: f"like {leaf.shape}", params)
    mapped = optax.tree.map_params(
        tx, lambda leaf, name: name, state, names, transform_non_params=lambda leaf: "other"
    )
    assert jax.tree.structure(mapped) == jax.tree.structure(state)
    adam, ours = mapped
    assert (adam[0].count, adam[0].mu) == ("other", names)
    assert getattr(ours, OPTIMIZERS[name].weights_name) == names
    others = {leaf for leaf in jax.tree.leaves(ours) if not leaf.startswith("like")}
    assert others == {"other"}


def test_map_params_where_parameters_are_masked(name):
    params = numbers(0)
    mask = {"bias": False, "conv": True, "kernel": True}
    tx = optax.masked(OPTIMIZERS[name](), mask)
    names = jax.tree.map(lambda leaf: f"like {leaf.shape}", params)
    mapped = optax.tree.map_params(
        tx,
        lambda leaf, name: leaf if isinstance(leaf, optax.MaskedNode) else name,
        tx.init(params),
        names,
        is_leaf=lambda leaf: isinstance(leaf, optax.MaskedNode),
    )
    weights = optax.tree.get(mapped, OPTIMIZERS[name].weights_name)
    assert weights == names | {"bias": optax.MaskedNode()}


def test_map_params_gives_the_shardings_of_a_state(name):
    mesh = jax.make_mesh((2, 2), ("x", "y"), axis_types=(AxisType.Auto,) * 2)
    params = numbers(0, {"bias": (4,), "kernel": (24, 4)})
    shardings = {"bias": NamedSharding(mesh, P("x")), "kernel": NamedSharding(mesh, P("y", "x"))}
    tx = OPTIMIZERS[name](optax.adam(0.1))
    of_state = optax.tree.map_params(
        tx,
        lambda _, sharding: sharding,
        jax.eval_shape(tx.init, params),
        shardings,
        transform_non_params=lambda _: NamedSharding(mesh, P()),
    )
    placed = jax.device_put(params, shardings)
    state = jax.jit(tx.init, out_shardings=of_state)(placed)
    updates, after = jax.jit(tx.update, out_shardings=(shardings, of_state))(placed, state, placed)
    assert [x.sharding for x in jax.tree.leaves(after)] == jax.tree.leaves(of_state)
    alone, expected = jax.jit(tx.update)(params, tx.init(params), params)
    assert_close((updates, after), (alone, expected))
    chex.assert_trees_all_equal(after[1], expected[1])


# Sharding in types


@pytest.mark.parametrize(
    ("spec", "axes"),
    [
        (P(None, "x"), 0),
        (P(None, "x"), 1),
        (P(None, ("x", "y")), (0, 1, 2)),
        (P("x", None, "y"), (1, 2)),
        (P("x", None, "y"), None),
        (P(), 1),
    ],
)
def test_sharding_types_are_stable(spec, axes, name):
    mesh = jax.make_mesh((2, 4), ("x", "y"), axis_types=(AxisType.Explicit,) * 2)
    tx = OPTIMIZERS[name](optax.sgd(0.1, momentum=0.9), vectors=axes)

    def types(tree):
        return jax.tree.map(jax.typeof, tree)

    with jax.set_mesh(mesh):
        numbers = np.arange(64, dtype=np.float16).reshape(2, 8, 4)
        params = jax.device_put(numbers, NamedSharding(mesh, spec))
        state = tx.init(params)
        after = jax.jit(tx.update)(params, state, params)
        assert types(after) == (types(params), types(state))
        assert types(jax.jit(tx.init)(params)) == types(state)
        assert jax.eval_shape(tx.update, params, state, params) == jax.eval_shape(lambda: after)
    weights = optax.tree.get(state, OPTIMIZERS[name].weights_name)
    assert jax.typeof(weights).sharding.spec == jax.typeof(params).sharding.spec


# Wrappers


@pytest.mark.parametrize("kind", [lambda value: value, np.asarray], ids=["number", "array"])
def test_inject_hyperparams_changes_nothing(kind, name):
    inner, (hyperparameter, value) = optax.adam(0.1), OPTIMIZERS[name].hyperparameter
    plain = OPTIMIZERS[name](inner, vectors=AXES)
    wrapped = OPTIMIZERS[name].injected(inner, **{hyperparameter: kind(value)}, vectors=AXES)
    params = numbers(0)
    state, wrapped_state = plain.init(params), jax.jit(wrapped.init)(params)
    chex.assert_trees_all_equal(wrapped_state.inner_state, state)
    update, wrapped_update = jax.jit(plain.update), jax.jit(wrapped.update)
    for seed in range(1, 5):
        updates, state = update(numbers(seed), state, params)
        again, wrapped_state = wrapped_update(numbers(seed), wrapped_state, params)
        chex.assert_trees_all_equal(again, updates)
        chex.assert_trees_all_equal(wrapped_state.inner_state, state)
        params = optax.apply_updates(params, updates)


def test_an_injected_sync_period_can_be_changed_during_training():
    tx = INJECT_LAPERM(inner=optax.adam(0.1), vectors=AXES)
    params = initial = numbers(0)
    state = tx.init(params)
    waited = []
    chex.clear_trace_counter()

    @jax.jit
    @chex.assert_max_traces(n=1)
    def step(params, state, grads):
        return helpers.step(params, state, grads, tx)

    for i in range(12):
        if i in (4, 8):  # one step after a synchronization, and in the middle of a period
            state.hyperparams["sync_period"] = jnp.array({4: 5, 8: 2}[i])
        params, state = step(params, state, numbers(i + 1))
        waited.append(int(optax.tree.get(state, "lookahead_step")))
        if waited[-1] == 0:
            assert_close(params["kernel"], reordered(initial, params)["kernel"])
    assert waited == [1, 2, 0, 1, 2, 3, 4, 0, 1, 0, 1, 0]


def test_an_injected_aggressiveness_can_be_changed_during_training():
    tx = INJECT_SGPERM(aggressiveness=0.1, vectors=AXES)
    params = initial = numbers(0)
    state = tx.init(params)
    state.hyperparams["aggressiveness"] = jnp.array(0.0)
    step = jax.jit(lambda *args: helpers.step(*args, tx))
    params, state = step(params, state, numbers(1))
    chex.assert_trees_all_equal(p2t.permuted_params(state, params), initial)
    state.hyperparams["aggressiveness"] = jnp.array(0.5)
    params, state = step(params, state, numbers(2))
    assert min(helpers.moved(p2t.permuted_params(state, params), initial)) > 0.2


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_multi_steps_gives_zeros_between_and_permutations_in_the_end(dtype, name):
    initial = params = numbers(0, dtype=dtype)
    tx = optax.MultiSteps(OPTIMIZERS[name](optax.adam(0.1)), every_k_schedule=3)
    state = tx.init(params)
    step = jax.jit(tx.update)
    for i in range(1, 10):
        updates, state = step(numbers(i // 4 + 1, dtype=dtype), state, params)
        if i % 3:
            chex.assert_trees_all_equal(updates, optax.tree.zeros_like(params))
            continue
        params = optax.apply_updates(params, updates)
        assert int(optax.tree.get(state, OPTIMIZERS[name].step_name)) == i // 3
        final = p2t.permuted_params(state, params)
        helpers.assert_permuted(name, final, initial, params, AXES)
    assert min(helpers.moved(final, initial)) > 0.3


def test_multi_steps_inside_lets_updates_of_zero_pass():
    initial = params = numbers(0)
    inner = optax.MultiSteps(optax.sgd(0.1), every_k_schedule=2)
    tx = p2t.laperm(inner, sync_period=4)
    state = tx.init(params)
    step = jax.jit(tx.update)
    for i in range(1, 9):
        updates, state = step(numbers(i), state, params)
        if i % 2:
            chex.assert_trees_all_equal(updates, optax.tree.zeros_like(params))
        params = optax.apply_updates(params, updates)
        if i % 4 == 0:
            assert_close(params, reordered(initial, params))
