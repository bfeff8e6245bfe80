"""Trees of arrays as named arrays and a text that says how they hang together, and back."""

from typing import Any
from urllib.parse import quote

import jax
from jaxtyping import PyTree

_LONGEST = 180  # of a name, which is that of a folder: most file systems take 255 bytes
_KINDS = {dict: "dict", list: "list", tuple: "tuple"}
_KEYS = str | int | float | bool | None  # of a dict, that JSON gives back as they were


def named_leaves(tree: PyTree, name: str) -> tuple[Any, dict[str, Any]]:
    """(outline, leaves by name), such as `params1.layers.[0].w`: dots, slashes and brackets in a key are escaped.

    The outline can be written as JSON. A list is `{"list": […]}`, a dict `{"dict": [[key, …], …]}`, any other container
    `{"fields": [[name, …], …]}`, None is None, and a leaf is its name.
    """
    leaves: dict[str, Any] = {}

    def visit(node: PyTree, name: str) -> Any:
        steps = jax.tree_util.tree_flatten_with_path(node, is_leaf=lambda below: below is not node)[0]
        if [path for path, _ in steps] == [()]:
            unique = name if len(name) <= _LONGEST and name not in leaves else f"{name[:_LONGEST]}%%{len(leaves)}"
            leaves[unique] = node
            return unique
        if node is None:
            return None
        inner = [(_key(step), visit(below, f"{name}.{_step(step)}")) for (step,), below in steps]
        kind = _KINDS.get(type(node), "fields")
        return {kind: [below for _, below in inner] if kind in ("list", "tuple") else [list(pair) for pair in inner]}

    return visit(tree, name), leaves


def from_outline(outline: Any, leaves: dict[str, Any]) -> PyTree:
    """The tree again. A container other than dict, list and tuple is a dict of its fields."""
    if outline is None or isinstance(outline, str):
        return None if outline is None else leaves[outline]
    ((kind, inner),) = outline.items()
    if kind in ("dict", "fields"):
        return {key: from_outline(below, leaves) for key, below in inner}
    return {"list": list, "tuple": tuple}[kind](from_outline(below, leaves) for below in inner)


def _key(step: Any) -> Any:
    """Of one step of a path: a key of a dict, or the name of a field. What JSON cannot say is told in words."""
    key = getattr(step, "key", getattr(step, "name", getattr(step, "idx", step)))
    return key if isinstance(key, _KEYS) else str(key)


def _step(step: Any) -> str:
    """One step in a name; positions in brackets, so that they are told from keys."""
    if isinstance(step, jax.tree_util.SequenceKey):
        return f"[{step.idx}]"
    return quote(str(_key(step)), safe="").replace(".", "%2E")
