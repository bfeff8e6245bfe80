"""The embeddings' paths in the plane of their two principal directions."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from thetadot.plot._style import (
    COLORS,
    GRAY,
    add_footer,
    color_of,
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

_SAMPLES = 400  # evenly spaced in log t: solver steps crowd where the flow is fast
_MAX_TOKENS = 8
_MARKERS = "osD^vP*"


def principal_plane(paths: np.ndarray) -> tuple[np.ndarray, float]:
    """Coordinates in the plane of the two leading right singular vectors of all points, about the origin.

    The origin is kept, since it is where the flow starts: nothing is subtracted.

    Args:
        paths: (T, d, m) embeddings over time.

    Returns:
        (T, d, 2) coordinates, and the share of `Σ ‖W_0[i](t)‖²` that lies in the plane.
    """
    paths = np.pad(paths, [(0, 0), (0, 0), (0, max(0, 2 - paths.shape[-1]))])  # embeddings of width one: a line
    _, values, directions = np.linalg.svd(paths.reshape(-1, paths.shape[-1]), full_matrices=False)
    return paths @ directions[:2].T, float(np.sum(values[:2] ** 2) / np.sum(values**2))


def plane_figure(traj: "Trajectory", *, stages: "Sequence[Stage] | None" = None) -> Figure:
    """Paths of the most frequent tokens' embeddings in their principal plane, with a mark where each stage ends.

    Condensation runs out along one line, dilution back along it, and a new direction ends the rank-one stage.

    Args:
        traj: a trajectory with the series `w_0` (T, d, m).
        stages: the stages to mark; default: `find_stages(traj)`.

    Raises:
        KeyError: the weights were not recorded.
    """
    stages = stages_of(traj, stages)
    embeddings = traj["w_0"]
    times = np.geomspace(*time_limits(traj, stages), _SAMPLES)
    ends = [stage.t_end for stage in stages if stage.kind == "plateau"][: len(_MARKERS)]
    rows = [np.searchsorted(traj.ts, t).clip(max=traj.ts.size - 1) for t in (times, np.asarray(ends))]
    paths, share = principal_plane(embeddings[np.concatenate(rows)])
    labels = token_labels(traj, embeddings.shape[1])
    fig = new_figure(7.2, 4.6)
    ax = fig.subplots()
    set_margins(fig, (1, 1), right=1.9)
    for rank, token in enumerate(most_frequent(traj, embeddings.shape[1], _MAX_TOKENS)):
        color = color_of(token, rank, len(labels))
        ax.plot(*paths[: times.size, token].T, color=color, lw=1.2, label=labels[token])
        for marker, place in zip(_MARKERS, paths[times.size :, token], strict=False):
            ax.plot(*place, marker, color=color, ms=4.5, mec="white", mew=0.5)
    marks = [
        Line2D([], [], marker=m, color=COLORS[6], lw=0, ms=4.5, label=f"t = {t:.4g}")
        for m, t in zip(_MARKERS, ends, strict=False)
    ]
    tokens, _ = ax.get_legend_handles_labels()
    ax.legend(handles=[*tokens, *marks], fontsize=7.5, frameon=False, loc="center left", bbox_to_anchor=(1.0, 0.5))
    ax.axhline(0, color=GRAY, lw=0.5, zorder=0)
    ax.axvline(0, color=GRAY, lw=0.5, zorder=0)
    ax.set_xlabel("first principal direction of $W_0$")
    ax.set_ylabel("second")
    ax.set_title(f"embeddings; {100 * share:.1f} % of their squared norm is in this plane", fontsize=9)
    ax.spines[["top", "right"]].set_visible(False)
    add_footer(fig, traj)
    return fig
