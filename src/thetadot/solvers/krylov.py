r"""Exponential Rosenbrock method of order 5 with Krylov spaces: the whole Jacobian, at the price of products with it.

**Why.** Some flows have a stiff subspace too large to deflate, but with few distinct eigenvalues (a deep linear network
of width d that has learned r modes: r(2d − r) outliers, about r² of them different). A Krylov space needs one dimension
for each *distinct* one. Here the Jacobian J = −H at the start of the step is taken exactly, so the step is limited by
the change of J alone.

**Method.** With F = −∇L, F₀ = F(y₀) and N(u) = F(y₀ + u) − F₀ − J u = O(‖u‖²), the method exprb53s3 of Luan and
Ostermann (2014, sec. 5.1), nodes ½, 9/10 and stiff order 5:

    U₂ = ½ h φ₁(½hJ) F₀                                                                           N₂ = N(U₂)
    U₃ = 9/10 h φ₁(9/10 hJ) F₀ + h (27/25 φ₃(½hJ) + 729/125 φ₃(9/10 hJ)) N₂                      N₃ = N(U₃)
    u  = h φ₁(hJ) F₀ + h (18 φ₃ − 60 φ₄)(hJ) N₂ + h (−250/81 φ₃ + 500/27 φ₄)(hJ) N₃.

**Error.** The weights 16 φ₃ − 48 φ₄ and −2 φ₃ + 12 φ₄ on the nodes ½ and 1 (those of exprb43, Hochbruck, Ostermann and
Schweitzer 2009, eq. (5.6)) give a method of stiff order 4, and N₄ = N(u) costs nothing, since F(y₀ + u) starts the next
step. Its difference to u is

    δ = h (2 φ₃ − 12 φ₄)(hJ) (N₂ − 125/81 N₃ + N₄) = O(h⁵),

one more Krylov space, of a vector so small that it takes few dimensions. δ bounds the error of the lower method; the
higher one is carried on. The published embedded method of exprb53s3 is one order lower.

**Krylov spaces.** φ_k(chJ) v ≈ ‖v‖ V φ_k(ch VᵀJV) e₁, from Lanczos with full re-orthogonalization (twice), at every
c and k from one space. A space too small never sees the growing direction of a saddle and loses an escape without a
trace, so its dimension m is not fixed. It grows until the residual of x' = J x + v, x(0) = 0, at x = V x_m,

    max over c of  (c h)² β_m |e_mᵀ φ₁(c h T) e₁| ‖v‖ · max(1, φ₁(h λ_max(T)))

(Hochbruck, Lubich and Selhofer 1998, sec. 6.3; the last factor is what an error grows to along an escaping direction)
is below a fraction of the displacement ‖h φ₁(hJ) F₀‖, not of the state. The fraction is 3 % of the relative error
δ / ‖u‖ that recent steps were accepted with, and at most 1e-4: the solver is not told `rtol`, but this is what the
controller made of it. If `max_dim` is reached first, the residual is added to the error estimate, which is zero
only where both are; the step is then shortened. In particular an absent growing direction shows as a residual.

**Dense output.** N(x h) ≈ x² A + x³ B through N₂ and N₃ gives, by variation of constants,

    u(x h) = x h φ₁(xhJ) F₀ + h (2 x³ φ₃(xhJ) A + 6 x⁴ φ₄(xhJ) B),

equal to u at x = 1 and of order 4 in between (stiff order: no polynomial has to follow e^{hλ}). It needs no new space.

**Limits.** Each of the four spaces of a step costs m products and 4 P m² multiplications of orthogonalization. With
clustered growing directions m can approach the number of distinct eigenvalues. Lanczos needs J symmetric, true of every
gradient flow. For a general field say `symmetric=False`: then Arnoldi, and a dense matrix exponential (Al-Mohy and
Higham 2011, theorem 2.1) instead of an eigendecomposition. If the Jacobian is not symmetric and this is not said, the
antisymmetric part that the space shows counts as residual: steps become short, results stay right. A field that depends
on t is evaluated at the time of each stage, without the term in ∂F/∂t: the result is right, the order is lower.

Reference:
    Luan and Ostermann (2014), Exponential Rosenbrock methods of order five: construction, analysis and numerical
    comparisons, J. Comput. Appl. Math. 255, 417–431.
    Hochbruck, Ostermann and Schweitzer (2009), Exponential Rosenbrock-type methods, SIAM J. Numer. Anal. 47, 786–803.
    Hochbruck, Lubich and Selhofer (1998), Exponential integrators for large systems of differential equations, SIAM
    J. Sci. Comput. 19, 1552–1574.
    Al-Mohy and Higham (2011), Computing the action of the matrix exponential, SIAM J. Sci. Comput. 33, 488–511.
"""

