"""JAX's configuration, threads and devices by default."""

import threading

import chex
import helpers
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import OPTIMIZERS, TX, assert_identical
from one_layer import AXES, PARAMS, expected, train

import p2t_jax as p2t

SAME = {  # switches that change nothing about the result
    "jax_check_tracer_leaks": True,
    "jax_debug_infs": True,
    "jax_debug_key_reuse": True,
    "jax_debug_nans": True,
    "jax_disable_jit": True,
    "jax_enable_checks": True,
    "jax_enable_x64": True,
    "jax_log_compiles": True,
    "jax_numpy_dtype_promotion": "strict",
    "jax_numpy_rank_promotion": "raise",
    "jax_threefry_gpu_kernel_lowering": True,
    "jax_use_shardy_partitioner": False,
}
OTHER_DRAWS = {  # and those that may change the random numbers
    "jax_default_prng_impl": "rbg",
    "jax_enable_custom_prng": True,
    "jax_threefry_partitionable": False,
}


@pytest.mark.parametrize("option", SAME)
def test_switches_that_must_change_nothing(option, name):
    want = expected(name)
    with helpers.config(option, SAME[option]):
        final, *_ = train(OPTIMIZERS[name]())
        assert bool(p2t.is_permutation(final, PARAMS))
        assert_identical(final, want)
        if "promotion" in option:
            assert_identical(train(TX[name], wrap=lambda function: function)[0], want)


@pytest.mark.parametrize("option", OTHER_DRAWS)
def test_switches_of_random_numbers(option, name):
    with helpers.config(option, OTHER_DRAWS[option]):
        final, params, _ = train(OPTIMIZERS[name]())
        helpers.assert_permuted(name, final, PARAMS, params, AXES)
        assert helpers.moved(final, PARAMS)[0] > 0.3


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_strict_promotion_of_half_precision(dtype, name):
    params = jax.tree.map(lambda w: jnp.asarray(w, dtype), PARAMS)
    with jax.numpy_dtype_promotion("strict"):
        final, _, _ = train(OPTIMIZERS[name](), params)
        assert bool(p2t.is_permutation(final, params))


def test_x64_in_this_thread_alone(name):
    """The threads that call the host do not know of it."""
    with jax.enable_x64(True):
        params = jax.tree.map(np.float64, helpers.PARAMS)
        grads = jax.tree.map(np.float64, helpers.GRADS)
        params, state = helpers.train_jit(OPTIMIZERS[name](), params, grads)
        final = jax.block_until_ready(p2t.permuted_params(state, params))
        chex.assert_trees_all_equal_dtypes(final, params)
        assert bool(p2t.is_permutation(final, jax.tree.map(np.float64, helpers.PARAMS)))


def test_results_stay_where_the_default_device_is(name):
    device = jax.devices()[3]
    with jax.default_device(device):
        final, params, state = train(OPTIMIZERS[name]())
    assert {d for x in jax.tree.leaves((final, params, state)) for d in x.devices()} == {device}
    assert_identical(final, expected(name))


def test_threads_train_at_the_same_time(name):
    want, results = expected(name), [None] * 4

    def run(i):
        results[i] = train(OPTIMIZERS[name]())[0]

    threads = [threading.Thread(target=run, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for result in results:
        assert_identical(result, want)
