"""The trajectory of a flow: what was recorded on the way, where it ended, and why."""

import dataclasses
import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree

from .stored import SEAL, as_path, checksum, compressors, is_whole, made_aside, sealed
from .trees import from_outline, named_leaves

if TYPE_CHECKING:
    import xarray as xr  # imported where it is used: half a second
    import zarr

_PARAMS = "params1"
_COPY_AGAIN = "Copy it again from where it is whole, or trace the flow again."


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
    def unique_until(self) -> float:
        """Time of the first fork of a flow through kinks, past which it is one of several; else infinity."""
        return self.stats.get("unique_until", float("inf"))

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
        for name, leaf in named_leaves(self.params1, _PARAMS)[1].items():
            variables[name] = (tuple(f"{name}_{i}" for i in range(np.ndim(leaf))), np.asarray(leaf))
        return variables

    def _attributes(self) -> dict[str, str]:
        arrays = {"t": self.ts} | {name: values for name, (_, values) in self._variables().items()}
        told = {
            "status": self.status,
            "result": self.result,
            "series": json.dumps(list(self.series)),
            "params1": json.dumps(named_leaves(self.params1, _PARAMS)[0]),
            "crossings": json.dumps(self.crossings),
            "stats": json.dumps(self.stats),
            "provenance": json.dumps(self.provenance),
            "checksums": json.dumps({name: checksum(values) for name, values in arrays.items()}),
        }
        return sealed(told)

    def save(self, path: str | os.PathLike) -> None:
        """Writes the trajectory as a Zarr folder, all of it or nothing, which `xarray.open_zarr` opens too.

        Raises:
            ValueError: `path` is not a path.
            FileExistsError: `path` is there already.
            OSError: the folder cannot be written; what was begun is removed.
        """
        import zarr  # and not xarray, which takes pandas and most of a second to import

        path = as_path(path, "save(path=...)")
        if path.exists():
            raise FileExistsError(f"`{path}` exists: remove it, or save under another name.")
        with made_aside(path) as folder:
            group = zarr.create_group(folder, attributes=self._attributes())
            for name, (dims, values) in {"t": (("t",), self.ts), **self._variables()}.items():
                array = group.create_array(
                    name, shape=values.shape, dtype=values.dtype, dimension_names=dims, compressors=compressors()
                )
                array[...] = values


def load(path: str | os.PathLike, like: PyTree = None) -> Trajectory:
    """Reads a trajectory written by `Trajectory.save`, if every number is as it was written.

    Args:
        path: the Zarr folder.
        like: parameters with the structure wanted for `params1`. Without it, dicts, lists, tuples and None come back as
            they were, any other container as a dict of its fields, and keys other than strings and numbers as text.

    Raises:
        ValueError: `path` is not a saved trajectory, or is damaged: a file in it is missing, cut or altered.
    """
    import zarr

    path = as_path(path, "load(path=...)")
    if not path.is_dir():
        raise ValueError(f"`{path}` is not a saved trajectory: no such folder.")
    try:
        group = zarr.open_group(path, mode="r")
        told: dict[str, Any] = dict(group.attrs)
    except Exception as error:  # zarr raises a dozen kinds
        raise ValueError(f"`{path}` is not a saved trajectory, or its `zarr.json` is damaged: {error}") from error
    if not is_whole(told, {}):
        raise ValueError(f"`{path}` is damaged: its `zarr.json` is not as it was written. {_COPY_AGAIN}")
    if "series" not in told:
        raise ValueError(f"`{path}` is not a saved trajectory: it has no list of series.")
    if SEAL not in told:
        raise ValueError(
            f"`{path}` is not a saved trajectory of this version, but of an earlier one or damaged: it has no "
            "checksums. Save the flow anew; `xarray.open_zarr` shows what is in the folder."
        )
    arrays = {name: _read(path, group, name, crc) for name, crc in json.loads(told["checksums"]).items()}
    outline = json.loads(told["params1"])
    params1 = {name: jnp.asarray(values) for name, values in arrays.items() if name.split(".")[0] == _PARAMS}
    return Trajectory(
        ts=arrays["t"],
        series={name: arrays[_quoted(name)] for name in json.loads(told["series"])},
        crossings=json.loads(told["crossings"]),
        params1=from_outline(outline, params1) if like is None else _like(like, params1),
        status=told["status"],
        result=told["result"],
        stats=json.loads(told["stats"]),
        provenance=json.loads(told["provenance"]),
    )


def _read(path: Path, group: "zarr.Group", name: str, expected: int) -> np.ndarray:
    """The array of that name, if it is the one that was written."""
    try:
        values = np.asarray(group[name][...])  # pyright: ignore
    except Exception as error:  # zarr raises a dozen kinds
        raise ValueError(f"`{path}` is damaged: `{name}` cannot be read. {_COPY_AGAIN}") from error
    if checksum(values) != expected:
        raise ValueError(f"`{path}` is damaged: a file of `{name}` is missing or altered. {_COPY_AGAIN}")
    return values


def _quoted(name: str) -> str:
    """The name of a series as the name of a Zarr array, which cannot have slashes."""
    return quote(name, safe="[]")


def _like(like: PyTree, leaves: dict[str, Any]) -> PyTree:
    wanted = named_leaves(like, _PARAMS)[1]
    if set(wanted) != set(leaves):
        raise ValueError(f"`load(like=...)` has other parameters than the file: {sorted(set(wanted) ^ set(leaves))}.")
    return jax.tree.unflatten(jax.tree.structure(like), [leaves[name] for name in wanted])
