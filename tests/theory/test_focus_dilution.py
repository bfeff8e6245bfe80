import itertools
from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree
from scipy.integrate import solve_ivp

from thetadot import data as td_data
from thetadot.models import attention
from thetadot.theory import focus_dilution as fd

STAIRCASE = jnp.array([0.75, 0.19, 0.05, 0.01])
SYMMETRIC = jnp.array([0.7, 0.1, 0.1, 0.1])
D_MODEL, D_HEAD = 5, 3

grad_at = jax.jit(jax.grad(attention.population_loss))
loss_at = jax.jit(attention.population_loss)


@jax.jit
def hessian_product(params, step, data):
    return jax.jvp(lambda p: jax.grad(attention.population_loss)(p, data), (params,), (step,))[1]


@jax.jit
def hessian_at(params, data):
    flat, unravel = ravel_pytree(params)
    return jax.hessian(lambda x: attention.population_loss(unravel(x), data))(flat)


def chain(stationary, persistence=0.5):
    return {"stationary": stationary, "transition": td_data.persistent_chain(stationary, persistence)}


def random_chain(d=4, seed=1):
    """Neither reversible nor persistent."""
    weights = np.exp(1.5 * np.random.default_rng(seed).normal(size=(d, d)))
    transition = jnp.asarray(weights / weights.sum(axis=1, keepdims=True))
    return {"stationary": td_data.stationary_law(transition), "transition": transition}


CHAINS = {
    "staircase": chain(STAIRCASE),
    "symmetric": chain(SYMMETRIC),
    "anti-persistent": chain(jnp.array([0.35, 0.3, 0.2, 0.15]), -0.17),
    "random": random_chain(),
}
every_chain = pytest.mark.parametrize("name", CHAINS)


def saddle_hessian(data):
    params = fd.unigram_saddle(data["stationary"], D_MODEL, D_HEAD)
    return params, np.asarray(hessian_at(params, data))


# ── numbers of the specification ──


def test_numbers_of_the_staircase_law():
    n, log_spread, variance, covariance = fd.moments(STAIRCASE)
    transition = td_data.persistent_chain(STAIRCASE, 0.5)
    assert float(n) == pytest.approx(0.775371, abs=5e-7)
    assert float(log_spread) == pytest.approx(3.197724, abs=5e-7)
    assert float(variance) == pytest.approx(0.067419, abs=5e-7)
    assert float(covariance) == pytest.approx(0.207432, abs=5e-7)
    assert float(fd.condensation_rate(STAIRCASE)) == pytest.approx(0.45950, abs=5e-6)
    assert float(fd.attention_growth_rate(STAIRCASE, transition)) == pytest.approx(0.07978, abs=5e-6)
    assert float(fd.unigram_loss(STAIRCASE)) == pytest.approx(0.72714, abs=5e-6)
    assert float(fd.entropy_rate(STAIRCASE, transition)) == pytest.approx(0.55361, abs=5e-6)
    np.testing.assert_allclose(fd.outer_decay_rates(STAIRCASE), [0.0443, 0.2177, 0.9010], atol=5e-5)
    assert float(jnp.linalg.norm(fd.unigram_saddle(STAIRCASE, 8, 8)["w_0"])) == pytest.approx(2.03079, abs=5e-6)


def test_numbers_of_the_symmetric_law():
    transition = td_data.persistent_chain(SYMMETRIC, 0.5)
    assert float(fd.condensation_rate(SYMMETRIC)) == pytest.approx(0.374700, abs=5e-7)
    assert float(fd.attention_growth_rate(SYMMETRIC, transition)) == pytest.approx(0.0800996, abs=5e-8)
    assert float(fd.unigram_loss(SYMMETRIC)) == pytest.approx(0.940448, abs=5e-7)
    assert float(fd.degenerate_loss(SYMMETRIC, 0.5)) == pytest.approx(0.819714040, abs=5e-10)
    assert float(fd.entropy_rate(SYMMETRIC, transition)) == pytest.approx(0.709997, abs=5e-7)
    assert float(jnp.min(fd.outer_decay_rates(SYMMETRIC))) == pytest.approx(0.1215, abs=5e-5)
    first, second = fd.stage_time_slopes(SYMMETRIC, transition)
    assert float(first) == pytest.approx(2.6688, abs=5e-5) and float(second) == pytest.approx(15.15, abs=5e-3)
    for name in ("w_0", "w_1"):
        assert float(jnp.linalg.norm(fd.unigram_saddle(SYMMETRIC, 8, 8)[name])) == pytest.approx(1.528713, abs=5e-7)


