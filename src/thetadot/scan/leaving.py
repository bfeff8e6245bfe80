"""Threads that an interrupted scan cannot leave at once: the end of the process waits for them, with a word why.

XLA cannot be interrupted while it compiles, and a thread that comes out of it after the interpreter is gone aborts the
process.
"""

import atexit
import contextlib
import os
import sys
from collections.abc import Iterable
from threading import Thread

from ..compile.process import interrupt
from .lane import Interrupted

_PAUSE_S = 1.0  # between two attempts, as the first may be met by code that goes on after any error

_left: list[Thread] = []
_at_once: list[bool] = []


def leave_at_once() -> None:
    """Lets the end of this process wait for nothing: for a program that has nothing else to do then, and says so."""
    _at_once.append(True)


def wait_at_exit(threads: Iterable[Thread]) -> None:
    """Lets the process end after these threads, or at the next Ctrl-C."""
    _left.extend(thread for thread in threads if thread.is_alive())


@atexit.register
def _wait() -> None:
    alive = [thread for thread in _left if thread.is_alive()]
    try:
        if alive and not _at_once:
            _tell("thetadot: waiting for lanes that cannot be left yet, most often because XLA compiles them. ")
            _tell("Everything is saved: Ctrl-C once more ends at once.\n")
            while alive := [thread for thread in alive if thread.is_alive()]:
                for thread in alive:
                    interrupt(thread, Interrupted)  # between two compilations, or what it traces
                    thread.join(_PAUSE_S)
    except KeyboardInterrupt:
        _at_once.append(True)
    if alive and _at_once:
        _tell("")
        os._exit(130)


def _tell(what: str) -> None:
    with contextlib.suppress(OSError, ValueError):  # nobody listens
        sys.stdout.flush()
        sys.stderr.write(what)
        sys.stderr.flush()
