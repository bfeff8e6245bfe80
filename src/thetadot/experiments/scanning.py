"""Scans of experiments: some of their options become the axes of a grid."""

import contextlib
import dataclasses
import itertools
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

import numpy as np
from jaxtyping import PyTree

from thetadot.experiments._setup import Setup
from thetadot.problem import Problem
from thetadot.solvers import SOLVERS

_OF_SOLVE = ("t1", "rtol", "solver")  # options that are not of the problem but of how it is solved
_MOST = 1_000_000  # values of an axis
_FORM = "NAME=FROM:TO:COUNT, with :log for a logarithmic grid, or NAME=VALUE,VALUE,…"


@dataclasses.dataclass(frozen=True)
class FlowOf:
    """The flow of an experiment where some of its options have other values: the `make` of a scan."""

    experiment: Any

    def __call__(self, **point: Any) -> tuple[Problem, PyTree]:
        """(problem, params0) at a point of the grid."""
        setup = _setup(_at(self.experiment, point))
        return setup.problem, setup.params0


@dataclasses.dataclass(frozen=True)
class OptionOf:
    """An option of an experiment at a point of the grid: its end, tolerance or solver where that is an axis."""

    name: str

    def __call__(self, **point: Any) -> Any:
        """Its value."""
        return point[self.name]


@dataclasses.dataclass(frozen=True)
class LevelOf:
    """The level of an escape at a point of the grid: plateaus depend on the options, the seed among them."""

    experiment: Any
    escape: int

    def __call__(self, **point: Any) -> float | None:
        """Half-way between two plateaus; None where there are fewer."""
        levels = _levels(_at(self.experiment, point))
        return levels[self.escape] if self.escape < len(levels) else None


def escapes(experiment: Any) -> dict[str, tuple[str, float, str]]:
    """Crossings half-way between the predicted plateaus: the times at which the flow leaves them."""
    return {f"escape_{i}": ("loss", level, "down") for i, level in enumerate(_levels(experiment), start=1)}


def lane_escapes(experiment: Any, axes: Mapping[str, np.ndarray]) -> dict[str, tuple[str, LevelOf, str]]:
    """The same with the levels of each lane; as many as there are at most at the ends of the axes."""
    ends = [{name: values[i].item()} for name, values in axes.items() for i in (0, -1)]
    num = len(_levels(experiment))
    for point in ends:
        with contextlib.suppress(ValueError):  # its lanes will tell
            num = max(num, len(_levels(_at(experiment, point))))
    return {f"escape_{i + 1}": ("loss", LevelOf(experiment, i), "down") for i in range(num)}


def solve_options(experiment: Any, axes: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """`t1`, `rtol` and `solver` of a scan: functions of the point where they are axes."""
    return {name: OptionOf(name) if name in axes else getattr(experiment, name) for name in _OF_SOLVE}


def _at(experiment: Any, point: Mapping[str, Any]) -> Any:
    """The experiment at a point, as far as its problem goes."""
    return dataclasses.replace(experiment, **{name: x for name, x in point.items() if name not in _OF_SOLVE})


@lru_cache(maxsize=8)  # a lane asks for its problem and then for its levels
def _setup(experiment: Any) -> Setup:
    return experiment.setup()


def _levels(experiment: Any) -> list[float]:
    losses = sorted(set(_setup(experiment).plateaus.values()), reverse=True)
    return [(above + below) / 2 for above, below in itertools.pairwise(losses)]


def parse_axes(over: Sequence[str], num_seeds: int, experiment: Any) -> dict[str, np.ndarray]:
    """The grid of a scan: the axes asked for, and one of seeds that begin at the experiment's own.

    Raises:
        ValueError: an axis is not written as NAME=FROM:TO:COUNT[:log] or NAME=VALUE,VALUE,…, or is no option.
    """
    axes = dict(_axis(text, experiment) for text in over)
    if not axes:
        raise ValueError(f"`--over` says what to scan: {_FORM}.")
    if len(axes) < len(over):
        raise ValueError("`--over` names an option twice: give all of its values at once.")
    if num_seeds < 1:
        raise ValueError(f"`--seeds` must be at least 1; got {num_seeds}.")
    if "seed" in axes:
        return axes
    return axes | {"seed": experiment.seed + np.arange(num_seeds)}


def _axis(text: str, experiment: Any) -> tuple[str, np.ndarray]:
    name, _, values = text.partition("=")
    options = {field.name: getattr(experiment, field.name) for field in dataclasses.fields(experiment)}
    name = name.strip().replace("-", "_")
    known = [key for key, value in options.items() if isinstance(value, int | float | str)]
    if name not in known:
        raise ValueError(f"`--over {text}`: {name!r} is not among {', '.join(known)}.")
    if isinstance(options[name], str):
        return name, _words(text, name, values)
    axis = _values(text, values)
    if not np.all(np.isfinite(axis)):
        raise ValueError(f"`--over {text}`: its values must be finite.")
    if isinstance(options[name], int):
        if np.any(axis != np.round(axis)) or np.any(np.abs(axis) > np.iinfo(np.int32).max):
            raise ValueError(f"`--over {text}`: {name!r} takes whole numbers.")
        axis = axis.astype(int)
    return name, axis


def _words(text: str, name: str, values: str) -> np.ndarray:
    words = [word.strip() for word in values.split(",")]
    if not all(words):
        raise ValueError(f"`--over {text}` must be {name}=WORD,WORD,….")
    if name == "solver" and (unknown := [word for word in words if word not in ("auto", *SOLVERS)]):
        raise ValueError(f"`--over {text}`: {unknown[0]!r} is not among auto, {', '.join(SOLVERS)}.")
    return np.array(words)


def _values(axis: str, text: str) -> np.ndarray:
    """The values of an axis, which is what the user wrote."""
    first, *rest = text.split(":")
    try:
        if not rest:
            return np.array([float(value) for value in text.split(",")])
        start, end, count = float(first), float(rest[0]), float(rest[1])
        log = {(): False, ("lin",): False, ("log",): True}[tuple(rest[2:])]
    except (ValueError, KeyError, IndexError):
        raise ValueError(f"`--over {axis}` must be {_FORM}.") from None
    if not (1 <= count <= _MOST and count == int(count)):
        raise ValueError(f"`--over {axis}`: COUNT must be a whole number from 1 to {_MOST}; got {rest[1]}.")
    if log and not (start > 0 and end > 0):
        raise ValueError(f"`--over {axis}`: a logarithmic grid must begin and end above 0; got {first} and {rest[0]}.")
    with np.errstate(over="ignore", invalid="ignore"):  # what overflows is refused
        return (np.geomspace if log else np.linspace)(start, end, int(count))


def scanned(sizes: Mapping[Any, int], axes: Mapping[str, np.ndarray]) -> str | None:
    """The axis that laws are fitted along: the first with three numbers or more that is not the seed."""
    numeric = [name for name, values in axes.items() if name != "seed" and values.dtype.kind in "if"]
    return next((name for name in numeric if sizes[name] >= 3), None)
