"""The verdict on one claim of a theory: what was predicted, what was measured, and how far apart they may be."""

from collections.abc import Callable, Sequence
from typing import Literal

import equinox as eqx
import numpy as np

from thetadot.stages import Measured

_SAFETY = 2.0

Status = Literal["paper", "reported", "derived"]


class Check(eqx.Module):
    """One claim against one measurement.

    Attributes:
        claim: the statement, as a sentence with its formula.
        reference: where it comes from.
        status: who says so: "paper", the paper itself; "reported", a secondary source; "derived", worked out here.
        predicted: the number of the theory.
        measured: the number of the flow.
        error: how well it is measured: by a tightened tolerance, or the spread over seeds.
        tolerance: how far the two may be apart, the terms that the theory neglects included.
        passed: |measured - predicted| + error ≤ tolerance. False for a NaN: what was never reached is not confirmed.
    """

    claim: str
    reference: str
    status: Status
    predicted: float
    measured: float
    error: float
    tolerance: float
    passed: bool

    def __repr__(self) -> str:
        verdict = "holds" if self.passed else "FAILS"
        return (
            f"Check({verdict}: {self.claim}; predicted {self.predicted:.9g}, measured {self.measured:.9g} "
            f"± {self.error:.1g}, tolerance {self.tolerance:.1g}; {self.status}, {self.reference})"
        )


def judge(
    claim: str, reference: str, status: Status, predicted: float, measured: Measured | float, tolerance: float
) -> Check:
    """The check of a claim; a plain number is exact to rounding, such as a count."""
    if not isinstance(measured, Measured):
        measured = Measured(float(measured), 0.0)
    passed = abs(measured.value - predicted) + measured.error <= tolerance
    return Check(
        claim, reference, status, float(predicted), measured.value, measured.error, float(tolerance), bool(passed)
    )


def settled(measure: Callable[[float], Sequence[float]], rtol: float = 1e-8) -> list[Measured]:
    """What `measure(rtol)` returns, with errors: twice the difference to a tenth of the tolerance."""
    values, better = (np.asarray(measure(x), float) for x in (rtol, rtol / 10))
    return [Measured(float(x), float(_SAFETY * abs(x - y))) for x, y in zip(values, better, strict=True)]


def spread(values: Sequence[float]) -> Measured:
    """The mean over seeds with twice its standard error."""
    return Measured(float(np.mean(values)), float(_SAFETY * np.std(values, ddof=1) / np.sqrt(len(values))))
