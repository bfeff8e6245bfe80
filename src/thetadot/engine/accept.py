"""The rule by which a step is accepted, and what becomes of one that is not.

A step passes if its error is below the tolerance (the controller's part) and if the loss falls throughout it. An error
estimate compares two numerical solutions, which may be wrong in the same way: a step that overshoots a descent can pass
it. But a gradient flow never raises its loss.
"""

from jaxtyping import Bool, Float, Int

from ..arrays import Array, choose, namespace
from .state import Flow, State

_CRAWL = 4096  # a step below this, in units of the machine epsilon of t, is suspicious: at a kink it is all that passes
_LONGEST_CRAWL = 1000  # such steps in a row before the flow counts as stuck
STEPS_AT_REST = 30
"""Consecutive steps that move nothing but rounding, before the flow counts as converged."""


def is_sound(before: State, after: State, inside: Float[Array, " K"]) -> Bool[Array, ""]:
    """Whether the loss falls throughout the step, whatever the error estimate says: at its end and at points `inside`.

    Exempt are steps that move by rounding only. A loss that is not finite never passes.
    """
    xp = namespace(after.loss)
    eps = float(xp.finfo(after.loss.dtype).eps)
    highest = xp.maximum(after.loss, xp.max(inside))
    still = _squared(after.y - before.y) <= (1e4 * eps) ** 2 * _squared(after.y)
    finite = xp.isfinite(highest) & xp.isfinite(_squared(after.grad))
    scale = xp.abs(before.loss) + xp.abs(before.dissipation)  # of the losses so far, and so of their rounding
    return finite & (still | (highest <= before.loss + 100 * eps * scale))


def retried(flow: Flow, state: State, h: Array, wanted: Array, keep: Array) -> State:
    """After a step h that the controller refused, or that the solver itself gave up although `keep` holds."""
    xp = namespace(state.t)
    half = xp.minimum(wanted, h / 2)
    return _rejected(state, half if flow.solver.halves else xp.where(keep, half, wanted))


def unless_sound(sound: Bool[Array, ""], state: State, moved: State, h: Array) -> State:
    """The state after a step that passed its controller: a quarter of the step next, if it is not sound."""
    return choose(sound, moved, _rejected(state, h / 4))


def _rejected(state: State, step: Array) -> State:
    return state._replace(step=step, num_rejected=state.num_rejected + 1)


def crawling(state: State) -> tuple[Int[Array, ""], Bool[Array, ""]]:
    """Attempts in a row that were hardly longer than the resolution of t; and whether the flow is stuck.

    A plateau of length 1e16 ends within a time of order one, in hundreds of steps below a unit in the last place of t.
    At a wall or a blow-up such steps go on and on.
    """
    xp = namespace(state.t)
    eps = float(xp.finfo(state.t.dtype).eps)
    ulp = eps * xp.abs(state.t)
    count = xp.where(state.step > _CRAWL * ulp, 0, state.crawling + 1)
    return count, ~(state.step > eps * ulp) | (count > _LONGEST_CRAWL)


def resting(state: State, y: Float[Array, " P"], grad: Float[Array, " P"]) -> Int[Array, ""]:
    """Steps in a row that moved by rounding only, along a gradient that is noise or zero.

    Slow growth away from a saddle moves along a steady gradient and is never taken for rest, and so is a flow whose
    first steps are too short to move it at all.
    """
    xp = namespace(y)
    size, speed = _squared(y), _squared(grad)
    noisy = xp.vdot(grad, state.grad) < 0.5 * xp.sqrt(speed) * xp.sqrt(_squared(state.grad))
    rounding = (100 * float(xp.finfo(size.dtype).eps)) ** 2 * size
    still = (_squared(y - state.y) <= rounding) & (noisy | (speed == 0))
    return xp.where(still, state.resting + 1, 0)


def _squared(vector: Float[Array, " P"]) -> Float[Array, ""]:
    return namespace(vector).vdot(vector, vector)
