"""Parameters at t = 0, by scale: every function returns a pytree and takes its randomness as `key`."""

import itertools
import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import jax.random as jr
import jax.tree_util as jtu
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, ArrayLike, Float, PyTree

from thetadot._types import Key, Keys, Params


def gaussian(template: PyTree, init_scale: ArrayLike, *, key: Key) -> Params:
    """Every entry `N(0, init_scale²)`, for parameters of any structure.

    One draw of as many normal numbers as there are parameters, cut into the leaves of `template` in tree order.

    Args:
        template: Pytree of arrays, of `jax.ShapeDtypeStruct`s, or of anything with a `shape`; values are ignored.
        init_scale: Standard deviation ε of each entry.
        key: Randomness.
    """
    leaves, treedef = jtu.tree_flatten(template)
    return jtu.tree_unflatten(treedef, _cut([tuple(leaf.shape) for leaf in leaves], init_scale, key))


def attention_params(
    d: int, d_model: int, d_head: int, init_scale: ArrayLike, *, key: Key
) -> dict[str, Float[Array, "_ _"]]:
    """Gaussian parameters of `thetadot.models.attention`: every entry `N(0, init_scale²)`.

    One draw of `2 d m + 2 m h` normal numbers, raveled in the order W_0, W_1, W_Q, W_K.

    Args:
        d: Vocabulary size.
        d_model: Width m of the embedding.
        d_head: Width h of queries and keys.
        init_scale: Standard deviation ε of each entry; 1e-3 shows all stages.
        key: Randomness.
    """
    shapes = {"w_0": (d, d_model), "w_1": (d_model, d), "w_q": (d_model, d_head), "w_k": (d_model, d_head)}
    return dict(zip(shapes, _cut(list(shapes.values()), init_scale, key), strict=True))


def two_layer_params(
    num_neurons: int, d_input: int, init_scale: ArrayLike, *, key: Key
) -> dict[str, Float[Array, "..."]]:
    """Gaussian parameters of `thetadot.models.two_layer`: every entry `N(0, init_scale²)`, a drawn before w."""
    a, w = _cut([(num_neurons,), (num_neurons, d_input)], init_scale, key)
    return {"a": a, "w": w}


def attention_classifier_params(d_model: int, init_scale: ArrayLike, *, key: Key) -> dict[str, Float[Array, "..."]]:
    """Gaussian parameters of `thetadot.models.attention_classifier`: every entry `N(0, init_scale²)`.

    One draw of `4 m² + m` normal numbers, raveled in the order W_Q, W_K, W_V, W_1, w_2.

    Args:
        d_model: Dimension m of a token and of every layer.
        init_scale: Standard deviation ε of each entry; 1e-3 shows all stages.
        key: Randomness.
    """
    shapes = dict.fromkeys(("w_q", "w_k", "w_v", "w_1"), (d_model, d_model)) | {"w_2": (d_model,)}
    return dict(zip(shapes, _cut(list(shapes.values()), init_scale, key), strict=True))