def test_predicted_plateaus():
    symmetric = fd.predicted_plateaus(**CHAINS["symmetric"])
    assert list(symmetric) == ["uniform", "unigram", "class bigram", "entropy rate"]
    assert symmetric["uniform"] == pytest.approx(np.log(4), rel=1e-15)
    assert symmetric["class bigram"] == pytest.approx(0.819714040, abs=5e-10)
    assert all(high > low for high, low in itertools.pairwise(symmetric.values()))
    for name in ("staircase", "random", "anti-persistent"):
        assert list(fd.predicted_plateaus(**CHAINS[name])) == ["uniform", "unigram", "entropy rate"]
    perturbed = {**CHAINS["symmetric"], "transition": 0.9 * CHAINS["symmetric"]["transition"] + 0.025}
    assert "class bigram" not in fd.predicted_plateaus(**perturbed)
    with pytest.raises(ValueError, match="needs equal entries except for one larger one"):
        fd.degenerate_loss(STAIRCASE, 0.5)
    moved = jnp.array([0.1, 0.7, 0.1, 0.1])
    assert float(fd.degenerate_loss(moved, 0.5)) == pytest.approx(0.819714040, abs=5e-10)


# ── the origin ──


@every_chain
def test_condensation_rate_is_the_top_eigenvalue_at_the_origin(name):
    data = CHAINS[name]
    d = data["stationary"].shape[0]
    shapes = {"w_0": (d, 2), "w_1": (2, d), "w_q": (2, 2), "w_k": (2, 2)}
    origin = {name: jnp.zeros(shape) for name, shape in shapes.items()}
    rates = np.linalg.eigvalsh(-np.asarray(hessian_at(origin, data)))
    rate = float(fd.condensation_rate(data["stationary"]))
    # m = 2 growing and 2 decaying directions; everything else is flat.
    np.testing.assert_allclose(rates[[0, 1, -2, -1]], [-rate, -rate, rate, rate], rtol=1e-12)
    assert np.max(np.abs(rates[2:-2])) < 1e-14


# ── the unigram saddle ──


@every_chain
def test_unigram_saddle_is_a_critical_point_with_the_unigram_loss(name):
    data = CHAINS[name]
    params = fd.unigram_saddle(data["stationary"], D_MODEL, D_HEAD)
    assert max(float(jnp.max(jnp.abs(g))) for g in jax.tree.leaves(grad_at(params, data))) < 2e-15
    assert float(loss_at(params, data)) == pytest.approx(float(fd.unigram_loss(data["stationary"])), rel=1e-14)
    assert float(jnp.max(jnp.abs(attention.embedding_balance(params)))) < 1e-14
    misplaced = {**params, "w_0": 1.01 * params["w_0"]}
    assert max(float(jnp.max(jnp.abs(g))) for g in jax.tree.leaves(grad_at(misplaced, data))) > 1e-4


@every_chain
def test_hessian_at_the_unigram_saddle(name):
    """Eigenvalues: the outer decay rates, ±c with multiplicity d_head each, zeros; and nothing else."""
    data = CHAINS[name]
    _, hessian = saddle_hessian(data)
    c = float(fd.attention_growth_rate(data["stationary"], data["transition"]))
    decay = np.asarray(fd.outer_decay_rates(data["stationary"]))
    expected = np.zeros(hessian.shape[0])
    nonzero = np.concatenate([decay, np.full(D_HEAD, c), np.full(D_HEAD, -c)])
    expected[: len(nonzero)] = nonzero
    np.testing.assert_allclose(np.linalg.eigvalsh(hessian), np.sort(expected), atol=1e-13)
    assert np.all(decay > 0)


@every_chain
def test_attention_grows_along_the_predicted_directions(name):
    """dW_Q = c α α^T W_K, dW_K = c α α^T W_Q: the Hessian product is known for every attention direction."""
    data = CHAINS[name]
    params = fd.unigram_saddle(data["stationary"], D_MODEL, D_HEAD)
    c = float(fd.attention_growth_rate(data["stationary"], data["transition"]))
    rng = np.random.default_rng(0)
    drawn = {block: jnp.asarray(rng.normal(size=(D_MODEL, D_HEAD))) for block in ("w_q", "w_k")}
    step = {**jax.tree.map(jnp.zeros_like, params), **drawn}
    product = hessian_product(params, step, data)
    along = jnp.zeros((D_MODEL, D_MODEL)).at[0, 0].set(1.0)
    np.testing.assert_allclose(-product["w_q"], c * along @ step["w_k"], atol=1e-14)
    np.testing.assert_allclose(-product["w_k"], c * along @ step["w_q"], atol=1e-14)
    assert max(float(jnp.max(jnp.abs(product[outer]))) for outer in ("w_0", "w_1")) < 1e-14


def test_growth_rate_of_persistent_chains():
    """`c = λ Λ Cov V / n⁵`: linear in λ, sign included."""
    n, log_spread, variance, covariance = (float(x) for x in fd.moments(STAIRCASE))
    for persistence in (0.5, 0.1, -0.01):
        c = fd.attention_growth_rate(STAIRCASE, td_data.persistent_chain(STAIRCASE, persistence))
        assert float(c) == pytest.approx(persistence * log_spread * covariance * variance / n**5, rel=1e-12)


