"""A conditional that does not copy what it passes through.

A `lax.cond` copies that, in every step. A loop of no turns does not, but it has no derivative in
reverse mode; hence the rule below.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp

from p2t_jax._jax_internals import is_traced


@functools.partial(jax.custom_jvp, nondiff_argnums=(0,))
def replace_if(function: Any, predicate: jax.Array, values: Any, *args: Any) -> Any:
    """`function(values, *args) if predicate else values`, without a copy of the values.

    Args:
        function: from trees of arrays to a tree like `values`. It must be hashable.
        predicate: a boolean scalar, which may be traced.
        values: what is replaced, or passed through.
        *args: what else the function depends on.
    """
    if not is_traced(predicate):  # outside of `jit`, a loop would be compiled in every step
        return function(values, *args) if predicate else values

    def turn(carry: Any) -> Any:
        again, values = carry
        return jnp.zeros_like(again), function(values, *args)

    _, values = jax.lax.while_loop(lambda carry: carry[0], turn, (predicate, values))
    return values


@replace_if.defjvp
def _replace_if_jvp(function: Any, primals: Any, tangents: Any) -> Any:
    predicate, *primals = primals
    _, *tangents = tangents
    dot = jax.lax.cond(
        predicate,
        lambda primals, tangents: jax.jvp(function, primals, tangents)[1],
        lambda primals, tangents: tangents[0],
        tuple(primals),
        tuple(tangents),
    )
    return replace_if(function, predicate, *primals), dot
