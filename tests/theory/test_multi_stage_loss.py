"""The stages of a two-layer network: closed forms on their own, and the checks on right and on wrong flows."""

from typing import Any

import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
from claims import assert_claims_hold, claims_of, held_by_all, marked
from scipy.linalg import expm

import thetadot as td
from thetadot.theory import multi_stage_loss as msl
from thetadot.theory.multi_stage_loss import flows, measured
from thetadot.theory.multi_stage_loss.secondary_plateau import _slope

DATA = flows.curve()
X, Y = DATA["x"], DATA["y"]


# --- wrong flows, in place of the one that a check measures ---


def another_curve(data, params0, t1, rtol=1e-6):
    """The flow of other data than the prediction is for, with a larger λ and R_lin."""
    return flows.trace({**data, "y": 1.3 * data["y"]}, params0, t1, rtol)


def one_scale(data, params0, t1, rtol=1e-6):
    """A start that does not shrink as the network widens."""
    m = int(jnp.sum(params0["a"] != 0))
    size = float(jnp.linalg.norm(params0["a"])) / np.sqrt(m)
    return flows.trace(data, {name: 3e-3 / size * block for name, block in params0.items()}, t1, rtol)


def wide_start(data, params0, t1, rtol=1e-6):
    """A start so large that there is no initial plateau."""
    return flows.trace(data, {name: 30.0 * block for name, block in params0.items()}, t1, rtol)


def unskewed(data, params0, t1, rtol=1e-6):
    """tanh alone, where a quadratic term is expected, and the other way around."""
    return flows.trace({**data, "skew": 0.5 - data["skew"]}, params0, t1, rtol)


def opposite_bend(data, params0, t1, rtol=1e-6):
    """The residual turned around."""
    line = data["x"] @ msl.linear_fit(data["x"], data["y"]).beta
    return flows.trace({**data, "y": 2 * line - data["y"]}, params0, t1, rtol)


# The wrong flows that between them make every claim of a check fail.
CONTROLS = {
    "check_linearization": (another_curve, one_scale),
    "check_alignment": (another_curve, wide_start),
    "check_timing": (another_curve,),
    "check_width": (another_curve, wide_start),
    "check_height": (another_curve,),
    "check_length": (another_curve, unskewed),
    "check_stable_ray": (opposite_bend,),
    "check_amplitudes": (one_scale,),
}
BY_NAME: dict[str, Any] = {check.__name__: check for check in msl.CHECKS}


@pytest.mark.parametrize("name", marked(BY_NAME))
def test_the_claims_hold(name):
    assert_claims_hold(BY_NAME[name], "arXiv:2410.20119, ")


@pytest.mark.parametrize("name", marked(CONTROLS))
def test_every_claim_fails_on_a_wrong_flow(name):
    assert held_by_all(BY_NAME[name], CONTROLS[name]) == set()


def test_every_check_has_a_control():
    assert set(CONTROLS) == set(BY_NAME)


@pytest.mark.slow
def test_no_two_claims_are_the_same():
    checks = [check for name in BY_NAME for check in claims_of(BY_NAME[name])]
    assert len(checks) > 20 and len({check.claim for check in checks}) == len(checks)
    assert {check.status for check in checks} == {"reported", "derived"}


# --- closed forms ---


def test_linearized_neurons_are_the_matrix_exponential():
    params0 = td.inits.two_layer_params(5, 2, 1e-2, key=jr.key(0))
    v = np.asarray(X).T @ np.asarray(Y) / len(Y)
    generator = np.zeros((3, 3))
    generator[0, 1:] = generator[1:, 0] = v
    theta0 = np.concatenate([params0["a"][:, None], params0["w"]], axis=1)
    theta = theta0 @ expm(1.7 * generator)
    found = msl.linearized(params0, X, Y, 1.7)
    np.testing.assert_allclose(np.concatenate([found["a"][:, None], found["w"]], axis=1), theta, rtol=1e-12)
    np.testing.assert_allclose(msl.linearized_fit(params0, X, Y, 1.7), theta[:, 0] @ theta[:, 1:], rtol=1e-12)


