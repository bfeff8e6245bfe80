"""What meets a flow within a step: kinks that are reached, and slides that end."""

from collections.abc import Callable, Collection
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int

from ..arrays import Array
from .host import HostSwitchedField

_LOOKS = np.linspace(0, 1, 17)  # shares of a step at which a switching value is followed
_ROUNDING = 1e-13  # of the largest switching value of a site
_HALVINGS = 30
_NEWTON = 4
_EXACT = 1e-11


class Look(NamedTuple):
    """The kinks as they are at a point."""

    y: Float[np.ndarray, " P"]
    margins: Float[np.ndarray, " K"]  # ±g, positive on the side that the flow is on
    slopes: Float[np.ndarray, " K"]  # d(margin)/dt
    shares: Float[np.ndarray, " S"]  # λ of the slides: which part of the velocity is that of the on-side
    strengths: Float[np.ndarray, " S"]  # ±‖J‖, > 0 where the field points towards the kink from both sides
    noise: float  # what rounding of θ makes of ‖f‖


def look(field: HostSwitchedField, y: Float[np.ndarray, " P"]) -> Look:
    """The kinks at y, in the mode of the field.

    On the slides the velocity is that of shares λ of the on-sides for which −∇L has no component across any of them,
    Gᵀ f(λ) = 0: linear in λ where no kink lies within another, as in one hidden layer, and linear in each λ always.
    """
    states, slides = field.mode
    _, velocity, _, g, _ = field.moving(y)
    sides = np.where(states, 1.0, -1.0)
    speeds = field.speeds(y, velocity)
    shares, strengths = np.zeros(0), np.zeros(0)
    if slides:
        normals = field.normals(y, slides)
        units = normals / np.maximum(np.linalg.norm(normals, axis=1, keepdims=True), 1e-300)
        for _ in range(_NEWTON):
            jumps = jumps_at(field, y, slides)
            across = units @ field.mixed(y, field.shares)
            if np.linalg.norm(across) <= _EXACT * np.linalg.norm(jumps):
                break
            change = np.linalg.lstsq(units @ jumps.T, -across, rcond=_EXACT)[0]
            field.shares[list(slides)] += np.clip(change, -1, 1)
        shares, strengths = field.shares[list(slides)].copy(), -np.sum(jumps * units, axis=1)
        field.shares[list(slides)] = np.clip(shares, 0, 1)
    return Look(y, sides * g, sides * speeds, shares, strengths, field.noise)


def jumps_at(
    field: HostSwitchedField,
    y: Float[np.ndarray, " P"],
    kinks: Collection[int],
    shares: Float[np.ndarray, " K"] | None = None,
) -> Float[np.ndarray, "S P"]:
    """f_on − f_off of each of these kinks, the other switches in their shares, if no others are given."""
    forces = field.sides(y, list(kinks), field.shares if shares is None else shares)[1]
    return forces[:, 1] - forces[:, 0]


def reached(before: Look, after: Look, h: float, slides, scales: Float[np.ndarray, " K"]) -> Float[np.ndarray, " K"]:
    """Where in a step h each margin falls below zero, as a share of it; infinite where it does not.

    The margins are followed by the cubics through their values and slopes at both ends. One that begins at zero, since
    its kink has just been crossed, is not there again before it has left.
    """
    tiny = _ROUNDING * scales
    suspects = (after.margins < -tiny) | (before.slopes * h < -before.margins) | (after.slopes * h > after.margins)
    suspects[list(slides)] = False
    shares = np.full(before.margins.shape, np.inf)
    kinks = np.flatnonzero(suspects)
    if not kinks.size:
        return shares
    follow = hermite(*(part[kinks] for part in (before.margins, before.slopes * h, after.margins, after.slopes * h)))
    path = follow(_LOOKS[:, None])  # (looks, kinks)
    outside = path < -tiny[kinks]
    outside[-1] = after.margins[kinks] < -tiny[kinks]
    outside[0] = False
    falls = outside & (path < np.vstack([path[:1], path[:-1]]))  # not while it still leaves its kink
    found = np.any(falls, axis=0)
    first = np.argmax(falls, axis=0)
    high = _LOOKS[first]
    low = np.where(first > 0, _LOOKS[first - 1], 0.0)
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        inside = follow(middle) > 0
        low, high = np.where(inside, middle, low), np.where(inside, high, middle)
    shares[kinks] = np.where(found, high, np.inf)
    return shares


def hermite(v0: Array, d0: Array, v1: Array, d1: Array) -> Callable[[Array], Array]:
    """The cubic with values v and slopes d at 0 and 1."""
    return lambda x: (
        (1 + 2 * x) * (1 - x) ** 2 * v0 + x * (1 - x) ** 2 * d0 + x**2 * (3 - 2 * x) * v1 + x**2 * (x - 1) * d1
    )


def over(look: Look, rtol: float) -> Bool[np.ndarray, " S"]:
    """Which slides are over: their λ has left [0, 1], or the field no longer points towards the kink."""
    beyond = slack(look, rtol)
    return (look.shares < -beyond) | (look.shares > 1 + beyond) | (look.strengths <= look.noise)


def slack(look: Look, rtol: float) -> Float[np.ndarray, " S"]:
    """By how much λ may leave [0, 1]: what the tolerance, and rounding, make of it."""
    return np.maximum(rtol, look.noise / np.maximum(np.abs(look.strengths), 1e-300))


def site_scales(g: Float[np.ndarray, " K"], sites: Int[np.ndarray, " K"]) -> Float[np.ndarray, " K"]:
    """The largest |g| of the site of each switch."""
    largest = np.zeros(int(sites.max(initial=-1)) + 1)
    np.maximum.at(largest, sites, np.abs(g))
    return largest[sites]
