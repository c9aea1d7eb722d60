"""What is taken for a random key."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from one_layer import PARAMS, train

import p2t_jax as p2t

KEYS = {
    "int": lambda: 5,
    "negative": lambda: -5,
    "np.int64": lambda: np.int64(5),
    "np.uint32": lambda: np.uint32(5),
    "0-d ndarray": lambda: np.array(5),
    "0-d array": lambda: jnp.array(5),
    "key": lambda: jax.random.key(5),
    "PRNGKey": lambda: jax.random.PRNGKey(5),
    "NumPy PRNGKey": lambda: np.asarray(jax.random.PRNGKey(5)),
    "rbg": lambda: jax.random.key(5, impl="rbg"),
    "unsafe_rbg": lambda: jax.random.key(5, impl="unsafe_rbg"),
}
ASKS_FOR_A_KEY = {
    "sgperm": lambda key: train(p2t.sgperm(key, 0.3, 0.25))[0],
    "cycle_permutation": lambda key: train(p2t.cycle_permutation(key, 0.3, 0.25))[0],
    "prune": lambda key: p2t.prune(key, PARAMS, 0.5),
    "reinitialize": lambda key: p2t.reinitialize(key, PARAMS, jax.nn.initializers.he_normal()),
}


@pytest.mark.parametrize("function", ASKS_FOR_A_KEY)
def test_a_key_is_all_that_jax_takes_for_one(function):
    ask = ASKS_FOR_A_KEY[function]
    want = ask(jax.random.key(5))
    for key_name, key in KEYS.items():
        result = ask(key())
        same = key_name not in ("negative", "rbg", "unsafe_rbg")
        assert same == np.array_equal(result["kernel"], want["kernel"]), key_name


@pytest.mark.parametrize("function", ASKS_FOR_A_KEY)
def test_nothing_else_is_taken_for_a_key(function):
    several = jax.random.split(KEYS["key"]())
    lengths = [jnp.zeros(n, jnp.uint32) for n in (3, 4)]  # the latter is one of "rbg"
    for bad in ("seed", 1.5, None, True, [0], {}, *lengths, several):
        with pytest.raises(TypeError, match=r"^key: "):
            ASKS_FOR_A_KEY[function](bad)
