"""Both optimizers keep Optax's conventions: arguments, state, dtypes, shardings, wrappers."""

import math

import chex
import equinox as eqx
import helpers
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from helpers import INJECT_LAPERM, INJECT_SGPERM, Optimizer, inject
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P
from optax import contrib
from swapperm import swapperm

import p2t_jax as p2t

pytestmark = pytest.mark.usefixtures("compile_fast")

# With a row for a third algorithm, for which nothing else was written.
OPTIMIZERS = helpers.OPTIMIZERS | {
    "swapperm": Optimizer(
        make=lambda inner=None, **options: swapperm(0, inner, **options),
        link=None,
        injected=lambda inner=None, **options: inject(swapperm, "inner", "vectors", seed=0)(
            inner=inner, **options
        ),
        hyperparameter=("seed", 0),
        step_name="swap_step",
        weights_name="theta",
        numbers=3,
    )
}


@pytest.fixture(params=OPTIMIZERS)
def name(request):
    return request.param


SHAPES = {"bias": (3,), "conv": {"kernel": (3, 3, 3, 3)}, "kernel": (27, 3)}
AXES = {"bias": None, "conv": {"kernel": (0, 1, 2)}, "kernel": (0,)}
DENSE = {"bias": (3,), "kernel": (27, 3)}


def numbers(seed, shapes=SHAPES, dtype=jnp.float32):
    """A tree of shuffled numbers: far enough apart for any dtype to tell them from each other."""
    rng = np.random.default_rng(seed)

    def leaf(shape):
        n = math.prod(shape)
        return jnp.asarray(((rng.permutation(n) - n / 2.3) / 16).reshape(shape), dtype)

    return jax.tree.map(leaf, shapes, is_leaf=lambda x: isinstance(x, tuple))


def reordered(initial, phi):
    return helpers.reordered(initial, phi, {name: AXES[name] for name in initial})


def squared_distance(target):
    return lambda params: optax.tree.norm(optax.tree.sub(params, target), squared=True)


def assert_close(actual, expected, size=1.0):
    """Equal but for the rounding errors of numbers of this size."""
    chex.assert_trees_all_close(actual, expected, rtol=2e-6, atol=2e-6 * max(1.0, size))


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
    [i if i in KINDS.split() else pytest.param(i, marks=pytest.mark.slow) for i in INNERS],
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


# The state


def test_parameters_are_needed_in_update_and_missed_in_the_words_of_optax(name):
    params = numbers(0)
    tx = OPTIMIZERS[name]()
    with pytest.raises(ValueError) as ours:  # noqa: PT011 : the message is compared below
        tx.update(params, tx.init(params))
    theirs = optax.adaptive_grad_clip(0.1)
    with pytest.raises(ValueError, match="params") as optaxes:
        theirs.update(params, theirs.init(params), None)
    assert str(ours.value) == str(optaxes.value)


def test_names_in_the_state_are_unique(name):
    inner = optax.adam(optax.linear_schedule(0.1, 0.01, 10))  # has two fields `count`
    tx = optax.chain(optax.clip(1.0), OPTIMIZERS[name](inner))
    params = numbers(0)
    _, state = jax.jit(tx.update)(params, tx.init(params), params)
    assert int(optax.tree.get(state, OPTIMIZERS[name].step_name)) == 1
    weights = optax.tree.get(state, OPTIMIZERS[name].weights_name)
    chex.assert_trees_all_equal(jnp.sort(weights["kernel"], 0), jnp.sort(params["kernel"], 0))
    with pytest.raises(KeyError, match="count"):
        optax.tree.get(state, "count")


