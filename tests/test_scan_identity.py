"""What is stored is what was asked: finished lanes are compared before anything is compiled, and axes change lanes."""

import itertools
import json
import threading
import time
import warnings
from functools import cache, partial
from typing import Any

import jax.numpy as jnp
import jaxtyping
import numpy as np
import pytest
import xarray as xr
import zarr

import thetadot as td
from flows import LOGISTIC, at, first, scalar_flows
from scans import MEASURE, OBSERVABLES, make_stiff, num_rows
from test_scan_keep import GRID as STIFF_GRID
from test_scan_keep import after
from thetadot.engine import loop
from thetadot.identity import library
from thetadot.scan import engines, lane, resume
from thetadot.scan import identity as identity_module
from thetadot.scan.identity import identified, idle_axes
from thetadot.scan.job import Job
from thetadot.scan.lane import Interrupted, run_lane
from thetadot.scan.store import CHECKSUM, IDENTITY

X0 = np.linspace(0.02, 0.3, 6)
solve = partial(td.scan, t1=8.0, measure=MEASURE, observables=OBSERVABLES, solver="tsit5", errors=False)


@cache
def loss_of(factor):
    return lambda params, data: factor * jnp.sum((params["x"] - data) ** 2)


@cache
def version(factor=0.5, shift=0.0):
    """A problem as it is before and after an edit, x' = −2 factor (x − shift)."""
    return lambda a: (td.Problem(loss_of(factor), jnp.full(2, shift)), at(a, 1.0))


A = {"a": [2.0, 3.0, 4.0, 5.0, 6.0, 7.0]}
DECAY: dict[str, Any] = {"t1": 5.0, "measure": {"half": ("x", 1.0)}, "grid": A}


def escapes(factor=0.5, shift=0.0):
    """When x, from a, has fallen to 1."""
    return np.log((np.array(A["a"]) - shift) / (1 - shift)) / (2 * factor)


def interrupted(make, store, done=2):
    """The lanes that are finished in a store that was left after `done` of them, or one more."""
    begun, left = itertools.count(1), threading.Event()

    def interrupt(tally):
        if tally.done >= done:
            left.set()
            raise KeyboardInterrupt

    def waiting(a):
        if threading.current_thread() is not threading.main_thread() and next(begun) > done + 1:
            left.wait(60)
        return make(a)

    with pytest.raises(KeyboardInterrupt):
        solve(waiting, store=store, progress=interrupt, **DECAY)
    return np.asarray(zarr.open_group(store, mode="r")["status"]) != "pending"


@pytest.fixture(autouse=True)
def one_core(monkeypatch):
    monkeypatch.setattr(engines, "num_cores", lambda: 1)


@pytest.fixture
def never_compiles(monkeypatch):
    """From when it is called."""

    def from_now_on():
        monkeypatch.setattr(loop, "compiled", lambda flow: pytest.fail("a loop is compiled"))
        monkeypatch.setattr(lane, "begin_flow", lambda request: pytest.fail("a lane is begun"))

    return from_now_on


# --- edits between two calls ---


@pytest.mark.parametrize(
    ("new", "what"), [({"factor": 5.0}, "`loss` has changed"), ({"shift": 0.5}, "the data have changed")]
)
def test_a_store_is_not_finished_with_another_problem(tmp_path, never_compiles, new, what):
    store = tmp_path / "mix.zarr"
    finished = interrupted(version(), store)
    assert 2 <= finished.sum() < 6
    never_compiles()
    with pytest.raises(
        ValueError, match=rf"{what} since {finished.sum()} of 6 lanes were solved: give another `store`"
    ):
        solve(version(**new), store=store, **DECAY)


@pytest.mark.parametrize("new", [{"factor": 5.0}, {"shift": 0.5}])
def test_changed_lanes_are_solved_again_on_request(tmp_path, new):
    store = tmp_path / "redo.zarr"
    interrupted(version(), store)
    ds = solve(version(**new), store=store, changed="redo", **DECAY)
    np.testing.assert_allclose(ds.half, escapes(**new), rtol=1e-5)
    xr.testing.assert_identical(solve(version(**new), store=store, **DECAY).load(), ds.load())
    with pytest.raises(ValueError, match="since 6 of 6 lanes"):
        solve(version(), store=store, **DECAY)


