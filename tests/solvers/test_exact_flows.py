"""The error on flows in closed form falls with `rtol`, down to 1e-10."""

from functools import cache

import numpy as np
import pytest
from losses import end, flow, hard_problem

import thetadot as td
from flows import MODES, balanced_layers, linear_problem, logistic_solution, mode_crossings, quartic_solution
from thetadot.engine import compiled_at_once
from thetadot.theory import matrix_factorization as theory

RTOLS = {
    "deflated": 10.0 ** -np.arange(2, 11),
    "krylov": 10.0 ** -np.arange(2, 11),
    "stabilized": 10.0 ** -np.arange(2, 7),  # steps grow like 1/√rtol
}
MAX_STEPS = 20_000


every_solver = pytest.mark.parametrize(
    "name", [name if name == "deflated" else pytest.param(name, marks=pytest.mark.slow) for name in RTOLS]
)


@cache
def scalar_errors(name):
    """x' = x − x² from 1e-6, the escape from a saddle, and x' = −x³ from 2, beside two directions at rest."""
    problem = hard_problem([-1.0, 0.0, 0.0, 0.0], c=[1 / 3, 0.25], q=[3.0, 4.0])
    exact = np.array([logistic_solution(20.0, 1e-6), quartic_solution(20.0, 2.0), 0.5, 0.0])
    errors, steps = [], []
    for rtol in RTOLS[name]:
        with compiled_at_once():
            traj = flow(name, problem, [1e-6, 2.0, 0.5, 0.0], 20.0, rtol, MAX_STEPS)
        assert traj.status == "done"
        errors.append(np.max(np.abs(end(traj) - exact)))
        steps.append(traj.stats["num_steps"])
    return np.array(errors), np.array(steps)


def slope(rtols, errors):
    return np.polyfit(np.log(rtols), np.log(errors), 1)[0]


@every_solver
def test_the_error_of_scalar_flows_follows_the_tolerance(name):
    rtols, (errors, _) = RTOLS[name], scalar_errors(name)
    assert np.all(errors < 3 * rtols + 1e-14)
    assert slope(rtols, errors) > 0.8


@every_solver
def test_the_steps_grow_no_faster_than_the_order_says(name):
    """A relative error of order p asks for rtol^(−1/p) times as many: 4 where the estimate is of order 5, else 2."""
    rtols, (_, steps) = RTOLS[name], scalar_errors(name)
    growth = (rtols[2] / rtols[-1]) ** (1 / 2 if name == "stabilized" else 1 / 4)
    assert steps[-1] < 1.5 * growth * steps[2]


@cache
def network_errors(solver):
    """A balanced two-layer network: its modes at a time when the second is half learned, and when the first was."""
    values, strengths = np.array([2.0, 0.7]), np.array([1e-3, 2e-3])
    problem = linear_problem(values)
    t1 = float(theory.two_layer_time(0.5 * values[1], values[1], strengths[1]))
    t_first = float(theory.two_layer_time(1.0, values[0], strengths[0]))
    params0, errors = balanced_layers(problem, strengths, 2), []
    for rtol in RTOLS["krylov"]:
        traj = td.gradient_flow(problem, params0, t1, [t1], MODES, mode_crossings(first=1.0), solver=solver, rtol=rtol)
        exact = np.asarray(theory.two_layer_mode(t1, values, strengths))
        modes = np.array([traj["first"][0], traj["second"][0]])
        errors.append([np.max(np.abs(modes / exact - 1)), abs(traj.crossings["first"][0] / t_first - 1)])
    return np.array(errors)


@pytest.mark.slow
@pytest.mark.parametrize("solver", ["auto", "krylov"])
def test_the_error_of_a_linear_network_follows_the_tolerance(solver):
    rtols, errors = RTOLS["krylov"], network_errors(solver)
    assert np.all(errors[:, 0] < 30 * rtols + 1e-13)
    assert np.all(errors[:, 1] < 10 * rtols + 1e-13)
    assert slope(rtols, errors[:, 0]) > 0.8
