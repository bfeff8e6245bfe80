"""Lanes that a kill interrupts go on from their checkpoints, and nobody else writes the store meanwhile."""

import contextlib
import os
import platform
import signal
import time
from collections import deque
from functools import partial

import numpy as np
import pytest
import xarray as xr
import zarr
from filelock import FileLock

import durability
from scans import LONG, MEASURE, OBSERVABLES, make_stiff, num_rows, scan_few, scan_long, scan_slowly
from thetadot.engine import tiers
from thetadot.scan import engines, keep
from thetadot.scan.grid import check_grid
from thetadot.scan.job import Job
from thetadot.scan.lane import Interrupted, run_lane
from thetadot.scan.store import IN_PROGRESS

GRID = check_grid({"x0": [0.2, 0.4]})


@pytest.fixture(autouse=True)
def two_cores(monkeypatch):
    monkeypatch.setattr(engines, "num_cores", lambda: 2)


@pytest.fixture(scope="module")
def uninterrupted():
    ds = values(scan_long(None))
    assert np.all(ds.num_steps > 4 * 256)  # several chunks
    return ds


@pytest.fixture
def num_steps_taken(monkeypatch):
    """Adds up the steps of all chunks."""
    taken, advance = [0], tiers.Tiers.advance

    def noted(self, flow, state, t1, budget):
        out = advance(self, flow, state, t1, budget)
        taken[0] += int(out[0].num_accepted + out[0].num_rejected - state.num_accepted - state.num_rejected)
        return out

    monkeypatch.setattr(tiers.Tiers, "advance", noted)
    return taken


def values(ds):
    return ds.drop_vars("wall_s").drop_attrs().load()


def job(folder):
    return Job(
        make_stiff, GRID, LONG, MEASURE, {"rows": num_rows}, OBSERVABLES, "tsit5", 1e-6, True, 10**6, True, None, folder
    )


def after(visits):
    """A check that interrupts at this visit."""
    left = iter(range(visits))

    def check(report):
        del report
        if next(left, None) is None:
            raise Interrupted

    return check


# --- checkpoints ---


@pytest.fixture(scope="module")
def start(tmp_path_factory):
    """Starts a scan of `scans.py` in a process of its own."""
    return partial(durability.start, tmp_path_factory.mktemp("compiled"))


def wait_for(path, pattern, process):
    deadline = time.monotonic() + 120
    while not list((path / IN_PROGRESS).glob(pattern)):
        assert process.poll() is None and time.monotonic() < deadline, process.communicate()
        time.sleep(0.001)


@pytest.mark.slow
def test_a_killed_scan_goes_on_inside_its_lanes(start, tmp_path, uninterrupted, num_steps_taken):
    """Killed in the second of the three flows of a lane; equal bit for bit."""
    path = tmp_path / "scan.zarr"
    process = start("long", path)
    wait_for(path, "lane-*-1.npz", process)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    left = list((path / IN_PROGRESS).glob("*.npz"))
    assert len(left) >= 2 and all(file.stat().st_size < 400_000 for file in left)
    xr.testing.assert_identical(values(scan_long(path)), uninterrupted)
    assert not (path / IN_PROGRESS).exists()
    resumed = num_steps_taken[0]
    scan_long(None)
    assert resumed < num_steps_taken[0] - resumed - 1000


def test_an_interrupted_lane_goes_on_where_it_was_left(tmp_path, num_steps_taken):
    """Ctrl-C writes a last checkpoint, long before one is due."""
    through = run_lane(job(None), 0, after(10**9))
    steps, num_steps_taken[0] = num_steps_taken[0], 0
    row, interrupts = None, 0
    while row is None:
        with contextlib.suppress(Interrupted):
            row = run_lane(job(tmp_path), 0, after(80))
        interrupts += row is None
        assert interrupts < 100
    assert interrupts > 3 and num_steps_taken[0] == steps
    assert {**row, "wall_s": 0} == {**through, "wall_s": 0} and row["half_error"] > 0
    keep.forget(tmp_path, 0)
    assert not list(tmp_path.iterdir())


def test_so_do_lanes_in_batches(tmp_path, uninterrupted):
    rows, interrupts = {}, 0
    while len(rows) < 2:
        todo = deque(lane for lane in range(2) if lane not in rows)
        with contextlib.suppress(Interrupted):
            engines._side_by_side(
                job(tmp_path),
                lambda todo=todo: todo.popleft() if todo else None,
                lambda item: rows.update([item]),
                after(120),
            )
        interrupts += len(rows) < 2
        assert interrupts < 100
    assert interrupts > 2
    for lane, row in rows.items():
        expected = uninterrupted.isel(x0=lane)
        assert row["num_steps"] == expected.num_steps and row["rows"] == expected.rows
        np.testing.assert_allclose([row["half"], row["loss1"]], [expected.half, expected.loss1], rtol=1e-8)