def test_only_changed_lanes_are_solved_again(tmp_path):
    store, old, asked = tmp_path / "some.zarr", version(), []

    def in_part(a):
        asked.append(a)
        return version(5.0)(a) if a > 5 else old(a)

    before = solve(old, store=store, **DECAY).load()
    with pytest.raises(ValueError, match="since 2 of 6 lanes"):
        solve(in_part, store=store, **DECAY)
    ds = solve(in_part, store=store, changed="redo", **DECAY)
    np.testing.assert_array_equal(ds.wall_s[:4], before.wall_s[:4])
    np.testing.assert_allclose(ds.half, [*escapes()[:4], *escapes(5.0)[4:]], rtol=1e-5)


def ends_of_x(traj):
    return traj["x"][[0, -1]]


def test_a_lane_that_fails_when_it_is_solved_again_keeps_no_number(tmp_path):
    store = tmp_path / "fails.zarr"

    def broken(a):
        if a > 5:
            raise RuntimeError("no such lane")
        return version()(a)

    measure = {**DECAY["measure"], "ends": ends_of_x}
    solve(version(), store=store, measure=measure, t1=5.0, grid=A)
    with pytest.raises(ValueError, match="whether `make` and the functions of the point can be called"):
        solve(broken, store=store, measure=measure, t1=5.0, grid=A)
    ds = solve(broken, store=store, measure=measure, t1=5.0, grid=A, changed="redo")
    assert list(ds.status) == ["done"] * 4 + ["failed"] * 2
    assert np.all(np.isnan(ds.half[4:])) and np.all(np.isnan(ds.loss1[4:])) and np.all(np.isnan(ds.ends[4:]))


