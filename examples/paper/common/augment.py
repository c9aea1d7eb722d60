"""Section 5.2's data augmentation: random rotations and shifts, on the device."""

import jax
import jax.numpy as jnp
from jax.scipy.ndimage import map_coordinates


def affine(image, angle, shift):
    """Rotates an image about its centre, then shifts it; edges are repeated outwards.

    Args:
        image: Floating (height, width, channels).
        angle: Radians, counter-clockwise.
        shift: (2,), pixels down and to the right.

    Returns:
        The image, bilinearly interpolated.
    """
    height, width, _ = image.shape
    cos, sin = jnp.cos(angle), jnp.sin(angle)
    # Where the pixel at (row, column) comes from, hence the inverse of what is asked.
    centre = (jnp.array([height, width]) - 1) / 2
    rows = jnp.arange(height)[:, None] - centre[0] - shift[0]
    columns = jnp.arange(width) - centre[1] - shift[1]
    source = [cos * rows + sin * columns + centre[0], cos * columns - sin * rows + centre[1]]

    def channel(pixels):
        return map_coordinates(pixels, source, order=1, mode="nearest")

    return jax.vmap(channel, in_axes=-1, out_axes=-1)(image)


def augment(key, images, degrees=15.0, shift=0.1):
    """Rotates and shifts every image of a batch by amounts of its own, uniformly at random.

    Args:
        key: A JAX random key.
        images: (batch, height, width, channels); integers become float32.
        degrees: The most that an image turns, either way.
        shift: The most that it moves, either way, as a fraction of its height and of its width.

    Returns:
        Floating images of the same shape.
    """
    images = images.astype(jnp.promote_types(images.dtype, jnp.float32))
    n, height, width, _ = images.shape
    angle_key, shift_key = jax.random.split(key)
    angles = jax.random.uniform(angle_key, (n,), minval=-1, maxval=1) * jnp.deg2rad(degrees)
    shifts = jax.random.uniform(shift_key, (n, 2), minval=-1, maxval=1) * shift
    return jax.vmap(affine)(images, angles, shifts * jnp.array([height, width]))
