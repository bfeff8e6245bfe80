"""Tables, ratios and figures of `solvers.py`."""

import math
from argparse import ArgumentTypeError
from collections import defaultdict
from collections.abc import Callable, Iterable
from pathlib import Path

from matplotlib.ticker import NullFormatter

from _ladder import FAMILIES
from thetadot.plot._style import COLORS, GRAY, new_figure

ACCURACIES = (1e-3, 1e-5)
HEADER = (
    f"  {'solver':14} {'rtol':>6} {'seconds':>9} {'compile':>8} {'escape error':>13} {'missed':>6} "
    f"{'gradients':>10} {'hessians':>9} {'products':>9}  note"
)
_MARKERS = "osD^v"


def names_of(known: Iterable[str]) -> Callable[[str], tuple[str, ...]]:
    """Parses names of these, separated by commas."""

    def parse(text: str) -> tuple[str, ...]:
        names = tuple(text.split(","))
        if unknown := set(names) - set(known):
            raise ArgumentTypeError(f"unknown {', '.join(sorted(unknown))}: choose from {', '.join(known)}")
        return names

    return parse


def line(row: dict) -> str:
    """One row of the work–precision table."""
    rtol = "–" if row["rtol"] is None else f"{row['rtol']:.0e}"
    head = f"  {row['solver']:14} {rtol:>6} "
    if row["status"] != "done":
        return head + row["status"]
    counts = " ".join(
        f"{'–' if row[name] is None else row[name]:>{width}}"
        for name, width in (("gradients", 10), ("hessians", 9), ("products", 9))
    )
    compiled = "" if row["compile_seconds"] is None else f"{row['compile_seconds']:.1f}"
    measured = f"{row['seconds']:9.3f} {compiled:>8} {row['escape_error']:13.1e} {row['missed']:6d}"
    return f"{head}{measured} {counts}  {row['note']}"


def reaches(row: dict, accuracy: float) -> bool:
    """Whether the solve ended with every escape, each within a relative `accuracy`."""
    return row["status"] == "done" and row["missed"] == 0 and row["escape_error"] <= accuracy


def summarize(rows: list[dict]) -> list[dict]:
    """For each flow and accuracy: the time of each solver's cheapest row with every escape, and ratios to "auto"."""
    summary = []
    for flow in dict.fromkeys(row["flow"] for row in rows):
        for accuracy in ACCURACIES:
            times = defaultdict(lambda: math.inf)
            for row in rows:
                if row["flow"] == flow and reaches(row, accuracy):
                    times[row["solver"]] = min(times[row["solver"]], row["seconds"])
            best = {name: min(times[solver] for solver in family) for name, family in FAMILIES.items()}
            ours = times["auto"]
            ratios = {name: best[name] / ours for name in FAMILIES if name != "thetadot" and math.isfinite(ours)}
            seconds = {solver: t for solver, t in times.items() if math.isfinite(t)}
            finite = {name: ratio if math.isfinite(ratio) else None for name, ratio in ratios.items()}
            summary.append({"flow": flow, "accuracy": accuracy, "seconds": seconds, "ratios_to_auto": finite})
    return summary


def summary_lines(entry: dict) -> list[str]:
    """The same as text."""
    seconds = sorted(entry["seconds"].items(), key=lambda item: item[1])
    ratios = [
        f"best of {name} / auto = {'none' if ratio is None else f'{ratio:.1f}'}"
        for name, ratio in entry["ratios_to_auto"].items()
    ]
    return [
        f"{entry['flow']:6} error ≤ {entry['accuracy']:.0e}: " + ", ".join(f"{name} {t:.3g} s" for name, t in seconds),
        f"{'':6} " + "; ".join(ratios or ["auto did not get there"]),
    ]


