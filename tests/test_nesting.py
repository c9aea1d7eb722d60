"""The exact permutation comes out of any nesting of states, at any step, and after saving them."""

import copy
import functools
import pickle
from typing import Any, NamedTuple

import chex
import equinox as eqx
import helpers
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import serialization
from flax.core import freeze
from helpers import OPTIMIZERS

import p2t_jax as p2t

RNG = np.random.default_rng(0)


def random(*shape):
    return jnp.asarray(0.1 * RNG.normal(size=shape), jnp.float32)


PARAMS = {
    "body": {"bias": jnp.zeros(3), "kernel": random(24, 3)},
    "head": {"bias": jnp.zeros(2), "kernel": random(20, 2)},
}
AXES = {"body": {"bias": None, "kernel": (0,)}, "head": {"bias": None, "kernel": (0,)}}


@functools.cache
def training_step(tx):
    @jax.jit
    def step(params, state, i):
        # They depend on the parameters: a wrong one would show ever after.
        grads = jax.tree.map(lambda p: jnp.sin(30 * p + i) + 0.1 * p, params)
        return helpers.step(params, state, grads, tx)

    return step


def train(tx, params, state, steps):
    for i in steps:
        params, state = training_step(tx)(params, state, i)
    return params, state


def labels(params):
    return {name: jax.tree.map(lambda _: name, part) for name, part in params.items()}


kernels = jax.tree.map(lambda p: p.ndim > 1, PARAMS)
not_kernels = jax.tree.map(lambda kernel: not kernel, kernels)
only_body = {"body": True, "head": False}
only_head = {"body": False, "head": True}
BODY_AXES = {"body": AXES["body"], "head": None}


# For each, what makes it of (the optimizer, what makes more of them, the optimizer's name).
OF_ALL = {
    "alone": lambda tx, make, name: tx,
    "a bare link": lambda tx, make, name: optax.chain(optax.sgd(0.1), OPTIMIZERS[name].link()),
    "chain": lambda tx, make, name: optax.chain(optax.clip_by_global_norm(1.0), tx),
    "chain of chains": lambda tx, make, name: optax.chain(
        optax.chain(optax.identity()), optax.chain(tx)
    ),
    "named_chain": lambda tx, make, name: optax.named_chain(("c", optax.clip(1.0)), ("t", tx)),
    "masked biases": lambda tx, make, name: optax.chain(
        optax.masked(optax.sgd(0.1), not_kernels), optax.masked(tx, kernels)
    ),
    "masked inside": lambda tx, make, name: make(optax.masked(optax.adam(0.1), kernels)),
    "partition in two": lambda tx, make, name: optax.partition(
        {"body": make(optax.sgd(0.1)), "head": tx}, labels
    ),
    "partition inside": lambda tx, make, name: make(
        optax.partition({"body": optax.adam(0.1), "head": optax.sgd(0.1)}, labels)
    ),
    "inject_hyperparams": lambda tx, make, name: OPTIMIZERS[name].injected(),
    "inject_hyperparams inside": lambda tx, make, name: make(
        optax.inject_hyperparams(optax.adam)(0.1)
    ),
    "MultiSteps": lambda tx, make, name: optax.MultiSteps(tx, 2),
    "MultiSteps that may skip": lambda tx, make, name: optax.MultiSteps(
        tx, 2, should_skip_update_fn=optax.skip_not_finite
    ),
    "apply_if_finite": lambda tx, make, name: optax.apply_if_finite(tx, 2),
    "conditionally_mask": lambda tx, make, name: optax.conditionally_mask(
        tx, lambda step: step % 2 == 0
    ),
    "conditionally_transform": lambda tx, make, name: optax.conditionally_transform(
        tx, lambda step: step % 3 > 0
    ),
    "flatten inside": lambda tx, make, name: make(optax.flatten(optax.adam(0.1))),
    "all at once": lambda tx, make, name: optax.apply_if_finite(
        optax.named_chain(
            ("clip", optax.clip(1.0)),
            (
                "train",
                optax.partition(
                    {
                        "body": optax.MultiSteps(OPTIMIZERS[name].injected(), 2),
                        "head": optax.chain(optax.identity(), tx),
                    },
                    labels,
                ),
            ),
        ),
        2,
    ),
}
OF_THE_BODY = {  # and something else, or nothing, trains the head
    "masked": lambda tx, make, name: optax.masked(tx, only_body),
    "masked by a function": lambda tx, make, name: optax.masked(tx, lambda params: only_body),
    "partition with sgd": lambda tx, make, name: optax.partition(
        {"body": tx, "head": optax.sgd(0.1)}, labels
    ),
    "freeze": lambda tx, make, name: optax.chain(make(vectors=BODY_AXES), optax.freeze(only_head)),
    "selective_transform": lambda tx, make, name: optax.selective_transform(
        tx, freeze_mask=only_head
    ),
}


