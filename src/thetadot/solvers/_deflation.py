"""The outlying eigenspace of a Jacobian."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from ..arrays import Array, cond, fori_loop, is_host, namespace, while_loop
from ._vector import alike

_STARTING_ITERATIONS = 8  # of the block power method, before the first step
_PASSES = 4  # of Cholesky QR at most
_ORTHOGONAL = 2 / 3  # VᵀV − I of the size ε_machine to this power is good enough: far below any tolerance
_NEW = 0.01  # of a column that a basis leaves of it, at least: less is rounding, which large rows put into small ones
_DIAGONAL = 0.01  # h ‖VᵀJV − diag‖ below which the basis is kept as it is: a fifth-order method leaves 1e-10 of it
_SMALL_RANK = 8  # whose rotation costs no more than the question whether it is needed


class Deflation(NamedTuple):
    """A = V diag(μ) Vᵀ, the deflated part of the Jacobian J, with the image J V; μ is the diagonal of VᵀJV."""

    vectors: Float[Array, "P k"]
    rates: Float[Array, " k"]
    image: Float[Array, "P k"]


Block = Float[Array, "P k"]
Product = Callable[[Float[Array, "P K"]], Float[Array, "P K"]]


def starting_block(product: Product, y: Float[Array, " P"], field: Float[Array, " P"], rank: int) -> Block:
    """A block whose span is near that of the outlying eigenvectors: some power iterations from a fixed one."""

    def fill():
        return alike(y, field, min(rank, y.size), seed=0)

    return fori_loop(0, _STARTING_ITERATIONS, lambda _, block: product(orthonormal(block, fill)), fill())


def rayleigh_ritz(
    product: Product, block: Block, fill: Callable[[], Block], others: Float[Array, "P K"], h: Float[Array, ""]
) -> tuple[Deflation, Float[Array, "P K"]]:
    """Ritz pairs of the Jacobian J in the span of `block`, and J `others` from the same product.

    A block that was an image of Ritz vectors stays close to Ritz vectors, by orthogonal iteration. Where its projection
    is diagonal on the scale of a step h, a large one is not rotated: that would take longer than all else.
    """
    xp = namespace(block)
    basis = orthonormal(block, fill)
    images = product(xp.concatenate([basis, others], axis=1))
    image, images = images[:, : basis.shape[1]], images[:, basis.shape[1] :]
    projected = basis.T @ image
    projected = (projected + projected.T) / 2
    rates = xp.diagonal(projected)

    def rotated():
        rates, rotation = eigh(projected)
        return Deflation(basis @ rotation, rates, image @ rotation)

    if rates.size <= _SMALL_RANK:
        return rotated(), images
    diagonal = h * xp.linalg.norm(projected - xp.diag(rates)) <= _DIAGONAL
    return cond(diagonal, lambda: Deflation(basis, rates, image), rotated), images


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


def orthonormal(block: Block, fill: Callable[[], Block]) -> Block:
    """An orthonormal basis of the columns.

    Columns that are zero, or depend on the others, are replaced by those of `fill()`, and are zero where these bring
    nothing new either: then the space that the flow can reach is exhausted.

    All is done by combinations of columns: coordinates that are equal in each column, opposite or zero stay so to the
    last bit, which Householder's reflections do not grant. So these are passes of Cholesky QR with a shift (Fukaya et
    al. 2020, SIAM J. Sci. Comput. 42), one from a good basis and more from a bad one. They touch the tall block by
    products of matrices only, which wait for nobody: LAPACK's threads and XLA's wait for each other on a busy machine.
    """
    xp = namespace(block)
    eps = float(xp.finfo(block.dtype).eps)
    shift, enough = 1e3 * eps, eps**_ORTHOGONAL
    eye = xp.eye(block.shape[1], dtype=block.dtype)

    def improve(carry):
        block, _, passes, _ = carry
        lower = _cholesky(block.T @ block + shift * eye)
        inverse = _inverse(lower)
        far = xp.linalg.norm(inverse - eye)
        left = shift * far * (2 + far)  # bounds the angles that the shift leaves: VᵀV = I − shift L⁻¹L⁻ᵀ
        independent = xp.min(xp.diagonal(lower)) > 2 * shift**0.5  # what depends on the others has √shift, each time
        return _unit_columns(block @ inverse.T), left, passes + 1, independent

    def unfinished(carry):
        _, left, passes, independent = carry
        return (independent | (passes < 2)) & (passes < _PASSES) & ~(left <= enough)

    start = _unit_columns(block), xp.full_like(block[0, 0], xp.inf), xp.asarray(0), xp.asarray(True)
    basis, left, *_ = while_loop(unfinished, improve, start)
    return cond(left <= enough, lambda: basis, lambda: _completed(block, fill()))


def _completed(block: Block, fill: Block) -> Block:
    """A basis of what spans more than the square root of rounding, with columns of `fill` in the places left."""
    xp, basis, fill = namespace(block), _spanning(_unit_columns(block)), _unit_columns(fill)
    for _ in range(2):
        fill = fill - basis @ (basis.T @ fill)
    fill = xp.where((xp.linalg.norm(fill, axis=0) > _NEW)[None], fill, 0)
    missing = ~xp.any(basis != 0, axis=0)
    return _spanning(_spanning(_unit_columns(xp.where(missing[None], fill, basis))))


def _spanning(block: Block) -> Block:
    """By eigenvectors of the Gram matrix (Stathopoulos and Wu 2002, SISC 23); zero where it has none."""
    xp = namespace(block)
    squares, rotation = eigh(block.T @ block)
    good = squares > 1e3 * float(xp.finfo(block.dtype).eps) * xp.max(squares)
    return block @ (rotation * xp.where(good, 1 / xp.sqrt(xp.where(good, squares, 1)), 0)[None])


def _unit_columns(block: Block) -> Block:
    xp = namespace(block)
    size = xp.linalg.norm(block, axis=0)
    return block / xp.where(size > 0, size, 1)[None]


def _cholesky(gram: Float[Array, "k k"]) -> Float[Array, "k k"]:
    """L with G = LLᵀ; NaN where there is none."""
    if not is_host(gram):
        return jnp.linalg.cholesky(gram)
    try:
        return np.linalg.cholesky(gram)
    except np.linalg.LinAlgError:
        return np.full_like(gram, np.nan)


def _inverse(lower: Float[Array, "k k"]) -> Float[Array, "k k"]:
    if is_host(lower):
        return np.linalg.inv(lower)
    return jax.scipy.linalg.solve_triangular(lower, jnp.eye(len(lower), dtype=lower.dtype), lower=True)
