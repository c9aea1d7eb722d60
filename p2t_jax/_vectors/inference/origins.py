"""What is known of a value in a traced program.

That is whether it depends on the inputs, and how its dimensions come from the axes of parameters.
A dimension is made of `Part`s of axes, the first varying slowest. Reshaping splits an axis of size
n into parts (its index is `stride * i + j`) and merges them again; the axis is whole where all of
its parts are.
"""

import enum
import math
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import NamedTuple, TypeAlias


class Part(NamedTuple):
    """The digit `(index // stride) % size` of the index along an axis; size 0: not all of it."""

    axis: int
    stride: int
    size: int
    total: int


Dims: TypeAlias = tuple[tuple[Part, ...], ...]


class Slice(NamedTuple):
    """What was taken of a parameter, where it is not all of it, or where it was put.

    Two values that have the same origins are the same elements only if these are equal, too.

    Attributes:
        where: its indices.
        axes: the axes that are not all there, or not in their order.
        at: for padding, the first index and the one after the last along each dimension.
    """

    where: str
    axes: tuple[int, ...] = ()
    at: tuple[tuple[int, int], ...] = ()


class Kind(enum.StrEnum):
    """How a value is made of a parameter."""

    # These depend on the parameters alone:
    DIRECT = "direct"  # element by element
    GAIN = "gain"  # element by element, but broadcast along axes that another parameter has
    MIXED = "mixed"  # in a way that does not follow its axes
    # and these on the inputs, too; what it is used for decides:
    PRODUCT = "product"  # multiplied by something
    SUMMED = "summed"  # a slice of it, multiplied by something, as one term of a sum
    ACCUMULATED = "accumulated"  # several slices of it, multiplied by something, summed
    LOOKED_UP = "looked up"  # some of its rows
    CHOSEN = "chosen"  # it or another, as a condition says
    JOINED = "joined"  # next to something


class Origin(NamedTuple):
    """How a value is made of one parameter.

    Attributes:
        kind: how.
        dims: for each dimension, the parts of the parameter's axes that it is made of.
        slices: which slices of the parameter it is, where it is not all of it.
        why: for MIXED, what it went through.
        spread: for MIXED, whether it is the same along a dimension, as a mean or a norm is. A
            parameter that it scales or shifts keeps its axes.
    """

    kind: Kind
    dims: Dims
    slices: tuple[Slice, ...] = ()
    why: str = ""
    spread: bool = False

    @classmethod
    def mixed(cls, why: str) -> "Origin":
        """An origin whose axes are lost."""
        return cls(Kind.MIXED, (), why=why)

    def mapped(self, change: Callable[[Dims], Dims]) -> "Origin":
        """The origin with other dimensions."""
        return self if self.kind == Kind.MIXED else self._replace(dims=change(self.dims))

    def axes(self, dimensions: Collection[int]) -> tuple[int, ...]:
        """The axes that some dimensions are made of, or parts of these."""
        return tuple(sorted({part.axis for i in dimensions for part in self.dims[i]}))

    @property
    def plain(self) -> bool:
        """Whether the value follows its axes, and there are no data in it."""
        return self.kind in (Kind.DIRECT, Kind.GAIN)

    @property
    def waits(self) -> bool:
        """Whether data are in the value, and what is done with it decides."""
        return not self.plain and self.kind != Kind.MIXED


class Fact(enum.IntEnum):
    """What else is followed, like the origin in a parameter, whose index is not negative."""

    ZERO = -6  # all of it is 0
    OUTER = -5  # a product of two values that depend on inputs, along dimensions of their own
    TRUTH = -4  # each number is 0 or 1
    FLAT = -3  # numbers that are the same along a dimension
    IOTA = -2  # numbers 0 to n - 1 along a dimension
    ONE_HOT = -1  # a 1 and zeros along a dimension


class Value(NamedTuple):
    """What is known of a value: whether it depends on the inputs, and its origins by parameter.

    A parameter is its index. Negative numbers stand for each `Fact`, and `contracted(p)` for the
    axes that parameter p has left where it has been contracted.
    """

    depends: bool
    origins: tuple[tuple[int, Origin], ...] = ()

    @classmethod
    def of(cls, depends: bool, origins: Mapping[int, Origin]) -> "Value":
        """A value with its origins by number."""
        return cls(depends, tuple(sorted(origins.items())))

    def each(self, change: Callable[[Origin], Origin]) -> "Value":
        """The value with other origins, where these follow axes."""
        changed = ((p, o if o.kind == Kind.MIXED else change(o)) for p, o in self.origins)
        return self._replace(origins=tuple(changed))

    def mapped(self, change: Callable[[Dims], Dims]) -> "Value":
        """The value with other dimensions."""
        return self.each(lambda origin: origin.mapped(change))

    def without(self, gone: Collection[int]) -> "Value":
        """The value without some of its dimensions."""
        return self.mapped(lambda dims: tuple(d for i, d in enumerate(dims) if i not in gone))

    @property
    def parameters(self) -> list[tuple[int, Origin]]:
        """The origins in parameters."""
        return [(p, o) for p, o in self.origins if p >= 0]

    @property
    def neurons(self) -> list[tuple[int, Origin]]:
        """The axes that are left of parameters that were contracted: they enumerate neurons."""
        return [(p, o) for p, o in self.origins if is_contracted(p)]

    def dims_of(self, fact: Fact) -> Dims:
        """The dimensions of a fact; none where it is not one."""
        return next((o.dims for p, o in self.origins if p == fact), ())


