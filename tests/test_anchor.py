"""The anchor task, sequence by sequence."""

import jax.random as jr
import numpy as np
import pytest

import thetadot as td


@pytest.mark.parametrize("seq_len, num_anchors, num_keys", [(10, 4, 96), (2, 1, 1), (5, 3, 7)])
def test_every_answer_is_what_the_single_anchor_asks_for(seq_len, num_anchors, num_keys):
    task = td.data.anchor_task(200, seq_len, num_anchors, num_keys, key=jr.key(0))
    tokens, targets = np.asarray(task["tokens"]), np.asarray(task["targets"])
    assert tokens.shape == (200, seq_len) and targets.dtype == np.int32
    for row, target, position in zip(tokens, targets, np.asarray(task["positions"]), strict=True):
        (anchor_at,) = np.flatnonzero(row <= num_anchors)
        assert anchor_at == position < seq_len - 1 and 1 <= row[anchor_at]
        assert target == row[anchor_at + 1] + row[anchor_at] % 2
    assert tokens.max() <= num_anchors + num_keys and targets.max() <= num_anchors + num_keys + 1


def test_anchors_keys_and_places_are_uniform():
    """20 000 draws of 4 anchors and 9 places: five standard deviations are 0.016 and 0.012."""
    task = {name: np.asarray(x) for name, x in td.data.anchor_task(20_000, key=jr.key(1)).items()}
    anchors = task["tokens"][np.arange(20_000), task["positions"]]
    np.testing.assert_allclose(np.bincount(anchors, minlength=5)[1:] / 20_000, 1 / 4, atol=0.016)
    np.testing.assert_allclose(np.bincount(task["positions"], minlength=9) / 20_000, 1 / 9, atol=0.012)
    keys = np.unique(task["tokens"])
    np.testing.assert_array_equal(keys, np.arange(1, 101))


def test_draws_follow_the_key():
    one, same, other = (td.data.anchor_task(5, key=jr.key(seed))["tokens"] for seed in (0, 0, 1))
    np.testing.assert_array_equal(one, same)
    assert np.any(np.asarray(one) != np.asarray(other))


def test_sizes_that_leave_nothing():
    with pytest.raises(ValueError, match="needs two tokens a sequence, an anchor and a key; got `seq_len=1`"):
        td.data.anchor_task(5, 1, key=jr.key(0))
