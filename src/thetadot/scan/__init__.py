"""Scans: the same flow at every point of a grid, as a labeled dataset that can be interrupted and resumed.

| module | holds |
|---|---|
| `asked` | arguments that make no sense |
| `grid`, `names` | the axes and their points; what they and the measurements may be called |
| `job` | what is asked for, and what one point solves |
| `lane` | one point: make, solve, measure |
| `identity` | what a lane solves, as numbers by which it is recognized |
| `resume` | finished lanes that would solve something else now |
| `order` | which lane is next: long ones first |
| `engines` | what runs the lanes: threads, devices, executors |
| `leaving` | what an interrupted scan cannot leave at once |
| `head` | what a store says of the scan that it holds |
| `store` | the Zarr group that lanes are kept in |
| `writer` | the thread that writes lanes to it as they finish |
| `checks`, `damage` | what a lane held when it was written, and what a store has lost since |
| `lock` | one process at a time writes a store |
| `keep` | checkpoints of lanes in progress |
| `tally` | live progress |
| `describe` | what a dataset says about itself |
"""

import contextlib
import os
import warnings
from collections.abc import Callable, Mapping
from concurrent.futures import Executor
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import diffrax as dfx
import jax

from ..problem import Observable
from ..stored import as_path
from .asked import check_choice, check_make, check_measure, check_settings, check_stop
from .damage import DAMAGED, check_damage, mend
from .describe import attributes, details, name_of, variables
from .engines import Lanes, choose_engine
from .grid import check_grid, point_at
from .identity import identified, idle_axes, parts
from .job import Job, made, varies
from .keep import forget
from .lane import STATS
from .lock import working
from .resume import CHANGED, reopen, settle
from .store import PENDING, Layout, open_store, pending, read, renew, statuses
from .tally import Count, Tally, counting
from .writer import writing

if TYPE_CHECKING:
    import xarray as xr
    import zarr


_PAIRS = 32  # of lanes, after which an axis is said to change nothing


