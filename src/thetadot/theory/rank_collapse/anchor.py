"""The anchor-function task (Sec. 5): the three stages in a decoder between a fixed embedding and a fixed output.

The decoder has one layer of one head and no residuals, `f(X) = tanh(Attn(X) W_1) W_2 U` at the last position. While
its weights are small the loss is `log d - <G, W_V W_1 W_2>` up to higher orders, with x̄_i the mean embedding and

    G = (1/N) Σ_i x̄_i^T (e_{y_i} - 1/d) U^T,        (m, m)

a matrix where Eq. 5 has the vector s̄ (derived). Its top singular value wins: u_1 and v_1 stand where the paper has v
and the one output, and Assumption 1 is about a = W_V^T u_1, B = W_1, c = W_2 v_1.

The paper has 201 tokens, sequences of 10, width 640 and AdamW on batches. Here are 14 tokens, 100 sequences of 4, width
12, and the gradient flow on all of them, which takes seconds. d_mlp is four times the width, not twice, to keep tanh
near its linear range. For W_V and W_1 that is enough; W_2 bends, and in some draws it is of rank two when W_Q is of
rank one. In stage 2 the outer weights are not quite at rest, and F turns: Eq. 14 is solved along with it. Five draws
are checked; of the next five, four do the same, and in one sr(W_Q) - 1 only comes to 0.011, s_2/s_1 being 3/4.
"""

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
from jaxtyping import Array, Float

from thetadot import inits
from thetadot._types import Data, NamedParams, Scalar
from thetadot.blowup import blow_up
from thetadot.data import anchor_task
from thetadot.flow import gradient_flow
from thetadot.models import decoder, trilinear
from thetadot.problem import Problem
from thetadot.stages import Measured, first_crossing, row_at
from thetadot.theory.check import Check, Status, judge, spread
from thetadot.trajectory import Trajectory

from .closed_forms import key_query_flow
from .flows import PAPER, Trace, excess_rank

_NUM_SAMPLES, _LENGTH, _NUM_ANCHORS, _NUM_KEYS = 100, 4, 4, 8
_VOCAB_SIZE = _NUM_ANCHORS + _NUM_KEYS + 2
_D_MODEL, _D_MLP = 12, 48
_SCALE = 1e-5
_DRAWS = range(5)
_ORIGIN = float(np.log(_VOCAB_SIZE))  # the loss there
_LEFT, _END = 0.98, 0.5  # of it: where the origin is left, and where the flow ends
_RISING = (1e-3, 5e-2)  # |W_Q| in stage 2: above its start, 1e-4, and below the bend of the softmax
_LOSS = decoder.loss_fn(jnp.tanh, residual=False)

_Row = tuple[str, str, Status, float, Measured | float, float]
"""Claim, place in the paper, who says so, number predicted, number measured, tolerance."""


def anchor_sequences(seed: int) -> dict[str, Array]:
    """Sequences, answers, and the two matrices that are not trained, with entries `N(0, 1)`."""
    key, key_embedding, key_output = jr.split(jr.key(seed), 3)
    task = anchor_task(_NUM_SAMPLES, _LENGTH, _NUM_ANCHORS, _NUM_KEYS, key=key)
    embedding = jr.normal(key_embedding, (_VOCAB_SIZE, _D_MODEL))
    output = jr.normal(key_output, (_D_MODEL, _VOCAB_SIZE))
    return {"tokens": task["tokens"], "targets": task["targets"], "embedding": embedding, "output": output}


def anchor_start(init_scale: float, seed: int) -> dict[str, Array]:
    """The weights of the layer, every entry `N(0, ε²)`."""
    head = (1, _D_MODEL, _D_MODEL)
    shapes = {"w_q": head, "w_k": head, "w_v": head, "w_1": (_D_MODEL, _D_MLP), "w_2": (_D_MLP, _D_MODEL)}
    template = {name: jax.ShapeDtypeStruct(shape, float) for name, shape in shapes.items()}
    return inits.gaussian(template, init_scale, key=jr.key(1000 + seed))  # pyright: ignore[reportReturnType]


def anchor_trace(sequences: Data, params0: NamedParams, t1: float) -> Trajectory:
    """The flow until half the loss is gone, with all weights in each row."""
    problem = Problem(_loss, dict(sequences))
    crossings = {name: ("loss", level * _ORIGIN) for name, level in (("left", _LEFT), ("end", _END))}
    return gradient_flow(problem, params0, t1, observables=_OBSERVABLES, crossings=crossings, stop="end")


