"""The flows of the benchmarks: each a problem, a start, an end and the loss levels whose crossings are its escapes."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax.numpy as jnp
import jax.random as jr
import numpy as np

import thetadot as td
from thetadot.models import attention, linear, two_layer


@dataclass(frozen=True)
class Flow:
    """A benchmark flow.

    Attributes:
        title: what it is, for tables and figures.
        init_scale: ε, the standard deviation of the parameters at t = 0.
        levels: losses whose crossings count as escapes, in the order in which the flow meets them.
        rank: dimension of the deflated space when the "deflated" solver is asked for by name: the number of
            outlying eigenvalues of its Hessian, rounded up to a power of two.
        loss: which of the losses in `_torch.py` is this one.
    """

    title: str
    problem: td.Problem
    params0: Any
    t1: float
    init_scale: float
    levels: tuple[float, ...]
    rank: int
    loss: str

    @property
    def crossings(self) -> dict[str, tuple[str, float]]:
        """The levels as `td.gradient_flow` takes them, one letter each."""
        return {chr(ord("a") + i): ("loss", level) for i, level in enumerate(self.levels)}

    @property
    def num_params(self) -> int:
        """P."""
        leaves = self.params0.values() if isinstance(self.params0, dict) else self.params0
        return sum(leaf.size for leaf in leaves)


def trace_a(init_scale: float, t1: float | None = None) -> Flow:
    """Deep linear, three layers of 10×10, target singular values 4, 2, 1; P = 300. Its plateaus last ∝ 1/ε.

    The last escape comes at 0.39/ε and the loss is below 1e-20 soon after; T = 4/ε by default, so a solver that does
    not see that the flow has ended spends nine tenths of its time at rest. `t1` cuts that off.
    """

    def orthogonal(seed):
        return jnp.linalg.qr(jr.normal(jr.key(seed), (10, 10)))[0]

    target = orthogonal(0) @ jnp.diag(jnp.array([4.0, 2.0, 1.0] + 7 * [0.0])) @ orthogonal(1).T
    params0 = [init_scale * jr.normal(jr.key(10 + i), (10, 10)) for i in range(3)]
    return Flow(
        title=f"three-layer linear, ε = {init_scale:g}" + ("" if t1 is None else f", cut at T = {t1:g}"),
        problem=td.Problem(linear.factorization_loss, {"target": target}),
        params0=params0,
        t1=4 / init_scale if t1 is None else t1,
        init_scale=init_scale,
        levels=(9.0, 2.0, 0.4),
        rank=64,
        loss="factorization",
    )


def trace_b(init_scale: float = 1e-3) -> Flow:
    """Population attention flow, π = (.75, .19, .05, .01), λ = .5, m = h = 8; P = 192."""
    law = jnp.array([0.75, 0.19, 0.05, 0.01])
    data = {"stationary": law, "transition": td.data.persistent_chain(law, 0.5)}
    return Flow(
        title=f"attention, four tokens, ε = {init_scale:g}",
        problem=td.Problem(attention.population_loss, data),
        params0=td.inits.attention_params(4, 8, 8, init_scale, key=jr.key(0)),
        t1=6000.0,
        init_scale=init_scale,
        levels=(1.2, 0.70, 0.62, 0.59, 0.565),
        rank=8,
        loss="attention",
    )


def tanh_students(init_scale: float = 1e-3) -> Flow:
    """Fifty tanh neurons learn four orthogonal ones, a = (1, −1, 1, −1), ‖w‖ = 5, with a constant input; P = 300.

    Its plateaus lie at 1.75, 0.394 and 0.254, and the last descent is slow.
    """
    x = jr.normal(jr.key(1), (200, 5)).at[:, -1].set(1.0)
    teacher = {
        "a": jnp.array([1.0, -1.0, 1.0, -1.0]),
        "w": td.data.orthogonal_target(jnp.full(4, 5.0), (4, 5), key=jr.key(2)),
    }
    data = {"x": x, "y": two_layer.network(teacher, x, jnp.tanh)}
    return Flow(
        title=f"two-layer tanh, ε = {init_scale:g}",
        problem=td.Problem(two_layer.loss_fn(jnp.tanh), data),
        params0=td.inits.two_layer_params(50, 5, init_scale, key=jr.key(2)),
        t1=2000.0,
        init_scale=init_scale,
        levels=(0.8, 0.32, 0.12, 0.03),
        rank=8,
        loss="tanh",
    )


def words(text: str, vocab_size: int = 64, init_scale: float = 1e-3) -> Flow:
    """Bigrams of a text, m = h = 16; P = 2 560 for 64 words.

    The levels are shares of what the first-order statistics leave to learn, between log d and the entropy rate h:
    halfway to the entropy H(π) of the words, and two further down, which fit the escapes of WikiText-2 at 64 words.
    A level that the flow does not reach is left out by the benchmark.
    """
    data = td.data.read_corpus(text, vocab_size).data
    law, transition = np.asarray(data["stationary"]), np.asarray(data["transition"])
    unigram = -float(law @ np.log(law))
    rate = -float(np.sum(law[:, None] * transition * np.log(transition)))
    shares = (0.12, 0.1895)
    levels = ((np.log(vocab_size) + unigram) / 2, *(unigram - share * (unigram - rate) for share in shares))
    return Flow(
        title=f"{vocab_size} words of a text, ε = {init_scale:g}",
        problem=td.Problem(attention.population_loss, data),
        params0=td.inits.attention_params(vocab_size, 16, 16, init_scale, key=jr.key(0)),
        t1=3000.0,
        init_scale=init_scale,
        levels=tuple(float(level) for level in levels),
        rank=8,
        loss="attention",
    )


def flows(text: str | None) -> dict[str, Callable[[], Flow]]:
    """The flows of the work–precision benchmark, by short name; "words" only where there is a text."""
    named: dict[str, Callable[[], Flow]] = {
        "A": partial(trace_a, 1e-4),
        "A-cut": partial(trace_a, 1e-4, 4000.0),
        "B": trace_b,
        "tanh": tanh_students,
    }
    return named | ({"words": partial(words, text)} if text else {})
