"""Runs a function in a process of its own with a deadline, so that its caches and threads reach no other."""

import math
import multiprocessing
import os
import resource
import signal
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

START_CLOCK = "start clock"  # what a process sends when it has compiled and its deadline begins to count
MAXRSS_A_MIB = 2**20 if sys.platform == "darwin" else 2**10
_START_LIMIT = 180.0  # seconds until its imports are done, and again until then


@dataclass(frozen=True)
class Ending:
    """How a process ended.

    Attributes:
        why: "done", "deadline", or a sentence that says what failed.
        seconds: since its clock was started.
        reached: the last value of its progress, a time of the flow; NaN where nobody set it.
        peak_mib: its peak memory in MiB; NaN if it was killed.
    """

    why: str
    seconds: float
    reached: float
    peak_mib: float


def outcome(ending: Ending, deadline: float) -> str:
    """How a process ended, in words."""
    if ending.why != "deadline":
        return ending.why
    reached = f", had reached t = {ending.reached:.4g}" if math.isfinite(ending.reached) else ""
    return f"not finished within {deadline:g} s{reached}"


def run_apart(target: Callable, args: tuple, deadline: float, receive: Callable[[Any], None]) -> Ending:
    """Calls `target(send, progress, *args)` in a new process and hands what it sends to `receive`.

    Args:
        target: a module-level function.
        args: picklable arguments.
        deadline: seconds after it sent `START_CLOCK` at which the process is killed.
        receive: called with every object that the process sends.
    """
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe(duplex=False)
    progress = context.RawValue("d", float("nan"))
    process = context.Process(target=_child, args=(target, args, theirs, progress))
    process.start()
    theirs.close()
    began, limit = time.perf_counter(), _START_LIMIT
    why, peak = "ended without a word: probably killed for its memory", float("nan")
    try:
        while True:
            if not ours.poll(max(0.0, limit - (time.perf_counter() - began))):
                why = "deadline"
                break
            kind, content = ours.recv()
            if kind == "imported" or content == START_CLOCK:
                began, limit = time.perf_counter(), _START_LIMIT if kind == "imported" else deadline
            elif kind == "sent":
                receive(content)
            else:
                why, peak = content
    except EOFError:
        pass  # the process has ended
    except BaseException:
        why = "deadline"  # nobody waits for it any more
        raise
    finally:
        seconds = time.perf_counter() - began
        if why == "deadline" and process.is_alive() and process.pid is not None:
            os.killpg(process.pid, signal.SIGKILL)
        process.join()
    return Ending(why, seconds, progress.value, peak)


def _child(target, args, connection, progress) -> None:
    os.setsid()  # its own workers, if it has any, are killed with it
    import jax

    import thetadot  # noqa: F401  (its import time is not the target's)

    jax.config.update("jax_enable_x64", True)
    connection.send(("imported", None))
    try:
        target(lambda content: connection.send(("sent", content)), progress, *args)
        why = "done"
    except Exception as error:
        traceback.print_exc(file=sys.stderr)
        why = f"failed: {type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
    connection.send(("ended", (why, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / MAXRSS_A_MIB)))