@functools.cache
def nested(nesting, name):
    make = OPTIMIZERS[name]
    return (OF_ALL | OF_THE_BODY)[nesting](make(optax.sgd(0.1, momentum=0.9)), make, name)


MORE = (  # of the others' kinds
    "chain of chains", "named_chain", "masked inside", "partition inside", "flatten inside",
    "inject_hyperparams inside", "MultiSteps that may skip", "masked by a function",
)  # fmt: skip


@pytest.mark.parametrize(
    "nesting", [helpers.slow(n) if n in MORE else n for n in OF_ALL | OF_THE_BODY]
)
def test_permutations_come_out_of_any_nesting_at_any_step(nesting, name):
    axes = AXES if nesting in OF_ALL else BODY_AXES | {"head": {"bias": None, "kernel": None}}
    tx = nested(nesting, name)
    params, state = PARAMS, tx.init(PARAMS)
    chex.assert_trees_all_equal(p2t.permuted_params(state, params), PARAMS)
    for i in range(7):
        params, state = training_step(tx)(params, state, i)
        final = p2t.permuted_params(state, params)
        if nesting != "conditionally_transform" or name == "laperm" or i % 3:
            helpers.assert_permuted(name, final, PARAMS, params, axes)
        # Else gradients have passed by SGPerm, and the parameters are no permutation.
    assert helpers.moved(final["body"], PARAMS["body"])[0] > 0.3
    assert bool(p2t.is_permutation(final, PARAMS, vectors=axes))


def test_groups_synchronize_in_their_own_periods():
    tx = optax.partition(
        {"body": p2t.laperm(optax.sgd(0.1), 2), "head": p2t.laperm(optax.sgd(0.1), 3)}, labels
    )
    params, state = PARAMS, tx.init(PARAMS)
    synchronized = {"body": [], "head": []}
    for i in range(1, 7):
        params, state = training_step(tx)(params, state, i)
        final = p2t.permuted_params(state, params)
        for group, steps in synchronized.items():
            kernels = final[group]["kernel"], params[group]["kernel"]
            steps += [i] * np.allclose(*kernels, rtol=0, atol=1e-6)
    assert synchronized == {"body": [2, 4, 6], "head": [3, 6]}


def test_permuted_params_can_be_jitted_and_differs_in_no_bit(name):
    tx = nested("all at once", name)
    params, state = train(tx, PARAMS, tx.init(PARAMS), range(3))
    final = p2t.permuted_params(state, params)
    helpers.assert_identical(jax.jit(p2t.permuted_params)(state, params), final)


def test_permuted_params_of_an_ensemble_is_vmapped(name):
    tx = optax.apply_if_finite(OPTIMIZERS[name](), 2)
    two = jax.tree.map(lambda p: jnp.stack([p, -p]), PARAMS)
    states = jax.vmap(tx.init)(two)
    # LAPerm permutes what it is given, SGPerm knows the weights.
    params = jax.tree.map(lambda p: p[:, ::-1], two) if OPTIMIZERS[name].follows_params else two
    final = jax.vmap(p2t.permuted_params)(states, params)
    for i in range(2):
        members = (helpers.member(tree, i) for tree in (final, two, params))
        helpers.assert_permuted(name, *members, AXES)
    with pytest.raises(ValueError, match=r"state: .*use jax\.vmap\(p2t_jax\.permuted_params\)"):
        p2t.permuted_params(states, params)


# The rule need not be told again.


class Named(NamedTuple):
    w: Any
    gain: Any


def outputs_first(path, leaf):
    return 1 if path[-1] == "w" else None


