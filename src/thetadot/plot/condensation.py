"""The condensation picture: the rows of a weight matrix fall into a few directions."""

import re
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from matplotlib.figure import Figure

from thetadot import observables
from thetadot.plot._style import add_footer, crowded_limits, new_figure, pretty, set_margins
from thetadot.stages import Stage, find_stages
from thetadot.trajectory import Trajectory

_MAX_TIMES = 6
_MAX_MATRICES = 5

_cosine_matrix = jax.jit(observables.cosine_matrix)


def boundary_indices(traj: Trajectory, stages: Sequence[Stage], limit: int = _MAX_TIMES) -> list[int]:
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
    cosines = np.asarray(_cosine_matrix(jnp.asarray(weight)))
    top = np.linalg.eigh(cosines)[1][:, -1]
    order = np.argsort(top, kind="stable")
    return cosines[order][:, order]


def condensation_figure(traj: Trajectory, *, stages: Sequence[Stage] | None = None) -> Figure:
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
    indices = boundary_indices(traj, find_stages(traj) if stages is None else stages)
    fig = new_figure(1.5 * len(indices) + 1.0, 1.5 * len(names) + 0.6)
    axes = fig.subplots(len(names), len(indices), squeeze=False)
    set_margins(fig, axes.shape, left=0.55, right=0.85, bottom=0.3)
    image = None
    for row, name in enumerate(names):
        for column, index in enumerate(indices):
            ax = axes[row, column]
            image = ax.imshow(reordered_cosines(traj[name][index]), cmap="RdBu_r", vmin=-1, vmax=1)
            ax.set_xticks([])
            ax.set_yticks([])
        axes[row, 0].set_ylabel(pretty(name), fontsize=11, rotation=0, ha="right", va="center", labelpad=6)
    for column, index in enumerate(indices):
        axes[0, column].set_title(f"t = {traj.ts[index]:.4g}", fontsize=9)
    assert image is not None
    corner = axes[-1, -1].get_position()
    beside = fig.add_axes((corner.x1 + 0.15 / fig.get_figwidth(), 0.2, 0.12 / fig.get_figwidth(), 0.6))
    bar = fig.colorbar(image, cax=beside, ticks=[-1, 0, 1])
    bar.set_label("cosine between rows", fontsize=8)
    add_footer(fig, traj)
    return fig
