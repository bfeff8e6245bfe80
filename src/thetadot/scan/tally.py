"""Live progress of a scan: how many lanes are done, how they ended, and how long the others will take."""

import contextlib
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from typing import NamedTuple

from ..progress import live_line


class Tally(NamedTuple):
    """Where a scan is. `left_s` is the time that the lanes still to do will take at the pace so far."""

    done: int
    total: int
    statuses: Mapping[str, int]
    elapsed_s: float
    left_s: float


@contextlib.contextmanager
def counting(
    progress: bool | Callable[[Tally], None], statuses: Counter[str], total: int
) -> Iterator[Callable[[str], None]]:
    """A function to call with the status of each lane that finishes; `statuses` are those of the lanes before."""
    began, before = time.perf_counter(), statuses.total()
    with live_line(progress, describe_tally) as show:

        def count(status: str) -> None:
            statuses[status] += 1
            done, elapsed = statuses.total(), time.perf_counter() - began
            if show:
                show(Tally(done, total, dict(statuses), elapsed, elapsed / (done - before) * (total - done)))

        yield count


def describe_tally(tally: Tally) -> str:
    """One line: lanes, how they ended, the time left."""
    ends = describe_statuses(tally.statuses)
    return f"{tally.done} of {tally.total} lanes: {ends}; about {_duration(tally.left_s)} left"


def describe_statuses(statuses: Mapping[str, int]) -> str:
    """How many lanes ended in which way."""
    return ", ".join(f"{count} {status}" for status, count in sorted(statuses.items()))


def _duration(seconds: float) -> str:
    for unit, size in (("h", 3600), ("min", 60)):
        if seconds >= size:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds:.0f} s"
