"""Samples instead of the population: N contexts of s tokens, and how their flow approaches the limit."""

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
from jaxtyping import Array

from thetadot import data
from thetadot._types import Data
from thetadot.flow import gradient_flow
from thetadot.laws import Fit, fit_power_law
from thetadot.models import attention
from thetadot.problem import Problem
from thetadot.stages import Measured
from thetadot.theory.check import Check, judge

from .closed_forms import unigram_saddle
from .flows import D_HEAD, D_MODEL, PAPER, SYMMETRIC, Trace, chain, gaussian, trace

_LIMIT = f"{PAPER}, population limit (N, s) → ∞"
_NUM_SAMPLES = (32, 128, 512, 2048)
_LENGTHS = (8, 16, 32, 64)
_LONG = 256  # contexts whose own error is far below that of their number
_MANY = 2**15
_T1 = 25.0  # from ε = 0.01: past stage I
_SEEDS = 8


def check_number_of_samples(trace: Trace = trace) -> list[Check]:
    """θ(t) after stage I differs from the population's by O(N^-1/2)."""
    setting, params0 = chain(SYMMETRIC), gaussian(1e-2, 0)
    limit = _end(trace(setting, params0, _T1))

    def distance(samples: dict[str, Array], num: int) -> float:
        # The first ones, repeated to one shape: the mean is theirs, and nothing is compiled twice.
        few = {name: jnp.concatenate([x[:num]] * (_NUM_SAMPLES[-1] // num)) for name, x in samples.items()}
        end = _end(gradient_flow(Problem(attention.sampled_loss, few), params0, _T1, ts=[_T1]))
        return float(np.linalg.norm(end - limit) / np.linalg.norm(limit))

    draws = [_samples(setting, _NUM_SAMPLES[-1], _LONG, seed) for seed in range(_SEEDS)]
    fit = _power(_NUM_SAMPLES, [[distance(samples, num) for num in _NUM_SAMPLES] for samples in draws])
    name = f"N samples, s = {_LONG}: exponent of N in |θ_N - θ| after stage I"
    return [judge(name, _LIMIT, "derived", -0.5, _with_error(fit), 0.2)]


def check_length_of_contexts() -> list[Check]:
    """The loss over contexts of length s differs from the population loss by O(1/s).

    A single context is off by O(s^-1/2), but with mean zero: what is left of it in a mean over contexts is its variance
    and its correlation with the last token, and both are O(1/s). Measured at the unigram saddle with some attention,
    as the mean difference between each sample's loss and the population's loss of its last token and target.
    """
    setting = chain(SYMMETRIC)
    params = unigram_saddle(setting["stationary"], D_MODEL, D_HEAD)
    params |= {name: params[name].at[0, 0].set(0.5) for name in ("w_q", "w_k")}
    gaps = [[_gap(params, setting, length, seed) for length in _LENGTHS] for seed in range(_SEEDS)]
    name = "contexts of length s, N → ∞: exponent of s in the loss minus its limit"
    return [judge(name, _LIMIT, "derived", -1.0, _with_error(_power(_LENGTHS, gaps)), 0.2)]


def _samples(setting: Data, num: int, length: int, seed: int) -> dict[str, Array]:
    """Stationary contexts and what follows them, counted."""
    law, transition = setting["stationary"], setting["transition"]
    sequences, targets = data.sample_sequences(transition, num, length, key=jr.key(seed), initial_law=law)
    return attention.count_data(sequences, targets, law.shape[0])


def _gap(params: dict[str, Array], setting: Data, length: int, seed: int) -> float:
    """Mean over samples of the loss in the context minus that in an infinite one."""
    samples = _samples(setting, _MANY, length, seed)
    parts = attention.composite(params)
    log_p = jax.nn.log_softmax(attention.attention(params, setting) @ parts["m"])
    limit = -jnp.mean(log_p[samples["last"], samples["targets"]])
    return float(jnp.abs(attention.sampled_loss(params, samples) - limit))


def _end(traj) -> np.ndarray:
    return np.concatenate([np.ravel(x) for x in jax.tree.leaves(traj.params1)])


def _power(xs: tuple[int, ...], values: list[list[float]]) -> Fit:
    """The power law through values of shape (seeds, xs)."""
    import xarray as xr  # half a second

    return fit_power_law(xr.Dataset({"y": (("seed", "x"), values)}, coords={"x": list(xs)}), x="x", y="y")


def _with_error(fit: Fit) -> Measured:
    """The exponent with half of its 95 % interval."""
    return Measured(fit.value, (fit.interval[1] - fit.interval[0]) / 2)
