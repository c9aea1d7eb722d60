"""`to_codes` and `from_codes`: every bit comes back, and NumPy alone makes the network of them."""

import math
from typing import Any

import chex
import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from flax import nnx
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from strategies import arrays

import p2t_jax as p2t
from p2t_jax import codes
from p2t_jax.codes import Codes, from_codes, to_codes
from p2t_jax.initializers import kaiming

DTYPES = [np.float16, ml_dtypes.bfloat16, np.float32, np.float64]


@st.composite
def weights_and_axes(draw):
    """A parameter, mostly of few values and of rank 1 to 4, and the axes of its weight vectors."""
    shape = tuple(draw(st.lists(st.integers(0, 5), min_size=1, max_size=4)))
    axes = draw(st.lists(st.sampled_from(range(len(shape))), min_size=1, unique=True))
    return draw(arrays(shape, draw(st.sampled_from(DTYPES)))), axes


def of_codes(coded: Codes) -> np.ndarray:
    """What the docstring of `Codes` tells users of NumPy to do."""
    codes, values, bits, shape = coded
    if bits < 8:
        shifts = np.arange(0, 8, bits, dtype=np.uint8)
        codes = (codes[:, None] >> shifts & (1 << bits) - 1).ravel()
        codes = codes[: math.prod(shape)].reshape(shape)
    return np.take_along_axis(values, codes[..., None], axis=-1)[..., 0]


def vectors_of(w: Any, axes: list[int]) -> np.ndarray:
    """(m, n) bit patterns."""
    axes = sorted(axes)
    moved = np.moveaxis(w, axes, range(-len(axes), 0))
    n = math.prod(w.shape[axis] for axis in axes)
    rows = np.ascontiguousarray(moved.reshape(math.prod(moved.shape[: -len(axes)]), n))
    return rows.view(f"u{w.dtype.itemsize}")


def values_of(w: Any, axes: list[int]) -> int:
    """The most different values that a vector has."""
    return max((len(np.unique(row)) for row in vectors_of(w, axes)), default=0)


def assert_same(array: Any, expected: Any) -> None:
    assert isinstance(array, np.ndarray)
    assert (array.dtype, array.shape) == (expected.dtype, expected.shape)
    assert array.tobytes() == np.asarray(expected).tobytes()


class TestRoundTrip:
    @settings(deadline=None)
    @given(weights_and_axes(), st.sampled_from([1, 2, 4, 8]))
    def test_numpy_arrays_come_back_bit_for_bit(self, case, bits):
        w, axes = case
        assume(values_of(w, axes) <= 1 << bits)
        coded = to_codes([w], vectors=[tuple(axes)], bits=bits)
        assert_same(from_codes(coded)[0], w)
        assert_same(of_codes(coded[0]), w)

    @settings(deadline=None, max_examples=40)
    @given(weights_and_axes())
    def test_jax_arrays_come_back_bit_for_bit(self, case):
        w, axes = case
        assume(values_of(w, axes) <= 256)
        with jax.enable_x64(True):
            coded = to_codes([jnp.asarray(w)], vectors=[tuple(axes)])
            coded = jax.tree.map(jnp.asarray, coded)  # as from a checkpoint
            assert_same(from_codes(coded)[0], w)

    @settings(deadline=None)
    @given(weights_and_axes(), st.sampled_from([1, 2, 4, 8]))
    def test_the_size_is_what_was_asked_for(self, case, bits):
        w, axes = case
        assume(values_of(w, axes) <= 1 << bits)
        (coded,) = to_codes([w], vectors=[tuple(axes)], bits=bits)
        assert coded.codes.nbytes == math.ceil(w.size * bits / 8)
        assert coded.codes.dtype == np.uint8
        assert coded.values.shape[-1] == values_of(w, axes)
        assert all(coded.values.shape[axis] == 1 for axis in axes if w.size)

    def test_zeros_of_both_signs_and_nans_of_all_payloads_are_values_of_their_own(self):
        bits = np.array([0x7FC00001, 0, 0x80000000, 0xFFC00000, 0x7F800001, 0x3F800000], np.uint32)
        w = bits.view(np.float32)
        coded = to_codes(w, vectors=0)
        assert coded.codes.tolist() == [5, 2, 1, 0, 4, 3]  # -NaN, -0.0, 0.0, 1.0, NaN, NaN
        assert_same(from_codes(coded), w)

    def test_codes_are_in_the_order_of_the_weights(self):
        w = np.array([3.0, -2.0, 0.0, np.inf, -np.inf, -2.0, 0.5])
        coded = to_codes(w, vectors=0)
        assert coded.codes.tolist() == [4, 1, 2, 5, 0, 1, 3]
        assert coded.values.tolist() == [[-np.inf, -2.0, 0.0, 0.5, 3.0, np.inf]]

    @pytest.mark.parametrize("block", [1, 7, 10**6])
    def test_of_many_blocks(self, block, monkeypatch):
        monkeypatch.setattr(codes, "_WEIGHTS", block)
        rng = np.random.default_rng(0)
        w = rng.integers(0, rng.integers(1, 9, size=(1, 4, 1)), size=(3, 4, 5)).astype(np.float32)
        coded = to_codes(w, vectors=(0, 2), bits=4)
        assert_same(from_codes(coded), w)
        assert_same(of_codes(coded), w)

    def test_the_other_byte_order(self):
        w = np.array([[1.0, 2.0], [2.0, 2.0]], ">f4")
        assert_same(from_codes(to_codes(w, vectors=0)), w.astype(np.float32))

    def test_values_that_all_vectors_share_are_stored_once(self):
        shared = kaiming(values=3)(jax.random.key(0), (6, 5))
        assert to_codes(shared, vectors=0).values.shape == (1, 1, 3)
        assert to_codes(shared * jnp.arange(1, 6), vectors=0).values.shape == (1, 5, 3)
        assert to_codes(shared, vectors=(0, 1)).values.shape == (1, 1, 3)

    def test_other_parameters_stay_what_they_are_and_are_copies(self):
        before = {
            "kernel": np.ones((2, 2)), "bias": jnp.arange(2.0), "scale": np.arange(3.0),
            "count": 3, "key": jax.random.key(0),
        }  # fmt: skip
        coded = to_codes(before)
        after = from_codes(coded)
        for tree in (coded, after):
            for name in ("bias", "scale", "count", "key"):
                assert type(tree[name]) is type(before[name])
        before["scale"][:] = 0
        before["bias"].delete()
        for tree in (coded, after):
            assert tree["scale"].tolist() == [0, 1, 2]
            assert tree["bias"].tolist() == [0, 1]

    def test_any_container(self):
        model = nnx.Linear(4, 3, kernel_init=kaiming(values=2), rngs=nnx.Rngs(0))
        params = nnx.state(model, nnx.Param)
        again = from_codes(to_codes(params, bits=1))
        chex.assert_trees_all_equal(jax.tree.leaves(again), jax.tree.leaves(params))
        assert jax.tree.structure(again) == jax.tree.structure(params)
        assert from_codes(to_codes({})) == {}


