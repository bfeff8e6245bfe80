"""What a store has lost: files that are missing, cut or altered, told before they are taken for numbers.

Zarr's checksum of a chunk tells a damaged file. One that is missing would read as NaN, "never reached", and one of
another store, or of an earlier hour of this one, as its numbers: the checksum of a lane tells those.
"""

import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from ..stored import is_whole
from .checks import lane_checksums
from .grid import point_at, shape_of
from .store import CHECKSUM, IDENTITY, IN_PROGRESS, MISSING, PENDING, Layout, chunks_of, make
from .writer import take_back

if TYPE_CHECKING:
    import zarr

DAMAGED = ("refuse", "redo")
"""What to do with a store that is damaged."""

_TOLD = 3  # lanes, by their points

Start = tuple[int, ...]  # of a chunk, on the grid


class Damage(NamedTuple):
    """What is damaged in a store."""

    described: set[str]  # axes, and variables whose description (`zarr.json`) is not theirs
    chunks: list[tuple[str, Start]]  # that cannot be read
    lanes: dict[int, set[str]]  # lane that was finished -> variables that it has lost, if that can be told

    def __bool__(self) -> bool:
        return bool(self.described or self.chunks or self.lanes)

    def told(self, path: Path, layout: Layout) -> str:
        """In a sentence that says what to do."""
        names = sorted({*self.described, *(name for name, _ in self.chunks), *set().union(*self.lanes.values())})
        of = f"of {' or '.join(f'`{name}`' for name in names)} " if names else ""
        points = ", ".join(f"{lane} {point_at(layout.axes, lane)}" for lane in sorted(self.lanes)[:_TOLD])
        more = ", …" * (len(self.lanes) > _TOLD)
        where = f" It concerns {len(self.lanes)} finished lanes: {points}{more}." if self.lanes else ""
        return (
            f"`{path}` is damaged: a file {of}is missing or is not what was written.{where} Copy the store again from "
            "where it is whole, or pass damaged='redo' to keep all other lanes and solve these again."
        )


def find_damage(group: "zarr.Group", path: Path, layout: Layout) -> Damage:
    """Reads all that is in a store and compares it with what was written.

    A lane that another process writes meanwhile is no damage: the status is read first and written last.
    """
    arrays, described = _opened(group, path, layout)
    broken, lanes = [], {}
    if described:
        return Damage(described, broken, lanes)
    for start, region, numbers in _chunks(layout):
        columns = {}
        for name, array in arrays.items():
            try:
                values = np.asarray(array[region])
                columns[name] = values.reshape(len(numbers), *values.shape[len(start) :])
            except Exception:  # zarr raises a dozen kinds
                broken.append((name, start))
        written = columns.pop(CHECKSUM, np.zeros(len(numbers)))
        nameless = ~np.any(columns.pop(IDENTITY, np.zeros((len(numbers), 1))), axis=1)
        status = columns.get("status", np.full(len(numbers), MISSING, object))
        lost = (status == MISSING) | nameless | (written != lane_checksums(columns))
        wrong = (status != PENDING) & lost
        if np.any(wrong):
            names = {name for name, at in broken if at == start} or _without_file(path, layout, start)
            lanes |= {numbers[int(i)]: names for i in np.flatnonzero(wrong)}
    return Damage(described, broken, lanes)


def check_damage(group: "zarr.Group", path: Path | None, layout: Layout, damaged: str) -> bool:
    """Whether a store has to be mended.

    Raises:
        ValueError: it would have to be, and `damaged` is not "redo".
    """
    damage = None if path is None else find_damage(group, path, layout)
    if path is not None and damage and damaged == "refuse":
        raise ValueError(damage.told(path, layout))
    return bool(damage)


def mend(group: "zarr.Group", path: Path, layout: Layout) -> None:
    """Makes the lanes that are damaged lanes to be solved, and leaves all others as they are. For the one writer.

    Raises:
        OSError: the store cannot be written.
    """
    described = find_damage(group, path, layout).described
    with tempfile.TemporaryDirectory(dir=path / IN_PROGRESS) as scratch:
        new = Path(scratch) / "new"
        make(new, layout)
        for name in described:
            if name in layout.axes or name in layout.functions:
                _remove(path / name)
            if name in layout.axes:
                os.replace(new / name, path / name)
            elif name not in layout.functions:  # its numbers are where they were
                (path / name).mkdir(exist_ok=True)
                os.replace(new / name / "zarr.json", path / name / "zarr.json")
    damage = find_damage(group, path, layout)
    _forget_lanes(group, layout, damage)
    for name, start in damage.chunks:
        if name != "status":
            _remove(_file(path, name, start, layout))
    if left := find_damage(group, path, layout):
        raise OSError(f"{left.told(path, layout)} It could not be mended: give another `store`.")


