"""How a flow ends, which solvers it takes, what it compiles, and what it refuses."""

import diffrax as dfx
import jax
import jax.numpy as jnp
import jaxtyping
import numpy as np
import pytest

import thetadot as td
from flows import (
    BOWL,
    DRIFT,
    HILL,
    LOGISTIC,
    QUARTIC,
    at,
    balanced_layers,
    first,
    linear_problem,
    logistic_solution,
    quartic_solution,
    scalar_flows,
    wave,
)
from thetadot.engine import compiled_at_once

# --- outcomes ---


@pytest.mark.parametrize("solver", ["auto", "tsit5"])
def test_a_blow_up_is_a_result(solver, on_the_host):
    """x' = 4x³ is infinite at t = 1/(8 x_0²). The sentence names the time, whichever way the last time rounds."""
    problem = scalar_flows(HILL, BOWL)
    for x0 in (0.5, 1.0, 1.3, 3.0):
        traj = td.gradient_flow(problem, at(x0, 1.0), 10.0, solver=solver, max_steps=20_000)
        assert traj.status == "blew up", (x0, traj.result)
        assert traj.stats["num_steps"] < 1000
        assert traj.ts[-1] == pytest.approx(1 / (8 * x0**2), rel=1e-5)
        assert f"T* ≈ {traj.ts[-1]:.6}"[:-1] in traj.result
        assert traj["loss"][-1] < -1e8 and np.all(np.diff(traj["loss"]) < 0)


def test_a_plateau_longer_than_the_digits_of_t_is_left():
    """Four equal weights from 1e-8 under ½ (Π wᵢ − 3)²: w' = 3w³ until 1e16/6, then all is over in a time of one."""
    problem = td.Problem(lambda p, data: 0.5 * (jnp.prod(p) - 3.0) ** 2)
    half = {"half": ("loss", 9 / 8)}
    traj = td.gradient_flow(problem, jnp.full(4, 1e-8), 1e16, crossings=half)
    assert traj.status == "done" and traj.stats["loss1"] < 1e-12
    np.testing.assert_allclose(traj.crossings["half"], [1e16 / 6], rtol=1e-7)
    assert np.all(np.diff(traj.ts) > 0)
    # What never ends is still a blow-up, at any time of it.
    later = td.gradient_flow(td.Problem(lambda p, data: -jnp.prod(p)), jnp.full(4, 1e-8), 1e17)
    assert later.status == "blew up" and later.stats["t1"] == pytest.approx(1e16 / 2, rel=1e-5)


def test_a_gradient_that_becomes_nan_is_a_failure_with_a_place():
    """x = t runs into a region without a loss at x = 1."""
    traj = td.gradient_flow(scalar_flows(DRIFT, BOWL, wall=1.0), at(0.1, 1.0), 10.0)
    assert traj.status == "failed" and "not finite" in traj.result
    assert np.all(np.isfinite(traj["loss"])) and np.all(np.isfinite(traj["grad_norm"]))
    assert 0.9 < float(traj.params1["x"][0]) <= 1  # up to the wall, and not beyond
    assert traj.stats["num_steps"] < 2000


def test_a_step_limit_is_a_result_and_every_row_until_then_is_there():
    problem = scalar_flows(QUARTIC, LOGISTIC)
    whole = td.gradient_flow(problem, at(1.0, 1e-6), 20.0)
    cut = td.gradient_flow(problem, at(1.0, 1e-6), 20.0, max_steps=7)
    assert cut.status == "step limit" and "`max_steps` = 7" in cut.result
    assert cut.stats["num_steps"] == 7
    np.testing.assert_array_equal(cut.ts, whole.ts[: cut.ts.size])
    np.testing.assert_array_equal(cut["loss"], whole["loss"][: cut.ts.size])
    assert cut.ts[-1] == cut.stats["t1"] and cut["loss"][-1] == cut.stats["loss1"]
    none = td.gradient_flow(problem, at(1.0, 1e-6), 20.0, max_steps=0)
    assert none.status == "step limit" and none.ts.tolist() == [0.0]


