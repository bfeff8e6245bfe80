"""Step-size control that measures the local error against the displacement of the step.

Near a saddle the parameters are O(1), but the component that decides when the flow escapes is tiny (1e-6, or less)
and growing. A tolerance relative to ‖θ‖ lets that component be wrong by 100 %. The displacement ‖θ₁ − θ₀‖ of a step
*is* that component there, so

    ‖error‖ ≤ rtol · ‖θ₁ − θ₀‖ + floor · ‖θ₁‖            (root mean square over all parameters)

keeps the direction field right to `rtol` wherever the flow moves at all, and the relative error of an escape time
becomes proportional to `rtol` at every initialization scale.

The floor stands for rounding: one evaluation of θ + h f rounds at the level of ε_machine ‖θ‖, and an error below that
cannot be asked for. Without it the steps would shrink for ever once the flow has converged and its displacement is
nothing but rounding.

A method whose error estimate is O(h^q) has a relative one of O(h^(q−1)), since the displacement is O(h): this is the
exponent of the step-size update.

The next step follows the trend of the last two (Gustafsson's predictive controller): while a flow accelerates away from
a saddle each step must be shorter than the one before by about the same factor, and a controller that repeats the last
good step has every second one rejected.

Reference:
    Gustafsson (1994), Control-theoretic techniques for stepsize selection in implicit Runge–Kutta methods, ACM Trans.
    Math. Softw. 20, 496–517; in this form Hairer and Wanner, Solving ODEs II, IV.8, eq. (8.25).
"""

import math
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
from diffrax import RESULTS, AbstractAdaptiveStepSizeController
from jaxtyping import PyTree

from ..arrays import Array, is_host, namespace


def rms(tree: PyTree) -> Any:
    """Root mean square over all numbers of a pytree."""
    leaves = jax.tree.leaves(tree)
    xp = namespace(leaves[0])
    return xp.sqrt(sum(xp.vdot(leaf, leaf) for leaf in leaves) / sum(leaf.size for leaf in leaves))


