"""The training code that users have: Linen, nnx, Equinox, Haiku, and checkpoints of Orbax."""

from typing import Any

import chex
import equinox as eqx
import flax.linen as nn
import haiku as hk
import helpers
import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest
from flax import nnx
from flax.training.train_state import TrainState
from helpers import OPTIMIZERS

import p2t_jax as p2t

RNG = np.random.default_rng(0)
IMAGES = RNG.normal(size=(8, 5, 5, 2)).astype(np.float32)
LABELS = RNG.integers(0, 3, 8)
INNER = optax.adam(0.05)
SYNC_PERIOD = 3  # of OPTIMIZERS["laperm"]


def loss_of(logits):
    return optax.softmax_cross_entropy_with_integer_labels(logits, LABELS).mean()


# Each framework: a function that trains with an optimizer for some steps, and returns the
# parameters before and after each, and the optimizer's state.


class Linen(nn.Module):
    @nn.compact
    def __call__(self, x):
        x = nn.BatchNorm(use_running_average=False)(nn.relu(nn.Conv(3, (3, 3))(x)))
        return nn.Dense(3)(x.reshape(len(x), -1))


class State(TrainState):
    batch_stats: Any


def linen_state(tx):
    variables = Linen().init(jax.random.key(0), IMAGES)
    return State.create(apply_fn=Linen().apply, tx=tx, **variables)


@jax.jit
def linen_step(state):
    def loss(params):
        variables = {"params": params, "batch_stats": state.batch_stats}
        logits, changed = state.apply_fn(variables, IMAGES, mutable=["batch_stats"])
        return loss_of(logits), changed

    grads, changed = jax.grad(loss, has_aux=True)(state.params)
    return state.apply_gradients(grads=grads, batch_stats=changed["batch_stats"])


def linen(tx, steps):
    state = linen_state(tx)
    trace = [state.params]
    for _ in range(steps):
        state = linen_step(state)
        trace.append(state.params)
    return trace, state.opt_state


class Nnx(nnx.Module):
    def __init__(self, rngs):
        self.conv = nnx.Conv(2, 3, (3, 3), rngs=rngs)
        self.norm = nnx.BatchNorm(3, rngs=rngs)
        self.dense = nnx.Linear(75, 3, rngs=rngs)

    def __call__(self, x):
        x = self.norm(nnx.relu(self.conv(x)))
        return self.dense(x.reshape(len(x), -1))


def nnx_training(tx):
    model = Nnx(nnx.Rngs(0))
    return model, nnx.Optimizer(model, tx, wrt=nnx.Param)


@nnx.jit
def nnx_step(model, optimizer):
    grads = nnx.grad(lambda model: loss_of(model(IMAGES)))(model)
    optimizer.update(model, grads)


def flax_nnx(tx, steps):
    model, optimizer = nnx_training(tx)
    trace = [jax.tree.map(jnp.copy, nnx.state(model, nnx.Param))]
    for _ in range(steps):
        nnx_step(model, optimizer)
        trace.append(jax.tree.map(jnp.copy, nnx.state(model, nnx.Param)))
    return trace, optimizer.opt_state


class Equinox(eqx.Module):
    conv: eqx.nn.Conv2d
    norm: eqx.nn.GroupNorm
    dense: eqx.nn.Linear

    def __init__(self, key):
        conv, dense = jax.random.split(key)
        self.conv = eqx.nn.Conv2d(2, 3, 3, key=conv)
        self.norm = eqx.nn.GroupNorm(1, 3)
        self.dense = eqx.nn.Linear(27, 3, key=dense)

    def __call__(self, x):
        return self.dense(self.norm(jax.nn.relu(self.conv(jnp.moveaxis(x, -1, 0)))).ravel())


def equinox(tx, steps):
    model = Equinox(jax.random.key(0))
    trace = [eqx.filter(model, eqx.is_inexact_array)]
    state = tx.init(trace[0])

    @eqx.filter_jit
    def step(model, state):
        grads = eqx.filter_grad(lambda model: loss_of(jax.vmap(model)(IMAGES)))(model)
        updates, state = tx.update(grads, state, eqx.filter(model, eqx.is_inexact_array))
        return eqx.apply_updates(model, updates), state

    for _ in range(steps):
        model, state = step(model, state)
        trace.append(eqx.filter(model, eqx.is_inexact_array))
    return trace, state


