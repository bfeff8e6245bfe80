"""The attention flow once more, with nothing of this package: a NumPy gradient written by hand, integrated by SciPy."""

from functools import cache

import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
from scipy.integrate import solve_ivp
from scipy.optimize import brentq

import thetadot as td
from thetadot.models import attention

D, M, H = 4, 8, 8
LAW = np.array([0.75, 0.19, 0.05, 0.01])
CHAIN = 0.5 * np.eye(D) + 0.5 * LAW[None, :]
LEVELS = (1.2, 0.70, 0.62, 0.59, 0.565)
ESCAPES = (12.82294, 89.96570, 339.40659, 659.48667, 1428.23358)  # at rtol 1e-10, from an earlier independent code
SHAPES = {"w_0": (D, M), "w_1": (M, D), "w_q": (M, H), "w_k": (M, H)}


def unpack(flat):
    ends = np.cumsum([np.prod(shape) for shape in SHAPES.values()])
    parts = np.split(flat, ends[:-1])
    return [part.reshape(shape) for part, shape in zip(parts, SHAPES.values(), strict=True)]


def softmax(rows):
    weights = np.exp(rows - rows.max(axis=1, keepdims=True))
    return weights / weights.sum(axis=1, keepdims=True)


def forward(flat):
    w_0, w_1, w_q, w_k = unpack(flat)
    queries, keys, m = w_0 @ w_q, w_0 @ w_k, w_0 @ w_1
    a = softmax(queries @ keys.T + np.log(LAW)[None, :])
    return w_0, w_1, w_q, w_k, queries, keys, m, a, softmax(a @ m)


def numpy_loss(flat):
    return -np.sum(LAW[:, None] * CHAIN * np.log(forward(flat)[-1]))


def numpy_flow(_, flat):
    """−∇L by the chain rule: first through the logits A M, then through the attention A = softmax(Φ + log π)."""
    w_0, w_1, w_q, w_k, queries, keys, m, a, p = forward(flat)
    errors = LAW[:, None] * (p - CHAIN)
    d_m = a.T @ errors
    d_a = errors @ m.T
    d_phi = a * (d_a - np.sum(a * d_a, axis=1, keepdims=True))
    d_queries, d_keys = d_phi @ keys, d_phi.T @ queries
    d_0 = d_m @ w_1.T + d_queries @ w_q.T + d_keys @ w_k.T
    return -np.concatenate([d_0.ravel(), (w_0.T @ d_m).ravel(), (w_0.T @ d_queries).ravel(), (w_0.T @ d_keys).ravel()])


def start():
    """One draw of 192 normal numbers, in the order W_0, W_1, W_Q, W_K."""
    return 1e-3 * np.asarray(jr.normal(jr.key(0), (2 * D * M + 2 * M * H,)))


def package_start():
    params0 = td.inits.attention_params(D, M, H, 1e-3, key=jr.key(0))
    np.testing.assert_array_equal(np.concatenate([np.ravel(params0[name]) for name in SHAPES]), start())
    return params0


def scipy_solution(t1, rtol):
    """The trajectory with dense output; the absolute tolerance lies far below the start at 1e-3."""
    return solve_ivp(numpy_flow, (0, t1), start(), method="LSODA", rtol=rtol, atol=1e-4 * rtol, dense_output=True)


@cache
def package_solution(t1, rtol):
    laws = {"embedding": attention.embedding_balance, "query-key": attention.query_key_balance}
    data = {"stationary": LAW, "transition": CHAIN}
    problem = td.Problem(attention.population_loss, data, laws)
    crossings = {f"{level}": ("loss", level) for level in LEVELS}
    return td.gradient_flow(problem, package_start(), t1, crossings=crossings, rtol=rtol)


def scipy_crossing(solution, level):
    losses = np.array([numpy_loss(y) for y in solution.y.T])
    after = int(np.argmax(losses < level))
    return brentq(lambda t: numpy_loss(solution.sol(t)) - level, solution.t[after - 1], solution.t[after], xtol=1e-10)


def test_the_two_gradients_are_the_same_function():
    """The NumPy one is written out by hand; at a generic point they agree to rounding."""
    flat = np.random.default_rng(0).normal(size=start().size)
    params = {name: jnp.asarray(part) for name, part in zip(SHAPES, unpack(flat), strict=True)}
    problem = td.Problem(attention.population_loss, {"stationary": LAW, "transition": CHAIN})
    assert float(problem.loss(params)) == pytest.approx(numpy_loss(flat), rel=1e-13)
    grad = problem.grad(params)
    ours = np.concatenate([np.ravel(grad[name]) for name in SHAPES])
    np.testing.assert_allclose(ours, -numpy_flow(0, flat), rtol=1e-11, atol=1e-14)
    turned = {**params, "w_q": params["w_k"], "w_k": params["w_q"]}
    assert np.max(np.abs(problem.grad(turned)["w_q"] - grad["w_q"])) > 1e-3  # queries and keys are told apart


@pytest.mark.slow
def test_the_first_escapes_agree_with_scipy():
    """Condensation and focus, which end at t = 12.8 and 90."""
    solution, traj = scipy_solution(120.0, 1e-10), package_solution(120.0, 1e-6)
    for level, escape in zip(LEVELS[:2], ESCAPES, strict=False):
        (found,) = traj.crossings[f"{level}"]
        assert scipy_crossing(solution, level) == pytest.approx(escape, rel=1e-6)
        assert found == pytest.approx(escape, rel=2e-5)
    assert float(traj["loss"][-1]) == pytest.approx(numpy_loss(solution.y[:, -1]), abs=1e-6)
    assert max(traj.stats["conservation"].values()) < 1e-6


@pytest.mark.slow
def test_the_whole_flow_agrees_with_scipy():
    """All stages to T = 6000, against LSODA at rtol 1e-10 on the hand-written gradient."""
    solution, traj = scipy_solution(6000.0, 1e-10), package_solution(6000.0, 1e-6)
    assert traj.status == "done"
    exact = numpy_loss(solution.y[:, -1])
    assert abs(float(traj["loss"][-1]) - exact) < 1e-6
    assert exact == pytest.approx(0.56054493, abs=1e-8)
    for level, escape in zip(LEVELS, ESCAPES, strict=True):
        (found,) = traj.crossings[f"{level}"]
        assert scipy_crossing(solution, level) == pytest.approx(escape, rel=1e-6)
        assert found == pytest.approx(escape, rel=1e-4)


@pytest.mark.slow
def test_invariants_hold_over_the_whole_flow():
    """Through five escapes to T = 6000 the conservation laws drift by less than 1e-6, and tightening pays."""
    default, tight = package_solution(6000.0, 1e-6), package_solution(6000.0, 1e-7)
    assert max(tight.stats["conservation"].values()) < 1e-6
    assert max(tight.stats["conservation"].values()) < max(default.stats["conservation"].values())
    tight_escapes = [tight.crossings[f"{level}"][0] for level in LEVELS]
    np.testing.assert_allclose(tight_escapes, ESCAPES, rtol=1e-5)
