"""What every experiment hands to the solver, in one record.

An experiment is a frozen dataclass whose fields are its options (`t1`, `rtol`, `solver`, `seed`, `init_scale` among
them), with the paper in `reference` and a method `setup()` that returns a `Setup`.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import jax
from jaxtyping import PyTree

from thetadot.memory import VECTORS, check_memory
from thetadot.problem import Problem

# Larger arrays (in numbers) are not recorded at every step: a run keeps hundreds to thousands of steps.
RECORD_LIMIT = 30_000
_BYTES = 8  # of a number


@dataclass(frozen=True)
class Setup:
    """A flow that is ready to be solved, and what the theory says about it.

    Attributes:
        problem: the loss with its data and conservation laws.
        params0: the parameters at t = 0.
        observables: name -> `fn(params, data)`; the same functions at every call, so that nothing recompiles.
        plateaus: name -> predicted loss of a plateau, in the order in which the flow meets them.
        labels: names of the tokens or modes, for figures.
        notes: facts about the data worth keeping with the results.
    """

    problem: Problem
    params0: PyTree
    observables: Mapping[str, Callable]
    plateaus: Mapping[str, float]
    labels: tuple[str, ...] = ()
    notes: Mapping[str, Any] = field(default_factory=dict)

    @property
    def num_parameters(self) -> int:
        """Numbers that the flow moves."""
        return sum(leaf.size for leaf in jax.tree.leaves(self.params0))

    @property
    def num_bytes(self) -> int:
        """Memory that a solver takes, at least."""
        return _BYTES * VECTORS * self.num_parameters


def check_sizes(**sizes: int) -> None:
    """Raises a ValueError, in one sentence, unless every size is at least 1."""
    for name, size in sizes.items():
        if size < 1:
            raise ValueError(f"`{name}` must be at least 1; got {size}.")


def check_numbers(parameters: int, data: int = 0) -> None:
    """Raises a ValueError, in one sentence, if an experiment of so many numbers does not fit into memory.

    A solver holds the parameters in some ten vectors at once; data are held once.
    """
    check_memory(
        _BYTES * (VECTORS * parameters + data),
        f"an experiment with {parameters:.3g} parameters and {data:.3g} numbers of data",
        "choose smaller sizes",
    )


def check_scale(init_scale: float) -> None:
    """Raises a ValueError, in one sentence, unless the scale is a positive number."""
    if not (init_scale > 0 and math.isfinite(init_scale)):
        raise ValueError(f"`init_scale` must be positive and finite; got {init_scale:g}.")
