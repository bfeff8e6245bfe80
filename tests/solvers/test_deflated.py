"""The deflated exponential method: orders at the steps and between them, and what it is for.

What all solvers share is in test_common.py.
"""

import diffrax as dfx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.integrate import solve_ivp

from thetadot.solvers import DeflatedExponential, DisplacementController

T1 = 2.0
DENSE = np.linspace(0, T1, 24)[1:-1]  # between the steps, and at two of them


def field(t, y, args):
    """−B y − y³ on five numbers, and a valley of curvature K along y₁ = y₀²; symmetric if B is."""
    del t
    matrix, stiffness = args
    x = jnp.concatenate([y["a"], y["b"]])
    away = x[1] - x[0] * x[0]
    pull = stiffness * away * jnp.stack([2 * x[0], -jnp.ones((), x.dtype), *jnp.zeros((3,), x.dtype)])
    out = pull - matrix @ x - x * x * x
    return {"a": out[:2], "b": out[2:]}


def numpy_field(t, x, matrix, stiffness):
    del t
    pull = stiffness * (x[1] - x[0] ** 2) * np.array([2 * x[0], -1, 0, 0, 0])
    return pull - matrix @ x - x**3


def split(x):
    x = jnp.asarray(x, float)
    return {"a": x[:2], "b": x[2:]}


def join(y):
    return np.concatenate([y["a"], y["b"]], axis=-1)


@jax.jit
def fixed_steps(y0, args, dt0):
    saves = dfx.SaveAt(subs=[dfx.SubSaveAt(t1=True), dfx.SubSaveAt(ts=jnp.asarray(DENSE))])
    sol = dfx.diffeqsolve(dfx.ODETerm(field), DeflatedExponential(3), 0.0, T1, dt0, y0, args, saveat=saves)
    assert sol.ys is not None
    return jax.tree.map(lambda leaf: leaf[0], sol.ys[0]), sol.ys[1]


@jax.jit
def adaptive(y0, args, t1, rtol):
    controller = DisplacementController(rtol)
    sol = dfx.diffeqsolve(
        dfx.ODETerm(field),
        DeflatedExponential(3),
        jnp.zeros_like(t1),
        t1,
        None,
        y0,
        args,
        stepsize_controller=controller,
        max_steps=20_000,
        adjoint=dfx.ForwardMode(),
    )
    assert sol.ys is not None
    return jax.tree.map(lambda leaf: leaf[0], sol.ys), sol.stats["num_steps"]


def random_problem(symmetric=True, seed=0):
    rng = np.random.default_rng(seed)
    q, _ = np.linalg.qr(rng.normal(size=(5, 5)))
    matrix = q @ np.diag([-1.0, 0.3, 1.0, 3.0, 8.0]) @ q.T
    if not symmetric:
        matrix = matrix + 2 * (lambda a: a - a.T)(rng.normal(size=(5, 5)))
    return matrix, 1.0, rng.normal(size=5)


def exact(matrix, stiffness, x0, ts):
    solution = solve_ivp(
        numpy_field, (0, ts[-1]), x0, "DOP853", ts, args=(matrix, stiffness), rtol=1e-13, atol=1e-14, max_step=0.05
    )
    return solution.y.T


def slope(errors):
    """Order from errors at steps that are halved each time."""
    return np.log2(np.array(errors[:-1]) / np.array(errors[1:]))


@pytest.mark.parametrize("symmetric", [True, False])
def test_order_five_at_the_steps_and_of_the_dense_output(symmetric):
    """A non-symmetric field is deflated by its symmetric part only, and solved right all the same."""
    matrix, stiffness, x0 = random_problem(symmetric)
    args = (jnp.asarray(matrix), jnp.asarray(stiffness))
    end, dense = exact(matrix, stiffness, x0, [T1])[-1], exact(matrix, stiffness, x0, [*DENSE, T1])[:-1]
    errors, dense_errors = [], []
    for num in (16, 32, 64, 128):
        y1, ys = fixed_steps(split(x0), args, T1 / num)
        errors.append(np.max(np.abs(join(y1) - end)))
        dense_errors.append(np.max(np.abs(join(ys) - dense)))
    assert errors[-1] < 1e-7
    assert np.mean(slope(errors)) > 4.6 and slope(errors)[-1] > 4.5
    # The dense output takes the Jacobian for symmetric, as that of a gradient flow is.
    assert np.mean(slope(dense_errors)) > (4 if symmetric else 2)


def test_a_linear_flow_within_the_rank_is_exact_in_one_step():
    """Three modes and a rank of three: the exponentials are all there is, whatever their rates."""
    q, _ = np.linalg.qr(np.random.default_rng(1).normal(size=(5, 5)))
    rates = np.array([1e6, 3e2, -2.0, 0.0, 0.0])
    matrix, x0 = q @ np.diag(rates) @ q.T, 1e-9 * (q @ np.array([1.0, -1.0, 1.0, 1.0, 1.0]))
    y1, _ = fixed_steps(split(x0), (jnp.asarray(matrix), jnp.asarray(0.0)), T1)
    np.testing.assert_allclose(join(y1), q @ (np.exp(-rates * T1) * (q.T @ x0)), rtol=1e-6, atol=1e-15)


def test_the_cost_of_a_plateau_does_not_grow_with_its_length():
    """Rates from 1e-2 to 1e4, and a growing component that starts at 1e-3, 1e-6 or 1e-12 before it escapes.

    An explicit method would need a third of K t steps, 30 000 and more.
    """
    args = (jnp.diag(jnp.array([-0.01, 0.0, 0.01, 30.0, 1000.0])), jnp.asarray(1e4))
    steps, ends = [], []
    for small in (1e-3, 1e-6, 1e-12):
        t1 = (np.log(1 / small) + 8) / 0.01
        y1, num = adaptive(split([small, 0.0, 0.5, 0.5, 0.5]), args, jnp.asarray(t1), jnp.asarray(1e-6))
        steps.append(int(num))
        ends.append(join(y1))
    assert steps[0] < 1500 and steps[2] < 1.5 * steps[0]
    np.testing.assert_allclose(ends[2], ends[0], rtol=1e-3, atol=1e-6)
    assert abs(ends[0][0]) > 0.05  # it did escape


def test_rank_is_at_least_one():
    with pytest.raises(ValueError, match=r"`DeflatedExponential\(rank=\.\.\.\)` must be at least 1; got 0"):
        DeflatedExponential(0)
