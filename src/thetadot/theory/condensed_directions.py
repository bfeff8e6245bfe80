"""Condensed directions of two-layer networks at initial training (arXiv 2105.11686): at most 2p of them.

f(x) = Σ_k a_k σ(w_k·x), x with a constant 1 for the bias, loss 1/(2N) Σ (f - y)². The multiplicity p of σ is the order
of its first term at 0: 1 for tanh z, 2 for z tanh z, 3 for z² tanh z. While f ≈ 0, and σ(z) ≈ z^p, neurons do not see
each other and follow

    ȧ = F(w),   ẇ = a ∇F(w),   F(w) = mean(y (w·x)^p),

whose directions turn to the maxima of F on the sphere if a > 0, to its minima if a < 0 (paper). For p = 1 these are
± mean(y x). With one input and a bias, w = r (û, 1)/sqrt(1 + û²), they are among the p roots of

    Σ_i y_i x_i (û x_i + 1)^{p-1} = û Σ_i y_i (û x_i + 1)^{p-1}                         (paper)

and at most 2p directions, p lines, whatever the data. For more inputs that is the paper's conjecture.

A neuron of the paper's experiments moves at the rate of all others, by Adam. In a gradient flow with p > 1 each one
runs away in a finite time of its own, and the first ends the condensation of the rest. So the checks let each neuron
run alone, as a network of one, from a size of 1e-7 to one of 3e-3, where σ is still z^p to 1e-3.
"""

from collections.abc import Callable

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float
from numpy.polynomial import Polynomial

from thetadot._types import Data, NamedParams, Scalar
from thetadot.flow import gradient_flow
from thetadot.models import two_layer
from thetadot.problem import Problem
from thetadot.theory.check import Check, judge
from thetadot.trajectory import Trajectory

_PAPER = "arXiv:2105.11686"
_ORDERS = {1: "tanh z", 2: "z tanh z", 3: "z² tanh z"}
_SIZES = (1e-7, 3e-3)  # of a neuron, from which to which it runs
_SAME = 0.99  # |cos| above which two neurons are on one line
_NUM_NEURONS = 32
_MAX_STEPS = 2000  # ten times what a neuron takes
_NEVER = 1e30  # far beyond the time 1/(|F| size^{p-1}) of any neuron

Trace = Callable[..., Trajectory]
"""`trace` below, or a wrong flow in its place: the negative control of every check."""


def first_direction(x: Float[Array, "N D"], y: Float[Array, " N"]) -> Float[Array, " D"]:
    """The only line for p = 1, mean(y x) over its norm (paper)."""
    v = jnp.mean(y[:, None] * x, axis=0)
    return v / jnp.linalg.norm(v)


def possible_lines(x: np.ndarray, y: np.ndarray, order: int) -> np.ndarray:
    """The lines (û, 1)/sqrt(1 + û²) of networks with one input and a bias, û the real roots of the polynomial (paper).

    Args:
        x: Inputs (N,), without the constant one.
        y: Targets (N,).
        order: p.

    Returns:
        Unit vectors (lines, 2), at most p; the direction (1, 0) is left out.
    """
    slope = Polynomial([0.0, 1.0])
    weights = [float(yi) * (float(xi) * slope + 1) ** (order - 1) for xi, yi in zip(x, y, strict=True)]
    roots = sum((float(xi) - slope) * weight for xi, weight in zip(x, weights, strict=True)).roots()  # pyright: ignore
    real = np.real(roots[np.abs(np.imag(roots)) < 1e-9])
    return np.stack([real, np.ones_like(real)], axis=1) / np.sqrt(1 + real**2)[:, None]


def trace(data: Data, params0: NamedParams) -> Trajectory:
    """The flow of one neuron until it has grown."""
    grown = {"grown": ("size", _SIZES[1], "up")}
    options = {"observables": {"size": _size}, "crossings": grown, "stop": "grown", "max_steps": _MAX_STEPS}
    return gradient_flow(Problem(_loss, data), params0, _NEVER, [_NEVER], **options)


def check_number_of_lines(trace: Trace = trace) -> list[Check]:
    """The paper's data with five inputs: one line for tanh z, two for z tanh z, three for z² tanh z."""
    claim, data = "neurons condense on p lines, five inputs, σ = ", _sines()
    return [
        judge(
            claim + name,
            f"{_PAPER}, experiments",
            "paper",
            float(order),
            _num_lines(_directions(trace, data, order)),
            0.0,
        )
        for order, name in _ORDERS.items()
    ]