from collections.abc import Callable
from typing import ClassVar

import diffrax as dfx
import equinox as eqx
import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float, Int, PyTree

from ._phi import phi_functions

_NODES = (0.5, 0.9, 1.0)
_SHARE = 0.03  # of the relative error of recent steps, left to the Krylov spaces
_LOOSEST = 1e-4  # relative error of a Krylov space
_TIGHTEST = 1e3  # the same, in units of the machine epsilon
_AMPLE = 0.03  # a residual this much below its bound: one dimension less next time
_STRIDE = 3  # dimensions added between two looks at the residual


class KrylovSpace(eqx.Module):
    """φ_k(sJ) v for every s and k ≤ 4: ‖v‖ V R φ_k(s · small) R⁻¹ e₁."""

    basis: Float[Array, "M P"]  # the rows are the columns of V; zero from dimension m on
    small: Float[Array, " M"] | Float[Array, "M M"]  # eigenvalues of VᵀJV, or VᵀJV itself where it is not symmetric
    rotation: Float[Array, "M M"] | None  # its eigenvectors R
    length: Float[Array, ""]  # ‖v‖

    def coordinates(self, s) -> Float[Array, "4 M"]:
        """φ₁, …, φ₄ of s VᵀJV, applied to e₁."""
        if self.rotation is not None:
            return jnp.stack(phi_functions(s * self.small)) * self.rotation[:1] @ self.rotation.T
        size = self.small.shape[0]
        # exp of [[sA, e₁, 0], [0, 0, I], [0, 0, 0]] holds φ₁(sA)e₁, …, φ₄(sA)e₁ in its last columns
        augmented = jnp.zeros((size + 4, size + 4), self.small.dtype)
        augmented = augmented.at[:size, :size].set(s * self.small).at[0, size].set(1)
        augmented = augmented.at[size + jnp.arange(3), size + 1 + jnp.arange(3)].set(1)
        return jax.scipy.linalg.expm(augmented)[:size, size:].T

    def phi(self, s) -> Float[Array, "4 P"]:
        """φ₁(sJ)v, …, φ₄(sJ)v."""
        return self.length * self.coordinates(s) @ self.basis


class ContinuousExtension(dfx.AbstractLocalInterpolation):
    """Dense output of `KrylovExponential`: y₀ + u(xh) by variation of constants, of order 4 at every stiffness."""

    t0: Array
    t1: Array
    y0: PyTree
    spaces: tuple[KrylovSpace, KrylovSpace, KrylovSpace]  # of F₀, N₂ and N₃

    def evaluate(self, t0, t1=None, left=True):
        """The solution at `t0`, or its increment from `t0` to `t1`."""
        del left
        start, unravel = ravel_pytree(self.y0)
        if t1 is not None:
            return unravel(self._displacement(t1, start.dtype) - self._displacement(t0, start.dtype))
        return unravel(start + self._displacement(t0, start.dtype))

    def _displacement(self, t, dtype) -> Float[Array, " P"]:
        h = jnp.asarray(self.t1 - self.t0, dtype)
        x = jnp.asarray(t - self.t0, dtype) / h
        (f1, *_), (_, _, p3, p4), (_, _, q3, q4) = (space.phi(x * h) for space in self.spaces)
        cubic, quartic = 18 * p3 - 250 / 81 * q3, 500 / 27 * q4 - 60 * p4
        return x * h * (f1 + x**2 * cubic + x**3 * quartic)


class KrylovState(eqx.Module):
    """What the solver carries from step to step."""

    field: Float[Array, " P"]  # F at the current point
    relative_error: Float[Array, ""]  # δ / ‖u‖ of recent steps
    dims: Int[Array, " 4"]  # of the spaces of F₀, N₂, N₃ and the error: where to look at the residual first
    num_gradients: Int[Array, ""]  # evaluations of the field in the step that made this state
    num_products: Int[Array, ""]  # Jacobian–vector products in it


