"""Scans of flows that are known: what is in the dataset, that no lane harms another, and what is refused."""

import asyncio
import json
import math
import threading
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import xarray as xr

import thetadot as td
from flows import LOGISTIC, at, polynomial, scalar_flows
from scans import MEASURE, OBSERVABLES, ends, final, make
from thetadot.engine import run, together
from thetadot.scan import engines
from thetadot.scan import lane as lane_module
from thetadot.scan.grid import check_grid, chunk_shape, chunk_start
from thetadot.scan.job import Job
from thetadot.scan.lane import STATS, Interrupted, run_lane
from thetadot.scan.tally import Tally, describe_tally

solve = partial(td.scan, t1=8.0, measure=MEASURE, observables=OBSERVABLES, solver="tsit5", errors=False)
X0 = np.array([0.02, 0.1, 0.3])
EXACT = np.log(1 / X0 - 1)


class BadTold(BaseException):
    def __str__(self):
        raise RuntimeError("cannot be told")


@pytest.fixture(params=[("threads", 1), ("threads", 3), ("batches", 2)])
def engine(request, monkeypatch):
    monkeypatch.setattr(engines, "num_cores", lambda: request.param[1])
    return request.param[0]


# --- what is measured ---


def test_a_scan_gives_the_numbers_of_single_solves_and_errors_that_cover_the_truth(engine):
    ds = solve(make, {"x0": [*X0, 0.6], "seed": range(2)}, errors=True, engine=engine)
    assert ds.sizes == {"x0": 4, "seed": 2} and list(ds.seed) == [0, 1]
    error = np.abs(ds.half[:3] - EXACT[:, None])
    assert np.all(error <= ds.half_error[:3]) and np.all(error > 0) and np.all(ds.half_error[:3] < 1e-4)
    assert np.all(np.isnan(ds.half[3])) and np.all(np.isnan(ds.half_error[3]))  # it starts above its level
    assert np.all(ds.status == "done")
    for x0 in (0.02, 0.6):
        lane = ds.sel(x0=x0, seed=1)
        options = {"observables": OBSERVABLES, "crossings": MEASURE, "solver": "tsit5"}
        single = td.gradient_flow(*make(x0), 8.0, **options)
        assert lane.num_steps == single.stats["num_steps"] and lane.num_gradients == single.stats["num_gradients"]
        assert lane.result == single.result and lane.t_end == 8.0
        np.testing.assert_allclose(lane.loss1, single.stats["loss1"], rtol=1e-8)
        time = td.crossing_times(*make(x0), t1=8.0, **options)["half"]
        np.testing.assert_allclose([lane.half, lane.half_error], [time.value, time.error], rtol=1e-8, atol=1e-13)


def test_errors_can_be_left_out():
    ds = solve(make, {"x0": X0})
    np.testing.assert_allclose(ds.half, EXACT, rtol=1e-5)
    assert np.all(np.isnan(ds.half_error))


@pytest.mark.parametrize("engine", ["threads", "batches"])
def test_tighter_flows_are_left_after_the_last_crossing_found_and_no_number_moves(monkeypatch, engine):
    """x passes 0.5 at 2.2 and goes on to t = 60; "high" is passed twice by a wave, "never" not at all."""
    measure = {**MEASURE, "high": ("high", 0.5), "never": ("x", 2.0), "ends": ends}
    observables = {**OBSERVABLES, "high": lambda params, data: jnp.sin(4 * params["x"][0])}
    ended, real = [], lane_module.end_flow

    def end_flow(ongoing):
        ended.append(real(ongoing))
        return ended[-1]

    monkeypatch.setattr(lane_module, "end_flow", end_flow)
    monkeypatch.setattr(run, "_SHORT_CHUNK", 4)
    monkeypatch.setattr(together, "_CHUNK_STEPS", 4)
    options = {"t1": 60.0, "measure": measure, "observables": observables, "errors": True, "rtol": 1e-4}
    early = solve(make, {"x0": X0[:2]}, engine=engine, **options)
    left = [traj.stats["t1"] for traj in ended]
    monkeypatch.setattr(lane_module, "wanted", lambda trajs: None)
    ended.clear()
    late = solve(make, {"x0": X0[:2]}, engine=engine, **options)
    # Whether "never" depends on rounding is asked of a flow that goes on to its end, as the first one does.
    assert [traj.stats["t1"] for traj in ended] == [60.0] * 8
    assert sorted(left)[4:] == [60.0] * 4 and max(sorted(left)[:4]) < 12
    xr.testing.assert_identical(early.drop_vars("wall_s").drop_attrs(), late.drop_vars("wall_s").drop_attrs())
    assert np.all(early.half_error > 0) and np.all(early.high_error > 0) and np.all(np.isnan(early.never_error))
    assert all(len(traj.crossings["high"]) == 2 for traj in ended)