def scan(
    make: Callable,
    grid: Mapping[str, Any],
    t1: float | Callable[..., float],
    measure: Mapping[str, Any],
    observables: Mapping[str, Observable] | None = None,
    store: str | os.PathLike | None = None,
    executor: Executor | None = None,
    engine: str = "auto",
    solver: str | dfx.AbstractSolver | Callable[..., Any] = "auto",
    rtol: float | Callable[..., float] = 1e-6,
    errors: bool = True,
    progress: bool | Callable[[Tally], None] = False,
    max_steps: int = 1_000_000,
    stop: str | None = None,
    changed: str = "refuse",
    damaged: str = "refuse",
) -> "xr.Dataset":
    """Traces the flow at every point of a grid and measures it there.

    A lane is one point. What goes wrong in a lane, a blow-up, a step limit or an exception, is told by its `status` and
    `result`; the others do not notice.

    Args:
        make: `make(**point) -> (problem, params0)`, with the names of the grid as its arguments. It must return the
            same loss function object at every call, so that lanes share their compiled code.
        grid: name -> values, one dimension each, such as
            `{"init_scale": np.geomspace(1e-5, 1e-1, 33), "seed": range(8)}`.
        t1: where to end, a number or `t1(**point)`: plateaus lengthen as scales shrink.
        measure: name -> crossing (observable, level[, "up" | "down"]), for the first time at which it is passed, with
            its error as `<name>_error`, NaN where it was not reached; or name -> `fn(traj)`, for a number or an array.
            A level is a number or `level(**point)`, which may return None where a lane has no such level; then it is
            in the dataset as `<name>_level`.
        observables: name -> `fn(params, data)`, as in `gradient_flow`.
        store: a Zarr folder that lanes are written to as they finish. The same call goes on from what is there.
        executor: a `concurrent.futures.Executor` whose workers run blocks of lanes: a process pool, or
            `client.get_executor()` of a Dask cluster. Default: threads of this process.
        engine: "threads", lanes one by one on every core; "batches", lanes side by side under one `vmap`;
            or "auto": threads on a CPU, batches on an accelerator unless the solver is explicit. Workers of an executor
            run lanes one by one, or in batches with "batches": on the cores of a CPU the fastest for many even lanes.
        solver: as in `gradient_flow`, or `solver(**point)`.
        rtol: as in `gradient_flow`, or `rtol(**point)`. The precision is that of the parameters that `make` returns.
        errors: solve each lane with crossings twice more, at `rtol`/10 and `rtol`/100, for the errors of their times
            (see `crossing_times`). That costs several times what the lane does; without it the errors are NaN. These
            two flows are left as soon as they have passed all that the first one passed, which changes no number.
        progress: True for a live line on stderr, or a function of a `Tally`.
        max_steps: of each lane, as in `gradient_flow`.
        stop: name of a crossing in `measure` that ends a lane, whose status is then "stopped". Without it a lane goes
            on to `t1` after its last crossing, to tell where it ends and whether it blows up.
        changed: what to do with lanes that the store has finished and that would solve something else now. "refuse":
            a ValueError that names what has changed. "redo": solve these again. "trust": keep them where only
            functions differ (loss, conserved quantities, observables, functions of the trajectory), taken to compute
            what they did; needed after a new version of Python, JAX or NumPy, which write functions in another way.
            From then on the store takes these lanes for made by the functions of this call.
        damaged: what to do with a store in which a file is missing or altered: "refuse" it, in a sentence that says
            which lanes that concerns, or "redo": solve those again and keep all others. All of a store is read for it.

    **What a store remembers.** Of every lane: its start and data (every bit), the programs that JAX traces from loss,
    conserved quantities and observables, with the constants in them, functions of the trajectory with all that they
    use, levels, `t1`, `solver`, `rtol` and the other settings; no names, texts or files of functions. What comes from
    `make`, `t1` or a level is known by what it returns. When the store is used again each finished lane is compared,
    before anything is compiled: that takes a call of `make`, one trace of each function for each kind of shapes, and
    about half a millisecond (a minute for 1e5 lanes). What has no content that could be read (the function behind a
    `pure_callback`, a lock, what `eval` or `open` find) is trusted by its name, and listed in the attribute
    `trusted_by_name` of the dataset; installed packages are known by their versions, as far as the trace or a function
    of the trajectory meets them. A function of the trajectory that changes what it refers to (a counter, a memo) looks
    changed at the next call: "trust" goes on.

    Returns:
        A dataset over the grid: what was measured, `status` ("done", "stopped", "blew up", "step limit", "failed"),
        `result` (the same in a sentence), `num_steps` and `num_gradients` of the solve at `rtol`, `loss1`, `t_end`
        (where the flow ended, or came to rest) and `wall_s` (of everything in the lane). Settings, versions and
        platform are in its attributes, meaning and unit of each variable in its own. Arrays in a store stay there until
        they are looked at.

        The same call goes on inside lanes that a kill interrupted, from checkpoints that are written to the store every
        half a minute, on threads and in batches; an executor begins them anew. It takes the steps that it would have
        taken. In batches the last lanes go on alone, and which these are depends on when the scan was interrupted: a
        number may differ by rounding (1e-14 of it), and an error of a time, a small difference, by 1e-3 of itself. A
        checkpoint made by other versions, or of another loss or other data, is left alone and the lane begins anew.

    Warns:
        UserWarning: lanes at the first and the last value of an axis solve the same, so that the axis changes nothing.
            Up to 32 pairs of lanes are looked at, drawn from the grid, before any is run.

    Raises:
        ValueError: an argument makes no sense, or the store is damaged or that of another scan; the message says which.
        OSError: the store cannot be written, or another process is writing it; the lanes finished before are safe.
        KeyboardInterrupt: after Ctrl-C, with the finished lanes in the store.
    """
    path = None if store is None else as_path(store, "scan(store=...)")
    check_make(make)
    axes, observables = check_grid(grid), {} if observables is None else observables
    crossings, functions = check_measure(measure, axes, observables)
    check_settings(t1, solver, rtol, errors, max_steps)
    check_choice(changed, CHANGED, "changed")
    check_choice(damaged, DAMAGED, "damaged")
    check_stop(stop, crossings)
    x64 = bool(jax.config.jax_enable_x64)  # pyright: ignore[reportAttributeAccessIssue]
    rtol = rtol if varies(rtol) else float(rtol)  # pyright: ignore[reportArgumentType]
    job = Job(make, axes, t1, crossings, functions, {**observables}, solver, rtol, bool(errors), max_steps, x64, stop)
    loss = _loss_name(job)
    run = choose_engine(engine, executor, job)
    about = variables(job)
    job, trusted = identified(job)
    attrs = attributes(job, loss) | {"trusted_by_name": trusted}
    layout = Layout(axes, about, tuple(functions), attrs, parts(job))
    group = open_store(path, layout, mends=damaged == "redo")
    is_damaged = check_damage(group, path, layout, damaged)
    differs = details(group, attrs)
    left = [] if is_damaged else pending(group)
    settled = None if is_damaged else settle(group, path, job, changed, differs)
    if settled is None or left or any(settled):
        _say_idle(job)
        with working(group, path) as folder:
            if path is not None and is_damaged:
                mend(group, path, layout)
            if settled is None or pending(group) != left:  # it was mended, or another process has finished some
                settled = settle(group, path, job, changed, differs)
            reopen(group, layout, job, settled)
            if differs:
                renew(group, layout)
            job = job._replace(folder=folder)
            _run(run(job, pending(group)), group, layout, job, path, progress)
    scalars = [name for name in about if name not in STATS]
    ds = read(group, axes, [*scalars, *functions, "status", "result", *STATS])
    return ds.load() if path is None else ds