def test_the_state_can_be_set_by_name():
    tx = p2t.laperm(optax.adam(0.1), sync_period=10)
    params = numbers(0)
    state = optax.tree.set(tx.init(params), lookahead_step=jnp.array(9))
    _, state = jax.jit(tx.update)(params, state, params)
    assert int(optax.tree.get(state, "lookahead_step")) == 0  # it has synchronized


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64"])
def test_shapes_and_dtypes_are_stable(dtype, name):
    with helpers.config("jax_enable_x64", dtype == "float64"):
        tx = OPTIMIZERS[name](optax.adam(0.1))
        initial = params = numbers(0, dtype=dtype)
        state = tx.init(params)
        dtypes = jax.tree.map(
            lambda x: x.dtype, optax.tree.get(state, OPTIMIZERS[name].weights_name)
        )
        assert set(jax.tree.leaves(dtypes)) == {jnp.dtype(dtype)}

        @jax.jit
        def step(params, state, skip):
            grads = jax.grad(squared_distance(numbers(1, dtype=dtype)))(params)
            updates, state = jax.lax.cond(  # it compares the types of both branches
                skip,
                lambda: (optax.tree.zeros_like(params), state),
                lambda: tx.update(grads, state, params),
            )
            return optax.apply_updates(params, updates), state, updates

        for skip in (False, True, False, False):
            params, state, updates = step(params, state, skip)
            chex.assert_trees_all_equal_dtypes(params, updates, initial)
        assert int(optax.tree.get(state, OPTIMIZERS[name].step_name)) == 3
        final = p2t.permuted_params(state, params)
        helpers.assert_permuted(name, final, initial, params, AXES)
        assert bool(p2t.is_permutation(final, initial))


def test_a_parameter_without_an_update_is_left_alone(name):
    initial = params = numbers(0)
    tx = OPTIMIZERS[name](optax.sgd(0.1))
    state = tx.init(params)
    for i in range(3):
        grads = {**numbers(i), "conv": {"kernel": None}}
        updates, state = jax.jit(tx.update)(grads, state, params)
        assert updates["conv"] == {"kernel": None}
        params = eqx.apply_updates(params, updates)  # Optax's takes None for parameters only
    chex.assert_trees_all_equal(params["conv"], initial["conv"])
    final = p2t.permuted_params(state, params)
    helpers.assert_permuted(name, final, initial, params, AXES)
    assert helpers.moved(final["kernel"], initial["kernel"])[0] > 0.3


# optax.tree.map_params


@pytest.mark.parametrize("vectors", [p2t.flax_vectors, AXES, None], ids=["rule", "tree", "none"])
def test_map_params(vectors, name):
    params = numbers(0)
    tx = OPTIMIZERS[name](optax.adam(0.1), vectors=vectors)
    state = tx.init(params)
    chex.assert_trees_all_equal(optax.tree.map_params(tx, lambda leaf: leaf, state), state)
    chex.assert_trees_all_equal(optax.tree.map_params(tx.init, lambda leaf: leaf, state), state)

    names = jax.tree.map(lambda leaf: f"like {leaf.shape}", params)
    mapped = optax.tree.map_params(
        tx, lambda leaf, name: name, state, names, transform_non_params=lambda leaf: "other"
    )
    assert jax.tree.structure(mapped) == jax.tree.structure(state)
    adam, ours = mapped
    assert (adam[0].count, adam[0].mu) == ("other", names)
    assert getattr(ours, OPTIMIZERS[name].weights_name) == names
    others = {leaf for leaf in jax.tree.leaves(ours) if not leaf.startswith("like")}
    assert others == {"other"}


def test_map_params_where_parameters_are_masked(name):
    params = numbers(0)
    mask = {"bias": False, "conv": True, "kernel": True}
    tx = optax.masked(OPTIMIZERS[name](), mask)
    names = jax.tree.map(lambda leaf: f"like {leaf.shape}", params)
    mapped = optax.tree.map_params(
        tx,
        lambda leaf, name: leaf if isinstance(leaf, optax.MaskedNode) else name,
        tx.init(params),
        names,
        is_leaf=lambda leaf: isinstance(leaf, optax.MaskedNode),
    )
    weights = optax.tree.get(mapped, OPTIMIZERS[name].weights_name)
    assert weights == names | {"bias": optax.MaskedNode()}


