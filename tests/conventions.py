"""Parameters of shuffled numbers, and the optimizers that are held to Optax's conventions."""

import math

import chex
import helpers
import jax
import jax.numpy as jnp
import numpy as np
import optax
from helpers import Optimizer, inject
from swapperm import swapperm

# With a row for a third algorithm, for which nothing else was written.
OPTIMIZERS = helpers.OPTIMIZERS | {
    "swapperm": Optimizer(
        make=lambda inner=None, **options: swapperm(0, inner, **options),
        injected=lambda inner=None, **options: inject(swapperm, "inner", "vectors", seed=0)(
            inner=inner, **options
        ),
        hyperparameter=("seed", 0),
        step_name="swap_step",
        weights_name="theta",
        numbers=3,
    )
}


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
