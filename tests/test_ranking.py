"""The ranking kernel against the definition of a ranking, and against NumPy's stable sort."""

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from oracles import laperm as oracle
from strategies import DTYPES, arrays

from p2t_jax import _leaves
from p2t_jax._host.kernels import radix
from p2t_jax._host.permutation import find, find_positions, position_dtype


@st.composite
def rows(draw, dtypes=(*DTYPES, np.float64)):
    shape = draw(st.tuples(st.integers(0, 3), st.integers(0, 40)))
    dtype = draw(st.sampled_from(dtypes))
    return draw(arrays(shape, dtype)), draw(arrays(shape, dtype))


def positions(kernel, phi):
    out = np.empty(phi.shape, position_dtype(phi.shape[1]))
    kernel(phi[..., None], out[..., None], 0, len(phi))
    return out


def sort(w):
    return np.take_along_axis(w, positions(radix.order, w), axis=1)


def reorder_like(theta_sorted, phi):
    return np.take_along_axis(theta_sorted, positions(radix.rank, phi), axis=1)


@given(rows())
@settings(max_examples=300, deadline=None)
def test_kernel_agrees_with_the_reference_to_the_bit(pair):
    theta_0, phi = pair
    theta_sorted = oracle.sort_weight_vectors(theta_0, (1,))
    assert sort(theta_0).tobytes() == theta_sorted.tobytes()
    expected = oracle.synchronize(theta_sorted, phi, (1,))
    assert reorder_like(theta_sorted, phi).tobytes() == expected.tobytes()


@pytest.mark.parametrize("dtype", [*DTYPES, np.float64])
@pytest.mark.parametrize("n", [23, 24, 25, 255, 256, 257, 70_000])
def test_kernel_agrees_with_numpy_where_the_radix_sort_takes_over(dtype, n):
    rng = np.random.default_rng(n)
    phi = rng.normal(size=(2, n)).astype(dtype)
    phi[:, rng.random(n) < 0.1] = -0.0
    phi[:, rng.random(n) < 0.1] = 0.0
    order = np.argsort(phi.astype(np.float64), axis=1, kind="stable")
    theta_sorted = np.sort(rng.normal(size=(2, n)), axis=1).astype(dtype)
    expected = np.empty_like(phi)
    np.put_along_axis(expected, order, theta_sorted, axis=1)
    assert reorder_like(theta_sorted, phi).tobytes() == expected.tobytes()
    assert sort(phi).tobytes() == np.take_along_axis(phi, order, axis=1).tobytes()


# Most of them have many numbers in few of the equal parts that the kernel cuts their range into.
SPREADS = {
    "normal": lambda x: x,
    "two clusters": lambda x: np.sign(x) + 1e-6 * x,
    "outliers": lambda x: np.where(x > 2, 1e30 * x, x),
    "many magnitudes": lambda x: np.exp(15 * x),
    "subnormal": lambda x: 1e-44 * x.round(1),
    "the whole range": lambda x: np.where(x > 1, 3.4e38, np.where(x < -1, -3.4e38, x)),
    "not finite": lambda x: np.where(x > 2, np.inf, np.where(x < -2, np.nan, x)),
}


@pytest.mark.parametrize("spread", SPREADS)
@pytest.mark.parametrize("n", [30, 784, 16_384, 16_385])
def test_numbers_of_any_spread_are_ranked(n, spread):
    phi = SPREADS[spread](np.random.default_rng(n).normal(size=(2, n))).astype(np.float32)
    order = np.argsort(phi, axis=1, kind="stable")
    np.testing.assert_array_equal(positions(radix.order, phi), order)
    np.testing.assert_array_equal(positions(radix.rank, phi), np.argsort(order, axis=1))


@pytest.mark.parametrize("inner", [1, 2, 15, 16, 17, 40])
def test_kernel_does_any_range_of_any_block(inner):
    rng = np.random.default_rng(inner)
    phi = rng.normal(size=(3, 30, inner)).astype(np.float32)
    out, expected = np.zeros((2, *phi.shape), np.uint16)
    order = np.argsort(phi, axis=1, kind="stable")
    np.put_along_axis(expected, order, np.arange(30, dtype=np.uint16)[None, :, None], axis=1)
    ends = sorted({0, 1, inner, inner + 1, 2 * inner - 1, 3 * inner})
    for start, stop in pairwise(ends):
        radix.rank(phi, out, start, stop)
    np.testing.assert_array_equal(out, expected)


@given(data=st.data(), shape=st.lists(st.integers(0, 4), min_size=1, max_size=4).map(tuple))
@settings(max_examples=100, deadline=None)
def test_rows_and_blocks_are_weight_vectors_and_go_back_to_their_place(data, shape):
    subsets = st.lists(st.sampled_from(range(len(shape))), min_size=1, unique=True)
    axes = tuple(data.draw(subsets.map(sorted)))
    array = np.arange(np.prod(shape)).reshape(shape)
    n = _leaves.vector_length(shape, axes)
    vectors = [array[j].ravel() for j in oracle.weight_vectors(array, axes)]
    vectors = np.array(vectors, int).reshape(len(vectors), n)
    rows = _leaves.to_rows(array, axes)
    np.testing.assert_array_equal(rows.reshape(vectors.shape), vectors)
    np.testing.assert_array_equal(_leaves.from_rows(rows, shape, axes), array)
    block = _leaves.to_block(array, axes)
    assert block.flags.c_contiguous
    np.testing.assert_array_equal(np.moveaxis(block, 1, 2).reshape(vectors.shape), vectors)
    np.testing.assert_array_equal(_leaves.from_block(block, shape, axes), array)


def test_a_block_of_a_dense_or_a_conv_kernel_is_no_copy():
    for shape, axes in [((30, 7), (0,)), ((3, 3, 8, 16), (0, 1, 2)), ((7, 30), (1,))]:
        array = np.zeros(shape)
        assert np.shares_memory(_leaves.to_block(array, axes), array)


def test_many_threads_give_what_one_gives():
    rng = np.random.default_rng(0)
    shapes, axes = [(784, 500), (3, 3, 64, 64), (5, 4, 300)], [(0,), (0, 1, 2), (0, 2)]
    phi = [rng.normal(size=shape).astype(np.float32) for shape in shapes]
    results = [np.empty(shape, np.uint16) for shape in shapes]
    find_positions(find("sort", {}), axes, phi, results)
    for w, leaf_axes, result in zip(phi, axes, results, strict=True):
        expected = np.argsort(_leaves.to_rows(w, leaf_axes), axis=-1, kind="stable")
        np.testing.assert_array_equal(_leaves.to_rows(result, leaf_axes), expected)