def test_rows_have_one_time_each_where_rest_and_end_coincide():
    """Ended exactly at the time at which it comes to rest, a flow has not two last rows."""
    problem = scalar_flows(LOGISTIC, LOGISTIC)
    free = td.gradient_flow(problem, at(0.3, 0.2), 1e100)
    assert free.status == "done" and "Converged" in free.result and free.stats["t1"] < 1e50
    assert np.all(np.diff(free.ts) > 0) and free.ts[-1] == 1e100 and free["loss"][-1] == free["loss"][-2]
    exact = td.gradient_flow(problem, at(0.3, 0.2), free.stats["t1"])
    assert exact.status == "done" and np.all(np.diff(exact.ts) > 0)


# --- solvers ---


@pytest.mark.parametrize("name, instance", [("tsit5", dfx.Tsit5()), ("kvaerno5", dfx.Kvaerno5())])
def test_diffrax_solvers_by_name_and_as_instances(name, instance):
    problem, params0 = scalar_flows(QUARTIC, LOGISTIC), at(1.0, 1e-4)
    named, passed = (td.gradient_flow(problem, params0, 12.0, solver=solver) for solver in (name, instance))
    exact = [quartic_solution(12.0, 1.0), logistic_solution(12.0, 1e-4)]
    np.testing.assert_allclose(named.params1["x"], exact, rtol=1e-4)
    np.testing.assert_array_equal(named.params1["x"], passed.params1["x"])
    assert named.stats["num_steps"] == passed.stats["num_steps"]
    assert type(instance).__name__ in named.stats["solver"]


@pytest.mark.parametrize("solver", ["kvaerno5", dfx.Kvaerno3()])
def test_an_implicit_solver_comes_to_rest(solver):
    """At rest a displacement is rounding: its root finder cannot ask for a millionth of it."""
    problem, strengths = linear_problem([3.0, 1.0]), [1e-3, 1e-3]
    traj = td.gradient_flow(problem, balanced_layers(problem, strengths, 2), 1000.0, solver=solver, rtol=1e-5)
    assert traj.status == "done" and traj.stats["loss1"] < 1e-30
    assert traj.stats["num_steps"] < 5000


def test_the_floor_of_a_root_finder_hides_no_escape():
    """x' = x - x² from 1e-9 beside a parameter of size one passes 1/2 at t = log 1e9."""
    traj = td.gradient_flow(
        scalar_flows(LOGISTIC, QUARTIC),
        at(1e-9, 1.0),
        25.0,
        None,
        {"first": first},
        {"half": ("first", 0.5)},
        solver="kvaerno5",
        rtol=1e-7,
    )
    np.testing.assert_allclose(traj.crossings["half"], [np.log(1e9 - 1)], rtol=1e-5)


def test_the_advice_to_wrap_a_solver_without_error_estimate_works():
    problem = scalar_flows(QUARTIC, LOGISTIC)
    with pytest.raises(ValueError, match=r"wrap it in `diffrax\.HalfSolver`"):
        td.gradient_flow(problem, at(1.0, 1e-2), 3.0, solver=dfx.Euler())
    traj = td.gradient_flow(problem, at(1.0, 1e-2), 3.0, solver=dfx.HalfSolver(dfx.Euler()), rtol=1e-2)
    exact = [quartic_solution(3.0, 1.0), logistic_solution(3.0, 1e-2)]
    np.testing.assert_allclose(traj.params1["x"], exact, rtol=0.1)


# --- compilation ---

compilations: list[str] = []
jax.monitoring.register_event_duration_secs_listener(
    lambda event, duration_secs, **kwargs: compilations.append(event) if "backend_compile" in event else None
)


def test_other_data_of_the_same_shape_compile_nothing():
    def solve(x0, t1, rtol, level, **data):
        crossings = {"a": ("first", level, "up" if level > 0.5 else "down"), "b": ("wave", level)}
        observables = {"first": first, "wave": wave}
        problem = scalar_flows(**data)
        return td.gradient_flow(problem, at(x0, 0.2), t1, np.linspace(0, t1, 7), observables, crossings, rtol=rtol)

    solve(1.0, 3.0, 1e-5, 0.4, one=QUARTIC, other=BOWL)
    before = len(compilations)
    assert before > 0
    traj = solve(0.3, 5.0, 1e-4, 0.6, one=LOGISTIC, other=DRIFT, frequency=3.0)
    assert len(compilations) == before
    assert traj.crossings["a"] == pytest.approx([np.log(1.5) - np.log(3 / 7)], rel=1e-3)
    jax.jit(lambda x: x + len(compilations))(jnp.zeros(3))
    assert len(compilations) > before  # the counter counts


