"""The ranking kernel against the definition of a ranking, and against NumPy's stable sort."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from oracles import laperm as reference
from strategies import DTYPES, arrays

from p2t_jax import _ranking as ranking
from p2t_jax._host import per_row as host
from p2t_jax._host.kernels import radix as rank


@st.composite
def rows(draw, dtypes=(*DTYPES, np.float64)):
    shape = draw(st.tuples(st.integers(0, 3), st.integers(0, 40)))
    dtype = draw(st.sampled_from(dtypes))
    return draw(arrays(shape, dtype)), draw(arrays(shape, dtype))


def sort(w):
    out = np.empty_like(w)
    rank.sort_rows(w, out)
    return out


def synchronize(phi, theta_sorted):
    out = np.empty_like(phi)
    rank.synchronize_rows(phi, theta_sorted, out)
    return out


@given(rows())
@settings(max_examples=300, deadline=None)
def test_kernel_agrees_with_the_reference_to_the_bit(pair):
    theta_0, phi = pair
    theta_sorted = reference.sort_weight_vectors(theta_0, (1,))
    assert sort(theta_0).tobytes() == theta_sorted.tobytes()
    expected = reference.synchronize(theta_sorted, phi, (1,))
    assert synchronize(phi, theta_sorted).tobytes() == expected.tobytes()


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
    assert synchronize(phi, theta_sorted).tobytes() == expected.tobytes()
    assert sort(phi).tobytes() == np.take_along_axis(phi, order, axis=1).tobytes()


@given(data=st.data(), shape=st.lists(st.integers(0, 4), min_size=1, max_size=4).map(tuple))
@settings(max_examples=100, deadline=None)
def test_rows_are_weight_vectors_and_go_back_where_they_were(data, shape):
    subsets = st.lists(st.sampled_from(range(len(shape))), min_size=1, unique=True)
    axes = tuple(data.draw(subsets.map(sorted)))
    array = np.arange(np.prod(shape)).reshape(shape)
    rows = host._rows(array, axes)
    vectors = [array[j].ravel() for j in reference.weight_vectors(array, axes)]
    np.testing.assert_array_equal(rows, np.reshape(vectors, rows.shape))
    np.testing.assert_array_equal(host._unrows(rows, shape, axes), array)


def test_many_threads_give_what_one_gives():
    rng = np.random.default_rng(0)
    shapes, axes = [(784, 500), (3, 3, 64, 64), (5, 4, 300)], [(0,), (0, 1, 2), (0, 2)]
    phi = [rng.normal(size=shape).astype(np.float32) for shape in shapes]
    results = host._run(ranking._sort_kernel, axes, phi)
    for w, leaf_axes, result in zip(phi, axes, results, strict=True):
        expected = np.sort(host._rows(w, leaf_axes), axis=-1)
        np.testing.assert_array_equal(host._rows(result, leaf_axes), expected)
