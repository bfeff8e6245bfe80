"""Linear attention that learns linear regression in context (arXiv 2501.16265).

A prompt holds N examples `(x_n, y_n = w·x_n)` and a query x_q, with `x ~ N(0, Λ)` and a new task `w ~ N(0, I)` in each
prompt. With the blocks that a zero start keeps at zero left out, attention answers `ŷ = β^T W x_q`, where
`β = (1/N) Σ_n y_n x_n` and the in-context map W (D, D) is a sum over H heads:

    merged key-query:    W = Σ_h v_h U_h             parameters {"v": (H,), "u": (H, D, D)}
    separate, rank R:    W = Σ_h v_h K_h^T Q_h       parameters {"v": (H,), "k": (H, R, D), "q": (H, R, D)}
"""

import jax.numpy as jnp
from jaxtyping import Array, Float

from thetadot._types import Data, NamedParams, Scalar


def merged_map(params: NamedParams, data: Data | None = None) -> Float[Array, "D D"]:
    """`W = Σ_h v_h U_h`."""
    del data
    return jnp.einsum("h,hij->ij", params["v"], params["u"])


def separate_map(params: NamedParams, data: Data | None = None) -> Float[Array, "D D"]:
    """`W = Σ_h v_h K_h^T Q_h`, heads of rank R."""
    del data
    return jnp.einsum("h,hri,hrj->ij", params["v"], params["k"], params["q"])


def merged_loss(params: NamedParams, data: Data) -> Scalar:
    """The population loss of merged key-query attention; see `map_loss`."""
    return map_loss(merged_map(params), data)


def separate_loss(params: NamedParams, data: Data) -> Scalar:
    """The population loss of attention with separate keys and queries; see `map_loss`."""
    return map_loss(separate_map(params), data)


def map_loss(w: Float[Array, "D D"], data: Data) -> Scalar:
    """`L = ½ E (y_q - ŷ)² = ½ [tr Λ - 2 tr(Λ W Λ) + tr(Λ W^T S W)]`, with `S = E[Λ̂²]`, over prompts (derived).

    Since `β = Λ̂ w` with the sample covariance `Λ̂ = (1/N) Σ_n x_n x_n^T`, the error is `w^T (I - Λ̂ W) x_q`, and all that
    is needed of Λ̂ are its Gaussian moments `E[Λ̂] = Λ` and `E[Λ̂²] = (1 + 1/N) Λ² + (tr Λ / N) Λ`. Half of the paper's
    loss, so that its flow `dW/dt = -½ ∂L/∂W` (τ = 1) is θ̇ = -∇L here.

    Args:
        w: The in-context map W.
        data: `{"input_cov": Λ (D, D), "num_examples": N as a float}`.

    Reference:
        Zhang, Singh, Latham & Saxe 2025, arXiv 2501.16265.
    """
    cov = data["input_cov"]
    spread = second_moment(data)
    quadratic = jnp.trace(cov @ w.T @ spread @ w)
    return 0.5 * (jnp.trace(cov) - 2 * jnp.trace(cov @ w @ cov) + quadratic)


def second_moment(data: Data) -> Float[Array, "D D"]:
    """`E[Λ̂²] = (1 + 1/N) Λ² + (tr Λ / N) Λ` of the covariance of N Gaussian samples (standard)."""
    cov, num = data["input_cov"], data["num_examples"]
    return (1 + 1 / num) * (cov @ cov) + jnp.trace(cov) / num * cov


def merged_balance(params: NamedParams, data: Data | None = None) -> Float[Array, " H"]:
    """`v_h² - ‖U_h‖_F²`, conserved for every loss of the map W alone (derived)."""
    del data
    return jnp.square(params["v"]) - jnp.sum(jnp.square(params["u"]), axis=(1, 2))


def separate_balance(params: NamedParams, data: Data | None = None) -> Float[Array, " K"]:
    """`K_h K_h^T - Q_h Q_h^T` and `v_h² - ‖K_h‖_F²` of all heads in one vector, conserved likewise (derived)."""
    del data
    v, k, q = params["v"], params["k"], params["q"]
    keys, queries = (jnp.einsum("hri,hsi->hrs", x, x) for x in (k, q))
    return jnp.concatenate([(keys - queries).ravel(), jnp.square(v) - jnp.sum(jnp.square(k), axis=(1, 2))])