@hk.without_apply_rng
@hk.transform_with_state
def haiku_network(x):
    x = hk.BatchNorm(True, True, 0.9)(jax.nn.relu(hk.Conv2D(3, 3)(x)), is_training=True)
    return hk.Linear(3)(x.reshape(len(x), -1))


def haiku(tx, steps):
    params, stats = haiku_network.init(jax.random.key(0), IMAGES)
    state = tx.init(params)

    @jax.jit
    def step(params, stats, state):
        def loss(params):
            logits, changed = haiku_network.apply(params, stats, IMAGES)
            return loss_of(logits), changed

        grads, stats = jax.grad(loss, has_aux=True)(params)
        return *helpers.step(params, state, grads, tx), stats

    trace = [params]
    for _ in range(steps):
        params, state, stats = step(params, stats, state)
        trace.append(params)
    return trace, state


FRAMEWORKS = {
    linen: p2t.flax_vectors,
    flax_nnx: p2t.flax_vectors,
    equinox: p2t.equinox_vectors,
    haiku: p2t.haiku_vectors,
}


@pytest.mark.parametrize("train", FRAMEWORKS)
def test_training_code(train, name):
    """A convolution and a dense layer are permuted; biases and normalization are not."""
    rule = FRAMEWORKS[train]
    trace, state = train(OPTIMIZERS[name](INNER, vectors=rule), 4)
    start, last = trace[0], trace[-1]
    final = p2t.permuted_params(state, last)
    assert len(jax.tree.leaves(final)) == 6
    outputs_first = rule is p2t.equinox_vectors
    axes = jax.tree.map(lambda p: axes_of(p, outputs_first), start)
    helpers.assert_permuted(name, final, start, last, axes)
    kernels = ([p for p in jax.tree.leaves(tree) if p.size > 3] for tree in (final, start))
    assert min(helpers.moved(*kernels)) > 0.3
    assert bool(p2t.is_permutation(final, start, vectors=rule))
    check_steps(name, trace, start, train)


def axes_of(p, outputs_first):
    if p.size <= 3:  # all have three outputs
        return None
    return tuple(range(1, p.ndim)) if outputs_first else tuple(range(p.ndim - 1))


def check_steps(name, trace, start, train):
    weights = [p.size > 3 for p in jax.tree.leaves(start)]
    steps = [jax.tree.leaves(params) for params in trace]
    if name == "sgperm":  # moves no others
        for before, after, is_weights in zip(steps[0], steps[-1], weights, strict=True):
            assert is_weights or np.array_equal(before, after)
        return
    (_, alone), _ = train(INNER, 1)  # does as without LAPerm, until LAPerm synchronizes
    chex.assert_trees_all_close(trace[1], alone, rtol=1e-6, atol=1e-7)
    permuted = [
        all(
            np.allclose(np.sort(p, axis=None), np.sort(first, axis=None), rtol=0, atol=1e-6)
            for p, first, is_weights in zip(leaves, steps[0], weights, strict=True)
            if is_weights
        )
        for leaves in steps
    ]
    assert permuted == [True, False, False, True, False]


def test_what_is_no_weight_vector_never_notices_laperm():
    """Each step from where LAPerm stands: also where it synchronizes."""
    state = linen_state(OPTIMIZERS["laperm"](INNER))
    for i in range(1, 7):
        alone = linen_step(state.replace(tx=INNER, opt_state=state.opt_state[0]))
        state = linen_step(state)
        leaves = map(jax.tree.leaves, (state.params, alone.params))
        for leaf, expected in zip(*leaves, strict=True):
            same = np.allclose(leaf, expected, rtol=1e-6, atol=1e-7)
            assert same == (leaf.ndim == 1 or i % SYNC_PERIOD != 0)
        chex.assert_trees_all_close(state.opt_state[0], alone.opt_state)


def test_an_nnx_model_takes_the_permutation_and_trains_on(name):
    model, optimizer = nnx_training(OPTIMIZERS[name](INNER))
    for _ in range(4):
        nnx_step(model, optimizer)
    final = p2t.permuted_params(optimizer.opt_state, nnx.state(model, nnx.Param))
    nnx.update(model, final)
    nnx_step(model, optimizer)
    chex.assert_tree_all_finite(nnx.to_pure_dict(nnx.state(model, nnx.Param)))


