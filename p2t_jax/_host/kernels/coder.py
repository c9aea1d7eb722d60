"""Permutations as bits (Section 6): a range coder over the weights that a vector has yet to place.

docs/development/storage_format.md has the format. Weights come as their bits, in unsigned
integers. `_encode` and `_decode` are long because the coder's state, in local variables, is what
makes them fast.
"""

import functools
from typing import Any

import numpy as np
from numpy.typing import NDArray

from p2t_jax._host.kernels import radix
from p2t_jax._host.kernels.cache import jit

_HALF = np.uint64(32)
_LOW = np.uint64(0xFFFFFFFF)
_WORD = np.uint64(1 << 32)
_FULL = np.uint64(0xFFFFFFFFFFFFFFFF)


@jit
def _alphabet(row: Any, single: Any, place: Any, tied: Any, left: Any, tree: Any) -> Any:
    """Splits a sorted row into weights that occur once and weights that are tied.

    `single` holds the positions of the former in the row; `tied`, from 1, the first position of
    each of the latter, `left` how often it occurs, `tree` the Fenwick tree of `left`. `place` is
    where to find the weight at a position: k in `single`, or -k in `tied`.

    Returns:
        How many are single, and how many different weights are tied.
    """
    n = row.size
    singles = ties = 0
    i = 0
    while i < n:
        end = i + 1
        while end < n and row[end] == row[i]:
            end += 1
        if end == i + 1:
            single[singles] = i
            place[i] = singles
            singles += 1
        else:
            ties += 1
            tied[ties] = i
            left[ties] = tree[ties] = end - i
            place[i:end] = -ties
        i = end
    for k in range(1, ties + 1):
        parent = k + (k & -k)
        if parent <= ties:
            tree[parent] += tree[k]
    return singles, ties


@jit
def _scratch(n: Any) -> Any:
    once, twice = (n,), (n // 2 + 1,)
    return (
        np.empty(once, np.int32),
        np.empty(once, np.int32),
        np.empty(twice, np.int32),
        np.empty(twice, np.int32),
        np.empty(twice, np.int32),
    )


@jit
def _rank(row: Any, sorted_row: Any, ranks: Any, words: Any, scratch: Any, counts: Any) -> Any:
    """Finds the weights of `row` in `sorted_row`; False if they are not the same weights."""
    n = row.size
    shift = np.uint64(max(0, 8 * row.itemsize - 32))
    for i in range(n):
        words[i] = (np.uint64(row[i]) << _HALF) | np.uint64(i)
    radix.sort_words(words, scratch, counts)
    if shift:  # 64-bit weights: by their lower half, then stably by their upper half
        for i in range(n):
            position = words[i] & _LOW
            words[i] = (np.uint64(row[position]) >> shift << _HALF) | position
        radix.sort_words(words, scratch, counts)
    for i in range(n):
        position = words[i] & _LOW
        if row[position] != sorted_row[i]:
            return False
        ranks[position] = i
    return True


@functools.partial(jit, inline="always")
def _carry(words: Any, size: Any) -> None:
    size -= 1
    while words[size] == np.uint32(0xFFFFFFFF):
        words[size] = np.uint32(0)
        size -= 1
    words[size] += np.uint32(1)


@functools.partial(jit, error_model="numpy")
def _encode(sorted_rows: Any, rows: Any, words: Any) -> Any:
    m, n = rows.shape
    single, place, tied, left, tree = _scratch(n)
    ranks = np.empty(n, np.int32)
    keys = np.empty(n, np.uint64)
    scratch = np.empty(n, np.uint64)
    counts = np.empty((4, 256), np.uint32)
    low, width = np.uint64(0), _FULL
    size = 0
    for r in range(m):
        if not _rank(rows[r], sorted_rows[r], ranks, keys, scratch, counts):
            return -1 - r
        singles, ties = _alphabet(sorted_rows[r], single, place, tied, left, tree)
        for i in range(n):
            k = place[ranks[i]]
            count = np.uint64(1)
            if k >= 0:
                start = np.uint64(k)
                singles -= 1
                last = single[singles]
                single[k] = last
                place[last] = k
            else:
                k = -k
                count = np.uint64(left[k])
                below = np.int64(singles)
                node = k - 1
                while node:
                    below += tree[node]
                    node &= node - 1
                start = np.uint64(below)
                left[k] -= 1
                while k <= ties:
                    tree[k] -= 1
                    k += k & -k
            part = width // np.uint64(n - i)
            step = part * start
            low += step
            if low < step:
                _carry(words, size)
            width = part * count
            if width < _WORD:
                words[size] = np.uint32(low >> _HALF)
                size += 1
                low <<= _HALF
                width <<= _HALF
    last_word = (low >> _HALF) + np.uint64((low & _LOW) != 0)
    if last_word == _WORD:
        _carry(words, size)
    words[size] = np.uint32(last_word)
    return size + 1


@functools.partial(jit, error_model="numpy")
def _decode(sorted_rows: Any, words: Any, out: Any) -> Any:
    m, n = out.shape
    single, place, tied, left, tree = _scratch(n)
    width, value = _FULL, np.uint64(0)
    for first in range(2):
        value <<= _HALF
        if first < words.size:
            value |= np.uint64(words[first])
    size = 2
    for r in range(m):
        row = sorted_rows[r]
        singles, ties = _alphabet(row, single, place, tied, left, tree)
        top = 1
        while 2 * top <= ties:
            top *= 2
        for i in range(n):
            total = np.uint64(n - i)
            part = width // total
            quotient = value // part
            if quotient >= total:
                return False
            k = np.int64(quotient)
            if k < singles:
                out[r, i] = row[single[k]]
                singles -= 1
                single[k] = single[singles]
                value -= quotient * part
                width = part
            else:
                rest = k - singles
                k = np.int64(0)
                step = top
                while step:
                    node = k + step
                    if node <= ties:
                        if tree[node] <= rest:
                            rest -= tree[node]
                            k = node
                        else:
                            tree[node] -= 1
                    step >>= 1
                k += 1
                out[r, i] = row[tied[k]]
                value -= (quotient - np.uint64(rest)) * part
                width = part * np.uint64(left[k])
                left[k] -= 1
            if width < _WORD:
                width <<= _HALF
                value <<= _HALF
                if size < words.size:
                    value |= np.uint64(words[size])
                size += 1
    return size == words.size + 1


def encode_rows(sorted_rows: NDArray[Any], rows: NDArray[Any]) -> NDArray[np.uint32] | int:
    """The code of (m, n) rows, given the same rows sorted.

    Args:
        sorted_rows: (m, n) C-contiguous unsigned integers, n < 2^31, each row ascending.
        rows: of the same shape and dtype, each row a permutation of the sorted one.

    Returns:
        The words of the code; or the number of the first row that is not a permutation.
    """
    # A weight of t takes at most 1 + log2(t) bits, including what the divisions round away.
    words = np.empty(rows.size * (rows.shape[1].bit_length() + 1) // 32 + 2, np.uint32)
    size = int(_encode(sorted_rows, rows, words))
    return words[:size] if size > 0 else -1 - size


def decode_rows(sorted_rows: NDArray[Any], words: NDArray[np.uint32], out: NDArray[Any]) -> bool:
    """Writes to `out` the rows that `encode_rows` was given; safe with any words.

    Args:
        sorted_rows: as given to `encode_rows`.
        words: the words of the code.
        out: (m, n) C-contiguous, of the same dtype; written.

    Returns:
        False if these are not the words of a code, or if there are too few or too many of them.
        Then `out` is undefined.
    """
    return bool(_decode(sorted_rows, words, out))
