"""The arguments of a scan, checked before anything is made, solved or written."""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from ..engine import STANDING, check_rtol
from ..problem import Observable, check_functions
from ..scalars import check_count, check_positive, is_number
from ..solvers import choose_solver
from .grid import Axes
from .job import varies
from .names import check_names

_DIRECTIONS = ((), ("up",), ("down",))


def check_measure(
    measure: Mapping[str, Any], axes: Axes, observables: Mapping[str, Observable]
) -> tuple[dict[str, tuple], dict[str, Any]]:
    """(crossings, functions of the trajectory), or a ValueError."""
    if not isinstance(measure, Mapping):
        raise ValueError(f"`scan(measure=...)` must be a dict of names; got {type(measure).__name__}.")
    check_functions(observables, "scan(observables=...)")
    functions = {name: what for name, what in measure.items() if callable(what)}
    crossings = {name: _crossing(name, what, observables) for name, what in measure.items() if name not in functions}
    check_names(axes, crossings, functions)
    return crossings, functions


def _crossing(name: str, what: Any, observables: Mapping[str, Observable]) -> tuple:
    """(observable, level, *direction), its level a number or a function of the point."""
    if not isinstance(what, tuple | list) or len(what) not in (2, 3) or tuple(what[2:]) not in _DIRECTIONS:
        raise ValueError(
            f"`measure[{name!r}]` must be (observable, level), (observable, level, 'up' | 'down') or a function of "
            f"the trajectory; got {what!r:.100}."
        )
    observable, level, *direction = what
    if observable not in (known := sorted({*STANDING, *observables})):
        raise ValueError(f"`measure[{name!r}]` watches {observable!r}, not among {', '.join(known)}.")
    return observable, level if varies(level) else _level(name, level), *direction


def _level(name: str, level: Any) -> float:
    if not is_number(level):
        raise ValueError(
            f"`measure[{name!r}]` needs a level that is a number, or a function of the point; got {level}."
        )
    if math.isnan(level):
        raise ValueError(f"`measure[{name!r}]` has the level NaN, which no value passes or reaches.")
    return float(level)


def check_make(make: Any) -> None:
    """Raises a ValueError if what should make the lanes cannot be called."""
    if not callable(make):
        raise ValueError(
            "`scan(make=...)` must be a function `make(**point) -> (problem, params0)`, with the names of the grid as "
            f"its arguments; got {make!r:.100}."
        )


def check_settings(t1: Any, solver: Any, rtol: Any, errors: Any, max_steps: Any) -> None:
    """Raises a ValueError if the settings of the solves make no sense."""
    if not varies(rtol):
        check_rtol(rtol, np.dtype(float))
    if not varies(solver):
        choose_solver(solver, np.asarray(1e-6))
    if not callable(t1):
        check_positive(t1, "scan(t1=...)", "time or a function of the point")
    if not isinstance(errors, bool | np.bool_):
        raise ValueError(f"`scan(errors=...)` must be True or False; got {errors!r:.100}.")
    check_count(max_steps, "scan(max_steps=...)")


def check_choice(value: Any, choices: tuple[str, ...], argument: str) -> None:
    """Raises a ValueError if a value is not one of these words."""
    if not (isinstance(value, str) and value in choices):
        raise ValueError(f"`scan({argument}=...)` must be one of {', '.join(choices)}; got {value!r:.100}.")


def check_stop(stop: Any, crossings: Mapping[str, tuple]) -> None:
    """Raises a ValueError if the crossing that ends every lane is not among those that are measured."""
    if stop is not None and stop not in [*crossings]:
        raise ValueError(
            f"`stop`={stop!r} must name a crossing in `measure`; there is {', '.join(crossings) or 'none'}."
        )
