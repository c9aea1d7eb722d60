"""Rules by name, for when there is no function to infer from: Flax, Equinox and Haiku.

Where a name and a shape fit more than one layer, a rule asks: it must never be wrong.
"""

import re
from typing import Any

import numpy as np

from p2t_jax._vectors.paths import AxesLike, Path, VectorRule, layer_class
from p2t_jax._vectors.questions import UnknownVectorsError

# What Linen (ScanBlock_0, VmapBlock_0) and Haiku call a stack of layers that got no name.
STACK_MARK = re.compile(r"\b(Scan|Vmap)(?=[A-Z])|__layer_stack")
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
_NO_LAYER = "its name and rank fit no layer that the rule knows, or more than one"


def flax_vectors(path: Path, leaf: Any) -> AxesLike:
    """The rule for Flax, Linen and nnx: a kernel's inputs precede its outputs.

    The first line that fits decides. *Module* is the closest name before the parameter's own that
    is not an index; names are compared without regard to case.

    ====================================================  ====  ====================================
    name                                                  rank  axes
    ====================================================  ====  ====================================
    any                                                   0, 1  None
    `scale`, `..._bias`, `...embedding`, `cls_token` ...  any   None
    any, module `...einsum...`                            2+    *error*: its axes are your choice
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

    The rule raises an error for a convolution whose name says transposed, depthwise or local. It
    does so too if the sizes are neither equal nor 1, since a stack of smaller convolutions looks
    the same. Attention is recognized by one of Linen's own names (`MultiHeadDotProductAttention_0`)
    or by a kernel in which heads times their size is the number of features. A stack of layers
    under a name of your own looks like a single layer with one more dimension: use `infer_vectors`,
    or wrap the rule in `stacked` for such paths. Nor can a name of your own tell what the layer is:
    a kernel of rank 2 is taken for that of a Dense, although it may be that of an `Einsum`, and a
    convolution for one that is not transposed.

    Args:
        path: the parameter's path in plain names.
        leaf: the parameter, or anything with its `shape`.

    Returns:
        The axes of a weight vector, or None.

    Raises:
        ValueError: If name and shape do not determine the axes.

    Example:
        >>> flax_vectors(("Conv_0", "kernel"), np.zeros((3, 3, 8, 16)))
        (0, 1, 2)
    """
    name, module = _last_names(path)
    shape = np.shape(leaf)
    ndim = len(shape)
    if ndim <= 1 or _NO_VECTORS.fullmatch(name):
        return None
    _refuse_einsum("flax_vectors", path, leaf, module)
    if ndim == 2 and re.fullmatch(r"(recurrent_)?kernel|w(eights)?_?\d*", name):
        if name == "kernel" and module in ("c_attn", "c_fc", "c_proj"):
            why = "such a kernel is (in, out) in some models and (out, in) in others"
            raise UnknownVectorsError("flax_vectors", path, leaf, why)
        return 0
    if name == "kernel":
        _refuse_stack("flax_vectors", path, leaf)
        axes = _flax_convolution(path, shape, module) if ndim > 2 else None
        axes = axes or (_flax_attention(path, shape, module) if ndim == 3 else None)
        if axes is not None:
            return axes
    raise UnknownVectorsError("flax_vectors", path, leaf, _NO_LAYER)


def _flax_convolution(path: Path, shape: tuple[int, ...], module: str) -> AxesLike:
    ndim, sizes = len(shape), shape[:-2]
    own_name = next((n for n in reversed("/".join(path).split("/")[:-1]) if not n.isdigit()), "")
    if re.fullmatch(r"ConvLocal_\d+", own_name):
        return -2
    if re.fullmatch(r"Conv_\d+", own_name) and _one_size(sizes):
        return _all_but(-1, ndim)
    if _MAYBE_TRANSPOSED.search(module) or re.search("local|depthwise|separable|general", module):
        return None
    odd = all(size % 2 for size in sizes)  # ConvLocal has the sizes of its output there.
    if "conv" in module and odd and _one_size(sizes):
        return _all_but(-1, ndim)
    modules = "/".join(path[-3:-1]).lower()
    patches = re.search("patch|embed|stem", modules) and not re.search("^un|_un|^de|out", module)
    if ndim >= 4 and (set(sizes) == {1} or (patches and _one_size(sizes[-2:]))):
        return _all_but(-1, ndim)
    return None


