"""The first layer turns to the mean of label times input; energy and norms on the way."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator

from thetadot.plot._style import COLORS, GRAY, add_footer, new_figure, set_margins, shade_time, stages_of

if TYPE_CHECKING:
    from thetadot.stages import Stage
    from thetadot.trajectory import Trajectory

_MAX_NEURONS = 50


def alignment_figure(traj: "Trajectory", *, stages: "Sequence[Stage] | None" = None) -> Figure:
    """Cosines of the neurons with v (above), norms of the layers and energy (below) against time.

    Where the provenance has the blow-up time of the effective flow, a line marks it: until then the network should
    follow that flow.

    Args:
        traj: a trajectory with the series `alignment` (T, m), `layer_norms` (T, L) and `energy` (T,).
        stages: the stages to shade; default: `find_stages(traj)`.

    Raises:
        KeyError: one of these series was not recorded.
    """
    cosines, norms, energy = traj["alignment"], traj["layer_norms"], traj["energy"]
    stages = stages_of(traj, stages)
    t_star = traj.provenance.get("notes", {}).get("effective_blow_up")
    fig = new_figure(7.0, 5.2)
    axes: Sequence[Axes] = fig.subplots(2, 1, sharex=True, height_ratios=[1.2, 1])
    set_margins(fig, (2, 1))
    for ax in axes:
        shade_time(ax, traj, stages)
        if t_star is not None:
            ax.axvline(t_star, color=COLORS[0], lw=0.9, ls=(0, (4, 3)))
    if t_star is not None:
        axes[0].set_title("dashed: $T^*$ of the effective flow", fontsize=8.5, color=COLORS[0])
    axes[0].plot(traj.ts, cosines[:, :_MAX_NEURONS], color=COLORS[6], lw=0.8, alpha=0.7)
    axes[0].set_ylim(-1.05, 1.05)
    axes[0].set_ylabel(r"$\cos(w_i, v)$ of each neuron")
    for layer in range(norms.shape[1]):
        label = f"$\\|W_{{{layer + 1}}}\\|$"
        axes[1].plot(traj.ts, norms[:, layer], color=COLORS[(layer + 1) % len(COLORS)], lw=1.2, label=label)
    axes[1].plot(traj.ts, np.where(energy > 0, energy, np.nan), color=GRAY, lw=1.2, label="energy, where positive")
    axes[1].set_yscale("log")
    axes[1].yaxis.set_minor_locator(NullLocator())
    axes[1].set_xlabel("gradient-flow time $t$")
    axes[1].legend(fontsize=7.5, framealpha=1.0, loc="lower right")
    add_footer(fig, traj)
    return fig
