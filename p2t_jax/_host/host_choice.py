"""Whether and how optimizers call the host: the default of the process."""

import os
from typing import Literal, TypeAlias

HostCallback: TypeAlias = bool | Literal["ffi"]

_OF_ENVIRONMENT: dict[str, HostCallback] = {"0": False, "ffi": "ffi"}
_default: HostCallback = _OF_ENVIRONMENT.get(os.environ.get("P2T_JAX_HOST_CALLBACK", "1"), True)


def set_host_callback(enabled: HostCallback) -> None:
    """Chooses for the whole process whether optimizers may call the host, and how.

    - True: on CPUs, LAPerm ranks on the host through XLA's FFI, a C interface that copies nothing.
      SGPerm searches on the host everywhere, through `jax.pure_callback`; on CPUs before JAX 0.12,
      where that can hang (several devices, a single core), through the FFI.
    - "ffi": SGPerm takes the FFI on CPUs, too. It is faster, several Python threads may train at
      once with any version of JAX, and steps can be kept in JAX's compilation cache and exported
      for CPUs (`jax.export`). They run in any process that has imported `p2t_jax`.
    - False: a training step is plain JAX. It can be exported for other platforms, and run where
      there are no callbacks, as on many TPUs.

    The default is True, or what the environment variable `P2T_JAX_HOST_CALLBACK` says: 0 for False,
    or ffi. The benchmarks compare all. The choice is made when a function is traced: compiled
    programs do not change.

    Args:
        enabled: the value that `host_callback=None` stands for.

    Raises:
        TypeError: If it is neither a bool nor a string.
        ValueError: If it is another string than "ffi".

    Example:
        >>> import p2t_jax as p2t
        >>> p2t.set_host_callback("ffi")
        >>> p2t.set_host_callback(True)
    """
    global _default
    _default = _checked("enabled", enabled, 'True, False or "ffi"')


def host_choice(choice: HostCallback | None) -> HostCallback:
    """The choice of one optimizer, or the default of the process."""
    if choice is None:
        return _default
    return _checked("host_callback", choice, 'True, False, "ffi" or None')


def _checked(name: str, choice: HostCallback, allowed: str) -> HostCallback:
    if not isinstance(choice, bool | str):
        raise TypeError(f"{name}: must be {allowed}, got {choice!r}.")
    if isinstance(choice, str) and choice != "ffi":
        raise ValueError(f"{name}: must be {allowed}, got {choice!r}.")
    return choice
