"""The store of a scan: a Zarr group with the grid's dimensions, that lanes are written to as they finish.

A lane is finished once its `status` is written, which is the last thing written. Every chunk is replaced as a whole, so
a process that is killed at any moment leaves finished lanes as they were. The group is made beside its place and moved
there, so there is no half-made store. Every chunk of `status` is there from the beginning, and every lane has a
checksum of all that it left behind, so that what is missing is told from what was not reached (see `damage`). So has
every group and array, of what it says of itself.
"""

import json
import os
import tempfile
from collections import Counter
from collections.abc import AsyncIterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from ..stored import SEAL, compressors, is_whole, made_aside, sealed
from .grid import Axes, chunk_shape, shape_of
from .head import CONFIGURATION, Head, read_head

if TYPE_CHECKING:
    import xarray as xr  # half a second, and another half for zarr: imported where they are used
    import zarr

PENDING = "pending"
"""The status of a lane that has not been run."""

MISSING = "missing"
"""What a status reads as whose file is not there; no lane ever has it."""

CHECKSUM = "checksum"
"""The variable that holds, for each lane, a checksum of everything in it."""

IDENTITY = "lane_identity"
"""The variable that holds, for each finished lane, what it solved: a number for each of its parts."""

IN_PROGRESS = "_in_progress"
"""The group in the store that holds, while it is written, its lock and what belongs to lanes in progress."""

OTHER = "holds another scan"
"""What is said of a store whose grid or names are not those asked for."""

_CHUNK = 512  # lanes, at most

Attributes = dict[str, Any]


class Layout(NamedTuple):
    """What a store holds."""

    axes: Axes
    numbers: Mapping[str, Attributes]  # name -> attributes, of those that every lane has
    functions: tuple[str, ...]  # whose numbers have a place once the first lane has any
    attrs: Attributes  # of the store; the `configuration` in it tells grids apart
    parts: Sequence[str]  # what each of the numbers of an identity stands for

    @property
    def names(self) -> list[str]:
        """Of all variables over the grid, the status first."""
        return ["status", CHECKSUM, IDENTITY, "result", *self.numbers, *self.functions]


def open_store(path: Path | None, layout: Layout, mends: bool = False) -> "zarr.Group":
    """The store at `path`, made if it is not there, or one in memory.

    Of several processes that make one store at once, one does, and the others open it. With `mends`, a store that has
    lost the file that says of which scan it is, or whose file is damaged, gets another if its status says the same.

    Raises:
        ValueError: what is there is not a store, or has another grid or other names, or is of another version, or
            does not say so any more.
        OSError: it cannot be made.
    """
    import zarr
    from zarr.storage import MemoryStore

    if path is None:
        return make(MemoryStore(), layout)
    if not path.exists() or (path.is_dir() and not any(path.iterdir())):
        _make_aside(path, layout)
    head = read_head(path, mends)
    if differences := _differences(head.configuration, json.loads(layout.attrs[CONFIGURATION])):
        raise ValueError(f"`{path}` {OTHER}: {'; '.join(differences)}. Give another `store`.")
    if head.is_copy:
        _give_head(path, layout, head)
    group = zarr.open_group(_only(path, layout), mode="r+")
    if _is_of_another_version(group, layout):
        raise ValueError(
            f"`{path}` was made by another version of thetadot and does not say what its lanes solve: give another "
            "`store`."
        )
    return group


def _is_of_another_version(group: "zarr.Group", layout: Layout) -> bool:
    """Whether it knows neither checksums nor identities, or other ones; what has lost one of them is damaged."""
    try:
        attrs = group[IDENTITY].attrs
    except Exception:  # it is not there, or cannot be read
        return CHECKSUM not in group
    return is_whole(attrs, group.attrs, IDENTITY) and attrs.get("parts") != list(layout.parts)


def _give_head(path: Path, layout: Layout, copy: Head) -> None:
    import zarr

    with tempfile.TemporaryDirectory(dir=path.parent, prefix=f".{path.name}.") as scratch:
        attrs = sealed(layout.attrs) if SEAL in copy.attrs else layout.attrs
        zarr.create_group(Path(scratch) / "new", attributes=attrs)
        os.replace(Path(scratch) / "new" / "zarr.json", path / "zarr.json")


def tell(node: "zarr.Group | zarr.Array", attrs: Attributes) -> None:
    """Lets a group or an array say something of itself. A store of an earlier version stays without seals."""
    told = {**node.attrs, **attrs}
    node.update_attributes(sealed(told, node.basename) if SEAL in told else told)


