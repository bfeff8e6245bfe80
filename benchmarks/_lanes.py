"""Many flows under one `vmap`, and a real text. Each runs in a process of its own."""

import statistics
import time

import diffrax as dfx
import jax
import jax.numpy as jnp
import numpy as np

import thetadot as td
from _apart import START_CLOCK
from _flows import trace_b, words
from thetadot.problem import vector_field
from thetadot.solvers import DeflatedExponential, DisplacementController

_NUM_LANES = 64
_RTOL = 1e-3
_CALLS = 5


def _steps(params0, problem, t1):
    """(accepted, rejected, final loss) of one lane."""
    solution = dfx.diffeqsolve(
        dfx.ODETerm(vector_field),  # pyright: ignore[reportArgumentType]
        DeflatedExponential(8),
        jnp.zeros_like(t1),
        t1,
        None,
        params0,
        problem,
        stepsize_controller=DisplacementController(_RTOL),
        saveat=dfx.SaveAt(t1=True),
        max_steps=None,
        throw=False,
    )
    loss = problem.loss(jax.tree.map(lambda leaf: leaf[-1], solution.ys))
    return solution.stats["num_accepted_steps"], solution.stats["num_rejected_steps"], loss


_one = jax.jit(_steps)
_many = jax.jit(jax.vmap(_steps, in_axes=(0, None, None)))


def lanes(send, progress) -> None:
    """64 lanes of trace B, ε from 1e-6 to 1e-1, under one `vmap` and one after another."""
    del progress
    send(START_CLOCK)
    flow = trace_b(1.0)
    t1 = jnp.asarray(flow.t1)
    scales = jnp.geomspace(1e-6, 1e-1, _NUM_LANES)
    starts = [jax.tree.map(lambda leaf, scale=scale: scale * leaf, flow.params0) for scale in scales]
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *starts)

    def together():
        return [np.asarray(x) for x in _many(stacked, flow.problem, t1)]

    def one_by_one():
        rows = [jax.block_until_ready(_one(start, flow.problem, t1)) for start in starts]
        return [np.array(x) for x in zip(*rows, strict=True)]

    (accepted, rejected, loss), vmap_seconds, vmap_first = _timed(together)
    (alone, alone_rejected, alone_loss), loop_seconds, _ = _timed(one_by_one)
    steps = accepted + rejected
    send(
        {
            "lanes": _NUM_LANES,
            "rtol": _RTOL,
            "steps": steps.tolist(),
            "min_steps": int(steps.min()),
            "max_steps": int(steps.max()),
            "ratio": float(steps.max() / steps.min()),
            "vmap_seconds": vmap_seconds,
            "vmap_compile_seconds": vmap_first - vmap_seconds,
            "loop_seconds": loop_seconds,
            "lanes_with_other_steps": int(np.sum(steps != alone + alone_rejected)),
            "largest_loss_difference": float(np.max(np.abs(loss - alone_loss))),
        }
    )


def text(send, progress, path: str, vocab_size: int, rtols: tuple[float, ...], repeat: bool) -> None:
    """Bigrams of a text with "auto": time of a first call and of later ones, and how it ended."""
    del progress
    send(START_CLOCK)
    flow = words(path, vocab_size)
    for rtol in rtols:

        def solve(rtol=rtol):
            return td.gradient_flow(flow.problem, flow.params0, flow.t1, rtol=rtol)

        traj, seconds, first = _timed(solve, _CALLS if repeat else 0)
        row = {"words": vocab_size, "num_params": flow.num_params, "t1": flow.t1, "rtol": rtol, "seconds": seconds}
        stats = {name: traj.stats[name] for name in ("num_accepted", "num_rejected", "loss1", "solver")}
        send(row | stats | {"first_call_seconds": first, "result": traj.result})


def _timed(solve, calls: int = _CALLS):
    """(result, median time of later calls, time of the first call); the first alone where there are no later ones."""
    began = time.perf_counter()
    result = solve()
    first, times = time.perf_counter() - began, []
    for _ in range(calls):
        began = time.perf_counter()
        result = solve()
        times.append(time.perf_counter() - began)
    return result, statistics.median(times or [first]), first
