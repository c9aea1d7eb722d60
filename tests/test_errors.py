"""What goes wrong is said at the call that can see it, and breaks nothing; NaN loses no weight."""

import functools

import chex
import helpers
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from helpers import INJECT_LAPERM, OPTIMIZERS
from two_layers import AXES, PARAMS, SGD

import p2t_jax as p2t

GRADS = jax.tree.map(lambda p: np.sin(100 * p + 1), PARAMS)


def with_kernel(kernel):
    return {**PARAMS, "body": {**PARAMS["body"], "kernel": kernel}}


# Where an optimizer is made


NO_NUMBER = {
    "string": ("20", TypeError),
    "0-d array of a string": (np.array("20"), TypeError),
    "None": (None, TypeError),
    "True": (True, TypeError),
    "numpy True": (np.True_, (TypeError, ValueError)),
    "array of True": (jnp.array(True), (TypeError, ValueError)),
    "two numbers": (np.array([2, 3]), ValueError),
    "one number in an array": (jnp.array([2]), ValueError),
    "list": ([2, 3], TypeError),
    "complex": (2 + 0j, TypeError),
    "numpy complex": (np.complex64(2), (TypeError, ValueError)),
    "array of complex": (jnp.array(2 + 1j), (TypeError, ValueError)),
    "optimizer": (SGD, TypeError),
    "0": (0, ValueError),
    "negative": (-3, ValueError),
    "NaN": (float("nan"), ValueError),
    "-inf": (-float("inf"), ValueError),
    "numpy 0": (np.int32(0), ValueError),
    "numpy NaN": (np.float32("nan"), ValueError),
    "array of 0": (jnp.array(0), ValueError),
}
BELOW_1 = {"below 1": (0.5, ValueError)}
ABOVE_1 = {"above 1": (1.1, ValueError), "inf": (np.inf, ValueError)}
HYPERPARAMETERS = {
    "sync_period": (NO_NUMBER | BELOW_1, [functools.partial(p2t.laperm, SGD), p2t.synchronize]),
    "aggressiveness": (
        NO_NUMBER | ABOVE_1,
        [functools.partial(make, 0) for make in (p2t.sgperm, p2t.cycle_permutation)],
    ),
    "partition_ratio": (
        NO_NUMBER | ABOVE_1,
        [functools.partial(make, 0, 0.1) for make in (p2t.sgperm, p2t.cycle_permutation)],
    ),
}


@pytest.mark.parametrize("hyperparameter", HYPERPARAMETERS)
def test_hyperparameters_are_real_numbers_in_their_range(hyperparameter):
    values, makers = HYPERPARAMETERS[hyperparameter]
    for value, error in values.values():
        for make in makers:
            with pytest.raises(error, match=rf"^{hyperparameter}: "):
                make(value)
            with pytest.raises(error, match=rf"^{hyperparameter}: "):
                make(lambda step, value=value: value)


@pytest.mark.parametrize("k", [20.5, np.float32(1.5), np.array(2.5), 2**31, np.int64(2**40)])
def test_a_sync_period_is_whole_and_can_be_reached(k):
    for make in (functools.partial(p2t.laperm, SGD), p2t.synchronize):
        with pytest.raises(ValueError, match=r"^sync_period: must be (a whole|below)"):
            make(k)


@pytest.mark.parametrize("k", [2.0, np.float32(2), np.array(2.0), np.uint8(2), jnp.array(2.0)])
def test_a_whole_number_may_be_a_float(k):
    tx = p2t.laperm(SGD, k)
    _, state = tx.update(GRADS, tx.init(PARAMS), PARAMS)
    _, state = tx.update(GRADS, state, PARAMS)
    assert int(optax.tree.get(state, "lookahead_step")) == 0


@pytest.mark.parametrize("how", ["schedule", "array", "injected", "injected schedule"])
def test_a_fraction_of_a_schedule_counts_as_the_next_whole_number(how):
    tx = {
        "schedule": lambda: p2t.laperm(SGD, optax.exponential_decay(1.5, 100, 1.1)),
        "array": lambda: p2t.laperm(SGD, jnp.array(1.5)),
        "injected": lambda: INJECT_LAPERM(inner=SGD, sync_period=1.5),
        "injected schedule": lambda: INJECT_LAPERM(
            inner=SGD, sync_period=optax.constant_schedule(1.5)
        ),
    }[how]()
    state = tx.init(PARAMS)
    for update, steps in ((tx.update, 1), (jax.jit(tx.update), 0)):
        _, state = update(GRADS, state, PARAMS)
        assert int(optax.tree.get(state, "lookahead_step")) == steps


