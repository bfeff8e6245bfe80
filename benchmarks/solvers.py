"""Work and precision of every solver on the benchmark flows, and what the cost of a flow depends on.

    python benchmarks/solvers.py [--text FILE] [--large] [--quick] [--only A,B] [--solvers auto,tsit5] [--parts lanes]

Each solver climbs a ladder of tolerances on each flow, in a process of its own, one at a time. A row gives the time
of one solve (median of up to five; compile time apart), the worst relative error of its escape times against a tight
reference, the escapes it missed, and what it evaluated. Quote ratios within one run: machines differ.

Parts: work (work and precision), plateaus (cost against the length of a plateau), tolerances (error against rtol),
floors (the controller's rounding floor), lanes (64 flows under one vmap), words (a real text).
"""

import argparse
import json
import math
import os
import platform
import time
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import jax

import _duels
import _lanes
import _studies
from _apart import outcome, run_apart
from _flows import flows
from _ladder import FAMILIES, RTOLS, Reference, ladder, reference
from _report import HEADER, line, names_of, summarize, summary_lines, table, tolerance_figure, work_precision_figure
from thetadot.provenance import provenance

PARTS = ("work", "plateaus", "tolerances", "floors", "lanes", "words")
# Seconds, where one solve is known to take longer than others.
DEADLINES: dict[tuple[str, str], float] = {("B", "tsit5"): 150.0, ("B", "torch-descent"): 120.0}
FEWER = {"A-cut": ("auto", "tsit5", "dopri8", "lsoda", "cvode-dense", "cvode-gmres", "torch-descent")}  # for time
_STUDY_LIMIT, _LARGE_LIMIT = 600.0, 1800.0
_RIVALS = ("scipy", "scikit-sundae", "torch", "torchdiffeq", "matplotlib")


def options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--text", help="a corpus, such as WikiText-2; without it no flow is made of words")
    parser.add_argument("--large", action="store_true", help="the text with 1000 words too (minutes)")
    parser.add_argument("--quick", action="store_true", help="traces A and B with short deadlines: checks the script")
    solvers = [solver for family in FAMILIES.values() for solver in family]
    parser.add_argument("--only", type=names_of(flows("all")), help=f"flows: {', '.join(flows('all'))}")
    parser.add_argument("--solvers", type=names_of(solvers), help=f"of {', '.join(solvers)}")
    parser.add_argument("--parts", type=names_of(PARTS), default=PARTS, help=f"of {', '.join(PARTS)}")
    parser.add_argument("--deadline", type=float, default=60.0, help="seconds for the ladder of one solver on one flow")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results", help="folder for the results")
    chosen = parser.parse_args()
    if chosen.quick:
        chosen.only = chosen.only or ("A", "B")
        chosen.deadline = min(chosen.deadline, 15.0)
    return chosen


def _deadline(flow: str, solver: str, chosen: argparse.Namespace) -> float:
    usual: float = chosen.deadline
    return usual if chosen.quick else max(usual, DEADLINES.get((flow, solver), 0.0))


def known_escapes(name: str, make) -> Reference:
    """The reference of a flow, printed with its own errors."""
    found: list[Reference] = []
    ending = run_apart(reference, (make,), _STUDY_LIMIT, found.append)
    if not found:
        raise SystemExit(f"the reference of {name} {outcome(ending, _STUDY_LIMIT)}")
    known = found[0]
    times = ", ".join(f"{t:.10g}" for t in known.escapes)
    print(f"\n{name}: {make().title}\n  reference escapes at {times}")
    print(
        f"  two solvers agree to {known.error:.1e}; reading off the grid is right to {known.reading_error:.1e}; "
        f"largest eigenvalue {known.sharpness:.4g}",
        flush=True,
    )
    return known


