"""Which axes of a parameter form its weight vectors (Section 1.1).

A *weight vector* is the incoming weights of one neuron. A spec names the axis or axes along which
a vector runs. The other axes enumerate vectors. `None` means that a parameter is not permuted::

    (in, out)      axes 0        out vectors of in weights       a dense layer
    (*k, in, out)  axes 0..k     out vectors of prod(k) * in     a convolution
"""

from collections.abc import Iterator, Mapping
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np

from p2t_jax._vectors.combine import NamedVectors
from p2t_jax._vectors.paths import (
    Path,
    VectorRule,
    below,
    children,
    key_name,
    named_leaves,
    normalized_axes,
    show,
    unboxed,
)
from p2t_jax._vectors.questions import Unknown, UnknownVectorsError, question
from p2t_jax._vectors.rules import RULES, as_rule

VectorSpec: TypeAlias = VectorRule | str | Any  # a rule, its name, or a (prefix) tree of axes

FLOATS = ("float16", "bfloat16", "float32", "float64")


def vector_axes(vectors: VectorSpec, tree: Any) -> tuple[tuple[int, ...] | None, ...]:
    """Resolves a spec: the axes of the weight vectors of every leaf of a tree.

    The spec is a rule `(path, leaf) -> axes`, the name of one ("flax", "equinox" or "haiku"), or a
    tree of axes that is a prefix of `tree`: an int, a tuple or list of ints, None, a rule or its
    name stands for the whole subtree. Nodes are matched by the names of their children, not by
    type: a dict fits an nnx `State`, with its Variables or without. A tuple or list is structure
    where `tree` has a tuple or list (or nnx `List`), and axes anywhere else. A node of `tree`
    without leaves (`optax.MaskedNode()`, None) fits anything and yields nothing.

    Returns:
        For each of `jax.tree.leaves(tree)` the axes, non-negative and ascending, or None.

    Raises:
        TypeError: If axes are not integers, or a leaf with axes is not of a floating dtype.
        ValueError: If a leaf lacks an axis, has it twice or has none; if the trees do not match; if
            a rule does not know a leaf.

    Example:
        >>> params = {"conv": np.zeros((3, 3, 8, 16)), "dense": (np.zeros((4, 2)), np.zeros(2))}
        >>> vector_axes({"conv": (0, 1, -2), "dense": (0, None)}, params)
        ((0, 1, 2), (0,), None)
    """
    resolved = []
    unknown: list[Unknown] = []
    who: dict[str, str] = {}
    paths: dict[Any, list[Path]] = {}
    for path, leaf, spec in match_prefix(vectors, tree):
        if isinstance(spec, NamedVectors):
            paths.setdefault(spec, []).append(path)
        try:
            resolved.append(axes_of(spec, path, leaf))
        except UnknownVectorsError as error:
            unknown.append(error.unknown)
            who.setdefault(error.rule, _as_argument(spec))
    if unknown:
        verb = "does not know" if len(who) == 1 else "do not know"
        raise ValueError(question(f"{' and '.join(who)} {verb}", unknown, next(iter(who.values()))))
    for table, those in paths.items():
        unused = table.unused(those)
        if unused and not _has_gaps(tree):
            raise ValueError(
                f"vectors: no parameter has a path that ends with {' or '.join(unused)}. The paths "
                f"are {', '.join(map(show, those))}."
            )
    return tuple(resolved)


def _as_argument(spec: Any) -> str:
    """How the code that an error proposes writes a rule."""
    known = {rule: name for name, rule in RULES.items()}
    name = spec if isinstance(spec, str) else known.get(spec)
    return f'"{name}"' if name else "vectors"


def _has_gaps(tree: Any) -> bool:
    """Whether parameters are left out, as `optax.masked` leaves `MaskedNode`s in their place."""

    def is_gap(node: Any) -> bool:
        return type(node) not in (dict, list, tuple) and not jax.tree.leaves(node)

    return any(map(is_gap, jax.tree.leaves(tree, is_leaf=is_gap)))


def axes_of(spec: Any, path: Path, leaf: Any) -> tuple[int, ...] | None:
    """The axes that a rule, its name, or axes give a leaf."""
    rule = as_rule(spec)
    try:
        axes = rule(path, leaf) if callable(rule) else rule
    except UnknownVectorsError:
        if not jnp.issubdtype(leaf.dtype, jnp.inexact):
            return None  # A counter, a table of indices, a random key: no layer has such weights.
        raise
    if axes is None:
        return None
    found = normalized_axes(axes, path, leaf)
    if leaf.dtype.name not in FLOATS:
        raise TypeError(
            f"vectors: axes {axes!r} for {show(path)} of shape {np.shape(leaf)}: expected a "
            f"dtype of {', '.join(FLOATS)}, got dtype {leaf.dtype.name}. Give it None, or leave it "
            "out of params."
        )
    return found


def match_prefix(
    spec: Any, tree: Any, name: str = "vectors", at: Path = ()
) -> Iterator[tuple[Path, Any, Any]]:
    """Yields the path and leaf of every leaf of `tree`, and the entry of a (prefix) tree for it.

    `spec` is a tree of rules, of axes or of anything else, or one entry for the whole tree. `name`
    is the argument that it came in, and `at` the path of both, for the error if they do not match.
    """
    spec, tree = unboxed(spec), unboxed(tree)
    parts, nodes = children(spec), children(tree)
    names = [key_name(key) for key, _ in nodes]
    is_sequence = isinstance(tree, tuple | list) or (nodes and all(n.isdigit() for n in names))
    is_axes = isinstance(spec, tuple | list) and not is_sequence
    # A module of Equinox or nnx may be callable, too: as a tree of axes, it is not a rule.
    is_module = bool(parts) and not isinstance(spec, Mapping | tuple | list)
    is_rule = callable(spec) and not is_module
    if is_rule or is_axes or not parts or not nodes:
        for path, leaf in named_leaves(tree):
            yield below(at, path), leaf, spec
    elif jax.tree.leaves(tree):
        by_name = {key_name(key): part for key, part in parts}
        if is_module:  # it may have more than parameters: running statistics, random keys
            by_name = {key: part for key, part in by_name.items() if key in names}
        if by_name.keys() != set(names):
            raise ValueError(
                f"{name}: does not match params at {show(at)}: expected {names}, got "
                f"{list(by_name)}. Give each an entry, which may be None, or a single entry for "
                "the whole subtree. Inside a tuple or list of parameters, a tuple is read as "
                "structure, not as axes."
            )
        for key, node in nodes:
            yield from match_prefix(by_name[key_name(key)], node, name, (*at, key_name(key)))