class KrylovExponential(dfx.AbstractAdaptiveSolver):
    """Exponential Rosenbrock method of order 5, with Krylov spaces as large as their residual asks for.

    For `diffrax.diffeqsolve` as well: any vector field on a pytree of floating-point arrays. A step costs three
    evaluations of the field and, for each of four spaces, as many Jacobian–vector products as it has dimensions.

    Attributes:
        max_dim: largest dimension of a Krylov space; memory is 3 `max_dim` vectors. Too small a value shortens steps.
        symmetric: whether the Jacobian is symmetric, as that of every gradient flow is.
    """

    max_dim: int = eqx.field(static=True, default=40)
    symmetric: bool = eqx.field(static=True, default=True)

    term_structure: ClassVar = dfx.AbstractTerm
    interpolation_cls: ClassVar = ContinuousExtension

    def __check_init__(self):
        """Refuses a dimension below one."""
        if self.max_dim < 1:
            raise ValueError(f"`KrylovExponential(max_dim=...)` must be at least 1; got {self.max_dim}.")

    def order(self, terms):
        """5, estimated by comparison with order 4."""
        del terms
        return 5

    def init(self, terms, t0, t1, y0, args):
        """Evaluates the field, and asks for a relative accuracy of 1e-6 to begin with."""
        del t1
        y, field, _ = _flatten(terms, y0, args)
        none = jnp.array(0)
        return KrylovState(field(t0, y), jnp.array(1e-6, y.dtype), jnp.zeros(4, int), none, none)

    def step(self, terms, t0, t1, y0, args, solver_state, made_jump):
        """One step of exprb53s3 and its comparison with order 4."""
        y, field, unravel = _flatten(terms, y0, args)
        h = jnp.asarray(t1 - t0, y.dtype)
        field0 = jax.lax.cond(made_jump, lambda: field(t0, y), lambda: solver_state.field)
        _, product = jax.linearize(lambda x: field(t0, x), y)

        def remainder(c, u):
            return field(t0 + c * (t1 - t0), y + u) - field0 - product(u)

        def space_of(i, vector, allowed):
            return krylov_space(product, vector, h, allowed, solver_state.dims[i], self.max_dim, self.symmetric)

        eps = float(jnp.finfo(y.dtype).eps)
        share = jnp.clip(_SHARE * solver_state.relative_error, _TIGHTEST * eps, max(_LOOSEST, _TIGHTEST * eps))
        first, residual1, *size1 = space_of(0, field0, lambda length: share * length)
        half, most, whole = (c * h * first.phi(c * h)[0] for c in _NODES)
        allowed = share * jnp.linalg.norm(whole)
        n2 = remainder(0.5, half)
        second, residual2, *size2 = space_of(1, n2, lambda _: allowed)
        at_half, at_most, (_, _, p3, p4) = (second.phi(c * h) for c in _NODES)
        n3 = remainder(0.9, most + h * (27 / 25 * at_half[2] + 729 / 125 * at_most[2]))
        third, residual3, *size3 = space_of(2, n3, lambda _: allowed)
        _, _, q3, q4 = third.phi(h)
        u = whole + h * (18 * p3 - 60 * p4 - 250 / 81 * q3 + 500 / 27 * q4)
        field1 = field(t1, y + u)
        n4 = field1 - field0 - product(u)
        last, residual4, *size4 = space_of(3, n2 - 125 / 81 * n3 + n4, lambda _: allowed)
        _, _, e3, e4 = last.phi(h)
        delta = h * (2 * e3 - 12 * e4)

        dims, next_dims = jnp.array([size1, size2, size3, size4]).T
        size, moved = jnp.linalg.norm(delta), jnp.linalg.norm(u)
        relative = jnp.where(moved > 0, size / jnp.where(moved > 0, moved, 1), 0)
        residual = residual1 + residual2 + residual3 + residual4
        # |·|: residual and δ add up, and do not cancel
        error = jnp.abs(delta) + residual / jnp.sqrt(jnp.asarray(y.size, y.dtype))
        state = KrylovState(
            field=field1,
            relative_error=jnp.maximum(relative, 0.1 * solver_state.relative_error),
            dims=next_dims,
            num_gradients=jnp.array(3),
            num_products=jnp.sum(dims) + 3,
        )
        return unravel(y + u), unravel(error), dict(y0=y0, spaces=(first, second, third)), state, dfx.RESULTS.successful

    def func(self, terms, t0, y0, args):
        """The vector field itself."""
        return terms.vf(t0, y0, args)


