"""Every parameter of JAX's primitives is read by the rule of `infer_vectors`, or makes it ask."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.ad_checkpoint import checkpoint_name
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P

import p2t_jax as p2t
from p2t_jax._vectors.inference import flow, primitives
from p2t_jax._vectors.inference.control import CONTROL
from p2t_jax._vectors.inference.equations import RULES

X = jnp.ones((4, 4))
I4 = jnp.arange(4)

NOT_IN_THIS_VERSION = {"unstack"} if not hasattr(lax, "unstack_p") else set()
KNOWN = (
    {*RULES, *CONTROL, *primitives.CALLS, *primitives.ELEMENTWISE, *primitives.IDENTITY}
    | primitives.REDUCTIONS
    | primitives.COLLECTIVES
    | primitives.SUMS_OF_DEVICES
)


@jax.custom_vjp
def with_vjp(x):
    return x


with_vjp.defvjp(lambda x: (x, None), lambda *_: (None,))


@jax.custom_jvp
def with_jvp(x):
    return x


with_jvp.defjvp(lambda primals, tangents: (primals[0], tangents[0]))


@jax.custom_batching.custom_vmap
def with_vmap(x):
    return x


with_vmap.def_vmap(lambda n, batched, x: (x, batched[0]))


def conv(x, w, **kwargs):
    return lax.conv_general_dilated(x, w, (1, 1), "SAME", **kwargs)


def devices(check_vma: bool) -> Any:
    mesh = jax.make_mesh((2,), ("d",), axis_types=(AxisType.Auto,))

    def body(x):
        y = lax.ppermute(lax.all_gather(x, "d", tiled=True), "d", [(0, 1), (1, 0)])
        return lax.pmin(lax.pmax(y, "d"), "d") + lax.pcast(
            lax.psum(x, "d").sum(), "d", to="varying"
        )

    return jax.shard_map(body, mesh=mesh, in_specs=P("d"), out_specs=P("d"), check_vma=check_vma)


def examples() -> list[Any]:
    """Functions of a matrix that use most of the primitives, with all their usual arguments."""
    one = {f: getattr(lax, f) for f in dir(lax)}
    names = primitives.ELEMENTWISE | {"stop_gradient", "optimization_barrier"}
    shift = lambda f: lambda x: f(x.astype(int), x.astype(int))  # noqa: E731
    unary, binary = (
        [lambda x, f=one[n], k=k: f(*[x] * k) for n in sorted(names & one.keys())] for k in (1, 2)
    )
    ternary = [lambda x, f=f: f(x, x, x) for f in (lax.clamp, lax.betainc)]
    bits = [shift(one[n]) for n in sorted(names & one.keys())]
    reductions = [lambda x, f=f: f(x, axis=0) for f in (jnp.sum, jnp.prod, jnp.max, jnp.min)]
    reductions += [lambda x, f=f: f(x > 0, axis=0) for f in (jnp.all, jnp.any)]
    reductions += [lambda x: lax.argmax(x, 0, int), lambda x: lax.argmin(x, 0, int)]
    reductions.append(lambda x: lax.reduce_xor(x.astype(int), axes=(0,)))
    moves = [
        lambda x: lax.reshape(x, (16,), dimensions=(1, 0)).reshape(2, 8),
        lambda x: jnp.concatenate([x.T, jnp.flip(x), x[::2], x[0][None]]),
        lambda x: lax.pad(x, 0.0, [(1, 1, 0), (-1, 0, 1)]),
        lambda x: lax.dynamic_slice(x, (x[0, 0].astype(int), 0), (2, 2)),
        lambda x: lax.dynamic_update_slice(x, x[:2], (0, 0)),
        lambda x: (x[I4], jax.vmap(lambda x, i: x[i])(x, I4), lax.squeeze(x[:1], (0,))),
        lambda x: (jnp.split(x, 2), list(x), jnp.unstack(x)),
        lambda x: jnp.where((x > 0) | (x < 1), x, lax.iota(float, 4)),
    ]
    products = [
        lambda x: jnp.einsum("ij,ij,jk->ik", x, x, x, preferred_element_type="float32"),
        lambda x: lax.ragged_dot(x, x[None], jnp.array([4])),
        lambda x: conv(x[None, None], x[None, None, :2, :2], rhs_dilation=(2, 2)),
        lambda x: jax.vmap(lambda w: conv(x[None, None], w), 1)(x[None, None, :2, :2]),
    ]
    control = [
        lambda x: lax.scan(lambda c, r: (c + r, c), x[0], x, reverse=True, unroll=2),
        lambda x: lax.while_loop(lambda x: x.sum() < x[0, 0], lambda x: x + 1, x),
        lambda x: lax.cond(x[0, 0] > 0, jnp.sin, jnp.cos, x),
        lambda x: jax.jit(with_vjp)(with_jvp(with_vmap(checkpoint_name(x, "a")))),
        jax.checkpoint(jnp.sin),
        lax.composite(lambda x: x * 2, "a.b"),
        jax.grad(lambda x: (jnp.sin(x) * x + jnp.linalg.norm(x)).sum()),
        lambda x: lax.with_sharding_constraint(x, X.sharding),
        devices(True),
        devices(False),
    ]
    numbers = [
        lambda x: (lax.integer_pow(x, 3), lax.convert_element_type(x, "int8"), x**2),
        lambda x: (lax.reduce_precision(x, 5, 5), lax.round(x), lax.conj(lax.complex(x, x))),
        lambda x: (lax.real(lax.complex(x, x)), lax.imag(lax.complex(x, x)), lax.polygamma(x, x)),
        lambda x: (lax.population_count(I4), ~(x > 0), (x > 0) & (x < 1), (x > 0) ^ (x < 1)),
        lambda x: (jnp.array(x, copy=True), lax.erf_inv(x), lax.igamma(x, x), lax.zeta(x, x)),
    ]
    return unary + binary + ternary + bits + reductions + moves + products + control + numbers


def equations(jaxpr: Any) -> Any:
    for eqn in jaxpr.eqns:
        yield eqn
        for value in eqn.params.values():
            for inner in value if isinstance(value, tuple | list) else [value]:
                inner = getattr(inner, "jaxpr", inner)
                if hasattr(inner, "eqns"):
                    yield from equations(inner)


@functools.cache
def traced() -> dict[str, set[str]]:
    """The parameters of every primitive that the examples have."""
    found: dict[str, set[str]] = {}
    for fn in examples():
        try:
            jaxpr = jax.make_jaxpr(fn)(X).jaxpr
        except (TypeError, ValueError, AttributeError, NotImplementedError):
            continue  # Not an operation on such operands.
        for eqn in equations(jaxpr):
            found.setdefault(eqn.primitive.name, set()).update(eqn.params)
    return found


def test_every_parameter_of_a_primitive_is_in_the_table():
    unknown = {
        name: params
        for name, params in traced().items()
        if name in KNOWN and primitives.has_unknown_parameters(name, params)
    }
    assert not unknown


def test_every_primitive_that_a_rule_knows_has_an_example():
    rare = {"add_any", "closed_call", "layout_constraint", "reshard"}
    missing = KNOWN - traced().keys() - rare - NOT_IN_THIS_VERSION
    assert not missing


def test_the_table_has_no_primitive_without_a_rule():
    assert primitives.PARAMETERS.keys() <= KNOWN


@pytest.mark.parametrize("name", ["reshape", "dot_general", "jit", "tanh", "scan", "reduce_sum"])
def test_a_parameter_that_is_not_in_the_table_makes_it_ask(name, monkeypatch):
    """As if a newer JAX had given the primitive one more."""
    known = flow.has_unknown_parameters

    def one_more(primitive, parameters):
        return known(primitive, [*parameters, "new"] if primitive == name else parameters)

    uses = {
        "reshape": lambda w, x: x @ w.reshape(2, 2, 3).reshape(4, 3),
        "dot_general": lambda w, x: x @ w,
        "jit": jax.jit(lambda w, x: x @ w),
        "tanh": lambda w, x: x @ jnp.tanh(w),
        "scan": lambda w, x: lax.scan(lambda c, _: (c @ w @ np.ones((3, 4)), None), x, None, 2)[0],
        "reduce_sum": lambda w, x: (x[:, :, None] * w[0]).sum(0),
    }
    w, x = jax.ShapeDtypeStruct((4, 3), "float32"), jax.ShapeDtypeStruct((8, 4), "float32")
    if name != "reduce_sum":
        assert p2t.infer_vectors(uses[name], w, x) == (0,)
    monkeypatch.setattr(flow, "has_unknown_parameters", one_more)
    with pytest.raises(ValueError, match="the network does not tell"):
        p2t.infer_vectors(uses[name], w, x)
