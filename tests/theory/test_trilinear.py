"""The trilinear flow: its closed forms against quadrature, and its checks on right and wrong flows."""

from functools import cache

import jax.numpy as jnp
import numpy as np
import pytest
from scipy.integrate import quad

from thetadot.models import trilinear as model
from thetadot.problem import Problem
from thetadot.theory import trilinear
from thetadot.theory.trilinear import draws, times

BY_NAME = {check.__name__: check for check in trilinear.CHECKS}
QUICK = ("check_blow_up_times",)  # the others compile another loop

# --- closed forms ---


@pytest.mark.parametrize("a, b, c", [(1.0, 1.0, 1.0), (0.3, 0.7, 2.0), (1.2, -0.1, -0.4)])
def test_scalar_time_is_the_integral(a, b, c):
    """∫_a^∞ da / (bc) with b, c from the conserved differences of squares; a = |a|/x maps it to (0, 1)."""

    def integrand(x):
        s = (a / x) ** 2
        return a / x**2 / np.sqrt((s - a**2 + b**2) * (s - a**2 + c**2))

    assert trilinear.scalar_time(a, b, c) == pytest.approx(quad(integrand, 0, 1, epsabs=1e-13)[0], rel=1e-10)


def test_scalar_time_after_a_fall_is_the_way_down_and_up():
    """From (-0.1, 1, 2): the smallest falls to zero in R_F(0, …) - R_F(start), then all rise."""
    rise = trilinear.scalar_time(0.1, 1.0, 2.0)
    turn = trilinear.scalar_time(1e-12, np.sqrt(1 - 0.01), np.sqrt(4 - 0.01))
    assert trilinear.scalar_time(-0.1, 1.0, 2.0) == pytest.approx(2 * turn - rise, rel=1e-9)
    assert trilinear.scalar_time(-1.0, 1.0, 1.0) == np.inf  # the flow dies out


def test_times_scale_like_one_over_the_size_and_equal_sides_meet_the_bound():
    assert trilinear.scalar_time(0.2, 0.4, 0.6) == pytest.approx(5 * trilinear.scalar_time(1.0, 2.0, 3.0))
    assert trilinear.scalar_time(0.7, 0.7, 0.7) == pytest.approx(float(trilinear.balanced_time(0.7)), rel=1e-14)
    np.testing.assert_allclose(trilinear.time_bound(np.array([8.0, -1.0])), [0.5, np.inf])
    assert trilinear.energy_floor(0.0, -8.0) == pytest.approx(-8.0)


# --- checks ---


@pytest.fixture
def few(monkeypatch):
    """Forty draws stand for the thousand of `run_checks`."""
    monkeypatch.setattr(times, "_NUM_DRAWS", 40)
    monkeypatch.setattr(times, "_NUM_EXACT", 10)


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=() if name in QUICK else pytest.mark.slow) for name in BY_NAME]
)
def test_the_claims_hold(name, few):
    checks = BY_NAME[name]()
    assert checks and not [check for check in checks if not check.passed]


@pytest.mark.slow
def test_a_thousand_draws():
    checks = trilinear.CHECKS[0]()
    assert "of 1000 Gaussian draws" in checks[0].claim and all(check.passed for check in checks)


# --- wrong flows ---


def saturating(params, data):
    """Bounded below: nothing blows up."""
    del data
    sizes = sum(jnp.sum(jnp.square(x)) for x in params.values())
    return -model.energy(params) + 0.05 * sizes**2


def slowed(params, data):
    """A tenth of the speed."""
    return 0.1 * model.loss(params, data)


def reversed_time(params, data):
    """Energy falls: the flow blows up with the wrong signs."""
    return -model.loss(params, data)


def unbalancing(params, data):
    """Cubic as well, so that it blows up with the same exponent, but a and c grow on their own."""
    return model.loss(params, data) - 0.1 * (jnp.sum(params["a"] ** 3) + jnp.sum(params["c"] ** 3))


CONTROLS = {
    "check_blow_up_times": saturating,
    "check_profile": saturating,
    "check_energy": slowed,
    "check_invariants": unbalancing,
}
make = cache(Problem)


@pytest.mark.slow
@pytest.mark.parametrize("name", CONTROLS)
def test_every_claim_fails_on_a_wrong_flow(name, few):
    held = [check.claim for check in BY_NAME[name](make(CONTROLS[name])) if check.passed]
    assert not held


@pytest.mark.slow
def test_the_final_stage_sees_wrong_signs_and_wrong_draws(monkeypatch):
    """At t = 0 the shares tell the draw, later the flow."""
    wrong_flow = {check.claim for check in trilinear.CHECKS[4](make(reversed_time)) if check.passed}
    right = draws.gaussian
    monkeypatch.setattr(draws, "gaussian", lambda d, rng: {k: np.abs(x) for k, x in right(d, rng).items()})
    wrong_draws = {check.claim for check in trilinear.CHECKS[4]() if check.passed}
    assert wrong_flow and not wrong_flow & wrong_draws


def test_every_check_has_a_control():
    assert {*CONTROLS, "check_final_stage"} == set(BY_NAME)
