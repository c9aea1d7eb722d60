"""`pack` and `unpack`: every bit comes back, from few of them, and no bytes do harm."""

import os
import re
import struct
import tracemalloc
import zlib

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from helpers import run_in_a_forked_child
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.sharding import NamedSharding, PartitionSpec
from stored import ORIGIN, assert_same_bits, leaves, network, permuted, round_trip

import p2t_jax as p2t
from p2t_jax import storage


class TestRoundTrip:
    @settings(deadline=None)
    @given(st.lists(leaves(), max_size=4))
    def test_numpy_trees_come_back_bit_for_bit(self, triples):
        initial, params, axes = ([t[i] for t in triples] for i in range(3))
        assert_same_bits(round_trip(params, initial, axes), params)

    @settings(deadline=None, max_examples=50)
    @given(st.lists(leaves(), max_size=4))
    def test_jax_trees_come_back_bit_for_bit(self, triples):
        with jax.enable_x64(True):
            initial, params = ([jnp.asarray(t[i]) for t in triples] for i in range(2))
            assert_same_bits(round_trip(params, initial, [t[2] for t in triples]), params)

    @pytest.mark.parametrize("shape", [(0, 3), (3, 0), (1, 5), (5, 1), (10**6, 1), (1100, 1000)])
    def test_lengths(self, shape):
        rng = np.random.default_rng(0)
        initial = rng.normal(size=shape).astype(np.float32)
        params = permuted(initial, [0], rng)
        assert_same_bits(round_trip(params, initial, 0), params)

    def test_zeros_with_signs_and_nans_with_payloads_are_kept_apart(self):
        bits = np.array([0, 0x80000000, 0x7FC00000, 0x7FC00001, 0xFFC00000, 0, 0], np.uint32)
        initial = bits.view(np.float32)
        params = bits[[3, 0, 6, 4, 1, 5, 2]].view(np.float32)
        assert_same_bits(round_trip(params, initial, 0), params)

    def test_untrained_weights(self):
        initial, _ = network()
        assert_same_bits(round_trip(initial, initial, p2t.flax_vectors), initial)

    def test_initial_weights_in_any_order_do(self):
        initial, params = network()
        data = p2t.pack(params, initial)
        assert p2t.pack(params, params) == data
        assert_same_bits(p2t.unpack(data, params), params)

    def test_the_network_that_laperm_trained(self):
        initial = {"kernel": jax.random.normal(jax.random.key(0), (20, 5))}
        tx = p2t.laperm(optax.adam(1e-2), 3)
        params, state = initial, tx.init(initial)
        for seed in range(4):
            grads = {"kernel": jax.random.normal(jax.random.key(seed), (20, 5))}
            updates, state = tx.update(grads, state, params)
            params = jax.tree.map(jnp.add, params, updates)
        with pytest.raises(ValueError, match=r"kernel.*Pack permuted_params"):
            p2t.pack(params, initial)
        final = p2t.permuted_params(state, params)
        assert_same_bits(round_trip(final, initial, p2t.flax_vectors), final)

    @pytest.mark.parametrize("spec", [("x", None), (None, "x"), (), ("x", "y")])
    def test_sharded_arrays_keep_their_sharding(self, spec):
        mesh = jax.make_mesh((4, 2), ("x", "y"))
        sharding = NamedSharding(mesh, PartitionSpec(*spec))
        initial, params = ({"kernel": tree["a"]["kernel"][:, :4]} for tree in network(m=8, n=32))
        on_devices = jax.device_put(initial, sharding)
        data = p2t.pack(jax.device_put(params, sharding), on_devices)
        result = p2t.unpack(data, on_devices)
        assert result["kernel"].sharding == sharding
        assert_same_bits(jax.tree.map(np.asarray, result), params)
        assert_same_bits(p2t.unpack(data, initial), params)

    def test_uncommitted_arrays_stay_free_to_move(self):
        initial, params = (jax.tree.map(jnp.asarray, tree) for tree in network())
        result = round_trip(params, initial, p2t.flax_vectors)
        assert not any(leaf.committed for leaf in jax.tree.leaves(result))

    @pytest.mark.parametrize("framework", [np.array, jnp.array])
    def test_what_is_unpacked_shares_no_memory_with_what_it_is_made_of(self, framework):
        initial, params = (jax.tree.map(framework, tree) for tree in network())
        data = bytearray(p2t.pack(params, initial))
        result = p2t.unpack(data, initial)
        expected = jax.tree.map(np.copy, params)
        data[:] = bytes(len(data))
        for leaf in jax.tree.leaves(initial):
            leaf.fill(1) if framework is np.array else leaf.delete()
        assert_same_bits(jax.tree.map(np.asarray, result), expected)

    def test_numpy_arrays_can_be_written_to(self):
        initial, params = network()
        kept = jax.tree.map(np.copy, initial)
        for leaf in jax.tree.leaves(round_trip(params, initial, p2t.flax_vectors)):
            assert leaf.flags.owndata
            leaf += 1
        assert_same_bits(initial, kept)

    def test_python_scalars_stay_what_they_are(self):
        initial, params = network()
        before, after = (
            {"a": True, "b": 1, "c": 1.5, "d": 2j},
            {"a": False, "b": -7, "c": 0.1, "d": 1j},
        )
        assert round_trip((params, after), (initial, before), [p2t.flax_vectors, None])[1] == after

    def test_any_buffer_of_bytes_will_do(self):
        initial, params = network()
        data = p2t.pack(params, initial)
        for buffer in (bytearray(data), memoryview(data), np.frombuffer(data, np.uint8)):
            assert_same_bits(p2t.unpack(buffer, initial), params)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="cannot fork")
