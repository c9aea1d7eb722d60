"""Where the weight vectors lie in a parameter (Section 1.1).

A *weight vector* is the incoming weights of one neuron. A spec names the axis or axes along which
a vector runs, every other axis enumerates vectors, and `None` leaves a parameter alone::

    (in, out)      axes 0        out vectors of in weights       a dense layer
    (*k, in, out)  axes 0..k     out vectors of prod(k) * in     a convolution
"""

import dataclasses
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeAlias

import jax
import numpy as np

Path: TypeAlias = tuple[str, ...]
Axes: TypeAlias = int | Sequence[int] | None
VectorRule: TypeAlias = Callable[[Path, Any], Axes]
VectorSpec: TypeAlias = VectorRule | Any  # a rule, or a (prefix) tree of axes

_FLOATS = ("float16", "bfloat16", "float32", "float64")
_Struct: Any = jax.ShapeDtypeStruct  # JAX leaves its constructor untyped.

# What Linen (ScanBlock_0, VmapBlock_0) and Haiku call a stack of layers that got no name.
_STACK = re.compile(r"\b(Scan|Vmap)(?=[A-Z])|__layer_stack")


def path_names(key_path: Sequence[Any]) -> Path:
    """Turns a JAX key path into plain names.

    A Flax nnx `Variable` adds the attribute `.value` to the path of the array it holds, so `init`
    (given Variables) and `update` (given pure arrays) would see different paths; so does Linen's
    `Partitioned`. A last *attribute* named `value` is therefore dropped; a last dict key is not.

    Args:
        key_path: A path as `jax.tree_util.tree_leaves_with_path` gives it.

    Returns:
        Dict keys, attribute names and indices as strings.

    Example:
        >>> tree = {"layers": [{"kernel": 1.0}]}
        >>> [path_names(p) for p, _ in jax.tree_util.tree_leaves_with_path(tree)]
        [('layers', '0', 'kernel')]
    """
    boxed = len(key_path) > 0 and _is_box(key_path[-1])
    return tuple(_name(key) for key in (key_path[:-1] if boxed else key_path))


def flax_vectors(path: Path, leaf: Any) -> Axes:
    """The rule for Flax, Linen and nnx, and for bare arrays: a kernel's inputs precede its outputs.

    The first line that fits decides. *Module* is the closest name before the parameter's own that
    is not an index; names are compared without regard to case.

    =================================================  ====  ======================================
    name                                               rank  axes
    =================================================  ====  ======================================
    any                                                0, 1  None
    `bias`, `scale`, or containing `embed`             any   None
    `kernel`; `w`, `w1`, `weights`; unnamed (indexed)  2     0
    `kernel` below an unnamed scan or vmap             3+    *error*: use `stacked`
    `kernel`, module `...conv...transpose`, `deconv`   3+    *error*: both layouts are possible
    `kernel`, module `...conv...local...`              3+    -2
    `kernel`, module `...conv...`                      3+    all but the last
    `kernel`, attention's `query`, `key`, `value`      3     0
    `kernel`, attention's `out`                        3     0, 1
    anything else                                      2+    *error*: which axes?
    =================================================  ====  ======================================

    Attention means that a name on the path contains `att` or `mha`. A stack of layers under a name
    of your own (`nn.scan(Block, ...)(name="blocks")`, `nnx.vmap`) looks like a single layer with
    one more dimension: wrap the rule in `stacked` for such paths.

    Args:
        path: The parameter's path, as `path_names` gives it.
        leaf: The parameter, or anything with its `shape`.

    Returns:
        The axes of a weight vector, or None.

    Raises:
        ValueError: If name and shape do not tell where the vectors lie.

    Example:
        >>> flax_vectors(("Conv_0", "kernel"), jax.ShapeDtypeStruct((3, 3, 8, 16), "float32"))
        (0, 1, 2)
    """
    name, module = _last_names(path)
    rank = np.ndim(leaf)
    unnamed = not path or path[-1].isdigit()
    if rank <= 1 or name in ("bias", "scale") or "embed" in name:
        return None
    if rank == 2 and (unnamed or name == "kernel" or re.fullmatch(r"w(eights)?_?\d*", name)):
        return 0
    if name == "kernel":
        _refuse_stack("flax_vectors", path, leaf)
        if "conv" in module and ("transpose" in module or "deconv" in module):
            first, second = _all_but(-1, rank), _all_but(-2, rank)
            why = f"{second} if it has transpose_kernel=True, {first} if not"
            raise _unknown("flax_vectors", path, leaf, first, why)
        if "conv" in module:
            return -2 if "local" in module else _all_but(-1, rank)
        if rank == 3 and re.search("att|mha", "/".join(path).lower()):
            if module in ("query", "key", "value"):
                return 0
            if module == "out":
                return 0, 1
    raise _unknown("flax_vectors", path, leaf, _all_but(-1, rank))


