"""What the checks read off a path: energy, norms, ranks and angles at every step, shape (T,) each."""

from typing import NamedTuple

import numpy as np

from thetadot.blowup import BlowUp


class Path(NamedTuple):
    """A path up to its blow-up.

    Attributes:
        ts: times.
        left: τ = T* - t.
        a, b, c: parameters, shapes (T, d), (T, d, d), (T, d).
    """

    ts: np.ndarray
    left: np.ndarray
    a: np.ndarray
    b: np.ndarray
    c: np.ndarray

    @property
    def energy(self) -> np.ndarray:
        """E = a^T B c."""
        return np.einsum("ti,tij,tj->t", self.a, self.b, self.c)

    @property
    def speeds(self) -> tuple[np.ndarray, np.ndarray]:
        """(da/dt, dc/dt) = (B c, B^T a), each (T, d)."""
        return np.einsum("tij,tj->ti", self.b, self.c), np.einsum("tij,ti->tj", self.b, self.a)


def path_of(found: BlowUp) -> Path:
    """The recorded path of a blow-up."""
    series = {name: np.asarray(found.series[name]) for name in ("a", "b", "c")}
    return Path(np.asarray(found.ts), float(found.time) - np.asarray(found.ts), **series)


def norms(path: Path) -> dict[str, np.ndarray]:
    """|a|, |B|, |c|."""
    return {name: np.sqrt(_squares(getattr(path, name))) for name in ("a", "b", "c")}


def singular_values(path: Path) -> np.ndarray:
    """Of B, shape (T, d)."""
    return np.linalg.svd(path.b, compute_uv=False)


def misalignment(path: Path) -> np.ndarray:
    """The mean of 1 - cos over all pairs of columns c_i B^i.

    With unit columns u_i it is half the mean of |u_i - u_j|², which does not cancel as 1 - cos would.
    """
    columns = path.b * path.c[:, None, :]
    units = columns / np.linalg.norm(columns, axis=1, keepdims=True)
    differences = units[:, :, :, None] - units[:, :, None, :]
    return 0.5 * np.mean(np.sum(differences**2, axis=1), axis=(1, 2)) * units.shape[2] / (units.shape[2] - 1)


def exponent(path: Path, values: np.ndarray, window: tuple[float, float]) -> float:
    """The slope of log values against log τ where τ/T* lies in the window."""
    share = path.left / (path.ts[0] + path.left[0])
    inside = (share > window[0]) & (share < window[1]) & (values > 0)
    if np.sum(inside) < 3:
        return np.nan
    return float(np.polyfit(np.log(path.left[inside]), np.log(values[inside]), 1)[0])


def drifts(path: Path, until: float) -> dict[str, float]:
    """Largest change of the three invariants where τ/T* > `until`, relative to |θ|² (|θ|⁴ for the third)."""
    rows = path.left > until * path.left[0]
    a, b, c = path.a[rows], path.b[rows], path.c[rows]
    da, dc = (speed[rows] for speed in path.speeds)
    size = _squares(a) + _squares(b) + _squares(c)
    laws = {
        "outer balance": (np.einsum("ti,tj->tij", a, a) - np.einsum("tik,tjk->tij", b, b), size),
        "inner balance": (np.einsum("ti,tj->tij", c, c) - np.einsum("tki,tkj->tij", b, b), size),
        "third invariant": (_squares(da) - _squares(dc) + _squares(a) * (_squares(a) - _squares(c)), size**2),
    }
    return {name: float(np.max(np.sqrt(_squares(law - law[:1])) / scale)) for name, (law, scale) in laws.items()}


def _squares(x: np.ndarray) -> np.ndarray:
    """Sum of squares over all axes but the first."""
    return np.sum(x.reshape(len(x), -1) ** 2, axis=1)