def test_a_loss_is_traced_a_few_times_and_then_only_for_its_shape():
    traces = []

    def counted(params, data):
        traces.append(1)
        return 0.5 * jnp.sum((params - data) ** 2)

    start = td.gradient_flow(td.Problem(counted, jnp.zeros(2)), jnp.ones(2), 1.0, solver="tsit5")
    first_call = len(traces)
    again = td.gradient_flow(td.Problem(counted, jnp.ones(2)), jnp.zeros(2), 2.0, solver="tsit5")
    assert start.status == again.status == "done"
    assert len(traces) - first_call <= 1 < first_call


# --- precision and progress ---


def test_float32_runs_where_its_tolerance_is_within_its_resolution():
    problem = scalar_flows(QUARTIC, LOGISTIC, dtype=jnp.float32)
    params0 = at(1.0, 1e-2, dtype=jnp.float32)
    traj = td.gradient_flow(
        problem, params0, 5.0, np.linspace(0, 5, 6), {"first": first}, {"half": ("first", 0.5)}, rtol=1e-3
    )
    assert traj.status == "done" and traj.params1["x"].dtype == jnp.float32
    np.testing.assert_allclose(traj["first"], quartic_solution(np.linspace(0, 5, 6), 1.0), rtol=3e-3)
    np.testing.assert_allclose(traj.crossings["half"], [1.5], rtol=3e-3)
    with pytest.raises(ValueError, match=r"below what float32 parameters resolve .*: cast them to float64\."):
        td.gradient_flow(problem, params0, 5.0)
    with pytest.raises(ValueError, match=r"below what float64 parameters resolve .*loosen it"):
        td.gradient_flow(scalar_flows(QUARTIC, LOGISTIC), at(1.0, 1.0), 5.0, rtol=1e-14)


def test_progress_is_reported_and_changes_nothing(capsys):
    problem, params0 = scalar_flows(QUARTIC, LOGISTIC), at(3.0, 1e-8)
    reports = []
    with compiled_at_once():
        silent = td.gradient_flow(problem, params0, 40.0, rtol=1e-11)
        told = td.gradient_flow(problem, params0, 40.0, rtol=1e-11, progress=reports.append)
        shown = td.gradient_flow(problem, params0, 40.0, rtol=1e-11, progress=True)
    assert len(reports) > 1 and reports[-1].t == reports[-1].t1 == 40.0
    assert [r.num_steps for r in reports] == sorted({r.num_steps for r in reports})
    last = reports[-1]
    assert last.num_steps == silent.stats["num_steps"] and last.loss == silent.stats["loss1"]
    assert last.steps_per_s > 0 and last.grad_norm == silent.stats["grad_norm1"]
    np.testing.assert_array_equal(last.ts, silent.ts)
    np.testing.assert_array_equal(last.losses, silent["loss"])
    for traj in (told, shown):
        np.testing.assert_array_equal(traj.ts, silent.ts)
        np.testing.assert_array_equal(traj["loss"], silent["loss"])
    assert capsys.readouterr().out == ""  # the live line goes to stderr


# --- refusals ---


def pair(params, data):
    del data
    return params["x"], 1.0


def vector(params, data):
    del data
    return params["x"]


def infinite(params, data):
    del data
    return 1 / jnp.sum(params["x"])


def kinked(params, data):
    del data
    return jnp.sqrt(jnp.sum(jnp.square(params["x"])))