def test_an_infinite_sync_period_never_ends():
    tx = p2t.laperm(SGD, float("inf"))
    assert int(tx.update(GRADS, tx.init(PARAMS), PARAMS)[1][1].lookahead_step) == 1


@pytest.mark.parametrize("hyperparameter", HYPERPARAMETERS)
def test_an_injected_hyperparameter_is_seen_in_init(hyperparameter):
    tx = OPTIMIZERS["laperm" if hyperparameter == "sync_period" else "sgperm"]
    tx = tx.injected(**{hyperparameter: 0})
    with pytest.raises(ValueError, match=rf"^{hyperparameter}: .* 0"):
        tx.init(PARAMS)


@pytest.mark.parametrize("later", [0, -1.5, float("nan")])
def test_a_schedule_that_fails_later_is_seen_in_an_eager_update(later, name):
    schedule = lambda step: jnp.where(step < 1, 1.0, later)  # noqa: E731
    tx = p2t.laperm(SGD, schedule) if name == "laperm" else p2t.sgperm(0, schedule)
    argument = {"laperm": "sync_period", "sgperm": "aggressiveness"}[name]
    updates, state = tx.update(GRADS, tx.init(PARAMS), PARAMS)
    params = optax.apply_updates(PARAMS, updates)
    before = p2t.permuted_params(state, params)
    with pytest.raises(ValueError, match=rf"^{argument}: .* {later}"):
        tx.update(GRADS, state, params)
    # Under jit nobody sees it: every step synchronizes; nothing moves.
    updates, state = jax.jit(tx.update)(GRADS, state, params)
    params = optax.apply_updates(params, updates)
    final = p2t.permuted_params(state, params)
    helpers.assert_permuted(name, final, PARAMS, params, AXES)
    if name == "laperm":
        assert int(optax.tree.get(state, "lookahead_step")) == 0
    else:
        chex.assert_trees_all_equal(final, before)


@pytest.mark.parametrize("later", ["20", None, np.array([1, 2])])
def test_a_schedule_of_no_numbers_is_refused_at_the_call(later, name):
    make = {"laperm": lambda k: p2t.laperm(SGD, k), "sgperm": lambda alpha: p2t.sgperm(0, alpha)}
    with pytest.raises((TypeError, ValueError), match=r"^(sync_period|aggressiveness): "):
        make[name](lambda step: later)


@pytest.mark.parametrize("inner", [optax.adam, None, 1e-3, "adam", optax.adam(0.1).update, {}])
def test_inner_is_an_optimizer(inner):
    with pytest.raises(TypeError, match=r"^inner: .*optax\.adam\(1e-3\)"):
        p2t.laperm(inner, 20)


# In init


@pytest.mark.parametrize("empty", [{}, [], (), None, {"a": {}}, {"a": [None, ()], "b": {}}])
def test_there_is_something_to_train(empty, name):
    for inner in (SGD, optax.adam(0.1)):
        tx = OPTIMIZERS[name](inner)
        for nested in (tx, optax.chain(optax.clip(1.0), tx)):
            with pytest.raises(ValueError, match=r"^params: .*no parameters"):
                nested.init(empty)


@pytest.mark.parametrize(
    ("axes", "error", "says"),
    [
        (2, ValueError, "-2 to 1"),
        ((0, -3), ValueError, "-2 to 1"),
        ((0, -2), ValueError, "twice"),
        ((1, 1), ValueError, "twice"),
        ((), ValueError, "at least one axis"),
        (0.0, TypeError, "int"),
    ],
)
def test_axes_that_a_parameter_lacks_are_named_with_its_path(axes, error, says, name):
    rule = lambda path, leaf: axes if path == ("body", "kernel") else None  # noqa: E731
    tree = {"body": {"bias": None, "kernel": axes}, "head": None}
    for vectors in (rule, tree):
        with pytest.raises(error, match=rf"^vectors: .*body/kernel.*\(20, 3\).*{says}"):
            OPTIMIZERS[name](vectors=vectors).init(PARAMS)


