"""Derivatives are those of a permutation that stays the same."""

import chex
import helpers
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from helpers import OPTIMIZERS, TX
from one_layer import EAGER_OR_JIT, GRADS, PARAMS, expected

import p2t_jax as p2t

COTANGENTS = jax.tree.map(
    lambda w: np.cos(np.arange(w.size, dtype=np.float32)).reshape(w.shape), PARAMS
)


def loss(params):
    """Linear: its derivative tells places from each other."""
    return optax.tree.vdot(COTANGENTS, params)


def moved_back(permuted, initial):
    """The derivative of the loss with respect to the initial weights, which are elsewhere now."""
    kernel, start = np.asarray(permuted["kernel"]), np.asarray(initial["kernel"])
    out = np.zeros_like(start)
    for j in range(start.shape[1]):
        for i, w in enumerate(kernel[:, j]):
            (source,) = np.flatnonzero(start[:, j] == w)
            out[source, j] += COTANGENTS["kernel"][i, j]
    return out


def directional(function, x, direction):
    return jax.jvp(function, (x,), (direction,))[1]


@EAGER_OR_JIT
def test_derivative_with_respect_to_the_initial_weights(wrap, name):
    tx = OPTIMIZERS[name]()
    initial = jax.tree.map(jnp.asarray, PARAMS)
    phi = jax.tree.map(jnp.asarray, expected("laperm"))

    def function(kernel):
        params = initial | {"kernel": kernel}
        _, state = tx.update(GRADS, tx.init(params), params)
        return loss(p2t.permuted_params(state, phi if OPTIMIZERS[name].follows_params else params))

    def permuted(kernel):
        params = initial | {"kernel": kernel}
        _, state = tx.update(GRADS, tx.init(params), params)
        return p2t.permuted_params(state, phi if OPTIMIZERS[name].follows_params else params)

    want = moved_back(permuted(initial["kernel"]), initial)
    np.testing.assert_allclose(wrap(jax.grad(function))(initial["kernel"]), want, rtol=1e-6)
    forward = directional(wrap(function), initial["kernel"], GRADS["kernel"])
    np.testing.assert_allclose(forward, np.vdot(want, GRADS["kernel"]), rtol=1e-5)


@EAGER_OR_JIT
def test_derivative_of_a_loss_at_the_permuted_parameters(wrap):
    """LAPerm's weights are constant almost everywhere; the biases are what they are given as."""
    state = TX["laperm"].init(PARAMS)
    function = wrap(lambda params: loss(p2t.permuted_params(state, params)))
    params = jax.tree.map(jnp.asarray, PARAMS)
    want = {"kernel": np.zeros_like(PARAMS["kernel"]), "bias": COTANGENTS["bias"]}
    chex.assert_trees_all_close(jax.grad(function)(params), want)
    forward = directional(function, params, COTANGENTS)
    np.testing.assert_allclose(forward, np.vdot(COTANGENTS["bias"], COTANGENTS["bias"]), rtol=1e-5)


@EAGER_OR_JIT
@pytest.mark.parametrize("synchronizes", [False, True])
def test_derivative_with_respect_to_an_inner_learning_rate(synchronizes, wrap, name):
    """Hypergradients: whoever is looked ahead moves on with the rate, permutations do not."""

    def function(rate):
        inner = optax.sgd(rate)
        if name == "laperm":
            tx = p2t.laperm(inner, 1 if synchronizes else 5)
        else:
            tx = OPTIMIZERS[name](inner)
        updates, _ = tx.update(GRADS, tx.init(PARAMS), PARAMS)
        return loss(updates)

    biases = -np.vdot(COTANGENTS["bias"], GRADS["bias"])
    kernels = -np.vdot(COTANGENTS["kernel"], GRADS["kernel"])
    want = {"laperm": biases + (0 if synchronizes else kernels), "sgperm": 0}[name]
    for derivative in (jax.grad, jax.jacfwd):
        np.testing.assert_allclose(wrap(derivative(function))(0.1), want, rtol=1e-4)


def test_hessian_vector_product_through_training(name):
    """Forward over reverse, as for curvature and for meta-learning."""

    def function(scale):
        tx = OPTIMIZERS[name](optax.sgd(0.1))
        params = jax.tree.map(lambda w: scale * w, PARAMS)
        state = tx.init(params)
        for _ in range(3):
            params, state = helpers.step(params, state, GRADS, tx)
        return optax.tree.norm(p2t.permuted_params(state, params)["kernel"], squared=True)

    squared = float(np.vdot(PARAMS["kernel"], PARAMS["kernel"]))
    second = jax.jit(jax.jacfwd(jax.grad(function)))(1.0)
    np.testing.assert_allclose(second, 2 * squared, rtol=1e-4)
