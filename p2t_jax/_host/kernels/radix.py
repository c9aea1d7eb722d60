"""Ranking on the host (Section 3.1): stable sorts of the bits of floating-point numbers.

Numbers arrive as their bits, in unsigned integers: one kernel serves every floating dtype. They
arrive as (outer, n, inner) blocks, see `p2t_jax._leaves`.
"""

import functools
from typing import Any

import numpy as np
from numpy.typing import NDArray

from p2t_jax._host.kernels import LANES
from p2t_jax._host.kernels.cache import jit
from p2t_jax._host.kernels.columns import read_columns, together, write_columns
from p2t_jax._host.kernels.lanes import as_float

# Below this length an insertion sort is faster than counting digits.
_SHORT = 24

# `_sort_by_value`: up to this length few numbers share a part, and this many moves for each of them
# are faster than another sort. A word has a part and, below it, a position, of 16 bits each.
_MANY, _MOVES, _PARTS = 1 << 14, 4, 65535
_PART, _HIGHER_DIGIT, _POSITIONS = np.uint32(16), np.uint32(24), np.uint32(0xFFFF)

LOW = np.uint64(0xFFFFFFFF)
HIGH = ~LOW
HALF = np.uint64(32)
SIGN = np.uint64(1 << 63)
_DIGIT = np.uint64(8)
_DIGIT_MASK = np.uint64(0xFF)
_BYTE, _ONE = np.uint32(0xFF), np.uint32(1)


@functools.partial(jit, inline="always")
def float_key(bits: Any, shift: Any, infinity: Any) -> Any:
    """The bits of a float as a 64-bit unsigned key of the same order; -0.0 is 0.0, NaN is last.

    `shift` moves the bits of a shorter float to the top of the word, `infinity` is the bits of
    +inf, shifted likewise. There is no branch on the sign, which no processor could predict.
    """
    wide = np.uint64(bits) << shift
    magnitude = wide & ~SIGN
    key = wide ^ ((np.uint64(0) - (wide >> np.uint64(63))) | SIGN)
    if magnitude > infinity:
        key = ~np.uint64(0)
    if magnitude == np.uint64(0):
        key = SIGN
    return key >> shift << shift


@jit
def sort_words(words: Any, scratch: Any, counts: Any) -> None:
    """Sort `words` in place, stably, by their upper 32 bits."""
    n = words.size
    if n <= _SHORT:
        for i in range(1, n):
            word = words[i]
            j = i
            while j > 0 and words[j - 1] >> HALF > word >> HALF:
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
        shift = HALF + _DIGIT * np.uint64(digit)
        start = counts[digit]
        if start[(words[0] >> shift) & _DIGIT_MASK] == n:
            continue  # all have the same digit: short floats, or weights of one sign and scale
        _deal(n, source, into, start, shift, _DIGIT_MASK)
        into, source = source, into
        passes += 1
    if passes % 2:
        words[:] = scratch[:n]


@jit
def sort_positions(words: Any, key: Any, wide: Any, scratch: Any, counts: Any) -> None:
    """Sort positions stably by their keys.

    Args:
        words: (m,): the upper half of a key and, in the lower half, its position; sorted in place.
        key: the whole keys, by position.
        wide: whether keys have lower halves, too.
        scratch: (>= m,).
        counts: (4, 256) uint32.
    """
    if wide:  # by the lower half, then stably by the upper half
        for i in range(words.size):
            position = words[i] & LOW
            words[i] = (key[position] << HALF) | position
        sort_words(words, scratch, counts)
        for i in range(words.size):
            position = words[i] & LOW
            words[i] = (key[position] & HIGH) | position
    sort_words(words, scratch, counts)


@jit
def _sort_by_value(phi: Any, words: Any, scratch: Any, counts: Any) -> bool:
    """Sort positions stably by the values of float32 numbers: half the passes of `sort_positions`.

    The range of the values is cut into 2^16 equal parts. Numbers are sorted by their parts. That
    leaves few of them in the wrong order, all beside others of the same part.

    Args:
        phi: (n,) bits, uint32, n <= `_MANY`.
        words: (n,) uint32; written: the positions, in the lower 16 bits.
        scratch: (n,) uint32.
        counts: (4, 256) uint32.

    Returns:
        False, with nothing of use written, if a number is not finite, or if most are in few parts.
    """
    least = most = _flipped(np.int32(phi[0]))
    for bits in phi:
        key = _flipped(np.int32(bits))
        least, most = min(least, key), max(most, key)
    start, end = as_float(np.int64(_flipped(least)), phi), as_float(np.int64(_flipped(most)), phi)
    if not 0 < end - start < np.inf:
        return False
    scale = np.float32(_PARTS) / (end - start)
    if not scale < np.inf:
        return False
    for x in range(phi.size):
        # Rounding is monotonic, so that parts are in the order of their numbers.
        part = np.uint32(np.int32((as_float(np.int64(phi[x]), phi) - start) * scale))
        words[x] = (part << _PART) | np.uint32(x)
    counts[:2] = 0
    for x in range(phi.size):
        counts[0, (words[x] >> _PART) & _BYTE] += _ONE
        counts[1, words[x] >> _HIGHER_DIGIT] += _ONE
    _deal(phi.size, words, scratch, counts[0], _PART, _BYTE)
    _deal(phi.size, scratch, words, counts[1], _HIGHER_DIGIT, _BYTE)
    moves = _MOVES * phi.size
    for x in range(1, phi.size):
        if (words[x] ^ words[x - 1]) > _POSITIONS:
            continue  # another part: nearly always
        word, y = words[x], x
        key = _short_key(phi[word & _POSITIONS])
        while y > 0 and (words[y - 1] ^ word) <= _POSITIONS:
            if _short_key(phi[words[y - 1] & _POSITIONS]) <= key:
                break
            words[y] = words[y - 1]
            y -= 1
        words[y] = word
        moves -= x - y
        if moves < 0:
            return False
    return True