def _flax_attention(path: Path, shape: tuple[int, ...], module: str) -> AxesLike:
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
    """Whether all sizes but 1 are equal: those of a kernel, not of a stack and its layers."""
    return len(set(sizes) - {1}) <= 1


def equinox_vectors(path: Path, leaf: Any) -> AxesLike:
    """The rule for Equinox, whose weights have their outputs first.

    If the tree keeps its modules, as `eqx.filter(model, eqx.is_array)` does, the classes of
    Equinox's layers decide. In `Linear`, `Conv`, `ConvTranspose`, `GRUCell`, `LSTMCell` and
    subclasses, weight vectors run along all axes of the weights but 0. `Embedding` and
    normalizations have none. Otherwise, and for modules of your own, the first line that fits
    decides. *Module* is defined in `flax_vectors`.

    ====================================================  ====  ====================================
    name                                                  rank  axes
    ====================================================  ====  ====================================
    any                                                   0, 1  None
    `..._bias`, `...embedding`, `cls_token`, ...          any   None
    any, module `...norm...`                              any   None
    any, module `...einsum...`                            2+    *error*: its axes are your choice
    `weight`, module `...emb...`, `ln`, ...               2     *error*: Linear or not
    `weight`, `weight_ih`, `weight_hh`                    2     1
    `weight`, module `...conv...`                         3     1, 2
    `weight` with equal sizes                             4+    all but 0
    anything else                                         2+    *error*: which axes?
    ====================================================  ====  ====================================

    Convolutions that `eqx.filter_vmap` has stacked look like convolutions of one more dimension.
    The rule raises an error for them, unless their sizes happen to be equal.

    Args:
        path: the parameter's path in plain names.
        leaf: the parameter, or anything with its `shape`.

    Returns:
        The axes of a weight vector, or None.

    Raises:
        ValueError: If name and shape do not determine the axes.

    Example:
        >>> equinox_vectors(("mlp", "layers", "0", "weight"), np.zeros((16, 8)))
        1
    """
    name, module = _last_names(path)
    shape = np.shape(leaf)
    ndim = len(shape)
    layer = getattr(path, "layer", None)
    if ndim <= 1 or (layer is None and _NO_VECTORS.fullmatch(name)):
        return None
    if layer is not None:
        return _equinox_layer(path, leaf, layer)
    if "norm" in module:
        return None
    _refuse_einsum("equinox_vectors", path, leaf, module)
    if ndim == 2 and name in ("weight", "weight_ih", "weight_hh"):
        if _MAYBE_EMBEDDING.search(module) or _MAYBE_NORM.search(module):
            why = "it may be a Linear, an Embedding or a normalization"
            raise UnknownVectorsError("equinox_vectors", path, leaf, why)
        return 1
    if name == "weight" and (
        (ndim == 3 and "conv" in module) or (ndim >= 4 and len(set(shape[2:])) == 1)
    ):
        return _all_but(0, ndim)
    raise UnknownVectorsError("equinox_vectors", path, leaf, _NO_LAYER)


def _equinox_layer(path: Path, leaf: Any, layer: Any) -> AxesLike:
    """The axes of a parameter of one of Equinox's own layers."""
    kind, name, ndim = layer_class(layer), path[-1], np.ndim(leaf)
    if not name.startswith("weight") or kind not in (
        *("Linear", "Conv", "ConvTranspose", "GRUCell", "LSTMCell"),
    ):
        return None
    expected = layer.num_spatial_dims + 2 if kind in ("Conv", "ConvTranspose") else 2
    if ndim != expected:
        why = f"a {kind}'s {name} has rank {expected}: it may be a stack of layers"
        raise UnknownVectorsError("equinox_vectors", path, leaf, why)
    return _all_but(0, ndim)


