"""What a scan leaves behind: nothing finished is lost, whatever happens to the process, the disk or the plan."""

import platform
import random
import resource
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path
from threading import Event

import numpy as np
import pytest
import xarray as xr
import zarr

import durability
import thetadot as td
from flows import at, first
from scans import GRID, MEASURE, OBSERVABLES, ends, make, scan_slowly
from thetadot.scan import engines
from thetadot.scan.store import PENDING

solve = partial(td.scan, t1=8.0, measure=MEASURE, observables=OBSERVABLES, solver="tsit5", errors=False)
X0 = np.linspace(0.02, 0.3, 12)


@pytest.fixture(autouse=True)
def two_cores(monkeypatch):
    monkeypatch.setattr(engines, "num_cores", lambda: 2)


def values(ds):
    """What two runs of the same lanes have in common."""
    return ds.drop_vars("wall_s").drop_attrs().load()


def statuses(path):
    return np.asarray(zarr.open_group(path, mode="r")["status"])


def make_until(event, asked):
    """`make` whose lanes, but for the first, wait for something to happen while they are written."""

    def make_and_wait(x0):
        asked.append(x0)
        if len(asked) > 10:  # five of them before the first lane
            event.wait(60)
            time.sleep(0.02)
        return make(x0)

    return make_and_wait


def interrupt_at(count, event=None):
    def progress(tally):
        if tally.done == count:
            if event:
                event.set()
            raise KeyboardInterrupt

    return progress


# --- resuming ---


def test_an_interrupted_scan_goes_on_and_equals_an_uninterrupted_one(tmp_path):
    asked, interrupted = [], Event()
    make_and_tell = make_until(interrupted, asked)

    path = tmp_path / "scan.zarr"
    with pytest.raises(
        KeyboardInterrupt, match=r"of 12 lanes to do; the others are in `.*scan.zarr`, and the same call"
    ):
        solve(make_and_tell, {"x0": X0}, store=path, progress=interrupt_at(4, interrupted))
    finished = statuses(path) == "done"
    assert 4 <= finished.sum() < 12
    asked.clear()
    resumed = solve(make_and_tell, {"x0": X0}, store=path)
    # After the three trials at the first point, the finished lanes are compared, and two of all.
    assert set(asked[3 : 3 + finished.sum()]) == set(X0[finished])
    assert set(asked[5 + finished.sum() :]) == set(X0[~finished])
    xr.testing.assert_identical(values(resumed), values(solve(make, {"x0": X0})))
    asked.clear()
    xr.testing.assert_identical(resumed.load(), solve(make_and_tell, {"x0": X0}, store=path).load())
    assert len(asked) == 3 + 12


def test_without_a_store_an_interrupt_says_that_nothing_was_kept():
    with pytest.raises(KeyboardInterrupt, match="nothing was kept: a `store`"):
        solve(make, {"x0": X0}, progress=interrupt_at(4))


def test_a_store_can_be_opened_while_it_is_written(tmp_path):
    path, seen = tmp_path / "deep" / "scan.zarr", []

    def look(tally):
        ds = xr.open_zarr(path, consolidated=False, chunks=None).load()
        done = ds.status.values == "done"
        assert done.sum() >= tally.done and np.all(np.isfinite(ds.half.values[done]))
        seen.append(ds.half.sizes == {"x0": 12})

    solve(make, {"x0": X0}, store=path, progress=look)
    assert seen == [True] * 12


# --- refusals ---


def make_other(x0):
    return td.Problem(other_loss, make(x0)[0].data), at(x0, 0.5)


def other_loss(params, data):
    del data
    return (params["x"] ** 2).sum()


SINCE = "has changed since 12 of 12 lanes were solved"
OTHERS = [
    ({"rtol": 1e-7}, rf"`rtol` {SINCE} \(rtol is 1e-06 there and 1e-07 here\)"),
    ({"t1": 9.0}, rf"`t1` {SINCE} \(t1 is 8.0 there and 9.0 here\)"),
    ({"solver": "dopri5"}, rf"`solver` {SINCE} \(solver is 'tsit5' there and 'dopri5' here\)"),
    ({"errors": True}, rf"`errors` {SINCE} \(errors is False there and True here\)"),
    ({"grid": {"x0": X0[:5]}}, r"grid\['x0'\] has 12 values there and 5 here"),
    ({"grid": {"x0": [*X0[:-1], 0.4]}}, r"grid\['x0'\] is 0.3 there and 0.4 here"),
    ({"grid": {"x0": X0, "seed": [0]}}, r"grid\['seed'\] is None there and \[0\] here"),
    ({"measure": {"half": ("x", 0.6)}}, rf"`measure\['half'\]` {SINCE} \(.*\['x', 0.5\] there and \['x', 0.6\] here\)"),
    ({"measure": {**MEASURE, "ends": ends}}, r"measure\['ends'\] is None there and 'scans.ends' here"),
    ({"measure": {"half": ("x", lambda x0: 0.5)}}, r"measure\['half_level'\] is None there"),
    (
        {"make": make_other},
        rf"`loss` {SINCE} \(loss is 'flows.polynomial' there and '.*other_loss' here\)",
    ),
    ({"max_steps": 7}, rf"`max_steps` {SINCE} \(max_steps is 1000000 there and 7 here\)"),
    ({"stop": "half"}, rf"`stop` {SINCE} \(stop is None there and 'half' here\)"),
    ({"observables": {"x": lambda params, data: 2 * first(params, data)}}, rf"`observables\['x'\]` {SINCE}"),
]


