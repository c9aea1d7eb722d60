"""Rules by name, for when there is no function to infer from: Flax, Equinox and Haiku.

They ask where a name and a shape fit more than one layer, and are never to be wrong.
"""

import dataclasses
import re
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from p2t_jax._vectors.ask import UnknownVectorsError
from p2t_jax._vectors.paths import Axes, Path, VectorRule, is_index, layer_class, positions

_Struct: Any = jax.ShapeDtypeStruct  # JAX leaves its constructor untyped.

# What Linen (ScanBlock_0, VmapBlock_0) and Haiku call a stack of layers that got no name.
_STACK = re.compile(r"\b(Scan|Vmap)(?=[A-Z])|__layer_stack")
# What Linen calls its own attention where it got no name.
_ATTENTION = re.compile(r"(MultiHeadDotProductAttention|MultiHeadAttention|SelfAttention)_\d+")
# Parameters that are added, multiplied or looked up, in any framework.
_NO_VECTORS = re.compile(
    r"scale|offset|bias|.*_bias|.*bias_table|(gating|output)_b"
    r"|(.*_)?embeddings?|(pos|position|positional)_?(emb|embed|encoding|encodings)"
    r"|cls|probe|(cls|mask|reg|register|dist|class)_tokens?|wte|wpe"
)
# Modules that may be an embedding or a linear layer, a normalization or another.
_MAYBE_EMBEDDING = re.compile(
    r"emb|(^|_)(tok|token|vocab|word|char|pos|wte|wpe|table|codebook)s?(_|$)"
)
_MAYBE_NORM = re.compile(r"norm|^(ln|bn|gn|rms)_?\d*$")
_MAYBE_TRANSPOSED = re.compile(r"trans|deconv|upconv|up_conv|conv_?up|tconv|convt")


def flax_vectors(path: Path, leaf: Any) -> Axes:
    """The rule for Flax, Linen and nnx: a kernel's inputs precede its outputs.

    The first line that fits decides. *Module* is the closest name before the parameter's own that
    is not an index; names are compared without regard to case.

    ====================================================  ====  ====================================
    name                                                  rank  axes
    ====================================================  ====  ====================================
    any                                                   0, 1  None
    `scale`, `..._bias`, `...embedding`, `cls_token`, ... any   None
    `kernel`, module `c_attn`, `c_fc`, `c_proj`           2     *error*: either order is in use
    `kernel`, `recurrent_kernel`; `w`, `w1`, `weights`    2     0
    `kernel` below an unnamed scan or vmap                3+    *error*: use `stacked`
    `kernel`, module `ConvLocal_0`                        3+    -2
    `kernel`, module `Conv_0`; `...conv...` of odd sizes  3+    all but the last
    `kernel` of sizes (1, 1), or module `...embed...`     4+    all but the last
    `kernel`, attention's `query`, `key`, `value`         3     0
    `kernel`, attention's `out`, `attention_output`       3     0, 1
    anything else                                         2+    *error*: which axes?
    ====================================================  ====  ====================================

    A convolution is asked for if its name says transposed, depthwise or local, or if its sizes are
    neither equal nor 1, which a stack of smaller ones has, too. Attention is one of Linen's own
    names (`MultiHeadDotProductAttention_0`), or a kernel in which heads times their size is the
    number of features. A stack of layers under a name of your own looks like a single layer with
    one more dimension: use `infer_vectors`, or wrap the rule in `stacked` for such paths.

    Args:
        path: The parameter's path in plain names.
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
    shape = np.shape(leaf)
    rank = len(shape)
    if rank <= 1 or _NO_VECTORS.fullmatch(name):
        return None
    if rank == 2 and re.fullmatch(r"(recurrent_)?kernel|w(eights)?_?\d*", name):
        if name == "kernel" and module in ("c_attn", "c_fc", "c_proj"):
            why = "such a kernel is (in, out) in some models and (out, in) in others"
            raise UnknownVectorsError("flax_vectors", path, leaf, why)
        return 0
    if name == "kernel":
        _refuse_stack("flax_vectors", path, leaf)
        axes = _flax_convolution(path, shape, module) if rank > 2 else None
        axes = axes or (_flax_attention(path, shape, module) if rank == 3 else None)
        if axes is not None:
            return axes
    raise _unknown("flax_vectors", path, leaf)


def _flax_convolution(path: Path, shape: tuple[int, ...], module: str) -> Axes:
    rank, sizes = len(shape), shape[:-2]
    own_name = next((n for n in reversed("/".join(path).split("/")[:-1]) if not n.isdigit()), "")
    if re.fullmatch(r"ConvLocal_\d+", own_name):
        return -2
    if re.fullmatch(r"Conv_\d+", own_name) and _one_size(sizes):
        return _all_but(-1, rank)
    if _MAYBE_TRANSPOSED.search(module) or re.search("local|depthwise|separable", module):
        return None
    odd = all(size % 2 for size in sizes)  # ConvLocal has the sizes of its output there.
    if "conv" in module and odd and _one_size(sizes):
        return _all_but(-1, rank)
    modules = "/".join(path[-3:-1]).lower()
    patches = re.search("patch|embed|stem", modules) and not re.search("^un|_un|^de|out", module)
    if rank >= 4 and (set(sizes) == {1} or (patches and _one_size(sizes[-2:]))):
        return _all_but(-1, rank)
    return None


def _flax_attention(path: Path, shape: tuple[int, ...], module: str) -> Axes:
    names = "/".join(path).split("/")
    if not re.search("att|mha", "/".join(path).lower()):
        return None
    linens = any(map(_ATTENTION.fullmatch, names))
    if module in ("query", "key", "value") and (linens or shape[0] == shape[1] * shape[2]):
        return 0
    if module in ("out", "attention_output") and (linens or shape[0] * shape[1] == shape[2]):
        return 0, 1
    return None


def _one_size(sizes: tuple[int, ...]) -> bool:
    """Whether these may be the sizes of a kernel, but not a stack's and those of its layers."""
    return len(set(sizes) - {1}) <= 1


