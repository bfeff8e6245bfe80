r"""Stabilized explicit Runge–Kutta (RKC2): the fallback that needs neither a basis nor a Krylov space.

**Why.** The Jacobian −H of a gradient flow has a real spectrum. An explicit method that spends its s stages on
stability instead of order is stable along the negative axis up to hρ ≈ 0.65 s² (ρ the spectral radius), where s steps
of a classical method reach about 2s. The cost of a plateau then grows like the square root of its length. Storage is
a few vectors; nothing is assumed about the number of outliers.

**Method.** The second-order Runge–Kutta–Chebyshev method of Sommeijer, Shampine and Verwer (1998), written for the
displacements U_j = Y_j − y₀, so that a plateau, where U is tiny, does not round against y₀:

    U₀ = 0,   U₁ = μ̃₁ h F₀,
    U_j = μ_j U_{j−1} + ν_j U_{j−2} + μ̃_j h F(y₀ + U_{j−1}) + γ̃_j h F₀,   j = 2, …, s,

with the closed-form coefficients of their sec. 2 and damping ε = 2/13. Its stability polynomial is
P(z) = 1 − b_s T_s(w₀) + b_s T_s(w₀ + w₁ z), |P| ≤ 1 on [−β, 0], β(s) = (w₀ + 1) T_s''(w₀) / T_s'(w₀) ≈ 0.65 s². Inside,
P oscillates around 2/3 and stays below 1 − ε/3 ≈ 0.95, so stiff transients decay. The smallest tabulated s with
β(s) ≥ h ρ is taken; the table holds every s up to 12 and then one in eight percent, as the ROCK codes do. If
`max_stages` is not enough the step returns an infinite error at once, which makes any controller shorten it. A
positive eigenvalue (an escape) is integrated as by any method of order two.

**Error.** δ = 0.8 (y₀ − y₁) + 0.4 h (F₀ + F₁), also theirs: an asymptotically correct estimate of the local error
O(h³) that reuses the field at both ends (first same as last). What the rounding of h F explains is taken off; it is
measured together with the spectral radius, by an evaluation some hundred units in the last place away.

**Spectral radius.** Power iteration on Jacobian–vector products, warm-started, until two iterates agree to 1 %; times
1.2. diffrax throws the state of a rejected step away, so a solver is never told of a rejection. What it can see is
that the step it is asked for is shorter than the last accepted one. That happens when a step is retried, and when the
controller foresees a change of curvature; both are reasons to estimate again. (A retry that is still longer than the
last accepted step keeps ρ; if that was the fault the next retry is shorter.) So ρ is estimated when

  - h is shorter than the last accepted step,
  - 25 steps have passed,
  - the last step gave ‖F₁ − F₀‖ > 1.2 ρ ‖y₁ − y₀‖, a proof, at no cost, that ρ was too small.

The start vector is the last one with 10 % of a fixed random vector, so that a mode that overtakes the others is not
orthogonal to it. A product that is not finite ends the iteration and leaves the last finite ρ in place.

**Limits.** Order 2: below rtol 1e-6 the number of steps, which grows like rtol^(−1/2), decides the cost. Eigenvalues
off the real axis must lie within the strip around it that the damping leaves (of width O(s), narrow next to β); outside
it the step is rejected for accuracy, so a field with strong rotation is integrated correctly, with short steps.
Internal rounding grows like s² ε_machine (Verwer, Hundsdorfer and Sommeijer 1990), harmless up to s = 500 in float64;
in float32 it limits rtol to about 1e-3.

Reference:
    Sommeijer, Shampine and Verwer (1998), RKC: an explicit solver for parabolic PDEs, J. Comput. Appl. Math. 88,
    315–326.
    Verwer, Hundsdorfer and Sommeijer (1990), Convergence properties of the Runge–Kutta–Chebyshev method, Numer.
    Math. 57, 157–178.
"""

from collections.abc import Callable
from functools import lru_cache
from typing import ClassVar

import diffrax as dfx
import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from ._vector import above_rounding, flatten, nudge

_DAMPING = 2 / 13
_SAFETY = 1.2  # of the spectral radius
_MAX_AGE = 25  # accepted steps that share an estimate of it
_MAX_ITERATIONS = 50  # of the power method
_AGREEMENT = 0.01  # of two of its iterates
_MIXING = 0.1  # of random directions in its start vector


class StabilizedState(eqx.Module):
    """What the solver carries from step to step."""

    field: Float[Array, " P"]  # F at the current point
    radius: Float[Array, ""]  # spectral radius of the Jacobian, without the safety factor
    vector: Float[Array, " P"]  # the last iterate of the power method, of length one
    step: Float[Array, ""]  # h of the last accepted step
    age: Int[Array, ""]  # accepted steps since `radius` was estimated; _MAX_AGE once it is known to be too small
    noise: Float[Array, ""]  # rounding of the field, when `radius` was estimated
    num_gradients: Int[Array, ""]  # evaluations of the field in the step that made this state
    num_products: Int[Array, ""]  # Jacobian–vector products in it


