"""The outlying eigenspace: orthonormal bases of bad blocks, and Ritz pairs with and without a rotation."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from thetadot.solvers import _deflation as deflation
from thetadot.solvers._deflation import orthonormal, rayleigh_ritz
from thetadot.solvers._vector import scrambled

P = 400


def symmetric(rates, seed=0):
    """A matrix with these eigenvalues, and its eigenvectors."""
    vectors, _ = np.linalg.qr(np.random.default_rng(seed).normal(size=(P, P)))
    full = np.zeros(P)
    full[: len(rates)] = rates
    return jnp.asarray(vectors * full @ vectors.T), jnp.asarray(vectors)


def other_columns(block):
    """What takes the place of columns that bring nothing new."""
    return lambda: scrambled(block, block.shape, seed=1)


@pytest.mark.parametrize("rank", [6, 40])
@pytest.mark.parametrize("dtype", [jnp.float64, jnp.float32])
@pytest.mark.parametrize("condition", [1.0, 1e3, 1e7, np.inf])
def test_a_block_of_any_condition_becomes_orthonormal(rank, dtype, condition):
    """The columns lean on one another, down to columns that are zero and columns that repeat."""
    rng = np.random.default_rng(1)
    left, _ = np.linalg.qr(rng.normal(size=(P, rank)))
    right, _ = np.linalg.qr(rng.normal(size=(rank, rank)))
    block = left * np.geomspace(1, 1 / min(condition, 1e7), rank) @ right
    if not np.isfinite(condition):
        block[:, 1], block[:, 2] = 0, block[:, 0]
    given = jnp.asarray(block, dtype)
    basis = np.asarray(orthonormal(given, other_columns(given)), float)
    eps = float(jnp.finfo(dtype).eps)
    assert np.max(np.abs(basis.T @ basis - np.eye(rank))) < 20 * eps ** (2 / 3)
    if condition <= 1e3:
        assert np.linalg.norm(block - basis @ (basis.T @ block)) < 1e3 * eps * np.linalg.norm(block)


@pytest.mark.parametrize("h", [1e-9, 1.0, 1e9])
def test_ritz_pairs_of_a_block_that_spans_the_outliers(h):
    """Turned by a step that is long, left as they are by one that is short: V diag(μ) Vᵀ is J to the same accuracy."""
    rates = np.r_[-np.geomspace(10, 0.1, 20), np.geomspace(0.01, 1, 10)]
    jacobian, vectors = symmetric(rates)
    mixed = vectors[:, :30] @ np.linalg.qr(np.random.default_rng(3).normal(size=(30, 30)))[0]
    ritz, image = rayleigh_ritz(
        lambda block: jacobian @ block, mixed, other_columns(mixed), vectors[:, :1], jnp.asarray(h)
    )
    np.testing.assert_allclose(image, rates[0] * vectors[:, :1], atol=1e-12)
    np.testing.assert_allclose(jacobian @ ritz.vectors, ritz.image, atol=1e-12)
    np.testing.assert_allclose(ritz.vectors.T @ ritz.vectors, np.eye(30), atol=1e-10)
    left = np.asarray(jacobian) - (np.asarray(ritz.vectors) * np.asarray(ritz.rates)) @ np.asarray(ritz.vectors).T
    assert h * np.linalg.norm(left) <= deflation._DIAGONAL if h < 1 else np.linalg.norm(left) < 1e-10
    if h >= 1:
        np.testing.assert_allclose(np.sort(ritz.rates), np.sort(rates), atol=1e-12)


def test_a_basis_that_is_not_rotated_finds_the_eigenvectors_all_the_same():
    """Orthogonal iteration: images of images turn to the outliers one by one, without any rotation."""
    rates = -np.geomspace(1, 1e-6, 30)
    jacobian, _ = symmetric(rates)
    block = jnp.asarray(np.random.default_rng(4).normal(size=(P, 12)))

    def ritz_of(block):
        h = jnp.asarray(1e-9)
        return rayleigh_ritz(lambda x: jacobian @ x, block, other_columns(block), block[:, :1], h)[0]

    def power(_, block):
        return ritz_of(block).image

    block = jax.lax.fori_loop(0, 60, power, block)
    np.testing.assert_allclose(ritz_of(block).rates, rates[:12], rtol=1e-6)


def test_what_is_not_finite_is_not_taken_for_diagonal():
    """A NaN ends in NaN rates, which the error estimate rejects, and not in a basis that looks well."""
    block = jnp.asarray(np.random.default_rng(5).normal(size=(P, 12)))
    ritz, _ = rayleigh_ritz(lambda x: x * jnp.nan, block, other_columns(block), block[:, :1], jnp.asarray(1.0))
    assert np.all(np.isnan(ritz.rates))


@pytest.mark.parametrize("xp", [np, jnp])
def test_in_an_exhausted_space_the_columns_that_are_left_are_zero(xp):
    """Rows that are zero, equal or opposite stay so to the last bit, and no column is made of rounding."""
    rng = np.random.default_rng(6)
    block, other = np.zeros((2, 48, 8))
    for half in (block, other):
        half[:3] = rng.normal(size=(3, 8))
        half[3:6], half[20:23] = half[:3], -half[:3]
    basis = np.asarray(orthonormal(xp.asarray(block), lambda: xp.asarray(other)))
    gram = basis.T @ basis
    kept = np.diag(gram) > 0.5
    assert kept.sum() == 3
    np.testing.assert_allclose(gram, np.diag(kept.astype(float)), atol=1e-13)
    np.testing.assert_array_equal(basis[:3], basis[3:6])
    np.testing.assert_array_equal(basis[:3], -basis[20:23])
    assert not basis[6:20].any() and not basis[23:].any() and not basis[:, ~kept].any()