def equinox_vectors(path: Path, leaf: Any) -> Axes:
    """The rule for Equinox, whose weights have their outputs first.

    The first line that fits decides; *module* as in `flax_vectors`.

    =================================================  ====  ======================================
    name                                               rank  axes
    =================================================  ====  ======================================
    any                                                0, 1  None
    `bias`, containing `embed`, or module `...norm...` any   None
    `weight`, module `...embed...`                     2     None
    `weight`, `weight_ih`, `weight_hh`                 2     1
    `weight`, module `...conv...`                      3+    all but 0
    `weight` of a layer kept in a list or tuple        4+    all but 0
    anything else                                      2+    *error*: which axes?
    =================================================  ====  ======================================

    A path shows attribute names, not classes. An `Embedding` or a multi-dimensional `LayerNorm`
    that is an item of a list, or has a name that hides what it is, looks like a `Linear` or a
    `Conv`; convolutions stacked by `eqx.filter_vmap` look like convolutions of one more dimension.
    Say `None` or `stacked` for such paths.

    Args:
        path: The parameter's path, as `path_names` gives it.
        leaf: The parameter, or anything with its `shape`.

    Returns:
        The axes of a weight vector, or None.

    Raises:
        ValueError: If name and shape do not tell where the vectors lie.

    Example:
        >>> equinox_vectors(("mlp", "layers", "0", "weight"), np.zeros((16, 8)))
        1
    """
    name, module = _last_names(path)
    rank = np.ndim(leaf)
    if rank <= 1 or name == "bias" or "embed" in name or "norm" in module:
        return None
    if rank == 2 and name in ("weight", "weight_ih", "weight_hh"):
        return None if "embed" in module else 1
    # In a list, rank 3 stays open: an ensemble of MLPs and a list of Conv1d are equally common.
    in_list = len(path) > 1 and path[-2].isdigit()
    if name == "weight" and rank >= 3 and ("conv" in module or (in_list and rank >= 4)):
        return _all_but(0, rank)
    raise _unknown("equinox_vectors", path, leaf, _all_but(0, rank))


def haiku_vectors(path: Path, leaf: Any) -> Axes:
    """The rule for Haiku: inputs precede outputs, except in a transposed convolution.

    The first line that fits decides; *module* is the last part of Haiku's module name.

    =================================================  ====  ======================================
    name                                               rank  axes
    =================================================  ====  ======================================
    any                                                0, 1  None
    `b`, `scale`, `offset`, or containing `embed`      any   None
    `w`, `w_i`, `w_h`                                  2     0
    `w` below an unnamed `layer_stack`                 3+    *error*: use `stacked`
    `w`, module `...conv...transpose...`               3+    all but -2
    `w`, module `...conv...` but not `...deconv...`    3+    all but the last
    anything else                                      2+    *error*: which axes?
    =================================================  ====  ======================================

    Args:
        path: The parameter's path, as `path_names` gives it.
        leaf: The parameter, or anything with its `shape`.

    Returns:
        The axes of a weight vector, or None.

    Raises:
        ValueError: If name and shape do not tell where the vectors lie.

    Example:
        >>> haiku_vectors(("net/~/conv2_d_transpose", "w"), np.zeros((3, 3, 16, 8)))
        (0, 1, 3)
    """
    name, module = _last_names(path)
    rank = np.ndim(leaf)
    if rank <= 1 or name in ("b", "scale", "offset") or "embed" in name:
        return None
    if rank == 2 and name in ("w", "w_i", "w_h"):
        return 0
    if name == "w":
        _refuse_stack("haiku_vectors", path, leaf)
        if "conv" in module and "transpose" in module:
            return _all_but(-2, rank)
        if "conv" in module and "deconv" not in module:
            return _all_but(-1, rank)
    raise _unknown("haiku_vectors", path, leaf, _all_but(-1, rank))


