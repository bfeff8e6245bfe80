"""What happens towards a blow-up, against the time that is left."""

from typing import TYPE_CHECKING

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator

from thetadot.plot._style import COLORS, GRAY, new_figure, pretty, set_margins

if TYPE_CHECKING:
    from thetadot.blowup import BlowUp

_LATE = 1e-3  # of T*, from where powers are fitted
_WIDE = 100  # largest over smallest value, from where an axis is logarithmic
_RESOLVED = 100  # errors of T*, below which τ is not known well enough


def blow_up_figure(found: "BlowUp") -> Figure:
    """Each recorded series against τ = T* - t, with its power of τ near the end.

    Time runs from left to right, as τ falls. Of a series with several entries every entry is a line, and the power is
    that of the mean of their sizes. A series that stays within a factor of a hundred is drawn on a linear axis instead.

    Args:
        found: a blow-up with `series`, of one flow.

    Raises:
        ValueError: there is no blow-up, or nothing was recorded.
    """
    if found.outcome.ndim or not bool(found.blew_up) or not found.series:
        raise ValueError("`blow_up_figure` needs a single blow-up with recorded observables: pass `observables=...`.")
    left = float(found.time) - np.asarray(found.ts)
    kept = left > _RESOLVED * max(float(found.error), np.finfo(float).eps * float(found.time))
    fig = new_figure(3.0 * len(found.series) + 0.6, 3.2)
    panels = fig.subplots(1, len(found.series), squeeze=False)[0]
    set_margins(fig, (1, len(panels)), gaps=(0.15, 0.6))
    for i, (ax, name) in enumerate(zip(panels, found.series, strict=True)):
        values = np.abs(np.asarray(found.series[name], float))[kept].reshape(int(np.sum(kept)), -1)
        _draw(ax, left[kept], values, pretty(name), COLORS[i % len(COLORS)])
    fig.text(0.995, 0.008, found.result, ha="right", va="bottom", fontsize=6.5, color=GRAY)
    return fig


def _draw(ax: Axes, left: np.ndarray, values: np.ndarray, title: str, color: str) -> None:
    """One panel: the entries of a series (T, entries) and, where they vary much, the power of their mean."""
    mean = values.mean(axis=1)
    late = (left < _LATE * left[0]) & (mean > 0)
    ax.plot(left, values, color=color, lw=1.2)
    ax.set_xscale("log")
    if np.max(mean) > _WIDE * np.min(mean[mean > 0], initial=np.inf) and np.sum(late) > 2:
        power, level = np.polyfit(np.log(left[late]), np.log(mean[late]), 1)
        ax.plot(left, np.exp(level) * left**power, color=GRAY, lw=0.9, ls=(0, (4, 3)), zorder=0)
        ax.set_yscale("log")
        title += rf" $\propto\ \tau^{{{power:.4f}}}$"
    ax.invert_xaxis()
    for axis in (ax.xaxis, ax.yaxis):
        axis.set_minor_locator(NullLocator())
    ax.set_xlabel(r"$\tau = T^* - t$")
    ax.set_title(title, fontsize=8.5)
    ax.spines[["top", "right"]].set_visible(False)
