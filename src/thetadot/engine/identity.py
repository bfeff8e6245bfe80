"""The energy identity: in every gradient flow the loss falls by ∫‖∇L‖² dt. Where it does not, is the gradient wrong?"""

from collections.abc import Iterable

import numpy as np

from ..slopes import LossAndGrad, wrong_slope

_DISAGREEMENT = 0.05  # relative


def disagreement(
    drop: float, dissipation: float, points: Iterable[tuple[float, np.ndarray]], value_and_grad: LossAndGrad
) -> str | None:
    """A sentence where the gradient of a flow is not that of its loss, by the energy identity and by differences.

    Looking at the identity costs nothing. Where it is off by 5 %, and the loss is smooth along the gradient at one of
    the points, its slope there must be ‖∇L‖. A kink, or a coarse step, is not taken for a wrong gradient.

    Args:
        drop: L(0) − L(t).
        dissipation: ∫‖∇L‖² dt.
        points: (t, y) where differences are taken.
        value_and_grad: y -> (L, ∇L).
    """
    scale = max(abs(drop), abs(dissipation))
    if scale > 0 and abs(drop - dissipation) <= _DISAGREEMENT * scale:
        return None
    for t, y in points:
        if wrong := wrong_slope(value_and_grad, y):
            return f"the gradient does not belong to the loss: at t = {t:.6g} {wrong}"
    return None
