"""Closed forms for "Focus and Dilution: The Multi-stage Learning Process of Attention" (arXiv 2605.01199).

The model is `thetadot.models.attention` with the population loss. Notation: π stationary law, P transition matrix,
n = |π|, 1 the all-ones vector, * the elementwise product, and

    Λ = |log π - mean(log π)|,        V = Σ π_i³ - n⁴ = Var_π(π) ≥ 0,
    S = Σ_i π_i² [(P log π)_i - π·log π],   which is λ Cov_π(π, log π) for P = λ I + (1-λ) 1 π^T.

"Reported" marks what secondary sources state of the paper; "derived" marks what was worked out here from the model
and must not be cited as the paper's. All closed forms hold for any stationary law without zeros; those that read P
hold for any P with that law unless they say otherwise.

**Origin (derived).** Where Φ = 0 every row of A is π. At θ = 0, p = 1/d and `-∂L/∂M = Σ_i π_i π (P_i - 1/d)^T`, which
is `π (π - 1/d)^T` because π^T P = π^T: rank one and the same for every P. `∂L/∂Φ = 0` because M = 0.

**Unigram saddle (derived).** With Φ = 0 all queries predict the same p = softmax(W_1^T W_0^T π); the loss H(π) is
reached when this is π. On the ray `W_0 = γ π α^T, W_1 = α β^T` (|α| = 1) this asks γ n² β = log π - mean(log π), and
the conservation law W_0^T W_0 - W_1 W_1^T = 0 asks γ n = |β|. Hence γ² = Λ/n³ and |W_0|_F = |W_1|_F = sqrt(Λ/n).

**Focus (reported, the constant derived).** There `-∂L/∂Φ = γ x y^T`, `x = π*[(P β) - β·π]`, `y = π*(π - n²)`, so that
`dW_Q/dt = c α α^T W_K`, `dW_K/dt = c α α^T W_Q` with c = γ³ (π·x)(π·y) = γ² S V / n² = Λ S V / n⁵.

**Dilution (derived).** With `W_Q = λ_Q α α'^T, W_K = λ_K α α'^T, κ = λ_Q λ_K`, the part of W_0 off the ray π α^T
is moved only by the attention: its outer Hessian vanishes, since at Φ = 0 the loss sees W_0 through π^T W_0 alone. The
first-order terms are `κ γ² [x (y·π) + y (x·π)]` from ∂L/∂Φ and `κ γ² y (x·π)` from the change of A in ∂L/∂M.
"""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from thetadot._types import Data, NamedParams, Scalar
from thetadot.models.attention import composite, composite_loss


class Moments(NamedTuple):
    """Numbers of a law π that the closed forms share: n = |π|, Λ, V = Var_π(π) and Cov = Cov_π(π, log π)."""

    norm: Scalar
    log_spread: Scalar
    variance: Scalar
    covariance: Scalar


def moments(stationary: Float[Array, " d"]) -> Moments:
    """n, Λ, V and `Cov = Σ π_i² (log π_i - Σ_k π_k log π_k)` of a law; V and Cov vanish for the uniform law only."""
    log_law = jnp.log(stationary)
    norm = jnp.linalg.norm(stationary)
    return Moments(
        norm=norm,
        log_spread=jnp.linalg.norm(log_law - jnp.mean(log_law)),
        variance=jnp.sum(stationary * jnp.square(stationary - norm**2)),
        covariance=jnp.sum(jnp.square(stationary) * (log_law - stationary @ log_law)),
    )


def uniform_loss(d: int) -> float:
    """`log d`, the loss at θ = 0: the first plateau, in nats per token (derived)."""
    return math.log(d)


def unigram_loss(stationary: Float[Array, " d"]) -> Scalar:
    """`H(π) = -Σ π_i log π_i`, the loss at the unigram saddle: the second plateau (derived)."""
    return _entropy(stationary)


