"""The rank staircase: singular values of the end-to-end map are learned one at a time."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from thetadot.plot._style import COLORS, GRAY, add_footer, new_figure, set_margins, shade_time, stages_of

if TYPE_CHECKING:
    from thetadot.stages import Stage
    from thetadot.trajectory import Trajectory

_MAX_VALUES = 10
_LEARNED = 0.05  # of the largest singular value of the run: what counts in the rank
_SHARES = {"final_stage_pairs": "final-stage pairs", "layer_alignment": "alignment of layers"}


def staircase_figure(traj: "Trajectory", *, stages: "Sequence[Stage] | None" = None) -> Figure:
    """Singular values of the end-to-end map, and its rank, against time; for matrix completion also what is recovered.

    The third panel has the relative error on the unobserved entries and the least share over all pairs of consecutive
    layers of their final-stage pairs and of their alignment.

    Args:
        traj: has the series `map_singular_values` and `map_stable_rank`, and `unobserved_error` for completion.
        stages: the stages to shade; default: `find_stages(traj)`.

    Raises:
        KeyError: the singular values of the map were not recorded.
    """
    values, stable = traj["map_singular_values"], traj["map_stable_rank"]
    stages = stages_of(traj, stages)
    num_panels = 3 if "unobserved_error" in traj.names else 2
    fig = new_figure(7.0, 1.0 + 1.9 * num_panels)
    axes = fig.subplots(num_panels, 1, sharex=True)
    set_margins(fig, (num_panels, 1))
    for ax in axes:
        shade_time(ax, traj, stages)
    for target in traj.provenance.get("notes", {}).get("target_singular_values", []):
        axes[0].axhline(target, color=GRAY, lw=0.7, ls=(0, (4, 3)), zorder=1)
    for k in range(min(values.shape[1], _MAX_VALUES)):
        axes[0].plot(traj.ts, values[:, k], color=COLORS[k] if k < len(COLORS) else GRAY, lw=1.4)
    axes[0].set_ylabel("singular values")
    _draw_rank(axes[1], traj.ts, values, stable)
    if num_panels == 3:
        _draw_recovery(axes[2], traj)
    axes[-1].set_xlabel("gradient-flow time $t$")
    add_footer(fig, traj)
    return fig


def _draw_rank(ax: Axes, ts: np.ndarray, values: np.ndarray, stable: np.ndarray) -> None:
    """The number of learned singular values as steps, and the stable rank once there is one."""
    rank = np.sum(values > _LEARNED * np.max(values), axis=1)
    ax.step(ts, rank, where="post", color=COLORS[0], lw=1.4, label="rank")
    ax.plot(ts, np.where(rank > 0, stable, np.nan), color=COLORS[1], lw=1.2, label="stable rank")
    ax.set_yticks(range(int(rank.max()) + 1))
    ax.set_ylim(-0.2, int(rank.max()) + 0.4)
    ax.set_ylabel("rank")
    ax.legend(fontsize=7.5, framealpha=1.0, loc="upper left")


def _draw_recovery(ax: Axes, traj: "Trajectory") -> None:
    """Error on the unobserved entries, and the least share of each kind over the pairs of layers."""
    ax.plot(traj.ts, traj["unobserved_error"], color=COLORS[6], lw=1.4, label="error on unobserved entries")
    for color, (name, label) in zip(COLORS[2:], _SHARES.items(), strict=False):
        if name in traj.names:
            ax.plot(traj.ts, traj[name].min(axis=1), color=color, lw=1.2, label=label)
    ax.set_ylim(-0.03, max(1.05, 1.05 * float(np.max(traj["unobserved_error"]))))
    ax.set_ylabel("share")
    ax.legend(fontsize=7.5, framealpha=1.0, loc="center right")
