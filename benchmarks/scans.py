"""Scans: what an engine makes of many flows, against what else could run them.

    python benchmarks/scans.py [--lanes 256] [--only even,wide] [--engines batches,threads] [--deadline 300] [--quick]

Three scans. "even": attention flows (trace B) at scales over five decades, each some 150 of our steps. "uneven": three
linear layers (trace A) up to T = 4/ε with explicit steps, whose numbers differ a hundredfold. "wide": the same with
layers of 40×40, where one lane stays in the cache and a batch does not. Each engine runs in a process of its own,
twice: the second time counts, the first one less that is what it started and compiled. Explicit rivals under `vmap` or
`lax.map` need minutes and run once; those of the even scan run a few lanes, spread evenly, so that times a lane can be
compared. `--quick` ends the flows a hundred times earlier, to see that everything runs.

`used`: the share of the time of all cores that lanes ran (threads), or of all lane-steps under a `vmap` that a lane
needed. `peak_mib` is that of the process, `worker_mib` that of the largest of its workers.
"""

import argparse
import json
import multiprocessing
import resource
import time
from concurrent.futures import ProcessPoolExecutor
from functools import cache, partial
from pathlib import Path
from typing import Any

import diffrax as dfx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np

import _scipy_lanes
import thetadot as td
from _apart import MAXRSS_A_MIB, START_CLOCK, outcome, run_apart
from _flows import trace_a, trace_b
from _report import names_of, table
from thetadot.engine import together
from thetadot.models import linear
from thetadot.problem import vector_field
from thetadot.provenance import provenance
from thetadot.scan.engines import num_cores
from thetadot.solvers import DeflatedExponential, DisplacementController

RTOL = 1e-3
COLUMNS = {
    "engine": "",
    "lanes": "d",
    "seconds": ".3g",
    "compile_seconds": ".2g",
    "ms_a_lane": ".3g",
    "lanes_a_second": ".3g",
    "used": ".2f",
    "min_steps": "d",
    "max_steps": "d",
    "peak_mib": ".0f",
    "worker_mib": ".0f",
    "note": "",
}


def attention(init_scale):
    """The lane of the even scan."""
    flow = trace_b(1.0)
    return flow.problem, jax.tree.map(lambda leaf: init_scale * leaf, flow.params0)


def cycles(init_scale, share=1.0):
    del init_scale
    return 6000.0 * share


def layers(init_scale):
    """The lane of the uneven scan."""
    flow = trace_a(float(init_scale))
    return flow.problem, flow.params0


def plateaus(init_scale, share=1.0):
    return 4 / init_scale * share


def wide_layers(init_scale):
    """The lane of the wide scan: P = 4800."""
    target = td.data.orthogonal_target(jnp.array([4.0, 2.0, 1.0]), 40, key=jr.key(0))
    params0 = [init_scale * jr.normal(jr.key(10 + i), (40, 40)) for i in range(3)]
    return td.Problem(linear.factorization_loss, {"target": target}), params0


def escapes(init_scale, share=1.0):
    return 0.6 / init_scale * share


SCANS: dict[str, dict[str, Any]] = {
    "even": {"make": attention, "t1": cycles, "measure": {"last": ("loss", 0.565)}, "solver": "auto"},
    "uneven": {"make": layers, "t1": plateaus, "measure": {"last": ("loss", 0.4)}, "solver": "tsit5"},
    "wide": {"make": wide_layers, "t1": escapes, "measure": {"last": ("loss", 0.4)}, "solver": "tsit5"},
}
SCALES = {"even": (1e-6, 1e-1), "uneven": (1e-3, 1e-1), "wide": (1e-3, 1e-1)}
SCIPY_RTOL = {"even": 1e-4, "uneven": 1e-6}  # with which LSODA finds the escapes to 1e-3, as ours with `RTOL`
QUICK = 0.01
Lanes = tuple[np.ndarray, float]  # steps of each, and the share of the machine's time or lane-steps that they used


def scales(which: str, num_lanes: int) -> np.ndarray:
    return np.geomspace(*SCALES[which], num_lanes)


def end(which: str, quick: bool):
    return partial(SCANS[which]["t1"], share=QUICK) if quick else SCANS[which]["t1"]


