"""The training code that users have: Linen, nnx, Equinox, Haiku, and checkpoints of Orbax."""

from typing import Any

import equinox as eqx
import flax.linen as nn
import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest
from flax import nnx
from flax.training.train_state import TrainState

import p2t_jax as p2t

pytestmark = pytest.mark.usefixtures("compile_fast")

RNG = np.random.default_rng(0)
IMAGES = RNG.normal(size=(8, 4, 4, 2)).astype(np.float32)
LABELS = RNG.integers(0, 3, 8)
SYNC_PERIOD = 3
INNER = optax.adam(0.05)


def laperm(**options: Any) -> optax.GradientTransformationExtraArgs:
    return p2t.laperm(INNER, SYNC_PERIOD, **options)


def loss_of(logits: jax.Array) -> jax.Array:
    return optax.softmax_cross_entropy_with_integer_labels(logits, LABELS).mean()


def named(params: Any) -> dict[str, np.ndarray]:
    """A copy: parameters by name, however the framework holds them."""
    leaves = jax.tree_util.tree_leaves_with_path(params)
    return {jax.tree_util.keystr(path): np.array(leaf) for path, leaf in leaves}


def sorted_vectors(weights: np.ndarray, outputs_first: bool) -> np.ndarray:
    if outputs_first:
        weights = np.moveaxis(weights, 0, -1)
    return np.sort(weights.reshape(-1, weights.shape[-1]), axis=0)


def check_training(start: Any, laperms: Any, inners: Any, final: Any, outputs_first: bool = False):
    """`laperms` after 1 to 4 steps, `inners` after 1 step of the inner optimizer without LAPerm."""
    start, alone, final = named(start), named(inners), named(final)
    steps = [start, *map(named, laperms)]
    weights = [name for name, p in start.items() if p.size > 3]  # all have three outputs
    assert len(weights) == 2, "a convolution and a dense layer"
    assert len(start) == 6, "and their biases, and a normalization's scale and bias"
    for name, before in start.items():
        np.testing.assert_allclose(steps[1][name], alone[name], rtol=1e-6, atol=1e-7)
        assert not np.array_equal(steps[1][name], before)
    for name in start:
        if name not in weights:
            np.testing.assert_array_equal(final[name], steps[-1][name])
            continue
        initial = sorted_vectors(start[name], outputs_first)
        np.testing.assert_array_equal(sorted_vectors(final[name], outputs_first), initial)
        assert not np.array_equal(final[name], start[name])
        permuted = [
            np.allclose(sorted_vectors(params[name], outputs_first), initial, rtol=0, atol=1e-6)
            for params in steps
        ]
        assert permuted == [True, False, False, True, False]


# Linen


class Linen(nn.Module):
    @nn.compact
    def __call__(self, x):
        x = nn.BatchNorm(use_running_average=False)(nn.relu(nn.Conv(3, (2, 2))(x)))
        return nn.Dense(3)(x.reshape(len(x), -1))


class State(TrainState):
    batch_stats: Any


def linen_state(tx: Any) -> State:
    variables = Linen().init(jax.random.key(0), IMAGES)
    return State.create(apply_fn=Linen().apply, tx=tx, **variables)


@jax.jit
def linen_step(state: State) -> State:
    def loss(params):
        variables = {"params": params, "batch_stats": state.batch_stats}
        logits, changed = state.apply_fn(variables, IMAGES, mutable=["batch_stats"])
        return loss_of(logits), changed

    grads, changed = jax.grad(loss, has_aux=True)(state.params)
    return state.apply_gradients(grads=grads, batch_stats=changed["batch_stats"])


def test_linen():
    state = linen_state(laperm())
    start, steps = state.params, []
    for _ in range(4):
        state = linen_step(state)
        steps.append(state.params)
    final = p2t.permuted_params(state.opt_state, state.params)
    check_training(start, steps, linen_step(linen_state(INNER)).params, final)
    assert bool(p2t.is_permutation(final, start))
    assert not bool(p2t.is_permutation(state.params, start))


def test_what_is_no_weight_vector_never_notices_laperm():
    """Each step from where LAPerm stands: also where it synchronizes."""
    state = linen_state(laperm())
    for i in range(1, 7):
        alone = linen_step(state.replace(tx=INNER, opt_state=state.opt_state[0]))
        state = linen_step(state)
        expected = named(alone.params)
        for name, leaf in named(state.params).items():
            if leaf.ndim == 1:
                np.testing.assert_allclose(leaf, expected[name], rtol=1e-6, atol=1e-7)
            else:
                same = np.allclose(leaf, expected[name], rtol=1e-6, atol=1e-7)
                assert same == (i % SYNC_PERIOD != 0)
        jax.tree.map(np.testing.assert_allclose, state.opt_state[0], alone.opt_state)