class StabilizedRungeKutta(dfx.AbstractAdaptiveSolver):
    """Runge–Kutta–Chebyshev method of order 2 with as many stages as stability asks for.

    For `diffrax.diffeqsolve` as well: any vector field on a pytree of floating-point arrays whose Jacobian has
    eigenvalues near the real axis. A step costs s ≈ 1.24 √(hρ) evaluations of the field.

    Attributes:
        max_stages: longest step tried, in stages. A step that needs more is rejected before any work is done.
    """

    max_stages: int = eqx.field(static=True, default=500)

    term_structure: ClassVar = dfx.AbstractTerm
    interpolation_cls: ClassVar = dfx.ThirdOrderHermitePolynomialInterpolation

    def __check_init__(self):
        """Refuses fewer than two stages."""
        if self.max_stages < 2:
            raise ValueError(f"`StabilizedRungeKutta(max_stages=...)` must be at least 2; got {self.max_stages}.")

    def order(self, terms):
        """2, at every number of stages."""
        del terms
        return 2

    def error_order(self, terms):
        """3: the estimate is that of the local error of the method itself, not of a lower one."""
        del terms
        return 3

    def init(self, terms, t0, t1, y0, args):
        """Evaluates the field; the spectral radius is estimated in the first step."""
        del t1
        y, field, _ = flatten(terms, y0, args)
        zero, none = jnp.zeros((), y.dtype), jnp.array(0)
        return StabilizedState(
            field=field(t0, y),
            radius=zero,
            vector=_random_direction(y),
            step=zero,
            age=jnp.array(_MAX_AGE),
            noise=zero,
            num_gradients=none,
            num_products=none,
        )

    def step(self, terms, t0, t1, y0, args, solver_state, made_jump):
        """One step, with the number of stages that h ρ asks for."""
        y, field, unravel = flatten(terms, y0, args)
        h = jnp.asarray(t1 - t0, y.dtype)
        field0 = jax.lax.cond(made_jump, lambda: field(t0, y), lambda: solver_state.field)

        stale = (h < solver_state.step) | (solver_state.age >= _MAX_AGE) | made_jump
        _, product = jax.linearize(lambda x: field(t0, x), y)
        start = solver_state.vector + _MIXING * _random_direction(y)
        radius, vector, num_products = spectral_radius(product, start, solver_state.radius, stale)
        delta = nudge(y)
        noise = jax.lax.cond(
            stale, lambda: _norm(field(t0, y + delta) - field0 - product(delta)), lambda: solver_state.noise
        )
        bound = _SAFETY * radius
        displacement, num_stages, enough = chebyshev_step(
            lambda c, u: field(t0 + c.astype(jnp.result_type(t1)) * (t1 - t0), y + u), field0, h, bound, self.max_stages
        )
        field1 = jax.lax.cond(enough, lambda: field(t1, y + displacement), lambda: field0)
        error = above_rounding(0.4 * h * (field0 + field1) - 0.8 * displacement, num_stages.astype(y.dtype) * h * noise)
        error = jnp.where(enough, error, jnp.inf)

        y1 = unravel(y + displacement)
        dense_info = dict(y0=y0, y1=y1, k0=unravel(h * field0), k1=unravel(h * field1))
        rise = jnp.linalg.norm(field1 - field0) > bound * jnp.linalg.norm(displacement)
        age = jnp.where(rise, _MAX_AGE, jnp.where(stale, 1, solver_state.age + 1))
        state = StabilizedState(
            field=field1,
            radius=radius,
            vector=jnp.where(stale, vector, solver_state.vector),
            step=h,
            age=age,
            noise=noise,
            num_gradients=num_stages,
            num_products=num_products + stale.astype(int),
        )
        return y1, unravel(error), dense_info, state, dfx.RESULTS.successful

    def func(self, terms, t0, y0, args):
        """The vector field itself."""
        return terms.vf(t0, y0, args)


def chebyshev_step(
    field: Callable, field0: Float[Array, " P"], h: Float[Array, ""], bound: Float[Array, ""], max_stages: int
) -> tuple[Float[Array, " P"], Int[Array, ""], Bool[Array, ""]]:
    """Displacement after a step h of the RKC2 method that is stable up to spectral radius `bound`.

    Args:
        field: `field(c, u)`, the vector field at time t₀ + c h and displacement u.
        field0: its value at (0, 0).
        h: the step.
        bound: spectral radius to be stable for.
        max_stages: largest number of stages.

    Returns:
        displacement; number of stages s; whether `max_stages` were enough (if not, nothing is done).
    """
    stages, limits, starts, rows = _tables(max_stages)
    index = jnp.sum(~(h * bound <= jnp.asarray(limits, h.dtype)))  # NaN: past the end
    enough = index < len(stages)
    index = jnp.minimum(index, len(stages) - 1)
    num_stages = jnp.where(enough, jnp.asarray(stages)[index], 0)
    start, table = jnp.asarray(starts)[index], jnp.asarray(rows, h.dtype)
    first, c1 = table[start, 0], table[start, 1]

    def stage(carry):
        j, c, before, last = carry
        mu, nu, mu_tilde, gamma_tilde, c_next = table[start + j - 1]
        u = mu * last + nu * before + h * (mu_tilde * field(c, last) + gamma_tilde * field0)
        return j + 1, c_next, last, u

    u1 = jnp.where(enough, first * h * field0, 0)
    carry = jnp.array(2), c1, jnp.zeros_like(field0), u1
    *_, displacement = jax.lax.while_loop(lambda carry: carry[0] <= num_stages, stage, carry)
    return displacement, num_stages, enough