def test_a_crossing_may_end_every_lane():
    """And is said by its status; the crossings before it are there, those after it are not."""
    measure = {**MEASURE, "late": ("x", 0.9)}
    ds = solve(make, {"x0": [*X0, 0.6]}, measure=measure, stop="half", errors=True)
    assert list(ds.status) == ["stopped"] * 3 + ["done"]
    np.testing.assert_allclose(ds.half[:3], EXACT, rtol=1e-5)
    np.testing.assert_allclose(ds.t_end[:3], ds.half[:3])
    assert list(np.isnan(ds.late)) == [True] * 3 + [False] and json.loads(ds.attrs["configuration"])["stop"] == "half"
    with pytest.raises(ValueError, match=r"`stop`='escape' must name a crossing in `measure`; there is half"):
        solve(make, {"x0": X0}, stop="escape")


def test_the_end_may_depend_on_the_point():
    ds = solve(make, {"x0": X0}, t1=lambda x0: 4.5 * x0)
    np.testing.assert_allclose(ds.t_end, 4.5 * X0)
    assert list(np.isnan(ds.half)) == [True, True, False]


def test_functions_of_the_trajectory_may_give_arrays():
    ds = solve(make, {"x0": X0}, measure={"ends": ends, "rows": lambda traj: len(traj.ts), **MEASURE})
    assert ds.ends.dims == ("x0", "ends_0")
    np.testing.assert_allclose(ds.ends, np.stack([X0, 1 / (1 + (1 / X0 - 1) * np.exp(-8.0))], 1), rtol=1e-5)
    assert np.all(ds.rows > 10) and np.all(ds.rows <= ds.num_steps + 1)


def test_the_dataset_says_where_it_comes_from():
    ds = solve(make, {"x0": X0}, max_steps=500)
    configuration = json.loads(ds.attrs["configuration"])
    assert configuration["make"] == "scans.make" and configuration["loss"] == "flows.polynomial"
    assert configuration["max_steps"] == 500 and configuration["grid['x0']"] == list(X0)
    provenance = json.loads(ds.attrs["provenance"])
    assert provenance["x64"] is True and ds.attrs["thetadot"] == provenance["versions"]["thetadot"]
    assert ds.attrs["rtol"] == 1e-6 and ds.attrs["solver"] == "tsit5"


def test_every_number_says_what_it_is():
    ds = solve(make, {"x0": X0}, measure={"half": ("x", 0.5, "up"), "ends": ends}, rtol=1e-5)
    assert ds.half.attrs == {
        "long_name": "first time at which x passes 0.5 up",
        "units": "gradient-flow time",
        "rtol": 1e-5,
    }
    assert ds.half_error.attrs["units"] == ds.t_end.attrs["units"] == "gradient-flow time"
    assert ds.wall_s.attrs["units"] == "s"
    assert all("long_name" in ds[name].attrs for name in ("half_error", *STATS))


# --- lanes do not harm each other ---


