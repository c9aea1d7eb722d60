"""Every switch of JAX, derivatives, donated buffers, any leaves, keys, names and layouts."""

import functools
import pickle
from typing import Any, NamedTuple

import chex
import cloudpickle
import equinox as eqx
import helpers
import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest
from helpers import OPTIMIZERS, TX, assert_identical
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P
from one_layer import EAGER_OR_JIT, GRADS, PARAMS, train

import p2t_jax as p2t

# Buffers


def test_what_is_returned_outlives_a_donating_step(name):
    tx = TX[name]
    step = jax.jit(functools.partial(helpers.step, tx=tx), donate_argnums=(0, 1))
    params = jax.tree.map(jnp.array, PARAMS)
    params, state = step(params, tx.init(params), GRADS)
    best = p2t.permuted_params(state, params)
    values = jax.tree.map(np.array, best)
    step(params, state, GRADS)
    assert not any(x.is_deleted() for x in jax.tree.leaves(best))
    assert_identical(best, values)


MAKERS = {
    "prune": lambda params: p2t.prune(jax.random.key(0), params, 0.5),
    "reinitialize": lambda params: p2t.reinitialize(
        jax.random.key(0), params, jax.nn.initializers.he_normal()
    ),
}


@pytest.mark.parametrize("maker", MAKERS)
def test_what_is_made_of_parameters_outlives_them(maker):
    params = jax.tree.map(jnp.array, PARAMS)
    made = MAKERS[maker](params)
    for x in jax.tree.leaves(params):
        x.delete()
    assert not any(x.is_deleted() for x in jax.tree.leaves(made))


# States and their structure


@pytest.mark.parametrize("dump", [pickle.dumps, cloudpickle.dumps], ids=["pickle", "cloudpickle"])
def test_states_are_pickled_with_any_rule(dump, name):
    tx = OPTIMIZERS[name](vectors=lambda path, leaf: 0 if leaf.ndim > 1 else None)
    final, params, state = train(tx)
    restored = pickle.loads(dump(state))
    chex.assert_trees_all_equal(restored, state)
    assert_identical(p2t.permuted_params(restored, params), final)


@pytest.mark.filterwarnings("ignore:Sharding info not provided")
def test_orbax_restores_without_a_target(tmp_path, name):
    """Then a state is a tree of containers: its leaves go into the structure of a new one."""
    tx = TX[name]
    final, params, state = train(tx)
    with ocp.PyTreeCheckpointer() as checkpointer:
        checkpointer.save(tmp_path / "state", state)
        restored = checkpointer.restore(tmp_path / "state")
    weights = optax.tree.get(state, OPTIMIZERS[name].weights_name)
    chex.assert_trees_all_equal(restored[1][OPTIMIZERS[name].weights_name], weights)
    arrays = {helpers.path_of(path): x for path, x in jax.tree.leaves_with_path(restored)}
    again = jax.tree.map_with_path(lambda path, _: arrays[helpers.path_of(path)], tx.init(PARAMS))
    assert_identical(p2t.permuted_params(again, params), final)


# Layouts


SPECS = {"everywhere": P(), "vectors": P(None, "x"), "within": P("x"), "both": P("x", "y")}


@pytest.mark.parametrize(
    ("params_spec", "updates_spec"),
    [
        ("everywhere", "vectors"),
        ("everywhere", "both"),
        ("vectors", "within"),
        ("vectors", "everywhere"),
        ("within", "vectors"),
        ("both", "within"),
        ("both", "everywhere"),
    ],
)
def test_updates_in_any_explicit_layout(params_spec, updates_spec, name):
    """Moments may be split more finely than parameters; updates come as the parameters are."""
    mesh = jax.make_mesh((2, 4), ("x", "y"), axis_types=(AxisType.Explicit,) * 2)
    rng = np.random.default_rng(0)
    kernel, update = (rng.normal(size=(24, 8)).astype(np.float32) for _ in range(2))
    # A single subset (the last argument) leaves nothing to draw.
    link = {
        "laperm": p2t.synchronize(1, vectors=0),
        "sgperm": p2t.cycle_permutation(0, 0.5, 1.0, vectors=0),
    }[name]
    alone, _ = jax.jit(link.update)(update, link.init(kernel), kernel)
    with jax.set_mesh(mesh):
        put = lambda x, spec: jax.device_put(x, NamedSharding(mesh, SPECS[spec]))  # noqa: E731
        params, updates = put(kernel, params_spec), put(update, updates_spec)
        state = link.init(params)
        after, new_state = jax.jit(link.update)(updates, state, params)
        optax.apply_updates(params, after)
        assert jax.tree.map(jax.typeof, new_state) == jax.tree.map(jax.typeof, state)
    assert_identical(after, alone)