def test_parameters_that_no_rule_knows_are_named(name):
    params = {**PARAMS, "mine": {"matrix": jnp.ones((2, 3))}}
    with pytest.raises(ValueError, match=r"(?s)^vectors: flax_vectors .*mine/matrix.*\(2, 3\)"):
        OPTIMIZERS[name]().init(params)
    with pytest.raises(ValueError, match=r"^vectors: .*'mine'"):
        OPTIMIZERS[name](vectors={"body": None, "head": None}).init(params)


@pytest.mark.parametrize("dtype", ["int32", "uint8", "bool", "complex64"])
def test_only_real_numbers_are_weights(dtype, name):
    params = with_kernel(jnp.ones((20, 3), dtype))
    with pytest.raises(TypeError, match=rf"^vectors: .*body/kernel .*dtype {dtype}"):
        OPTIMIZERS[name]().init(params)
    # They may be there, if they are no weight vectors.
    tx = OPTIMIZERS[name](vectors={"body": None, "head": 0})
    assert p2t.permuted_params(tx.init(params), params)["body"]["kernel"].dtype == dtype


# In update and afterwards: a state, updates or parameters that do not belong together.

# For each, other parameters, and what an error must say besides.
OTHERS = {
    "another structure": ({"body": PARAMS["body"]}, "head|structure|Dict"),
    "another name": ({"body": PARAMS["body"], "tail": PARAMS["head"]}, "tail"),
    "another shape": (
        with_kernel(jnp.arange(12.0).reshape(4, 3)),
        r"body/kernel.*params has float32\[20, 3\]",
    ),
    "another rank": (
        with_kernel(jnp.arange(15.0).reshape(5, 3, 1)),
        r"body/kernel.*params has float32\[20, 3\]",
    ),
    "another bias": (
        {**PARAMS, "body": {**PARAMS["body"], "bias": jnp.zeros(4)}},
        r"body/bias.*params has float32\[3\]",
    ),
}


@pytest.mark.parametrize("wrap", [lambda update: update, jax.jit], ids=["eager", "jit"])
@pytest.mark.parametrize("other", OTHERS)
def test_a_state_of_other_parameters(other, wrap, name):
    params, says = OTHERS[other]
    tx = OPTIMIZERS[name](SGD, vectors=lambda path, leaf: 0 if leaf.ndim > 1 else None)
    with pytest.raises(ValueError, match=rf"^state: .*({says})"):
        wrap(tx.update)(GRADS, tx.init(params), PARAMS)


@pytest.mark.parametrize("wrap", [lambda update: update, jax.jit], ids=["eager", "jit"])
@pytest.mark.parametrize("other", OTHERS)
def test_updates_of_other_parameters(other, wrap, name):
    updates, says = OTHERS[other]
    tx = OPTIMIZERS[name](SGD)
    with pytest.raises(ValueError, match=rf"^updates: .*({says})"):
        wrap(tx.update)(updates, tx.init(PARAMS), PARAMS)


@pytest.mark.parametrize(
    ("initial", "now"),
    [("float32", "bfloat16"), ("bfloat16", "float32"), ("float32", "float16")],
)
def test_a_state_of_parameters_of_another_dtype(initial, now, name):
    tx = OPTIMIZERS[name](SGD)
    state = tx.init(jax.tree.map(lambda p: p.astype(initial), PARAMS))
    params = jax.tree.map(lambda p: p.astype(now), PARAMS)
    for update in (tx.update, jax.jit(tx.update)):
        with pytest.raises(ValueError, match=r"^state: .*float.*body/bias"):
            update(params, state, params)


@pytest.mark.parametrize("other", ["another name", "another shape", "another rank", "another bias"])
def test_permuted_params_of_other_parameters(other, name):
    params, _ = OTHERS[other]
    path = {"another name": "head/kernel", "another bias": "body/bias"}.get(other, "body/kernel")
    with pytest.raises(ValueError, match=rf"^state: .*{path}"):
        p2t.permuted_params(OPTIMIZERS[name]().init(PARAMS), params)


