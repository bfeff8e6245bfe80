"""Many flows under one `vmap`: the same program, each with its own data and its own steps.

A step of a flow is many small kernels, and their overhead is shared by all flows that run together. The loop takes
steps until every lane has had its share or has ended. Then the host takes out the lanes that ended and puts
waiting ones in their places, so that a long lane holds nobody up for more than one chunk. A lane whose solver is
strained leaves too: it goes on alone, and makes the choices that it would have made alone.
"""

import dataclasses
from collections.abc import Callable, Iterator
from threading import Lock
from typing import Any

import equinox as eqx
import jax
import numpy as np
from jaxtyping import PyTree

from ..compile import compiled
from ..progress import Report
from .field import traced
from .lapack import one_lapack_thread
from .loop import several_steps
from .run import Run
from .tiers import Tiers

_CHUNK_STEPS = 32  # tried in every lane between two visits to the host
_ALONE = 3  # lanes go on one by one when less than the third part of a batch is left of them
_LANES = "lanes"

# Two batches at once can wait for each other for ever on a CPU (seen with jaxlib 0.10.2): LAPACK's kernels spread a
# batch of matrices over the one pool of threads that XLA has, and wait for it inside one of its threads.
_one_at_a_time = Lock()


def drive_together(
    take: Callable[[], Run | None], width: int, show: Callable[[Report | None], None] = lambda report: None
) -> Iterator[Run]:
    """Drives flows that have begun, at most `width` at a time, and yields each when it has ended.

    A flow that cannot share its program with those before it, for its shapes, its loss or its solver, waits until they
    have ended and then begins a batch of its own.

    Args:
        take: returns the next flow, or None while there is none. It is asked again after flows have ended.
        width: of a batch.
        show: called between chunks, with the report of a flow that runs alone, or with None. It may raise.
    """
    batch = run = None
    with one_lapack_thread():
        while (run := run or take()) is not None or (batch and batch.active()):
            if run is not None and not isinstance(run.tiers, Tiers):  # it has a way of its own
                run.drive(show)
                yield run
                run = None
                continue
            if run is not None:
                batch = batch if batch and batch.active() else _Batch(run, width)
                if batch.free() and _signature(run) == batch.signature:
                    batch.put(run)
                    run = None
                    if batch.free():
                        continue
            assert batch is not None
            show(None)
            # Few are left where nobody can take the free places.
            few = bool(batch.free()) and _ALONE * len(batch.active()) < width
            for ended in batch.take_out(batch.active()) if few else batch.advance():
                ended.drive(show)
                yield ended


class _Batch:
    """Flows side by side: their arrays stacked on the host, and who is in which slot."""

    def __init__(self, run: Run, width: int):
        arrays, self.static = _split(run)
        self.signature = _signature(run)
        self.slots: list[Run | None] = [None] * width
        self.arrays = jax.tree.map(lambda leaf: np.stack([leaf] * width), arrays)

    def active(self) -> list[int]:
        """The slots in use."""
        return [slot for slot, run in enumerate(self.slots) if run is not None]

    def free(self) -> list[int]:
        """The slots not in use."""
        return [slot for slot, run in enumerate(self.slots) if run is None]

    def put(self, run: Run) -> None:
        """Gives a flow the first free slot."""
        slot = self.free()[0]
        self.slots[slot] = run
        for stacked, leaf in zip(jax.tree.leaves(self.arrays), jax.tree.leaves(_split(run)[0]), strict=True):
            stacked[slot] = leaf

    def take_out(self, slots: list[int]) -> list[Run]:
        """Frees slots and returns who was there."""
        runs = [run for slot in slots if (run := self.slots[slot]) is not None]
        for slot in slots:
            self.slots[slot] = None
        return runs

    def advance(self) -> list[Run]:
        """One chunk for every lane; takes out and returns those that ended, or must go on alone."""
        budgets = [0 if run is None else min(_CHUNK_STEPS, run.max_steps - run.num_steps) for run in self.slots]
        with _one_at_a_time:
            program = compiled(_steps_in_lanes, self.static[0].small, loops=True)
            out = program(*self.static, self.arrays, np.array(budgets))
            state, rows, strained = jax.tree.map(np.array, out)
        flow, problem, _, t1 = self.arrays
        self.arrays = flow, problem, state, t1
        leaving = []
        for slot in self.active():
            run = self.slots[slot]
            assert run is not None
            run.state = _lane(state, slot)
            run.log.collect(_lane(rows, slot))
            if strained[slot] or not run.unfinished():
                leaving.append(slot)
        return self.take_out(leaving)


def _lane(stacked: PyTree, slot: int) -> PyTree:
    """The arrays of one lane, copied: its slot will be overwritten."""
    return jax.tree.map(lambda leaf: np.array(leaf[slot]), stacked)


def _split(run: Run) -> tuple[Any, tuple[Any, Any, Any, Any]]:
    """The arrays of a flow in progress, on the host, and everything else."""
    arrays, static = eqx.partition((run.flow, run.problem, run.state, run.t1), eqx.is_array)
    return jax.tree.map(np.asarray, arrays), static


def _signature(run: Run) -> tuple:
    """What flows that share a program have in common."""
    arrays, static = _split(run)
    leaves = jax.tree.leaves(arrays)
    shapes = [(leaf.shape, leaf.dtype) for leaf in leaves]
    return jax.tree.structure(arrays), shapes, jax.tree.structure(static), jax.tree.leaves(static)


def _steps_in_lanes(flow, problem, state, t1, arrays: PyTree, budgets) -> tuple:
    """A chunk of each lane: the first four arguments without their arrays, and these, stacked."""
    static = flow, problem, state, t1

    def one(arrays, budget):
        flow, problem, state, t1 = eqx.combine(arrays, static)
        # A lane that waits copies its rows in every step: no more of them than a chunk needs.
        capacity = flow.capacity if flow.grid is not None else min(flow.capacity, _CHUNK_STEPS)
        together = dataclasses.replace(flow, lanes=_LANES, capacity=capacity)
        return several_steps(together, traced(together, problem), state, t1, budget)

    return jax.vmap(one, axis_name=_LANES)(arrays, budgets)
