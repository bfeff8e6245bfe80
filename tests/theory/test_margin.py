"""Margins under exponential loss: the checks hold on the flow, and fail on one that stops growing."""

import jax.numpy as jnp
import numpy as np
import pytest

from thetadot.flow import gradient_flow
from thetadot.models import linear
from thetadot.problem import Problem
from thetadot.theory import margin


def decaying(data, params0, t1, **options):
    """Weight decay: the flow comes to rest, soon, at a finite norm, where the margin is not yet the largest."""
    del t1
    problem = Problem(_with_decay, data)
    return gradient_flow(problem, params0, 1e3, observables=margin._OBSERVABLES, solver="tsit5", **options)


def _with_decay(params, data):
    return linear.exponential_loss(params, data) + 0.3 * sum(jnp.sum(jnp.square(w)) for w in params)


def shallow(monkeypatch, *depths):
    """Only these depths are measured: each compiles a loop."""
    monkeypatch.setattr(margin, "_STARTS", {depth: margin._STARTS[depth] for depth in depths})


@pytest.mark.slow
def test_the_claims_hold_for_two_layers(monkeypatch):
    shallow(monkeypatch, 2)
    checks = margin.check_margin()
    assert len(checks) == 7 and not [check for check in checks if not check.passed]


@pytest.mark.slow
def test_every_claim_about_growth_fails_under_weight_decay(monkeypatch):
    shallow(monkeypatch, 2)
    held = {check.claim for check in margin.check_margin(decaying) if check.passed}
    assert all("stable rank" in claim or "u_1" in claim for claim in held)  # layers align all the same


@pytest.mark.slow
def test_the_claims_hold():
    checks = margin.check_margin()
    assert len(checks) == 19 and not [check for check in checks if not check.passed]
    assert len({check.claim for check in checks}) == len(checks)


@pytest.mark.slow
def test_alignment_fails_on_a_large_start(monkeypatch):
    """What a layer starts with stays beside the direction that grows."""
    shallow(monkeypatch, 3)
    monkeypatch.setattr(margin, "_STARTS", {3: (margin._STARTS[3][0], 2.0)})
    failed = {check.claim for check in margin.check_margin() if not check.passed}
    assert any("stable rank" in claim for claim in failed) and any("u_1" in claim for claim in failed)


def test_max_margin_touches_the_support_vectors():
    x, y = np.array([[1.0, 0.0], [0.0, 1.0], [5.0, 5.0], [-1.0, 0.0]]), np.array([1.0, 1.0, 1.0, -1.0])
    np.testing.assert_allclose(margin.max_margin(x, y), [1.0, 1.0], atol=1e-7)
    x, y = (np.asarray(part) for part in margin.data().values())
    signed = y * (x @ margin.max_margin(x, y))
    assert np.min(signed) == pytest.approx(1.0, abs=1e-9) and np.sum(signed < 1 + 1e-7) == 3
    rng = np.random.default_rng(0)
    best = 1 / np.linalg.norm(margin.max_margin(x, y))
    others = rng.normal(size=(2000, 3))
    assert np.max(np.min(y * (others @ x.T), axis=1) / np.linalg.norm(others, axis=1)) < best
