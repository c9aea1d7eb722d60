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
from typing import NamedTuple, TypeAlias

from p2t_jax._vectors.inference.origins import Fact, Kind, Origin, Part, Value, contracted, placed
from p2t_jax._vectors.inference.uses import Uses

_Pair: TypeAlias = tuple[dict[int, int], dict[int, int]]  # for each factor, dimensions and sizes
_WHY = "it is contracted with several values that depend on the inputs, each along another axis"


class Side(NamedTuple):
    """One side of a dot product.

    Attributes:
        value: what is known of it.
        shape: its shape.
        summed: the dimensions that are summed over, in the order of those of the other side.
        places: the dimensions of the result where its other dimensions go.
    """

    value: Value
    shape: Sequence[int]
    summed: Sequence[int]
    places: Mapping[int, int]


def product_of_data(left: Value, right: Value) -> dict[int, Origin]:
    """What is known of the product, element by element, of two values that depend on the inputs."""
    one, other = (
        {i: parts[0].size for i, parts in enumerate(v.dims_of(Fact.FLAT)) if parts}
        for v in (left, right)
    )
    pairs = [p for p in _pairs(left) if any(side.keys() <= other.keys() for side in p)]
    pairs += [p for p in _pairs(right) if any(side.keys() <= one.keys() for side in p)]
    of_left = {i: n for i, n in other.items() if i not in one}
    of_right = {i: n for i, n in one.items() if i not in other}
    known = _outer(
        [*pairs, (of_left, of_right)], max(len(v.dims_of(Fact.FLAT)) for v in (left, right))
    )
    if one.keys() & other.keys():
        flat = zip(left.dims_of(Fact.FLAT), right.dims_of(Fact.FLAT), strict=True)
        known[Fact.FLAT] = Origin(Kind.DIRECT, tuple(a and b for a, b in flat))
    return known


def outer_product_of_data(left: Side, right: Side, shape: Sequence[int]) -> dict[int, Origin]:
    """What is known of a dot product of two values that depend on the inputs, over no dimension."""
    first, second = ({j: shape[j] for j in side.places.values()} for side in (left, right))
    pairs: list[_Pair] = [(first, second)]
    for side in (left, right):
        for pair in _pairs(side.value):
            a, b = ({j: dims[i] for i, j in side.places.items() if i in dims} for dims in pair)
            pairs.append((a, b))
    return _outer(pairs, len(shape))


def check_contraction(p: int, origin: Origin, side: Side, other: Side, uses: Uses) -> None:
    """Refuses a contraction with a product of data along several axes, one for each factor."""
    outer = other.value.dims_of(Fact.OUTER)
    seen: dict[int, set[int]] = {}  # the axes that meet each factor
    for mine, its in zip(side.summed, other.summed, strict=True):
        axes = {part.axis for part in origin.dims[mine] if part.total != 1}
        for factor in outer[its] if outer else ():
            seen.setdefault(factor.axis, set()).update(axes)
    for number, axes in seen.items():
        others = seen.get(number ^ 1, set())
        if axes and others and axes != others:
            uses.unclear(p, _WHY)


def neurons_of(origin: Origin, side: Side, other: Side, ndim: int) -> Origin | None:
    """The axes that are left of a parameter after a contraction, at their places in the result.

    Those along which both sides of the product vary are left out: other data meet each of them.
    """
    here = {i: side.places[i] for i in _free(side, other)}
    dims = placed(here, ndim, tuple(tuple(p for p in d if p.total != 1) for d in origin.dims))
    return Origin(Kind.DIRECT, dims) if any(dims) else None


def contract_again(side: Side, other: Side, ndim: int, uses: Uses) -> dict[int, Origin]:
    """A dot product of what has been contracted before, on one side of it, with the other side.

    In attention both sides are the outputs of neurons, which the dot product compares. That is no
    question, unless a parameter has other axes left and its side nothing else: a mixed kernel.
    """
    free = _free(side, other)
    out: dict[int, Origin] = {}
    for p, origin in side.value.neurons:
        pairs = zip(side.summed, other.summed, strict=True)
        along = [its for mine, its in pairs if origin.dims[mine]]
        if not along or not other.value.depends:
            rest = neurons_of(origin, side, other, ndim)
            out |= {p: rest} if rest else {}
            continue
        compared = all(any(o.dims[i] for _, o in other.value.neurons) for i in along)
        left = {i for i in free if origin.dims[i]}
        if not compared or (left and left == free):
            uses.unclear(contracted(p), _WHY)
    return out


def _free(side: Side, other: Side) -> set[int]:
    """The dimensions that are in the result, but not along one of the other side."""
    return {i for i, j in side.places.items() if j not in other.places.values()}


def _pairs(value: Value) -> Iterator[_Pair]:
    dims = value.dims_of(Fact.OUTER)
    numbers = {part.axis for parts in dims for part in parts}
    for k in sorted({number // 2 for number in numbers}):
        one, other = (
            {i: part.size for i, parts in enumerate(dims) for part in parts if part.axis == number}
            for number in (2 * k, 2 * k + 1)
        )
        yield one, other


def _outer(pairs: Sequence[_Pair], ndim: int) -> dict[int, Origin]:
    dims: list[tuple[Part, ...]] = [()] * ndim
    for k, pair in enumerate(p for p in pairs if all(p)):
        for side in (0, 1):
            for i, n in pair[side].items():
                dims[i] = (*dims[i], Part(2 * k + side, 1, n, n))
    return {Fact.OUTER: Origin(Kind.DIRECT, tuple(dims))} if any(dims) else {}
