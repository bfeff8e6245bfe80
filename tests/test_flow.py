"""`gradient_flow` against flows that are known in closed form, and its promises about everything else."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.optimize import brentq

import thetadot as td
from flows import (
    BOWL,
    DRIFT,
    LOGISTIC,
    MODES,
    NEVER,
    QUARTIC,
    at,
    balanced_layers,
    first,
    first_mode,
    linear_problem,
    logistic_solution,
    mode_crossings,
    quartic_solution,
    scalar_flows,
    second_mode,
    wave,
)
from thetadot.engine import tiers
from thetadot.theory import matrix_factorization as theory

pytestmark = pytest.mark.usefixtures("on_the_host")
WATCHED = {"first": first, "wave": wave}
exact_loss = jax.jit(theory.balanced_loss, static_argnums=3)
exact_modes = jax.jit(theory.deep_mode, static_argnums=3)


def watch(problem, params0, t1, *, level=NEVER, wave_level=NEVER, ts=None, **options):
    """One compiled configuration for everything about crossings: four of them and a grid of 41 times."""
    crossings = {
        "level": ("first", level),
        "either": ("wave", wave_level),
        "up": ("wave", wave_level, "up"),
        "down": ("wave", wave_level, "down"),
    }
    grid = np.linspace(0, t1, 41) if ts is None else ts
    return td.gradient_flow(problem, params0, t1, grid, WATCHED, crossings, **options)


def modes_at_the_end(traj, problem):
    return np.array([first_mode(traj.params1, problem.data), second_mode(traj.params1, problem.data)])


# --- exact flows ---


def scalar_error(rtol):
    problem = scalar_flows(QUARTIC, LOGISTIC)
    traj = td.gradient_flow(problem, at(2.0, 1e-6), 20.0, rtol=rtol)
    assert traj.status == "done" and traj.ts[0] == 0 and traj.ts[-1] == 20.0
    x = np.asarray(traj.params1["x"])
    return np.max(np.abs(x / [quartic_solution(20.0, 2.0), logistic_solution(20.0, 1e-6)] - 1))


def test_scalar_flows_are_exact_and_their_error_falls_with_the_tolerance():
    """x' = -x³ beside x' = x - x² from 1e-6: a decay, and an escape from a saddle at t = log 1e6."""
    loose, tight = scalar_error(1e-4), scalar_error(1e-7)
    assert loose < 1e-3 and tight < 1e-6
    assert tight < loose / 100


def network_errors(num_layers, rtol):
    """Relative errors of the modes at the end and of the time of escape of a balanced network."""
    values, strengths = np.array([2.0, 0.7]), np.array([1e-3, 2e-3])
    problem = linear_problem(values)
    t1 = float(theory.deep_time(0.5 * values[1], values[1], strengths[1], num_layers))
    level = 0.6 * 0.5 * np.sum(values**2)
    params0 = balanced_layers(problem, strengths, num_layers)
    traj = td.gradient_flow(problem, params0, t1, [t1], MODES, mode_crossings(loss=level), rtol=rtol)
    exact = np.asarray(exact_modes(t1, values, strengths, num_layers))
    targets = jnp.asarray(values)
    escape: Any = brentq(lambda t: float(exact_loss(t, targets, strengths, num_layers)) - level, 0.0, t1, xtol=1e-12)
    np.testing.assert_allclose(modes_at_the_end(traj, problem), [traj["first"][0], traj["second"][0]], rtol=1e-12)
    mode_error = np.max(np.abs(modes_at_the_end(traj, problem) / exact - 1))
    (time_measured,) = traj.crossings["loss"]
    return mode_error, abs(time_measured / escape - 1)


@pytest.mark.parametrize("num_layers", [2, pytest.param(3, marks=pytest.mark.slow)])
def test_linear_networks_are_exact_and_their_error_falls_with_the_tolerance(num_layers):
    loose, tight = network_errors(num_layers, 1e-3), network_errors(num_layers, 1e-7)
    assert loose[0] < 3e-2 and tight[0] < 1e-5
    assert loose[1] < 1e-2 and tight[1] < 1e-7
    assert tight[0] < loose[0] / 100 and tight[1] < loose[1] / 100
    # Another depth has other modes: what is compared is not blind.
    assert abs(float(theory.deep_time(0.5, 1.0, 1e-3, 2) / theory.deep_time(0.5, 1.0, 1e-3, 3)) - 1) > 0.1


# --- rows ---


def test_a_grid_reads_the_dense_output_of_the_same_steps(monkeypatch):
    monkeypatch.setattr(tiers, "_work", {})  # both on the host: a loop rounds otherwise
    problem, params0 = scalar_flows(QUARTIC, BOWL), at(2.0, 1.0)
    grid, steps = watch(problem, params0, 8.0), td.gradient_flow(problem, params0, 8.0)
    assert grid.stats["num_steps"] == steps.stats["num_steps"] == len(steps.ts) - 1
    assert steps.stats["loss1"] == grid.stats["loss1"] == grid["loss"][-1] == steps["loss"][-1]
    assert np.all(np.diff(steps.ts) > 0) and steps.ts[-1] == grid.ts[-1] == 8.0
    np.testing.assert_array_equal(grid.ts, np.linspace(0, 8, 41))
    exact = quartic_solution(grid.ts, 2.0)
    np.testing.assert_allclose(grid["first"], exact, rtol=1e-6)
    gradient = np.stack([exact**3, np.exp(-grid.ts)])
    np.testing.assert_allclose(grid["grad_norm"], np.linalg.norm(gradient, axis=0), rtol=3e-6)
    np.testing.assert_allclose(grid["loss"], exact**4 / 4 + np.exp(-2 * grid.ts) / 2, rtol=1e-5)
    np.testing.assert_allclose(grid["dissipation"], grid["loss"][0] - grid["loss"], rtol=1e-3, atol=1e-3)
    assert set(grid.names) == {"loss", "grad_norm", "dissipation", "first", "wave"}


@pytest.mark.parametrize("size", [1.0, 1e8, 1e14])
def test_a_parameter_that_does_not_move_loosens_no_tolerance(size):
    """½ (ab − 2)² from 1e-3: ab obeys d(ab)/dt = (a² + b²)(2 − ab), whatever stands beside it."""
    problem = td.Problem(lambda p, data: 0.5 * (p["a"] * p["b"] - 2) ** 2 + 0 * p["z"])
    start = {"a": jnp.array(1e-3), "b": jnp.array(1e-3), "z": jnp.array(size)}
    traj = td.gradient_flow(problem, start, 4.0)
    product = float(traj.params1["a"] * traj.params1["b"])
    exact = 2 / (1 + (2 / 1e-6 - 1) * np.exp(-16.0))
    assert product == pytest.approx(exact, rel=1e-6) and float(traj.params1["z"]) == size


def test_a_grid_may_start_late_and_end_early():
    traj = watch(scalar_flows(QUARTIC, BOWL), at(1.0, 1.0), 8.0, ts=np.linspace(1, 3, 41))
    np.testing.assert_array_equal(traj.ts, np.linspace(1, 3, 41))
    np.testing.assert_allclose(traj["first"], quartic_solution(traj.ts, 1.0), rtol=1e-6)
    assert float(traj.params1["x"][0]) == pytest.approx(quartic_solution(8.0, 1.0), rel=1e-6)


def test_a_converged_flow_rests_until_the_end():
    """Long after both modes are learned nothing is integrated, but every save time has its row."""
    problem = linear_problem([2.0, 0.7])
    params0 = balanced_layers(problem, [0.1, 0.1], 2)
    traj = td.gradient_flow(problem, params0, 1e7, [1e7], MODES, mode_crossings(loss=1.0))
    assert traj.status == "done" and traj.ts.tolist() == [1e7]
    np.testing.assert_allclose([traj["first"][0], traj["second"][0]], [2.0, 0.7], rtol=1e-12)
    assert traj.stats["num_steps"] < 1000 and traj["loss"][0] < 1e-25
    assert len(traj.crossings["loss"]) == 1


def test_a_flow_that_starts_at_rest_stays():
    traj = td.gradient_flow(scalar_flows(BOWL, QUARTIC), at(0.0, 0.0), 50.0)
    assert traj.status == "done" and traj.ts[-1] == 50.0
    assert np.all(traj["loss"] == 0) and np.all(np.asarray(traj.params1["x"]) == 0)


@pytest.mark.parametrize("rtol", [1e-6, 1e-9])
def test_giant_steps_are_exact_though_their_dissipation_is_coarse(rtol):
    """Exponentials solve a quadratic loss exactly, in steps of many relaxation times.

    Four points a step cannot integrate ‖∇L‖² ∝ e^{−2t} there, so `energy_error` is some per cent: it bounds the
    error of the quadrature, not of the flow, as `Trajectory` says.
    """
    traj = td.gradient_flow(scalar_flows(BOWL, BOWL), at(1.0, 1.0), 60.0, rtol=rtol)
    np.testing.assert_allclose(traj["loss"], np.exp(-2 * traj.ts), rtol=1e-6, atol=1e-25)
    assert traj.stats["energy_error"] < 5e-2


# --- crossings ---


def test_crossings_are_all_found_in_order_with_their_directions():
    """sin(4πx) along x = 1/sqrt(1 + 2t) vanishes at x = ¾, ½, ¼. It starts at zero, which is no crossing."""
    problem = scalar_flows(QUARTIC, BOWL, frequency=4 * np.pi)
    traj = watch(problem, at(1.0, 1.0), 10.0, level=1.0, wave_level=0.0, rtol=1e-8)
    exact = [(1 / x**2 - 1) / 2 for x in (0.75, 0.5, 0.25)]
    np.testing.assert_allclose(traj.crossings["either"], exact, rtol=1e-6)
    np.testing.assert_allclose(traj.crossings["up"], exact[::2], rtol=1e-6)
    np.testing.assert_allclose(traj.crossings["down"], exact[1:2], rtol=1e-6)
    assert traj.crossings["level"] == []  # x(0) = 1 exactly
    assert list(traj.crossings) == ["level", "either", "up", "down"]


def test_crossings_are_as_exact_as_the_solver():
    """Half-way out of a saddle at 1e-8, at three tolerances."""
    problem, exact = scalar_flows(LOGISTIC, BOWL), np.log(1e8 - 1)
    errors = []
    for rtol in (1e-3, 1e-5, 1e-7):
        (found,) = watch(problem, at(1e-8, 0.0), 40.0, level=0.5, rtol=rtol).crossings["level"]
        errors.append(abs(found / exact - 1))
    assert errors[0] < 1e-3 and errors[1] < 1e-5 and errors[2] < 1e-7


@pytest.mark.parametrize("reach", [0.3, 0.1])
def test_two_crossings_inside_one_step(reach):
    """The flow x = t is solved in giant steps; the observable goes over its level and back within one of them."""
    ts = td.gradient_flow(scalar_flows(DRIFT, DRIFT), at(0.0, 0.0), 10.0).ts
    step = int(np.argmax(np.diff(ts)))
    middle, h = (ts[step] + ts[step + 1]) / 2, ts[step + 1] - ts[step]
    frequency = 1 / h
    problem = scalar_flows(DRIFT, DRIFT, frequency=frequency, center=middle - np.pi / 2 / frequency)
    traj = watch(problem, at(0.0, 0.0), 10.0, wave_level=np.cos(reach))
    inside = [t for t in traj.crossings["either"] if ts[step] < t < ts[step + 1]]
    np.testing.assert_allclose(inside, [middle - reach * h, middle + reach * h], rtol=1e-9)
    assert inside[0] in traj.crossings["up"] and inside[1] in traj.crossings["down"]


def test_stop_ends_the_flow_at_its_crossing():
    problem = scalar_flows(QUARTIC, BOWL, frequency=4 * np.pi)
    crossings = {"up": ("wave", 0.0, "up"), "half": ("first", 0.5), "late": ("first", 0.25)}
    traj = td.gradient_flow(problem, at(1.0, 1.0), 10.0, None, WATCHED, crossings, "half", "tsit5", 1e-8)
    assert traj.status == "stopped" and "'half'" in traj.result
    assert traj.ts[-1] == traj.stats["t1"] == traj.crossings["half"][0] == pytest.approx(1.5, rel=1e-6)
    assert traj["first"][-1] == pytest.approx(0.5, rel=1e-13) and float(traj.params1["x"][0]) == traj["first"][-1]
    np.testing.assert_allclose(traj.crossings["up"], [7 / 18], rtol=1e-6)  # the earlier one is kept, no later one is
    assert traj.crossings["late"] == []
    assert traj.stats["energy_error"] < 1e-5
    went_on = td.gradient_flow(problem, at(0.4, 1.0), 1.0, None, WATCHED, crossings, "half", "tsit5")
    assert went_on.status == "done" and went_on.ts[-1] == 1.0


def test_dissipation_can_be_watched():
    """It is one of the series, so a crossing may name it: ∫‖∇L‖² = L(0) - L(t) is 0.4 when the loss lost 0.4."""
    crossings = {"spent": ("dissipation", 0.4), "left": ("loss", 0.35)}
    traj = td.gradient_flow(scalar_flows(QUARTIC, BOWL), at(1.0, 1.0), 8.0, crossings=crossings, solver="tsit5")
    np.testing.assert_allclose(traj.crossings["spent"], traj.crossings["left"], rtol=1e-3)


def test_many_crossings_do_not_stall():
    """As many as a user likes; a driver that waits for room for ever is stopped here by its own reports."""
    calls = []

    def no_stall(report):
        calls.append(report.num_steps)
        assert len(calls) < 3 or calls[-1] > calls[-3], "the loop runs on without steps"

    crossings = {f"at {level:.3f}": ("loss", level) for level in np.linspace(0.01, 0.7, 23)}
    traj = td.gradient_flow(
        scalar_flows(QUARTIC, BOWL), at(1.0, 1.0), 8.0, crossings=crossings, solver="tsit5", progress=no_stall
    )
    times = [t for name in crossings for t in traj.crossings[name]]
    assert len(times) == 23 and np.all(np.diff(times) < 0)
