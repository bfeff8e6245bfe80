"""What a scan says about itself: its settings, where its numbers come from, and what each of them means."""

import dataclasses
import json
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import diffrax as dfx

from ..provenance import provenance
from .job import Job, varies
from .lane import STATS, TIME

if TYPE_CHECKING:
    import zarr


def attributes(job: Job, loss: str | None) -> dict[str, Any]:
    """Of the dataset: what decides its numbers and what made them, and the most important of it in plain sight."""
    made_by = provenance()
    return {
        "configuration": json.dumps(_configuration(job, loss)),
        "provenance": json.dumps(made_by),
        "rtol": _setting(job.rtol),
        "solver": _setting(job.solver),
        "thetadot": made_by["versions"].get("thetadot", "not installed"),
    }


def variables(job: Job) -> dict[str, dict[str, Any]]:
    """The numbers that every lane has, with what they mean."""
    about: dict[str, dict[str, Any]] = {}
    for name, (observable, level, *direction) in job.crossings.items():
        at_level = f"{name}_level" if varies(level) else f"{level:g}"
        passed = " ".join(["first time at which", observable, "passes", at_level, *direction])
        about[name] = {"long_name": passed, "units": TIME, "rtol": _setting(job.rtol)}
        about[f"{name}_error"] = {"long_name": f"error of {name}", "units": TIME}
        if varies(level):
            about[at_level] = {"long_name": f"level of {name}"}
    return about | STATS


def details(group: "zarr.Group", attrs: Mapping[str, Any]) -> dict[str, str]:
    """What differs between two configurations, in words."""
    there, here = (json.loads(str(one["configuration"])) for one in (group.attrs, attrs))
    return {key: f"{key} is {there[key]!r} there and {here[key]!r} here" for key in there if there[key] != here[key]}


def _configuration(job: Job, loss: str | None) -> dict[str, Any]:
    """What was asked for, as JSON: functions by their qualified names."""
    return {
        "make": name_of(job.make),
        "loss": loss,
        "axes": list(job.axes),
        **{f"grid[{name!r}]": values.tolist() for name, values in job.axes.items()},
        "t1": _setting(job.t1),
        **{f"measure[{name!r}]": [_setting(x) for x in crossing] for name, crossing in job.crossings.items()},
        **{f"measure['{name}_level']": name_of(of[1]) for name, of in job.crossings.items() if varies(of[1])},
        **{f"measure[{name!r}]": name_of(fn) for name, fn in job.functions.items()},
        **{f"observables[{name!r}]": name_of(fn) for name, fn in job.observables.items()},
        "solver": _setting(job.solver),
        "rtol": _setting(job.rtol),
        "errors": job.errors,
        "max_steps": job.max_steps,
        "x64": job.x64,
        "stop": job.stop,
    }


def _setting(value: Any) -> Any:
    """A setting as JSON can hold it."""
    if varies(value):
        return name_of(value)
    return repr(value) if isinstance(value, dfx.AbstractSolver) else value


def name_of(fn: Callable) -> str:
    """Its qualified name; that of its class where it has none, or all that a dataclass holds.

    A script is called as it would be when imported.
    """
    if dataclasses.is_dataclass(fn):
        return repr(fn)
    named = fn if hasattr(fn, "__qualname__") else type(fn)
    script = getattr(sys.modules["__main__"], "__file__", None) if named.__module__ == "__main__" else None
    return f"{Path(script).stem if script else named.__module__}.{named.__qualname__}"
