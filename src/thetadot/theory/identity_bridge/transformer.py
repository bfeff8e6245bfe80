"""A small Transformer on the two-hop facts: AdamW and its gradient flow, with and without the identity bridge.

One layer of one head with learned positions, GELU and residuals. It is trained on all one-hop facts and then asked
about (e_1, r_1, r_2), which is longer than anything it has seen. The paper's statement is about rates: high with the
bridge, near zero without. How high depends on the network, so they are measured over seeds and reported as they are:

| training | n | width | with | without |
|---|---|---|---|---|
| AdamW, decay 1, 2000 steps of 0.002 | 8 | 24 | 0.79 ± 0.12 | 0.00 |
| the same | 6 | 16 | 0.55 ± 0.15 | 0.00 |
| gradient flow to t = 300 from the same starts | 6 | 16 | 0.48 ± 0.15 | 0.12 ± 0.09 |

Means over the seeds 10 to 19, with twice the standard error. The settings were chosen among some thirty by the seeds 0
to 9, on which the first row had been 0.93: a choice flatters its own data. The states of (e_1, r_1) and of e_2 agree
after the layer (cosine 0.96 to 0.99 with the bridge, about 0.1 without) even where answers are wrong. Without positions
AdamW answers a tenth to a quarter of the questions, and with LayerNorm at width 16 no more than a third. Unlike in the
Emb-MLP a smaller start does not help: on the seeds 0 to 9 and at width 24, with the bridge,

| decay | ε = 0.05 | 0.1 | 0.2 |
|---|---|---|---|
| 0.1 | 0.18 | 0.61 | 0.63 |
| 1 | 0.21 | 0.93 | 0.69 |
| 3 | 0.23 | 0.60 | 0.84 |
"""

import functools
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import optax
from jaxtyping import Array, Float

from thetadot import inits
from thetadot._types import Data, Scalar
from thetadot.data.two_hop import Facts, TwoHopTask, training_facts, two_hop_task
from thetadot.descent import descent
from thetadot.flow import gradient_flow
from thetadot.models import decoder
from thetadot.problem import Problem
from thetadot.theory.check import Check, judge, spread

if TYPE_CHECKING:
    import xarray as xr  # imported where it is used: half a second

_EXPERIMENT = "arXiv:2509.24653, Transformers on two-hop facts"
_LOSS = decoder.loss_fn(jax.nn.gelu)
_INIT_SCALE = 0.1
_WEIGHT_DECAY = 1.0
_LEARNING_RATE = 2e-3
_NUM_STEPS = 2000
_NUM_SEEDS = 10
_FIRST_SEED = 10  # seeds 0 to 9 chose the settings: what is claimed is measured on others
_T1 = 300.0  # of the flow: the loss is a few 1e-4 there, and every fact is known
_RTOL = 1e-4  # of the flow: what is measured is counts
_HALF = 0.5  # a rate is high or low if it is nearer to 1 or to 0


class Setting(NamedTuple):
    """Entities of each set and width of the network: the larger one for AdamW, the smaller one for the flow."""

    size: int
    d_model: int

    @property
    def task(self) -> TwoHopTask:
        """The facts."""
        return two_hop_task((self.size,) * 3)


WIDE, NARROW = Setting(8, 24), Setting(6, 16)


class Outcome(NamedTuple):
    """What training comes to, one number a lane.

    Attributes:
        accuracy: Share of the composed questions that are answered right.
        alignment: Mean cosine of the states of (e_1, r_1) and of e_2 after each layer, (lanes, L).
        loss: On the facts that the lane is trained on.
    """

    accuracy: np.ndarray
    alignment: np.ndarray
    loss: np.ndarray


