"""The Emb-MLP against loops over facts and answers, its conserved matrix, and what weight decay does to it."""

import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest

import thetadot as td
from thetadot.data import bag_data, training_facts, two_hop_task
from thetadot.models import emb_mlp

TASK = two_hop_task((3, 3, 3), key=jr.key(0))
PARAMS = td.inits.emb_mlp_params(TASK.vocab_size, 6, 4, 0.7, key=jr.key(1))


@pytest.mark.parametrize("num", [1, 3, 7, 13])
@pytest.mark.parametrize("weight_decay", [0.0, 0.3])
def test_loss_is_the_loop_over_facts(num, weight_decay):
    rng = np.random.default_rng(num)
    bags, targets, weights = rng.poisson(1.0, (num, 11)).astype(float), rng.integers(6, size=num), rng.uniform(size=num)
    data = {"bags": bags, "targets": targets, "weights": weights, "weight_decay": weight_decay}
    w_emb, w_out = np.asarray(PARAMS["w_emb"]), np.asarray(PARAMS["w_out"])
    expected = 0.0
    for bag, target, weight in zip(bags, targets, weights, strict=True):
        z = np.zeros(6)
        for token, count in enumerate(bag):
            for k in range(6):
                z[k] += count * sum(w_emb[token, j] * w_out[j, k] for j in range(4))
        expected += weight * (np.log(np.sum(np.exp(z))) - z[target])
    expected += weight_decay / 2 * (np.sum(w_emb**2) + np.sum(w_out**2))
    assert float(td.Problem(emb_mlp.loss, data).loss(PARAMS)) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("pooling", ["sum", "mean"])
def test_observables_are_loops_over_questions(pooling):
    data = bag_data(TASK, training_facts(TASK, 0.0), pooling)
    w = np.asarray(emb_mlp.end_to_end(PARAMS))

    def pooled(tokens, rows):
        return np.sum([rows[t] for t in tokens], axis=0) / (len(tokens) if pooling == "mean" else 1)

    right, within, margins, known = [], [], [], []
    for tokens, target in zip(np.asarray(TASK.composed.tokens), np.asarray(TASK.composed.targets), strict=True):
        z = pooled(tokens, w)
        right.append(np.argmax(z) == target - 3)
        within.append(3 + np.argmax(z[3:]) == target - 3)
    for hop in TASK.hops:
        for tokens, target in zip(np.asarray(hop.tokens)[:, :2], np.asarray(hop.targets), strict=True):
            z = pooled(tokens, w)
            known.append(np.argmax(z) == target - 3)
            margins.append(z[target - 3] - max(z[k] for k in range(6) if k != target - 3))
    assert float(emb_mlp.accuracy(PARAMS, data)) == pytest.approx(np.mean(known))
    assert float(emb_mlp.composed_accuracy(PARAMS, data)) == pytest.approx(np.mean(right))
    assert float(emb_mlp.composed_accuracy_within(PARAMS, data)) == pytest.approx(np.mean(within))
    assert float(emb_mlp.smallest_margin(PARAMS, data)) == pytest.approx(min(margins), rel=1e-12)
    w_emb = np.asarray(PARAMS["w_emb"])
    firsts = [pooled(tokens, w_emb) for tokens in np.asarray(TASK.hops[0].tokens)[:, :2]]
    bridges = [w_emb[target] for target in np.asarray(TASK.hops[0].targets)]
    firsts, bridges = firsts - np.mean(firsts, axis=0), bridges - np.mean(bridges, axis=0)
    cosines = [x @ y / np.linalg.norm(x) / np.linalg.norm(y) for x, y in zip(firsts, bridges, strict=True)]
    assert float(emb_mlp.latent_alignment(PARAMS, data)) == pytest.approx(np.mean(cosines), rel=1e-12)


def test_weights_of_zero_leave_facts_out():
    """Without the bridge the loss is that of the one-hop facts alone."""
    data = bag_data(TASK, training_facts(TASK, 0.0))
    fewer = {name: data[name][:6] for name in ("bags", "targets", "weights")} | {"weight_decay": 0.0}
    loss = float(td.Problem(emb_mlp.loss, data).loss(PARAMS))
    assert loss == pytest.approx(float(td.Problem(emb_mlp.loss, fewer).loss(PARAMS)), rel=1e-14)
    assert float(jnp.sum(data["weights"])) == pytest.approx(1.0)


def test_perfect_and_empty_embeddings():
    """Accuracy 1 where W is the composition itself; a zero network has alignment 0 and no answer."""
    task = two_hop_task((3, 3, 3))
    data = bag_data(task, training_facts(task))
    w = np.zeros((11, 6))
    w[:3, 3:] = np.eye(3)
    w[:3, :3] = w[3:6, 3:] = 0.5 * np.eye(3)
    right = {"w_emb": jnp.asarray(w), "w_out": jnp.eye(6)}
    assert float(emb_mlp.composed_accuracy(right, data)) == 1
    zero = {"w_emb": jnp.zeros((11, 4)), "w_out": jnp.zeros((4, 6))}
    assert float(emb_mlp.latent_alignment(zero, data)) == 0
    assert float(emb_mlp.smallest_margin(zero, data)) == 0


def _balance_norm(params, data):
    return jnp.linalg.norm(emb_mlp.balancedness(params, data))


def test_balancedness_is_conserved_and_decays_with_the_weights():
    """C(t) = e^{-2λt} C(0); with a decay of one layer only it is not."""
    for weight_decay in (0.0, 0.05):
        data = bag_data(TASK, training_facts(TASK), weight_decay=weight_decay)
        traj = td.gradient_flow(
            td.Problem(emb_mlp.loss, data),
            PARAMS,
            20.0,
            ts=[0.0, 5.0, 20.0],
            observables={"norm": _balance_norm},
            solver="tsit5",
            rtol=1e-8,
        )
        before, after = (emb_mlp.balancedness(params) for params in (PARAMS, traj.params1))
        np.testing.assert_allclose(after, np.exp(-2 * weight_decay * 20.0) * np.asarray(before), atol=1e-6)
        np.testing.assert_allclose(traj["norm"], traj["norm"][0] * np.exp(-2 * weight_decay * traj.ts), rtol=1e-6)
        assert np.linalg.norm(traj.params1["w_emb"] - PARAMS["w_emb"]) > 0.5  # it has gone somewhere


def test_pooling_is_one_of_two():
    with pytest.raises(ValueError, match="'sum' or 'mean'; got 'max'"):
        bag_data(TASK, training_facts(TASK), "max")
