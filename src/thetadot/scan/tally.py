"""Live progress of a scan: how many lanes are done, how they ended, and how long the others will take."""

import contextlib
import math
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
    running: int = 0  # lanes; none on an executor, which does not tell


class Count:
    """The lanes of a scan as they begin and end, which one thread tells, and are written, which another does."""

    def __init__(self, statuses: Counter[str], total: int, show: Callable[[Tally], None] | None):
        self.statuses, self.total, self.show = statuses, total, show
        self.start, self.before, self.running = time.perf_counter(), statuses.total(), 0

    def begun(self) -> None:
        """A lane has begun."""
        self.running += 1

    def ended(self) -> None:
        """A lane has ended."""
        self.running -= 1

    def written(self, status: str) -> None:
        """A lane has been written; shows where the scan is."""
        self.statuses[status] += 1
        if self.show:
            self.show(self.tally())

    def tally(self) -> Tally:
        """Where the scan is."""
        done, elapsed = self.statuses.total(), time.perf_counter() - self.start
        ended = done - self.before
        left = elapsed / ended * (self.total - done) if ended else math.inf
        return Tally(done, self.total, dict(self.statuses), elapsed, left, max(0, self.running))


@contextlib.contextmanager
def counting(progress: bool | Callable[[Tally], None], statuses: Counter[str], total: int) -> Iterator[Count]:
    """The count of a scan, shown as it changes; `statuses` are those of the lanes that were there before."""
    with live_line(progress, describe_tally) as show:
        count = Count(statuses, total, show)
        if show and progress is True:
            show(count.tally())  # nothing ends while the first lanes compile
        yield count


def describe_tally(tally: Tally) -> str:
    """One line: lanes, how they ended, how many are running, the time left."""
    parts = [f"{tally.done} of {tally.total} lanes"]
    if told := describe_statuses(tally.statuses):
        parts[0] += f": {told}"
    if tally.running:
        parts.append(f"{tally.running} running")
    parts.append(f"about {_duration(tally.left_s)} left" if math.isfinite(tally.left_s) else "compiling")
    return "; ".join(parts)


def describe_statuses(statuses: Mapping[str, int]) -> str:
    """How many lanes ended in which way."""
    return ", ".join(f"{count} {status}" for status, count in sorted(statuses.items()))


def _duration(seconds: float) -> str:
    for unit, size in (("h", 3600), ("min", 60)):
        if seconds >= size:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds:.0f} s"
