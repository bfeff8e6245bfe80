"""Programs: functions of pytrees that are compiled once for each kind of arguments, at once or ahead of time."""

import contextvars
import logging
import threading
from collections.abc import Callable
from functools import cache, wraps
from typing import Any, Concatenate, Generic, ParamSpec, Protocol, TypeVar, final, runtime_checkable

import jax

from .arguments import Arguments, Code, config
from .elsewhere import compile_elsewhere, expect_one
from .kernels import in_few_kernels, is_supported
from .options import OWN_PRODUCTS, QUICK, SMALL, compile_with, is_of_unknown_option, known
from .process import in_background, is_available, wait_for


@runtime_checkable
class Sized(Protocol):
    """What knows whether its arrays are small."""

    @property
    def small(self) -> bool:
        """Whether they are."""
        ...


F = TypeVar("F", bound=Sized)
P = ParamSpec("P")
T = TypeVar("T")

_MOST_KINDS = 512  # of arguments, whose code a program keeps
_log = logging.getLogger(__name__)


def program(
    fn: Callable[Concatenate[F, P], T], *, loops: bool = False, **options: bool
) -> Callable[Concatenate[F, P], T]:
    """A function, compiled for flows of small or of large arrays.

    Args:
        fn: a function whose first argument is the flow.
        loops: whether it loops so often that few kernels are worth their compilation.
        options: what else to ask of XLA, named like its flags. One that this version does not have is not asked for.
    """

    @wraps(fn)
    def call(flow: F, *args: P.args, **kwargs: P.kwargs) -> T:
        return compiled(fn, flow.small, loops, **options)(flow, *args, **kwargs)

    return call


@cache
def compiled(fn: Callable[P, T], small: bool, loops: bool = False, **options: bool) -> "Program[P, T]":
    """A program that compiles quickly, and loops into few kernels, where the arrays are small.

    What XLA refuses to make few kernels of, or dies of, is compiled as it is.

    Args:
        fn: any function.
        small: whether its arrays are small.
        loops: as in `program`.
        options: as in `program`.
    """
    return Program(fn, options | SMALL if small else options, in_few=small and loops)


def quick(fn: Callable[P, T]) -> Callable[P, T]:
    """`jax.jit` of a function of arrays, compiled in as little time as XLA can."""
    jitted = None

    @wraps(fn)
    def call(*args: P.args, **kwargs: P.kwargs) -> T:
        nonlocal jitted
        while True:
            current = jitted
            if current is None:
                options = known(QUICK) if jax.default_backend() == "cpu" else None
                current = jitted = jax.jit(fn, compiler_options=options)
            try:
                return current(*args, **kwargs)
            except RuntimeError as error:
                if not is_of_unknown_option(error):
                    raise
                jitted = None

    return call


@final
class Program(Generic[P, T]):
    """A function of pytrees, compiled.

    Arrays in its arguments, those of NumPy too, may have other values in each call. All else has to be hashable, and
    for other values of that it is compiled anew, as it is for other shapes and dtypes. Arrays that it returns are
    arrays of JAX.

    Args:
        fn: any function.
        options: what to ask of XLA, named like its flags.
        in_few: whether to make it few kernels, if this version of XLA can.
    """

    def __init__(self, fn: Callable[P, T], options: dict[str, Any], in_few: bool = False):
        wraps(fn)(self)
        self._fn, self._options, self._in_few = fn, options, in_few and is_supported()
        self._codes: dict[Any, Code] = {}

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> T:
        """What the function returns; the first time, it is compiled, or its compilation waited for."""
        given = Arguments(args, kwargs)
        if given.are_traced or config.jax_disable_jit:
            return self._fn(*args, **kwargs)
        code = self._code(given)
        if code.compiled is None:
            if code.prepared is not None:
                wait_for(code.prepared)
            self._compile(given, code)
        return code(given.arrays)

    def prepare(self, *args: P.args, **kwargs: P.kwargs) -> None:
        """Begin to trace and to compile for arguments like these; returns at once.

        If that fails, or if there is no other process to compile in, the call compiles.
        """
        given = Arguments(args, kwargs)
        if given.are_traced or (code := self._code(given)).compiled is not None or code.prepared is not None:
            return
        prepared = code.prepared = threading.Event()

        def work() -> None:
            try:
                expect_one()
                with given.settings():
                    self._compile(given, code, make=compile_elsewhere)
            except Exception:  # whatever it is, the call will meet it
                _log.debug("not prepared", exc_info=True)
            finally:
                prepared.set()

        context = contextvars.copy_context()
        if not (is_available() and in_background(lambda: context.run(work))):
            prepared.set()

    def is_ready(self, *args: P.args, **kwargs: P.kwargs) -> bool:
        """Whether the preparation for arguments like these is over, be it in vain."""
        code = self._codes.get(Arguments(args, kwargs).key)
        return code is not None and code.is_ready

    def _code(self, given: Arguments) -> Code:
        code = self._codes.get(given.key)
        if code is None:
            code = self._codes.setdefault(given.key, Code())
            if len(self._codes) > _MOST_KINDS:
                self._codes.pop(next(iter(self._codes)), None)
        return code

    def _compile(self, given: Arguments, code: Code, make: Callable = jax.stages.Lowered.compile) -> None:
        """Let the code be compiled, as few kernels if that can be, or else by `make`."""
        with code.lock:
            if code.compiled is None and self._in_few and is_available():
                code.compiled = self._as_few_kernels(given, code)
            if code.compiled is None:
                code.compiled = compile_with(self._options, given.lower(self._fn, code), make)

    def _as_few_kernels(self, given: Arguments, code: Code) -> jax.stages.Compiled | None:
        expect_one()
        try:
            lowered = given.lower(in_few_kernels(self._fn), code)
            return compile_with(self._options | OWN_PRODUCTS, lowered, compile_elsewhere)
        except Exception as error:  # if it is the function's own, the function will raise it again
            _log.info("%s is not made few kernels: %r", getattr(self._fn, "__name__", "a function"), error)
            return None
