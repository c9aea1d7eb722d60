"""JAX transformations: the same run from eager code, jit, scan, vmap, and any mix of them."""

import functools

import chex
import helpers
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from helpers import GRADS, OPTIMIZERS, PARAMS, TX, assert_identical, expected, member

import p2t_jax as p2t

MEMBERS = 4
PERIODS = np.array([1, 2, 3, 5])


def train_eager(tx):
    return helpers.train(functools.partial(helpers.step, tx=tx), PARAMS, tx.init(PARAMS))


def train_in_jit(tx):
    return jax.jit(functools.partial(helpers.train_scan, tx))(PARAMS)


WAYS = {"eager": train_eager, "scan": helpers.train_scan, "jit of scan": train_in_jit}


@pytest.mark.parametrize("way", WAYS)
def test_same_run(way, name):
    assert_identical(WAYS[way](TX[name]), expected(name)[:2])


@pytest.mark.parametrize("way", ["eager", "jit of scan"])
def test_same_run_where_rounding_may_differ(way):
    """XLA rounds Adam's updates otherwise in every program; which weight goes where is the same.

    Unless two look-aheads are so near that rounding decides; here none are. (SGPerm's roots come by
    the size of Adam's updates, which are all the same in the first step: there rounding decides.)
    """
    tx = OPTIMIZERS["laperm"](optax.adam(1e-2))
    (params, state), (expected_params, expected_state) = WAYS[way](tx), helpers.train_jit(tx)
    final, other = (
        helpers.weight_vectors_of(p2t.permuted_params(*run))
        for run in ((state, params), (expected_state, expected_params))
    )
    assert_identical(final, other)
    chex.assert_trees_all_close(params, expected_params, atol=1e-6)


def test_the_run_has_permuted_weights_and_moved_on(name):
    """Otherwise the tests of this file would compare networks that nothing happened to."""
    params, state, final = expected(name)
    assert int(optax.tree.get(state, OPTIMIZERS[name].step_name)) == helpers.STEPS
    assert bool(p2t.is_permutation(final, PARAMS))
    helpers.assert_permuted(name, final, PARAMS, params)
    assert min(helpers.moved(final, PARAMS)) > 0.3
    if name == "laperm":  # has looked ahead once since the last of two synchronizations
        assert int(optax.tree.get(state, "lookahead_step")) == 1
        assert min(helpers.moved(params, final)) > 0.5


# Ensembles: each member with a hyperparameter of its own


def make_member(name, hyperparameter):
    if name == "laperm":  # in most steps some synchronize and some do not
        return p2t.laperm(optax.sgd(0.5), hyperparameter)
    return p2t.sgperm(7, hyperparameter, 0.25, inner=optax.sgd(1.0))


HYPERPARAMETERS = {"laperm": PERIODS, "sgperm": np.array([0.05, 0.3, 0.3, 1.0], np.float32)}
ENSEMBLE = helpers.stack(
    [jax.tree.map(lambda w, i=i: np.roll(w, i, -1), PARAMS) for i in range(MEMBERS)]
)
ENSEMBLE_GRADS = helpers.stack(
    [jax.tree.map(lambda g, i=i: np.roll(g, i, -1), GRADS) for i in range(MEMBERS)], axis=1
)


def member_step(name, value, params, state, grads):
    return helpers.step(params, state, grads, make_member(name, value))


def member_train(name, value, params, grads):
    return helpers.train_scan(make_member(name, value), params, grads)


def jit_of_vmap(name, values):
    step = jax.jit(jax.vmap(functools.partial(member_step, name)))
    state = jax.vmap(lambda value, params: make_member(name, value).init(params))(values, ENSEMBLE)
    return helpers.train(functools.partial(step, values), ENSEMBLE, state, ENSEMBLE_GRADS)


def vmap_of_scan(name, values):
    train = jax.vmap(functools.partial(member_train, name), (0, 0, 1))
    return train(values, ENSEMBLE, ENSEMBLE_GRADS)


def jit_of_scan_of_vmap(name, values):
    init = jax.vmap(lambda value, params: make_member(name, value).init(params))
    step = jax.vmap(functools.partial(member_step, name))

    @jax.jit
    def train(values):
        carry = ENSEMBLE, init(values, ENSEMBLE)
        body = lambda carry, grads: (step(values, *carry, grads), None)  # noqa: E731
        return jax.lax.scan(body, carry, ENSEMBLE_GRADS)[0]

    return train(values)


