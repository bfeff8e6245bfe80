"""Observables of one weight matrix: its entries, its singular values, its ranks."""

from collections.abc import Callable
from functools import cache

from thetadot import observables

SPECTRUM: dict[str, Callable] = {
    "singular_values": observables.singular_values,
    "stable_rank": observables.stable_rank,
    "effective_rank": observables.effective_rank,
}


def entries(weight):
    """The matrix itself."""
    return weight


@cache  # the solver compiles per function object
def of_weight(key: str | int, measure: Callable) -> Callable:
    """The observable `measure(params[key])`."""

    def observable(params, data):
        del data
        return measure(params[key])

    return observable


def of_layers(num_layers: int, whole: bool) -> dict[str, Callable]:
    """Name -> observable of the layers w_1, w_2, …: spectra and, where `whole`, entries."""
    measures = ({"": entries} if whole else {}) | {f"_{name}": measure for name, measure in SPECTRUM.items()}
    return {f"w_{i + 1}{name}": of_weight(i, measure) for i in range(num_layers) for name, measure in measures.items()}
