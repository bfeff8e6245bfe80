"""What is asked of a flow that has ended because its steps became too short, or too many: why.

The questions cost evaluations, and no other flow needs them.
"""

import math
from collections.abc import Callable

import numpy as np

from ..infinity import WALL, approach
from ..slopes import is_smooth, slopes
from .run import Run
from .status import Growth

_HOPELESS = 100  # times as many steps as there were, of the present length, are too many
_NOISE = 0.5  # of the change within a step, that is there in a tenth of it
_OVERFLOW = 1e60  # size of parameters that no flow with a finite blow-up time has at its last step
_GROWTH = 2.0  # of what grows, in a blow-up
_SPEED_UP = 1e4  # of the flow, in a blow-up
_NEAR = 1e-3  # time left until T*, relative to t


def hindrance(run: Run) -> str | None:
    """Why more steps would not help a flow that has used up its own, and what would; None if they may."""
    state, solver = run.state, run.flow.solver.label
    y, h = np.asarray(state.y), float(state.step)
    left = (float(run.t1) - float(state.t)) / h if h > 0 else math.inf
    if run.num_steps == 0 or left <= _HOPELESS * run.num_steps:
        return None
    here = f"its steps have become so short, {h:.1e}, that t1 is {left:.0e} of them away"
    with np.errstate(all="ignore"):
        before, after, speed = slopes(run.tiers.field.value_and_grad, y)
        noisy = _is_noisy(run.tiers.field.velocity, y, h)
    if not is_smooth(before, after, speed):
        return (
            f"{here}. The loss has a kink there: along the gradient its slope is {before:.3g} on one side and "
            f"{after:.3g} on the other. Smooth it, or end before it."
        )
    if noisy:
        return f"{here}. The gradient is noise over such a step, of rounding or its own. Loosen `rtol`, or end before."
    return f"{here}. Loosen `rtol`, or try another solver than {solver}."


def _is_noisy(velocity: Callable[[np.ndarray], np.ndarray], y: np.ndarray, h: float) -> bool:
    """Whether the velocity changes within a tenth of a step as much as within the step."""
    v = velocity(y)
    short, whole = (float(np.linalg.norm(velocity((y + share * h * v).astype(y.dtype)) - v)) for share in (0.1, 1.0))
    return short >= _NOISE * whole


def growth(run: Run) -> Growth:
    """How the parameters of a flow grew whose steps became too short to go on.

    A blow-up goes like (T* − t)^−p, with p at least 0.02 and T* at hand. At a wall or a kink θ stays where it is, and p
    falls to 0. No flow gets farther than |θ − θ(0)|² ≤ t (L(0) − L(t)): growth that the loss has not paid for is none.
    """
    y, y0, t = np.asarray(run.state.y), np.asarray(run.params0), float(run.state.t)
    with np.errstate(all="ignore"):
        if float(np.linalg.norm(y - y0)) > (1 + _NEAR) * math.sqrt(max(t * run.drop, 0.0)):
            return Growth.NONE
        if float(np.max(np.abs(y))) > _OVERFLOW:
            return Growth.OVERFLOW
        velocity, speed0 = -np.asarray(run.state.grad), float(run.log.row0["grad_norm"])
        if not float(np.linalg.norm(velocity)) > _SPEED_UP * speed0:
            return Growth.NONE
        left, exponent, direction = approach(y, velocity, run.tiers.field.jacobian(y).times)
        grown = direction @ y > _GROWTH * abs(direction @ y0)
        return Growth.BLOW_UP if grown and exponent >= WALL and 0 < left <= _NEAR * t else Growth.NONE
