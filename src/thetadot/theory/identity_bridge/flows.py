"""The flows that the checks of this paper measure: an Emb-MLP of width 2n + 3 in worlds of n entities a set."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING

import jax.numpy as jnp
import jax.random as jr
import numpy as np
from jaxtyping import PyTree

from thetadot import data, inits
from thetadot.models import emb_mlp
from thetadot.problem import Problem
from thetadot.scan import scan
from thetadot.stages import Measured
from thetadot.theory.check import spread
from thetadot.trajectory import Trajectory

from .blocks import average_blocks

if TYPE_CHECKING:
    import xarray as xr  # for the annotations only: half a second

PAPER = "arXiv:2509.24653"
T1 = 2e4  # the facts are learned to a loss of 1e-5..1e-4, which falls like 1/t from there
NUM_SEEDS = 20

Ends = Callable[..., "xr.Dataset"]
"""`ends` below, or wrong flows in its place: the negative control of every check."""


# Built once: the solver compiles per function object.
OBSERVABLES = {
    "accuracy": emb_mlp.composed_accuracy,
    "accuracy_within": emb_mlp.composed_accuracy_within,
    "alignment": emb_mlp.latent_alignment,
}


@cache
def _task(sizes: tuple[int, ...], num_relations: tuple[int, ...] | None, seed: int | None) -> data.TwoHopTask:
    return data.two_hop_task(sizes, num_relations, key=None if seed is None else jr.key(seed))


@dataclass(frozen=True)
class World:
    """The `make` of a scan: an Emb-MLP in a world of these sizes.

    Attributes:
        sizes: as in `thetadot.data.two_hop_task`.
        num_relations: of each hop; None for one each.
        drawn: whether each seed has maps of its own; else the i-th entity leads to the i-th.
        width: of the embedding; 0 takes 2n + 3 with the number n of subjects.
    """

    sizes: tuple[int, ...] = (6, 6, 6)
    num_relations: tuple[int, ...] | None = None
    drawn: bool = False
    width: int = 0

    def __call__(
        self,
        seed: int,
        identity: float = 1.0,
        init_scale: float = 1e-3,
        pooling: str = "mean",
        weight_decay: float = 0.0,
        label_noise: float = 0.0,
    ) -> tuple[Problem, PyTree]:
        """The problem and a Gaussian start; `identity` is the share of the bridges that are asked about."""
        seed, key = int(seed), jr.key(int(seed))
        task = _task(self.sizes, self.num_relations, seed if self.drawn else None)
        facts = data.training_facts(task, float(identity), float(label_noise), key=key)
        bag_data = data.bag_data(task, facts, str(pooling), float(weight_decay))
        width = self.width or 2 * self.sizes[0] + 3
        num_outputs = bag_data["test_sets"].shape[1]
        params0 = inits.emb_mlp_params(task.vocab_size, num_outputs, width, float(init_scale), key=key)
        return Problem(emb_mlp.loss, bag_data), params0


@dataclass(frozen=True)
class Last:
    """The last value of a series, as what a scan measures."""

    name: str

    def __call__(self, traj: Trajectory) -> np.ndarray:
        """Of this trajectory."""
        return np.asarray(traj[self.name][-1])


def last_map(traj: Trajectory) -> np.ndarray:
    """W where the flow ends, (d, C)."""
    return np.asarray(emb_mlp.end_to_end(traj.params1))


_MEASURE = {name: Last(name) for name in OBSERVABLES} | {"w": last_map}


def ends(make: Callable, grid: Mapping[str, Sequence], t1: float = T1, rtol: float = 1e-6) -> "xr.Dataset":
    """Where the flows of a grid end: the last value of every observable, and `w`, the map W.

    Args:
        make: a `World`.
        grid: as in `thetadot.scan`.
        t1: where to end.
        rtol: as in `gradient_flow`.
    """
    return scan(make, grid, t1, _MEASURE, OBSERVABLES, errors=False, rtol=rtol)


def entries(ds: "xr.Dataset") -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """(a_1, b_1, c_1, d_1) of W averaged over the permutations, each over the grid, whose last dimensions are of W."""
    w = ds["w"].values
    diagonal = np.stack([np.asarray(average_blocks(jnp.asarray(x)).diagonal) for x in w.reshape(-1, *w.shape[-2:])])
    a, b, c, d = np.moveaxis(diagonal.reshape(*w.shape[:-2], 4), -1, 0)
    return a, b, c, d


def over_seeds(values: np.ndarray) -> Measured:
    """The mean of what the seeds have, with twice its standard error."""
    return spread(values.tolist())