def _only(path: Path, layout: Layout) -> Any:
    """The folder as Zarr sees it, without what is not of the scan: files of others do no harm."""
    from zarr.storage import LocalStore, WrapperStore

    known = {*layout.axes, *layout.names, IN_PROGRESS}

    class Only(WrapperStore[Any]):
        def with_read_only(self, read_only: bool = False) -> "Only":
            return Only(self._store.with_read_only(read_only))

        async def list_dir(self, prefix: str) -> AsyncIterator[str]:
            async for name in self._store.list_dir(prefix):
                if prefix.strip("/") or name in known:
                    yield name

    return Only(LocalStore(path))


def _make_aside(path: Path, layout: Layout) -> None:
    try:
        with made_aside(path) as folder:
            make(folder, layout)
    except FileExistsError:  # another process was faster: its store is opened
        if not path.is_dir():
            raise
    except OSError as error:
        raise OSError(f"cannot make the store `{path}`: {error}.") from error


def make(place: Any, layout: Layout) -> "zarr.Group":
    """A new store without a lane."""
    import zarr

    group, axes = zarr.create_group(place, attributes=sealed(layout.attrs)), layout.axes
    for name, values in axes.items():
        dtype = str if values.dtype.kind == "U" else values.dtype
        options: Any = {"shape": values.shape, "dtype": dtype, "dimension_names": (name,)}
        group.create_array(name, compressors=compressors(), **options)[:] = values
    for name, about in layout.numbers.items():
        add(group, name, (), axes, about=about)
    add(group, CHECKSUM, (), axes, "uint32", 0, {"long_name": "CRC-32 of all that the lane holds"})
    told = {"long_name": "what the lane solved: a number for each of parts", "parts": list(layout.parts)}
    add(group, IDENTITY, (len(layout.parts),), axes, "uint64", 0, told)
    add(group, "result", (), axes, str, "")
    status = add(group, "status", (), axes, str, MISSING, {CONFIGURATION: layout.attrs[CONFIGURATION]})
    status[...] = np.full(status.shape, PENDING, object)
    return group


def add(
    group: "zarr.Group",
    name: str,
    inner: tuple[int, ...],
    axes: Axes,
    dtype: Any = "float64",
    fill: Any = np.nan,
    about: Mapping[str, Any] | None = None,
) -> "zarr.Array":
    """A variable over the grid that says `about` itself, with dimensions `<name>_0`, … of its own."""
    shape = shape_of(axes)
    return group.create_array(
        name,
        shape=(*shape, *inner),
        chunks=(*chunks_of(axes), *inner),
        dtype=dtype,
        fill_value=fill,
        dimension_names=(*axes, *(f"{name}_{i}" for i in range(len(inner)))),
        compressors=compressors(),
        attributes=sealed(about or {}, name),
    )


def chunks_of(axes: Axes) -> tuple[int, ...]:
    """The shape of a chunk over the grid."""
    return chunk_shape(shape_of(axes), _CHUNK)


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
            return f"has {len(there)} value{'s' * (len(there) > 1)} there and {len(here)} here"
        there, here = next((a, b) for a, b in zip(there, here, strict=True) if a != b)
    return f"is {there!r} there and {here!r} here"


def renew(group: "zarr.Group", layout: Layout) -> None:
    """Lets a store tell of the scan that writes it now."""
    tell(group, layout.attrs)
    tell(group["status"], {CONFIGURATION: layout.attrs[CONFIGURATION]})
    for name, about in layout.numbers.items():
        tell(group[name], about)


def pending(group: "zarr.Group") -> list[int]:
    """Numbers of the lanes without a status."""
    return np.flatnonzero(_statuses(group) == PENDING).tolist()


def statuses(group: "zarr.Group") -> Counter[str]:
    """How many lanes have which status."""
    return Counter(_statuses(group).tolist())


def _statuses(group: "zarr.Group") -> np.ndarray:
    return np.asarray(group["status"][...]).ravel()  # pyright: ignore


def read(group: "zarr.Group", axes: Axes, variables: Sequence[str]) -> "xr.Dataset":
    """The store as a dataset, its variables in order; arrays stay on disk until they are looked at.

    What no lane has is NaN.
    """
    import xarray as xr

    ds = xr.open_zarr(group.store, consolidated=False, chunks=None)
    for told in (ds.attrs, *(variable.attrs for variable in ds.variables.values())):
        told.pop(SEAL, None)
    words = {name: ds[name].astype(object) for name in map(str, ds.variables) if ds[name].dtype.kind == "T"}
    ds = ds.assign_coords({name: word for name, word in words.items() if name in ds.coords})
    ds = ds.assign({name: word for name, word in words.items() if name not in ds.coords})
    nowhere = {name: (tuple(axes), np.full(shape_of(axes), np.nan)) for name in variables if name not in ds}
    return ds.assign(nowhere)[list(variables)]
