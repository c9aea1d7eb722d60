"""`infer_vectors` on random layouts: however a matrix is stored, its inputs are found."""

import functools
import itertools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

import p2t_jax as p2t


@st.composite
def layouts(draw: Any) -> tuple[tuple[int, ...], tuple[int, ...], list[int]]:
    """Sizes of the axes of inputs and of outputs, and the order in which they are stored."""
    sizes = st.lists(st.integers(1, 4), min_size=1, max_size=3)
    inputs, outputs = draw(sizes), draw(sizes)
    order = draw(st.permutations(range(len(inputs) + len(outputs))))
    return tuple(inputs), tuple(outputs), list(order)


def factors(n: int) -> list[int]:
    """The prime factors of n."""
    return next(([d, *factors(n // d)] for d in range(2, n + 1) if n % d == 0), [])


@st.composite
def reshapes(draw: Any, shape: tuple[int, ...]) -> tuple[int, ...]:
    """Another shape of which each axis of `shape` is one axis or several."""
    out: list[int] = []
    for n in shape:
        parts = draw(st.permutations(factors(n)))
        cuts = sorted(draw(st.lists(st.integers(0, len(parts)), max_size=2)))
        bounds = [0, *cuts, len(parts)]
        out += [math.prod(parts[a:b]) for a, b in itertools.pairwise(bounds)]
    return tuple(out)


@st.composite
def detours(draw: Any) -> Any:
    """Operations that leave a matrix what it is, or a neuron's inputs its inputs."""

    def detour(w: Any) -> Any:
        kind = draw(
            st.sampled_from(["reshape", "cast", "flip", "mask", "norm", "scan", "jit", "transpose"])
        )
        if kind == "reshape":
            return w.reshape(draw(reshapes(w.shape))).reshape(w.shape)
        if kind == "cast":
            return w.astype(jnp.bfloat16).astype(w.dtype)
        if kind == "flip":
            return jnp.flip(w, draw(st.integers(0, w.ndim - 1)))
        if kind == "mask":
            return jnp.where(jnp.arange(w.size).reshape(w.shape) % 3 == 1, w, 0)
        if kind == "norm":
            return w / jnp.linalg.norm(w)
        if kind == "scan":
            return jax.lax.scan(lambda c, _: (c, None), w, None, length=2)[0]
        if kind == "jit":
            return jax.jit(lambda w: jax.checkpoint(jnp.tanh)(w))(w)
        order = draw(st.permutations(range(w.ndim)))
        return w.transpose(order).transpose([order.index(i) for i in range(w.ndim)])

    return detour


@given(layouts(), st.lists(detours(), max_size=3), st.sampled_from(["matmul", "einsum", "conv"]))
@settings(deadline=None, max_examples=150)
def test_inputs_are_found_however_a_matrix_is_stored(layout, detours, how):
    inputs, outputs, order = layout
    sizes = (*inputs, *outputs)
    stored = jax.ShapeDtypeStruct(tuple(sizes[i] for i in order), "float32")
    n_in, n_out = math.prod(inputs), math.prod(outputs)

    def fn(w, x):
        for detour in detours:
            w = detour(w)
        w = w.transpose([order.index(i) for i in range(len(order))])
        if how == "einsum":
            a, b = "abc"[: len(inputs)], "xyz"[: len(outputs)]
            return jnp.einsum(f"n{a},{a}{b}->n{b}", x.reshape(-1, *inputs), w)
        w = w.reshape(n_in, n_out)
        if how == "conv":  # one pixel
            kernel = w.T.reshape(n_out, n_in, 1, 1)
            return jax.lax.conv(x.reshape(-1, n_in, 1, 1), kernel, (1, 1), "SAME")
        return x @ w

    x = jax.ShapeDtypeStruct((2, n_in), "float32")
    axes = p2t.infer_vectors(fn, stored, x)
    expected = {i for i, axis in enumerate(order) if axis < len(inputs)}
    counted = {i for i, size in enumerate(stored.shape) if size > 1}
    if n_in == 1:  # All axes of the vector have size 1: it makes no difference which are named.
        assert not set(axes or ()) & counted
    else:
        assert set(axes) & counted == expected & counted


@st.composite
def moves(draw: Any, shape: tuple[int, ...]) -> Any:
    """A linear operation that moves, repeats, leaves out or adds up elements."""
    n = len(shape)
    a, b = (draw(st.integers(0, n - 1)) for _ in "ab")
    parts = 2 if shape[a] % 2 == 0 else 1
    order = draw(st.permutations(range(n)))
    new = draw(reshapes(tuple(shape[i] for i in order)))
    config = [(int(i == a), 0, int(i == b)) for i in range(n)]
    kinds = [
        lambda w: jax.lax.reshape(w, new, dimensions=tuple(order)),
        lambda w: jax.lax.reshape(w, shape[::-1]),
        lambda w: jax.lax.rev(w, (a,)),
        lambda w: jax.lax.pad(w, 0.0, config),
        lambda w: jax.lax.slice_in_dim(w, 0, None, 2, a),
        lambda w: jnp.concatenate(jnp.split(w, parts, a), b),
        lambda w: sum(jnp.split(w, parts, a)),
        lambda w: w + jnp.flip(w, a),
        lambda w: jnp.stack([w, -w], a),
        lambda w: jnp.take(w, np.array([shape[a] - 1, 0]), a),
    ]
    return draw(st.sampled_from(kinds))


@st.composite
def networks(draw: Any) -> tuple[tuple[int, ...], Any]:
    """A parameter's shape, and a function of it that is linear: moves, and a product with data."""
    stored = shape = tuple(draw(st.lists(st.sampled_from([1, 2, 3, 4]), min_size=2, max_size=3)))
    fns: list[Any] = []
    for _ in range(draw(st.integers(0, 3))):
        fn = draw(moves(shape))
        after = jax.eval_shape(fn, jax.ShapeDtypeStruct(shape, "float32")).shape
        if len(after) > 0 and 0 < math.prod(after) < 500:
            fns.append(fn)
            shape = after
    axes = [draw(st.sampled_from(["contracted", "batch", "free"])) for _ in shape]
    contracted, batch = ([i for i, a in enumerate(axes) if a == k] for k in ("contracted", "batch"))
    mine = [1 + len(batch) + i for i in range(len(contracted))], [1 + i for i in range(len(batch))]
    numbers = ((mine[0], contracted), (mine[1], batch))
    sizes = (2, *(shape[i] for i in batch), *(shape[i] for i in contracted))
    x = np.random.default_rng(0).normal(size=sizes).astype("float32")

    def fn(w: Any, x: Any) -> Any:
        return jax.lax.dot_general(x, functools.reduce(lambda w, f: f(w), fns, w), numbers)

    return stored, (fn, x)


@given(networks())
@settings(deadline=None, max_examples=60)
def test_no_output_reads_weights_of_two_vectors(network):
    """The oracle looks at numbers: which weights does each output depend on?"""
    shape, (fn, x) = network
    asked: list[Any] = []
    struct = jax.ShapeDtypeStruct(shape, "float32")
    axes = p2t.infer_vectors(fn, struct, x, otherwise=lambda path, _: asked.append(path))
    if asked:
        return
    basis = jnp.eye(math.prod(shape)).reshape(-1, *shape)
    reads = np.asarray(jax.lax.map(lambda w: fn(w, x), basis)).reshape(len(basis), -1).T != 0
    vectors = np.arange(len(basis)).reshape(shape)  # the number of the vector of each weight
    for axis in axes or ():
        vectors = vectors.min(axis, keepdims=True)
    vectors = np.broadcast_to(vectors, shape).ravel()
    assert all(len(set(vectors[row])) <= 1 for row in reads)
