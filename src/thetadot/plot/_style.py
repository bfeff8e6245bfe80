"""Colors, time axis, stage shading and footer, the same in every figure."""

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator

if TYPE_CHECKING:
    from thetadot.stages import Stage
    from thetadot.trajectory import Trajectory

# Okabe & Ito (2008): told apart with every common kind of color blindness, and in gray.
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#A6761D")
SHADES = {"plateau": "#e9e9e9", "descent": "#fdebd0", "converged": "#dcefe4"}
GRAY = "#8a8a8a"


def new_figure(width: float, height: float) -> Figure:
    """An empty figure of this size in inches."""
    return Figure(figsize=(width, height), dpi=130)


def stages_of(traj: "Trajectory", stages: "Sequence[Stage] | None") -> "Sequence[Stage]":
    """The stages that were given, or those of the trajectory."""
    if stages is not None:
        return stages
    from thetadot.stages import find_stages  # here: a process that only draws needs no JAX

    return find_stages(traj)


def set_margins(
    fig: Figure,
    shape: tuple[int, int],
    *,
    left: float = 0.75,
    right: float = 0.15,
    bottom: float = 0.65,
    top: float = 0.35,
    gaps: tuple[float, float] = (0.15, 0.15),
) -> None:
    """Places rows × columns of panels: margins and the gaps between rows and columns in inches.

    Said, not computed: an automatic layout measures every text twice and takes as long as the drawing.
    """
    (width, height), (rows, columns), (between_rows, between_columns) = fig.get_size_inches(), shape, gaps
    panel_height = (height - bottom - top - (rows - 1) * between_rows) / rows
    panel_width = (width - left - right - (columns - 1) * between_columns) / columns
    fig.subplots_adjust(
        left=left / width,
        right=1 - right / width,
        bottom=bottom / height,
        top=1 - top / height,
        hspace=between_rows / panel_height,
        wspace=between_columns / panel_width,
    )


def label_room(labels: Sequence[str]) -> float:
    """Inches that `label_lines` needs beside the panel."""
    return 0.3 + 0.065 * max((len(label) for label in labels), default=0)


def add_footer(fig: Figure, traj: "Trajectory") -> None:
    """Write the solver, its tolerance, its number of steps and the outcome at the foot of the figure."""
    facts = [str(traj.provenance.get("experiment", "gradient flow"))]
    if "rtol" in traj.provenance:
        facts.append(f"rtol {traj.provenance['rtol']:.0e}")
    facts += [f"{traj.stats['num_steps']} steps", f"solver {traj.stats['solver']}", traj.status]
    fig.text(0.995, 0.004, "  ·  ".join(facts), ha="right", va="bottom", fontsize=6.5, color=GRAY)


def time_limits(traj: "Trajectory", stages: "Sequence[Stage]") -> tuple[float, float]:
    """Where a logarithmic time axis begins and ends: from a twentieth of the first stage."""
    t1 = float(traj.ts[-1])
    first = next((stage.t_end for stage in stages if stage.t_end > 0), t1)
    positive = traj.ts[traj.ts > 0]
    start = max(float(positive[0]), first / 20) if len(positive) else 1e-3
    return min(start, t1 / 10) if t1 > 0 else 1e-3, t1 if t1 > 0 else 1.0


def crowded_limits(traj: "Trajectory", stages: "Sequence[Stage]") -> tuple[float, float] | None:
    """Where a linear time axis shows more: around stages that all end within twice the time of the first plateau.

    So it is after a plateau of length 1/ε. None for stages that are spread over logarithmic time.
    """
    descents = [stage for stage in stages if stage.kind == "descent"]
    if not descents or descents[-1].t_end > 2 * descents[0].t_start:
        return None
    begin, end = descents[0].t_start, descents[-1].t_end
    return begin - 0.7 * (end - begin), min(float(traj.ts[-1]), 2 * end - begin)


def shade_time(ax: Axes, traj: "Trajectory", stages: "Sequence[Stage]") -> None:
    """Shade the stages on a time axis that is logarithmic, or linear around stages that crowd together."""
    crowded = crowded_limits(traj, stages)
    left, right = crowded or time_limits(traj, stages)
    if crowded is None:
        ax.set_xscale("log")
        ax.xaxis.set_minor_locator(NullLocator())  # minor ticks of a logarithmic axis take most of the drawing
    ax.set_xlim(left, right)
    for stage in stages:
        ax.axvspan(max(stage.t_start, left), max(stage.t_end, left), color=SHADES[stage.kind], lw=0, zorder=0)
    ax.spines[["top", "right"]].set_visible(False)


def spread(positions: Sequence[float], gap: float) -> np.ndarray:
    """Move positions apart until neighbors are at least `gap` apart, as little as needed, order kept."""
    order = np.argsort(positions)
    moved = np.asarray(positions, dtype=float)[order]
    for _ in range(200):
        overlap = gap - np.diff(moved)
        if not np.any(overlap > 1e-9):
            break
        push = np.where(overlap > 0, overlap / 2, 0.0)
        moved[:-1] -= push
        moved[1:] += push
    result = np.empty_like(moved)
    result[order] = moved
    return result


def label_lines(ax: Axes, values: Sequence[float], labels: Sequence[str], colors: Sequence[str]) -> None:
    """Write labels in the right margin beside the heights `values`, moved apart where they would overlap."""
    to_axes = ax.transData + ax.transAxes.inverted()
    x_right = ax.get_xlim()[1]
    heights = [float(to_axes.transform((x_right, value))[1]) for value in values]
    gap = 0.16 / (ax.figure.get_size_inches()[1] * ax.get_position().height)  # type: ignore[union-attr]
    for height, at, label, color in zip(heights, spread(heights, gap), labels, colors, strict=True):
        ax.annotate(
            label,
            xy=(1.0, height),
            xytext=(1.03, at),
            xycoords="axes fraction",
            va="center",
            fontsize=7.5,
            color=color,
            arrowprops={"arrowstyle": "-", "color": color, "lw": 0.6, "shrinkA": 0, "shrinkB": 0},
            annotation_clip=False,
        )


def pretty(name: str) -> str:
    """A series name as mathematics: `w_0` becomes $W_0$."""
    match = re.fullmatch(r"w_(\w+)", name)
    if match:
        return f"$W_{{{match[1].upper()}}}$"
    return {"map": "end-to-end map"}.get(name, name.replace("_", " "))


def token_labels(traj: "Trajectory", num_tokens: int) -> list[str]:
    """Names of the tokens, printable in a figure."""
    labels = traj.provenance.get("labels") or []
    if len(labels) != num_tokens:
        labels = [f"token {i + 1}" for i in range(num_tokens)]
    return [_printable(str(label)) for label in labels]


def _printable(label: str) -> str:
    """Signs in quotes, so that a comma is seen to be one; no accidental mathematics."""
    label = label.replace("$", r"\$")
    return label if any(char.isalnum() for char in label) else f"“{label}”"


def color_of(token: int, rank: int, num_tokens: int) -> str:
    """One color per token where they suffice for all tokens, else one per line of the panel."""
    return COLORS[token if num_tokens <= len(COLORS) else rank]


def most_frequent(traj: "Trajectory", num_tokens: int, limit: int) -> list[int]:
    """Indices of the most frequent tokens, most frequent first; the first ones if the law is not known."""
    stationary = traj.provenance.get("notes", {}).get("stationary")
    if stationary is None or len(stationary) != num_tokens:
        return list(range(min(num_tokens, limit)))
    return np.argsort(-np.asarray(stationary), kind="stable")[:limit].tolist()
