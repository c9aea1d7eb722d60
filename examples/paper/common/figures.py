"""How all figures of docs/results.md look: one palette, percentages, the paper's numbers dotted."""

from typing import Any

import matplotlib.ticker as ticker
import numpy as np

from common.records import Record
from p2t_jax import plots

FEEDBACK = "LAPerm with error feedback"  # as runs and figures name it


def percent(axis: Any, decimals: int = 0) -> None:
    """Write the ticks of an axis as percentages."""
    axis.set_major_formatter(ticker.PercentFormatter(1, decimals=decimals))


def band(
    ax: Any, batches: Any, accuracy: Any, color: str, label: str, *, error: bool = False,
    **style: Any,
) -> None:  # fmt: skip
    """Draw the test accuracy (or error) of several runs: their mean, and a min-max band."""
    values = 1 - accuracy if error else accuracy
    plots.learning_curve(batches, values, label=label, ax=ax, color=plots.COLORS[color], **style)
    ax.set_ylabel("test error" if error else "test accuracy")


def curve(ax: Any, record: Record, optimizer: str, color: str, label: str, **style: Any) -> None:
    """Draw the runs of an optimizer, if there are any."""
    batches, accuracy = record.curves(optimizer)
    if len(accuracy):
        band(ax, batches, accuracy, color, label, **style)


def dots(ax: Any, values: Any, row: float, color: str, label: str | None) -> None:
    """Draw what seeds gave, a dot each, and a line at their mean."""
    style = {"color": plots.COLORS[color]}
    ax.plot(values, [row] * len(values), "o", alpha=0.6, markersize=5, label=label, **style)
    if len(values):
        ax.plot([np.mean(values)] * 2, [row - 0.17, row + 0.17], linewidth=2, **style)


def error_axis(ax: Any, low: float, high: float) -> None:
    """A logarithmic axis of errors."""
    ax.set(yscale="log", ylim=(low, high))
    ticks = [t for t in (0.01, 0.015, 0.02, 0.03, 0.05, 0.07, 0.1, 0.15, 0.2, 0.3, 0.5, 1.0)
             if low <= t <= high]  # fmt: skip
    ax.yaxis.set_major_locator(ticker.FixedLocator(ticks))
    ax.yaxis.set_minor_locator(ticker.NullLocator())
    ax.yaxis.set_major_formatter(ticker.FuncFormatter(lambda value, _: f"{100 * value:g}%"))
    ax.grid(axis="y", alpha=0.3)


def paper_line(ax: Any, value: float, label: str, color: str = "black") -> None:
    """The paper's number, as a dotted line."""
    ax.axhline(
        value, color=plots.COLORS.get(color, color), linestyle=":", linewidth=1.2, label=label
    )
