"""Two-hop facts: relations lead from subjects over bridge entities to objects, one hop of which is shown at a time.

Entities come in sets E_1, E_2, ..., E_{K+1}. With two hops E_1 are the subjects, E_2 the bridges, E_3 the objects.
Relation r of hop k is a map from E_k to a part of E_{k+1} of its own. Three kinds of questions follow:

| question | tokens | answer | K = 2 |
|---|---|---|---|
| one hop, trained on | `(e_k, r_k)` | `r_k(e_k)` | `(e_1, r_1) → e_2`, `(e_2, r_2) → e_3` |
| zero hops, the identity bridge | `(e_k)`, 1 < k ≤ K | `e_k` itself | `e_2 → e_2` |
| all hops, out of distribution | `(e_1, r_1, ..., r_K)` | `r_K(...r_1(e_1))` | `(e_1, r_1, r_2) → e_3` |

Reference:
    arXiv 2509.24653, "Identity Bridge: Enabling Implicit Reasoning via Shared Latent Memory".
"""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import jax.numpy as jnp
import jax.random as jr
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from thetadot._types import Key


class Facts(NamedTuple):
    """Questions and their answers.

    Attributes:
        tokens: The questions (N, n), the shorter ones filled up on the right with token 0.
        lengths: Tokens of each question (N,); an answer is read at position `lengths - 1`.
        targets: The answers (N,), as tokens.
        weights: How often each is asked (N,); 0 leaves it out and keeps the shapes, so that nothing compiles again.
    """

    tokens: Int[Array, "N n"]
    lengths: Int[Array, " N"]
    targets: Int[Array, " N"]
    weights: Float[Array, " N"]


@dataclass(frozen=True)
class TwoHopTask:
    """The facts of one world, and what follows from them.

    Tokens are numbered set by set, E_1 first, and then the relations, those of hop 1 first.

    Attributes:
        hops: One-hop facts, those of hop 1 first, each hop on its own.
        identity: Zero-hop questions about every bridge entity.
        composed: All hops at once: what is never trained on.
        entities: The tokens of E_1 ... E_{K+1}.
        relations: The tokens of the relations of each hop.
        answer_set: For every composed question, the objects that its last relation leads to, bool (N, d).
    """

    hops: tuple[Facts, ...]
    identity: Facts
    composed: Facts
    entities: tuple[range, ...]
    relations: tuple[range, ...]
    answer_set: Bool[Array, "N d"]

    @property
    def vocab_size(self) -> int:
        """d: all entities and all relations."""
        return self.relations[-1].stop

    @property
    def answers(self) -> slice:
        """The tokens that can be an answer: E_2 ... E_{K+1}."""
        return slice(self.entities[1].start, self.entities[-1].stop)

    def __repr__(self) -> str:
        """One line: sizes and numbers of questions."""
        sets = " → ".join(str(len(entities)) for entities in self.entities)
        one_hop = sum(len(hop.targets) for hop in self.hops)
        return f"TwoHopTask({sets} entities, {one_hop} facts, {len(self.composed.targets)} composed questions)"


