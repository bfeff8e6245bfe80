"""Scaling laws: exponents and slopes from a scan, with confidence intervals.

A law is a line in log x: `log y = log c + p log x` for a power law, `y = a + b log(1/x)` for a logarithmic one. A point
scatters about it for two reasons: the numerical error eᵢ that it states (variable `<y>_error` of the scan), and what
the law leaves out (the draw of the initialization, higher orders), whose variance τ² is unknown. So a point has the
weight `1/(τ² + eᵢ²)`, and τ² is the solution of `Σ rᵢ²/(τ² + eᵢ²) = N - 2` in the residuals rᵢ of the weighted line,
or 0 if the errors explain the scatter (Paule & Mandel 1982). Without errors this is ordinary least squares.
"""

from typing import TYPE_CHECKING, Any, Literal

import equinox as eqx
import numpy as np

if TYPE_CHECKING:
    import xarray as xr  # for the annotations only: half a second

_CONFIDENCE = 0.95
_NUM_RESAMPLES = 2000
_FLOOR = 16  # smallest error of a point, in units of the rounding of the largest
_USABLE = ("done", "stopped")  # outcomes of a lane whose measurements count

Interval = tuple[float, float]


class Fit(eqx.Module):
    """A law fitted to a scan, with 95 % confidence intervals.

    Attributes:
        law: "power", y = c x^p, or "log", y = a + b log(1/x).
        x: name of the parameter.
        y: name of the quantity.
        value: the exponent p, or the slope b.
        interval: of the value, by regression: Student's t with `num_points` - 2 degrees of freedom.
        sample_interval: of the value, by bootstrap over the samples (seeds, say), each a whole curve y(x); None with
            one sample. The points of one seed are not independent, and only this interval knows it; with less than
            about ten seeds it is somewhat too narrow.
        prefactor: c, or a.
        num_points: points that entered the fit.
        num_left_out: lanes that did not: without a finite value, or of a flow that blew up, failed or gave up.
        covariance: of (p, log c) or of (b, a), shape (2, 2).
    """

    law: Literal["power", "log"]
    x: str
    y: str
    value: float
    interval: Interval
    sample_interval: Interval | None
    prefactor: float
    num_points: int
    num_left_out: int
    covariance: np.ndarray

    def at(self, x: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """(y, low, high): the law at x and the 95 % confidence band of its mean, by regression."""
        abscissa = np.log(x) if self.law == "power" else -np.log(x)
        intercept = np.log(self.prefactor) if self.law == "power" else self.prefactor
        line = intercept + self.value * abscissa
        basis = np.stack([abscissa, np.ones_like(abscissa)])
        variance = np.maximum(np.einsum("i...,ij,j...->...", basis, self.covariance, basis), 0)  # below 0 by rounding
        half = _student(self.num_points - 2) * np.sqrt(variance)
        band = (line, line - half, line + half)
        return band if self.law == "log" else (np.exp(band[0]), np.exp(band[1]), np.exp(band[2]))

    def __repr__(self) -> str:
        power = f"{self.prefactor:.6g} {self.x}^p, p"
        formula = power if self.law == "power" else f"{self.prefactor:.6g} + b log(1/{self.x}), b"
        low, high = self.interval
        over = "" if self.sample_interval is None else "; over samples {:.6g} … {:.6g}".format(*self.sample_interval)
        return (
            f"Fit: {self.y} = {formula} = {self.value:.6g} (95 %: {low:.6g} … {high:.6g}{over}), "
            f"{self.num_points} points, {self.num_left_out} left out"
        )


def fit_power_law(ds: "xr.Dataset", x: str = "init_scale", y: str = "escape") -> Fit:
    """Fits `y = c x^p`, as `log y = log c + p log x`.

    Args:
        ds: a scan: `y` over the dimension of `x`; all other dimensions (seeds, say) are samples. If there, `<y>_error`
            gives weights, and lanes whose `status` is not "done" or "stopped" are left out, like those without a value.
        x: a positive coordinate or variable.
        y: a positive variable.

    Raises:
        ValueError: a name is unknown, a value is not positive, or fewer than three different x are left.
    """
    return _fit("power", ds, x, y)


def fit_log_law(ds: "xr.Dataset", x: str = "init_scale", y: str = "escape") -> Fit:
    """Fits `y = a + b log(1/x)`: b > 0 where y grows as x falls, as an escape time does with the initial scale.

    The slope of the time to leave a saddle is the reciprocal of its growth rate, b = 1/μ.

    Args:
        ds: a scan, as in `fit_power_law`.
        x: a positive coordinate or variable.
        y: a variable.

    Raises:
        ValueError: a name is unknown, x is not positive, or fewer than three different x are left.
    """
    return _fit("log", ds, x, y)


def _fit(law: Literal["power", "log"], ds: "xr.Dataset", x: str, y: str) -> Fit:
    xs, ys, errors = _points(ds, x, y)
    kept = np.isfinite(ys) & np.isfinite(errors)
    _check_positive(x, xs)
    if np.any(errors < 0):
        raise ValueError(
            f"the variable '{y}_error' holds errors, which may not be negative; got {np.nanmin(errors):g}."
        )
    if np.unique(xs[kept]).size < 3:
        raise ValueError(
            f"a law of {y!r} needs at least three different {x!r}; {np.unique(xs[kept]).size} have a value. "
            "Scan more of them, or longer."
        )
    abscissa = np.log(xs) if law == "power" else -np.log(xs)
    if law == "power":
        _check_positive(y, ys[kept])
        ys, errors = np.log(np.where(kept, ys, 1.0)), errors / np.where(kept, ys, 1.0)
    line, covariance, weights = _weighted_line(abscissa[kept], ys[kept], errors[kept])
    half = _student(int(np.sum(kept)) - 2) * np.sqrt(covariance[0, 0])
    by_lane = np.zeros(ys.shape)
    by_lane[kept] = weights
    return Fit(
        law=law,
        x=x,
        y=y,
        value=float(line[0]),
        interval=(float(line[0] - half), float(line[0] + half)),
        sample_interval=_bootstrap(abscissa, np.where(kept, ys, 0.0), by_lane),
        prefactor=float(np.exp(line[1]) if law == "power" else line[1]),
        num_points=int(np.sum(kept)),
        num_left_out=int(np.sum(~kept)),
        covariance=covariance,
    )


def _points(ds: "xr.Dataset", x: str, y: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Arrays x, y and the errors of y (samples, X), NaN where a lane does not count; errors are 0 if not stated."""
    for name in (x, y):
        if name not in ds.variables:
            raise ValueError(f"there is no {name!r} in this dataset: choose among {', '.join(map(str, ds.variables))}.")
    if ds[x].ndim != 1 or ds[x].dims[0] not in ds[y].dims:
        dims = ", ".join(map(str, ds[y].dims))
        raise ValueError(f"{y!r} must vary along {x!r}, a coordinate of one dimension; it has {dims or 'none'}.")
    along = ds[x].dims[0]
    others = [dim for dim in ds[y].dims if dim != along]
    measured = ds[y].where(ds["status"].isin(_USABLE)) if "status" in ds.variables else ds[y]
    errors = ds[f"{y}_error"] if f"{y}_error" in ds.variables else 0 * ds[y].fillna(0)
    ys, errors = (part.transpose(*others, along).values.astype(float) for part in (measured, errors))
    shape = (-1, ds.sizes[along])
    ys, errors = ys.reshape(shape), errors.reshape(shape)
    return np.broadcast_to(np.asarray(ds[x].values, float), ys.shape), ys, errors


def _check_positive(name: str, values: np.ndarray) -> None:
    if wrong := [value for value in np.ravel(values) if not (value > 0 and np.isfinite(value))]:
        raise ValueError(f"this law takes the logarithm of {name!r}, which must be positive; got {min(wrong):g}.")


def _weighted_line(x: np.ndarray, y: np.ndarray, errors: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(slope, intercept), their covariance, and the weights 1/(τ² + e²) of the points."""
    from scipy.optimize import brentq  # here, for a quick import of the package

    errors = np.maximum(errors, _FLOOR * np.finfo(float).eps * max(np.max(np.abs(y)), 1e-100))

    def residuals(line: np.ndarray) -> np.ndarray:
        return y - line[0] * x - line[1]

    def excess(scatter: float) -> float:
        weights = 1 / (scatter + errors**2)
        return float(np.sum(weights * residuals(_line(x, y, weights)[0]) ** 2) - (x.size - 2))

    # With twice the scatter about the unweighted line the sum is at most half of N - 2: the root lies below.
    most = 2 * float(np.sum(residuals(_line(x, y, np.ones_like(x))[0]) ** 2) / (x.size - 2))
    scatter: Any = brentq(excess, 0.0, most, xtol=1e-14 * most) if excess(0.0) > 0 else 0.0
    weights = 1 / (scatter + errors**2)
    return *_line(x, y, weights), weights


def _line(x: np.ndarray, y: np.ndarray, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(slope, intercept) of the weighted line, and their covariance where the weights are reciprocal variances."""
    (weight, mean_x, mean_y, xx, xy), (x0, y0) = _moments(x, y, weights)
    mean_x, mean_y = mean_x + x0, mean_y + y0
    slope = xy / xx
    covariance = np.array([[1, -mean_x], [-mean_x, xx / weight + mean_x**2]]) / xx
    return np.array([slope, mean_y - slope * mean_x]), covariance


def _moments(x: np.ndarray, y: np.ndarray, weights: np.ndarray) -> tuple[np.ndarray, tuple[float, float]]:
    """Σw, the means of x and y, Σw(x-x̄)² and Σw(x-x̄)(y-ȳ) along the last axis; and the origin of the means.

    The origin is the point of the largest weight: where it is all but alone, the mean is at it, to the last digit.
    Sums about any other point would cancel, and normal equations be singular in the computer's arithmetic.
    """
    heaviest = np.unravel_index(np.argmax(weights), weights.shape)
    x0, y0 = x[heaviest], y[heaviest]
    x, y = x - x0, y - y0
    weight = np.sum(weights, axis=-1)
    per_weight = weights / np.where(weight > 0, weight, 1.0)[..., None]
    mean_x, mean_y = np.sum(per_weight * x, axis=-1), np.sum(per_weight * y, axis=-1)
    dx, dy = x - mean_x[..., None], y - mean_y[..., None]
    xx, xy = np.sum(weights * dx * dx, axis=-1), np.sum(weights * dx * dy, axis=-1)
    return np.stack([weight, mean_x, mean_y, xx, xy]), (float(x0), float(y0))


def _bootstrap(x: np.ndarray, y: np.ndarray, weights: np.ndarray) -> Interval | None:
    """Percentile interval of the slope over resampled rows; None if there are not several with a value."""
    from scipy.stats import bootstrap

    rows = np.flatnonzero(np.any(weights > 0, axis=1))
    if rows.size < 2:
        return None
    moments, _ = _moments(x, y, weights)

    def slope(chosen: np.ndarray, axis: int) -> np.ndarray:
        """The moments of rows together: those of each, and of the rows about their common mean."""
        w, mean_x, mean_y, xx, xy = (np.moveaxis(part[chosen.astype(int)], axis, -1) for part in moments)
        (_, _, _, between_xx, between_xy), _ = _moments(mean_x, mean_y, w)
        return (np.sum(xy, axis=-1) + between_xy) / (np.sum(xx, axis=-1) + between_xx)

    options = {"n_resamples": _NUM_RESAMPLES, "confidence_level": _CONFIDENCE, "method": "percentile"}
    found = bootstrap((rows,), slope, vectorized=True, rng=np.random.default_rng(0), **options)
    return float(found.confidence_interval.low), float(found.confidence_interval.high)


def _student(degrees: int) -> float:
    """Half-width of the 95 % interval, in standard errors."""
    from scipy.stats import t

    return float(t.ppf((1 + _CONFIDENCE) / 2, degrees))
