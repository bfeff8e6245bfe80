"""What becomes of the finished lanes of a store that would solve something else now."""

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from ..identity.library import environment
from .identity import MADE, identity_at, is_program, parts
from .job import Job
from .store import IDENTITY, PENDING, Layout, tell
from .writer import rename, take_back, write

if TYPE_CHECKING:
    import zarr

CHANGED = ("refuse", "redo", "trust")
"""What to do with finished lanes that would solve something else now."""

_WORDS = {
    "results": "what thetadot's numbers mean",
    "start": "the start",
    "data": "the data",
    MADE: "whether `make` and the functions of the point can be called",
}


class Settled(NamedTuple):
    """Finished lanes that are to be solved again, and those whose functions are taken to be what they were."""

    again: list[int]
    trusted: dict[int, np.ndarray]


def settle(group: "zarr.Group", path: Any, job: Job, changed: str, details: Mapping[str, str]) -> Settled:
    """Compares every finished lane of a store with what it would solve now.

    Args:
        group: the store.
        path: of the store.
        job: what is asked for now.
        changed: one of `CHANGED`.
        details: part -> what it was and what it is, in words, where that is known.

    Raises:
        ValueError: something has changed and is neither solved again nor trusted; the message says what.
    """
    status = np.asarray(group["status"][...]).ravel()  # pyright: ignore
    finished = np.flatnonzero(status != PENDING).tolist()
    if not finished:
        return Settled([], {})
    names = parts(job)
    stored = np.asarray(group[IDENTITY][...]).reshape(-1, len(names))[finished]  # pyright: ignore
    now = np.stack([identity_at(job, lane) for lane in finished])
    differs = stored != now
    made = names.index(MADE)
    differs[differs[:, made]] = np.arange(len(names)) == made  # then nothing else can be told
    are_programs = np.array([is_program(name, job) for name in names])
    where = names.index("environment")
    elsewhere = differs[:, where].copy()
    differs[:, where] = False
    programs = differs & are_programs & ~elsewhere[:, None]
    others = differs & ~are_programs
    refused = others if changed == "trust" else others | programs
    if changed != "redo" and np.any(refused):
        can_trust = changed == "refuse" and not np.any(others)
        raise ValueError(_refusal(path, names, refused, status.size, can_trust, details))
    if changed == "refuse" and np.any(elsewhere):
        there = _environments(group).get(str(stored[elsewhere][0, where]), "another version")
        raise ValueError(_not_comparable(path, there, int(elsewhere.sum()), status.size))
    concerned = np.any(others | programs, axis=1) | elsewhere
    lanes = [(lane, row) for lane, row, is_one in zip(finished, now, concerned, strict=True) if is_one]
    return Settled([lane for lane, _ in lanes], {}) if changed == "redo" else Settled([], dict(lanes))


def _refusal(path: Any, names: list[str], refused: np.ndarray, size: int, can_trust: bool, details: Mapping) -> str:
    found = [name for name, column in zip(names, refused.T, strict=True) if np.any(column)]
    told = "; ".join(details[name] for name in found if name in details)
    what = _listed(_WORDS.get(name, f"`{name}`") for name in found)
    has = "has" if len(found) == 1 and found != ["data"] else "have"
    trust = ', or `changed="trust"` if it computes what it did' if can_trust else ""
    return (
        f"`{path}`: {what} {has} changed since {int(np.any(refused, axis=1).sum())} of {size} lanes were solved"
        f'{f" ({told})" if told else ""}: give another `store`, or `changed="redo"` to solve these again{trust}.'
    )


def _not_comparable(path: Any, there: str, count: int, size: int) -> str:
    return (
        f"`{path}`: {count} of {size} lanes were solved under {there}, and this is {environment()}. These write "
        "functions in different ways, so that nobody can tell whether loss, observables and measures have changed: "
        'give another `store`, or `changed="trust"` to take them for the same, or `changed="redo"` to solve these '
        "again."
    )


def _listed(words: Iterable[str]) -> str:
    *most, last = words
    return f"{', '.join(most)} and {last}" if most else last


def reopen(group: "zarr.Group", layout: Layout, job: Job, settled: Settled) -> None:
    """Makes changed lanes of a store wait again, without their numbers, and notes the functions of trusted ones."""
    here = {str((job.shared or {})["environment"]): environment()}
    tell(group[IDENTITY], {"environments": _environments(group) | here})
    rename(group, layout, settled.trusted)
    take_back(group, layout, settled.again)
    write(group, layout, [(lane, {"status": PENDING}) for lane in settled.again])


def _environments(group: "zarr.Group") -> dict[str, str]:
    """Number -> what it stands for, of all that lanes of the store were solved under."""
    return dict(group[IDENTITY].attrs.get("environments", {}))  # pyright: ignore
