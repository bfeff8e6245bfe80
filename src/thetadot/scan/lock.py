"""One process at a time writes a store, and keeps there what belongs to its lanes in progress.

The operating system holds the lock (`flock`), and releases it when its process ends, however that ends: there are no
stale locks on a local disk. Machines that share a file system see each other's locks over NFS and Lustre as they are
usually mounted, but not if each has locks of its own (`nolock`, `local_lock`, `localflock`): then give each machine a
store of its own.
"""

import contextlib
import os
import platform
import shutil
import warnings
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

from .store import IN_PROGRESS, pending
from .writer import explained

if TYPE_CHECKING:
    import zarr
    from filelock import FileLock

_GROUP = '{"zarr_format": 3, "node_type": "group", "attributes": {}}'  # for others that look into the store


@contextlib.contextmanager
def working(group: "zarr.Group", path: Path | None) -> Iterator[Path | None]:
    """The folder for lanes in progress of the store at `path`, which nobody else can write meanwhile.

    When no lane is left the folder is removed.

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
        folder.mkdir(exist_ok=True)
        (folder / "zarr.json").write_text(_GROUP)
        is_ours = _acquired(lock)
        before = _told(writer)
        if is_ours:
            writer.write_text(f"process {os.getpid()} on {platform.node()}, since {datetime.now():%Y-%m-%d %H:%M}")
    if not is_ours:
        raise BlockingIOError(
            f"`{path}` is being written by {before or 'another process'}: wait until it is done, or stop it."
        )
    try:
        if before and f" on {platform.node()}, " not in before:
            warnings.warn(
                f"`{path}` was left without an end by {before}. If that still runs, stop one of the two: not every "
                "shared file system shows the locks of other machines.",
                stacklevel=4,
            )
        yield folder
    finally:
        with contextlib.suppress(OSError):
            writer.unlink()  # only a process that was killed leaves it
        if not pending(group):
            shutil.rmtree(folder, ignore_errors=True)
        lock.release()


def _told(writer: Path) -> str:
    """Who wrote last, if it did not come to an end."""
    try:
        return writer.read_text()
    except (OSError, ValueError):
        return ""


def _acquired(lock: "FileLock") -> bool:
    from filelock import Timeout

    try:
        lock.acquire()
    except Timeout:
        return False
    except NotImplementedError as error:
        raise OSError("its file system has no locks, so that nothing keeps two processes apart") from error
    return True
