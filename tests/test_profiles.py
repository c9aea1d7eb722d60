"""Weight profiles against NumPy's sort, and their similarity against its formula."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from oracles import laperm as reference
from strategies import weights_and_axes

from p2t_jax.profiles import profile_similarity, weight_profiles

KEY = jax.random.key(0)


@given(weights_and_axes())
@settings(max_examples=20, deadline=None)
def test_a_profile_is_the_sorted_weight_vector(case):
    w, axes = case
    profiles = weight_profiles({"w": w}, vectors={"w": axes})["w"]
    n = int(np.prod([w.shape[axis] for axis in axes]))
    assert profiles.shape == (*np.delete(w.shape, axes), n)
    vectors = list(reference.weight_vectors(w, axes))
    expected = reference.sort_weight_vectors(w, axes)
    for j, row in zip(vectors, np.asarray(profiles).reshape(len(vectors), n), strict=True):
        assert row.tobytes() == expected[j].tobytes()


def test_only_weight_vectors_have_profiles():
    params = {"Dense_0": {"bias": jnp.ones(3), "kernel": jnp.ones((4, 3))}}
    profiles = jax.jit(weight_profiles)(params)
    assert profiles["Dense_0"]["bias"] is None
    assert profiles["Dense_0"]["kernel"].shape == (3, 4)
    with pytest.raises(ValueError, match="params: "):
        weight_profiles({})


@given(arrays(np.float32, (5, 7), elements=st.floats(-1, 1, width=16)))
@settings(max_examples=50, deadline=None)
def test_similarity_by_its_formula(w):
    mean_profile = sum(w.astype(float)) / 5
    left = sum(np.linalg.norm(row - mean_profile) ** 2 for row in w.astype(float))
    total = sum((x - w.mean(dtype=float)) ** 2 for x in w.astype(float).ravel())
    expected = 1 - left / total if total > 1e-6 else None
    similarity = float(profile_similarity(w))
    assert -1e-6 <= similarity <= 1
    if expected is not None:
        assert similarity == pytest.approx(expected, abs=1e-4)


def test_similarity_does_not_depend_on_scale_and_center_of_the_layer_or_order_of_neurons():
    w = jnp.sort(jax.random.normal(KEY, (20, 50)), axis=1)
    similarity = profile_similarity(w)
    for other in (3 * w, w + 1, w[::-1], w.astype(jnp.bfloat16)):
        assert profile_similarity(other) == pytest.approx(float(similarity), abs=2e-3)


def test_sorting_makes_random_vectors_alike():
    w = jax.random.normal(KEY, (50, 1000))
    assert profile_similarity(w) == pytest.approx(1 / 50, abs=0.005)
    assert profile_similarity(jnp.sort(w, axis=1)) > 0.99
    # Neurons of different scales are not alike.
    scaled = jnp.sort(w, axis=1) * jnp.linspace(0, 2, 50)[:, None]
    assert profile_similarity(scaled) < 0.9


def test_the_layers_of_a_stack_are_compared_one_by_one():
    w = jnp.sort(jax.random.normal(KEY, (3, 20, 50)), axis=-1)
    np.testing.assert_allclose(
        profile_similarity(w),
        [profile_similarity(layer) for layer in w],
        rtol=1e-5,
    )


def test_where_nothing_varies_all_is_alike():
    assert profile_similarity(jnp.full((3, 4), 0.1)) == 1
    assert profile_similarity(jnp.arange(4.0)) == 1  # a single neuron


@pytest.mark.parametrize("profiles", [1.0, np.ones((0, 3)), np.ones((3, 0))])
def test_there_must_be_weights(profiles):
    with pytest.raises(ValueError, match="profiles: "):
        profile_similarity(profiles)
