"""Ranking on the host (Section 3.1): a stable radix sort of the bits of floating-point numbers.

Weights arrive as their bits, in unsigned integers: one kernel serves every floating dtype, and
moves weights without touching them.
"""

import functools
from typing import Any

import numpy as np
from numpy.typing import NDArray

from p2t_jax._host.kernels.cache import jit

# Below this length an insertion sort is faster than counting digits.
_SHORT = 24

_LOW = np.uint64(0xFFFFFFFF)
_HALF = np.uint64(32)
_DIGIT = np.uint64(8)
_DIGIT_MASK = np.uint64(0xFF)


@functools.partial(jit, inline="always")
def _key(bits: Any, shift: Any, infinity: Any) -> Any:
    """The bits of a float as a 64-bit unsigned key of the same order; -0.0 is 0.0, NaN is last.

    `shift` moves the bits of a shorter float to the top of the word, `infinity` are the so shifted
    bits of +inf. There is no branch on the sign, which no processor could predict.
    """
    sign = np.uint64(1 << 63)
    wide = np.uint64(bits) << shift
    magnitude = wide & ~sign
    key = wide ^ ((np.uint64(0) - (wide >> np.uint64(63))) | sign)
    if magnitude > infinity:
        key = ~np.uint64(0)
    if magnitude == np.uint64(0):
        key = sign
    return key


@jit
def _sort(words: Any, scratch: Any, counts: Any) -> None:
    """Sort `words` in place, stably, by their upper 32 bits."""
    n = words.size
    if n <= _SHORT:
        for i in range(1, n):
            word = words[i]
            j = i
            while j > 0 and words[j - 1] >> _HALF > word >> _HALF:
                words[j] = words[j - 1]
                j -= 1
            words[j] = word
        return
    counts[:] = 0
    for i in range(n):
        word = words[i]
        counts[0, (word >> np.uint64(32)) & _DIGIT_MASK] += np.uint32(1)
        counts[1, (word >> np.uint64(40)) & _DIGIT_MASK] += np.uint32(1)
        counts[2, (word >> np.uint64(48)) & _DIGIT_MASK] += np.uint32(1)
        counts[3, (word >> np.uint64(56)) & _DIGIT_MASK] += np.uint32(1)
    into, source = scratch, words
    passes = 0
    for digit in range(4):
        shift = _HALF + _DIGIT * np.uint64(digit)
        start = counts[digit]
        if start[(words[0] >> shift) & _DIGIT_MASK] == n:
            continue  # every word has this digit: short floats, and weights of one sign and scale
        total = np.uint32(0)
        for d in range(256):
            count = start[d]
            start[d] = total
            total += count
        for i in range(n):
            word = source[i]
            d = (word >> shift) & _DIGIT_MASK
            into[start[d]] = word
            start[d] += np.uint32(1)
        into, source = source, into
        passes += 1
    if passes % 2:
        words[:] = scratch


@jit
def _permute_rows(
    values: Any, reference: Any, out: Any, shift: Any, infinity: Any, scatter: Any
) -> None:
    rows, n = reference.shape
    words = np.empty(n, np.uint64)  # a word: 32 bits of a key above the position they came from
    scratch = np.empty(n, np.uint64)
    counts = np.empty((4, 256), np.uint32)
    for row in range(rows):
        phi, w, theta = reference[row], values[row], out[row]
        if shift < _HALF:  # 64-bit keys: by their lower half, then stably by their upper half
            for i in range(n):
                words[i] = (_key(phi[i], shift, infinity) << _HALF) | np.uint64(i)
            _sort(words, scratch, counts)
            for i in range(n):
                position = words[i] & _LOW
                words[i] = (_key(phi[position], shift, infinity) & ~_LOW) | position
        else:
            for i in range(n):
                words[i] = (_key(phi[i], shift, infinity) & ~_LOW) | np.uint64(i)
        _sort(words, scratch, counts)
        if scatter:
            for i in range(n):
                theta[words[i] & _LOW] = w[i]
        else:
            for i in range(n):
                theta[i] = w[words[i] & _LOW]


def _run(values: NDArray[Any], reference: NDArray[Any], out: NDArray[Any], scatter: bool) -> None:
    unsigned = np.dtype(f"u{reference.dtype.itemsize}")
    shift = np.uint64(64 - 8 * reference.dtype.itemsize)
    infinity = np.uint64(np.asarray(np.inf, reference.dtype).view(unsigned)) << shift
    w, phi, theta = (array.view(unsigned) for array in (values, reference, out))
    _permute_rows(w, phi, theta, shift, infinity, scatter)


def sort_rows(rows: NDArray[Any], out: NDArray[Any]) -> None:
    """Write each of the (m, n) rows, sorted, to `out`: theta_sorted of Algorithm 2."""
    _run(rows, rows, out, scatter=False)


def synchronize_rows(phi: NDArray[Any], sorted_rows: NDArray[Any], out: NDArray[Any]) -> None:
    """Write each sorted row, in the ranking of the same row of `phi`, to `out` (Section 3.1).

    With `order` the stable argsort of `phi`, `out[order] = sorted_row`: one sort is enough, the
    ranking R' itself (`out = sorted_row[R']`) is never made.

    Args:
        phi: (m, n) C-contiguous rows, n < 2^32.
        sorted_rows: (m, n) C-contiguous rows of the same dtype, in ascending order.
        out: (m, n) C-contiguous, of the same dtype; written.
    """
    _run(sorted_rows, phi, out, scatter=True)
