"""The flows of `first_answer.py`: losses in JAX, draws in NumPy; making one compiles nothing and imports no solver.

Losses are written as their users would write them. Traces A and B are those of `_flows.py` with other draws.
"""

from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from itertools import pairwise
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np


@dataclass(frozen=True)
class Flow:
    """One flow: `loss(params, data)` from `params0` to `t1`; its escapes are where the loss falls to `levels`."""

    loss: Callable
    data: Any
    params0: Any
    t1: float
    init_scale: float
    levels: tuple[float, ...]
    known: tuple[float, ...] = ()  # the escape times of a tight solution, where there is one already

    @property
    def num_params(self) -> int:
        """P."""
        return sum(np.size(leaf) for leaf in jax.tree.leaves(self.params0))


def _normal(seed: int, scale: float, shapes):
    """Arrays of normal numbers of these shapes, a list or a dictionary of them."""
    rng = np.random.default_rng(seed)
    if isinstance(shapes, dict):
        return {name: scale * rng.standard_normal(shape) for name, shape in shapes.items()}
    return [scale * rng.standard_normal(shape) for shape in shapes]


def two_layer_linear() -> Flow:
    """The README's network."""

    def loss(params, data):
        return 0.5 * jnp.sum((params["w_2"] @ params["w_1"] - data) ** 2)

    params0 = _normal(0, 1e-6, {"w_1": (3, 3), "w_2": (3, 3)})
    return Flow(loss, np.diag([3.0, 1.0, 0.3]), params0, 100.0, 1e-6, (2.5, 0.3, 0.02))


def attention(law, repeats: float, sizes: tuple[int, int], scale: float, t1: float, levels) -> Flow:
    """One-layer attention on a Markov chain that repeats a token with probability `repeats`, in infinite context."""

    def loss(params, data):
        w_0, w_1, w_q, w_k = params
        law, transition = data
        weights = jax.nn.softmax(w_0 @ w_q @ w_k.T @ w_0.T + jnp.log(law), axis=-1)
        return -jnp.sum(law[:, None] * transition * jax.nn.log_softmax(weights @ w_0 @ w_1))

    law = np.array(law)
    width, head = sizes
    params0 = _normal(11, scale, [(4, width), (width, 4), (width, head), (width, head)])
    return Flow(loss, (law, repeats * np.eye(4) + (1 - repeats) * law), params0, t1, scale, levels)


def linear(strengths, size: int, depth: int, scale: float, t1: float, levels) -> Flow:
    """A deep linear network of square layers that learns modes of these strengths one after the other."""

    def loss(layers, target):
        w = layers[0]
        for layer in layers[1:]:
            w = layer @ w
        return 0.5 * jnp.sum((w - target) ** 2)

    left, right = (np.linalg.qr(np.random.default_rng(seed).standard_normal((size, size)))[0] for seed in (0, 1))
    target = left[:, : len(strengths)] * np.array(strengths) @ right[:, : len(strengths)].T
    return Flow(loss, target, _normal(10, scale, depth * [(size, size)]), t1, scale, levels)


def ten_modes() -> Flow:
    """Ten modes from ε = 1e-15, two layers of 10 × 10; the levels lie halfway between its eleven plateaus."""
    strengths = [5.0 * 0.8**k for k in range(10)]
    plateaus = [0.5 * sum(s * s for s in strengths[k:]) for k in range(11)]
    levels = tuple((a + b) / 2 for a, b in pairwise(plateaus))
    return linear(strengths, 10, 2, 1e-15, 100.0, levels)


def in_context() -> Flow:
    """Linear attention that learns regression in context: D = 4, N = 31, five heads of rank one; four drops."""

    def loss(params, data):
        cov, num = data
        w = jnp.einsum("h,hi,hj->ij", params["v"], params["k"], params["q"])
        spread = (1 + 1 / num) * (cov @ cov) + jnp.trace(cov) / num * cov
        return 0.5 * (jnp.trace(cov) - 2 * jnp.trace(cov @ w @ cov) + jnp.trace(cov @ w.T @ spread @ w))

    params0 = _normal(3, 1e-2, {"v": 5, "k": (5, 4), "q": (5, 4)})
    return Flow(loss, (np.diag([0.4, 0.3, 0.2, 0.1]), 31.0), params0, 3e4, 1e-2, (0.4, 0.25, 0.15, 0.085))


