"""Eight CPU devices for every test, set before JAX is imported; and faster compilation for some."""

import os

import pytest

os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["XLA_FLAGS"] = (
    os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=8"
)


@pytest.fixture(scope="module")
def compile_fast():
    """For modules whose time is nearly all XLA's: it leaves out the expensive passes."""
    import jax

    name = "jax_disable_most_optimizations"
    old = jax.config.read(name)
    jax.config.update(name, True)
    yield
    jax.config.update(name, old)
