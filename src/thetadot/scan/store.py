"""The store of a scan: a Zarr group with the grid's dimensions, written by one thread as lanes finish.

A lane is finished once its `status` is written, which is the last thing written. Every chunk is replaced as a whole, so
a process that is killed at any moment leaves finished lanes as they were. The group is made beside its place and moved
there, so there is no half-made store.
"""

import contextlib
import json
import os
import shutil
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from queue import SimpleQueue
from threading import Event, Thread
from typing import TYPE_CHECKING, Any

import numpy as np

from .grid import Axes, chunk_shape, chunk_start, shape_of
from .lane import Row

if TYPE_CHECKING:
    import xarray as xr  # half a second, and another half for zarr: imported where they are used
    import zarr

PENDING = "pending"
"""The status of a lane that has not been run."""

IN_PROGRESS = "_in_progress"
"""The group in the store that holds, while it is written, its lock and what belongs to lanes in progress."""

_CHUNK = 512  # lanes, at most
_REST = 4.0  # pauses of the writer, in units of what its last visit to the store took


Attributes = dict[str, Any]


def open_store(
    path: Path | None,
    axes: Axes,
    variables: Mapping[str, Attributes],
    attrs: Attributes,
    parts: Mapping[str, list[str]],
) -> "zarr.Group":
    """The store at `path`, made if it is not there, or one in memory.

    Args:
        path: of the store; None keeps it in memory.
        axes: the grid.
        variables: name -> attributes of each number that every lane has.
        attrs: of the store; the `configuration` in it tells grids and what is measured there.
        parts: name of the variable that says what a lane solves -> what each of its numbers stands for.

    Raises:
        ValueError: what is there is not a store, or has another grid or other names.
        OSError: it cannot be made.
    """
    import zarr
    from zarr.storage import MemoryStore

    if path is None:
        return _make(MemoryStore(), axes, variables, attrs, parts)
    if not path.exists() or (path.is_dir() and not any(path.iterdir())):
        _make_aside(path, axes, variables, attrs, parts)
    try:
        group = zarr.open_group(path, mode="r+")
        there = json.loads(group.attrs["configuration"])  # pyright: ignore[reportArgumentType]
    except Exception as error:  # zarr raises a dozen kinds
        raise ValueError(f"`{path}` is there and is not the store of a scan: give another `store`.") from error
    differences = _differences(there, json.loads(attrs["configuration"]))
    if all(name in group for name in parts) and differences:
        raise ValueError(f"`{path}` holds another scan: {'; '.join(differences)}. Give another `store`.")
    if any(name not in group or group[name].attrs.get("parts") != words for name, words in parts.items()):
        raise ValueError(
            f"`{path}` was made by another version of thetadot and does not say what its lanes solve: give another "
            "`store`."
        )
    return group


def _make_aside(path: Path, *contents) -> None:
    partial = path.with_name(f".{path.name}.partial")  # it is there if a process was killed meanwhile
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(partial, ignore_errors=True)
        _make(partial, *contents)
        os.replace(partial, path)
    except OSError as error:
        shutil.rmtree(partial, ignore_errors=True)
        raise OSError(f"cannot make the store `{path}`: {error}.") from error


def _make(place, axes: Axes, variables: Mapping[str, Attributes], attrs: Attributes, parts) -> "zarr.Group":
    import zarr

    group = zarr.create_group(place, attributes=attrs)
    for name, values in axes.items():
        dtype = str if values.dtype.kind == "U" else values.dtype
        group.create_array(name, shape=values.shape, dtype=dtype, dimension_names=(name,))[:] = values
    for name, about in variables.items():
        _add(group, name, (), axes).update_attributes(about)
    for name, fill in (("result", ""), ("status", PENDING)):
        _add(group, name, (), axes, str, fill)
    for name, words in parts.items():
        told = {"long_name": "what the lane solved: a number for each of parts", "parts": words}
        _add(group, name, (len(words),), axes, "uint64", 0).update_attributes(told)
    return group


