"""The weight vectors of a network, read off its computation."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from p2t_jax._vectors.inference import origins
from p2t_jax._vectors.inference.flow import Flow
from p2t_jax._vectors.inference.uses import Use, Uses
from p2t_jax._vectors.match import FLOATS, VectorSpec, axes_of, match_prefix
from p2t_jax._vectors.paths import is_box, named_leaves
from p2t_jax._vectors.questions import Unknown, UnknownVectorsError, question


def infer_vectors(
    fn: Callable[..., Any],
    params: Any,
    *inputs: Any,
    otherwise: VectorSpec = "ask",
    **keywords: Any,
) -> Any:
    """Reads off a network which axes of its parameters are the incoming weights of one neuron.

    Traces `fn(params, *inputs, **keywords)`, without computing anything, and follows every
    parameter to where it first meets something that depends on the inputs. Its weight vectors run
    along the axes that are summed over there, in a matrix product, a ragged product or a
    convolution (Section 1.1). A parameter that is looked up, or added or multiplied element by
    element, has none.

    Parameters are followed through reshapes, transposes, casts, slices, padding, concatenation,
    masks, products with other parameters, and into scans, loops, branches, remat and jit. One
    error lists all parameters that are not clear: contradicting uses, no use, parameters that only
    meet each other, unknown operations.

    Args:
        fn: the forward pass or the loss, `fn(params, *inputs, **keywords)`, of any framework.
        params: the parameters: arrays, or anything with their shapes and dtypes.
        inputs: what a training step gives it: arrays or shapes (`jax.ShapeDtypeStruct`), in any
            pytrees. Other leaves (bool, str, None) are passed on unchanged. Random numbers and
            constants do not count as inputs.
        keywords: the same by name, such as `train=False`.
        otherwise: answers for parameters that the network leaves open: "ask" with an error, or a
            rule, its name, or a tree of axes, see `laperm`. None means that they are not permuted.

    Returns:
        A tree like `params`, with a tuple of axes or None for each: plain data to print, edit, save
        and pass as `vectors`.

    Raises:
        TypeError: If `otherwise` gives axes to a parameter of a dtype that cannot be permuted.
        ValueError: If neither the use of a parameter nor `otherwise` determines its axes; if one
            of complex numbers or integers is contracted with the inputs and has no None from
            `otherwise`; if there are no arrays among `inputs`.

    Example:
        >>> import jax, jax.numpy as jnp, p2t_jax as p2t
        >>> params = {"dense": {"w": jnp.ones((3, 4)), "b": jnp.ones(3)}}  # outputs first
        >>> def fn(params, x):
        ...     return jax.nn.relu(x @ params["dense"]["w"].T + params["dense"]["b"])
        >>> p2t.infer_vectors(fn, params, jax.ShapeDtypeStruct((8, 4), "float32"))
        {'dense': {'b': None, 'w': (1,)}}
    """
    leaves = named_leaves(params)
    uses = _trace(fn, params, inputs, keywords)
    fallback = [spec for *_, spec in match_prefix(otherwise, params, "otherwise")]
    found: list[tuple[int, ...] | None] = []
    unknown = []
    for i, ((path, leaf), spec) in enumerate(zip(leaves, fallback, strict=True)):
        answer = _decided(leaf, uses.get(i, []))
        if not isinstance(answer, str):
            found.append(answer)
            continue
        try:
            if isinstance(spec, str) and spec == "ask":
                raise UnknownVectorsError("infer_vectors", path, leaf, answer)
            found.append(axes_of(spec, path, leaf))
        except UnknownVectorsError:
            unknown.append(Unknown(path, tuple(leaf.shape), answer))
    if unknown:
        raise ValueError(question("the network does not tell", unknown, None))
    return _unflatten(params, found)


def _trace(fn: Callable[..., Any], params: Any, inputs: Any, keywords: Any) -> dict[int, list[Use]]:
    """The uses of the parameters, by their index among the leaves."""
    leaves, treedef = jax.tree.flatten(params)
    data, inputs_def = jax.tree.flatten((inputs, keywords))
    arrays = {i: leaf for i, leaf in enumerate(leaves) if _is_array(leaf)}
    traced = {i: leaf for i, leaf in enumerate(data) if _is_array(leaf)}

    def flat(arrays: dict[int, Any], traced: dict[int, Any]) -> Any:
        args, options = jax.tree.unflatten(
            inputs_def, [traced.get(i, leaf) for i, leaf in enumerate(data)]
        )
        weights = [arrays.get(i, leaf) for i, leaf in enumerate(leaves)]
        return fn(jax.tree.unflatten(treedef, weights), *args, **options)

    if not traced:
        raise ValueError(
            "inputs: expected arrays, or their shapes, as the other arguments of fn, got "
            f"{inputs!r}. What fn closes over counts as a constant."
        )
    closed = jax.make_jaxpr(flat)(arrays, traced)
    values = [
        origins.Value(False, ((i, origins.parameter(leaf.shape)),))
        if _is_parameter(leaf)
        else origins.CONSTANT
        for i, leaf in sorted(arrays.items())
    ]
    found = Uses()
    for value in Flow().run(closed, values + [origins.DATA] * len(traced), found):
        found.ended(value)
    uses: dict[int, list[Use]] = {}
    for use in found:
        uses.setdefault(use.parameter, []).append(use)
    return uses


def _is_array(leaf: Any) -> bool:
    return hasattr(leaf, "shape") and hasattr(leaf, "dtype")


def _is_parameter(leaf: Any) -> bool:
    """Whether a leaf may be weights. Scalars have no axes; booleans and random keys are none."""
    return _is_array(leaf) and np.ndim(leaf) > 0 and jnp.issubdtype(leaf.dtype, jnp.number)


def _decided(leaf: Any, uses: list[Use]) -> tuple[int, ...] | str | None:
    """The axes of a parameter from its uses, or the reason why they are not known."""
    if not _is_parameter(leaf):
        return None
    kinds = {use.kind for use in uses}
    if leaf.dtype.name not in FLOATS:
        return _not_permutable(leaf, kinds)
    unclear = sorted({use.why for use in uses if use.kind == "unclear"})
    if "accumulated" in kinds and "elementwise" not in kinds:
        unclear.append("slices of it are multiplied elementwise, and the products added")
    if unclear:
        return "; ".join(unclear)
    axes = {use.axes for use in uses if use.kind == "contracted"}
    # Whether an axis of size 1 belongs to a vector makes no difference.
    different = {tuple(a for a in those if leaf.shape[a] != 1) for those in axes}
    if len(different) > 1:
        return f"it is contracted along axes {' and '.join(map(str, sorted(different)))}"
    if axes and "elementwise" in kinds:
        return (
            f"it is contracted along axes {min(axes)}, and also looked up, added or multiplied "
            "elementwise"
        )
    if axes:
        return max(axes, key=len)
    if "elementwise" in kinds:
        return None
    indirect = sorted({use.why for use in uses})
    return "; ".join(indirect) or "it meets nothing that depends on the inputs"


def _not_permutable(leaf: Any, kinds: set[str]) -> str | None:
    """The reason to ask for weights of a dtype that cannot be permuted; None if it is no weight.

    An integer is a weight only where it is contracted with data, as quantized weights are. Others
    are counters, or indices.
    """
    weights = {"contracted"}
    if jnp.issubdtype(leaf.dtype, jnp.inexact):
        weights |= {"accumulated", "unclear"}
    if not kinds & weights:
        return None
    return (
        f"its dtype {leaf.dtype.name} cannot be permuted, only {', '.join(FLOATS)}: give it None, "
        "or leave it out of params"
    )


def _unflatten(params: Any, axes: list[tuple[int, ...] | None]) -> Any:
    """Axes in the structure of the parameters, without the boxes around them."""
    nodes, treedef = jax.tree.flatten(params, is_leaf=is_box)
    rest = iter(axes)
    found = []
    for node in nodes:
        inside, below = jax.tree.flatten(node)
        those = [next(rest) for _ in inside]
        found.append(those[0] if len(those) == 1 else jax.tree.unflatten(below, those))
    return jax.tree.unflatten(treedef, found)
