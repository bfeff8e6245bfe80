"""One-layer attention on a Markov chain or a real text: condensation, focus, dilution, symmetry breaking."""

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import jax
import jax.random as jr
import numpy as np
from jaxtyping import Array

from thetadot import data as chains
from thetadot import inits, observables
from thetadot.experiments._setup import RECORD_LIMIT, Setup, check_numbers, check_scale, check_sizes
from thetadot.experiments._weights import SPECTRUM, entries, of_weight
from thetadot.models import attention
from thetadot.problem import Problem
from thetadot.theory import focus_dilution as theory

_STATIONARY = (0.75, 0.19, 0.05, 0.01)  # the law of the paper's synthetic experiment
_MATRICES = ("w_0", "w_1", "w_q", "w_k")


def _row_entropy(params, data):
    """Entropy of each query token's attention, in nats."""
    return observables.row_entropy(attention.attention(params, data))


_SMALL = {
    "embedding_norm": of_weight("w_0", observables.row_norms),
    "row_entropy": _row_entropy,
    **{f"{weight}_{name}": of_weight(weight, measure) for weight in _MATRICES for name, measure in SPECTRUM.items()},
}
_ATTENTION = {"attention": attention.attention}
_WEIGHTS = {name: of_weight(name, entries) for name in _MATRICES}


@dataclass(frozen=True)
class FocusDilution:
    """One-layer attention on a Markov chain or a text: condensation, focus, dilution, symmetry breaking."""

    reference: ClassVar[str] = "arXiv:2605.01199"

    stationary: tuple[float, ...] = _STATIONARY
    """Stationary law of the tokens, positive and summing to one."""
    persistence: float = 0.5
    """λ of the transition matrix λ I + (1 - λ) 1 πᵀ: 0 draws each token from π, near 1 repeats the last."""
    transition: Path | None = None
    """A .csv or .npy file with a transition matrix, used instead of --stationary and --persistence."""
    text: str | None = None
    """A UTF-8 text file (or hub:NAME, with the extra "text"): the chain of its most frequent words."""
    vocab: int = 32
    """With --text: number of tokens, the most frequent words and one that stands for all others."""
    smoothing: float = 1.0
    """With --text: imaginary bigrams a row, spread like the frequencies of the words."""
    d_model: int = 8
    """Width m of the embedding."""
    d_head: int = 8
    """Width h of queries and keys."""
    init_scale: float = 1e-3
    """Standard deviation ε of every parameter at t = 0."""
    seed: int = 0
    """Seed of the initialization."""
    t1: float = 6000.0
    """End of the flow, in gradient-flow time."""
    solver: str = "auto"
    """Solver: auto, or another name in thetadot.solvers.SOLVERS."""
    rtol: float = 1e-6
    """Relative tolerance of the solver."""

    def setup(self) -> Setup:
        """Draw the initialization and collect what the solver needs."""
        check_sizes(d_model=self.d_model, d_head=self.d_head)
        check_scale(self.init_scale)
        stationary, transition, words, notes = self._chain()
        d = len(stationary)
        check_numbers(2 * self.d_model * (d + self.d_head), d * d)
        params0 = inits.attention_params(d, self.d_model, self.d_head, self.init_scale, key=jr.key(self.seed))
        problem = Problem(
            attention.population_loss,
            {"stationary": stationary, "transition": transition},
            conserved={
                "embedding balance": attention.embedding_balance,
                "query-key balance": attention.query_key_balance,
            },
        )
        recorded = dict(_SMALL)
        if d * d <= RECORD_LIMIT:
            recorded |= _ATTENTION
        if 2 * self.d_model * (d + self.d_head) <= RECORD_LIMIT:
            recorded |= _WEIGHTS
        plateaus = theory.predicted_plateaus(stationary, transition)
        notes |= {"stationary": np.asarray(stationary).tolist()}
        return Setup(problem, params0, recorded, plateaus, words, notes)

    def _chain(self) -> tuple[Array, Array, tuple[str, ...], dict]:
        """Stationary law, transition matrix, names of the tokens, and facts about the text."""
        own_law = (self.stationary, self.persistence) != (_STATIONARY, 0.5)
        if sum([self.text is not None, self.transition is not None, own_law]) > 1:
            raise ValueError(
                "`FocusDilution(text=..., transition=..., stationary=...)`: give one source of the chain, "
                "not several of a text, a transition matrix, and a stationary law with its persistence."
            )
        if self.text is not None:
            corpus = chains.read_corpus(self.text, self.vocab, smoothing=self.smoothing)
            notes = {"text": self.text, "num_words": int(np.sum(corpus.counts)) + 1}
            return corpus.stationary, corpus.transition, corpus.words, notes
        if self.transition is not None:
            transition = jax.device_put(read_matrix(self.transition))
            stationary = chains.stationary_law(transition)
        else:
            stationary = jax.device_put(np.asarray(self.stationary, float))
            transition = chains.persistent_chain(stationary, self.persistence)
        return stationary, transition, tuple(f"token {i + 1}" for i in range(len(stationary))), {}


def read_matrix(path: Path) -> np.ndarray:
    """A matrix from a .npy file or from comma-separated text.

    Raises:
        ValueError: the file cannot be read as a matrix of numbers.
    """
    try:
        matrix = np.load(path) if path.suffix == ".npy" else np.loadtxt(path, delimiter=",", ndmin=2)
        return np.asarray(matrix, dtype=float)
    except (OSError, ValueError) as error:
        raise ValueError(
            f"`FocusDilution(transition={str(path)!r})` must be a .npy file or comma-separated numbers: {error}."
        ) from error