def two_hop_task(
    sizes: Sequence[int] = (6, 6, 6), num_relations: Sequence[int] | None = None, *, key: Key | None = None
) -> TwoHopTask:
    """Draws a world of facts.

    Args:
        sizes: Entities of E_1, and then of the part of E_{k+1} that one relation leads to. The number of hops is one
            less. Where E_k is larger than the next, facts share their answers: `(12, 6, 6)` has two subjects a bridge.
        num_relations: Relations of each hop; default: one each. E_{k+1} has `num_relations[k] * sizes[k + 1]` entities.
        key: Draws the maps, onto if the sizes permit it, every entity reached equally often from each part, to within
            one. Without it, the i-th entity of a part leads to the i-th of each part of the next, modulo its size.
    """
    num_hops = len(sizes) - 1
    num_relations = (1,) * num_hops if num_relations is None else tuple(num_relations)
    _check_sizes(sizes, num_relations)
    counts = [sizes[0], *(r * size for r, size in zip(num_relations, sizes[1:], strict=True))]
    *entities, first_relation = _ranges([*counts, sum(num_relations)])
    relations = _ranges(num_relations, first_relation.start)
    rng = None if key is None else _generator(key)
    parts = [1, *num_relations]
    maps = [
        _draw_maps((parts[k], sizes[k]), num_relations[k], sizes[k + 1], rng) + entities[k + 1].start
        for k in range(num_hops)
    ]
    hops = [
        [((e, r), int(maps[k][j, i])) for i, e in enumerate(entities[k]) for j, r in enumerate(relations[k])]
        for k in range(num_hops)
    ]
    bridges = [((e,), e) for bridge_set in entities[1:-1] for e in bridge_set]
    composed = [_follow(path, maps, entities, relations) for path in itertools.product(entities[0], *relations)]
    length = num_hops + 1
    last = np.array([path[-1] - relations[-1].start for path, _ in composed])
    part = (np.arange(relations[-1].stop)[None, :] - entities[-1].start) // sizes[-1]
    inside = (np.arange(relations[-1].stop) < entities[-1].stop)[None, :]
    return TwoHopTask(
        hops=tuple(_facts(hop, length) for hop in hops),
        identity=_facts(bridges, length),
        composed=_facts(composed, length),
        entities=tuple(entities),
        relations=tuple(relations),
        answer_set=jnp.asarray((part == last[:, None]) & inside),
    )


def training_facts(
    task: TwoHopTask, identity_fraction: float = 1.0, label_noise: float = 0.0, *, key: Key | None = None
) -> Facts:
    """All one-hop facts, then the zero-hop ones, of the same shapes with and without the identity bridge.

    Args:
        task: The world.
        identity_fraction: Share of the bridge entities that are asked about, the others have weight 0: 1 is the full
            identity bridge, 0 none.
        label_noise: Share of those whose answer is another entity of the bridges instead. Both shares are
            rounded to whole entities.
        key: Draws which ones, and the wrong answers; not needed for a fraction of 0 or 1 without noise.
    """
    for name, share in {"identity_fraction": identity_fraction, "label_noise": label_noise}.items():
        if not 0 <= share <= 1:
            raise ValueError(f"`training_facts({name}=...)` must lie in [0, 1]; got {share:g}.")
    if key is None and not (identity_fraction in (0.0, 1.0) and label_noise == 0):
        raise ValueError(
            "`training_facts(key=...)` is needed to draw which bridges are asked about, or answered wrong."
        )
    identity = task.identity
    num = identity.targets.shape[0]
    rng = np.random.default_rng(0) if key is None else _generator(key)  # all or none need no draw
    order = rng.permutation(num)
    asked = order[: round(identity_fraction * num)]
    wrong = asked[: round(label_noise * len(asked))]
    weights, targets = np.zeros(num), np.array(identity.targets)
    weights[asked] = 1.0
    targets[wrong] = _others(targets[wrong], task.entities[1:-1], rng)
    identity = identity._replace(targets=jnp.asarray(targets), weights=jnp.asarray(weights, identity.weights.dtype))
    return join(*task.hops, identity)


def join(*facts: Facts) -> Facts:
    """Several lists of facts of the same task as one."""
    tokens, lengths, targets, weights = (jnp.concatenate(parts) for parts in zip(*facts, strict=True))
    return Facts(tokens, lengths, targets, weights)


def bags(facts: Facts, vocab_size: int) -> Float[Array, "N d"]:
    """How often each token occurs in each question: all that a bag-of-words model sees of it."""
    tokens, lengths = np.asarray(facts.tokens), np.asarray(facts.lengths)
    counts = np.zeros((len(tokens), vocab_size))
    there = np.arange(tokens.shape[1])[None, :] < lengths[:, None]
    np.add.at(counts, (np.nonzero(there)[0], tokens[there]), 1.0)
    return jnp.asarray(counts, float)


