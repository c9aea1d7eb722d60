"""How parameters and states are placed on meshes of devices."""

import functools
import re

import jax
import optax
from helpers import PARAMS
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

DEVICES = 8
AUTO, EXPLICIT = AxisType.Auto, AxisType.Explicit
COLLECTIVES = "all-gather|all-reduce|all-to-all|collective-|reduce-scatter"


def whole(w, axes="x"):
    """Splits the vectors of a kernel among devices, none of them within; the rest is everywhere."""
    divisible = w.ndim > 1 and w.shape[-1] % DEVICES == 0
    return P(*[None] * (w.ndim - 1), axes) if divisible else P()


def split(w, inputs="x", outputs=None):
    """Splits every vector of a kernel among devices."""
    divisible = w.ndim > 1 and w.shape[-1] % DEVICES == 0
    return P(*[None] * (w.ndim - 2), inputs, outputs) if divisible else P()


# A mesh, and how kernels are placed on it.
LAYOUTS = {
    "replicated": ({"x": 8}, lambda w: P()),
    "whole": ({"x": 8}, whole),
    "whole on x": ({"x": 4, "y": 2}, whole),
    "split": ({"x": 8}, split),
    "split and shared": ({"x": 4, "y": 2}, functools.partial(split, inputs="y", outputs="x")),
}
WHOLE = ("replicated", "whole", "whole on x")  # no weight vector is split


def make_mesh(shape, kind=AUTO):
    return jax.make_mesh(tuple(shape.values()), tuple(shape), axis_types=(kind,) * len(shape))


def put(tree, mesh, specs):
    return jax.tree.map(lambda x, spec: jax.device_put(x, NamedSharding(mesh, spec)), tree, specs)


def state_specs(specs, tx, params=PARAMS):
    """PartitionSpecs of the optimizer's state, as Optax gives them to a user."""
    return optax.tree.map_params(
        tx,
        lambda _, spec: spec,
        jax.eval_shape(tx.init, params),
        specs,
        transform_non_params=lambda _: P(),
    )


def collectives(compiled):
    return re.findall(COLLECTIVES, compiled.as_text())


def assert_same_shardings(tree, expected):
    for a, b in zip(*map(jax.tree.leaves, (tree, expected)), strict=True):
        assert a.sharding.is_equivalent_to(b.sharding, a.ndim), f"{a.sharding} != {b.sharding}"
