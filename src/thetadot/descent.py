"""`descent`: discrete full-batch training of the same problems, on the clock of the flow, t = ηk."""

import functools
import math
import time
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Bool, Float, Int, PyTree

from .engine import STANDING
from .flow import gradient_flow
from .problem import Observable, Problem, check_functions, check_start, check_value, squared_norm
from .provenance import provenance
from .scalars import check_count, check_positive
from .slopes import LossAndGrad, wrong_slope
from .stages import Measured
from .trajectory import Trajectory

Optimizer = str | Callable[[Any], optax.GradientTransformation] | optax.GradientTransformation

OPTIMIZERS: Mapping[str, Callable[[Any], optax.GradientTransformation]] = {
    "gradient": optax.sgd,
    "momentum": functools.partial(optax.sgd, momentum=0.9),
    "adam": optax.adam,
    "adamw": optax.adamw,
}
"""Optimizers by name, with optax's defaults: functions of the learning rate η."""

_CHUNK_ROWS = 256  # recorded between two visits to the host
_CHUNK_BYTES = 2**26
_SAFETY = 2.0


class _State(NamedTuple):
    """Training between two steps."""

    params: PyTree
    loss: Float[Array, ""]
    grad: PyTree
    memory: PyTree  # of the optimizer
    dissipation: Float[Array, ""]
    step: Int[Array, ""]
    num_rises: Int[Array, ""]
    diverged: Bool[Array, ""]


def descent(
    problem: Problem,
    params0: PyTree,
    num_steps: int,
    learning_rate: float,
    optimizer: Optimizer | None = None,
    observables: Mapping[str, Observable] | None = None,
    save_every: int = 1,
) -> Trajectory:
    """Trains with the whole data in every step: θ_{k+1} = θ_k − η u_k, and u_k = ∇L(θ_k) for gradient descent.

    Step k is at time t = ηk, where the gradient flow from the same start is when η → 0. (Momentum β moves 1/(1 − β) as
    fast: it tends to the flow at t/(1 − β). Adam does not tend to the flow at all.)

    Args:
        problem: the loss and its data.
        params0: θ_0, any pytree of floating-point arrays of one dtype.
        num_steps: number of steps.
        learning_rate: η. Another one compiles nothing new.
        optimizer: None or "gradient", "momentum" (β = 0.9), "adam", "adamw"; or a function of η that returns an optax
            transformation, such as `functools.partial(optax.adamw, weight_decay=0.1)`; or such a transformation, which
            then has its own rate, and `learning_rate` only sets the clock. Pass the same object again and nothing is
            compiled again.
        observables: name -> `fn(params, data) -> array`, as in `gradient_flow`.
        save_every: steps from one row to the next; the first and the last state always have a row.

    Returns:
        A `Trajectory`, as of the flow. `dissipation` is −Σ ⟨∇L(θ_k), θ_{k+1} − θ_k⟩, which is Σ η‖∇L(θ_k)‖² for
        gradient descent, so `stats["energy_error"]` says in units of the loss how far descent is from a flow;
        `stats["num_rises"]` counts the steps at which the loss rose, and `stats["is_gradient"]` tells whether the
        gradient at the start is that of the loss, by differences; `result` says so where it is not. Training that
        diverges is a result too: its rows end with the last finite state, and `status` and `result` say so.

    Raises:
        ValueError: an argument makes no sense; the message says which, and what to do.
    """
    params0 = check_start(problem, params0)
    num_steps = check_count(num_steps, "descent(num_steps=...)")
    save_every = check_count(save_every, "descent(save_every=...)")
    learning_rate = check_positive(learning_rate, "descent(learning_rate=...)")
    watched = tuple(_check_observables(observables or {}).items())
    make = _find_optimizer(optimizer)
    rate = jnp.asarray(learning_rate, jax.tree.leaves(params0)[0].dtype)
    began = time.perf_counter()
    state, row = _begin(make, watched, problem, params0, rate)
    check_value(state.loss, state.grad)
    state, rows = _train(make, watched, problem, rate, state, row, num_steps, save_every)
    stats = _stats(state, float(row["loss"]), float(learning_rate), _describe(optimizer))
    wrong = wrong_slope(_at(make, watched, problem, params0, rate), np.asarray(ravel_pytree(params0)[0]))
    stats |= {"is_gradient": wrong is None}
    status, result = _verdict(state, num_steps, float(learning_rate))
    result += f" The gradient does not belong to the loss: at `params0` {wrong}" if wrong else ""
    return Trajectory(
        ts=float(learning_rate) * rows.pop("step").astype(float),
        series=rows,
        crossings={},
        params1=state.params,
        status=status,
        result=result,
        stats=stats | {"wall_s": time.perf_counter() - began},
        provenance=provenance(
            optimizer=stats["solver"],
            learning_rate=float(learning_rate),
            num_steps=num_steps,
            save_every=save_every,
            dtype=str(rate.dtype),
        ),
    )


