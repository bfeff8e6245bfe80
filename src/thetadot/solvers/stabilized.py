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
from typing import ClassVar, NamedTuple

import diffrax as dfx
import equinox as eqx
from jaxtyping import Bool, Float, Int

from ..arrays import Array, cond, namespace, while_loop
from ._chebyshev import tables
from ._vector import above_rounding, evaluate, flatten, nudge, scrambled
from .base import AbstractFlowSolver
from .interpolation import PathInterpolation

_SAFETY = 1.2  # of the spectral radius
_MAX_AGE = 25  # accepted steps that share an estimate of it
_MAX_ITERATIONS = 50  # of the power method
_AGREEMENT = 0.01  # of two of its iterates
_MIXING = 0.1  # of random directions in its start vector


class StabilizedState(NamedTuple):
    """What the solver carries from step to step."""

    field: Float[Array, " P"]  # F at the current point
    radius: Float[Array, ""]  # spectral radius of the Jacobian, without the safety factor
    vector: Float[Array, " P"]  # the last iterate of the power method, of length one
    step: Float[Array, ""]  # h of the last accepted step
    age: Int[Array, ""]  # accepted steps since `radius` was estimated; _MAX_AGE once it is known to be too small
    noise: Float[Array, ""]  # rounding of the field, when `radius` was estimated
    num_gradients: Int[Array, ""]  # evaluations of the field in the step that made this state
    num_products: Int[Array, ""]  # Jacobian–vector products in it


class CubicPath(NamedTuple):
    """Dense output of order 3: the cubic through both ends with the slopes there."""

    y0: Float[Array, " P"]
    displacement: Float[Array, " P"]
    slope0: Float[Array, " P"]  # h F at the start
    slope1: Float[Array, " P"]  # and at the end

    def __call__(self, x: Float[Array, ""]) -> Float[Array, " P"]:
        """y₀ + x (1 − x)² h F₀ + x² (3 − 2x) u + x² (x − 1) h F₁ at a share x of the step."""
        bulge = (3 - 2 * x) * self.displacement + (x - 1) * self.slope1
        return self.y0 + (x * (1 - x) ** 2 * self.slope0 + x**2 * bulge)


