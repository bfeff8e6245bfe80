"""How the amplitudes of the neurons of a two-layer network are distributed, and how far its two layers are apart."""

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

_NUM_BINS = 60
_SPAN = 4.0  # decades below the largest amplitude that are shown


def amplitudes_figure(traj: "Trajectory", *, stages: "Sequence[Stage] | None" = None) -> Figure:
    """Distributions of |a_k| and ‖w_k‖ against time, a heat map each, and the Wasserstein distance between them.

    Args:
        traj: a trajectory with the series `outer_norm` (T, m), `inner_norm` (T, m) and `wasserstein` (T,).
        stages: the stages to shade; default: `find_stages(traj)`.

    Raises:
        KeyError: the amplitudes were not recorded.
    """
    outer, inner, distance = (traj[name] for name in ("outer_norm", "inner_norm", "wasserstein"))
    stages = stages_of(traj, stages)
    top = float(np.log10(max(np.max(outer), np.max(inner))))
    edges = np.linspace(top - _SPAN, top + 0.1, _NUM_BINS + 1)
    fig = new_figure(7.6, 6.4)
    axes = fig.subplots(3, 1, sharex=True)
    set_margins(fig, (3, 1), right=0.95, top=0.15)
    image = None
    for ax, values, name in zip(axes, (outer, inner), ("$|a_k|$", r"$\|w_k\|$"), strict=False):
        shade_time(ax, traj, stages)
        image = ax.pcolormesh(_between(traj.ts), 10**edges, densities(values, edges).T, cmap="Greys", vmin=0, vmax=2.5)
        ax.set_yscale("log")
        ax.yaxis.set_minor_locator(NullLocator())
        ax.set_ylabel(name)
    assert image is not None
    place = axes[0].get_position()
    beside = fig.add_axes((place.x1 + 0.15 / fig.get_figwidth(), place.y0, 0.12 / fig.get_figwidth(), place.height))
    fig.colorbar(image, cax=beside, extend="max").set_label("share per decade", fontsize=8)
    _draw_distance(axes[2], traj, stages, np.sqrt(np.mean(np.square(inner), axis=1)), distance)
    add_footer(fig, traj)
    return fig


def densities(values: np.ndarray, edges: np.ndarray) -> np.ndarray:
    """Share of the values of each row per decade, between edges given as log10.

    Args:
        values: (T, m), nonnegative.
        edges: (bins + 1,), increasing.

    Returns:
        (T, bins). What lies beyond the edges, zeros among it, is counted but not shown.
    """
    logs = np.log10(np.maximum(values, np.finfo(float).tiny))
    counts = np.array([np.histogram(row, edges)[0] for row in logs])
    return counts / (values.shape[1] * np.diff(edges))


def _between(ts: np.ndarray) -> np.ndarray:
    """Borders of the rows of a heat map: halfway between their times."""
    return np.concatenate([ts[:1], (ts[1:] + ts[:-1]) / 2, ts[-1:]])


def _draw_distance(
    ax: Axes, traj: "Trajectory", stages: "Sequence[Stage]", size: np.ndarray, distance: np.ndarray
) -> None:
    """The distance beside the amplitude itself."""
    shade_time(ax, traj, stages)
    ax.plot(traj.ts, size, color=GRAY, lw=1.2, label=r"root mean square of $\|w_k\|$")
    ax.plot(traj.ts, distance, color=COLORS[1], lw=1.4, label=r"$W_2$ of the laws of $|a_k|$ and $\|w_k\|$")
    ax.set_yscale("log")
    ax.yaxis.set_minor_locator(NullLocator())
    ax.set_xlabel("gradient-flow time $t$")
    ax.legend(fontsize=7.5, framealpha=1.0)
