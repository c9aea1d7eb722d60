"""`infer_vectors` on networks of several parameters in bare JAX."""

from typing import Any

import jax
import jax.numpy as jnp
import pytest
from jax import lax
from vector_helpers import infer, shape

W, X = shape(4, 3), shape(8, 4)


def squares(params: Any) -> Any:
    return sum(jnp.sum(leaf**2) for leaf in jax.tree.leaves(params))


def weight_norm(params, x):
    v, g = params["v"], params["g"]
    return x @ (g * v / jnp.linalg.norm(v, axis=0))


def spectral_norm(params, x):
    w, u = params["w"], params["u"]
    v = w.T @ u
    sigma = u @ w @ (v / jnp.linalg.norm(v))
    return x @ (w / sigma)


def lora(params, x):
    return x @ params["w"] + (x @ params["a"]) @ params["b"]


def merged_lora(params, x):
    return x @ (params["w"] + params["a"] @ params["b"])


def lstm(params, x):
    def step(carry, x):
        h, c = carry
        z = jnp.concatenate([x, h], -1) @ jnp.concatenate([params["wx"], params["wh"]])
        i, f, g, o = jnp.split(z + params["b"], 4, -1)
        c = jax.nn.sigmoid(f) * c + jax.nn.sigmoid(i) * jnp.tanh(g)
        return (jax.nn.sigmoid(o) * jnp.tanh(c), c), None

    return lax.scan(step, (params["h0"], jnp.zeros(5)), x)[0][0]


def perceiver(params, x):
    latents = jnp.tanh(params["latents"] + params["bias"])
    q, k = latents @ params["wq"], x @ params["wk"]
    return jax.nn.softmax(q @ k.T) @ x


def tokens(params, x):
    x = jnp.concatenate([params["cls"], x]) + params["positions"]
    return jnp.tanh(x) @ params["w"]


def prefix(params, x):
    keys = jnp.concatenate([params["prefix"], x @ params["wk"]])
    return (x @ params["wq"]) @ keys.T


def gqa(params, x):
    q = jnp.einsum("td,dnh->tnh", x, params["q"]).reshape(8, 2, 2, 3)
    k, v = jnp.einsum("td,cdnh->ctnh", x, params["kv"])
    p = jax.nn.softmax(jnp.einsum("tngh,snh->tngs", q, k))
    return jnp.einsum("tngs,snh->tngh", p, v).reshape(8, 12) @ params["o"].reshape(12, 4)


NETS: dict[str, tuple[Any, Any, Any]] = {
    "weight norm": (weight_norm, {"v": W, "g": shape(3)}, {"v": (0,), "g": None}),
    "weight norm, kept axis": (weight_norm, {"v": W, "g": shape(1, 3)}, {"v": (0,), "g": None}),
    "a gain of inputs": (weight_norm, {"v": W, "g": shape(4, 1)}, {"v": (0,), "g": "asked"}),
    "spectral norm": (spectral_norm, {"w": W, "u": shape(4)}, {"w": (0,), "u": "asked"}),
    "LoRA": (lora, {"w": W, "a": shape(4, 2), "b": shape(2, 3)}, {"w": (0,), "a": (0,), "b": (0,)}),
    "merged LoRA": (
        merged_lora,
        {"w": W, "a": shape(4, 2), "b": shape(2, 3)},
        {"w": (0,), "a": "asked", "b": "asked"},
    ),
    "LSTM": (
        lstm,
        {"wx": shape(4, 20), "wh": shape(5, 20), "b": shape(20), "h0": shape(5)},
        {"wx": (0,), "wh": (0,), "b": None, "h0": None},
    ),
    "latent queries": (
        perceiver,
        {"latents": shape(3, 5), "bias": shape(5), "wq": shape(5, 2), "wk": shape(4, 2)},
        {"latents": "asked", "bias": "asked", "wq": "asked", "wk": (0,)},
    ),
    "tokens": (
        tokens,
        {"cls": shape(1, 4), "positions": shape(9, 4), "w": W},
        {"cls": None, "positions": None, "w": (0,)},
    ),
    "prefix tuning": (
        prefix,
        {"prefix": shape(2, 3), "wk": W, "wq": W},
        {"prefix": "asked", "wk": (0,), "wq": (0,)},
    ),
    "grouped queries": (
        gqa,
        {"q": shape(4, 4, 3), "kv": shape(2, 4, 2, 3), "o": shape(4, 3, 4)},
        {"q": (0,), "kv": (1,), "o": (0, 1)},
    ),
    "a loss with weight decay": (
        lambda p, x: jnp.mean((jnp.tanh(x @ p["w"] + p["b"]) - 1) ** 2) + 0.1 * squares(p),
        {"w": W, "b": shape(3)},
        {"w": (0,), "b": None},
    ),
    "two products": (lambda p, x: x @ (p["a"] * p["b"]), {"a": W, "b": W}, {"a": (0,), "b": (0,)}),
    "in pairs": (
        lambda p, x: x @ jnp.concatenate([p["q"], p["k"]], 1),
        {"q": W, "k": W},
        {"q": (0,), "k": (0,)},
    ),
    "no floats": (
        lambda p, x: x @ p["w"] * p["n"] + p["s"],
        {"w": W, "n": shape(3, dtype="int32"), "s": shape()},
        {"w": (0,), "n": None, "s": None},
    ),
}


@pytest.mark.parametrize("name", NETS)
def test_several_parameters(name):
    fn, params, expected = NETS[name]
    assert infer(fn, params, X) == expected