def ours(which: str, num_lanes: int, quick: bool, **how) -> Lanes:
    """`td.scan`."""
    settings = SCANS[which] | {"t1": end(which, quick)}
    began = time.perf_counter()
    ds = td.scan(grid={"init_scale": scales(which, num_lanes)}, rtol=RTOL, errors=False, **settings, **how)
    seconds = time.perf_counter() - began
    assert np.all(ds.status == "done"), ds.result.values
    return ds.num_steps.values, float(ds.wall_s.sum()) / (num_cores() * seconds)


def in_batches(which: str, num_lanes: int, quick: bool) -> Lanes:
    """`td.scan`, and the lane-steps that its batches took for those that were needed."""
    batch, taken, advance = together._Batch, [0, 0], together._Batch.advance

    def noted(self):
        before = {slot: self.slots[slot].num_steps for slot in self.active()}
        runs = {slot: self.slots[slot] for slot in before}
        ended = advance(self)
        steps = [runs[slot].num_steps - num for slot, num in before.items()]
        taken[0] += sum(steps)
        taken[1] += max(steps) * len(self.slots)
        return ended

    batch.advance = noted
    try:
        steps, _ = ours(which, num_lanes, quick, engine="batches")
    finally:
        batch.advance = advance
    return steps, taken[0] / taken[1] if taken[1] else float("nan")  # where few lanes are left they run alone


def one_after_another(which: str, num_lanes: int, quick: bool) -> Lanes:
    """A loop over compiled solves."""
    make, _, measure, solver = SCANS[which].values()
    steps = []
    for scale in scales(which, num_lanes):
        problem, params0 = make(scale)
        t1 = end(which, quick)(scale)
        traj = td.gradient_flow(problem, params0, t1, [t1], None, measure, solver=solver, rtol=RTOL)
        steps.append(traj.stats["num_steps"])
    return np.array(steps), 1 / num_cores()


@cache
def workers() -> ProcessPoolExecutor:
    """Spawned processes, as many as cores; the same for both times."""
    context = multiprocessing.get_context("spawn")
    return ProcessPoolExecutor(num_cores(), mp_context=context, initializer=_scipy_lanes.float64)


def pool(which: str, num_lanes: int, quick: bool) -> Lanes:
    return ours(which, num_lanes, quick, executor=workers())


def pool_of_batches(which: str, num_lanes: int, quick: bool) -> Lanes:
    steps, _ = ours(which, num_lanes, quick, executor=workers(), engine="batches")
    return steps, float("nan")  # lanes share their time


def scipy_pool(which: str, num_lanes: int, quick: bool) -> Lanes:
    """SciPy's LSODA, a lane at a time."""
    ((_, level),) = SCANS[which]["measure"].values()
    solve = partial(_scipy_lanes.lane, SCANS[which]["make"], end(which, quick), level, SCIPY_RTOL[which])
    found = list(workers().map(solve, scales(which, num_lanes).tolist()))
    return np.array([steps for steps, _ in found]), float("nan")


def plain(which: str, num_lanes: int, quick: bool, solver, mapped) -> Lanes:
    """`diffrax.diffeqsolve` under `jax.vmap` or `jax.lax.map`."""
    made = [SCANS[which]["make"](scale) for scale in scales(which, num_lanes)]
    problem = made[0][0]
    ends = jnp.array([end(which, quick)(scale) for scale in scales(which, num_lanes)])
    starts = jax.tree.map(lambda *leaves: jnp.stack(leaves), *(params0 for _, params0 in made))
    steps = np.asarray(_mapped(solver, mapped, problem, starts, ends))
    return steps, steps.sum() / (steps.max() * steps.size) if mapped == "vmap" else 1 / num_cores()


@partial(jax.jit, static_argnums=(0, 1))
def _mapped(solver, mapped, problem, starts, ends):
    def steps(lane):
        params0, t1 = lane
        controller = DisplacementController(RTOL)
        term = dfx.ODETerm(vector_field)  # pyright: ignore[reportArgumentType]
        solution = dfx.diffeqsolve(
            term, solver, 0.0, t1, None, params0, problem, stepsize_controller=controller, max_steps=None, throw=False
        )
        return solution.stats["num_steps"]

    return jax.vmap(steps)((starts, ends)) if mapped == "vmap" else jax.lax.map(steps, (starts, ends))


