from typing import Any

import diffrax as dfx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
from reference_traces import escape_errors

from thetadot.solvers import DisplacementController
from thetadot.solvers._krylov_space import krylov_space
from thetadot.solvers.krylov import ContinuousExtension, KrylovExponential

solve_ode: Any = dfx.diffeqsolve
SOLVER = KrylovExponential(max_dim=20)
TARGET = np.array([[2.0, 0.3, 0.0], [0.3, 1.0, 0.1], [0.0, 0.1, 0.2]])


def saddle_flow(t, y, target):
    """Two linear layers as a pytree."""
    del t
    rest = y["b"] @ y["a"] - target
    return {"a": -y["b"].T @ rest, "b": -rest @ y["a"].T}


def saddle_start(scale=1.0, dtype=float):
    return {"a": scale * jr.normal(jr.key(1), (3, 3), dtype), "b": scale * jr.normal(jr.key(2), (3, 3), dtype)}


def adaptive(y0, rtol, solver=SOLVER, t1=30.0) -> Any:
    return solve_ode(
        dfx.ODETerm(saddle_flow),
        solver,
        jnp.zeros((), y0["a"].dtype),  # diffrax promotes the state to the dtype of the times
        jnp.asarray(t1, y0["a"].dtype),
        None,
        y0,
        args=jnp.asarray(TARGET, y0["a"].dtype),
        stepsize_controller=DisplacementController(rtol),
        max_steps=None,
    )


def one_step(field, y, h, solver=SOLVER):
    term = dfx.ODETerm(field)
    t1 = jnp.asarray(h)
    state = solver.init(term, 0.0, t1, y, None)
    return jax.jit(lambda y: solver.step(term, jnp.array(0.0), t1, y, None, state, jnp.array(False)))(y)


@pytest.fixture(scope="module")
def final_points():
    @jax.jit
    def solve(n):
        return solve_ode(
            dfx.ODETerm(saddle_flow),
            SOLVER,
            0.0,
            1.0,
            1 / n,
            saddle_start(),
            args=jnp.asarray(TARGET),
            saveat=dfx.SaveAt(ts=jnp.stack([2.4 / n, 1.0])),
            max_steps=None,
        ).ys["a"]

    return solve


def test_order_is_five_and_four_inside_a_step(final_points):
    exact = final_points(1024.0)[1]
    errors = [float(jnp.linalg.norm(final_points(float(n))[1] - exact)) for n in (16, 32, 64)]
    assert np.all(np.log2(np.divide(errors[:-1], errors[1:])) > 4.6)


@pytest.mark.parametrize("rate", [0.0, 1.0, -3.0, -1e3])
@pytest.mark.parametrize("power", [2, 3, 4])
def test_order_conditions(power, rate):
    # y' = λy + tᵖ: exact for p = 2, 3 at every hλ (Σ bᵢ cᵢᵖ = p! φ_{p+1}), and for p = 4 at λ = 0
    h = 0.7
    y, error, dense, _, _ = one_step(lambda t, y, args: rate * y + t**power, jnp.array([0.4]), h)
    exact = solve_ode(
        dfx.ODETerm(lambda t, y, args: rate * y + t**power),
        dfx.Dopri8(),
        0.0,
        h,
        1e-3,
        jnp.array([0.4]),
        max_steps=None,
    ).ys[-1]
    if power < 4:
        np.testing.assert_allclose(y, exact, rtol=1e-10)
        assert error[0] < 1e-10
        inside = ContinuousExtension(t0=jnp.array(0.0), t1=jnp.array(h), **dense)
        np.testing.assert_allclose(inside.evaluate(jnp.array(h)), y, rtol=1e-12)
    elif rate == 0:
        np.testing.assert_allclose(y, exact, rtol=1e-12)
    if power == 4:
        assert error[0] > abs(y - exact)[0]


