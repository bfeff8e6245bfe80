"""Engines: what runs the lanes. Each takes lanes and yields them, with what they left behind, as they finish.

An engine is a generator `engine(job, lanes) -> (lane, row), …` in any order, which also tells of lanes that begin, by
(lane, None). When it is closed, or an exception passes through it, it hands out no more lanes.
"""

import contextlib
import os
import pickle
import time
from collections import deque
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import Executor, Future
from functools import lru_cache, partial
from queue import SimpleQueue
from threading import Event, Thread

import jax

from ..engine import Run, drive_together, on_one_core
from ..flow import Ongoing
from ..progress import Report
from ..solvers import is_explicit
from .job import Job, varies
from .keep import keeping
from .lane import PASSED_ON, Interrupted, Lane, Row, run_lane
from .leaving import wait_at_exit
from .order import Waiting

Lanes = Generator[tuple[int, Row | None], None, None]
Engine = Callable[[Job, Sequence[int]], Lanes]

_BLOCK = 64  # lanes, at most, that an executor is given at once
_BLOCKS = 64  # at least, that a scan is cut into
_BLOCK_S = 5.0  # after which a block comes back with what it has: more would be lost with its worker
_WIDTHS = {"cpu": 16}  # lanes of a batch, by backend
_WIDE = 1024  # on others
_PATIENCE_S = 1.0  # for threads to leave their lanes after an interrupt; one that compiles cannot leave at once


Take = Callable[[], int | None]  # the next lane to do, None if there is no more
Put = Callable[[tuple[int, Row]], None]
Check = Callable[[Report | None], None]  # raises `Interrupted` when the scan is over
Work = Callable[[Job, Take, Put, Check], None]


def threads(job: Job, lanes: Sequence[int]) -> Lanes:
    """Lanes one by one on every core, or on every device where there are several."""
    return _spread(partial(_one_by_one, job), Waiting(job.axes, lanes), len(lanes), _places())


def batches(job: Job, lanes: Sequence[int]) -> Lanes:
    """Lanes side by side under one `vmap`, on every accelerator, or in one thread of the CPU.

    On a CPU batches take turns (see `drive_together`), so that a second thread would gain nothing.
    """
    places = _places()[:1] if jax.default_backend() == "cpu" else _places()
    return _spread(partial(_side_by_side, job), Waiting(job.axes, lanes), len(lanes), places)


def _one_by_one(job: Job, take: Take, put: Put, check: Check) -> None:
    while (lane := take()) is not None:
        put((lane, run_lane(job, lane, check)))


def _side_by_side(job: Job, take: Take, put: Put, check: Check) -> None:
    ongoing: dict[int, tuple[Lane, Ongoing]] = {}  # by the identity of their runs
    tighter: deque[Lane] = deque()  # lanes that go on at the next tolerance

    def in_progress() -> list[Lane]:
        return [*(lane for lane, _ in ongoing.values()), *tighter]

    def next_run() -> Run | None:
        while (lane := _next_lane(job, tighter, take)) is not None:
            flow = lane.begin()
            if flow is not None:
                ongoing[id(flow.run)] = lane, flow
                return flow.run
            put((lane.number, lane.row()))
        return None

    try:
        look = keeping(job.folder, lambda: [lane.keep for lane in in_progress()], check)
        with jax.enable_x64(job.x64):
            for run in drive_together(next_run, _width(), look):
                lane, flow = ongoing.pop(id(run))
                if lane.end(flow):
                    tighter.append(lane)
                else:
                    put((lane.number, lane.row()))
    except PASSED_ON:
        raise
    except BaseException:  # something that cannot run under `vmap`, perhaps: each lane alone tells what
        check(None)  # or the process ends, and so did what compiles for it
        for lane in in_progress():
            put((lane.number, run_lane(job, lane.number, check)))
        _one_by_one(job, take, put, check)


def _width() -> int:
    return _WIDTHS.get(jax.default_backend(), _WIDE)


def _next_lane(job: Job, tighter: deque[Lane], take: Take) -> Lane | None:
    if tighter:
        return tighter.popleft()
    number = take()
    return None if number is None else Lane(job, number)


def _spread(work: Callable[[Take, Put, Check], None], waiting: Waiting, left: int, places: Sequence) -> Lanes:
    """The `left` lanes that wait, through `work`, which runs in a thread for each place."""
    results, stop = SimpleQueue(), Event()
    crowded = jax.default_backend() == "cpu" and 1 < len(places) <= left

    def take() -> int | None:
        lane = None if stop.is_set() else waiting.take()
        if lane is not None:
            results.put((lane, None))
        return lane

    def check(report: Report | None) -> None:
        del report
        if stop.is_set():
            raise Interrupted

    def run(device):
        place = jax.default_device(device) if device else contextlib.nullcontext()
        try:
            with place, on_one_core() if crowded else contextlib.nullcontext():
                work(take, results.put, check)
        except Interrupted:
            pass
        except BaseException as error:  # whatever it is, nobody waits for its lane for ever
            results.put(error)

    def run_quietly(device):
        with contextlib.suppress(Interrupted):  # once more, by the end of the process
            run(device)

    workers = [Thread(target=run_quietly, args=(place,), daemon=True) for place in places[:left]]
    try:
        for worker in workers:
            worker.start()
        while left:
            result = results.get()
            if isinstance(result, BaseException):
                raise result
            lane, row = result
            if row is not None:
                waiting.learn(lane, row)
                left -= 1
            yield lane, row
    finally:
        stop.set()
        patience = time.monotonic() + _PATIENCE_S
        for worker in workers:
            worker.join(max(0.0, patience - time.monotonic()))
        wait_at_exit(workers)


