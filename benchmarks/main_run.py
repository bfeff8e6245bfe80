"""Time of the main run, compile time apart, with the error of its escape times and its peak memory.

    python benchmarks/main_run.py [--json FILE]

The first call of each row traces and compiles; the others do not, and their median is the time of the flow itself.
"""

import argparse
import json
import resource
import statistics
import time

import jax
import numpy as np

import thetadot as td
from _flows import trace_a, trace_b
from thetadot.provenance import provenance

CALLS = 5


def measure(name, make, rtol):
    flow = make()
    times = []
    for _ in range(CALLS + 1):
        began = time.perf_counter()
        traj = td.gradient_flow(flow.problem, flow.params0, flow.t1, crossings=flow.crossings, rtol=rtol)
        times.append(time.perf_counter() - began)
    seconds = statistics.median(times[1:])
    escapes = np.array([traj.crossings[name][0] for name in flow.crossings])
    return {
        "flow": name,
        "rtol": rtol,
        "seconds": seconds,
        "compile_seconds": times[0] - seconds,
        "escapes": escapes.tolist(),
        "steps": traj.stats["num_accepted"],
        "rejected": traj.stats["num_rejected"],
        "gradients": traj.stats["num_gradients"],
        "products": traj.stats["num_products"],
        "energy_error": traj.stats["energy_error"],
        "solver": traj.stats["solver"],
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", help="write the rows and their provenance there")
    file = parser.parse_args().json
    jax.config.update("jax_enable_x64", True)
    flows = {"B": trace_b} | {f"A {scale:g}": lambda scale=scale: trace_a(scale) for scale in (1e-2, 1e-4, 1e-6, 1e-8)}
    rows = []
    print("flow     rtol    seconds  compile  steps (rejected)  worst escape error  energy   solver")
    for name, make in flows.items():
        runs = [measure(name, make, rtol) for rtol in (1e-8, 1e-6, 1e-4, 1e-3)]
        reference = np.array(runs[0]["escapes"])
        for run in runs:
            steps = f"{run['steps']:6d} ({run['rejected']:4d})"
            run["escape_error"] = float(np.max(np.abs(np.array(run["escapes"]) / reference - 1)))
            error = f"{run['escape_error']:.1e}" if run is not runs[0] else "(reference)"
            print(
                f"{name:8} {run['rtol']:.0e} {run['seconds']:8.3f} {run['compile_seconds']:8.2f} "
                f"{steps}    {error:>12}      {run['energy_error']:.0e}  {run['solver']}",
                flush=True,
            )
        rows += runs
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(f"peak memory of this process {memory:.0f} MiB")
    if file:
        with open(file, "w") as out:
            json.dump({"rows": rows, "peak_memory_mib": memory, "provenance": provenance()}, out, indent=1)


if __name__ == "__main__":
    main()
