"""Figures of a trajectory: one function each, each returns a matplotlib `Figure` and opens no window.

    from thetadot.plot import loss_figure
    loss_figure(traj).savefig("loss.png")

What a figure needs beyond the series (predicted plateaus, names of tokens) it takes from its arguments or
from the trajectory's provenance, where `thetadot.experiments.run` leaves it. At the foot of each figure stand
the solver, its tolerance and its number of steps: change the tolerance before you believe the picture.
"""

import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from thetadot._lazy import on_demand

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from thetadot.plot.alignment import alignment_figure as alignment_figure
    from thetadot.plot.amplitudes import amplitudes_figure as amplitudes_figure
    from thetadot.plot.attention import attention_figure as attention_figure
    from thetadot.plot.attention import embedding_figure as embedding_figure
    from thetadot.plot.blow_up import blow_up_figure as blow_up_figure
    from thetadot.plot.composition import blocks_figure as blocks_figure
    from thetadot.plot.composition import composition_figure as composition_figure
    from thetadot.plot.condensation import condensation_figure as condensation_figure
    from thetadot.plot.loss import loss_figure as loss_figure
    from thetadot.plot.norms import norm_figure as norm_figure
    from thetadot.plot.plane import plane_figure as plane_figure
    from thetadot.plot.received import received_figure as received_figure
    from thetadot.plot.spectra import spectra_figure as spectra_figure
    from thetadot.plot.staircase import staircase_figure as staircase_figure
    from thetadot.stages import Stage
    from thetadot.trajectory import Trajectory
else:
    __getattr__, __dir__ = on_demand(
        __name__,
        names={
            "alignment": "alignment_figure",
            "amplitudes": "amplitudes_figure",
            "attention": "attention_figure embedding_figure",
            "blow_up": "blow_up_figure",
            "composition": "blocks_figure composition_figure",
            "condensation": "condensation_figure",
            "loss": "loss_figure",
            "norms": "norm_figure",
            "plane": "plane_figure",
            "received": "received_figure",
            "spectra": "spectra_figure",
            "staircase": "staircase_figure",
        },
    )

FIGURES = {
    "loss": "loss_figure",
    "spectra": "spectra_figure",
    "staircase": "staircase_figure",
    "norms": "norm_figure",
    "attention": "attention_figure",
    "received": "received_figure",
    "embedding": "embedding_figure",
    "plane": "plane_figure",
    "condensation": "condensation_figure",
    "alignment": "alignment_figure",
    "composition": "composition_figure",
    "blocks": "blocks_figure",
    "amplitudes": "amplitudes_figure",
}
"""The figures of a trajectory by name, each with the function that draws it."""


def figures(traj: "Trajectory") -> "dict[str, Figure]":
    """Every figure for which the trajectory has the series, by name.

    Args:
        traj: a trajectory, fresh or loaded.

    Returns:
        Name -> figure; "loss" is always among them.
    """
    from thetadot.stages import find_stages

    return dict(drawn(FIGURES, traj, find_stages(traj)))


def drawn(names: Iterable[str], traj: "Trajectory", stages: "Sequence[Stage]") -> "Iterator[tuple[str, Figure]]":
    """Those of the figures named for which the trajectory has the series, one after the other."""
    for name in names:
        try:
            figure = getattr(sys.modules[__name__], FIGURES[name])(traj, stages=stages)
        except KeyError:  # the series was not recorded
            continue
        yield name, figure


def save(figures: "Iterable[tuple[str, Figure]]", folder: Path) -> list[str]:
    """Saves figures as PNG into an existing folder; returns the names of the files."""
    names = []
    for name, figure in figures:
        figure.savefig(folder / f"{name}.png", pil_kwargs={"compress_level": 1})  # half the time, a tenth larger
        names.append(f"{name}.png")
    return names