# Leaves that are not JAX arrays of their own dtype


LEAVES = {
    "NumPy": {},
    "Python float": {"temperature": 1.5},
    "NumPy scalar": {"temperature": np.float32(1.5)},
    "weak type": {"temperature": jnp.asarray(1.5)},
    "NumPy float64": {"temperature": np.array([1.5, 2.5])},
}


@EAGER_OR_JIT
@pytest.mark.parametrize("leaves", LEAVES)
def test_any_leaf_stands_beside_a_kernel(leaves, wrap, name):
    params = {**PARAMS, **LEAVES[leaves]}
    tx = OPTIMIZERS[name](optax.sgd(0.1))
    state = wrap(tx.init)(params)
    step = wrap(functools.partial(helpers.step, tx=tx))
    grads = jax.tree.map(jnp.ones_like, params) | GRADS
    trained = params
    for _ in range(3):
        trained, state = step(trained, state, grads)
    final = p2t.permuted_params(state, trained)
    axes = jax.tree.map(lambda leaf: (0,) if np.ndim(leaf) > 1 else None, params)
    helpers.assert_permuted(name, final, params, trained, axes)
    assert bool(p2t.is_permutation(final, params))
    p2t.permuted_params(tx.init(params), params)


# Inner optimizers that remember the next iterate


def test_a_line_search_goes_on_from_where_the_weights_are():
    """After a synchronization, what L-BFGS remembers is of another point."""
    target = jax.tree.map(lambda w: 2 * np.roll(w, 1, 0), PARAMS)  # no permutation

    def loss(params):
        return optax.tree.norm(optax.tree.sub(params, target), squared=True)

    tx = p2t.laperm(optax.lbfgs(), sync_period=2)
    value_and_grad = optax.value_and_grad_from_state(loss)

    @jax.jit
    def step(params, state):
        value, grads = value_and_grad(params, state=state)
        updates, state = tx.update(grads, state, params, value=value, grad=grads, value_fn=loss)
        return optax.apply_updates(params, updates), state, value, grads

    params, state = jax.tree.map(jnp.asarray, PARAMS), tx.init(PARAMS)
    for _ in range(6):
        true_value, true_grads = jax.value_and_grad(loss)(params)
        params, state, value, grads = step(params, state)
        np.testing.assert_allclose(value, true_value, rtol=1e-4, atol=1e-6)
        chex.assert_trees_all_close(grads, true_grads, rtol=1e-4, atol=1e-4)


class ValueAndGrad(NamedTuple):
    """A state, or parameters, with the fields of a line search's state."""

    value: Any
    grad: Any


def test_only_line_searches_forget():
    def remember(updates, state, params=None):
        del state, params
        return updates, ValueAndGrad(jnp.array(True), updates)

    def init(params):
        return ValueAndGrad(jnp.zeros((), bool), optax.tree.zeros_like(params))

    inner = optax.chain(optax.trace(0.5), optax.GradientTransformation(init, remember))
    tx = p2t.laperm(inner, 1, vectors=0)
    params = ValueAndGrad(jnp.asarray(PARAMS["kernel"]), jnp.asarray(PARAMS["kernel"]))
    grads = jax.tree.map(jnp.ones_like, params)
    _, state = jax.jit(tx.update)(grads, tx.init(params), params)
    (trace, remembered), _ = state
    chex.assert_trees_all_equal(trace.trace, grads)
    chex.assert_trees_all_equal(remembered.grad, grads)
    assert remembered.value.dtype == bool
    assert bool(remembered.value)