def test_a_kill_while_lanes_are_taken_back_loses_their_status_first(tmp_path, monkeypatch):
    store = tmp_path / "kill.zarr"
    solve(version(), store=store, **DECAY)

    def killed(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr(resume, "write", killed)
    with pytest.raises(KeyboardInterrupt):
        solve(version(5.0), store=store, changed="redo", **DECAY)
    monkeypatch.undo()
    assert set(np.asarray(zarr.open_group(store)["status"][...])) == {"pending"}  # pyright: ignore
    np.testing.assert_allclose(solve(version(5.0), store=store, **DECAY).half, escapes(5.0), rtol=1e-5)


def test_names_and_places_of_functions_do_not_matter(tmp_path, never_compiles):
    store = tmp_path / "names.zarr"
    one, other = version(), version.__wrapped__()
    other.__qualname__, other.__module__ = "another_name", "another.module"
    before = solve(one, store=store, **DECAY).load()
    never_compiles()
    xr.testing.assert_identical(solve(other, store=store, **DECAY).load(), before)


def test_a_changed_measure_is_named(tmp_path):
    store, more = tmp_path / "measure.zarr", {"grid": {"a": [2.0]}, "t1": 5.0}
    solve(version(), store=store, measure={"size": lambda traj: float(traj["x"][-1])}, **more)
    double = {"size": lambda traj: 2 * float(traj["x"][-1])}
    with pytest.raises(ValueError, match=r"`measure\['size'\]` has changed .* or `changed=\"trust\"` if it computes"):
        solve(version(), store=store, measure=double, **more)
    kept = solve(version(), store=store, measure=double, changed="trust", **more).load()
    assert kept.size == solve(version(), store=store, measure=double, **more).size  # from now on it is this one
    again = solve(version(), store=store, measure={"size": lambda t: 3 * float(t["x"][-1])}, changed="redo", **more)
    np.testing.assert_allclose(again["size"], 3 * kept["size"])


def test_trust_is_in_functions_only(tmp_path):
    store = tmp_path / "trust.zarr"
    before = solve(version(), store=store, **DECAY).load()
    others: list[dict[str, Any]] = [{"rtol": 1e-7}, {"t1": 6.0}]
    for changes in others:
        with pytest.raises(ValueError, match=f"`{next(iter(changes))}` has changed"):
            solve(version(), store=store, changed="trust", **DECAY | changes)
    with pytest.raises(ValueError, match="the data have changed"):
        solve(version(shift=0.5), store=store, changed="trust", **DECAY)
    xr.testing.assert_identical(solve(version(5.0), store=store, changed="trust", **DECAY).load(), before)
    with pytest.raises(ValueError, match=r"`scan\(changed=...\)` must be one of refuse, redo, trust"):
        solve(version(), changed="anything", **DECAY)


# --- versions ---


def test_another_version_of_jax_cannot_be_compared_and_there_is_a_way_to_go_on(tmp_path, monkeypatch):
    store, told = tmp_path / "old.zarr", "Python 3.11, JAX 0.0.1, NumPy 2.0"
    for module in (library, identity_module, resume):
        monkeypatch.setattr(module, "environment", lambda: told)
    before = solve(version(), store=store, **DECAY).load()
    monkeypatch.undo()
    expected = rf"6 of 6 lanes were solved under {told}, and this is .*: give another `store`, or `changed=\"trust\"`"
    with pytest.raises(ValueError, match=expected):
        solve(version(), store=store, **DECAY)
    with pytest.raises(ValueError, match="the data have changed"):  # that can be told
        solve(version(shift=0.5), store=store, **DECAY)
    xr.testing.assert_identical(solve(version(), store=store, changed="trust", **DECAY).load(), before)
    xr.testing.assert_identical(solve(version(), store=store, **DECAY).load(), before)
    with pytest.raises(ValueError, match="`loss` has changed since 6 of 6"):
        solve(version(5.0), store=store, **DECAY)


def test_another_meaning_of_the_results_is_a_change(tmp_path, monkeypatch):
    solve(version(), store=tmp_path / "old.zarr", **DECAY)
    monkeypatch.setattr(identity_module, "RESULTS", identity_module.RESULTS + 1)
    with pytest.raises(ValueError, match="what thetadot's numbers mean has changed since 6 of 6"):
        solve(version(), store=tmp_path / "old.zarr", **DECAY)


def test_a_store_that_does_not_say_what_it_holds_is_refused(tmp_path):
    solve(version(), store=tmp_path / "old.zarr", **DECAY)
    group = zarr.open_group(tmp_path / "old.zarr")
    del group[IDENTITY], group[CHECKSUM]
    with pytest.raises(ValueError, match="does not say what its lanes solve"):
        solve(version(), store=tmp_path / "old.zarr", **DECAY)


# --- what is trusted, and what it costs ---


def test_what_is_trusted_by_name_is_told():
    def counted(params, data):
        return jax_callback(params["x"][0])

    def jax_callback(x):
        import jax

        return jax.pure_callback(np.asarray, jax.ShapeDtypeStruct((), x.dtype), x)

    ds = solve(version(), observables={**OBSERVABLES, "counted": counted}, **DECAY)
    assert ds.attrs["trusted_by_name"] == ["observables['counted']: callback asarray"]
    assert solve(version(), **DECAY).attrs["trusted_by_name"] == []


def test_a_finished_store_of_a_thousand_lanes_is_compared_in_two_seconds(tmp_path, monkeypatch, never_compiles):
    traced = []

    def loss(params, data):
        traced.append(1)
        return 0.5 * jnp.sum((params["x"] - data) ** 2)

    data = np.zeros(2)

    def make(a, b):
        return td.Problem(loss, data), {"x": np.array([a, b])}

    def ready_made(job, lanes):
        for number in lanes:
            numbers = identity_module.identity_at(job, number)
            yield number, {"status": "done", "result": "Done.", "loss1": float(number), IDENTITY: numbers}

    monkeypatch.setitem(engines.ENGINES, "ready-made", ready_made)
    scan = {"grid": {"a": np.arange(1.0, 41), "b": np.arange(25.0)}, "store": tmp_path / "many.zarr"}
    solve(make, engine="ready-made", **scan)
    never_compiles()
    num_traces, seconds = len(traced), []
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)  # a check of types costs what it checks
    for _ in range(2):  # of the processor, and the better one: other processes may be at work
        began = time.process_time()
        ds = solve(make, **scan)
        seconds.append(time.process_time() - began)
    assert min(seconds) < 2 and len(traced) == num_traces <= 2
    assert np.array_equal(ds.loss1.values.ravel(), np.arange(1000.0))


# --- checkpoints ---


def test_a_checkpoint_of_an_edited_loss_is_left_alone(tmp_path):
    """The lane ends with the numbers of the new loss."""

    def twice(x0):
        problem, params0 = make_stiff(x0)
        return td.Problem(doubled, problem.data), params0

    def doubled(params, data):
        return 2 * make_stiff(0.2)[0].loss_fn(params, data)

    def job(make, folder):
        measure = {"rows": num_rows}
        return Job(
            make, STIFF_GRID, 0.5, MEASURE, measure, OBSERVABLES, "tsit5", 1e-6, False, 10**6, True, None, folder
        )

    with pytest.raises(Interrupted):
        run_lane(job(make_stiff, tmp_path), 0, after(5))
    assert list(tmp_path.glob("*.npz"))
    fresh = run_lane(job(twice, None), 0, after(10**9))
    assert {**run_lane(job(twice, tmp_path), 0, after(10**9)), "wall_s": 0} == {**fresh, "wall_s": 0}
    assert fresh["half"] != run_lane(job(make_stiff, None), 0, after(10**9))["half"]