def test_every_kind_of_failure_stays_in_its_lane(engine):
    kinds = ["usual", "blow-up", "stiff", "broken", "unmeasurable"]
    measure = {**MEASURE, "final": final}
    ds = solve(make, {"kind": kinds, "x0": X0}, measure=measure, max_steps=1000, engine=engine)
    told = dict(zip(kinds, ds.status.values[:, 0], strict=True))
    assert told == {
        "usual": "done",
        "blow-up": "blew up",
        "stiff": "step limit",
        "broken": "failed",
        "unmeasurable": "failed",
    }
    assert np.all(ds.status == ds.status[:, :1])
    for kind in ("usual", "unmeasurable"):
        np.testing.assert_allclose(ds.half.sel(kind=kind), EXACT, rtol=1e-5)
    assert np.all(np.isfinite(ds.final.sel(kind="usual"))) and np.all(np.isnan(ds.final.sel(kind="unmeasurable")))
    assert "RuntimeError: this lane is broken" in ds.result.sel(kind="broken").values[0]
    assert "`measure['final']`" in ds.result.sel(kind="unmeasurable").values[0]
    assert "max_steps" in ds.result.sel(kind="stiff").values[0]
    assert np.all(np.isnan(ds.num_steps.sel(kind="broken"))) and np.all(ds.wall_s > 0)
    np.testing.assert_allclose(ds.t_end.sel(kind="blow-up"), 1 / (8 * 0.5**2), rtol=1e-4)


def test_a_lane_with_another_shape_fails_and_the_others_stay():
    ds = solve(make, {"x0": [0.1, 0.2, 0.6]}, measure={"ends": lambda t: ends(t)[: 1 if t["x"][0] > 0.5 else 2]})
    failed = (ds.status == "failed").values
    assert failed.tolist() in (
        [False, False, True],
        [True, True, False],
    )  # the shape is that of the lane that ends first
    assert all("in this lane and" in str(result) for result in ds.result.values[failed])
    assert np.all(np.isfinite(ds.ends[~failed])) and np.all(np.isnan(ds.ends[failed]))


@pytest.mark.parametrize("start", [None, (None, None), ("problem", "params0")])
def test_what_is_no_problem_fails_with_a_sentence(start):
    ds = solve(lambda x0: start, {"x0": X0})
    assert np.all(ds.status == "failed")
    assert "`make` must return (problem, params0)" in str(ds.result.values[0])


def test_a_tolerance_that_float32_does_not_resolve_fails_before_anything_is_solved():
    ds = solve(
        lambda x0: (scalar_flows(LOGISTIC, LOGISTIC, dtype=jnp.float32), at(x0, x0, dtype=jnp.float32)), {"x0": X0}
    )
    assert np.all(ds.status == "failed") and "float32" in str(ds.result.values[0])


# --- threads ---


def test_threads_run_lanes_at_the_same_time(monkeypatch):
    monkeypatch.setattr(engines, "num_cores", lambda: 3)
    meeting = threading.Barrier(3)
    here = threading.current_thread()

    def make_together(x0):
        if threading.current_thread() is not here:  # where `make` is tried first
            meeting.wait(timeout=60)
        return make(x0)

    assert np.all(solve(make_together, {"x0": X0}).status == "done")


def test_a_lane_is_left_between_two_chunks():
    calls = []

    def check(report):
        calls.append(report.num_steps)
        raise Interrupted

    job = Job(make, check_grid({"x0": X0}), 8.0, {}, {}, {}, "tsit5", 1e-6, False, 1000, True)
    with pytest.raises(Interrupted):
        run_lane(job, 0, check)
    assert len(calls) == 1
    assert run_lane(job, 0)["status"] == "done"


# --- batches ---


def test_what_cannot_run_under_vmap_runs_alone():
    def from_host(params, data):
        return jax.pure_callback(lambda x: np.asarray(x[0]), jax.ShapeDtypeStruct((), np.float64), params["x"])

    observables = {**OBSERVABLES, "from_host": from_host}
    measure = {**MEASURE, "last": lambda traj: traj["from_host"][-1]}
    ds = solve(make, {"x0": X0}, measure=measure, observables=observables, engine="batches")
    np.testing.assert_allclose(ds.half, EXACT, rtol=1e-5)
    np.testing.assert_allclose(ds["last"], 1 / (1 + (1 / X0 - 1) * np.exp(-8.0)), rtol=1e-5)