def test_initial_weights_of_an_nnx_model_are_those_of_a_clone(name):
    model, optimizer = nnx_training(OPTIMIZERS[name](INNER))
    live, initial = nnx.state(model, nnx.Param), nnx.state(nnx.clone(model), nnx.Param)
    for _ in range(3):
        nnx_step(model, optimizer)
    final = p2t.permuted_params(optimizer.opt_state, nnx.state(model, nnx.Param))
    assert bool(p2t.is_permutation(final, initial))
    p2t.permutations.permutation_of(final, initial)
    chex.assert_trees_all_equal(p2t.unpack(p2t.pack(final, initial), initial), final)
    for tool in (p2t.pack, p2t.permutations.permutation_of):
        with pytest.raises(ValueError, match=r"training changes: split nnx\.clone\(model\)"):
            tool(p2t.permuted_params(optimizer.opt_state, final), live)


# Orbax: save after the 5th step, in the middle of a period.


def standard_checkpointer(folder, saved, target):
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(folder / "checkpoint", saved)
        checkpointer.wait_until_finished()
        return checkpointer.restore(folder / "checkpoint", target)


def checkpoint_manager(folder, saved, target):
    with ocp.CheckpointManager(folder) as manager:
        manager.save(5, args=ocp.args.StandardSave(saved))
        manager.wait_until_finished()
        return manager.restore(5, args=ocp.args.StandardRestore(target))


def concrete(make, *args):
    return make(*args)


def parts(state):
    return {
        "params": state.params,
        "batch_stats": state.batch_stats,
        "opt_state": state.opt_state,
    }


RULES = {
    "by name": lambda: p2t.flax_vectors,
    "a tree": lambda: {
        "BatchNorm_0": None,
        "Conv_0": p2t.flax_vectors,
        "Dense_0": p2t.flax_vectors,
    },
    "lambda": lambda: lambda path, leaf: p2t.flax_vectors(path, leaf),
}


@pytest.mark.filterwarnings("ignore:Sharding info not provided")  # by Orbax before 0.12
@pytest.mark.parametrize(
    ("save_and_restore", "target_of", "rule"),
    [
        (standard_checkpointer, concrete, "by name"),
        (checkpoint_manager, jax.eval_shape, "a tree"),
        helpers.slow(standard_checkpointer, jax.eval_shape, "lambda"),
    ],
)
def test_orbax_continues_bit_for_bit(tmp_path, save_and_restore, target_of, rule, name):
    """Everything but the checkpoint is built anew, as in another process."""

    def make():
        return linen_state(OPTIMIZERS[name](INNER, vectors=RULES[rule]()))

    state = make()
    for _ in range(5):
        state = linen_step(state)
    again = make()
    target = target_of(parts, again)
    restored = save_and_restore(tmp_path, parts(state), target)
    assert jax.tree.structure(restored) == jax.tree.structure(target)
    again = again.replace(**restored)
    for _ in range(3):
        final, expected = (p2t.permuted_params(s.opt_state, s.params) for s in (again, state))
        chex.assert_trees_all_equal(final, expected)
        state, again = linen_step(state), linen_step(again)
        chex.assert_trees_all_equal(*(jax.tree.leaves(parts(s)) for s in (again, state)))


@pytest.mark.parametrize(
    ("save_and_restore", "pure"), [(checkpoint_manager, False), (standard_checkpointer, True)]
)
def test_orbax_continues_nnx_bit_for_bit(tmp_path, save_and_restore, pure, name):
    def saved(training):
        state = nnx.state(training)
        return nnx.to_pure_dict(state) if pure else state

    tx = OPTIMIZERS[name](INNER)
    training, again = nnx_training(tx), nnx_training(tx)
    for _ in range(5):
        nnx_step(*training)
    restored = save_and_restore(tmp_path, saved(training), saved(again))
    if pure:
        state = nnx.state(again)
        nnx.replace_by_pure_dict(state, restored)
        restored = state
    nnx.update(again, restored)
    for _ in range(3):
        nnx_step(*training)
        nnx_step(*again)
        states = (nnx.to_pure_dict(nnx.state(t)) for t in (again, training))
        chex.assert_trees_all_equal(*states)
    final, expected = (
        p2t.permuted_params(optimizer.opt_state, nnx.state(model, nnx.Param))
        for model, optimizer in (again, training)
    )
    chex.assert_trees_all_equal(final, expected)
