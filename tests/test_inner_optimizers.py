"""Any optimizer of Optax looks ahead, or recommends."""

import chex
import helpers
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from conventions import DENSE, OPTIMIZERS, assert_close, numbers, reordered, squared_distance
from optax import contrib

import p2t_jax as p2t

# Inner optimizers: all of Optax's. Every one is given every extra argument that one of them needs.

ALIASES = """
adabelief adadelta adagrad adam adamax adamaxw adamw adan amsgrad fromage lamb lars lion nadam
nadamw novograd optimistic_adam_v2 optimistic_gradient_descent polyak_sgd radam rmsprop rprop sgd
sign_sgd signum sm3 yogi
"""
CONTRIBUTED = """
acprop ademamix adopt cocob dadapt_adamw dog dowg madgrad momo momo_adam muon prodigy
schedule_free_adamw schedule_free_sgd simplified_ademamix sophia
"""
INNERS = {
    **{name: getattr(optax, name)(0.1) for name in ALIASES.split()},
    **{name: getattr(contrib, name)(0.1) for name in CONTRIBUTED.split()},
    "adafactor": optax.adafactor(0.1),
    "adafactor-factored": optax.adafactor(0.1, min_dim_size_to_factor=1),
    "backtracking": optax.chain(
        optax.sgd(1.0), optax.scale_by_backtracking_linesearch(max_backtracking_steps=5)
    ),
    "galore": contrib.galore(0.1, rank=2),
    "lbfgs": optax.lbfgs(0.1, linesearch=None),
    "mechanize": contrib.mechanize(optax.sgd(0.1)),
    "momentum": optax.sgd(0.1, momentum=0.9, nesterov=True),
    "noisy_sgd": optax.noisy_sgd(0.1, key=0),
    "reduce_on_plateau": optax.chain(optax.sgd(0.1), contrib.reduce_on_plateau(patience=1)),
    "schedule_free": contrib.schedule_free(optax.sgd(0.1), 0.1),
}


# One for each kind of state and of arguments. The others run with the slow tests.
KINDS = """
adafactor-factored adam adamw backtracking dog galore lbfgs lion mechanize momentum momo muon
noisy_sgd novograd optimistic_gradient_descent polyak_sgd prodigy reduce_on_plateau
schedule_free_adamw sgd signum sm3 sophia
"""


def loss_for_inners(params, obj_fn=None, unknown=None):
    """A line search hands extra arguments on to it."""
    return squared_distance(numbers(1, DENSE))(params)


def extra_args(value, grads):
    loss = loss_for_inners
    return {"value": value, "grad": grads, "value_fn": loss, "obj_fn": loss, "unknown": 1}


@pytest.mark.parametrize(
    "inner_name",
    [i if i in KINDS.split() else helpers.slow(i) for i in INNERS],
)
def test_any_inner_optimizer_looks_ahead_and_its_order_is_kept(inner_name):
    inner = optax.with_extra_args_support(INNERS[inner_name])
    tx = p2t.laperm(INNERS[inner_name], sync_period=2)
    chex.clear_trace_counter()

    @jax.jit
    # Optax's line search has a number of weak type in its first state, alone too.
    @chex.assert_max_traces(n=2 if inner_name == "backtracking" else 1)
    def step(params, state):
        value, grads = jax.value_and_grad(loss_for_inners)(params)
        extra = extra_args(value, grads)
        alone, _ = inner.update(grads, state[0], params, **extra)
        updates, state = tx.update(grads, state, params, **extra)
        return optax.apply_updates(params, updates), state, optax.apply_updates(params, alone)

    params = initial = numbers(0, DENSE)
    state = tx.init(params)
    moved = 0
    for i in range(1, 6):
        before = params
        params, state, ahead = step(params, state)
        moved += not np.array_equal(ahead["kernel"], before["kernel"])
        size = max(jnp.abs(before[name]).max() for name in before)  # updates are added to these
        assert_close(params, ahead if i % 2 else reordered(initial, ahead), size)
        chex.assert_trees_all_equal(
            p2t.permuted_params(state, params), reordered(initial, params if i % 2 else ahead)
        )
    assert moved >= 3  # or this shows nothing


