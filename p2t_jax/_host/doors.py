"""Which of the two doors to the host: XLA's FFI, or `jax.pure_callback`.

Both find positions for all parameters in one call, and JAX takes the weights. The FFI copies
nothing and waits for nothing, and its calls can be exported and cached. Before JAX 0.12,
`jax.pure_callback` can hang.
"""

import functools
import warnings
from collections.abc import Callable
from typing import Any

import jax

from p2t_jax._host import ffi
from p2t_jax._host.by_ffi import by_ffi
from p2t_jax._host.by_pure_callback import by_pure_callback
from p2t_jax._host.permutation import Permutation
from p2t_jax._host.run_jobs import cores

# A callback of `jax.pure_callback` waits for copies of its operands. Before JAX 0.12 these are made
# on the threads that callbacks run on, as many as there are cores. So a program hangs where
# callbacks occupy all of them: on several CPU devices, or on a single core.
CALLBACKS_CAN_HANG = jax.__version_info__ < (0, 12)


def door(permutation: Permutation, on_cpu: bool, asked_for_ffi: bool) -> Callable[..., Any]:
    """The door that a program on one device takes: `by_ffi` or `by_pure_callback`."""
    if not on_cpu:
        return by_pure_callback
    crowded = jax.local_device_count("cpu") > 1 or cores() == 1
    safe = not (CALLBACKS_CAN_HANG and crowded)
    if permutation.by_pure_callback and safe and not asked_for_ffi:
        return by_pure_callback
    if ffi.fits():
        return by_ffi
    _say_that_it_does_not_fit()
    return by_pure_callback


@functools.cache
def _say_that_it_does_not_fit() -> None:
    warnings.warn(
        "p2t_jax does not know the FFI of this version of jaxlib, and calls the host through "
        "jax.pure_callback instead. Before JAX 0.12 that can hang on several CPU devices, on a "
        "single core, and in several Python threads.",
        stacklevel=2,
    )
