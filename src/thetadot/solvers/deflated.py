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

The step is the five-stage method of Hochbruck and Ostermann, re-centered at y₀, where N vanishes. Its stiff order is
four, so that it keeps its order where N sees large changes of the deflated curvature; on trace B of the benchmarks it
needs a fifth fewer steps than Krogstad's ETDRK4 and conserves three times better. An exponential method has its
classical order for any A: a poor basis costs steps, never correctness. In particular an unstable direction that V
misses is still integrated, so no escape is lost.

**Error.** One step of h against two of h/2 with the same A: δ = (y_{2×h/2} − y_h)/15 estimates the local error, O(h⁵),
and is added (Richardson), which makes the result of order 5. What the rounding of the gradient explains is taken off
the estimate (`_above_rounding`).

**Basis.** Warm-started block power iteration with Rayleigh–Ritz: one product with k vectors a step gives W = J V, the
Ritz pairs of V for this step, and V ← orth(W) for the next. The state of the solver is V.

**Limits.** The step is stability-limited by h |λ_{k+1}| ≲ 3 if k is smaller than the number of outliers; then
`pressure`, a running mean of h |μ_k|, rises above two, and a larger `rank` may pay. A Jacobian that is not symmetric
is handled correctly, but only its symmetric part is deflated.

Reference:
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
_LAPACK_THREADS = 9216  # entries of a matrix from which OpenBLAS starts threads
_STRAIN = 2.0  # the mean of h |μ_k| above which the rank may limit the step; the explicit part is unstable from about 3


class Deflation(eqx.Module):
    """A = V diag(μ) Vᵀ, the deflated part of the Jacobian."""

    vectors: Float[Array, "P k"]
    rates: Float[Array, " k"]


class DeflatedState(eqx.Module):
    """What the solver carries from step to step."""

    field: Float[Array, " P"]  # F at the current point
    basis: Float[Array, "P k"]  # orthonormal, one power iteration ahead of the last Ritz vectors
    pressure: Float[Array, ""]  # running mean of h |μ_k|


class DeflatedExponential(dfx.AbstractAdaptiveSolver):
    """Exponential Runge–Kutta of order 5 that deflates the `rank` largest eigenvalues of the Hessian.

    For `diffrax.diffeqsolve` as well: any vector field on a pytree of floating-point arrays, best with a symmetric
    Jacobian. Costs 14 evaluations of the field and `rank` Jacobian–vector products a step, never an n × n matrix.

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
        whole, half = jax.vmap(lambda step: exponential_step(field, A, y, field0, step))(steps)
        field_half = field(y + half)
        second_half = exponential_step(field, A, y + half, field_half, h / 2)
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
        """Whether directions that are not deflated may limit the steps."""
        return state.pressure > _STRAIN


def exponential_step(
    field: Field, A: Deflation, y: Float[Array, " P"], field0: Float[Array, " P"], h: Float[Array, ""]
) -> Float[Array, " P"]:
    """Displacement u after a step h of an exponential Runge–Kutta method for u' = F₀ + A u + N(u), N(0) = 0.

        Uᵢ = h Σⱼ aᵢⱼ(hA) Xⱼ,   X = (F₀, N(U₂), N(U₃), …),   u = h Σⱼ bⱼ(hA) Xⱼ

    with the coefficients of `hochbruck_ostermann`. A coefficient acts by its value at hμ in the deflated space and by
    its value at 0 outside. The stages run as a loop, so that the field is compiled once.
    """
    V, mu = A.vectors, A.rates
    table = hochbruck_ostermann(jnp.append(h * mu, 0))
    num_stages = table.shape[0]

    def combine(weights, X, xi):
        inside, outside = h * jnp.sum(weights[:, :-1] * xi, axis=0), h * weights[:, -1]
        return outside @ X + V @ (inside - outside @ xi), inside

    def stage(i, stages):
        X, xi = stages
        u, upsilon = combine(table[i], X, xi)
        n = field(y + u) - field0 - V @ (mu * upsilon)
        return X.at[i + 1].set(n), xi.at[i + 1].set(n @ V)

    X = jnp.zeros((num_stages, y.size), y.dtype).at[0].set(field0)
    X, xi = jax.lax.fori_loop(0, num_stages - 1, stage, (X, X @ V))
    return combine(table[-1], X, xi)[0]


def hochbruck_ostermann(z: Float[Array, " K"]) -> Float[Array, "5 5 K"]:
    """Coefficients of the five-stage method of stiff order four: rows U₂, …, U₅ and u; columns F₀, N₂, …, N₅.

    Reference:
        Hochbruck and Ostermann (2005), Explicit exponential Runge–Kutta methods for semilinear parabolic problems,
        SIAM J. Numer. Anal. 43, 1069–1090, eq. (5.19). The first column there is aᵢ₁ for N₁; here it multiplies F₀ and
        is cᵢφ₁(cᵢz), since N₁ = 0.
    """
    half1, half2, half3, _ = phi_functions(z / 2)
    phi1, phi2, phi3, _ = phi_functions(z)
    a52 = half2 / 2 - phi3 + phi2 / 4 - half3 / 2
    a54 = half2 / 4 - a52
    none = jnp.zeros_like(z)
    return jnp.stack(
        [
            jnp.stack([half1 / 2, none, none, none, none]),
            jnp.stack([half1 / 2, half2, none, none, none]),
            jnp.stack([phi1, phi2, phi2, none, none]),
            jnp.stack([half1 / 2, a52, a52, a54, none]),
            jnp.stack([phi1, none, none, 4 * phi3 - phi2, 4 * phi2 - 8 * phi3]),
        ]
    )


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
    """An orthonormal basis of the columns; a column that is zero or depends on the others is replaced by noise.

    Householder QR while the block is small. Beyond that three passes of Cholesky QR with a shift (Fukaya et al. 2020,
    SIAM J. Sci. Comput. 42), which touch the tall block by matrix products only: LAPACK's threads and XLA's wait for
    each other on a busy machine, and a QR of 640 × 16 inside a compiled loop was 30 times slower than alone.
    """
    if block.size < _LAPACK_THREADS:
        return jnp.linalg.qr(block)[0]
    noise = jr.normal(jr.key(1), block.shape, block.dtype)
    eye = jnp.eye(block.shape[1], dtype=block.dtype)
    shift = 1e3 * jnp.finfo(block.dtype).eps
    for _ in range(3):
        size = jnp.linalg.norm(block, axis=0)
        block = (
            jnp.where(size[None] > 0, block, noise) / jnp.where(size > 0, size, jnp.linalg.norm(noise, axis=0))[None]
        )
        lower = jnp.linalg.cholesky(block.T @ block + shift * eye)
        block = block @ jax.scipy.linalg.solve_triangular(lower, eye, lower=True).T
    return block


def _flatten(terms, t, y0: PyTree, args) -> tuple[Float[Array, " P"], Field, Callable]:
    """The state as one vector, and the field as a function of it."""
    y, unravel = ravel_pytree(y0)
    return y, lambda x: ravel_pytree(terms.vf(t, unravel(x), args))[0], unravel
