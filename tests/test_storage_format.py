"""The bytes that `pack` writes are those of the document, and few."""

import math
import struct
import zlib

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from oracles import storage as reference
from stored import ORIGIN, as_rows, assert_same_bits, describe, leaves, permuted

import p2t_jax as p2t
from p2t_jax import storage


class TestFormat:
    """The decoder of tests/oracles/storage.py is written from the manual's page alone."""

    @settings(deadline=None)
    @given(st.lists(leaves(), max_size=3), st.integers(1, 40))
    def test_the_bytes_are_those_of_the_document(self, triples, weights_a_block):
        initial, params, axes = ([t[i] for t in triples] for i in range(3))
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(storage, "_WEIGHTS", weights_a_block)
            patch.setattr(reference, "WEIGHTS_A_BLOCK", weights_a_block)
            data = p2t.pack(params, initial, vectors=axes)
            described = describe(triples)
            assert data == reference.pack(described, ORIGIN)
            for leaf, content in zip(described, reference.unpack(data, described), strict=True):
                assert content == leaf.get("rows", leaf.get("raw"))

    def test_a_carry_runs_through_full_words(self):
        # The rows whose code is just above a round number: on the way to it lie the words
        # 0xFFFFFFFF, which a carry turns to zero in the end.
        first = list(range(1000, 1100))
        for length in range(60, 80):
            words = [12345, 0, 0, 0, 7, *range(1, length)]
            try:
                rows = reference.decode([first] * 4, words)
                break
            except (AssertionError, IndexError):
                continue
        assert self.code(first, rows)[:4] == (12345, 0, 0, 0)

    def test_a_carry_out_of_the_last_word(self):
        first = [1, 2]
        rows = reference.decode([first] * 63, [12345, 0])
        assert self.code(first, rows) == (12345, 0)  # rounded up from 12344 and almost 2^32

    def code(self, first, rows):
        """The words of the code of float32 rows, if the reference agrees."""
        initial = np.array([first] * len(rows), np.uint32).view(np.float32)
        params = np.array(rows, np.uint32).view(np.float32)
        data = p2t.pack(params, initial, vectors=1)
        assert data == reference.pack(describe([(initial, params, (1,))], paths=[[]]), ORIGIN)
        assert_same_bits(p2t.unpack(data, initial, vectors=1), params)
        begin = 17 + data[16] + 8  # header, origin, and the head of the block
        return struct.unpack_from(f"<{(len(data) - begin - 4) // 4}I", data, begin)

    def test_the_fingerprint_is_of_names_dtypes_shapes_and_axes(self):
        initial = {"b": {"kernel": np.zeros((2, 3), np.float32)}, "a": np.zeros(4, np.int8)}
        data = p2t.pack(initial, initial)
        text = b'[[["a"],"int8",[4],null],[["b","kernel"],"float32",[2,3],[0]]]'
        assert data[:16] == struct.pack("<3sBQI", b"P2T", 1, len(data), zlib.crc32(text))


def log_of_tie_orders(initial):
    """The sum of log(c!) over the values of each row, with c how often it occurs there."""
    rows = np.sort(as_rows(initial, [1]), axis=1)
    place = np.broadcast_to(np.arange(rows.shape[1]), rows.shape)
    begins = np.diff(rows, axis=1, prepend=rows[:, :1] ^ 1) != 0
    start = np.maximum.accumulate(np.where(begins, place, 0), axis=1)
    return np.log(place - start + 1).sum()


class TestSize:
    @pytest.mark.parametrize("dtype", [np.float32, ml_dtypes.bfloat16, np.float16])
    @pytest.mark.parametrize("pruned", [0.0, 0.9, 0.99])
    @pytest.mark.parametrize("shape", [(200_000, 2), (1000, 784), (2, 150_000)])
    def test_within_a_thousandth_of_the_multinomial(self, shape, pruned, dtype):
        rng = np.random.default_rng(0)
        initial = rng.normal(size=shape)
        initial[rng.random(shape) < pruned] = 0
        initial = initial.astype(dtype)
        m, n = shape
        limit = (m * math.lgamma(n + 1) - log_of_tie_orders(initial)) / math.log(2)
        data = p2t.pack(permuted(initial, [1], rng), initial, vectors=1)
        bits = 8 * (len(data) - 21 - data[16])  # header and checksum
        assert limit - 1 < bits < 1.001 * limit + 8 * 12

    def test_a_few_bytes_a_leaf(self):
        initial = [{"kernel": np.ones((50, 2), np.float32), "bias": np.ones(3, np.int8)}] * 10
        assert len(p2t.pack(initial, initial)) <= 60 + 10 * 12 + 10 * 3
