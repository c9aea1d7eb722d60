"""Many devices: the same parameters to the bit, on whatever devices and however they lie there.

Where no weight vector is split, synchronizing needs no communication; where the programme runs
device by device (pmap, shard_map), each ranks its own vectors on the host.
"""

import contextlib
import os
import re
import socket
import subprocess
import sys
from collections import Counter
from functools import partial
from pathlib import Path
from typing import Any

import distributed_worker as run
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import p2t_jax as p2t
from p2t_jax._host.kernels import radix as rank

ROOT = Path(__file__).parents[1]
COLLECTIVES = "all-gather|all-reduce|all-to-all|collective-|reduce-scatter"
CALLBACK = "xla_ffi_python_cpu_callback"

# A mesh, and where the kernels lie on it.
LAYOUTS: dict[str, tuple[dict[str, int], Any]] = {
    "replicated": ({"x": 8}, lambda w: P()),
    "whole": ({"x": 8}, run.whole),
    "whole on x": ({"x": 4, "y": 2}, run.whole),
    "split": ({"x": 8}, run.split),
    "split and shared": ({"x": 4, "y": 2}, partial(run.split, inputs="y", outputs="x")),
}
WHOLE = ("replicated", "whole", "whole on x")  # no weight vector is split
AUTO, EXPLICIT = AxisType.Auto, AxisType.Explicit


def make_mesh(shape: dict[str, int], kind: AxisType = AUTO) -> Any:
    return jax.make_mesh(tuple(shape.values()), tuple(shape), axis_types=(kind,) * len(shape))


def put(tree: Any, mesh: Any, specs: Any) -> Any:
    return jax.tree.map(lambda x, spec: jax.device_put(x, NamedSharding(mesh, spec)), tree, specs)


def collectives(compiled: Any) -> list[str]:
    return re.findall(COLLECTIVES, compiled.as_text())


def assert_identical(tree: Any, expected: Any) -> None:
    """The same bits: not -0.0 for 0.0, not another dtype."""
    assert jax.tree.structure(tree) == jax.tree.structure(expected)
    for a, b in zip(*map(jax.tree.leaves, (tree, expected)), strict=True):
        assert (a.shape, a.dtype) == (b.shape, b.dtype)
        np.testing.assert_array_equal(*(np.asarray(x).reshape(-1).view(np.uint8) for x in (a, b)))


def assert_same_shardings(tree: Any, expected: Any) -> None:
    for a, b in zip(*map(jax.tree.leaves, (tree, expected)), strict=True):
        assert a.sharding.is_equivalent_to(b.sharding, a.ndim), f"{a.sharding} != {b.sharding}"


@pytest.fixture(scope="module")
def single() -> tuple[Any, Any]:
    """Parameters and their permutation after the run on one device."""
    params, state = run.train(jax.jit(run.step), run.PARAMS, run.TX.init(run.PARAMS), run.GRADS)
    return params, p2t.permuted_params(state, params)