def test_map_params_gives_the_shardings_of_a_state(name):
    mesh = jax.make_mesh((2, 2), ("x", "y"), axis_types=(AxisType.Auto,) * 2)
    params = numbers(0, {"bias": (4,), "kernel": (24, 4)})
    shardings = {"bias": NamedSharding(mesh, P("x")), "kernel": NamedSharding(mesh, P("y", "x"))}
    tx = OPTIMIZERS[name](optax.adam(0.1))
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
    chex.assert_trees_all_equal(after[1], expected[1])


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
def test_sharding_types_are_stable(spec, axes, name):
    mesh = jax.make_mesh((2, 4), ("x", "y"), axis_types=(AxisType.Explicit,) * 2)
    tx = OPTIMIZERS[name](optax.sgd(0.1, momentum=0.9), vectors=axes)

    def types(tree):
        return jax.tree.map(jax.typeof, tree)

    with jax.set_mesh(mesh):
        numbers = np.arange(64, dtype=np.float16).reshape(2, 8, 4)
        params = jax.device_put(numbers, NamedSharding(mesh, spec))
        state = tx.init(params)
        after = jax.jit(tx.update)(params, state, params)
        assert types(after) == (types(params), types(state))
        assert types(jax.jit(tx.init)(params)) == types(state)
        assert jax.eval_shape(tx.update, params, state, params) == jax.eval_shape(lambda: after)
    weights = optax.tree.get(state, OPTIMIZERS[name].weights_name)
    assert jax.typeof(weights).sharding.spec == jax.typeof(params).sharding.spec


# Wrappers


@pytest.mark.parametrize("kind", [lambda value: value, np.asarray], ids=["number", "array"])
def test_inject_hyperparams_changes_nothing(kind, name):
    inner, (hyperparameter, value) = optax.adam(0.1), OPTIMIZERS[name].hyperparameter
    plain = OPTIMIZERS[name](inner, vectors=AXES)
    wrapped = OPTIMIZERS[name].injected(inner, **{hyperparameter: kind(value)}, vectors=AXES)
    params = numbers(0)
    state, wrapped_state = plain.init(params), jax.jit(wrapped.init)(params)
    chex.assert_trees_all_equal(wrapped_state.inner_state, state)
    update, wrapped_update = jax.jit(plain.update), jax.jit(wrapped.update)
    for seed in range(1, 5):
        updates, state = update(numbers(seed), state, params)
        again, wrapped_state = wrapped_update(numbers(seed), wrapped_state, params)
        chex.assert_trees_all_equal(again, updates)
        chex.assert_trees_all_equal(wrapped_state.inner_state, state)
        params = optax.apply_updates(params, updates)


def test_an_injected_sync_period_can_be_changed_during_training():
    tx = INJECT_LAPERM(inner=optax.adam(0.1), vectors=AXES)
    params = initial = numbers(0)
    state = tx.init(params)
    waited = []
    chex.clear_trace_counter()

    @jax.jit
    @chex.assert_max_traces(n=1)
    def step(params, state, grads):
        return helpers.step(params, state, grads, tx)

    for i in range(12):
        if i in (4, 8):  # one step after a synchronization, and in the middle of a period
            state.hyperparams["sync_period"] = jnp.array({4: 5, 8: 2}[i])
        params, state = step(params, state, numbers(i + 1))
        waited.append(int(optax.tree.get(state, "lookahead_step")))
        if waited[-1] == 0:
            assert_close(params["kernel"], reordered(initial, params)["kernel"])
    assert waited == [1, 2, 0, 1, 2, 3, 4, 0, 1, 0, 1, 0]