@functools.partial(jit, inline="always")
def _short_key(bits: Any) -> Any:
    """The bits of a float32 as a signed key of the same order; -0.0 is 0.0, a NaN is outermost."""
    key = _flipped(np.int32(bits))
    return key if key != np.int32(-1) else np.int32(0)


@functools.partial(jit, inline="always")
def _flipped(bits: Any) -> Any:
    """Negative floats as integers are in the opposite order. This is its own inverse."""
    return bits ^ ((bits >> np.int32(31)) & np.int32(0x7FFFFFFF))


@jit
def _deal(n: Any, source: Any, into: Any, start: Any, shift: Any, mask: Any) -> None:
    """Sort n words stably by eight of their bits; `start` has how many there are of each number.

    Shift and mask have the type of the words.
    """
    total = np.uint32(0)
    for d in range(256):
        count = start[d]
        start[d] = total
        total += count
    for i in range(n):
        word = source[i]
        d = (word >> shift) & mask
        at = start[d]
        into[at] = word
        start[d] = at + _ONE


@jit
def _positions(
    phi: Any, out: Any, start: Any, stop: Any, shift: Any, infinity: Any, ranks: Any
) -> None:
    n = phi.shape[1]
    columns, found = np.empty((LANES, n), phi.dtype), np.empty((LANES, n), out.dtype)
    short, short_scratch = np.empty(n, np.uint32), np.empty(n, np.uint32)
    words = np.empty(n, np.uint64)  # a word: 32 bits of a key, then its position
    key, scratch = np.empty_like(words), np.empty_like(words)
    counts = np.empty((4, 256), np.uint32)
    few = shift == HALF and _SHORT < n <= _MANY
    first = start
    while first < stop:
        count = together(out, first, stop)
        read_columns(phi, first, count, columns)
        for c in range(count):
            if few and _sort_by_value(columns[c], short, short_scratch, counts):
                _give(short, _POSITIONS, ranks, found[c])
                continue
            for x in range(n):
                key[x] = float_key(columns[c, x], shift, infinity)
                words[x] = (key[x] & HIGH) | np.uint64(x)
            sort_positions(words, key, shift < HALF, scratch, counts)
            _give(words, LOW, ranks, found[c])
        write_columns(found, first, count, out)
        first += count


@jit
def _give(words: Any, positions: Any, ranks: Any, found: Any) -> None:
    """Write the sorted positions, or the rank of each position; `positions` masks them."""
    if ranks:
        for x in range(words.size):
            found[words[x] & positions] = x
    else:
        for x in range(words.size):
            found[x] = words[x] & positions


@functools.cache
def key_format(dtype: np.dtype[Any]) -> tuple[np.uint64, np.uint64]:
    """The `shift` and the `infinity` of `float_key` for a floating dtype."""
    shift = np.uint64(64 - 8 * dtype.itemsize)
    infinity = np.uint64(np.asarray(np.inf, dtype).view(f"u{dtype.itemsize}")) << shift
    return shift, infinity


def order(phi: NDArray[Any], out: NDArray[Any], start: int, stop: int) -> None:
    """Write where the weights of vectors `start` to `stop` are in ascending order, to `out`.

    `phi[out]` is sorted: theta_sorted of Algorithm 2. Arguments are those of `rank`.
    """
    bits = phi.view(f"u{phi.dtype.itemsize}")
    _positions(bits, out, start, stop, *key_format(phi.dtype), False)


def rank(phi: NDArray[Any], out: NDArray[Any], start: int, stop: int) -> None:
    """Write the ranking R of vectors `start` to `stop` of a block to `out` (Section 3.1).

    One sort is enough: R is the inverse of the order.

    Args:
        phi: (outer, n, inner) C-contiguous, n < 2^32.
        out: of the same shape, uint16 or uint32; written.
        start: the number of the first vector.
        stop: the number after the last vector.
    """
    bits = phi.view(f"u{phi.dtype.itemsize}")
    _positions(bits, out, start, stop, *key_format(phi.dtype), True)
