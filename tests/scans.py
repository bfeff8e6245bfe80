"""What the tests of scans send to other processes, and a program that scans into a store until somebody kills it."""

import multiprocessing
import os
import random
import sys
import threading
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import jax.numpy as jnp
import numpy as np

import thetadot as td
from flows import DRIFT, HILL, LOGISTIC, at, first, scalar_flows
from thetadot.scan import keep

ONE = jnp.asarray(1.0)  # made when this module is imported, by a worker perhaps
STIFF = {2: 5e3}  # x' = -10⁴x
KINDS = {
    "usual": (LOGISTIC, DRIFT),
    "blow-up": (LOGISTIC, HILL),
    "stiff": (LOGISTIC, STIFF),
    "broken": (LOGISTIC, DRIFT),
    "unmeasurable": (LOGISTIC, DRIFT),
}
OBSERVABLES = {"x": first}
MEASURE = {"half": ("x", 0.5)}  # passed at t = log(1/x0 - 1) by x' = x - x²


def make(x0, kind="usual", seed=0):
    """The seed moves the center of a wave that nobody measures: other lanes, of the same numbers."""
    if kind == "broken":
        raise RuntimeError("this lane is broken")
    return scalar_flows(*KINDS[kind], center=float(seed)), at(x0, 0.3 if kind == "unmeasurable" else 0.5)


def make_slowly(x0, seed=0):
    time.sleep(0.05)
    return make(x0, seed=seed)


def stuck(x0):
    """Cannot be left for some seconds, as a lane that is being compiled."""
    if threading.current_thread() is not threading.main_thread():  # where `make` is tried first
        sys.stdout.write("stuck\n")
        sys.stdout.flush()
        time.sleep(6)
    return make(x0)


def die(x0):
    """Takes the process with it, if it is a worker, at x0 = 0.9."""
    if x0 == 0.9 and multiprocessing.parent_process() is not None:
        time.sleep(1)  # the lanes before are written
        os._exit(1)
    return make(x0)


LONG = 2.0  # some 6000 steps of x' = -10⁴x


def make_stiff(x0):
    return scalar_flows(LOGISTIC, STIFF), at(x0, 0.5)


def num_rows(traj):
    return len(traj.ts)


def never_ends(x0):
    """A million steps of it take minutes."""
    return make(x0, "stiff" if x0 > 0.3 else "usual")


def final(traj):
    """x at the end, but not where the other coordinate drifts from 0.3: in lanes of the kind "unmeasurable"."""
    if abs(traj.params1["x"][1] - traj.ts[-1] - 0.3) < 1e-3:
        raise ValueError("no such thing")
    return traj["x"][-1]


def ends(traj):
    return traj["x"][[0, -1]]


def precision(traj):
    del traj
    return jnp.finfo(ONE.dtype).bits


def device(traj):
    return next(iter(traj.params1["x"].devices())).id


def t1(x0, seed):
    del x0
    return 8.0 + seed


X0 = np.linspace(0.02, 0.3, 6)
GRID = {"x0": np.linspace(0.02, 0.2, 8), "seed": range(8)}


def scan_slowly(store, **options):
    """64 lanes of some 50 ms."""
    return td.scan(make_slowly, GRID, 8.0, MEASURE, OBSERVABLES, store, solver="tsit5", errors=False, **options)


def scan_few(store, **options):
    """Six lanes."""
    measure = {**MEASURE, "ends": ends}
    return td.scan(make, {"x0": X0}, 8.0, measure, OBSERVABLES, store, solver="tsit5", errors=False, **options)


def scan_for_ever(store, **options):
    """One lane of three ends."""
    grid = {"x0": [0.2, 0.35, 0.4]}
    options |= {"solver": "tsit5", "max_steps": 10**9}
    return td.scan(never_ends, grid, 1e6, MEASURE, OBSERVABLES, store, errors=False, **options)


def scan_long(store, **options):
    """Two lanes of thousands of steps, each at three tolerances."""
    grid, measure = {"x0": [0.2, 0.4]}, {**MEASURE, "rows": num_rows}
    return td.scan(make_stiff, grid, LONG, measure, OBSERVABLES, store, solver="tsit5", **options)


def scan_everywhere(**options):
    """Lanes whose values do not depend on where they are run."""
    measure = {**MEASURE, "ends": ends, "precision": precision}
    return td.scan(make, GRID, t1, measure, OBSERVABLES, solver="tsit5", **options)


def make_the_same_stores(folder, who, number, moments):
    """At the moments at which another process makes them, but for 20 ms."""
    scan_few(None)
    for i in range(number):
        (folder / f"{i}{who}").touch()
        while not (folder / f"{i}{'ba'[who == 'b']}").exists():
            pass
        time.sleep(moments.uniform(0, 0.02))
        try:
            outcome = set(scan_few(folder / f"{i}.zarr").status.values.tolist())
        except Exception as error:
            outcome = {type(error).__name__ if isinstance(error, BlockingIOError) else f"{error!r}"}
        sys.stdout.write(f"{' '.join(outcome)}\n")


if __name__ == "__main__":

    def tell(tally):
        sys.stdout.write(f"{tally.done}\n")
        sys.stdout.flush()

    match sys.argv[1:]:
        case ["slow", store, "pool"]:
            with ProcessPoolExecutor(2, mp_context=multiprocessing.get_context("spawn")) as executor:
                scan_slowly(store, progress=tell, executor=executor)
        case ["slow", store, "dask"]:
            import distributed  # a second, which no other case waits for

            with distributed.LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=":0") as cluster:
                with distributed.Client(cluster) as client, client.get_executor() as executor:
                    scan_slowly(store, progress=tell, executor=executor)
        case ["slow", store, *engine]:
            scan_slowly(store, progress=tell, engine=(*engine, "threads")[0])
        case ["stuck", store]:
            td.scan(stuck, {"x0": X0}, 8.0, MEASURE, OBSERVABLES, store, solver="tsit5", engine="threads")
        case ["double", folder, who, number, seed]:
            make_the_same_stores(Path(folder), who, int(number), random.Random(int(seed)))
        case ["long", store]:
            keep.PAUSE_S = 0.0
            scan_long(store)
        case ["endless", store]:
            scan_for_ever(store, progress=tell)
        case ["devices", "everywhere", store]:
            scan_everywhere(store=store)
        case ["devices", "device", store]:
            td.scan(make_slowly, GRID, 8.0, {"device": device}, solver="tsit5", store=store)