def test_linear_flow_is_exact_at_any_step():
    rates = -jnp.logspace(-3, 4, 15).at[0].multiply(-1)
    y, _, dense, state, _ = one_step(lambda t, y, args: rates * y, jnp.ones(15), 3.0)
    np.testing.assert_allclose(y, jnp.exp(3 * rates), atol=1e-9)
    inside = ContinuousExtension(t0=jnp.array(0.0), t1=jnp.array(3.0), **dense)
    np.testing.assert_allclose(inside.evaluate(jnp.array(0.01)), jnp.exp(0.01 * rates), atol=1e-9)
    assert state.num_gradients == 3


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


def test_too_small_a_space_shortens_the_steps():
    few = adaptive(saddle_start(1e-3), 1e-3, KrylovExponential(max_dim=2))
    many = adaptive(saddle_start(1e-3), 1e-3)
    assert few.stats["num_steps"] > many.stats["num_steps"]
    np.testing.assert_allclose(few.ys["a"], many.ys["a"], atol=1e-3)


def test_a_product_that_is_not_finite_rejects_the_step():
    _, error, *_ = one_step(lambda t, y, args: -jnp.sqrt(y), jnp.array([0.0, 1.0]), 0.1)
    assert not jnp.all(jnp.isfinite(error))
    solution = solve_ode(
        dfx.ODETerm(lambda t, y, args: -jnp.sqrt(y)),
        SOLVER,
        0.0,
        10.0,
        0.1,
        jnp.ones(2),
        stepsize_controller=dfx.PIDController(rtol=1e-4, atol=1e-6, dtmin=1e-9),
        max_steps=1000,
        throw=False,
    )
    assert solution.result != dfx.RESULTS.successful


def rotation(t, y, args):
    return jnp.stack([-y[0] + 20 * y[1] - 0.1 * y[1] ** 3, -20 * y[0] - y[1] - 0.1 * y[0] * y[1]])


def test_a_jacobian_that_is_not_symmetric():
    def solve(solver):
        return solve_ode(
            dfx.ODETerm(rotation),
            solver,
            0.0,
            1.0,
            0.01,
            jnp.array([1.0, 0.5]),
            stepsize_controller=dfx.PIDController(rtol=1e-7, atol=1e-10),
        ).ys[-1]

    with pytest.raises(Exception, match="symmetric=False"):
        solve(SOLVER)
    np.testing.assert_allclose(solve(KrylovExponential(symmetric=False)), solve(dfx.Dopri8()), atol=1e-6)


def test_lanes_equal_single_solves():
    scales = jnp.array([1e-4, 0.3])

    @jax.jit
    def solve(scale):
        solution = adaptive(saddle_start(scale), 1e-3, KrylovExponential(max_dim=6))
        return solution.ys, solution.stats["num_steps"]

    lanes, steps = jax.vmap(solve)(scales)
    for i, scale in enumerate(scales):
        single, num_steps = solve(scale)
        assert steps[i] == num_steps
        np.testing.assert_allclose(lanes["a"][i], single["a"], rtol=1e-6)


def test_float32():
    solution = adaptive(saddle_start(0.1, jnp.float32), 1e-3)
    assert solution.ys["a"].dtype == jnp.float32
    np.testing.assert_allclose((solution.ys["b"] @ solution.ys["a"])[-1], TARGET, atol=5e-2)


def test_refuses_an_empty_space():
    with pytest.raises(ValueError, match="max_dim"):
        KrylovExponential(max_dim=0)


def test_escape_times():
    assert np.max(np.abs(escape_errors("three layers", KrylovExponential(), 1e-3))) < 1e-3


@pytest.mark.slow
@pytest.mark.parametrize("name", ["three layers", "attention"])
@pytest.mark.parametrize("rtol", [1e-2, 1e-3, 1e-4, 1e-5, 1e-6])
def test_escape_times_follow_rtol(name, rtol):
    assert np.max(np.abs(escape_errors(name, KrylovExponential(), rtol))) < rtol


@pytest.mark.slow
@pytest.mark.parametrize("max_dim", [6, 12])
def test_too_small_a_space_misses_no_escape(max_dim):
    assert np.max(np.abs(escape_errors("three layers", KrylovExponential(max_dim), 1e-2))) < 1e-2
