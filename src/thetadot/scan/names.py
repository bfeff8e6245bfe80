"""Names that a dataset and its files can hold, checked before anything is solved."""

import re
from collections.abc import Collection

from .grid import Axes
from .lane import STATS
from .store import CHECKSUM, IDENTITY, IN_PROGRESS

_OWN = {*STATS, "status", "result", CHECKSUM, IDENTITY, IN_PROGRESS}
_CAN_BE_A_FOLDER = re.compile(r"(?!\.|__|zarr\.json$)[^/\\\0]{1,100}")


def check_names(axes: Axes, crossings: Collection[str], functions: Collection[str]) -> None:
    """Raises a ValueError if what is measured, or an axis, has a name that the dataset cannot give it."""
    theirs = {f"{name}_{kind}" for name in crossings for kind in ("error", "level")}
    for name in (*crossings, *functions):
        if not (isinstance(name, str) and _CAN_BE_A_FOLDER.fullmatch(name)):
            raise ValueError(
                f"`measure` may not be called {name!r}: give it a name of at most 100 characters, without slashes, "
                "that does not begin with '.' or '__'."
            )
    if taken := {*axes, *_OWN, *theirs} & {*crossings, *functions}:
        raise ValueError(f"`measure` may not be called {', '.join(sorted(taken))}: the dataset has its own.")
    dimensions = {axis for axis in axes for name in functions if re.fullmatch(rf"{re.escape(name)}_\d+", axis)}
    if taken := dimensions | {*_OWN, *theirs} & {*axes}:
        raise ValueError(
            f"`grid` may not have an axis called {', '.join(sorted(taken))}: the dataset has its own. Give that "
            "argument of `make` another name."
        )
