"""A function that cannot be traced: its instructions, without names of variables, and all that they use.

Comments, docstrings, lines, files, and names of functions and variables are not in it; the contents of global
variables, closures, defaults and constants are, followed from function to function.
"""

import dis
import importlib
import importlib.util
import inspect
import sys
from collections.abc import Callable, Collection, Mapping
from types import CodeType, FunctionType, ModuleType
from typing import Any

from .jaxpr import Writes
from .library import is_library, is_library_file, with_version

_KINDS = inspect.CO_VARARGS | inspect.CO_VARKEYWORDS | inspect.CO_GENERATOR | inspect.CO_COROUTINE
_OF_CLOSURES = {"MAKE_CELL", "COPY_FREE_VARS", "LOAD_CLOSURE"}  # ordered by name; what is in them is used elsewhere
_OF_GLOBALS = {"LOAD_GLOBAL", "LOAD_NAME"}
_LOOKS_ELSEWHERE = {"eval", "exec", "globals", "vars", "open", "input", "__import__"}  # nobody can tell where
_OF_ATTRIBUTES = {"LOAD_ATTR", "LOAD_METHOD"}
_OF_DATACLASSES = {"__dataclass_fields__", "__dataclass_params__", "__match_args__", "__signature__"}
_OF_CLASSES = {"__module__", "__doc__", "__dict__", "__weakref__", "__qualname__", "__annotations__", "__slotnames__"}
_UNREAD = (
    _OF_CLASSES | _OF_DATACLASSES | {"__firstlineno__", "__static_attributes__", "__abstractmethods__", "_abc_impl"}
)


def write_function(to: Writes, fn: FunctionType, with_names: bool) -> None:
    """Writes a function; with the names of its parameters where it may be called by them."""
    code = fn.__code__
    if code.co_filename.startswith("<@beartype"):  # checks of types around a function
        to.write(fn.__wrapped__)  # pyright: ignore[reportFunctionMemberAccess]
        return
    names: dict[str, str] = {}
    if is_library_file(code.co_filename):
        to.text("library", with_version(fn.__globals__.get("__name__", "")), code.co_qualname, code.co_code.hex())
    else:
        if with_names:
            to.text(*code.co_varnames[: code.co_argcount + code.co_kwonlyargcount])
        _write_code(to, code, fn.__globals__, _numbering(names))
    to.write(fn.__defaults__)
    to.write(fn.__kwdefaults__)
    cells = dict(zip(code.co_freevars, fn.__closure__ or (), strict=True))
    for name in sorted(cells, key=lambda name: names.get(name, name)):
        try:
            to.write(cells[name].cell_contents)
        except ValueError:
            to.text("empty")


def write_class(to: Writes, cls: type) -> None:
    """Writes a class with its bases and all that it holds."""
    if is_library(cls.__module__):
        to.text("library", with_version(cls.__module__), cls.__qualname__)
        return
    to.text("class")
    if not is_library(type(cls).__module__):
        to.write(type(cls))
    to.write(cls.__bases__)
    for name in sorted(set(vars(cls)) - _UNREAD):
        to.text(name)
        to.write(vars(cls)[name])


def write_module(to: Writes, module: ModuleType) -> None:
    """Writes a module: one of a library by its version, one of the user with all that is in it."""
    if is_library(module.__name__):
        to.text("library", with_version(module.__name__))
        return
    to.text("module")
    for name in sorted(name for name in vars(module) if not name.startswith("__")):
        to.text(name)
        to.write(vars(module)[name])


def _write_code(to: Writes, code: CodeType, scope: Mapping[str, Any], number: Callable[[str], str]) -> None:
    """Writes instructions; `number` tells the variables apart."""
    num_parameters = code.co_argcount + code.co_kwonlyargcount
    num_parameters += bool(code.co_flags & inspect.CO_VARARGS) + bool(code.co_flags & inspect.CO_VARKEYWORDS)
    for name in code.co_varnames[:num_parameters]:
        number(name)
    to.text("code", str(code.co_flags & _KINDS), str(code.co_argcount), str(code.co_posonlyargcount))
    to.text(str(code.co_kwonlyargcount), code.co_exceptiontable.hex())
    steps, places = _steps(code)
    at, imported = 0, None
    while at < len(steps):
        step = steps[at]
        at += 1
        to.text(step.opname)
        if step.opname in _OF_CLOSURES:
            continue
        if step.opname in _OF_GLOBALS and step.argval in scope:
            value = scope[step.argval]
            while _is_users(value) and at < len(steps) and _is_in(value, steps[at]):
                value = vars(value)[steps[at].argval]
                at += 1
            to.write(value)
        elif step.opname in _OF_GLOBALS and step.argval in _LOOKS_ELSEWHERE:
            to.trust(f"{step.argval}(…)")
        elif step.opname == "IMPORT_NAME":
            imported = _imported(step.argval, steps[at - 3].argval, scope)
            if not _is_users(imported):
                to.text(step.argval)
            elif steps[at].opname != "IMPORT_FROM":
                to.write(imported)
        elif step.opname == "IMPORT_FROM" and _is_users(imported):
            to.write(getattr(imported, step.argval, None))
        elif isinstance(step.argval, CodeType):
            _write_code(to, step.argval, scope, _numbering({}, step.argval.co_freevars, number))
        elif step.opcode in dis.hasconst:
            to.write(step.argval)
        elif step.opcode in dis.haslocal or step.opcode in dis.hasfree:
            both = step.argval if isinstance(step.argval, tuple) else (step.argval,)
            to.text(*(number(name) for name in both))
        elif step.opcode in dis.hasjrel or step.opcode in dis.hasjabs:
            to.text(str(places.get(step.argval, "end")))
        elif step.opcode in dis.hasname:
            to.text(str(step.argval))
        else:
            to.text(str(step.arg))


def _steps(code: CodeType) -> tuple[list[dis.Instruction], dict[int, int]]:
    """The instructions, and offset -> which one. Prefixes for large arguments depend on how names are ordered."""
    steps, places = [], {}
    for step in dis.get_instructions(code):
        places[step.offset] = len(steps)
        if step.opname != "EXTENDED_ARG":
            steps.append(step)
    return steps, places


def _numbering(
    names: dict[str, str], free: Collection[str] = (), outer: Callable[[str], str] | None = None
) -> Callable[[str], str]:
    """Numbers variables as they appear, into `names`; those that an outer function has keep its numbers."""

    def number(name: str) -> str:
        if name not in names:
            names[name] = f"outer {outer(name)}" if outer and name in free else f"{len(names):06d}"
        return names[name]

    return number


def _is_users(value: Any) -> bool:
    return isinstance(value, ModuleType) and not is_library(value.__name__)


def _is_in(module: ModuleType, step: dis.Instruction) -> bool:
    return step.opname in _OF_ATTRIBUTES and step.argval in vars(module)


def _imported(name: str, level: Any, scope: Mapping[str, Any]) -> ModuleType | None:
    """The module that an import inside a function finds."""
    try:
        package = scope.get("__package__") or ""
        full = importlib.util.resolve_name("." * level + name, package) if level else name
        return sys.modules.get(full) or importlib.import_module(full)
    except Exception:  # it will say so when the function runs
        return None