def table(rows: list[dict], columns: dict[str, str]) -> str:
    """Plain table: column -> format specification."""
    cells = [[_cell(row.get(name), spec) for name, spec in columns.items()] for row in rows]
    widths = [max(len(name), *(len(cell[i]) for cell in cells)) for i, name in enumerate(columns)]
    lines = [list(columns), *cells]
    return "\n".join("  " + "  ".join(f"{x:>{w}}" for x, w in zip(x, widths, strict=True)) for x in lines)


def _cell(value, spec: str) -> str:
    return "–" if value is None else f"{value:{spec}}"


def work_precision_figure(rows: list[dict], titles: dict[str, str], path: Path) -> None:
    """Escape error against time, a panel a flow and a line a solver; open markers where an escape was missed."""
    flows = list(dict.fromkeys(row["flow"] for row in rows))
    columns = min(len(flows), 3)
    fig = new_figure(4.0 * columns + 1.7, 3.7 * math.ceil(len(flows) / columns))
    fig.set_layout_engine("constrained")
    axes = fig.subplots(math.ceil(len(flows) / columns), columns, squeeze=False).ravel()
    handles = {}
    for ax, flow in zip(axes, flows, strict=False):
        for color, members in zip(COLORS, FAMILIES.values(), strict=False):
            for marker, solver in zip(_MARKERS, members, strict=False):
                points = [r for r in rows if (r["flow"], r["solver"], r["status"]) == (flow, solver, "done")]
                points = [r for r in points if math.isfinite(r["escape_error"])]
                if not points:
                    continue
                style = {"color": color, "marker": marker, "ms": 4.5, "lw": 2.2 if solver == "auto" else 0.9}
                x, y = [r["seconds"] for r in points], [max(r["escape_error"], 1e-11) for r in points]
                fill = ["full" if r["missed"] == 0 else "none" for r in points]
                (handles[solver],) = ax.plot(x, y, **style, alpha=1.0 if solver == "auto" else 0.8)
                for xi, yi, f in zip(x, y, fill, strict=True):
                    ax.plot([xi], [yi], color=color, marker=marker, ms=4.5, mfc="white" if f == "none" else color)
        ax.set(xscale="log", yscale="log", xlabel="seconds", ylabel="worst relative error of an escape time")
        ax.xaxis.set_minor_formatter(NullFormatter())
        ax.axhline(1e-3, color=GRAY, lw=0.7, ls=(0, (4, 3)), zorder=0)
        ax.set_title(f"{flow}: {titles[flow]}", fontsize=8.5, loc="left")
        ax.spines[["top", "right"]].set_visible(False)
    for ax in axes[len(flows) :]:
        ax.set_axis_off()
    order = [solver for members in FAMILIES.values() for solver in members if solver in handles]
    fig.legend([handles[s] for s in order], order, loc="outside right center", fontsize=7.5, frameon=False)
    fig.savefig(path)


def tolerance_figure(rows: list[dict], path: Path) -> None:
    """Worst error of an escape time against rtol, "auto", both traces, with the line error = rtol."""
    fig = new_figure(5.2, 4.0)
    fig.set_layout_engine("constrained")
    ax = fig.subplots()
    for color, flow in zip(COLORS, dict.fromkeys(row["flow"] for row in rows), strict=False):
        mine = [row for row in rows if row["flow"] == flow and row["escape_error"] > 0]
        ax.plot([r["rtol"] for r in mine], [r["escape_error"] for r in mine], "o-", color=color, ms=4.5, label=flow)
        barred = [r for r in mine if r.get("stated_error")]
        stated = [r["stated_error"] for r in barred]
        ax.plot([r["rtol"] for r in barred], stated, ":", color=color, lw=1, label=f"{flow}, stated by crossing_times")
    rtols = sorted({row["rtol"] for row in rows})
    ax.plot(rtols, rtols, color=GRAY, lw=0.8, ls=(0, (4, 3)), label="error = rtol")
    ax.set(xscale="log", yscale="log", xlabel="rtol", ylabel="worst relative error of an escape time")
    ax.legend(fontsize=7.5, frameon=False)
    ax.spines[["top", "right"]].set_visible(False)
    fig.savefig(path)
