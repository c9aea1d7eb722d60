"""Validation of arguments that many functions share."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from p2t_jax import _checks


def test_a_seed_and_every_form_of_its_key_are_the_same_key():
    key = jax.random.key(5)
    for given in (
        *(5, np.int32(5), np.array(5), jnp.uint32(5)),
        *(key, jax.random.PRNGKey(5), np.asarray(jax.random.PRNGKey(5))),
    ):
        assert _checks.random_key("key", given) == key
        assert jax.jit(lambda given: _checks.random_key("key", given))(given) == key


def test_keys_of_other_generators():
    key = jax.random.key(5, impl="rbg")
    assert _checks.random_key("key", key) == key
    with jax.default_prng_impl("rbg"):
        assert _checks.random_key("key", jax.random.PRNGKey(5)) == key
        assert _checks.random_key("key", 5) == key


def test_a_key_for_each_member_of_an_ensemble():
    seeds = jnp.arange(3)
    keys = jax.vmap(lambda seed: _checks.random_key("key", seed))(seeds)
    assert (keys == jax.vmap(jax.random.key)(seeds)).all()


@pytest.mark.parametrize(
    ("key", "given"),
    [
        *((True, "True"), (1.5, "1.5"), (None, "None"), ("seed", "'seed'")),
        *((np.bool_(True), "bool"), (jnp.zeros(3, jnp.uint32), r"uint32\[3\]")),
        *((jnp.zeros(2, jnp.int32), r"int32\[2\]"), (jax.random.split(jax.random.key(0)), "2")),
    ],
)
def test_what_stands_for_no_key(key, given):
    with pytest.raises(TypeError, match=f"^key: expected a key .*, got .*{given}"):
        _checks.random_key("key", key)
