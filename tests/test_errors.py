"""What goes wrong is said at the call that can see it, and breaks nothing; NaN loses no weight."""

import subprocess
import sys
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import reference_laperm as reference

import p2t_jax as p2t

PARAMS = {
    "body": {"bias": jnp.zeros(3), "kernel": 0.1 * jax.random.normal(jax.random.key(0), (5, 3))},
    "head": {"kernel": 0.1 * jax.random.normal(jax.random.key(1), (3, 2))},
}
GRADS = jax.tree.map(lambda p: jnp.sin(100 * p + 1), PARAMS)
SGD = optax.sgd(0.1)


def laperm(sync_period: Any = 2, **options: Any) -> optax.GradientTransformationExtraArgs:
    return p2t.laperm(SGD, sync_period, **options)


def with_kernel(kernel: Any) -> Any:
    return {**PARAMS, "body": {**PARAMS["body"], "kernel": kernel}}


def assert_equal(actual: Any, expected: Any) -> None:
    assert jax.tree.structure(actual) == jax.tree.structure(expected)
    jax.tree.map(np.testing.assert_array_equal, actual, expected)


def reordered(phi: Any) -> Any:
    """The initial weights in the order of phi, NaN last."""

    def leaf(theta: Any, phi: Any) -> Any:
        if phi.ndim < 2:
            return np.asarray(phi)
        theta_sorted = reference.sort_weight_vectors(np.array(theta), (0,))
        return reference.synchronize(theta_sorted, np.asarray(phi), (0,))

    return jax.tree.map(leaf, PARAMS, phi)


# Where an optimizer is made


NOT_A_PERIOD = {
    "0": (0, ValueError),
    "negative": (-3, ValueError),
    "below 1": (0.5, ValueError),
    "NaN": (float("nan"), ValueError),
    "-inf": (-float("inf"), ValueError),
    "numpy 0": (np.int32(0), ValueError),
    "numpy NaN": (np.float32("nan"), ValueError),
    "array of 0": (jnp.array(0), ValueError),
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
}


@pytest.mark.parametrize("name", NOT_A_PERIOD)
def test_sync_period_is_a_real_number_of_at_least_1(name):
    sync_period, error = NOT_A_PERIOD[name]
    for make in (laperm, p2t.synchronize):
        with pytest.raises(error, match=r"^sync_period: "):
            make(sync_period)
        with pytest.raises(error, match=r"^sync_period: "):
            make(lambda step: sync_period)


def test_an_injected_sync_period_is_seen_in_init():
    inject = optax.inject_hyperparams(p2t.laperm, static_args="vectors")
    with pytest.raises(ValueError, match=r"^sync_period: .*not 0"):
        inject(SGD, sync_period=0).init(PARAMS)


@pytest.mark.parametrize("later", [0, -1.5, float("nan")])
def test_a_schedule_that_fails_later_is_seen_in_an_eager_update(later):
    tx = laperm(lambda step: jnp.where(step < 1, 5.0, later))
    _, state = tx.update(GRADS, tx.init(PARAMS), PARAMS)
    with pytest.raises(ValueError, match=rf"^sync_period: .*not {later}"):
        tx.update(GRADS, state, PARAMS)
    updates, state = jax.jit(tx.update)(GRADS, state, PARAMS)  # cannot see it: counts as 1
    assert int(optax.tree.get(state, "lookahead_step")) == 0
    ahead = jax.tree.map(lambda p, g: p - 0.1 * g, PARAMS, GRADS)
    params = optax.apply_updates(PARAMS, updates)
    assert_equal(p2t.permuted_params(state, params), reordered(ahead))


@pytest.mark.parametrize("later", ["20", None, np.array([1, 2])])
def test_a_schedule_of_no_numbers_is_seen_under_jit_too(later):
    tx = laperm(lambda step: 5 if isinstance(step, int) else later)
    with pytest.raises((TypeError, ValueError), match=r"^sync_period: "):
        jax.jit(tx.update)(GRADS, tx.init(PARAMS), PARAMS)


@pytest.mark.parametrize("inner", [optax.adam, None, 1e-3, "adam", optax.adam(0.1).update, {}])
def test_inner_is_an_optimizer(inner):
    with pytest.raises(TypeError, match=r"^inner: .*such as optax\.adam\(1e-3\), not "):
        p2t.laperm(inner, 20)


# In init


@pytest.mark.parametrize("empty", [{}, [], (), None, {"a": {}}, {"a": [None, ()], "b": {}}])
@pytest.mark.parametrize("inner", [SGD, optax.adam(0.1)])
def test_there_is_something_to_train(empty, inner):
    for tx in (p2t.laperm(inner, 2), optax.chain(optax.clip(1.0), p2t.laperm(inner, 2))):
        with pytest.raises(ValueError, match=r"^params: there are no parameters in "):
            tx.init(empty)