class DisplacementController(AbstractAdaptiveStepSizeController):
    """Accepts a step when its error is below `rtol` times the distance it moved.

    Works with every diffrax solver that estimates its error, in `diffrax.diffeqsolve` too.

    Attributes:
        rtol: bound on error / displacement of each step. 1e-3 gives escape times to about three digits.
        atol: absolute bound added to it, root mean square over the parameters. Zero, unless θ = 0 is where the flow
            ends.
        floor: rounding floor relative to ‖θ‖, in units of the machine epsilon of the parameters' dtype.
        safety: aims at this fraction of the largest acceptable error.
        min_factor: largest shrinking of a step.
        max_factor: largest growth of a step.
        apart: whether numbers that the floor hides beside the largest, `floor` ε / `rtol` of it and less, are judged by
            themselves as well.
    """

    rtol: float | Array
    atol: float | Array = 0.0
    floor: float = 100.0
    safety: float = 0.7
    min_factor: float = 0.2
    max_factor: float = 6.0
    norm: Callable = rms
    apart: bool = eqx.field(static=True, default=False)

    __getattribute__ = object.__getattribute__  # as in `AbstractFlowSolver`

    def wrap(self, direction):
        """Nothing to add: flows run forward."""
        del direction
        return self

    def init(self, terms, t0, t1, y0, dt0, args, func, error_order):
        """First step by comparing the field at the start and after a small Euler step.

        The step is where the field has changed by rtol^(1/(q−1)) of itself, the size at which a method with an
        error of order q leaves a relative error of about rtol (Hairer, Nørsett, Wanner, Solving ODEs I, II.4, with
        the state's norm replaced by the displacement's).
        """
        if dt0 is not None:
            return t0 + dt0, self._no_history(y0)
        order = 5.0 if error_order is None else error_order
        f0 = func(terms, t0, y0, args)
        speed, size = self.norm(f0), self.norm(y0)
        xp = namespace(size)
        span = xp.asarray(t1 - t0, size.dtype)
        # Moves θ by 1 % of itself; the whole span if the flow starts at rest or at θ = 0.
        probe = xp.minimum(xp.where((speed > 0) & (size > 0), 0.01 * size / speed, 1e-3 * span), span)
        f1 = func(terms, t0 + probe, _axpy(probe, f0, y0), args)
        change = self.norm(_axpy(-1.0, f0, f1))
        rate = xp.where(speed > 0, change / xp.where(speed > 0, speed * probe, 1), 0)
        wanted = xp.asarray(self.rtol, probe.dtype) ** (1 / (order - 1)) / xp.where(rate > 0, rate, 1)
        wanted = xp.where((rate > 0) & xp.isfinite(rate), wanted, probe)
        first = xp.minimum(xp.minimum(wanted, 100 * probe), span)
        return t0 + first.astype(xp.result_type(t1)), self._no_history(y0)

    def adapt_step_size(self, t0, t1, y0, y1_candidate, args, y_error, error_order, controller_state):
        """Accepts or rejects, and sets the next step from the ratio of error to tolerance."""
        del args
        if y_error is None:
            raise RuntimeError(
                "This solver does not estimate its error, so its steps cannot be adapted: "
                "wrap it in `diffrax.HalfSolver`."
            )
        ratio = self._error_ratio(y0, y1_candidate, y_error)
        if self.apart:
            small = self._small(y1_candidate)
            ratio = namespace(ratio).maximum(ratio, self._error_ratio(small(y0), small(y1_candidate), small(y_error)))
        xp, keep = namespace(ratio), ratio <= 1
        step = xp.asarray(t1 - t0, ratio.dtype)
        last_step, last_ratio = controller_state
        exponent = 1 / (error_order - 1)
        ratio = xp.maximum(ratio, xp.finfo(ratio.dtype).eps)  # an exact step: grow as far as allowed
        factor = ratio**-exponent
        trend = step / last_step * (last_ratio / ratio) ** exponent
        factor = xp.where(keep & xp.isfinite(trend), xp.minimum(factor, factor * trend), factor)
        factor = xp.clip(self.safety * factor, self.min_factor, self.max_factor)
        factor = xp.where(xp.isfinite(factor), factor, self.min_factor)
        next_step = factor.astype(xp.result_type(t1)) * (t1 - t0)
        start = xp.where(keep, t1, t0)
        history = xp.where(keep, step, last_step), xp.where(keep, ratio, last_ratio)
        result = RESULTS.successful  # on the host the engine looks at the times itself
        if not is_host(next_step):
            result = RESULTS.where(start + next_step > start, RESULTS.successful, RESULTS.dt_min_reached)
        return keep, start, start + next_step, xp.asarray(False), history, result

    def _no_history(self, y0: PyTree) -> tuple[Array, Array]:
        """Step and error ratio of the last accepted step: NaN, so that no trend is taken from them."""
        nan = 0 * self.norm(y0) + math.nan
        return nan, nan

    def _error_ratio(self, y0: PyTree, y1: PyTree, y_error: PyTree) -> Array:
        displacement, size = self.norm(_axpy(-1.0, y0, y1)), self.norm(y1)
        xp = namespace(size)
        epsilon = float(xp.finfo(displacement.dtype).eps)
        rtol, atol = (xp.asarray(tol, size.dtype) for tol in (self.rtol, self.atol))
        scale = rtol * displacement + self.floor * epsilon * size + atol
        error = self.norm(y_error)
        ratio = xp.where(error == 0, 0, error / xp.where(scale > 0, scale, xp.finfo(scale.dtype).tiny))
        return xp.where(xp.isfinite(error) & xp.isfinite(scale), ratio, xp.inf)

    def _small(self, y: PyTree) -> Callable[[PyTree], PyTree]:
        """Out of trees like `y` the numbers that the floor hides beside the largest; zero in place of the others."""
        leaves = jax.tree.leaves(y)
        xp = namespace(leaves[0])
        largest = xp.max(xp.stack([xp.max(xp.abs(leaf), initial=0) for leaf in leaves]))
        limit = self.floor * float(xp.finfo(largest.dtype).eps) / self.rtol * largest
        return lambda tree: jax.tree.map(lambda x, size: xp.where(xp.abs(size) < limit, x, 0), tree, y)


def _axpy(a, x: PyTree, y: PyTree) -> PyTree:
    if is_host(x):
        return a * x + y
    return jax.tree.map(lambda xi, yi: namespace(yi).asarray(a, yi.dtype) * xi + yi, x, y)
