"""How long a stranger waits: the time to the first answer, everything compiled on the way, of thetadot and its peers.

    python benchmarks/first_answer.py [--flows "tanh,trace B"] [--solvers thetadot,BDF] [--turns 3] [--parent FOLDER]

Each row is a process of its own: once with an empty compilation cache, and again, another process, with the cache that
the first one left. "call" runs from the call to the escape times (set-up, tracing, compiling, solving; not imports, nor
making the data), "cpu" is the processors' time in it, "process" runs from the start of the interpreter, "exit" from the
answer to the end of the process.

Every solver runs at the loosest rtol of 1e-2, 1e-3, … at which all escape times are right to 1e-3. These rungs, and
the escape times of two tight solvers, are in `first_answer.json`; what is not there is found first, and kept. `--redo`
finds those of some solvers again, as is right for thetadot whenever its steps change; with "references", everything.
Peers have a jitted gradient, and a jitted dense Hessian or its products unless their names end in "-free".

`--parent` measures another checkout of thetadot in the same run. A peer that in its first turn takes `--near` times as
long as the best peer is not measured again. Quote ratios within one run: machines differ.
"""

import argparse
import json
import os
import platform
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import _first_report as report
from _first_flows import FLOWS
from _first_peers import OURS, SOLVERS
from _report import names_of
from thetadot.provenance import provenance

HERE = Path(__file__).parent
KNOWN = HERE / "first_answer.json"
_REFERENCE_LIMIT = 900.0  # seconds
_LADDER_LIMITS = 2  # deadlines that a ladder may take
_QUICK = {"flows": ("two-layer linear", "tanh"), "solvers": ("thetadot", "LSODA", "CVODE-GMRES-free")}


def options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--flows", type=names_of(FLOWS), default=tuple(FLOWS), help=f"of {', '.join(FLOWS)}")
    parser.add_argument("--solvers", type=names_of(SOLVERS), default=tuple(SOLVERS), help=f"of {', '.join(SOLVERS)}")
    parser.add_argument("--turns", type=int, default=3, help="processes a row, the solvers in turns")
    parser.add_argument("--later", type=int, default=1, help="of which so many measure the later calls too")
    parser.add_argument("--deadline", type=float, default=60.0, help="seconds for one process")
    parser.add_argument("--near", type=float, default=3.0, help="peers this many times slower get one turn only")
    parser.add_argument("--blas", type=int, default=1, help="threads of BLAS; 0: as many as it likes, which is slower")
    parser.add_argument("--parent", type=Path, help="folder of another checkout of thetadot")
    parser.add_argument(
        "--redo",
        type=names_of((*SOLVERS, "references")),
        default=(),
        help="solvers whose rungs are found again, or references",
    )
    parser.add_argument("--ladders", action="store_true", help="find what is missing of the rungs, measure nothing")
    parser.add_argument("--quick", action="store_true", help="two flows, three solvers, one turn: checks the script")
    parser.add_argument("--out", type=Path, default=HERE / "results", help="folder for the results")
    chosen = parser.parse_args()
    if chosen.quick:
        chosen.flows, chosen.solvers, chosen.turns = _QUICK["flows"], _QUICK["solvers"], 1
    if chosen.parent is None:
        chosen.solvers = tuple(name for name in chosen.solvers if name != "parent")
    return chosen


