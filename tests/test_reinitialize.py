"""New initial weights for a whole tree."""

import math
from typing import Any

import chex
import equinox as eqx
import flax.linen as nn
import haiku as hk
import helpers
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from helpers import normalized_params
from hypothesis import given, settings
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P
from oracles import laperm as reference
from strategies import weights_and_axes

import p2t_jax as p2t
from p2t_jax._vectors import named_leaves
from p2t_jax.initializers import from_profile, kaiming, to_grid
from p2t_jax.profiles import weight_profiles

KEY = jax.random.key(0)
IMAGES = jnp.zeros((1, 8, 8, 3))


def every_weight_and_bias(path: Any, leaf: Any) -> Any:
    return 0 if path[-1] in ("bias", "b") else p2t.flax_vectors(path, leaf)


class Linen(nn.Module):
    @nn.compact
    def __call__(self, x):
        return nn.Dense(40)(nn.LayerNorm()(nn.Conv(30, (3, 3))(x)))


def linen() -> Any:
    params = jax.eval_shape(Linen().init, KEY, IMAGES)["params"]
    params = jax.tree.map(jnp.ones_like, params)
    return params, p2t.flax_vectors, {"Conv_0/kernel": 27, "Dense_0/kernel": 30}


def nnx_state() -> Any:
    class Net(nnx.Module):
        def __init__(self, rngs):
            self.conv = nnx.Conv(3, 30, (3, 3), rngs=rngs)
            self.dense = nnx.Linear(30, 40, rngs=rngs)

    params = nnx.state(Net(nnx.Rngs(0)), nnx.Param)
    return params, p2t.flax_vectors, {"conv/kernel": 27, "dense/kernel": 30}


def equinox() -> Any:
    keys = jax.random.split(KEY)
    net = {"conv": eqx.nn.Conv2d(3, 30, 3, key=keys[0]), "dense": eqx.nn.Linear(30, 40, key=KEY)}
    params = eqx.filter(net, eqx.is_array)
    return params, p2t.equinox_vectors, {"conv/weight": 27, "dense/weight": 30}


def haiku() -> Any:
    net = hk.transform(lambda x: hk.Linear(40)(hk.Conv2D(30, 3)(x)))
    params = jax.tree.map(jnp.ones_like, jax.eval_shape(net.init, KEY, IMAGES))
    return params, p2t.haiku_vectors, {"conv2_d/w": 27, "linear/w": 30}


def stacks() -> Any:
    params = {"blocks": {"kernel": jnp.zeros((20, 27, 30)), "bias": jnp.zeros((20, 30))}}
    return params, {"blocks": {"kernel": 1, "bias": None}}, {"blocks/kernel": 27}


@pytest.mark.parametrize("make", [linen, nnx_state, equinox, haiku, stacks])
def test_every_weight_vector_of_a_tree_is_drawn_by_its_own_fan_in(make):
    params, vectors, fan_ins = make()
    new = p2t.reinitialize(KEY, params, kaiming(confidence=0), vectors=vectors)
    assert jax.tree.structure(new) == jax.tree.structure(params)
    seen = []
    for (path, w), old in zip(named_leaves(new), jax.tree.leaves(params), strict=True):
        name = "/".join(path)
        assert (w.shape, w.dtype) == (old.shape, old.dtype)
        n = fan_ins.pop(name, None)
        if n is None:
            np.testing.assert_array_equal(w, old)
            continue
        assert helpers.uniform_limit(w) == pytest.approx(math.sqrt(6 / n), rel=0.02)
        assert helpers.uniform_limit(w) <= math.sqrt(6 / n) * (1 + 1e-6)
        seen.append(np.ravel(w)[:100] * math.sqrt(n))
    assert not fan_ins
    assert len(np.unique(np.round(seen, 4))) > 0.95 * np.size(seen)  # each its own random numbers


@given(case=weights_and_axes())
@settings(max_examples=20, deadline=None)
def test_the_initializer_sees_weight_vectors_as_columns(case):
    old, axes = case

    def init(key, shape, dtype):
        n, m = shape
        return (np.arange(n)[:, None] + 100 * np.arange(m)).astype(np.float32)

    new = np.asarray(p2t.reinitialize(KEY, {"w": old}, init, vectors={"w": axes})["w"])
    assert new.shape == old.shape
    for j, index in enumerate(reference.weight_vectors(old, axes)):
        w = new[index].ravel()
        np.testing.assert_array_equal(w, 100 * j + np.arange(len(w)))


