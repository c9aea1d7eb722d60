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
def replace_if(
    function: functools.partial[Any], predicate: jax.Array, values: Any, *args: Any
) -> Any:
    """`function(values, *args) if predicate else values`, without a copy of the values.

    Args:
        function: from trees of arrays to a tree like `values`. Its own arguments must be hashable:
            outside of `jit`, JAX compiles a loop anew for each new function, so equal ones are told
            from their parts.
        predicate: a boolean scalar, which may be traced.
        values: what is replaced, or passed through.
        *args: what else the function depends on.
    """
    if not is_traced(predicate):
        return function(values, *args) if predicate else values
    return _loop(function.func, function.args, predicate, values, *args)


@functools.partial(jax.jit, static_argnums=(0, 1), inline=True)
def _loop(function: Any, options: Any, predicate: jax.Array, values: Any, *args: Any) -> Any:
    def turn(carry: Any) -> Any:
        again, values = carry
        return jnp.zeros_like(again), function(*options, values, *args)

    return jax.lax.while_loop(lambda carry: carry[0], turn, (predicate, values))[1]


@replace_if.defjvp
def _replace_if_jvp(function: functools.partial[Any], primals: Any, tangents: Any) -> Any:
    predicate, *rest = primals
    if is_traced(predicate):
        dot = _derivative(function.func, function.args, predicate, rest, list(tangents[1:]))
    else:
        dot = jax.jvp(function, tuple(rest), tangents[1:])[1] if predicate else tangents[1]
    return replace_if(function, *primals), dot


@functools.partial(jax.jit, static_argnums=(0, 1), inline=True)
def _derivative(
    function: Any, options: Any, predicate: jax.Array, primals: Any, tangents: Any
) -> Any:
    def at_primals(primals: Any, tangents: Any) -> Any:
        return jax.jvp(functools.partial(function, *options), primals, tangents)[1]

    return jax.lax.cond(
        predicate, at_primals, lambda primals, tangents: tangents[0], primals, tangents
    )
