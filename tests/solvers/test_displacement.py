"""Step control by displacement: escape times as exact as the tolerance, where a state-relative norm is blind."""

from functools import partial

import diffrax as dfx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flows import aligned_layers, linear_problem, second_mode
from thetadot.problem import vector_field
from thetadot.solvers import DisplacementController
from thetadot.theory import matrix_factorization as theory

# --- escape times ---

VALUES, STRENGTHS = np.array([2.0, 1.0]), np.array([1e-2, 1e-10])
PROBLEM = linear_problem(VALUES)
ESCAPE = float(theory.two_layer_time(0.5, 1.0, STRENGTHS[1]))


@partial(jax.jit, static_argnums=1)
def mode_at_escape(rtol, make_controller):
    """The second mode at the exact time of its half, after it grew from 1e-10 beside a first mode of size 2."""
    layers = aligned_layers(PROBLEM, [np.sqrt(STRENGTHS)] * 2)
    sol = dfx.diffeqsolve(
        dfx.ODETerm(vector_field),
        dfx.Tsit5(),
        0.0,
        ESCAPE,
        None if make_controller is displacement else 1e-3,
        layers,
        PROBLEM,
        stepsize_controller=make_controller(rtol),
        max_steps=100_000,
        adjoint=dfx.ForwardMode(),
    )
    assert sol.ys is not None
    return second_mode([leaf[0] for leaf in sol.ys], PROBLEM.data), sol.stats["num_steps"]


def displacement(rtol):
    return DisplacementController(rtol)


def state_relative(rtol):
    return dfx.PIDController(rtol=rtol, atol=1e-3 * rtol)


def escape_error(rtol, make_controller):
    """Relative error of the escape time: the mode moves at u' = 2u(s − u) = ½ there."""
    mode, num_steps = mode_at_escape(jnp.asarray(rtol), make_controller)
    return abs(float(mode) - 0.5) / 0.5 / ESCAPE, int(num_steps)


def test_errors_of_escape_times_are_proportional_to_the_tolerance():
    rtols = np.array([1e-3, 1e-4, 1e-5, 1e-6, 1e-7])
    errors = np.array([escape_error(rtol, displacement)[0] for rtol in rtols])
    assert np.all(errors < 10 * rtols)
    assert np.polyfit(np.log(rtols), np.log(errors), 1)[0] > 0.8


def test_a_tolerance_relative_to_the_state_is_blind_near_the_saddle():
    """The growing component is 1e-10 of the state: a large part of it may be wrong, within a tolerance of 1e-6."""
    ours, our_steps = escape_error(1e-5, displacement)
    theirs, their_steps = escape_error(1e-5, state_relative)
    assert theirs > 30 * ours
    assert our_steps < 5 * their_steps  # it is not bought with steps


# --- the rule itself ---


def adapt(error, y0, y1, rtol=1e-3, order=5.0, history=None, dtype=float, **options):
    controller = DisplacementController(rtol, **options)
    history = (jnp.array(jnp.nan, dtype), jnp.array(jnp.nan, dtype)) if history is None else history
    arrays = [jnp.asarray(x, dtype) for x in (y0, y1, error)]
    t0, t1 = jnp.asarray(1.0, dtype), jnp.asarray(1.5, dtype)
    y0, y1, error = arrays
    keep, start, end, _, history, _ = controller.adapt_step_size(t0, t1, y0, y1, None, error, order, history)
    return bool(keep), float(start), float(end - start), history


def test_a_step_is_kept_if_its_error_is_below_rtol_times_its_displacement():
    """‖(3, 4)‖ = 5 moved; root mean squares on both sides, so that the number of parameters drops out."""
    kept, start, _, _ = adapt([0.0, 4.9e-3], [1.0, 1.0], [4.0, 5.0])
    assert kept and start == 1.5
    kept, start, _, _ = adapt([0.0, 5.1e-3], [1.0, 1.0], [4.0, 5.0])
    assert not kept and start == 1.0
    # Far from the origin nothing changes: the size of the state does not count.
    assert adapt([0.0, 4.9e-3], [1e3, 1e3], [1003.0, 1004.0])[0]
    assert not adapt([0.0, 5.1e-3], [1e3, 1e3], [1003.0, 1004.0])[0]


