"""What may happen to a store in a night: kills, two processes at once, damaged files.

Each function returns what it saw, a word a trial; `benchmarks/durability.py` asks for hundreds, the slow tests for a
few. What must not happen is an `AssertionError`.
"""

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import xarray as xr

import thetadot as td
from damages import DAMAGES
from scans import make, scan_few, scan_slowly
from thetadot.scan.store import PENDING

PROGRAM = [sys.executable, str(Path(__file__).with_name("scans.py"))]


def start(cache, *args):
    """A program of `scans.py` in a process of its own; compiled code is kept from one to the next."""
    env = os.environ | {
        "JAX_COMPILATION_CACHE_DIR": str(cache),
        "JAX_ENABLE_X64": "1",
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")]),
    }
    return subprocess.Popen(
        [*PROGRAM, *map(str, args)], env=env, stdout=-1, stderr=-1, text=True, start_new_session=True
    )


def values(ds):
    return ds.drop_vars("wall_s").drop_attrs().load()


def kills(folder, engine, number, moments):
    """Kills a scan that is begun again and again: lanes that were finished stay, and the end is that of an even run."""
    expected, seen, known = values(scan_slowly(None, engine="threads")), [], np.zeros(64, bool)
    path, lane_s = folder / "scan.zarr", np.full(64, np.nan)
    for _ in range(number):
        process = start(folder / "compiled", "slow", path, engine)
        assert process.stdout
        process.stdout.readline()  # a first lane, so that most kills meet a scan at work
        time.sleep(moments.uniform(0, 1.0))
        os.killpg(process.pid, signal.SIGKILL)  # its workers, too, which would wait for it for ever
        told = max([0, *map(int, process.stdout.read().split())])
        _, stderr = process.communicate(timeout=120)
        assert process.returncode in (0, -signal.SIGKILL), stderr
        ds = xr.open_zarr(path, consolidated=False, chunks=None).load()
        finished = ds.status.values.ravel() != PENDING
        assert finished.sum() >= told and np.all(finished[known]), "a finished lane is lost"
        np.testing.assert_array_equal(ds.wall_s.values.ravel()[known], lane_s[known])
        known, lane_s = finished, ds.wall_s.values.ravel()
        seen.append("whole" if known.all() else "killed")
        if known.all():
            assert_same(scan_slowly(path), expected, engine)
            shutil.rmtree(path)
            known = np.zeros(64, bool)
    assert_same(scan_slowly(path), expected, engine)
    return seen


def assert_same(ds, expected, engine):
    if engine == "batches":  # to rounding, as `scan` says
        xr.testing.assert_allclose(values(ds), expected, rtol=1e-8)
    else:
        xr.testing.assert_identical(values(ds), expected)


def doubles(folder, number, moments):
    """Two processes make the same stores at the same moments: one of the two, or both, and every store is whole."""
    seed = moments.randrange(2**32)
    pair = [start(folder / "compiled", "double", folder, who, number, seed + (who == "b")) for who in "ab"]
    outs = [process.communicate(timeout=600) for process in pair]
    assert all(process.returncode == 0 for process in pair), outs
    seen = [line for out, _ in outs for line in out.splitlines()]
    assert len(seen) == 2 * number and set(seen) <= {"done", "BlockingIOError"}, seen
    expected = values(scan_few(None))
    for i in range(number):
        xr.testing.assert_identical(values(scan_few(folder / f"{i}.zarr")), expected)
    return seen


def damages(folder, number, moments, name="*", ways=(*DAMAGES, "another's")):
    """Damages a file of a store or of a saved flow: the numbers are right, or a sentence says what to do."""
    whole, saved, seen = folder / "whole.zarr", folder / "whole.run", []
    expected, traj = scan_few(whole).load(), td.gradient_flow(*make(0.1), 4.0, solver="tsit5")
    traj.save(saved)
    for i in range(number):
        origin = moments.choice([whole, whole, whole, saved])
        path = Path(shutil.copytree(origin, folder / f"{i}.zarr"))
        files = sorted(file for file in path.rglob(name) if file.is_file())
        file, how = moments.choice(files), moments.choice(ways)
        if how == "another's":
            file.write_bytes(moments.choice(files).read_bytes())
        else:
            DAMAGES[how](file, moments)
        seen.append(_after_damage(path, expected) if origin == whole else _loaded(path, traj))
        shutil.rmtree(path)
    return seen


def _after_damage(path, expected):
    try:
        ds, word = scan_few(path).load(), "no harm"
        xr.testing.assert_identical(ds, expected)  # and all that it says of itself
    except ValueError as error:
        assert f"`{path}` is damaged: " in str(error), error
        ds, word = scan_few(path, damaged="redo"), "refused"
        scan_few(path)
    xr.testing.assert_identical(values(ds), values(expected))
    if word == "refused":
        again = int(np.sum(ds.wall_s.values != expected.wall_s.values))
        word = f"mended, {again} of {ds.status.size} lanes solved again"
    return word


def _loaded(path, traj):
    try:
        loaded = td.load(path)
    except ValueError as error:
        assert str(path) in str(error), error
        return "flow refused"
    np.testing.assert_array_equal(loaded.ts, traj.ts)
    for name in traj.names:
        np.testing.assert_array_equal(loaded[name], traj[name])
    np.testing.assert_array_equal(loaded.params1["x"], traj.params1["x"])
    return "flow loaded"