def test_an_injected_aggressiveness_can_be_changed_during_training():
    tx = INJECT_SGPERM(aggressiveness=0.1, vectors=AXES)
    params = initial = numbers(0)
    state = tx.init(params)
    state.hyperparams["aggressiveness"] = jnp.array(0.0)
    step = jax.jit(lambda *args: helpers.step(*args, tx))
    params, state = step(params, state, numbers(1))
    chex.assert_trees_all_equal(p2t.permuted_params(state, params), initial)
    state.hyperparams["aggressiveness"] = jnp.array(0.5)
    params, state = step(params, state, numbers(2))
    assert min(helpers.moved(p2t.permuted_params(state, params), initial)) > 0.2


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_multi_steps_gives_zeros_between_and_permutations_in_the_end(dtype, name):
    initial = params = numbers(0, dtype=dtype)
    tx = optax.MultiSteps(OPTIMIZERS[name](optax.adam(0.1)), every_k_schedule=3)
    state = tx.init(params)
    step = jax.jit(tx.update)
    for i in range(1, 10):
        updates, state = step(numbers(i // 4 + 1, dtype=dtype), state, params)
        if i % 3:
            chex.assert_trees_all_equal(updates, optax.tree.zeros_like(params))
            continue
        params = optax.apply_updates(params, updates)
        assert int(optax.tree.get(state, OPTIMIZERS[name].step_name)) == i // 3
        final = p2t.permuted_params(state, params)
        helpers.assert_permuted(name, final, initial, params, AXES)
    assert min(helpers.moved(final, initial)) > 0.3


def test_multi_steps_inside_lets_updates_of_zero_pass():
    initial = params = numbers(0)
    inner = optax.MultiSteps(optax.sgd(0.1), every_k_schedule=2)
    tx = p2t.laperm(inner, sync_period=4)
    state = tx.init(params)
    step = jax.jit(tx.update)
    for i in range(1, 9):
        updates, state = step(numbers(i), state, params)
        if i % 2:
            chex.assert_trees_all_equal(updates, optax.tree.zeros_like(params))
        params = optax.apply_updates(params, updates)
        if i % 4 == 0:
            assert_close(params, reordered(initial, params))


# Schedules


def reading_of_the_docstring(k, steps):
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
    "np.float32": np.float32(3),
    "uneven float": jnp.array(2.5),
    "uneven schedule": optax.constant_schedule(3.5),
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


@pytest.mark.parametrize("period", PERIODS)
def test_sync_period(period):
    steps = 24
    initial = numbers(0, {"kernel": (6, 3)})
    tx = p2t.laperm(optax.sgd(1.0), PERIODS[period])

    def step(carry, seed):
        params, state = carry
        grads = jax.tree.map(lambda p: 0.2 * jnp.sin(seed + 50 * p + 1), params)
        params, state = helpers.step(params, state, grads, tx)
        return (params, state), (params["kernel"], state[1].sync_step, state[1].lookahead_step)

    @jax.jit
    def train(params):
        return jax.lax.scan(step, (params, tx.init(params)), jnp.arange(float(steps)))[1]

    trace, seen, waited = train(initial)
    expected = reading_of_the_docstring(PERIODS[period], steps)
    permuted = np.isclose(np.sort(trace, axis=1), np.sort(initial["kernel"], axis=0))
    assert permuted.all(axis=(1, 2)).tolist() == expected
    assert seen.tolist() == list(range(1, steps + 1))
    since = [0]
    for synchronizes in expected:
        since.append(0 if synchronizes else since[-1] + 1)
    assert waited.tolist() == since[1:]


def test_a_schedule_may_stand_in_inject_hyperparams():
    schedule = PERIODS["stairs up"]
    tx = INJECT_LAPERM(inner=optax.adam(0.1), sync_period=schedule, vectors=AXES)
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
        ahead = jax.tree.map(lambda p, g, rate=rate: p - rate * g, params, numbers(i))
        updates, state = step(numbers(i), state, params)
        params = optax.apply_updates(params, updates)
        assert_close(params, reordered(initial, ahead) if i == 3 else ahead)
