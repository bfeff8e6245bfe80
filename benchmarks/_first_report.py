"""Tables and figure of `first_answer.py`."""

import math
import statistics
from collections.abc import Sequence
from pathlib import Path

from matplotlib.ticker import FuncFormatter

from _first_peers import OURS, PEERS
from thetadot.plot._style import COLORS, GRAY, new_figure

CACHES = ("empty", "full")
_ACCURACY = 1e-3
_FAMILIES = {  # of the figure: color by library, marker by method
    "thetadot": (COLORS[1], "D"),
    "parent": (COLORS[1], "D"),
    "LSODA": (COLORS[0], "o"),
    "LSODA-free": (COLORS[0], "s"),
    "BDF": (COLORS[0], "^"),
    "RK45": (COLORS[0], "<"),
    "DOP853": (COLORS[0], "v"),
    "Tsit5": (COLORS[2], "o"),
    "Kvaerno5": (COLORS[2], "s"),
    "CVODE": (COLORS[3], "o"),
    "CVODE-free": (COLORS[3], "s"),
    "CVODE-GMRES": (COLORS[3], "^"),
    "CVODE-GMRES-free": (COLORS[3], "v"),
}


def times(rows: list[dict], flow: str, solver: str, cache: str, column: str = "call") -> list[float]:
    """Every measured time of that kind; none where the solver did not get there."""
    kind = (flow, solver, cache)
    return [row[column] for row in rows if (row["flow"], row["solver"], row["cache"]) == kind and column in row]


def best_peer(rows: list[dict], flow: str, cache: str, middle=statistics.median) -> tuple[str, float] | None:
    """The fastest peer of a flow and its time from the call."""
    found = {name: times(rows, flow, name, cache) for name in PEERS}
    ranked = sorted((middle(seconds), name) for name, seconds in found.items() if seconds)
    return (ranked[0][1], ranked[0][0]) if ranked else None


def _seconds(value: float) -> str:
    return f"{value:.1f}" if value >= 10 else f"{value:.2f}" if value >= 0.1 else f"{value:.3f}"


def _cell(rows: list[dict], flow: str, solver: str, cache: str, bold: bool) -> str:
    """Median from the call, median of the whole process; "!" where an escape was worse than it may be."""
    calls = times(rows, flow, solver, cache)
    if not calls:
        return "–"
    text = _seconds(statistics.median(calls))
    wrong = max(times(rows, flow, solver, cache, "error")) > _ACCURACY
    whole = statistics.median(times(rows, flow, solver, cache, "process"))
    return f"{f'**{text}**' if bold else text}{'!' if wrong else ''} ({_seconds(whole)})"


def _ratio(rows: list[dict], flow: str, cache: str) -> str:
    """Of thetadot to the best peer: medians, then minima."""
    found = []
    for middle in (statistics.median, min):
        ours, best = times(rows, flow, "thetadot", cache), best_peer(rows, flow, cache, middle)
        found.append("–" if not ours or best is None else f"{middle(ours) / best[1]:.2f}")
    return f"{found[0]} ({found[1]})"


def _against(rows: list[dict], flow: str, other: str, cache: str) -> str:
    """Ratio of the medians of thetadot and that one."""
    ours, theirs = (times(rows, flow, name, cache) for name in ("thetadot", other))
    return f"{statistics.median(ours) / statistics.median(theirs):.3g}" if ours and theirs else "–"