def haiku_vectors(path: Path, leaf: Any) -> AxesLike:
    """The rule for Haiku: inputs precede outputs, except in a transposed convolution.

    The first line that fits decides; *module* is the last part of Haiku's module name.

    ====================================================  ====  ====================================
    name                                                  rank  axes
    ====================================================  ====  ====================================
    any                                                   0, 1  None
    `b`, `scale`, `offset`, `bias`, `...embedding`, ...   any   None
    any, module `...einsum...`                            2+    *error*: its axes are your choice
    `w`, `w_i`, `w_h`, `weights`                          2     0
    `w` below an unnamed `layer_stack`                    3+    *error*: use `stacked`
    `w`, module `...conv...transpose...`                  3+    all but -2
    `w`, module `...conv...` but not `...deconv...`       3+    all but the last
    anything else                                         2+    *error*: which axes?
    ====================================================  ====  ====================================

    Args:
        path: the parameter's path in plain names.
        leaf: the parameter, or anything with its `shape`.

    Returns:
        The axes of a weight vector, or None.

    Raises:
        ValueError: If name and shape do not determine the axes.

    Example:
        >>> haiku_vectors(("net/~/conv2_d_transpose", "w"), np.zeros((3, 3, 16, 8)))
        (0, 1, 3)
    """
    name, module = _last_names(path)
    shape = np.shape(leaf)
    ndim = len(shape)
    if ndim <= 1 or name == "b" or _NO_VECTORS.fullmatch(name):
        return None
    _refuse_einsum("haiku_vectors", path, leaf, module)
    if ndim == 2 and name in ("w", "w_i", "w_h", "weights"):
        return 0
    if name == "w":
        _refuse_stack("haiku_vectors", path, leaf)
        if "conv" in module and "transpose" in module and _one_size(shape[:-2]):
            return _all_but(-2, ndim)
        if "conv" in module and "deconv" not in module and _one_size(shape[:-2]):
            return _all_but(-1, ndim)
    raise UnknownVectorsError("haiku_vectors", path, leaf, _NO_LAYER)


def _last_names(path: Path) -> tuple[str, str]:
    """The names of a parameter and of the module that has it, past the indices in a list."""
    names = [n for n in "/".join(path).lower().split("/") if not n.isdigit()]
    return names[-1] if names else "", names[-2] if len(names) > 1 else ""


def _all_but(axis: int, ndim: int) -> tuple[int, ...]:
    return tuple(a for a in range(ndim) if a != axis % ndim)


def _refuse_einsum(rule: str, path: Path, leaf: Any, module: str) -> None:
    """Stops at a layer whose axes are an argument of its own: they may be of any order."""
    if "einsum" in module:
        why = "the axes of such a layer are what its equation says, which the name does not tell"
        raise UnknownVectorsError(rule, path, leaf, why)


def _refuse_stack(rule: str, path: Path, leaf: Any) -> None:
    """Stops where an axis of a kernel may be that of a stack."""
    if np.ndim(leaf) > 2 and any(map(STACK_MARK.search, path)):
        name = rule.removesuffix("_vectors")
        why = f'by its path it may be in a stack of layers; if so, use p2t_jax.stacked("{name}")'
        raise UnknownVectorsError(rule, path, leaf, why)


RULES: dict[str, VectorRule] = {
    "flax": flax_vectors,
    "equinox": equinox_vectors,
    "haiku": haiku_vectors,
}


def as_rule(vectors: Any) -> Any:
    """The rule of a name; anything else unchanged."""
    if not isinstance(vectors, str):
        return vectors
    if vectors not in RULES:
        names = ", ".join(f'"{known}"' for known in RULES)
        raise ValueError(f"vectors: expected {names}, a rule or a tree of axes, got {vectors!r}.")
    return RULES[vectors]