def spectral_radius(
    product: Callable[[Array], Array],
    start: Float[Array, " P"],
    known: Float[Array, ""],
    wanted: Bool[Array, ""],
) -> tuple[Float[Array, ""], Float[Array, " P"], Int[Array, ""]]:
    """Largest |eigenvalue| of a matrix by power iteration, until two iterates agree to 1 %.

    Args:
        product: v -> J v.
        start: the first iterate.
        known: what to return when nothing is to be done, or when a product is not finite.
        wanted: whether to do anything (False costs nothing, under `vmap` too).

    Returns:
        radius; last iterate, of length one; number of products.
    """

    def iterate(carry):
        _, radius, vector, count = carry
        image = product(vector)
        size = _norm(image)
        finite = jnp.isfinite(size)
        agrees = jnp.abs(size - radius) <= _AGREEMENT * size
        vector = jnp.where(finite & (size > 0), _scaled(image, size), vector)
        radius = jnp.where(finite, size, known)
        return finite & ~agrees & (count + 1 < _MAX_ITERATIONS), radius, vector, count + 1

    vector = _scaled(start, _norm(start))
    carry = wanted, jnp.where(wanted, -1, known), vector, jnp.array(0)
    _, radius, vector, count = jax.lax.while_loop(lambda carry: carry[0], iterate, carry)
    return radius, vector, count


@lru_cache
def _tables(max_stages: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Stage numbers, their stability limits β, where their rows start, and the rows of all, one below the other."""
    stages = [s for s in range(2, 13) if s <= max_stages]
    while stages[-1] < max_stages:
        stages.append(min(max_stages, round(1.08 * stages[-1])))
    limits, rows = zip(*(chebyshev_coefficients(s) for s in stages), strict=True)
    starts = np.cumsum([0, *(len(r) for r in rows[:-1])])
    return np.array(stages), np.array(limits), starts, np.concatenate(rows)


def chebyshev_coefficients(s: int) -> tuple[float, np.ndarray]:
    """β(s) and the rows of RKC2 with s stages: (μ̃₁, c₁, 0, 0, 0), then (μ_j, ν_j, μ̃_j, γ̃_j, c_j) for j = 2, …, s.

    Reference:
        Sommeijer, Shampine and Verwer (1998), sec. 2.
    """
    w0 = 1 + _DAMPING / s**2
    T, dT, ddT = np.zeros((3, s + 1))  # Chebyshev polynomials and their derivatives at w₀
    T[:2], dT[:2] = (1, w0), (0, 1)
    for j in range(2, s + 1):
        T[j] = 2 * w0 * T[j - 1] - T[j - 2]
        dT[j] = 2 * T[j - 1] + 2 * w0 * dT[j - 1] - dT[j - 2]
        ddT[j] = 4 * dT[j - 1] + 2 * w0 * ddT[j - 1] - ddT[j - 2]
    w1 = dT[s] / ddT[s]
    b, c = np.zeros((2, s + 1))
    b[2:] = ddT[2:] / dT[2:] ** 2
    b[:2] = b[2]
    a = 1 - b * T
    c[2:] = w1 * ddT[2:] / dT[2:]
    c[1] = c[2] / dT[2]
    rows = np.zeros((s, 5))
    rows[0, :2] = b[1] * w1, c[1]
    rows[1:, 0] = 2 * w0 * b[2:] / b[1:-1]
    rows[1:, 1] = -b[2:] / b[:-2]
    rows[1:, 2] = 2 * w1 * b[2:] / b[1:-1]
    rows[1:, 3] = -a[1:-1] * rows[1:, 2]
    rows[1:, 4] = c[2:]
    return (w0 + 1) / w1, rows


def _norm(vector: Float[Array, " P"]) -> Float[Array, ""]:
    """Euclidean norm that overflows only if the result does."""
    largest = jnp.max(jnp.abs(vector))
    scale = jnp.where((largest > 0) & jnp.isfinite(largest), largest, 1)
    return scale * jnp.linalg.norm(vector / scale)


def _scaled(vector: Float[Array, " P"], size: Float[Array, ""]) -> Float[Array, " P"]:
    return vector / jnp.where(size > 0, size, 1)


def _random_direction(y: Float[Array, " P"]) -> Float[Array, " P"]:
    return jr.rademacher(jr.key(0), y.shape, y.dtype) / jnp.sqrt(jnp.asarray(y.size, y.dtype))
