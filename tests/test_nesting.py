"""The exact permutation comes out of any nesting of states, at any step, and after saving them."""

import copy
import functools
import pickle
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import reference_laperm as reference
from flax import serialization
from flax.core import freeze

import p2t_jax as p2t

pytestmark = pytest.mark.usefixtures("compile_fast")

KEY = jax.random.key(0)
PARAMS = {
    "body": {"bias": jnp.zeros(3), "kernel": 0.1 * jax.random.normal(KEY, (5, 3))},
    "head": {"bias": jnp.zeros(2), "kernel": 0.1 * jax.random.normal(KEY, (3, 2))},
}
AXES = {"body": {"bias": None, "kernel": (0,)}, "head": {"bias": None, "kernel": (0,)}}


@functools.cache
def training_step(tx: Any) -> Any:
    @jax.jit
    def step(params, state, i):
        # They depend on the parameters: a wrong one would show ever after.
        grads = jax.tree.map(lambda p: jnp.sin(30 * p + i) + 0.1 * p, params)
        updates, state = tx.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    return step


def train(tx: Any, params: Any, state: Any, steps: Any) -> Any:
    step = training_step(tx)
    for i in steps:
        params, state = step(params, state, i)
    return params, state


def assert_permuted(final: Any, initial: Any, params: Any, axes: Any = AXES) -> None:
    """The initial weights in the order of params where there are axes; exactly params elsewhere."""
    assert jax.tree.structure(final) == jax.tree.structure(params)
    leaves = map(jax.tree.structure(params).flatten_up_to, (final, initial, params, axes))
    for leaf, theta, phi, leaf_axes in zip(*leaves, strict=True):
        expected = phi
        if leaf_axes is not None:
            theta_sorted = reference.sort_weight_vectors(np.array(theta), leaf_axes)
            expected = reference.synchronize(theta_sorted, np.asarray(phi), leaf_axes)
        np.testing.assert_array_equal(leaf, expected)


def assert_equal(actual: Any, expected: Any) -> None:
    assert jax.tree.structure(actual) == jax.tree.structure(expected)
    jax.tree.map(np.testing.assert_array_equal, actual, expected)


def laperm(k: int = 3, vectors: Any = p2t.flax_vectors) -> optax.GradientTransformationExtraArgs:
    return p2t.laperm(optax.sgd(0.1, momentum=0.9), sync_period=k, vectors=vectors)


def labels(params: Any) -> Any:
    return {name: jax.tree.map(lambda _: name, part) for name, part in params.items()}


inject = optax.inject_hyperparams(p2t.laperm, static_args=("vectors",))
kernels = jax.tree.map(lambda p: p.ndim > 1, PARAMS)
not_kernels = jax.tree.map(lambda kernel: not kernel, kernels)
only_body = {"body": True, "head": False}
only_head = {"body": False, "head": True}

OF_ALL = {
    "alone": laperm(),
    "a bare link": optax.chain(optax.sgd(0.1), p2t.synchronize(3)),
    "chain": optax.chain(optax.clip_by_global_norm(1.0), laperm()),
    "chain of chains": optax.chain(optax.chain(optax.identity()), optax.chain(laperm())),
    "named_chain": optax.named_chain(("clip", optax.clip(1.0)), ("train", laperm())),
    "masked biases": optax.chain(
        optax.masked(optax.sgd(0.1), not_kernels), optax.masked(laperm(), kernels)
    ),
    "masked inside": p2t.laperm(optax.masked(optax.adam(0.1), kernels), 3),
    "partition in two periods": optax.partition({"body": laperm(2), "head": laperm(3)}, labels),
    "partition inside": p2t.laperm(
        optax.partition({"body": optax.adam(0.1), "head": optax.sgd(0.1)}, labels), 3
    ),
    "inject_hyperparams": inject(optax.adam(0.1), sync_period=3),
    "inject_hyperparams inside": p2t.laperm(optax.inject_hyperparams(optax.adam)(0.1), 3),
    "MultiSteps": optax.MultiSteps(laperm(2), 2),
    "MultiSteps that may skip": optax.MultiSteps(
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
                        "head": optax.chain(optax.identity(), laperm(3)),
                    },
                    labels,
                ),
            ),
        ),
        2,
    ),
}
OF_THE_BODY = {  # and something else, or nothing, trains the head
    "masked": optax.masked(laperm(), only_body),
    "masked by a function": optax.masked(laperm(), lambda params: only_body),
    "partition with sgd": optax.partition({"body": laperm(), "head": optax.sgd(0.1)}, labels),
    "freeze": optax.chain(
        laperm(vectors={"body": AXES["body"], "head": None}), optax.freeze(only_head)
    ),
    "selective_transform": optax.selective_transform(laperm(), freeze_mask=only_head),
}


