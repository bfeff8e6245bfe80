r"""Exponential Rosenbrock method of order 5 with Krylov spaces: the whole Jacobian, at the price of products with it.

**Why.** Some flows have a stiff subspace too large to deflate, but with few distinct eigenvalues (a deep linear network
of width d that has learned r modes: r(2d − r) outliers, about r² of them different). A Krylov space needs one dimension
for each *distinct* one. Here the Jacobian J = −H at the start of the step is taken exactly, so the step is limited by
the change of J alone.

**Method.** With F = −∇L, F₀ = F(y₀) and N(u) = F(y₀ + u) − F₀ − J u = O(‖u‖²), the method exprb53s3 of Luan and
Ostermann (2014, sec. 5), nodes ½, 9/10 and stiff order 5:

    U₂ = ½ h φ₁(½hJ) F₀                                                                           N₂ = N(U₂)
    U₃ = 9/10 h φ₁(9/10 hJ) F₀ + h (27/25 φ₃(½hJ) + 729/125 φ₃(9/10 hJ)) N₂                      N₃ = N(U₃)
    u  = h φ₁(hJ) F₀ + h (18 φ₃ − 60 φ₄)(hJ) N₂ + h (−250/81 φ₃ + 500/27 φ₄)(hJ) N₃.

**Error.** The weights 16 φ₃ − 48 φ₄ and −2 φ₃ + 12 φ₄ on the nodes ½ and 1 (those of exprb43, Hochbruck, Ostermann and
Schweitzer 2009, sec. 5) give a method of stiff order 4, and N₄ = N(u) costs nothing, since F(y₀ + u) starts the next
step. Its difference to u is

    δ = h (2 φ₃ − 12 φ₄)(hJ) (N₂ − 125/81 N₃ + N₄) = O(h⁵),

one more Krylov space, of a vector so small that it takes few dimensions. δ bounds the error of the lower method; the
higher one is carried on. The published embedded method of exprb53s3 is one order lower. The rounding of the field is
measured in every step, by one more evaluation some hundred units in the last place away, and taken off δ.

**Krylov spaces.** φ_k(chJ) v ≈ ‖v‖ V φ_k(ch VᵀJV) e₁, from Lanczos with full re-orthogonalization (twice), at every
c and k from one space. A space too small never sees the growing direction of a saddle and loses an escape without a
trace, so its dimension m is not fixed. It grows until the residual of x' = J x + v, x(0) = 0, at x = V x_m,

    max over c of  (c h)² β_m |e_mᵀ φ₁(c h T) e₁| ‖v‖ · max(1, φ₁(h λ_max(T)))

(Hochbruck, Lubich and Selhofer 1998; the last factor is what an error grows to along an escaping direction)
is below a fraction of the displacement ‖h φ₁(hJ) F₀‖, not of the state. The fraction is 3 % of the relative error
δ / ‖u‖ that recent steps were accepted with, and at most 1e-4: the solver is not told `rtol`, but this is what the
controller made of it. If `max_dim` is reached first, the residual is added to the error estimate, which is zero
only where both are; the step is then shortened. In particular an absent growing direction shows as a residual.

**Dense output.** N(x h) ≈ x² A + x³ B through N₂ and N₃ gives, by variation of constants,

    u(x h) = x h φ₁(xhJ) F₀ + h (2 x³ φ₃(xhJ) A + 6 x⁴ φ₄(xhJ) B),

equal to u at x = 1 and of order 4 in between (stiff order: no polynomial has to follow e^{hλ}). It needs no new space.

**Limits.** Each of the four spaces of a step costs m products and 4 P m² multiplications of orthogonalization. With
clustered growing directions m can approach the number of distinct eigenvalues. Lanczos needs J symmetric, true of
every gradient flow. For a general field say `symmetric=False`: then Arnoldi, and a dense matrix exponential (Al-Mohy
and Higham 2011, theorem 2.1) instead of an eigendecomposition; a Jacobian that turns out not to be symmetric raises an
error that says so, before it gives a wrong result. A field that depends on t is evaluated at the time of each stage,
without the term in ∂F/∂t: the result is right, the order is lower.

Reference:
    Luan and Ostermann (2014), Exponential Rosenbrock methods of order five: construction, analysis and numerical
    comparisons, J. Comput. Appl. Math. 255, 417–431.
    Hochbruck, Ostermann and Schweitzer (2009), Exponential Rosenbrock-type methods, SIAM J. Numer. Anal. 47, 786–803.
    Hochbruck, Lubich and Selhofer (1998), Exponential integrators for large systems of differential equations, SIAM
    J. Sci. Comput. 19, 1552–1574.
    Al-Mohy and Higham (2011), Computing the action of the matrix exponential, SIAM J. Sci. Comput. 33, 488–511.
"""