def distance_to_flow(
    problem: Problem,
    params0: PyTree,
    num_steps: int,
    learning_rate: float,
    save_every: int = 1,
    rtol: float = 1e-8,
) -> Measured:
    """How far gradient descent strays from the flow: max_k ‖θ_k − θ(ηk)‖₂ over the saved steps.

    At first order in η it is that of θ_k − θ(ηk) = −(η/2) ∫₀ᵗ e^{−∫H} H∇L: halving η, with twice as many steps, halves
    it, once η is below 2/λ₁(∇²L).

    Args:
        problem: the loss and its data.
        params0: where both start.
        num_steps: steps of gradient descent.
        learning_rate: η; both end at t = η `num_steps`.
        save_every: steps from one comparison to the next.
        rtol: of the flow, which is solved at a tenth of it too.

    Returns:
        The distance, with an error from tightening `rtol`; infinite if descent diverges, NaN if the flow fails.
    """
    rows = {"params": _raveled}
    descended = descent(problem, params0, num_steps, learning_rate, observables=rows, save_every=save_every)
    if descended.status != "done":
        return Measured(math.inf, 0.0)
    ts, distances = descended.ts, []
    for tolerance in (rtol, rtol / 10):
        flow = gradient_flow(problem, params0, float(ts[-1]), ts=ts, observables=rows, rtol=tolerance)
        apart = descended["params"] - flow["params"] if flow.status == "done" else np.array([[np.nan]])
        distances.append(float(np.max(np.linalg.norm(apart, axis=1))))
    return Measured(distances[0], _SAFETY * abs(distances[0] - distances[1]))


def _at(make, watched, problem: Problem, params0: PyTree, rate: Array) -> LossAndGrad:
    """The function y -> (L, ∇L), by the program that began the training."""
    unravel = ravel_pytree(params0)[1]

    def value_and_grad(y: np.ndarray):
        state, _ = _begin(make, watched, problem, unravel(jnp.asarray(y)), rate)
        return state.loss, ravel_pytree(state.grad)[0]

    return value_and_grad


def _raveled(params: PyTree, data: PyTree) -> Float[Array, " P"]:
    del data
    return ravel_pytree(params)[0]


