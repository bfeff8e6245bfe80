"""The condensation picture: the rows of a weight matrix fall into a few directions."""

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from matplotlib.patches import Rectangle

from thetadot.plot._style import add_footer, crowded_limits, new_figure, pretty, stages_of

if TYPE_CHECKING:
    from thetadot.stages import Stage
    from thetadot.trajectory import Trajectory

_MAX_TIMES = 6
_MAX_MATRICES = 5
_LEFT, _RIGHT, _BOTTOM, _TOP, _GAP = 0.55, 0.85, 0.3, 0.35, 0.15  # margins and the gap between matrices, in inches


def boundary_indices(traj: "Trajectory", stages: "Sequence[Stage]", limit: int = _MAX_TIMES) -> list[int]:
    """Rows of the trajectory at its start, at the end of each plateau, and at its end.

    Where these are more than `limit`, the plateaus that last longest on a logarithmic axis are kept. Plateaus
    that end shortly before the trajectory does would show the same as its end, and are left out, unless all stages
    crowd together there.
    """
    last = len(traj.ts) - 1
    latest = traj.ts[last] if crowded_limits(traj, stages) else 0.9 * traj.ts[last]
    plateaus = [s for s in stages if s.kind == "plateau" and s.t_end < latest]
    plateaus.sort(key=lambda s: -s.t_end / max(s.t_start, 1e-3 * s.t_end, 1e-300))
    return sorted({0, last, *(int(np.searchsorted(traj.ts, s.t_end)) for s in plateaus[: limit - 2])})


def reordered_cosines(weight: np.ndarray) -> np.ndarray:
    """Cosines between the rows of a matrix, the rows sorted by the top eigenvector of the cosine matrix.

    Args:
        weight: (n, m).

    Returns:
        (n, n), entries in [-1, 1]; one line of directions (condensation) shows as at most four blocks of ±1.
    """
    cosines = _cosines(np.asarray(weight))
    top = np.linalg.eigh(cosines)[1][:, -1]
    order = np.argsort(top, kind="stable")
    return cosines[order][:, order]


def _cosines(matrix: np.ndarray) -> np.ndarray:
    """As `thetadot.observables.cosine_matrix`, without a compiler: each matrix has a shape of its own."""
    norms = np.linalg.norm(matrix, axis=1, keepdims=True)
    unit = np.divide(matrix, norms, out=np.zeros_like(matrix), where=norms > 0)
    return unit @ unit.T


def condensation_figure(traj: "Trajectory", *, stages: "Sequence[Stage] | None" = None) -> Figure:
    """Reordered cosine matrix of the rows of each weight matrix (down) at the stage boundaries (across).

    Args:
        traj: a trajectory with weight matrices among its series, named `w_*`, each (T, n, m).
        stages: the stages whose boundaries are shown; default: `find_stages(traj)`.

    Raises:
        KeyError: no weight matrix was recorded.
    """
    names = [name for name in traj.names if re.fullmatch(r"w_[a-z0-9]+", name) and traj[name].ndim == 3]
    names = names[:_MAX_MATRICES]
    if not names:
        raise KeyError("the trajectory has no weight matrix among its series")
    indices = boundary_indices(traj, stages_of(traj, stages))
    width, height = 1.5 * len(indices) + 1.0, 1.5 * len(names) + 0.6
    fig = new_figure(width, height)
    ax = fig.add_axes((0, 0, 1, 1), xlim=(0, width), ylim=(0, height))  # in inches: one panel a matrix takes a second
    ax.axis("off")
    across = (width - _LEFT - _RIGHT + _GAP) / len(indices)
    down = (height - _BOTTOM - _TOP + _GAP) / len(names)
    side = min(across, down) - _GAP
    for row, name in enumerate(names):
        y = height - _TOP - row * down - (down - _GAP) / 2
        for column, index in enumerate(indices):
            x = _LEFT + column * across + (across - _GAP) / 2
            _draw_matrix(ax, reordered_cosines(traj[name][index]), x, y, side)
            if row == 0:
                ax.text(x, y + side / 2 + 6 / 72, f"t = {traj.ts[index]:.4g}", fontsize=9, ha="center")
            if column == 0:
                ax.text(x - side / 2 - 6 / 72, y, pretty(name), fontsize=11, ha="right", va="center")
    beside = fig.add_axes((1 - (_RIGHT - 0.15) / width, 0.2, 0.12 / width, 0.6))
    bar = fig.colorbar(ax.images[-1], cax=beside, ticks=[-1, 0, 1])
    bar.set_label("cosine between rows", fontsize=8)
    add_footer(fig, traj)
    return fig


def _draw_matrix(ax: Axes, matrix: np.ndarray, x: float, y: float, side: float) -> None:
    """A square with the entries of a matrix in it, in a frame."""
    left, low = x - side / 2, y - side / 2
    extent = (left, left + side, low, low + side)
    image = AxesImage(ax, cmap="RdBu_r", norm=Normalize(-1, 1), extent=extent, interpolation="auto")
    image.set_data(matrix)
    image.set_clip_path(ax.patch)
    ax.add_image(image)
    ax.add_patch(Rectangle((left, low), side, side, fill=False, lw=0.8))
