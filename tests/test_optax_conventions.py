"""LAPerm keeps Optax's conventions: arguments, state, dtypes, shardings, wrappers, schedules."""

import itertools
import math
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import reference_laperm as reference
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P
from optax import contrib

import p2t_jax as p2t

pytestmark = pytest.mark.usefixtures("compile_fast")

SHAPES = {"bias": (3,), "conv": {"kernel": (2, 2, 2, 3)}, "kernel": (6, 3)}
AXES = {"bias": None, "conv": {"kernel": (0, 1, 2)}, "kernel": (0,)}
DENSE = {"bias": (3,), "kernel": (6, 3)}


def numbers(seed: int, shapes: Any = SHAPES, dtype: Any = jnp.float32) -> Any:
    """A tree of shuffled numbers: far enough apart for any dtype to tell them from each other."""
    rng = np.random.default_rng(seed)

    def leaf(shape: tuple[int, ...]) -> jax.Array:
        n = math.prod(shape)
        return jnp.asarray(((rng.permutation(n) - n / 2.3) / 8).reshape(shape), dtype)

    return jax.tree.map(leaf, shapes, is_leaf=lambda x: isinstance(x, tuple))


def reordered(initial: Any, phi: Any) -> Any:
    """The initial weights in the order of phi."""

    def leaf(theta: Any, phi: Any, axes: Any) -> Any:
        if axes is None:
            return np.asarray(phi)
        theta_sorted = reference.sort_weight_vectors(np.array(theta), axes)
        return reference.synchronize(theta_sorted, np.asarray(phi), axes)

    return jax.tree.map(leaf, initial, phi, {name: AXES[name] for name in initial})


def squared_distance(target: Any) -> Any:
    return lambda params: optax.tree.norm(optax.tree.sub(params, target), squared=True)


def assert_equal(actual: Any, expected: Any) -> None:
    assert jax.tree.structure(actual) == jax.tree.structure(expected)
    jax.tree.map(np.testing.assert_array_equal, actual, expected)


def assert_close(actual: Any, expected: Any, size: float = 1.0) -> None:
    """Equal but for the rounding errors of numbers of this size."""
    atol = 2e-6 * max(1.0, size)
    jax.tree.map(
        lambda a, e: np.testing.assert_allclose(a, e, rtol=2e-6, atol=atol), actual, expected
    )


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


@pytest.mark.parametrize("name", INNERS)
def test_any_inner_optimizer_looks_ahead_and_its_order_is_kept(name):
    inner = optax.with_extra_args_support(INNERS[name])
    tx = p2t.laperm(INNERS[name], sync_period=2)
    target = numbers(1, DENSE)
    traces = []

    def loss(params, obj_fn=None, unknown=None):  # a line search hands extra arguments on to it
        return squared_distance(target)(params)

    @jax.jit
    def step(params, state):
        traces.append(1)
        value, grads = jax.value_and_grad(loss)(params)
        extra = {"value": value, "grad": grads, "value_fn": loss, "obj_fn": loss, "unknown": 1}
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
        assert_equal(
            p2t.permuted_params(state, params), reordered(initial, params if i % 2 else ahead)
        )
    assert moved >= 3  # or this shows nothing
    # Optax's line search has a number of weak type in its first state, alone too.
    assert len(traces) == (2 if name == "backtracking" else 1)


@pytest.mark.parametrize("name", ["momo", "polyak_sgd", "reduce_on_plateau", "backtracking"])
def test_extra_arguments_that_an_inner_optimizer_needs_are_missed_by_itself(name):
    params = numbers(0)
    tx = p2t.laperm(INNERS[name], sync_period=2)
    with pytest.raises(TypeError, match=r"missing .*argument.*'value"):
        tx.update(params, tx.init(params), params)


@pytest.mark.parametrize(
    ("name", "sync_period"), [("adam", 10), ("momentum", 1), ("sgd", 10), ("sgd", 25)]
)
def test_it_converges_to_the_permutation_that_is_asked_for(name, sync_period):
    initial = numbers(0)
    target = reordered(initial, numbers(1))
    loss = squared_distance(target)
    tx = p2t.laperm(INNERS[name], sync_period)

    def step(carry, _):
        params, state = carry
        updates, state = tx.update(jax.grad(loss)(params), state, params)
        return (optax.apply_updates(params, updates), state), None

    @jax.jit
    def train(params):
        return jax.lax.scan(step, (params, tx.init(params)), length=100)[0]

    params, state = train(initial)
    final = p2t.permuted_params(state, params)
    for weights in ("conv", "kernel"):
        assert_equal(final[weights], target[weights])


