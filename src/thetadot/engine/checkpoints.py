"""A flow in progress as a few arrays, and the same flow again from them.

A state says all that the loop knows between two steps, so a flow that is resumed takes the very steps that it would
have taken. What is fixed in a flow (loss, data, start, tolerances) is not kept but recognized, by a digest.
"""

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from typing import Any

import equinox as eqx
import jax
import numpy as np

from ..identity import of_program, shapes_of
from ..provenance import provenance
from ..solvers import (
    AbstractFlowSolver,
    DeflatedExponential,
    KrylovExponential,
    Policy,
    StabilizedRungeKutta,
    explicit_solver,
)
from .field import traced
from .loop import first_state
from .run import Run
from .state import Flow, State
from .tiers import Tiers

_MADE_BY = ("versions", "commit", "device")  # other ones may take other steps


def checkpoint(run: Run) -> dict[str, np.ndarray]:
    """All that the run knows, between two of its chunks, as arrays without objects.

    Raises:
        ValueError: the flow goes through kinks, whose mode is not kept.
    """
    if not isinstance(run.tiers, Tiers):
        raise ValueError("a flow through kinks is not kept while it runs: it begins anew.")
    facts = {
        "flow": _digest(run),
        "choices": run.choices,
        "solver": run.flow.solver.label,
        "rank": getattr(run.flow.solver, "rank", None),
        "apart": run.flow.controller.apart,
        "policy": dataclasses.asdict(run.policy),
    }
    arrays = {"facts": np.array(json.dumps(facts)), "ts": run.log.times()}
    arrays |= {f"state_{i}": np.asarray(leaf) for i, leaf in enumerate(filter(_is_array, jax.tree.leaves(run.state)))}
    arrays |= {f"row_{i}": rows for i, rows in enumerate(run.log.series().values())}
    arrays |= {f"crossing_{i}": np.array(ts) for i, ts in enumerate(run.log.crossing_ts)}
    return arrays | {f"jump_{i}": np.array(ts) for i, ts in enumerate(run.log.jump_ts)}


def resume(run: Run, saved: Mapping[str, np.ndarray]) -> bool:
    """Puts a run that has begun where the checkpoint was made.

    Returns:
        Whether it could: a checkpoint of another flow, or made by other versions, leaves the run as it is.
    """
    facts = json.loads(str(saved["facts"]))
    solver = _solver_again(run, facts)
    if facts["flow"] != _digest(run) or solver.label != facts["solver"]:
        return False
    policy = Policy(**facts["policy"])
    controller = dataclasses.replace(run.flow.controller, apart=facts["apart"])
    flow = dataclasses.replace(run.flow, solver=solver, controller=controller, asks_from=np.asarray(policy.asks_from))
    leaves, structure = jax.tree.flatten(_state_like(flow, run))
    places = [i for i, leaf in enumerate(leaves) if isinstance(leaf, jax.ShapeDtypeStruct)]
    for place, name in enumerate(f"state_{i}" for i in range(len(places))):
        expected, found = leaves[places[place]], saved[name]
        if (expected.shape, expected.dtype) != (found.shape, found.dtype):
            return False
        leaves[places[place]] = found
    log = run.log
    rows = {name: saved[f"row_{i}"] for i, name in enumerate(log.row0)}
    log.crossing_ts = [saved[f"crossing_{i}"].tolist() for i in range(len(log.crossing_ts))]
    log.jump_ts = [saved[f"jump_{i}"].tolist() for i in range(len(log.jump_ts))]
    log.ts, log.rows = ([saved["ts"]], [rows]) if saved["ts"].size else ([], [])
    run.flow, run.state = flow, jax.tree.unflatten(structure, leaves)
    run.choices, run.policy = facts["choices"], policy
    return True


def _state_like(flow: Flow, run: Run) -> State:
    """Shapes and dtypes of the state of a flow with this solver."""

    def start(flow, problem, y, t1):
        return first_state(flow, traced(flow, problem), y, t1)[0]

    return eqx.filter_eval_shape(start, flow, run.problem, jax.numpy.asarray(run.params0), jax.numpy.asarray(run.t1))


def _solver_again(run: Run, facts: Mapping[str, Any]) -> AbstractFlowSolver:
    """The solver that the run had taken by then."""
    if not run.flow.may_switch:
        return run.flow.solver
    if facts["rank"] is not None:
        return DeflatedExponential(facts["rank"])
    others = explicit_solver(run.flow.controller.rtol), KrylovExponential(), StabilizedRungeKutta()
    return next((solver for solver in others if solver.label == facts["solver"]), run.flow.solver)


def _digest(run: Run) -> str:
    """Of everything that decides which steps a flow takes."""
    flow = run.flow
    fixed = (flow.stretch, flow.levels, flow.directions, flow.controller, flow.grid, run.problem, run.params0, run.t1)
    arrays = [np.asarray(leaf) for leaf in jax.tree.leaves(fixed) if _is_array(leaf)]
    shapes = shapes_of(flow.layout.unravel(run.params0), run.problem.data)
    programs = [("loss", of_program(run.problem.loss_fn, shapes, derivatives=True).digest.hex())]
    for name, fn in (*flow.observables, *run.problem.conserved):
        programs.append((name, of_program(fn, shapes).digest.hex()))
    made_by = {key: value for key, value in provenance().items() if key in _MADE_BY}
    words = [
        made_by,
        run.choices[0],
        flow.layout.shapes,
        flow.crossing_names,
        flow.stop,
        programs,
        *((a.shape, str(a.dtype)) for a in arrays),
    ]
    digest = hashlib.sha256(json.dumps(words).encode())
    for array in arrays:
        digest.update(array.tobytes())
    return digest.hexdigest()


def _is_array(leaf: Any) -> bool:
    return isinstance(leaf, jax.Array | np.ndarray | np.generic)
