"""Augmentation against SciPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from common import augment

affine = jax.jit(augment.affine)
random_affine = jax.jit(augment.augment)


def image(seed, shape=(9, 9, 3)):
    return jnp.asarray(np.random.default_rng(seed).random(shape), jnp.float32)


def moved(pixels, rows, columns):
    """`np.roll` where the edges are repeated instead of coming back on the other side."""
    margin = max(abs(rows), abs(columns))
    wide = np.pad(pixels, [(margin, margin), (margin, margin), (0, 0)], mode="edge")
    wide = np.roll(wide, (rows, columns), axis=(0, 1))
    return wide[margin : len(wide) - margin, margin : wide.shape[1] - margin]


def test_no_angle_and_no_shift_change_nothing():
    np.testing.assert_array_equal(affine(image(0), 0.0, jnp.zeros(2)), image(0))


@settings(deadline=None)  # the first call compiles
@given(st.integers(-8, 8), st.integers(-8, 8))
def test_a_shift_by_whole_pixels(rows, columns):
    expected = moved(np.asarray(image(1)), rows, columns)
    actual = affine(image(1), 0.0, jnp.array([rows, columns], jnp.float32))
    np.testing.assert_array_equal(actual, expected)


@pytest.mark.parametrize("quarters", [-1, 1, 2, 3])
def test_quarter_turns(quarters):
    turned = affine(image(2), quarters * jnp.pi / 2, jnp.zeros(2))
    np.testing.assert_allclose(turned, np.rot90(image(2), quarters), atol=1e-5)


@settings(deadline=None)
@given(st.floats(-15, 15), st.floats(-3, 3), st.floats(-3, 3))
def test_any_angle_and_shift_against_scipy(degrees, rows, columns):
    """First the rotation, then the shift, both bilinear; on an oblong image."""
    pixels, angle = np.asarray(image(3, (12, 9, 1)), np.float64), np.deg2rad(degrees)
    inverse = np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])
    centre = (np.array(pixels.shape[:2]) - 1) / 2
    offset = centre - inverse @ (centre + np.array([rows, columns]))
    expected = ndimage.affine_transform(pixels[..., 0], inverse, offset, order=1, mode="nearest")
    actual = affine(image(3, (12, 9, 1)), angle, jnp.array([rows, columns]))
    np.testing.assert_allclose(actual[..., 0], expected, atol=1e-4)


def test_a_batch_is_moved_within_bounds_and_image_by_image():
    n, size = 200, 40
    rows, columns = np.mgrid[:size, :size] - (size - 1) / 2
    batch = jnp.asarray(np.broadcast_to(np.stack([rows, columns], -1), (n, size, size, 2)))
    # Images whose value is where a pixel lies: what comes out is where it came from.
    out = np.asarray(random_affine(jax.random.key(0), batch), np.float64)
    half = slice(size // 2 - 4, size // 2 + 4)
    inner, basis = out[:, half, half], np.stack([rows, columns, np.ones_like(rows)], -1)[half, half]
    fits = [np.linalg.lstsq(basis.reshape(-1, 3), o.reshape(-1, 2))[0] for o in inner]
    fits = np.stack(fits)  # (n, 3, 2): o = basis @ fit
    angles = np.rad2deg(np.arctan2(fits[:, 1, 0], fits[:, 0, 0]))
    shifts = -np.einsum("ni,nij->nj", fits[:, 2], np.linalg.inv(fits[:, :2])) / size
    for values, most in ((angles, 15), (shifts[:, 0], 0.1), (shifts[:, 1], 0.1)):
        assert np.abs(values).max() <= most * (1 + 1e-3)
        # Uniform: close to both ends, half of it in the middle half.
        assert values.min() < -0.9 * most
        assert values.max() > 0.9 * most
        assert 0.35 < (np.abs(values) < most / 2).mean() < 0.65
    assert np.abs(np.corrcoef([angles, shifts[:, 0], shifts[:, 1]]) - np.eye(3)).max() < 0.3


def test_augmentation_in_jit_and_scan_repeats_itself():
    batch = np.random.default_rng(0).integers(256, size=(4, 8, 8, 3), dtype=np.uint8)
    keys = jax.random.split(jax.random.key(1), 3)

    @jax.jit
    def epoch(keys):
        return jax.lax.scan(lambda _, key: (None, augment.augment(key, batch)), None, keys)[1]

    augmented = epoch(keys)
    assert augmented.dtype == jnp.float32
    assert augmented.shape == (3, *batch.shape)
    np.testing.assert_array_equal(augmented, epoch(keys))
    np.testing.assert_allclose(augmented[2], random_affine(keys[2], batch), atol=1e-3)
    assert np.abs(augmented[0] - augmented[1]).max() > 1


def test_augmentation_by_nothing():
    batch = np.random.default_rng(0).integers(256, size=(4, 8, 8, 3), dtype=np.uint8)
    same = random_affine(jax.random.key(0), batch, degrees=0.0, shift=0.0)
    np.testing.assert_array_equal(same, batch)