def test_the_slope_of_the_first_plateau_needs_a_small_start():
    assert msl.initial_plateau_slope(0.5, 1.0) == 1.0
    with pytest.raises(ValueError, match=r"initial_plateau_slope\(alpha=\.\.\.\)` must exceed 1/2"):
        msl.initial_plateau_slope(0.5, 0.5)


def test_the_linear_network_crosses_where_one_mode_is_a_logistic_curve():
    """One input, f = βx: β̇ = 2 β (v - C β) from a balanced start."""
    x, y = np.array([[1.0], [-2.0]]), np.array([1.5, -3.0])
    v, second, start = 3.75, 2.5, 1e-6
    levels = (2.0, 1.0, 0.1)
    betas = 1.5 - np.sqrt(2 * np.array(levels) / second)  # L = C (β - 3/2)²/2
    times = np.log(betas * (v - second * start) / (start * (v - second * betas))) / (2 * v)
    found = msl.linear_crossings(x, y, start * np.ones((2, 2)), levels)
    np.testing.assert_allclose(found, times, rtol=1e-8)
    assert np.isnan(msl.linear_crossings(x, y + 1, start * np.ones((2, 2)), (0.01,))[0])  # R_lin lies above


def test_predicted_plateaus_are_those_of_zero_and_of_the_line():
    line = np.polyfit(np.asarray(X)[:, 0], np.asarray(Y), 1)
    residual = np.polyval(line, np.asarray(X)[:, 0]) - np.asarray(Y)
    plateaus = msl.predicted_plateaus(X, Y)
    assert plateaus["initial"] == pytest.approx(float(np.mean(np.asarray(Y) ** 2)) / 2)
    assert plateaus["best linear fit"] == pytest.approx(float(np.mean(residual**2)) / 2, rel=1e-10)


def test_the_shift_of_the_plateau_is_that_of_a_network_on_the_ray():
    m, beta = 1_000_000, np.asarray(msl.linear_fit(X, Y).beta)
    size = np.linalg.norm(beta)
    s = np.random.default_rng(0).normal(size=m)
    s *= np.sqrt(size / np.sum(s**2))
    z = np.asarray(X) @ beta / size
    output = np.array([np.sum(s * np.tanh(s * h)) for h in z])
    # The linear part relaxes at once: the loss that no line can mend.
    residual = np.asarray(Y) - output
    left = residual - np.asarray(X) @ np.linalg.lstsq(np.asarray(X), residual)[0]
    shift = m * (np.mean(left**2) / 2 - float(msl.linear_fit(X, Y).loss))
    assert shift == pytest.approx(float(msl.plateau_shift(X, Y, -1 / 3)), rel=0.02)


def test_the_slow_flow_scales_with_the_width():
    """Copies of the same strengths take m times as long (p = 3) or m^1/2; what is left at the end does not scale."""
    x, y = np.asarray(X), np.asarray(Y)
    s = np.random.default_rng(1).normal(size=50)
    for coefficient, order, factor in ((-1 / 3, 3, 4.0), (0.5, 2, 2.0)):
        times = [measure_slow(x, y, np.tile(s, copies), coefficient, order) for copies in (1, 4, 16)]
        assert (times[2] - times[1]) / (times[1] - times[0]) == pytest.approx(factor, rel=0.1)
    bent = np.asarray(flows.curve(lambda t: t + 2 * t**3 + 0.5)["y"])
    assert np.isnan(measure_slow(x, bent, s, -1 / 3, 3))  # nothing runs away


def measure_slow(x, y, s, coefficient, order):
    return msl.slow_escape_time(x, y, s, coefficient, order, 2e3)


def test_a_length_that_is_missing_confirms_nothing():
    widths = len(measured.WIDTHS)
    assert np.isnan(_slope(np.full((widths, 2), np.nan), np.ones((widths, 2))).value)
    assert np.isnan(measured.power(measured.WIDTHS, np.zeros((widths, 2))).value)