def test_the_floor_is_rounding_and_atol_is_added():
    still = [1.0, 1.0]
    assert adapt([1e-14, 1e-14], still, still)[0] and not adapt([1e-13, 1e-13], still, still)[0]
    assert adapt([1e-6, 1e-6], still, still, atol=1.1e-6)[0] and not adapt([1e-6, 1e-6], still, still, atol=0.9e-6)[0]


@pytest.mark.parametrize("ratio, order", [(0.5, 5.0), (0.1, 3.0), (2.0, 5.0), (8.0, 4.0)])
def test_the_next_step_follows_from_the_ratio(ratio, order):
    """error/displacement is O(h^(q−1)): the step that meets the tolerance is h · ratio^(−1/(q−1)), times 0.7."""
    kept, _, step, _ = adapt([ratio * 1e-3], [0.0], [1.0], order=order)
    assert kept == (ratio <= 1)
    assert step == pytest.approx(0.5 * np.clip(0.7 * ratio ** (-1 / (order - 1)), 0.2, 6.0), rel=1e-9)


def test_steps_change_by_bounded_factors():
    assert adapt([0.0], [0.0], [1.0])[2] == pytest.approx(0.5 * 6)
    assert adapt([1e3], [0.0], [1.0])[2] == pytest.approx(0.5 * 0.2)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_what_is_not_finite_is_rejected(bad):
    for error, y1 in (([bad], [1.0]), ([1e-9], [bad])):
        kept, start, step, _ = adapt(error, [0.0], y1)
        assert not kept and start == 1.0 and step == pytest.approx(0.5 * 0.2)


def test_a_trend_is_continued():
    """If the last step was twice as long with the same ratio, the next one is half as long again."""
    half = jnp.array(0.5)
    _, _, free, _ = adapt([5e-4], [0.0], [1.0])
    _, _, falling, history = adapt([5e-4], [0.0], [1.0], history=(jnp.array(1.0), half))
    _, _, rising, _ = adapt([5e-4], [0.0], [1.0], history=(jnp.array(0.25), half))
    assert falling == pytest.approx(free / 2, rel=1e-6)
    assert rising == pytest.approx(free, rel=1e-6)  # a trend only ever shortens
    assert float(history[0]) == 0.5 and float(history[1]) == pytest.approx(0.5, rel=1e-6)


def test_float32_and_pytrees():
    kept, _, _, history = adapt([0.0, 4.9e-3], [1.0, 1.0], [4.0, 5.0], dtype=jnp.float32)
    assert kept and history[0].dtype == jnp.float32
    controller = DisplacementController(1e-3)
    y0, y1 = {"a": jnp.ones(1), "b": jnp.ones(1)}, {"a": jnp.full(1, 4.0), "b": jnp.full(1, 5.0)}
    error = {"a": jnp.zeros(1), "b": jnp.full(1, 4.9e-3)}
    nan = jnp.array(jnp.nan)
    keep, *_ = controller.adapt_step_size(jnp.array(1.0), jnp.array(1.5), y0, y1, None, error, 5.0, (nan, nan))
    assert bool(keep)


def test_the_first_step_follows_the_field():
    """Scaling time or parameters scales it; where nothing moves it is the span."""

    def first(rate, scale):
        func = lambda terms, t, y, args: -rate * y  # noqa: E731
        y0 = scale * jnp.array([1.0, -2.0])
        t1, _ = DisplacementController(1e-4).init(None, jnp.array(0.0), jnp.array(1e9), y0, None, None, func, 5.0)
        return float(t1)

    assert first(1.0, 1.0) == pytest.approx(0.1, rel=0.05)  # rtol^(1/4) of the time of decay
    assert first(1e3, 1.0) == pytest.approx(first(1.0, 1.0) / 1e3, rel=1e-6)
    assert first(1.0, 1e-8) == pytest.approx(first(1.0, 1.0), rel=1e-6)
    assert 0 < first(0.0, 1.0) <= 1e9
    func = lambda terms, t, y, args: -y  # noqa: E731
    given, _ = DisplacementController(1e-4).init(None, 0.0, 1.0, jnp.ones(2), 0.25, None, func, None)
    assert given == 0.25


def test_a_solver_without_error_estimate_is_refused():
    nan = jnp.array(jnp.nan)
    with pytest.raises(RuntimeError, match=r"wrap it in `diffrax\.HalfSolver`"):
        DisplacementController(1e-3).adapt_step_size(0.0, 1.0, jnp.ones(1), jnp.ones(1), None, None, 5.0, (nan, nan))
