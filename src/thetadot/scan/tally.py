"""Live progress of a scan: how many lanes are done, how they ended, and how long the others will take."""

import contextlib
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from typing import NamedTuple


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
    with _display(progress) as show:

        def count(status: str) -> None:
            statuses[status] += 1
            done, elapsed = statuses.total(), time.perf_counter() - began
            show(Tally(done, total, dict(statuses), elapsed, elapsed / (done - before) * (total - done)))

        yield count


@contextlib.contextmanager
def _display(progress: bool | Callable[[Tally], None]) -> Iterator[Callable[[Tally], None]]:
    if callable(progress):
        yield progress
    elif not progress:
        yield lambda tally: None
    else:
        from rich.console import Console
        from rich.live import Live

        with Live(console=Console(stderr=True), refresh_per_second=8, transient=True) as live:
            yield lambda tally: live.update(describe_tally(tally))


def describe_tally(tally: Tally) -> str:
    """One line: lanes, how they ended, the time left."""
    ends = ", ".join(f"{count} {status}" for status, count in sorted(tally.statuses.items()))
    return f"{tally.done} of {tally.total} lanes: {ends}; about {_duration(tally.left_s)} left"


def _duration(seconds: float) -> str:
    for unit, size in (("h", 3600), ("min", 60)):
        if seconds >= size:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds:.0f} s"
