"""The trajectory of a flow: what was recorded on the way, where it ended, and why."""

import dataclasses
import json
import os
import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, unquote

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree

if TYPE_CHECKING:
    import xarray as xr  # imported where it is used: half a second

_PARAMS = "params1"


class Trajectory(eqx.Module):
    """A traced gradient flow, or discrete training on its clock. `traj[name]` is a series along `traj.ts`.

    Attributes:
        ts: times of the rows, shape (T,): the solver's accepted steps, or the save grid.
        series: name -> array (T, …): `loss`, `grad_norm` = ‖∇L‖₂, `dissipation` = ∫₀ᵗ‖∇L‖², and the observables.
        crossings: name -> times at which the observable passed its level or first reached it, in order.
        params1: the parameters where the flow ended.
        status: "done", "stopped" (at a crossing), "rounding" (it decides when the flow leaves a saddle), "blew up",
            "step limit" or "failed"; "diverged" for descent only.
        result: the same as a sentence that says what happened and what to try.
        stats: numbers of the solve: steps, gradients, the solver and its wall time, `conservation` (drift of each
            invariant) and `energy_error`, |L(0) − L(t₁) − ∫‖∇L‖²| over the drop of the loss. The integral takes four
            points a step: where one step spans many relaxation times it is the coarser of the two. `is_gradient` is
            False where both this and differences of the loss say that the gradient is not its. For each crossing
            `unwatched`, the longest time between two looks at its observable, and `jumps`, those of its times at which
            the observable jumps.
            `rounding` is the largest part of the motion in a growing direction that came from rounding.
        provenance: settings, versions, commit, platform.
    """

    ts: np.ndarray
    series: dict[str, np.ndarray]
    crossings: dict[str, list[float]]
    params1: PyTree
    status: str
    result: str
    stats: dict[str, Any]
    provenance: dict[str, Any]

    def __getitem__(self, name: str) -> np.ndarray:
        """The series called `name`."""
        if name not in self.series:
            raise KeyError(f"No series {name!r} in this trajectory; it has {', '.join(self.names)}.")
        return self.series[name]

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the series."""
        return tuple(self.series)

    def __repr__(self) -> str:
        stats = self.stats
        lines = [
            f"Trajectory: {self.result}",
            f"  t in [{self.ts[0]:.6g}, {self.ts[-1]:.6g}], {len(self.ts)} rows of {', '.join(self.names)}"
            if len(self.ts)
            else "  no rows",
            f"  loss {self._first('loss'):.6g} -> {stats.get('loss1', float('nan')):.9g}, "
            f"‖∇L‖ {stats.get('grad_norm1', float('nan')):.3g}",
            f"  {stats.get('num_accepted')} steps, {stats.get('num_rejected')} rejected; {stats.get('solver')}, "
            f"{self._accuracy()}; energy identity to {stats.get('energy_error', float('nan')):.1e}",
        ]
        lines += [f"  invariant {name}: drift {drift:.1e}" for name, drift in stats.get("conservation", {}).items()]
        for name, times in self.crossings.items():
            lines.append(
                f"  crossing {name}: {', '.join(f'{t:.6g}' for t in times[:6]) or 'never'}" + " …" * (len(times) > 6)
            )
        return "\n".join(lines)

    def _accuracy(self) -> str:
        """What sets it: the tolerance of a flow, or the learning rate of descent."""
        if "learning_rate" in self.provenance:
            return f"learning rate {self.provenance['learning_rate']:g}"
        return f"rtol {self.provenance['rtol']:g}"

    def _first(self, name: str) -> float:
        return float(self.series[name][0]) if len(self.ts) else float("nan")

    def with_provenance(self, **extra) -> "Trajectory":
        """The same trajectory with more settings on record, such as a seed."""
        return dataclasses.replace(self, provenance={**self.provenance, **extra})

    def to_xarray(self) -> "xr.Dataset":
        """A dataset over `t`, one variable a series, with crossings, outcome and provenance in its attributes.

        Array-valued observables get dimensions `<name>_0`, `<name>_1`, …; the final parameters are variables
        `params1.<path>` without a time.
        """
        import xarray as xr

        return xr.Dataset(self._variables(), coords={"t": self.ts}, attrs=self._attributes())

    def _variables(self) -> dict[str, tuple[tuple[str, ...], np.ndarray]]:
        """Name -> (dimensions, values)."""
        variables = {}
        for name, values in self.series.items():
            quoted = _quoted(name)
            variables[quoted] = (("t", *(f"{quoted}_{i}" for i in range(values.ndim - 1))), values)
        for path, leaf in _leaves(self.params1).items():
            name = _quoted(path)
            variables[name] = (tuple(f"{name}_{i}" for i in range(np.ndim(leaf))), np.asarray(leaf))
        return variables

    def _attributes(self) -> dict[str, str]:
        return {
            "status": self.status,
            "result": self.result,
            "series": json.dumps(list(self.series)),
            "crossings": json.dumps(self.crossings),
            "stats": json.dumps(self.stats),
            "provenance": json.dumps(self.provenance),
        }

    def save(self, path: str | os.PathLike) -> None:
        """Writes the trajectory as a Zarr folder, all of it or nothing, which `xarray.open_zarr` opens too.

        Raises:
            FileExistsError: `path` is there already.
            OSError: the folder cannot be written; what was begun is removed.
        """
        import zarr  # and not xarray, which takes pandas and most of a second to import

        path = Path(path)
        if path.exists():
            raise FileExistsError(f"`{path}` exists: remove it, or save under another name.")
        path.parent.mkdir(parents=True, exist_ok=True)
        # Written beside its place and moved there at the end, so that no half-written run is ever found.
        with tempfile.TemporaryDirectory(dir=path.parent, prefix=f".{path.name}-") as scratch:
            written = Path(scratch) / "run"
            group = zarr.create_group(written, attributes=self._attributes())
            for name, (dims, values) in {"t": (("t",), self.ts), **self._variables()}.items():
                array = group.create_array(name, shape=values.shape, dtype=values.dtype, dimension_names=dims)
                array[...] = values
            shutil.move(written, path)


def load(path: str | os.PathLike, like: PyTree = None) -> Trajectory:
    """Reads a trajectory written by `Trajectory.save`.

    Args:
        path: the Zarr folder.
        like: parameters with the structure wanted for `params1`. Without it, dicts and lists come back as they were
            and any other container as a dict of its fields.

    Raises:
        ValueError: `path` is not a saved trajectory.
    """
    import zarr

    path = Path(path)
    if not path.is_dir():
        raise ValueError(f"`{path}` is not a saved trajectory: no such folder.")
    try:
        group = zarr.open_group(path, mode="r")
        arrays = {unquote(name): np.asarray(array[...]) for name, array in group.arrays()}
        attrs = {name: json.loads(str(group.attrs[name])) for name in ("series", "crossings", "stats", "provenance")}
        status, result = str(group.attrs["status"]), str(group.attrs["result"])
        ts, series = arrays["t"], {name: arrays[name] for name in attrs["series"]}
    except Exception as error:  # zarr raises a dozen kinds
        raise ValueError(f"`{path}` is not a saved trajectory, or is damaged: {error}") from error
    params1 = {name: jnp.asarray(values) for name, values in arrays.items() if name.split(".")[0] == _PARAMS}
    return Trajectory(
        ts=ts,
        series=series,
        crossings=attrs["crossings"],
        params1=_like(like, params1) if like is not None else _nested(params1),
        status=status,
        result=result,
        stats=attrs["stats"],
        provenance=attrs["provenance"],
    )


def _leaves(params: PyTree) -> dict[str, Any]:
    """Leaves by their path: `params1.w_0`, `params1.[0]` and so on."""
    flat, _ = jax.tree_util.tree_flatten_with_path(params)
    return {".".join([_PARAMS, *map(_key, path)]): leaf for path, leaf in flat}


def _quoted(path: str) -> str:
    """A path as the name of a Zarr array, which cannot have slashes."""
    return quote(path, safe="[]")


def _key(entry) -> str:
    """One step of a path; list positions in brackets, so that they are told from names."""
    if isinstance(entry, jax.tree_util.SequenceKey):
        return f"[{entry.idx}]"
    return str(getattr(entry, "key", getattr(entry, "name", entry)))


def _like(like: PyTree, leaves: dict[str, Any]) -> PyTree:
    wanted = _leaves(like)
    if set(wanted) != set(leaves):
        raise ValueError(f"`load(like=...)` has other parameters than the file: {sorted(set(wanted) ^ set(leaves))}.")
    return jax.tree.unflatten(jax.tree.structure(like), [leaves[name] for name in wanted])


def _nested(leaves: dict[str, Any]) -> PyTree:
    if set(leaves) == {_PARAMS}:
        return leaves[_PARAMS]
    tree: dict = {}
    for name, leaf in leaves.items():
        *path, last = name.split(".")[1:]
        node = tree
        for key in path:
            node = node.setdefault(key, {})
        node[last] = leaf
    return _lists(tree)


def _lists(tree):
    """Dicts whose keys are all [0], [1], … become lists."""
    if not isinstance(tree, dict):
        return tree
    items = {key: _lists(value) for key, value in tree.items()}
    if items and all(key.startswith("[") for key in items):
        return [items[f"[{i}]"] for i in range(len(items))]
    return items
