"""One process at a time writes a store, and keeps there what belongs to its lanes in progress."""

import contextlib
import os
import platform
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from .store import IN_PROGRESS, explained, pending

if TYPE_CHECKING:
    import zarr
    from filelock import FileLock


@contextlib.contextmanager
def working(group: "zarr.Group", path: Path | None) -> Iterator[Path | None]:
    """The folder for lanes in progress of the store at `path`, which nobody else can write meanwhile.

    The operating system holds the lock for the process and releases it when that ends, however it ends. When no lane
    is left the folder is removed.

    Raises:
        BlockingIOError: another process, or another scan of this one, is writing the store.
        OSError: it cannot be written.
    """
    if path is None:
        yield None
        return
    from filelock import FileLock

    folder = path / IN_PROGRESS
    lock, writer = FileLock(folder / "lock", timeout=0), folder / "writer"
    with explained(path):
        group.require_group(IN_PROGRESS)
        is_ours = _acquired(lock)
        if is_ours:
            writer.write_text(f"process {os.getpid()} on {platform.node()}")
    if not is_ours:
        who = writer.read_text() if writer.exists() else "another process"
        raise BlockingIOError(f"`{path}` is being written by {who}: wait until it is done, or stop it.")
    try:
        yield folder
    finally:
        if not pending(group):
            shutil.rmtree(folder, ignore_errors=True)
        lock.release()


def _acquired(lock: "FileLock") -> bool:
    from filelock import Timeout

    try:
        lock.acquire()
    except Timeout:
        return False
    return True
