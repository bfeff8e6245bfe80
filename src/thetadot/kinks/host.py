"""The switched field on the host, in a mode that changes from event to event."""

from collections.abc import Collection

import numpy as np
from jaxtyping import Float, Int

from ..arrays import Array, each
from ..engine.field import HostField
from ..engine.state import Flow
from ..problem import Problem
from ..solvers._vector import Jacobian, scrambled
from .field import Mode, programs
from .switches import shapes_of, switches_of

_ROOM = (0, 16, 256, 4096)  # kinks for which programs are compiled
_DEPENDENT = 1e-12  # of the largest eigenvalue of Gᵀ G: where some kinks follow from others
_ELSEWHERE = 1e-3  # of a point: where normals are compared, to see whether they are constant
_SAME = 1e-12
_ULPS = 8
_NEWTON = 3  # steps towards kinks that are not flat


class HostSwitchedField:
    """The field on NumPy vectors in a mode that changes from event to event.

    Where the normals of all slides are constant, as those of a first layer, the motion along them is a product with one
    matrix; else it is solved for at each point.
    """

    def __init__(self, flow: Flow, problem: Problem, plain: HostField):
        shapes = shapes_of(flow.layout.unravel(flow.start), problem.data)
        self.switches = switches_of(problem.loss_fn, shapes)
        self._programs = programs(problem.loss_fn, flow.layout, shapes, flow.light)
        self._plain, self._data, self._stretch = plain, problem.data, flow.stretch
        self._constant: dict[int, np.ndarray] = {}  # kink -> its normal, in these states
        self.noise = self.loss_noise = 0.0  # what rounding of θ makes of ‖f‖, and of L
        self.enter(Mode(np.zeros(self.switches.size, bool), ()))

    def enter(self, mode: Mode, is_free: bool = False) -> None:
        """Goes on in this mode; where `is_free`, switches follow their values, but for those of slides."""
        if is_free or not (self._constant and np.array_equal(mode.states, self.mode.states)):
            self._constant = {}
        self.mode, self.is_free = mode, is_free
        self._known: tuple[np.ndarray, tuple] | None = None
        self.shares = np.where(mode.states, 1.0, 0.0)
        self._normals, self._inverse = None, np.eye(filled(mode.slides)[0].size)

    def settle(self, y: Float[Array, " P"]) -> None:
        """Prepares for points near y, which lies on the slides."""
        near, here = self.moving(nudged(y)), self.moving(y)
        self.noise = float(np.linalg.norm(near[2] - here[2]))
        self.loss_noise = abs(float(near[0] - here[0])) + float(np.finfo(y.dtype).eps * abs(here[0]))
        slides = self.mode.slides
        if slides:
            normals = self.normals(y, slides)
            inverse = np.linalg.pinv(normals @ normals.T, rcond=_DEPENDENT, hermitian=True)
            if all(k in self._constant for k in slides):
                self._normals, self._inverse, self._origin = normals, inverse, y.copy()
            else:
                self._inverse[: len(slides), : len(slides)] = inverse
            self._known = None

    def moving(self, y: Float[Array, " P"]) -> tuple[Array, Array, Array, Array, Array]:
        """(L, θ', f, g, μ)."""
        if self._known is None or not np.array_equal(self._known[0], y):
            out = np.asarray(self._programs.moving(self._data, self._stretch, self._on_slides(y), self._args()))
            loss, rest = out[0], out[1:]
            velocity, force, g = rest[: y.size], rest[y.size : 2 * y.size], rest[2 * y.size :][: self.switches.size]
            mu = rest[2 * y.size + self.switches.size :][: len(self.mode.slides)]
            if self._normals is not None:
                mu = self._inverse @ (self._normals @ force)
                velocity = force - mu @ self._normals
            self._known = y.copy(), (loss, velocity, force, g, mu)
        return self._known[1]

    @property
    def is_flat(self) -> bool:
        """Whether nothing is slid on, or only kinks with constant normals."""
        return not self.mode.slides or self._normals is not None

    def nearest(self, y: Float[Array, " P"]) -> Float[Array, " P"]:
        """The nearest point on the kinks that are slid on, by Newton's method."""
        slides = list(self.mode.slides)
        for _ in range(_NEWTON if slides else 0):
            out = np.asarray(
                self._programs.moving(self._data, self._stretch, y, self._args(Mode(self.mode.states, ())))
            )
            g = out[1 + 2 * y.size :][slides]
            y = y - np.linalg.lstsq(self.normals(y, slides), g, rcond=_DEPENDENT)[0].astype(y.dtype)
        return y

    def force(self, y: Float[Array, " P"]) -> Float[Array, " P"]:
        """−∇L with the switches held, whatever is slid on."""
        return self.moving(y)[2]

    def speeds(self, y: Float[Array, " P"], velocity: Float[Array, " P"]) -> Float[Array, " K"]:
        """dg/dt at that velocity."""
        return np.asarray(self._programs.speeds(self._data, self._stretch, y, self._args(), velocity))

    def normals(self, y: Float[Array, " P"], kinks: Collection[int]) -> Float[Array, "S P"]:
        """∇g_k."""
        new = [k for k in kinks if k not in self._constant]
        rows = {}
        if new:
            here, there = (self._normals_at(point, new) for point in (y, y + _ELSEWHERE * scrambled(y, y.shape, 0) * y))
            same = np.all(np.abs(here - there) <= _SAME * np.max(np.abs(here), axis=1, keepdims=True), axis=1)
            rows = dict(zip(new, here, strict=True))
            self._constant |= {k: row for k, row, is_same in zip(new, here, same, strict=True) if is_same}
        return (
            np.stack([rows.get(k, self._constant.get(k)) for k in kinks]) if kinks else np.zeros((0, y.size), y.dtype)
        )

    def _normals_at(self, y: np.ndarray, kinks: Collection[int]) -> np.ndarray:
        room, _ = filled(kinks)
        return np.asarray(self._programs.normals(self._data, self._stretch, y, self._args(), room))[: len(kinks)]

    def sides(
        self, y: Float[Array, " P"], kinks: Collection[int], shares: Float[np.ndarray, " K"]
    ) -> tuple[Float[Array, "S 2"], Float[Array, "S 2 P"], Float[Array, "S 2 K"]]:
        """(L, −∇L, g) off and on each of these kinks, the other switches in their `shares`."""
        room, _ = filled(kinks)
        both = self._programs.sides(self._data, self._stretch, y, self._args(Mode(self.mode.states, ())), shares, room)
        both = np.asarray(both)[: len(kinks)]
        return both[:, :, 0], both[:, :, 1 : 1 + y.size], both[:, :, 1 + y.size :]

    def mixed(self, y: Float[Array, " P"], shares: Float[np.ndarray, " K"]) -> Float[Array, " P"]:
        """−∇L with all switches in their `shares`."""
        return np.asarray(
            self._programs.mixed(self._data, self._stretch, y, self._args(Mode(self.mode.states, ())), shares)
        )

    def value_and_grad(self, y: Float[Array, " P"]) -> tuple[Float[Array, ""], Float[Array, " P"]]:
        """(L, −θ')."""
        loss, velocity, *_ = self.moving(y)
        return loss, -velocity

    def values_and_grads(self, points: Float[Array, "N P"]) -> tuple[Float[Array, " N"], Float[Array, "N P"]]:
        """The same at several points, the last one first."""
        values, grads = each(self.value_and_grad)(points[::-1])
        return values[::-1], grads[::-1]

    def velocity(self, y: Float[Array, " P"]) -> Float[Array, " P"]:
        """θ'."""
        return self.moving(y)[1]

    def jacobian(self, y: Float[Array, " P"]) -> Jacobian:
        """∂θ'/∂θ at y, as products."""

        def times(rows):
            at = self._on_slides(y)
            return self._tangent(
                self._programs.products(self._data, self._stretch, at, self._args(), self._tangent(rows))
            )

        return Jacobian(lambda vector: times(vector[None])[0], lambda block: times(np.ascontiguousarray(block.T)).T)

    def watched(self, y: Float[Array, " P"], names: Collection[str]) -> dict[str, Array]:
        """The observables of these names."""
        return self._plain.watched(y, names)

    def invariants(self, y: Float[Array, " P"]) -> tuple[Array, ...]:
        """The conserved quantities."""
        return self._plain.invariants(y)

    def _on_slides(self, y: Float[Array, " P"]) -> Float[Array, " P"]:
        """The nearest point on the slides, where these are flat: the field is a function of it alone."""
        return y if self._normals is None else self._origin + self._tangent((y - self._origin)[None])[0]

    def _tangent(self, rows: Float[Array, "N P"]) -> Float[np.ndarray, "N P"]:
        rows = np.asarray(rows)
        return rows if self._normals is None else rows - (rows @ self._normals.T) @ self._inverse @ self._normals

    def _args(self, mode: Mode | None = None) -> tuple:
        states, slides = mode or self.mode
        free = np.full(states.shape, self.is_free)
        free[list(slides)] = False
        if self._normals is not None or not slides:
            return states, free, *filled(()), np.zeros((0, 0))
        return states, free, *filled(slides), self._inverse


def nudged(y: Float[Array, " P"]) -> Float[Array, " P"]:
    """A point that some units in the last place lead to."""
    return y * (1 + _ULPS * np.finfo(y.dtype).eps * np.sign(scrambled(y, y.shape, 1)))


def filled(kinks: Collection[int]) -> tuple[Int[np.ndarray, " S"], Float[np.ndarray, " S"]]:
    """Kinks in a room of one of a few sizes, and 1 for each of them, 0 for what fills it."""
    size = next(size for size in _ROOM if size >= len(kinks))
    room, counts = np.zeros(size, int), np.zeros(size)
    room[: len(kinks)], counts[: len(kinks)] = list(kinks), 1
    return room, counts