@pytest.fixture(scope="module")
def stored(tmp_path_factory):
    path = tmp_path_factory.mktemp("stores") / "scan.zarr"
    solve(make, {"x0": X0}, store=path)
    return path


@pytest.mark.parametrize("changes, message", OTHERS)
def test_the_store_of_another_scan_is_refused_with_the_difference(stored, changes, message):
    before = {path: path.stat().st_mtime_ns for path in stored.rglob("*")}
    with pytest.raises(ValueError, match=message):
        solve(**{"make": make, "grid": {"x0": X0}, "store": stored, **changes})
    assert before == {path: path.stat().st_mtime_ns for path in stored.rglob("*")}
    assert np.all(solve(make, {"x0": X0}, store=str(stored)).status == "done")


def test_what_is_no_store_is_left_alone(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    (tmp_path / "file.zarr").write_text("mine")
    td.gradient_flow(*make(0.1), 1.0, solver="tsit5").save(tmp_path / "run.zarr")
    for name in ("", "file.zarr", "run.zarr"):
        with pytest.raises(ValueError, match="is not the store of a scan"):
            solve(make, {"x0": X0}, store=tmp_path / name)
    assert (tmp_path / "notes.txt").read_text() == "mine" and td.load(tmp_path / "run.zarr").status == "done"


def test_the_store_of_a_scan_is_no_trajectory_and_is_not_said_to_be_damaged(stored):
    with pytest.raises(ValueError, match="is not a saved trajectory: it has no list of series"):
        td.load(stored)


def test_a_store_that_was_half_made_is_made_anew(tmp_path):
    path = tmp_path / "scan.zarr"
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    half = tmp_path / f".scan.zarr.{dead.pid}@{platform.node()}.x1.partial" / "folder"
    half.mkdir(parents=True)
    (half / "zarr.json").write_text("{")
    path.mkdir()  # empty
    assert np.all(solve(make, {"x0": X0}, store=path).status == "done")
    assert [child.name for child in tmp_path.iterdir()] == ["scan.zarr"]


# --- disks ---


def test_a_place_that_cannot_be_written_is_said_at_once():
    with pytest.raises(OSError, match=r"cannot make the store `/proc/scan.zarr`"):
        solve(make, {"x0": X0}, store="/proc/scan.zarr")


def test_a_full_disk_ends_in_a_sentence_and_keeps_what_was_finished(tmp_path):
    path, limits = tmp_path / "scan.zarr", resource.getrlimit(resource.RLIMIT_FSIZE)
    full = Event()
    make_slowly = make_until(full, [])

    def fill(tally):
        if tally.done == 4:  # from now on no file can grow
            resource.setrlimit(resource.RLIMIT_FSIZE, (0, limits[1]))
            full.set()

    grid = {"x0": np.linspace(0.02, 0.3, 40)}
    try:
        with pytest.raises(OSError, match=r"cannot write to `.*scan.zarr`: .*the same call goes on"):
            solve(make_slowly, grid, store=path, progress=fill)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    kept = statuses(path) == "done"
    assert 4 <= kept.sum() < 40
    half = np.asarray(zarr.open_group(path, mode="r")["half"])
    assert np.all(np.isfinite(half[kept]))
    resumed = solve(make_slowly, grid, store=path)
    np.testing.assert_array_equal(resumed.half[kept], half[kept])
    assert np.all(resumed.status == "done")


# --- kills ---


@pytest.fixture(scope="module")
def uninterrupted():
    ds = values(scan_slowly(None))
    assert np.all(ds.status == "done")
    return ds


@pytest.fixture(scope="module")
def start(tmp_path_factory):
    """Starts the program of `scans.py` in a process of its own; compiled code is kept from one to the next."""
    return partial(durability.start, tmp_path_factory.mktemp("compiled"))


def kill_and_resume(start, path, kills, uninterrupted):
    """Kills the scan at random moments. What it had told to be finished is there, and stays as it is."""
    moments, known = random.Random(kills), np.zeros(64, bool)
    half = np.full(64, np.nan)
    for _ in range(kills):
        process, told = start("slow", str(path)), 0
        assert process.stdout
        target = known.sum() + moments.randint(1, max(1, 64 // kills))
        while told < target and (line := process.stdout.readline()):
            told = int(line)
        time.sleep(moments.uniform(0, 0.1))
        process.send_signal(signal.SIGKILL)
        told = max([told, *map(int, process.stdout.read().split())])
        process.communicate()
        ds = xr.open_zarr(path, consolidated=False, chunks=None).load()
        finished = ds.status.values.ravel() != PENDING
        assert finished.sum() >= told and np.all(finished[known])
        np.testing.assert_array_equal(ds.half.values.ravel()[known], half[known])
        known, half = finished, ds.half.values.ravel()
    assert 0 < known.sum()
    xr.testing.assert_identical(values(scan_slowly(path)), uninterrupted)


@pytest.mark.slow
def test_ten_kills_lose_no_finished_lane(start, tmp_path, uninterrupted):
    kill_and_resume(start, tmp_path / "scan.zarr", 10, uninterrupted)


def test_the_comparison_sees_another_scan(uninterrupted):
    other = td.scan(make, GRID, 8.0, MEASURE, OBSERVABLES, rtol=1e-7, solver="tsit5", errors=False)
    with pytest.raises(AssertionError):
        xr.testing.assert_identical(values(other), uninterrupted)


@pytest.mark.slow
def test_control_c_stops_at_once_and_says_how_to_go_on(start, tmp_path):
    path = tmp_path / "scan.zarr"
    process = start("endless", str(path))
    assert process.stdout and process.stdout.readline() == "1\n"  # the lane that ends; the others would take minutes
    process.send_signal(signal.SIGINT)
    began = time.monotonic()
    _, stderr = process.communicate(timeout=60)
    assert time.monotonic() - began < 5
    assert "2 of 3 lanes to do" in stderr and "the same call goes on from there" in stderr
    assert process.returncode == -signal.SIGINT, stderr
    assert sorted(statuses(path)) == ["done", PENDING, PENDING]


@pytest.mark.slow
@pytest.mark.parametrize("presses", [1, 2])
def test_lanes_that_cannot_be_left_are_waited_for_with_a_word(start, tmp_path, presses):
    path = tmp_path / "scan.zarr"
    process = start("stuck", str(path))
    assert process.stdout and process.stderr and process.stdout.readline() == "stuck\n"
    began, told = time.monotonic(), ""
    process.send_signal(signal.SIGINT)
    while "Ctrl-C once more ends at once" not in told:
        line = process.stderr.readline()
        assert line, told
        told += line
    assert time.monotonic() - began < 4 and "KeyboardInterrupt: interrupted with 6 of 6 lanes to do" in told
    if presses == 2:
        process.send_signal(signal.SIGINT)
    process.communicate(timeout=60)
    assert process.returncode == (-signal.SIGINT if presses == 1 else 130)
    assert (time.monotonic() - began < 5) == (presses == 2)
    assert list(statuses(path)) == [PENDING] * 6


# --- many lanes ---


def ready_made(job, lanes):
    """An engine that solves nothing."""
    for lane in lanes:
        yield lane, {"status": "done", "result": f"Lane {lane}.", "loss1": float(lane), "curve": np.full(50, lane)}


@pytest.mark.slow
def test_a_hundred_thousand_lanes_stream_through_constant_memory(tmp_path, monkeypatch):
    monkeypatch.setitem(engines.ENGINES, "ready-made", ready_made)
    sizes = {}

    def resident(tally):
        if tally.done in (5_000, 100_000):
            sizes[tally.done] = int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()

    grid, measure = {"x0": np.linspace(0.1, 0.2, 100), "seed": range(1000)}, {"curve": ends}
    ds = solve(make, grid, measure=measure, store=tmp_path / "scan.zarr", engine="ready-made", progress=resident)
    assert sizes[100_000] - sizes[5_000] < 2e8  # the curves alone are 4e7 bytes
    assert np.array_equal(ds.loss1.values.ravel(), np.arange(1e5)) and np.all(ds.status == "done")
    assert np.array_equal(ds.curve[7, 11], np.full(50, 7011.0))
