import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.stats import wasserstein_distance

from thetadot import observables as obs
from thetadot.models.two_layer import loss_fn

RNG = np.random.default_rng(0)
U, _ = np.linalg.qr(RNG.normal(size=(5, 5)))
V, _ = np.linalg.qr(RNG.normal(size=(3, 3)))
MATRIX = jnp.asarray(U[:, :3] @ np.diag([4.0, 2.0, 1.0]) @ V.T)
ZERO = jnp.zeros((5, 3))


def test_spectral_observables_of_a_known_spectrum():
    np.testing.assert_allclose(obs.singular_values(MATRIX), [4, 2, 1], rtol=1e-14)
    assert float(obs.stable_rank(MATRIX)) == pytest.approx(21 / 16, rel=1e-14)
    assert float(obs.nuclear_norm(MATRIX)) == pytest.approx(7, rel=1e-14)
    p = np.array([4, 2, 1]) / 7
    assert float(obs.effective_rank(MATRIX)) == pytest.approx(np.exp(-np.sum(p * np.log(p))), rel=1e-14)


@pytest.mark.parametrize("rank_of", [obs.stable_rank, obs.effective_rank])
def test_ranks_of_exact_ranks(rank_of):
    """A matrix with r equal singular values has rank r in every sense, at any scale."""
    for r in (1, 2, 3):
        for scale in (1e-150, 1.0, 1e150):
            matrix = jnp.asarray(scale * U[:, :r] @ V[:, :r].T)
            assert float(rank_of(matrix)) == pytest.approx(r, rel=1e-12)
    assert float(rank_of(ZERO)) == 0.0


def test_row_norms_and_cosines():
    rows = jnp.array([[3.0, 4.0], [-3.0, -4.0], [4.0, -3.0], [0.0, 0.0], [2.0, 0.0]])
    np.testing.assert_allclose(obs.row_norms(rows), [5, 5, 5, 0, 2], rtol=1e-15)
    expected = [
        [1, -1, 0, 0, 0.6],
        [-1, 1, 0, 0, -0.6],
        [0, 0, 1, 0, 0.8],
        [0, 0, 0, 0, 0],
        [0.6, -0.6, 0.8, 0, 1],
    ]
    np.testing.assert_allclose(obs.cosine_matrix(rows), expected, atol=1e-15)


def test_alignment():
    x = jnp.asarray(RNG.normal(size=(5, 3)))
    assert float(obs.alignment(x, 3.0 * x)) == pytest.approx(1, rel=1e-14)
    assert float(obs.alignment(x, -x)) == pytest.approx(-1, rel=1e-14)
    cosine = np.sum(np.asarray(x * MATRIX)) / np.linalg.norm(x) / np.linalg.norm(MATRIX)
    assert float(obs.alignment(x, MATRIX)) == pytest.approx(cosine, rel=1e-13)
    assert float(obs.alignment(x, ZERO)) == 0.0
    with pytest.raises(ValueError, match=r"needs equal shapes; got \(5, 3\) and \(3, 5\)"):
        obs.alignment(x, x.T)


def test_top_singular_alignment():
    left, right = jnp.asarray(-2.0 * U[:, 0]), jnp.asarray(V[:, 0])
    assert float(obs.top_singular_alignment(MATRIX, left)) == pytest.approx(1, rel=1e-14)
    assert float(obs.top_singular_alignment(MATRIX, right, side="right")) == pytest.approx(1, rel=1e-14)
    assert float(obs.top_singular_alignment(MATRIX, jnp.asarray(U[:, 1]))) < 1e-14
    mixed = jnp.asarray(U[:, 0] + U[:, 4])
    assert float(obs.top_singular_alignment(MATRIX, mixed)) == pytest.approx(np.sqrt(0.5), rel=1e-14)
    assert float(obs.top_singular_alignment(ZERO, left)) == 0.0


def test_row_entropy():
    rows = jnp.array([[0.25, 0.25, 0.25, 0.25], [1.0, 0.0, 0.0, 0.0], [0.5, 0.5, 0.0, 0.0]])
    np.testing.assert_allclose(obs.row_entropy(rows), [np.log(4), 0, np.log(2)], atol=1e-15)


def test_balancedness():
    lower = jnp.asarray(RNG.normal(size=(3, 4)))
    assert float(jnp.max(jnp.abs(obs.balancedness(MATRIX, lower) - (MATRIX.T @ MATRIX - lower @ lower.T)))) == 0
    assert float(jnp.max(jnp.abs(obs.balancedness(lower.T, lower)))) < 1e-15


def test_wasserstein_against_scipy_and_by_hand():
    x, y = jnp.asarray(RNG.normal(size=50)), jnp.asarray(RNG.exponential(size=50))
    assert float(obs.wasserstein(x, y)) == pytest.approx(wasserstein_distance(x, y), rel=1e-13)
    shifted = x[::-1] + 3.0
    for order in (1, 2):
        assert float(obs.wasserstein(x, shifted, order)) == pytest.approx(3.0, rel=1e-14)
    # Two points moved by 0 and 2: the mean is 1, the root mean square sqrt(2).
    assert float(obs.wasserstein(jnp.array([0.0, 1.0]), jnp.array([3.0, 0.0]), 2)) == pytest.approx(np.sqrt(2))
    with pytest.raises(ValueError, match="needs samples of the same size; got 50 and 49"):
        obs.wasserstein(x, y[:49])


def test_block_norms_in_tree_order():
    tree = {"w": jnp.array([[3.0, 0.0], [0.0, 4.0]]), "a": jnp.array([1.0, 2.0, 2.0])}
    np.testing.assert_allclose(obs.block_norms(tree), [3, 5], rtol=1e-15)


def test_block_gradient_norms():
    params = {"a": jnp.array([1.0, -0.5]), "w": jnp.asarray(RNG.normal(size=(2, 3)))}
    data = {"x": jnp.asarray(RNG.normal(size=(4, 3))), "y": jnp.ones(4)}
    loss = loss_fn(jnp.tanh)
    grad = jax.grad(loss)(params, data)
    expected = [np.linalg.norm(grad["a"]), np.linalg.norm(grad["w"])]
    np.testing.assert_allclose(obs.block_grad_norms_fn(loss)(params, data), expected, rtol=1e-13)
    assert obs.block_grad_norms_fn(loss) is obs.block_grad_norms_fn(loss)


def test_observables_run_compiled():
    """Inside a flow everything is traced; a Python branch on a value would fail here."""

    @jax.jit
    def measure(matrix, rows):
        return (
            obs.stable_rank(matrix),
            obs.effective_rank(matrix),
            obs.cosine_matrix(matrix),
            obs.top_singular_alignment(matrix, matrix[:, 0]),
            obs.row_entropy(rows),
            obs.wasserstein(matrix[0], matrix[1]),
            obs.block_norms({"m": matrix}),
        )

    for matrix in (MATRIX, ZERO):
        assert all(bool(jnp.all(jnp.isfinite(x))) for x in measure(matrix, jnp.eye(3)))
