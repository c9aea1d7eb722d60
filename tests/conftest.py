"""Eight CPU devices and cheap compilation for every test; and the fixtures of the suite."""

import gc
import importlib.metadata
import os
from pathlib import Path

import pytest

os.environ["JAX_PLATFORMS"] = "cpu"
flags = "--xla_force_host_platform_device_count=8"
# The time of the suite is nearly all XLA's, which leaves out its expensive passes.
os.environ["JAX_DISABLE_MOST_OPTIMIZATIONS"] = "1"
if importlib.metadata.version("jaxlib").startswith("0.10."):
    # Half of the time of small programs; the flag is unknown, and fatal, to JAX 0.12.
    flags += " --xla_cpu_use_fusion_emitters=false"
os.environ["XLA_FLAGS"] = f"{flags} {os.environ.get('XLA_FLAGS', '')}"


# JAX keeps millions of objects, and looking through them for cycles takes long.
gc.set_threshold(200_000, 20, 50)


def pytest_collection_finish():
    gc.collect()
    gc.freeze()


def pytest_collection_modifyitems(items):
    for item in items:
        if item.path.name.startswith("test_paper_"):
            item.add_marker("slow")


@pytest.fixture(scope="module", autouse=True)
def _few_memory_maps():
    """Each compiled program takes some; at 65,530, the limit of Linux, a process aborts."""
    yield
    maps = Path("/proc/self/maps")
    if maps.exists() and len(maps.read_bytes().splitlines()) > 20_000:
        import jax

        jax.clear_caches()


@pytest.fixture(params=["laperm", "sgperm"])
def name(request):
    """Runs a test once for each optimizer: a name in `helpers.OPTIMIZERS`."""
    return request.param


@pytest.fixture
def no_picture_shown(monkeypatch):
    """No picture is shown by itself, and no setting changes."""
    import matplotlib as mpl
    import matplotlib.pyplot as plt

    before = dict(mpl.rcParams)
    plt.close("all")  # what other tests left, the docstrings' examples for one
    monkeypatch.setattr(plt, "show", lambda *_, **__: pytest.fail("plt.show was called"))
    yield
    assert dict(mpl.rcParams) == before
    plt.close("all")


@pytest.fixture
def ax():
    import matplotlib.pyplot as plt

    _, (ax, _) = plt.subplots(1, 2)  # plt.gca() is the other one
    return ax


@pytest.fixture
def host_calls(monkeypatch):
    """A list of the calls of the host from now on: see `helpers.spy_on_the_host`."""
    import helpers

    return helpers.spy_on_the_host(monkeypatch)
