"""`infer_vectors` where tokens look weights up, or are encoded as one-hot vectors."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import pytest
from jax import lax
from vector_helpers import infer, shape, tokens

import p2t_jax as p2t

einsum, one_hot = jnp.einsum, jax.nn.one_hot


def conv1d(x, w):
    return lax.conv_general_dilated(x, w, (1,), "SAME", dimension_numbers=("NWC", "WIO", "NWC"))


ONE_HOT: dict[str, tuple[Any, Any, tuple[Any, ...], Any]] = {
    "several tokens": (
        lambda w, t: einsum("btv,tvo->bo", one_hot(t, 4), w),
        shape(5, 4, 3),
        (tokens(2, 5),),
        (0, 1),
    ),
    "a part of a dimension": (
        lambda w, t: one_hot(t, 4).reshape(2, 20) @ w,
        shape(20, 3),
        (tokens(2, 5),),
        (0,),
    ),
    "scaled by data, several": (
        lambda w, t, x: einsum("bnv,nvo->bo", one_hot(t, 4) * x[..., None], w),
        shape(5, 4, 3),
        (tokens(2, 5), shape(2, 5)),
        (0, 1),
    ),
    "scaled by data": (
        lambda w, t, x: (one_hot(t, 4) * x[:, None]) @ w,
        shape(4, 3),
        (tokens(2), shape(2)),
        (0,),
    ),
    "the first of them": (lambda w, t: one_hot(t, 9)[:, :4] @ w, shape(4, 3), (tokens(2),), None),
    "in a scan": (
        lambda w, t: lax.scan(lambda c, t: (c, w[t]), 0, t)[1],
        shape(4, 3),
        (tokens(2),),
        None,
    ),
    "out of a symmetrized matrix": (
        lambda w, t: (w + w.T)[t],
        shape(4, 4),
        (tokens(2),),
        "asked",
    ),
    "another number for each place": (
        lambda w, t: (t == jnp.arange(4)).astype(float) @ w,
        shape(4, 3),
        (tokens(2, 4),),
        (0,),
    ),
    "an ensemble of convolutions": (
        lambda w, t: jax.vmap(lambda w: conv1d(one_hot(t, 4), w))(w),
        shape(3, 5, 4, 8),
        (tokens(2, 9),),
        (1, 2),
    ),
    "a window of one": (
        lambda w, t: conv1d(one_hot(t, 4), w),
        shape(1, 4, 8),
        (tokens(2, 9),),
        None,
    ),
    "all of two dimensions": (
        lambda w, t: einsum("bij,ijo->bo", one_hot(t, 6).reshape(-1, 2, 3), w),
        shape(2, 3, 8),
        (tokens(9),),
        None,
    ),
    "masked": (
        lambda w, t: (one_hot(t, 4) * (t != 0)[:, None]) @ w,
        shape(4, 3),
        (tokens(2),),
        None,
    ),
    "masked by where": (
        lambda w, t: jnp.where((t != 0)[:, None], one_hot(t, 4), 0) @ w,
        shape(4, 3),
        (tokens(2),),
        None,
    ),
    "or uniform": (
        lambda w, t: jnp.where((t != 0)[:, None], one_hot(t, 4), 0.25) @ w,
        shape(4, 3),
        (tokens(2),),
        (0,),
    ),
    "smoothed": (lambda w, t: (one_hot(t, 4) * 0.9 + 0.025) @ w, shape(4, 3), (tokens(2),), (0,)),
    "summed": (lambda w, t: one_hot(t, 4).sum(1) @ w, shape(4, 3), (tokens(2, 5),), (0,)),
}


@pytest.mark.parametrize("name", ONE_HOT)
def test_networks(name):
    fn, params, inputs, expected = ONE_HOT[name]
    assert infer(fn, params, *inputs) == expected


def test_tokens_encoded_inside_or_outside_of_a_convolution_are_the_same():
    net = nn.Conv(8, (5,))
    params = net.init(jax.random.key(0), jnp.ones((1, 20, 4)))
    inside = p2t.infer_vectors(lambda p, t: net.apply(p, one_hot(t, 4)), params, tokens(2, 20))
    outside = p2t.infer_vectors(net.apply, params, shape(2, 20, 4))
    assert inside == outside == {"params": {"kernel": (0, 1), "bias": None}}
