"""What a store says of the scan that it holds, and whether that is what was written.

The `zarr.json` of the group says it, and that of `status` has a copy. Each has a checksum of all that it says.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from ..stored import is_whole

CONFIGURATION = "configuration"
"""The attribute that says of which scan a store is, as JSON."""

_COPIED = "status"  # the variable that has a copy


class Head(NamedTuple):
    """What a store says of itself."""

    configuration: dict[str, Any]
    attrs: Mapping[str, Any]  # with the configuration
    is_copy: bool  # for its own is missing or damaged


def read_head(path: Path, mends: bool) -> Head:
    """What the store at `path` says of itself; with `mends` its copy will do.

    Raises:
        ValueError: it is not the store of a scan, or what it says is damaged.
    """
    own, copy = _attributes(path), _attributes(path / _COPIED)
    if _says_whole(own, copy):
        return Head(json.loads(own[CONFIGURATION]), own, False)
    if _says_whole(copy, own, _COPIED):
        if mends:
            return Head(json.loads(copy[CONFIGURATION]), copy, True)
        raise ValueError(
            f"`{path}` is damaged: its `zarr.json` is missing or is not what was written. Copy that file again from "
            "where it is whole, or pass damaged='redo' to write it anew and keep all lanes that are whole."
        )
    if (path / _COPIED).is_dir():
        raise ValueError(
            f"`{path}` is not the store of a scan, or its `zarr.json` and that of its `status` are missing or damaged: "
            "copy them again from where they are whole, or give another `store`."
        )
    raise ValueError(f"`{path}` is there and is not the store of a scan: give another `store`.")


def _says_whole(attrs: Mapping[str, Any], others: Mapping[str, Any], name: str = "") -> bool:
    """Whether attributes say of which scan they are, and are what was written."""
    try:
        return is_whole(attrs, others, name) and isinstance(json.loads(attrs[CONFIGURATION]), dict)
    except (KeyError, TypeError, ValueError):
        return False


def _attributes(place: Path) -> dict[str, Any]:
    """Those of a group or an array; none if it cannot be opened."""
    import zarr

    try:
        return dict(zarr.open(place, mode="r").attrs)
    except Exception:  # zarr raises a dozen kinds
        return {}