def stacked(rule: VectorRule, axis: int = 0) -> VectorRule:
    """A rule for layers that a scan or vmap has stacked along one more axis.

    `rule` is asked about one layer of the stack; the stack's axis is never part of a vector. Use
    it for the paths of the stack only: elsewhere it would take a parameter's own axis for it.

    Args:
        rule: The rule of a single layer. Linen's `Scan`/`Vmap` and Haiku's `__layer_stack`, where
            they are the only sign of the stack, are taken off the path it is given.
        axis: The stack's axis in the parameter.

    Returns:
        The rule of the stack.

    Raises:
        TypeError: If `axis` is not an integer; the rule, if `rule` does not give axes.
        ValueError: The rule, if a parameter has no such axis, or `rule` gives axes it lacks.

    Example:
        >>> def vectors(path, leaf):
        ...     rule = stacked(flax_vectors) if "blocks" in path else flax_vectors
        ...     return rule(path, leaf)
        >>> vectors(("blocks", "Dense_0", "kernel"), np.zeros((12, 64, 128)))
        (1,)
    """
    if not _is_index(axis):
        raise TypeError(f"axis: the axis of the stack must be an int, not {axis!r}.")

    return _Stacked(rule, axis)


@dataclasses.dataclass(frozen=True)
class _Stacked:
    """Not a closure: rules are compared, since they are part of an optimizer state's structure."""

    rule: VectorRule
    axis: int

    def __call__(self, path: Path, leaf: Any) -> Axes:
        shape = np.shape(leaf)
        (stack,) = _positions(self.axis, path, leaf, "the stack's axis")
        layer = _Struct(shape[:stack] + shape[stack + 1 :], leaf.dtype)
        marked = next((i for i, name in enumerate(path) if _STACK.search(name)), None)
        inner = tuple(_STACK.sub("", n, 1) if i == marked else n for i, n in enumerate(path))
        axes = self.rule(inner, layer)
        if axes is None:
            return None
        return tuple(a + (a >= stack) for a in _positions(axes, inner, layer))


