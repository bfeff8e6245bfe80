"""Numbers of a solve, as plain Python."""

from functools import lru_cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from ..arrays import Array
from ..compile import quick
from ..problem import squared_norm
from .layout import Layout
from .run import Run

_PROBES = 8  # of the scale of an invariant


def stats(run: Run) -> dict[str, Any]:
    """Steps, work, the energy identity and the invariants of a flow that has ended."""
    state, solver = run.state, run.flow.solver
    drop, dissipation = run.drop, float(state.dissipation)
    scale = max(abs(drop), abs(dissipation))
    counted = solver.cost(state.solver_state) is not None
    return {
        "num_steps": run.num_steps,
        "num_accepted": int(state.num_accepted),
        "num_rejected": int(state.num_rejected),
        "num_gradients": int(state.num_gradients) if counted else None,
        "num_products": int(state.num_products) if counted else None,
        "t1": float(state.t),
        "loss1": float(state.loss),
        "grad_norm1": _norm(state.grad),
        "energy_error": abs(drop - dissipation) / scale if scale > 0 else 0.0,
        "conservation": _conservation(run),
        "rounding": float(state.rounding),
        "solver": solver.label,
        "choices": list(run.choices),
    }


def _norm(vector: Array) -> float:
    with np.errstate(over="ignore"):
        return float(np.linalg.norm(np.asarray(vector)))


def _conservation(run: Run) -> dict[str, float]:
    """Drift of each invariant C, relative to what relative errors of the parameters would do to it.

    max_t ‖C(t) − C(0)‖ over the root mean square of ‖∂C · (z ∘ θ)‖ for random signs z: a drift of 1e-6 is what
    independent relative errors of 1e-6 in every parameter would cause.
    """
    problem, y = run.problem, np.asarray(run.state.y)
    if not problem.conserved:
        return {}
    signs = np.random.default_rng(0).choice(np.array([-1, 1], y.dtype), (_PROBES, y.size))
    scales = _scales(problem.conserved, run.flow.layout, run.flow.light)(problem.data, y, signs)
    names = [name for name, _ in problem.conserved]
    pairs = zip(names, run.state.drift, scales, strict=True)
    return {name: float(d) / float(s) if float(s) > 0 else float(d) for name, d, s in pairs}


@lru_cache(maxsize=128)
def _scales(conserved: tuple, layout: Layout, light: bool):
    """(data, y, signs) -> the scale of each invariant, compiled."""

    def scale(fn, data, y: Float[Array, " P"], signs: Float[Array, "K P"]):
        def change(z):
            _, moved = jax.jvp(lambda x: jnp.asarray(fn(layout.unravel(x), data)), (y,), (z * y,))
            return squared_norm(moved)

        return jnp.sqrt(jnp.mean(jax.lax.map(change, signs)))

    compiler = quick if light else jax.jit
    return compiler(lambda data, y, signs: [scale(fn, data, y, signs) for _, fn in conserved])
