"""Exact gradient flows of linear networks and of the scalar problem they decouple into.

For `L = ½ ‖W_L ... W_1 - M‖_F²` (`thetadot.models.linear`) started balanced and aligned with the singular vectors of M
(`thetadot.inits.balanced_linear`), every singular value s of M is learned on its own: the end-to-end mode u obeys

    du/dt = L u^{2-2/L} (s - u).

Time is gradient-flow time. Closed forms for L = 2: Saxe, McClelland & Ganguli 2014 (arXiv 1312.6120); the equation for
any L: Arora, Cohen & Hazan 2018 (arXiv 1802.06509); the primitive for L > 2 is derived here.
"""

import cmath
import math
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Float

from thetadot._types import Scalar


def two_layer_mode(t: ArrayLike, s: ArrayLike, u0: ArrayLike) -> Float[Array, "..."]:
    """`u(t) = s e^{2st} / (e^{2st} - 1 + s/u_0)`, one mode of a balanced two-layer network (standard).

    Args:
        t: Times; broadcast against s and u0.
        s: Singular value of the target, positive.
        u0: The mode at t = 0, positive.
    """
    t, s, u0 = (jnp.asarray(x, float) for x in (t, s, u0))
    return s / (1 + (s / u0 - 1) * jnp.exp(-2 * s * t))


def two_layer_time(u: ArrayLike, s: ArrayLike, u0: ArrayLike) -> Float[Array, "..."]:
    """Time at which `two_layer_mode` is u: `(1/2s) log[u (s - u_0) / (u_0 (s - u))]` (standard).

    Half of s is reached at `(1/2s) log(s/u_0 - 1)`.
    """
    u, s, u0 = (jnp.asarray(x, float) for x in (u, s, u0))
    return (jnp.log(u / u0) + jnp.log((s - u0) / (s - u))) / (2 * s)


def scalar_product_time(u: ArrayLike, s: ArrayLike, u0: ArrayLike, imbalance: ArrayLike) -> Float[Array, "..."]:
    """Time at which the product u = ab of two scalars is u, from any start, under `L = ½ (ab - s)²` (derived).

    With q = a² - b² conserved, `du/dt = (a² + b²)(s - u) = sqrt(4u² + q²) (s - u)`, so with R = sqrt(4s² + q²)
    `t = (1/R) [log((q² + 4su + R sqrt(4u² + q²)) / (s - u))]` between u_0 and u. At q = 0, `two_layer_time`.

    Args:
        u: Values of the product on the same side of s as u0.
        s: Target.
        u0: Product at t = 0; it may be zero or negative if q ≠ 0.
        imbalance: q = a² - b².
    """
    u, s, u0, q = (jnp.asarray(x, float) for x in (u, s, u0, imbalance))
    root = jnp.sqrt(4 * s**2 + q**2)

    def primitive(v: Array) -> Array:
        # q² + 4sv cancels for sv < 0; its product with the conjugate is (2q(s - v))², which does not.
        plus, minus = q**2 + 4 * s * v, root * jnp.sqrt(4 * v**2 + q**2)
        conjugate = jnp.square(2 * q * (s - v)) / jnp.where(plus < 0, minus - plus, 1.0)
        return jnp.log(jnp.where(plus < 0, conjugate, plus + minus)) - jnp.log(jnp.abs(s - v))

    return (primitive(u) - primitive(u0)) / root


def deep_time(u: ArrayLike, s: ArrayLike, u0: ArrayLike, num_layers: int) -> Float[Array, "..."]:
    """Time at which one mode of a balanced L-layer network is u, in closed form (derived).

    With x = (u/s)^{1/L}, `t = s^{-(2-2/L)} [G(x) - G(x_0)]` and
    `G(x) = ∫ dx / (x^{L-1} (1 - x^L)) = x^{2-L}/(2-L) - (1/L) Σ_k ω_k² log(1 - x/ω_k)`
    over the L-th roots of unity ω_k; the first term is log x for L = 2.

    Args:
        u: Mode values strictly between 0 and s.
        s: Singular value of the target, positive.
        u0: The mode at t = 0, strictly between 0 and s.
        num_layers: L ≥ 2.
    """
    _check_num_layers(num_layers)
    u, s, u0 = (jnp.asarray(x, float) for x in (u, s, u0))
    scale = s ** (2 / num_layers - 2)
    ends = (jnp.log(v / (s - v)) for v in (u, u0))
    reached, start = (_primitive(logit, num_layers) for logit in ends)
    return scale * (reached - start)