def vector_axes(vectors: VectorSpec, tree: Any) -> tuple[tuple[int, ...] | None, ...]:
    """Resolves a spec: the axes of the weight vectors of every leaf of a tree.

    The spec is a rule `(path, leaf) -> axes`, or a tree of axes that is a prefix of `tree`: an int,
    a tuple or list of ints, None or a rule stands for all that lies below it. The nodes are matched
    by the names of their children, not by type: a dict fits an nnx `State`, with its Variables or
    without. A tuple or list is structure where `tree` has a tuple or list (or nnx `List`) there,
    and axes anywhere else. A node of `tree` without leaves (`optax.MaskedNode()`, None) fits
    anything and yields nothing.

    Args:
        vectors: The spec.
        tree: Parameters, or anything of their structure, shapes and dtypes.

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
    for key_path, leaf, spec in _pair(vectors, tree, ()):
        path = path_names(key_path)
        axes = spec(path, leaf) if callable(spec) else spec
        resolved.append(None if axes is None else _positions(axes, path, leaf))
        if axes is not None and leaf.dtype.name not in _FLOATS:
            raise TypeError(
                f"vectors: axes {axes!r} for {_show(path)} of shape {np.shape(leaf)}: it has dtype "
                f"{leaf.dtype.name}, and weights are {', '.join(_FLOATS)}. Give it None."
            )
    return tuple(resolved)


@jax.tree_util.register_static
class Remembered:
    """A spec inside an optimizer's state: no leaf, but part of the structure, hence static.

    It is the spec and not the axes it resolves to, because `optax.tree.map_params` initializes the
    state once more with a placeholder for the parameters and wants the same structure back.
    """

    def __init__(self, spec: VectorSpec):
        self.spec = spec
        leaves, treedef = jax.tree.flatten(spec, is_leaf=lambda node: node is None)
        self._key = (tuple(leaves), treedef)
        # Flax's own checkpoints know no static nodes, and nobody else could tell them.
        flax = sys.modules.get("flax.serialization")
        if flax is not None:
            flax.register_serialization_state(
                Remembered, lambda node: {}, lambda node, _: node, override=True
            )

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Remembered) and self._key == other._key

    def __hash__(self) -> int:
        return hash(self._key)

    def __repr__(self) -> str:
        return f"Remembered({getattr(self.spec, '__name__', self.spec)})"


def _pair(spec: Any, tree: Any, at: tuple[Any, ...]) -> Iterator[tuple[Any, Any, Any]]:
    """Yields every leaf of `tree` with its key path and the rule or axes that `spec` has for it."""
    spec, tree = _unbox(spec), _unbox(tree)
    parts, nodes = _children(spec), _children(tree)
    names = [_name(key) for key, _ in nodes]
    is_sequence = isinstance(tree, tuple | list) or (nodes and all(n.isdigit() for n in names))
    is_axes = isinstance(spec, tuple | list) and not is_sequence
    # An Equinox module is callable too: as the tree of axes of such a module, it is not a rule.
    is_rule = callable(spec) and type(spec) is not type(tree)
    if is_rule or is_axes or not parts or not nodes:
        for key_path, leaf in jax.tree_util.tree_leaves_with_path(tree):
            yield at + key_path, leaf, spec
    elif jax.tree.leaves(tree):
        by_name = {_name(key): part for key, part in parts}
        if by_name.keys() != set(names):
            where = _show(path_names(at))
            raise ValueError(
                f"vectors: the tree of axes does not match the parameters at {where}: they have "
                f"{names}, vectors has {list(by_name)}. Give every one of them an entry (None for "
                "'not permuted'), or a single one for all that lies here. Where the parameters "
                "have a tuple or list, a tuple or list of axes is taken to be that one."
            )
        for key, node in nodes:
            yield from _pair(by_name[_name(key)], node, (*at, key))


def _children(node: Any) -> list[tuple[Any, Any]]:
    """The keys and children one level below a node; a leaf has none."""
    below, _ = jax.tree_util.tree_flatten_with_path(node, is_leaf=lambda x: x is not node)
    return [(key_path[0], child) for key_path, child in below if key_path]


def _unbox(node: Any) -> Any:
    """Takes an array, or the axes that a spec has for it, out of an nnx Variable."""
    children = _children(node)
    if len(children) == 1 and _is_box(children[0][0]):
        child = children[0][1]
        return child if isinstance(child, tuple | list) or not _children(child) else node
    return node


def _is_box(key: Any) -> bool:
    return isinstance(key, jax.tree_util.GetAttrKey) and key.name == "value"


def _name(key: Any) -> str:
    for attribute in ("key", "name", "idx"):
        if hasattr(key, attribute):
            return str(getattr(key, attribute))
    return str(key)


def _last_names(path: Path) -> tuple[str, str]:
    """The names of a parameter and of the module that has it, past the indices in a list."""
    names = [n for n in "/".join(path).lower().split("/") if not n.isdigit()]
    return names[-1] if names else "", names[-2] if len(names) > 1 else ""


def _all_but(axis: int, rank: int) -> tuple[int, ...]:
    return tuple(a for a in range(rank) if a != axis % rank)


def _is_index(value: Any) -> bool:
    return isinstance(value, int | np.integer) and not isinstance(value, bool)


def _positions(axes: Any, path: Path, leaf: Any, what: str = "axes") -> tuple[int, ...]:
    """Checks the axes given for a leaf, and makes them non-negative and ascending."""
    rank = np.ndim(leaf)
    given = f"vectors: {what} {axes!r} for {_show(path)} of shape {np.shape(leaf)}"
    axes = tuple(axes) if isinstance(axes, tuple | list | range) else (axes,)
    if not all(map(_is_index, axes)):
        raise TypeError(f"{given}: give an int, a tuple or list of ints, or None.")
    if not axes:
        raise ValueError(f"{given}: give at least one axis, or None for 'not permuted'.")
    if not all(-rank <= a < rank for a in axes):
        right = f"its axes are {-rank} to {rank - 1}" if rank else "a scalar has none, give it None"
        raise ValueError(f"{given}: {right}.")
    positions = tuple(sorted({int(a) % rank for a in axes}))
    if len(positions) < len(axes):
        raise ValueError(f"{given}: an axis is named twice, write {positions}.")
    return positions


def _refuse_stack(rule: str, path: Path, leaf: Any) -> None:
    """Stops where an axis of a kernel may be that of a stack."""
    if any(map(_STACK.search, path)):
        why = "by a name on its path it may be a stack of layers (if it is not, give its axes)"
        raise _unknown(rule, path, leaf, f"p2t_jax.stacked(p2t_jax.{rule})(path, leaf)", why)


def _unknown(
    rule: str,
    path: Path,
    leaf: Any,
    right: tuple[int, ...] | str,
    why: str = "its name and rank fit no layer that the rule knows, or more than one",
) -> ValueError:
    """The error of a rule that does not know a leaf, with the code that tells it."""
    return ValueError(
        f"vectors: {rule} does not know which axes of {_show(path)}, of shape {np.shape(leaf)}, "
        f"are the incoming weights of one neuron: {why}. Give their axes, or None to leave it "
        "alone, in a rule of your own, for example\n\n"
        "    def vectors(path, leaf):\n"
        f"        if path[-2:] == {path[-2:]!r}:\n"
        f"            return {right}\n"
        f"        return p2t_jax.{rule}(path, leaf)\n\n"
        "For a stack of layers there is p2t_jax.stacked; for other frameworks there are "
        "p2t_jax.flax_vectors, p2t_jax.equinox_vectors and p2t_jax.haiku_vectors."
    )


def _show(path: Path) -> str:
    return "/".join(path) or "the root of the tree"