def decoder_params(
    vocab_size: int,
    d_model: int,
    d_mlp: int,
    init_scale: ArrayLike,
    *,
    key: Key,
    num_layers: int = 1,
    num_heads: int = 1,
    seq_len: int | None = None,
    layer_norm: bool = False,
) -> dict[str, Any]:
    """Gaussian parameters of `thetadot.models.decoder`: every entry `N(0, init_scale²)`, gains 1.

    Args:
        vocab_size: d.
        d_model: Width m of the stream, a multiple of `num_heads`: each head has width m / H.
        d_mlp: Width of the MLP.
        init_scale: Standard deviation ε of each entry.
        key: Randomness.
        num_layers: L.
        num_heads: H.
        seq_len: Positions that are learned; None: no positions.
        layer_norm: Whether there is a LayerNorm before each block and before the output.
    """
    if d_model % num_heads:
        raise ValueError(f"`decoder_params(d_model={d_model})` must be a multiple of `num_heads`={num_heads}.")
    down = (num_heads, d_model, d_model // num_heads)
    layer = dict.fromkeys(("w_q", "w_k", "w_v"), down) | {"w_o": (num_heads, d_model // num_heads, d_model)}
    layer |= {"w_1": (d_model, d_mlp), "w_2": (d_mlp, d_model)}
    shapes: dict[str, Any] = {"embedding": (vocab_size, d_model), "layers": [layer] * num_layers}
    shapes |= {"output": (d_model, vocab_size)} | ({} if seq_len is None else {"position": (seq_len, d_model)})
    template = jax.tree.map(lambda s: jax.ShapeDtypeStruct(s, float), shapes, is_leaf=lambda s: isinstance(s, tuple))
    params: dict[str, Any] = gaussian(template, init_scale, key=key)  # pyright: ignore[reportAssignmentType]
    if layer_norm:
        params["layers"] = [p | {"gain_1": jnp.ones(d_model), "gain_2": jnp.ones(d_model)} for p in params["layers"]]
        params["gain"] = jnp.ones(d_model)
    return params


def emb_mlp_params(
    d: int, num_outputs: int, width: int, init_scale: ArrayLike, *, key: Key
) -> dict[str, Float[Array, "_ _"]]:
    """Gaussian parameters of `thetadot.models.emb_mlp`: every entry `N(0, init_scale²)`, W_emb drawn before W_out.

    Args:
        d: Vocabulary size.
        num_outputs: Tokens C that can be an answer.
        width: Width m of the embedding; `min(d, C)` and more leave W free.
        init_scale: Standard deviation ε of each entry.
        key: Randomness.
    """
    w_emb, w_out = _cut([(d, width), (width, num_outputs)], init_scale, key)
    return {"w_emb": w_emb, "w_out": w_out}


def deep_linear(widths: Sequence[int], init_scale: ArrayLike, *, key: Key | Keys) -> list[Float[Array, "_ _"]]:
    """Gaussian layers `[W_1, ..., W_L]`, W_l of shape (widths[l], widths[l-1]), every entry `N(0, init_scale²)`.

    Args:
        widths: Input width, hidden widths, output width: L + 1 numbers.
        init_scale: Standard deviation ε of each entry.
        key: One key, split into L; or an array of L keys, one a layer.
    """
    num_layers = len(widths) - 1
    if num_layers < 1:
        raise ValueError(f"`deep_linear(widths=...)` needs at least an input and an output width; got {widths}.")
    given = key.ndim == 1 and jnp.issubdtype(key.dtype, jax.dtypes.prng_key)
    keys = key if given else jr.split(key, num_layers)
    if len(keys) != num_layers:
        raise ValueError(f"`deep_linear(key=...)` must be one key or {num_layers}, one a layer; got {len(keys)}.")
    shapes = zip(widths[1:], widths[:-1], strict=True)
    return [jax.device_put(_scaled(init_scale, jr.normal(k, shape))) for k, shape in zip(keys, shapes, strict=True)]


def balanced_linear(
    target: Float[Array, "C D"], num_layers: int, strengths: ArrayLike, *, key: Key | None = None
) -> list[Float[Array, "_ _"]]:
    """Balanced layers aligned with the singular vectors of a target, so that its modes evolve independently.

    With the singular value decomposition `M = U S V^T`, r = min(C, D) and `Q_l` orthogonal (r×r):
    `W_1 = Q_1 u^{1/L} V^T`, `W_l = Q_l u^{1/L} Q_{l-1}^T`, `W_L = U u^{1/L} Q_{L-1}^T`. Then
    `W_L ... W_1 = U diag(u) V^T` and `W_{l+1}^T W_{l+1} = W_l W_l^T`, and each mode follows
    `thetadot.theory.matrix_factorization.deep_mode`.

    Args:
        target: Matrix M to be learned.
        num_layers: L, at least 1. Hidden widths are r.
        strengths: The modes u at t = 0, in the order of decreasing singular values of M: a scalar or r numbers ≥ 0.
        key: Draws the rotations Q_l; without it they are identities.
    """
    if num_layers < 1:
        raise ValueError(f"`balanced_linear(num_layers=...)` must be at least 1; got {num_layers}.")
    u, _, vt = jnp.linalg.svd(target, full_matrices=False)
    rank = vt.shape[0]
    root = jnp.broadcast_to(jnp.asarray(strengths, target.dtype), (rank,)) ** (1 / num_layers)
    hidden = [jnp.eye(rank, dtype=target.dtype)] * (num_layers - 1)
    if key is not None:
        hidden = [jr.orthogonal(k, rank, dtype=target.dtype) for k in jr.split(key, max(num_layers - 1, 1))]
    frames = [vt.T, *hidden[: num_layers - 1], u]
    return [(out * root[None, :]) @ into.T for into, out in itertools.pairwise(frames)]


def _cut(shapes: Sequence[tuple[int, ...]], init_scale: ArrayLike, key: Key) -> list[Array]:
    sizes = [math.prod(shape) for shape in shapes]
    flat = _scaled(init_scale, jr.normal(key, (sum(sizes),)))
    pieces = zip(itertools.accumulate(sizes), sizes, shapes, strict=True)
    return [jax.device_put(flat[end - size : end].reshape(shape)) for end, size, shape in pieces]


def _scaled(init_scale: ArrayLike, draw: Array) -> Array | np.ndarray:
    """`init_scale * draw`: on the host, where nothing is compiled for it, unless it is being traced.

    (`jax.device_put` makes an array of it; `jnp.asarray` would compile a copy for every shape.)
    """
    if isinstance(init_scale, Tracer) or isinstance(draw, Tracer):
        return jnp.asarray(init_scale, float) * draw
    return np.asarray(init_scale, draw.dtype) * np.asarray(draw)
