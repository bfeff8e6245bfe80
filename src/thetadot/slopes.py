"""Whether a gradient belongs to its loss, by differences of the loss along it."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np

_DISAGREEMENT = 0.05  # relative; a gradient that is merely inaccurate is better
_PRECISE = 1e-3  # relative error that rounding of the loss may leave in a derivative
_SMOOTH = 0.02  # relative difference of the slopes on both sides of a point, where there is no kink
_SHARES = (1e-7, 1e-6, 1e-5, 1e-4, 1e-3)  # of |θ|, to either side

LossAndGrad = Callable[[np.ndarray], tuple[Any, Any]]
"""y -> (L, ∇L) at a vector y."""


def wrong_slope(value_and_grad: LossAndGrad, y: np.ndarray) -> str | None:
    """A sentence where the slope of the loss along its gradient is not ‖∇L‖; None where it is, or cannot be told."""
    with np.errstate(all="ignore"):
        before, after, speed = slopes(value_and_grad, y)
    slope = (before + after) / 2
    if not is_smooth(before, after, speed) or abs(slope - speed) <= _DISAGREEMENT * max(abs(slope), speed):
        return None
    return (
        f"the slope of the loss along it is {slope:.4g}, not ‖∇L‖ = {speed:.4g}. "
        "Mend its `custom_vjp`, `custom_jvp` or `stop_gradient`."
    )


def is_smooth(before: float, after: float, speed: float) -> bool:
    """Whether the slopes on both sides of a point are the same, so that there is no kink."""
    return bool(abs(after - before) <= _SMOOTH * max(abs(before), abs(after), speed))


def slopes(value_and_grad: LossAndGrad, y: np.ndarray) -> tuple[float, float, float]:
    """The slopes of the loss along its gradient just before and after y, and ‖∇L‖; thrice that where nothing is told.

    The differences are the smallest that rounding allows, so that what they see is the point and not what is around it;
    where twice as large ones tell otherwise, they do not.
    """
    loss, grad = value_and_grad(y)
    loss, grad = float(loss), np.asarray(grad)
    speed, size = float(np.linalg.norm(grad)), float(np.linalg.norm(y)) or 1.0
    for step in (share * size for share in _SHARES):
        rounding = 4 * float(np.finfo(y.dtype).eps) * abs(loss)
        if not rounding < _PRECISE * speed * step < math.inf:
            continue
        (before, after), wider = (_differences(value_and_grad, y, loss, grad / speed, by) for by in (step, 2 * step))
        apart = abs(before + after - sum(wider)) / 2
        return (before, after, speed) if apart <= _SMOOTH * max(abs(before), abs(after)) else (speed, speed, speed)
    return speed, speed, speed


def _differences(value_and_grad: LossAndGrad, y: np.ndarray, loss: float, along: np.ndarray, step: float):
    """The quotients behind and ahead of y."""
    move = (step * along).astype(y.dtype)
    behind, ahead = (float(value_and_grad(point)[0]) for point in (y - move, y + move))
    return (loss - behind) / step, (ahead - loss) / step