ENGINES = {
    "one after another": one_after_another,
    "threads": partial(ours, engine="threads"),
    "batches": in_batches,
    "process pool": pool,
    "process pool batches": pool_of_batches,
    "process pool SciPy LSODA": scipy_pool,
    "vmap our solver": partial(plain, solver=DeflatedExponential(8), mapped="vmap"),
    "vmap Tsit5": partial(plain, solver=dfx.Tsit5(), mapped="vmap"),
    "lax.map Tsit5": partial(plain, solver=dfx.Tsit5(), mapped="map"),
}
FEW = {("even", "vmap Tsit5"): 4, ("even", "lax.map Tsit5"): 2}
ONCE = {*FEW, ("uneven", "vmap Tsit5"), ("wide", "vmap Tsit5"), ("even", "process pool SciPy LSODA")}
# Our solver does not leave its lanes uneven; the Jacobian of a wide lane takes 184 MB.
LEFT_OUT = {("uneven", "vmap our solver"), ("wide", "vmap our solver"), ("wide", "process pool SciPy LSODA")}


def measure(send, progress, which: str, engine: str, num_lanes: int, quick: bool) -> None:
    """The row of one engine."""
    del progress
    send(START_CLOCK)
    run, times = ENGINES[engine], []
    once = (which, engine) in ONCE
    for _ in range(1 if once else 2):
        began = time.perf_counter()
        steps, used = run(which, num_lanes, quick)
        times.append(time.perf_counter() - began)
    seconds = min(times[1:] or times)
    row = {"scan": which, "engine": engine, "lanes": num_lanes, "seconds": seconds, "used": float(used)}
    row |= {"ms_a_lane": 1e3 * seconds / num_lanes, "compile_seconds": times[0] - seconds if times[1:] else None}
    row |= {"min_steps": int(steps.min()), "max_steps": int(steps.max()), "total_steps": int(steps.sum())}
    row |= {"lanes_a_second": num_lanes / seconds}
    if run in (pool, pool_of_batches, scipy_pool):
        workers().shutdown()  # the memory of a process is known when it has ended
        row["worker_mib"] = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / MAXRSS_A_MIB
    send(row | {"note": "compilation included" if once else ""})


def options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lanes", type=int, default=256, help="of the even scan; the others have a quarter of it")
    parser.add_argument("--only", type=names_of(SCANS), default=tuple(SCANS))
    parser.add_argument("--engines", type=names_of(ENGINES), default=tuple(ENGINES), help=f"of {', '.join(ENGINES)}")
    parser.add_argument("--deadline", type=float, default=300.0, help="seconds for one engine")
    parser.add_argument("--quick", action="store_true", help="short flows, to see that everything runs")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results", help="folder for the results")
    return parser.parse_args()


def main() -> None:
    chosen, rows = options(), []
    for which in chosen.only:
        for engine in chosen.engines:
            if (which, engine) in LEFT_OUT:
                continue
            num_lanes = FEW.get((which, engine), chosen.lanes if which == "even" else max(2, chosen.lanes // 4))
            found: list[dict] = []
            ending = run_apart(measure, (which, engine, num_lanes, chosen.quick), chosen.deadline, found.append)
            row = found[0] if found else {"scan": which, "engine": engine, "lanes": num_lanes}
            why = "" if ending.why == "done" else outcome(ending, chosen.deadline)
            rows.append(row | {"peak_mib": ending.peak_mib, "note": row.get("note") or why})
            print(f"{which}: {engine}: {row.get('seconds', float('nan')):.3g} s {rows[-1]['note']}", flush=True)
        print(f"\n{which}\n{table([row for row in rows if row['scan'] == which], COLUMNS)}", flush=True)
    chosen.out.mkdir(parents=True, exist_ok=True)
    facts = {"rows": rows, "provenance": provenance(), "rtol": RTOL, "quick": chosen.quick}
    (chosen.out / "scans.json").write_text(json.dumps(facts, indent=2, default=str) + "\n")


if __name__ == "__main__":
    main()
