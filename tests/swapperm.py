"""A third algorithm, as short as one can be: what a new one has to write, and what it need not.

SwapPerm draws random pairs of the weights of a neuron in every step, and exchanges a pair where
that lowers a linear model of the loss: (w_j - w_i) (u_i - u_j) > 0 for updates u, which point down.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.export
import jax.numpy as jnp
import optax

from p2t_jax import _leaves, _updates


class SwapState(NamedTuple):
    swap_step: jax.Array
    swap_key: jax.Array
    theta: optax.Params
    vectors: Any

    def exact_params(self, params: Mapping) -> dict:
        found = _updates.vectors_of_state(self.swap_step, self.theta, self.vectors, params)
        return {x.path: x.weights for x in found}


jax.export.register_namedtuple_serialization(SwapState, serialized_name="tests.SwapState")


def swapperm(seed, inner=None, *, vectors="flax"):
    def init_fn(params):
        _, axes = _updates.checked_init(params, vectors)
        key = jax.random.key_data(jax.random.key(seed))
        theta = jax.tree.map(_updates.state_copy, params)
        return SwapState(jnp.zeros((), jnp.int32), key, theta, axes)

    def update_fn(updates, state, params=None, **extra_args):
        step = _updates.checked(updates, params, state.vectors, state.theta)
        key = jax.random.fold_in(jax.random.wrap_key_data(state.swap_key), state.swap_step)
        theta = [swapped(jax.random.fold_in(key, p.number), p) for p in step.moving]
        held = jax.tree.map(jnp.zeros_like, updates)
        return step.put_theta(held, theta), state._replace(
            swap_step=optax.safe_increment(state.swap_step),
            theta=step.put(state.theta, step.moving, theta),
        )

    link = optax.GradientTransformationExtraArgs(init_fn, update_fn)
    return optax.chain(inner or optax.sgd(1.0), link)


def swapped(key, parameter):
    w, u = (_leaves.to_rows(x, parameter.axes) for x in (parameter.weights, parameter.update))
    order = jax.random.permutation(key, w.shape[-1])
    i, j = order[: w.shape[-1] // 2], order[w.shape[-1] // 2 : w.shape[-1] // 2 * 2]
    better = (w[..., j] - w[..., i]) * (u[..., i] - u[..., j]) > 0
    at_i, at_j = (jnp.where(better, w[..., b], w[..., a]) for a, b in ((i, j), (j, i)))
    theta = _leaves.from_rows(w.at[..., i].set(at_i).at[..., j].set(at_j), parameter.weights.shape,
                              parameter.axes)  # fmt: skip
    return _leaves.sharded_like(theta, parameter.weights)