def anchor_signal(sequences: Data) -> Float[Array, "m m"]:
    """G, all that the outer weights see of the task while they are small."""
    pooled = jnp.mean(sequences["embedding"][sequences["tokens"]], axis=1)
    vocab_size = sequences["output"].shape[1]
    answers = jax.nn.one_hot(sequences["targets"], vocab_size, dtype=pooled.dtype) - 1 / vocab_size
    return pooled.T @ answers @ sequences["output"].T / len(pooled)


def check_anchor_task(trace: Trace = anchor_trace) -> list[Check]:
    """Condensation, collapse of keys and queries, and rank rising again in five draws of sequences, ends and start."""
    draws = [_measure(trace, seed) for seed in _DRAWS]
    of = {name: [draw[name] for draw in draws] for name in draws[0]}
    return [
        judge(f"anchor task, ε = {_SCALE:g}, stage {claim}", f"{PAPER}, {where}", status, predicted, value, tolerance)
        for claim, where, status, predicted, value, tolerance in (*_first_stage(of), *_later_stages(of))
    ]


# fmt: off
def _first_stage(of: dict[str, list[float]]) -> tuple[_Row, ...]:
    return (
        ("1: draws that meet the condensation condition at t = 0", "Fig. 2a", "derived", 0.0, sum(of["met"]), 0.0),
        ("1: draws that meet it from some time on until the origin is left", "Fig. 2a", "paper",
         float(len(_DRAWS)), sum(of["kept"]), 0.0),
        # T̄*/ε is 1e4 and more, and the effective dynamics would go on for a time of order one.
        ("1: ε t/T̄* where the origin is left", "Eqs. 5-7", "derived", 1.0, spread(of["escape"]), 1e-3),
        # What is orthogonal stays of size ε √(m d_mlp) = 2e-4, and the weights have come to 0.3.
        ("1: largest sr - 1 of W_V, W_1 and W_2 there", "Thm. 2", "paper", 0.0, max(of["outer"]), 1e-5),
        # It is s_1(F) over the rate of the outer weights, at their size of 0.3, and they have grown thousandfold.
        ("1: largest relative change of |W_Q| by then", "Fig. 1b", "paper", 0.0, max(of["rest"]), 0.05),
    )


def _later_stages(of: dict[str, list[float]]) -> tuple[_Row, ...]:
    return (
        # The logits x W_Q W_K^T x^T/√m are a few hundredths there.
        ("2: largest |W_Q - flow of Eq. 14|/|W_Q| at its end", "Prop. 3", "paper", 0.0, max(of["linear"]), 0.05),
        ("2: least cosine of the right vectors of W_Q and W_K there", "Thm. 3", "derived",
         1.0, min(of["right"]), 1e-6),
        # From 1e-4 on: (1e-4)^{2(1 - s_2/s_1)} is 0.01 at s_2/s_1 = 3/4.
        ("2: largest of the least sr(W_Q) - 1", "Thm. 3", "paper", 0.0, max(of["lowest"]), 1e-2),
        ("2: least mean cosine of outer singular vectors in adjacent rows", "Fig. 2b", "paper",
         1.0, min(of["adjacent"]), 0.01),
        # Their second direction begins to show by then where it grows fastest.
        ("2: largest sr - 1 of W_V and W_1 at its end", "Assumption 2", "paper", 0.0, max(of["condensed"]), 0.1),
        ("3: draws of which sr(W_Q) - 1 rises tenfold before half the loss is gone", "Fig. 1c", "paper",
         float(len(_DRAWS)), sum(of["risen"]), 0.0),
    )
# fmt: on


def _measure(trace: Trace, seed: int) -> dict[str, float]:
    """What is measured of one draw; NaN where it is not reached."""
    sequences = anchor_sequences(seed)
    signal = anchor_signal(sequences)
    end = float(blow_up(Problem(_effective_loss, signal), _outer(anchor_start(1.0, seed))).time)
    traj = trace(sequences, anchor_start(_SCALE, seed), 2 * end / _SCALE)
    escape = first_crossing(traj, "left")
    left = row_at(traj, escape)
    return {"escape": _SCALE * escape / end} | _condensation(traj, signal, left) | _collapse(traj, sequences, left)


def _condensation(traj: Trajectory, signal: Array, left: int) -> dict[str, float]:
    """Stage 1: the condensation condition until the origin is left, and the ranks there."""
    met = np.array([bool(jnp.all(_fractions(_row(traj, row), signal) == 1)) for row in range(left + 1)])
    size = np.linalg.norm(traj["w_q"], axis=(1, 2))
    return {
        "met": float(met[0]),
        "kept": float(met[-1] and np.all(met[np.argmax(met) :])),
        "outer": _largest_excess(traj, _OUTER, left),
        "rest": abs(float(size[left] / size[0]) - 1),
    }


