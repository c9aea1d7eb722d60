"""Two layers, of which one has a bias."""

import jax.numpy as jnp
import numpy as np
import optax

RNG = np.random.default_rng(0)
PARAMS = {
    "body": {
        "bias": jnp.zeros(3),
        "kernel": jnp.asarray(0.1 * RNG.normal(size=(20, 3)), "float32"),
    },
    "head": {"kernel": jnp.asarray(0.1 * RNG.normal(size=(24, 2)), "float32")},
}
AXES = {"body": {"bias": None, "kernel": (0,)}, "head": {"kernel": (0,)}}
SGD = optax.sgd(0.1)
