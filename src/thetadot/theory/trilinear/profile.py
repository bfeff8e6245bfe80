"""How the flow blows up: powers of τ = T* - t, rank one, aligned; and what it conserves on the way."""

import numpy as np

from thetadot.blowup import BlowUp
from thetadot.problem import Problem
from thetadot.theory.check import Check, judge, spread

from . import draws
from .closed_forms import energy_floor
from .paths import Path, drifts, exponent, misalignment, norms, path_of, singular_values

_POWERS = "arXiv:2510.06954, Props. 5, 8 and Cor. 1; arXiv:2402.15958"
_ENERGY = "arXiv:2510.06954, Thm. 1 and Prop. 8"
_LAWS = "arXiv:2510.06954, Prop. 2 and Def. 4, extended"
_NUM_DRAWS = 8
_D = 12
# Of τ/T*. Below it the error of T*, 1e-11, shows in τ; above it the next order, τ² beside 1.
_WINDOW = (1e-6, 1e-3)
_LATE = (1e-6, 3e-5)  # for angles: a column with a small c_i turns late
_END = 1e-6  # of τ/T*, where limits are read off
_ROUNDING = 1e-12  # of inequalities that are equalities at one end


def check_profile(problem: Problem = draws.EFFECTIVE) -> list[Check]:
    """E ∝ τ^-3, norms ∝ τ^-1, s_2/s_1 ∝ τ with s_2 bounded, angles ∝ τ; every limit of Props. 5-8."""
    runs = _solve(problem)
    return _powers(runs) + _limits(runs)


def check_invariants(problem: Problem = draws.EFFECTIVE) -> list[Check]:
    """Two balances as full matrices, and C_3."""
    measured = [drifts(path, until=1e-3) for path in _solve(problem)]
    return [
        judge(
            f"the {name} is conserved: largest drift relative to |θ|^{4 if name == 'third invariant' else 2}",
            _LAWS,
            "derived",
            0.0,
            max(drift[name] for drift in measured),
            100 * draws.RTOL,  # some forty steps with a tenth of the tolerance and a few times the size each
        )
        for name in measured[0]
    ]


def check_energy(problem: Problem = draws.EFFECTIVE) -> list[Check]:
    """dE/dt ≥ 3 E^{4/3}, that is -d(E^{-1/3})/dt ≥ 1, an equality in the end; the floor below which E does not fall."""
    runs = _solve(problem)
    falling = [path for path in runs if path.energy[0] < 0]
    above = [path.energy >= energy_floor(path.ts, path.energy[0]) * (1 + _ROUNDING) for path in falling]
    steps = [_rates(path) for path in runs]
    steep = np.concatenate([rates[left > _END] >= 1 - 1e-9 for left, rates in steps])
    # 1 + O(τ²) in theory; times 1e-6 before T* have ten digits left in a step.
    last = [float(rates[left > _END][-1]) if np.any(left < _END) else np.nan for left, rates in steps]
    rate = "dE/dt ≥ 3 E^{4/3} where E > 0: share of the steps, from their ends"
    floor = "E ≥ -(t + (-E_0)^{-1/3})^{-3} where E_0 < 0: share of the steps"
    return [
        judge(rate, _ENERGY, "paper", 1.0, float(np.mean(steep)), 0.0),
        judge("dE/dt / (3 E^{4/3}) → 1 at T*", _ENERGY, "derived", 1.0, spread(last), 1e-6),
        judge(floor, _ENERGY, "paper", 1.0, float(np.mean(np.concatenate(above))), 0.0),
    ]


def _rates(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """(τ/T*, -ΔE^{-1/3}/Δt) at the end of every step that begins with E > 0."""
    rising = path.energy > 0
    left, roots = path.left[rising], path.energy[rising] ** (-1 / 3)
    apart = np.append(np.diff(left) < 0, True)  # steps shorter than the rounding of t say nothing
    left, roots = left[apart], roots[apart]
    return left[1:] / path.left[0], np.diff(roots) / np.diff(left)


def _solve(problem: Problem) -> list[Path]:
    """Paths of a few draws, of energies of both signs."""
    rng = np.random.default_rng(3)
    found: list[BlowUp] = draws.paths([draws.gaussian(_D, rng) for _ in range(_NUM_DRAWS)], problem)
    return [path_of(one) for one in found]


def _powers(runs: list[Path]) -> list[Check]:
    """Exponents of τ, each the mean over draws."""

    def claim(text: str, predicted: float, measure, window=_WINDOW) -> Check:
        slopes = [exponent(path, measure(path), window) for path in runs]
        # The next order is τ beside 1 at most, 1e-3 at the window's upper end.
        return judge(f"{text} (d = {_D})", _POWERS, "derived", predicted, spread(slopes), 2e-3)

    def ratio(path: Path) -> np.ndarray:
        s = singular_values(path)
        return s[:, 1] / s[:, 0]

    def excess_rank(path: Path) -> np.ndarray:
        s = singular_values(path)
        return np.sum((s[:, 1:] / s[:, :1]) ** 2, axis=1)

    return [
        claim("E ∝ τ^-3", -3.0, lambda path: path.energy),
        *(claim(f"|{name}| ∝ τ^-1", -1.0, lambda path, name=name: norms(path)[name]) for name in ("a", "b", "c")),
        claim("s_2/s_1 of B ∝ τ", 1.0, ratio),
        claim("s_2 of B stays bounded, ∝ τ^0", 0.0, lambda path: singular_values(path)[:, 1]),
        claim("stable rank of B minus 1 ∝ τ²", 2.0, excess_rank),
        claim("1 - cos of the angles between the columns c_i B^i ∝ τ²", 2.0, misalignment, _LATE),
    ]


def _limits(runs: list[Path]) -> list[Check]:
    """Ratios that tend to 1 at the blow-up."""

    def claim(text: str, measure) -> Check:
        return judge(f"{text} (d = {_D})", _POWERS, "paper", 1.0, spread([_at_end(p, measure(p)) for p in runs]), 1e-5)

    def norm(x: np.ndarray) -> np.ndarray:
        return np.linalg.norm(x, axis=1)

    return [
        claim("|da/dt| / |c|² → 1", lambda p: norm(p.speeds[0]) / norm(p.c) ** 2),
        claim("|da/dt| / |a|² → 1", lambda p: norm(p.speeds[0]) / norm(p.a) ** 2),
        claim("cos(c, dc/dt) → 1", lambda p: np.sum(p.c * p.speeds[1], axis=1) / (norm(p.c) * norm(p.speeds[1]))),
    ]


def _at_end(path: Path, values: np.ndarray) -> float:
    """The value where τ has fallen to `_END` of T*; NaN where it never does."""
    near = np.flatnonzero(path.left < _END * path.left[0])
    return float(values[near[0]]) if near.size else np.nan