@pytest.mark.parametrize("damage", ["emptied", "cut", "half"])
def test_a_damaged_checkpoint_is_left_alone(tmp_path, damage):
    through = run_lane(job(None), 0, after(10**9))
    with pytest.raises(Interrupted):
        run_lane(job(tmp_path), 0, after(5))
    (file,) = tmp_path.glob("*.npz")
    if damage == "half":  # of what has to be in it
        content = dict(np.load(file))
        np.savez(file, **{name: content[name] for name in content if name != "state_2"})
    else:
        file.write_bytes(b"" if damage == "emptied" else file.read_bytes()[:-100])
    row = run_lane(job(tmp_path), 0, after(10**9))
    assert {**row, "wall_s": 0} == {**through, "wall_s": 0}


def test_checkpoints_are_rare_and_their_failure_is_no_failure(tmp_path, monkeypatch):
    written = []
    monkeypatch.setattr(keep, "PAUSE_S", 1e9)
    monkeypatch.setattr(keep, "save", lambda *args: written.append(args))
    through = run_lane(job(tmp_path), 0, after(10**9))
    assert not written and through["status"] == "done"

    def full(*args):
        written.append(args)
        raise OSError("no space left on device")

    monkeypatch.setattr(keep, "PAUSE_S", 0.0)
    monkeypatch.setattr(keep, "save", full)
    row = run_lane(job(tmp_path), 0, after(10**9))
    assert written and {**row, "wall_s": 0} == {**through, "wall_s": 0}


def test_a_finished_lane_leaves_no_checkpoint(tmp_path, monkeypatch):
    seen, path = [], tmp_path / "scan.zarr"
    monkeypatch.setattr(keep, "PAUSE_S", 0.0)

    def look(tally):
        seen.append({int(file.name.split("-")[1]) for file in (path / IN_PROGRESS).glob("lane-*.npz")})
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt, match="1 of 2 lanes to do"):
        scan_long(path, progress=look)
    status = np.asarray(zarr.open_group(path, mode="r")["status"])
    (done,) = np.flatnonzero(status == "done")
    assert done not in seen[0]


# --- locks ---


@pytest.mark.slow
def test_a_store_that_is_being_written_is_refused_and_one_left_by_the_dead_is_taken_over(start, tmp_path):
    path = tmp_path / "scan.zarr"
    process = start("slow", path)
    assert process.stdout and process.stdout.readline() == "1\n"
    process.send_signal(signal.SIGSTOP)
    with pytest.raises(
        BlockingIOError, match=rf"is being written by process {process.pid} on .*: wait until it is done"
    ):
        scan_slowly(path)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert (path / IN_PROGRESS / "lock").exists()
    assert np.all(scan_slowly(path).status == "done")
    assert not (path / IN_PROGRESS).exists()


@pytest.mark.parametrize("host, warns", [("elsewhere", True), (platform.node(), False)])
def test_a_store_left_by_another_machine_is_taken_over_with_a_warning(tmp_path, host, warns):
    """Whose process may run still, where locks are not shared; of this machine's the system knows."""
    path = tmp_path / "scan.zarr"
    with pytest.raises(KeyboardInterrupt):
        scan_few(path, progress=interrupt)
    assert not (path / IN_PROGRESS / "writer").exists()
    (path / IN_PROGRESS / "writer").write_text(f"process 12 on {host}, since 2026-01-01 00:00")
    said = r"was left without an end by process 12 on elsewhere, since 2026-01-01 00:00. If that still runs"
    with pytest.warns(UserWarning, match=said) if warns else contextlib.nullcontext():
        assert np.all(scan_few(path).status == "done")


def interrupt(tally):
    raise KeyboardInterrupt


def test_two_scans_of_one_process_cannot_write_one_store_either(tmp_path):
    path = tmp_path / "scan.zarr"
    with pytest.raises(BlockingIOError, match=f"process {os.getpid()} on"):
        scan_slowly(path, progress=lambda tally: scan_slowly(path))
    assert np.all(scan_slowly(path).status == "done")


def test_a_finished_store_needs_no_lock(tmp_path):
    path = tmp_path / "scan.zarr"
    scan_slowly(path)
    zarr.open_group(path).require_group(IN_PROGRESS)
    with FileLock(path / IN_PROGRESS / "lock"):
        assert np.all(scan_slowly(path).status == "done")
