"""The rules by name where layers are stacked."""

import pickle

import equinox as eqx
import flax.linen as nn
import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from vector_helpers import KEY, Nnx, normal, permuted, struct

import p2t_jax as p2t
from p2t_jax._vectors import (
    equinox_vectors,
    flax_vectors,
    haiku_vectors,
    stacked,
    vector_axes,
)

# Stacks


class Block(nn.Module):
    @nn.compact
    def __call__(self, x, _):
        x = nn.Conv(x.shape[-1], (3,))(nn.LayerNorm()(nn.Dense(x.shape[-1])(x)))
        return nn.MultiHeadDotProductAttention(1)(x), None


class Scanned(nn.Module):
    name_of_stack: str | None = None

    @nn.compact
    def __call__(self, x):
        x = nn.Dense(3)(x)
        lift = {"variable_axes": {"params": 0}, "split_rngs": {"params": True}, "length": 4}
        return nn.scan(Block, **lift)(name=self.name_of_stack)(x, None)[0]


@pytest.mark.parametrize("name", ["blocks", None])
def test_stacked_by_linen_scan(name):
    params = jax.eval_shape(Scanned(name).init, KEY, normal(1, 5, 3))["params"]
    stack = name or "ScanBlock_0"

    def vectors(path, leaf):
        return (stacked(flax_vectors) if path[0] == stack else flax_vectors)(path, leaf)

    with pytest.raises(ValueError, match=f"(?s)Dense_0/kernel.*{stack}/.*kernel"):
        vector_axes(flax_vectors, params)
    assert permuted(vectors, params) == {
        "Dense_0/kernel": (0,),
        f"{stack}/Conv_0/kernel": (1, 2),
        f"{stack}/Dense_0/kernel": (1,),
        f"{stack}/MultiHeadDotProductAttention_0/key/kernel": (1,),
        f"{stack}/MultiHeadDotProductAttention_0/out/kernel": (1, 2),
        f"{stack}/MultiHeadDotProductAttention_0/query/kernel": (1,),
        f"{stack}/MultiHeadDotProductAttention_0/value/kernel": (1,),
    }


def test_stacked_by_nnx_vmap_jax_vmap_filter_vmap_and_layer_stack():
    @nnx.vmap(in_axes=0, out_axes=0)
    def make(rngs):
        return Nnx(linear=nnx.Linear(4, 3, rngs=rngs), conv=nnx.Conv(2, 3, (3,), rngs=rngs))

    params = nnx.state(make(nnx.Rngs(0).split(5)), nnx.Param)
    assert permuted(stacked(flax_vectors), params) == {
        "conv/kernel": (1, 2),
        "linear/kernel": (1,),
    }

    ensemble = jax.vmap(lambda key: nn.Dense(3).init(key, normal(4)))(jax.random.split(KEY, 5))
    assert permuted(stacked(flax_vectors), ensemble) == {"params/kernel": (1,)}

    mlps = eqx.filter_vmap(lambda key: eqx.nn.MLP(2, 2, 3, 1, key=key))(jax.random.split(KEY, 5))
    mlps = eqx.filter(mlps, eqx.is_array)
    with pytest.raises(ValueError, match=r"(?s)layers/\*/weight.*\(5, 3, 2\)"):
        vector_axes(equinox_vectors, mlps)
    assert set(permuted(stacked(equinox_vectors), mlps).values()) == {(2,)}

    net = hk.transform(lambda x: hk.layer_stack(3)(lambda x: hk.Conv1D(2, 2)(x))(x))
    params = jax.eval_shape(net.init, KEY, normal(1, 5, 2))
    with pytest.raises(ValueError, match="in a stack"):
        vector_axes(haiku_vectors, params)
    assert list(permuted(stacked(haiku_vectors), params).values()) == [(1, 2)]


def test_stacked_shifts_axes_wherever_the_stack_is():
    leaf = struct((3, 3, 2, 4), jnp.float32)
    seen = []

    def rule(path, leaf):
        seen.append((path, leaf.shape, leaf.dtype))
        return -1, 0

    assert [stacked(rule, a)(("w",), leaf) for a in (0, 1, -1)] == [(1, 3), (0, 3), (0, 2)]
    assert seen[1] == (("w",), (3, 2, 4), jnp.float32)
    assert stacked(stacked(rule))(("w",), leaf) == (2, 3)
    assert stacked(lambda path, leaf: None)(("w",), struct((3,), jnp.int32)) is None


def test_stacked_errors():
    with pytest.raises(TypeError, match=r"axis: .*True"):
        stacked(flax_vectors, True)
    with pytest.raises(ValueError, match=r"stack's axis 2 for a/w .*: expected axes"):
        stacked(flax_vectors, 2)(("a", "w"), np.zeros((3, 4)))
    with pytest.raises(ValueError, match=r"stack's axis 0 for a/w of shape \(\): a scalar"):
        stacked(flax_vectors)(("a", "w"), np.zeros(()))
    with pytest.raises(ValueError, match=r"axes 1 for a/w .*\(4,\): expected axes from -1 to 0"):
        stacked(lambda path, leaf: 1)(("a", "w"), np.zeros((3, 4)))


def test_rules_have_names():
    params = {"Dense_0": {"kernel": np.zeros((4, 3), np.float32)}}
    assert vector_axes("flax", params) == ((0,),)
    assert vector_axes({"Dense_0": "flax"}, params) == ((0,),)
    with pytest.raises(
        ValueError, match=r"^vectors: expected .flax., .equinox., .haiku., .*'flux'"
    ):
        vector_axes("flux", params)


def test_stacked_rules_of_the_same_rule_are_equal_and_can_be_pickled():
    rule = p2t.stacked(p2t.flax_vectors, axis=1)
    assert rule == p2t.stacked(p2t.flax_vectors, axis=1)
    assert rule != p2t.stacked(p2t.flax_vectors)
    assert rule != p2t.stacked(p2t.haiku_vectors, axis=1)
    assert pickle.loads(pickle.dumps(rule)) == rule
    params = {"kernel": jnp.arange(24.0).reshape(4, 2, 3)}
    states = [
        p2t.laperm(optax.sgd(1.0), 2, vectors=p2t.stacked(p2t.flax_vectors)).init(params)
        for _ in range(2)
    ]
    assert jax.tree.structure(states[0]) == jax.tree.structure(states[1])