@pytest.mark.parametrize("name", [*OF_ALL, *OF_THE_BODY])
def test_permutations_come_out_of_any_nesting_at_any_step(name):
    axes = AXES if name in OF_ALL else {**AXES, "head": {"bias": None, "kernel": None}}
    tx = (OF_ALL | OF_THE_BODY)[name]
    step = training_step(tx)
    params, state = PARAMS, tx.init(PARAMS)
    assert_equal(p2t.permuted_params(state, params), PARAMS)
    rounding_errors = []
    for i in range(6):
        params, state = step(params, state, i)
        final = p2t.permuted_params(state, params)
        assert_permuted(final, PARAMS, params, axes)
        bodies = final["body"]["kernel"], params["body"]["kernel"]
        rounding_errors.append(np.allclose(*bodies, rtol=0, atol=1e-6))
    assert any(rounding_errors), "the body was never synchronized: what is tested here?"
    assert not all(rounding_errors)
    assert not np.array_equal(final["body"]["kernel"], PARAMS["body"]["kernel"])


def test_groups_synchronize_in_their_own_periods():
    tx = OF_ALL["partition in two periods"]
    step = training_step(tx)
    params, state = PARAMS, tx.init(PARAMS)
    synchronized = {"body": [], "head": []}
    for i in range(1, 7):
        params, state = step(params, state, i)
        final = p2t.permuted_params(state, params)
        for group, steps in synchronized.items():
            kernels = final[group]["kernel"], params[group]["kernel"]
            steps += [i] * np.allclose(*kernels, rtol=0, atol=1e-6)
    assert synchronized == {"body": [2, 4, 6], "head": [3, 6]}


def test_permuted_params_can_be_jitted_and_differs_in_no_bit():
    tx = OF_ALL["all at once"]
    params, state = train(tx, PARAMS, tx.init(PARAMS), range(3))
    final = p2t.permuted_params(state, params)
    assert_equal(jax.jit(p2t.permuted_params)(state, params), final)


def test_permuted_params_of_an_ensemble_is_vmapped():
    tx = optax.apply_if_finite(laperm(2), 2)
    two = jax.tree.map(lambda p: jnp.stack([p, -p]), PARAMS)
    states = jax.vmap(tx.init)(two)
    params = jax.tree.map(lambda p: p[:, ::-1], two)
    for member, final in enumerate(2 * [jax.vmap(p2t.permuted_params)(states, params)]):
        pick = lambda tree, i=member: jax.tree.map(lambda p: p[i], tree)  # noqa: E731
        assert_permuted(pick(final), pick(two), pick(params))
    with pytest.raises(ValueError, match=r"state: .*use jax\.vmap\(p2t_jax\.permuted_params\)"):
        p2t.permuted_params(states, params)


def test_optax_flatten_around_laperm_is_refused():
    """A flat vector is no neuron's weights."""
    tx = optax.flatten(laperm())
    with pytest.raises(ValueError, match="state: it belongs to other parameters"):
        p2t.permuted_params(tx.init(PARAMS), PARAMS)


# The rule need not be told again.


class Named(NamedTuple):
    w: Any
    gain: Any


def outputs_first(path: Any, leaf: Any) -> Any:
    return 1 if path[-1] == "w" else None


def random(*shape: int) -> jax.Array:
    return 0.1 * jax.random.normal(KEY, shape)


mlp = eqx.filter(eqx.nn.MLP(3, 2, 4, 1, key=KEY), eqx.is_inexact_array)
RULES = {
    "rule": (outputs_first, [Named(random(3, 5), random(4))], [Named((1,), None)]),
    "lambda": (lambda path, leaf: (0, 2), {"w": random(3, 2, 2)}, {"w": (0, 2)}),
    "tree": ({"w": 1, "gain": None}, Named(random(3, 5), random(4)), Named((1,), None)),
    "prefix tree": (
        {"body": (0, 1), "head": None},
        freeze({"body": {"a": random(4, 2), "b": random(2, 2)}, "head": [random(3, 2)]}),
        freeze({"body": {"a": (0, 1), "b": (0, 1)}, "head": [None]}),
    ),
    "tree with a rule": (
        {"body": outputs_first, "head": 0},
        {"body": {"w": random(4, 2)}, "head": random(3, 2)},
        {"body": {"w": (1,)}, "head": (0,)},
    ),
    "bare axes": (-1, random(3, 5), (1,)),
    "stacked": (
        p2t.stacked(p2t.flax_vectors),
        {"kernel": random(2, 4, 3), "bias": random(2, 3)},
        {"bias": None, "kernel": (1,)},
    ),
    "equinox": (
        p2t.equinox_vectors,
        mlp,
        jax.tree.map(lambda p: (1,) if p.ndim > 1 else None, mlp),
    ),
}


@pytest.mark.parametrize("name", RULES)
def test_a_state_remembers_its_rule(name):
    vectors, initial, axes = RULES[name]
    tx = optax.chain(optax.clip(1.0), laperm(2, vectors))
    params, state = train(tx, initial, tx.init(initial), range(3))
    final = p2t.permuted_params(state, params)
    assert_permuted(final, initial, params, axes)
    assert bool(p2t.is_permutation(final, initial, vectors=vectors))
    assert not bool(p2t.is_permutation(params, initial, vectors=vectors))


