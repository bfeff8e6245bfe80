"""Dense output of the exponential solvers: accurate inside steps that span a whole plateau."""

import jax
import jax.numpy as jnp
import numpy as np
from diffrax import AbstractLocalInterpolation
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float, PyTree

from ._phi import phi_functions
from ._vector import each


def _hermite_matrix() -> np.ndarray:
    """Maps (r(½), r(1), r'(½), r'(1)) to the coefficients of x², …, x⁵ of a quintic with r(0) = r'(0) = 0."""
    powers = np.arange(2, 6)
    values = [x**powers for x in (0.5, 1.0)]
    slopes = [powers * x ** (powers - 1) for x in (0.5, 1.0)]
    return np.linalg.inv(np.array(values + slopes))


_HERMITE = _hermite_matrix()


class ExponentialInterpolation(AbstractLocalInterpolation):
    """y(t₀ + s) = y₀ + V e(s) + r(s): the exponentials first, polynomials for what they leave.

    In the deflated space the solution has transients e^{μs} with h|μ| ≫ 1, which no polynomial follows. There, with
    x = s/h and N cubic in x through N(0) = 0, N'(0) = Vᵀ(J − A)F₀, N(h/2) and N(h),

        e' = μ e + VᵀF₀ + a x + b x² + c x³,
        e(s) = s φ₁(sμ) VᵀF₀ + s (x φ₂(sμ) a + 2 x² φ₃(sμ) b + 6 x³ φ₄(sμ) c).

    The rest, r(s) = y(s) − y₀ − V e(s), is known at 0, h/2 and h with its slope. Outside the deflated space it is the
    quintic Hermite polynomial. Inside, where a slope magnifies an error of the value by hμ, it is the cubic through
    the values only. Exact at these three points; the error between them is O(h⁶), or O(h⁵) in the deflated space.
    """

    t0: Array
    t1: Array
    y0: PyTree
    rates: Float[Array, " k"]
    vectors: Float[Array, "P k"]
    forcing: Float[Array, "4 k"]  # VᵀF₀, a, b, c
    cubic: Float[Array, "2 k"]  # coefficients of x², x³ in Vᵀr
    line: Float[Array, " P"]  # h r'(0)
    quintic: Float[Array, "4 P"]  # coefficients of x², …, x⁵ in (I − VVᵀ) r

    def __init__(self, *, t0, t1, y0, rates, vectors, slope, displacements, fields):
        """From Vᵀ J F₀, the displacements at h/2 and h (2 × P) and the fields at 0, h/2 and h (3 × P)."""
        self.t0, self.t1, self.y0, self.rates, self.vectors = t0, t1, y0, rates, vectors
        h = self._step()
        knots = jnp.array([0.5, 1.0], rates.dtype)
        into = each(lambda x: x @ vectors)
        sigma, inside, change = fields[0] @ vectors, into(displacements), into(fields[1:] - fields[:1])
        slope = h * (slope - rates * sigma)
        half, end = change - rates[None] * inside - knots[:, None] * slope[None]
        self.forcing = jnp.stack([sigma, slope, 8 * half - end, 2 * end - 8 * half])
        half, end = inside - jax.vmap(self._exponential)(knots)
        self.cubic = jnp.stack([8 * half - end, 2 * end - 8 * half])

        def outside(vector):
            return vector - vectors @ (vector @ vectors)

        self.line = h * outside(fields[0])
        values = each(outside)(displacements) - knots[:, None] * self.line[None]
        slopes = h * each(outside)(fields[1:]) - self.line[None]
        self.quintic = jnp.asarray(_HERMITE, rates.dtype) @ jnp.concatenate([values, slopes])

    def evaluate(self, t0, t1=None, left=True):
        """The solution at `t0`, or its increment from `t0` to `t1`."""
        del left
        start, unravel = ravel_pytree(self.y0)
        if t1 is not None:
            return unravel(self._displacement(t1) - self._displacement(t0))
        return unravel(start + self._displacement(t0))

    def _step(self) -> Float[Array, ""]:
        return jnp.asarray(self.t1 - self.t0, self.rates.dtype)

    def _displacement(self, t) -> Float[Array, " P"]:
        x = jnp.asarray(t - self.t0, self.rates.dtype) / self._step()
        powers = x ** jnp.arange(2, 6, dtype=x.dtype)
        inside = self._exponential(x) + powers[:2] @ self.cubic
        return self.vectors @ inside + x * self.line + powers @ self.quintic

    def _exponential(self, x) -> Float[Array, " k"]:
        """e(xh) in the coordinates of V."""
        s = x * self._step()
        weights = jnp.stack(phi_functions(s * self.rates))
        powers = jnp.stack([jnp.ones_like(x), x, 2 * x**2, 6 * x**3])
        return s * (powers @ (weights * self.forcing))
