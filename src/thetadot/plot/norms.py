"""Which weights have moved, and what rank they have: relative change of the norms, and effective ranks."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator

from thetadot.plot._style import (
    COLORS,
    add_footer,
    label_lines,
    label_room,
    new_figure,
    pretty,
    set_margins,
    shade_time,
    stages_of,
)

if TYPE_CHECKING:
    from thetadot.stages import Stage
    from thetadot.trajectory import Trajectory

_SUFFIX = "_singular_values"
_MAX_MATRICES = 8
_LEAST = 1e-4  # relative change at the foot of the panel


def norm_change(values: np.ndarray) -> np.ndarray:
    """`| |W(t)| - |W(0)| | / |W(0)|` in Frobenius norm, from the singular values at each row.

    Args:
        values: (T, r).

    Returns:
        (T,), zero at t = 0.
    """
    norms = np.linalg.norm(values, axis=1)
    return np.abs(norms - norms[0]) / norms[0]


def norm_figure(traj: "Trajectory", *, stages: "Sequence[Stage] | None" = None) -> Figure:
    """Relative change of every matrix's norm (above) and its effective rank (below) against time, all in one panel.

    Outer layers that grow while queries and keys rest, and ranks that fall one after the other, are seen at a glance.

    Args:
        traj: has series named `*_singular_values` and `*_effective_rank`.
        stages: the stages to shade; default: `find_stages(traj)`.

    Raises:
        KeyError: fewer than two matrices have both series.
    """
    found = [name.removesuffix(_SUFFIX) for name in traj.names if name.endswith(_SUFFIX)]
    matrices = [name for name in found if f"{name}_effective_rank" in traj.names][:_MAX_MATRICES]
    if len(matrices) < 2:
        raise KeyError("the trajectory has no series `*_singular_values` and `*_effective_rank` of two matrices")
    stages = stages_of(traj, stages)
    fig = new_figure(7.6, 4.8)
    axes = fig.subplots(2, 1, sharex=True)
    names = [pretty(name) for name in matrices]
    set_margins(fig, (2, 1), right=label_room([name.replace("$", "") for name in names]), top=0.15)
    series = (
        [np.maximum(norm_change(traj[name + _SUFFIX]), _LEAST / 10) for name in matrices],
        [traj[f"{name}_effective_rank"] for name in matrices],
    )
    for ax, lines in zip(axes, series, strict=True):
        shade_time(ax, traj, stages)
        for values, color in zip(lines, COLORS, strict=False):
            ax.plot(traj.ts, values, color=color, lw=1.4)
    above, below = axes
    above.set_yscale("log")
    above.yaxis.set_minor_locator(NullLocator())
    above.set_ylim(_LEAST, 10 * max(10 * _LEAST, *(float(np.max(values)) for values in series[0])))
    above.set_ylabel("relative change of norm")
    below.set_ylim(0.9, None)
    below.set_ylabel("effective rank")
    below.set_xlabel("gradient-flow time $t$")
    for ax, lines in zip(axes, series, strict=True):
        last = int(np.searchsorted(traj.ts, ax.get_xlim()[1], side="right")) - 1
        label_lines(ax, [float(values[last]) for values in lines], names, COLORS[: len(names)])
    add_footer(fig, traj)
    return fig
