"""Quantities of a scan against a parameter, with the laws fitted to them."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator

from thetadot.laws import Fit
from thetadot.plot._style import COLORS, GRAY, new_figure, pretty, set_margins

if TYPE_CHECKING:
    import xarray as xr

_LINE = 200  # points of a fitted line


def law_figure(laws: Sequence[tuple["xr.Dataset", Fit]], footer: str = "") -> Figure:
    """One panel a law: every lane as a point with its error, the law as a line, its 95 % confidence band.

    Args:
        laws: each with the scan, or the part of it, that it was fitted to.
        footer: what stands at the foot of the figure.
    """
    fig = new_figure(3.6 * len(laws) + 0.6, 3.6)
    panels = fig.subplots(1, len(laws), squeeze=False)[0]
    set_margins(fig, (1, len(laws)), gaps=(0.15, 0.85))
    for i, (ax, (ds, fit)) in enumerate(zip(panels, laws, strict=True)):
        color = COLORS[i % len(COLORS)]
        x = np.asarray(ds[fit.x].values, float)
        ys = ds[fit.y].transpose(fit.x, ...).values.reshape(x.size, -1)
        errors = ds[f"{fit.y}_error"].transpose(fit.x, ...).values.reshape(x.size, -1)
        for y, error in zip(ys.T, errors.T, strict=True):
            ax.errorbar(x, y, np.nan_to_num(error), fmt="o", ms=2.5, lw=0.7, color=color, alpha=0.6)
        line = np.geomspace(x.min(), x.max(), _LINE)
        middle, low, high = fit.at(line)
        ax.plot(line, middle, color=GRAY, lw=1.2, zorder=0)
        ax.fill_between(line, low, high, color=GRAY, alpha=0.25, lw=0, zorder=0)
        ax.set_xscale("log")
        if fit.law == "power":
            ax.set_yscale("log")
        ax.xaxis.set_minor_locator(NullLocator())
        ax.set_xlabel(pretty(fit.x))
        unit = ds[fit.y].attrs.get("units")
        ax.set_ylabel(pretty(fit.y) + (f" ({unit})" if unit else ""))
        ax.set_title(_formula(fit), fontsize=8.5)
        ax.spines[["top", "right"]].set_visible(False)
    fig.text(0.995, 0.008, footer, ha="right", va="bottom", fontsize=6.5, color=GRAY)
    return fig


def _formula(fit: Fit) -> str:
    """The exponent or slope with its intervals: by regression, and over samples where there are several."""
    name = "exponent" if fit.law == "power" else "slope in log(1/x)"
    low, high = fit.interval
    lines = [f"{name} {fit.value:.5g}   (95 %: {low:.5g} … {high:.5g})"]
    if fit.sample_interval is not None:
        lines.append("over samples 95 %: {:.6g} … {:.6g}".format(*fit.sample_interval))
    return "\n".join(lines)
