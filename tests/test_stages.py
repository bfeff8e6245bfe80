"""Stages of flows whose plateaus are known, and escape times whose stated errors are put to the test."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import thetadot as td
from flows import (
    BOWL,
    QUARTIC,
    at,
    balanced_layers,
    linear_problem,
    scalar_flows,
)
from runs import attention_run, factorization_run
from thetadot.theory import matrix_factorization as theory

exact_modes = jax.jit(theory.deep_mode, static_argnums=3)


def kinds(stages):
    return [stage.kind for stage in stages]


def staircase(values, strengths, num_layers, ts):
    """The trajectory of a balanced network from the closed form, without a solver."""
    modes = np.stack([np.asarray(exact_modes(ts, s, u, num_layers)) for s, u in zip(values, strengths, strict=True)])
    missing = np.asarray(values)[:, None] - modes
    speed = num_layers * np.sum(modes ** (2 - 2 / num_layers) * missing**2, axis=0)
    series = {"loss": 0.5 * np.sum(missing**2, axis=0), "grad_norm": np.sqrt(speed)}
    return td.Trajectory(np.asarray(ts), series, {}, None, "done", "", {}, {})


def assert_tiles(stages, traj):
    assert stages[0].t_start == traj.ts[0] and stages[-1].t_end == traj.ts[-1]
    assert all(a.t_end == b.t_start for a, b in itertools.pairwise(stages))
    assert all(stage.t_start < stage.t_end for stage in stages)


# --- find_stages ---


@pytest.mark.parametrize("num_layers, strength", [(2, 1e-8), (3, 1e-6), (4, 1e-4)])
@pytest.mark.parametrize("values", [(4.0, 2.0, 1.0), (3.0, 1.0), (2.0,)])
def test_each_mode_of_a_staircase_is_a_plateau_and_a_descent(num_layers, strength, values):
    strengths = [strength] * len(values)
    t1 = 1.5 * float(theory.deep_time(0.999 * values[-1], values[-1], strength, num_layers))
    ts = np.unique(np.concatenate([np.linspace(0, t1, 2000), t1 * np.geomspace(1e-6, 1, 2000)]))
    traj = staircase(values, strengths, num_layers, ts)
    stages = td.find_stages(traj)
    assert_tiles(stages, traj)
    assert kinds(stages) == ["plateau", "descent"] * len(values) + ["converged"]
    heights = np.asarray(theory.plateau_losses(jnp.asarray(values)))
    plateaus = [stage.loss for stage in stages if stage.kind != "descent"]
    np.testing.assert_allclose(plateaus, heights, rtol=2e-2, atol=1e-2)
    # Every mode is half learned within its descent.
    descents = [stage for stage in stages if stage.kind == "descent"]
    for stage, s in zip(descents, values, strict=True):
        assert stage.t_start < float(theory.deep_time(s / 2, s, strength, num_layers)) < stage.t_end


def test_stages_do_not_depend_on_the_unit_of_time_or_of_the_loss():
    ts = np.linspace(0, 40, 3000)
    traj = staircase((2.0, 0.7), (1e-6, 1e-6), 2, ts)
    series = {"loss": 1e-3 * traj["loss"], "grad_norm": traj["grad_norm"] * np.sqrt(1e-3 / 1e4)}
    scaled = td.Trajectory(1e4 * ts, series, {}, None, "done", "", {}, {})
    for a, b in zip(td.find_stages(traj), td.find_stages(scaled), strict=True):
        assert a.kind == b.kind
        np.testing.assert_allclose(
            [1e4 * a.t_start, 1e4 * a.t_end, 1e-3 * a.loss], [b.t_start, b.t_end, b.loss], rtol=1e-6
        )


def test_stages_of_a_flow_from_its_accepted_steps():
    """Two modes from 1e-6, solved with the defaults: plateaus ½(2² + 0.7²) and ½ 0.7²."""
    problem = linear_problem([2.0, 0.7])
    traj = td.gradient_flow(problem, balanced_layers(problem, [1e-6, 1e-6], 2), 40.0)
    stages = td.find_stages(traj)
    assert_tiles(stages, traj)
    assert kinds(stages) == ["plateau", "descent", "plateau", "descent", "converged"]
    np.testing.assert_allclose(
        [stages[0].loss, stages[2].loss, stages[4].loss], [2.245, 0.245, 0], rtol=1e-2, atol=1e-9
    )
    # What 90 % of the first drop, from 5 % to 95 %, takes by the closed form.
    exact = [np.sqrt(0.95) * 2, np.sqrt(0.05) * 2]
    times = [float(theory.two_layer_time(2 - missing, 2.0, 1e-6)) for missing in exact]
    np.testing.assert_allclose([stages[1].t_start, stages[1].t_end], times, rtol=1e-3)


def test_stages_of_deep_factorization_and_of_attention():
    stages = td.find_stages(factorization_run())
    assert kinds(stages) == ["plateau", "descent", "plateau", "descent", "converged"]
    np.testing.assert_allclose([stages[0].loss, stages[2].loss], [5.0, 0.5], rtol=1e-2)
    stages = td.find_stages(attention_run())
    assert kinds(stages)[:4] == ["plateau", "descent", "plateau", "descent"]
    law = np.array([0.75, 0.19, 0.05, 0.01])
    np.testing.assert_allclose([stages[0].loss, stages[2].loss], [np.log(4), -np.sum(law * np.log(law))], rtol=2e-3)


def test_the_noise_of_a_gradient_that_is_zero_is_no_stage():
    """A loss that ends at 1, not at 0: at the minimum the gradient is rounding, up and down by decades."""
    ts = np.linspace(0, 400, 4000)
    noise = 1e-16 * 10.0 ** np.random.default_rng(0).uniform(-3, 0, ts.size)

    def stages(size):
        fallen = np.cumsum((size * noise) ** 2) * (ts[1] - ts[0])
        series = {"loss": 1 + np.exp(-2 * ts) - fallen, "grad_norm": np.sqrt(2) * np.exp(-ts) + size * noise}
        return td.find_stages(td.Trajectory(ts, series, {}, None, "done", "", {}, {}))

    assert kinds(stages(1.0)) == ["plateau", "descent", "converged"]
    assert len(stages(1e10)) > 100  # gradients of 1e-6 would move the loss


def test_rounding_after_convergence_is_no_stage():
    """An explicit solver jitters about its minimum: the loss goes up and down at 1e-26, and so does the gradient."""
    problem = linear_problem([3.0, 1.0])
    traj = td.gradient_flow(problem, balanced_layers(problem, [1e-6, 1e-6], 2), 200.0, solver="tsit5")
    assert kinds(td.find_stages(traj)) == ["plateau", "descent", "plateau", "descent", "converged"]
    rested = traj.ts > 40
    assert np.max(traj["loss"][rested]) < 1e-24 and np.ptp(np.log(traj["grad_norm"][rested])) > 1  # there is jitter


def test_a_small_last_stage_is_found():
    """1e-12 of the loss at the start is above its rounding."""
    t1 = 2 * float(theory.deep_time(0.999e-6, 1e-6, 1e-9, 2))
    ts = np.unique(np.concatenate([np.linspace(0, t1, 4000), np.geomspace(1e-3, t1, 4000)]))
    stages = td.find_stages(staircase((1.0, 1e-6), (1e-6, 1e-9), 2, ts))
    assert kinds(stages) == ["plateau", "descent", "plateau", "descent", "converged"]
    assert stages[2].loss == pytest.approx(5e-13, rel=1e-2)


@pytest.mark.parametrize(
    "options",
    [{"margin": m} for m in (0.9, 0.5, -0.1, np.nan)] + [{"prominence": p} for p in (0.0, -1.0, np.nan, np.inf)],
)
def test_stages_that_would_end_before_they_begin_are_refused(options):
    traj = staircase((2.0,), (1e-6,), 2, np.linspace(0, 20, 1000))
    (name,) = options
    with pytest.raises(ValueError, match=rf"`find_stages\({name}=\.\.\.\)` must") as caught:
        td.find_stages(traj, **options)
    assert "\n" not in str(caught.value)
    assert_tiles(td.find_stages(traj, margin=0.49), traj)


def test_a_single_exponential_is_one_descent_and_then_converged():
    """A flow without a saddle: there is nothing to wait for, and no plateau is invented."""
    traj = td.gradient_flow(scalar_flows(BOWL, BOWL), at(1.0, 1.0), 60.0, rtol=1e-9)
    stages = td.find_stages(traj)
    assert_tiles(stages, traj)
    assert kinds(stages).count("descent") == 1 and stages[-1].kind == "converged"
    assert kinds(stages) in (["descent", "converged"], ["plateau", "descent", "converged"])
    assert stages[-1].loss < 1e-20
    by_hand = np.linspace(0, 20, 500)
    exact = {"loss": np.exp(-2 * by_hand), "grad_norm": np.sqrt(2) * np.exp(-by_hand)}
    assert kinds(td.find_stages(td.Trajectory(by_hand, exact, {}, None, "done", "", {}, {})))[-2:] == kinds(stages)[-2:]


def test_what_is_cut_short_has_not_converged():
    stages = td.find_stages(staircase((2.0, 0.7), (1e-6, 1e-6), 2, np.linspace(0, 7, 1000)))
    assert kinds(stages) == ["plateau", "descent", "plateau"]
    assert stages[-1].loss == pytest.approx(0.245, rel=1e-2)
    waiting = td.find_stages(staircase((2.0, 0.7), (1e-6, 1e-6), 2, np.linspace(0, 1.5, 1000)))
    assert kinds(waiting) == ["plateau"]


def test_a_flow_at_rest_and_one_of_no_length():
    rest = td.gradient_flow(scalar_flows(BOWL, QUARTIC), at(0.0, 0.0), 50.0)
    assert kinds(td.find_stages(rest)) == ["converged"]
    short = td.gradient_flow(scalar_flows(BOWL, QUARTIC), at(1.0, 1.0), 50.0, max_steps=1)
    assert td.find_stages(short) == []


def test_stages_and_numbers_print_themselves():
    assert repr(td.Stage("plateau", 0.0, 12.3456789, 1.386294361)) == "Stage(plateau, t 0 … 12.346, loss 1.38629)"
    assert repr(td.Measured(12.82294123, 3e-6)) == "12.82294123 ± 3e-06"
