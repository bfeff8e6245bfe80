"""The one thread that writes a store: lanes as they finish, each whole and its status last."""

import contextlib
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from queue import SimpleQueue
from threading import Event, Thread
from typing import TYPE_CHECKING, Any

import numpy as np

from .checks import row_checksum
from .grid import chunk_start, shape_of
from .lane import Row
from .store import CHECKSUM, IDENTITY, PENDING, Layout, add, chunks_of

if TYPE_CHECKING:
    import zarr

_REST = 4.0  # pauses of the writer, in units of what its last visit to the store took


@contextlib.contextmanager
def writing(
    group: "zarr.Group", layout: Layout, path: Path | None, written: Callable[[int, str], None]
) -> Iterator[Callable[[int, Row], None]]:
    """A function that hands a finished lane to the store's one writer, which calls `written` with it and its status.

    A lane is written as soon as the writer is free. It rests in between, so that writing many short lanes, which go
    to the store together, takes a small share of the time.

    Raises:
        OSError: a lane could not be written; those before it are safe.
    """
    if path is not None:
        with explained(path), tempfile.TemporaryFile(dir=path):
            pass  # it can be written
    finished, ended, failures = SimpleQueue(), Event(), []

    def write_all():
        more = True
        while more:
            rows = [finished.get()]
            while not finished.empty():
                rows.append(finished.get())
            more, began = None not in rows, time.perf_counter()
            try:
                lanes = [row for row in rows if row is not None]
                with explained(path):
                    write(group, layout, lanes)
                for lane, row in lanes:
                    written(lane, row["status"])
            except BaseException as error:  # it is raised where lanes are handed over
                failures.append(error)
                return
            ended.wait(_REST * (time.perf_counter() - began))

    def hand_over(lane: int, row: Row) -> None:
        if failures:
            raise failures[0]
        finished.put((lane, row))

    writer = Thread(target=write_all, daemon=True)
    writer.start()
    try:
        yield hand_over
    finally:
        ended.set()
        finished.put(None)
        writer.join()
    if failures:
        raise failures[0]


@contextlib.contextmanager
def explained(path: Path | None) -> Iterator[None]:
    """Says of an OSError what it means for the store."""
    try:
        yield
    except OSError as error:
        raise OSError(
            f"cannot write to `{path}`: {error}. The lanes finished before are safe in it: once it can be written, the "
            "same call goes on from there."
        ) from error


def write(group: "zarr.Group", layout: Layout, rows: Sequence[tuple[int, Row]]) -> None:
    """Writes lanes, variable by variable: their status last, since it says that the rest is there."""
    arrays = _arrays(group, layout, rows)
    lanes = {}
    for lane, row in rows:
        held = {name: value for name, value in row.items() if name != IDENTITY}  # it is compared by itself
        lanes[lane] = row | {CHECKSUM: row_checksum(held)}
    for name in sorted(arrays, key=lambda name: (name == "status", name)):
        missing = arrays[name].fill_value  # what a lane has not may be there from a time when it had
        _put(arrays[name], layout, {lane: row.get(name, missing) for lane, row in lanes.items()})


def _arrays(group: "zarr.Group", layout: Layout, rows: Sequence[tuple[int, Row]]) -> dict[str, Any]:
    """The variables, with those that are new; a lane whose array has another shape than those before it fails."""
    arrays: dict[str, Any] = {name: group[name] for name in layout.names if name in group}
    for _, row in rows:
        for name in [name for name, value in row.items() if isinstance(value, np.ndarray)]:
            if name not in arrays:
                arrays[name] = add(group, name, row[name].shape, layout.axes)
            expected = arrays[name].shape[len(layout.axes) :]
            if (found := row[name].shape) != expected:
                del row[name]
                told = f"`measure[{name!r}]` has shape {found} in this lane and {expected} in one before it."
                row |= {"status": "failed", "result": told}
    return arrays


def take_back(group: "zarr.Group", layout: Layout, lanes: Iterable[int]) -> None:
    """Makes finished lanes lanes to be solved: their status goes first."""
    _put(group["status"], layout, {lane: PENDING for lane in lanes})


def rename(group: "zarr.Group", layout: Layout, identities: Mapping[int, np.ndarray]) -> None:
    """Gives finished lanes other identities."""
    _put(group[IDENTITY], layout, identities)


def _put(array: Any, layout: Layout, values: Mapping[int, Any]) -> None:
    """Sets the values of some lanes, chunk by chunk."""
    shape, chunks = shape_of(layout.axes), chunks_of(layout.axes)
    shares = defaultdict(dict)
    for lane, value in values.items():
        shares[chunk_start(lane, shape, chunks)][lane] = value
    for start, share in shares.items():
        first = int(np.ravel_multi_index(start, shape))
        region = tuple(slice(i, i + size) for i, size in zip(start, chunks, strict=True))
        held = np.array(array[region])
        flat = held.reshape(-1, *held.shape[len(shape) :])  # the lanes of a chunk follow one another
        for lane, value in share.items():
            flat[lane - first] = value
        array[region] = held
