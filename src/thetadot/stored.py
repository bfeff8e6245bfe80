"""Folders of Zarr arrays: made whole or not at all, and checked when they are read.

Every chunk carries Zarr's own checksum, which tells a damaged file. A file that is missing reads as zeros or NaN, and
one of another store as its numbers: `checksum` of the values themselves tells those. What a folder or an array says of
itself, its attributes, has no checksum of Zarr's: `sealed` gives it one.
"""

import contextlib
import json
import os
import platform
import re
import shutil
import tempfile
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

SEAL = "checksum"
"""The attribute that holds the checksum of all others."""


def as_path(place: Any, argument: str) -> Path:
    """The place of a folder, or a ValueError unless it is a text or a path."""
    text = os.fspath(place) if isinstance(place, str | os.PathLike) else None
    if not (isinstance(text, str) and text and "\0" not in text):
        raise ValueError(f"`{argument}` must be the path of a folder, as a text or a `Path`; got {place!r:.100}.")
    return Path(place)


@contextlib.contextmanager
def made_aside(path: Path) -> Iterator[Path]:
    """A place beside `path` for a new folder, which is moved to `path` when the block ends without an error.

    The place is this process's own and the move is one rename, which only an empty folder gives way to: of several
    that make one folder at once, on one machine or on several, one succeeds.

    Raises:
        FileExistsError: somebody else has made it meanwhile.
        OSError: it cannot be written; nothing is left.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError) as error:
        raise NotADirectoryError(f"`{path.parent}` is a file, or is in one: give another place") from error
    _remove_those_of_the_dead(path)
    prefix = f".{path.name}.{os.getpid()}@{platform.node()}."
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=prefix, suffix=".partial") as scratch:
        folder = Path(scratch) / "folder"
        yield folder
        try:
            os.rename(folder, path)
        except OSError as error:
            if path.exists():
                raise FileExistsError(f"`{path}` exists: remove it, or give another name.") from error
            raise


def _remove_those_of_the_dead(path: Path) -> None:
    """Removes what processes of this machine were killed over while they made this folder."""
    of_here = re.compile(rf"\.{re.escape(path.name)}\.(\d+)@{re.escape(platform.node())}\.\w+\.partial")
    for beside in path.parent.iterdir():
        found = of_here.fullmatch(beside.name)
        if found and not _is_alive(int(found[1])):
            shutil.rmtree(beside, ignore_errors=True)


def _is_alive(process: int) -> bool:
    if os.name != "posix":  # nothing there can be asked without harm
        return True
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except OSError:  # it is another user's
        return True
    return True


def compressors() -> list[Any]:
    """For `create_array`: compression, and a checksum of what comes out of it."""
    from zarr.codecs import Crc32cCodec, ZstdCodec  # here, for a quick import of the package

    return [ZstdCodec(), Crc32cCodec()]


def checksum(values: Any, before: int = 0) -> int:
    """CRC-32 of an array, its shape and dtype included, or of a text; of several, if each is given the one before."""
    if isinstance(values, str):
        return zlib.crc32(values.encode(), before)
    values = np.asarray(values)
    kind = zlib.crc32(f"{values.dtype.str}{values.shape}".encode(), before)
    return zlib.crc32(values.tobytes(), kind)


def sealed(attrs: Mapping[str, Any], name: str = "") -> dict[str, Any]:
    """Attributes with a checksum of them all, and of the name of their array; that of an earlier time is replaced."""
    told = {key: attrs[key] for key in sorted(attrs) if key != SEAL}
    return told | {SEAL: str(checksum(name + json.dumps(told)))}


def is_whole(attrs: Mapping[str, Any], others: Mapping[str, Any], name: str = "") -> bool:
    """Whether attributes are as they were sealed for the array of that name, or for a folder.

    Earlier versions sealed none: attributes without a seal are whole if the `others` of their folder have none either.
    """
    return attrs[SEAL] == sealed(attrs, name)[SEAL] if SEAL in attrs else SEAL not in others
