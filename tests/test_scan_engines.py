"""The same scan wherever its lanes run: threads, several devices, executors, a cluster."""

import multiprocessing
import os
import subprocess
import sys
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from pathlib import Path

import distributed
import numpy as np
import pytest
import xarray as xr

import thetadot as td
from scans import MEASURE, OBSERVABLES, die, make, scan_everywhere
from thetadot.engine import loop
from thetadot.scan import engines
from thetadot.scan.job import Job

HERE = Path(__file__).parent
X0 = np.linspace(0.02, 0.3, 5)


@pytest.fixture(scope="module")
def on_threads():
    return scan_everywhere().drop_vars("wall_s").drop_attrs()


def assert_same(ds, on_threads):
    xr.testing.assert_identical(ds.drop_vars("wall_s").drop_attrs().load(), on_threads)


def spawned(workers):
    return ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn"))


def solve(executor, make=make, measure=MEASURE):
    return td.scan(make, {"x0": X0}, 8.0, measure, OBSERVABLES, executor=executor, solver="tsit5", errors=False)


def test_the_scan_is_one_that_could_differ(on_threads):
    assert np.all(on_threads.status == "done") and np.all(on_threads.half_error > 0)
    assert np.unique(on_threads.half).size == 8 and np.unique(on_threads.ends).size == 8 + 64
    assert np.all(on_threads.precision == 64)


@pytest.mark.parametrize("block_s", [0.0, 5.0])
def test_an_executor_runs_blocks_of_lanes(on_threads, monkeypatch, block_s):
    """Blocks that take too long come back unfinished, and their other lanes are sent again."""
    monkeypatch.setattr(engines, "_BLOCK_S", block_s)
    monkeypatch.setattr(engines, "_BLOCKS", 6)
    blocks, run_block = [], engines.run_block

    def noted(work, packed, x64, lanes):
        rows = run_block(work, packed, x64, lanes)
        blocks.append((len(lanes), len(rows)))
        return rows

    monkeypatch.setattr(engines, "run_block", noted)
    with ThreadPoolExecutor(2) as executor:
        assert_same(scan_everywhere(executor=executor), on_threads)
    assert sum(done for _, done in blocks) == 64
    assert max(asked for asked, _ in blocks) == 10
    assert {done for _, done in blocks} == {1} if block_s == 0 else len(blocks) < 64


def test_what_cannot_be_sent_is_refused_in_a_sentence(monkeypatch):
    monkeypatch.setattr(engines, "_pickler", lambda: engines.pickle)
    with ThreadPoolExecutor(1) as executor, pytest.raises(ValueError, match="define them at the top of a module"):
        solve(executor, lambda x0: make(x0))


def test_an_executor_is_one_and_the_only_engine():
    job = Job(make, {"x0": X0}, 8.0, {}, {}, {}, "auto", 1e-6, False, 1000, True)
    with pytest.raises(ValueError, match=r"client.get_executor\(\)"):
        engines.choose_engine("auto", 4, job)
    with (
        ThreadPoolExecutor(1) as executor,
        pytest.raises(ValueError, match="leave `engine` out, or pass engine='batches'"),
    ):
        engines.choose_engine("threads", executor, job)


def test_there_is_one_thread_a_device_or_a_core(monkeypatch):
    monkeypatch.setattr(engines, "num_cores", lambda: 3)
    assert engines._places() == [None] * 3
    monkeypatch.setattr(engines.jax, "local_devices", lambda: ["one", "other"])
    assert engines._places() == ["one", "other"]


@pytest.fixture
def on_one_core(monkeypatch):
    """The loops that ran in the program for one core."""
    calls, compiled = [], loop.compiled

    def noted(flow):
        if loop._one_core.get():
            calls.append(1)
        return compiled(flow)

    monkeypatch.setattr(loop, "compiled", noted)
    return calls


@pytest.mark.parametrize("num_lanes", [1, 2, 3, 7])
def test_lanes_keep_to_one_core_where_they_fill_all(monkeypatch, on_one_core, num_lanes):
    monkeypatch.setattr(engines, "num_cores", lambda: 3)
    scan = ({"x0": np.linspace(0.1, 0.2, num_lanes)}, 8.0, MEASURE, OBSERVABLES)
    ds = td.scan(make, *scan, solver="tsit5", errors=False, engine="threads")
    assert np.all(ds.status == "done")
    assert len(on_one_core) == (num_lanes if num_lanes >= 3 else 0)


def test_one_core_gives_the_same_flow(on_one_core):
    """By a program of its own."""

    def solve():
        return td.gradient_flow(*make(0.1), 8.0, crossings=MEASURE, observables=OBSERVABLES, solver="tsit5")

    usual = solve()
    assert not on_one_core
    with loop.on_one_core():
        traj = solve()
    assert on_one_core
    np.testing.assert_array_equal(traj.ts, usual.ts)
    np.testing.assert_array_equal(traj["x"], usual["x"])


@pytest.mark.slow
def test_a_spawned_pool_gives_the_same(on_threads):
    with spawned(2) as executor:
        assert_same(scan_everywhere(executor=executor), on_threads)
        together = scan_everywhere(executor=executor, engine="batches").drop_vars("wall_s").load()
        xr.testing.assert_allclose(together, on_threads, rtol=1e-8)
        np.testing.assert_array_equal(together.num_steps, on_threads.num_steps)


@pytest.mark.slow
def test_a_worker_that_dies_is_reported_and_the_rest_is_kept(tmp_path):
    options = {"solver": "tsit5", "errors": False, "store": tmp_path / "scan.zarr"}
    scan = ({"x0": [0.1, 0.2, 0.9]}, 8.0, MEASURE, OBSERVABLES)
    with spawned(1) as executor, pytest.raises(RuntimeError, match="a worker of `executor` could not run"):
        td.scan(die, *scan, executor=executor, **options)
    ds = td.scan(die, *scan, **options)  # where no process dies
    assert list(ds.status) == ["done"] * 3


@pytest.mark.slow
def test_four_devices_give_the_same(on_threads, tmp_path):
    flags = {"XLA_FLAGS": "--xla_force_host_platform_device_count=4", "JAX_ENABLE_X64": "1"}
    env = os.environ | flags | {"PYTHONPATH": str(HERE)}
    program = [sys.executable, HERE / "scans.py", "devices"]
    for name in ("everywhere", "device"):
        subprocess.run([*program, name, tmp_path / name], env=env, check=True, timeout=600)
    assert_same(scan_everywhere(store=tmp_path / "everywhere"), on_threads)  # nothing is left to do
    with xr.open_zarr(tmp_path / "device", consolidated=False, chunks=None) as ds:
        assert set(ds.device.values.ravel()) == {0, 1, 2, 3}


@pytest.mark.slow
def test_a_cluster_gives_the_same(on_threads):
    with distributed.LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=":0") as cluster:
        with distributed.Client(cluster) as client, client.get_executor() as executor:
            assert_same(scan_everywhere(executor=executor), on_threads)
