r"""SGPerm's search with priority "nearest" in closed form: cycles without a graph (Section 2.2).

`cycles` says what is searched for. Neither a graph nor a depth-first search is needed. Let the root
want a lighter weight, and let the remaining weights that are lighter than the root be y1 > y2 > ...
As long as these want lighter weights, too, the search steps from each to the next. Let z be the
first that wants a heavier one.

- If z is within reach of the root, so is every step on the way there. What z wants is on the path
  already, except for the root: the cycle is root, y1, y2, ..., z.
- If not, there is no cycle through the root. Its last member would want a heavier weight, hence be
  z or lighter, and out of reach of the root.

So: *a root looks in its direction for the nearest remaining weight that wants the opposite one. If
that is within reach, both and all between them move along by one place.* `find_cycles` does this
with two sets of bits, one for each direction. Both are empty in the end: every weight leaves once.

Equal weights. A movement to an equal weight changes nothing and is not permissible. Of several
equal targets only one counts: one that wants the opposite direction if there is any. Of those that
want a lighter weight it is the first by place, of those that want a heavier one the last. The root
goes before all weights equal to it. Roots with equal \|r\| are taken by place.
"""

import functools
from typing import Any

import numpy as np

from p2t_jax._host.kernels.bits import (
    NONE,
    above,
    all_below,
    clear,
    contained,
    contains,
    following,
    from_other_end,
    in_words,
    insert,
    least,
    not_above,
    remove,
    take_least,
    without,
)
from p2t_jax._host.kernels.cache import jit

_ONE = np.uint64(1)


@jit
def find_cycles(
    begin: Any,
    size: Any,
    weight: Any,
    place: Any,
    heavier: Any,
    root: Any,
    reach: float,
    words: Any,
    levels: Any,
    source: Any,
) -> None:
    """Find the cycles of a subset and move weights along them (Section 2.2, "nearest").

    There are two sets of members: 0, of those that want to be lighter, and 1, of those that want to
    be heavier, numbered from the other end. So in either direction, a root looks for the next.

    Args:
        begin: the first member of the subset.
        size: how many there are.
        weight: of all subsets, like the next three; see `subsets.Members`.
        place: see there.
        heavier: see there.
        root: see there.
        reach: u.
        words: room for two sets, see `bits.empty_sets`.
        levels: likewise.
        source: the places that weights come from, by place; written where they move.
    """
    height, most = clear(words, levels, size), np.uint64(size) - _ONE
    begin = np.uint64(begin)
    for member in range(most + _ONE):
        own = np.uint64(heavier[begin + member])
        insert(words, own, levels, height, most - member if own else member)
    for k in range(most + _ONE):
        s = np.uint64(root[begin + k])
        own = np.uint64(heavier[begin + s])
        at = most - s if own else s  # the root's number in its own set
        if not contains(words, own, at):
            continue
        z = following(words, _ONE - own, levels, height, most - at)
        last = z if own else most - z
        if z == NONE or not abs(weight[begin + last] - weight[begin + s]) < reach:
            remove(words, own, levels, height, at)
            continue
        remove(words, _ONE - own, levels, height, z)
        y, after = last, most - z  # the number that y has or would have in the root's own set
        while y != s:  # from z back to the root; of equal weights only the first met moves
            beside = y - _ONE if own else y + _ONE
            if beside != s and weight[begin + beside] == weight[begin + y]:
                y_last = _last_equal(weight, np.int64(begin), np.int64(y), np.int64(s))
                after = most - np.uint64(y_last) if own else np.uint64(y_last)
            after = following(words, own, levels, height, after)
            x = most - after if own else after
            if weight[begin + x] == weight[begin + s]:
                x, after = s, at
            source[place[begin + x]] = place[begin + y]
            remove(words, own, levels, height, after)
            y = x
        source[place[begin + last]] = place[begin + s]


@jit
def _last_equal(weight: Any, begin: Any, y: Any, root: Any) -> Any:
    """The last member with the weight of y on the way to the root, found by doubling steps."""
    way = 1 if root > y else -1
    inside, outside = y, root
    jump = 1
    while abs(outside - inside) > 1:
        if jump:
            middle = y + way * jump
            jump *= 2
            if abs(middle - y) >= abs(root - y):
                middle, jump = (inside + outside) // 2, 0
        else:
            middle = (inside + outside) // 2
        if weight[begin + middle] == weight[begin + y]:
            inside = middle
        else:
            outside, jump = middle, 0
    return inside


@jit
def find_cycles_in_one_word(
    begin: Any,
    size: Any,
    weight: Any,
    place: Any,
    heavier: Any,
    root: Any,
    turn: Any,
    reach: float,
    source: Any,
) -> None:
    """The same as `find_cycles`, for up to 64 members."""
    _find_cycles_in_words(
        begin, size, weight, place, heavier, root, turn, reach, source, two=np.uint64(0)
    )


@jit
def find_cycles_in_two_words(
    begin: Any,
    size: Any,
    weight: Any,
    place: Any,
    heavier: Any,
    root: Any,
    turn: Any,
    reach: float,
    source: Any,
) -> None:
    """The same as `find_cycles`, for up to 128 members."""
    _find_cycles_in_words(
        begin, size, weight, place, heavier, root, turn, reach, source, two=np.uint64(1)
    )


@functools.partial(jit, inline="always")
def _find_cycles_in_words(
    begin: Any,
    size: Any,
    weight: Any,
    place: Any,
    heavier: Any,
    root: Any,
    turn: Any,
    reach: float,
    source: Any,
    two: Any,
) -> None:
    """The same, with the sets in registers, as pairs of words; `two` must be a constant.

    Exclusive or with the top, 63 or 127, numbers a member from the other end. A third set, of
    turns, has the remaining roots in their order. All is uint64, as in `find_cycles`.
    """
    top = np.uint64(127) if two else np.uint64(63)
    turns = all_below(size, two)
    lighter = in_words(heavier, begin, size, two)
    heavier_set = from_other_end(lighter, size, two)
    while turns[0] | turns[1]:
        k, turns = take_least(turns, two)
        s = np.uint64(root[begin + k])
        down = contained(lighter, two, s)
        flip = top if down else np.uint64(0)
        own, opposite = (lighter, heavier_set) if down else (heavier_set, lighter)
        at = s ^ flip  # in the opposite set; at ^ top is in its own
        ahead = above(opposite, two, at)
        z = least(ahead, two)
        last = z ^ flip
        if (ahead[0] | ahead[1]) and abs(weight[begin + last] - weight[begin + s]) < reach:
            opposite = without(opposite, two, z)
            turns = without(turns, two, np.uint64(turn[begin + last]))
            y, between = last, not_above(above(own, two, z ^ top), two, at ^ top)
            while between[0] | between[1]:
                t, between = take_least(between, two)
                x = t ^ flip ^ top
                w = weight[begin + x]
                if not (between[0] | between[1]) or (
                    w != weight[begin + y] and w != weight[begin + s]
                ):
                    source[place[begin + x]] = place[begin + y]
                    own = without(own, two, t)
                    turns = without(turns, two, np.uint64(turn[begin + x]))
                    y = x
            source[place[begin + last]] = place[begin + s]
        else:
            own = without(own, two, at ^ top)
        lighter, heavier_set = (own, opposite) if down else (opposite, own)