# nnx


class Nnx(nnx.Module):
    def __init__(self, rngs: nnx.Rngs) -> None:
        self.conv = nnx.Conv(2, 3, (2, 2), rngs=rngs)
        self.norm = nnx.BatchNorm(3, rngs=rngs)
        self.dense = nnx.Linear(48, 3, rngs=rngs)

    def __call__(self, x):
        x = self.norm(nnx.relu(self.conv(x)))
        return self.dense(x.reshape(len(x), -1))


def nnx_training(tx: Any) -> tuple[Nnx, nnx.Optimizer]:
    model = Nnx(nnx.Rngs(0))
    return model, nnx.Optimizer(model, tx, wrt=nnx.Param)


@nnx.jit
def nnx_step(model: Nnx, optimizer: nnx.Optimizer) -> None:
    grads = nnx.grad(lambda model: loss_of(model(IMAGES)))(model)
    optimizer.update(model, grads)


def nnx_params(model: Nnx) -> Any:
    return jax.tree.map(jnp.copy, nnx.state(model, nnx.Param))


def test_nnx():
    model, optimizer = nnx_training(laperm())
    other, inner = nnx_training(INNER)
    start, steps = nnx_params(model), []
    for _ in range(4):
        nnx_step(model, optimizer)
        steps.append(nnx_params(model))
    nnx_step(other, inner)
    final = p2t.permuted_params(optimizer.opt_state, nnx.state(model, nnx.Param))
    check_training(start, steps, nnx_params(other), final)

    before = model(IMAGES)
    nnx.update(model, final)
    assert not np.allclose(model(IMAGES), before)
    assert bool(p2t.is_permutation(nnx.state(model, nnx.Param), start))
    nnx_step(model, optimizer)  # and training can go on from it


# Equinox


class Equinox(eqx.Module):
    conv: eqx.nn.Conv2d
    norm: eqx.nn.GroupNorm
    dense: eqx.nn.Linear

    def __init__(self, key: jax.Array) -> None:
        conv, dense = jax.random.split(key)
        self.conv = eqx.nn.Conv2d(2, 3, 2, key=conv)
        self.norm = eqx.nn.GroupNorm(1, 3)
        self.dense = eqx.nn.Linear(27, 3, key=dense)

    def __call__(self, x):
        return self.dense(self.norm(jax.nn.relu(self.conv(jnp.moveaxis(x, -1, 0)))).ravel())


def test_equinox():
    def train(tx, steps):
        model = Equinox(jax.random.key(0))
        state = tx.init(eqx.filter(model, eqx.is_inexact_array))

        @eqx.filter_jit
        def step(model, state):
            grads = eqx.filter_grad(lambda model: loss_of(jax.vmap(model)(IMAGES)))(model)
            params = eqx.filter(model, eqx.is_inexact_array)
            updates, state = tx.update(grads, state, params)
            return eqx.apply_updates(model, updates), state

        trace = [model]
        for _ in range(steps):
            model, state = step(model, state)
            trace.append(model)
        return trace, state

    (start, *steps), state = train(laperm(vectors=p2t.equinox_vectors), 4)
    (_, alone), _ = train(INNER, 1)
    trained, static = eqx.partition(steps[-1], eqx.is_inexact_array)
    final = p2t.permuted_params(state, trained)
    check_training(start, steps, alone, final, outputs_first=True)
    start = eqx.filter(start, eqx.is_inexact_array)
    assert bool(p2t.is_permutation(final, start, vectors=p2t.equinox_vectors))
    assert jax.vmap(eqx.combine(final, static))(IMAGES).shape == (8, 3)


# Haiku


def test_haiku():
    @hk.without_apply_rng
    @hk.transform_with_state
    def network(x):
        x = hk.BatchNorm(True, True, 0.9)(jax.nn.relu(hk.Conv2D(3, 2)(x)), is_training=True)
        return hk.Linear(3)(x.reshape(len(x), -1))

    def train(tx, steps):
        params, stats = network.init(jax.random.key(0), IMAGES)
        state = tx.init(params)

        @jax.jit
        def step(params, stats, state):
            def loss(params):
                logits, changed = network.apply(params, stats, IMAGES)
                return loss_of(logits), changed

            grads, stats = jax.grad(loss, has_aux=True)(params)
            updates, state = tx.update(grads, state, params)
            return optax.apply_updates(params, updates), stats, state

        trace = [params]
        for _ in range(steps):
            params, stats, state = step(params, stats, state)
            trace.append(params)
        return trace, state

    (start, *steps), state = train(laperm(vectors=p2t.haiku_vectors), 4)
    (_, alone), _ = train(INNER, 1)
    final = p2t.permuted_params(state, steps[-1])
    check_training(start, steps, alone, final)
    assert bool(p2t.is_permutation(final, start, vectors=p2t.haiku_vectors))