def entropy_rate(stationary: Float[Array, " d"], transition: Float[Array, "d d"]) -> Scalar:
    """`-Σ_i π_i Σ_j P_ij log P_ij`, the least loss of any predictor (standard)."""
    return _mean_entropy(stationary, transition)


def degenerate_loss(stationary: Float[Array, " d"], persistence: float) -> Scalar:
    """Loss of the degenerate critical point of a persistent chain with equally frequent low-frequency tokens (derived).

    With one frequent token of mass π_1 and a = (1-λ) π_1, the class-level bigram `p_1 = P_1`, `p_i = mean of P_i over
    the infrequent i` is a critical point, and
    `L_deg = π_1 H(P_1) + (1-π_1) [-a log a - (1-a) log((1-a)/(d-1))]`.

    Args:
        stationary: π with all entries equal but one, the largest; it may stand anywhere.
        persistence: λ of `thetadot.data.persistent_chain`.
    """
    if not _is_class_symmetric(stationary):
        raise ValueError("`degenerate_loss(stationary=...)` needs equal entries except for one larger one.")
    return _class_bigram_loss(stationary, jnp.asarray(persistence, stationary.dtype))


@jax.jit
def _class_bigram_loss(stationary: Float[Array, " d"], persistence: Scalar) -> Scalar:
    d = stationary.shape[0]
    frequent = jnp.max(stationary)
    others = (1 - frequent) / (d - 1)
    stay = persistence + (1 - persistence) * frequent
    a = (1 - persistence) * frequent
    xlogy = jax.scipy.special.xlogy
    frequent_row = -xlogy(stay, stay) - (d - 1) * xlogy((1 - persistence) * others, (1 - persistence) * others)
    infrequent_row = -xlogy(a, a) - xlogy(1 - a, (1 - a) / (d - 1))
    return frequent * frequent_row + (1 - frequent) * infrequent_row


def predicted_plateaus(stationary: Float[Array, " d"], transition: Float[Array, "d d"]) -> dict[str, float]:
    """The plateau losses that have a closed form, highest first.

    `"uniform"` log d, `"unigram"` H(π), `"class bigram"` (`degenerate_loss`; only where it applies: a persistent chain
    with λ > 0, one frequent token and at least two equally frequent others) and `"entropy rate"`. Rank-one saddles of
    asymmetric laws lie between the last ones and have none.
    """
    law = np.asarray(stationary)  # on the host: three numbers, printed with every run, are not worth a compilation
    plateaus = {
        "uniform": uniform_loss(stationary.shape[0]),
        "unigram": float(_host_entropy(law)),
    }
    persistence = _persistence(stationary, transition)
    if persistence is not None and persistence > 0 and stationary.shape[0] > 2 and _is_class_symmetric(stationary):
        plateaus["class bigram"] = float(degenerate_loss(stationary, persistence))
    plateaus["entropy rate"] = float(law @ _host_entropy(np.asarray(transition)))
    return plateaus


def condensation_rate(stationary: Float[Array, " d"]) -> Scalar:
    """`μ_1 = |π| |π - 1/d|`, growth rate of W_0 and W_1 at the origin (derived); stage I lasts (1/μ_1) log(1/ε)."""
    return jnp.linalg.norm(stationary) * jnp.linalg.norm(stationary - 1 / stationary.shape[0])


def attention_growth_rate(
    stationary: Float[Array, " d"], transition: Float[Array, "d d"], logit_scale: float = 1.0
) -> Scalar:
    """`c = Λ S V / n⁵`, the rate at the unigram saddle in dW_Q = c α α^T W_K, dW_K = c α α^T W_Q (constant derived).

    W_Q and W_K grow like e^{|c| t} and Φ/|Φ| tends to sign(c) π π^T/n². For a persistent chain `c = λ Λ Cov V / n⁵`;
    a negative λ de-focuses. `logit_scale` as in `thetadot.models.attention`; c is proportional to it.
    """
    n, log_spread, variance, _ = moments(stationary)
    return logit_scale * log_spread * _gain(stationary, transition) * variance / n**5


