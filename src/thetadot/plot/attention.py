"""Where each query token looks, and how its embedding grows."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from thetadot.plot._style import (
    GRAY,
    add_footer,
    color_of,
    label_lines,
    label_room,
    most_frequent,
    new_figure,
    set_margins,
    shade_time,
    stages_of,
    token_labels,
)

if TYPE_CHECKING:
    from thetadot.stages import Stage
    from thetadot.trajectory import Trajectory

_MAX_QUERIES = 5
_MAX_KEYS = 6
_MAX_TOKENS = 8


def attention_figure(traj: "Trajectory", *, stages: "Sequence[Stage] | None" = None) -> Figure:
    """Attention of the most frequent query tokens against time, a panel each, and the entropy of these rows.

    Args:
        traj: a trajectory with the series `attention` (T, d, d) and, if recorded, `row_entropy` (T, d).
        stages: the stages to shade; default: `find_stages(traj)`.

    Raises:
        KeyError: the attention was not recorded.
    """
    attention = traj["attention"]
    stages = stages_of(traj, stages)
    labels = token_labels(traj, attention.shape[1])
    queries = most_frequent(traj, attention.shape[1], _MAX_QUERIES)
    num_panels = len(queries) + ("row_entropy" in traj.names)
    num_rows = 2 if num_panels > 3 else 1
    num_columns = -(-num_panels // num_rows)
    fig = new_figure(3.2 * num_columns, 2.5 * num_rows + 0.3)
    panels = list(fig.subplots(num_rows, num_columns, sharex=True, squeeze=False).ravel())
    room = label_room(labels)
    set_margins(fig, (num_rows, num_columns), right=room, gaps=(0.4, room + 0.35))
    drawn = []
    for query, ax in zip(queries, panels, strict=False):
        drawn.append((ax, _draw_row(ax, traj, attention[:, query], stages), query))
        ax.set_title(f"query: {labels[query]}", fontsize=9)
        ax.set_ylabel("attention $A_{ij}$" if ax in panels[::num_columns] else "")
    if "row_entropy" in traj.names:
        ax = panels[len(queries)]
        shade_time(ax, traj, stages)
        for rank, query in enumerate(queries):
            ax.plot(traj.ts, traj["row_entropy"][:, query], color=color_of(query, rank, len(labels)), lw=1.2)
        ax.set_title("entropy of these rows", fontsize=9)
        ax.set_ylim(bottom=0)
    for ax in panels[num_panels:]:
        ax.set_visible(False)
    for ax in panels[max(num_panels - num_columns, 0) : num_panels]:  # the lowest one of each column
        ax.set_xlabel("$t$")
        ax.tick_params(labelbottom=True)
    _label_panels(fig, traj, panels[len(queries)] if num_panels > len(queries) else None, drawn, labels)
    add_footer(fig, traj)
    return fig


def _draw_row(ax: Axes, traj: "Trajectory", row: np.ndarray, stages: "Sequence[Stage]") -> list[int]:
    """Draw one query's attention to the keys that matter most; return these keys."""
    shade_time(ax, traj, stages)
    keys = sorted(np.argsort(-np.max(row, axis=0), kind="stable")[:_MAX_KEYS].tolist())
    for rank, key in enumerate(keys):
        ax.plot(traj.ts, row[:, key], color=color_of(key, rank, row.shape[1]), lw=1.2)
    ax.set_ylim(-0.02, 1.02)
    return keys


def _label_panels(fig: Figure, traj: "Trajectory", entropy: Axes | None, drawn: list, labels: list[str]) -> None:
    """Write the names of keys and queries beside the ends of their lines."""
    for ax, keys, query in drawn:
        _label(ax, traj["attention"][-1, query], keys, labels)
    if entropy is not None:
        _label(entropy, traj["row_entropy"][-1], [query for _, _, query in drawn], labels)


def _label(ax: Axes, ends: np.ndarray, tokens: Sequence[int], labels: list[str]) -> None:
    """Write the names of these tokens where their lines end."""
    colors = [color_of(token, rank, len(labels)) for rank, token in enumerate(tokens)]
    label_lines(ax, [float(ends[token]) for token in tokens], [labels[token] for token in tokens], colors)


def embedding_figure(traj: "Trajectory", *, stages: "Sequence[Stage] | None" = None) -> Figure:
    """Norm of each token's embedding against time; the most frequent tokens are named, the others gray.

    Args:
        traj: a trajectory with the series `embedding_norm` (T, d).
        stages: the stages to shade; default: `find_stages(traj)`.

    Raises:
        KeyError: the norms were not recorded.
    """
    norms = traj["embedding_norm"]
    stages = stages_of(traj, stages)
    labels = token_labels(traj, norms.shape[1])
    named = most_frequent(traj, norms.shape[1], _MAX_TOKENS)
    fig = new_figure(7.2, 3.8)
    ax = fig.subplots()
    set_margins(fig, (1, 1), right=label_room(labels), top=0.15)
    shade_time(ax, traj, stages)
    for token in set(range(norms.shape[1])) - set(named):
        ax.plot(traj.ts, norms[:, token], color=GRAY, lw=0.5, alpha=0.6)
    for rank, token in enumerate(named):
        ax.plot(traj.ts, norms[:, token], color=color_of(token, rank, len(labels)), lw=1.4)
    ax.set_ylim(bottom=0)
    ax.set_ylabel("$\\|W_0[i]\\|$")
    ax.set_xlabel("gradient-flow time $t$")
    _label(ax, norms[-1], named, labels)
    add_footer(fig, traj)
    return fig
