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
and is added (Richardson), which makes the result of order 5. The rounding of the field is measured in every step, by
one more evaluation at a point some hundred units in the last place away, and what it explains is taken off the
estimate: on the late plateaus of a small initialization the gradient is little else.

**Basis.** Warm-started block power iteration with Rayleigh–Ritz: V = orth(W) from the image W = J V of the last step,
and one product with k vectors gives the new image and the Ritz pairs of V. The state of the solver is W. An older A
would give the right result too, but it does not pay to keep one: the step is as long as the change of the Jacobian
allows, so that a residual test (h ‖JV − V diag μ‖ against the error of recent steps) asks for a new basis in every
step of both reference flows (benchmarks/README.md).

**Symmetry.** Parameters that are absent (zero, with a gradient of zero), equal or opposite stay so to the last bit, as
far as the computed field keeps them so. A random basis would not: V Vᵀ takes large parameters to small ones and back,
and what is left of that is rounding of the large ones, from which a growing direction takes its escape. So the first
block is a function of each θᵢ and Fᵢ, odd in both (`alike`), every basis is made by combinations of columns, and
vectors are padded to whole vector registers, since kernels round what is left over beyond them in another order.

**Limits.** The step is stability-limited by h |λ_{k+1}| ≲ 3 if k is smaller than the number of outliers; then
`pressure`, a running mean of h |μ_k|, rises above two, and a larger `rank` may pay. A Jacobian that is not symmetric
is handled correctly, but only its symmetric part is deflated.

Reference:
    Hochbruck and Ostermann (2005), Explicit exponential Runge–Kutta methods for semilinear parabolic problems,
    SIAM J. Numer. Anal. 43, 1069–1090.
