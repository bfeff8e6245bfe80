"""How a flow can end, and the sentences that say so."""

import enum

_DECIDES = 0.02  # of a growing motion, from which an escape is off by as much of an e-fold


class Outcome(enum.IntEnum):
    """Why the loop ended."""

    RUNNING = 0
    REACHED = 1  # t1
    STOPPED = 2  # at the crossing named by `stop`
    RESTED = 3  # converged to rounding before t1
    UNDERFLOW = 4  # t + dt == t, or hardly more for ever


class Growth(enum.Enum):
    """How the parameters grew in a flow whose steps became too short to go on."""

    NONE = enum.auto()
    BLOW_UP = enum.auto()  # like (T* − t)^−p
    OVERFLOW = enum.auto()  # beyond floating point


def verdict(
    outcome: Outcome,
    t: float,
    *,
    stop: str | None,
    satisfied: bool,
    max_steps: int,
    solver: str,
    growth: Growth,
    size: float,
    wrong: str | None,
    hindrance: str | None,
) -> tuple[str, str]:
    """(status, sentence) of a flow that has ended.

    Args:
        outcome: how the loop ended; RUNNING if it was left.
        t: where.
        stop: the name of the crossing that was to end it.
        satisfied: whether all crossings that were wanted have been found.
        max_steps: how many steps could be tried.
        solver: the label of the solver in use.
        growth: how the parameters grew, if no step was small enough.
        size: largest |θ| at the end.
        wrong: a sentence where the gradient is not that of the loss; no other advice is worth anything then.
        hindrance: why more steps than `max_steps` would not help, and what would.
    """
    if wrong:
        return "failed", f"Ended at t = {t:.6g}, and the numbers mean nothing: {wrong}"
    match outcome:
        case Outcome.REACHED:
            return "done", f"Reached t1 = {t:g}."
        case Outcome.STOPPED:
            return "stopped", f"Stopped at the crossing {stop!r}, t = {t:.9g}."
        case Outcome.RESTED:
            return "done", f"Converged: from t = {t:.6g} on the parameters move by rounding only; held until t1."
        case Outcome.RUNNING if satisfied:
            return "stopped", f"Left at t = {t:.6g}, after the first crossing of each level that was wanted."
        case Outcome.RUNNING:
            advice = hindrance or f"raise it, loosen `rtol`, or try another solver than {solver}."
            return "step limit", f"Ended by `max_steps` = {max_steps} at t = {t:.6g}: {advice}"
    if growth == Growth.OVERFLOW:
        return "blew up", (
            f"Overflowed at t = {t:.6g}: the parameters grow beyond floating point, exponentially or faster, and have "
            f"reached {size:.1e}."
        )
    if growth == Growth.BLOW_UP:
        return "blew up", (
            f"Blew up: the parameters leave every bound at T* ≈ {t:.10g}; t1 lies beyond it. `blow_up` measures "
            "T* with its error, how fast, and in which direction."
        )
    return "failed", (
        f"Failed at t = {t:.6g}: no step is small enough. The loss or its gradient is probably not finite, or not "
        "smooth, just beyond this point."
    )


def with_rounding(status: str, sentence: str, share: float) -> tuple[str, str]:
    """The same, unless a `share` of a growing motion came from rounding that moves the time of its escape."""
    if share < _DECIDES or status not in ("done", "stopped"):
        return status, sentence
    return "rounding", (
        f"{sentence} But rounding decides when it leaves a saddle, or whether: {100 * min(share, 1):.3g} % of a "
        "growing motion come from it. `crossing_times` tells which times mean something."
    )
