"""Two-hop facts: every question and answer against the maps that they come from."""

import jax.random as jr
import numpy as np
import pytest

import thetadot as td
from thetadot.data import Facts, bags, join, training_facts, two_hop_task


def as_lists(facts: Facts) -> list[tuple[tuple[int, ...], int]]:
    rows = zip(np.asarray(facts.tokens), facts.lengths.tolist(), facts.targets.tolist(), strict=True)
    return [(tuple(tokens[:length].tolist()), target) for tokens, length, target in rows]


def test_the_smallest_world_by_hand():
    """E_1 = {0, 1}, E_2 = {2, 3}, E_3 = {4, 5}, r_1 = 6, r_2 = 7."""
    task = two_hop_task((2, 2, 2))
    assert as_lists(task.hops[0]) == [((0, 6), 2), ((1, 6), 3)]
    assert as_lists(task.hops[1]) == [((2, 7), 4), ((3, 7), 5)]
    assert as_lists(task.identity) == [((2,), 2), ((3,), 3)]
    assert as_lists(task.composed) == [((0, 6, 7), 4), ((1, 6, 7), 5)]
    assert task.vocab_size == 8 and task.answers == slice(2, 6)
    assert repr(task) == "TwoHopTask(2 → 2 → 2 entities, 4 facts, 2 composed questions)"
    np.testing.assert_array_equal(np.nonzero(np.asarray(task.answer_set))[1], [4, 5, 4, 5])
    expected = [[1, 0, 0, 0, 0, 0, 1, 0], [0, 1, 0, 0, 0, 0, 1, 0]]
    np.testing.assert_array_equal(bags(task.hops[0], 8), expected)
    np.testing.assert_array_equal(bags(task.identity, 8), np.eye(8)[[2, 3]])


@pytest.mark.parametrize(
    "sizes, num_relations", [((6, 6, 6), None), ((12, 6, 3), (2, 1)), ((4, 5, 3), (2, 3)), ((5, 4, 3, 6), (1, 2, 1))]
)
def test_composed_answers_follow_the_hops(sizes, num_relations):
    """Looked up fact by fact; and each entity of a part is reached equally often from each part, to within one."""
    task = two_hop_task(sizes, num_relations, key=jr.key(3))
    known = dict(as_lists(join(*task.hops)))
    composed = as_lists(task.composed)
    assert len(composed) == sizes[0] * np.prod(num_relations or 1) == len(set(composed))
    for (entity, *relations), answer in composed:
        for relation in relations:
            entity = known[(entity, relation)]
        assert entity == answer
    for k, hop in enumerate(task.hops):
        reached = np.bincount(hop.targets, minlength=task.vocab_size)[list(task.entities[k + 1])]
        for part in reached.reshape(-1, sizes[k + 1]):
            assert part.max() - part.min() <= [1, *(num_relations or (1, 1))][k]
    inside = np.asarray(task.answer_set)
    assert np.all(inside.sum(axis=1) == sizes[-1]) and np.all(inside[np.arange(len(composed)), task.composed.targets])
    bridges = [token for entities in task.entities[1:-1] for token in entities]
    assert as_lists(task.identity) == [((token,), token) for token in bridges]


def test_keys_draw_different_worlds():
    drawn = [as_lists(two_hop_task((8, 8, 8), key=jr.key(seed)).composed) for seed in (0, 0, 1)]
    assert drawn[0] == drawn[1] != drawn[2]


@pytest.mark.parametrize(
    "fraction, noise, wrong", [(1.0, 0.0, 0), (0.0, 0.0, 0), (0.5, 0.0, 0), (1.0, 0.3, 3), (0.5, 0.4, 2)]
)
def test_shares_of_the_identity_bridge(fraction, noise, wrong):
    """Shapes never change; exactly the stated numbers are asked about, and answered wrong within their own set."""
    task = two_hop_task((5, 5, 5), (2, 1))
    train = training_facts(task, fraction, noise, key=jr.key(1))
    whole = training_facts(task)
    assert train.tokens.shape == whole.tokens.shape and np.all(np.asarray(whole.weights) == 1)
    num_facts = sum(len(hop.targets) for hop in task.hops)
    assert np.all(np.asarray(train.weights)[:num_facts] == 1)
    asked = np.asarray(train.weights)[num_facts:] > 0
    off = np.asarray(train.targets)[num_facts:] != np.asarray(task.identity.targets)
    assert asked.sum() == round(fraction * 10) and off.sum() == wrong and np.all(asked[off])
    assert set(np.asarray(train.targets)[num_facts:].tolist()) <= set(task.entities[1])


@pytest.mark.parametrize(
    "call, sentence",
    [
        (lambda: two_hop_task((3, 3)), "at least three sets"),
        (lambda: two_hop_task((3, 3, 3), (1,)), r"one number a hop, 2 here; got 1"),
        (lambda: two_hop_task((3, 1, 3)), "at least two entities"),
        (lambda: training_facts(two_hop_task(), 1.5), r"identity_fraction=\.\.\.\)` must lie in \[0, 1\]; got 1\.5"),
        (lambda: training_facts(two_hop_task(), 0.5), r"`training_facts\(key=\.\.\.\)` is needed"),
        (lambda: training_facts(two_hop_task(), 1.0, 0.5), r"`training_facts\(key=\.\.\.\)` is needed"),
    ],
)
def test_bad_worlds_are_refused_in_one_sentence(call, sentence):
    with pytest.raises(ValueError, match=sentence) as caught:
        call()
    assert "\n" not in str(caught.value)


def test_public_names():
    assert td.data.two_hop_task is two_hop_task
