"""Every interface of JAX used here that its documentation does not promise.

Nothing else in the library imports one, so that a change in JAX concerns this file alone. Each has
a line on what it stands for and what would replace it. This file imports nothing of the
library, so that everything may import it. The names of JAX's primitives and of their parameters are
in `p2t_jax._vectors.inference`: if one changes, `infer_vectors` asks for the axes.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
from jax.core import Tracer
from jax.extend.core import Literal, Primitive
from jax.interpreters import batching, mlir


class Placement:
    """On how many devices, and of what kind, a program that is being lowered will run.

    Stands for: the context of a lowering rule. Replaced by: a public way to choose by the number
    of devices, as `jax.lax.platform_dependent` chooses by their kind.

    Attributes:
        devices: how many devices the program runs on.
        per_device: whether the program is one device's own: on one device, in `pmap`, or in
            `shard_map` over all axes of the mesh. If not, XLA will partition it.
    """

    def __init__(self, context: Any):
        axis_context: Any = context.module_context.axis_context
        if isinstance(axis_context, mlir.SPMDAxisContext):
            self.per_device = axis_context.manual_axes == frozenset(axis_context.mesh.axis_names)
            self.devices: int = axis_context.mesh.size
        else:
            self.devices = axis_context.num_devices
            self.per_device = self.devices == 1


def primitive(
    name: str,
    abstract_eval: Callable[..., Any],
    batch: Callable[..., Any],
    lower: Callable[..., Callable[..., Sequence[Any]]],
    static: Sequence[str],
) -> Primitive:
    """An operation that chooses how it is carried out when the program is lowered.

    Stands for: `jax.extend.core.Primitive` and the tables of `jax.interpreters`. Replaced by: a
    public choice at lowering, see `Placement`.

    Args:
        name: the name in jaxprs.
        abstract_eval: from the types of the operands and the parameters to those of the results.
        batch: (operands with the mapped axis first, parameters) to results likewise.
        lower: (placement, platform is a CPU, types of the operands, parameters) to a JAX function
            of the operands.
        static: the names of the parameters.

    Returns:
        The primitive. `bind` takes arrays and the parameters, and returns a list of arrays.
    """
    new = Primitive(name)
    new.multiple_results = True
    new.def_abstract_eval(abstract_eval)
    compiled = jax.jit(new.bind, static_argnames=tuple(static))

    def implement(*args: Any, **params: Any) -> Any:
        with jax.disable_jit(False):  # otherwise it would call itself
            return compiled(*args, **params)

    new.def_impl(implement)

    def batcher(args: Sequence[Any], dims: Sequence[Any], **params: Any) -> Any:
        size = next(x.shape[d] for x, d in zip(args, dims, strict=True) if d is not None)
        args = [batching.bdim_at_front(x, d, size) for x, d in zip(args, dims, strict=True)]
        results = batch(*args, **params)
        return results, [0] * len(results)

    batching.primitive_batchers[new] = batcher

    def lowering(on_cpu: bool) -> Callable[..., Any]:
        def rule(context: Any, *args: Any, **params: Any) -> Any:
            way = lower(Placement(context), on_cpu, context.avals_in, **params)
            return mlir.lower_fun(way, multiple_results=True)(context, *args)

        return rule

    # Not cached: the lowering depends on where the program runs, which is not in the key.
    mlir.register_lowering(new, lowering(False), cacheable=False)
    mlir.register_lowering(new, lowering(True), platform="cpu", cacheable=False)
    return new


def is_traced(value: Any) -> bool:
    """Whether a value is not known yet, as inside `jit` or `vmap`.

    Stands for: the class of tracers. Replaced by: a public test for one.
    """
    return isinstance(value, Tracer)


def is_literal(var: Any) -> bool:
    """Whether an operand of an equation in a jaxpr is a number: `var.val`.

    Stands for: `jax.extend.core.Literal`. Replaced by: the documentation of jaxprs.
    """
    return isinstance(var, Literal)


def equations(jaxpr: Any) -> Iterator[Any]:
    """The equations of a jaxpr and, after each, those of the jaxprs in its parameters.

    Stands for: the layout of a jaxpr. Replaced by: a public walk over one.
    """
    for eqn in jaxpr.eqns:
        yield eqn
        for value in eqn.params.values():
            for inner in value if isinstance(value, tuple | list) else (value,):
                inner = getattr(inner, "jaxpr", inner)
                if hasattr(inner, "eqns"):
                    yield from equations(inner)


def varying_axes(array: jax.Array) -> frozenset[Any]:
    """The axes of a `shard_map` over which an array varies, if the `shard_map` checks that.

    Stands for: the axes in a type, whose attribute has another name in every few versions of JAX.
    Replaced by: `jax.typeof(x).vma`.
    """
    axes: frozenset[Any] = jax.typeof(array).manual_axis_type.varying
    return axes


def varying_like(array: jax.Array, *others: jax.Array) -> jax.Array:
    """`array`, varying over the axes of a `shard_map` over which the others vary, too."""
    missing = frozenset().union(*map(varying_axes, others)) - varying_axes(array)
    return jax.lax.pcast(array, tuple(missing), to="varying") if missing else array