from typing import ClassVar, NamedTuple

import diffrax as dfx
import equinox as eqx
from jaxtyping import Float, Int

from ..arrays import Array, cond, is_host, namespace
from ._krylov_space import NODES, KrylovSpace, krylov_space
from ._rounding import Rounding, carried, none_yet, step_rounding
from ._vector import above_rounding, evaluate, flatten, nudge
from .base import AbstractFlowSolver
from .interpolation import PathInterpolation

_SHARE = 0.03  # of the relative error of recent steps, left to the Krylov spaces
_LOOSEST = 1e-4  # relative error of a Krylov space
_TIGHTEST = 0.7  # the same: power of the machine epsilon
_DECAY = 0.5  # of the memory of relative errors

_NOT_SYMMETRIC = (
    "`KrylovExponential` expects a symmetric Jacobian, as that of a gradient flow, and this vector field has another: "
    "use `KrylovExponential(symmetric=False)`."
)


class ContinuousExtension(NamedTuple):
    """Dense output of `KrylovExponential`: y₀ + u(xh) by variation of constants, of order 4 at every stiffness."""

    y0: Float[Array, " P"]
    h: Float[Array, ""]
    spaces: tuple[KrylovSpace, KrylovSpace, KrylovSpace]  # of F₀, N₂ and N₃

    def __call__(self, x: Float[Array, ""]) -> Float[Array, " P"]:
        """The solution at a share x of the step."""
        (f1, *_), (_, _, p3, p4), (_, _, q3, q4) = (space.phi(x * self.h) for space in self.spaces)
        cubic, quartic = 18 * p3 - 250 / 81 * q3, 500 / 27 * q4 - 60 * p4
        return self.y0 + x * self.h * (f1 + x**2 * cubic + x**3 * quartic)


class KrylovState(NamedTuple):
    """What the solver carries from step to step."""

    field: Float[Array, " P"]  # F at the current point
    relative_error: Float[Array, ""]  # δ / ‖u‖ of recent steps
    dims: Int[Array, " 4"]  # of the spaces of F₀, N₂, N₃ and the error: where to look at the residual first
    num_gradients: Int[Array, ""]  # evaluations of the field in the step that made this state
    num_products: Int[Array, ""]  # Jacobian–vector products in it
    rounding: Rounding