def test_a_forked_child_packs_after_its_parent_has(monkeypatch):
    monkeypatch.setattr(storage, "_WEIGHTS", 100)  # more than one block, hence threads
    initial, params = network()
    data = p2t.pack(params, initial)

    def pack_and_unpack():
        assert p2t.pack(params, initial) == data
        assert_same_bits(p2t.unpack(data, initial), params)

    run_in_a_forked_child(pack_and_unpack)


class TestRefusals:
    def test_params_that_are_no_permutation_name_the_vector(self):
        initial, params = network()
        params["b"]["kernel"][2, 1] += 1
        with pytest.raises(ValueError, match=r"^params: b/kernel\[:, 1\] is not a permutation"):
            p2t.pack(params, initial)

    @pytest.mark.parametrize("block", [4, 10**6])
    def test_of_many_blocks_too(self, block, monkeypatch):
        monkeypatch.setattr(storage, "_WEIGHTS", block)
        initial = np.random.default_rng(0).normal(size=(4, 3, 5))
        params = permuted(initial, [0], np.random.default_rng(1))
        params[0, 2, 3] = initial[1, 0, 0]
        with pytest.raises(ValueError, match=r"tree\[:, 2, 3\] is not a permutation"):
            p2t.pack(params, initial, vectors=0)

    def test_the_same_weights_with_other_ties_are_no_permutation(self):
        initial, params = np.array([1.0, 1.0, 2.0]), np.array([1.0, 2.0, 2.0])
        with pytest.raises(ValueError, match="is not a permutation"):
            p2t.pack(params, initial, vectors=0)

    def test_half_a_float64_is_not_enough(self):
        # Equal in the lower, and in the upper, 32 bits.
        initial = np.array([0x100000001, 0x200000002], np.uint64).view(float)
        for bits in ([0x100000001, 0x200000001], [0x100000001, 0x100000002]):
            with pytest.raises(ValueError, match="is not a permutation"):
                p2t.pack(np.array(bits, np.uint64).view(float), initial, vectors=0)

    def test_zeros_of_other_signs_are_no_permutation(self):
        with pytest.raises(ValueError, match="is not a permutation"):
            p2t.pack(np.array([0.0, 1.0]), np.array([-0.0, 1.0]), vectors=0)

    def test_initial_params_of_another_network(self):
        initial, params = network()
        del initial["a"]["bias"]
        with pytest.raises(ValueError, match=r"^initial_params: does not match params"):
            p2t.pack(params, initial)
        initial["a"]["bias"] = np.zeros(7, np.float16)
        with pytest.raises(ValueError, match=r"float16\[7\] at a/bias, but params has"):
            p2t.pack(params, initial)

    def test_tracers(self):
        initial = {"kernel": jnp.ones((3, 2))}
        data = p2t.pack(initial, initial)
        for call in (
            lambda tree: p2t.pack(tree, initial),
            lambda tree: p2t.pack(initial, tree),
            lambda tree: p2t.unpack(data, tree),
        ):
            with pytest.raises(TypeError, match=r"kernel is traced.* outside of jit"):
                jax.jit(call)(initial)

    @pytest.mark.parametrize("leaf", ["text", jax.random.key(0), np.array(["a"]), np.array([None])])
    def test_leaves_that_are_no_numbers(self, leaf):
        tree, match = {"x": leaf}, "params: expected an array of numbers at x"
        for call in (
            lambda: p2t.pack(tree, {"x": np.ones(np.shape(leaf))}),
            lambda: p2t.pack({"x": np.ones(np.shape(leaf))}, tree),
            lambda: p2t.unpack(b"", tree),
        ):
            with pytest.raises(TypeError, match=match):
                call()

    @pytest.mark.parametrize("data", ["text", None, 3, [1, 2]])
    def test_data_that_are_no_bytes(self, data):
        with pytest.raises(TypeError, match=r"^data: expected the bytes that pack returned"):
            p2t.unpack(data, {})


