"""Compilation in a process of its own: XLA may abort there, and nothing waits for it at the end.

A process that compiles is started when it is first needed, serves one program after another, and is replaced when it
has died; there are at most two. Where none can be started, `is_available` says so.
"""

import atexit
import ctypes
import os
import pickle
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, final

import jax
import jaxlib.version

WORKER = Path(__file__).with_name("worker.py")
"""The script that such a process runs."""

_MOST = 2  # processes at once
_START = 60.0  # seconds that one may take to be ready
_EXIT = 1.5  # seconds that the end of this process may take


class Refused(Exception):
    """XLA did not compile a program: it said why, or it died."""


@final
class Child:
    """A process that compiles."""

    def __init__(self):
        command = [sys.executable, "-S", "-P", "-W", "ignore", str(WORKER)]
        pipe, nowhere = subprocess.PIPE, subprocess.DEVNULL
        self._process: Any = subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=nowhere, start_new_session=True)
        self._is_ready = False
        try:
            self._send([path for path in sys.path if path])
        except OSError:  # it has ended at once
            self.close()
            raise

    def ask(self, *program: Any) -> tuple[bytes | None, str | None]:
        """What it answers to a program; an `EOFError` if it dies on it."""
        if not self._is_ready:
            self._wait_until_ready()
        self._send(program)
        return self._receive()

    def has_left(self) -> bool:
        """Whether it ended of its own accord, with nothing to do."""
        return self._process.poll() == 0

    def is_alive(self) -> bool:
        """Whether it runs."""
        return self._process.poll() is None

    def kill(self) -> None:
        """End it."""
        self._process.kill()
        self._process.wait()

    def close(self) -> None:
        """End it, and close its pipes; for the one who asks."""
        self.kill()
        for pipe in (self._process.stdin, self._process.stdout):
            try:
                pipe.close()
            except OSError:  # the rest of a message that was not read
                pass

    def _wait_until_ready(self) -> None:
        """Wait for its first answer.

        Raises:
            OSError: if this is no such process, or one with another jaxlib.
        """
        alarm = threading.Timer(_START, self._process.kill)
        alarm.daemon = True
        alarm.start()
        try:
            version = self._receive()
        except (EOFError, pickle.UnpicklingError) as error:
            raise OSError("no process that compiles can be started") from error
        finally:
            alarm.cancel()
        if version != jaxlib.version.__version__:
            raise OSError(f"that process has jaxlib {version}")
        self._is_ready = True

    def _send(self, value: Any) -> None:
        pickle.dump(value, self._process.stdin)
        self._process.stdin.flush()

    def _receive(self) -> Any:
        return pickle.load(self._process.stdout)


@final
class Children:
    """The processes that compile for this one."""

    def __init__(self):
        self._slots = threading.BoundedSemaphore(_MOST)
        self._lock = threading.Lock()
        self._idle: list[Child] = []
        self._busy: set[Child] = set()
        self._threads: set[threading.Thread] = set()
        self.is_over = False
        self.is_available = bool(sys.executable) and not getattr(sys, "frozen", False)

    def compile(self, *program: Any) -> bytes:
        """The executable of a program.

        Raises:
            Refused: if there is none.
        """
        with self._slots:
            while True:
                child = self._take()
                try:
                    executable, error = child.ask(*program)
                except (EOFError, BrokenPipeError, pickle.UnpicklingError) as end:
                    left = child.has_left()
                    self._put(child, is_usable=False)
                    if self.is_over:
                        raise SystemExit from end
                    if left:
                        continue
                    raise Refused("XLA died") from end
                except OSError as problem:
                    self._put(child, is_usable=False)
                    self.is_available = False
                    raise Refused(str(problem)) from problem
                except BaseException:  # Ctrl-C: what it answers later must not be taken for another's
                    self._put(child, is_usable=False)
                    raise
                self._put(child)
                if executable is None:
                    raise Refused(error)
                return executable

    def start(self) -> None:
        """Have one ready soon."""
        with self._lock:
            if self.is_available and not self._idle and not self._busy and not self.is_over:
                try:
                    self._idle.append(Child())
                except OSError:
                    self.is_available = False

    def run(self, fn: Callable[[], None]) -> bool:
        """Call a function that compiles, or waits for it, in a thread that the end of this process ends."""

        def body():
            try:
                fn()
            except SystemExit:
                pass
            finally:
                self._threads.discard(threading.current_thread())

        if self.is_over:
            return False
        thread = threading.Thread(target=body, name="thetadot compiles", daemon=True)
        self._threads.add(thread)
        thread.start()
        return True

    def end(self) -> None:
        """Kill the processes, and end the threads, which XLA or JAX would take amiss later."""
        until = time.monotonic() + _EXIT
        with self._lock:
            self.is_over, self.is_available = True, False
            idle, busy = list(self._idle), list(self._busy)
            self._idle.clear()
        for child in idle:
            child.close()
        for child in busy:  # which someone waits for, who closes it
            child.kill()
        while time.monotonic() < until and any(thread.is_alive() for thread in list(self._threads)):
            for thread in list(self._threads):
                interrupt(thread, SystemExit)  # what it traces
                thread.join(0.05)

    def _take(self) -> Child:
        with self._lock:
            if not self.is_available:
                raise Refused("there is no process that compiles")
            while self._idle:
                child = self._idle.pop()
                if child.is_alive():
                    break
                child.close()
            else:
                try:
                    child = Child()
                except OSError as error:
                    self.is_available = False
                    raise Refused(str(error)) from error
            self._busy.add(child)
            return child

    def _put(self, child: Child, is_usable: bool = True) -> None:
        with self._lock:
            self._busy.discard(child)
            is_usable &= not self.is_over
            if is_usable:
                self._idle.append(child)
        if not is_usable:
            child.close()


_children = Children()


def interrupt(thread: threading.Thread, exception: type[BaseException]) -> None:
    """Raise an exception in a thread, as soon as it runs code of Python: for the end of this process, and only then."""
    if thread.ident is not None:
        ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread.ident), ctypes.py_object(exception))


def compile_apart(*program: Any) -> bytes:
    """The executable of a program: of its bytecode, serialized options and numbers of devices.

    Raises:
        Refused: if there is none.
    """
    return _children.compile(*program)


def is_available() -> bool:
    """Whether programs can be compiled in another process, for this machine's CPU."""
    return _children.is_available and jax.default_backend() == "cpu"


def start() -> None:
    """Have a process ready soon, if there will be one."""
    _children.start()


def in_background(fn: Callable[[], None]) -> bool:
    """Call a function that traces and compiles elsewhere, in a thread that does not delay exit; whether it is."""
    return _children.run(fn)


def wait_for(event: threading.Event) -> None:
    """Wait until something in the background is over; where it is over because this process ends, this thread ends."""
    if not event.is_set():
        event.wait()
        if _children.is_over:
            raise SystemExit


def _forget() -> None:
    """After a fork: the processes, locks and threads are the parent's."""
    global _children
    _children = Children()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget)
# before threads are joined that wait for a compilation, if Python lets us
getattr(threading, "_register_atexit", atexit.register)(lambda: _children.end())
