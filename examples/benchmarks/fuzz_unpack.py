"""Hostile bytes for `unpack`: it must refuse them with a ValueError, or give a permutation.

    python examples/benchmarks/fuzz_unpack.py [-n 100000] [--seed 0]

Every input is a valid file with one to four mutations, or random bytes. Half of them then get a
valid header and checksum, as an attacker would do it, so that the fuzzer gets past these. The run
ends at any other error, a result that is not a permutation, an input that takes longer than five
seconds, or memory that grows.
"""

import argparse
import collections
import re
import resource
import struct
import time
import zlib

import jax
import ml_dtypes
import numpy as np

import p2t_jax as p2t

SECONDS = 5.0
MEBIBYTES = 64


def networks(rng):
    """Pairs of initial parameters and their file: of every dtype, with ties, small and large."""
    trees = []
    for dtype in (np.float16, ml_dtypes.bfloat16, np.float32, np.float64):
        for pruned in (0.0, 0.8):

            def kernel(n, m, dtype=dtype, pruned=pruned):
                weights = rng.normal(size=(n, m))
                weights[rng.random((n, m)) < pruned] = 0
                return {"kernel": weights.astype(dtype)}

            trees += [kernel(2, 40), kernel(9, 5), kernel(60, 4), kernel(700, 2)]
            trees.append({"b": {"bias": np.ones(4, dtype)}, "c": kernel(30, 5), "d": kernel(5, 9)})
    trees.append([{"kernel": np.ones(shape)} for shape in ((0, 3), (3, 0), (1, 3))])
    trees.append({"mask": np.array([True, False])})
    pairs = []
    for initial in trees:
        params = jax.tree.map(lambda w: rng.permuted(w, axis=0) if w.ndim > 1 else w, initial)
        pairs.append((initial, p2t.pack(params, initial)))
    return pairs


def mutate(rng, data, others):
    """One mutation of a bytearray."""
    at = int(rng.integers(len(data) + 1))
    size = int(rng.integers(1, 1 + rng.choice([1, 4, 8, 64])))
    match rng.integers(9):
        case 0:  # truncate
            del data[at:]
        case 1:  # flip a bit
            if at < len(data):
                data[at] ^= 1 << rng.integers(8)
        case 2:  # overwrite
            data[at : at + size] = rng.bytes(size)
        case 3:  # overwrite with the extremes of lengths and codes
            data[at : at + size] = bytes([rng.choice([0, 1, 127, 128, 255])]) * size
        case 4:  # insert
            data[at:at] = rng.bytes(size)
        case 5:  # delete
            del data[at : at + size]
        case 6:  # splice: go on with another file, from the same place or any
            other = others[rng.integers(len(others))][1]
            data[at:] = other[at if rng.random() < 0.5 else rng.integers(len(other)) :]
        case 7:  # move a piece
            to = int(rng.integers(len(data) + 1))
            data[to:to] = data[at : at + size]
        case 8:  # a 32-bit number where a length may be
            number = int(rng.choice([0, 1, 2**16, 2**31 - 1, 2**31, 2**32 - 1]))
            data[at : at + 4] = struct.pack("<I", number)


def forge(data, initial, valid):
    """Repair everything but the code: header, checksums and the counts of a single block."""
    body = 17 + valid[16]  # after the header and its text
    data.extend(bytes(max(0, body + 12 - len(data))))
    data[:4], data[12:17] = valid[:4], valid[12:17]
    if list(initial) == ["kernel"]:
        words = (len(data) - body - 12) // 4
        del data[body + 12 + 4 * words :]
        data[body : body + 4] = valid[body : body + 4]
        struct.pack_into("<I", data, body + 4, words)
    struct.pack_into("<Q", data, 4, len(data))
    struct.pack_into("<I", data, len(data) - 4, zlib.crc32(data[:-4]))


def one(rng, pairs):
    """An input, and the initial parameters it is unpacked with."""
    initial, valid = pairs[rng.integers(len(pairs))]
    if rng.random() < 0.1:
        data = bytearray(rng.bytes(int(rng.integers(200))))
    else:
        data = bytearray(valid)
        for _ in range(rng.integers(1, 5)):
            mutate(rng, data, pairs)
    if rng.random() < 0.5:
        forge(data, initial, valid)
    return bytes(data), initial


def is_permutation(params, initial):
    """For NumPy trees, without JAX, which is slower."""
    for now, then in zip(jax.tree.leaves(params), jax.tree.leaves(initial), strict=True):
        if (now.shape, now.dtype) != (then.shape, then.dtype):
            return False
        if now.ndim > 1:
            bits = [np.sort(w.view(f"u{w.itemsize}"), axis=0) for w in (now, then)]
            if not np.array_equal(*bits):
                return False
    return True


def peak():
    """The most memory that this process has held, in MiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("-n", type=int, default=100_000, help="inputs")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    rng = np.random.default_rng(options.seed)
    pairs = networks(rng)
    for initial, data in pairs:
        p2t.unpack(data, initial)  # compile
    before, slowest = peak(), 0.0
    outcomes = collections.Counter()
    for i in range(options.n):
        data, initial = one(rng, pairs)
        start = time.perf_counter()
        try:
            params = p2t.unpack(data, initial)
            outcome = "a permutation of the initial weights"
            right = is_permutation(params, initial)
        except ValueError as error:
            varies = r"b['\"].*|Data made.*|([a-d0-2]/)?(kernel|bias)|mask|\d+"
            outcome = re.sub(varies, "_", str(error))
            right = outcome.startswith("data: ")
        slowest = max(slowest, time.perf_counter() - start)
        if not right or slowest > SECONDS:
            raise SystemExit(f"Input {i}, {slowest:.1f} s: {outcome}\n{data.hex()}\n{initial}")
        outcomes[outcome] += 1
    for outcome, count in outcomes.most_common():
        print(f"{count:9,}  {outcome}")
    print(f"{options.n:9,}  inputs, seed {options.seed}; the slowest took {1e3 * slowest:.1f} ms;")
    print(f"{'':9}  peak memory grew by {peak() - before:.1f} MiB")
    if peak() - before > MEBIBYTES:
        raise SystemExit(f"That is more than {MEBIBYTES} MiB.")


if __name__ == "__main__":
    main()