def check_transformer(bridges: Sequence[float] = (1.0, 0.0)) -> list[Check]:
    """AdamW answers composed questions with the bridge and not without it, and so does its latent memory.

    Args:
        bridges: Share of bridge entities that are asked about in the two trainings that the claims call "with" and
            "without".
    """
    having, lacking = train(WIDE, bridges)
    answered = judge(
        "Transformer, AdamW, with the bridge: composed questions answered",
        _EXPERIMENT, "reported", 1.0, spread(having.accuracy.tolist()), _HALF,
    )  # fmt: skip
    return [answered, *_judge_all("AdamW", WIDE, having, lacking)]


def check_transformer_flow(bridges: Sequence[float] = (1.0, 0.0)) -> list[Check]:
    """The gradient flow, too, answers with the bridge what it does not answer without."""
    having, lacking = flow(NARROW, bridges)
    return _judge_all("gradient flow", NARROW, having, lacking)


def _judge_all(name: str, setting: Setting, having: Outcome, lacking: Outcome) -> list[Check]:
    states = "cos of the states of (e_1, r_1) and e_2 after the layer"
    rows = [
        (
            "the bridge raises the accuracy: share of seeds",
            1.0,
            (having.accuracy > lacking.accuracy).astype(float),
            _HALF,
        ),
        # Chance within the objects is 1/n, and it can be as far above as the claim is below.
        ("without the bridge: composed questions answered", 0.0, lacking.accuracy, 2 / setting.size),
        (f"with the bridge: {states}", 1.0, having.alignment[:, -1], _HALF),
        (f"without the bridge: {states}", 0.0, lacking.alignment[:, -1], _HALF),
    ]
    return [
        judge(f"Transformer, {name}, {claim}", _EXPERIMENT, "reported", predicted, spread(values.tolist()), tolerance)
        for claim, predicted, values, tolerance in rows
    ]


def train(
    setting: Setting,
    bridges: Sequence[float],
    init_scale: float = _INIT_SCALE,
    weight_decay: float = _WEIGHT_DECAY,
    num_seeds: int = _NUM_SEEDS,
) -> list[Outcome]:
    """AdamW with the whole data in every step, for each share of the bridge; all seeds and shares at once.

    The sum of the losses of separate networks is one problem, and Adam, which acts on each entry alone, trains each
    network as it would alone.
    """
    starts = [start(setting, init_scale, seed) for seed in _seeds(num_seeds)] * len(bridges)
    lanes = jnp.stack([_weights(setting.task, bridge) for bridge in bridges for _ in range(num_seeds)])
    problem = Problem(_sum_of_losses, _questions(training_facts(setting.task)) | {"weights": lanes})
    optimizer = _adamw(weight_decay)
    end = descent(problem, _stack(starts), _NUM_STEPS, _LEARNING_RATE, optimizer, save_every=_NUM_STEPS)
    parts = (np.split(x, len(bridges)) for x in _measure(setting.task, end.params1, lanes))
    return [Outcome(*part) for part in zip(*parts, strict=True)]


def flow(
    setting: Setting, bridges: Sequence[float], init_scale: float = _INIT_SCALE, num_seeds: int = _NUM_SEEDS
) -> list[Outcome]:
    """The gradient flow from the starts of `train`, without weight decay; one network after another."""
    questions, outcomes = _questions(training_facts(setting.task)), []
    for bridge in bridges:
        problem = Problem(_LOSS, questions | {"weights": _weights(setting.task, bridge)})
        starts = [start(setting, init_scale, seed) for seed in _seeds(num_seeds)]
        ends = [gradient_flow(problem, params0, _T1, ts=[_T1], rtol=_RTOL).params1 for params0 in starts]
        lanes = jnp.tile(problem.data["weights"][None], (num_seeds, 1))
        outcomes.append(_measure(setting.task, _stack(ends), lanes))
    return outcomes


