"""Scans of experiments: some of their options become the axes of a grid."""

import dataclasses
import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import PyTree

from thetadot.problem import Problem

_MOST = 1_000_000  # values of an axis
_FORM = "NAME=FROM:TO:COUNT, with :log for a logarithmic grid, or NAME=VALUE,VALUE,…"


@dataclasses.dataclass(frozen=True)
class FlowOf:
    """The flow of an experiment where some of its options have other values: the `make` of a scan."""

    experiment: Any

    def __call__(self, **point: Any) -> tuple[Problem, PyTree]:
        """(problem, params0) at a point of the grid."""
        setup = dataclasses.replace(self.experiment, **point).setup()
        return setup.problem, setup.params0


def escapes(experiment: Any) -> dict[str, tuple[str, float, str]]:
    """Crossings half-way between the predicted plateaus: the times at which the flow leaves them."""
    losses = sorted(set(experiment.setup().plateaus.values()), reverse=True)
    middles = [(above + below) / 2 for above, below in itertools.pairwise(losses)]
    return {f"escape_{i}": ("loss", middle, "down") for i, middle in enumerate(middles, start=1)}


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
    numeric = [key for key, value in options.items() if isinstance(value, int | float)]
    if name not in numeric:
        raise ValueError(f"`--over {text}`: {name!r} is not among {', '.join(numeric)}.")
    axis = _values(text, values)
    if not np.all(np.isfinite(axis)):
        raise ValueError(f"`--over {text}`: its values must be finite.")
    if isinstance(options[name], int):
        if np.any(axis != np.round(axis)) or np.any(np.abs(axis) > np.iinfo(np.int32).max):
            raise ValueError(f"`--over {text}`: {name!r} takes whole numbers.")
        axis = axis.astype(int)
    return name, axis


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
    """The axis that laws are fitted along: the first with three values or more that is not the seed."""
    return next((name for name in axes if name != "seed" and sizes[name] >= 3), None)
