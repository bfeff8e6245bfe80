"""What a run leaves behind: a results folder, a stage table, and the same facts as JSON."""

import json
import math
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from rich.table import Table

from thetadot import plot
from thetadot.plot.apart import Painters
from thetadot.stages import Stage, find_stages
from thetadot.trajectory import Trajectory, load

DATASET = "trajectory.zarr"
SUMMARY = "summary.json"
FIGURES = "figures"


def nearest_plateau(loss: float, plateaus: Mapping[str, float]) -> tuple[str, float] | None:
    """The predicted plateau with the closest loss, as (name, loss); None if nothing is predicted."""
    if not plateaus:
        return None
    return min(plateaus.items(), key=lambda item: abs(item[1] - loss))


def summarize(traj: Trajectory, stages: Sequence[Stage] | None = None) -> dict[str, Any]:
    """The facts of a run as plain values: outcome, stages and predictions, crossings, statistics, provenance.

    Args:
        traj: the trajectory.
        stages: its stages; default: `find_stages(traj)`.

    Returns:
        A dictionary that `to_json` turns into text.
    """
    stages = find_stages(traj) if stages is None else stages
    plateaus = traj.provenance.get("plateaus", {})
    return {
        "experiment": traj.provenance.get("experiment"),
        "options": traj.provenance.get("options", {}),
        "status": traj.status,
        "result": traj.result,
        "t": float(traj.ts[-1]),
        "loss": float(traj["loss"][-1]),
        "grad_norm": float(traj["grad_norm"][-1]),
        "stages": [_describe(stage, plateaus) for stage in stages],
        "plateaus": dict(plateaus),
        "crossings": dict(traj.crossings),
        "stats": dict(traj.stats),
        "provenance": dict(traj.provenance),
    }


def _describe(stage: Stage, plateaus: Mapping[str, float]) -> dict[str, Any]:
    """A stage with the predicted plateau nearest to its loss."""
    facts = {"kind": stage.kind, "t_start": stage.t_start, "t_end": stage.t_end, "loss": stage.loss}
    nearest = nearest_plateau(stage.loss, plateaus) if stage.kind != "descent" else None
    name, predicted = nearest or (None, None)
    return facts | {"nearest_plateau": name, "predicted_loss": predicted}


def current_stage(ts: np.ndarray, losses: np.ndarray) -> str:
    """Roughly where a flow in progress is, such as "plateau 2": `find_stages` needs to know what comes after.

    A descent is where the loss falls by more than 2 % of its first value per e-fold of time.

    Args:
        ts: (T,) times so far.
        losses: (T,) losses so far.
    """
    positive = ts > 0
    if np.count_nonzero(positive) < 2:
        return "plateau 1"
    slopes = -np.gradient(losses[positive], np.log(ts[positive]))
    falls = slopes > 0.02 * abs(losses[0])
    descents = int(np.count_nonzero(np.diff(falls, prepend=False) & falls))
    return f"descent {descents}" if falls[-1] else f"plateau {descents + 1}"


def stage_table(stages: Sequence[Stage], plateaus: Mapping[str, float], title: str = "") -> Table:
    """The stages as a rich table: kind, start, end, loss, and the predicted plateau nearest to that loss."""
    table = Table(title=title or None, title_justify="left")
    table.add_column("stage")
    for column in ("t start", "t end", "loss"):
        table.add_column(column, justify="right")
    if plateaus:
        table.add_column("nearest prediction")
        table.add_column("difference", justify="right")
    for stage in stages:
        row = [stage.kind, f"{stage.t_start:.5g}", f"{stage.t_end:.5g}", f"{stage.loss:.6g}"]
        facts = _describe(stage, plateaus)
        if facts["nearest_plateau"] is not None:
            predicted = facts["predicted_loss"]
            row += [f"{facts['nearest_plateau']} {predicted:.6g}", f"{stage.loss - predicted:+.1e}"]
        table.add_row(*row)
    return table


def to_json(facts: Any) -> str:
    """JSON text of plain values, arrays, paths; numbers that are not finite become null, as JSON has none."""
    return json.dumps(_plain(facts), indent=2, allow_nan=False, ensure_ascii=False)


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, np.ndarray | np.generic):
        return _plain(value.tolist())
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if value is None or isinstance(value, str | bool | int | float):
        return value
    return str(value)


@contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """A results folder that appears whole or not at all.

    Yields a hidden folder beside `path` to write into, which takes the name `path` when the block ends
    without an error, and is deleted otherwise.

    Raises:
        ValueError: `path` exists and is not an empty folder.
    """
    path = path.absolute()
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise ValueError(f"the output folder {str(path)!r} exists and is not empty: name another one.")
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(prefix=f".{path.name}-", dir=path.parent))
    try:
        yield partial
        partial.chmod(0o755)  # `mkdtemp` lets nobody else read
        partial.rename(path)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise


def write_figures(
    folder: Path, traj: Trajectory, stages: Sequence[Stage], painters: Painters | None = None
) -> list[str]:
    """Draw every figure the trajectory has the series for into `folder` as PNG; return the file names.

    Args:
        folder: is made if it is not there.
        traj: the trajectory.
        stages: its stages.
        painters: processes that draw; what they cannot draw is drawn here.
    """
    folder.mkdir(parents=True, exist_ok=True)
    names = painters.draw(folder, traj, stages) if painters else None
    return plot.save(plot.drawn(plot.FIGURES, traj, stages), folder) if names is None else names


def write_run(
    folder: Path,
    traj: Trajectory,
    stages: Sequence[Stage] | None = None,
    *,
    with_figures: bool = True,
    painters: Painters | None = None,
) -> dict[str, Any]:
    """Write a run's dataset, summary and figures into an existing folder.

    Args:
        folder: where to write `trajectory.zarr`, `summary.json` and `figures/`.
        traj: the trajectory.
        stages: its stages; default: `find_stages(traj)`.
        with_figures: draw the figures.
        painters: as in `write_figures`.

    Returns:
        The summary, with the list of figures.
    """
    stages = find_stages(traj) if stages is None else stages
    traj.save(folder / DATASET)
    summary = summarize(traj, stages)
    summary["figures"] = write_figures(folder / FIGURES, traj, stages, painters) if with_figures else []
    (folder / SUMMARY).write_text(to_json(summary) + "\n", encoding="utf-8")
    return summary


def load_run(folder: Path) -> Trajectory:
    """The trajectory of a results folder.

    Raises:
        ValueError: the folder is not one that `write_run` wrote.
    """
    if not (folder / DATASET).is_dir():
        raise ValueError(f"{str(folder)!r} is not a results folder: it holds no {DATASET}.")
    return load(folder / DATASET)