def bag_data(task: TwoHopTask, facts: Facts, pooling: str = "sum", weight_decay: float = 0.0) -> dict[str, Array]:
    """What `thetadot.models.emb_mlp` trains on, and is tested on: questions as bags, answers among `task.answers`.

    Args:
        task: The world, for the questions of the test.
        facts: What is trained on; their weights are divided by their sum.
        pooling: "sum", a token counts once; or "mean", a question of k tokens counts each as 1/k.
        weight_decay: λ.

    Returns:
        `bags`, `targets`, `weights`, `weight_decay`; the composed questions `test_bags`, `test_targets`, and
        `test_sets`, the outputs that their last relation leads to; `first_bags` and `bridge_bags`, the facts that end
        at a bridge entity and that entity alone.
    """
    if pooling not in ("sum", "mean"):
        raise ValueError(f"`bag_data(pooling=...)` must be 'sum' or 'mean'; got {pooling!r}.")

    def pooled(questions: Facts) -> Float[Array, "N d"]:
        counts = bags(questions, task.vocab_size)
        return counts if pooling == "sum" else counts / jnp.sum(counts, axis=1, keepdims=True)

    first, offset = join(*task.hops[:-1]), task.answers.start
    entity = first._replace(tokens=first.targets[:, None], lengths=jnp.ones_like(first.lengths))
    return {
        "bags": pooled(facts),
        "targets": facts.targets - offset,
        "weights": facts.weights / jnp.sum(facts.weights),
        "weight_decay": jnp.asarray(weight_decay, float),
        "test_bags": pooled(task.composed),
        "test_targets": task.composed.targets - offset,
        "test_sets": task.answer_set[:, task.answers],
        "first_bags": pooled(first),
        "bridge_bags": pooled(entity),
    }


def _follow(path: tuple[int, ...], maps: list[np.ndarray], entities, relations) -> tuple[tuple[int, ...], int]:
    """A question `(e_1, r_1, ..., r_K)` with its answer."""
    entity = path[0]
    for k, relation in enumerate(path[1:]):
        entity = int(maps[k][relation - relations[k].start, entity - entities[k].start])
    return path, entity


def _generator(key: Key) -> np.random.Generator:
    """NumPy's, for draws of many sizes: JAX compiles anew for each."""
    return np.random.default_rng(np.asarray(jr.key_data(key)))


def _draw_maps(parts: tuple[int, int], num_relations: int, size: int, rng: np.random.Generator | None) -> np.ndarray:
    """Where each relation leads each entity of a set of (number, size) parts: indices into the next set (R, N)."""
    order = np.arange(max(parts[1], size))

    def draw() -> np.ndarray:
        return (order if rng is None else rng.permutation(order))[: parts[1]] % size

    return np.stack([j * size + np.concatenate([draw() for _ in range(parts[0])]) for j in range(num_relations)])


def _others(targets: np.ndarray, bridge_sets: Sequence[range], rng: np.random.Generator) -> np.ndarray:
    """For every bridge entity another one of its own set, each as likely."""
    own = [next(bridge_set for bridge_set in bridge_sets if target in bridge_set) for target in targets]
    start, size = np.array([x.start for x in own], int), np.array([len(x) for x in own], int)
    return start + (targets - start + rng.integers(1, size)) % size


def _facts(questions: Sequence[tuple[tuple[int, ...], int]], length: int) -> Facts:
    tokens = np.zeros((len(questions), length), np.int32)
    for row, (question, _) in zip(tokens, questions, strict=True):
        row[: len(question)] = question
    lengths = np.array([len(question) for question, _ in questions], np.int32)
    targets = np.array([answer for _, answer in questions], np.int32)
    return Facts(jnp.asarray(tokens), jnp.asarray(lengths), jnp.asarray(targets), jnp.ones(len(questions), dtype=float))


def _ranges(counts: Sequence[int], start: int = 0) -> list[range]:
    """Consecutive ranges of these lengths."""
    ends = list(itertools.accumulate(counts, initial=start))
    return [range(low, high) for low, high in itertools.pairwise(ends)]


def _check_sizes(sizes: Sequence[int], num_relations: Sequence[int]) -> None:
    if len(sizes) < 3:
        raise ValueError(f"`two_hop_task(sizes=...)` needs at least three sets, for two hops; got {tuple(sizes)}.")
    if len(num_relations) != len(sizes) - 1:
        num, wanted = len(num_relations), len(sizes) - 1
        raise ValueError(f"`two_hop_task(num_relations=...)` must have one number a hop, {wanted} here; got {num}.")
    if min(sizes) < 2 or min(num_relations) < 1:
        raise ValueError(
            f"`two_hop_task` needs at least two entities a set and one relation a hop; got {tuple(sizes)} and "
            f"{tuple(num_relations)}."
        )