# The state


def test_parameters_are_needed_in_update_and_missed_in_the_words_of_optax():
    params = numbers(0)
    tx = p2t.laperm(optax.sgd(0.1), sync_period=2)
    with pytest.raises(ValueError) as ours:  # noqa: PT011 : the message is compared below
        tx.update(params, tx.init(params))
    theirs = optax.adaptive_grad_clip(0.1)
    with pytest.raises(ValueError, match="params") as optaxes:
        theirs.update(params, theirs.init(params), None)
    assert str(ours.value) == str(optaxes.value)


def test_names_in_the_state_are_unique():
    inner = optax.adam(optax.linear_schedule(0.1, 0.01, 10))  # has two fields `count`
    tx = optax.chain(optax.clip(1.0), p2t.laperm(inner, sync_period=2))
    params = numbers(0)
    state = tx.init(params)
    _, state = jax.jit(tx.update)(params, state, params)
    assert int(optax.tree.get(state, "sync_step")) == 1
    assert int(optax.tree.get(state, "lookahead_step")) == 1
    assert_equal(optax.tree.get(state, "theta_sorted")["kernel"], np.sort(params["kernel"], axis=0))
    with pytest.raises(KeyError, match="count"):
        optax.tree.get(state, "count")


def test_the_state_can_be_set_by_name():
    tx = p2t.laperm(optax.adam(0.1), sync_period=10)
    params = numbers(0)
    state = optax.tree.set(tx.init(params), lookahead_step=jnp.array(9))
    _, state = jax.jit(tx.update)(params, state, params)
    assert int(optax.tree.get(state, "lookahead_step")) == 0  # it has synchronized


@pytest.mark.parametrize("name", ["adam", "sgd"])
def test_init_needs_no_more_than_shapes(name):
    params = numbers(0)
    tx = p2t.laperm(INNERS[name], sync_period=2)
    shapes = jax.eval_shape(lambda: params)
    expected = jax.eval_shape(tx.init, params)
    for abstract in (tx.init(shapes), jax.eval_shape(tx.init, shapes)):
        assert jax.tree.structure(abstract) == jax.tree.structure(tx.init(params))
        assert jax.tree.map(lambda x: (x.shape, x.dtype), abstract) == jax.tree.map(
            lambda x: (x.shape, x.dtype), expected
        )


@pytest.mark.parametrize("name", ["adam", "sgd"])
@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64"])
def test_shapes_and_dtypes_are_stable(name, dtype):
    with jax.enable_x64(dtype == "float64"):
        tx = p2t.laperm(INNERS[name], sync_period=2)
        initial = params = numbers(0, dtype=dtype)
        state = tx.init(params)
        assert {x.dtype.name for x in jax.tree.leaves(state[1].theta_sorted)} == {dtype}

        @jax.jit
        def step(params, state, skip):
            value, grads = jax.value_and_grad(squared_distance(numbers(1, dtype=dtype)))(params)
            updates, state = jax.lax.cond(  # it compares the types of both branches
                skip,
                lambda: (optax.tree.zeros_like(params), state),
                lambda: tx.update(grads, state, params, value=value.astype(jnp.bfloat16)),
            )
            return optax.apply_updates(params, updates), state, updates

        for skip in (False, True, False, False):
            params, state, updates = step(params, state, skip)
            assert {x.dtype.name for x in jax.tree.leaves((params, updates))} == {dtype}
        assert int(state[1].sync_step) == 3
        final = p2t.permuted_params(state, params)
        assert_equal(final, reordered(initial, params))
        assert bool(p2t.is_permutation(final, initial))


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
@pytest.mark.parametrize("name", ["adam", "momo", "muon", "schedule_free_sgd", "sgd", "sm3"])
def test_updates_have_the_dtype_of_the_parameters(name, dtype):
    params = numbers(0, dtype=dtype)
    tx = p2t.laperm(INNERS[name], sync_period=1)
    types = jax.eval_shape(lambda p: tx.update(p, tx.init(p), p, value=jnp.array(1.0))[0], params)
    assert {x.dtype.name for x in jax.tree.leaves(types)} == {dtype}


