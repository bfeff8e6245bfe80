"""One text for NumPy and for JAX gives the same numbers in both."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from thetadot.arrays import choose, cond, each, fori_loop, namespace, put, side_by_side, switch, while_loop
from thetadot.solvers._vector import scrambled


def both(fn, *args):
    """The results of a function of NumPy arrays and, compiled, of those of JAX."""
    on_host = fn(*(np.asarray(arg) for arg in args))
    assert all(isinstance(leaf, np.ndarray | np.generic) for leaf in jax.tree.leaves(on_host))
    return on_host, jax.jit(fn)(*(jnp.asarray(arg) for arg in args))


def assert_both(fn, *args):
    one, other = both(fn, *args)
    assert jax.tree.structure(one) == jax.tree.structure(other)
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
        assert a.shape == b.shape and a.dtype == b.dtype
        np.testing.assert_allclose(a, b, rtol=1e-14)


@pytest.mark.parametrize("x", [-1.5, 2.0])
def test_branches(x):
    assert_both(lambda x: cond(x > 0, lambda: x + 1, lambda: x * 3), x)
    assert_both(lambda x: choose(x > 0, (x + 1, -x), (x * 3, x)), x)
    assert_both(lambda x: switch((x > 0).astype(int), [lambda: x + 1, lambda: x * 3]), x)


def test_a_branch_that_is_not_taken_does_not_run_on_the_host():
    def refuse():
        raise AssertionError

    assert cond(np.True_, lambda: 1, refuse) == 1
    assert switch(np.int64(1), [refuse, lambda: 2]) == 2


def test_loops():
    def powers(x):
        rows = namespace(x).zeros((5, 2), x.dtype)
        return fori_loop(0, 5, lambda i, rows: put(rows, i, x**i), rows)

    assert_both(powers, np.array([2.0, 3.0]))
    assert_both(lambda x: while_loop(lambda c: c[0] < 100, lambda c: (2 * c[0], c[1] + c[0]), (x, 0 * x)), 1.5)


def test_each_and_side_by_side():
    for over in (each, side_by_side):
        assert_both(over(lambda a, b: a @ b), np.arange(6.0).reshape(3, 2), np.ones((3, 2)))
        assert_both(over(lambda a: (a.sum(), a**2)), np.arange(6.0).reshape(3, 2))


@pytest.mark.parametrize("index", [1, 4, 9])
def test_what_lies_beyond_the_end_is_dropped(index):
    assert_both(lambda i: put(namespace(i).zeros(5), i, namespace(i).asarray(2.0)), index)
    assert_both(lambda i: put(namespace(i).zeros(5), i + namespace(i).arange(3), namespace(i).ones(3)), index)


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_scrambled_numbers_are_equal_bit_for_bit_and_look_random(dtype):
    one, other = both(lambda x: scrambled(x, (400, 25), seed=3), np.zeros(1, dtype))
    np.testing.assert_array_equal(one, other)
    assert one.dtype == dtype and np.all(np.abs(one) <= 1)
    assert abs(one.mean()) < 0.02 and abs(one.var() - 1 / 3) < 0.02
    gram = np.corrcoef(one.astype(float).T)
    assert np.max(np.abs(gram - np.eye(25))) < 0.25  # five standard deviations
    assert not np.array_equal(one, scrambled(np.zeros(1, dtype), (400, 25), seed=4))