@pytest.fixture
def host_rows(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """The shapes of the rows that each call on the host is given to synchronize."""
    shapes: list[tuple[int, int]] = []
    kernel = rank.synchronize_rows

    def spy(phi: Any, *args: Any) -> None:
        if phi.shape != (1, 1):  # compiling, before the first step
            shapes.append(phi.shape)
        kernel(phi, *args)

    monkeypatch.setattr(rank, "synchronize_rows", spy)
    return shapes


def rows_of(w: Any, parts: int = 1) -> tuple[int, int]:
    return w.shape[-1] // parts, w.size // w.shape[-1]


def expected_rows(devices: int, parts: int) -> Counter[tuple[int, int]]:
    """Those that steps 3 and 6 synchronize, if each device has 1 / parts of every kernel."""
    kernels = [w for w in jax.tree.leaves(run.PARAMS) if w.ndim > 1]
    return Counter([rows_of(w, parts) for w in kernels] * devices * 2)


# jit, over a mesh


@pytest.mark.parametrize(
    ("mode", "layout"),
    [("auto", layout) for layout in LAYOUTS]
    + [("auto, mesh in context", layout) for layout in ("whole", "split")]
    + [("explicit", layout) for layout in ("whole on x", "split and shared")],
)
def test_jit_over_a_mesh(mode: str, layout: str, single: Any) -> None:
    shape, spec = LAYOUTS[layout]
    mesh = make_mesh(shape, EXPLICIT if mode == "explicit" else AUTO)
    specs = jax.tree.map(spec, run.PARAMS)
    with contextlib.nullcontext() if mode == "auto" else jax.set_mesh(mesh):
        initial = put(run.PARAMS, mesh, specs)
        first = put(run.TX.init(run.PARAMS), mesh, run.state_specs(specs))
        grads = put(run.member(run.GRADS, 0), mesh, specs)
        step = jax.jit(run.step).lower(initial, first, grads).compile()
        params, state = run.train(
            lambda p, s, g: step(p, s, put(g, mesh, specs)), initial, first, run.GRADS
        )
    assert_identical(params, single[0])
    assert_same_shardings((params, state), (initial, first))
    if mode == "explicit":
        assert jax.tree.map(jax.typeof, state) == jax.tree.map(jax.typeof, first)
    # A callback would gather everything on one device.
    assert CALLBACK not in step.as_text()
    # Where vectors are split there must be some, or this test would not know one.
    assert bool(collectives(step)) == (layout not in WHOLE)


@pytest.mark.parametrize("kind", [AUTO, EXPLICIT])
@pytest.mark.parametrize("layout", ["replicated", "whole on x"])
def test_init_keeps_shardings(layout: str, kind: AxisType) -> None:
    shape, spec = LAYOUTS[layout]
    mesh = make_mesh(shape, kind)
    with jax.set_mesh(mesh) if kind == EXPLICIT else contextlib.nullcontext():
        params = put(run.PARAMS, mesh, jax.tree.map(spec, run.PARAMS))
        compiled = jax.jit(run.TX.init).lower(params).compile()
        for state in (run.TX.init(params), compiled(params)):
            assert_same_shardings(state[1].theta_sorted, params)
            assert_identical(state, run.TX.init(run.PARAMS))
    assert not collectives(compiled)


@pytest.mark.parametrize(
    ("layout", "kind"), [("whole on x", AUTO), ("whole on x", EXPLICIT), ("split", AUTO)]
)
def test_permuted_params_over_a_mesh(layout: str, kind: AxisType, single: Any) -> None:
    shape, spec = LAYOUTS[layout]
    mesh, specs = make_mesh(shape, kind), jax.tree.map(spec, run.PARAMS)
    with jax.set_mesh(mesh) if kind == EXPLICIT else contextlib.nullcontext():
        initial = put(run.PARAMS, mesh, specs)
        state = put(run.TX.init(run.PARAMS), mesh, run.state_specs(specs))
        params = put(single[0], mesh, specs)
        compiled = jax.jit(p2t.permuted_params).lower(state, params).compile()
        permuted = compiled(state, params)
        is_permutation = jax.jit(p2t.is_permutation)
        assert is_permutation(permuted, initial)
        assert not is_permutation(params, initial)
    assert_identical(permuted, single[1])
    if layout in WHOLE:
        assert_same_shardings(permuted, initial)
        assert not collectives(compiled)


# shard_map


@pytest.mark.parametrize("kind", [AUTO, EXPLICIT])
@pytest.mark.parametrize("layout", WHOLE)
def test_shard_map(layout: str, kind: AxisType, single: Any, host_rows: Any) -> None:
    shape, spec = LAYOUTS[layout]
    mesh, specs = make_mesh(shape, kind), jax.tree.map(spec, run.PARAMS)
    both = (specs, run.state_specs(specs))
    with jax.set_mesh(mesh) if kind == EXPLICIT else contextlib.nullcontext():
        initial = put(run.PARAMS, mesh, specs)
        grads = put(run.member(run.GRADS, 0), mesh, specs)
        init = jax.jit(jax.shard_map(run.TX.init, mesh=mesh, in_specs=(specs,), out_specs=both[1]))
        mapped = jax.shard_map(run.step, mesh=mesh, in_specs=(*both, specs), out_specs=both)
        first = init(initial)
        step = jax.jit(mapped).lower(initial, first, grads).compile()
        params, state = run.train(
            lambda p, s, g: step(p, s, put(g, mesh, specs)), initial, first, run.GRADS
        )
    assert_identical(params, single[0])
    assert_same_shardings((params, state), (initial, first))
    assert not collectives(step)
    assert CALLBACK in step.as_text()
    parts = {"replicated": 1, "whole": 8, "whole on x": 4}[layout]
    assert Counter(host_rows) == expected_rows(run.DEVICES, parts)


@pytest.mark.parametrize("inner", [None, {"y"}])
def test_shard_map_over_some_axes(inner: set[str] | None, single: Any, host_rows: Any) -> None:
    # Over x alone, y is the partitioner's, which must not meet a callback; with a second shard_map
    # over y inside, no axis is.
    mesh = make_mesh({"x": 4, "y": 2})

    def mapped(fn: Any, axis: str, **kwargs: Any) -> Any:
        specs = jax.tree.map(partial(run.whole, axes=axis), run.PARAMS)
        both = (specs, run.state_specs(specs))
        return jax.shard_map(
            fn, axis_names={axis}, in_specs=(*both, specs), out_specs=both, **kwargs
        )

    step = mapped(run.step, "y") if inner else run.step
    step = jax.jit(mapped(step, "x", mesh=mesh))
    specs = jax.tree.map(partial(run.whole, axes=("x", "y")), run.PARAMS)
    initial = put(run.PARAMS, mesh, specs)
    first = jax.jit(run.TX.init)(initial)
    params, state = run.train(
        lambda p, s, g: step(p, s, put(g, mesh, specs)), initial, first, run.GRADS
    )
    assert_identical(params, single[0])
    assert_same_shardings((params, state), (initial, first))
    assert Counter(host_rows) == (expected_rows(8, parts=8) if inner else Counter())
    compiled = step.lower(params, state, put(run.member(run.GRADS, 0), mesh, specs)).compile()
    assert not collectives(compiled)
    assert (CALLBACK in compiled.as_text()) == bool(inner)


@pytest.mark.parametrize("first", ["shard_map", "jit"])
def test_shard_map_beside_the_partitioner(first: str) -> None:
    # The same shapes in one programme, on each device and across them.
    mesh = make_mesh({"x": 8})
    params = {"kernel": run.PARAMS["Dense_0"]["kernel"]}
    tx = p2t.laperm(optax.sgd(0.5), sync_period=1)

    def step(params: Any, state: Any) -> Any:
        return run.step(params, state, jax.tree.map(jnp.sin, params), tx)[0]

    ways = [jax.shard_map(step, mesh=mesh, in_specs=P(), out_specs=P()), step] * 2
    program = jax.jit(lambda *args: [way(*args) for way in ways[first == "jit" :]])
    expected = jax.jit(step)(params, tx.init(params))
    params = put(params, mesh, jax.tree.map(run.whole, params))
    for result in program(params, tx.init(params)):
        assert_identical(result, expected)


# Updates that lie elsewhere than the parameters: `optax.apply_updates` can add them


@pytest.mark.parametrize("how", ["explicit", "shard_map"])
@pytest.mark.parametrize("tx", [optax.identity(), p2t.synchronize(1)], ids=["optax", "p2t_jax"])
def test_replicated_updates_of_sharded_params(tx: Any, how: str) -> None:
    mesh = make_mesh({"x": 8}, EXPLICIT if how == "explicit" else AUTO)
    specs = jax.tree.map(run.whole, run.PARAMS)
    both = (specs, run.state_specs(specs, tx))

    def step(params: Any, state: Any) -> Any:
        return run.step(params, state, jax.tree.map(lambda w: jnp.ones(w.shape), params), tx)

    if how == "shard_map":
        step = jax.shard_map(step, mesh=mesh, in_specs=both, out_specs=both)
    expected, _ = jax.jit(partial(run.step, tx=tx))(
        run.PARAMS, tx.init(run.PARAMS), jax.tree.map(np.ones_like, run.PARAMS)
    )
    with jax.set_mesh(mesh):
        params = put(run.PARAMS, mesh, specs)
        params, _ = jax.jit(step)(params, tx.init(params))
    assert_identical(params, expected)


# pmap, and ensembles


def test_pmap_of_the_mean_gradients(single: Any, host_rows: Any) -> None:
    # The mean of these is exact, and the gradients of the run.
    offsets = 2 * np.arange(8, dtype=np.float32) - 7
    grads = jax.tree.map(lambda g: np.stack([g + offset for offset in offsets]), run.GRADS)

    def train(params: Any, grads: Any) -> Any:
        def body(carry: Any, grads: Any) -> Any:
            return run.step(*carry, jax.lax.pmean(grads, "x")), None

        return jax.lax.scan(body, (params, run.TX.init(params)), grads)[0]

    replicas, state = jax.pmap(train, "x", in_axes=(None, 0))(run.PARAMS, grads)
    for i in range(8):
        assert_identical(run.member(replicas, i), single[0])
    assert Counter(host_rows) == expected_rows(8, parts=1)

    permuted = jax.vmap(p2t.permuted_params)(state, replicas)
    for i in range(8):
        assert_identical(run.member(permuted, i), single[1])
    is_permutation = jax.vmap(p2t.is_permutation, in_axes=(0, None))
    assert is_permutation(permuted, run.PARAMS).all()
    assert not is_permutation(replicas, run.PARAMS).any()
    with pytest.raises(ValueError, match="vmap"):
        p2t.permuted_params(state, replicas)


def rolled(tree: Any, axis: int = 0) -> Any:
    return jax.tree.map(lambda x: np.stack([np.roll(x, i, -1) for i in range(8)], axis), tree)


def test_ensemble_over_a_mesh() -> None:
    mesh = make_mesh({"x": 8})
    ensemble = jax.device_put(rolled(run.PARAMS), NamedSharding(mesh, P("x")))
    grads = rolled(run.GRADS, axis=1)
    params, state = run.train(
        jax.jit(jax.vmap(run.step)), ensemble, jax.vmap(run.TX.init)(ensemble), grads
    )
    assert_same_shardings(params, ensemble)
    permuted = jax.jit(jax.vmap(p2t.permuted_params))(state, params)
    assert_same_shardings(permuted, ensemble)
    for i in (0, 5):
        initial = run.member(rolled(run.PARAMS), i)
        expected, alone = run.train(
            jax.jit(run.step), initial, run.TX.init(initial), run.member(grads, i, axis=1)
        )
        assert_identical(run.member(params, i), expected)
        assert_identical(run.member(permuted, i), p2t.permuted_params(alone, expected))
    with pytest.raises(ValueError, match="vmap"):
        p2t.permuted_params(state, params)


def test_ensemble_of_one_beginning_over_explicit_axes(single: Any) -> None:
    # All begin alike: only the gradients have an ensemble axis, the sorted weights have none.
    mesh = make_mesh({"x": 8}, EXPLICIT)

    def train(params: Any, grads: Any) -> Any:
        state = run.TX.init(params)
        return jax.lax.scan(lambda carry, g: (run.step(*carry, g), None), (params, state), grads)[0]

    with jax.set_mesh(mesh):
        grads = jax.tree.map(lambda g: np.stack([g] * 8), run.GRADS)
        grads = jax.device_put(grads, NamedSharding(mesh, P("x")))
        params = jax.device_put(run.PARAMS, NamedSharding(mesh, P()))
        params, _ = jax.jit(jax.vmap(train, in_axes=(None, 0)))(params, grads)
    for i in range(8):
        assert_identical(run.member(params, i), single[0])


# Other processes, because these would hang where they fail


def worker(*args: str, devices: int) -> subprocess.Popen[str]:
    env = os.environ | {
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}",
        "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]),
    }
    return subprocess.Popen(
        [sys.executable, "-X", "faulthandler", run.__file__, *args],
        env=env,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def wait_for(workers: list[subprocess.Popen[str]], seconds: float) -> None:
    try:
        outputs = [process.communicate(timeout=seconds)[0] for process in workers]
    finally:
        for process in workers:
            process.kill()
    for process, output in zip(workers, outputs, strict=True):
        assert process.returncode == 0, output


def test_no_deadlock_between_collectives() -> None:
    wait_for([worker("stress", devices=8)], 120)


def test_two_processes(single: Any, tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    results = tmp_path / "params.npz"
    wait_for([worker("train", port, str(i), "2", str(results), devices=2) for i in range(2)], 120)
    sgperm = jax.jit(partial(run.step, tx=run.SGPERM))
    searched, _ = run.train(sgperm, run.PARAMS, run.SGPERM.init(run.PARAMS), run.GRADS)
    with np.load(results) as arrays:
        for name in ("whole", "split", "shard_map", "sgperm"):
            expected = jax.tree.leaves(searched if name == "sgperm" else single[0])
            assert_identical([arrays[f"{name}/{i}"] for i in range(len(expected))], expected)
