"""Whether optimizers call the host at all: the default of the process."""

import os

_default = os.environ.get("P2T_JAX_HOST_CALLBACK", "1") != "0"


def set_host_callback(enabled: bool) -> None:
    """Chooses for the whole process whether optimizers may call the host.

    Without the host, a training step is plain JAX: it can be exported (`jax.export`), kept in JAX's
    compilation cache, and run where there are no callbacks, as on many TPUs. The benchmarks compare
    both ways. The default is True, or False if the environment variable `P2T_JAX_HOST_CALLBACK` is
    0.

    The choice is made when a function is traced: compiled programmes do not change.

    Args:
        enabled: the value that `host_callback=None` stands for.

    Raises:
        TypeError: If it is not a bool.

    Example:
        >>> import p2t_jax as p2t
        >>> p2t.set_host_callback(True)
    """
    global _default
    if not isinstance(enabled, bool):
        raise TypeError(f"enabled: must be True or False, got {enabled!r}.")
    _default = enabled


def host_callbacks(choice: bool | None) -> bool:
    """The choice of one optimizer, or the default of the process."""
    if choice is None:
        return _default
    if not isinstance(choice, bool):
        raise TypeError(f"host_callback: must be True, False or None, got {choice!r}.")
    return choice
