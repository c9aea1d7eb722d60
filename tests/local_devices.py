"""Devices that look ahead alone: how their parameters and states are kept, and their steps."""

import functools

import helpers
import jax
import numpy as np
from helpers import AXES, GRADS, PARAMS, STEPS
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P
from oracles.local_laperm import local_laperm

PERIOD = 3  # that of `helpers.OPTIMIZERS`


def gradients(devices):
    """(steps, devices, ...): the gradients of the run, other ones on each device."""
    return jax.tree.map(
        lambda g: np.stack([np.roll(g, d, axis=-1) for d in range(devices)], axis=1), GRADS
    )


@functools.cache
def simulated(devices, m=0.0):
    """The simulation's parameters, and what was agreed on, after every step."""
    leaves, treedef = jax.tree.flatten(PARAMS)
    grads = [jax.tree.leaves(helpers.member(gradients(devices), i)) for i in range(STEPS)]
    run = local_laperm(
        leaves, treedef.flatten_up_to(AXES), lambda g: np.float32(-0.5) * g, grads, PERIOD,
        m,
    )  # fmt: skip
    return [
        (treedef.unflatten(params), agreed and treedef.unflatten(agreed)) for params, agreed in run
    ]


def first(tree):
    return jax.tree.map(lambda x: x[0], tree)


def stacked(tree):
    return jax.tree.map(lambda x: x[None], tree)


def over_a_mesh(tx, params, check_vma=True):
    """`start(params)` and `step(params, state, grads)` under shard_map, and `put(grads)`.

    Every array has a leading axis, along the devices or, of a step counter, of size 1.
    """
    mesh = jax.make_mesh((jax.device_count(),), ("batch",), axis_types=(AxisType.Auto,))
    state = jax.eval_shape(tx.init, params)[1]
    of_synchronize = state._replace(
        sync_step=P(),
        lookahead_step=P(),
        theta_sorted=P("batch"),
        feedback_error=None if state.feedback_error is None else P("batch"),
        theta_synchronized=P("batch"),
    )
    specs = P("batch"), of_synchronize
    shard_map = functools.partial(
        jax.shard_map, mesh=mesh, out_specs=(P("batch"), specs), check_vma=check_vma
    )

    def step(params, state, grads):
        return stacked(helpers.step(*first((params, state, grads)), tx))

    def put(tree):
        sharding = NamedSharding(mesh, P("batch"))
        return jax.tree.map(
            lambda x: jax.make_array_from_callback(x.shape, sharding, x.__getitem__), tree
        )

    start = jax.jit(shard_map(lambda params: stacked((params, tx.init(params))), in_specs=P()))
    return start, jax.jit(shard_map(step, in_specs=(P("batch"), specs, P("batch")))), put