def test_anti_persistent_chains_lose_focus():
    """λ < 0: c < 0, and the growing direction has W_Q = -W_K, so attention to the frequent token falls."""
    data = CHAINS["anti-persistent"]
    assert float(fd.attention_growth_rate(data["stationary"], data["transition"])) < 0
    params, hessian = saddle_hessian(data)
    vectors = np.linalg.eigh(hessian)[1]
    growing = ravel_pytree(params)[1](jnp.asarray(vectors[:, 0]))
    np.testing.assert_allclose(growing["w_q"], -growing["w_k"], atol=1e-7)
    moved = {**params, "w_q": 0.5 * growing["w_q"], "w_k": 0.5 * growing["w_k"]}
    assert float(attention.attention(moved, data)[0, 0]) < float(data["stationary"][0]) - 1e-3


def test_logit_scale_divides_the_growth_rate():
    data = CHAINS["random"]
    params = fd.unigram_saddle(data["stationary"], D_MODEL, D_HEAD)
    step = {**jax.tree.map(jnp.zeros_like, params), "w_k": params["w_k"].at[0, 0].set(1.0)}
    scaled_grad = jax.jit(jax.grad(lambda p: attention.population_loss(p, data, logit_scale=0.25)))
    product = jax.jvp(scaled_grad, (params,), (step,))[1]
    assert -float(product["w_q"][0, 0]) == pytest.approx(
        float(fd.attention_growth_rate(data["stationary"], data["transition"], 0.25))
    )


# ── dilution ──


@every_chain
def test_dilution_direction(name):
    """At the saddle plus a rank-one attention κ, W_0 α moves off the ray with 2 c κ times the direction, to O(κ)."""
    data = CHAINS[name]
    law = np.asarray(data["stationary"])
    direction = np.asarray(fd.dilution_direction(**data))
    assert abs(direction @ law) < 1e-14 * np.linalg.norm(direction)
    params = fd.unigram_saddle(data["stationary"], D_MODEL, D_HEAD)
    c = float(fd.attention_growth_rate(data["stationary"], data["transition"]))
    errors = []
    for kappa in (1e-4, 1e-5):
        size = jnp.sqrt(kappa)
        moved = {**params, "w_q": params["w_q"].at[0, 0].set(size), "w_k": params["w_k"].at[0, 0].set(size)}
        velocity = -np.asarray(grad_at(moved, data)["w_0"][:, 0])
        off_ray = velocity - law * (law @ velocity) / (law @ law)
        errors.append(np.linalg.norm(off_ray / (2 * c * kappa) - direction) / np.linalg.norm(direction))
    assert errors[0] < 1e-2
    assert errors[1] / errors[0] == pytest.approx(0.1, rel=0.1)


# ── rank-one points ──


def rank_one(z, d, d_model, d_head):
    """(γ, β, λ_Q, λ_K) -> parameters with α and α' the first unit vectors."""
    gamma, beta, lambda_q, lambda_k = z[:d], z[d : 2 * d], z[2 * d], z[2 * d + 1]
    return {
        "w_0": jnp.zeros((d, d_model)).at[:, 0].set(gamma),
        "w_1": jnp.zeros((d_model, d)).at[0].set(beta),
        "w_q": jnp.zeros((d_model, d_head)).at[0, 0].set(lambda_q),
        "w_k": jnp.zeros((d_model, d_head)).at[0, 0].set(lambda_k),
    }


@jax.jit
def reduced_velocity(z, data):
    d = data["stationary"].shape[0]
    return -jax.grad(lambda z: attention.population_loss(rank_one(z, d, 1, 1), data))(z)


reduced_jacobian = jax.jit(jax.jacfwd(reduced_velocity))


@cache
def end_on_the_rank_one_manifold(law):
    """(γ, β, λ_Q, λ_K) where SciPy's integration from the unigram saddle with a little attention ends."""
    data = chain(jnp.array(law))
    saddle = fd.unigram_saddle(data["stationary"], 1, 1)
    start = np.concatenate([saddle["w_0"][:, 0], saddle["w_1"][0], [1e-3, 1e-3]])
    flow = solve_ivp(
        lambda _, z: np.asarray(reduced_velocity(z, data)),
        (0, 1e4),
        start,
        jac=lambda _, z: np.asarray(reduced_jacobian(z, data)),
        method="LSODA",
        rtol=1e-9,
        atol=1e-12,
    )
    end = flow.y[:, -1]
    assert np.max(np.abs(reduced_velocity(end, data))) < 1e-12
    return jnp.asarray(end), data


