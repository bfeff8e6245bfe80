"""Imports on demand: what a package offers is imported when it is first asked for.

What type checkers read stands in each package under `TYPE_CHECKING`; a test compares it with the table given here.
"""

import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from importlib import import_module
from types import ModuleType
from typing import Any, TypeVar

T = TypeVar("T")


def on_demand(
    package: str, modules: Iterable[str] = (), names: Mapping[str, str] | None = None
) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """The `__getattr__` and `__dir__` of a package whose public names are imported when they are first used.

    Args:
        package: its `__name__`.
        modules: the modules that it offers as they are.
        names: module -> the names that the package offers out of it, separated by blanks. A function may be called
            like its module; the package then offers the function.
    """
    modules = tuple(modules)
    homes = {name: module for module, offered in (names or {}).items() for name in offered.split()}
    this = sys.modules[package]
    this.__class__ = _Package
    this.__dict__["_shadowing"] = frozenset(homes)

    def __getattr__(name: str) -> Any:
        if name in homes:
            value = getattr(import_module(f"{package}.{homes[name]}"), name)
        elif name in modules:
            value = import_module(f"{package}.{name}")
        else:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        setattr(this, name, value)
        return value

    def __dir__() -> list[str]:
        return sorted({*vars(this), *homes, *modules})

    return __getattr__, __dir__


class _Package(ModuleType):
    """A package in which a module does not hide the function that is called like it when it is imported."""

    def __setattr__(self, name: str, value: Any) -> None:
        if not (isinstance(value, ModuleType) and name in self.__dict__["_shadowing"]):
            super().__setattr__(name, value)


class OnDemand(Mapping[str, T]):
    """A registry whose entries are imported when they are looked at.

    Args:
        keys: the names of the entries, in order.
        load: the entry of a name.
    """

    def __init__(self, keys: Iterable[str], load: Callable[[str], T]):
        self._load = load
        self._found: dict[str, T | None] = dict.fromkeys(keys)

    def __getitem__(self, key: str) -> T:
        found = self._found[key]
        if found is None:
            found = self._found[key] = self._load(key)
        return found

    def __iter__(self) -> Iterator[str]:
        return iter(self._found)

    def __len__(self) -> int:
        return len(self._found)

    def __contains__(self, key: object) -> bool:
        return key in self._found
