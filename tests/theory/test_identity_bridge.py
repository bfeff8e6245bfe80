"""Blocks, margins, the reduction and the nuclear-norm program of the Identity Bridge, against n × n numbers."""

import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest

import thetadot as td
from thetadot.data import bag_data, training_facts, two_hop_task
from thetadot.models import emb_mlp
from thetadot.theory import identity_bridge as ib
from thetadot.theory.identity_bridge import program, reduction

RNG = np.random.default_rng(0)
BLOCKS = ib.Blocks(*(jnp.asarray(RNG.normal(size=(2, 2))) for _ in range(3)))


def world(n, identity=1.0, pooling="sum", weight_decay=0.0):
    task = two_hop_task((n, n, n))
    return bag_data(task, training_facts(task, identity), pooling, weight_decay)


def test_blocks_are_read_back_and_averages_are_over_permutations():
    w = program.assemble(BLOCKS, 4)
    for part, expected in zip(ib.average_blocks(jnp.asarray(w)), BLOCKS, strict=True):
        np.testing.assert_allclose(part, expected, atol=1e-14)
    noise, total, num = RNG.normal(size=w.shape), np.zeros_like(w), 2000
    for _ in range(num):
        order = RNG.permutation(4)
        rows = np.concatenate([order, 4 + order, 8 + order, [12, 13]])
        total += noise[rows][:, np.concatenate([order, 4 + order])] / num
    averaged = program.assemble(ib.average_blocks(jnp.asarray(noise)), 4)
    used = np.r_[0:8, 12:14]
    np.testing.assert_allclose(total[used], averaged[used], atol=0.15)
    assert np.max(np.abs(noise[used] - averaged[used])) > 1


@pytest.mark.parametrize("pooling", ["sum", "mean"])
def test_margins_and_composed_margin_of_the_blocks_are_those_of_w(pooling):
    n, w = 4, program.assemble(BLOCKS, 4)
    data = world(n, pooling=pooling)
    z = np.asarray(data["bags"]) @ w
    found = ib.margins(BLOCKS, {"sum": 1.0, "mean": 0.5}[pooling])
    for kind, target in enumerate([0, n, 0]):
        row = z[kind * n]
        same, other = (target + 1, (target + n) % (2 * n))
        expected = [row[target] - row[k] for k in (same, other + 1, other)]
        np.testing.assert_allclose(found[kind], expected, atol=1e-12)
    tests = np.asarray(world(n)["test_bags"]) @ w
    margin = tests[0, n] - np.max(np.delete(tests[0], n))
    assert float(ib.composed_margin(BLOCKS)) == pytest.approx(margin, rel=1e-12)


@pytest.mark.slow
@pytest.mark.parametrize("pooling, weight_decay", [("sum", 0.0), ("mean", 0.02)])
def test_the_reduced_flow_is_the_full_flow(pooling, weight_decay):
    """From a symmetric start: the same loss at every time, and the same parameters at the end."""
    n, ts = 4, [0.0, 3.0, 10.0, 30.0]
    params0 = ib.reduced_params(0.3, n, key=jr.key(2))
    options = {"ts": ts, "solver": "tsit5", "rtol": 1e-9}
    small = td.gradient_flow(
        td.Problem(ib.reduced_loss, ib.reduced_data(n, 1.0, pooling, weight_decay)), params0, 30.0, **options
    )
    full = td.gradient_flow(
        td.Problem(emb_mlp.loss, world(n, 1.0, pooling, weight_decay)), ib.lift(params0, n), 30.0, **options
    )
    np.testing.assert_allclose(small["loss"], full["loss"], rtol=1e-7)
    assert small["loss"][-1] < 0.8 * small["loss"][0]
    for name, expected in ib.lift(small.params1, n).items():
        np.testing.assert_allclose(full.params1[name], expected, atol=1e-6)


def test_the_lifted_start_is_gaussian_in_size():
    """Both parts of the full parameters have the standard deviation ε of the reduced ones."""
    n, start = 200, ib.reduced_params(0.5, 200, key=jr.key(0))
    w_emb = np.asarray(ib.lift(start, n)["w_emb"])
    assert w_emb.shape == (3 * n + 2, 2 * n + 3) and not np.any(w_emb[2 * n : 3 * n])
    reduced = np.sum(np.square(start["emb"])) + np.sum(np.square(start["inv_emb"]))
    assert np.sum(w_emb**2) == pytest.approx(reduced, rel=1e-12)
    assert reduction.reduced_params(0.5, 2, key=jr.key(0))["out"].shape == (2, 2)


@pytest.mark.parametrize("identity", [False, True])
def test_the_certificate_proves_the_optimum_and_no_other(identity):
    optimum = ib.solve_program(5, identity)
    assert optimum.smallest_margin == pytest.approx(1, abs=1e-9)
    assert optimum.norm == pytest.approx(optimum.bound, abs=1e-7)
    w = program.assemble(optimum.blocks, 5)
    assert optimum.norm == pytest.approx(np.linalg.norm(w, "nuc"), rel=1e-12)
    # W of any other solution of the constraints has more norm than the bound
    data, rng = world(5, float(identity)), np.random.default_rng(1)
    for _ in range(20):
        other = w + rng.normal(size=w.shape) * 0.1
        params = {"w_emb": jnp.asarray(other), "w_out": jnp.eye(10)}
        margin = float(emb_mlp.smallest_margin(params, data))
        assert margin <= 0 or np.linalg.norm(other, "nuc") / margin > optimum.bound
    # and wrong multipliers prove less
    *_, bound = program.certify(optimum.blocks, np.ones((3, 3)), 5, identity, "sum")
    assert bound < optimum.bound - 0.1


def test_closed_forms_of_the_least_norm():
    """b_1/a_1 falls from 0.75 at n = 3 to sqrt(1 - 1/sqrt 2) = 0.5412; the block alone would have 1."""
    ratios = [ib.bridge_optimum(n)[0] for n in (3, 6, 10, 100, 10**4, 10**6)]
    assert np.all(np.diff(ratios) < 0)
    np.testing.assert_allclose(ratios[:3], [0.750988, 0.724699, 0.703043], atol=1e-6)
    assert ratios[-1] == pytest.approx(np.sqrt(1 - 1 / np.sqrt(2)), abs=1e-4)
    assert ib.norm_without_bridge(3) == 4.5


def test_averaged_embeddings_keep_the_margin_of_composed_questions():
    """With averages the composed margin of the least norm is 1 for every n, for sums it is b_1/a_1."""
    for n in (3, 8):
        blocks = ib.solve_program(n, True, "mean").blocks
        assert float(ib.composed_margin(blocks)) == pytest.approx(1, abs=1e-5)
        assert float(blocks.diagonal[0, 0]) == pytest.approx(2, abs=1e-5)  # ½ a_1 ≥ 1