def tanh_network(width: int, scale: float = 1e-3) -> Flow:
    """One input and a constant, `width` tanh neurons, a sine with a trend; P = 3 · width."""

    def loss(params, data):
        return 0.5 * jnp.mean((jnp.tanh(data[0] @ params["a"]) @ params["b"] - data[1]) ** 2)

    x = np.linspace(-1, 1, 24)[:, None]
    data = (np.concatenate([x, np.ones_like(x)], 1), np.sin(3 * x) - 0.5 * x)
    return Flow(loss, data, _normal(11, scale, {"a": (2, width), "b": (width, 1)}), 2000.0, scale, (0.1,))


def decoder(num_layers: int) -> Flow:
    """A decoder of 16 tokens that copies the token two places back, modulo eight, from 48 sequences of six."""
    vocab, length, width, heads, scale = 16, 6, 16, 2, 0.05

    def loss(params, data):
        tokens, targets = data
        x = params["embedding"][tokens] + params["position"]
        for layer in params["layers"]:
            q, k, v = (jnp.einsum("nsd,hde->nhse", x, layer[name]) for name in ("q", "k", "v"))
            scores = jnp.einsum("nhse,nhte->nhst", q, k) / q.shape[-1] ** 0.5
            scores = jnp.where(jnp.tril(jnp.ones((length, length), bool)), scores, -jnp.inf)
            x = x + jnp.einsum("nhst,nhte,hed->nsd", jax.nn.softmax(scores, -1), v, layer["o"])
            x = x + jax.nn.gelu(x @ layer["up"]) @ layer["down"]
        log_p = jax.nn.log_softmax(x[:, -1] @ params["output"])
        return -jnp.mean(jnp.take_along_axis(log_p, targets[:, None], axis=1))

    inward, outward = (heads, width, width // heads), (heads, width // heads, width)
    block = {"q": inward, "k": inward, "v": inward, "o": outward, "up": (width, 2 * width), "down": (2 * width, width)}
    params0 = _normal(5, scale, {"embedding": (vocab, width), "position": (length, width), "output": (width, vocab)})
    params0["layers"] = [_normal(6 + i, scale, block) for i in range(num_layers)]
    tokens = np.random.default_rng(4).integers(vocab, size=(48, length))
    return Flow(loss, (tokens, tokens[:, -3] % 8), params0, 60.0, scale, (2.0, 1.5))


DIGITS = "digits" if find_spec("sklearn") else "blobs"


def images() -> Flow:
    """A ReLU network 64-16-10 on 200 images of 8 × 8, over its first descent, where it meets few kinks.

    The images are the digits of scikit-learn, or ten noisy classes where that is not installed.
    """

    def loss(params, data):
        hidden = jax.nn.relu(data[0] @ params["w_1"] + params["b_1"])
        log_p = jax.nn.log_softmax(hidden @ params["w_2"] + params["b_2"])
        return -jnp.mean(jnp.take_along_axis(log_p, data[1][:, None], axis=1))

    if DIGITS == "digits":
        from sklearn.datasets import load_digits  # pyright: ignore[reportMissingImports]

        data = load_digits()
        pixels, classes = data.data[:200] / 16.0, data.target[:200]
    else:
        rng, classes = np.random.default_rng(0), np.arange(200) % 10
        pixels = np.clip(rng.uniform(size=(10, 64))[classes] + 0.3 * rng.standard_normal((200, 64)), 0, 1)
    params0 = _normal(7, 0.15, {"w_1": (64, 16), "w_2": (16, 10)}) | {"b_1": np.zeros(16), "b_2": np.zeros(10)}
    return Flow(loss, (pixels, classes), params0, 8.0, 0.15, (2.0, 1.5))


FLOWS: dict[str, Callable[[], list[Flow]]] = {
    "two-layer linear": lambda: [two_layer_linear()],
    "in context": lambda: [in_context()],
    "tanh": lambda: [tanh_network(24)],
    "attention": lambda: [attention((0.65, 0.2, 0.1, 0.05), 0.45, (7, 6), 1e-4, 3000.0, (1.2, 0.8))],
    "trace B": lambda: [attention((0.75, 0.19, 0.05, 0.01), 0.5, (8, 8), 1e-3, 6000.0, (1.2, 0.70, 0.62, 0.59, 0.565))],
    "ten modes": lambda: [ten_modes()],
    "three layers": lambda: [linear((4.0, 2.5, 1.0), 9, 3, 1e-3, 8000.0, (9.0, 3.0, 0.4))],
    "trace A": lambda: [linear((4.0, 2.0, 1.0), 10, 3, 1e-4, 4e4, (9.0, 2.0, 0.4))],
    DIGITS: lambda: [images()],
    "decoder 1": lambda: [decoder(1)],
    "decoder 2": lambda: [decoder(2)],
    "twelve widths": lambda: [tanh_network(width) for width in range(4, 16)],
}
"""Name -> its flows, solved one after the other in one process: one flow everywhere but for the widths."""