def _places() -> list:
    """The device of each thread; None is the usual one."""
    chosen, devices = jax.config.jax_default_device, jax.local_devices()  # pyright: ignore[reportAttributeAccessIssue]
    return devices if len(devices) > 1 and chosen is None else [chosen] * num_cores()


def num_cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def blocks(executor: Executor, work: Work, job: Job, lanes: Sequence[int]) -> Lanes:
    """Blocks of lanes on the workers of an executor: a process pool, a cluster."""
    packed = _pack(job._replace(folder=None))  # workers may not see this disk
    size = max(1, min(_BLOCK, len(lanes) // _BLOCKS))
    if work is _side_by_side:
        size = max(size, 2 * _width())
    cut = [lanes[i : i + size] for i in range(0, len(lanes), size)]

    finished: SimpleQueue[Future] = SimpleQueue()  # to wait for all of them would look at each, each time
    running: dict[Future, Sequence[int]] = {}

    def submit(block: Sequence[int]) -> None:
        future = executor.submit(run_block, work, packed, job.x64, block)
        running[future] = block
        future.add_done_callback(finished.put)

    try:
        for block in cut:
            submit(block)
        while running:
            future = finished.get()
            block = running.pop(future)
            rows = _rows(future)
            if left := [lane for lane in block if lane not in rows]:
                submit(left)
            yield from rows.items()
    finally:
        for future in running:
            future.cancel()


def run_block(work: Work, packed: bytes, x64: bool, lanes: Sequence[int]) -> dict[int, Row]:
    """The first of these lanes, as many as begin within the time of a block, on a worker."""
    began, waiting, done = time.perf_counter(), deque(lanes), []

    def take() -> int | None:
        over = len(waiting) < len(lanes) and time.perf_counter() - began >= _BLOCK_S
        return None if over or not waiting else waiting.popleft()

    with jax.enable_x64(x64):  # the modules that are imported now may make arrays
        job = _unpack(packed)
    work(job, take, done.append, lambda report: None)
    return dict(done)


def _rows(future: Future) -> dict[int, Row]:
    try:
        return future.result()
    except Exception as error:
        raise RuntimeError(
            f"a worker of `executor` could not run its lanes ({type(error).__name__}: {error}): it must be able to "
            "import what `make`, `measure` and `observables` need, and have the memory for it."
        ) from error


def _pack(job: Job) -> bytes:
    try:
        return _pickler().dumps(job)
    except Exception as error:  # pickle raises three kinds
        raise ValueError(
            f"`make`, `measure`, `t1` and `observables` must be picklable to be sent to `executor`: define them at the "
            f"top of a module ({error})."
        ) from error


@lru_cache(maxsize=1)  # functions that come by value would be new ones in every block, and compile again
def _unpack(packed: bytes) -> Job:
    return pickle.loads(packed)


def _pickler():
    """Pickle, or cloudpickle where it is installed, as on clusters: it also sends functions of a notebook."""
    try:
        import cloudpickle  # pyright: ignore[reportMissingImports]
    except ImportError:
        return pickle
    return cloudpickle


ENGINES: dict[str, Engine] = {"threads": threads, "batches": batches}


def choose_engine(engine: str, executor, job: Job) -> Engine:
    """The engine of that name, or the workers of an executor. "auto" chooses by the device and the solver."""
    if engine not in ["auto", *ENGINES]:
        raise ValueError(f"unknown engine {engine!r}: choose one of auto, {', '.join(ENGINES)}.")
    if executor is not None:
        if not isinstance(executor, Executor):
            raise ValueError(
                f"`executor` must be a `concurrent.futures.Executor`; got {type(executor).__name__}. "
                "Of a Dask client, pass `client.get_executor()`."
            )
        if engine == "threads":
            raise ValueError("a worker of `executor` has no threads: leave `engine` out, or pass engine='batches'.")
        return partial(blocks, executor, _side_by_side if engine == "batches" else _one_by_one)
    if engine == "auto":
        return batches if _gains_from_batches(job) else threads
    return ENGINES[engine]


def _gains_from_batches(job: Job) -> bool:
    """Whether lanes take about equally many steps, on a device where a step is mostly overhead.

    On a CPU threads are as fast (benchmarks/README.md) and need less memory. Explicit steps are as short as the flow is
    stiff, so that lanes of different scales end at very different times.
    """
    return jax.default_backend() != "cpu" and not (varies(job.solver) or is_explicit(job.solver))  # pyright: ignore
