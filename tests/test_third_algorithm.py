"""What an algorithm gets by the interface of `p2t_jax._updates`, and writes nothing for.

The rest is in test_conventions.py.
"""

import functools

import helpers
import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest
from helpers import GRADS, PARAMS, assert_identical, member
from layouts import AUTO, EXPLICIT, make_mesh, put, state_specs, whole
from swapperm import swapperm

import p2t_jax as p2t

TX = swapperm(0)


@functools.cache
def expected():
    params, state = helpers.train_jit(TX)
    return params, p2t.permuted_params(state, params)


def test_it_permutes_and_lowers_the_loss():
    params, final = expected()
    assert bool(p2t.is_permutation(final, PARAMS))
    assert min(helpers.moved(final, PARAMS)) > 0.3
    downhill = [
        np.vdot(final[layer]["kernel"] - PARAMS[layer]["kernel"], GRADS[layer]["kernel"].sum(0))
        for layer in PARAMS
    ]
    assert max(downhill) < 0
    helpers.assert_permuted("swapperm", final, PARAMS, params)


def test_scan_and_vmap():
    assert_identical(helpers.train_scan(TX)[0], expected()[0])
    states = jax.vmap(TX.init)(helpers.stack([PARAMS] * 2))
    final = jax.vmap(p2t.permuted_params)(states, helpers.stack([PARAMS] * 2))
    assert_identical(member(final, 1), PARAMS)


def test_pmap():
    params, state, grads = (
        jax.tree.map(lambda x: np.stack([x] * 8, axis), tree)
        for tree, axis in ((PARAMS, 0), (TX.init(PARAMS), 0), (GRADS, 1))
    )
    step = jax.pmap(functools.partial(helpers.step, tx=TX))
    assert_identical(member(helpers.train(step, params, state, grads)[0], 7), expected()[0])


@pytest.mark.parametrize("kind", [AUTO, EXPLICIT])
def test_over_a_mesh(kind):
    mesh, specs = make_mesh({"x": 8}, kind), jax.tree.map(whole, PARAMS)
    with jax.set_mesh(mesh):
        params, state = put(PARAMS, mesh, specs), TX.init(put(PARAMS, mesh, specs))
        state = put(state, mesh, state_specs(specs, TX))
        for i in range(helpers.STEPS):
            params, state = helpers.jitted_step(TX)(
                params, state, put(member(GRADS, i), mesh, specs)
            )
        final = p2t.permuted_params(state, params)
    assert_identical(final, expected()[1])


def test_checkpoints(tmp_path):
    params, state = PARAMS, TX.init(PARAMS)
    for i in range(helpers.STEPS):
        if i == 3:
            with ocp.StandardCheckpointer() as checkpointer:
                checkpointer.save(tmp_path / "state", state)
                checkpointer.wait_until_finished()
                state = checkpointer.restore(tmp_path / "state", TX.init(PARAMS))
        params, state = helpers.jitted_step(TX)(params, state, member(GRADS, i))
    assert_identical(params, expected()[0])
