"""Closed forms for "From Condensation to Rank Collapse" (arXiv 2510.06954).

The model is `thetadot.models.attention_classifier` on data `{"x": (N, s, m), "y": (N,)}`. Notation: ε the initial
scale, ℓ the loss of a margin, σ the activation, x̄_i = (1/s) Σ_j x_ij the pooled features, and

    s̄ = (1/N) Σ_i y_i x̄_i,        v = s̄/|s̄|.

**Stage 1, condensation (Eqs. 5-7).** While the parameters θ = ε θ̄ are small, the attention is uniform and the loss is
`ℓ(0) + ℓ'(0) σ'(0) s̄ W_V W_1 w_2` up to higher orders: with `t̄ = ε |ℓ'(0)| σ'(0) |s̄| t`,

    dθ̄/dt̄ = ∇(v W̄_V W̄_1 w̄_2),        W_Q and W_K at rest,

the flow of `thetadot.models.trilinear` in a = W̄_V^T v, B = W̄_1, c = w̄_2. It blows up at a finite T̄*, so that the
full flow leaves the origin at t ≈ T̄*/(ε |ℓ'(0)| |s̄|): as 1/ε, not as log(1/ε). What is neglected at a fixed t̄ < T̄* is
O(ε²), the attention's departure from uniform (derived; the paper's O(ε) is an upper bound).

**Stage 2, collapse (Eqs. 13-15).** With g(p) = σ(p W_V W_1) w_2 and queries and keys still small, the loss is linear in
W_Q W_K^T, with the matrix -F of `key_query_matrix`: `dW_Q/dt = F W_K, dW_K/dt = F^T W_Q`. For σ(z) = z the vector
∇g = w = W_V W_1 w_2 is the same for all tokens, as in Eq. 15; other activations are derived here.

**Slips in the paper that are coded right here.** Eq. 5 has a factor 1/2 that Eqs. 6-7 do not have: there is none. The
first term of L_{2,i} in the main text lacks the 1/s that App. A.3 has: F has it. In A.5, the projected queries that the
proof needs are W̃_Q = U^T W_Q.
"""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Float

from thetadot._types import Data, NamedParams, Scalar
from thetadot.data import is_separable
from thetadot.models.attention_classifier import Activation, MarginLoss, exponential, identity, outer_network


def pooled_features(data: Data) -> Float[Array, "N m"]:
    """`x̄_i = (1/s) Σ_j x_ij`, what uniform attention reads of each sequence."""
    return jnp.mean(data["x"], axis=1)


def pooled_signal(data: Data) -> Float[Array, " m"]:
    """`s̄ = (1/N) Σ_i y_i x̄_i`; its direction is v of Eq. 6, its norm the rate of the effective dynamics."""
    return jnp.mean(data["y"][:, None] * pooled_features(data), axis=0)


def effective_rate(data: Data, init_scale: ArrayLike, margin_loss: MarginLoss = exponential) -> Scalar:
    """`t̄/t = ε |ℓ'(0)| |s̄|` (Eq. 6, for any activation with σ'(0) = 1)."""
    slope = jnp.abs(jax.grad(margin_loss)(jnp.zeros((), data["x"].dtype)))
    return jnp.asarray(init_scale, data["x"].dtype) * slope * jnp.linalg.norm(pooled_signal(data))


def escape_time(
    blow_up_time: ArrayLike, data: Data, init_scale: ArrayLike, margin_loss: MarginLoss = exponential
) -> Scalar:
    """`T̄*/(ε |ℓ'(0)| |s̄|)`, when the flow leaves the origin, up to a time of order one (derived).

    Args:
        blow_up_time: T̄* of the effective dynamics from the normalized start θ(0)/ε.
        data: The sequences and labels.
        init_scale: ε.
        margin_loss: ℓ.
    """
    return jnp.asarray(blow_up_time, data["x"].dtype) / effective_rate(data, init_scale, margin_loss)


def effective_start(params: NamedParams, data: Data, init_scale: ArrayLike) -> dict[str, Float[Array, "..."]]:
    """θ̄ as the effective dynamics sees it, `{"a": W_V^T v, "b": W_1, "c": w_2}/ε`: as `models.trilinear` takes it."""
    signal, scale = pooled_signal(data), jnp.asarray(init_scale, data["x"].dtype)
    direction = signal / jnp.linalg.norm(signal)
    return {"a": (params["w_v"].T @ direction) / scale, "b": params["w_1"] / scale, "c": params["w_2"] / scale}


def effective_params(
    outer: NamedParams, params0: NamedParams, data: Data, init_scale: ArrayLike
) -> dict[str, Float[Array, "..."]]:
    """θ of the full model where the effective dynamics is at `outer` = {a, B, c}, from the start `params0` (Eq. 7).

    W_Q, W_K and the part of W_V that is orthogonal to v stay what they were.
    """
    signal, scale = pooled_signal(data), jnp.asarray(init_scale, data["x"].dtype)
    direction = signal / jnp.linalg.norm(signal)
    moved = scale * outer["a"] - params0["w_v"].T @ direction
    w_v = params0["w_v"] + direction[:, None] * moved[None, :]
    return {**params0, "w_v": w_v, "w_1": scale * outer["b"], "w_2": scale * outer["c"]}


