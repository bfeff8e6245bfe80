r"""Deflated exponential Runge–Kutta: the outlying curvature exactly, the rest explicitly.

**Why.** Once a stage of training is learned, the Hessian H has a few large eigenvalues (condensation makes it nearly
low rank) and the flow crosses a plateau that is long compared with 1/λ_max. An explicit method takes steps of about
3/λ_max all along the plateau; an implicit one solves an n × n system at each step. Here the few outlying directions
are found and integrated by exponentials, so the step is limited by λ_{k+1} and by accuracy only.

**Method.** Around y₀, with F = −∇L, F₀ = F(y₀) and u = y − y₀, write

    u' = F₀ + A u + N(u),   A = V diag(μ) Vᵀ,   N(u) = F(y₀ + u) − F₀ − A u,

where the columns of V (n × k) are Ritz vectors of the Jacobian −H and μ their Ritz values. The φ-functions of hA cost
no matrix functions and no Krylov space:

    φ_j(hA) w = φ_j(0) w + V (φ_j(hμ) − φ_j(0)) Vᵀ w.

The step is Krogstad's ETDRK4 (2005, eq. 51) re-centered at y₀, where N vanishes; it reduces to the classical
fourth-order Runge–Kutta method where V is blind. Exponential methods with an inexact A keep their classical order for
any A: a poor basis costs steps, never correctness. In particular an unstable direction that V misses is still
integrated, so no escape is lost.

**Error.** One step of h against two of h/2 with the same A: δ = (y_{2×h/2} − y_h)/15 estimates the local error, O(h⁵),
and is added (Richardson), which makes the result of order 5.

What the rounding of the gradient explains is taken off the estimate (`_above_rounding`).

**Basis.** Warm-started block power iteration with Rayleigh–Ritz: one product with k vectors a step gives W = J V, the
Ritz pairs of V for this step, and V ← orth(W) for the next. The state of the solver is V.

**Limits.** The step is stability-limited by h |λ_{k+1}| ≲ 2.8 if k is smaller than the number of outliers; then
`pressure`, a running mean of h |μ_k| over the steps, rises above two and a larger `rank` is worth its price. A
Jacobian that is not symmetric is handled correctly, but only its symmetric part is deflated. The stiff order of
ETDRK4 is two in the worst case (Hochbruck and Ostermann 2005, sec. 5); along a plateau the stiff components are
slaved to the slow ones and the full order is seen.

Reference:
    Krogstad (2005), Generalized integrating factor methods for stiff PDEs, J. Comput. Phys. 203, 72–88.
    Hochbruck and Ostermann (2005), Explicit exponential Runge–Kutta methods for semilinear parabolic problems,
    SIAM J. Numer. Anal. 43, 1069–1090.
"""

from collections.abc import Callable
from typing import ClassVar

import diffrax as dfx
import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Bool, Float, PyTree

from ._phi import phi_functions
from .interpolation import ExponentialInterpolation

Field = Callable[[Float[Array, " P"]], Float[Array, " P"]]

_STARTING_ITERATIONS = 8  # of the block power method, before the first step
_MEMORY = 0.9  # of the running mean of h |μ_k|
_STRAIN = 2.0  # the mean above which the rank limits the step; the explicit part is unstable from 2.8 on


class Deflation(eqx.Module):
    """A = V diag(μ) Vᵀ, the deflated part of the Jacobian."""

    vectors: Float[Array, "P k"]
    rates: Float[Array, " k"]


class DeflatedState(eqx.Module):
    """What the solver carries from step to step."""

    field: Float[Array, " P"]  # F at the current point
    basis: Float[Array, "P k"]  # orthonormal, one power iteration ahead of the last Ritz vectors
    pressure: Float[Array, ""]  # running mean of h |μ_k|: above two, the rank limits the step


class DeflatedExponential(dfx.AbstractAdaptiveSolver):
    """Exponential Runge–Kutta of order 5 that deflates the `rank` largest eigenvalues of the Hessian.

    For `diffrax.diffeqsolve` as well: any vector field on a pytree of floating-point arrays, best with a symmetric
    Jacobian. Costs 10 evaluations of the field and `rank` Jacobian–vector products a step, never an n × n matrix.

    Attributes:
        rank: dimension k of the deflated space. 8 serves a condensing network; deep linear networks need about
            r(2d − r) for r learned modes of size d. `td.gradient_flow(solver="auto")` chooses it while it runs.
    """

    rank: int = eqx.field(static=True, default=8)

    term_structure: ClassVar = dfx.AbstractTerm
    interpolation_cls: ClassVar = ExponentialInterpolation

    def __check_init__(self):
        """Refuses a rank below one."""
        if self.rank < 1:
            raise ValueError(f"`DeflatedExponential(rank=...)` must be at least 1; got {self.rank}.")

    def order(self, terms):
        """5, by local extrapolation."""
        del terms
        return 5

    def init(self, terms, t0, t1, y0, args):
        """Finds the starting basis by block power iteration from a fixed random block."""
        del t1
        y, field, _ = _flatten(terms, t0, y0, args)
        rank = min(self.rank, y.size)
        block = jr.normal(jr.key(0), (y.size, rank), y.dtype)
        _, jvp = jax.linearize(field, y)
        apply = jax.vmap(jvp, in_axes=1, out_axes=1)
        basis = jax.lax.fori_loop(0, _STARTING_ITERATIONS, lambda _, V: _orthonormal(apply(V)), _orthonormal(block))
        return DeflatedState(field(y), basis, jnp.zeros((), y.dtype))

    def step(self, terms, t0, t1, y0, args, solver_state, made_jump):
        """One step of h and two of h/2 with the same A; their difference is the error estimate."""
        y, field, unravel = _flatten(terms, t0, y0, args)
        h = jnp.asarray(t1 - t0, y.dtype)
        field0 = jax.lax.cond(made_jump, lambda: field(y), lambda: solver_state.field)

        A, image = _deflate(field, y, solver_state.basis)
        steps = jnp.stack([h, h / 2])
        whole, half = jax.vmap(lambda step: krogstad_step(field, A, y, field0, step))(steps)
        field_half = field(y + half)
        second_half = krogstad_step(field, A, y + half, field_half, h / 2)
        correction = (half + second_half - whole) / 15
        displacement = half + second_half + correction
        error = _above_rounding(correction, h, A.rates, y)
        field1 = field(y + displacement)

        dense_info = dict(
            y0=y0,
            rates=A.rates,
            vectors=A.vectors,
            image=image,
            displacements=jnp.stack([half + correction / 2, displacement]),
            fields=jnp.stack([field0, field_half, field1]),
        )
        pressure = _MEMORY * solver_state.pressure + (1 - _MEMORY) * h * jnp.min(jnp.abs(A.rates))
        state = DeflatedState(field1, _orthonormal(image), pressure)
        return unravel(y + displacement), unravel(error), dense_info, state, dfx.RESULTS.successful

    def func(self, terms, t0, y0, args):
        """The vector field itself."""
        return terms.vf(t0, y0, args)

    def strained(self, state: DeflatedState) -> Bool[Array, ""]:
        """Whether directions that are not deflated limit the step: h |μ_k| near the stability limit in the mean."""
        return state.pressure > _STRAIN


