"""One thread for LAPACK while a flow runs."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import cache
from threading import Lock

import scipy.linalg.cython_lapack  # noqa: F401  (what JAX decomposes matrices with, loaded before it is looked for)
from threadpoolctl import ThreadpoolController

_held = ExitStack()  # while some flow runs
_num_holding = 0
_holding = Lock()


@contextmanager
def one_lapack_thread() -> Iterator[None]:
    """Holds LAPACK, as JAX and NumPy call it, to one thread of its own until no flow runs any more.

    Its idle threads spin for a while and take the cores from those of XLA: of two equal solves one could be ten times
    slower, for matrices that one thread decomposes in microseconds.
    """
    global _num_holding
    with _holding:
        if _num_holding == 0:
            _held.enter_context(_lapack().limit(limits=1))
        _num_holding += 1
    try:
        yield
    finally:
        with _holding:
            _num_holding -= 1
            if _num_holding == 0:
                _held.close()


@cache
def _lapack() -> ThreadpoolController:
    return ThreadpoolController().select(user_api="blas")