def test_two_groups_remember_two_rules():
    axes = {"body": {"bias": (0,), "kernel": (0,)}, "head": {"bias": None, "kernel": (1,)}}
    tx = optax.partition(
        {"body": laperm(2, 0), "head": laperm(2, lambda path, p: 1 if p.ndim > 1 else None)}, labels
    )
    params, state = train(tx, PARAMS, tx.init(PARAMS), range(3))
    assert_permuted(p2t.permuted_params(state, params), PARAMS, params, axes)


# Saving


def flax_bytes(state: Any, target: Any) -> Any:
    return serialization.from_bytes(target, serialization.to_bytes(state))


def flax_state_dict(state: Any, target: Any) -> Any:
    return serialization.from_state_dict(target, serialization.to_state_dict(state))


def numpy_leaves(state: Any, target: Any) -> Any:
    leaves = [np.asarray(leaf) for leaf in jax.tree.leaves(state)]
    return jax.tree.unflatten(jax.tree.structure(target), leaves)


def pickled(state: Any, target: Any) -> Any:
    return pickle.loads(pickle.dumps(state))


def copied(state: Any, target: Any) -> Any:
    return copy.deepcopy(state)


WAYS = [numpy_leaves, pickled, copied, flax_bytes, flax_state_dict]


@pytest.mark.parametrize("name", ["alone", "MultiSteps", "partition in two periods"])
@pytest.mark.parametrize("way", WAYS)
def test_a_saved_state_goes_on_as_if_nothing_had_happened(way, name):
    tx = OF_ALL[name]
    params, state = train(tx, PARAMS, tx.init(PARAMS), range(4))  # 4: in the middle of a period
    restored = way(state, tx.init(PARAMS))
    assert_equal(restored, state)
    assert_equal(p2t.permuted_params(restored, params), p2t.permuted_params(state, params))
    assert_equal(train(tx, params, restored, range(4, 8)), train(tx, params, state, range(4, 8)))


def no_vectors(path: Any, leaf: Any) -> None:
    return None


REBUILT = {
    "flax_vectors": lambda: p2t.flax_vectors,
    "tree": lambda: {"body": {"bias": None, "kernel": 0}, "head": {"bias": None, "kernel": [0]}},
    "tree with a rule": lambda: {"body": p2t.flax_vectors, "head": None},
    "stacked": lambda: p2t.stacked(no_vectors),
    "lambda": lambda: lambda path, leaf: p2t.flax_vectors(path, leaf),
}


@pytest.mark.parametrize("name", REBUILT)
def test_an_optimizer_built_anew_continues_a_state(name):
    tx, again = laperm(vectors=REBUILT[name]()), laperm(vectors=REBUILT[name]())
    params, state = train(tx, PARAMS, tx.init(PARAMS), range(4))
    expected, _ = train(tx, params, state, range(4, 8))
    restored = numpy_leaves(state, again.init(PARAMS))
    continued, last = train(again, params, restored, range(4, 8))
    assert_equal(continued, expected)
    assert int(optax.tree.get(last, "sync_step")) == 8


@pytest.mark.parametrize("name", ["flax_vectors", "tree", "tree with a rule"])
def test_the_same_rule_gives_the_same_structure(name):
    """So that a step that was compiled for one state runs with the other, and `tree.map` too."""
    states = [laperm(vectors=REBUILT[name]()).init(PARAMS) for _ in range(2)]
    assert jax.tree.structure(states[0]) == jax.tree.structure(states[1])
    assert hash(jax.tree.structure(states[0])) == hash(jax.tree.structure(states[1]))


def test_another_rule_gives_another_structure():
    rules = [p2t.flax_vectors, p2t.haiku_vectors, 0, (0,), None, {"w": 0}, {"w": None}]
    states = [laperm(vectors=rule).init({"w": random(3, 2)}) for rule in rules]
    assert len({jax.tree.structure(state) for state in states}) == len(rules)


# Tools for trees


def test_states_are_ordinary_trees():
    tx = laperm()
    params, state = train(tx, PARAMS, tx.init(PARAMS), range(4))
    final = p2t.permuted_params(state, params)
    on_the_host = jax.tree.map(np.asarray, state)
    assert_equal(p2t.permuted_params(on_the_host, jax.tree.map(np.asarray, params)), final)
    assert_equal(p2t.permuted_params(jax.device_put(state), params), final)
    leaves, treedef = jax.tree.flatten(state)
    assert_equal(p2t.permuted_params(jax.tree.unflatten(treedef, leaves), params), final)
    assert all(isinstance(leaf, jax.Array) for leaf in leaves)


def test_the_tree_tools_of_optax_take_states():
    tx = laperm()
    _, state = train(tx, PARAMS, tx.init(PARAMS), range(4))
    zeros = optax.tree.zeros_like(state)
    assert jax.tree.structure(zeros) == jax.tree.structure(state)
    assert_equal(optax.tree.add(state, zeros), state)
    assert optax.tree.size(state) == 2 * optax.tree.size(PARAMS) + 2  # momentum, sorted; counters