def _train(make, watched, problem, rate, state, row, num_steps, save_every) -> tuple[_State, dict[str, np.ndarray]]:
    """Chunk after chunk until the last step, or the last finite one."""
    num_rows = -(-num_steps // save_every)
    bytes_per_row = sum(x.size * x.dtype.itemsize for x in row.values())
    capacity = int(np.clip(_CHUNK_BYTES // bytes_per_row, 1, _CHUNK_ROWS))
    capacity = min(capacity, 2 ** math.ceil(math.log2(num_rows)))  # few lengths, so that few are compiled
    chunks = [{name: np.asarray(x)[None] for name, x in row.items()}]
    while int(state.step) < num_steps and not bool(state.diverged):
        ends = int(state.step) + save_every * np.arange(1, capacity + 1)
        state, rows = _advance(make, watched, problem, rate, state, jnp.asarray(np.minimum(ends, num_steps)))
        fresh = np.diff(np.asarray(rows["step"]), prepend=chunks[-1]["step"][-1]) > 0
        chunks.append({name: np.asarray(x)[fresh] for name, x in rows.items()})
    return state, {name: np.concatenate([chunk[name] for chunk in chunks]) for name in row}


@eqx.filter_jit
def _begin(make, watched, problem: Problem, params: PyTree, rate: Array) -> tuple[_State, dict[str, Array]]:
    loss, grad = problem.value_and_grad(params)
    zero = jnp.array(0)
    with jax.numpy_dtype_promotion("standard"):  # optax mixes dtypes
        memory = make(rate).init(params)
    state = _State(params, loss, grad, memory, jnp.zeros_like(loss), zero, zero, jnp.array(False))
    return state, _observe(watched, problem, state)


@eqx.filter_jit
def _advance(
    make, watched, problem: Problem, rate: Array, state: _State, ends: Int[Array, " R"]
) -> tuple[_State, dict[str, Array]]:
    """Trains up to each of `ends` in turn, and records where it is then."""

    def window(state: _State, end: Int[Array, ""]) -> tuple[_State, dict[str, Array]]:
        unfinished = lambda s: (s.step < end) & ~s.diverged  # noqa: E731
        state = jax.lax.while_loop(unfinished, lambda s: _step(make, problem, rate, s), state)
        return state, _observe(watched, problem, state)

    return jax.lax.scan(window, state, ends)


def _step(make, problem: Problem, rate: Array, state: _State) -> _State:
    """One step, which is not taken if the loss or its gradient is not finite there."""
    with jax.numpy_dtype_promotion("standard"):
        updates, memory = make(rate).update(state.grad, state.memory, state.params)
        params = optax.apply_updates(state.params, updates)
    loss, grad = problem.value_and_grad(params)
    pairs = zip(jax.tree.leaves(state.grad), jax.tree.leaves(updates), strict=True)
    dissipation = state.dissipation - sum(jnp.vdot(g, u) for g, u in pairs)
    num_rises = state.num_rises + jnp.where(loss > state.loss, 1, 0)
    moved = _State(params, loss, grad, memory, dissipation, state.step + 1, num_rises, state.diverged)
    finite = jnp.isfinite(loss) & jnp.isfinite(squared_norm(grad))
    stopped = state._replace(diverged=jnp.array(True))
    return jax.tree.map(lambda new, old: jnp.where(finite, new, old), moved, stopped)


def _observe(watched, problem: Problem, state: _State) -> dict[str, Array]:
    standing = {"loss": state.loss, "grad_norm": jnp.sqrt(squared_norm(state.grad)), "dissipation": state.dissipation}
    own = {name: jnp.asarray(fn(state.params, problem.data)) for name, fn in watched}
    return standing | own | {"step": state.step}


def _stats(state: _State, loss0: float, learning_rate: float, optimizer: str) -> dict[str, Any]:
    num_steps, drop, dissipation = int(state.step), loss0 - float(state.loss), float(state.dissipation)
    scale = max(abs(drop), abs(dissipation))
    return {
        "num_steps": num_steps,
        "num_accepted": num_steps,
        "num_rejected": 0,
        "num_gradients": num_steps + 1,
        "num_rises": int(state.num_rises),
        "t1": learning_rate * num_steps,
        "loss1": float(state.loss),
        "grad_norm1": float(jnp.sqrt(squared_norm(state.grad))),
        "energy_error": abs(drop - dissipation) / scale if scale > 0 else 0.0,
        "conservation": {},
        "solver": optimizer,
    }


def _verdict(state: _State, num_steps: int, learning_rate: float) -> tuple[str, str]:
    step, rises = int(state.step), int(state.num_rises)
    if bool(state.diverged):
        return "diverged", (
            f"Diverged: after step {step}, t = {learning_rate * step:.6g}, the loss or its gradient is not finite any "
            f"more. Lower `learning_rate`, which is {learning_rate:g}: gradient descent needs less than 2/λ₁(∇²L)."
        )
    rose = f"; the loss rose in {rises} of them, as no flow's does" if rises else ""
    return "done", f"Took {num_steps} steps, to t = {learning_rate * step:g}{rose}."


def _find_optimizer(optimizer: Optimizer | None) -> Callable[[Any], optax.GradientTransformation]:
    """The optimizer as a function of the learning rate, the same object for the same argument."""
    if isinstance(optimizer, optax.GradientTransformation):
        return _with_own_rate(optimizer)
    if optimizer is None or isinstance(optimizer, str):
        name = optimizer or "gradient"
        if name not in OPTIMIZERS:
            raise ValueError(f"there is no optimizer called {name!r}: choose among {', '.join(OPTIMIZERS)}.")
        return OPTIMIZERS[name]
    return optimizer


@functools.cache
def _with_own_rate(transformation: optax.GradientTransformation) -> Callable[[Any], optax.GradientTransformation]:
    return lambda learning_rate: transformation


def _describe(optimizer: Optimizer | None) -> str:
    if optimizer is None or isinstance(optimizer, str):
        return f"{optimizer or 'gradient'} descent" if optimizer in (None, "gradient") else str(optimizer)
    if isinstance(optimizer, optax.GradientTransformation):
        return "an optax transformation with its own rate"
    if isinstance(optimizer, functools.partial):
        options = ", ".join(f"{name}={value}" for name, value in optimizer.keywords.items())
        return f"{optimizer.func.__name__}({options})"
    return getattr(optimizer, "__name__", type(optimizer).__name__)


def _check_observables(observables: Mapping[str, Observable]) -> Mapping[str, Observable]:
    check_functions(observables, "descent(observables=...)")
    taken = sorted(name for name in observables if name in (*STANDING, "t", "step") or name.startswith("params1"))
    if taken:
        raise ValueError(f"`observables` may not be called {', '.join(taken)}: the trajectory has its own.")
    return observables
