"""The anchor-function task in a decoder of one layer between a fixed embedding and a fixed output."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np

from thetadot import data, inits
from thetadot.experiments._setup import RECORD_LIMIT, Setup, check_numbers, check_scale, check_sizes
from thetadot.experiments._weights import SPECTRUM, entries
from thetadot.models import decoder
from thetadot.problem import Problem
from thetadot.theory import rank_collapse as theory

_LOSS = decoder.loss_fn(jnp.tanh, residual=False)
_MATRICES = ("w_1", "w_2", "w_v", "w_q", "w_k")


def _weight(name: str, measure: Callable) -> Callable:
    """The observable `measure` of a matrix of the layer, without the axis of heads."""

    def observable(params, data):
        del data
        weight = params["layers"][0][name]
        return measure(weight.reshape(weight.shape[-2:]))

    return observable


# Built once: the solver compiles per function object.
_SMALL = {f"{weight}_{name}": _weight(weight, measure) for weight in _MATRICES for name, measure in SPECTRUM.items()}
_WEIGHTS = {name: _weight(name, entries) for name in _MATRICES}


@dataclass(frozen=True)
class AnchorTask:
    """A decoder learns what an anchor token asks for: condensation, collapse of queries and keys, rank rising again."""

    reference: ClassVar[str] = "arXiv:2510.06954"

    num_samples: int = 100
    """Number of sequences."""
    length: int = 4
    """Tokens of a sequence; 10 in the paper."""
    num_anchors: int = 4
    """Tokens that say what to do with the next one."""
    num_keys: int = 8
    """Tokens that it is done with; 96 in the paper."""
    d_model: int = 12
    """Width of the embedding, of queries and of keys; 640 in the paper."""
    d_mlp: int = 48
    """Width of the MLP."""
    init_scale: float = 1e-4
    """Standard deviation ε of every trained parameter at t = 0."""
    seed: int = 1
    """Seed of the sequences, of the embedding and the output, and of the initialization."""
    t1: float = 2300.0
    """End of the flow, in gradient-flow time. The origin is left after a time of order 1/ε."""
    solver: str = "auto"
    """Solver: auto, or another name in thetadot.solvers.SOLVERS."""
    rtol: float = 1e-5
    """Relative tolerance of the solver."""

    def setup(self) -> Setup:
        """Draw sequences, fixed matrices and initialization and collect what the solver needs."""
        check_sizes(num_samples=self.num_samples, d_model=self.d_model, d_mlp=self.d_mlp)
        check_scale(self.init_scale)
        check_numbers(self.d_model * (3 * self.d_model + 2 * self.d_mlp), self.num_samples * self.length)
        key_task, key_embedding, key_output, key_init = jr.split(jr.key(self.seed), 4)
        task = data.anchor_task(self.num_samples, self.length, self.num_anchors, self.num_keys, key=key_task)
        vocab_size, m = self.num_anchors + self.num_keys + 2, self.d_model
        ends = {
            "embedding": jr.normal(key_embedding, (vocab_size, m)),
            "output": jr.normal(key_output, (m, vocab_size)),
        }
        sequences = {"tokens": task["tokens"], "targets": task["targets"]} | ends
        shapes = dict.fromkeys(("w_q", "w_k", "w_v"), (1, m, m)) | {"w_1": (m, self.d_mlp), "w_2": (self.d_mlp, m)}
        template = {"layers": [{name: jax.ShapeDtypeStruct(shape, float) for name, shape in shapes.items()}]}
        params0 = inits.gaussian(template, self.init_scale, key=key_init)
        recorded = _SMALL | (_WEIGHTS if m * (3 * m + 2 * self.d_mlp) <= RECORD_LIMIT else {})
        problem = Problem(_LOSS, sequences, {"query-key balance": decoder.query_key_balance})
        signal = np.linalg.svd(theory.anchor_signal(sequences), compute_uv=False)
        notes = {"signal_singular_values": signal.tolist()}
        return Setup(problem, params0, recorded, {"origin": float(np.log(vocab_size))}, (), notes)