@partial(jax.jit, static_argnames=("activation", "margin_loss"))
def key_query_matrix(
    params: NamedParams, data: Data, activation: Activation = identity, margin_loss: MarginLoss = exponential
) -> Float[Array, "m m"]:
    """`F = -∂L/∂(W_Q W_K^T)` at W_Q = W_K = 0 (Eq. 15), which moves queries and keys in stage 2.

    `F = -(1/(N s sqrt(m))) Σ_i ℓ'(y_i g_i) y_i x_is^T Σ_j (∇g_i·x_ij) (x_ij - x̄_i)` with g_i = g(x̄_i). For the
    exponential loss -ℓ' is L_{1,i}, and for the linear activation ∇g_i = W_V W_1 w_2.

    Args:
        params: W_V, W_1 and w_2 are read.
        data: The sequences and labels.
        activation: σ; linear in the paper.
        margin_loss: ℓ; exponential in the paper.
    """
    x, y, pooled = data["x"], data["y"], pooled_features(data)

    def output(read: Float[Array, " m"]) -> Scalar:
        return outer_network(params, read[None, :], activation)[0]

    outputs, gradients = jax.vmap(jax.value_and_grad(output))(pooled)
    slopes = -y * jax.vmap(jax.grad(margin_loss))(y * outputs)
    moments = jnp.einsum("ij,ijb->ib", jnp.einsum("ia,ija->ij", gradients, x), x - pooled[:, None, :])
    num, length, d_model = x.shape
    return jnp.einsum("i,ia,ib->ab", slopes, x[:, -1], moments) / (num * length * jnp.sqrt(float(d_model)))


def key_query_flow(
    t: ArrayLike, matrix: Float[Array, "m m"], w_q: Float[Array, "m m"], w_k: Float[Array, "m m"]
) -> tuple[Float[Array, "m m"], Float[Array, "m m"]]:
    """W_Q(t) and W_K(t) of `dW_Q/dt = F W_K, dW_K/dt = F^T W_Q` from their values at t = 0 (derived).

    With F = U S V^T: `U^T W_Q(t) = cosh(S t) U^T W_Q(0) + sinh(S t) V^T W_K(0)`, and V^T W_K with the roles exchanged.
    For large t both are rank one, `½ e^{s_1 t} u_1 r` and `½ e^{s_1 t} v_1 r` with the same row
    `r = u_1^T W_Q(0) + v_1^T W_K(0)` (Thm 3), and the stable ranks fall to 1 as e^{-2(s_1 - s_2)t}.
    """
    u, s, vt = jnp.linalg.svd(matrix)
    queries, keys = u.T @ w_q, vt @ w_k
    grow, mix = (fn(s * jnp.asarray(t, s.dtype))[:, None] for fn in (jnp.cosh, jnp.sinh))
    return u @ (grow * queries + mix * keys), vt.T @ (grow * keys + mix * queries)


def collapse_exponent(matrix: Float[Array, "m m"]) -> Scalar:
    """`2 (1 - s_2/s_1)` of F: `min sr(W_Q) - 1 ∝ ε^that`, as stage 2 lasts log(1/ε)/s_1 (derived)."""
    s = jnp.linalg.svd(matrix, compute_uv=False)
    return 2 * (1 - s[1] / s[0])


def pooled_minimum(data: Data, margin_loss: MarginLoss = exponential) -> Float[Array, " m"]:
    """The w that minimizes `(1/N) Σ_i ℓ(y_i w·x̄_i)`: where the outer parameters rest in stage 2 (derived).

    Raises:
        ValueError: The pooled features are linearly separable, so that there is no minimum: the outer parameters never
            rest and F falls like 1/t.
    """
    from scipy.optimize import root  # here, for a quick import of the package

    features = pooled_features(data)
    if is_separable(features, data["y"]):
        raise ValueError(
            "`pooled_minimum(data)` needs pooled features that no hyperplane separates: give more sequences, or labels "
            "that depend on more than the mean (`labeled_sequences(focus=...)`)."
        )
    signed = jnp.asarray(data["y"])[:, None] * features
    found = root(_slope, np.zeros(signed.shape[1]), (signed, margin_loss), jac=_curvature, tol=1e-13)
    return jnp.asarray(found.x)


def quasi_stationary(data: Data, margin_loss: MarginLoss = exponential) -> dict[str, Float[Array, "..."]]:
    """The condensed, balanced outer parameters at which stage 2 begins for σ(z) = z, with W_Q = W_K = 0 (derived).

    `W_V = g ŵ e_1^T`, `W_1 = g e_1 e_1^T`, `w_2 = g e_1` with w from `pooled_minimum` and g = |w|^{1/3}: a critical
    point of the loss, from which only queries and keys can lead away. Rotations of e_1 give the other such points.
    """
    w = pooled_minimum(data, margin_loss)
    norm = jnp.linalg.norm(w)
    e_1 = jnp.zeros_like(w).at[0].set(1.0)
    zero, g = jnp.zeros((w.size, w.size), w.dtype), jnp.cbrt(norm)
    return {
        "w_q": zero,
        "w_k": zero,
        "w_v": g * (w / norm)[:, None] * e_1[None, :],
        "w_1": g * e_1[:, None] * e_1[None, :],
        "w_2": g * e_1,
    }


def _pooled_loss(w: Float[Array, " m"], signed: Float[Array, "N m"], margin_loss: MarginLoss) -> Scalar:
    return jnp.mean(margin_loss(signed @ w))


_slope = jax.jit(jax.grad(_pooled_loss), static_argnums=2)
_curvature = jax.jit(jax.hessian(_pooled_loss), static_argnums=2)