def equinox_vectors(path: Path, leaf: Any) -> Axes:
    """The rule for Equinox, whose weights have their outputs first.

    Where the tree has its modules, as `eqx.filter(model, eqx.is_array)` has, the classes of
    Equinox's layers decide: `Linear`, `Conv`, `ConvTranspose`, `GRUCell`, `LSTMCell`, or a
    subclass, have weight vectors, all but axis 0 of their weights; `Embedding` and normalizations
    have none. Else, and for parameters of modules of your own, the first line that fits decides;
    *module* as in `flax_vectors`.

    ====================================================  ====  ====================================
    name                                                  rank  axes
    ====================================================  ====  ====================================
    any                                                   0, 1  None
    `..._bias`, `...embedding`, `cls_token`, ...          any   None
    any, module `...norm...`                              any   None
    `weight`, module `...emb...`, `ln`, ...               2     *error*: Linear or not
    `weight`, `weight_ih`, `weight_hh`                    2     1
    `weight`, module `...conv...`                         3     1, 2
    `weight` with equal sizes                             4+    all but 0
    anything else                                         2+    *error*: which axes?
    ====================================================  ====  ====================================

    Convolutions that `eqx.filter_vmap` has stacked look like convolutions of one more dimension:
    they are asked for, unless their sizes happen to be equal.

    Args:
        path: The parameter's path in plain names.
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
    shape = np.shape(leaf)
    rank = len(shape)
    layer = getattr(path, "layer", None)
    if rank <= 1 or (layer is None and _NO_VECTORS.fullmatch(name)):
        return None
    if layer is not None:
        return _equinox_layer(path, leaf, layer)
    if "norm" in module:
        return None
    if rank == 2 and name in ("weight", "weight_ih", "weight_hh"):
        if _MAYBE_EMBEDDING.search(module) or _MAYBE_NORM.search(module):
            why = "it may be a Linear, an Embedding or a normalization"
            raise UnknownVectorsError("equinox_vectors", path, leaf, why)
        return 1
    if name == "weight" and (
        (rank == 3 and "conv" in module) or (rank >= 4 and len(set(shape[2:])) == 1)
    ):
        return _all_but(0, rank)
    raise _unknown("equinox_vectors", path, leaf)


def _equinox_layer(path: Path, leaf: Any, layer: Any) -> Axes:
    """The axes of a parameter of one of Equinox's own layers."""
    kind, name, rank = layer_class(layer), path[-1], np.ndim(leaf)
    if not name.startswith("weight") or kind not in (
        *("Linear", "Conv", "ConvTranspose", "GRUCell", "LSTMCell"),
    ):
        return None
    expected = layer.num_spatial_dims + 2 if kind in ("Conv", "ConvTranspose") else 2
    if rank != expected:
        why = f"a {kind}'s {name} has rank {expected}: it may be a stack of layers"
        raise UnknownVectorsError("equinox_vectors", path, leaf, why)
    return _all_but(0, rank)