def stage_time_slopes(stationary: Float[Array, " d"], transition: Float[Array, "d d"]) -> tuple[Scalar, Scalar]:
    """Slopes against log(1/ε) of the times at which stages I and II end: `1/μ_1` and `1/μ_1 + 1/|c|` (derived)."""
    first = 1 / condensation_rate(stationary)
    return first, first + 1 / jnp.abs(attention_growth_rate(stationary, transition))


def unigram_saddle(stationary: Float[Array, " d"], d_model: int, d_head: int) -> dict[str, Float[Array, "_ _"]]:
    """A point of the second saddle: `W_0 = γ π α^T`, `W_1 = α β^T`, W_Q = W_K = 0, α the first unit vector (derived).

    `γ² = Λ/n³`, `β = (log π - mean(log π)) / (γ n²)`, `|W_0| = |W_1| = sqrt(Λ/n)`, loss H(π). The gradient vanishes for
    every P with stationary law π; rotations of α give the other such points.
    """
    alpha = jnp.zeros(d_model, stationary.dtype).at[0].set(1.0)
    gamma, beta = _ray(stationary)
    return {
        "w_0": gamma * stationary[:, None] * alpha[None, :],
        "w_1": alpha[:, None] * beta[None, :],
        "w_q": jnp.zeros((d_model, d_head), stationary.dtype),
        "w_k": jnp.zeros((d_model, d_head), stationary.dtype),
    }


def outer_decay_rates(stationary: Float[Array, " d"]) -> Float[Array, " d-1"]:
    """Decay rates of W_0, W_1 at the unigram saddle, smallest first (derived).

    The loss there sees W_0 and W_1 through q = W_1^T W_0^T π, with Hessian `diag π - π π^T` in q and
    `J J^T = n² (β β^T + γ² n² I)`: the rates are the nonzero eigenvalues of their product. All are positive; all other
    directions of the outer block are flat.
    """
    n = jnp.linalg.norm(stationary)
    gamma, beta = _ray(stationary)
    kernel = n**2 * (beta[:, None] * beta[None, :] + (gamma * n) ** 2 * jnp.eye(stationary.shape[0]))
    root = jnp.linalg.cholesky(kernel)
    fisher = jnp.diag(stationary) - stationary[:, None] * stationary[None, :]
    return jnp.linalg.eigvalsh(root.T @ fisher @ root)[1:]


def dilution_direction(stationary: Float[Array, " d"], transition: Float[Array, "d d"]) -> Float[Array, " d"]:
    """The embedding off the ray π per unit of κ = λ_Q λ_K, early in stage III (derived).

    Started at the unigram saddle with a small rank-one attention that grows like κ ∝ e^{2ct}, the part of
    `W_0 α` orthogonal to π is κ times
    `(γ / (2 c n²)) P_⊥π [2 S π*(π - n²) + V π*(P log π - π·log π)]`.
    It grows at the rate 2c, twice that of W_Q; frequent tokens gain.
    """
    n, _, variance, _ = moments(stationary)
    gamma, _ = _ray(stationary)
    log_law = jnp.log(stationary)
    focus = 2 * _gain(stationary, transition) * stationary * (stationary - n**2)
    spread = variance * stationary * (transition @ log_law - stationary @ log_law)
    push = gamma / (2 * attention_growth_rate(stationary, transition) * n**2) * (focus + spread)
    return push - stationary * (stationary @ push) / n**2