CONSTANT, DATA = Value(False), Value(True)


def contracted(p: int) -> int:
    """The number that stands for parameter p after its contraction; of that number, p."""
    return -10 - p


def is_contracted(p: int) -> bool:
    """Whether a number stands for a parameter that has been contracted."""
    return p <= -10


def parameter(shape: Sequence[int]) -> Origin:
    """A parameter as it is."""
    return Origin(Kind.DIRECT, tuple((Part(a, 1, n, n),) for a, n in enumerate(shape)))


def placed(places: Mapping[int, int], ndim: int, dims: Dims) -> Dims:
    """Dimensions at their places among `ndim`; those that have none are left out."""
    out: list[tuple[Part, ...]] = [()] * ndim
    for i, j in places.items():
        out[j] = dims[i]
    return tuple(out)


def cut(parts: Sequence[Part]) -> tuple[Part, ...]:
    """A dimension that has not all of its axes."""
    return tuple(Part(axis, 0, 0, 0) for axis in sorted({part.axis for part in parts}))


def whole_axes(parts: Sequence[Part]) -> tuple[set[int], set[int]]:
    """The axes that are whole, and those that are there in part."""
    axes: dict[int, set[Part]] = {}
    for part in parts:
        axes.setdefault(part.axis, set()).add(part)
    whole = {
        axis
        for axis, those in axes.items()
        if all(p.stride for p in those)
        and math.prod(p.size for p in those) == next(iter(those)).total
    }
    return whole, axes.keys() - whole


def reshaped(old: Sequence[int], new: Sequence[int]) -> Callable[[Dims], Dims]:
    """What a reshape does to dimensions."""
    if 0 in old:
        return lambda dims: (cut([part for parts in dims for part in parts]),) * len(new)
    groups = _groups(old, new)

    def change(dims: Dims) -> Dims:
        out: list[tuple[Part, ...]] = [()] * len(new)
        for before, after in groups:
            sizes = [new[i] for i in after]
            parts = _split([(old[i], dims[i]) for i in before], sizes)
            for i, those in zip(after, parts, strict=True):
                out[i] = those
        return tuple(out)

    return change


def _groups(old: Sequence[int], new: Sequence[int]) -> list[tuple[range, range]]:
    """The least groups of old and new dimensions that have the same elements."""
    groups: list[tuple[range, range]] = []
    i = j = 0
    while i < len(old) or j < len(new):
        first, other = i, j
        if i < len(old) and j < len(new) and old[i] == new[j]:
            i, j = i + 1, j + 1
        elif i < len(old) and old[i] == 1:
            i += 1
        elif j < len(new) and new[j] == 1:
            j += 1
        else:
            a = b = 1
            while i == first or a != b:
                if a <= b:
                    a, i = a * old[i], i + 1
                else:
                    b, j = b * new[j], j + 1
        groups.append((range(first, i), range(other, j)))
    return groups


def _split(before: list[tuple[int, tuple[Part, ...]]], sizes: list[int]) -> list[tuple[Part, ...]]:
    """Shares the parts of some dimensions among dimensions of other sizes."""
    everything = [part for _, parts in before for part in parts]
    if len(sizes) <= 1:
        return [tuple(everything) for _ in sizes]
    sized = all(math.prod(p.size for p in parts) == size for size, parts in before if parts)
    if not sized or not all(part.stride for part in everything):
        return [cut(everything)] * len(sizes)
    digits: list[tuple[int, Part | None]] = []
    for size, parts in before:
        digits += [(part.size, part) for part in parts] or [(size, None)]
    found: list[tuple[Part, ...]] = []
    for size in sizes:
        here: list[Part] = []
        while size > 1 and digits:
            n, part = digits.pop(0)
            taken = n if size % n == 0 else size if n % size == 0 else 0
            if not taken:
                return [cut(everything)] * len(sizes)
            rest = n // taken
            if part is not None:
                here.append(part._replace(stride=part.stride * rest, size=taken))
            if rest > 1:
                digits.insert(0, (rest, part and part._replace(size=rest)))
            size //= taken
        found.append(tuple(here))
    found[-1] += tuple(part for _, part in digits if part is not None)  # of size 1
    return found