@pytest.mark.parametrize(
    ("axes", "error", "says"),
    [
        (2, ValueError, "its axes are -2 to 1"),
        ((0, -3), ValueError, "its axes are -2 to 1"),
        ((0, -2), ValueError, "named twice"),
        ((1, 1), ValueError, "named twice"),
        ((), ValueError, "at least one axis"),
        ("0", TypeError, "give an int"),
        (0.0, TypeError, "give an int"),
    ],
)
def test_axes_that_a_parameter_lacks_are_named_with_its_path(axes, error, says):
    rule = lambda path, leaf: axes if path == ("body", "kernel") else None  # noqa: E731
    tree = {"body": {"bias": None, "kernel": axes}, "head": None}
    for vectors in (rule, tree):
        with pytest.raises(error, match=rf"^vectors: axes .*body/kernel of shape \(5, 3\).*{says}"):
            laperm(vectors=vectors).init(PARAMS)


def test_parameters_that_no_rule_knows_are_named():
    params = {**PARAMS, "mine": {"matrix": jnp.ones((2, 3))}}
    with pytest.raises(
        ValueError, match=r"^vectors: flax_vectors .* mine/matrix, of shape \(2, 3\)"
    ):
        laperm().init(params)
    with pytest.raises(ValueError, match=r"^vectors: the tree of axes .*root.*'mine'"):
        laperm(vectors={"body": None, "head": None}).init(params)


@pytest.mark.parametrize("dtype", ["int32", "uint8", "bool", "complex64"])
def test_only_real_numbers_are_weights(dtype):
    params = with_kernel(jnp.ones((5, 3), dtype))
    with pytest.raises(TypeError, match=rf"^vectors: .*body/kernel .*dtype {dtype}"):
        laperm().init(params)
    # They may be there, if they are no weight vectors.
    tx = laperm(vectors={"body": None, "head": 0})
    assert p2t.permuted_params(tx.init(params), params)["body"]["kernel"].dtype == dtype


# In update and afterwards: a state, updates or parameters that do not belong together.


OTHERS = {
    "another structure": ({"body": PARAMS["body"]}, "head|structure|Dict"),
    "another name": ({"body": PARAMS["body"], "tail": PARAMS["head"]}, "tail"),
    "another shape": (
        with_kernel(jnp.ones((4, 3))),
        r"for body/kernel, where params has float32\[5, 3\]",
    ),
    "another rank": (
        with_kernel(jnp.ones((5, 3, 1))),
        r"for body/kernel, where params has float32\[5, 3\]",
    ),
    "another bias": (
        {**PARAMS, "body": {**PARAMS["body"], "bias": jnp.zeros(4)}},
        r"for body/bias, where params has float32\[3\]",
    ),
}


@pytest.mark.parametrize("name", OTHERS)
def test_a_state_of_other_parameters(name):
    other, says = OTHERS[name]
    tx = laperm(vectors=lambda path, leaf: 0 if leaf.ndim > 1 else None)
    state = tx.init(other)
    for update in (tx.update, jax.jit(tx.update)):
        with pytest.raises(
            ValueError, match=rf"^state: it belongs to other parameters: .*({says})"
        ):
            update(GRADS, state, PARAMS)


@pytest.mark.parametrize("name", OTHERS)
def test_updates_of_other_parameters(name):
    other, says = OTHERS[name]
    tx = laperm()
    state = tx.init(PARAMS)
    for update in (tx.update, jax.jit(tx.update)):
        with pytest.raises(
            ValueError, match=rf"^updates: it belongs to other parameters: .*({says})"
        ):
            update(other, state, PARAMS)


@pytest.mark.parametrize(
    ("initial", "now"),
    [("float32", "bfloat16"), ("bfloat16", "float32"), ("float32", "float16")],
)
def test_a_state_of_parameters_of_another_dtype(initial, now):
    tx = laperm(1)
    state = tx.init(jax.tree.map(lambda p: p.astype(initial), PARAMS))
    params = jax.tree.map(lambda p: p.astype(now), PARAMS)
    for update in (tx.update, jax.jit(tx.update)):
        with pytest.raises(ValueError, match=r"^state: it belongs to other parameters: .*float"):
            update(params, state, params)


@pytest.mark.parametrize("name", ["another name", "another shape", "another rank", "another bias"])
def test_permuted_params_of_other_parameters(name):
    other, _ = OTHERS[name]
    path = {"another name": "head/kernel", "another bias": "body/bias"}.get(name, "body/kernel")
    with pytest.raises(ValueError, match=rf"^state: it belongs to other parameters: .*{path}"):
        p2t.permuted_params(laperm().init(PARAMS), other)


def test_permuted_params_of_another_dtype():
    halves = jax.tree.map(lambda p: p.astype(jnp.bfloat16), PARAMS)
    with pytest.raises(ValueError, match=r"^state: .*float32\[3\] for body/bias.*bfloat16\[3\]"):
        p2t.permuted_params(laperm().init(PARAMS), halves)


