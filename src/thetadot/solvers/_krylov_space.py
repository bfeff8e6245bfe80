"""Krylov spaces for the φ-functions of a large matrix, as large as their residual asks for."""

from collections.abc import Callable

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from ._phi import phi_functions
from ._vector import step_rounding

NODES = (0.5, 0.9, 1.0)  # fractions c of the step at which φ_k(chJ) is asked for

_STRIDE = 3  # dimensions added between two looks at the residual
_AMPLE = 0.03  # a residual this much below its bound: one dimension less next time
_INVARIANT = 100  # β in units of ε_machine ‖J‖ that is taken for zero
_SKEW = 0.01  # antisymmetric share of a Jacobian that is surely not rounding


class KrylovSpace(eqx.Module):
    """φ_k(sJ) v for every s and k ≤ 4: ‖v‖ V R φ_k(s · small) R⁻¹ e₁."""

    basis: Float[Array, "M P"]  # the rows are the columns of V; zero from dimension m on
    small: Float[Array, " M"] | Float[Array, "M M"]  # eigenvalues of VᵀJV, or VᵀJV itself where it is not symmetric
    rotation: Float[Array, "M M"] | None  # its eigenvectors R
    length: Float[Array, ""]  # ‖v‖

    def rounding(self, noise: Float[Array, " P"], h) -> Float[Array, ""]:
        """`step_rounding` with the eigenvectors found here; without any where J is not symmetric."""
        if self.rotation is None:
            return step_rounding(noise, jnp.zeros((noise.size, 1), noise.dtype), jnp.zeros(1, noise.dtype), h)
        return step_rounding(noise, self.basis.T @ self.rotation, self.small, h)

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


class Search(eqx.Module):
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
    max_dim = min(max_dim, vector.size)
    eps = jnp.finfo(vector.dtype).eps
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
        hessenberg = hessenberg.at[:max_dim, m].set(column + correction)
        # The rest is rounding: the space is invariant, and to normalize the rest would lose orthogonality.
        beta = jnp.where(beta <= _INVARIANT * eps * jnp.max(jnp.abs(hessenberg)), 0, beta)
        hessenberg = hessenberg.at[m + 1, m].set(beta)
        return m + 1, basis, hessenberg, jnp.where(beta > 0, w / jnp.where(beta > 0, beta, 1), 0)

    def unfinished(carry):
        (m, *_), _, residual, bound, _ = carry
        return (m < max_dim) & (residual > bound)

    def body(carry):
        lanczos, *_ = carry
        goal = jnp.minimum(jnp.maximum(dim, lanczos[0] + _STRIDE), max_dim)
        lanczos = jax.lax.while_loop(lambda carry: carry[0] < goal, extend, lanczos)
        m, basis, hessenberg, _ = lanczos
        space, residual, moved, skewed = _project(basis, hessenberg, m, length, h, symmetric)
        return lanczos, space, residual, allowed(moved), skewed

    basis = jnp.zeros((max_dim, vector.size), vector.dtype)
    lanczos = jnp.array(0), basis, jnp.zeros((max_dim + 1, max_dim), vector.dtype), start
    empty = jnp.zeros((max_dim, max_dim), vector.dtype)
    space = KrylovSpace(basis, empty[0] if symmetric else empty, empty if symmetric else None, length)
    carry = lanczos, space, jnp.full_like(h, jnp.inf), jnp.zeros_like(h), jnp.array(False)
    (m, *_), space, residual, bound, skewed = jax.lax.while_loop(unfinished, body, carry)
    next_dim = jnp.where(residual < _AMPLE * bound, m - 1, m)
    return Search(space, residual, m, next_dim, skewed)


def _project(basis, hessenberg, m, length, h, symmetric: bool):
    """The space with its small matrix decomposed; its residual; the length of h φ₁(hJ)v in it; whether J is skewed."""
    max_dim = basis.shape[0]
    finite = jnp.all(jnp.isfinite(hessenberg)) & jnp.isfinite(length)
    beta, inside = hessenberg[m, m - 1], jnp.arange(max_dim) < m
    square = jnp.where(finite & inside[:, None], hessenberg[:max_dim], 0)  # without β_m; eigh of NaN may never end
    small, rotation = _eigh((square + square.T) / 2, m) if symmetric else (square, None)
    space = KrylovSpace(basis, small, rotation, length)
    weights = jnp.stack([space.coordinates(c * h)[0] for c in NODES])
    residual = beta * jnp.max(jnp.abs(weights[:, m - 1]) * jnp.asarray(NODES, h.dtype) ** 2)
    skewed = jnp.array(False)
    if symmetric:
        residual = residual * jnp.maximum(1, phi_functions(h * jnp.max(small))[0])
        size = jnp.linalg.norm(square)
        skewed = (jnp.linalg.norm(square - square.T) > _SKEW * size) & (h * size > _SKEW)
    residual = jnp.where(finite, h**2 * length * residual, jnp.inf)
    return space, residual, h * length * jnp.linalg.norm(weights[-1]), skewed


def _eigh(matrix: Float[Array, "M M"], m: Int[Array, ""]) -> tuple[Float[Array, " M"], Float[Array, "M M"]]:
    """Eigenvalues and vectors of a matrix that is zero beyond its leading m × m block.

    A quarter or half of the matrix is decomposed where that holds the block: the cost grows like its cube.
    """
    full = matrix.shape[0]
    sizes = sorted({-(-full // 4), -(-full // 2), full})

    def decompose(size):
        values, vectors = jnp.linalg.eigh(matrix[:size, :size])
        return jnp.pad(values, (0, full - size)), jnp.eye(full, dtype=matrix.dtype).at[:size, :size].set(vectors)

    return jax.lax.switch(jnp.sum(m > jnp.array(sizes)), [lambda size=size: decompose(size) for size in sizes])