def jit_of_vmap_of_vmap(name, values):
    def pairs(tree, axis=0):
        def split(x):
            return jnp.reshape(x, (*x.shape[:axis], 2, MEMBERS // 2, *x.shape[axis + 1 :]))

        return jax.tree.map(split, tree)

    train = functools.partial(member_train, name)
    train = jax.jit(jax.vmap(jax.vmap(train, (0, 0, 1)), (0, 0, 1)))
    out = train(pairs(values), pairs(ENSEMBLE), pairs(ENSEMBLE_GRADS, 1))
    return jax.tree.map(lambda x: x.reshape(MEMBERS, *x.shape[2:]), out)


@functools.cache
def alone(name):
    """Each member of the ensemble, trained alone with a hyperparameter that is no array."""
    return [
        helpers.train_jit(
            make_member(name, value.item()), member(ENSEMBLE, i), member(ENSEMBLE_GRADS, i, axis=1)
        )
        for i, value in enumerate(HYPERPARAMETERS[name])
    ]


@pytest.mark.parametrize(
    "way", [jit_of_vmap, vmap_of_scan, jit_of_scan_of_vmap, jit_of_vmap_of_vmap]
)
def test_members_of_an_ensemble_train_as_if_alone(way, name):
    params, state = way(name, HYPERPARAMETERS[name])
    final = jax.vmap(p2t.permuted_params)(state, params)
    for i, (params_alone, state_alone) in enumerate(alone(name)):
        assert_identical(member(params, i), params_alone)
        assert_identical(member(final, i), p2t.permuted_params(state_alone, params_alone))
    assert jax.vmap(p2t.is_permutation)(final, ENSEMBLE).all()


def test_members_at_different_steps(name):
    """Member i has i steps behind it when the ensemble is put together."""
    tx = TX[name]

    def train(steps):
        return helpers.train_jit(tx, grads=jax.tree.map(lambda g: g[:steps], GRADS))

    ensemble = helpers.stack([train(i) for i in range(MEMBERS)])
    grads = [jax.tree.map(lambda g, i=i: g[i : i + 4], GRADS) for i in range(MEMBERS)]
    step = jax.jit(jax.vmap(functools.partial(helpers.step, tx=tx)))
    params, _ = helpers.train(step, *ensemble, helpers.stack(grads, axis=1))
    for i in range(MEMBERS):
        assert_identical(member(params, i), train(i + 4)[0])


def test_members_may_share_the_state():
    """Sorted weights without the ensemble's axis, parameters whose axis is the last."""
    state = TX["laperm"].init(PARAMS)
    last = jax.tree.map(lambda w: np.moveaxis(w, 0, -1), ENSEMBLE)
    final = jax.vmap(p2t.permuted_params, in_axes=(None, -1), out_axes=1)(state, last)
    for i in range(MEMBERS):
        one = p2t.permuted_params(state, member(ENSEMBLE, i))
        assert_identical(member(final, i, axis=1), one)


# What is computed, and when


def test_ensemble_ranks_only_when_a_member_synchronizes(host_calls):
    periods = np.array([2, 3])
    params = jax.tree.map(lambda w: w[:2], ENSEMBLE)
    state = jax.vmap(lambda k, params: make_member("laperm", k).init(params))(periods, params)
    jax.block_until_ready(state)  # `init` sorts on the host
    step = jax.jit(jax.vmap(functools.partial(member_step, "laperm")))
    ranked = []
    for i in range(helpers.STEPS):
        host_calls.clear()
        grads = jax.tree.map(lambda g, i=i: g[i, :2], ENSEMBLE_GRADS)
        params, state = step(periods, params, state, grads)
        jax.block_until_ready(state)
        ranked.append(bool(host_calls))
    assert ranked == [False, True, True, True, False, True, False]


@pytest.mark.parametrize("mapped", [False, True])
def test_synchronization_stays_conditional(mapped):
    tx = TX["laperm"]
    step, init = functools.partial(helpers.step, tx=tx), tx.init
    step, init = (jax.vmap(step), jax.vmap(init)) if mapped else (step, init)
    params = ENSEMBLE if mapped else PARAMS
    compiled = jax.jit(step).lower(params, init(params), params).compile()
    assert compiled.as_text().count(" while(") == 1  # of no turns or one
    assert helpers.doors_in(compiled) == ["ffi"]  # once, for all kernels together


def test_no_recompilation(name):
    chex.clear_trace_counter()

    @jax.jit
    @chex.assert_max_traces(n=1)
    def step(*args):
        return helpers.step(*args, TX[name])

    params = jax.tree.map(jnp.asarray, PARAMS)
    helpers.train(step, params, TX[name].init(params))
    step(params, OPTIMIZERS[name]().init(params), member(GRADS, 0))  # a state made anew
    assert step._cache_size() == 1


def plain_step(tx, params, state, grads):
    return helpers.step(params, state, grads, tx)


def vmapped_step(tx, params, state, grads):
    add = jax.tree.map(lambda g: jnp.stack([g, -g]), grads)
    steps = jax.vmap(functools.partial(helpers.step, tx=tx), (None, None, 0))
    return jax.tree.map(lambda x: x[0], steps(params, state, add))


def differentiated_step(tx, params, state, grads):
    def loss(params):
        new, after = helpers.step(params, state, grads, tx)
        return optax.tree.norm(new), (new, after)

    return jax.grad(loss, has_aux=True)(params)[1]


@pytest.mark.parametrize("host_callback", [True, False])
@pytest.mark.parametrize("step", [plain_step, vmapped_step, differentiated_step])
def test_no_recompilation_without_jit(step, host_callback, name, caplog):
    """A program a step would cost a hundred times the step, and stay in memory."""
    tx = OPTIMIZERS[name](host_callback=host_callback)
    params = jax.tree.map(jnp.asarray, {"Dense_1": PARAMS["Dense_1"]})
    grads = {"Dense_1": GRADS["Dense_1"]}
    once = functools.partial(step, tx)
    params, state = helpers.train(once, params, tx.init(params), grads)
    with jax.log_compiles():
        helpers.train(once, params, state, grads)
    assert not [record.message for record in caplog.records if "Compiling" in record.message]


# init


def test_init_under_jit(name):
    tx = TX[name]
    state, jitted = tx.init(PARAMS), jax.jit(tx.init)(PARAMS)
    assert_identical(jitted, state)
    assert jax.tree.map(jax.typeof, jitted) == jax.tree.map(jax.typeof, state)


@pytest.mark.parametrize("way", ["eval_shape", "structs", "jit of structs"])
def test_init_of_shapes(way, name):
    init = OPTIMIZERS[name](optax.adam(0.1)).init
    structs = jax.eval_shape(lambda: jax.tree.map(jnp.asarray, PARAMS))
    shapes = {
        "eval_shape": lambda: jax.eval_shape(init, PARAMS),
        "structs": lambda: init(structs),
        "jit of structs": lambda: jax.eval_shape(jax.jit(init), structs),
    }[way]()
    chex.assert_trees_all_equal_shapes_and_dtypes(shapes, init(PARAMS))


@pytest.mark.parametrize("wrap", [lambda init: init, jax.jit], ids=["eager", "jit"])
def test_donation(wrap, name):
    tx = TX[name]
    params = jax.tree.map(jnp.array, PARAMS)
    state = wrap(tx.init)(params)
    step = jax.jit(functools.partial(helpers.step, tx=tx), donate_argnums=(0, 1))
    for i in range(helpers.STEPS):
        before = jax.tree.leaves((params, state))
        params, state = step(params, state, member(GRADS, i))
        assert all(x.is_deleted() for x in before)
    assert_identical((params, state), expected(name)[:2])


def test_initial_params_are_copied(name):
    """NumPy arrays that change afterwards, device arrays that are deleted afterwards."""
    init = TX[name].init
    params = jax.tree.map(np.array, PARAMS)
    state = init(params)
    for w in jax.tree.leaves(params):
        w[:] = 0
    assert_identical(state, init(PARAMS))
    params = jax.tree.map(jnp.array, PARAMS)
    state = init(params)
    for w in jax.tree.leaves(params):
        w.delete()
    assert_identical(state, init(PARAMS))


# Choices between states


@pytest.mark.parametrize("how", ["cond", "where"])
def test_a_step_may_be_refused(how, name):
    tx = TX[name]
    step = functools.partial(helpers.step, tx=tx)

    @jax.jit
    def maybe(accepts, *args):
        old = args[:2]
        if how == "cond":
            return jax.lax.cond(accepts, step, lambda *args: args[:2], *args)
        return jax.tree.map(functools.partial(jnp.where, accepts), step(*args), old)

    params = jax.tree.map(jnp.asarray, PARAMS)
    args = params, tx.init(params), member(GRADS, 0)
    assert_identical(maybe(True, *args), helpers.jitted_step(tx)(*args))
    assert_identical(maybe(False, *args), args[:2])


def test_multi_steps(name):
    """Every second mini-step updates, with the mean of the gradients: exact on their grid."""
    tx = optax.MultiSteps(TX[name], every_k_schedule=2).gradient_transformation()
    twice = jax.tree.map(lambda g: np.stack([g - 1, g + 1], 1).reshape(-1, *g.shape[1:]), GRADS)
    params, state = jax.jit(functools.partial(helpers.train_scan, tx))(PARAMS, twice)
    assert_identical(params, expected(name)[0])
    assert_identical(p2t.permuted_params(state, params), expected(name)[2])