class KrylovExponential(AbstractFlowSolver):
    """Exponential Rosenbrock method of order 5, with Krylov spaces as large as their residual asks for.

    For `diffrax.diffeqsolve` as well: any vector field on a pytree of floating-point arrays. A step costs four
    evaluations of the field and, for each of four spaces, as many Jacobian–vector products as it has dimensions.

    Attributes:
        max_dim: largest dimension of a Krylov space; memory is 3 `max_dim` vectors. Too small a value shortens steps.
        symmetric: whether the Jacobian is symmetric, as that of every gradient flow is.
    """

    max_dim: int = eqx.field(static=True, default=40)
    symmetric: bool = eqx.field(static=True, default=True)

    term_structure: ClassVar = dfx.AbstractTerm
    interpolation_cls: ClassVar = PathInterpolation
    runs_on_host: ClassVar = True
    halves: ClassVar = True
    keeps_small: ClassVar = False

    def __check_init__(self):
        """Refuses a dimension below one."""
        if self.max_dim < 1:
            raise ValueError(f"`KrylovExponential(max_dim=...)` must be at least 1; got {self.max_dim}.")

    def order(self, terms):
        """5, estimated by comparison with order 4."""
        del terms
        return 5

    @property
    def label(self) -> str:
        """Its name."""
        return "KrylovExponential"

    def init(self, terms, t0, t1, y0, args):
        """Evaluates the field, and asks for a relative accuracy of 1e-6 to begin with."""
        del t1
        y, field, _, _ = flatten(terms, y0, args)
        xp = namespace(y)
        none = xp.asarray(0)
        return KrylovState(field(t0, y), xp.asarray(1e-6, y.dtype), xp.zeros(4, int), none, none, none_yet(y))

    def step(self, terms, t0, t1, y0, args, solver_state, made_jump):
        """One step of exprb53s3 and its comparison with order 4."""
        y, field, jacobian, unravel = flatten(terms, y0, args)
        xp = namespace(y)
        h = xp.asarray(t1 - t0, y.dtype)
        field0 = cond(made_jump, lambda: field(t0, y), lambda: solver_state.field)
        product = jacobian(t0, y).times

        def remainder(c, u):
            return field(t0 + c * (t1 - t0), y + u) - field0 - product(u)

        def space_of(i, vector, allowed):
            return krylov_space(product, vector, h, allowed, solver_state.dims[i], self.max_dim, self.symmetric)

        share = xp.clip(_SHARE * solver_state.relative_error, float(xp.finfo(y.dtype).eps) ** _TIGHTEST, _LOOSEST)
        first = space_of(0, field0, lambda length: share * length)
        field0 = _if_symmetric(field0, first.skewed)
        half, most, whole = (c * h * first.space.phi(c * h)[0] for c in NODES)
        allowed = share * xp.linalg.norm(whole)
        n2 = remainder(0.5, half)
        second = space_of(1, n2, lambda _: allowed)
        at_half, at_most, (_, _, p3, p4) = (second.space.phi(c * h) for c in NODES)
        n3 = remainder(0.9, most + h * (27 / 25 * at_half[2] + 729 / 125 * at_most[2]))
        third = space_of(2, n3, lambda _: allowed)
        _, _, q3, q4 = third.space.phi(h)
        u = whole + h * (18 * p3 - 60 * p4 - 250 / 81 * q3 + 500 / 27 * q4)
        field1 = field(t1, y + u)
        n4 = field1 - field0 - product(u)
        last = space_of(3, n2 - 125 / 81 * n3 + n4, lambda _: allowed)
        _, _, e3, e4 = last.space.phi(h)
        delta = nudge(y)
        noise = field(t0, y + delta) - field0 - product(delta)
        modes, pull = first.space.modes(h), product(solver_state.rounding.displacement)
        difference = above_rounding(h * (2 * e3 - 12 * e4), step_rounding(noise, modes, h))

        searches = first, second, third, last
        size, moved = xp.linalg.norm(difference), xp.linalg.norm(u)
        relative = xp.where(moved > 0, size / xp.where(moved > 0, moved, 1), 0)
        residual = sum(search.residual for search in searches)
        # |·|: residual and δ add up, and do not cancel
        error = xp.abs(difference) + residual / xp.sqrt(xp.asarray(y.size, y.dtype))
        state = KrylovState(
            field=field1,
            relative_error=xp.maximum(relative, _DECAY * solver_state.relative_error),
            dims=xp.stack([search.next_dim for search in searches]),
            num_gradients=xp.asarray(4),
            num_products=sum((search.dim for search in searches), start=xp.asarray(5)),
            rounding=carried(solver_state.rounding, pull, noise, y, field0, modes, h),
        )
        return (
            unravel(y + u),
            unravel(error),
            dict(y0=y0, path=ContinuousExtension(y, h, (first.space, second.space, third.space))),
            state,
            dfx.RESULTS.successful,
        )

    def func(self, terms, t0, y0, args):
        """The vector field itself."""
        return evaluate(terms, t0, y0, args)

    def cost(self, state):
        """Counted by the state."""
        return state.num_gradients, state.num_products

    def path(self, t0, t1, dense_info):
        """Variation of constants."""
        del t0, t1
        return dense_info["path"]

    def strained(self, state):
        """Always: no direction is left out, but another method may need fewer products."""
        return namespace(state.num_products).asarray(True)


def _if_symmetric(field0: Float[Array, " P"], skewed: Array) -> Float[Array, " P"]:
    """The field, unless the Jacobian turned out not to be symmetric."""
    if not is_host(skewed):
        return eqx.error_if(field0, skewed, _NOT_SYMMETRIC)
    if skewed:
        raise RuntimeError(_NOT_SYMMETRIC)
    return field0
