"""Who takes the steps: the host at once, or a loop that has to be compiled first.

A step on the host takes about a millisecond and waits for nothing; a compiled step takes a small part of that, after
seconds of compilation. So a flow starts on the host. Once a kind of flow has cost the host about as much as it takes to
trace its loop, in one long flow or in many, the loop is compiled in another process meanwhile, and takes over at the
end of a step. Both are one text (`several_steps`), and take the same steps up to rounding.

**The same calls give the same bits.** Who takes a step depends on a count alone, never on a clock: how often the host
has called the field of this kind of flow in this process, weighed by its largest array (threads count together). Where
the loop is due and not compiled yet, it is waited for.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from threading import Lock
from typing import Any

import jax
import numpy as np

from ..arrays import to_host
from ..problem import Problem
from ..solvers import curvatures
from . import loop
from .field import HostField
from .loop import Chunk
from .state import Flow, State

_WORK = 20_000  # calls of a small field from the host, about a second, after which the loop is compiled
_HEAD_START = 20_000  # calls from there until the loop is used: about as long as it takes to compile
_CHUNK_STEPS = 32  # on the host, between two looks at these numbers
_KINDS = 512  # remembered, the latest

_work: dict[Any, int] = {}  # kind of flow -> calls of its field from the host
_lock = Lock()
_at_once: ContextVar[bool] = ContextVar("at_once", default=False)


@contextmanager
def compiled_at_once() -> Iterator[None]:
    """Flows that begin in it wait for their loops and take no step on the host: there will be many of a kind."""
    before = _at_once.set(True)
    try:
        yield
    finally:
        _at_once.reset(before)


class Tiers:
    """The two ways to advance one flow. States are NumPy's between two calls, whoever made them.

    Args:
        flow: the flow as it begins.
        problem: the loss and its data.
    """

    def __init__(self, flow: Flow, problem: Problem):
        self.problem = problem
        self.field = HostField(flow, problem)
        self._at_once = _at_once.get() or jax.default_backend() != "cpu"

    def start(self, flow: Flow, y: np.ndarray, t1: np.ndarray) -> tuple[State, dict[str, Any]]:
        """The state at t = 0 and its row."""
        if self._is_compiled(flow):
            return to_host(loop.start(flow, self.problem, y, t1))
        with np.errstate(all="ignore"):
            return loop.first_state(flow, self.field, y, t1)

    def restart(self, flow: Flow, state: State) -> State:
        """The same point of a flow with a fresh state of its solver."""
        if self._is_compiled(flow):
            return to_host(loop.restart(flow, self.problem, state))
        with np.errstate(all="ignore"):
            return loop.restarted(flow, self.field, state)

    def spectrum(self, flow: Flow, state: State) -> np.ndarray:
        """The outlying curvatures of the Hessian, in decreasing order."""
        if self._is_compiled(flow):
            return np.asarray(loop.spectrum(flow, self.problem, state.y))
        with np.errstate(all="ignore"):
            return curvatures(self.field.jacobian(state.y).times, state.y)

    def advance(self, flow: Flow, state: State, t1: np.ndarray, max_steps: int) -> Chunk:
        """Up to `max_steps` steps; fewer on the host, which decides again who goes on."""
        args = flow, self.problem, state, t1, np.asarray(max_steps)
        kind, work = None, _WORK + _HEAD_START
        if not self._is_compiled(flow):
            kind = self._kind(flow, state)
            work = _work.get(kind, 0)
        if work >= _WORK:
            program = loop.compiled(flow)
            if work >= _WORK + _HEAD_START:
                return to_host(program(*args))
            program.prepare(*args)
        before = self.field.num_calls
        chunk = loop.on_host(flow, self.field, state, t1, min(max_steps, _CHUNK_STEPS))
        with _lock:
            _work[kind] = _work.pop(kind, 0) + flow.weight * (self.field.num_calls - before)
            while len(_work) > _KINDS:
                del _work[next(iter(_work))]
        return chunk

    def _is_compiled(self, flow: Flow) -> bool:
        return self._at_once or not flow.solver.runs_on_host

    def _kind(self, flow: Flow, state: State) -> Any:
        """What flows that share a loop have in common."""
        leaves, structure = jax.tree.flatten((flow, self.problem, state))
        return structure, *((np.shape(x), x.dtype) if hasattr(x, "dtype") else x for x in leaves)