# Orbax: save after the 5th step of 9, in the middle of a period.


def assert_equal(actual: Any, expected: Any) -> None:
    assert jax.tree.structure(actual) == jax.tree.structure(expected)
    jax.tree.map(np.testing.assert_array_equal, actual, expected)


def standard_checkpointer(folder: Any, saved: Any, target: Any) -> Any:
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(folder / "checkpoint", saved)
        checkpointer.wait_until_finished()
        return checkpointer.restore(folder / "checkpoint", target)


def checkpoint_manager(folder: Any, saved: Any, target: Any) -> Any:
    with ocp.CheckpointManager(folder) as manager:
        manager.save(5, args=ocp.args.StandardSave(saved))
        manager.wait_until_finished()
        return manager.restore(5, args=ocp.args.StandardRestore(target))


def concrete(make: Any, *args: Any) -> Any:
    return make(*args)


RULES = {
    "a tree": lambda: {
        "BatchNorm_0": None,
        "Conv_0": p2t.flax_vectors,
        "Dense_0": p2t.flax_vectors,
    },
    "stacked": lambda: p2t.stacked(lambda path, leaf: None),
}


def run(state: State, steps: int) -> State:
    for _ in range(steps):
        state = linen_step(state)
    return state


def check_continued(tmp_path: Any, save_and_restore: Any, target_of: Any, make_tx: Any) -> None:
    """Everything but the checkpoint is built anew, as in another process."""

    def parts(state: State) -> Any:
        return {
            "params": state.params,
            "batch_stats": state.batch_stats,
            "opt_state": state.opt_state,
        }

    state = run(linen_state(make_tx()), 5)
    assert optax.tree.get(state.opt_state, "lookahead_step", 2) == 2  # in the middle of a period
    again = linen_state(make_tx())
    target = target_of(parts, again)
    restored = save_and_restore(tmp_path, parts(state), target)
    assert jax.tree.structure(restored) == jax.tree.structure(target)
    again = again.replace(**restored)
    for _ in range(4):
        final, expected = (p2t.permuted_params(s.opt_state, s.params) for s in (again, state))
        assert_equal(final, expected)
        state, again = linen_step(state), linen_step(again)
        leaves = (jax.tree.leaves(parts(s)) for s in (again, state))
        for actual, uninterrupted in zip(*leaves, strict=True):
            np.testing.assert_array_equal(actual, uninterrupted)


@pytest.mark.parametrize(
    ("save_and_restore", "target_of"),
    [(standard_checkpointer, concrete), (checkpoint_manager, jax.eval_shape)],
)
@pytest.mark.parametrize("make_tx", [laperm, lambda: p2t.sgperm(key=3)], ids=["laperm", "sgperm"])
def test_orbax_continues_bit_for_bit(tmp_path, save_and_restore, target_of, make_tx):
    check_continued(tmp_path, save_and_restore, target_of, make_tx)


@pytest.mark.parametrize("name", RULES)
def test_orbax_continues_with_any_rule(tmp_path, name):
    def make_tx():
        return laperm(vectors=RULES[name]())

    check_continued(tmp_path, standard_checkpointer, jax.eval_shape, make_tx)


@pytest.mark.parametrize(
    ("save_and_restore", "pure"), [(checkpoint_manager, False), (standard_checkpointer, True)]
)
def test_orbax_continues_nnx_bit_for_bit(tmp_path, save_and_restore, pure):
    def saved(training):
        state = nnx.state(training)
        return nnx.to_pure_dict(state) if pure else state

    training, again = nnx_training(laperm()), nnx_training(laperm())
    for _ in range(5):
        nnx_step(*training)
    restored = save_and_restore(tmp_path, saved(training), saved(again))
    if pure:
        state = nnx.state(again)
        nnx.replace_by_pure_dict(state, restored)
        restored = state
    nnx.update(again, restored)
    for _ in range(4):
        nnx_step(*training)
        nnx_step(*again)
        assert_equal(nnx.to_pure_dict(nnx.state(again)), nnx.to_pure_dict(nnx.state(training)))
    (model, optimizer), (_, uninterrupted) = again, training
    params = nnx.state(model, nnx.Param)
    assert_equal(
        p2t.permuted_params(optimizer.opt_state, params),
        p2t.permuted_params(uninterrupted.opt_state, params),
    )
