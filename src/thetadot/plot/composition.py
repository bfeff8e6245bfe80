"""Two-hop questions: what is answered, and the blocks of the map from tokens to answers."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from thetadot.plot._style import COLORS, add_footer, new_figure, set_margins, shade_time, stages_of

if TYPE_CHECKING:
    from thetadot.stages import Stage
    from thetadot.trajectory import Trajectory

_ACCURACIES = {
    "accuracy": ("one-hop facts, and the bridge", COLORS[6]),
    "composed_accuracy": ("two-hop questions", COLORS[0]),
    "composed_accuracy_within": ("the same, among the objects", COLORS[5]),
}


def composition_figure(traj: "Trajectory", *, stages: "Sequence[Stage] | None" = None) -> Figure:
    """Accuracy in and out of distribution (above), alignment and completion of the block (below) against time.

    Args:
        traj: has the series `composed_accuracy`, `latent_alignment` and `diagonal_blocks` (T, 2, 2).
        stages: the stages to shade; default: `find_stages(traj)`.

    Raises:
        KeyError: one of them was not recorded.
    """
    alignment, blocks = traj["latent_alignment"], traj["diagonal_blocks"]
    series = {name: traj[name] for name in _ACCURACIES}
    stages = stages_of(traj, stages)
    fig = new_figure(7.6, 4.8)
    axes = fig.subplots(2, 1, sharex=True)
    set_margins(fig, (2, 1), top=0.15)
    for ax in axes:
        shade_time(ax, traj, stages)
    for name, (label, color) in _ACCURACIES.items():
        axes[0].plot(traj.ts, series[name], color=color, lw=1.5, label=label)
    axes[0].set_ylabel("accuracy")
    axes[0].set_ylim(-0.05, 1.05)
    (a, b), (c, d) = np.moveaxis(blocks, 0, -1)
    axes[1].plot(traj.ts, alignment, color=COLORS[2], lw=1.5, label="alignment of $(e_1, r_1)$ with $e_2$")
    axes[1].plot(traj.ts, _over(b, a), color=COLORS[1], lw=1.5, label="$b_1/a_1$")
    axes[1].plot(traj.ts, _over(d, c), color=COLORS[6], lw=1.0, ls=(0, (4, 3)), label="rank one: $d_1/c_1$")
    axes[1].set_ylim(-0.25, 1.25)
    axes[1].set_xlabel("gradient-flow time $t$")
    for ax in axes:
        ax.legend(fontsize=7.5, framealpha=1.0, loc="best")
    add_footer(fig, traj)
    return fig


def blocks_figure(traj: "Trajectory", *, stages: "Sequence[Stage] | None" = None) -> Figure:
    """The map W, tokens down and answers across, at t = 0 and at the end, each on a color scale of its own.

    Args:
        traj: has the series `map` (T, rows, columns), and in its provenance the sizes of its blocks.
        stages: not used; every figure takes them.

    Raises:
        KeyError: the map was not recorded, or nothing is known of its blocks.
    """
    del stages
    maps, notes = traj["map"], traj.provenance.get("notes", {})
    rows, columns = notes["rows"], notes["columns"]
    labels = traj.provenance.get("labels", [])
    fig = new_figure(7.0, 4.4)
    axes = fig.subplots(1, 2)
    set_margins(fig, (1, 2), left=0.95, right=0.75, gaps=(0.15, 1.3))
    for ax, row in zip(axes, (0, -1), strict=True):
        largest = max(float(np.max(np.abs(maps[row]))), 1e-300)
        image = ax.imshow(maps[row], cmap="RdBu_r", vmin=-largest, vmax=largest, aspect="auto")
        _block_lines(ax, rows, columns, labels)
        ax.set_title(f"$W$ at t = {traj.ts[row]:.4g}", fontsize=9)
        bar = fig.colorbar(image, ax=ax, fraction=0.06, pad=0.04, ticks=[-largest, 0, largest])
        bar.ax.set_yticklabels([f"{x:.2g}" for x in (-largest, 0.0, largest)], fontsize=7)
    add_footer(fig, traj)
    return fig


def _block_lines(ax: Axes, rows: Sequence[int], columns: Sequence[int], labels: Sequence[str]) -> None:
    """Lines between the blocks, and the names of the sets beside their middles."""
    row_ends, column_ends = np.cumsum([0, *rows]), np.cumsum([0, *columns])
    for end in row_ends[1:-1]:
        ax.axhline(end - 0.5, color="black", lw=0.7)
    for end in column_ends[1:-1]:
        ax.axvline(end - 0.5, color="black", lw=0.7)
    ax.set_yticks((row_ends[1:] + row_ends[:-1] - 1) / 2, labels[: len(rows)], fontsize=8)
    ax.set_xticks((column_ends[1:] + column_ends[:-1] - 1) / 2, labels[1 : 1 + len(columns)], fontsize=8)
    ax.tick_params(length=0)


def _over(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """The ratio, NaN while y is too small for a ratio: nothing is learned yet."""
    known = np.abs(y) > 1e-2 * np.max(np.abs(y), initial=0.0)
    return np.where(known, x / np.where(known, y, 1.0), np.nan)
