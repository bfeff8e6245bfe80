"""The outlying eigenspace of a Jacobian."""

from collections.abc import Callable

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
from jaxtyping import Array, Float

_STARTING_ITERATIONS = 8  # of the block power method, before the first step
_PASSES = 4  # of Cholesky QR at most
_ORTHOGONAL = 2 / 3  # VᵀV − I of the size ε_machine to this power is good enough: far below any tolerance
_LAPACK_THREADS = 9216  # entries of a matrix from which OpenBLAS starts threads


class Deflation(eqx.Module):
    """A = V diag(μ) Vᵀ, the deflated part of the Jacobian J, with the image J V."""

    vectors: Float[Array, "P k"]
    rates: Float[Array, " k"]
    image: Float[Array, "P k"]


Product = Callable[[Float[Array, "P K"]], Float[Array, "P K"]]


def starting_block(product: Product, num_params: int, rank: int, dtype) -> Float[Array, "P k"]:
    """A block whose span is near that of the outlying eigenvectors: some power iterations from a fixed random one."""
    block = jr.normal(jr.key(0), (num_params, min(rank, num_params)), dtype)
    return jax.lax.fori_loop(0, _STARTING_ITERATIONS, lambda _, block: product(orthonormal(block)), block)


def rayleigh_ritz(
    product: Product, block: Float[Array, "P k"], vector: Float[Array, " P"]
) -> tuple[Deflation, Float[Array, " P"]]:
    """Ritz pairs of the Jacobian J in the span of `block`, and J `vector` from the same product."""
    basis = orthonormal(block)
    images = product(jnp.concatenate([basis, vector[:, None]], axis=1))
    image = images[:, :-1]
    projected = basis.T @ image
    rates, rotation = jnp.linalg.eigh((projected + projected.T) / 2)
    return Deflation(basis @ rotation, rates, image @ rotation), images[:, -1]


@jax.jit
def orthonormal(block: Float[Array, "P k"]) -> Float[Array, "P k"]:
    """An orthonormal basis of the columns; a column that is zero or depends on the others is replaced by noise.

    Householder QR while the block is small. Beyond that passes of Cholesky QR with a shift (Fukaya et al. 2020,
    SIAM J. Sci. Comput. 42), three from a bad basis and one from a good one, which touch the tall block by matrix
    products only: LAPACK's threads and XLA's wait for each other on a busy machine, and a QR of 640 × 16 inside a
    compiled loop was 30 times slower than alone.
    """
    if block.size < _LAPACK_THREADS:
        return jnp.linalg.qr(block)[0]
    noise = jr.normal(jr.key(1), block.shape, block.dtype)
    eye = jnp.eye(block.shape[1], dtype=block.dtype)
    shift = 1e3 * jnp.finfo(block.dtype).eps

    def gram_of(block):
        return block.T @ block

    def improve(carry):
        block, gram, passes = carry
        lower = jnp.linalg.cholesky(gram + shift * eye)
        block = unit_columns(block @ jax.scipy.linalg.solve_triangular(lower, eye, lower=True).T)
        return block, gram_of(block), passes + 1

    def unit_columns(block):
        size = jnp.linalg.norm(block, axis=0)
        return jnp.where(size[None] > 0, block, noise) / jnp.where(size > 0, size, jnp.linalg.norm(noise, axis=0))[None]

    def unfinished(carry):
        _, gram, passes = carry
        return (passes < _PASSES) & (jnp.max(jnp.abs(gram - eye)) > jnp.finfo(block.dtype).eps ** _ORTHOGONAL)

    block = unit_columns(block)
    return jax.lax.while_loop(unfinished, improve, (block, gram_of(block), 0))[0]
