"""`infer_vectors` on programs for several devices, each of which has a part of the weights."""

import jax
import jax.numpy as jnp
import pytest
from jax import lax
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P
from vector_helpers import infer, shape

W, X = shape(4, 3), shape(8, 4)
WHOLE, SPLIT = P(), P("d")


def with_parts(function, *in_specs, out=WHOLE):
    mesh = jax.make_mesh((2,), ("d",), axis_types=(AxisType.Auto,), devices=jax.devices()[:2])
    return jax.shard_map(function, mesh=mesh, in_specs=in_specs, out_specs=out, check_vma=False)


def of_weights(collective, out=WHOLE):
    """A network of weights that devices have made together."""
    return lambda w, x: x @ with_parts(collective, SPLIT, out=out)(w)


def of_both(function):
    """Each device has a part of the inputs, and the weights that meet it."""
    return lambda w, x: with_parts(function, SPLIT, P(None, "d"))(w, x)


NETWORKS = {
    # name: fn, the shape of its parameter, axes
    "gathered": (of_weights(lambda w: lax.all_gather(w, "d", tiled=True)), W, (0,)),
    "shifted": (of_weights(lambda w: lax.ppermute(w, "d", [(0, 1), (1, 0)]), out=SPLIT), W, (0,)),
    "stacked": (of_weights(lambda w: lax.all_gather(w, "d").reshape(4, 3)), W, "asked"),
    "summed": (of_weights(lambda w: lax.psum(w, "d")), shape(8, 3), "asked"),
    "the largest": (of_weights(lambda w: lax.pmax(w, "d")), shape(8, 3), "asked"),
    "row parallel": (of_both(lambda w, x: lax.psum(x @ w, "d")), W, (0,)),
    "a product by hand": (of_both(lambda w, x: lax.psum(x * w, "d")), shape(4), "asked"),
    "the largest product": (of_both(lambda w, x: lax.pmax(x * w, "d")), shape(4), "asked"),
    "a scale": (of_both(lambda w, x: lax.psum(jnp.tanh(x * w), "d")), shape(4), None),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_devices_have_parts(name):
    fn, w, expected = NETWORKS[name]
    assert infer(fn, w, X) == expected