def test_parameters_and_state_can_be_donated():
    tx = p2t.laperm(optax.adam(0.1), sync_period=2)
    loss = squared_distance(numbers(1))
    initial = numbers(0)

    def step(params, state):
        updates, state = tx.update(jax.grad(loss)(params), state, params)
        return optax.apply_updates(params, updates), state

    runs = []
    for jitted in (jax.jit(step), jax.jit(step, donate_argnums=(0, 1))):
        params = jax.tree.map(jnp.copy, initial)
        state = tx.init(params)
        for _ in range(3):
            params, state = jitted(params, state)
        runs.append((params, state))
    assert_equal(*runs)


def test_a_parameter_without_an_update_is_left_alone():
    initial = params = numbers(0)
    tx = p2t.laperm(optax.sgd(0.1), sync_period=2)
    state = tx.init(params)
    for i in range(1, 3):
        grads = {**numbers(i), "conv": {"kernel": None}}
        updates, state = jax.jit(tx.update)(grads, state, params)
        assert updates["conv"] == {"kernel": None}
        params = eqx.apply_updates(params, updates)  # Optax's takes None for parameters only
    assert_equal(params["conv"], initial["conv"])
    assert_close(params, reordered(initial, params))
    assert not np.array_equal(params["kernel"], initial["kernel"])


# optax.tree.map_params


@pytest.mark.parametrize("vectors", [p2t.flax_vectors, AXES, None], ids=["rule", "tree", "none"])
def test_map_params(vectors):
    params = numbers(0)
    tx = p2t.laperm(optax.adam(0.1), sync_period=2, vectors=vectors)
    state = tx.init(params)
    assert_equal(optax.tree.map_params(tx, lambda leaf: leaf, state), state)
    assert_equal(optax.tree.map_params(tx.init, lambda leaf: leaf, state), state)

    names = jax.tree.map(lambda leaf: f"like {leaf.shape}", params)
    mapped = optax.tree.map_params(
        tx, lambda leaf, name: name, state, names, transform_non_params=lambda leaf: "step"
    )
    assert jax.tree.structure(mapped) == jax.tree.structure(state)
    adam, ours = mapped
    assert (ours.sync_step, ours.lookahead_step, ours.theta_sorted) == ("step", "step", names)
    assert (adam[0].count, adam[0].mu) == ("step", names)


def test_map_params_where_parameters_are_masked():
    params = numbers(0)
    tx = optax.masked(
        p2t.laperm(optax.sgd(0.1), sync_period=2), {"bias": False, "conv": True, "kernel": True}
    )
    state = tx.init(params)
    names = jax.tree.map(lambda leaf: f"like {leaf.shape}", params)
    mapped = optax.tree.map_params(
        tx,
        lambda leaf, name: leaf if isinstance(leaf, optax.MaskedNode) else name,
        state,
        names,
        is_leaf=lambda leaf: isinstance(leaf, optax.MaskedNode),
    )
    theta_sorted = optax.tree.get(mapped, "theta_sorted")
    assert theta_sorted == names | {"bias": optax.MaskedNode()}


def test_map_params_gives_the_shardings_of_a_state():
    mesh = jax.make_mesh((2, 2), ("x", "y"), axis_types=(AxisType.Auto,) * 2)
    params = numbers(0, {"bias": (4,), "kernel": (6, 4)})
    shardings = {"bias": NamedSharding(mesh, P("x")), "kernel": NamedSharding(mesh, P("y", "x"))}
    tx = p2t.laperm(optax.adam(0.1), sync_period=1)
    of_state = optax.tree.map_params(
        tx,
        lambda _, sharding: sharding,
        jax.eval_shape(tx.init, params),
        shardings,
        transform_non_params=lambda _: NamedSharding(mesh, P()),
    )
    placed = jax.device_put(params, shardings)
    state = jax.jit(tx.init, out_shardings=of_state)(placed)
    updates, after = jax.jit(tx.update, out_shardings=(shardings, of_state))(placed, state, placed)
    assert [x.sharding for x in jax.tree.leaves(after)] == jax.tree.leaves(of_state)
    alone, expected = jax.jit(tx.update)(params, tx.init(params), params)
    assert_close((updates, after), (alone, expected))
    assert_equal(after[1], expected[1])


# Sharding in types


