"""Krylov spaces for the φ-functions of a large matrix, as large as their residual asks for."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import numpy as np
from jaxtyping import Bool, Float, Int

from ..arrays import Array, is_host, namespace, put, switch, while_loop
from ._deflation import eigh
from ._phi import phi_functions
from ._rounding import Modes

NODES = (0.5, 0.9, 1.0)  # fractions c of the step at which φ_k(chJ) is asked for

_STRIDE = 3  # dimensions added between two looks at the residual
_AMPLE = 0.03  # a residual this much below its bound: one dimension less next time
_INVARIANT = 100  # β in units of ε_machine ‖J‖ that is taken for zero
_SKEW = 0.01  # antisymmetric share of a Jacobian that is surely not rounding


class KrylovSpace(NamedTuple):
    """φ_k(sJ) v for every s and k ≤ 4: ‖v‖ V R φ_k(s · small) R⁻¹ e₁."""

    basis: Float[Array, "M P"]  # the rows are the columns of V; zero from dimension m on
    small: Float[Array, " M"] | Float[Array, "M M"]  # eigenvalues of VᵀJV, or VᵀJV itself where it is not symmetric
    rotation: Float[Array, "M M"] | None  # its eigenvectors R
    length: Float[Array, ""]  # ‖v‖

    def modes(self, h) -> Modes:
        """The eigenpairs found here; one of zeros where J is not symmetric."""
        xp = namespace(self.basis)
        if self.rotation is None:
            none = xp.zeros(1, self.basis.dtype)
            return Modes(xp.zeros((self.basis.shape[1], 1), self.basis.dtype), none, none)
        return Modes(self.basis.T @ self.rotation, self.small, phi_functions(h * self.small)[0])

    def coordinates(self, s) -> Float[Array, "4 M"]:
        """φ₁, …, φ₄ of s VᵀJV, applied to e₁."""
        xp = namespace(self.small)
        if self.rotation is not None:
            return xp.stack(phi_functions(s * self.small)) * self.rotation[:1] @ self.rotation.T
        size = self.small.shape[0]
        # exp of [[sA, e₁, 0], [0, 0, I], [0, 0, 0]] holds φ₁(sA)e₁, …, φ₄(sA)e₁ in its last columns
        above = np.eye(size + 4, k=1) * (np.arange(size + 4) >= size)[:, None]
        above[0, size] = 1
        augmented = xp.pad(s * self.small, ((0, 4), (0, 4))) + xp.asarray(above, self.small.dtype)
        return _expm(augmented)[:size, size:].T

    def phi(self, s) -> Float[Array, "4 P"]:
        """φ₁(sJ)v, …, φ₄(sJ)v."""
        return self.length * self.coordinates(s) @ self.basis


def _expm(matrix: Float[Array, "M M"]) -> Float[Array, "M M"]:
    if not is_host(matrix):
        return jax.scipy.linalg.expm(matrix)
    import scipy.linalg  # a tenth of a second, for fields that are no gradients

    return scipy.linalg.expm(matrix)


class Search(NamedTuple):
    """What the search for a Krylov space found."""

    space: KrylovSpace
    residual: Float[Array, ""]  # bounds the error of h φ₁(chJ) v, c ≤ 1
    dim: Int[Array, ""]
    next_dim: Int[Array, ""]  # where to look at the residual first in the next step
    skewed: Bool[Array, ""]  # whether J is not symmetric, where it was said to be


def krylov_space(
    product: Callable[[Array], Array],
    vector: Float[Array, " P"],
    h: Float[Array, ""],
    allowed: Callable[[Array], Array],
    dim: Int[Array, ""],
    max_dim: int,
    symmetric: bool = True,
) -> Search:
    """Krylov space of J and v, large enough for h φ_k(chJ) v, c ≤ 1, by Lanczos (or Arnoldi).

    Args:
        product: v -> J v.
        vector: v.
        h: the step.
        allowed: ‖h φ₁(hJ) v‖ -> the residual at which to stop.
        dim: dimension at which to look at the residual for the first time.
        max_dim: largest dimension.
        symmetric: whether J is.
    """
    xp, max_dim = namespace(vector), min(max_dim, vector.size)
    eps = float(xp.finfo(vector.dtype).eps)
    length = xp.linalg.norm(vector)
    start = vector / xp.where(length > 0, length, 1)

    def extend(carry):
        m, basis, columns, direction = carry
        basis = put(basis, m, direction)
        w = product(direction)
        column = basis @ w
        w = w - column @ basis
        correction = basis @ w
        w = w - correction @ basis
        beta = xp.linalg.norm(w)
        above = column + correction
        # The rest is rounding: the space is invariant, and to normalize the rest would lose orthogonality.
        beta = xp.where(beta <= _INVARIANT * eps * xp.maximum(xp.max(xp.abs(columns)), xp.max(xp.abs(above))), 0, beta)
        below = xp.where(xp.arange(max_dim + 1) == m + 1, beta, 0)
        columns = put(columns, m, xp.append(above, xp.zeros(1, beta.dtype)) + below)
        return m + 1, basis, columns, xp.where(beta > 0, w / xp.where(beta > 0, beta, 1), 0)

    def unfinished(carry):
        (m, *_), _, residual, rounding, bound, _ = carry
        return (m < max_dim) & (residual > xp.maximum(bound, rounding))

    def body(carry):
        lanczos, *_ = carry
        goal = xp.minimum(xp.maximum(dim, lanczos[0] + _STRIDE), max_dim)
        lanczos = while_loop(lambda carry: carry[0] < goal, extend, lanczos)
        m, basis, columns, _ = lanczos
        space, residual, rounding, moved, skewed = _project(basis, columns, m, length, h, symmetric)
        return lanczos, space, residual, rounding, allowed(moved), skewed

    basis = xp.zeros((max_dim, vector.size), vector.dtype)
    lanczos = xp.asarray(0), basis, xp.zeros((max_dim, max_dim + 1), vector.dtype), start
    empty = xp.zeros((max_dim, max_dim), vector.dtype)
    space = KrylovSpace(basis, empty[0] if symmetric else empty, empty if symmetric else None, length)
    none = xp.zeros_like(h)
    carry = lanczos, space, xp.full_like(h, xp.inf), none, none, xp.asarray(False)
    (m, *_), space, residual, rounding, bound, skewed = while_loop(unfinished, body, carry)
    next_dim = xp.where(residual < _AMPLE * bound, m - 1, m)
    return Search(space, residual + rounding, m, next_dim, skewed)


def _project(basis, columns, m, length, h, symmetric: bool):
    """The space with its small matrix decomposed; its residual; what rounding leaves; |h φ₁(hJ)v|; whether J is skewed.

    The rounding of J, a matrix E of size ε ‖J‖, leaves ∫ E x(s) ds in directions that J does not damp: beside a
    curvature of 1e14 it is larger than all that these do.
    """
    xp, max_dim, hessenberg = namespace(basis), basis.shape[0], columns.T
    finite = xp.all(xp.isfinite(hessenberg)) & xp.isfinite(length)
    beta, inside = hessenberg[m, m - 1], xp.arange(max_dim) < m
    square = xp.where(finite & inside[:, None], hessenberg[:max_dim], 0)  # without β_m; eigh of NaN may never end
    small, rotation = _eigh((square + square.T) / 2, m) if symmetric else (square, None)
    space = KrylovSpace(basis, small, rotation, length)
    weights = xp.stack([space.coordinates(c * h)[0] for c in NODES])
    residual = beta * xp.max(xp.abs(weights[:, m - 1]) * xp.asarray(NODES, h.dtype) ** 2)
    skewed = xp.asarray(False)
    moved, growth = h * length * xp.linalg.norm(weights[-1]), xp.asarray(1, h.dtype)
    if symmetric:
        growth = xp.maximum(1, phi_functions(h * xp.max(small))[0])
        size = xp.linalg.norm(square)
        skewed = (xp.linalg.norm(square - square.T) > _SKEW * size) & (h * size > _SKEW)
    rounding = h * float(xp.finfo(h.dtype).eps) * xp.max(xp.abs(square)) * moved
    residual = xp.where(finite, h**2 * length * residual, xp.inf)
    return space, growth * residual, growth * rounding, moved, skewed


def _eigh(matrix: Float[Array, "M M"], m: Int[Array, ""]) -> tuple[Float[Array, " M"], Float[Array, "M M"]]:
    """Eigenvalues and vectors of a matrix that is zero beyond its leading m × m block.

    A quarter or half of the matrix is decomposed where that holds the block: the cost grows like its cube.
    """
    xp, full = namespace(matrix), matrix.shape[0]
    sizes = sorted({-(-full // 4), -(-full // 2), full})

    def decompose(size):
        values, vectors = eigh(matrix[:size, :size])
        rest = (xp.arange(full) >= size).astype(matrix.dtype)
        return xp.pad(values, (0, full - size)), xp.pad(vectors, (0, full - size)) + xp.diag(rest)

    return switch(xp.sum(m > xp.asarray(sizes)), [lambda size=size: decompose(size) for size in sizes])
