"""Checkpoints of lanes in progress: a file for each flow of a lane, so that a killed scan goes on inside long lanes.

A lane solves its flow at several tolerances, one after the other. Each has a file of its own, written now and then
while it runs; they are removed when the lane is finished. A file is replaced as a whole, so a process that is killed
at any moment leaves a good one.
"""

import contextlib
import os
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np

from ..ladder import LADDER

PAUSE_S = 30.0  # between two checkpoints of a lane: as much is lost by a kill
_SHARE = 20  # and at least so many times what the last ones took to write


Keep = Callable[[], None]  # writes the checkpoint of one lane


def keeping(
    folder: Path | None, in_progress: Callable[[], Iterable[Keep]], check: Callable[[Any], None]
) -> Callable[[Any], None]:
    """`check`, after which lanes in progress are now and then kept; and once more if it leaves by an exception."""
    if folder is None:
        return check
    due = time.monotonic() + PAUSE_S

    def look(report: Any) -> None:
        nonlocal due
        try:
            check(report)
        except BaseException:
            _keep_all(in_progress())
            raise
        if time.monotonic() >= due:
            due = time.monotonic() + max(PAUSE_S, _SHARE * _keep_all(in_progress()))

    return look


def _keep_all(in_progress: Iterable[Keep]) -> float:
    """Seconds that it took. A lane that cannot be kept goes on without: it is not worth failing for."""
    began = time.monotonic()
    for keep in in_progress:
        with contextlib.suppress(Exception):
            keep()
    return time.monotonic() - began


def save(folder: Path, lane: int, rung: int, arrays: Mapping[str, np.ndarray]) -> None:
    """Writes the checkpoint of a flow, all of it or nothing."""
    path = _path(folder, lane, rung)
    partial = path.with_suffix(".partial")
    with open(partial, "wb") as file:
        np.savez(file, allow_pickle=False, **arrays)
    os.replace(partial, path)


def load(folder: Path | None, lane: int, rung: int) -> dict[str, np.ndarray] | None:
    """The checkpoint of a flow; None if there is none, or none that can be read."""
    if folder is None:
        return None
    try:
        with open(_path(folder, lane, rung), "rb") as file:
            return dict(np.load(file, allow_pickle=False))
    except (OSError, ValueError, KeyError, EOFError, BadZipFile):
        return None


def forget(folder: Path, lane: int) -> None:
    """Removes the checkpoints of a lane."""
    for rung in range(len(LADDER)):
        _path(folder, lane, rung).unlink(missing_ok=True)


def _path(folder: Path, lane: int, rung: int) -> Path:
    return folder / f"lane-{lane}-{rung}.npz"
