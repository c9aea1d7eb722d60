"""The exact permutation comes out of any nesting of optimizer states, at any step, and after saving.

Also what a rule remembers of itself inside a state: it need not be told again.
"""

import copy
import pickle
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import serialization
from flax.core import freeze

import p2t_jax as p2t

KEY = jax.random.key(0)
PARAMS = {
    "body": {"bias": jnp.zeros(3), "kernel": jax.random.normal(KEY, (5, 3))},
    "head": {"bias": jnp.zeros(2), "kernel": jax.random.normal(KEY, (3, 2))},
}
AXES = {"body": {"bias": None, "kernel": (0,)}, "head": {"bias": None, "kernel": (0,)}}


def grads_at(params: Any, step: int) -> Any:
    """Gradients that depend on the parameters, so that an error in them shows ever after."""
    return jax.tree.map(lambda p: jnp.sin(3 * p + step) + 0.1 * p, params)


def train(tx: Any, params: Any, state: Any, steps: range) -> Any:
    """Yields the parameters and state after each step."""

    @jax.jit
    def train_step(params, state, i):
        updates, state = tx.update(grads_at(params, i), state, params)
        return optax.apply_updates(params, updates), state

    for i in steps:
        params, state = train_step(params, state, i)
        yield params, state


def reordered(initial: Any, reference: Any, axes: Any) -> np.ndarray:
    """The initial weights in the order of the reference, in plain NumPy."""
    last = tuple(range(-len(axes), 0))
    w, r = (np.moveaxis(np.asarray(x), axes, last) for x in (initial, reference))
    rows = (*w.shape[: -len(axes)], -1)
    rank = np.argsort(np.argsort(r.reshape(rows), kind="stable"), kind="stable")
    out = np.take_along_axis(np.sort(w.reshape(rows)), rank, axis=-1)
    return np.moveaxis(out.reshape(w.shape), last, axes)


def assert_permuted(final: Any, initial: Any, params: Any, axes: Any = AXES) -> None:
    """Permuted where axes are, in the order of params; exactly params elsewhere."""
    assert jax.tree.structure(final) == jax.tree.structure(params)
    flat_axes = jax.tree.leaves(axes, is_leaf=lambda x: x is None or isinstance(x, tuple))
    leaves = map(jax.tree.leaves, (final, initial, params))
    for leaf, start, now, leaf_axes in zip(*leaves, flat_axes, strict=True):
        expected = now if leaf_axes is None else reordered(start, now, leaf_axes)
        np.testing.assert_array_equal(leaf, expected)
        assert leaf.dtype == now.dtype


def assert_equal(actual: Any, expected: Any) -> None:
    assert jax.tree.structure(actual) == jax.tree.structure(expected)
    jax.tree.map(np.testing.assert_array_equal, actual, expected)


def laperm(k: int = 3, **options: Any) -> optax.GradientTransformation:
    return p2t.laperm(optax.adam(0.1), sync_period=k, **options)


def labels(params: Any) -> Any:
    return {name: jax.tree.map(lambda _: name, part) for name, part in params.items()}


only_body = {"body": True, "head": False}
kernels = jax.tree.map(lambda p: p.ndim > 1, PARAMS)
inject = optax.inject_hyperparams(p2t.laperm, static_args=("vectors",))

# Where both kernels are permuted.
NESTINGS = {
    "alone": laperm(),
    "a bare link": optax.chain(optax.sgd(0.1), p2t.synchronize(3)),
    "chain": optax.chain(optax.clip_by_global_norm(1.0), laperm()),
    "chain of chains": optax.chain(optax.chain(optax.identity()), optax.chain(laperm())),
    "named_chain": optax.named_chain(("clip", optax.clip(1.0)), ("train", laperm())),
    "masked biases": optax.chain(
        optax.masked(optax.sgd(0.1), jax.tree.map(lambda m: not m, kernels)),
        optax.masked(laperm(), kernels),
    ),
    "a masked inner": p2t.laperm(optax.masked(optax.adam(0.1), kernels), 3),
    "partition in two periods": optax.partition({"body": laperm(2), "head": laperm(3)}, labels),
    "partition inside": p2t.laperm(
        optax.partition({"body": optax.adam(0.1), "head": optax.sgd(0.1)}, labels), 3
    ),
    "inject_hyperparams": inject(optax.adam(0.1), sync_period=3),
    "inject_hyperparams inside": p2t.laperm(optax.inject_hyperparams(optax.adam)(0.1), 3),
    "MultiSteps": optax.MultiSteps(laperm(2), 2),
    "MultiSteps that skips": optax.MultiSteps(
        laperm(2), 2, should_skip_update_fn=optax.skip_not_finite
    ),
    "apply_if_finite": optax.apply_if_finite(laperm(), 2),
    "conditionally_mask": optax.conditionally_mask(laperm(2), lambda step: step % 2 == 0),
    "conditionally_transform": optax.conditionally_transform(laperm(2), lambda step: step % 3 > 0),
    "flatten inside": p2t.laperm(optax.flatten(optax.adam(0.1)), 3),
    "all at once": optax.apply_if_finite(
        optax.named_chain(
            ("clip", optax.clip(1.0)),
            (
                "train",
                optax.partition(
                    {
                        "body": optax.MultiSteps(inject(optax.adam(0.1), 2), 2),
                        "head": optax.chain(optax.masked(laperm(3), {"body": None, "head": True})),
                    },
                    labels,
                ),
            ),
        ),
        2,
    ),
}
# Where something else trains the head.
OF_THE_BODY = {
    "masked": optax.masked(laperm(), only_body),
    "masked by a function": optax.masked(laperm(), lambda params: only_body),
    "partition with sgd": optax.partition({"body": laperm(), "head": optax.sgd(0.1)}, labels),
    "freeze": optax.chain(
        laperm(vectors={"body": AXES["body"], "head": None}),
        optax.freeze({"body": False, "head": True}),
    ),
    "selective_transform": optax.selective_transform(
        laperm(), freeze_mask={"body": False, "head": True}
    ),
    "two that share no parameter": optax.chain(
        optax.masked(optax.sgd(0.1), {"body": False, "head": True}),
        optax.masked(laperm(), only_body),
    ),
}


@pytest.mark.parametrize("name", [*NESTINGS, *OF_THE_BODY])
def test_permutations_come_out_of_any_nesting_at_any_step(name):
    tx = NESTINGS.get(name) or OF_THE_BODY[name]
    axes = AXES if name in NESTINGS else {**AXES, "head": {"bias": None, "kernel": None}}
    state = tx.init(PARAMS)
    assert_permuted(p2t.permuted_params(state, PARAMS), PARAMS, PARAMS, axes)
    assert_equal(p2t.permuted_params(state, PARAMS), PARAMS)
    synchronized = []
    for params, state in train(tx, PARAMS, state, range(6)):
        final = p2t.permuted_params(state, params)
        assert_permuted(final, PARAMS, params, axes)
        body = final["body"]["kernel"], params["body"]["kernel"]
        synchronized.append(np.allclose(*body, atol=1e-6))
    assert any(synchronized), "the body was never synchronized: what is tested here?"
    assert not all(synchronized)
    assert not np.array_equal(final["body"]["kernel"], PARAMS["body"]["kernel"])
