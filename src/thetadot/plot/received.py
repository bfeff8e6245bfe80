"""How much attention each token receives, against how frequent it is."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure

from thetadot.plot._style import (
    COLORS,
    GRAY,
    add_footer,
    label_room,
    most_frequent,
    new_figure,
    set_margins,
    stages_of,
    time_limits,
    token_labels,
)

if TYPE_CHECKING:
    from thetadot.stages import Stage
    from thetadot.trajectory import Trajectory

_COLUMNS = 240  # of the map, evenly spaced in log t
_NAMED = 12  # tokens at the map's edge
_LARGEST = 10.0  # ratio at the ends of the color scale
_TIMES = 4  # in the panel on the right
_TOP = 4  # tokens named there: those that receive most per frequency in the end
_GAP = 0.05  # between names, of the height of the map


def received(attention: np.ndarray, stationary: np.ndarray) -> np.ndarray:
    """Attention that tokens receive, over their frequency: `r_j = Σ_i π_i A_ij / π_j`; 1 where attention is off.

    Args:
        attention: (T, d, d), row i the law of what a query of type i reads.
        stationary: (d,) π.

    Returns:
        (T, d).
    """
    return np.einsum("i,tij->tj", stationary, attention) / stationary


def received_figure(traj: "Trajectory", *, stages: "Sequence[Stage] | None" = None) -> Figure:
    """Focus and dilution by token: attention received per frequency over time, and against the frequency.

    On the left a row a token, the most frequent on top: blue where it receives less than its frequency π_j, red where
    more. On the right the attention received at the ends of the last plateaus against π_j, with the names of the tokens
    that receive most in the end; attention that is off lies on the diagonal.

    Args:
        traj: a trajectory with the series `attention` (T, d, d) and the stationary law in its provenance's notes.
        stages: as `find_stages(traj)`, which is the default.

    Raises:
        KeyError: the attention was not recorded, or the law is not known.
    """
    stationary = np.asarray(traj.provenance.get("notes", {})["stationary"])
    ratios = received(traj["attention"], stationary)
    stages = stages_of(traj, stages)
    labels = token_labels(traj, stationary.size)
    fig = new_figure(9.6, 4.2)
    left, right = fig.subplots(1, 2)
    room = label_room([labels[token] for token in most_frequent(traj, stationary.size, _NAMED)])
    set_margins(fig, (1, 2), left=room + 0.15, gaps=(0.0, 1.1))
    _draw_map(left, traj, ratios, stationary, labels, stages)
    _draw_laws(right, traj, ratios, stationary, labels, stages)
    add_footer(fig, traj)
    return fig


def _draw_map(
    ax: Axes,
    traj: "Trajectory",
    ratios: np.ndarray,
    stationary: np.ndarray,
    labels: list[str],
    stages: "Sequence[Stage]",
) -> None:
    edges = np.geomspace(*time_limits(traj, stages), _COLUMNS + 1)
    columns = np.searchsorted(traj.ts, np.sqrt(edges[1:] * edges[:-1])).clip(max=traj.ts.size - 1)
    order = np.argsort(-stationary, kind="stable")
    norm = LogNorm(1 / _LARGEST, _LARGEST)
    image = ax.pcolormesh(
        edges, np.arange(order.size + 1), ratios[columns][:, order].T, norm=norm, cmap="RdBu_r", rasterized=True
    )
    for stage in stages:
        if stage.t_start > edges[0]:
            ax.axvline(stage.t_start, color=GRAY, lw=0.6, ls=":")
    named = _apart(order, ratios[columns])
    ax.set_yticks([row + 0.5 for row in named], [labels[order[row]] for row in named], fontsize=7.5)
    ax.set_xscale("log")
    ax.invert_yaxis()
    ax.set_xlabel("gradient-flow time $t$")
    ax.set_title("attention received per frequency, $\\sum_i \\pi_i A_{ij} / \\pi_j$", fontsize=9)
    ticks = [1 / _LARGEST, 0.3, 1, 3, _LARGEST]
    bar = ax.figure.colorbar(image, ax=ax, ticks=ticks, extend="both", pad=0.02)
    bar.set_ticks(ticks, labels=[f"{tick:g}" for tick in ticks])
    bar.ax.minorticks_off()


def _apart(order: np.ndarray, ratios: np.ndarray) -> list[int]:
    """Rows to name: those that receive most at some time, as far as their names do not overlap."""
    gap = max(1.0, _GAP * order.size)
    named: list[int] = []
    for row in np.argsort(-np.max(ratios[:, order], axis=0), kind="stable").tolist():
        if len(named) < _NAMED and all(abs(row - other) >= gap for other in named):
            named.append(row)
    return sorted(named)


def _draw_laws(
    ax: Axes,
    traj: "Trajectory",
    ratios: np.ndarray,
    stationary: np.ndarray,
    labels: list[str],
    stages: "Sequence[Stage]",
) -> None:
    ends = [stage.t_end for stage in stages if stage.kind != "descent" and stage.t_end < traj.ts[-1]]
    times = [*ends[1:], float(traj.ts[-1])][-_TIMES:]  # before the first descent attention is off
    ax.plot([stationary.min(), stationary.max()], [stationary.min(), stationary.max()], color=GRAY, lw=0.8)
    for time, color in zip(times, COLORS, strict=False):
        row = ratios[min(np.searchsorted(traj.ts, time), traj.ts.size - 1)]
        ax.plot(stationary, row * stationary, "o", ms=3, color=color, alpha=0.8, label=f"t = {time:.4g}")
    for token in np.argsort(-ratios[-1])[:_TOP]:
        place = stationary[token], ratios[-1, token] * stationary[token]
        ax.annotate(labels[token], place, xytext=(-5, 1), textcoords="offset points", ha="right", fontsize=7.5)
    ax.set_xscale("log")
    ax.set_yscale("log")
    ax.margins(x=0.2)  # a name stands left of its point, that of the rarest token too
    ax.set_xlabel("frequency $\\pi_j$")
    ax.set_ylabel("attention received $\\sum_i \\pi_i A_{ij}$")
    ax.legend(fontsize=7.5, frameon=False)
    ax.spines[["top", "right"]].set_visible(False)