def _markdown(header: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    return "\n".join("| " + " | ".join(cells) + " |" for cells in (header, ["---"] * len(header), *lines))


def answer_table(rows: list[dict], sizes: dict[str, str], cache: str) -> str:
    """Flows × solvers, seconds from the call, those of the whole process in brackets."""
    solvers = [name for name in (*OURS, *PEERS) if any(row["solver"] == name for row in rows)]
    lines = []
    for flow in dict.fromkeys(row["flow"] for row in rows):
        best = best_peer(rows, flow, cache)
        ratios = [_ratio(rows, flow, cache), *(_against(rows, flow, other, cache) for other in ("LSODA", "parent"))]
        cells = [_cell(rows, flow, name, cache, best is not None and best[0] == name) for name in solvers]
        lines.append([f"{flow}, P = {sizes[flow]}", *ratios, *cells])
    return _markdown(["flow", "to the best peer: medians (minima)", "to LSODA", "to the parent", *solvers], lines)


def later_table(rows: list[dict]) -> str:
    """What comes after the first answer in the same process, and in a new one with what that process left."""
    columns = {
        "first": "call",
        "second": "second",
        "after 5 s": "third",
        "best of 5 more": "later",
        "programs compiled by these": "compiled_later",
        "crossing_times": "crossing_times",
        "programs compiled by it": "compiled_by_crossing_times",
    }
    lines = []
    for flow in dict.fromkeys(row["flow"] for row in rows):
        for solver in OURS:
            found = {title: times(rows, flow, solver, "later", column) for title, column in columns.items()}
            if not found["second"]:
                continue
            cells = ["–" if not x else f"{max(x)}" if "programs" in t else _seconds(min(x)) for t, x in found.items()]
            process = times(rows, flow, solver, "left by later")
            lines.append([flow, solver, *cells, _seconds(min(process)) if process else "–"])
    return _markdown(["flow", "solver", *columns, "first in a new process"], lines)


def figure(rows: list[dict], sizes: dict[str, str], path: Path) -> None:
    """A line a flow, a panel a cache: seconds from the call, a marker a solver, a bar from ours to the best peer."""
    flows = list(dict.fromkeys(row["flow"] for row in rows))
    fig = new_figure(10.5, 1.9 + 0.42 * len(flows))
    fig.set_layout_engine("constrained")
    axes, handles = fig.subplots(1, 2, sharey=True), {}
    for ax, cache in zip(axes, CACHES, strict=True):
        for y, flow in enumerate(flows):
            best, ours = best_peer(rows, flow, cache), times(rows, flow, "thetadot", cache)
            if best is not None and ours:
                ends = [statistics.median(ours), best[1]]
                ax.plot(ends, [y, y], color=GRAY, lw=5, alpha=0.3, solid_capstyle="butt", zorder=1)
            for name, (color, marker) in _FAMILIES.items():
                calls = times(rows, flow, name, cache)
                if not calls:
                    continue
                ours = name in OURS
                look = {"ms": 8 if ours else 5.5, "mfc": "white" if name == "parent" else color, "mec": color}
                x = statistics.median(calls)
                (handles[name],) = ax.plot([x], [y], marker, alpha=1 if ours else 0.75, zorder=3 if ours else 2, **look)
        ax.set(xscale="log", xlabel="seconds from the call to the answer", ylim=(len(flows) - 0.4, -0.6))
        ax.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:g}"))
        ax.set_title(f"new process, {cache} cache", fontsize=9.5, loc="left")
        ax.grid(axis="x", color=GRAY, alpha=0.25, lw=0.6)
        ax.spines[["top", "right"]].set_visible(False)
    axes[0].set_yticks(range(len(flows)), [f"{flow} ({sizes[flow]})" for flow in flows])
    order = [name for name in _FAMILIES if name in handles]
    fig.legend([handles[n] for n in order], order, loc="outside right center", fontsize=8, frameon=False)
    fig.savefig(path)


def line(row: dict) -> str:
    """One row, as it is measured."""
    head = f"  {row['flow']:18} {row['solver']:16} {row['cache']:14}"
    if "call" not in row:
        return f"{head} {row['ended']}"
    counts = " ".join(f"{'–' if row[name] is None else row[name]:>7}" for name in ("steps", "gradients"))
    right = f"{row['error']:.1e}" if math.isfinite(row["error"]) else "missed"
    compiled = f"{row['compiled']:4d} in {row['compile_seconds']:6.2f} s"
    seconds = f"{row['call']:8.3f} {row['cpu']:8.3f} {row['process']:8.3f} {row['exit']:6.2f}"
    return f"{head} {seconds}  {right:>8} {counts}  {compiled}  {row['note']}{row['ended']}"


HEADER = (
    f"  {'flow':18} {'solver':16} {'cache':14} {'call':>8} {'cpu':>8} {'process':>8} {'exit':>6}  "
    f"{'error':>8} {'steps':>7} {'grads':>7}  compiled"
)
