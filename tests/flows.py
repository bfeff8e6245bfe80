"""Problems whose flows are known, shared by the tests so that each is compiled once."""

import jax.numpy as jnp
import jax.random as jr
import numpy as np

import thetadot as td
from thetadot.models import linear

# --- separable polynomials: two scalar flows at once, chosen by the data ---


def polynomial(params, data):
    """Σ_k c_k x^k on each of two coordinates, and a wall at x = 1/wall behind which the loss is NaN."""
    x = params["x"]
    powers = jnp.stack([x**k for k in range(1, 7)], axis=1)
    return jnp.sum(data["coefficients"] * powers) + jnp.sum((1 - data["wall"] * x) ** 1.5 - 1)


def first(params, data):
    del data
    return params["x"][0]


def wave(params, data):
    return jnp.sin(data["frequency"] * (params["x"][0] - data["center"]))


QUARTIC = {4: 0.25}  # x' = -x³
LOGISTIC = {2: -0.5, 3: 1 / 3}  # x' = x - x²
BOWL = {2: 0.5}  # x' = -x
DRIFT = {1: -1.0}  # x' = 1
HILL = {4: -1.0}  # x' = 4x³, infinite at t = 1/(8 x_0²)


def scalar_flows(one, other, *, wall=0.0, frequency=1.0, center=0.0, dtype=float):
    """The problem in which the two coordinates follow the given polynomials, as {power: coefficient}."""
    coefficients = np.zeros((2, 6))
    for row, terms in zip(coefficients, (one, other), strict=True):
        for power, value in terms.items():
            row[power - 1] = value
    data = {"coefficients": coefficients, "wall": [wall, 0.0], "frequency": frequency, "center": center}
    return td.Problem(polynomial, {name: jnp.asarray(value, dtype) for name, value in data.items()})


def at(*x, dtype=float):
    return {"x": jnp.array(x, dtype)}


def quartic_solution(t, x0):
    return x0 / np.sqrt(1 + 2 * x0**2 * np.asarray(t))


def logistic_solution(t, x0):
    return 1 / (1 + (1 / x0 - 1) * np.exp(-np.asarray(t)))


# --- linear networks on a 2×2 target, in the coordinates of its two modes ---


def first_mode(params, data):
    return data["left"][:, 0] @ linear.end_to_end(params) @ data["right"][:, 0]


def second_mode(params, data):
    return data["left"][:, 1] @ linear.end_to_end(params) @ data["right"][:, 1]


MODES = {"first": first_mode, "second": second_mode}
NEVER = 1e9


def mode_crossings(first=NEVER, second=NEVER, loss=-1.0):
    """One compiled configuration for everything about the times of linear networks."""
    return {"first": ("first", first), "second": ("second", second), "loss": ("loss", loss)}


BALANCE = {"balancedness": linear.balancedness}


def linear_problem(singular_values, seed=0):
    left, right = (jr.orthogonal(key, 2) for key in jr.split(jr.key(seed)))
    data = {"target": (left * jnp.asarray(singular_values)[None, :]) @ right.T, "left": left, "right": right}
    return td.Problem(linear.factorization_loss, data, BALANCE)


def aligned_layers(problem, factors, seed=0):
    """W_l = Q_l diag(factors[l]) Q_{l-1}^T: each mode is a product of scalars that evolves on its own."""
    num_layers = len(factors)
    inner = [jr.orthogonal(key, 2) for key in jr.split(jr.key(seed), num_layers)]
    frames = [problem.data["right"], *inner[: num_layers - 1], problem.data["left"]]
    return [
        (frames[layer + 1] * jnp.asarray(factor)[None, :]) @ frames[layer].T for layer, factor in enumerate(factors)
    ]


def balanced_layers(problem, strengths, num_layers, seed=0):
    """Balanced layers in which the modes start at `strengths`."""
    root = np.asarray(strengths) ** (1 / num_layers)
    return aligned_layers(problem, [root] * num_layers, seed)