def deep_mode(t: ArrayLike, s: ArrayLike, u0: ArrayLike, num_layers: int) -> Float[Array, "..."]:
    """u(t) of `du/dt = L u^{2-2/L} (s - u)`, by bisection on `deep_time` to rounding (derived).

    Args:
        t: Times ≥ 0; broadcast against s and u0.
        s: Singular value of the target, positive.
        u0: The mode at t = 0, strictly between 0 and s.
        num_layers: L ≥ 2.
    """
    _check_num_layers(num_layers)
    t, s, u0 = jnp.broadcast_arrays(*(jnp.asarray(x, float) for x in (t, s, u0)))
    start = jnp.log(u0 / (s - u0))
    # d/dt log(u/(s - u)) = L s u^{1-2/L} is largest at u = s.
    fastest = num_layers * s ** (2 - 2 / num_layers)
    target = t * s ** (2 - 2 / num_layers) + _primitive(start, num_layers)

    def halve(_: Any, interval: tuple[Array, Array]) -> tuple[Array, Array]:
        low, high = interval
        middle = 0.5 * (low + high)
        early = _primitive(middle, num_layers) < target
        return jnp.where(early, middle, low), jnp.where(early, high, middle)

    low, high = jax.lax.fori_loop(0, 100, halve, (start, start + fastest * t))
    return s * jax.nn.sigmoid(0.5 * (low + high))


def escape_time(s: ArrayLike, u0: ArrayLike, num_layers: int) -> Float[Array, "..."]:
    """Leading order, as u_0 → 0, of the time to leave u ≈ 0 (standard).

    `(1/2s) log(s/u_0)` for L = 2, `u_0^{-(1-2/L)} / ((L-2) s)` for L > 2.
    """
    _check_num_layers(num_layers)
    s, u0 = jnp.asarray(s, float), jnp.asarray(u0, float)
    if num_layers == 2:
        return jnp.log(s / u0) / (2 * s)
    return u0 ** (2 / num_layers - 1) / ((num_layers - 2) * s)


def plateau_losses(singular_values: Float[Array, " r"]) -> Float[Array, " r+1"]:
    """`½ Σ_{k>r} s_k²` for r = 0, 1, ...: the factorization loss with the r largest modes learned (standard)."""
    squares = jnp.square(-jnp.sort(-jnp.abs(singular_values)))
    tails = jnp.cumsum(squares[::-1])[::-1]
    return 0.5 * jnp.concatenate([tails, jnp.zeros(1, squares.dtype)])


def balanced_loss(t: ArrayLike, singular_values: Float[Array, " r"], u0: ArrayLike, num_layers: int) -> Scalar:
    """`½ Σ_k (s_k - u_k(t))²`, the loss at one time of a balanced and aligned network (derived).

    Args:
        t: One time.
        singular_values: All of the target's nonzero singular values.
        u0: Modes at t = 0, one number or one a singular value.
        num_layers: L ≥ 2.
    """
    modes = deep_mode(t, singular_values, jnp.broadcast_to(jnp.asarray(u0, float), singular_values.shape), num_layers)
    return 0.5 * jnp.sum(jnp.square(singular_values - modes))


def _primitive(logit: Float[Array, "..."], num_layers: int) -> Float[Array, "..."]:
    """G(x) of `deep_time` at x = (u/s)^{1/L}, as a function of log(u/(s-u)), which keeps 1 - x exact near x = 1."""
    log_x = jax.nn.log_sigmoid(logit) / num_layers
    x = jnp.exp(log_x)
    if num_layers == 2:
        return 0.5 * logit
    power = x ** (2 - num_layers) / (2 - num_layers)
    logs = [jnp.log(-jnp.expm1(log_x))]  # ω = 1
    for k in range(1, num_layers):
        omega = cmath.exp(2j * math.pi * k / num_layers)
        # Pairs ω, conj(ω) add up to the real part; log|1 - x/ω|² and arg(1 - x/ω) in real arithmetic.
        real, imag = 1 - x * omega.real, x * omega.imag
        logs.append((omega**2).real * 0.5 * jnp.log(real**2 + imag**2) - (omega**2).imag * jnp.arctan2(imag, real))
    return power - sum(logs[1:], logs[0]) / num_layers


def _check_num_layers(num_layers: int) -> None:
    if num_layers < 2:
        raise ValueError(f"`num_layers` must be at least 2: one layer has no saddle; got {num_layers}.")
