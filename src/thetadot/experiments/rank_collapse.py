"""Attention that classifies sequences: condensation of the outer layers, then rank collapse of queries and keys."""

from dataclasses import dataclass
from typing import ClassVar, Literal

import jax.numpy as jnp
import jax.random as jr
import numpy as np

from thetadot import data as sequences
from thetadot import inits
from thetadot.experiments._setup import RECORD_LIMIT, Setup, check_numbers, check_scale, check_sizes
from thetadot.experiments._weights import SPECTRUM, entries, of_weight
from thetadot.models import attention_classifier as model
from thetadot.problem import Problem
from thetadot.theory import rank_collapse as theory

_ACTIVATIONS = {"tanh": jnp.tanh, "linear": model.identity}
_LOSSES = {"exponential": model.exponential, "logistic": model.logistic}
_MATRICES = ("w_1", "w_v", "w_q", "w_k")


def _attention_at_last(params, data):
    """What the last position of each sequence reads, shape (N, s)."""
    return model.attention(params, data["x"])


_SMALL = {f"{weight}_{name}": of_weight(weight, measure) for weight in _MATRICES for name, measure in SPECTRUM.items()}
_WEIGHTS = {name: of_weight(name, entries) for name in (*_MATRICES, "w_2")}
_READS = {"read": _attention_at_last}


@dataclass(frozen=True)
class RankCollapse:
    """Attention that classifies sequences: condensation, rank collapse of queries and keys, and its end."""

    reference: ClassVar[str] = "arXiv:2510.06954"

    num_samples: int = 60
    """Number of labeled sequences."""
    length: int = 4
    """Tokens of a sequence."""
    d_model: int = 6
    """Dimension of a token and of every layer."""
    focus: float = 4.0
    """Sharpness of the attention that makes the labels; 0 makes the pooled features linearly separable."""
    activation: Literal["tanh", "linear"] = "tanh"
    """Activation after the first layer."""
    loss: Literal["exponential", "logistic"] = "exponential"
    """Loss of the margin."""
    init_scale: float = 1e-3
    """Standard deviation ε of every parameter at t = 0."""
    seed: int = 1
    """Seed of the sequences and of the initialization."""
    t1: float = 2600.0
    """End of the flow, in gradient-flow time. The origin is left after a time of order 1/ε."""
    solver: str = "auto"
    """Solver: auto, or another name in thetadot.solvers.SOLVERS."""
    rtol: float = 1e-6
    """Relative tolerance of the solver."""

    def setup(self) -> Setup:
        """Draw sequences and initialization and collect what the solver needs."""
        check_sizes(num_samples=self.num_samples, length=self.length, d_model=self.d_model)
        check_scale(self.init_scale)
        check_numbers(4 * self.d_model**2, self.num_samples * self.length * self.d_model)
        for name, known in (("activation", _ACTIVATIONS), ("loss", _LOSSES)):
            if getattr(self, name) not in known:
                raise ValueError(f"`{name}` must be one of {', '.join(known)}; got {getattr(self, name)!r}.")
        key_data, key_init = jr.split(jr.key(self.seed))
        data = sequences.labeled_sequences(self.num_samples, self.length, self.d_model, self.focus, key=key_data)
        loss = model.loss_fn(_ACTIVATIONS[self.activation], _LOSSES[self.loss])
        laws = {"query-key balance": model.query_key_balance, "value balance": model.value_balance}
        if self.activation == "linear":
            laws |= {"output balance": model.output_balance}
        recorded = dict(_SMALL)
        if 4 * self.d_model**2 <= RECORD_LIMIT:
            recorded |= _WEIGHTS
        if self.num_samples * self.length <= RECORD_LIMIT:
            recorded |= _READS
        params0 = inits.attention_classifier_params(self.d_model, self.init_scale, key=key_init)
        plateaus, notes = self._predictions(data)
        return Setup(Problem(loss, data, laws), params0, recorded, plateaus, (), notes)

    def _predictions(self, data) -> tuple[dict[str, float], dict]:
        """Losses at the origin and at the best linear classifier of the pooled features; the spectrum of F there."""
        margin_loss = _LOSSES[self.loss]
        pooled = theory.pooled_features(data)
        separable = sequences.is_separable(pooled, data["y"])
        plateaus = {"origin": float(margin_loss(jnp.zeros(())))}
        notes = {"separable": separable, "pooled_signal": float(jnp.linalg.norm(theory.pooled_signal(data)))}
        if not separable:
            start = theory.quasi_stationary(data, margin_loss)
            margins = data["y"] * model.outer_network(start, pooled, model.identity)
            plateaus["pooled features"] = float(jnp.mean(margin_loss(margins)))
            matrix = theory.key_query_matrix(start, data, model.identity, margin_loss)
            notes["key_query_singular_values"] = np.linalg.svd(matrix, compute_uv=False).tolist()
        return plateaus, notes
