"""`infer_vectors` on bare JAX: the right axes or a question, never a wrong answer."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from vector_helpers import infer, shape

W = shape(4, 3)
X = shape(8, 4)


NETWORKS: dict[str, tuple[Any, Any, tuple[Any, ...], Any]] = {
    # name: fn, params, inputs, axes
    "matmul": (lambda w, x: x @ w, W, (X,), (0,)),
    "transposed": (lambda w, x: x @ w.T, shape(3, 4), (X,), (1,)),
    "from the left": (lambda w, x: w @ x.T, shape(3, 4), (X,), (1,)),
    "einsum": (lambda w, x: jnp.einsum("bi,hij->bhj", x, w), shape(2, 4, 3), (X,), (1,)),
    "two axes": (
        lambda w, x: jnp.einsum("bij,ijo->bo", x, w),
        shape(2, 4, 3),
        (shape(8, 2, 4),),
        (0, 1),
    ),
    "outer axes": (
        lambda w, x: jnp.einsum("bij,iko->bo", x, w),
        shape(2, 4, 3),
        (shape(8, 2, 4),),
        "asked",
    ),
    "a vector": (lambda w, x: jnp.tanh(x) @ w, shape(4), (X,), (0,)),
    "reshaped to one axis": (lambda w, x: x @ w.reshape(4, 6), shape(2, 2, 2, 3), (X,), (0, 1)),
    "reshaped to more axes": (lambda w, x: x @ w.reshape(4, 3, 2)[..., 0], shape(4, 6), (X,), (0,)),
    "half an axis": (
        lambda w, x: jnp.einsum("bi,jio->bjo", x, w.reshape(2, 4, 3)),
        shape(8, 3),
        (X,),
        "asked",
    ),
    "split and merged again": (
        lambda w, x: x @ w.reshape(2, 2, 3).reshape(4, 3),
        W,
        (X,),
        (0,),
    ),
    "reshaped across axes": (lambda w, x: x @ w.reshape(4, 3), shape(3, 4), (X,), "asked"),
    "size 1": (lambda w, x: x @ w, shape(1, 3), (shape(8, 1),), (0,)),
    "cast": (lambda w, x: x.astype("bfloat16") @ w.astype("bfloat16"), W, (X,), (0,)),
    "a masked": (lambda w, x: x @ (w * np.tri(4, 3)), W, (X,), (0,)),
    "where": (lambda w, x: x @ jnp.where(np.tri(4, 3) > 0, w, 0), W, (X,), (0,)),
    "a function of it": (lambda w, x: x @ jnp.exp(w), W, (X,), (0,)),
    "flipped": (lambda w, x: x @ w[::-1], W, (X,), (0,)),
    "rolled": (lambda w, x: x @ jnp.roll(w, 1, 0), W, (X,), "asked"),
    "padded": (lambda w, x: x @ jnp.pad(w, ((0, 2), (1, 0))), W, (shape(8, 6),), (0,)),
    "padded by less than nothing": (
        lambda w, x: x @ lax.pad(w, 0.0, [(-1, 0, 0), (0, 0, 0)]),
        shape(5, 3),
        (X,),
        "asked",
    ),
    "put into zeros": (
        lambda w, x: x @ lax.dynamic_update_slice(jnp.zeros((4, 5)), w, (0, 1)),
        W,
        (X,),
        (0,),
    ),
    "sliced outputs": (lambda w, x: x @ w[:, :2], W, (X,), (0,)),
    "sliced inputs": (lambda w, x: x @ w[:4], shape(6, 3), (X,), "asked"),
    "a stack, unrolled": (lambda w, x: jnp.tanh(x @ w[0]) @ w[1], shape(2, 4, 4), (X,), (1,)),
    "a stack, in a loop": (
        lambda w, x: lax.fori_loop(0, 5, lambda i, x: jnp.tanh(x @ w[i]), x),
        shape(5, 4, 4),
        (X,),
        (1,),
    ),
    "a stack, scanned": (
        lambda w, x: lax.scan(lambda x, w: (jnp.tanh(x @ w), None), x, w)[0],
        shape(5, 4, 4),
        (X,),
        (1,),
    ),
    "a constant of a scan": (
        lambda w, x: lax.scan(lambda c, x: (jnp.tanh(c + x @ w), None), jnp.zeros(3), x)[0],
        W,
        (X,),
        (0,),
    ),
    "carried by a scan": (
        lambda w, x: lax.scan(lambda c, x: ((c[0], c[1] + x @ c[0]), None), (w, jnp.zeros(3)), x)[
            0
        ][1],
        W,
        (X,),
        (0,),
    ),
    "while": (
        lambda w, x: lax.while_loop(lambda x: x.sum() < 3, lambda x: jnp.tanh(x @ w), x),
        shape(4, 4),
        (X,),
        (0,),
    ),
    "a loop of known length": (
        lambda w, x: x @ lax.while_loop(lambda c: c[0] < 3, lambda c: (c[0] + 1, -c[1]), (0, w))[1],
        W,
        (X,),
        (0,),
    ),
    "stacked by a scan": (
        lambda w, x: x @ lax.scan(lambda c, row: (c, -row), 0, w)[1],
        W,
        (X,),
        "asked",
    ),
    "a scale in each turn": (
        lambda w, x: lax.scan(lambda c, x: (c, x * w), 0, x)[1],
        shape(4),
        (X,),
        None,
    ),
    "one of two by the input": (
        lambda w, x: x @ lax.cond(x.sum() > 0, lambda w: w[0], lambda w: w[1], w),
        shape(2, 4, 3),
        (X,),
        (1,),
    ),
    "it or nothing by the input": (
        lambda w, x: x @ lax.cond(x.sum() > 0, lambda w: w, jnp.zeros_like, w),
        W,
        (X,),
        (0,),
    ),
    "where by the input": (lambda w, x: x @ jnp.where(x.sum() > 0, w, -w), W, (X,), (0,)),
    "used in one branch": (
        lambda w, x: lax.cond(x.sum() > 0, lambda x: x @ w, lambda x: x[:, :3], x),
        W,
        (X,),
        (0,),
    ),
    "in two ways in two branches": (
        lambda w, x: lax.cond(x.sum() > 0, lambda x: x @ w, lambda x: x @ w.T, x),
        shape(4, 4),
        (X,),
        "asked",
    ),
    "both ways": (lambda w, x: jnp.tanh(x @ w) @ w.T, W, (X,), "asked"),
    "tied embedding": (
        lambda w, i, x: (w[i], x @ w.T),
        shape(10, 4),
        (shape(8, dtype="int32"), X),
        "asked",
    ),
    "embedding": (lambda w, i: jnp.tanh(w[i]), shape(10, 4), (shape(8, dtype="int32"),), None),
    "embedding, taken": (
        lambda w, i: jnp.take(w, i, 0),
        shape(10, 4),
        (shape(8, dtype="int32"),),
        None,
    ),
    "embedding by one-hot": (
        lambda w, i: jax.nn.one_hot(i, 10) @ w,
        shape(10, 4),
        (shape(8, dtype="int32"),),
        None,
    ),
    "embedding by comparison": (
        lambda w, i: (i[:, None] == np.arange(10)).astype("float32") @ w,
        shape(10, 4),
        (shape(8, dtype="int32"),),
        None,
    ),
    "embedding by one-hot, tied": (
        lambda w, i: jax.nn.one_hot(i, 10) @ w @ w.T,
        shape(10, 4),
        (shape(8, dtype="int32"),),
        "asked",
    ),
    "experts that are looked up": (
        lambda w, i, x: jnp.einsum("bi,bij->bj", x, w[i]),
        shape(5, 4, 3),
        (shape(8, dtype="int32"), X),
        "asked",
    ),
    "sampled softmax": (
        lambda w, i, x: jnp.einsum("bi,bi->b", x, w[i]),
        shape(10, 4),
        (shape(8, dtype="int32"), X),
        "asked",
    ),
    "experts": (
        lambda w, x: jnp.einsum("bi,eio->beo", x, w),
        shape(5, 4, 3),
        (X,),
        (1,),
    ),
    "experts, ragged": (
        lambda w, x, n: lax.ragged_dot(x, w, n),
        shape(5, 4, 3),
        (X, shape(5, dtype="int32")),
        (1,),
    ),
    "bias": (lambda w, x: x + w, shape(4), (X,), None),
    "scale": (lambda w, x: jnp.tanh(x * w), shape(4), (X,), None),
    "scale of a matrix": (lambda w, x: jnp.tanh(x * w) + 1, shape(8, 4), (X,), None),
    "a product by hand": (lambda w, x: (x[:, :, None] * w).sum(1), W, (X,), "asked"),
    "a product by hand, from ones": (
        lambda w, x: jnp.einsum("i,bio->bo", np.ones(4), x[:, :, None] * w),
        W,
        (X,),
        "asked",
    ),
    "taps by hand": (
        lambda w, x: sum(w[k] * jnp.roll(x, k, 0) for k in range(3)),
        shape(3, 4),
        (X,),
        "asked",
    ),
    "taps by hand, after a bias": (
        lambda w, x: x + w[0] * x + w[1] * jnp.roll(x, 1, 0),
        shape(2, 4),
        (X,),
        "asked",
    ),
    "taps in a scan": (
        lambda w, x: jnp.tanh(
            lax.scan(lambda c, wx: (c + wx[0] * wx[1], None), jnp.zeros(4), (w, x[:3]))[0]
        ),
        shape(3, 4),
        (X,),
        "asked",
    ),
    "rows in a loop": (
        lambda w, x: lax.fori_loop(
            0, 4, lambda i, c: c + x[:, i][:, None] * w[i], jnp.zeros((8, 3))
        ),
        W,
        (X,),
        "asked",
    ),
    "a residual stream's scales": (
        lambda w, x: lax.scan(lambda x, w: (x + w * jnp.tanh(x), None), x, w)[0],
        shape(5, 4),
        (X,),
        None,
    ),
    "a residual stream's scales, unrolled": (
        lambda w, x: functools.reduce(lambda x, i: x + w[i] * jnp.tanh(x), range(5), x),
        shape(5, 4),
        (X,),
        None,
    ),
    "scales of scanned layers": (
        lambda w, x: lax.scan(lambda x, w: (jnp.tanh(x * w) + jnp.tanh(x * w), None), x, w)[0],
        shape(5, 4),
        (X,),
        None,
    ),
    "summed cumulatively": (
        lambda w, x: jnp.cumsum(x[:, :, None] * w, 1)[:, -1],
        W,
        (X,),
        "asked",
    ),
    "softmax of it": (lambda w, x: x @ jax.nn.softmax(w, 0), W, (X,), (0,)),
    "quantized": (
        lambda w, x: x @ jnp.round(w / jnp.abs(w).max(0) * 127).astype("int8").astype("float32"),
        W,
        (X,),
        (0,),
    ),
    "straight through": (
        lambda w, x: x @ (w + lax.stop_gradient(jnp.sign(w) - w)),
        W,
        (X,),
        (0,),
    ),
    "it decides between constants": (lambda w, x: x @ jnp.where(w > 0, 1, -1), W, (X,), "asked"),
    "symmetrized, beside data": (
        lambda w, x: jnp.concatenate([x, w + w.T]),
        shape(4, 4),
        (X,),
        "asked",
    ),
    "symmetrized": (lambda w, x: x @ (w + w.T), shape(4, 4), (X,), "asked"),
    "orthogonalized": (lambda w, x: x @ jnp.linalg.qr(w)[0], shape(4, 4), (X,), "asked"),
    "a Kronecker product": (
        lambda w, x: x @ jnp.kron(w, np.ones((2, 3))),
        shape(2, 2),
        (X,),
        (0,),
    ),
    "blocks on a diagonal": (
        lambda w, x: x @ jax.scipy.linalg.block_diag(*w),
        shape(2, 2, 3),
        (X,),
        (1,),
    ),
    "summed over its experts": (lambda w, x: x @ w.sum(0), shape(2, 4, 3), (X,), "asked"),
    "two slices of the inputs": (
        lambda w, x: jnp.tanh(x @ w[:4]) + x @ w[4:],
        shape(8, 3),
        (X,),
        "asked",
    ),
    "a codebook": (
        lambda w, x: w[jnp.argmin((w**2).sum(-1) - 2 * x @ w.T, -1)],
        shape(5, 4),
        (X,),
        "asked",
    ),
    "scaled by the input, then contracted": (
        lambda w, x: jnp.einsum("bi,bio->bo", x, w * x[:, :, None]),
        W,
        (X,),
        "asked",
    ),
    "query scale": (
        lambda w, x: jnp.einsum("bi,ci->bc", x * w, x),
        shape(4),
        (X,),
        None,
    ),
    "input of a convolution": (
        lambda w, k: lax.conv(w, k, (1, 1), "SAME"),
        shape(1, 2, 5, 5),
        (shape(3, 2, 2, 2),),
        "asked",
    ),
    "FFT": (
        lambda w, x: jnp.fft.ifft(jnp.fft.fft(x) * jnp.fft.fft(w)).real,
        shape(4),
        (X,),
        "asked",
    ),
    "Fourier features": (lambda w, x: jnp.fft.fft(x @ w), W, (X,), (0,)),
    "sorted": (lambda w, x: x @ jnp.sort(w, 0), W, (X,), "asked"),
    "a constant basis": (lambda w, x: x @ (np.ones((4, 2)) @ w), shape(2, 3), (X,), "asked"),
    "solved": (lambda w, x: jnp.linalg.solve(w, x.T), shape(4, 4), (X,), "asked"),
    "callback": (
        lambda w, x: jax.pure_callback(lambda w, x: x @ w, shape(8, 3), w, x),
        W,
        (X,),
        "asked",
    ),
    "only its sum": (lambda w, x: x * w.sum(), W, (X,), "asked"),
    "its mean taken off": (lambda w, x: x @ (w - w.mean(0)), W, (X,), (0,)),
    "standardized": (lambda w, x: x @ ((w - w.mean(0)) / jnp.std(w, 0)), W, (X,), (0,)),
    "unused": (lambda w, x: x, W, (X,), "asked"),
    "remat": (jax.checkpoint(lambda w, x: jnp.tanh(x @ w)), W, (X,), (0,)),
    "jit": (jax.jit(lambda w, x: jnp.tanh(x @ w)), W, (X,), (0,)),
    "vmap": (jax.vmap(lambda w, x: jnp.tanh(x @ w), (None, 0)), W, (X,), (0,)),
    "an ensemble": (jax.vmap(lambda w, x: jnp.tanh(x @ w), (0, None)), shape(5, 4, 3), (X,), (1,)),
    "an ensemble along the last axis": (
        jax.vmap(lambda w, x: jnp.tanh(x @ w), (2, None)),
        shape(4, 3, 5),
        (X,),
        (0,),
    ),
    "a vmapped convolution": (
        jax.vmap(lambda w, x: lax.conv(x, w, (1, 1), "SAME"), (0, None)),
        shape(5, 3, 2, 2, 2),
        (shape(1, 2, 5, 5),),
        (2, 3, 4),
    ),
    "grouped convolution": (
        lambda w, x: lax.conv_general_dilated(x, w, (1, 1), "SAME", feature_group_count=2),
        shape(4, 1, 2, 2),
        (shape(1, 2, 5, 5),),
        (1, 2, 3),
    ),
    "dilated": (
        lambda w, x: lax.conv_general_dilated(x, w, (1, 1), "SAME", rhs_dilation=(2, 2)),
        shape(4, 2, 2, 2),
        (shape(1, 2, 9, 9),),
        (1, 2, 3),
    ),
    "keys are no inputs": (
        lambda w, x, key: x @ (w + jax.random.normal(key, w.shape)),
        W,
        (X, jax.eval_shape(lambda: jax.random.key(0))),
        (0,),
    ),
    "drop connect": (
        lambda w, x, key: x @ jnp.where(jax.random.bernoulli(key, 0.5, w.shape), w, 0),
        W,
        (X, jax.eval_shape(lambda: jax.random.PRNGKey(0))),
        (0,),
    ),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_one_parameter(name):
    fn, w, inputs, expected = NETWORKS[name]
    assert infer(fn, w, *inputs) == expected
