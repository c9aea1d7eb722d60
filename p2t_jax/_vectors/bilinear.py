"""Products of several values that depend on the inputs with one parameter.

In `einsum("bi,oij,bj->bo", x, w, y)` no weights are those of a neuron: which axis of w meets data
first is a matter of the order in which einsum multiplies. So it is with a kernel that is a mixture
of experts, in proportions that depend on the inputs. Two things are followed to find them: products
of data that vary along different dimensions (OUTER), and the axes that a parameter has left where
it has been contracted (`contracted(p)`).

An OUTER value has pairs of factors. A dimension has a `Part` of "axis" 2 k where the one factor of
pair k varies along it, and of 2 k + 1 where the other one does. In an elementwise product that you
write, dimensions along which both vary are left out: it has been made before the contraction. In
einsum's products they are not.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import TypeAlias

from p2t_jax._vectors.origins import Dims, Fact, Kind, Origin, Part, Value, contracted
from p2t_jax._vectors.uses import Uses

Places: TypeAlias = Sequence[Mapping[int, int]]
_Pair: TypeAlias = tuple[dict[int, int], dict[int, int]]  # for each factor, dimensions and sizes
_WHY = "it is contracted with several values that depend on the inputs, each along another axis"


def product_of_data(left: Value, right: Value) -> dict[int, Origin]:
    """What is known of the product, element by element, of two values that depend on the inputs."""
    one, other = (_sizes(v.dims_of(Fact.FLAT)) for v in (left, right))
    pairs = [p for p in _pairs(left) if any(side.keys() <= other.keys() for side in p)]
    pairs += [p for p in _pairs(right) if any(side.keys() <= one.keys() for side in p)]
    pairs.append(
        (
            {i: n for i, n in other.items() if i not in one},
            {i: n for i, n in one.items() if i not in other},
        )
    )
    known = _outer(pairs, max(len(v.dims_of(Fact.FLAT)) for v in (left, right)))
    if one.keys() & other.keys():
        flat = zip(left.dims_of(Fact.FLAT), right.dims_of(Fact.FLAT), strict=True)
        known[Fact.FLAT] = Origin(Kind.DIRECT, tuple(a and b for a, b in flat))
    return known


def outer_product_of_data(
    left: Value, right: Value, places: Places, shape: Sequence[int]
) -> dict[int, Origin]:
    """What is known of a dot product of two values that depend on the inputs, over no dimension."""
    first, second = (set(side.values()) for side in places)
    pairs: list[_Pair] = [({j: shape[j] for j in first}, {j: shape[j] for j in second})]
    for value, side in zip((left, right), places, strict=True):
        for pair in _pairs(value):
            a, b = ({side[i]: n for i, n in dims.items() if i in side} for dims in pair)
            pairs.append((a, b))
    return _outer(pairs, len(shape))


def check_contraction(
    p: int, origin: Origin, other: Value, pairs: Sequence[tuple[int, int]], uses: Uses
) -> None:
    """Refuses a contraction with a product of data along several axes, one for each factor."""
    outer = other.dims_of(Fact.OUTER)
    if not outer:
        return
    seen: dict[int, set[int]] = {}  # the axes that meet each factor
    for mine, its in pairs:
        axes = {part.axis for part in origin.dims[mine] if part.total != 1}
        for factor in outer[its]:
            seen.setdefault(factor.axis, set()).update(axes)
    for number, axes in seen.items():
        others = seen.get(number ^ 1, set())
        if axes and others and axes != others:
            uses.unclear(p, _WHY)


def neurons_of(origin: Origin, side: Mapping[int, int], places: Places, rank: int) -> Origin | None:
    """The axes that are left of a parameter after a contraction, at their places in the result.

    Those along which both sides of the product vary are left out: other data meet each of them.
    """
    free = set().union(*_free(places))
    dims: list[tuple[Part, ...]] = [()] * rank
    for i, j in side.items():
        if j in free:
            dims[j] = tuple(part for part in origin.dims[i] if part.total != 1)
    return Origin(Kind.DIRECT, tuple(dims)) if any(dims) else None


def contract_again(
    sides: tuple[Value, Value],
    number: int,
    pairs: Sequence[tuple[int, int]],
    places: Places,
    rank: int,
    uses: Uses,
) -> dict[int, Origin]:
    """A dot product of what has been contracted before, on one side of it, with the other side.

    In attention both sides are the outputs of neurons, which the dot product compares. That is no
    question, unless a parameter has other axes left and its side nothing else: a mixed kernel.
    """
    value, other = sides[number], sides[1 - number]
    free = {i for i, j in places[number].items() if j in _free(places)[number]}
    out: dict[int, Origin] = {}
    for p, origin in value.neurons:
        along = [its for mine, its in pairs if origin.dims[mine]]
        if not along or not other.depends:
            rest = neurons_of(origin, places[number], places, rank)
            out |= {p: rest} if rest else {}
            continue
        compared = all(any(o.dims[i] for _, o in other.neurons) for i in along)
        left = {i for i in free if origin.dims[i]}
        if not compared or (left and left == free):
            uses.unclear(contracted(p), _WHY)
    return out


def _free(places: Places) -> tuple[set[int], set[int]]:
    """The dimensions of the result that one side alone has."""
    one, other = (set(side.values()) for side in places)
    return one - other, other - one


def _sizes(dims: Dims) -> dict[int, int]:
    return {i: parts[0].size for i, parts in enumerate(dims) if parts}


def _pairs(value: Value) -> Iterator[_Pair]:
    dims = value.dims_of(Fact.OUTER)
    numbers = {part.axis for parts in dims for part in parts}
    for k in sorted({number // 2 for number in numbers}):
        one, other = (
            {i: part.size for i, parts in enumerate(dims) for part in parts if part.axis == number}
            for number in (2 * k, 2 * k + 1)
        )
        yield one, other


def _outer(pairs: Sequence[_Pair], rank: int) -> dict[int, Origin]:
    dims: list[tuple[Part, ...]] = [()] * rank
    for k, pair in enumerate(p for p in pairs if all(p)):
        for side in (0, 1):
            for i, n in pair[side].items():
                dims[i] = (*dims[i], Part(2 * k + side, 1, n, n))
    return {Fact.OUTER: Origin(Kind.DIRECT, tuple(dims))} if any(dims) else {}
