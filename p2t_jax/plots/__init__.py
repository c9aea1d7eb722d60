"""The paper's pictures, on Matplotlib's Axes.

Every function takes the Axes to draw on, `plt.gca()` by default, and returns it. None of them shows
a figure or changes Matplotlib's settings. Weights may be NumPy or JAX arrays.

`COLORS` has a fixed colour for each optimizer, from a palette that colour-blind readers can tell
apart (Okabe and Ito). `learning_curve` uses it for curves with these labels.
"""

try:
    import matplotlib as _matplotlib  # noqa: F401
except ImportError as error:
    raise ImportError("p2t_jax.plots needs Matplotlib: pip install matplotlib pillow.") from error

from p2t_jax.plots._chords import chords, permissible_movements
from p2t_jax.plots._training import COLORS, animate, learning_curve, movement
from p2t_jax.plots._weights import connections, profile, profiles, weight_vector

__all__ = [
    "COLORS",
    "animate",
    "chords",
    "connections",
    "learning_curve",
    "movement",
    "permissible_movements",
    "profile",
    "profiles",
    "weight_vector",
]