@pytest.mark.parametrize("state", [SGD.init(PARAMS), optax.adam(0.1).init(PARAMS), (), None])
def test_permuted_params_of_an_optimizer_without_laperm(state):
    with pytest.raises(
        ValueError, match=r"^state: there is no state of p2t_jax\.laperm or p2t_jax\.sgperm in it"
    ):
        p2t.permuted_params(state, PARAMS)


@pytest.mark.parametrize("name", OTHERS)
def test_is_permutation_of_other_parameters(name):
    other, says = OTHERS[name]
    with pytest.raises(
        ValueError, match=rf"^initial_params: it belongs to other parameters: .*({says})"
    ):
        p2t.is_permutation(PARAMS, other)


def test_is_permutation_of_another_dtype():
    kernel = PARAMS["body"]["kernel"].round(0)
    assert bool(p2t.is_permutation(with_kernel(kernel), with_kernel(kernel)))
    assert not bool(p2t.is_permutation(with_kernel(kernel), with_kernel(kernel.astype("bfloat16"))))


# Nothing is half-changed


def test_training_goes_on_after_an_error_as_if_there_had_been_none():
    bad = {
        "no params": (GRADS, None),
        "other updates": (OTHERS["another shape"][0], PARAMS),
        "other params": (GRADS, OTHERS["another shape"][0]),
    }

    def train(between):
        tx = p2t.laperm(optax.sgd(0.1, momentum=0.9), 2)
        update = jax.jit(tx.update)
        params, state = jax.tree.map(jnp.copy, PARAMS), tx.init(PARAMS)
        for _ in range(3):
            for updates, other in between.values():
                for failing in (update, tx.update):
                    # The inner optimizer is the first to see some of them.
                    with pytest.raises((TypeError, ValueError), match=r"params|parameters|shape"):
                        failing(updates, state, other)
            with pytest.raises(ValueError, match="other parameters"):
                p2t.permuted_params(state, OTHERS["another name"][0])
            updates, state = update(GRADS, state, params)
            params = optax.apply_updates(params, updates)
        return params, state, p2t.permuted_params(state, params)

    assert_equal(train(bad), train({}))


# Gradients that are not finite


def train_with(bad: dict[int, float], inner: Any, steps: int = 6, wrap: Any = lambda tx: tx) -> Any:
    """Yields parameters and exact permutation of each step; `bad` are steps with bad gradients."""
    tx = wrap(p2t.laperm(inner, 3))
    update = jax.jit(tx.update)
    params, state = PARAMS, tx.init(PARAMS)
    for i in range(1, steps + 1):
        grads = jax.tree.map(lambda p: jnp.sin(100 * p + i), params)
        if i in bad:
            kernel = grads["body"]["kernel"].at[1:3, 0].set(bad[i])
            grads["body"]["kernel"] = kernel.at[0, 1].set(-bad[i])
        updates, state = update(grads, state, params)
        params = optax.apply_updates(params, updates)
        yield params, p2t.permuted_params(state, params)


BAD = [
    {2: np.nan},
    {3: np.nan},
    {2: np.inf},
    {3: np.inf},
    {1: np.nan, 3: -np.inf, 4: np.nan},
    dict.fromkeys(range(1, 7), np.nan),
]


@pytest.mark.parametrize("bad", BAD, ids=str)
@pytest.mark.parametrize("inner", [SGD, optax.adam(0.1)], ids=["sgd", "adam"])
def test_gradients_that_are_not_finite_lose_no_weight(bad, inner):
    for params, final in train_with(bad, inner):
        assert_equal(final, reordered(params))
        assert bool(p2t.is_permutation(final, PARAMS))


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_weights_recover_from_gradients_that_were_not_finite_when_they_synchronized(value):
    for i, (params, final) in enumerate(train_with({3: value}, SGD), start=1):
        assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(params))
        if i % 3 == 0:
            jax.tree.map(
                lambda p, f: np.testing.assert_allclose(p, f, rtol=0, atol=1e-6), params, final
            )


def test_a_nan_ranks_last():
    *_, (_, final) = train_with({3: np.nan}, SGD, steps=3)
    kernel, start = final["body"]["kernel"], np.sort(PARAMS["body"]["kernel"], axis=0)
    np.testing.assert_array_equal(kernel[1:3, 0], start[-2:, 0])  # two, tied: in their order
    np.testing.assert_array_equal(kernel[0, 1], start[-1, 1])


def test_apply_if_finite_keeps_nan_out():
    wrap = lambda tx: optax.apply_if_finite(tx, 5)  # noqa: E731
    for params, final in train_with({2: np.nan, 4: np.inf}, SGD, steps=8, wrap=wrap):
        assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(params))
        assert_equal(final, reordered(params))


# Imports


def test_importing_waits_for_no_library_that_may_be_missing_or_slow():
    optional = ["numba", "flax", "matplotlib", "equinox", "haiku", "orbax", "sklearn", "tqdm"]
    code = f"import sys, p2t_jax; print([name for name in {optional} if name in sys.modules])"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"
