"""Sets of small integers as words of bits, with the next member found in a few steps.

A set of the integers below n is a tree of words. Bit i of the lowest level says whether i is a
member; a bit of the level above says whether a word below is not zero; and so on, up to a level of
one word. Up to 64 integers are a single word.
"""

from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from p2t_jax._host.kernels.cache import jit

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

LANES = 16  # Numbers that `less` compares at once.


@intrinsic
def _less(_: Any, numbers: Any, at: Any, number: Any) -> Any:
    # LLVM turns this into a few vector instructions, but not a loop that does the same.

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        array, start, number = arguments
        pointer = context.make_array(signature.args[0])(context, builder, array).data
        vector = ir.VectorType(number.type, LANES)
        some = builder.load(
            builder.bitcast(builder.gep(pointer, [start]), vector.as_pointer()),
            align=number.type.width // 8,
        )
        undefined = ir.Constant(vector, ir.Undefined)
        first = ir.Constant(ir.IntType(32), 0)
        all_first = ir.Constant(ir.VectorType(ir.IntType(32), LANES), [0] * LANES)
        same = builder.shuffle_vector(
            builder.insert_element(undefined, number, first), undefined, all_first
        )
        word = builder.bitcast(builder.icmp_signed("<", some, same), ir.IntType(LANES))
        return builder.zext(word, ir.IntType(64))

    return types.uint64(numbers, types.int64, numbers.dtype), generate


# `less(numbers, at, number)`: which of `numbers[at : at + LANES]`, of an array of signed integers,
# are less than a number, as the bits of a uint64.
less: Any = _less


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