def haiku_vectors(path: Path, leaf: Any) -> Axes:
    """The rule for Haiku: inputs precede outputs, except in a transposed convolution.

    The first line that fits decides; *module* is the last part of Haiku's module name.

    ====================================================  ====  ====================================
    name                                                  rank  axes
    ====================================================  ====  ====================================
    any                                                   0, 1  None
    `b`, `scale`, `offset`, `bias`, `...embedding`, ...   any   None
    `w`, `w_i`, `w_h`, `weights`                          2     0
    `w` below an unnamed `layer_stack`                    3+    *error*: use `stacked`
    `w`, module `...conv...transpose...`                  3+    all but -2
    `w`, module `...conv...` but not `...deconv...`       3+    all but the last
    anything else                                         2+    *error*: which axes?
    ====================================================  ====  ====================================

    Args:
        path: The parameter's path in plain names.
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
    shape = np.shape(leaf)
    rank = len(shape)
    if rank <= 1 or name == "b" or _NO_VECTORS.fullmatch(name):
        return None
    if rank == 2 and name in ("w", "w_i", "w_h", "weights"):
        return 0
    if name == "w":
        _refuse_stack("haiku_vectors", path, leaf)
        if "conv" in module and "transpose" in module and _one_size(shape[:-2]):
            return _all_but(-2, rank)
        if "conv" in module and "deconv" not in module and _one_size(shape[:-2]):
            return _all_but(-1, rank)
    raise _unknown("haiku_vectors", path, leaf)


RULES: dict[str, VectorRule] = {
    "flax": flax_vectors,
    "equinox": equinox_vectors,
    "haiku": haiku_vectors,
}


def named_rule(name: str) -> VectorRule:
    """The rule that a string stands for."""
    if name not in RULES:
        names = ", ".join(f'"{known}"' for known in RULES)
        raise ValueError(f"vectors: expected {names}, a rule or a tree of axes, got {name!r}.")
    return RULES[name]


def as_rule(vectors: VectorRule | str | Axes) -> VectorRule | Axes:
    """A rule for its name; anything else as it is."""
    return named_rule(vectors) if isinstance(vectors, str) else vectors


def named_vectors(
    table: Mapping[str, VectorRule | str | Axes], *, otherwise: VectorRule | str | Axes = "flax"
) -> VectorRule:
    """A rule from a table of names.

    A name in the table stands for the parameters whose path ends with it, "q_einsum/w" for
    ("layers", "3", "q_einsum", "w"). A `*` in it stands for any part of one name. Of several names
    that fit, the longest decides.

    Args:
        table: For each name the axes, None for what is not permuted, or a rule or its name.
        otherwise: The same for all other parameters.

    Returns:
        The rule. If nothing in a tree has one of the names, resolving it is an error.

    Raises:
        TypeError: If `table` is not a mapping from strings.

    Example:
        >>> rule = named_vectors({"cls": None, "q_einsum/w": 1}, otherwise="flax")
        >>> rule(("layers", "3", "q_einsum", "w"), np.zeros((4, 16, 6)))
        1
        >>> rule(("Dense_0", "kernel"), np.zeros((16, 6)))
        0
    """
    if not isinstance(table, Mapping) or not all(isinstance(name, str) for name in table):
        raise TypeError(f"table: expected a mapping from names to axes, got {table!r}.")
    entries = tuple(
        (name, tuple(axes) if isinstance(axes, list) else axes) for name, axes in table.items()
    )
    return NamedVectors(entries, otherwise)


@dataclasses.dataclass(frozen=True)
class NamedVectors:
    """The rule of a table; not a closure, so that rules can be compared and pickled."""

    table: tuple[tuple[str, Any], ...]
    otherwise: Any

    def __call__(self, path: Path, leaf: Any) -> Axes:
        fitting = [entry for entry in self.table if _fits(entry[0], path)]
        # Of equally long names, the one with fewer wildcards.
        fitting.sort(key=lambda entry: (entry[0].count("/"), len(entry[0].replace("*", ""))))
        axes = as_rule(fitting[-1][1] if fitting else self.otherwise)
        found: Axes = axes(path, leaf) if callable(axes) else axes
        return found

    def unused(self, paths: list[Path]) -> list[str]:
        """The names that none of the paths ends with."""
        return [name for name, _ in self.table if not any(_fits(name, path) for path in paths)]


def _fits(name: str, path: Path) -> bool:
    wanted, names = name.split("/"), "/".join(path).split("/")
    patterns = [".*".join(map(re.escape, part.split("*"))) for part in wanted]
    return len(wanted) <= len(names) and all(
        re.fullmatch(pattern, part)
        for pattern, part in zip(patterns, names[-len(wanted) :], strict=True)
    )


def stacked(rule: VectorRule | str, axis: int = 0) -> VectorRule:
    """A rule for layers that a scan or vmap has stacked along one more axis.

    `rule` is asked about one layer of the stack; the stack's axis is never part of a vector. Use
    it for the paths of the stack only: elsewhere it would take a parameter's own axis for it.

    Args:
        rule: The rule of a single layer, or its name. Linen's `Scan`/`Vmap` and Haiku's
            `__layer_stack`, where they are the only sign of the stack, are taken off the path it is
            given.
        axis: The stack's axis in the parameter.

    Returns:
        The rule of the stack.

    Raises:
        TypeError: If `axis` is not an integer; the rule, if `rule` does not give axes.
        ValueError: The rule, if a parameter has no such axis, or `rule` gives axes it lacks.

    Example:
        >>> def vectors(path, leaf):
        ...     rule = stacked("flax") if "blocks" in path else flax_vectors
        ...     return rule(path, leaf)
        >>> vectors(("blocks", "Dense_0", "kernel"), np.zeros((12, 64, 128)))
        (1,)
    """
    if not is_index(axis):
        raise TypeError(f"axis: expected the axis of the stack, an int, got {axis!r}.")
    return _Stacked(named_rule(rule) if isinstance(rule, str) else rule, axis)


@dataclasses.dataclass(frozen=True)
class _Stacked:
    """The rule of a stack; not a closure, so that rules can be compared and pickled."""

    rule: VectorRule
    axis: int

    def __call__(self, path: Path, leaf: Any) -> Axes:
        shape = np.shape(leaf)
        (stack,) = positions(self.axis, path, leaf, "the stack's axis")
        layer = _Struct(shape[:stack] + shape[stack + 1 :], leaf.dtype)
        axes = self.rule(_without_mark(path), layer)
        if axes is None:
            return None
        return tuple(a + (a >= stack) for a in positions(axes, path, layer))


def _without_mark(path: Path) -> Path:
    """The path as it is within the stack that an unnamed scan or vmap made."""
    marked = next((i for i, name in enumerate(path) if _STACK.search(name)), None)
    if marked is None:
        return path
    return tuple(_STACK.sub("", n, 1) if i == marked else n for i, n in enumerate(path))


def _last_names(path: Path) -> tuple[str, str]:
    """The names of a parameter and of the module that has it, past the indices in a list."""
    names = [n for n in "/".join(path).lower().split("/") if not n.isdigit()]
    return names[-1] if names else "", names[-2] if len(names) > 1 else ""


def _all_but(axis: int, rank: int) -> tuple[int, ...]:
    return tuple(a for a in range(rank) if a != axis % rank)


def _refuse_stack(rule: str, path: Path, leaf: Any) -> None:
    """Stops where an axis of a kernel may be that of a stack."""
    if np.ndim(leaf) > 2 and any(map(_STACK.search, path)):
        name = rule.removesuffix("_vectors")
        why = f'by its path it may be in a stack of layers; if so, p2t_jax.stacked("{name}") is it'
        raise UnknownVectorsError(rule, path, leaf, why)


def _unknown(rule: str, path: Path, leaf: Any) -> UnknownVectorsError:
    why = "its name and rank fit no layer that the rule knows, or more than one"
    return UnknownVectorsError(rule, path, leaf, why)
