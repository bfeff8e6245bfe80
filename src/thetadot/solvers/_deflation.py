"""The outlying eigenspace of a Jacobian."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from ..arrays import Array, cond, fori_loop, is_host, namespace
from ._vector import scrambled

_STARTING_ITERATIONS = 8  # of the block power method, before the first step
_PASSES = 4  # of Cholesky QR at most
_ORTHOGONAL = 2 / 3  # VᵀV − I of the size ε_machine to this power is good enough: far below any tolerance
_DIAGONAL = 0.01  # h ‖VᵀJV − diag‖ below which the basis is kept as it is: a fifth-order method leaves 1e-10 of it
_SMALL_RANK = 8  # whose rotation costs no more than the question whether it is needed
_LAPACK_THREADS = 9216  # entries of a matrix from which OpenBLAS starts threads


class Deflation(NamedTuple):
    """A = V diag(μ) Vᵀ, the deflated part of the Jacobian J, with the image J V; μ is the diagonal of VᵀJV."""

    vectors: Float[Array, "P k"]
    rates: Float[Array, " k"]
    image: Float[Array, "P k"]


Product = Callable[[Float[Array, "P K"]], Float[Array, "P K"]]


def starting_block(product: Product, y: Float[Array, " P"], rank: int) -> Float[Array, "P k"]:
    """A block whose span is near that of the outlying eigenvectors: some power iterations from a fixed one."""
    block = scrambled(y, (y.size, min(rank, y.size)), seed=0)
    return fori_loop(0, _STARTING_ITERATIONS, lambda _, block: product(orthonormal(block)), block)


def rayleigh_ritz(
    product: Product, block: Float[Array, "P k"], vector: Float[Array, " P"], h: Float[Array, ""]
) -> tuple[Deflation, Float[Array, " P"]]:
    """Ritz pairs of the Jacobian J in the span of `block`, and J `vector` from the same product.

    A block that was an image of Ritz vectors stays close to Ritz vectors, by orthogonal iteration. Where its projection
    is diagonal on the scale of a step h, a large one is not rotated: that would take longer than all else.
    """
    xp = namespace(block)
    basis = orthonormal(block)
    images = product(xp.concatenate([basis, vector[:, None]], axis=1))
    image = images[:, :-1]
    projected = basis.T @ image
    projected = (projected + projected.T) / 2
    rates = xp.diagonal(projected)

    def rotated():
        rates, rotation = eigh(projected)
        return Deflation(basis @ rotation, rates, image @ rotation)

    if rates.size <= _SMALL_RANK:
        return rotated(), images[:, -1]
    diagonal = h * xp.linalg.norm(projected - xp.diag(rates)) <= _DIAGONAL
    return cond(diagonal, lambda: Deflation(basis, rates, image), rotated), images[:, -1]


def eigh(matrix: Float[Array, "k k"]) -> tuple[Float[Array, " k"], Float[Array, "k k"]]:
    """Eigenvalues and vectors of a symmetric matrix; NaN for one that is not finite, in either namespace."""
    if not is_host(matrix):
        return jnp.linalg.eigh(matrix)
    try:
        values, vectors = np.linalg.eigh(matrix) if np.all(np.isfinite(matrix)) else (None, None)
    except np.linalg.LinAlgError:  # it did not converge
        values = vectors = None
    if values is None or vectors is None:
        return np.full_like(matrix[0], np.nan), np.full_like(matrix, np.nan)
    return values, vectors


def orthonormal(block: Float[Array, "P k"]) -> Float[Array, "P k"]:
    """An orthonormal basis of the columns; a column that is zero or depends on the others is replaced by another."""
    if not is_host(block):
        return _orthonormal(block)
    return np.linalg.qr(block)[0] if np.all(np.isfinite(block)) else np.full_like(block, np.nan)


@jax.jit
def _orthonormal(block: Float[Array, "P k"]) -> Float[Array, "P k"]:
    """`orthonormal` under a compiler.

    Householder QR while the block is small. Beyond that passes of Cholesky QR with a shift (Fukaya et al. 2020,
    SIAM J. Sci. Comput. 42), three from a bad basis and one from a good one, which touch the tall block by matrix
    products only: LAPACK's threads and XLA's wait for each other on a busy machine, and a QR of 640 × 16 inside a
    compiled loop was 30 times slower than alone.
    """
    if block.size < _LAPACK_THREADS:
        return jnp.linalg.qr(block)[0]
    noise = scrambled(block, block.shape, seed=1)
    eye = jnp.eye(block.shape[1], dtype=block.dtype)
    shift = jnp.asarray(1e3 * jnp.finfo(block.dtype).eps, block.dtype)

    def improve(carry):
        block, _, passes = carry
        lower = jnp.linalg.cholesky(block.T @ block + shift * eye)
        inverse = jax.scipy.linalg.solve_triangular(lower, eye, lower=True)
        far = jnp.linalg.norm(inverse - eye)
        left = shift * far * (2 + far)  # bounds the angles that the shift leaves: VᵀV = I − shift L⁻¹L⁻ᵀ
        return unit_columns(block @ inverse.T), left, passes + 1

    def unit_columns(block):
        size = jnp.linalg.norm(block, axis=0)
        return jnp.where(size[None] > 0, block, noise) / jnp.where(size > 0, size, jnp.linalg.norm(noise, axis=0))[None]

    def unfinished(carry):
        _, left, passes = carry
        return (passes < _PASSES) & ~(left <= jnp.finfo(block.dtype).eps ** _ORTHOGONAL)

    block = unit_columns(block)
    return jax.lax.while_loop(unfinished, improve, (block, jnp.full_like(shift, jnp.inf), 0))[0]