def climb(name: str, make, solver: str, known: Reference, deadline: float) -> list[dict]:
    """The rows of one solver on one flow."""
    rows: list[dict] = []
    last: dict[str, Any] = {}

    def receive(message: dict) -> None:
        if "status" in message:
            row = {"flow": name} | message
            rows.append(row)
            print(line(row), flush=True)
            last.pop("begin", None)
        else:
            last.update(message)

    ending = run_apart(ladder, (make, solver, known, deadline), deadline, receive)
    for row in rows:
        row["peak_mib"] = _number(ending.peak_mib)
    if ending.why != "done":
        rtol = last.get("begin", RTOLS[len(rows)] if len(rows) < len(RTOLS) else None)
        row = {"flow": name, "solver": solver, "rtol": rtol, "status": outcome(ending, deadline)}
        row["reached"] = _number(ending.reached)
        rows.append(row)
        print(line(row), flush=True)
    return rows


def _number(value: float) -> float | None:
    return value if math.isfinite(value) else None


def study(title: str, target, args: tuple, columns: dict[str, str], limit: float = _STUDY_LIMIT) -> list[dict]:
    """The rows of one study, as a table."""
    rows: list[dict] = []
    ending = run_apart(target, args, limit, rows.append)
    print(f"\n{title}")
    if rows:
        print(table(rows, columns))
    if ending.why != "done":
        print(f"  {outcome(ending, limit)}")
    print(f"  ({ending.seconds:.0f} s, peak memory {ending.peak_mib:.0f} MiB)", flush=True)
    return [row | {"peak_mib": _number(ending.peak_mib)} for row in rows]


def work(makers: dict, references: dict[str, Reference], chosen: argparse.Namespace) -> dict:
    rows: list[dict] = []
    every = [solver for family in FAMILIES.values() for solver in family]
    for name, make in makers.items():
        references[name] = known_escapes(name, make)
        print(HEADER)
        for solver in chosen.solvers or FEWER.get(name, every):
            rows += climb(name, make, solver, references[name], _deadline(name, solver, chosen))
    duels = {name: head_to_head(name, make, rows, references[name]) for name, make in makers.items()}
    summary = summarize(rows)
    print("\nTime of the cheapest solve with every escape found:")
    for entry in summary:
        print("\n".join(summary_lines(entry)))
    work_precision_figure(rows, {name: make().title for name, make in makers.items()}, chosen.out / "solvers.png")
    return {"work": rows, "duels": duels, "summary": summary}


def head_to_head(name: str, make, rows: list[dict], known: Reference) -> list[dict]:
    rtols = _duels.finalists([row for row in rows if row["flow"] == name])
    if "auto" not in rtols or len(rtols) == 1:
        return []
    columns = {"solver": "s", "rtol": ".0e", "seconds": ".4g", "ratio": ".1f", "least": ".1f", "most": ".1f"}
    return study(f"{name}: in turns, the fastest of each family", _duels.duel, (make, known, rtols), columns)


def plateaus() -> dict:
    columns = {"init_scale": ".0e", "rtol": ".0e", "seconds": ".3f", "min_seconds": ".3f"}
    columns |= {"steps": "d", "rejected": "d", "missed": "d"}
    errors = {"escape_error": ".1e", "reference_error": ".1e"}
    rows = study("Length of a plateau: trace A with auto, T = 4/ε", _studies.plateaus, (), columns | errors)
    ratios = {}
    for rtol in dict.fromkeys(row["rtol"] for row in rows):
        cost = {row["init_scale"]: row for row in rows if row["rtol"] == rtol}
        if {1e-2, 1e-6} <= set(cost):
            ratios[f"{rtol:g}"] = ratio = cost[1e-6]["seconds"] / cost[1e-2]["seconds"]
            steps = cost[1e-6]["steps"] / cost[1e-2]["steps"]
            print(f"  rtol {rtol:g}: ε = 1e-6 costs {ratio:.2f} times what 1e-2 costs, in steps {steps:.2f}")
    return {"plateaus": rows, "plateau_cost_ratios": ratios}


