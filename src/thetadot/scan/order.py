"""The order in which lanes are run: long ones first.

A long lane that begins last keeps one core busy while the others have nothing to do. How long a lane is nobody knows
before, but its neighbors on the grid tell: it is expected to take as many steps as the nearest lane that has finished.
The first lanes are drawn at random, so that all parts of the grid are heard of, and the order is made anew whenever
twice as many have finished. What a step costs is left out: a neighbor's seconds would count its compilation.
"""

import math
from collections.abc import Sequence
from threading import Lock

import numpy as np

from .grid import Axes, shape_of
from .lane import Row

_DRAWN = 16  # lanes at random to begin with
_FEW = 4  # finished lanes that say nothing yet


class Waiting:
    """The lanes still to do, handed out to several threads, those that are expected to be long first."""

    def __init__(self, axes: Axes, lanes: Sequence[int]):
        drawn = np.random.default_rng(0).permutation(np.asarray(lanes, int))[:_DRAWN]
        others = np.setdiff1d(lanes, drawn)
        self._axes, self._lock = axes, Lock()
        self._next = [*others[::-1].tolist(), *drawn[::-1].tolist()]  # the last is the next
        self._steps: dict[int, float] = {}

    def take(self) -> int | None:
        """The next lane; None if all are taken."""
        with self._lock:
            return self._next.pop() if self._next else None

    def learn(self, lane: int, row: Row) -> None:
        """Takes note of a lane that has finished."""
        steps = row.get("num_steps", math.nan)
        self._steps[lane] = steps if steps >= 1 else 1.0  # one that failed at once has no number
        count = len(self._steps)
        if count >= _FEW and count.bit_count() == 1:
            with self._lock:
                self._next = self._ordered(self._next)

    def _ordered(self, lanes: list[int]) -> list[int]:
        """Shortest first, as they are taken from the end.

        Lengths between the same two powers of two count as equal: such lanes keep the order of the grid and share the
        chunks of a store.
        """
        if not lanes:
            return []
        from scipy.spatial import KDTree  # here, for a quick import of the package

        finished = list(self._steps)
        _, nearest = KDTree(self._places(finished)).query(self._places(lanes))
        steps = np.array([self._steps[lane] for lane in finished])[nearest]
        order = np.lexsort((-np.asarray(lanes), np.floor(np.log2(steps))))
        return np.asarray(lanes)[order].tolist()

    def _places(self, lanes: Sequence[int]) -> np.ndarray:
        """Where lanes are on the grid, every axis from 0 to 1."""
        shape = shape_of(self._axes)
        where = np.stack(np.unravel_index(np.asarray(lanes, int), shape), axis=1)
        return where / np.maximum(np.array(shape) - 1, 1)