def _say_idle(job: Job) -> None:
    for name in idle_axes(job, _PAIRS):
        warnings.warn(
            f"`grid[{name!r}]` changes nothing: lanes at its first and last value solve the same, wherever that was "
            "looked at. Use it in `make`, or in `t1`, `rtol`, `solver` or a level as a function of the point.",
            stacklevel=3,
        )


def _run(lanes: Lanes, group: "zarr.Group", layout: Layout, job: Job, path: Path | None, progress) -> None:
    """Writes lanes as they finish, until all have or Ctrl-C is pressed."""
    before = statuses(group)
    left = before.pop(PENDING, 0)
    try:
        with (
            counting(progress, before, before.total() + left) as count,
            writing(group, layout, path, partial(_written, job, count)) as hand_over,
            contextlib.closing(lanes),
        ):
            for lane, row in lanes:
                if row is None:
                    count.begun()
                else:
                    count.ended()
                    hand_over(lane, row)
    except KeyboardInterrupt:
        after = statuses(group)
        told = f"interrupted with {after[PENDING]} of {after.total()} lanes to do"
        kept = f"the others are in `{path}`, and the same call goes on from there"
        lost = "nothing was kept: a `store` would have kept the others"
        raise KeyboardInterrupt(f"{told}; {lost if path is None else kept}.") from None


def _written(job: Job, count: Count, lane: int, status: str) -> None:
    if job.folder is not None:
        forget(job.folder, lane)
    count.written(status)


def _loss_name(job: Job) -> str | None:
    """The loss at the first point; None where `make` fails there, as its lane will tell.

    Raises:
        ValueError: `make` does not return the same functions when it is called again.
    """
    point = point_at(job.axes, 0)
    try:
        one, again = made(job.make, point)[0], made(job.make, point)[0]
    except KeyboardInterrupt:
        raise
    except BaseException:
        return None
    if jax.tree.structure(one) != jax.tree.structure(again):
        raise ValueError(
            "`make` returns new functions at each call, so that every lane would compile for seconds: define the loss "
            "and the conserved quantities once, outside of it, and let `data` vary."
        )
    return name_of(one.loss_fn)
