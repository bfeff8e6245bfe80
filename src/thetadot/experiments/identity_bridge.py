"""Two-hop facts with and without the identity bridge: when a bag of words answers what it was never asked."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import jax.random as jr

from thetadot import data, inits, observables
from thetadot.experiments._setup import RECORD_LIMIT, Setup, check_numbers, check_scale, check_sizes
from thetadot.models import emb_mlp
from thetadot.problem import Problem
from thetadot.theory import identity_bridge as theory


def _map(measure: Callable) -> Callable:
    """The observable `measure(W_emb W_out)`."""

    def observable(params, data):
        del data
        return measure(emb_mlp.end_to_end(params))

    return observable


# Built once: the solver compiles per function object.
_SMALL = {
    "accuracy": emb_mlp.accuracy,
    "composed_accuracy": emb_mlp.composed_accuracy,
    "composed_accuracy_within": emb_mlp.composed_accuracy_within,
    "latent_alignment": emb_mlp.latent_alignment,
    "smallest_margin": emb_mlp.smallest_margin,
    "diagonal_blocks": theory.diagonal_blocks,
    "map_singular_values": _map(observables.singular_values),
    "map_stable_rank": _map(observables.stable_rank),
    "map_effective_rank": _map(observables.effective_rank),
    "map_nuclear_norm": _map(observables.nuclear_norm),
}
_MAP = {"map": _map(lambda w: w)}


@dataclass(frozen=True)
class IdentityBridge:
    """Two-hop facts through a bag of words, with and without the identity bridge."""

    reference: ClassVar[str] = "arXiv:2509.24653"

    num_entities: int = 6
    """Number n of subjects, of bridge entities and of objects."""
    identity_fraction: float = 1.0
    """Share of the bridge entities that are trained to name themselves: 0 is no bridge."""
    label_noise: float = 0.0
    """Share of those that are trained to name another one."""
    pooling: str = "mean"
    """How the embeddings of a question are combined: mean or sum."""
    weight_decay: float = 0.0
    """λ of the term λ/2 ‖θ‖² of the loss."""
    width: int = 15
    """Width of the embedding."""
    init_scale: float = 1e-3
    """Standard deviation ε of every entry at t = 0."""
    seed: int = 0
    """Seed of the initialization, and of which bridge entities are left out or named wrong."""
    t1: float = 20000.0
    """End of the flow, in gradient-flow time."""
    solver: str = "auto"
    """Solver: auto, or another name in thetadot.solvers.SOLVERS."""
    rtol: float = 1e-6
    """Relative tolerance of the solver."""

    def setup(self) -> Setup:
        """Draw the initialization and collect what the solver needs."""
        check_sizes(width=self.width)
        check_scale(self.init_scale)
        if not (self.weight_decay >= 0 and math.isfinite(self.weight_decay)):
            raise ValueError(f"`weight_decay` must be finite and not negative; got {self.weight_decay:g}.")
        check_numbers(2 * 3 * self.num_entities * self.width, 6 * self.num_entities**2)
        n, key = self.num_entities, jr.key(self.seed)
        task = data.two_hop_task((n, n, n))
        facts = data.training_facts(task, self.identity_fraction, self.label_noise, key=key)
        bags = data.bag_data(task, facts, self.pooling, self.weight_decay)
        # With weight decay it is not conserved, but decays like e^{-2λt}.
        conserved = {} if self.weight_decay else {"balancedness": emb_mlp.balancedness}
        recorded = _SMALL | (_MAP if task.vocab_size * 2 * n <= RECORD_LIMIT else {})
        sets = ("subjects", "bridges", "objects", "relations")
        return Setup(
            Problem(emb_mlp.loss, bags, conserved),
            inits.emb_mlp_params(task.vocab_size, 2 * n, self.width, self.init_scale, key=key),
            recorded,
            {"uniform": math.log(2 * n)} | ({} if self.weight_decay else {"all facts": 0.0}),
            sets,
            {"rows": [n, n, n, 2], "columns": [n, n]},
        )
