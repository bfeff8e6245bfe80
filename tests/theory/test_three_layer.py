"""Three-layer networks: the closed forms, and the checks on right and wrong flows."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from claims import assert_claims_hold, held_by_all, marked

import thetadot as td
from thetadot.models import linear, multilayer
from thetadot.problem import Problem
from thetadot.theory import three_layer
from thetadot.theory.three_layer import flows

BY_NAME: dict[str, Any] = {check.__name__: check for check in three_layer.CHECKS}

# --- closed forms ---


@pytest.mark.parametrize("depth", [3, 4, 5])
def test_balanced_times_solve_their_equation(depth):
    """From ε to infinity under r' = |s| r^(L-1); two layers need log(1/ε)/|s| from ε to 1."""
    r = np.geomspace(1e-2, 1e6, 200_001)
    exact = np.trapezoid(r ** (2 - depth) / 1.7, np.log(r))
    assert three_layer.balanced_escape_time(1e-2, 1.7, depth) == pytest.approx(exact, rel=1e-6)
    assert three_layer.balanced_escape_time(np.exp(-3.0), 1.5, 2) == pytest.approx(2.0)
    assert [three_layer.escape_exponent(depth) for depth in (2, 3, 5)] == [0, -1, -3]


def test_the_second_mode_when_the_first_escapes():
    """r_2^-(L-2) = ε^-(L-2) (1 - s_2/s_1); two layers: ε e^{s_2 t} at e^{s_1 t} = 1/ε."""
    assert three_layer.second_mode(1e-4, (2.0, 1.0), 3) == pytest.approx(2e-4)
    assert three_layer.second_mode(1e-4, (2.0, 1.0), 4) == pytest.approx(np.sqrt(2) * 1e-4)
    assert three_layer.second_mode(1e-4, (4.0, 1.0), 2) == pytest.approx(1e-3)
    assert three_layer.off_axis_share(3.0, 4.0) == pytest.approx(9 / 25)


def test_the_balanced_start_is_balanced_and_points_to_s():
    layers = flows.balanced(4, seed=0)
    assert float(jnp.max(jnp.abs(linear.balancedness(layers)))) < 1e-12
    assert -float(multilayer.effective_loss(layers, flows.samples())) == pytest.approx(flows.strength())


# --- checks ---


@pytest.mark.parametrize("name", marked(BY_NAME))
def test_the_claims_hold(name):
    assert_claims_hold(BY_NAME[name], "arXiv:2402.15958, ")


# --- wrong flows ---


def other_target(problem, params0, t1, level=-1.0, rtol=flows.RTOL):
    """A network that is trained on targets larger by a fifth."""
    data = problem.data | {"y": 1.2 * problem.data["y"]}
    return flows.trace(Problem(problem.loss_fn, data), params0, t1, level, rtol)


def one_large_layer(problem, params0, t1, level=-1.0, rtol=flows.RTOL):
    """The last layer starts at size one, whatever ε."""
    last = params0[-1] / jnp.max(jnp.abs(params0[-1]))
    return flows.trace(problem, [*params0[:-1], last], t1, level, rtol)


def linear_network(problem, params0, t1, level=-1.0, rtol=flows.RTOL):
    """Without tanh: the residual turns the gradient at order |θ|³, and the share is smallest at ε^{3/2}."""
    return flows.trace(Problem(multilayer.loss_fn(as_it_is), problem.data), params0, t1, level, rtol)


def closer_modes(problem, params0, t1, level=-1.0, rtol=flows.RTOL):
    """The second mode is nearly as strong as the first, and nearly escapes with it."""
    target = problem.data["target"] * jnp.array([[1.0, 1.0], [1.0, 1.6]])
    return flows.trace(Problem(problem.loss_fn, {"target": target}), params0, t1, level + 0.78, rtol)


def cut_short(problem, params0, t1, level=-1.0, rtol=flows.RTOL):
    """A flow that ends before its escape."""
    return flows.trace(problem, params0, t1 / 1e6, level, rtol)


def as_it_is(x):
    return x


def off_axis_growth(params, data):
    """Cubic as well, but every weight of the first layer also grows on its own."""
    return multilayer.effective_loss(params, data) - 0.3 * jnp.sum(params[0] ** 3)


CONTROLS = {
    "check_effective_flow": [other_target],
    "check_depth_law": [one_large_layer],
    "check_mode_selection": [closer_modes, cut_short],
}


@pytest.mark.parametrize("name", marked(CONTROLS))
def test_every_claim_fails_on_a_wrong_flow(name):
    assert held_by_all(BY_NAME[name], CONTROLS[name]) == set()


@pytest.mark.slow
def test_condensation_fails_on_a_wrong_flow_and_a_wrong_network():
    wrong = BY_NAME["check_condensation"](linear_network, lambda data: Problem(off_axis_growth, data))
    assert not [check.claim for check in wrong if check.passed]


def test_every_check_has_a_control():
    assert {*CONTROLS, "check_condensation"} == set(BY_NAME)


@pytest.mark.slow
def test_the_network_goes_past_the_blow_up_of_its_effective_flow():
    """Its loss is bounded below."""
    data, start = flows.samples(), flows.scaled(flows.gaussian(3, 1), 1e-2)
    effective = td.blow_up(flows.effective(data), start)
    network = td.blow_up(flows.full(data), start)
    assert bool(effective.blew_up) and not bool(network.blew_up)
    assert float(network.t) > 1.5 * float(effective.time) and "blow" in network.result
    assert all(bool(jnp.all(jnp.isfinite(w))) for w in jax.tree.leaves(network.params))
