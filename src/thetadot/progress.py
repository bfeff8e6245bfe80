"""Live progress, shown from the host between compiled chunks."""

import contextlib
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from rich.console import Console  # imported where it is used: half a second


class Report(NamedTuple):
    """Where a flow is. `ts` and `losses` are the rows recorded so far, joined when they are looked at."""

    t: float
    t1: float
    loss: float
    grad_norm: float
    num_steps: int
    steps_per_s: float
    chunks: tuple[tuple[np.ndarray, np.ndarray], ...]

    @property
    def ts(self) -> np.ndarray:
        """Their times."""
        return np.concatenate([np.zeros(0), *(ts for ts, _ in self.chunks)])

    @property
    def losses(self) -> np.ndarray:
        """Their losses."""
        return np.concatenate([np.zeros(0), *(losses for _, losses in self.chunks)])


def describe(report: Report) -> str:
    """One line: time, loss, gradient norm, speed."""
    return (
        f"t = {report.t:.6g} of {report.t1:.6g}   loss {report.loss:.6g}   ‖∇L‖ {report.grad_norm:.2e}   "
        f"{report.num_steps} steps, {report.steps_per_s:.0f}/s"
    )


@contextlib.contextmanager
def live_line(
    progress: bool | Callable[[Any], None], describe: Callable[[Any], str] = describe
) -> Iterator[Callable[[Any], None] | None]:
    """A function to call with reports: the user's own, a live line on stderr, or None for no progress."""
    if not progress:
        yield None
    elif callable(progress):
        yield progress
    else:
        from rich.live import Live

        with Live(console=console(stderr=True), refresh_per_second=8, transient=True) as live:
            yield lambda report: live.update(describe(report))


def console(*, stderr: bool = False) -> "Console":
    """A console on the present stdout or stderr that prints text as it is."""
    from rich.console import Console

    return Console(stderr=stderr, markup=False, highlight=False, emoji=False)
