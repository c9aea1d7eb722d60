"""`infer_vectors` where parameters are moved about, looked up, mixed or multiplied repeatedly."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from vector_helpers import infer, shape, tokens

import p2t_jax as p2t

einsum, one_hot = jnp.einsum, jax.nn.one_hot


def conv(x, w, **kwargs):
    kwargs = {"dimension_numbers": ("NHWC", "HWIO", "NHWC")} | kwargs
    return lax.conv_general_dilated(x, w, (1, 1), "SAME", **kwargs)


def conv_transpose(x, w):
    numbers = ("NHWC", "HWIO", "NHWC")
    return lax.conv_transpose(
        x, w, (2, 2), "SAME", transpose_kernel=True, dimension_numbers=numbers
    )


def attention(p, x, k):
    q = einsum("bti,ihd->bthd", x, p["q"])
    v = einsum("bti,ihd->bthd", x, p["v"])
    s = jax.nn.softmax(einsum("bqhd,bkhd->bhqk", q / 2, k))
    return einsum("bqhd,hdo->bqo", einsum("bhqk,bkhd->bqhd", s, v), p["o"])


def rope(x):
    a, b = jnp.split(x, 2, -1)
    angle = np.arange(x.shape[1] * 1.0)[None, :, None, None]
    return x * np.cos(angle) + jnp.concatenate([-b, a], -1) * np.sin(angle)


def multi_query(p, x):
    q = rope(einsum("bti,ihd->bthd", x, p["q"]))
    k = rope((x @ p["k"])[:, :, None])[:, :, 0]
    s = jax.nn.softmax(einsum("bqhd,bkd->bhqk", q, k))
    return s


def mixture_layers(p, x, gates):
    h = jax.nn.gelu(einsum("td,edf->tef", x, p["a"])) * einsum("td,edf->tef", x, p["c"])
    return einsum("ted,te->td", einsum("tef,efd->ted", h, p["b"]), gates)


def dispatched(p, x, dispatch, combine):
    h = jax.nn.relu(einsum("ecm,emh->ech", einsum("sec,sm->ecm", dispatch, x), p["a"]))
    return einsum("sec,ecm->sm", combine, einsum("ech,ehm->ecm", h, p["b"]))


def lora(p, x):
    q = x @ p["q"] + (x @ p["a"]) @ p["b"]
    return jax.nn.softmax(q @ (x @ p["k"]).T) @ x


IMAGE = shape(2, 8, 8, 3)
ENSEMBLE = shape(3, 3, 3, 3, 16)
X, GATES = shape(2, 4), shape(2, 3)
EXPERTS = shape(3, 2, 2, 4, 8)
PARAMETERS_OF_PRIMITIVES: dict[str, tuple[Any, Any, tuple[Any, ...], Any]] = {
    "reshape, dimensions": (
        lambda w, x: x @ lax.reshape(w, (4, 4), dimensions=(1, 0)),
        shape(4, 4),
        (X,),
        (1,),
    ),
    "an ensemble of convolutions": (
        lambda w, x: jax.vmap(conv, (None, 0))(x, w),
        ENSEMBLE,
        (IMAGE,),
        (1, 2, 3),
    ),
    "with images of their own": (
        lambda w, x: jax.vmap(conv)(x, w),
        ENSEMBLE,
        (shape(3, 2, 8, 8, 3),),
        (1, 2, 3),
    ),
    "along the last axis": (
        lambda w, x: jax.vmap(conv, (None, 4))(x, w),
        ENSEMBLE,
        (IMAGE,),
        (0, 1, 2),
    ),
    "twice": (
        lambda w, x: jax.vmap(jax.vmap(conv, (None, 0)), (None, 1))(x, w),
        shape(3, 2, 3, 3, 3, 16),
        (IMAGE,),
        (2, 3, 4),
    ),
    "an ensemble of grouped convolutions": (
        lambda w, x: jax.vmap(lambda w: conv(x, w, feature_group_count=3))(w),
        shape(5, 3, 3, 1, 6),
        (IMAGE,),
        (1, 2, 3),
    ),
    "an ensemble of transposed convolutions": (
        lambda w, x: jax.vmap(conv_transpose, (None, 0))(x, w),
        shape(5, 2, 2, 6, 3),
        (IMAGE,),
        (1, 2, 4),
    ),
    "groups of the batch": (
        lambda w, x: conv(x, w, batch_group_count=2),
        shape(2, 2, 3, 4),
        (IMAGE,),
        (0, 1, 2),
    ),
    "an ensemble of scans": (
        lambda w, x: jax.vmap(lambda w: lax.scan(lambda x, w: (x @ w, None), x, w)[0])(w),
        shape(2, 5, 4, 4),
        (X,),
        (2,),
    ),
    "an ensemble of branches": (
        lambda w, x, b: jax.vmap(lambda w, b: x @ lax.cond(b, lambda w: w, lambda w: -w, w))(w, b),
        shape(2, 4, 3),
        (X, shape(2, dtype="bool")),
        (1,),
    ),
    "an ensemble of embeddings": (
        lambda w, t: jax.vmap(lambda w: w[t])(w),
        shape(3, 9, 4),
        (tokens(7),),
        None,
    ),
    "an ensemble of slices": (
        lambda w, x, i: einsum(
            "bi,bio->bo", x, jax.vmap(lambda w, i: lax.dynamic_slice(w, (i, 0), (2, 3)))(w, i)
        ),
        shape(2, 4, 3),
        (shape(2, 2), tokens(2)),
        "asked",
    ),
    "mirrored": (lambda w, x: x @ (w + w[:, ::-1]), shape(4, 4), (X,), "asked"),
    "halves one after the other": (
        lambda w, x: x @ jnp.concatenate([w[:, :2], w[:, 2:]], 0),
        shape(2, 4),
        (X,),
        "asked",
    ),
    "layers one after the other": (
        lambda w, x: x @ jnp.concatenate([w[0], w[1]], 0),
        shape(2, 2, 3),
        (X,),
        "asked",
    ),
    "layers beside each other": (
        lambda w, x: x @ jnp.concatenate([w[0], w[1]], 1),
        shape(2, 4, 3),
        (X,),
        (1,),
    ),
    "rows in groups": (
        lambda w, x, n: lax.ragged_dot_general(
            x.T, w, n, lax.RaggedDotDimensionNumbers((((0,), (0,)), ((), ())), [0], [])
        ),
        shape(8, 3),
        (shape(4, 8), tokens(2)),
        "asked",
    ),
    "halves, summed": (lambda w, x: x @ (w[:, :2] + w[:, 2:]), shape(4, 4), (X,), "asked"),
    "halves, chosen": (
        lambda w, x: x @ jnp.where(np.eye(4, 2) > 0, w[:, :2], w[:, 2:]),
        shape(4, 4),
        (X,),
        "asked",
    ),
    "experts, summed": (lambda w, x: x @ (w[0] + w[1] + w[2]), shape(3, 4, 3), (X,), "asked"),
    "experts, summed in a scan": (
        lambda w, x: x @ lax.scan(lambda c, w: (c + w, None), jnp.zeros((4, 3)), w)[0],
        shape(3, 4, 3),
        (X,),
        "asked",
    ),
    "symmetrized twice": (lambda w, x: x @ (w + w.T + w), shape(4, 4), (X,), "asked"),
}

SEVERAL_PRODUCTS: dict[str, tuple[Any, Any, tuple[Any, ...], Any]] = {
    **{
        f"mixed experts, {e} x {i} x {o}": (
            lambda w, x, g: einsum("be,bi,eio->bo", g, x, w),
            shape(e, i, o),
            (shape(2, i), shape(2, e)),
            "asked",
        )
        for e, i, o in ((3, 4, 8), (9, 8, 4), (3, 8, 2))
    },
    "mixed experts, inputs first": (
        lambda w, x, g: einsum("beo,be->bo", einsum("bi,eio->beo", x, w), g),
        shape(3, 4, 8),
        (X, GATES),
        "asked",
    ),
    "mixed experts, kernels first": (
        lambda w, x, g: einsum("bio,bi->bo", einsum("be,eio->bio", g, w), x),
        shape(3, 4, 8),
        (X, GATES),
        "asked",
    ),
    "mixed experts of a linear layer": (
        lambda p, x, g: einsum("bio,bi->bo", einsum("be,eio->bio", g, p["w"]), x @ p["v"]),
        {"w": shape(3, 5, 8), "v": shape(4, 5)},
        (X, GATES),
        {"w": "asked", "v": (0,)},
    ),
    "mixed convolutions": (
        lambda w, x, g: conv(x, np.ones((2, 2, 4, 8)) + einsum("e,ehwio->hwio", g, w)),
        EXPERTS,
        (shape(2, 5, 5, 4), shape(3)),
        "asked",
    ),
    "mixed convolutions, one for each image": (
        lambda w, x, g: jax.vmap(lambda x, g: conv(x[None], einsum("e,ehwio->hwio", g, w)))(x, g),
        EXPERTS,
        (shape(2, 5, 5, 4), GATES),
        "asked",
    ),
    "mixed convolutions, flattened": (
        lambda w, x, g: jax.vmap(lambda x, g: conv(x[None], (g @ w).reshape(2, 2, 4, 8)))(x, g),
        shape(3, 128),
        (shape(2, 5, 5, 4), GATES),
        "asked",
    ),
    "bilinear": (
        lambda w, x, y: einsum("bi,oij,bj->bo", x, w, y),
        shape(5, 4, 3),
        (X, GATES),
        "asked",
    ),
    "bilinear in itself": (
        lambda w, x: einsum("bi,oij,bj->bo", x, w, x),
        shape(5, 4, 4),
        (X,),
        "asked",
    ),
    "a bilinear score": (
        lambda w, x, y: einsum("bi,ij,bj->b", x, w, y),
        shape(4, 3),
        (X, GATES),
        "asked",
    ),
    "bilinear scores of pairs": (
        lambda w, x, y: einsum("bxi,ij,byj->bxy", x, w, y),
        shape(4, 4),
        (shape(2, 5, 4), shape(2, 5, 4)),
        "asked",
    ),
    "trilinear": (
        lambda w, x, y, z: einsum("bi,bj,bk,ijko->bo", x, y, z, w),
        shape(4, 3, 5, 6),
        (X, GATES, shape(2, 5)),
        "asked",
    ),
    "products of features of three": (
        lambda w, x: einsum(
            "xyzijk,ijko->xyzo", einsum("xyij,zk->xyzijk", einsum("xi,yj->xyij", x, x), x), w
        ),
        shape(4, 4, 4, 3),
        (X,),
        "asked",
    ),
    "scaled inputs": (
        lambda w, x, y: einsum("bij,bij,ijo->bo", x, y, w),
        shape(4, 5, 3),
        (shape(2, 4, 5), shape(2, 4, 5)),
        (0, 1),
    ),
    "scaled channels": (
        lambda w, x, s: conv(x * jax.nn.sigmoid(s)[:, None, None], w),
        shape(2, 2, 3, 8),
        (IMAGE, GATES),
        (0, 1, 2),
    ),
    "products of features": (
        lambda w, x, y: einsum("bi,bj->bij", x, y).reshape(2, -1) @ w,
        shape(12, 3),
        (X, GATES),
        (0,),
    ),
    "attention, with other keys": (
        lambda p, x, y: attention(p, x, einsum("bti,ihd->bthd", y, p["k"])),
        {"q": shape(4, 2, 3), "k": shape(5, 2, 3), "v": shape(4, 2, 3), "o": shape(2, 3, 4)},
        (shape(2, 7, 4), shape(2, 7, 5)),
        {"q": (0,), "k": (0,), "v": (0,), "o": (0, 1)},
    ),
    "rotated queries, one key": (
        multi_query,
        {"q": shape(4, 2, 6), "k": shape(4, 6)},
        (shape(2, 5, 4),),
        {"q": (0,), "k": (0,)},
    ),
    "linear attention": (
        lambda p, x: (x @ p["q"]) @ ((x @ p["k"]).T @ (x @ p["v"])),
        {"q": shape(4, 3), "k": shape(4, 3), "v": shape(4, 5)},
        (shape(7, 4),),
        {"q": (0,), "k": (0,), "v": (0,)},
    ),
    "LoRA of queries": (
        lora,
        {"q": shape(4, 3), "a": shape(4, 2), "b": shape(2, 3), "k": shape(4, 3)},
        (shape(5, 4),),
        {"q": (0,), "a": (0,), "b": (0,), "k": (0,)},
    ),
    "mixed outputs of gated experts": (
        mixture_layers,
        {"a": shape(3, 4, 8), "c": shape(3, 4, 8), "b": shape(3, 8, 4)},
        (shape(6, 4), shape(6, 3)),
        {"a": (1,), "c": (1,), "b": (1,)},
    ),
    "tokens dispatched to experts": (
        dispatched,
        {"a": shape(3, 4, 8), "b": shape(3, 8, 4)},
        (shape(6, 4), shape(6, 3, 2), shape(6, 3, 2)),
        {"a": (1,), "b": (1,)},
    ),
    "a loss by a dot product": (
        lambda w, x, y: -jnp.vdot(y, jax.nn.log_softmax(x @ w)) + jnp.vdot(x @ w - y, x @ w - y),
        shape(4, 3),
        (X, GATES),
        (0,),
    ),
}

ALL = PARAMETERS_OF_PRIMITIVES | SEVERAL_PRODUCTS


@pytest.mark.parametrize("name", ALL)
def test_networks(name):
    fn, params, inputs, expected = ALL[name]
    assert infer(fn, params, *inputs) == expected


# Dtypes that cannot be permuted


@pytest.mark.parametrize("dtype", ["complex64", "int8", "float8_e4m3fn"])
def test_weights_of_a_dtype_that_cannot_be_permuted_are_said(dtype):
    def fn(params, x):
        return x @ params["w"].astype("complex64").real @ params["v"]

    params = {"w": shape(4, 3, dtype=dtype), "v": shape(3, 2)}
    with pytest.raises(ValueError, match=rf"- w: its dtype {dtype} cannot be .*give it None.*out"):
        p2t.infer_vectors(fn, params, X)
    for otherwise in (None, {"w": None, "v": 1}, p2t.named_vectors({"w": None})):
        assert p2t.infer_vectors(fn, params, X, otherwise=otherwise) == {"w": None, "v": (0,)}
    with pytest.raises(TypeError, match=rf"axes 0 for w of shape.*{dtype}. Give it None, or leave"):
        p2t.infer_vectors(fn, params, X, otherwise={"w": 0, "v": 0})


def test_spectral_weights_of_complex_numbers_are_said():
    def fn(w, x):
        return jnp.fft.irfft(einsum("bki,kio->bko", jnp.fft.rfft(x, axis=1), w), axis=1)

    with pytest.raises(ValueError, match="dtype complex64 cannot be permuted"):
        p2t.infer_vectors(fn, shape(5, 4, 3, dtype="complex64"), shape(2, 8, 4))


def test_integers_that_are_no_weights_are_left_alone():
    def fn(params, x):
        h = x @ params["table"][params["ids"]] + params["n"]
        noise = jax.random.normal(jax.random.wrap_key_data(params["key"]), h.shape)
        return jax.random.permutation(params["rng"], h * params["counts"] + noise)

    params = {
        "table": shape(9, 3),
        "ids": tokens(4),
        "n": tokens(),
        "counts": tokens(1, 3),
        "key": shape(2, dtype="uint32"),
        "rng": jax.eval_shape(lambda: jax.random.key(0)),
        "unused": tokens(5, 5),
    }
    axes = infer(fn, params, X)
    assert axes.pop("table") == "asked"
    assert set(axes.values()) == {None}
