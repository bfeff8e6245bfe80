"""When a two-layer network learns each mode of a matrix from a small random start, draw by draw (derived).

Near the origin mode k of the target, `M v_k = s_k u_k`, lives in the vectors `W_2^T u_k` and `W_1 v_k` of the hidden
layer. Their mean `z_k` grows like `e^{s_k t}` and their difference decays. Once mode j is learned along a unit vector
h_j of the hidden layer, mode k > j loses its part along h_j at the rate s_j - s_k, because that neuron is in use. So
mode k grows from `z_k` made orthogonal to the directions of the modes before it (Gram-Schmidt), and its strength
`|z_k|²` at t = 0 enters the logistic curve of Saxe et al. (arXiv 1312.6120). What is left out is of the order of a
positive power of ε, such as ε^{2(1 - s_2/s_1)}.
"""

import numpy as np
from jaxtyping import Array, Float

from thetadot._types import Numbers
from thetadot.models.linear import Layers

from .closed_forms import two_layer_time


def two_layer_jumps(params0: Layers, target: Float[Array, "C D"]) -> Float[np.ndarray, " r"]:
    """Times at which the modes of M reach half of their strength, from any small `[W_1, W_2]` (derived).

    `t_k = (1/2s_k) log(s_k/|z_k|² - 1)`, `z_k = P_⊥ (W_2^T u_k + W_1 v_k)/2`, with P_⊥ projecting out z_1 ... z_{k-1}.

    Args:
        params0: `[W_1 (m, D), W_2 (C, m)]` at t = 0, entries much smaller than the singular values of M.
        target: M, with distinct nonzero singular values.
    """
    w_1, w_2 = (np.asarray(w) for w in params0)
    left, s, right = np.linalg.svd(np.asarray(target))
    rank = int(np.sum(s > 1e-12 * s[0]))
    z = (w_2.T @ left[:, :rank] + w_1 @ right[:rank].T) / 2  # (m, r), one column a mode
    strengths = np.square(np.diag(np.linalg.qr(z)[1]))
    return np.asarray(two_layer_time(s[:rank] / 2, s[:rank], strengths))


def mean_two_layer_jumps(singular_values: Numbers, width: int, init_scale: float) -> Float[np.ndarray, " r"]:
    """The mean of `two_layer_jumps` over Gaussian draws of scale ε << 1 (derived).

    `|z_k|²` is ε²/2 times a χ² variable with m - k + 1 degrees of freedom, so that
    `E t_k = log(1/ε)/s_k + [log s_k - ψ((m - k + 1)/2)] / (2 s_k)`.

    Args:
        singular_values: Of the target, in decreasing order.
        width: m of the hidden layer.
        init_scale: ε.
    """
    from scipy.special import digamma  # here, for a quick import of the package

    s = np.asarray(singular_values, float)
    return -np.log(init_scale) / s + (np.log(s) - digamma(_freedoms(s, width) / 2)) / (2 * s)


def spread_of_two_layer_jumps(singular_values: Numbers, width: int) -> Float[np.ndarray, " r"]:
    """Their standard deviation over draws: `sqrt(ψ'((m - k + 1)/2)) / (2 s_k)`, whatever ε (derived)."""
    from scipy.special import polygamma

    s = np.asarray(singular_values, float)
    return np.sqrt(polygamma(1, _freedoms(s, width) / 2)) / (2 * s)


def _freedoms(s: np.ndarray, width: int) -> np.ndarray:
    return width - np.arange(s.size)
