import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
from scipy.integrate import quad, solve_ivp

from thetadot import inits
from thetadot.models import linear as model
from thetadot.theory import matrix_factorization as theory


def scipy_mode(t, s, u0, num_layers):
    def field(_, u):
        return num_layers * u ** (2 - 2 / num_layers) * (s - u)

    return solve_ivp(field, (0, t), [u0], rtol=1e-12, atol=1e-16, method="DOP853").y[0, -1]


@pytest.mark.parametrize("s, u0, t", [(1.0, 1e-3, 2.0), (3.0, 0.5, 0.7), (0.5, 1e-6, 15.0)])
def test_two_layer_mode_solves_its_equation(s, u0, t):
    assert float(theory.two_layer_mode(t, s, u0)) == pytest.approx(scipy_mode(t, s, u0, 2), rel=1e-9)
    assert float(theory.two_layer_mode(0.0, s, u0)) == pytest.approx(u0, rel=1e-14)
    assert float(theory.two_layer_mode(1e6, s, u0)) == s
    # The published form of the same function.
    published = s * np.exp(2 * s * t) / (np.exp(2 * s * t) - 1 + s / u0)
    assert float(theory.two_layer_mode(t, s, u0)) == pytest.approx(published, rel=1e-13)


def test_two_layer_time_inverts_the_mode():
    ts = jnp.linspace(0.1, 5.0, 7)
    np.testing.assert_allclose(theory.two_layer_time(theory.two_layer_mode(ts, 2.0, 1e-4), 2.0, 1e-4), ts, rtol=1e-7)
    half = np.log(2.0 / 1e-4 - 1) / (2 * 2.0)
    assert float(theory.two_layer_time(1.0, 2.0, 1e-4)) == pytest.approx(half, rel=1e-13)


@pytest.mark.parametrize("num_layers", [2, 3, 4, 5, 7])
@pytest.mark.parametrize("s, u0, u", [(1.0, 0.05, 0.9), (4.0, 0.3, 3.999), (0.5, 0.4, 0.45)])
def test_deep_time_is_the_integral_of_the_equation(num_layers, s, u0, u):
    expected = quad(
        lambda v: 1 / (num_layers * v ** (2 - 2 / num_layers) * (s - v)), u0, u, epsabs=0, epsrel=1e-12, limit=200
    )[0]
    assert float(theory.deep_time(u, s, u0, num_layers)) == pytest.approx(expected, rel=1e-10)
    # One layer more or less is another number: the formula sees the depth.
    assert abs(float(theory.deep_time(u, s, u0, num_layers + 1)) / expected - 1) > 1e-2


def test_deep_time_of_two_layers_is_the_two_layer_time():
    assert float(theory.deep_time(1.5, 2.0, 1e-8, 2)) == pytest.approx(
        float(theory.two_layer_time(1.5, 2.0, 1e-8)), rel=1e-14
    )


@pytest.mark.parametrize("num_layers", [2, 3, 6])
def test_deep_mode_inverts_deep_time(num_layers):
    s, u0 = 2.0, 1e-3
    half = float(theory.deep_time(1.0, s, u0, num_layers))
    ts = jnp.array([0.0, 0.5 * half, half, 1.01 * half])
    modes = theory.deep_mode(ts, s, u0, num_layers)
    assert float(modes[0]) == pytest.approx(u0, rel=1e-12)
    assert float(modes[2]) == pytest.approx(1.0, rel=1e-8)
    for t, mode in zip(ts[1:], modes[1:], strict=True):
        assert float(mode) == pytest.approx(scipy_mode(float(t), s, u0, num_layers), rel=1e-6)


