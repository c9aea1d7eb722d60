"""Hypothesis strategies for weights: shapes, axes, dtypes, ties, infinities and NaN."""

import os

import jax.numpy as jnp
import numpy as np
from hypothesis import strategies as st

DTYPES = [np.float32, np.float16, jnp.bfloat16]
# XLA's older emitters, which conftest.py chooses where there are newer ones, move the numbers of
# bfloat16 as float32: all NaN of a sign become the same.
ONE_NAN = [jnp.bfloat16] if "fusion_emitters=false" in os.environ["XLA_FLAGS"] else []
SPECIAL = [0.0, -0.0, np.inf, -np.inf, np.nan, -np.nan, 1.0, -1.0, 1e-5]


def arrays(shape, dtype):
    """Few distinct values, so that ties are the rule, or arbitrary bits."""
    size = int(np.prod(shape))
    unsigned = np.dtype(f"u{np.dtype(dtype).itemsize}")
    special = st.lists(st.sampled_from(SPECIAL), min_size=size, max_size=size).map(
        lambda values: np.array(values, np.float32).astype(dtype)
    )
    bits = st.binary(min_size=size * unsigned.itemsize, max_size=size * unsigned.itemsize).map(
        lambda raw: np.frombuffer(raw, unsigned).copy()
    )
    if dtype in ONE_NAN:
        bits = bits.map(lambda u: np.where(u & 0x7FFF > 0x7F80, u & 0x8000 | 0x7FC0, u))
    bits = bits.map(lambda u: u.astype(unsigned).view(dtype))
    return (special | bits).map(lambda flat: flat.reshape(shape))


@st.composite
def weights_and_axes(draw):
    """A parameter of rank 1 to 4 and the axes of its weight vectors."""
    shape = tuple(draw(st.lists(st.integers(0, 5), min_size=1, max_size=4)))
    axes = draw(st.lists(st.sampled_from(range(len(shape))), min_size=1, unique=True).map(sorted))
    return draw(arrays(shape, draw(st.sampled_from(DTYPES)))), tuple(axes)


weights_and_axes.like = lambda w: arrays(w.shape, w.dtype)