def test_numpy_alone_computes_the_logits_of_a_network():
    images = np.random.default_rng(0).random((16, 30), np.float32)
    params = [{"kernel": jnp.zeros((n, m)), "bias": jnp.arange(m)} for n, m in [(30, 8), (8, 4)]]
    params = p2t.reinitialize(0, params, kaiming(values=4))

    def logits(params, x):
        x = (x @ params[0]["kernel"] + params[0]["bias"]).clip(0)
        return x @ params[1]["kernel"] + params[1]["bias"]

    coded = to_codes(params, bits=2)
    assert coded[0]["kernel"].codes.nbytes == 30 * 8 // 4
    plain = [
        {"kernel": of_codes(layer["kernel"]), "bias": np.asarray(layer["bias"])} for layer in coded
    ]
    np.testing.assert_allclose(logits(plain, images), logits(params, images), rtol=1e-5)


def coded_with(**parts: Any) -> dict[str, Codes]:
    coded = to_codes({"kernel": np.ones((3, 2), np.float32)})
    return {"kernel": coded["kernel"]._replace(**parts)}


class TestRefusals:
    def test_more_values_than_codes_name_the_vector(self):
        w = np.zeros((300, 2, 2), np.float32)
        w[:257, 1, 0] = np.arange(257)
        with pytest.raises(ValueError, match=r"^params: a/w\[:, 1, 0\] has 257 .*8 bits tell 256"):
            to_codes({"a": {"w": w}}, vectors=0)
        to_codes(np.minimum(w, 255), vectors=0)
        with pytest.raises(ValueError, match=r"^params: .*\[:, 1, 0\] has 3 .* 1 bits tell 2"):
            to_codes(w[:3], vectors=0, bits=1)

    @pytest.mark.parametrize("bits", [0, 3, 16, True, None, "8"])
    def test_bits(self, bits):
        with pytest.raises(ValueError, match=r"^bits: expected 1, 2, 4 or 8, got"):
            to_codes({}, bits=bits)

    def test_weights_that_are_not_floating(self):
        with pytest.raises(TypeError, match="kernel"):
            to_codes({"kernel": np.ones((2, 2), int)})

    def test_tracers(self):
        params = {"kernel": jnp.ones((3, 2))}
        with pytest.raises(TypeError, match=r"^params: kernel is traced.* outside of jit"):
            jax.jit(to_codes)(params)
        with pytest.raises(TypeError, match=r"^coded: kernel is traced.* outside of jit"):
            jax.jit(from_codes)(to_codes(params))

    @pytest.mark.parametrize(
        ("parts", "error", "match"),
        [
            ({"codes": np.zeros((3, 2), int)}, TypeError, "uint8 codes.*kernel, got int64"),
            ({"values": np.ones((1, 1, 1), int)}, TypeError, "floating values at kernel.*int64"),
            ({"bits": 3}, ValueError, "1, 2, 4 or 8 bits at kernel, got 3"),
            ({"bits": None}, TypeError, "integers at kernel, got None"),
            ({"shape": (3.5, 2)}, TypeError, "integers at kernel"),
            ({"shape": (3, 3)}, ValueError, r"codes of shape \(3, 3\) at kernel.*got \(3, 2\)"),
            ({"bits": 1}, ValueError, r"codes of shape \(1,\) at kernel"),
            (
                {"bits": 1, "shape": (-3, -2), "codes": np.zeros(1, np.uint8)},
                ValueError,
                "codes of shape",
            ),
            ({"values": np.ones((1, 1))}, ValueError, r"values of shape \(\.\.\., k\) at kernel"),
            ({"values": np.ones((1, 3, 1))}, ValueError, r"values of shape \(\.\.\., k\)"),
            ({"codes": np.ones((3, 2), np.uint8)}, ValueError, "code 1 at kernel.*there are 1"),
            ({"values": np.ones((1, 1, 0))}, ValueError, "code 0 at kernel.*there are 0"),
        ],
    )
    def test_parts_that_do_not_fit_together(self, parts, error, match):
        with pytest.raises(error, match=f"^coded: .*{match}"):
            from_codes(coded_with(**parts))