@pytest.mark.parametrize("num_layers", [2, 3, 4])
def test_escape_time_is_the_leading_order(num_layers):
    """The correction to the exact time of half of s falls relative to it as u_0 -> 0."""
    s = 1.7
    ratios = [
        float(theory.escape_time(s, u0, num_layers) / theory.deep_time(s / 2, s, u0, num_layers))
        for u0 in (1e-3, 1e-6, 1e-9)
    ]
    errors = np.abs(np.array(ratios) - 1)
    assert np.all(np.diff(errors) <= 1e-12) and errors[-1] < 1e-2
    assert (
        abs(float(theory.escape_time(2 * s, 1e-9, num_layers) / theory.deep_time(s / 2, s, 1e-9, num_layers)) - 1) > 0.3
    )


@pytest.mark.parametrize("num_layers", [0, 1])
def test_one_layer_is_refused(num_layers):
    for call in (theory.deep_time, theory.deep_mode):
        with pytest.raises(ValueError, match="`num_layers` must be at least 2"):
            call(0.5, 1.0, 0.1, num_layers)
    with pytest.raises(ValueError, match="`num_layers` must be at least 2"):
        theory.escape_time(1.0, 0.1, num_layers)


@pytest.mark.parametrize(
    "a, b, fraction", [(0.3, 0.2, 0.9), (1.2, -0.7, 0.5), (0.5, 0.0, 0.99), (1e-3, -2e-4, 0.5), (2.0, 1.5, 1.1)]
)
def test_scalar_product_time_from_any_start(a, b, fraction):
    s = 1.3

    def reach(_, y):
        return y[0] * y[1] - fraction * s

    reach.terminal = True
    flow = solve_ivp(
        lambda _, y: [(s - y[0] * y[1]) * y[1], (s - y[0] * y[1]) * y[0]],
        (0, 100),
        [a, b],
        events=reach,
        rtol=1e-12,
        atol=1e-15,
        method="DOP853",
    )
    time = float(theory.scalar_product_time(fraction * s, s, a * b, a**2 - b**2))
    assert time == pytest.approx(flow.t[-1], rel=1e-8)
    assert abs(float(theory.scalar_product_time(fraction * s, s, a * b, 2 * (a**2 - b**2))) / time - 1) > 1e-6


def test_scalar_product_time_without_imbalance_is_the_two_layer_time():
    time = theory.scalar_product_time(0.9, 1.3, 1e-4, 0.0)
    assert float(time) == pytest.approx(float(theory.two_layer_time(0.9, 1.3, 1e-4)), rel=1e-13)


def test_plateau_losses_are_the_tails():
    np.testing.assert_allclose(theory.plateau_losses(jnp.array([2.0, 4.0, 1.0])), [10.5, 2.5, 0.5, 0.0], rtol=1e-15)


@pytest.mark.parametrize("num_layers", [2, 3])
def test_the_network_follows_the_modes(num_layers):
    """The gradient of the model at a balanced start is the mode equation."""
    values = jnp.array([3.0, 1.0])
    u, _ = np.linalg.qr(np.random.default_rng(0).normal(size=(3, 3)))
    target = jnp.asarray(u[:, :2] @ np.diag(values) @ u[:, 1:].T)
    strengths = jnp.array([0.4, 0.2, 0.0])
    params = inits.balanced_linear(target, num_layers, strengths, key=jr.key(0))
    velocity = [-g for g in jax.grad(model.factorization_loss)(params, {"target": target})]
    change = jax.jvp(model.end_to_end, (params,), (velocity,))[1]
    left, _, right = np.linalg.svd(target)
    rates = np.diag(left.T @ change @ right.T)
    strengths, values = np.asarray(strengths), np.array([3.0, 1.0, 0.0])
    np.testing.assert_allclose(rates, num_layers * strengths ** (2 - 2 / num_layers) * (values - strengths), atol=1e-13)
    loss = float(theory.balanced_loss(0.0, jnp.array([3.0, 1.0]), jnp.array([0.4, 0.2]), num_layers))
    assert loss == pytest.approx(float(model.factorization_loss(params, {"target": target})), rel=1e-12)
