"""The fastest of each family in turns: on a machine whose speed changes, only neighbors in time can be compared."""

import statistics
from collections.abc import Callable
from dataclasses import replace

from _apart import START_CLOCK
from _flows import Flow
from _ladder import FAMILIES, Reference, maker
from _report import reaches

ACCURACY = 1e-3
_ROUNDS = 9


def finalists(rows: list[dict]) -> dict[str, float]:
    """Solver -> rtol of "auto" and of the fastest of each other family, where escapes are known to `ACCURACY`."""
    found = {}
    for family in (("auto",), *(names for name, names in FAMILIES.items() if name != "thetadot")):
        if good := [row for row in rows if row["solver"] in family and reaches(row, ACCURACY)]:
            best = min(good, key=lambda row: row["seconds"])
            found[best["solver"]] = best["rtol"]
    return found


def duel(send, progress, make_flow: Callable[[], Flow], known: Reference, rtols: dict[str, float]) -> None:
    """Medians over rounds in which each solves the flow once; ratios to "auto" are of the same round."""
    flow = replace(make_flow(), levels=known.levels)
    solves = {solver: maker(solver, known)(flow, known.grid, progress) for solver in rtols}
    for solver, solve in solves.items():
        solve(rtols[solver])  # compiles what is left to compile
    send(START_CLOCK)
    rounds = [{solver: solve(rtols[solver]).seconds for solver, solve in solves.items()} for _ in range(_ROUNDS)]
    for solver, rtol in rtols.items():
        ratios = [times[solver] / times["auto"] for times in rounds]
        row = {"solver": solver, "rtol": rtol, "seconds": statistics.median(times[solver] for times in rounds)}
        send(row | {"ratio": statistics.median(ratios), "least": min(ratios), "most": max(ratios)})
