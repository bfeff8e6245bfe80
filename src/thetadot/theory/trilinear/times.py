"""When the flow blows up: on every draw, within the bound, and at the exact time where that is known."""

import numpy as np

from thetadot.problem import Problem
from thetadot.stages import Measured
from thetadot.theory.check import Check, judge

from . import draws
from .closed_forms import balanced_time, scalar_time, time_bound

_THEOREM = "arXiv:2510.06954, Thm. 1; arXiv:2402.15958"
_DERIVED = "arXiv:2402.15958, derived"
_NUM_DRAWS = 1000
_DIMENSIONS = (4, 8, 12, 16, 20, 24)
_NUM_EXACT = 50  # of each kind
_DIGITS = 1e-8  # a hundred times the tolerance of the solver


def check_blow_up_times(problem: Problem = draws.EFFECTIVE) -> list[Check]:
    """T* is finite on every draw and not later than E_0^{-1/3}; it is right where a closed form knows it."""
    rng = np.random.default_rng(0)
    random = [draws.gaussian(_DIMENSIONS[i % len(_DIMENSIONS)], rng, draws.LARGEST) for i in range(_NUM_DRAWS)]
    scalars, radii = rng.normal(size=(_NUM_EXACT, 3)), rng.uniform(0.2, 5.0, _NUM_EXACT)
    exact = [draws.on_axis(*abc) for abc in scalars] + [draws.balanced(radius, 8, rng) for radius in radii]
    found = draws.ends(random + exact, problem)
    values = np.stack([found.time, found.error, found.exponent])
    on_draws, on_scalars, on_rank_one = np.split(values, [_NUM_DRAWS, _NUM_DRAWS + _NUM_EXACT], axis=1)
    return [
        *_on_draws(draws.energies(random), *on_draws),
        _exact(
            "T* of three scalars = R_F(a², b², c²), or 2 R_F - R_F after a fall", on_scalars, scalar_time(*scalars.T)
        ),
        _exact("T* of balanced rank one = 1/r_0", on_rank_one, balanced_time(radii)),
        _exact("T* of balanced rank one = E_0^{-1/3}: the bound is attained", on_rank_one, time_bound(radii**3)),
    ]


def _on_draws(energies: np.ndarray, times: np.ndarray, errors: np.ndarray, exponents: np.ndarray) -> list[Check]:
    rising = energies > 0
    within = times + errors < time_bound(energies)
    worst = exponents[np.argmax(np.abs(exponents + 1))] if np.all(np.isfinite(exponents)) else np.nan
    many = f"of {energies.size} Gaussian draws, d = {_DIMENSIONS[0]} … {_DIMENSIONS[-1]}"
    return [
        judge(f"T* is finite: share {many}", _THEOREM, "paper", 1.0, _share(np.isfinite(times)), 0.0),
        judge(f"T* is finite though E_0 < 0: share {many}", _THEOREM, "paper", 1.0, _share(times[~rising] > 0), 0.0),
        # Strictly: no Gaussian draw is balanced and of rank one.
        judge(f"T* < E_0^{{-1/3}} where E_0 > 0: share {many}", _THEOREM, "paper", 1.0, _share(within[rising]), 0.0),
        # Left at T* - t = 1e-8 T*, where the power differs from -1 by (1e-8)² in theory; the rest is the solver.
        judge(f"|θ| ∝ (T* - t)^-1: the exponent farthest from it {many}", _THEOREM, "derived", -1.0, worst, 1e-7),
        judge(
            f"largest stated error of T*, relative, {many}",
            _THEOREM,
            "derived",
            0.0,
            float(np.max(errors / times)),
            _DIGITS,
        ),
    ]


def _exact(claim: str, found: np.ndarray, exact: np.ndarray) -> Check:
    """The largest relative difference from a closed form."""
    times, errors, _ = found
    worst = Measured(float(np.max(np.abs(times / exact - 1))), float(np.max(errors / exact)))
    return judge(f"{claim}: largest relative difference", _DERIVED, "derived", 0.0, worst, _DIGITS)


def _share(holds: np.ndarray) -> float:
    return float(np.mean(holds)) if holds.size else np.nan