def krylov_space(
    product: Callable[[Array], Array],
    vector: Float[Array, " P"],
    h: Float[Array, ""],
    allowed: Callable[[Array], Array],
    dim: Int[Array, ""],
    max_dim: int,
    symmetric: bool = True,
) -> tuple[KrylovSpace, Float[Array, ""], Int[Array, ""]]:
    """Krylov space of J and v, large enough for h φ_k(chJ) v, c ≤ 1.

    Args:
        product: v -> J v.
        vector: v.
        h: the step.
        allowed: ‖h φ₁(hJ) v‖ -> the residual at which to stop.
        dim: dimension at which to look at the residual for the first time.
        max_dim: largest dimension.
        symmetric: whether J is.

    Returns:
        space; its residual, as a bound on the error of h φ₁(chJ) v; its dimension; where to look first next time.
    """
    max_dim = min(max_dim, vector.size)
    length = jnp.linalg.norm(vector)
    start = vector / jnp.where(length > 0, length, 1)

    def extend(carry):
        m, basis, hessenberg, direction = carry
        basis = basis.at[m].set(direction)
        w = product(direction)
        column = basis @ w
        w = w - column @ basis
        correction = basis @ w
        w = w - correction @ basis
        beta = jnp.linalg.norm(w)
        hessenberg = hessenberg.at[:max_dim, m].set(column + correction).at[m + 1, m].set(beta)
        return m + 1, basis, hessenberg, w / jnp.where(beta > 0, beta, 1)

    def unfinished(carry):
        (m, *_), _, residual, bound = carry
        return (m < max_dim) & (residual > bound)

    def body(carry):
        lanczos, *_ = carry
        goal = jnp.minimum(jnp.maximum(dim, lanczos[0] + _STRIDE), max_dim)
        lanczos = jax.lax.while_loop(lambda carry: carry[0] < goal, extend, lanczos)
        m, basis, hessenberg, _ = lanczos
        space, residual, moved = _project(basis, hessenberg, m, length, h, symmetric)
        return lanczos, space, residual, allowed(moved)

    basis = jnp.zeros((max_dim, vector.size), vector.dtype)
    lanczos = jnp.array(0), basis, jnp.zeros((max_dim + 1, max_dim), vector.dtype), start
    rotation = jnp.zeros((max_dim, max_dim), vector.dtype)
    empty = (
        KrylovSpace(basis, rotation[0], rotation, length) if symmetric else KrylovSpace(basis, rotation, None, length)
    )
    carry = lanczos, empty, jnp.full_like(h, jnp.inf), jnp.zeros_like(h)
    (m, *_), space, residual, bound = jax.lax.while_loop(unfinished, body, carry)
    return space, residual, m, m - (residual < _AMPLE * bound)


def _project(basis, hessenberg, m, length, h, symmetric: bool):
    """The space with its small matrix decomposed; its residual; the length of h φ₁(hJ)v in it."""
    max_dim = basis.shape[0]
    beta, square = hessenberg[m, m - 1], hessenberg[:max_dim]
    finite = jnp.all(jnp.isfinite(hessenberg)) & jnp.isfinite(length)
    square = jnp.where(finite, square, 0)  # eigh of NaN may take for ever
    if symmetric:
        small, rotation = _eigh((square + square.T) / 2, m)
        growth = jnp.max(small)
    else:
        small, rotation = square, None
        growth = jnp.max(jnp.abs(square))
    space = KrylovSpace(basis, small, rotation, length)
    weights = jnp.stack([space.coordinates(c * h)[0] for c in _NODES])
    last = jnp.max(jnp.abs(weights[:, m - 1]) * jnp.asarray(_NODES, h.dtype) ** 2)
    residual = beta * last
    if symmetric:
        skew = jnp.where(jnp.arange(max_dim) < m, (square - square.T) @ weights[-1] / 2, 0)
        residual = residual + jnp.linalg.norm(skew)
        residual = residual * jnp.maximum(1, phi_functions(h * growth)[0])
    residual = jnp.where(finite, h**2 * length * residual, jnp.inf)
    return space, residual, h * length * jnp.linalg.norm(weights[-1])


def _eigh(matrix: Float[Array, "M M"], m: Int[Array, ""]) -> tuple[Float[Array, " M"], Float[Array, "M M"]]:
    """Eigenvalues and vectors of a matrix that is zero beyond its leading m × m block, by the smallest that holds it."""
    full = matrix.shape[0]
    sizes = sorted({-(-full // 4), -(-full // 2), full})

    def decompose(size):
        values, vectors = jnp.linalg.eigh(matrix[:size, :size])
        return jnp.pad(values, (0, full - size)), jnp.eye(full, dtype=matrix.dtype).at[:size, :size].set(vectors)

    return jax.lax.switch(jnp.sum(m > jnp.array(sizes)), [lambda size=size: decompose(size) for size in sizes])


def _flatten(terms, y0, args) -> tuple[Float[Array, " P"], Callable, Callable]:
    """The state as one vector, and the field as a function of time and of it."""
    y, unravel = ravel_pytree(y0)
    return y, lambda t, x: ravel_pytree(terms.vf(t, unravel(x), args))[0], unravel