@pytest.mark.parametrize(
    "search",
    [
        optax.scale_by_backtracking_linesearch(2),
        optax.scale_by_backtracking_linesearch(2, store_grad=True),
        optax.scale_by_zoom_linesearch(2),
    ],
)
def test_every_line_search_of_optax_forgets(search):
    def loss(w):
        return jnp.sum(w**2)

    tx = p2t.laperm(optax.chain(optax.sgd(0.1), search), 1, vectors=0)
    params = jnp.asarray(PARAMS["kernel"])
    value, grad = jax.value_and_grad(loss)(params)
    extra = {"value": value, "grad": grad, "value_fn": loss}
    state = jax.jit(lambda s: tx.update(grad, s, params, **extra)[1])(tx.init(params))
    assert optax.tree.get(state, "value") == np.inf


# Wrappers that hide the shapes


def test_optax_flatten_around_it_is_refused_at_init(name):
    """A flat vector is no neuron's weights."""
    with pytest.raises(ValueError, match="flat"):
        optax.flatten(TX[name]).init(PARAMS)


# Names


class Attention(eqx.Module):
    query: jax.Array
    key: jax.Array
    value: jax.Array


def test_a_parameter_may_be_called_value(name):
    keys = jax.random.split(jax.random.key(0), 3)
    params = Attention(*(jax.random.normal(key, (24, 3)) for key in keys))

    def rule(path, leaf):
        return 0 if path[-1] in ("query", "key", "value") else None

    grads = Attention(*3 * [jnp.asarray(GRADS["kernel"])])
    tx = OPTIMIZERS[name](vectors=rule)
    trained, state = params, tx.init(params)
    for _ in range(3):
        trained, state = helpers.jitted_step(tx)(trained, state, grads)
    final = p2t.permuted_params(state, trained)
    helpers.assert_permuted(name, final, params, trained, Attention((0,), (0,), (0,)))
    assert min(helpers.moved(final, params)) > 0.3
    swapped = Attention(params.query, params.key, params.value + 1)
    assert not bool(p2t.is_permutation(swapped, params, vectors=rule))


# Without the host


def test_a_step_without_the_host_can_be_exported_for_other_platforms(name):
    tx = OPTIMIZERS[name](host_callback=False)
    params = jax.tree.map(jnp.asarray, PARAMS)
    # Leaves, since Optax does not say how its states are serialized; ours are known to JAX.
    leaves, treedef = jax.tree.flatten((params, tx.init(params)))

    @jax.jit
    def step(leaves):
        return jax.tree.leaves(helpers.step(*treedef.unflatten(leaves), GRADS, tx=tx))

    assert not helpers.doors_in(step.lower(leaves).compile())
    exported = jax.export.export(step, platforms=["cpu", "cuda", "tpu"])(leaves)
    again = jax.export.deserialize(exported.serialize())
    assert_identical(again.call(leaves), step(leaves))
    jax.export.export(jax.jit(lambda: tx.init(params)[1]))().serialize()


def test_the_process_can_choose_for_all_optimizers():
    code = """
import jax, helpers, p2t_jax as p2t
params = {"kernel": jax.numpy.arange(6.0).reshape(3, 2)}
def calls(tx):
    step = jax.jit(lambda params, state: tx.update(params, state, params))
    return bool(helpers.doors_in(step.lower(params, tx.init(params)).compile()))
made = [make() for make in helpers.OPTIMIZERS.values()]
by_default = [*map(calls, made)]
p2t.set_host_callback(not by_default[0])
print(by_default, [*map(calls, made)])
"""
    for value, says in (("1", "[True, True] [False, False]"), ("0", "[False, False] [True, True]")):
        assert helpers.in_a_new_process(code, P2T_JAX_HOST_CALLBACK=value) == says


BAD_CHOICES = pytest.mark.parametrize(
    ("bad", "error"), [(1, TypeError), (b"ffi", TypeError), ("FFI", ValueError)]
)


@BAD_CHOICES
def test_an_optimizer_chooses_the_host_in_known_words(bad, error, name):
    with pytest.raises(error, match=r"^host_callback: must be True, False, .ffi. or None, got"):
        OPTIMIZERS[name](host_callback=bad)


@BAD_CHOICES
def test_the_process_does_so_too(bad, error):
    with pytest.raises(error, match=r"^enabled: must be True, False or .ffi., got"):
        p2t.set_host_callback(bad)
    with pytest.raises(TypeError, match=r"^enabled: "):
        p2t.set_host_callback(None)
