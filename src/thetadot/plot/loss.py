"""The loss with its stages and predicted plateaus."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from matplotlib.figure import Figure
from matplotlib.patches import Patch

from thetadot.plot._style import (
    COLORS,
    SHADES,
    add_footer,
    label_lines,
    label_room,
    new_figure,
    set_margins,
    shade_time,
    stages_of,
)

if TYPE_CHECKING:
    from thetadot.stages import Stage
    from thetadot.trajectory import Trajectory


def loss_figure(
    traj: "Trajectory", *, plateaus: Mapping[str, float] | None = None, stages: "Sequence[Stage] | None" = None
) -> Figure:
    """Loss and gradient norm against time, the stages shaded, the predicted plateau losses as lines.

    Args:
        traj: the trajectory.
        plateaus: name -> predicted loss; default: those in the trajectory's provenance.
        stages: the stages to shade; default: `find_stages(traj)`.
    """
    plateaus = dict(traj.provenance.get("plateaus", {}) if plateaus is None else plateaus)
    stages = stages_of(traj, stages)
    fig = new_figure(7.6, 4.8)
    axes = fig.subplots(2, 1, sharex=True, height_ratios=[3, 1.2])
    names = [f"{name}  {value:.4g}" for name, value in plateaus.items()]
    set_margins(fig, (2, 1), right=label_room(names), top=0.15)
    top, bottom = axes
    for ax in axes:
        shade_time(ax, traj, stages)
    for value in plateaus.values():
        top.axhline(value, color=COLORS[0], lw=0.7, ls=(0, (4, 3)), zorder=1)
    top.plot(traj.ts, traj["loss"], color=COLORS[6], lw=1.6)
    top.set_ylabel("loss")
    kinds = [kind for kind in SHADES if any(stage.kind == kind for stage in stages)]
    top.legend(
        handles=[Patch(color=SHADES[kind], label=kind) for kind in kinds],
        loc="center right",
        fontsize=7.5,
        framealpha=1.0,
    )
    norms = traj["grad_norm"]
    bottom.plot(traj.ts, norms, color=COLORS[1], lw=1.2)
    if (norms > 0).any():
        bottom.set_yscale("log")
    bottom.set_ylabel(r"$\|\nabla L\|$")
    bottom.set_xlabel("gradient-flow time $t$")
    label_lines(top, list(plateaus.values()), names, [COLORS[0]] * len(names))
    add_footer(fig, traj)
    return fig