class StabilizedRungeKutta(AbstractFlowSolver):
    """Runge–Kutta–Chebyshev method of order 2 with as many stages as stability asks for.

    For `diffrax.diffeqsolve` as well: any vector field on a pytree of floating-point arrays whose Jacobian has
    eigenvalues near the real axis. A step costs s ≈ 1.24 √(hρ) evaluations of the field.

    Attributes:
        max_stages: longest step tried, in stages. A step that needs more is rejected before any work is done.
    """

    max_stages: int = eqx.field(static=True, default=500)

    term_structure: ClassVar = dfx.AbstractTerm
    interpolation_cls: ClassVar = PathInterpolation
    runs_on_host: ClassVar = True
    halves: ClassVar = True
    keeps_small: ClassVar = True

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
        y, field, _, _ = flatten(terms, y0, args)
        xp = namespace(y)
        zero, none = xp.zeros((), y.dtype), xp.asarray(0)
        return StabilizedState(
            field=field(t0, y),
            radius=zero,
            vector=_random_direction(y),
            step=zero,
            age=xp.asarray(_MAX_AGE),
            noise=zero,
            num_gradients=none,
            num_products=none,
        )

    def step(self, terms, t0, t1, y0, args, solver_state, made_jump):
        """One step, with the number of stages that h ρ asks for."""
        y, field, jacobian, unravel = flatten(terms, y0, args)
        xp = namespace(y)
        h = xp.asarray(t1 - t0, y.dtype)
        field0 = cond(made_jump, lambda: field(t0, y), lambda: solver_state.field)

        stale = (h < solver_state.step) | (solver_state.age >= _MAX_AGE) | made_jump
        product = jacobian(t0, y).times
        start = solver_state.vector + _MIXING * _random_direction(y)
        radius, vector, num_products = spectral_radius(product, start, solver_state.radius, stale)
        delta = nudge(y)
        noise = cond(stale, lambda: _norm(field(t0, y + delta) - field0 - product(delta)), lambda: solver_state.noise)
        bound = _SAFETY * radius
        displacement, num_stages, enough = chebyshev_step(
            lambda c, u: field(t0 + c * (t1 - t0), y + u), field0, h, bound, self.max_stages
        )
        field1 = cond(enough, lambda: field(t1, y + displacement), lambda: field0)
        error = above_rounding(0.4 * h * (field0 + field1) - 0.8 * displacement, num_stages.astype(y.dtype) * h * noise)
        error = xp.where(enough, error, xp.inf)

        dense_info = dict(y0=y0, path=CubicPath(y, displacement, h * field0, h * field1))
        rise = xp.linalg.norm(field1 - field0) > bound * xp.linalg.norm(displacement)
        age = xp.where(rise, _MAX_AGE, xp.where(stale, 1, solver_state.age + 1))
        state = StabilizedState(
            field=field1,
            radius=radius,
            vector=xp.where(stale, vector, solver_state.vector),
            step=h,
            age=age,
            noise=noise,
            num_gradients=num_stages,
            num_products=num_products + stale.astype(int),
        )
        return unravel(y + displacement), unravel(error), dense_info, state, dfx.RESULTS.successful

    def func(self, terms, t0, y0, args):
        """The vector field itself."""
        return evaluate(terms, t0, y0, args)

    @property
    def label(self) -> str:
        """Its name."""
        return "StabilizedRungeKutta"

    def cost(self, state):
        """Counted by the state."""
        return state.num_gradients, state.num_products

    def path(self, t0, t1, dense_info):
        """A cubic."""
        del t0, t1
        return dense_info["path"]

    def strained(self, state):
        """Always: curvature costs stages, which another method may save."""
        return namespace(state.age).asarray(True)


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
    xp = namespace(field0)
    stages, limits, starts, rows = tables(max_stages)
    index = xp.sum(~(h * bound <= xp.asarray(limits, h.dtype)))  # NaN: past the end
    enough = index < len(stages)
    index = xp.minimum(index, len(stages) - 1)
    num_stages = xp.where(enough, xp.asarray(stages)[index], 0)
    start, table = xp.asarray(starts)[index], xp.asarray(rows, h.dtype)
    first, c1 = table[start, 0], table[start, 1]

    def stage(carry):
        j, c, before, last = carry
        mu, nu, mu_tilde, gamma_tilde, c_next = table[start + j - 1]
        u = mu * last + nu * before + h * (mu_tilde * field(c, last) + gamma_tilde * field0)
        return j + 1, c_next, last, u

    u1 = xp.where(enough, first * h * field0, 0)
    carry = xp.asarray(2), c1, xp.zeros_like(field0), u1
    *_, displacement = while_loop(lambda carry: carry[0] <= num_stages, stage, carry)
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
    xp = namespace(start)

    def iterate(carry):
        _, radius, vector, count = carry
        image = product(vector)
        size = _norm(image)
        finite = xp.isfinite(size)
        agrees = xp.abs(size - radius) <= _AGREEMENT * size
        vector = xp.where(finite & (size > 0), _scaled(image, size), vector)
        radius = xp.where(finite, size, known)
        return finite & ~agrees & (count + 1 < _MAX_ITERATIONS), radius, vector, count + 1

    vector = _scaled(start, _norm(start))
    carry = wanted, xp.where(wanted, -1, known), vector, xp.asarray(0)
    _, radius, vector, count = while_loop(lambda carry: carry[0], iterate, carry)
    return radius, vector, count


def _norm(vector: Float[Array, " P"]) -> Float[Array, ""]:
    """Euclidean norm that overflows only if the result does."""
    xp = namespace(vector)
    largest = xp.max(xp.abs(vector))
    scale = xp.where((largest > 0) & xp.isfinite(largest), largest, 1)
    return scale * xp.linalg.norm(vector / scale)


def _scaled(vector: Float[Array, " P"], size: Float[Array, ""]) -> Float[Array, " P"]:
    return vector / namespace(vector).where(size > 0, size, 1)


def _random_direction(y: Float[Array, " P"]) -> Float[Array, " P"]:
    xp = namespace(y)
    signs = xp.where(scrambled(y, (y.size,), seed=2) < 0, -1, 1)
    return signs.astype(y.dtype) / xp.sqrt(xp.asarray(y.size, y.dtype))