"""

from functools import partial
from typing import ClassVar, NamedTuple

import diffrax as dfx
import equinox as eqx
from jaxtyping import Float

from ..arrays import Array, cond, each, fori_loop, namespace, put_row, side_by_side
from ._deflation import Deflation, rayleigh_ritz, starting_block
from ._phi import phi_functions
from ._rounding import Modes, Rounding, carried, none_yet, step_rounding
from ._vector import Field, above_rounding, alike, evaluate, flatten, nudge
from .base import AbstractFlowSolver
from .interpolation import PathInterpolation, exponential_path

_MEMORY = 0.9  # of the running mean of h |μ_k|
_STRAIN = 2.0  # the mean of h |μ_k| above which the rank may limit the step; the explicit part is unstable from about 3
_NODES = (0.5, 0.5, 1.0, 0.5)  # of stages two to five


class DeflatedState(NamedTuple):
    """What the solver carries from step to step."""

    field: Float[Array, " P"]  # F at the current point
    block: Float[Array, "P k"]  # J V of the last step: its span is one power iteration ahead of that of V
    pressure: Float[Array, ""]  # running mean of h |μ_k|
    rounding: Rounding


class DeflatedExponential(AbstractFlowSolver):
    """Exponential Runge–Kutta of order 5 that deflates the `rank` largest eigenvalues of the Hessian.

    For `diffrax.diffeqsolve` as well: any vector field on a pytree of floating-point arrays, best with a symmetric
    Jacobian. Costs 16 evaluations of the field and `rank` + 2 Jacobian–vector products a step, never an n × n matrix.

    Attributes:
        rank: dimension k of the deflated space. 8 serves a condensing network; deep linear networks need about
            r(2d − r) for r learned modes of size d. `td.gradient_flow(solver="auto")` chooses it while it runs.
    """

    rank: int = eqx.field(static=True, default=8)

    term_structure: ClassVar = dfx.AbstractTerm
    interpolation_cls: ClassVar = PathInterpolation
    runs_on_host: ClassVar = True
    halves: ClassVar = True
    keeps_small: ClassVar = False

    def __check_init__(self):
        """Refuses a rank below one."""
        if self.rank < 1:
            raise ValueError(f"`DeflatedExponential(rank=...)` must be at least 1; got {self.rank}.")

    def order(self, terms):
        """5, by local extrapolation."""
        del terms
        return 5

    @property
    def label(self) -> str:
        """Its name and rank."""
        return f"DeflatedExponential(rank={self.rank})"

    def init(self, terms, t0, t1, y0, args):
        """Finds the starting basis by block power iteration from a block with the symmetries of point and velocity."""
        del t1
        y, field, jacobian, _ = flatten(terms, y0, args)
        field0 = field(t0, y)
        block = starting_block(jacobian(t0, y).times_block, y, field0, self.rank)
        return DeflatedState(field0, block, namespace(y).zeros((), y.dtype), none_yet(y))

    def step(self, terms, t0, t1, y0, args, solver_state, made_jump):
        """One step of h and two of h/2 with the same A; their difference is the error estimate."""
        y, field, jacobian, unravel = flatten(terms, y0, args)
        xp = namespace(y)
        h, t_half = xp.asarray(t1 - t0, y.dtype), (t0 + t1) / 2
        field0 = cond(made_jump, lambda: field(t0, y), lambda: solver_state.field)

        delta = nudge(y)
        fill = partial(alike, y, field0, solver_state.block.shape[1], seed=1)
        others = xp.stack([delta, solver_state.rounding.displacement], axis=1)
        A, images = rayleigh_ritz(jacobian(t0, y).times_block, solver_state.block, fill, others, h)
        change, pull = images[:, 0], images[:, 1]
        steps = xp.stack([h, h / 2])
        tables = hochbruck_ostermann(xp.append(A.rates, xp.zeros(1, y.dtype))[None] * steps[:, None])
        from_start = partial(exponential_step, field, A, t0, y, field0)
        whole, half = each(from_start)(steps, tables)
        field_half, field_near = side_by_side(field)(xp.stack([t_half, t0]), xp.stack([y + half, y + delta]))
        second_half = exponential_step(field, A, t_half, y + half, field_half, h / 2, tables[1])
        correction = (half + second_half - whole) / 15
        displacement = half + second_half + correction
        noise = field_near - field0 - change
        modes = Modes(A.vectors, A.rates, tables[0, -1, 0, :-1])
        cancelled = h * float(xp.finfo(y.dtype).eps) * xp.linalg.norm(field0)  # left of (1 − V Vᵀ) F₀, in any direction
        error = above_rounding(correction, step_rounding(noise, modes, h))
        error = xp.abs(error) + cancelled / xp.sqrt(xp.asarray(y.size, y.dtype))
        field1 = field(t1, y + displacement)

        displacements = xp.stack([half + correction / 2, displacement])
        fields = xp.stack([field0, field_half, field1])
        path = exponential_path(y, h, A.rates, A.vectors, field0 @ A.image, displacements, fields)
        pressure = _MEMORY * solver_state.pressure + (1 - _MEMORY) * h * xp.min(xp.abs(A.rates))
        rounding = carried(solver_state.rounding, pull, noise, y, field0, modes, h)
        state = DeflatedState(field1, A.image, pressure, rounding)
        return unravel(y + displacement), unravel(error), dict(y0=y0, path=path), state, dfx.RESULTS.successful

    def func(self, terms, t0, y0, args):
        """The vector field itself."""
        return evaluate(terms, t0, y0, args)

    def cost(self, state):
        """Sixteen gradients, and a product for each direction and two for the rounding."""
        return 16, state.block.shape[1] + 2

    def path(self, t0, t1, dense_info):
        """Exponentials and polynomials."""
        del t0, t1
        return dense_info["path"]

    def strained(self, state):
        """Whether directions that are not deflated may limit the steps."""
        num_params, rank = state.block.shape
        return (state.pressure > _STRAIN) & (rank < num_params)

    def widened(
        self, y: Float[Array, " P"], state: DeflatedState, rank: int
    ) -> tuple["DeflatedExponential", DeflatedState]:
        """The solver of a larger rank; the space found so far is kept and filled up with other directions."""
        num_params, found = state.block.shape
        fresh = alike(y, state.field, min(rank, num_params) - found, seed=rank)
        block = namespace(y).concatenate([state.block, fresh], axis=1)
        return DeflatedExponential(rank), state._replace(block=block, pressure=0 * state.pressure)


def exponential_step(
    field: Field,
    A: Deflation,
    t0,
    y: Float[Array, " P"],
    field0: Float[Array, " P"],
    h: Float[Array, ""],
    table: Float[Array, "5 5 K"],
) -> Float[Array, " P"]:
    """Displacement u after a step h of an exponential Runge–Kutta method for u' = F₀ + A u + N(u), N(0) = 0.

        Uᵢ = h Σⱼ aᵢⱼ(hA) Xⱼ,   X = (F₀, N(U₂), N(U₃), …),   u = h Σⱼ bⱼ(hA) Xⱼ

    with the coefficients of `hochbruck_ostermann`, here as a `table` of their values at hμ and at 0: the former act in
    the deflated space, the latter outside. The stages run as a loop, so that the field is compiled once.
    """
    xp, V, mu = namespace(y), A.vectors, A.rates
    num_stages = table.shape[0]
    times = t0 + (h * xp.asarray(_NODES, y.dtype)).astype(xp.result_type(t0))

    inner, outer = h * table[:, :, :-1], h * table[:, :, -1]

    def combine(i, X, xi):
        inside, outside = xp.sum(inner[i] * xi, axis=0), outer[i]
        return outside @ X + V @ (inside - outside @ xi), inside

    def stage(i, stages):
        X, xi = stages
        u, upsilon = combine(i, X, xi)
        n = field(times[i], y + u) - field0 - V @ (mu * upsilon)
        return put_row(X, i + 1, n), put_row(xi, i + 1, n @ V)

    X, xi = xp.zeros((num_stages, y.size), y.dtype), xp.zeros((num_stages, mu.size), y.dtype)
    start = put_row(X, 0, field0), put_row(xi, 0, field0 @ V)
    X, xi = fori_loop(0, num_stages - 1, stage, start)
    return combine(num_stages - 1, X, xi)[0]


def hochbruck_ostermann(z: Float[Array, "*S K"]) -> Float[Array, "*S 5 5 K"]:
    """Coefficients of the five-stage method of stiff order four: rows U₂, …, U₅ and u; columns F₀, N₂, …, N₅.

    Reference:
        Hochbruck and Ostermann (2005), Explicit exponential Runge–Kutta methods for semilinear parabolic problems,
        SIAM J. Numer. Anal. 43, 1069–1090, eq. (5.19). The first column there is aᵢ₁ for N₁; here it multiplies F₀ and
        is cᵢφ₁(cᵢz), since N₁ = 0.
    """
    xp = namespace(z)
    (half1, phi1), (half2, phi2), (half3, phi3), _ = phi_functions(xp.stack([z / 2, z]))
    a52 = half2 / 2 - phi3 + phi2 / 4 - half3 / 2
    a54 = half2 / 4 - a52
    none = xp.zeros_like(z)
    rows = (
        (half1 / 2, none, none, none, none),
        (half1 / 2, half2, none, none, none),
        (phi1, phi2, phi2, none, none),
        (half1 / 2, a52, a52, a54, none),
        (phi1, none, none, 4 * phi3 - phi2, 4 * phi2 - 8 * phi3),
    )
    return xp.stack([entry for row in rows for entry in row], axis=-2).reshape(*z.shape[:-1], 5, 5, z.shape[-1])