# --- axes ---


def logistic(x0, **_):
    return scalar_flows(LOGISTIC, LOGISTIC), at(x0, 0.5)


@pytest.mark.parametrize("engine", ["threads", "batches"])
def test_end_tolerance_solver_and_level_are_axes_like_any_other(engine):
    """x' = x − x² passes a level at log(1/x0 − 1) − log(1/level − 1)."""
    grid = {"x0": [0.02, 0.1], "rtol": [1e-3, 1e-8], "t1": [6.0, 7.0], "solver": ["tsit5", "dopri5"]}
    ds = td.scan(
        logistic,
        grid,
        t1=lambda t1, **_: t1,
        measure={"passed": ("x", lambda x0, **_: 10 * x0 if x0 < 0.1 else None)},
        observables={"x": first},
        solver=lambda solver, **_: solver,
        rtol=lambda rtol, **_: rtol,
        errors=False,
        engine=engine,
    )
    assert np.all(ds.status == "done")
    np.testing.assert_array_equal(ds.t_end, np.broadcast_to(np.array([6.0, 7.0])[:, None], ds.t_end.shape))
    assert np.all(ds.num_steps.sel(rtol=1e-8) > 2 * ds.num_steps.sel(rtol=1e-3))
    assert np.all(ds.loss1.sel(solver="tsit5").values != ds.loss1.sel(solver="dopri5").values)
    error = np.abs(ds.passed.sel(x0=0.02) - (np.log(1 / 0.02 - 1) - np.log(1 / 0.2 - 1)))
    assert np.all(error.sel(rtol=1e-8) < 1e-7) and np.all(error.sel(rtol=1e-3) > error.sel(rtol=1e-8))
    assert np.all(ds.passed_level.sel(x0=0.02) == 0.2) and np.all(np.isnan(ds.passed_level.sel(x0=0.1)))
    assert np.all(np.isnan(ds.passed.sel(x0=0.1)))
    assert ds.passed.attrs["long_name"] == "first time at which x passes passed_level"


def test_a_setting_that_makes_no_sense_at_a_point_fails_its_lane():
    ds = solve(logistic, {"x0": [0.1], "rtol": [1e-3, 0.5]}, rtol=lambda rtol, **_: rtol)
    assert ds.status.values.ravel().tolist() == ["done", "failed"] and "rtol" in str(ds.result.values[0, 1])


def test_an_axis_that_changes_nothing_is_said():
    with pytest.warns(
        UserWarning, match=r"`grid\['rtol'\]` changes nothing: lanes at its first and last value"
    ) as told:
        ds = solve(logistic, {"x0": X0[:2], "rtol": [1e-3, 1e-8]})
    assert len(told) == 1
    np.testing.assert_array_equal(ds.half[:, 0], ds.half[:, 1])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        solve(logistic, {"x0": X0[:2], "rtol": [1e-3, 1e-8]}, rtol=lambda rtol, **_: rtol)


def test_an_axis_that_matters_somewhere_is_not_idle():
    def at_some(x0, noise, seed):
        return scalar_flows(LOGISTIC, LOGISTIC), at(x0, 0.5 + 0.01 * noise * seed)

    axes = {"x0": X0, "noise": np.array([0.0, 1.0]), "seed": np.arange(3)}
    job = Job(at_some, axes, 8.0, {}, {}, {}, "tsit5", 1e-6, False, 100, True)
    job, _ = identified(job)
    assert idle_axes(job, 8) == []
    assert idle_axes(job._replace(axes=axes | {"noise": np.array([0.0])}), 8) == ["seed"]


def test_the_configuration_names_what_varies():
    ds = solve(logistic, {"x0": X0[:2]}, rtol=one_rtol)
    assert json.loads(ds.attrs["configuration"])["rtol"].endswith("one_rtol") and "one_rtol" in ds.attrs["rtol"]


def one_rtol(x0):
    del x0
    return 1e-4


def test_an_argument_may_be_called_identity(tmp_path):
    """The name of the field for a task, and not of something in the store."""
    make = version()
    options: dict[str, Any] = DECAY | {"grid": {"identity": A["a"][:2]}}
    ds = solve(lambda identity: make(identity), store=tmp_path / "task.zarr", **options)
    np.testing.assert_allclose(ds.half, escapes()[:2], rtol=1e-5)