@pytest.mark.parametrize(
    ("spec", "axes"),
    [
        (P(None, "x"), 0),
        (P(None, "x"), 1),
        (P(None, ("x", "y")), (0, 1, 2)),
        (P("x", None, "y"), (1, 2)),
        (P("x", None, "y"), None),
        (P(), 1),
    ],
)
def test_sharding_types_are_stable(spec, axes):
    mesh = jax.make_mesh((2, 4), ("x", "y"), axis_types=(AxisType.Explicit,) * 2)
    tx = p2t.laperm(optax.sgd(0.1, momentum=0.9), sync_period=1, vectors=axes)

    def types(tree):
        return jax.tree.map(jax.typeof, tree)

    with jax.set_mesh(mesh):
        params = jnp.ones((2, 8, 4), jnp.float16, out_sharding=NamedSharding(mesh, spec))
        state = tx.init(params)
        after = tx.update(params, state, params)
        assert types(after) == (types(params), types(state))
        assert types(jax.jit(tx.init)(params)) == types(state)
        assert types(jax.jit(tx.update)(params, state, params)) == types(after)
    assert jax.typeof(state[1].theta_sorted).sharding.spec == jax.typeof(params).sharding.spec


# Wrappers


@pytest.mark.parametrize("sync_period", [2, np.array(2), 2.0])
def test_inject_hyperparams_changes_nothing(sync_period):
    inject = optax.inject_hyperparams(p2t.laperm, static_args=("vectors",))
    plain = p2t.laperm(optax.adam(0.1), sync_period, vectors=AXES)
    injected = inject(optax.adam(0.1), sync_period, vectors=AXES)
    params = numbers(0)
    state, injected_state = plain.init(params), jax.jit(injected.init)(params)
    assert_equal(injected_state.inner_state, state)
    for seed in range(1, 5):
        updates, state = jax.jit(plain.update)(numbers(seed), state, params)
        again, injected_state = jax.jit(injected.update)(numbers(seed), injected_state, params)
        assert_equal(again, updates)
        assert_equal(injected_state.inner_state, state)
        params = optax.apply_updates(params, updates)


