"""Singular values and ranks of the weight matrices."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator

from thetadot.plot._style import COLORS, GRAY, add_footer, new_figure, pretty, set_margins, shade_time, stages_of

if TYPE_CHECKING:
    from thetadot.stages import Stage
    from thetadot.trajectory import Trajectory

_SUFFIX = "_singular_values"
_MAX_MATRICES = 6
_MAX_VALUES = 10


def spectra_figure(traj: "Trajectory", *, stages: "Sequence[Stage] | None" = None) -> Figure:
    """Singular values (above), stable and effective rank (below) of each weight matrix against time.

    Args:
        traj: has series named `*_singular_values` and, if recorded, `*_stable_rank`, `*_effective_rank`.
        stages: the stages to shade; default: `find_stages(traj)`.

    Raises:
        KeyError: no singular values were recorded.
    """
    matrices = [name.removesuffix(_SUFFIX) for name in traj.names if name.endswith(_SUFFIX)][:_MAX_MATRICES]
    if not matrices:
        raise KeyError("the trajectory has no series named `*_singular_values`")
    stages = stages_of(traj, stages)
    targets = traj.provenance.get("notes", {}).get("target_singular_values", [])
    fig = new_figure(2.4 * len(matrices) + 0.6, 4.6)
    axes = fig.subplots(2, len(matrices), sharex=True, sharey="row", squeeze=False)
    set_margins(fig, axes.shape)
    for column, matrix in enumerate(matrices):
        above, below = axes[:, column]
        for ax in (above, below):
            shade_time(ax, traj, stages)
        values = traj[matrix + _SUFFIX]
        for k in range(min(values.shape[1], _MAX_VALUES)):
            above.plot(traj.ts, values[:, k], color=COLORS[k] if k < len(COLORS) else GRAY, lw=1.2)
        if matrix == "map":
            for target in targets:
                above.axhline(target, color=GRAY, lw=0.7, ls=(0, (4, 3)), zorder=1)
        above.set_yscale("log")
        above.yaxis.set_minor_locator(NullLocator())
        above.set_title(pretty(matrix), fontsize=10)
        for name, color in (("stable_rank", COLORS[0]), ("effective_rank", COLORS[1])):
            if f"{matrix}_{name}" in traj.names:
                label = name.replace("_", " ")
                below.plot(traj.ts, traj[f"{matrix}_{name}"], color=color, lw=1.2, label=label)
        below.set_xlabel("$t$")
    largest = max(float(np.max(traj[matrix + _SUFFIX])) for matrix in matrices)
    smallest = min(float(np.min(traj[matrix + _SUFFIX][0])) for matrix in matrices)
    axes[0, 0].set_ylim(max(smallest / 3, 1e-8 * largest), 2 * largest)
    axes[0, 0].set_ylabel("singular values")
    axes[1, 0].set_ylim(bottom=0)
    axes[1, 0].set_ylabel("rank")
    axes[1, -1].legend(fontsize=7.5, framealpha=1.0, loc="upper right")
    add_footer(fig, traj)
    return fig
