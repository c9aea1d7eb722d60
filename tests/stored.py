"""What the tests of `pack` and `unpack` share."""

import math

import chex
import jax
import ml_dtypes
import numpy as np
from hypothesis import strategies as st
from strategies import arrays

import p2t_jax as p2t

WEIGHTS = [np.float16, ml_dtypes.bfloat16, np.float32, np.float64]
OTHERS = [*WEIGHTS, np.int32, np.uint8, np.bool_, np.complex64, ml_dtypes.float8_e4m3fn]
ORIGIN = f"jax {jax.__version__}, numpy {np.__version__}, threefry2x32"
SEEDS = st.integers(0, 2**32 - 1)


@st.composite
def leaves(draw):
    """(initial leaf, leaf, axes): permuted weight vectors, or anything and None."""
    shape = tuple(draw(st.lists(st.integers(0, 6), max_size=4)))
    axes = draw(st.lists(st.sampled_from(range(len(shape))), unique=True)) if shape else []
    rng = np.random.default_rng(draw(SEEDS))
    if axes:
        initial = draw(arrays(shape, draw(st.sampled_from(WEIGHTS))))
        return initial, permuted(initial, axes, rng), tuple(axes)
    initial = rng.normal(size=shape).astype(draw(st.sampled_from(OTHERS)))
    return initial, np.array(initial[..., ::-1]) if shape else initial, None


def permuted(initial, axes, rng):
    """Every weight vector in some other order."""
    rows = as_rows(initial, axes)
    moved = np.moveaxis(initial, axes, range(-len(axes), 0))
    shuffled = rng.permuted(rows, axis=1).view(initial.dtype).reshape(moved.shape)
    return np.ascontiguousarray(np.moveaxis(shuffled, range(-len(axes), 0), axes))


def as_rows(array, axes):
    """(m, n) rows of bits, the vectors' axes in ascending order."""
    moved = np.moveaxis(array, sorted(axes), range(-len(axes), 0))
    n = math.prod(array.shape[axis] for axis in axes)
    rows = moved.reshape(math.prod(moved.shape[: -len(axes)]), n)
    return np.ascontiguousarray(rows).view(f"u{array.dtype.itemsize}")


def assert_same_bits(tree, expected):
    chex.assert_trees_all_equal_shapes_and_dtypes(tree, expected)
    chex.assert_trees_all_equal(
        *(jax.tree.map(lambda x: np.asarray(x).tobytes(), t) for t in (tree, expected))
    )
    assert jax.tree.map(type, tree) == jax.tree.map(type, expected)


def round_trip(params, initial_params, vectors):
    data = p2t.pack(params, initial_params, vectors=vectors)
    return p2t.unpack(data, initial_params, vectors=vectors)


def network(seed=0, m=7, n=30):
    """(initial parameters, permuted ones) with pruned weights and a bias."""
    rng = np.random.default_rng(seed)
    initial = {
        "a": {"kernel": rng.normal(size=(n, m)).astype(np.float32), "bias": np.zeros(m)},
        "b": {"kernel": rng.normal(size=(m, 3)).astype(np.float16)},
    }
    initial["a"]["kernel"][::2] = 0
    params = {
        "a": {"kernel": permuted(initial["a"]["kernel"], [0], rng), "bias": rng.normal(size=m)},
        "b": {"kernel": permuted(initial["b"]["kernel"], [0], rng)},
    }
    return initial, params


def describe(triples, paths=None):
    described = []
    for i, (initial, params, axes) in enumerate(triples):
        axes = None if axes is None else sorted(axes)
        leaf = {"path": paths[i] if paths else [str(i)], "dtype": initial.dtype.name}
        leaf |= {"shape": initial.shape, "axes": axes}
        if axes is None:
            leaf["raw"] = params.tobytes()
        else:
            leaf["initial"] = as_rows(initial, axes).tolist() if initial.size else []
            leaf["rows"] = as_rows(params, axes).tolist() if initial.size else []
        described.append(leaf)
    return described
