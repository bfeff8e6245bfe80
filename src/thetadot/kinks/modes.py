"""Which way on from a point where kinks meet: the sides, and the slides, of the flow from there.

On kink k the field jumps by J_k = f_on − f_off = −c_k n_k. Where c_k > 0 it points towards the kink from both sides,
and the velocity is the least-norm element of what the sides span,

    min ‖f_off + Σ λ_k J_k‖   over 0 ≤ λ_k ≤ 1,

a least-squares problem in a box: λ = 0 or 1 is a side, and anything between is a slide. Where c_k < 0 the kink is
crossed at once. Jumps add up in one hidden layer; in stacked layers they do so to first order, and what is found is
checked against the field itself.
"""

from collections.abc import Collection, Mapping
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from .corners import are_too_many, group_of
from .events import jumps_at
from .field import Mode
from .host import HostSwitchedField

_NO_JUMP = 1e-11  # of the field: below it a switch is no kink, as that of elu
_SAME = 1e-9  # shares
_NOISE = 100  # times what rounding makes of the loss is none
_STILL = 1e-7  # of the field
_ROUNDS = 4
_RAISED = 1e-7  # of the loss: more, from one side of a kink to the other, is a jump of the loss


class Way(NamedTuple):
    """How a flow goes on."""

    mode: Mode
    is_settled: bool  # whether the field, once there, leads where the mode says
    shares: Float[np.ndarray, " K"]  # of the on-sides
    resting: tuple[int, ...] = ()  # kinks that meet where a part of the flow comes to rest


class LossJumps(Exception):
    """The loss itself has two values at a kink: it is not continuous there."""


def way_on(
    field: HostSwitchedField, y: Float[np.ndarray, " P"], hits: Collection[int], ended: Mapping[int, bool]
) -> Way:
    """The mode after an event at y.

    Args:
        field: in the mode before.
        y: the point.
        hits: kinks that were reached.
        ended: slides that are over, and whether each of them ends on the on-side.
    """
    states, slides = field.mode
    kinks = sorted({*hits, *slides})
    jumps = checked_jumps(field, y, kinks)
    force, normals = field.mixed(y, field.shares), field.normals(y, kinks)
    size = float(np.linalg.norm(force)) + float(np.max(np.linalg.norm(jumps, axis=1), initial=0.0))
    if (rest := _rest(field.mode, field.shares, kinks, hits, force, jumps, normals)) is not None:
        return rest
    shares = field.shares.copy()
    for _ in range(_ROUNDS):
        proposed = _shares(shares, states, kinks, hits, ended, force, jumps, normals, max(_NO_JUMP * size, field.noise))
        change, shares = np.max(np.abs(proposed - shares)), proposed
        if change < _SAME:
            break
        force, jumps = field.mixed(y, shares), jumps_at(field, y, kinks, shares)
    slides = tuple(k for k in kinks if 0 < shares[k] < 1)
    settled = _settled(field, y, Mode(shares > 0.5, slides), kinks, size)
    return Way(settled or Mode(shares > 0.5, ()), settled is not None, shares)


def _shares(shares, states, kinks, hits, ended, force, jumps, normals, none: float) -> Float[np.ndarray, " K"]:
    """The shares that follow from jumps which were found at these shares."""
    new, off, free = shares.copy(), force.copy(), []
    for place, k in enumerate(kinks):
        jump, strength = jumps[place], -(jumps[place] @ normals[place])
        if k in ended:
            new[k] = float(ended[k])
        elif np.linalg.norm(jump) > none and strength > 0:
            free.append(place)
            new[k] = 0.0
        else:
            new[k] = float(states[k] != (k in hits))
        off = off + (new[k] - shares[k]) * jump
    new[[kinks[place] for place in free]] = _least(off, jumps[free])
    return new


def _rest(mode: Mode, shares, kinks: list[int], hits: Collection[int], force, jumps, normals) -> Way | None:
    """To rest where more kinks meet than there are directions, if with all of them off nothing moves there."""
    group = group_of([kinks.index(k) for k in hits], normals) if hits else []
    if len(group) < 2 or not are_too_many(normals[group]):
        return None
    met = [kinks[i] for i in group]
    off = force - shares[met] @ jumps[group]
    if np.linalg.norm(normals[group] @ off) > _STILL * np.linalg.norm(normals[group]) * np.linalg.norm(force):
        return None
    states = mode.states.copy()
    states[met] = False
    return Way(Mode(states, tuple(k for k in mode.slides if k not in met)), True, shares, tuple(met))


def checked_jumps(field: HostSwitchedField, y: Float[np.ndarray, " P"], kinks: list[int]) -> Float[np.ndarray, "S P"]:
    """f_on − f_off of each kink.

    Raises:
        LossJumps: the losses on both sides of one differ by more than its jump explains, as far away as y is.
    """
    loss, _, _, g, _ = field.moving(y)
    losses, forces, _ = field.sides(y, kinks, field.shares)
    jumps, sizes = forces[:, 1] - forces[:, 0], np.linalg.norm(field.normals(y, kinks), axis=1)
    explained = 4 * np.linalg.norm(jumps, axis=1) * np.abs(g[kinks]) / np.maximum(sizes, 1e-300)
    if np.any(np.abs(losses[:, 1] - losses[:, 0]) > explained + _RAISED * abs(loss) + _NOISE * field.loss_noise):
        raise LossJumps
    return jumps


def _least(off: Float[np.ndarray, " P"], jumps: Float[np.ndarray, "S P"]) -> Float[np.ndarray, " S"]:
    """λ of the least-norm element."""
    if len(jumps) == 0:
        return np.zeros(0)
    scales = np.linalg.norm(jumps, axis=1)
    if len(jumps) == 1:
        return np.clip(-(jumps @ off) / scales**2, 0, 1)
    from scipy.optimize import lsq_linear  # here, since it takes a second to import

    basis, triangle = np.linalg.qr((jumps / scales[:, None]).T)
    found = lsq_linear(triangle, -basis.T @ off, bounds=(np.zeros(len(jumps)), scales), method="bvls", tol=1e-14)
    shares = found.x / scales
    return np.where(shares > 1 - 1e-12, 1.0, np.where(shares < 1e-12, 0.0, shares))


def _settled(field: HostSwitchedField, y, mode: Mode, kinks: list[int], size: float) -> Mode | None:
    """The mode, with sides that the field does not lead to exchanged, if this comes to an end."""
    before, was_free, found = field.mode, field.is_free, None
    for _ in range(_ROUNDS):
        field.enter(mode)
        field.settle(y)
        velocity = field.velocity(y)
        speeds = np.where(mode.states, 1.0, -1.0) * field.speeds(y, velocity)
        at = [k for k in kinks if k not in mode.slides]
        normals = field.normals(y, at) if at else np.zeros((0, y.size))
        limits = 1e-9 * np.linalg.norm(normals, axis=1) * size
        wrong = [k for k, limit in zip(at, limits, strict=True) if speeds[k] < -limit]
        if not wrong:
            found = mode
            break
        mode = mode.flipped(wrong)
    field.enter(before, was_free)
    return found
