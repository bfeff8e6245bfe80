"""Krylov spaces, and the method that uses them, one step at a time; what all solvers share is in test_common.py."""

from functools import partial

import diffrax as dfx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
from fields import SOLVERS, join, network, solve, start
from reference_traces import escape_errors

from thetadot.solvers._krylov_space import krylov_space
from thetadot.solvers.interpolation import PathInterpolation
from thetadot.solvers.krylov import KrylovExponential

SOLVER = KrylovExponential(max_dim=20)


@partial(jax.jit, static_argnums=0)
def one_step(field, y, h, args=None):
    term = dfx.ODETerm(field)
    t0, t1 = jnp.zeros_like(h), jnp.asarray(h)
    state = SOLVER.init(term, t0, t1, y, args)
    return SOLVER.step(term, t0, t1, y, args, state, jnp.array(False))[:4]


def forced(t, y, args):
    rate, power = args
    return rate * y + t**power


def forced_solution(y0, h, rate, power):
    """e^{λh} y₀ + ∫₀ʰ e^{λ(h−s)} sᵖ ds, by Gauss's formula with 200 points."""
    nodes, weights = np.polynomial.legendre.leggauss(200)
    s = h * (nodes + 1) / 2
    return np.exp(rate * h) * y0 + h / 2 * np.sum(weights * np.exp(rate * (h - s)) * s**power)


@pytest.mark.parametrize("rate", [0.0, 1.0, -3.0, -1e3])
@pytest.mark.parametrize("power", [2, 3, 4])
def test_order_conditions(power, rate):
    # y' = λy + tᵖ: exact for p = 2, 3 at every hλ (Σ bᵢ cᵢᵖ = p! φ_{p+1}), and for p = 4 at λ = 0
    h = jnp.array(0.7)
    y, error, dense, _ = one_step(forced, jnp.array([0.4]), h, (jnp.array(rate), jnp.array(power)))
    exact = forced_solution(0.4, 0.7, rate, power)
    if power < 4:
        np.testing.assert_allclose(y, exact, rtol=1e-10)
        assert error[0] < 1e-10
        inside = PathInterpolation(t0=jnp.array(0.0), t1=h, **dense)
        np.testing.assert_allclose(inside.evaluate(h), y, rtol=1e-12)
    elif rate == 0:
        np.testing.assert_allclose(y, exact, rtol=1e-12)
    if power == 4:
        assert error[0] > abs(y - exact)[0]


def test_linear_flow_is_exact_at_any_step():
    rates = -jnp.logspace(-3, 4, 15).at[0].multiply(-1)
    y, _, dense, state = one_step(lambda t, y, args: args * y, jnp.ones(15), jnp.array(3.0), rates)
    np.testing.assert_allclose(y, jnp.exp(3 * rates), atol=1e-9)
    inside = PathInterpolation(t0=jnp.array(0.0), t1=jnp.array(3.0), **dense)
    np.testing.assert_allclose(inside.evaluate(jnp.array(0.01)), jnp.exp(0.01 * rates), atol=1e-9)
    assert state.num_gradients == 4  # one of them measures rounding


def test_space_is_as_large_as_the_distinct_eigenvalues():
    frame = jr.orthogonal(jr.key(0), 60)
    rates = jnp.concatenate([jnp.full(30, -50.0), jnp.full(20, -3.0), jnp.full(10, 0.2)])
    matrix = (frame * rates[None, :]) @ frame.T
    vector, h = jr.normal(jr.key(1), (60,)), jnp.array(2.0)
    search = krylov_space(lambda v: matrix @ v, vector, h, lambda size: 1e-10 * size, jnp.array(0), 20)
    assert search.dim == 3 and not search.skewed
    exact = frame @ (jnp.expm1(rates * h) / (rates * h) * (frame.T @ vector))
    np.testing.assert_allclose(search.space.phi(h)[0], exact, rtol=1e-9)


@pytest.mark.parametrize("symmetric", [True, False])
def test_residual_bounds_the_error(symmetric):
    matrix = jr.normal(jr.key(2), (50, 50)) / 3
    matrix = -matrix @ matrix.T if symmetric else matrix - 3 * jnp.eye(50)
    vector, h = jr.normal(jr.key(3), (50,)), jnp.array(1.5)
    exact = jnp.linalg.solve(matrix, jax.scipy.linalg.expm(h * matrix) @ vector - vector)
    for dim in (6, 12):
        search = krylov_space(lambda v: matrix @ v, vector, h, lambda _: jnp.array(0.0), jnp.array(0), dim, symmetric)
        error = jnp.linalg.norm(h * search.space.phi(h)[0] - exact)
        assert error <= search.residual


@pytest.mark.slow
def test_too_small_a_space_shortens_the_steps():
    few, many = (solve(solver, start(), network(), 60.0, rtol=1e-3) for solver in (KrylovExponential(2), "krylov"))
    assert SOLVERS["krylov"].max_dim > 2 and int(few.num_accepted) > int(many.num_accepted)
    np.testing.assert_allclose(join(few.y), join(many.y), atol=1e-3)


def test_a_product_that_is_not_finite_rejects_the_step():
    _, error, *_ = one_step(lambda t, y, args: -jnp.sqrt(y), jnp.array([0.0, 1.0]), jnp.array(0.1))
    assert not jnp.all(jnp.isfinite(error))


def test_refuses_an_empty_space():
    with pytest.raises(ValueError, match="max_dim"):
        KrylovExponential(max_dim=0)


@pytest.mark.slow
@pytest.mark.parametrize("max_dim", [6, 12])
def test_too_small_a_space_misses_no_escape(max_dim):
    assert np.max(np.abs(escape_errors("three layers", KrylovExponential(max_dim), 1e-2))) < 1e-2
