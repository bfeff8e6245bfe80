"""What the rounding of the field does: in one step, and on the way since the start of a flow.

An escape may start from less than the rounding of the field. Then the computed flow leaves the saddle where rounding
takes it, at every tolerance. So a solver that knows the growing directions carries the displacement w by rounding,

    w' = J w + n,   w(0) = 0,

along the flow, with the rounding n of the field that it measures in every step, and that of the state at its end. In a
growing direction v of rate μ > 0 the parameters move with v · F, and μ v · w of it is rounding's. That says something
where this motion is an escape, a good part of the velocity: w is also what the flow does not care about, such as a
shift along a valley of minima.
"""

from typing import NamedTuple

from jaxtyping import Float

from ..arrays import Array, namespace
from ._phi import phi_functions
from ._vector import disturbed

_ESCAPE = 0.1  # of the velocity, from which a growing motion is an escape


class Rounding(NamedTuple):
    """What rounding has done to a flow so far."""

    displacement: Float[Array, " P"]  # w
    share: Float[Array, ""]  # its largest part of an escape in progress, once w can be seen in it
    delay: Float[Array, ""]  # the time by which that moves the escape


def none_yet(y: Float[Array, " P"]) -> Rounding:
    """At the start of a flow."""
    return Rounding(0 * y, 0 * y[0], 0 * y[0])


class Modes(NamedTuple):
    """Eigenpairs of the Jacobian that are known in a step h."""

    vectors: Float[Array, "P k"]
    rates: Float[Array, " k"]
    phi1: Float[Array, " k"]  # φ₁(hμ)


def step_rounding(noise: Float[Array, " P"], modes: Modes, h: Float[Array, ""]) -> Float[Array, ""]:
    """‖h φ₁(hA) n‖, A = V diag(μ) Vᵀ: what the rounding n of the field is worth after a step h."""
    xp = namespace(noise)
    inside = noise @ modes.vectors
    outside = noise - modes.vectors @ inside
    return h * xp.hypot(xp.linalg.norm(outside), xp.linalg.norm(modes.phi1 * inside))


def carried(
    rounding: Rounding,
    pull: Float[Array, " P"],
    noise: Float[Array, " P"],
    y: Float[Array, " P"],
    field: Float[Array, " P"],
    modes: Modes,
    h: Float[Array, ""],
) -> Rounding:
    """After a step h: exact in the known modes; what is outside of them counts as one more mode, by its own rate.

    Args:
        rounding: before it.
        pull: J w.
        noise: n.
        y: the parameters before it.
        field: F there.
        modes: of J.
        h: the step.
    """
    xp, V, w = namespace(y), modes.vectors, rounding.displacement
    small = float(xp.finfo(y.dtype).eps) ** 0.5
    moved, speed = xp.abs(w @ V), xp.abs(field @ V)
    escapes = (modes.rates > small * xp.max(xp.abs(modes.rates))) & (speed > _ESCAPE * xp.linalg.norm(field))
    seen = escapes & (moved > small * xp.linalg.norm(y))
    share, delay = (
        xp.max(xp.where(seen, part / xp.where(speed > 0, speed, 1), 0)) for part in (xp.abs(pull @ V), moved)
    )

    def outside(x):
        return x - V @ (x @ V)

    apart = outside(w)
    size = apart @ apart
    rate = xp.where(size > 0, apart @ outside(pull) / xp.where(size > 0, size, 1), 0)
    change = pull + noise
    step = V @ (modes.phi1 * (change @ V)) + phi_functions((h * rate)[None])[0] * outside(change)
    of_state = float(xp.finfo(y.dtype).eps) * (disturbed(y, field, 0.5) - 1) * y
    return Rounding(w + h * step + of_state, share, delay)


def share_of_rounding(solver_state, least: Float[Array, ""]) -> Float[Array, ""] | float:
    """Of an escape that rounding moves by more than `least`; 0 if it does not, or nobody knows."""
    if not hasattr(solver_state, "rounding"):
        return 0.0
    _, share, delay = solver_state.rounding
    return namespace(share).where(delay > least, share, 0)


def handed_over(fresh, old):
    """The fresh state of a solver, with what rounding has done to the flow if both solvers carry it."""
    if hasattr(fresh, "rounding") and hasattr(old, "rounding"):
        return fresh._replace(rounding=old.rounding)
    return fresh
