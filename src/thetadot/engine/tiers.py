"""Who takes the steps: the host at once, or a loop that has to be compiled first.

A step on the host takes about a millisecond and waits for nothing; a compiled step takes a small part of that, after
seconds of compilation. So a flow starts on the host. If it turns out long, or if the same kind of flow is asked for
again, its loop is compiled in another process meanwhile, and takes over at the end of a step. Both are one text
(`several_steps`), and take the same steps up to rounding.

**The same call gives the same bits.** Who takes a step depends on counts alone, never on a clock: how often a flow of
this kind was asked for in this process, and how often the host has called its field. Where the loop is due and not
compiled yet, it is waited for.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from threading import Lock
from typing import Any

import jax
import numpy as np

from ..problem import Problem
from . import loop
from .field import HostField
from .loop import Chunk
from .state import Flow, State

_CALLS = 2  # of a kind of flow, from which its loop is compiled
_WORK = 8_000  # calls of the field from the host, about half a second, from which it is compiled in any case
_HEAD_START = 50_000  # calls from there until the loop is used: about as long as it takes to compile
_CHUNK_STEPS = 32  # on the host, between two looks at these numbers
_KINDS = 4096  # remembered; then all are forgotten


class _Tally:
    """What this process has seen of a kind of flow."""

    def __init__(self):
        self.calls = 0
        self.work = 0  # calls of the field from the host
        self.prepared_at: int | None = None  # `work` when its loop began to be compiled

    def wants_loop(self) -> bool:
        """Whether the loop should be compiled; once true, it stays true."""
        if self.prepared_at is None and (self.calls >= _CALLS or self.work >= _WORK):
            self.prepared_at = self.work
        return self.prepared_at is not None

    def is_loop_due(self) -> bool:
        """Whether the loop has had its time to be compiled."""
        return self.prepared_at is not None and self.work >= self.prepared_at + _HEAD_START


_tallies: dict[Any, _Tally] = {}
_lock = Lock()
_asked: ContextVar[set | None] = ContextVar("asked", default=None)
_at_once: ContextVar[bool] = ContextVar("at_once", default=False)


@contextmanager
def one_call() -> Iterator[None]:
    """Everything in it counts as one call: a flow solved at several tolerances is asked for once."""
    with _set(_asked, set()):
        yield


@contextmanager
def compiled_at_once() -> Iterator[None]:
    """Flows that begin in it wait for their loops and take no step on the host: there will be many of a kind."""
    with _set(_at_once, True):
        yield


@contextmanager
def _set(variable: ContextVar, value: Any) -> Iterator[None]:
    before = variable.set(value)
    try:
        yield
    finally:
        variable.reset(before)


class Tiers:
    """The two ways to advance one flow."""

    def __init__(self, problem: Problem):
        self.problem = problem
        self._at_once = _at_once.get() or jax.default_backend() != "cpu"
        self._fields: dict[Any, HostField] = {}
        asked = _asked.get()
        self._asked = set() if asked is None else asked  # kinds that this call has counted

    def field(self, flow: Flow) -> HostField:
        """The field for the host."""
        if flow.observables not in self._fields:
            self._fields[flow.observables] = HostField(flow, self.problem)
        return self._fields[flow.observables]

    def start(self, flow: Flow, y: np.ndarray, t1: np.ndarray) -> tuple[State, dict[str, Any]]:
        """The state at t = 0 and its row."""
        if self._is_compiled(flow):
            return jax.tree.map(np.asarray, loop.start(flow, self.problem, y, t1))
        with np.errstate(all="ignore"):
            return loop.first_state(flow, self.field(flow), y, t1)

    def restart(self, flow: Flow, state: State) -> State:
        """The same point of a flow with a fresh state of its solver."""
        if self._is_compiled(flow):
            return loop.restart(flow, self.problem, state)
        with np.errstate(all="ignore"):
            return loop.restarted(flow, self.field(flow), jax.tree.map(np.asarray, state))

    def advance(self, flow: Flow, state: State, t1: np.ndarray, max_steps: int) -> Chunk:
        """Up to `max_steps` steps; fewer on the host, which decides again who goes on."""
        args = flow, self.problem, state, t1, np.asarray(max_steps)
        program = loop.compiled(flow)
        if self._is_compiled(flow):
            return program(*args)
        tally = self._tally(flow, state)
        if tally.wants_loop():
            if tally.is_loop_due():
                return program(*args)
            program.prepare(*args)
        field = self.field(flow)
        before = field.num_calls
        chunk = loop.on_host(flow, field, state, t1, min(max_steps, _CHUNK_STEPS))
        tally.work += field.num_calls - before
        return chunk

    def _is_compiled(self, flow: Flow) -> bool:
        return self._at_once or not flow.solver.runs_on_host

    def _tally(self, flow: Flow, state: State) -> _Tally:
        """That of flows of this kind, this one included."""
        leaves, structure = jax.tree.flatten((flow, self.problem, state))
        kind = structure, *((np.shape(x), x.dtype) if hasattr(x, "dtype") else x for x in leaves)
        with _lock:
            if kind not in _tallies and len(_tallies) >= _KINDS:
                _tallies.clear()
            tally = _tallies.setdefault(kind, _Tally())
            if kind not in self._asked:
                self._asked.add(kind)
                tally.calls += 1
        return tally