def transverse_matrix(params: NamedParams, data: Data) -> Float[Array, "d d+2"]:
    """`K = [∂L/∂M, λ_Q ∂L/∂Φ^T γ, λ_K ∂L/∂Φ γ]`; its singular values are rates at a rank-one point (derived).

    At `W_0 = γ α^T, W_1 = α β^T, W_Q = λ_Q α α'^T, W_K = λ_K α α'^T`, perturb by `g v^T` in W_0 and `v b^T, q v α'^T,
    k v α'^T` in W_1, W_Q, W_K, with v ⊥ α. The loss changes by `g^T K (b, k, q)` to second order: a bipartite form with
    eigenvalues ± s_i(K), each m - 1 times. A new embedding direction opens along the top left singular vector of K.

    Critical points of the flow on rank-one parameters come in curves: the predictions p_i on them agree, the attention
    does not, and s_1(K) varies by some per cent along a curve. So the rate of an escape is that of the point where the
    flow arrived. On such a curve ∂L/∂Φ = 0 and only ∂L/∂M is left of K.

    Args:
        params: A rank-one point as above; other parameters are read through their projection on α only.
        data: `{"stationary": π, "transition": P}`.
    """
    parts = composite(params)
    grad_m, grad_phi = jax.grad(composite_loss, argnums=(0, 1))(parts["m"], parts["phi"], data)
    _, _, vt = jnp.linalg.svd(params["w_0"], full_matrices=False)
    alpha = vt[0]
    gamma = params["w_0"] @ alpha
    query, key = params["w_q"].T @ alpha, params["w_k"].T @ alpha
    lambda_q, norm_k = jnp.linalg.norm(query), jnp.linalg.norm(key)
    # Their relative sign matters for α' = query/λ_Q, not for the singular values.
    lambda_k = jnp.where(query @ key < 0, -norm_k, norm_k)
    columns = [lambda_q * (grad_phi.T @ gamma), lambda_k * (grad_phi @ gamma)]
    return jnp.concatenate([grad_m, jnp.stack(columns, axis=1)], axis=1)


def _ray(stationary: Float[Array, " d"]) -> tuple[Scalar, Float[Array, " d"]]:
    """γ and β of the unigram saddle."""
    n, log_spread, _, _ = moments(stationary)
    log_law = jnp.log(stationary)
    gamma = jnp.sqrt(log_spread / n**3)
    return gamma, (log_law - jnp.mean(log_law)) / (gamma * n**2)


def _gain(stationary: Float[Array, " d"], transition: Float[Array, "d d"]) -> Scalar:
    """`S = Σ_i π_i² [(P log π)_i - π·log π]`."""
    log_law = jnp.log(stationary)
    return jnp.square(stationary) @ (transition @ log_law - stationary @ log_law)


@jax.jit
def _entropy(p: Float[Array, "*rows d"]) -> Float[Array, "*rows"]:
    return -jnp.sum(jax.scipy.special.xlogy(p, p), axis=-1)


def _host_entropy(p: Float[np.ndarray, "*rows d"]) -> Float[np.ndarray, "*rows"] | Float[np.generic, ""]:
    """As `_entropy`, in NumPy."""
    return -np.sum(np.where(p > 0, p * np.log(np.where(p > 0, p, 1)), 0), axis=-1)


@jax.jit
def _mean_entropy(stationary: Float[Array, " d"], transition: Float[Array, "d d"]) -> Scalar:
    return stationary @ _entropy(transition)


def _is_class_symmetric(stationary: Float[Array, " d"]) -> bool:
    ordered = np.sort(np.asarray(stationary))
    return bool(ordered[-2] - ordered[0] <= 1e-12) and bool(ordered[-1] - ordered[-2] > 1e-12)


def _persistence(stationary: Float[Array, " d"], transition: Float[Array, "d d"]) -> float | None:
    """λ if P = λ I + (1-λ) 1 π^T to rounding, else None."""
    d = stationary.shape[0]
    law, p = np.asarray(stationary), np.asarray(transition)
    lam = float((np.trace(p) - 1) / (d - 1))
    chain = lam * np.eye(d) + (1 - lam) * law[None, :]
    return lam if bool(np.max(np.abs(chain - p)) < 1e-12) else None
