"""What a flow that ended badly says: wrong gradients, kinks, walls and blow-ups are told apart."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import thetadot as td
from flows import at
from thetadot.engine import Request, ending
from thetadot.flow import begin_flow

TURN = jnp.array([[0.0, -1.0], [1.0, 0.0]])


def bowl_with(gradient):
    """½|x|² and a function that claims to be its gradient."""

    @jax.custom_vjp
    def bowl(x):
        return 0.5 * jnp.sum(x**2)

    bowl.defvjp(lambda x: (bowl(x), x), lambda x, cotangent: (cotangent * gradient(x),))
    return td.Problem(lambda params, data: bowl(params["x"]))


WRONG = {  # a gradient, the slope of the loss along it at (1, -1/2), and the status
    "twice": (lambda x: 2 * x, np.sqrt(1.25), "failed"),
    "of the other sign": (lambda x: -x, -np.sqrt(1.25), "step limit"),
    "turned": (lambda x: x + TURN @ x, np.sqrt(1.25 / 2), "failed"),
    "of another loss": (jnp.sign, 1.5 / np.sqrt(2), "step limit"),
    "constant": (jnp.ones_like, 0.5 / np.sqrt(2), "step limit"),
}


@pytest.mark.parametrize("solver", ["auto", "tsit5"])
@pytest.mark.parametrize("name", WRONG)
def test_a_gradient_that_does_not_belong_to_the_loss_is_named(name, solver):
    gradient, slope, status = WRONG[name]
    traj = td.gradient_flow(bowl_with(gradient), at(1.0, -0.5), 10.0, solver=solver, max_steps=200)
    assert traj.status == status, traj.result
    assert "the gradient does not belong to the loss: at t = 0 " in traj.result and "`custom_vjp`" in traj.result
    assert f"slope of the loss along it is {slope:.4g}," in traj.result and "raise it" not in traj.result


@pytest.mark.parametrize("gradient", [lambda x: x, lambda x: 1.01 * x], ids=["right", "inaccurate"])
@pytest.mark.parametrize("max_steps", [20, 1000])
def test_a_gradient_that_is_right_or_merely_inaccurate_is_not_named(gradient, max_steps):
    traj = td.gradient_flow(bowl_with(gradient), at(1.0, -0.5), 10.0, solver="tsit5", max_steps=max_steps)
    assert traj.status == ("done" if max_steps == 1000 else "step limit") and "belong" not in traj.result


def bend(params, data):
    """A parabola on each side of x = 0, where the slope of the loss is 2 and -1: nothing can slide there, or fall."""
    x = params["x"]
    return jnp.sum(jnp.where(x > 0, x**2 + 2 * x, x**2 - x))


def test_no_slope_is_told_at_a_kink():
    """The gradient at x = 0 belongs to one side only: no difference across it can say that it is wrong."""
    request = Request(td.Problem(bend), at(1.0, 0.0), 1.0)
    ongoing = begin_flow(request)
    for x, told in ([1.0, 0.0], False), ([1.0, 2.0], True):
        slope, speed = ending._slope(ongoing.run, np.array([*x, *np.zeros(ongoing.run.params0.size - 2)]))
        assert slope == pytest.approx(speed, rel=1e-6) and (slope == speed) != told


def corner(params, data):
    a, b = params["x"]
    return jnp.abs(a * b - 1.0)


def root(params, data):
    a, b = params["x"]
    return jnp.sqrt(1.0 - a * b)


def logarithm(params, data):
    return jnp.log(1.0 - params["x"][0])


def pole(params, data):
    return -1.0 / (1.0 - params["x"][0]) ** 2


@pytest.mark.parametrize("loss", [corner, root])
@pytest.mark.parametrize("scale", [0.1, 1e-6])
def test_a_kink_is_neither_a_blow_up_nor_a_wrong_gradient(loss, scale):
    """The flow from a small balanced start arrives at ab = 1 in finite time, a thousand times larger and faster."""
    traj = td.gradient_flow(td.Problem(loss), at(scale, scale), 100.0, max_steps=400)
    assert traj.status in ("failed", "step limit") and "belong" not in traj.result
    np.testing.assert_allclose(traj.params1["x"], [1.0, 1.0], rtol=1e-6)


@pytest.mark.parametrize("loss, order", [(logarithm, 2), (pole, 4)])
@pytest.mark.parametrize("x0", [0.05, 1e-6])
def test_a_wall_that_is_met_at_infinite_speed_is_no_blow_up(loss, order, x0):
    traj = td.gradient_flow(td.Problem(loss), at(x0), 10.0)
    assert traj.status == "failed" and "no step is small enough" in traj.result
    time = (1 - x0) ** order / (2 if order == 2 else 8)
    assert traj.stats["t1"] == pytest.approx(time, rel=1e-4) and 0.99 < float(traj.params1["x"][0]) < 1


def power(params, data):
    return -(params["x"][0] ** (data + 1)) / (data + 1)


@pytest.mark.parametrize("degree", [1.2, 2.0, 5.0, 20.0])
def test_a_blow_up_is_one_however_slowly_the_parameters_grow(degree):
    """x' = x^k from 1 is infinite at T* = 1/(k - 1); with k = 20 a double gets no farther than x = 6."""
    traj = td.gradient_flow(td.Problem(power, jnp.array(degree)), at(1.0), 50.0)
    assert traj.status == "blew up" and traj.stats["t1"] == pytest.approx(1 / (degree - 1), rel=1e-5)


def test_slow_growth_that_outgrows_floating_point_is_called_that():
    traj = td.gradient_flow(td.Problem(power, jnp.array(1.0)), at(1.0), 1000.0, rtol=1e-3)
    assert traj.status == "blew up" and "Overflowed" in traj.result and traj.stats["t1"] > 200