def run(
    job: dict, limit: float, cache: Path | None = None, parent: Path | None = None, threads: int = 0
) -> tuple[list[dict], dict]:
    """Runs a job in a process of its own; returns what it said, and how it ended."""
    env = os.environ | {"JAX_ENABLE_X64": "1"}
    if threads:
        env |= {"OPENBLAS_NUM_THREADS": str(threads), "OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads)}
    if cache is not None:
        folder = str(cache)
        env |= {"JAX_COMPILATION_CACHE_DIR": folder, "THETADOT_CACHE": folder}
        env |= {"JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}
    checkout = parent if job.get("solver") == "parent" and parent is not None else HERE.parent
    env["PYTHONPATH"] = str(checkout.absolute() / "src")
    started = time.time()
    command = [sys.executable, str(HERE / "_first_row.py"), json.dumps(job | {"started": started})]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=env, start_new_session=True
    )
    try:
        said, complaints = process.communicate(timeout=limit)
        failed = f"failed: {(complaints.strip().splitlines() or [f'exit {process.returncode}'])[-1]}"
        ended = "" if process.returncode == 0 else failed
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        said, _ = process.communicate()
        ended = f"not finished within {limit:g} s"
    except BaseException:
        os.killpg(process.pid, signal.SIGKILL)
        raise
    lines = [json.loads(text) for text in said.splitlines() if text.startswith("{")]
    return lines, {"ended": ended, "seconds": time.time() - started}


class Known:
    """Escape times and rungs, kept in a file."""

    def __init__(self, chosen: argparse.Namespace):
        self.flows: dict[str, dict] = json.loads(KNOWN.read_text()) if KNOWN.exists() else {}
        self.chosen = chosen

    def escapes(self, flow: str) -> list[list[float]]:
        """Those of two tight solvers, found now unless they are known."""
        if flow not in self.flows or "references" in self.chosen.redo:
            print(f"  {flow}: two tight solvers …", flush=True)
            lines, how = run({"job": "reference", "flow": flow}, _REFERENCE_LIMIT, threads=1)
            if how["ended"]:
                raise SystemExit(f"no reference for {flow}: {how['ended']}")
            apart = max(found["apart"] for found in lines)
            print(f"  {flow}: they agree to {apart:.1e}, {how['seconds']:.1f} s", flush=True)
            escapes = [[float(f"{t:.12g}") for t in found["escapes"]] for found in lines]
            self.flows[flow] = {"escapes": escapes, "apart": float(f"{apart:.2g}"), "rungs": {}}
            self._keep()
        return self.flows[flow]["escapes"]

    def rung(self, flow: str, solver: str) -> dict | None:
        """The fastest of the loosest tolerances that will do, found now unless it is known; None if there is none."""
        known, rungs = self.escapes(flow), self.flows[flow]["rungs"]
        if solver not in rungs or solver in self.chosen.redo:
            limit = _LADDER_LIMITS * self.chosen.deadline
            job = {"job": "ladder", "flow": flow, "solver": solver, "known": known}
            lines, how = run(job, limit, parent=self.chosen.parent, threads=1)
            best = min(lines, key=lambda rung: rung["warm"], default=None)
            rungs[solver] = best and {name: float(f"{value:.3g}") for name, value in best.items()}
            print(f"  {flow:18} {solver:16} {_spell(rungs[solver])} {how['seconds']:.1f} s {how['ended']}", flush=True)
            if how["ended"].startswith("failed"):
                return rungs.pop(solver)  # not a finding
            self._keep()
        return rungs[solver]

    def _keep(self) -> None:
        body = ",\n".join(f'"{name}": {json.dumps(entry)}' for name, entry in self.flows.items())
        KNOWN.write_text("{\n" + body.replace('"rungs": ', '"rungs":\n  ').replace("}, ", "},\n   ") + "\n}\n")


def _spell(rung: dict | None) -> str:
    return "none" if rung is None else f"rtol {rung['rtol']:.0e}, atol × {rung['factor']:g}, warm {rung['warm']:.3f} s"


def measure(flow: str, rungs: dict[str, dict], known: Known, chosen: argparse.Namespace) -> list[dict]:
    """The rows of a flow, the solvers in turns; those that are far behind get one turn."""
    rows: list[dict] = []
    going = list(rungs)
    for turn in range(chosen.turns):
        for solver in going:
            job = {"flow": flow, "solver": solver, "known": known.escapes(flow), **rungs[solver]}
            jobs = {"empty": "row", "full": "row"}
            rows += _processes(job, jobs, turn, chosen)
            if solver in OURS and turn < chosen.later:
                rows += _processes(job, {"later": "later", "left by later": "row"}, turn, chosen)
        best = {cache: report.best_peer(rows, flow, cache) for cache in report.CACHES}
        going = [name for name in going if name in OURS or _near(rows, flow, name, best, chosen.near)]
    return rows


def _near(rows: list[dict], flow: str, name: str, best: dict, near: float) -> bool:
    """Whether a peer is within `near` times the best one with either cache."""
    found = {cache: report.times(rows, flow, name, cache) for cache in report.CACHES}
    return any(seconds and min(seconds) <= near * best[cache][1] for cache, seconds in found.items())


def _processes(job: dict, jobs: dict[str, str], turn: int, chosen: argparse.Namespace) -> list[dict]:
    """Processes that share a new cache, one after the other."""
    rows, cache = [], Path(tempfile.mkdtemp(prefix="first-answer-"))
    try:
        for name, kind in jobs.items():
            limit = chosen.deadline * (3 if kind == "later" else 1)
            lines, how = run(job | {"job": kind}, limit, cache, chosen.parent, chosen.blas)
            row = {"flow": job["flow"], "solver": job["solver"], "cache": name, "turn": turn} | how
            for found in lines:
                row |= found | {"rtol": job["rtol"], "exit": how["seconds"] - found["ended_at"]}
            rows.append(row)
            print(report.line(row), flush=True)
    finally:
        shutil.rmtree(cache, ignore_errors=True)
    return rows


def main() -> None:
    chosen = options()
    known, rows, sizes = Known(chosen), [], {}
    print("rungs: the loosest tolerance of each solver whose escapes are right to 1e-3")
    rungs: dict[str, dict[str, dict]] = {}
    for flow in chosen.flows:
        flows = FLOWS[flow]()
        sizes[flow] = " … ".join(str(size) for size in dict.fromkeys((flows[0].num_params, flows[-1].num_params)))
        able = [name for name in chosen.solvers if SOLVERS[name].takes(flows[-1])]
        found = {name: known.rung(flow, name) for name in able}
        rungs[flow] = {name: rung for name, rung in found.items() if rung is not None}
    if chosen.ladders:
        return
    print(f"\nfirst answers\n{report.HEADER}")
    for flow in chosen.flows:
        rows += measure(flow, rungs[flow], known, chosen)
    tables = [
        f"Seconds from the call (of the whole process), {cache} cache\n\n{report.answer_table(rows, sizes, cache)}"
        for cache in report.CACHES
    ]
    tables.append(f"After the first answer, seconds\n\n{report.later_table(rows)}")
    print("\n" + "\n\n".join(tables))
    chosen.out.mkdir(parents=True, exist_ok=True)
    (chosen.out / "first_answer.md").write_text("\n\n".join(tables) + "\n")
    facts = {"rows": rows, "rungs": rungs, "machine": platform.platform(), "provenance": provenance()}
    (chosen.out / "first_answer.json").write_text(json.dumps(facts, indent=1))
    report.figure(rows, sizes, chosen.out / "first_answer.png")
    print(f"\nwritten to {chosen.out}")


if __name__ == "__main__":
    main()
