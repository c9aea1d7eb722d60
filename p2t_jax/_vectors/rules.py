"""Rules by name: where the weight vectors of Flax's, Equinox's and Haiku's layers lie."""

import dataclasses
import re
from typing import Any

import jax
import numpy as np

from p2t_jax._vectors.paths import Axes, Path, VectorRule, is_index, positions, show

_Struct: Any = jax.ShapeDtypeStruct  # JAX leaves its constructor untyped.

# What Linen (ScanBlock_0, VmapBlock_0) and Haiku call a stack of layers that got no name.
_STACK = re.compile(r"\b(Scan|Vmap)(?=[A-Z])|__layer_stack")


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
    if not is_index(axis):
        raise TypeError(f"axis: the axis of the stack must be an int, not {axis!r}.")

    return _Stacked(rule, axis)


@dataclasses.dataclass(frozen=True)
class _Stacked:
    """Not a closure: rules are compared, since they are part of an optimizer state's structure."""

    rule: VectorRule
    axis: int

    def __call__(self, path: Path, leaf: Any) -> Axes:
        shape = np.shape(leaf)
        (stack,) = positions(self.axis, path, leaf, "the stack's axis")
        layer = _Struct(shape[:stack] + shape[stack + 1 :], leaf.dtype)
        marked = next((i for i, name in enumerate(path) if _STACK.search(name)), None)
        inner = tuple(_STACK.sub("", n, 1) if i == marked else n for i, n in enumerate(path))
        axes = self.rule(inner, layer)
        if axes is None:
            return None
        return tuple(a + (a >= stack) for a in positions(axes, inner, layer))


def _last_names(path: Path) -> tuple[str, str]:
    """The names of a parameter and of the module that has it, past the indices in a list."""
    names = [n for n in "/".join(path).lower().split("/") if not n.isdigit()]
    return names[-1] if names else "", names[-2] if len(names) > 1 else ""


def _all_but(axis: int, rank: int) -> tuple[int, ...]:
    return tuple(a for a in range(rank) if a != axis % rank)


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
        f"vectors: {rule} does not know which axes of {show(path)}, of shape {np.shape(leaf)}, "
        f"are the incoming weights of one neuron: {why}. Give their axes, or None to leave it "
        "alone, in a rule of your own, for example\n\n"
        "    def vectors(path, leaf):\n"
        f"        if path[-2:] == {path[-2:]!r}:\n"
        f"            return {right}\n"
        f"        return p2t_jax.{rule}(path, leaf)\n\n"
        "For a stack of layers there is p2t_jax.stacked; for other frameworks there are "
        "p2t_jax.flax_vectors, p2t_jax.equinox_vectors and p2t_jax.haiku_vectors."
    )
