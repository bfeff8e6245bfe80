"""What is asked of a flow that has ended badly: whether its gradient belongs to its loss, and whether it blows up.

Both questions cost evaluations, and no other flow needs them.
"""

import math

import numpy as np

from .run import Run
from .status import Growth

_DISAGREEMENT = 0.05  # relative; a gradient that is merely inaccurate is better
_PRECISE = 1e-3  # relative error that rounding of the loss may leave in a derivative
_SMOOTH = 0.02  # relative difference of the slopes on both sides of a point, where there is no kink
_SHARES = (1e-7, 1e-6, 1e-5, 1e-4, 1e-3)  # of |θ|, to either side
_OVERFLOW = 1e60  # size of parameters that no flow with a finite blow-up time has at its last step
_GROWTH = 2.0  # of the largest parameter, in a blow-up
_SPEED_UP = 1e4  # of the flow, in a blow-up
_WALL = 0.02  # smallest exponent of a blow-up: at a wall |θ| goes to a limit
_NEAR = 1e-3  # time left until T*, relative to t


def disagreement(run: Run) -> str | None:
    """A sentence where the gradient of a flow is not that of its loss, by the energy identity and by differences.

    In every gradient flow the loss falls by ∫‖∇L‖² dt. Where it did not, and the loss is smooth along the gradient at
    the start or at the end, its slope there must be ‖∇L‖. A kink, or a coarse step, is not taken for a wrong gradient.
    """
    drop, dissipation = run.drop, float(run.state.dissipation)
    scale = max(abs(drop), abs(dissipation))
    if run.num_steps == 0 or (scale > 0 and abs(drop - dissipation) <= _DISAGREEMENT * scale):
        return None
    for t, y in ((0.0, run.params0), (float(run.state.t), np.asarray(run.state.y))):
        with np.errstate(all="ignore"):
            slope, speed = _slope(run, y)
        if abs(slope - speed) > _DISAGREEMENT * max(abs(slope), speed):
            return (
                f"the gradient does not belong to the loss: at t = {t:.6g} the slope of the loss along it is "
                f"{slope:.4g}, not ‖∇L‖ = {speed:.4g}. Mend its `custom_vjp`, `custom_jvp` or `stop_gradient`."
            )
    return None


def _slope(run: Run, y: np.ndarray) -> tuple[float, float]:
    """The slope of the loss along its gradient by differences, and ‖∇L‖; the latter for both where nothing can be told.

    The differences are the smallest that rounding allows, so that what they see is the point and not what is around it.
    """
    field = run.tiers.field
    loss, grad = field.value_and_grad(y)
    speed = float(np.linalg.norm(grad))
    size = float(np.linalg.norm(y)) or 1.0
    for step in np.asarray(_SHARES) * size:
        rounding = 4 * float(np.finfo(y.dtype).eps) * abs(float(loss))
        if not rounding < _PRECISE * speed * step < math.inf:
            continue
        move = (step / speed * grad).astype(y.dtype)
        ahead, behind = (float(field.value_and_grad(point)[0]) for point in (y + move, y - move))
        up, down = (ahead - float(loss)) / step, (float(loss) - behind) / step
        smooth = abs(up - down) <= _SMOOTH * max(abs(up), abs(down), speed)
        return ((up + down) / 2, speed) if smooth else (speed, speed)
    return speed, speed


def growth(run: Run) -> Growth:
    """How the parameters of a flow grew whose steps became too short to go on.

    A blow-up goes like (T* − t)^−p, with p at least 0.02 and T* at hand. With ρ = d log|θ|/dt, T* = t + ρ/ρ' and
    p = ρ²/ρ', as in `blow_up`. At a wall or a kink θ stays where it is, and p falls to 0. No flow gets farther than
    |θ − θ(0)|² ≤ t (L(0) − L(t)): growth that the loss has not paid for is none.
    """
    y, y0, t = np.asarray(run.state.y), np.asarray(run.params0), float(run.state.t)
    size, size0 = float(np.max(np.abs(y))), float(np.max(np.abs(y0)))
    with np.errstate(all="ignore"):
        paid = float(np.linalg.norm(y - y0)) <= (1 + _NEAR) * math.sqrt(max(t * run.drop, 0.0))
        speeds = float(np.linalg.norm(np.asarray(run.state.grad))), float(run.log.row0["grad_norm"])
        if not paid:
            return Growth.NONE
        if size > _OVERFLOW:
            return Growth.OVERFLOW
        grown = size > _GROWTH * size0 and speeds[0] > _SPEED_UP * speeds[1]
        return Growth.BLOW_UP if grown and _is_near_infinity(run) else Growth.NONE


def _is_near_infinity(run: Run) -> bool:
    """Whether ρ and ρ' where the flow is are those of a blow-up that is at hand."""
    y, velocity = np.asarray(run.state.y), -np.asarray(run.state.grad)
    scale = float(np.max(np.abs(velocity)))  # without it the products overflow first
    acceleration = scale * np.asarray(run.tiers.field.jacobian(y).times(velocity / scale))
    size = float(y @ y)
    rate = float(y @ velocity) / size
    change = float(velocity @ velocity + y @ acceleration) / size - 2 * rate**2
    return rate > 0 and change > 0 and rate**2 >= _WALL * change and rate <= _NEAR * float(run.state.t) * change
