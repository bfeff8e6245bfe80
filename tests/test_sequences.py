"""Labeled sequences: the teacher's labels, and when a hyperplane separates what is pooled."""

import jax.random as jr
import numpy as np
import pytest

from thetadot.data import is_separable, labeled_sequences


@pytest.mark.parametrize("seed", range(5))
def test_pooled_features_are_separable_without_focus_only(seed):
    pooled = labeled_sequences(60, 4, 6, 0.0, key=jr.key(seed))
    focused = labeled_sequences(60, 4, 6, 4.0, key=jr.key(seed))
    np.testing.assert_array_equal(pooled["x"], focused["x"])
    assert is_separable(pooled["x"].mean(axis=1), pooled["y"])
    assert not is_separable(focused["x"].mean(axis=1), focused["y"])


def test_labels_are_balanced_signs_and_tokens_are_normal():
    data = labeled_sequences(4000, 3, 5, 2.0, key=jr.key(0))
    assert data["x"].shape == (4000, 3, 5) and data["y"].shape == (4000,)
    assert set(np.unique(data["y"])) == {-1.0, 1.0}
    assert abs(float(data["y"].mean())) < 4 / np.sqrt(4000)
    x = np.asarray(data["x"]).ravel()
    assert abs(x.mean()) < 4 / np.sqrt(x.size) and x.std() == pytest.approx(1, abs=0.02)


def test_separability_is_that_of_known_sets():
    points, labels = np.array([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.1]]), np.array([1.0, 1.0, 1.0])
    assert is_separable(points, labels)
    assert not is_separable(np.vstack([points, [[0.0, -1.0]]]), np.ones(4))
    assert is_separable(np.vstack([points, [[0.0, -1.0]]]), np.array([1.0, 1.0, 1.0, -1.0]))
    assert not is_separable([[1.0], [1.0]], [1.0, -1.0])


@pytest.mark.parametrize("sizes", [(0, 3, 5), (3, 0, 5), (3, 3, 2)])
def test_sizes_that_make_no_sense_are_refused(sizes):
    with pytest.raises(ValueError, match="needs a sequence, a token and three dimensions"):
        labeled_sequences(*sizes, key=jr.key(0))