@pytest.fixture
def unchecked():
    """Without the type checks of the tests, as a user has it: the library's own sentence is met."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


STANDARD = {"problem": scalar_flows(QUARTIC, BOWL), "params0": at(1.0, 1.0), "t1": 1.0}
REFUSED = {
    "no arrays": ({"params0": {}}, r"`params0` holds no arrays"),
    "integers": ({"params0": {"x": jnp.arange(2)}}, r"`params0` must hold floating-point arrays only; got int64"),
    "two dtypes": ({"params0": {"x": jnp.ones(2), "y": jnp.ones(2, "float32")}}, r"one dtype; got float32, float64"),
    "a pytree": ({"problem": td.Problem(pair)}, r"must return one scalar array; it returned a pytree"),
    "a vector": ({"problem": td.Problem(vector)}, r"must return a scalar; it returned shape \(2,\)"),
    "NaN start": ({"params0": at(1.0, np.nan)}, r"`params0` contains NaN or infinity"),
    "infinite loss": ({"problem": td.Problem(infinite), "params0": at(0.0, 0.0)}, r"the loss at `params0` is inf"),
    "NaN slope": ({"problem": td.Problem(kinked), "params0": at(0.0, 0.0)}, r"gradient at `params0` is not finite"),
    "t1 negative": ({"t1": -1.0}, r"`gradient_flow\(t1=\.\.\.\)` must be a positive, finite time; got -1\.0"),
    "t1 zero": ({"t1": 0.0}, r"must be a positive, finite time; got 0\.0"),
    "t1 infinite": ({"t1": np.inf}, r"must be a positive, finite time; got inf"),
    "rtol zero": ({"rtol": 0.0}, r"`rtol` must lie in \(0, 0\.1\]; got 0\.0"),
    "rtol NaN": ({"rtol": np.nan}, r"`rtol` must lie in \(0, 0\.1\]; got nan"),
    "rtol large": ({"rtol": 1.0}, r"`rtol` must lie in \(0, 0\.1\]; got 1\.0"),
    "ts empty": ({"ts": []}, r"`gradient_flow\(ts=\.\.\.\)` must be a non-empty list"),
    "ts matrix": ({"ts": np.zeros((2, 2))}, r"must be a non-empty list of finite times"),
    "ts falls": ({"ts": [0.1, 0.7, 0.7]}, r"must increase strictly; got ts\[2\] = 0\.7 after 0\.7"),
    "ts negative": ({"ts": [-0.5, 0.5]}, r"must lie in \[0, t1\] = \[0, 1\]; got -0\.5 … 0\.5"),
    "ts beyond": ({"ts": [0.5, 1.5]}, r"must lie in \[0, t1\] = \[0, 1\]; got 0\.5 … 1\.5"),
    "standing name": ({"observables": {"loss": first}}, r"`observables` may not be called loss"),
    "crossing short": ({"crossings": {"a": ("loss",)}}, r"`crossings\['a'\]` must be \(observable, level\)"),
    "crossing way": ({"crossings": {"a": ("loss", 1.0, "sideways")}}, r"'up' \| 'down'\); got"),
    "crossing name": ({"crossings": {"a": ("rank", 1.0)}}, r"watches 'rank', which is not among loss, grad_norm"),
    "crossing shape": (
        {"crossings": {"a": ("x", 1.0)}, "observables": {"x": vector}},
        r"needs a scalar observable; 'x' has shape \(2,\)",
    ),
    "stop": ({"stop": "b", "crossings": {"a": ("loss", 1.0)}}, r"`stop`='b' must name one of the crossings; got a"),
    "stop alone": ({"stop": "b"}, r"`stop`='b' must name one of the crossings; got none"),
    "solver name": ({"solver": "euler"}, r"unknown solver 'euler': choose one of auto, deflated, .*tsit5"),
    "solver type": ({"solver": dfx.Tsit5}, r"`solver` must be a name or a diffrax solver; got"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_bad_input_gets_one_sentence(case, unchecked):
    changes, sentence = REFUSED[case]
    with pytest.raises(ValueError, match=sentence) as caught:
        td.gradient_flow(**{**STANDARD, **changes})
    assert "\n" not in str(caught.value)


def test_a_loss_that_is_no_function_is_refused(unchecked):
    with pytest.raises(ValueError, match=r"`Problem\(loss=\.\.\.\)` must be a function"):
        td.Problem(3.0)  # pyright: ignore[reportArgumentType]


def test_float32_names_its_cure_where_x64_is_off():
    """As a new user meets it: float64 not switched on, default tolerance."""
    with jax.enable_x64(False):
        with pytest.raises(
            ValueError, match=r"`rtol`=1e-06 is below what float32 .*jax\.config\.update\('jax_enable_x64'"
        ):
            td.gradient_flow(scalar_flows(QUARTIC, BOWL, dtype=jnp.float32), at(1.0, 1.0, dtype=jnp.float32), 1.0)