def tolerances(all_makers: dict, references: dict[str, Reference], folder: Path) -> dict:
    for name in ("A", "B"):
        if name not in references:
            references[name] = known_escapes(name, all_makers[name])
    known = {name: (references[name].escapes, references[name].error) for name in ("A", "B")}
    columns = {"flow": "s", "rtol": ".0e", "escape_error": ".1e", "missed": "d", "steps": "d", "rejected": "d"}
    columns |= {"stated_error": ".1e", "covered": "d", "of": "d"}
    rows = study("Error against rtol: auto", _studies.tolerances, (known,), columns)
    tolerance_figure(rows, folder / "tolerances.png")
    return {"tolerances": rows}


def floors() -> dict:
    columns = {"init_scale": ".0e", "floor": "g", "rtol": ".0e", "escape_error": ".1e", "reference_error": ".1e"}
    columns |= {"missed": "d", "steps": "d", "rejected": "d", "ended": ""}
    return {
        "floors": study("Rounding floor of the controller: trace A, plain diffeqsolve", _studies.floors, (), columns)
    }


def many_lanes() -> dict:
    names = ("min_steps", "max_steps", "ratio", "vmap_seconds", "vmap_compile_seconds", "loop_seconds")
    columns = {name: "d" if "steps" in name else ".2f" for name in names} | {"lanes_with_other_steps": "d"}
    title = "Lanes: 64 flows of trace B, ε from 1e-6 to 1e-1, under one vmap and one after another"
    return {"lanes": study(title, _lanes.lanes, (), columns)}


def real_text(chosen) -> dict:
    columns = {"words": "d", "num_params": "d", "rtol": ".0e", "seconds": ".2f", "first_call_seconds": ".1f"}
    columns |= {"num_accepted": "d", "num_rejected": "d", "loss1": ".6f", "solver": "s"}
    rows = study("Words: T = 3000 with auto", _lanes.text, (chosen.text, 64, (1e-3, 1e-6), True), columns)
    if chosen.large:
        rows += study("A thousand words", _lanes.text, (chosen.text, 1000, (1e-3,), False), columns, _LARGE_LIMIT)
    return {"words": rows}


def main():
    chosen = options()
    jax.config.update("jax_enable_x64", True)
    chosen.out.mkdir(parents=True, exist_ok=True)
    began = time.perf_counter()
    all_makers = flows(chosen.text)
    makers = {name: make for name, make in all_makers.items() if chosen.only is None or name in chosen.only}
    references: dict[str, Reference] = {}
    runs = {
        "work": partial(work, makers, references, chosen),
        "plateaus": plateaus,
        "tolerances": partial(tolerances, all_makers, references, chosen.out),
        "floors": floors,
        "lanes": many_lanes,
        "words": partial(real_text, chosen),
    }
    results: dict[str, Any] = {"provenance": machine(chosen)}
    print(json.dumps(results["provenance"], default=str))
    if not chosen.text:
        print("No flow is made of words: give a corpus with --text FILE.")
    for part, run in runs.items():
        if part in chosen.parts and (part != "words" or chosen.text):
            results |= run()
            results["references"] = {name: _plain(known) for name, known in references.items()}
            (chosen.out / "solvers.json").write_text(json.dumps(_clean(results), indent=1, default=str))
    print(f"\n{time.perf_counter() - began:.0f} s in all; written to {chosen.out}")


def machine(chosen) -> dict:
    """Provenance, with the processor and the versions of the rivals; the text by its name alone."""
    facts = provenance(deadline=chosen.deadline, text=Path(chosen.text).name if chosen.text else None)
    for name in _RIVALS:
        try:
            facts["versions"][name] = version(name)
        except PackageNotFoundError:
            continue
    info = Path("/proc/cpuinfo")
    models = (
        [x.split(":", 1)[1].strip() for x in info.read_text().splitlines() if "model name" in x]
        if info.exists()
        else []
    )
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else None
    return facts | {"cpu": models[0] if models else platform.processor(), "cores": os.cpu_count(), "load": load}


def _plain(known: Reference) -> dict:
    return {name: value for name, value in vars(known).items() if name != "grid"}


def _clean(value):
    """The same with NaN and infinity as null: JSON has neither."""
    if isinstance(value, dict):
        return {key: _clean(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_clean(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


if __name__ == "__main__":
    main()
