"""The field θ̇ = −∇L on vectors, with all that is measured at a point: traced inside a loop, or called on the host.

The two kinds answer the same questions. What the host calls is compiled on its own (value with gradient, products with
the Hessian, observables), where arrays are not large in the way that takes the compiler the least time: this is all
that a first flow waits for.
"""

from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, NamedTuple, Protocol, runtime_checkable

import diffrax as dfx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, PyTree

from ..arrays import Array, each
from ..compile import quick
from ..problem import Observable, Problem
from ..solvers._vector import Jacobian
from .layout import Layout
from .state import Flow

_ROWS = 10  # vectors that one call multiplies with the Hessian, at most: eight directions and two for the rounding
_ROOM = 2**20  # numbers in them


class Measured(NamedTuple):
    """What the user watches at a point."""

    observables: dict[str, Array]
    invariants: tuple[Array, ...]


@runtime_checkable
class Field(Protocol):
    """What steps ask of a field."""

    def value_and_grad(self, y: Array) -> tuple[Array, Array]:
        """(L, −θ')."""
        ...

    def values_and_grads(self, points: Array) -> tuple[Array, Array]:
        """The same at several points."""
        ...

    def velocity(self, y: Array) -> Array:
        """θ'."""
        ...

    def watched(self, y: Array, names: Collection[str]) -> dict[str, Array]:
        """The observables of these names."""
        ...

    def invariants(self, y: Array) -> tuple[Array, ...]:
        """The conserved quantities."""
        ...


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class TracedField:
    """The field inside a program that is being traced."""

    problem: Problem
    stretch: Array  # (P,)
    layout: Layout = field(metadata={"static": True})
    observables: tuple[tuple[str, Observable], ...] = field(metadata={"static": True})

    def value_and_grad(self, y: Float[Array, " P"]) -> tuple[Float[Array, ""], Float[Array, " P"]]:
        """(L, ∇L)."""
        loss, grad = self.problem.value_and_grad(self.layout.unravel(self.stretch * y))
        return loss.astype(y.dtype), self.layout.ravel(grad)

    def values_and_grads(self, points: Float[Array, "K P"]) -> tuple[Float[Array, " K"], Float[Array, "K P"]]:
        """The same at several points."""
        return jax.vmap(self.value_and_grad)(points)

    def velocity(self, y: Float[Array, " P"]) -> Float[Array, " P"]:
        """−∇L."""
        return -self.layout.ravel(self.problem.grad(self.layout.unravel(self.stretch * y)))

    def watched(self, y: Float[Array, " P"], names: Collection[str]) -> dict[str, Array]:
        """The observables of these names."""
        chosen = tuple((name, fn) for name, fn in self.observables if name in names)
        return _measured(self.layout, chosen, (), self.problem.data, y).observables

    def invariants(self, y: Float[Array, " P"]) -> tuple[Array, ...]:
        """The conserved quantities."""
        return _measured(self.layout, (), self.problem.conserved, self.problem.data, y).invariants