@pytest.mark.parametrize("inner_name", ["adamw", "lion", "momo", "muon", "sgd"])
def test_any_inner_optimizer_recommends(inner_name):
    tx = OPTIMIZERS["sgperm"](INNERS[inner_name])

    @jax.jit
    def step(params, state):
        value, grads = jax.value_and_grad(loss_for_inners)(params)
        updates, state = tx.update(grads, state, params, **extra_args(value, grads))
        return optax.apply_updates(params, updates), state

    params = initial = numbers(0, DENSE)
    state = tx.init(params)
    for _ in range(4):
        params, state = step(params, state)
    final = p2t.permuted_params(state, params)
    helpers.assert_permuted("sgperm", final, initial, params, {"bias": None, "kernel": (0,)})
    assert helpers.moved(final, initial)[0] > 0.3
    chex.assert_trees_all_equal(params["bias"], initial["bias"])  # held


def test_types_are_kept_with_any_inner_optimizer(name):
    params = numbers(0, DENSE, jnp.bfloat16)
    for inner in INNERS.values():  # some give updates in float32
        tx = OPTIMIZERS[name](inner)
        state = jax.eval_shape(tx.init, params)

        def update(params, state, tx=tx):
            return tx.update(params, state, params, **extra_args(jnp.array(1.0), params))

        updates, after = jax.eval_shape(update, params, state)
        chex.assert_trees_all_equal_dtypes(updates, params)
        chex.assert_trees_all_equal_shapes_and_dtypes(after[1], state[1])


@pytest.mark.parametrize("inner_name", ["momo", "reduce_on_plateau", "backtracking"])
def test_extra_arguments_that_an_inner_optimizer_needs_are_missed_by_itself(inner_name, name):
    params = numbers(0)
    tx = OPTIMIZERS[name](INNERS[inner_name])
    with pytest.raises(TypeError, match=r"missing .*argument.*'value"):
        tx.update(params, tx.init(params), params)


@pytest.mark.parametrize(
    ("inner_name", "sync_period"), [("adam", 10), ("momentum", 1), ("sgd", 10), ("sgd", 25)]
)
def test_laperm_converges_to_the_permutation_that_is_asked_for(inner_name, sync_period):
    initial, other = numbers(0, {"kernel": (6, 3)}), numbers(1, {"kernel": (6, 3)})
    target = reordered(initial, other)
    final = optimized(p2t.laperm(INNERS[inner_name], sync_period), initial, target)
    chex.assert_trees_all_equal(final, target)


def test_sgperm_approaches_the_permutation_that_is_asked_for():
    keys = jax.random.split(jax.random.key(0))
    initial, other = ({"kernel": jax.random.uniform(key, (100, 3))} for key in keys)
    target = reordered(initial, other)
    final = optimized(p2t.sgperm(0, 0.1, 0.25, inner=optax.sgd(1.0)), initial, target)
    distance = squared_distance(target)
    assert distance(final) < 0.1 * distance(initial)


def test_sgperm_draws_other_partitions_for_each_parameter_and_step_and_key():
    kernel, grads = (jax.random.normal(key, (40, 3)) for key in jax.random.split(jax.random.key(0)))
    params, updates = ({"a": x, "b": x} for x in (kernel, grads))

    def permuted(key, step):
        tx = p2t.cycle_permutation(key, 0.3, 0.25, vectors=0)
        state = optax.tree.set(tx.init(params), sgperm_step=jnp.array(step))
        return p2t.permuted_params(tx.update(updates, state, params)[1], params)

    results = [permuted(0, 0), permuted(0, 1), permuted(1, 0)]
    kernels = [np.asarray(kernel) for tree in results for kernel in tree.values()]
    assert len({kernel.tobytes() for kernel in kernels}) == 6
    chex.assert_trees_all_equal(permuted(0, 0), results[0])


def optimized(tx, initial, target):
    def step(carry, _):
        params, state = carry
        grads = jax.grad(squared_distance(target))(params)
        return helpers.step(params, state, grads, tx), None

    @jax.jit
    def train(params):
        return jax.lax.scan(step, (params, tx.init(params)), length=100)[0]

    params, state = train(initial)
    return p2t.permuted_params(state, params)