def test_an_injected_sync_period_can_be_changed_during_training():
    inject = optax.inject_hyperparams(p2t.laperm, static_args="vectors")
    tx = inject(optax.sgd(0.1), sync_period=3)
    params = initial = numbers(0)
    state = tx.init(params)
    traces, waited = [], []

    @jax.jit
    def step(grads, state, params):
        traces.append(1)
        updates, state = tx.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    for i in range(12):
        if i in (4, 8):  # one step after a synchronization, and in the middle of a period
            state.hyperparams["sync_period"] = jnp.array({4: 5, 8: 2}[i])
        params, state = step(numbers(i + 1), state, params)
        waited.append(int(optax.tree.get(state, "lookahead_step")))
        if waited[-1] == 0:
            assert_close(params["kernel"], reordered(initial, params)["kernel"])
    assert waited == [1, 2, 0, 1, 2, 3, 4, 0, 1, 0, 1, 0]
    assert len(traces) == 1


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_multi_steps_gives_zeros_between_and_permutations_in_the_end(dtype):
    initial = params = numbers(0, dtype=dtype)
    tx = optax.MultiSteps(p2t.laperm(optax.adam(0.1), sync_period=2), every_k_schedule=3)
    state = tx.init(params)
    step = jax.jit(tx.update)
    for i in range(1, 13):
        grads = numbers(i // 4 + 1, dtype=dtype)
        updates, state = step(grads, state, params)
        if i % 3:
            assert_equal(updates, optax.tree.zeros_like(params))
            continue
        params = optax.apply_updates(params, updates)
        steps = optax.tree.get_all_with_path(state, "sync_step")
        assert [int(value) for _, value in steps] == [i // 3]
        if i % 6 == 0:
            assert_equal(optax.tree.get(state, "lookahead_step"), 0)
            sums = [optax.tree.sum(p["kernel"].astype("float32")) for p in (params, initial)]
            np.testing.assert_allclose(*sums, rtol=0.02)
        assert_equal(p2t.permuted_params(state, params), reordered(initial, params))


def test_multi_steps_inside_lets_updates_of_zero_pass():
    initial = params = numbers(0)
    inner = optax.MultiSteps(optax.sgd(0.1), every_k_schedule=2)
    tx = p2t.laperm(inner, sync_period=4)
    state = tx.init(params)
    step = jax.jit(tx.update)
    for i in range(1, 9):
        updates, state = step(numbers(i), state, params)
        if i % 2:
            assert_equal(updates, optax.tree.zeros_like(params))
        params = optax.apply_updates(params, updates)
        if i % 4 == 0:
            assert_close(params, reordered(initial, params))


# Schedules


def reading_of_the_docstring(k: Any, steps: int) -> list[bool]:
    """At which steps `laperm` says it synchronizes: slowly, and without JAX."""
    synchronizes, since = [], 0
    for seen_before in range(steps):
        since += 1
        asks_for = float(k(seen_before)) if callable(k) else float(k)
        synchronizes.append(since >= asks_for or not asks_for >= 1)
        if synchronizes[-1]:
            since = 0
    return synchronizes


PERIODS = {
    "1": 1,
    "int": 4,
    "np.int64": np.int64(4),
    "0-d ndarray": np.array(4),
    "0-d array": jnp.array(4),
    "whole float": 4.0,
    "uneven float": 2.5,
    "np.float32": np.float32(3.5),
    "bfloat16": jnp.array(3.0, "bfloat16"),
    "never": math.inf,
    "stairs up": optax.piecewise_constant_schedule(2, {7: 2, 15: 1.5}),
    "stairs down": optax.piecewise_constant_schedule(12.0, {4: 0.5, 10: 0.5, 16: 0.4}),
    "line": optax.linear_schedule(1, 6, 20),
    "doubling": optax.exponential_decay(1, 8, 2),
    "cycle": lambda step: 1 + step % 5,
    "joined": optax.join_schedules([lambda _: 3, lambda step: 1 + step], [8]),
    "falls below what has passed": lambda step: jnp.where(step < 9, 20, 2),
    "too small later": lambda step: jnp.where(step < 6, 3, -1),
    "NaN later": lambda step: jnp.where(step < 6, 3.0, jnp.nan),
}


@pytest.mark.parametrize("name", PERIODS)
def test_sync_period(name):
    steps = 24
    initial = numbers(0, DENSE)
    tx = p2t.laperm(optax.sgd(1.0), PERIODS[name])

    def step(carry, seed):
        params, state = carry
        grads = jax.tree.map(lambda p: 0.2 * jnp.sin(seed + 50 * p + 1), params)
        updates, state = tx.update(grads, state, params)
        params = optax.apply_updates(params, updates)
        return (params, state), (params, state[1].sync_step, state[1].lookahead_step)

    @jax.jit
    def train(params):
        return jax.lax.scan(step, (params, tx.init(params)), jnp.arange(float(steps)))[1]

    trace, seen, waited = train(initial)
    expected = reading_of_the_docstring(PERIODS[name], steps)
    since = [len(list(run)) for run in runs(expected)]
    assert [
        all(
            np.allclose(
                np.sort(trace["kernel"][i, :, column]), np.sort(initial["kernel"][:, column])
            )
            for column in range(3)
        )
        for i in range(steps)
    ] == expected
    assert seen.tolist() == list(range(1, steps + 1))
    assert waited.tolist() == since


def runs(synchronizes: list[bool]) -> Any:
    """For every step, the steps since the last synchronization."""
    for i in range(len(synchronizes)):
        yield itertools.takewhile(lambda s: not s, reversed(synchronizes[: i + 1]))


def test_a_schedule_may_stand_in_inject_hyperparams():
    schedule = PERIODS["stairs up"]
    inject = optax.inject_hyperparams(p2t.laperm, static_args="vectors")
    tx = inject(optax.sgd(0.1), sync_period=schedule)
    params = numbers(0)

    def step(state, grads):
        _, state = tx.update(grads, state, params)
        return state, optax.tree.get(state, "lookahead_step") == 0

    grads = jax.tree.map(lambda p: jnp.stack([p] * 24), params)
    _, synchronizes = jax.jit(lambda state: jax.lax.scan(step, state, grads))(tx.init(params))
    assert synchronizes.tolist() == reading_of_the_docstring(schedule, 24)


def test_the_inner_learning_rate_has_its_own_schedule():
    schedule = optax.piecewise_constant_schedule(1.0, {2: 0.5, 3: 0.5, 5: 0.0})
    tx = p2t.laperm(optax.sgd(schedule), sync_period=4)
    params = initial = numbers(0)
    state = tx.init(params)
    step = jax.jit(tx.update)
    for i, rate in enumerate([1, 1, 0.5, 0.25, 0.25, 0, 0]):
        ahead = jax.tree.map(lambda p, g: p - rate * g, params, numbers(i))
        updates, state = step(numbers(i), state, params)
        params = optax.apply_updates(params, updates)
        assert_close(params, reordered(initial, ahead) if i == 3 else ahead)