def _collapse(traj: Trajectory, sequences: Data, left: int) -> dict[str, float]:
    """Stages 2 and 3, after the origin is left."""
    names = ("linear", "right", "adjacent", "condensed", "lowest")
    size = np.linalg.norm(traj["w_q"], axis=(1, 2))
    if size[left] > _RISING[0] or not np.any(size[left:] > _RISING[1]):
        return dict.fromkeys(names, np.nan) | {"risen": 0.0}
    start, end = (left + int(np.argmax(size[left:] > level)) for level in _RISING)
    queries, keys = (np.linalg.svd(traj[name][end]) for name in ("w_q", "w_k"))
    excess = excess_rank(traj["w_q"][left:])
    numbers = (
        _departure(traj, sequences, start, end),
        abs(queries[2][0] @ keys[2][0]),
        min(_adjacent(traj[name][start : end + 1]) for name in _OUTER),
        _largest_excess(traj, ("w_v", "w_1"), end),
        np.min(excess),
    )
    risen = excess[-1] > 10 * np.min(excess) and traj.status == "stopped"
    return dict(zip(names, map(float, numbers), strict=True)) | {"risen": float(risen)}


def _departure(traj: Trajectory, sequences: Data, start: int, end: int) -> float:
    """|W_Q - W|/|W_Q| in the last row, where W solves dW_Q/dt = F W_K and dW_K/dt = F^T W_Q from the first row on.

    F is the mean of those at the two ends of each step.
    """
    drives = [_drive(_row(traj, row), sequences) for row in range(start, end + 1)]
    w_q, w_k = (jnp.asarray(traj[name][start]) for name in ("w_q", "w_k"))
    for row in range(start, end):
        mean = (drives[row - start] + drives[row - start + 1]) / 2
        w_q, w_k = _linear_step(float(traj.ts[row + 1] - traj.ts[row]), mean, w_q, w_k)
    return float(np.linalg.norm(traj["w_q"][end] - w_q) / np.linalg.norm(traj["w_q"][end]))


def _largest_excess(traj: Trajectory, names: tuple[str, ...], row: int) -> float:
    return max(float(excess_rank(traj[name][[row]])[0]) for name in names)


def _adjacent(matrices: np.ndarray) -> float:
    """Mean |cosine| of the top singular vectors of one row of the trajectory and the next, left and right."""
    u, _, vt = np.linalg.svd(matrices, full_matrices=False)
    tops = (u[..., 0], vt[:, 0])
    return float(np.mean([np.abs(np.sum(top[1:] * top[:-1], axis=1)) for top in tops]))


def _loss(params: NamedParams, data: Data) -> Scalar:
    return _LOSS({"layers": [params]}, data)


def _effective_loss(params: NamedParams, signal: Array) -> Scalar:
    """`-<G, W_V W_1 W_2>`."""
    return -jnp.sum(signal * (params["w_v"] @ params["w_1"] @ params["w_2"]))


def _outer(params: NamedParams) -> dict[str, Array]:
    return {"w_v": params["w_v"][0], "w_1": params["w_1"], "w_2": params["w_2"]}


@jax.jit
def _fractions(outer: NamedParams, signal: Array) -> Float[Array, " 2"]:
    """`trilinear.final_stage_fractions` of a, B and c."""
    u, _, vt = jnp.linalg.svd(signal)
    effective = {"a": outer["w_v"].T @ u[:, 0], "b": outer["w_1"], "c": outer["w_2"] @ vt[0]}
    return trilinear.final_stage_fractions(effective)


@jax.jit
def _drive(outer: NamedParams, sequences: Data) -> Float[Array, "m m"]:
    """F = -∂L/∂(W_Q W_K^T) at W_Q = W_K = 0, which moves queries and keys while they are small."""
    eye = jnp.eye(_D_MODEL)[None]
    params = {**outer, "w_v": outer["w_v"][None], "w_k": eye}
    return -jax.grad(lambda product: _loss({**params, "w_q": product}, sequences))(jnp.zeros_like(eye))[0]


def _row(traj: Trajectory, row: int) -> dict[str, Array]:
    """The outer weights."""
    return {name: jnp.asarray(traj[name][row]) for name in _OUTER}


_linear_step = jax.jit(key_query_flow)


def _weight(name: str):
    def observable(params, data):
        del data
        return params[name].reshape(params[name].shape[-2:])  # without the axis of heads

    return observable


_OUTER = ("w_v", "w_1", "w_2")
# Built once: the solver compiles per function object.
_OBSERVABLES = {name: _weight(name) for name in ("w_q", "w_k", *_OUTER)}