def test_permuted_params_of_another_dtype(name):
    halves = jax.tree.map(lambda p: p.astype(jnp.bfloat16), PARAMS)
    with pytest.raises(ValueError, match=r"^state: .*float32\[3\].*body/bias.*bfloat16\[3\]"):
        p2t.permuted_params(OPTIMIZERS[name]().init(PARAMS), halves)


@pytest.mark.parametrize("state", [SGD.init(PARAMS), optax.adam(0.1).init(PARAMS), (), None])
def test_permuted_params_of_an_optimizer_without_permutations(state):
    with pytest.raises(ValueError, match=r"^state: .*no .*laperm or .*sgperm"):
        p2t.permuted_params(state, PARAMS)


@pytest.mark.parametrize("other", OTHERS)
def test_is_permutation_of_other_parameters(other):
    params, says = OTHERS[other]
    with pytest.raises(ValueError, match=rf"^initial_params: .*({says})"):
        p2t.is_permutation(PARAMS, params)


def test_is_permutation_of_another_dtype():
    kernel = PARAMS["body"]["kernel"].round(0)
    assert bool(p2t.is_permutation(with_kernel(kernel), with_kernel(kernel)))
    assert not bool(p2t.is_permutation(with_kernel(kernel), with_kernel(kernel.astype("bfloat16"))))


def test_the_check_names_each_parameter_that_is_no_permutation_and_the_first_vector():
    before = {
        "a": np.arange(12.0).reshape(3, 4),
        "b": np.arange(6.0).reshape(3, 2),
        "c": np.ones(2),
    }
    before = {layer: {"kernel": jnp.asarray(w)} for layer, w in before.items()}
    p2t.check_permutation(jax.tree.map(lambda w: w[::-1], before), before)
    after = {**before, "a": {"kernel": before["a"]["kernel"].at[1, 2:].set(0.5)}}
    after["b"] = {"kernel": before["b"]["kernel"].astype(jnp.bfloat16)}
    says = (
        r"a/kernel \(3, 4\).*\(0,\): 2 of 4, the first is \[2\]\n  b/kernel .*: 2 of 2, the first"
    )
    with pytest.raises(ValueError, match=says) as error:
        p2t.check_permutation(after, before)
    assert "c/kernel" not in str(error.value)
    assert not p2t.is_permutation(after, before)


def test_an_axis_that_is_not_bound_is_refused():
    tx = OPTIMIZERS["sgperm"](share_over="batch")
    with pytest.raises(ValueError, match=r"^share_over: .*'batch'"):
        tx.update(GRADS, tx.init(PARAMS), PARAMS)


# Nothing is half-changed


def test_training_goes_on_after_an_error_as_if_there_had_been_none(name):
    other, another = OTHERS["another shape"][0], OTHERS["another name"][0]
    tx = OPTIMIZERS[name](optax.sgd(0.1, momentum=0.9))
    update = jax.jit(tx.update)

    def train(bad):
        params, state = jax.tree.map(jnp.copy, PARAMS), tx.init(PARAMS)
        for _ in range(4):
            for updates, params_given in bad:
                for failing in (update, tx.update):
                    # The inner optimizer is the first to see some of them.
                    with pytest.raises((TypeError, ValueError), match=r"param|shape"):
                        failing(updates, state, params_given)
                with pytest.raises(ValueError, match=r"^state: "):
                    p2t.permuted_params(state, another)
            updates, state = update(GRADS, state, params)
            params = optax.apply_updates(params, updates)
        return params, state, p2t.permuted_params(state, params)

    bad = [(GRADS, None), (other, PARAMS), (GRADS, other)]
    chex.assert_trees_all_equal(train(bad), train([]))


# Imports


def test_importing_waits_for_no_library_that_may_be_missing_or_slow():
    optional = ["numba", "flax", "matplotlib", "equinox", "haiku", "orbax", "sklearn", "tqdm"]
    code = f"import sys, p2t_jax; print([name for name in {optional} if name in sys.modules])"
    assert helpers.in_a_new_process(code) == "[]"
