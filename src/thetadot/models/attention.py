"""One-layer attention that predicts the next token of a Markov chain, in the limit of long contexts and for samples.

The network of "Focus and Dilution: The Multi-stage Learning Process of Attention" (arXiv 2605.01199): one layer, one
head, no value matrix, no normalization. On a one-hot context X (s×d) it returns, at the last position,

    f(X) = softmax(X W_0 W_Q W_K^T W_0^T X^T) X W_0 W_1.

Parameters are `{"w_0": (d, m), "w_1": (m, d), "w_q": (m, h), "w_k": (m, h)}` and enter only through the two composites
`M = W_0 W_1` and `Φ = W_0 W_Q W_K^T W_0^T` (both d×d).

Whether the published model divides Φ by sqrt(m) is not known to us; `logit_scale` multiplies Φ in every function that
uses it, 1 by default.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from thetadot._types import Data, NamedParams, Scalar


def composite(params: NamedParams) -> dict[str, Float[Array, "d d"]]:
    """The two matrices through which the parameters act: `{"m": W_0 W_1, "phi": W_0 W_Q W_K^T W_0^T}`."""
    w_0 = params["w_0"]
    return {"m": w_0 @ params["w_1"], "phi": (w_0 @ params["w_q"]) @ (w_0 @ params["w_k"]).T}


def attention(params: NamedParams, data: Data, logit_scale: float = 1.0) -> Float[Array, "d d"]:
    """Attention by token type in an infinite context: `A_ij = π_j e^{Φ_ij} / Σ_k π_k e^{Φ_ik}`.

    Row i is the law of the token that a query of type i reads. At Φ = 0 every row is the stationary law π.

    Args:
        params: The four weight matrices.
        data: `{"stationary": (d,)}` is read; `"transition"` may be there.
        logit_scale: Factor on Φ.
    """
    phi = composite(params)["phi"]
    return _attention(logit_scale * phi, data["stationary"])


def population_loss(params: NamedParams, data: Data, logit_scale: float = 1.0) -> Scalar:
    """Cross-entropy of the next token in the limit of infinitely many, infinitely long contexts.

    `L = -Σ_i π_i Σ_j P_ij log p_ij` with `p_i = softmax(A_i M)` and A from `attention`. In nats per token, a mean over
    tokens. Any stationary law π and any row-stochastic P may be given; zeros in P are fine. One unit of time of the
    flow is one unit of this loss's gradient.

    Args:
        params: The four weight matrices.
        data: `{"stationary": π (d,), "transition": P (d, d)}`.
        logit_scale: Factor on Φ.

    Reference:
        arXiv 2605.01199, the limit (N, s) → ∞ of its loss.
    """
    return _cross_entropy(_read(attention(params, data, logit_scale), params), data)


def composite_loss(m: Float[Array, "d d"], phi: Float[Array, "d d"], data: Data, logit_scale: float = 1.0) -> Scalar:
    """`population_loss` as a function of the composites M and Φ.

    Its gradients are `∂L/∂M = Σ_i π_i A_i^T (p_i - P_i)` and `∂L/∂Φ_ij = π_i A_ij (e_j - A_i) M (p_i - P_i)^T`.
    """
    return _cross_entropy(_attention(logit_scale * phi, data["stationary"]) @ m, data)


def embedding_balance(params: NamedParams, data: Data | None = None) -> Float[Array, "m m"]:
    """`W_0^T W_0 - W_1 W_1^T - W_Q W_Q^T - W_K W_K^T`, conserved by the gradient flow of either loss."""
    del data
    w_0, w_1, w_q, w_k = (params[name] for name in ("w_0", "w_1", "w_q", "w_k"))
    return w_0.T @ w_0 - w_1 @ w_1.T - w_q @ w_q.T - w_k @ w_k.T


def query_key_balance(params: NamedParams, data: Data | None = None) -> Float[Array, "h h"]:
    """`W_Q^T W_Q - W_K^T W_K`, conserved by the gradient flow of either loss."""
    del data
    w_q, w_k = params["w_q"], params["w_k"]
    return w_q.T @ w_q - w_k.T @ w_k


def context_counts(sequences: Int[Array, "N s"], vocab_size: int) -> Int[Array, "N d"]:
    """How often each token type occurs in each context."""
    rows = jnp.arange(sequences.shape[0])[:, None]
    return jnp.zeros((sequences.shape[0], vocab_size), sequences.dtype).at[rows, sequences].add(1)


def sampled_loss(params: NamedParams, data: Data, logit_scale: float = 1.0) -> Scalar:
    """Cross-entropy of the next token over N sampled contexts of length s, at the last position.

    `L = -(1/N) Σ_n log softmax(f(X_n))[y_n]`. A context enters only through the count of each token type and its last
    token i, which is itself part of the context: the softmax over positions puts `c_j e^{Φ_ij} / Σ_k c_k e^{Φ_ik}` on
    type j. This is `population_loss` with π replaced by the context's own frequencies, so the two agree up to
    O(1/s) + O(N^-1/2) when the contexts are stationary.

    Args:
        params: The four weight matrices.
        data: `{"sequences": int (N, s), "targets": int (N,)}`; or, counted once beforehand for speed,
            `{"counts": int (N, d), "last": int (N,), "targets": int (N,)}` as `count_data` returns.
        logit_scale: Factor on Φ.
    """
    if "counts" not in data:
        data = count_data(data["sequences"], data["targets"], params["w_0"].shape[0])
    phi = composite(params)["phi"]
    counts = data["counts"].astype(phi.dtype)
    log_p = jax.nn.log_softmax(_read(_attention(logit_scale * phi[data["last"]], counts), params))
    return -jnp.mean(jnp.take_along_axis(log_p, data["targets"][:, None], axis=1))


def count_data(
    sequences: Int[Array, "N s"], targets: Int[Array, " N"], vocab_size: int
) -> dict[str, Int[Array, "..."]]:
    """All that `sampled_loss` needs of the samples: `{"counts": (N, d), "last": (N,), "targets": (N,)}`."""
    return {"counts": context_counts(sequences, vocab_size), "last": sequences[:, -1], "targets": targets}


def _attention(phi: Float[Array, "rows d"], weights: Float[Array, "..."]) -> Float[Array, "rows d"]:
    # log(0) = -inf is right here: the token type is absent, gets weight 0, and its derivative is 0.
    log_weights = jnp.log(weights)
    return jax.nn.softmax(phi + (log_weights[None, :] if log_weights.ndim == 1 else log_weights))


def _read(attention: Float[Array, "rows d"], params: NamedParams) -> Float[Array, "rows d"]:
    """`A W_0 W_1`, multiplied in the cheaper order: with many token types M = W_0 W_1 is large and of low rank."""
    w_0, w_1 = params["w_0"], params["w_1"]
    (rows, d), m = attention.shape, w_0.shape[1]
    if 2 * rows * m < (rows + m) * d:
        return (attention @ w_0) @ w_1
    return attention @ (w_0 @ w_1)


def _cross_entropy(logits: Float[Array, "d d"], data: Data) -> Scalar:
    """`-Σ_i π_i Σ_j P_ij log softmax(logits_i)_j`."""
    return -jnp.sum(data["stationary"][:, None] * data["transition"] * jax.nn.log_softmax(logits))
