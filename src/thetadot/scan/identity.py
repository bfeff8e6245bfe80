"""What a lane solves, as a row of numbers, so that two lanes can be told apart."""

from collections.abc import Mapping

import jax
import numpy as np

from ..identity import Fingerprint, of_program, of_tree, of_value, shapes_of
from ..identity.library import environment
from .grid import shape_of
from .job import Job, Posed, pose

RESULTS = 1
"""Goes up when a change of this package changes what the numbers of a lane mean: lanes with another one are changed."""

MADE = "make"
"""The part that says whether `make` and the functions of the point could be called."""

_POSED = (MADE, "start", "data", "t1", "rtol", "solver")
_FIXED = ("max_steps", "errors", "stop", "x64", "results", "environment")
_PROGRAMS = ("loss", "conserved")
_FAILED = of_value("the lane failed before there was anything to solve").number


def parts(job: Job) -> list[str]:
    """What a lane is told apart by."""
    measure = [f"measure[{name!r}]" for name in (*job.crossings, *job.functions)]
    return [*_POSED, *_FIXED, *_PROGRAMS, *measure, *(f"observables[{name!r}]" for name in job.observables)]


def identified(job: Job) -> tuple[Job, list[str]]:
    """The job with the numbers that all of its lanes share, and the names of what is known by name alone.

    Those of the loss and the observables are of the first lane.
    """
    shared = {name: of_value(getattr(job, name)) for name in ("max_steps", "errors", "stop", "x64")}
    shared |= {"results": of_value(RESULTS), "environment": of_value(environment())}
    shared |= {f"measure[{name!r}]": of_value(fn) for name, fn in job.functions.items()}
    job = job._replace(shared={name: one.number for name, one in shared.items()})
    trusted = _trusted(shared)
    try:
        trusted += _trusted(_fingerprints(job, pose(job, 0)))
    except KeyboardInterrupt:
        raise
    except BaseException:  # its lane will tell
        pass
    return job, trusted


def identity(job: Job, posed: Posed | None) -> np.ndarray:
    """The numbers of a lane, one for each of `parts`; `posed` is what it solves, None where that could not be made."""
    numbers = dict(job.shared or {})
    try:
        numbers |= {name: one.number for name, one in _fingerprints(job, posed).items()} if posed else {}
    except KeyboardInterrupt:
        raise
    except BaseException:  # of what cannot be solved either: its lane will tell
        pass
    return np.array([numbers.get(name, _FAILED) for name in parts(job)], np.uint64)


def identity_at(job: Job, lane: int) -> np.ndarray:
    """The numbers of a lane that is not run: `make` is called, and nothing is compiled."""
    try:
        with jax.enable_x64(job.x64):
            return identity(job, pose(job, lane))
    except KeyboardInterrupt:
        raise
    except BaseException:
        return identity(job, None)


def _fingerprints(job: Job, posed: Posed) -> dict[str, Fingerprint]:
    problem = posed.problem
    shapes = shapes_of(posed.params0, problem.data)
    conserved = [(name, of_program(fn, shapes).digest) for name, fn in problem.conserved]
    found = {
        MADE: of_value(True),
        "start": of_tree(posed.params0),
        "data": of_tree(problem.data),
        "t1": of_value(posed.t1),
        "rtol": of_value(posed.rtol),
        "solver": of_value(posed.solver),
        "loss": of_program(problem.loss_fn, shapes, derivatives=True),
        "conserved": of_value(tuple(conserved)),
    }
    for name in job.crossings:
        found[f"measure[{name!r}]"] = of_value(_plain(posed.crossings.get(name)))
    for name, fn in job.observables.items():
        found[f"observables[{name!r}]"] = of_program(fn, shapes)
    return found


def is_program(part: str, job: Job) -> bool:
    """Whether a part is a function, which is written in another way by other versions of Python and JAX."""
    of_functions = (f"measure[{name!r}]" for name in job.functions)
    return part in _PROGRAMS or part.startswith("observables[") or part in of_functions


def _plain(crossing: tuple | None) -> tuple | None:
    """A level is a number, of whatever kind."""
    return crossing and (crossing[0], float(crossing[1]), *crossing[2:])


def _trusted(fingerprints: Mapping[str, Fingerprint]) -> list[str]:
    return [f"{name}: {word}" for name, one in fingerprints.items() for word in sorted(one.trusted)]


def idle_axes(job: Job, num_pairs: int) -> list[str]:
    """The axes along which lanes are equal: pairs of lanes at their first and last values, drawn from the grid."""
    sizes = [(axis, name) for axis, (name, values) in enumerate(job.axes.items()) if values.size > 1]
    return [name for axis, name in sizes if _is_idle(job, axis, num_pairs)]


def _is_idle(job: Job, axis: int, num_pairs: int) -> bool:
    shape = shape_of(job.axes)
    firsts = np.arange(np.prod(shape)).reshape(shape).take(0, axis).ravel()
    step = int(np.prod(shape[axis + 1 :])) * (shape[axis] - 1)
    drawn = np.random.default_rng(0).permutation(firsts)[:num_pairs].tolist()
    return all(_are_equal(job, lane, lane + step) for lane in drawn)


def _are_equal(job: Job, one: int, other: int) -> bool:
    """Whether two lanes solve the same; two that cannot be made are not known to."""
    first = identity_at(job, one)
    return bool(_FAILED not in first and np.array_equal(first, identity_at(job, other)))