def _add(group: "zarr.Group", name: str, inner: tuple[int, ...], axes, dtype: Any = "float64", fill: Any = np.nan):
    """A variable over the grid, with dimensions `<name>_0`, … of its own."""
    shape = shape_of(axes)
    return group.create_array(
        name,
        shape=(*shape, *inner),
        chunks=(*chunk_shape(shape, _CHUNK), *inner),
        dtype=dtype,
        fill_value=fill,
        dimension_names=(*axes, *(f"{name}_{i}" for i in range(len(inner)))),
    )


def _differences(there: dict, here: dict) -> list[str]:
    """What makes the variables of two configurations different, in words."""
    only = [key for key in {**there, **here} if (key in there) != (key in here)]
    keys = [key for key in {**there, **here} if key in only or (_is_of_grid(key) and there[key] != here[key])]
    return [f"{key} {_versus(there.get(key), here.get(key))}" for key in keys]


def _is_of_grid(key: str) -> bool:
    return key == "axes" or key.startswith("grid[")


def _versus(there, here) -> str:
    if isinstance(there, list) and isinstance(here, list):
        if len(there) != len(here):
            return f"has {len(there)} values there and {len(here)} here"
        there, here = next((a, b) for a, b in zip(there, here, strict=True) if a != b)
    return f"is {there!r} there and {here!r} here"


def pending(group: "zarr.Group") -> list[int]:
    """Numbers of the lanes without a status."""
    return np.flatnonzero(_statuses(group) == PENDING).tolist()


def statuses(group: "zarr.Group") -> Counter[str]:
    """How many lanes have which status."""
    return Counter(_statuses(group).tolist())


def _statuses(group: "zarr.Group") -> np.ndarray:
    return np.asarray(group["status"][...]).ravel()  # pyright: ignore


@contextlib.contextmanager
def writing(
    group: "zarr.Group", axes: Axes, path: Path | None, written: Callable[[int, str], None]
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
                    write(group, axes, lanes)
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


def write(group: "zarr.Group", axes: Axes, rows: Sequence[tuple[int, Row]]) -> None:
    """Writes lanes, chunk by chunk: their status last, since it says that the rest is there."""
    arrays = _arrays(group, axes, rows)
    shape, chunks = shape_of(axes), arrays["status"].chunks
    shares = defaultdict(list)
    for lane, row in rows:
        shares[chunk_start(lane, shape, chunks)].append((lane, row))
    for start, share in shares.items():
        first = int(np.ravel_multi_index(start, shape))
        region = tuple(slice(i, i + size) for i, size in zip(start, chunks, strict=False))
        names = {name for _, row in share for name in row}
        for name in sorted(names, key=lambda name: (name == "status", name)):
            values = np.array(arrays[name][region])
            flat = values.reshape(-1, *values.shape[len(shape) :])  # the lanes of a chunk follow one another
            for lane, row in share:
                if name in row:
                    flat[lane - first] = row[name]
            arrays[name][region] = values


def _arrays(group: "zarr.Group", axes: Axes, rows: Sequence[tuple[int, Row]]) -> dict[str, Any]:
    """The variables, with those that are new; a lane whose array has another shape than those before it fails."""
    arrays: dict[str, Any] = dict(group.arrays())
    for _, row in rows:
        for name in [name for name, value in row.items() if isinstance(value, np.ndarray)]:
            if name not in arrays:
                arrays[name] = _add(group, name, row[name].shape, axes)
            expected = arrays[name].shape[len(axes) :]
            if (found := row[name].shape) != expected:
                del row[name]
                told = f"`measure[{name!r}]` has shape {found} in this lane and {expected} in one before it."
                row |= {"status": "failed", "result": told}
    return arrays


def read(group: "zarr.Group", variables: Sequence[str]) -> "xr.Dataset":
    """The store as a dataset, its variables in order; arrays stay on disk until they are looked at."""
    import xarray as xr

    ds = xr.open_zarr(group.store, consolidated=False, chunks=None)
    words = {name: ds[name].astype(object) for name in map(str, ds.variables) if ds[name].dtype.kind == "T"}
    ds = ds.assign_coords({name: word for name, word in words.items() if name in ds.coords})
    ds = ds.assign({name: word for name, word in words.items() if name not in ds.coords})
    return ds[[name for name in variables if name in ds]]