def signed(data):
    """With the size and the checksum that belong to it, as a forger would."""
    data = bytearray(data)
    struct.pack_into("<Q", data, 4, len(data))
    struct.pack_into("<I", data, len(data) - 4, zlib.crc32(data[:-4]))
    return bytes(data)


class TestHostileBytes:
    initial, params = network()
    data = p2t.pack(params, initial)
    head = 17 + data[16]  # with the origin; then comes the raw leaf, 7 numbers of 8 bytes
    block = head + 7 * 8  # then the first block: checksum, words of code, code

    def refused(self, data, match, initial=None):
        with pytest.raises(ValueError, match=f"^data: .*{match}"):
            p2t.unpack(data, self.initial if initial is None else initial)

    def test_every_truncation(self):
        for size in range(len(self.data)):
            self.refused(self.data[:size], "truncated")

    def test_every_flipped_bit(self):
        for bit in range(8 * len(self.data)):
            data = bytearray(self.data)
            data[bit // 8] ^= 1 << bit % 8
            fields = [(3, "not written by"), (4, "version"), (12, "truncated|too long")]
            match = next((why for end, why in fields if bit // 8 < end), "damaged")
            self.refused(data, match)

    def test_what_follows(self):
        self.refused(self.data + b"\0", "too long")

    def test_another_version(self):
        self.refused(self.data[:3] + b"\x02" + self.data[4:], "version 2.*reads version 1")

    def test_bytes_of_another_kind(self):
        self.refused(b"\x89PNG\r\n", "not written by p2t_jax.pack: begins with b'.x89PN'")

    def test_another_tree(self):
        for other in (
            {"c": self.initial["a"], "b": self.initial["b"]},
            {**self.initial, "c": np.zeros(2)},
            jax.tree.map(lambda leaf: leaf.astype(np.float32), self.initial),
            jax.tree.map(lambda leaf: leaf[..., :-1], self.initial),
        ):
            self.refused(self.data, "does not match initial_params", other)
        with pytest.raises(ValueError, match="vector axes"):
            p2t.unpack(self.data, self.initial, vectors=lambda path, leaf: None)

    def test_another_seed(self):
        other, _ = network(seed=1)
        self.refused(self.data, "other initial weights than those of a/kernel", other)

    def test_the_error_says_what_random_numbers_may_depend_on(self):
        data = self.data.replace(jax.__version__.encode(), b"1.2.3".ljust(len(jax.__version__)))
        assert data != self.data
        other, _ = network(seed=1)
        self.refused(signed(data), rf"'jax 1.2.3.*here is 'jax {jax.__version__}", other)

    @pytest.mark.parametrize(
        ("switch", "told"),
        [
            (lambda: jax.default_prng_impl("rbg"), "rbg"),
            (lambda: jax.threefry_partitionable(False), "threefry2x32 not partitionable"),
        ],
    )
    def test_it_says_by_which_generator_random_numbers_are_made(self, switch, told):
        other, _ = network(seed=1)
        with switch():
            data = p2t.pack(self.params, self.initial)
            assert_same_bits(p2t.unpack(data, self.initial), self.params)
        self.refused(data, rf"with 'jax [^']*, {told}', here is '{re.escape(ORIGIN)}'", other)
        assert_same_bits(p2t.unpack(data, self.initial), self.params)  # the weights decide

    def test_one_initial_weight_that_differs_in_one_bit(self):
        other = jax.tree.map(np.copy, self.initial)
        other["b"]["kernel"].view(np.uint16)[3, 1] ^= 1
        self.refused(self.data, "other initial weights than those of b/kernel", other)

    def test_oversized_counts_take_no_memory(self):
        data = bytearray(self.data)
        struct.pack_into("<I", data, self.block + 4, 2**32 - 1)
        tracemalloc.start()
        self.refused(signed(data), "ends within a/kernel: expected 17179869180 more bytes")
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert peak < 10**6
        data = bytearray(self.data)
        struct.pack_into("<Q", data, 4, 2**64 - 1)
        self.refused(bytes(data), "truncated")

    def test_too_few_and_too_many_words(self):
        (size,) = struct.unpack_from("<I", self.data, self.block + 4)
        for wrong in (0, 1, size - 1, size + 1):
            words = self.data[self.block + 8 :][: 4 * min(wrong, size)].ljust(4 * wrong, b"\0")
            rest = self.data[self.block + 8 + 4 * size :]
            head = self.data[: self.block + 4] + struct.pack("<I", wrong)
            self.refused(signed(head + words + rest), "the code for a/kernel is invalid")

    def test_words_that_are_no_code(self):
        data = bytearray(self.data)
        data[self.block + 8 : self.block + 16] = b"\xff" * 8
        self.refused(signed(data), "the code for a/kernel is invalid")

    def test_a_body_that_is_too_short_or_too_long(self):
        self.refused(signed(self.data[: self.head] + self.data[-4:]), "ends within a/bias")
        self.refused(signed(self.data[:-5] + self.data[-4:]), "ends within b/kernel")
        self.refused(signed(self.data + b"\0"), "1 bytes after the last parameter")

    def test_booleans_that_are_neither(self):
        mask = np.array([True, False])
        data = p2t.pack(mask, mask, vectors=None)
        assert_same_bits(p2t.unpack(data, mask, vectors=None), mask)
        with pytest.raises(ValueError, match=r"a boolean of .* must be 0 or 1"):
            p2t.unpack(signed(data[:-6] + b"\x01\x02" + data[-4:]), mask, vectors=None)

    @settings(deadline=None, max_examples=300)
    @given(st.data())
    def test_forged_bytes_are_refused_or_a_permutation(self, data):
        forged = bytearray(self.data)
        for _ in range(data.draw(st.integers(1, 3))):
            at = data.draw(st.integers(16, len(forged) - 5))
            forged[at : at + data.draw(st.integers(0, 8))] = data.draw(st.binary(max_size=8))
        try:
            params = p2t.unpack(signed(forged), self.initial)
        except ValueError:
            return
        assert p2t.is_permutation(params, self.initial)

    @settings(deadline=None)
    @given(st.binary())
    def test_random_bytes(self, data):
        for hostile in (data, b"P2T\x01" + data, signed((b"P2T\x01" + data).ljust(21, b"\0"))):
            self.refused(hostile, "")