def _forget_lanes(group: "zarr.Group", layout: Layout, damage: Damage) -> None:
    """Takes the status of damaged lanes back: they are pending. So are those of a chunk that cannot be read."""
    status: Any = group["status"]
    for start, region, _ in _chunks(layout):
        if ("status", start) in damage.chunks:
            status[region] = np.full(_size(region), PENDING, object)
    take_back(group, layout, damage.lanes)


def _opened(group: "zarr.Group", path: Path, layout: Layout) -> tuple[dict[str, Any], set[str]]:
    """The variables, the status first, and the names of those that are not as they were made; of axes, too."""
    arrays, described = {}, set()
    for name in layout.names:
        try:
            array: Any = group[name]
            if not (_is_its_own(array, name, layout) and is_whole(array.attrs, group.attrs, name)):
                raise ValueError
            arrays[name] = array
        except Exception:  # zarr raises a dozen kinds
            if name not in layout.functions or (path / name / "c").exists():
                described.add(name)
    for name, values in layout.axes.items():
        try:
            axis: Any = group[name]
            same = axis.metadata.dimension_names == (name,) and np.array_equal(
                np.asarray(axis[...]).astype(values.dtype), values
            )
        except Exception:
            same = False
        if not same:
            described.add(name)
    return arrays, described


def _is_its_own(array: Any, name: str, layout: Layout) -> bool:
    """Whether the description of a variable can be the one that was made for it, and is not another's."""
    shape = shape_of(layout.axes)
    inner = array.shape[len(shape) :]
    names = (*layout.axes, *(f"{name}_{i}" for i in range(len(inner))))
    kinds = {"status": ("T", MISSING), "result": ("T", ""), CHECKSUM: ("u", 0), IDENTITY: ("u", 0)}
    kind, fill = kinds.get(name, ("f", None))
    return (
        array.shape[: len(shape)] == shape
        and array.chunks == (*chunks_of(layout.axes), *inner)
        and array.metadata.dimension_names == names
        and array.dtype.kind == kind
        and (np.isnan(array.fill_value) if fill is None else array.fill_value == fill)
        and (
            name in layout.functions or array.shape[len(shape) :] == (() if name != IDENTITY else (len(layout.parts),))
        )
    )


def _chunks(layout: Layout) -> Iterator[tuple[Start, tuple[slice, ...], range]]:
    """(where it begins, its region, its lanes) of each chunk of the grid; its lanes follow one another."""
    shape, chunks = shape_of(layout.axes), chunks_of(layout.axes)
    for place in np.ndindex(*(-(-size // chunk) for size, chunk in zip(shape, chunks, strict=True))):
        start = tuple(i * chunk for i, chunk in zip(place, chunks, strict=True))
        ends = [min(i + chunk, size) for i, chunk, size in zip(start, chunks, shape, strict=True)]
        region = tuple(slice(i, end) for i, end in zip(start, ends, strict=True))
        first = int(np.ravel_multi_index(start, shape))
        yield start, region, range(first, first + int(np.prod(_size(region))))


def _size(region: tuple[slice, ...]) -> tuple[int, ...]:
    return tuple(part.stop - part.start for part in region)


def _without_file(path: Path, layout: Layout, start: Start) -> set[str]:
    """Variables that have no file for a chunk; so has one that is NaN all over it, unless every lane has a number."""
    always = ("status", CHECKSUM, IDENTITY, "result", "wall_s")
    files = {name: _file(path, name, start, layout) for name in layout.names}
    missing = {name for name, file in files.items() if not (any(file.iterdir()) if file.is_dir() else file.exists())}
    return {name for name in missing if name in always} or missing


def _file(path: Path, name: str, start: Start, layout: Layout) -> Path:
    """Of a chunk; of arrays, which a chunk holds whole, the folder with that file."""
    where = [str(i // chunk) for i, chunk in zip(start, chunks_of(layout.axes), strict=True)]
    return path.joinpath(name, "c", *where)


def _remove(place: Path) -> None:
    if place.is_dir():
        shutil.rmtree(place)
    else:
        place.unlink(missing_ok=True)
