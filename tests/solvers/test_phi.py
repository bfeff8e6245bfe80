"""φ-functions against 80-digit arithmetic."""

import math
from decimal import Decimal, localcontext

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from thetadot.solvers._phi import phi_functions

phi = jax.jit(phi_functions)

MAGNITUDES = np.concatenate([np.geomspace(1e-300, 1e-9, 7), np.geomspace(1e-8, 700, 60), [0.999999, 1.0, 1.000001]])


def exact_phi(z):
    """φ₁ … φ₄ from the recurrence, with digits to spare; the Taylor series where even those would cancel."""
    with localcontext() as context:
        context.prec = 80
        z = Decimal(float(z))
        if abs(z) < Decimal("1e-8"):
            return [float(sum(z**k / math.factorial(j + k) for k in range(8))) for j in range(1, 5)]
        values = [(z.exp() - 1) / z]
        for j in range(1, 4):
            values.append((values[-1] - Decimal(1) / math.factorial(j)) / z)
        return [float(value) for value in values]


@pytest.mark.parametrize("sign", [-1, 1])
def test_every_real_argument_to_rounding(sign):
    z = sign * MAGNITUDES
    exact = np.array([exact_phi(x) for x in z]).T
    for ours, theirs in zip(phi(jnp.asarray(z)), exact, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-14)  # the exponential of 700 has 3 bits less


def test_zero_and_large_negative_arguments():
    np.testing.assert_allclose(jnp.stack(phi(jnp.zeros(()))), [1, 1 / 2, 1 / 6, 1 / 24], rtol=1e-15)
    far = jnp.array([-1e8, -1e300])
    phi1, phi2, *_ = phi(far)  # φ₁(z) → −1/z and φ₂(z) → −1/z
    np.testing.assert_allclose(-far * phi1, 1, rtol=1e-15)
    np.testing.assert_allclose(-far * phi2, 1, rtol=2e-8)
    assert all(bool(jnp.all(jnp.isfinite(value))) for value in phi(far))


def test_float32():
    z = np.concatenate([-np.geomspace(1e-6, 80, 40), np.geomspace(1e-6, 80, 40)]).astype(np.float32)
    exact = np.array([exact_phi(x) for x in z]).T
    for ours, theirs in zip(phi(jnp.asarray(z)), exact, strict=True):
        assert ours.dtype == jnp.float32
        np.testing.assert_allclose(ours, theirs, rtol=2e-6)


def test_derivatives_have_no_poles():
    """φ₁' = (e^z (z − 1) + 1)/z², ½ at zero: the branch that is not taken contributes no NaN."""
    slope = jax.jit(jax.grad(lambda z: phi_functions(z)[0]))
    assert float(slope(0.0)) == pytest.approx(0.5, rel=1e-14)
    assert float(slope(-3.0)) == pytest.approx((math.exp(-3) * -4 + 1) / 9, rel=1e-13)
