"""Coefficients, stages and spectral radius of the stabilized method; what all solvers share is in test_common.py."""

import diffrax as dfx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest

from thetadot.solvers._chebyshev import chebyshev_coefficients
from thetadot.solvers.stabilized import (
    StabilizedRungeKutta,
    chebyshev_step,
    spectral_radius,
)

SOLVER = StabilizedRungeKutta()


@pytest.mark.parametrize("s", [2, 3, 7, 12, 50, 500])
def test_polynomial_is_stable_and_consistent(s):
    limit, rows = chebyshev_coefficients(s)

    def polynomial(z):
        before, last = 0.0, rows[0, 0] * z
        for mu, nu, mu_tilde, gamma_tilde, _ in rows[1:]:
            before, last = last, mu * last + nu * before + mu_tilde * z * (1 + last) + gamma_tilde * z
        return 1 + last

    assert limit > 0.65 * (s**2 - 1)
    assert np.all(np.abs(polynomial(np.linspace(-limit, 0, 20 * s))) <= 1 + 1e-9)
    z = 1e-3
    assert abs(polynomial(z) - (1 + z + z**2 / 2)) < z**3 / 6
    np.testing.assert_allclose(rows[-1, 4], 1)
    # Σ b = 1 and Σ b c = 1/2, through fields that depend on the stage alone
    displacement, _, _ = chebyshev_step(
        lambda c, u: jnp.ones_like(u) * c, jnp.zeros(1), jnp.array(1.0), jnp.array(0.99 * limit), 500
    )
    np.testing.assert_allclose(displacement, 0.5, rtol=1e-9)


def test_large_steps_on_a_stiff_linear_field_decay():
    rates = -jnp.logspace(-2, 4, 40)

    @jax.jit
    def step(y, state):
        y, error, _, state, _ = SOLVER.step(term, 0.0, 1.0, y, None, state, jnp.array(False))
        return y, error, state

    term = dfx.ODETerm(lambda t, y, args: rates * y)
    y = jnp.ones(40)
    state = SOLVER.init(term, 0.0, 1.0, y, None)
    for _ in range(30):
        y, error, state = step(y, state)
    assert int(state.num_gradients) < 1.24 * np.sqrt(1.2 * 1e4) * 1.09
    assert jnp.all(jnp.abs(y[rates < -10]) < 0.96**30)
    np.testing.assert_allclose(y[:10], jnp.exp(30 * rates[:10]), rtol=0.05)
    assert jnp.all(jnp.isfinite(error))


def test_a_step_beyond_the_cap_is_rejected_without_work():
    term = dfx.ODETerm(lambda t, y, args: -1e9 * y)
    y = jnp.ones(2)
    _, error, _, state, _ = SOLVER.step(term, 0.0, 1.0, y, None, SOLVER.init(term, 0.0, 1.0, y, None), jnp.array(False))
    assert jnp.all(jnp.isinf(error)) and state.num_gradients == 0


@pytest.mark.parametrize("seed", range(3))
def test_spectral_radius_of_symmetric_matrices(seed):
    matrix = jr.normal(jr.key(seed), (30, 30))
    matrix = matrix + matrix.T
    radius, vector, count = spectral_radius(
        lambda v: matrix @ v, jr.normal(jr.key(9), (30,)), jnp.array(0.0), jnp.array(True)
    )
    exact = jnp.max(jnp.abs(jnp.linalg.eigvalsh(matrix)))
    assert exact / 1.2 <= radius <= exact * (1 + 1e-12)
    np.testing.assert_allclose(jnp.linalg.norm(vector), 1)
    assert count < 50


def test_spectral_radius_survives_overflow_and_zero():
    def radius(product):
        return spectral_radius(product, jnp.ones(3), jnp.array(7.0), jnp.array(True))

    for bad in (jnp.nan, jnp.inf):
        size, vector, _ = radius(lambda v, bad=bad: v.at[0].set(bad))
        assert size == 7 and jnp.all(jnp.isfinite(vector))
    np.testing.assert_allclose(radius(lambda v: 1e200 * v)[0], 1e200)
    size, vector, count = radius(lambda v: 0 * v)
    assert size == 0 and jnp.all(jnp.isfinite(vector)) and count <= 2
    assert spectral_radius(lambda v: v, jnp.ones(3), jnp.array(7.0), jnp.array(False))[0] == 7


def test_refuses_less_than_two_stages():
    with pytest.raises(ValueError, match="max_stages"):
        StabilizedRungeKutta(max_stages=1)