mlp = eqx.filter_eval_shape(eqx.nn.MLP, 24, 2, 20, 1, key=jax.random.key(0))
is_array = lambda leaf: isinstance(leaf, jax.ShapeDtypeStruct)  # noqa: E731
mlp = jax.tree.map(lambda p: random(*p.shape), eqx.filter(mlp, is_array))
RULES = {
    "rule": (outputs_first, [Named(random(3, 20), random(4))], [Named((1,), None)]),
    "lambda": (lambda path, leaf: (0, 2), {"w": random(5, 2, 4)}, {"w": (0, 2)}),
    "tree": ({"w": 1, "gain": None}, Named(random(3, 20), random(4)), Named((1,), None)),
    "prefix tree": (
        {"body": (0, 1), "head": None},
        freeze({"body": {"a": random(12, 2), "b": random(5, 4)}, "head": [random(3, 2)]}),
        freeze({"body": {"a": (0, 1), "b": (0, 1)}, "head": [None]}),
    ),
    "tree with a rule": (
        {"body": outputs_first, "head": 0},
        {"body": {"w": random(4, 20)}, "head": random(20, 2)},
        {"body": {"w": (1,)}, "head": (0,)},
    ),
    "bare axes": (-1, random(3, 20), (1,)),
    "stacked": (
        p2t.stacked(p2t.flax_vectors),
        {"kernel": random(2, 20, 3), "bias": random(2, 3)},
        {"bias": None, "kernel": (1,)},
    ),
    "equinox": (
        p2t.equinox_vectors,
        mlp,
        jax.tree.map(lambda p: (1,) if p.ndim > 1 else None, mlp),
    ),
}


@pytest.mark.parametrize("rule", RULES)
def test_a_state_remembers_its_rule(rule, name):
    vectors, initial, axes = RULES[rule]
    tx = optax.chain(optax.clip(1.0), OPTIMIZERS[name](optax.sgd(0.1), vectors=vectors))
    params, state = train(tx, initial, tx.init(initial), range(4))
    final = p2t.permuted_params(state, params)
    helpers.assert_permuted(name, final, initial, params, axes)
    assert max(helpers.moved(final, initial)) > 0.2
    assert bool(p2t.is_permutation(final, initial, vectors=vectors))


@pytest.mark.filterwarnings("ignore:vectors. the weight vectors of body/bias")
def test_two_groups_remember_two_rules(name):
    axes = {"body": {"bias": (0,), "kernel": (0,)}, "head": {"bias": None, "kernel": (1,)}}
    rules = {"body": 0, "head": lambda path, p: 1 if p.ndim > 1 else None}
    make = functools.partial(OPTIMIZERS[name], optax.sgd(0.1))
    tx = optax.partition({group: make(vectors=rule) for group, rule in rules.items()}, labels)
    initial = {**PARAMS, "body": {**PARAMS["body"], "bias": random(3)}}  # not zeros: it is permuted
    params, state = train(tx, initial, tx.init(initial), range(3))
    helpers.assert_permuted(name, p2t.permuted_params(state, params), initial, params, axes)


# Saving


def flax_bytes(state, target):
    return serialization.from_bytes(target, serialization.to_bytes(state))


def flax_state_dict(state, target):
    return serialization.from_state_dict(target, serialization.to_state_dict(state))


def numpy_leaves(state, target):
    leaves = [np.asarray(leaf) for leaf in jax.tree.leaves(state)]
    return jax.tree.unflatten(jax.tree.structure(target), leaves)


def pickled(state, target):
    return pickle.loads(pickle.dumps(state))


def copied(state, target):
    return copy.deepcopy(state)


@pytest.mark.parametrize("nesting", ["alone", "MultiSteps", "partition in two"])
@pytest.mark.parametrize("way", [numpy_leaves, pickled, copied, flax_bytes, flax_state_dict])
def test_a_saved_state_goes_on_as_if_nothing_had_happened(way, nesting, name):
    tx = nested(nesting, name)
    params, state = train(tx, PARAMS, tx.init(PARAMS), range(4))  # 4: in the middle of a period
    restored = way(state, tx.init(PARAMS))
    chex.assert_trees_all_equal(restored, state)
    final = p2t.permuted_params(state, params)
    chex.assert_trees_all_equal(p2t.permuted_params(restored, params), final)
    runs = (train(tx, params, s, range(4, 8)) for s in (restored, state))
    chex.assert_trees_all_equal(*runs)