def check_first_direction(trace: Trace = trace) -> list[Check]:
    """For p = 1 every neuron turns to ± mean(y x)."""
    data = _sines()
    cosines = np.abs(_directions(trace, data, 1) @ np.asarray(first_direction(data["x"], data["y"])))
    claim = "σ = tanh z, five inputs: largest 1 - |cos(w_k, mean(y x))|"
    # What does not grow stays at 1e-7/3e-3; z³/3 turns the force by 1e-3 at the end, and 1 - cos by its square.
    return [judge(claim, f"{_PAPER}, p = 1", "paper", 0.0, float(np.max(1 - cosines)), 1e-5)]


def check_possible_lines(trace: Trace = trace) -> list[Check]:
    """With one input every neuron ends on a root of the polynomial, and no more than p of them are taken."""
    checks, reference = [], f"{_PAPER}, one input"
    for order, name in _ORDERS.items():
        data = _curve()
        lines = possible_lines(np.asarray(data["x"][:, 0]), np.asarray(data["y"]), order)
        directions = _directions(trace, data, order)[:, [0, -1]]
        nearest = np.max(np.abs(directions @ lines.T), axis=1)
        taken = _num_lines(directions)
        checks += [
            judge(
                f"σ = {name}, one input: largest 1 - |cos| to a root",
                reference,
                "paper",
                0.0,
                float(1 - np.min(nearest)),
                1e-4,
            ),
            judge(f"σ = {name}, one input: lines beyond p", reference, "paper", 0.0, max(taken - order, 0.0), 0.0),
        ]
    return checks


def _directions(trace: Trace, data: Data, order: int) -> np.ndarray:
    """w/|w| of neurons that ran alone, NaN for one that has not grown, shape (neurons, D)."""
    rng = np.random.default_rng(0)
    used = np.any(np.asarray(data["x"]) != 0, axis=0)
    ends = []
    for _ in range(_NUM_NEURONS):
        theta = rng.normal(size=used.size + 1)
        theta[1:] *= used  # the columns that one input leaves empty
        theta *= _SIZES[0] / np.linalg.norm(theta)
        params0 = {"a": jnp.asarray(theta[:1]), "w": jnp.asarray(theta[None, 1:])}
        traj = trace({**data, "order": jnp.eye(len(_ORDERS))[order - 1]}, params0)
        w = np.asarray(traj.params1["w"][0])
        ends.append(w / np.linalg.norm(w) if traj.status == "stopped" else np.full(w.shape, np.nan))
    return np.array(ends)


def _num_lines(directions: np.ndarray) -> float:
    """Lines on which the neurons are; NaN if one has not grown."""
    if not np.all(np.isfinite(directions)):
        return float("nan")
    lines: list[np.ndarray] = []
    for direction in directions:
        if not any(abs(float(direction @ line)) > _SAME for line in lines):
            lines.append(direction)
    return float(len(lines))


def _sines() -> dict[str, Array]:
    """N = 80, y = Σ_k 3.5 sin(5 x_k + 1), x uniform on [-4, 2]^5, and the constant one."""
    x = np.random.default_rng(1).uniform(-4, 2, (80, 5))
    y = np.sum(3.5 * np.sin(5 * x + 1), axis=1)
    return {"x": jnp.asarray(np.hstack([x, np.ones((80, 1))])), "y": jnp.asarray(y)}


def _curve() -> dict[str, Array]:
    """N = 40, y = sin 3x + sin(6x)/2 on [-1, 1.5], twice and with empty inputs: the shapes of `_sines`."""
    x = np.tile(np.linspace(-1, 1.5, 40), 2)
    y = np.sin(3 * x) + np.sin(6 * x) / 2
    rows = np.stack([x, *np.zeros((4, 80)), np.ones(80)], axis=1)
    return {"x": jnp.asarray(rows), "y": jnp.asarray(y)}


def _loss(params: NamedParams, data: Data) -> Scalar:
    """That of `thetadot.models.two_layer`; `data["order"]` picks one of z^{p-1} tanh z."""

    def activation(z: Array) -> Array:
        return jnp.tanh(z) * sum(data["order"][power] * z**power for power in range(len(_ORDERS)))

    return 0.5 * jnp.mean(jnp.square(two_layer.network(params, data["x"], activation) - data["y"]))


def _size(params, data):
    del data
    return jnp.linalg.norm(params["w"])


CHECKS = (check_number_of_lines, check_first_direction, check_possible_lines)