@pytest.mark.parametrize("engine", ["threads", "batches"])
def test_a_lane_whose_end_raises_fails_alone(monkeypatch, engine):
    """And is not lost: the scan would wait for it for ever."""
    real = lane_module.end_flow

    def end_flow(ongoing):
        if abs(float(ongoing.request.params0["x"][0]) - X0[1]) < 1e-12:
            raise RuntimeError("no end")
        return real(ongoing)

    monkeypatch.setattr(lane_module, "end_flow", end_flow)
    ds = solve(make, {"x0": X0}, engine=engine)
    assert list(ds.status) == ["done", "failed", "done"] and "no end" in str(ds.result.values[1])


@pytest.mark.parametrize("raised", [asyncio.CancelledError, SystemExit, GeneratorExit, pytest.fail.Exception, BadTold])
@pytest.mark.parametrize("where", ["make", "measure"])
def test_whatever_a_lane_raises_is_its_failure(engine, raised, where):
    def make_or_raise(x0):
        if where == "make" and x0 == X0[1]:
            raise raised("\udc80")
        return make(x0)

    def measure_or_raise(traj):
        if where == "measure" and abs(traj["x"][0] - X0[1]) < 1e-12:
            raise raised("\udc80")
        return traj["x"][-1]

    ds = solve(make_or_raise, {"x0": X0}, measure={"last": measure_or_raise}, engine=engine)
    assert list(ds.status) == ["done", "failed", "done"] and list(np.isnan(ds["last"])) == [False, True, False]
    assert f": {raised.__name__}" in str(ds.result.values[1])


def test_an_interrupt_in_a_lane_ends_the_scan(engine, tmp_path):
    def make_or_interrupt(x0):
        if x0 == X0[1]:
            raise KeyboardInterrupt
        return make(x0)

    with pytest.raises(KeyboardInterrupt, match="lanes to do; the others are in"):
        solve(make_or_interrupt, {"x0": X0}, engine=engine, store=tmp_path / "scan.zarr")


@pytest.mark.parametrize("name", ["threads", "batches"])
def test_an_engine_that_breaks_ends_the_scan(monkeypatch, name):
    def broken(self, *args):
        raise MemoryError("no room")

    monkeypatch.setattr(engines.Waiting, "take", broken)
    with pytest.raises(MemoryError, match="no room"):
        solve(make, {"x0": X0}, engine=name)


@pytest.mark.parametrize("value", [None, "1", 1j, [None], {"a": 1}], ids=repr)
def test_what_is_no_number_is_no_measurement(value):
    ds = solve(make, {"x0": X0[:1]}, measure={"odd": lambda traj: value, **MEASURE})
    assert list(ds.status) == ["failed"] and np.all(np.isnan(ds.odd)) and ds.half[0] > 0
    assert "`measure['odd']` failed: ValueError: it must return a number or an array of" in str(ds.result.values[0])


def test_auto_takes_batches_on_an_accelerator_where_lanes_are_even(monkeypatch):
    job = Job(make, check_grid({"x0": X0}), 8.0, {}, {}, {}, "auto", 1e-6, False, 1000, True)
    assert engines.choose_engine("auto", None, job) is engines.threads
    monkeypatch.setattr(engines.jax, "default_backend", lambda: "gpu")
    assert engines.choose_engine("auto", None, job) is engines.batches
    assert engines.choose_engine("auto", None, job._replace(solver="tsit5")) is engines.threads


# --- progress ---


def test_progress_tells_every_lane(monkeypatch):
    monkeypatch.setattr(engines, "num_cores", lambda: 2)
    tallies = []
    solve(make, {"x0": X0, "kind": ["usual", "broken"]}, progress=tallies.append)
    assert [tally.done for tally in tallies] == list(range(1, 7)) and {tally.total for tally in tallies} == {6}
    assert tallies[-1].statuses == {"done": 3, "failed": 3} and tallies[-1].left_s == 0 < tallies[0].left_s
    assert all(0 <= tally.running <= 2 for tally in tallies)
    line = describe_tally(Tally(3, 6, {"done": 2, "blew up": 1}, 90.0, 5400.0, 2))
    assert line == "3 of 6 lanes: 1 blew up, 2 done; 2 running; about 1.5 h left"
    assert describe_tally(Tally(0, 6, {}, 1.0, math.inf, 2)) == "0 of 6 lanes; 2 running; compiling"


