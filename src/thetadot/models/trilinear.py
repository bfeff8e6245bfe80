"""The effective flow of three small layers, the gradient flow of `L = -E` with the energy `E = a^T B c`.

Three-layer networks start like this from a small initialization, and so do the outer parameters of a transformer: with
weights divided by their scale and time multiplied by it,

    da/dt = B c,   dB/dt = a c^T,   dc/dt = B^T a.

| | a | B | c |
|---|---|---|---|
| arXiv 2402.15958, `f(x) = a^T σ(W_2 σ(W_1 x))` | output weights | W_2, its columns are the b_i | `W_1 v` |
| arXiv 2510.06954, eq. 5-7 | `(v W_V)^T` | `W^[1]` | `W^[2]` |

with v the unit vector along the mean of label times input. The loss has no lower bound, and the flow leaves in finite
time: see `thetadot.blow_up`. Parameters are `{"a": (p,), "b": (p, q), "c": (q,)}`; there are no data. Several draws at
once are a `jax.vmap` over their parameters. Rows and columns of zeros stay zero: smaller draws fit into larger arrays.
"""

import jax.numpy as jnp
from jaxtyping import Array, Float

from thetadot._types import Data, NamedParams, Scalar


def energy(params: NamedParams, data: Data | None = None) -> Scalar:
    """`E = a^T B c`, which the flow increases: `dE/dt = |Bc|² + |a|²|c|² + |B^T a|² ≥ 3 E^{4/3}`."""
    del data
    return params["a"] @ params["b"] @ params["c"]


def loss(params: NamedParams, data: Data | None = None) -> Scalar:
    """`L = -E`. Unbounded below."""
    return -energy(params, data)


def outer_balance(params: NamedParams, data: Data | None = None) -> Float[Array, "p p"]:
    """`a a^T - B B^T`, conserved (derived; its diagonal is in arXiv 2510.06954, Prop. 2)."""
    del data
    return jnp.outer(params["a"], params["a"]) - params["b"] @ params["b"].T


def inner_balance(params: NamedParams, data: Data | None = None) -> Float[Array, "q q"]:
    """`c c^T - B^T B`, conserved (derived; its diagonal is in arXiv 2510.06954, Prop. 2)."""
    del data
    return jnp.outer(params["c"], params["c"]) - params["b"].T @ params["b"]


def third_invariant(params: NamedParams, data: Data | None = None) -> Scalar:
    """`C_3 = |da/dt|² - |dc/dt|² + |a|² (|a|² - |c|²)`, conserved (derived).

    Def. 4 of arXiv 2510.06954 calls a start non-degenerate if `|a| ≠ |c|` and this is not zero, there with the smaller
    of |a|² and |c|² as the factor; the two differ by `(|a|² - |c|²)²` or not at all, which is conserved too.
    """
    del data
    a, b, c = params["a"], params["b"], params["c"]
    return _square(b @ c) - _square(b.T @ a) + _square(a) * (_square(a) - _square(c))


CONSERVED = {"outer balance": outer_balance, "inner balance": inner_balance, "third invariant": third_invariant}
"""What the flow conserves, as `Problem` takes it."""


def final_stage_fractions(params: NamedParams, data: Data | None = None) -> Float[Array, " 2"]:
    """How much of the final-stage (condensation) condition is met: shares of the indices and of the pairs.

    The indices: `a_i (da/dt)_i > 0` and `c_i (dc/dt)_i > 0`, every entry of a and c grows. The pairs:
    `<a_i B_i, a_j B_j> > 0` for rows and `<c_i B^i, c_j B^j> > 0` for columns of B. Both shares count rows and columns
    alike. Once both are 1 they stay 1 until the blow-up.

    Reference:
        arXiv 2510.06954, Assumption 1 and Prop. 4; the final-stage condition of arXiv 2402.15958.
    """
    del data
    a, b, c = params["a"], params["b"], params["c"]
    growing = jnp.concatenate([a * (b @ c), c * (b.T @ a)]) > 0
    rows, columns = a[:, None] * b, b * c[None, :]
    pairs = jnp.concatenate([(rows @ rows.T).ravel(), (columns.T @ columns).ravel()]) > 0
    return jnp.stack([jnp.mean(growing, dtype=a.dtype), jnp.mean(pairs, dtype=a.dtype)])


def _square(x: Float[Array, " n"]) -> Scalar:
    return jnp.sum(jnp.square(x))
