"""Flows, norms and programs that are wrong on purpose, in place of those that the Identity Bridge's checks measure."""

from functools import partial

import numpy as np

from thetadot.theory.identity_bridge import flows, regularization, solve_program


def _forced(**values):
    """The flows of a grid in which these parameters have other values than it says; of half of its seeds."""

    def wrong(make, grid, t1=flows.T1, rtol=1e-6):
        free = {name: axis for name, axis in grid.items() if name not in values}
        free["seed"] = free["seed"][: (len(free["seed"]) + 1) // 2]
        ds = flows.ends(partial(make, **values), free, t1, rtol)
        overruled = {name: list(grid[name]) for name in grid if name in values}
        return ds.expand_dims(overruled).transpose(*grid, ...)

    return wrong


no_bridge = _forced(identity=0.0, label_noise=0.0)
whole_bridge = _forced(identity=1.0, label_noise=0.0)
small_start = _forced(init_scale=1e-3)
large_start = _forced(init_scale=1.0)
strong_decay = _forced(weight_decay=regularization._DECAY)


def frobenius(matrix):
    """Another norm: completes a matrix with 0."""
    return float(np.linalg.norm(matrix))


def other_constraints(num_entities, identity, pooling="sum"):
    """The program with the bridge in place of that without it, and the reverse."""
    return solve_program(num_entities, not identity, pooling)


def other_facts(num_entities, identity, params0, t1, weight_decay=0.0):
    """The flow with the bridge in place of that without it, and the reverse."""
    return regularization.trace(num_entities, 1 - identity, params0, t1, weight_decay)
