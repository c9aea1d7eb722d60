"""Sets of small integers as words of bits, with the next member found in a few steps.

A set of the integers below n is a tree of words. Bit i of the lowest level says whether i is a
member; a bit of the level above says whether a word below is not zero; and so on, up to a level of
one word. Up to 128 integers are one or two words, which the processor keeps in registers.
"""

from typing import Any

import numpy as np
from numba import types
from numba.extending import intrinsic

from p2t_jax._host.kernels import LANES
from p2t_jax._host.kernels.cache import jit
from p2t_jax._host.kernels.lanes import less

_ONE, _WORD, _IN_WORD = np.uint64(1), np.uint64(6), np.uint64(63)


@intrinsic
def _trailing_zeros(_: Any, word: Any) -> Any:

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        del signature
        return builder.cttz(arguments[0], context.get_constant(types.boolean, False))

    return types.uint64(types.uint64), generate


# The number of the lowest bit of a uint64 that is not zero, as uint64.
trailing_zeros: Any = _trailing_zeros


@intrinsic
def _ones(_: Any, word: Any) -> Any:

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        del context, signature
        return builder.ctpop(arguments[0])

    return types.uint64(types.uint64), generate


# How many bits of a uint64 are one, as uint64.
ones: Any = _ones


@intrinsic
def _reversed(_: Any, word: Any) -> Any:

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        del context, signature
        return builder.bitreverse(arguments[0])

    return types.uint64(types.uint64), generate


# The bits of a uint64 in the opposite order.
reversed_bits: Any = _reversed

NONE = ~np.uint64(0)


@jit
def empty_sets(n: Any) -> Any:
    """Room for two sets, 0 and 1, of integers below n: words, and where each level begins.

    Word k of set 0 and word k of set 1 are side by side. All numbers are uint64, which needs no
    check for negative indices.
    """
    words = levels = 0
    size = n
    while True:
        size = (size + 63) >> 6
        words += size
        levels += 1
        if size <= 1:
            break
    return np.empty(2 * max(words, 1), np.uint64), np.empty(levels + 1, np.uint64)


@jit
def clear(words: Any, begin: Any, n: Any) -> Any:
    """Make both sets empty, to be used for integers below n; return the number of levels."""
    level = begin[0] = 0
    size = n
    while True:
        size = (size + 63) >> 6
        level += 1
        begin[level] = begin[level - 1] + np.uint64(size)
        if size <= 1:
            break
    words[: 2 * np.int64(begin[level])] = 0
    return np.uint64(level)


@jit
def _at(begin: Any, level: Any, i: Any, which: Any) -> Any:
    """The index of the word with the bit of i, on a level."""
    return ((begin[level] + (i >> _WORD)) << _ONE) | which


@jit
def insert(words: Any, which: Any, begin: Any, levels: Any, i: Any) -> None:
    """Add i to a set."""
    for level in range(levels):
        words[_at(begin, level, i, which)] |= _ONE << (i & _IN_WORD)
        i >>= _WORD


@jit
def remove(words: Any, which: Any, begin: Any, levels: Any, i: Any) -> None:
    """Take i out of a set."""
    for level in range(levels):
        at = _at(begin, level, i, which)
        words[at] &= ~(_ONE << (i & _IN_WORD))
        if words[at]:
            return
        i >>= _WORD


@jit
def contains(words: Any, which: Any, i: Any) -> Any:
    """Whether i is in a set."""
    return (words[((i >> _WORD) << _ONE) | which] >> (i & _IN_WORD)) & _ONE != 0


@jit
def following(words: Any, which: Any, begin: Any, levels: Any, i: Any) -> Any:
    """The least member above i, or `NONE`."""
    for level in range(levels):
        word = (words[_at(begin, level, i, which)] >> (i & _IN_WORD)) >> _ONE
        if word:
            i += _ONE + trailing_zeros(word)
            below = np.uint64(level)
            while below:
                below -= _ONE
                word = words[((begin[below] + i) << _ONE) | which]
                i = (i << _WORD) + trailing_zeros(word)
            return i
        i >>= _WORD
    return NONE


# Sets of integers below 128 are pairs of words. If `two` is 0, the integers are below 64. Where
# that is a constant, the compiler leaves out everything about the second word.


@jit
def in_words(numbers: Any, begin: Any, size: Any, two: Any) -> Any:
    """The set of those i below `size` for which `numbers[begin + i]`, a uint32, is 0.

    It reads up to `LANES` numbers beyond the end.
    """
    low = high = np.uint64(0)
    for at in range(0, min(size, 64), LANES):
        low |= less(numbers, np.int64(begin) + at, np.uint32(1)) << np.uint64(at)
    if two:
        for at in range(64, size, LANES):
            high |= less(numbers, np.int64(begin) + at, np.uint32(1)) << np.uint64(at - 64)
    every = all_below(size, two)
    return low & every[0], high & every[1]


@jit
def all_below(size: Any, two: Any) -> Any:
    """All integers below `size`."""
    high = ~np.uint64(0) >> np.uint64(128 - size) if two else np.uint64(0)
    return ~np.uint64(0) >> np.uint64(max(0, 64 - size)), high


@jit
def from_other_end(words: Any, size: Any, two: Any) -> Any:
    """The integers below `size` that are not in a set, each i as 63 - i, or 127 - i if `two`."""
    every = all_below(size, two)
    low, high = reversed_bits(every[0] ^ words[0]), reversed_bits(every[1] ^ words[1])
    return (high, low) if two else (low, high)


@jit
def contained(words: Any, two: Any, i: Any) -> Any:
    """1 if i is in a set, or else 0."""
    word = words[1] if (i >> _WORD) & two else words[0]
    return (word >> (i & _IN_WORD)) & _ONE


@jit
def without(words: Any, two: Any, i: Any) -> Any:
    """A set without i."""
    low, high = words
    bit = _ONE << (i & _IN_WORD)
    second = (i >> _WORD) & two
    return low & ~(bit * (_ONE - second)), high & ~(bit * second)


@jit
def _mask_above(two: Any, i: Any) -> Any:
    mask = (~np.uint64(0) << (i & _IN_WORD)) << _ONE
    return (np.uint64(0), mask) if (i >> _WORD) & two else (mask, ~np.uint64(0))


@jit
def above(words: Any, two: Any, i: Any) -> Any:
    """The members above i."""
    low, high = words
    mask = _mask_above(two, i)
    return low & mask[0], high & mask[1]


@jit
def not_above(words: Any, two: Any, i: Any) -> Any:
    """The members up to i."""
    low, high = words
    mask = _mask_above(two, i)
    return low & ~mask[0], high & ~mask[1]


@jit
def least(words: Any, two: Any) -> Any:
    """The least member of a set that has any."""
    low, high = words
    if two:
        return trailing_zeros(low) if low else np.uint64(64) + trailing_zeros(high)
    return trailing_zeros(low)


@jit
def take_least(words: Any, two: Any) -> Any:
    """The least member, and the set without it."""
    low, high = words
    if low or not two:
        return trailing_zeros(low), (low & (low - _ONE), high)
    return np.uint64(64) + trailing_zeros(high), (low, high & (high - _ONE))