def test_a_live_line_is_shown_on_request(capsys):
    solve(make, {"x0": X0})
    assert capsys.readouterr() == ("", "")
    solve(make, {"x0": X0}, progress=True)
    assert capsys.readouterr().out == ""


# --- what is refused ---


def fresh_loss(x0):
    return td.Problem(lambda params, data: polynomial(params, data), make(x0)[0].data), at(x0, 0.5)


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"grid": {}}, "at least one axis"),
        ({"grid": {"x0": []}}, "non-empty"),
        ({"grid": {"x0": [[0.1], [0.2]]}}, "non-empty list"),
        ({"grid": {"x0": [0.1, np.nan]}}, "finite"),
        ({"grid": {"x0": [0.1, 0.1]}}, "twice"),
        ({"grid": {"init scale": [0.1]}}, "init scale"),
        ({"t1": -1.0}, "t1"),
        ({"t1": np.inf}, "t1"),
        ({"rtol": 0.5}, "rtol"),
        ({"max_steps": 0}, "max_steps"),
        ({"solver": "nonsense"}, "nonsense"),
        ({"engine": "nonsense"}, "auto, threads"),
        ({"measure": {"half": ("y", 0.5)}}, "'y', not among dissipation, grad_norm, loss, x"),
        ({"measure": {"half": ("x", 0.5, "sideways")}}, "sideways"),
        ({"measure": {"half": ("x",)}}, "function of the trajectory"),
        ({"measure": {"x0": ("x", 0.5)}}, "may not be called x0"),
        ({"measure": {"a": ("x", 0.5), "a_error": ends}}, "may not be called a_error"),
        ({"measure": {"x/y": ("x", 0.5)}}, "may not be called 'x/y': give it a name of at most 100"),
        ({"measure": {"x/y": ends}}, "may not be called 'x/y': give it a name"),
        ({"measure": {"": ends}}, "may not be called '': give it a name"),
        ({"measure": {"__a": ends}}, "may not be called '__a': give it a name"),
        ({"measure": {"zarr.json": ends}}, "may not be called 'zarr.json': give it a name"),
        ({"measure": {"status": ends}}, "may not be called status"),
        ({"measure": {"loss1": ("x", 0.5)}}, "may not be called loss1"),
        ({"measure": {"half": ("x", np.nan)}}, r"`measure\['half'\]` has the level NaN"),
        ({"grid": {"x0": X0, "status": [0]}}, "`grid` may not have an axis called status"),
        ({"grid": {"x0": X0, "loss1": [0]}}, "`grid` may not have an axis called loss1"),
        ({"grid": {"x0": X0, "half_error": [0]}}, "`grid` may not have an axis called half_error"),
        ({"grid": {"x0": X0, "a_0": [0]}, "measure": {"a": ends}}, "`grid` may not have an axis called a_0"),
        ({"grid": {"x0": 3.0}}, r"`grid\['x0'\]` must be a non-empty list of numbers or of strings; got 3.0"),
        ({"grid": {"x0": "abc"}}, "non-empty list"),
        ({"grid": {"x0": [[0.1], [0.2, 0.3]]}}, "non-empty list"),
        ({"make": fresh_loss}, "every lane would compile"),
    ],
)
def test_what_makes_no_sense_is_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        solve(**{"make": make, "grid": {"x0": X0}, **changes})


# --- chunks ---


@pytest.mark.parametrize("shape", [(7,), (5, 8), (3, 4, 5), (2, 1000), (600, 1, 2)])
@pytest.mark.parametrize("most", [1, 6, 512])
def test_a_chunk_holds_lanes_that_follow_one_another(shape, most):
    chunks = chunk_shape(shape, most)
    assert np.prod(chunks) <= most
    starts = [chunk_start(lane, shape, chunks) for lane in range(np.prod(shape))]
    for start in set(starts):
        lanes = [lane for lane, s in enumerate(starts) if s == start]
        region = np.arange(np.prod(shape)).reshape(shape)[
            tuple(slice(i, i + n) for i, n in zip(start, chunks, strict=True))
        ]
        assert lanes == list(range(lanes[0], lanes[0] + len(lanes))) == list(region.ravel())