def sweep(
    init_scales: Sequence[float] = (0.05, 0.1, 0.2),
    weight_decays: Sequence[float] = (0.1, 1.0, 3.0),
    bridges: Sequence[float] = (1.0, 0.0),
    num_seeds: int = _NUM_SEEDS,
) -> "xr.Dataset":
    """Accuracy on composed questions after AdamW over initialization and decay: a minute or two.

    Returns:
        A dataset with `accuracy` over (weight_decay, init_scale, bridge, seed).
    """
    import xarray as xr

    accuracy = [
        [[end.accuracy for end in train(WIDE, bridges, scale, decay, num_seeds)] for scale in init_scales]
        for decay in weight_decays
    ]
    coords = {"weight_decay": list(weight_decays), "init_scale": list(init_scales), "bridge": list(bridges)}
    seeds = np.array(_seeds(num_seeds))
    return xr.Dataset({"accuracy": ((*coords, "seed"), accuracy)}, coords=coords | {"seed": seeds})


def start(setting: Setting, init_scale: float, seed: int) -> dict[str, Any]:
    """The Gaussian start of one network: one layer, one head, an MLP of twice the width."""
    d_model = setting.d_model
    return inits.decoder_params(setting.task.vocab_size, d_model, 2 * d_model, init_scale, key=jr.key(seed), seq_len=3)


def _seeds(num_seeds: int) -> range:
    return range(_FIRST_SEED, _FIRST_SEED + num_seeds)


def _stack(networks: Sequence[Any]) -> Any:
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *networks)


def _questions(facts: Facts) -> dict[str, Array]:
    return {"tokens": facts.tokens, "lengths": facts.lengths, "targets": facts.targets}


def _weights(task: TwoHopTask, bridge: float) -> Float[Array, " N"]:
    return training_facts(task, bridge, key=jr.key(0)).weights


def _hidden(task: TwoHopTask) -> dict[str, Array]:
    """(e_1, r_1) and the e_2 that it leads to, pair by pair."""
    facts = task.hops[0]
    entity = jnp.zeros_like(facts.tokens).at[:, 0].set(facts.targets)
    tokens, lengths = jnp.stack([facts.tokens, entity]), jnp.stack([facts.lengths, jnp.ones_like(facts.lengths)])
    return {"tokens": tokens, "lengths": lengths}


@functools.cache
def _adamw(weight_decay: float):
    """One object for each decay: descent compiles per object."""
    return functools.partial(optax.adamw, weight_decay=weight_decay)


def _measure(task: TwoHopTask, params: Any, weights: Float[Array, "lanes N"]) -> Outcome:
    data = _questions(training_facts(task)) | {"weights": weights}
    return Outcome(*(np.asarray(x) for x in _outcomes(params, data, _questions(task.composed), _hidden(task))))


def _losses(params: Any, data: Data) -> Float[Array, " lanes"]:
    shared = {name: data[name] for name in ("tokens", "lengths", "targets")}
    return jax.vmap(lambda p, weights: _LOSS(p, shared | {"weights": weights}))(params, data["weights"])


def _sum_of_losses(params: Any, data: Data) -> Scalar:
    return jnp.sum(_losses(params, data))


@jax.jit
def _outcomes(params: Any, data: Data, composed: Data, hidden: Data) -> tuple[Array, Array, Array]:
    def answers(p):
        answer = jnp.argmax(decoder.logits(p, composed, jax.nn.gelu), axis=1).astype(composed["targets"].dtype)
        return jnp.mean((answer == composed["targets"]).astype(float))

    def cosines(p):
        def states(tokens, lengths):
            data = {"tokens": tokens, "lengths": lengths}
            last = decoder.at_last(data, decoder.hidden_states(p, data, jax.nn.gelu))[1:]
            return last - jnp.mean(last, axis=1, keepdims=True)  # what tells one entity from the others

        first, bridge = jax.vmap(states)(hidden["tokens"], hidden["lengths"])
        sizes = jnp.linalg.norm(first, axis=-1) * jnp.linalg.norm(bridge, axis=-1)
        return jnp.mean(jnp.sum(first * bridge, axis=-1) / sizes, axis=1)

    return jax.vmap(answers)(params), jax.vmap(cosines)(params), _losses(params, data)
