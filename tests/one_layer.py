"""A layer, its gradients, and a run of some steps."""

import functools

import helpers
import jax
import numpy as np
import pytest
from helpers import TX

import p2t_jax as p2t

RNG = np.random.default_rng(0)
PARAMS = {
    "kernel": RNG.normal(size=(24, 3)).astype(np.float32),
    "bias": np.arange(3, dtype=np.float32),
}
AXES = {"kernel": (0,), "bias": None}
GRADS = {name: RNG.normal(size=w.shape).astype(np.float32) for name, w in PARAMS.items()}


def train(tx, params=PARAMS, steps=3, wrap=jax.jit):
    """Some steps; the exact permutation, the parameters and the state."""
    step = wrap(functools.partial(helpers.step, tx=tx))
    state = wrap(tx.init)(params)
    grads = jax.tree.map(lambda w, g: g.astype(w.dtype), params, GRADS)
    for _ in range(steps):
        params, state = step(params, state, grads)
    return wrap(p2t.permuted_params)(state, params), params, state


@functools.cache
def expected(name):
    return train(TX[name])[0]


EAGER_OR_JIT = pytest.mark.parametrize("wrap", [lambda f: f, jax.jit], ids=["eager", "jit"])