def test_biases_that_are_weight_vectors_are_drawn_at_the_scale_of_their_layer():
    params = normalized_params()
    init = kaiming(confidence=0)
    new = p2t.reinitialize(KEY, params, init, vectors=every_weight_and_bias)
    for name, n in (("Conv_0", 90), ("Dense_0", 200)):
        bias, limit = np.asarray(new[name]["bias"]), math.sqrt(6 / n)
        assert 0.3 * limit < helpers.uniform_limit(bias) <= limit
        assert len(np.unique(bias)) == bias.size
    chex.assert_trees_all_equal(new["LayerNorm_0"], params["LayerNorm_0"])  # no weights beside it
    # Kernels do not depend on whether biases are drawn; by default biases are left alone.
    kernels_only = p2t.reinitialize(KEY, params, init)
    chex.assert_trees_all_equal(kernels_only["Dense_0"]["kernel"], new["Dense_0"]["kernel"])
    chex.assert_trees_all_equal(kernels_only["Dense_0"]["bias"], params["Dense_0"]["bias"])


def test_biases_without_names():
    layers = [(jnp.zeros((600, 50)), jnp.zeros(50)), (jnp.zeros((50, 40)), jnp.zeros(40))]
    new = p2t.reinitialize(KEY, layers, kaiming(0), vectors=lambda path, leaf: 0)
    for (_, bias), n in zip(new, (600, 50), strict=True):
        assert helpers.uniform_limit(bias) == pytest.approx(math.sqrt(6 / n), rel=0.3)


def test_a_tree_may_have_an_initializer_for_each_part():
    params = normalized_params()
    parts = {"Conv_0": None, "Dense_0": jax.nn.initializers.constant(0.03), "LayerNorm_0": None}
    new = p2t.reinitialize(KEY, params, parts)
    chex.assert_trees_all_equal(new["Conv_0"], params["Conv_0"])
    chex.assert_trees_all_equal(new["Dense_0"]["kernel"], jnp.full((200, 6), 0.03))
    state, _, _ = nnx_state()
    new = p2t.reinitialize(KEY, state, {"conv": kaiming(0), "dense": kaiming(1)})
    assert jax.tree.structure(new) == jax.tree.structure(state)


def test_only_the_key_decides():
    params = normalized_params()

    def draw(key, params=params):
        return p2t.reinitialize(key, params, kaiming())

    first = draw(KEY)
    again = draw(KEY, jax.tree.map(jnp.zeros_like, params))
    for name in ("Conv_0", "Dense_0"):
        np.testing.assert_array_equal(first[name]["kernel"], again[name]["kernel"])
    other = draw(jax.random.key(1))
    assert not np.intersect1d(first["Dense_0"]["kernel"], other["Dense_0"]["kernel"]).size
    jitted = jax.jit(draw)(KEY)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), jitted, first)
    ensemble = jax.vmap(draw)(jax.random.split(KEY, 3))
    assert ensemble["Dense_0"]["kernel"].shape == (3, 200, 6)
    assert len(np.unique(ensemble["Dense_0"]["kernel"])) > 3500


@pytest.mark.parametrize(
    ("kind", "spec"),
    [
        (AxisType.Auto, P("x", None)),
        (AxisType.Explicit, P(None, "x")),
        (AxisType.Explicit, P("x", None)),
    ],
)
def test_weights_stay_where_they_are(kind, spec):
    mesh = jax.make_mesh((8,), ("x",), axis_types=(kind,))
    params = {"kernel": jax.random.normal(KEY, (16, 8))}
    sharded = jax.device_put(params, NamedSharding(mesh, spec))
    shuffled = jax.tree.map(from_profile, weight_profiles(params))

    def new_weights(params):
        return (
            p2t.reinitialize(KEY, params, kaiming(0)),
            p2t.reinitialize(KEY, params, shuffled),
            to_grid(params),
            p2t.prune(KEY, params, 0.3),
        )

    expected = new_weights(params)
    with jax.set_mesh(mesh):
        eager = new_weights(sharded)
        jitted = jax.jit(new_weights, out_shardings=NamedSharding(mesh, spec))(sharded)
    for new in (eager, jitted):
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), new, expected)
        for w in jax.tree.leaves(new):
            assert w.sharding.is_equivalent_to(sharded["kernel"].sharding, 2)
