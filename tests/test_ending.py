"""What a flow that ended badly says: wrong gradients, kinks, walls and blow-ups are told apart."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import thetadot as td
from flows import at
from thetadot import slopes
from thetadot.engine import Request
from thetadot.flow import begin_flow

pytestmark = pytest.mark.usefixtures("on_the_host")
TURN = jnp.array([[0.0, -1.0], [1.0, 0.0]])


def bowl_with(gradient):
    """½|x|² and a function that claims to be its gradient."""

    @jax.custom_vjp
    def bowl(x):
        return 0.5 * jnp.sum(x**2)

    bowl.defvjp(lambda x: (bowl(x), x), lambda x, cotangent: (cotangent * gradient(x),))
    return td.Problem(lambda params, data: bowl(params["x"]))


WRONG = {  # a gradient, and the slope of the loss along it at (1, -1/2)
    "twice": (lambda x: 2 * x, np.sqrt(1.25)),
    "of the other sign": (lambda x: -x, -np.sqrt(1.25)),
    "turned": (lambda x: x + TURN @ x, np.sqrt(1.25 / 2)),
    "of another loss": (jnp.sign, 1.5 / np.sqrt(2)),
    "constant": (jnp.ones_like, 0.5 / np.sqrt(2)),
}


@pytest.mark.parametrize("solver", ["auto", "tsit5"])
@pytest.mark.parametrize("name", WRONG)
def test_a_gradient_that_does_not_belong_to_the_loss_is_named(name, solver):
    gradient, slope = WRONG[name]
    traj = td.gradient_flow(bowl_with(gradient), at(1.0, -0.5), 10.0, solver=solver, max_steps=200)
    assert traj.status == "failed", traj.result
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
    run = begin_flow(Request(td.Problem(bend), at(1.0, 0.0), 1.0)).run
    field = run.tiers.field
    for x, smooth in ([1.0, 0.0], False), ([1.0, 2.0], True):
        y = np.array([*x, *np.zeros(run.params0.size - 2)])
        before, after, speed = slopes.slopes(field.value_and_grad, y)
        assert slopes.is_smooth(before, after, speed) == smooth
        assert ((before + after) / 2 == pytest.approx(speed, rel=1e-6)) == smooth
        assert slopes.wrong_slope(field.value_and_grad, y) is None


def corner(params, data):
    a, b = params["x"]
    return jnp.abs(a * b - 1.0)


def hidden_corner(params, data):
    """|ab − 1| as no program tells it."""
    a, b = params["x"]
    return jnp.sqrt((a * b - 1.0) ** 2)


def root(params, data):
    a, b = params["x"]
    return jnp.sqrt(1.0 - a * b)


def logarithm(params, data):
    return jnp.log(1.0 - params["x"][0])


def pole(params, data):
    return -1.0 / (1.0 - params["x"][0]) ** 2


@pytest.mark.parametrize("loss", [corner, hidden_corner, root])
@pytest.mark.parametrize("scale", [0.1, 1e-6])
def test_a_kink_is_neither_a_blow_up_nor_a_wrong_gradient(loss, scale):
    """The flow from a small balanced start arrives at ab = 1 in finite time, a thousand times larger and faster."""
    traj = td.gradient_flow(td.Problem(loss), at(scale, scale), 100.0, max_steps=400)
    assert (traj.status == "done") == (loss is corner) and traj.status != "blew up" and "belong" not in traj.result
    np.testing.assert_allclose(traj.params1["x"], [1.0, 1.0], rtol=1e-6)


def test_a_wrong_gradient_ends_the_flow_early():
    """The loss rises along it, so that no step is ever long: at 2000 steps the flow looks, and ends."""
    traj = td.gradient_flow(bowl_with(WRONG["constant"][0]), at(1.0, -0.5), 10.0)
    assert traj.status == "failed" and "belong" in traj.result and not traj.stats["is_gradient"]
    assert 2000 <= traj.stats["num_steps"] < 3000


def shaken(x):
    """Of a bowl, with noise of 1e-9: a gradient that rounding has spoiled."""
    return x + 1e-9 * jnp.sin(1e15 * x)


def stiff(params, data):
    return 0.5 * jnp.sum(jnp.array([1.0, 1e7]) * params["x"] ** 2)


HINDERED = {  # a problem, and what is said instead of "raise it"
    "kink": (
        td.Problem(hidden_corner),
        "the loss has a kink there: along the gradient its slope is -1.41 on one side and 1.41 ",
    ),
    "noise": (bowl_with(shaken), "The gradient is noise over such a step"),
    "stiffness": (td.Problem(stiff), "away. Loosen `rtol`, or try another solver than Tsit5."),
}


@pytest.mark.parametrize("name", HINDERED)
def test_more_steps_are_not_advised_where_they_cannot_help(name):
    problem, told = HINDERED[name]
    traj = td.gradient_flow(problem, at(0.1, 0.1), 1e6, max_steps=1000, solver="tsit5")
    assert traj.status == "step limit" and "raise it" not in traj.result
    assert told.lower() in traj.result.lower() and "steps have become so short" in traj.result


def test_more_steps_are_advised_where_they_help():
    traj = td.gradient_flow(bowl_with(lambda x: x), at(1.0, -0.5), 10.0, solver="tsit5", max_steps=20)
    assert traj.status == "step limit" and "raise it" in traj.result


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