def krogstad_step(
    field: Field, A: Deflation, y: Float[Array, " P"], field0: Float[Array, " P"], h: Float[Array, ""]
) -> Float[Array, " P"]:
    """Displacement u after a step h of Krogstad's ETDRK4 for u' = F₀ + A u + N(u), N(0) = 0.

        U₂ = ½h φ₁(½hA) F₀                             N₂ = N(U₂)
        U₃ = U₂ + h φ₂(½hA) N₂                         N₃ = N(U₃)
        U₄ = h φ₁(hA) F₀ + 2h φ₂(hA) N₃                N₄ = N(U₄)
        u  = h φ₁(hA) F₀ + h (2φ₂ − 4φ₃)(hA) (N₂ + N₃) + h (4φ₃ − φ₂)(hA) N₄

    Each vector is kept twice: in full, and (in Greek) by its coordinates Vᵀ· in the deflated space, where the
    φ-functions differ from their values 1, ½, 1/6 at zero.
    """
    V, mu = A.vectors, A.rates
    half1, half2, *_ = phi_functions(h * mu / 2)
    phi1, phi2, phi3, _ = phi_functions(h * mu)

    def remainder(u, upsilon):
        n = field(y + u) - field0 - V @ (mu * upsilon)
        return n, V.T @ n

    sigma = V.T @ field0
    upsilon2 = h / 2 * half1 * sigma
    u2 = h / 2 * field0 + V @ (upsilon2 - h / 2 * sigma)
    n2, nu2 = remainder(u2, upsilon2)

    upsilon3 = upsilon2 + h * half2 * nu2
    u3 = u2 + h / 2 * n2 + V @ (h * (half2 - 1 / 2) * nu2)
    n3, nu3 = remainder(u3, upsilon3)

    u1 = h * field0 + V @ (h * (phi1 - 1) * sigma)  # exponential Euler
    upsilon4 = h * phi1 * sigma + 2 * h * phi2 * nu3
    u4 = u1 + h * n3 + V @ (2 * h * (phi2 - 1 / 2) * nu3)
    n4, nu4 = remainder(u4, upsilon4)

    middle, last = 2 * phi2 - 4 * phi3, 4 * phi3 - phi2
    correction = (middle - 1 / 3) * (nu2 + nu3) + (last - 1 / 6) * nu4
    return u1 + h * ((n2 + n3) / 3 + n4 / 6) + V @ (h * correction)


def _deflate(field: Field, y: Float[Array, " P"], basis: Float[Array, "P k"]) -> tuple[Deflation, Float[Array, "P k"]]:
    """Ritz pairs of the Jacobian J at y in the span of `basis`, and the image J V of the Ritz vectors."""
    _, jvp = jax.linearize(field, y)
    image = jax.vmap(jvp, in_axes=1, out_axes=1)(basis)
    projected = basis.T @ image
    rates, rotation = jnp.linalg.eigh((projected + projected.T) / 2)
    return Deflation(basis @ rotation, rates), image @ rotation


def _above_rounding(
    error: Float[Array, " P"], h, rates: Float[Array, " k"], y: Float[Array, " P"]
) -> Float[Array, " P"]:
    """The error estimate, less what rounding alone explains.

    A gradient evaluated in floating point is the exact one at parameters off by ε_machine, so it is wrong by about
    ε_machine λ_max ‖θ‖ (a tenth of that as measured), and a step turns this into h times as much. With h λ_max ≫ 1 and
    a gradient near that level no step size can do better, and asking for it would shrink the steps without end.
    """
    size = jnp.linalg.norm(error)
    rounding = 0.1 * jnp.finfo(y.dtype).eps * h * jnp.max(jnp.abs(rates)) * jnp.linalg.norm(y)
    return error * jnp.where(size > rounding, 1 - rounding / jnp.where(size > 0, size, 1), 0)


def _orthonormal(block: Float[Array, "P k"]) -> Float[Array, "P k"]:
    return jnp.linalg.qr(block)[0]


def _flatten(terms, t, y0: PyTree, args) -> tuple[Float[Array, " P"], Field, Callable]:
    """The state as one vector, and the field as a function of it."""
    y, unravel = ravel_pytree(y0)
    return y, lambda x: ravel_pytree(terms.vf(t, unravel(x), args))[0], unravel