def first_axis(path, leaf):
    return 0 if leaf.ndim else None


REBUILT = {
    "flax_vectors": lambda: p2t.flax_vectors,
    "tree": lambda: {"body": {"bias": None, "kernel": 0}, "head": {"bias": None, "kernel": [0]}},
    "tree with a rule": lambda: {"body": p2t.flax_vectors, "head": None},
    "stacked": lambda: p2t.stacked(first_axis),
    "lambda": lambda: lambda path, leaf: p2t.flax_vectors(path, leaf),
}


@pytest.mark.parametrize("rule", REBUILT)
def test_an_optimizer_built_anew_continues_a_state(rule, name):
    tx, again = (OPTIMIZERS[name](vectors=REBUILT[rule]()) for _ in range(2))
    params, state = train(tx, PARAMS, tx.init(PARAMS), range(4))
    expected, _ = train(tx, params, state, range(4, 6))
    restored = numpy_leaves(state, again.init(PARAMS))
    continued, last = train(again, params, restored, range(4, 6))
    chex.assert_trees_all_equal(continued, expected)
    assert int(optax.tree.get(last, OPTIMIZERS[name].step_name)) == 6


@pytest.mark.parametrize("rule", ["flax_vectors", "tree", "tree with a rule"])
def test_the_same_rule_gives_the_same_structure(rule, name):
    """So that a step that was compiled for one state runs with the other, and `tree.map` too."""
    states = [OPTIMIZERS[name](vectors=REBUILT[rule]()).init(PARAMS) for _ in range(2)]
    assert jax.tree.structure(states[0]) == jax.tree.structure(states[1])
    assert hash(jax.tree.structure(states[0])) == hash(jax.tree.structure(states[1]))


def test_other_axes_give_another_structure(name):
    rules = [0, 1, None, (0, 1)]
    states = [OPTIMIZERS[name](vectors=rule).init({"w": random(3, 2)}) for rule in rules]
    assert len({jax.tree.structure(state) for state in states}) == len(rules)


# Tools for trees


def test_states_are_ordinary_trees(name):
    tx = OPTIMIZERS[name]()
    params, state = train(tx, PARAMS, tx.init(PARAMS), range(4))
    final = p2t.permuted_params(state, params)
    on_the_host = jax.tree.map(np.asarray, state)
    permuted = p2t.permuted_params(on_the_host, jax.tree.map(np.asarray, params))
    chex.assert_trees_all_equal(permuted, final)
    chex.assert_trees_all_equal(p2t.permuted_params(jax.device_put(state), params), final)
    leaves, treedef = jax.tree.flatten(state)
    again = jax.tree.unflatten(treedef, leaves)
    chex.assert_trees_all_equal(p2t.permuted_params(again, params), final)
    assert all(isinstance(leaf, jax.Array) for leaf in leaves)


def test_the_tree_tools_of_optax_take_states(name):
    tx = OPTIMIZERS[name](optax.trace(0.9))
    _, state = train(tx, PARAMS, tx.init(PARAMS), range(4))
    zeros = optax.tree.zeros_like(state)
    chex.assert_trees_all_equal_structs(zeros, state)
    chex.assert_trees_all_equal(optax.tree.add(state, zeros), state)
    assert (
        optax.tree.size(state) == 2 * optax.tree.size(PARAMS) + OPTIMIZERS[name].numbers
    )  # momentum, weights


def test_parameters_with_the_same_joined_path_keep_their_own_axes(name):
    initial = {"enc/w": random(20, 20), "enc": {"w": random(20, 20)}}
    axes = {"enc/w": (0,), "enc": {"w": (1,)}}
    tx = OPTIMIZERS[name](optax.sgd(0.1), vectors=axes)
    params, state = train(tx, initial, tx.init(initial), range(4))
    final = p2t.permuted_params(state, params)
    helpers.assert_permuted(name, final, initial, params, axes)
    assert min(helpers.moved(final, initial)) > 0.2
