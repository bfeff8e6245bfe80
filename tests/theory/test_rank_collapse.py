"""Closed forms of rank collapse against the model itself; its checks hold, and fail on flows that are wrong."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import wrong_anchors
from claims import assert_claims_hold, claims_of, held_by_all, marked

from thetadot.models import attention_classifier as model
from thetadot.theory import rank_collapse as rc
from thetadot.theory.rank_collapse import anchor, flows

# --- closed forms ---


@pytest.mark.parametrize("activation, margin_loss", [(model.identity, model.exponential), (jnp.tanh, model.logistic)])
def test_key_query_matrix_is_minus_the_gradient_in_the_product(activation, margin_loss):
    setting, params = flows.sequences(), flows.gaussian(0.7, 0)
    product_loss = model.loss_fn(activation, margin_loss)
    at = lambda b: product_loss({**params, "w_q": b, "w_k": jnp.eye(6)}, setting)  # noqa: E731
    expected = -jax.jit(jax.grad(at))(jnp.zeros((6, 6)))
    np.testing.assert_allclose(rc.key_query_matrix(params, setting, activation, margin_loss), expected, atol=1e-15)
    assert float(jnp.max(jnp.abs(rc.key_query_matrix(params, setting) - expected.T))) > 1e-3


def test_key_query_flow_solves_its_equation():
    rng = np.random.default_rng(0)
    matrix, w_q, w_k = (jnp.asarray(rng.normal(size=(4, 4))) for _ in range(3))
    for t in (0.0, 0.7):
        (q, k), (dq, dk) = jax.jvp(lambda s: rc.key_query_flow(s, matrix, w_q, w_k), (t,), (1.0,))
        np.testing.assert_allclose(dq, matrix @ k, rtol=1e-12)
        np.testing.assert_allclose(dk, matrix.T @ q, rtol=1e-12)
    start = rc.key_query_flow(0.0, matrix, w_q, w_k)
    np.testing.assert_allclose(start, (w_q, w_k), atol=1e-14)


@pytest.mark.parametrize("margin_loss", [model.exponential, model.logistic])
def test_quasi_stationary_points_are_critical(margin_loss):
    setting = flows.sequences()
    start = rc.quasi_stationary(setting, margin_loss)
    grad = jax.jit(jax.grad(model.loss_fn(model.identity, margin_loss)))(start, setting)
    assert max(float(jnp.max(jnp.abs(g))) for g in grad.values()) < 1e-14
    np.testing.assert_allclose(start["w_v"] @ start["w_1"] @ start["w_2"], rc.pooled_minimum(setting, margin_loss))


def test_separable_features_have_no_quasi_stationary_point():
    with pytest.raises(ValueError, match="no hyperplane separates"):
        rc.pooled_minimum(flows.sequences(focus=0.0))


def test_effective_dynamics_is_the_gradient_at_small_weights():
    """dθ̄/dt over its prediction → 1 as ε → 0, for both losses."""
    setting = flows.sequences()
    for margin_loss in (model.exponential, model.logistic):
        grad, errors = jax.jit(jax.grad(model.loss_fn(jnp.tanh, margin_loss))), []
        for scale in (1e-2, 1e-3):
            params = flows.gaussian(scale, 0)
            velocity = -grad(params, setting)["w_1"] / scale
            outer = rc.effective_start(params, setting, scale)
            rate = rc.effective_rate(setting, scale, margin_loss)
            predicted = rate * outer["a"][:, None] * outer["c"][None, :]
            errors.append(float(jnp.linalg.norm(velocity - predicted) / jnp.linalg.norm(predicted)))
        assert errors[1] < 1e-4 and errors[1] < 0.05 * errors[0]


def test_effective_params_and_start_are_inverse():
    setting, params = flows.sequences(), flows.gaussian(1e-3, 0)
    back = rc.effective_params(rc.effective_start(params, setting, 1e-3), params, setting, 1e-3)
    for name, value in params.items():
        np.testing.assert_allclose(back[name], value, atol=1e-18)
    assert float(rc.escape_time(2.0, setting, 1e-3)) == pytest.approx(2.0 / float(rc.effective_rate(setting, 1e-3)))


def test_flows_have_the_losses_of_the_model():
    """β and κ at their limits are the activations and losses of the model, to rounding."""
    params = flows.gaussian(0.7, 1)
    for bend, activation in ((flows.TANH, jnp.tanh), (flows.LINEAR, model.identity)):
        for saturation, margin_loss in ((flows.LOGISTIC, model.logistic), (flows.EXPONENTIAL, model.exponential)):
            setting = flows.sequences(bend=bend, saturation=saturation)
            expected = float(model.loss_fn(activation, margin_loss)(params, setting))
            assert float(flows.loss(params, setting)) == pytest.approx(expected, rel=1e-13)


# --- anchor task ---


def test_the_anchor_signal_is_the_gradient_at_small_weights():
    """-dL/dW_1 → W_V^T G W_2^T as ε → 0, and likewise for the other two."""
    sequences, params = anchor.anchor_sequences(1), anchor.anchor_start(1e-4, 1)
    slope = jax.jit(jax.grad(anchor._loss))(params, sequences)
    w_v, w_1, w_2, signal = params["w_v"][0], params["w_1"], params["w_2"], anchor.anchor_signal(sequences)
    predicted = {"w_v": (signal @ (w_1 @ w_2).T)[None], "w_1": w_v.T @ signal @ w_2.T, "w_2": (w_v @ w_1).T @ signal}
    for name, expected in predicted.items():
        assert float(jnp.linalg.norm(slope[name] + expected)) < 1e-5 * float(jnp.linalg.norm(expected))


def test_the_drive_of_the_anchor_task_is_the_gradient_at_small_queries_and_keys():
    sequences, params = anchor.anchor_sequences(1), anchor.anchor_start(0.5, 1)
    small = params | {name: 1e-5 * params[name] for name in ("w_q", "w_k")}
    slope = jax.jit(jax.grad(anchor._loss))(small, sequences)
    drive = anchor._drive({name: params[name].reshape(params[name].shape[-2:]) for name in anchor._OUTER}, sequences)
    for name, expected in (("w_q", drive @ small["w_k"][0]), ("w_k", drive.T @ small["w_q"][0])):
        assert float(jnp.linalg.norm(slope[name][0] + expected)) < 1e-6 * float(jnp.linalg.norm(expected))


# --- wrong flows ---


def another_draw(sequences, params0, t1, levels=None, rtol=1e-8):
    """The flow on other sequences than those that the prediction is for."""
    other = flows.sequences(3, 4.0) | {name: sequences[name] for name in ("bend", "saturation")}
    return flows.trace(other, params0, t1, levels, rtol)


def large_start(sequences, params0, t1, levels=None, rtol=1e-8):
    """Weights of size 0.5 instead of small ones."""
    size = max(float(jnp.max(jnp.abs(block))) for block in params0.values())
    return flows.trace(sequences, jax.tree.map(lambda x: x * 0.5 / size, params0), min(t1, 1e3), levels, rtol)


def cut_short(sequences, params0, t1, levels=None, rtol=1e-8):
    """A flow that ends long before what is claimed."""
    return flows.trace(sequences, params0, t1 / 1000, levels, rtol)


def already_met(sequences, params0, t1, levels=None, rtol=1e-8):
    """A condensed start: the rank-one point of the effective dynamics, at the size of the other starts."""
    v = rc.pooled_signal(sequences) / jnp.linalg.norm(rc.pooled_signal(sequences))
    e, size = jnp.full((6,), 6**-0.5), float(jnp.linalg.norm(params0["w_2"]))
    outer = {"w_v": v[:, None] * e[None, :], "w_1": e[:, None] * e[None, :], "w_2": e}
    return flows.trace(sequences, params0 | {name: size * x for name, x in outer.items()}, t1, levels, rtol)


def loosely_solved(sequences, params0, t1, levels=None, rtol=1e-8):
    """A tolerance at which nothing is conserved."""
    del rtol
    return flows.trace(sequences, params0, t1, levels, 1e-2)


# --- checks ---

# The wrong flows that between them make every claim of a check fail.
CONTROLS = {
    "check_effective_dynamics": (large_start,),
    "check_escape_time": (another_draw, large_start),
    "check_condensation_condition": (large_start, already_met),
    "check_key_query_growth": (another_draw, cut_short),
    "check_collapse_quality": (another_draw, cut_short),
    "check_three_stages": (large_start,),
    "check_conservation": (loosely_solved,),
    "check_anchor_task": (wrong_anchors.large_start, wrong_anchors.condensed_start, wrong_anchors.long_embedding),
}
BY_NAME: dict[str, Any] = {check.__name__: check for check in rc.CHECKS}
QUICK = ("check_gradient_separation",)


@pytest.mark.parametrize("name", marked(BY_NAME, QUICK))
def test_the_claims_hold(name):
    assert_claims_hold(BY_NAME[name], "arXiv:2510.06954, ")


@pytest.mark.parametrize("name", marked(CONTROLS, QUICK))
def test_every_claim_fails_on_a_wrong_flow(name, monkeypatch):
    """Of the anchor task, in two of its draws."""
    monkeypatch.setattr(anchor, "_DRAWS", range(2))
    assert held_by_all(BY_NAME[name], CONTROLS[name]) == set()


def test_gradients_of_another_point_are_not_separated():
    """Off the critical point and with queries of order one, no gradient falls with δ."""

    def elsewhere(setting):
        start = rc.quasi_stationary(setting)
        return {**start, "w_2": 1.1 * start["w_2"], "w_q": 0.1 * jnp.eye(6)}

    assert not [check for check in rc.check_gradient_separation(elsewhere) if check.passed]


def test_every_check_has_a_control():
    assert set(CONTROLS) | {"check_gradient_separation"} == set(BY_NAME)  # the test above


@pytest.mark.slow
def test_the_anchor_task_with_the_answers_of_other_sequences_is_another_task(monkeypatch):
    """They are learned by heart in the same three stages, but at another time and from other queries; two draws."""
    monkeypatch.setattr(anchor, "_DRAWS", range(2))
    failed = [check.claim for check in rc.check_anchor_task(wrong_anchors.shuffled_answers) if not check.passed]
    assert any("ε t/T̄*" in claim for claim in failed) and any("Eq. 14" in claim for claim in failed)


@pytest.mark.slow
def test_no_two_claims_are_the_same():
    checks = [check for name in BY_NAME for check in claims_of(BY_NAME[name])]
    assert len(checks) > 30 and len({check.claim for check in checks}) == len(checks)
