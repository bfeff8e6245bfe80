"""Dense output of the exponential solvers: accurate inside steps that span a whole plateau."""

from collections.abc import Callable
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from diffrax import AbstractLocalInterpolation
from jax.flatten_util import ravel_pytree
from jaxtyping import Float, PyTree

from ..arrays import Array, each, namespace
from ._phi import phi_functions


def _hermite_matrix() -> np.ndarray:
    """Maps (r(½), r(1), r'(½), r'(1)) to the coefficients of x², …, x⁵ of a quintic with r(0) = r'(0) = 0."""
    powers = np.arange(2, 6)
    values = [x**powers for x in (0.5, 1.0)]
    slopes = [powers * x ** (powers - 1) for x in (0.5, 1.0)]
    return np.linalg.inv(np.array(values + slopes))


_HERMITE = _hermite_matrix()


class ExponentialPath(NamedTuple):
    """y(t₀ + xh) = y₀ + V e(x) + r(x), x in [0, 1]: the exponentials first, polynomials for what they leave.

    In the deflated space the solution has transients e^{μs} with h|μ| ≫ 1, which no polynomial follows. There, with
    s = xh and N cubic in x through N(0) = 0, N'(0) = Vᵀ(J − A)F₀, N(h/2) and N(h),

        e' = μ e + VᵀF₀ + a x + b x² + c x³,
        e(s) = s φ₁(sμ) VᵀF₀ + s (x φ₂(sμ) a + 2 x² φ₃(sμ) b + 6 x³ φ₄(sμ) c).

    The rest, r(s) = y(s) − y₀ − V e(s), is known at 0, h/2 and h with its slope. Outside the deflated space it is the
    quintic Hermite polynomial. Inside, where a slope magnifies an error of the value by hμ, it is the cubic through
    the values only. Exact at these three points; the error between them is O(h⁶), or O(h⁵) in the deflated space.
    """

    y0: Float[Array, " P"]
    h: Float[Array, ""]
    rates: Float[Array, " k"]
    vectors: Float[Array, "P k"]
    forcing: Float[Array, "4 k"]  # VᵀF₀, a, b, c
    cubic: Float[Array, "2 k"]  # coefficients of x², x³ in Vᵀr
    line: Float[Array, " P"]  # h r'(0)
    quintic: Float[Array, "4 P"]  # coefficients of x², …, x⁵ in (I − VVᵀ) r

    def __call__(self, x: Float[Array, ""]) -> Float[Array, " P"]:
        """The solution at x."""
        xp = namespace(self.rates)
        powers = x ** xp.arange(2, 6, dtype=x.dtype)
        inside = _exponential(self.h, self.rates, self.forcing, x[None])[0] + powers[:2] @ self.cubic
        return self.y0 + (self.vectors @ inside + x * self.line + powers @ self.quintic)


def exponential_path(y0, h, rates, vectors, slope, displacements, fields) -> ExponentialPath:
    """From Vᵀ J F₀, the displacements at h/2 and h (2 × P) and the fields at 0, h/2 and h (3 × P)."""
    xp = namespace(rates)
    knots = xp.asarray([0.5, 1.0], rates.dtype)
    into = each(lambda x: x @ vectors)
    sigma, inside, change = fields[0] @ vectors, into(displacements), into(fields[1:] - fields[:1])
    slope = h * (slope - rates * sigma)
    half, end = change - rates[None] * inside - knots[:, None] * slope[None]
    forcing = xp.stack([sigma, slope, 8 * half - end, 2 * end - 8 * half])
    half, end = inside - _exponential(h, rates, forcing, knots)
    cubic = xp.stack([8 * half - end, 2 * end - 8 * half])

    def outside(vector):
        return vector - vectors @ (vector @ vectors)

    line = h * outside(fields[0])
    values = each(outside)(displacements) - knots[:, None] * line[None]
    slopes = h * each(outside)(fields[1:]) - line[None]
    quintic = xp.asarray(_HERMITE, rates.dtype) @ xp.concatenate([values, slopes])
    return ExponentialPath(y0, h, rates, vectors, forcing, cubic, line, quintic)


def _exponential(h, rates, forcing: Float[Array, "4 k"], x: Float[Array, " X"]) -> Float[Array, "X k"]:
    """e(xh) in the coordinates of V, at several x."""
    x = x[:, None]
    s = x * h
    (sigma, a, b, c), (phi1, phi2, phi3, phi4) = forcing[:, None], phi_functions(s * rates[None])
    return s * (phi1 * sigma + x * (phi2 * a + 2 * x * (phi3 * b + 3 * x * phi4 * c)))


class PathInterpolation(AbstractLocalInterpolation):
    """A path over the share x of a step, for diffrax."""

    t0: Array
    t1: Array
    y0: PyTree
    path: Callable[[Float[Array, ""]], Float[Array, " P"]]

    def evaluate(self, t0, t1=None, left=True):
        """The solution at `t0`, or its increment from `t0` to `t1`."""
        del left
        start, unravel = ravel_pytree(self.y0)

        def at(t):
            return self.path(jnp.asarray((t - self.t0) / (self.t1 - self.t0), start.dtype))[: start.size]

        return unravel(at(t0) if t1 is None else at(t1) - at(t0))
