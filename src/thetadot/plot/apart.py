"""Figures drawn by processes of their own, which are started while there is nothing to draw yet.

To import matplotlib takes a second and to draw a run two or three, with one core at work: the painters get ready on
another one while the flow is traced, and share the figures. They know no JAX and nothing of the user's program. Where
they cannot be had or fail, figures are drawn as if there were none.
"""

import gc
import io
import json
import os
import pickle
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import numpy as np

from thetadot import plot

if TYPE_CHECKING:
    from thetadot.stages import Stage
    from thetadot.trajectory import Trajectory

_NUM_PAINTERS = 2
_MOST_BYTES = 2**28  # of series: more is not sent to other processes
_PATIENCE = 300.0  # seconds, for figures that take one or two
_PROGRAM = "from thetadot.plot.apart import paint; paint()"


@dataclass(frozen=True)
class _Record:
    """What a figure reads of a trajectory."""

    ts: np.ndarray
    series: dict[str, np.ndarray]
    status: str
    stats: dict[str, Any]
    provenance: dict[str, Any]

    def __getitem__(self, name: str) -> np.ndarray:
        return self.series[name]

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(self.series)


class Painters:
    """Processes that wait for something to draw."""

    def __init__(self, processes: Sequence[subprocess.Popen]):
        self.processes = list(processes)

    def draw(self, folder: Path, traj: "Trajectory", stages: "Sequence[Stage]") -> list[str] | None:
        """Saves every figure into an existing folder, once; None if it takes another way to draw them.

        Returns:
            The names of the files, in the order of `thetadot.plot.FIGURES`.
        """
        processes, self.processes = self.processes, []
        try:
            if not processes or sum(values.nbytes for values in traj.series.values()) > _MOST_BYTES:
                return None
            record = _Record(traj.ts, dict(traj.series), traj.status, dict(traj.stats), dict(traj.provenance))
            plain = [(stage.kind, stage.t_start, stage.t_end, stage.loss) for stage in stages]
            for i, process in enumerate(processes):
                shares = list(plot.FIGURES)[i :: len(processes)]
                stdin, process.stdin = process.stdin, None  # `communicate` would flush it, closed or not
                assert stdin is not None
                with stdin as pipe:
                    pickle.dump((str(folder), shares, record, plain), pipe)
            files = {file for process in processes for file in json.loads(process.communicate(timeout=_PATIENCE)[0])}
        except (OSError, ValueError, subprocess.SubprocessError):  # a painter is gone, or has drawn only a part
            return None
        finally:
            dismiss(processes)
        return [f"{name}.png" for name in plot.FIGURES if f"{name}.png" in files]


def dismiss(processes: Sequence[subprocess.Popen]) -> None:
    """Ends processes, whatever they are at, and waits for them."""
    for process in processes:
        process.kill()
    for process in processes:
        process.communicate()


@contextmanager
def painters(wanted: bool = True) -> Iterator[Painters]:
    """Painters that get ready in the background and are gone at the end, as many as there are cores for.

    Args:
        wanted: False for none.
    """
    num = _NUM_PAINTERS if wanted and (os.cpu_count() or 1) > 1 else 0
    found = Painters([])
    try:
        with suppress(OSError):  # no process can be started
            for _ in range(num):
                found.processes.append(_start())
        yield found
    finally:
        dismiss(found.processes)


def _start() -> subprocess.Popen:
    """A painter in a session of its own, so that Ctrl-C reaches it through this process only."""
    return subprocess.Popen(
        [sys.executable, "-P", "-c", _PROGRAM],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )


def paint() -> None:
    """What a painter does: get ready, wait for its share, draw it, and name the files on stdout."""
    gc.disable()
    get_ready()
    serve(sys.stdin.buffer)


def get_ready() -> None:
    """Imports what draws, and has it read its fonts and build its parser of formulas."""
    from matplotlib.figure import Figure

    for function in plot.FIGURES.values():
        getattr(plot, function)
    figure = Figure()
    figure.text(0.5, 0.5, "$10^{2}$ ready")
    figure.savefig(io.BytesIO(), format="png")


def serve(pipe: Any) -> None:
    """Draws the share of figures that comes through a pipe; one that ends without any asks for nothing."""
    try:
        folder, names, record, plain = pickle.load(pipe)
    except EOFError:
        return
    stages: Any = [SimpleNamespace(kind=kind, t_start=start, t_end=end, loss=loss) for kind, start, end, loss in plain]
    json.dump(plot.save(plot.drawn(names, record, stages), Path(folder)), sys.stdout)
