"""The classifier against a naive loop over sequences, its gradient, its symmetries and what it conserves."""

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest

from thetadot import inits
from thetadot.models import attention_classifier as model

LOSSES = {
    "tanh, exponential": (jnp.tanh, model.exponential, np.tanh, lambda q: np.exp(-q)),
    "tanh, logistic": (jnp.tanh, model.logistic, np.tanh, lambda q: np.log(1 + np.exp(-q))),
    "linear, exponential": (model.identity, model.exponential, lambda z: z, lambda q: np.exp(-q)),
    "softplus, logistic": (
        jax.nn.softplus,
        model.logistic,
        lambda z: np.log(1 + np.exp(z)),
        lambda q: np.log1p(np.exp(-q)),
    ),
}


def problem(num=7, length=4, d_model=3, scale=0.8):
    rng = np.random.default_rng(num)
    data = {"x": rng.normal(size=(num, length, d_model)), "y": np.where(rng.random(num) < 0.5, -1.0, 1.0)}
    return inits.attention_classifier_params(d_model, scale, key=jr.key(0)), jax.tree.map(jnp.asarray, data)


def naive_loss(params, data, activation, margin_loss):
    p, total = {name: np.asarray(value) for name, value in params.items()}, 0.0
    for x, y in zip(np.asarray(data["x"]), np.asarray(data["y"]), strict=True):
        scores = x @ p["w_q"] @ p["w_k"].T @ x.T / np.sqrt(x.shape[1])
        rows = np.array([np.exp(row) / np.exp(row).sum() for row in scores])
        output = activation(rows @ x @ p["w_v"] @ p["w_1"]) @ p["w_2"]
        total += margin_loss(y * output[-1])
    return total / len(data["y"])


@pytest.mark.parametrize("num", [1, 3, 7, 13])
@pytest.mark.parametrize("name", LOSSES)
def test_loss_is_the_naive_loop(name, num):
    activation, margin_loss, np_activation, np_margin_loss = LOSSES[name]
    params, data = problem(num)
    expected = naive_loss(params, data, np_activation, np_margin_loss)
    loss = model.loss_fn(activation, margin_loss)
    assert float(loss(params, data)) == pytest.approx(expected, rel=1e-13)
    flipped = {**data, "x": data["x"][:, ::-1]}  # another last token
    assert abs(float(loss(params, flipped)) - expected) > 1e-4


def test_gradient_is_the_finite_difference():
    params, data = problem()
    value_and_grad = jax.jit(jax.value_and_grad(model.loss_fn(jnp.tanh)))
    rng = np.random.default_rng(1)
    direction = jax.tree.map(lambda x: jnp.asarray(rng.normal(size=x.shape)), params)
    ends = [jax.tree.map(lambda x, v, h=h: x + h * v, params, direction) for h in (1e-5, -1e-5)]
    slope = (float(value_and_grad(ends[0], data)[0]) - float(value_and_grad(ends[1], data)[0])) / 2e-5
    grad = value_and_grad(params, data)[1]
    assert sum(float(jnp.vdot(grad[name], direction[name])) for name in grad) == pytest.approx(slope, rel=1e-7)


def test_attention_is_a_law_and_uniform_without_queries():
    params, data = problem()
    rows = model.attention(params, data["x"])
    np.testing.assert_allclose(rows.sum(axis=1), 1.0, rtol=1e-14)
    off = {**params, "w_q": jnp.zeros((3, 3))}
    np.testing.assert_allclose(model.attention(off, data["x"]), 0.25, rtol=1e-14)
    pooled = model.outer_network(params, jnp.mean(data["x"], axis=1), jnp.tanh)
    np.testing.assert_allclose(model.network(off, data["x"], jnp.tanh), pooled, rtol=1e-13)
    assert float(jnp.max(jnp.abs(model.network(params, data["x"], jnp.tanh) - pooled))) > 1e-3


def test_one_loss_object_for_each_activation_and_loss():
    assert model.loss_fn(jnp.tanh) is model.loss_fn(jnp.tanh)
    assert model.loss_fn(jnp.tanh) is not model.loss_fn(jnp.tanh, model.logistic)


def test_large_margins_stay_finite():
    """A margin of -800 overflows the exponential loss but not the logistic one."""
    assert np.isfinite(model.logistic(jnp.array([-800.0, 800.0]))).all()
    assert float(model.logistic(jnp.array(-800.0))) == pytest.approx(800.0)


@pytest.mark.parametrize("name", LOSSES)
def test_conservation_laws_and_where_they_end(name):
    """The balances of both products for every activation; the output balance for the linear one only."""
    activation, margin_loss, *_ = LOSSES[name]
    params, data = problem()
    velocity = jax.tree.map(jnp.negative, jax.jit(jax.grad(model.loss_fn(activation, margin_loss)))(params, data))
    wrong = {**velocity, "w_k": -velocity["w_k"], "w_1": -velocity["w_1"]}

    def rate(law, velocity):
        return float(jnp.max(jnp.abs(jax.jvp(law, (params,), (velocity,))[1])))

    for law in (model.query_key_balance, model.value_balance):
        assert rate(law, velocity) < 1e-13
        assert rate(law, wrong) > 1e-3
    assert (rate(model.output_balance, velocity) < 1e-13) == name.startswith("linear")
