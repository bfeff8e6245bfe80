"""The checks of matrix factorization hold on the flow, and each claim fails on at least one flow that is wrong."""

from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
from claims import assert_claims_hold, claims_of, held_by_all, marked
from wrong_factorizations import another_matrix, cut_short, decaying_first_layer, large_start

from thetadot.theory import matrix_factorization as mf
from thetadot.theory.matrix_factorization import flows

# The wrong flows that between them make every claim of a check fail.
CONTROLS = {
    "check_modes": (decaying_first_layer,),
    "check_jump_laws": (decaying_first_layer,),
    "check_singular_value_equation": (decaying_first_layer,),
    "check_staircase": (large_start, cut_short),
    "check_jump_times": (another_matrix,),
    "check_first_path": (large_start,),
    "check_recovery": (large_start,),
    "check_saddles": (another_matrix,),
    "check_final_stage": (cut_short, large_start),
}
BY_NAME: dict[str, Any] = {check.__name__: check for check in mf.CHECKS}


@pytest.mark.parametrize("name", marked(BY_NAME))
def test_the_claims_hold(name):
    assert_claims_hold(BY_NAME[name], "arXiv:")


@pytest.mark.parametrize("name", marked(CONTROLS))
def test_every_claim_fails_on_a_wrong_flow(name):
    assert held_by_all(BY_NAME[name], CONTROLS[name]) == set()


def test_every_check_has_a_control():
    assert set(CONTROLS) == set(BY_NAME)


@pytest.mark.slow
def test_no_two_claims_are_the_same():
    checks = [check for name in BY_NAME for check in claims_of(BY_NAME[name])]
    assert len(checks) > 90 and len({check.claim for check in checks}) == len(checks)
    assert {check.status for check in checks} == {"reported", "derived"}


def test_mean_jumps_are_the_mean_over_gaussian_draws():
    """5 standard errors of the mean over 300 draws; the leading order log(1/ε)/s alone is further off."""
    target, scale = flows.full()["target"], 1e-4
    draws = np.array([mf.two_layer_jumps(flows.gaussian(2, scale, seed), target) for seed in range(300)])
    mean = mf.mean_two_layer_jumps(flows.STRENGTHS, flows.SIZE, scale)
    deviation = mf.spread_of_two_layer_jumps(flows.STRENGTHS, flows.SIZE)
    assert np.all(np.abs(draws.mean(axis=0) - mean) < 5 * deviation / np.sqrt(300))
    np.testing.assert_allclose(draws.std(axis=0), deviation, rtol=0.2)
    assert abs(draws[:, 0].mean() - np.log(1 / scale) / 3) > 5 * deviation[0] / np.sqrt(300)


def test_jumps_of_an_aligned_start_are_those_of_the_modes():
    target = jnp.diag(jnp.array([3.0, 1.0]))
    params0 = [jnp.diag(jnp.array([1e-3, 2e-3]))] * 2
    expected = mf.two_layer_time(np.array([1.5, 0.5]), np.array([3.0, 1.0]), np.array([1e-6, 4e-6]))
    np.testing.assert_allclose(mf.two_layer_jumps(params0, target), expected, rtol=1e-12)


@pytest.mark.parametrize("rank, num_observed, seed", [(1, 15, 0), (2, 20, 3)])
def test_greedy_saddles_are_critical_points_down_to_the_matrix(rank, num_observed, seed):
    data = flows.partly(rank, num_observed, seed)
    saddles = mf.greedy_saddles(data, rank)
    losses = [loss for loss, _ in saddles]
    seen = np.asarray(data["observed"] * data["target"])
    assert losses[0] == pytest.approx(0.5 * np.sum(seen**2), rel=1e-14)
    assert losses[-1] < 1e-20 and np.all(np.diff(losses) < 0)
    np.testing.assert_allclose(saddles[0][1], np.linalg.svd(seen, compute_uv=False), rtol=1e-12)
    # With all entries seen, the saddles are the truncated singular value decompositions.
    whole = mf.greedy_saddles(flows.full(), 3)
    np.testing.assert_allclose([loss for loss, _ in whole], [7.0, 2.5, 0.5, 0.0], atol=1e-12)
    np.testing.assert_allclose(whole[1][1][:2], [2.0, 1.0], rtol=1e-10)


def test_error_exponent_of_one_mode_and_of_many_layers():
    saddles = [(1.0, np.array([2.0, 0.5, 0.1])), (0.0, np.zeros(3))]
    assert mf.error_exponent(saddles, 2) == pytest.approx(2 * (1 - 0.25))
    assert mf.error_exponent(saddles, 3) == 3.0
    # Two modes: the third gains 0.1/2 on the first plateau and (1 - 0.25) · 0.2/0.4 on the second.
    saddles = [(1.0, np.array([2.0, 0.5, 0.1])), (0.5, np.array([0.4, 0.2, 0.1])), (0.0, np.zeros(3))]
    assert mf.error_exponent(saddles, 2) == pytest.approx(2 * (1 - 0.05 - 0.75 * 0.5))