class HostField:
    """The field on NumPy vectors, by a few compiled functions."""

    def __init__(self, flow: Flow, problem: Problem):
        kind = problem.loss_fn, problem.conserved, flow.layout, flow.observables, flow.light
        self._programs, self._data, self._stretch = _programs(*kind), problem.data, flow.stretch
        self._measures = bool(flow.observables or problem.conserved)
        self._last: tuple[np.ndarray, Measured] | None = None
        self._known = np.zeros(0), np.zeros(0)  # the latest point, and (L, ∇L) there
        self.num_calls = 0  # of compiled functions

    def value_and_grad(self, y: Float[Array, " P"]) -> tuple[Float[Array, ""], Float[Array, " P"]]:
        """(L, ∇L). The end of a step is asked for twice: by the solver, and where the step is looked at."""
        if not np.array_equal(self._known[0], y):
            self.num_calls += 1
            self._known = y.copy(), np.asarray(self._programs.value_and_grad(self._data, self._stretch, y))
        both = self._known[1]
        return both[0], both[1:]

    def values_and_grads(self, points: Float[Array, "K P"]) -> tuple[Float[Array, " K"], Float[Array, "K P"]]:
        """The same at several points, the last one first."""
        values, grads = each(self.value_and_grad)(points[::-1])
        return values[::-1], grads[::-1]

    def velocity(self, y: Float[Array, " P"]) -> Float[Array, " P"]:
        """−∇L."""
        return -self.value_and_grad(y)[1]

    def jacobian(self, y: Float[Array, " P"]) -> Jacobian:
        """−∇²L at y, as products."""
        return Jacobian(lambda vector: self._products(y, vector[None])[0], lambda block: self._products(y, block.T).T)

    def watched(self, y: Float[Array, " P"], names: Collection[str]) -> dict[str, Array]:
        """The observables of these names."""
        return {name: value for name, value in self._measure(y).observables.items() if name in names}

    def invariants(self, y: Float[Array, " P"]) -> tuple[Array, ...]:
        """The conserved quantities."""
        return self._measure(y).invariants

    def _measure(self, y: np.ndarray) -> Measured:
        """All that is measured; asked twice in a row for a point, it answers from memory."""
        if not self._measures:
            return Measured({}, ())
        if self._last is None or not np.array_equal(self._last[0], y):
            self.num_calls += 1
            self._last = y.copy(), jax.tree.map(np.asarray, self._programs.measure(self._data, y))
        return self._last[1]

    def _products(self, y: np.ndarray, rows: np.ndarray) -> np.ndarray:
        """By blocks of one size, for which they are compiled; the last one is filled up with zeros."""
        num, size = len(rows), max(1, min(_ROWS, _ROOM // y.size))
        if missing := -num % size:
            rows = np.concatenate([rows, np.zeros((missing, y.size), y.dtype)])
        images = []
        for start in range(0, num, size):
            count = min(size, num - start)
            block = rows[start : start + size]
            images.append(np.asarray(self._programs.products(self._data, self._stretch, y, block, count)))
        self.num_calls += len(images)
        return (images[0] if len(images) == 1 else np.concatenate(images))[:num]


class _Programs(NamedTuple):
    value_and_grad: Callable  # (data, stretch, y) -> L and ∇L in one vector
    products: Callable  # (data, stretch, y, rows, how many count) -> −∇²L times each of these
    measure: Callable  # (data, y) -> Measured


@lru_cache(maxsize=128)
def _programs(loss_fn, conserved, layout: Layout, observables, light: bool) -> _Programs:
    """Compiled once for every loss and layout."""
    compiler = quick if light else jax.jit

    def problem(data: PyTree) -> Problem:
        return Problem(loss_fn, data, dict(conserved))

    def value_and_grad(data, stretch, y):
        loss, grad = TracedField(problem(data), stretch, layout, observables).value_and_grad(y)
        return jnp.concatenate([loss[None], grad])

    def products(data, stretch, y, rows, count):
        _, times = jax.linearize(TracedField(problem(data), stretch, layout, observables).velocity, y)
        if light:  # then a row costs less than it takes to go round
            return jax.vmap(times)(rows)
        body = lambda i, images: images.at[i].set(times(rows[i]))  # noqa: E731
        return jax.lax.fori_loop(0, count, body, jnp.zeros_like(rows))

    def measure(data, y):
        return _measured(layout, observables, conserved, data, y)

    return _Programs(compiler(value_and_grad), compiler(products), compiler(measure))


def _measured(layout: Layout, observables: tuple, conserved: tuple, data: PyTree, y: Float[Array, " P"]) -> Measured:
    params = layout.unravel(y)
    watched = {name: jnp.asarray(fn(params, data)) for name, fn in observables}
    return Measured(watched, tuple(jnp.asarray(fn(params, data)) for _, fn in conserved))


def traced(flow: Flow, problem: Problem) -> TracedField:
    """The field of a flow that is being compiled."""
    return TracedField(problem, flow.stretch, flow.layout, flow.observables)


def _vector_field(t: Any, y: Float[Array, " P"], field: TracedField) -> Float[Array, " P"]:
    del t
    return field.velocity(y)


TERM = dfx.ODETerm(_vector_field)
"""The term that every solver is called with, whose `args` are the field."""