def rates_at(law):
    end, data = end_on_the_rank_one_manifold(law)
    params = rank_one(end, len(law), 3, 2)
    matrix = np.asarray(fd.transverse_matrix(params, data))
    return np.linalg.svd(matrix, compute_uv=False), params, data


def test_transverse_matrix_is_the_transverse_hessian():
    """At any rank-one point: g meets (b, k, q) through K, g meets g and (b, k, q) meets (b, k, q) not at all."""
    data = CHAINS["staircase"]
    z = jnp.asarray(np.concatenate([np.random.default_rng(0).normal(size=8), [0.8, -0.5]]))
    params = rank_one(z, 4, 3, 2)
    matrix = np.asarray(fd.transverse_matrix(params, data))
    flat, unravel = ravel_pytree(params)
    hessian = np.asarray(hessian_at(params, data))
    place = jax.tree.map(lambda i: np.asarray(i, int), unravel(jnp.arange(flat.size, dtype=float)))
    g = place["w_0"][:, 1]
    others = np.concatenate([place["w_1"][1], [place["w_k"][1, 0], place["w_q"][1, 0]]])
    block = hessian[np.ix_(g, others)]
    np.testing.assert_allclose(matrix[:, :4], block[:, :4], atol=1e-14)
    sign = np.sign(matrix[0, 4] / block[0, 4])  # that of α, which the parameters leave open
    np.testing.assert_allclose(sign * matrix[:, 4:], block[:, 4:], atol=1e-14)
    assert np.max(np.abs(hessian[np.ix_(g, g)])) < 1e-14
    assert np.max(np.abs(hessian[np.ix_(others, others)])) < 1e-14
    # Exchanging λ_Q and λ_K is not the same matrix.
    assert np.max(np.abs(np.abs(matrix[:, [5, 4]]) - np.abs(block[:, 4:]))) > 1e-3


def test_transverse_matrix_does_not_depend_on_the_frame():
    data = CHAINS["staircase"]
    params = rank_one(jnp.asarray(np.random.default_rng(0).normal(size=10)), 4, 3, 2)
    rotation = jnp.asarray(np.linalg.qr(np.random.default_rng(1).normal(size=(3, 3)))[0])
    turned = {
        "w_0": params["w_0"] @ rotation,
        "w_1": rotation.T @ params["w_1"],
        "w_q": -rotation.T @ params["w_q"],
        "w_k": -rotation.T @ params["w_k"],
    }
    rates = [np.linalg.svd(np.asarray(fd.transverse_matrix(p, data)), compute_uv=False) for p in (params, turned)]
    np.testing.assert_allclose(rates[0], rates[1], atol=1e-13)


def test_the_degenerate_point_stops_the_flow_at_the_degenerate_loss():
    rates, params, data = rates_at((0.7, 0.1, 0.1, 0.1))
    loss = float(loss_at(params, data))
    assert loss == pytest.approx(float(fd.degenerate_loss(SYMMETRIC, 0.5)), abs=1e-13)
    assert rates[0] < 1e-9
    assert abs(loss - float(fd.degenerate_loss(SYMMETRIC, 0.51))) > 1e-3


def test_the_rank_one_saddle_of_the_staircase():
    """The unstable Hessian eigenvalues are the singular values of K, m - 1 = 2 times each."""
    rates, params, data = rates_at((0.75, 0.19, 0.05, 0.01))
    assert float(loss_at(params, data)) == pytest.approx(0.63336, abs=5e-6)
    assert rates[0] == pytest.approx(0.02468, abs=5e-6)
    growing = np.sort(np.linalg.eigvalsh(-np.asarray(hessian_at(params, data))))[::-1]
    np.testing.assert_allclose(growing[:4], [rates[0], rates[0], rates[1], rates[1]], rtol=1e-8)
    assert growing[4] < 1e-10


def test_symmetry_breaking_rates_scale_with_the_asymmetry():
    """s_1(K) = 0.0615 δ + O(δ³), s_2(K) = Θ(δ³), loss below L_deg by Θ(δ²), for low frequencies 0.1 + (δ, 0, -δ)."""
    wide, narrow = ((0.7, 0.1 + delta, 0.1, 0.1 - delta) for delta in (0.005, 0.0025))
    (at_wide, wide_params, wide_data), (at_narrow, params, data) = rates_at(wide), rates_at(narrow)
    extrapolated = (4 * at_narrow[0] / 0.0025 - at_wide[0] / 0.005) / 3
    assert extrapolated == pytest.approx(0.0615, abs=5e-5)
    assert at_wide[1] / at_narrow[1] == pytest.approx(8, rel=0.05)
    degenerate = float(fd.degenerate_loss(SYMMETRIC, 0.5))
    drops = [degenerate - float(loss_at(*point)) for point in ((wide_params, wide_data), (params, data))]
    assert drops[0] / drops[1] == pytest.approx(4, rel=0.02)
