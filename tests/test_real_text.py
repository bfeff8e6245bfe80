"""Real texts: which words attention turns to, as the chain of a text says beforehand, and ranks in two layers."""

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest

import thetadot as td
from thetadot.experiments import FocusDilution, run
from thetadot.models import decoder
from thetadot.plot.received import received
from thetadot.theory import focus_dilution as theory

pytestmark = pytest.mark.slow

TEXTS = {"wikitext-2-valid.txt": (4500.0, 8.13, 0.889), "tinystories-sample.txt": (3000.0, 6.81, 0.975)}


def focus(path, t1, rtol):
    """Attention received per frequency by "the" at the end, and the least of the most frequent token before."""
    traj = run(FocusDilution(text=str(path), vocab=64, t1=t1, rtol=rtol))
    assert traj.status == "done"
    stationary = np.asarray(traj.provenance["notes"]["stationary"])
    ratios = received(traj["attention"], stationary)
    early = traj.ts < 400
    return ratios[-1, traj.provenance["labels"].index("the")], np.min(ratios[early, np.argmax(stationary)]), traj


@pytest.mark.parametrize("name", TEXTS)
def test_attention_turns_from_the_most_frequent_token_first_and_to_the_most_frequent_word_later(sample_text, name):
    """Frequent tokens of a text rarely follow themselves: c < 0, the sign of an anti-persistent chain."""
    t1, on_the, least = TEXTS[name]
    found, early, traj = focus(sample_text(name), t1, 1e-3)
    better, early_better, _ = focus(sample_text(name), t1, 1e-4)
    assert abs(found - better) < 0.01 * better and abs(early - early_better) < 1e-3  # settled
    assert abs(better - on_the) < 0.02 * on_the and abs(early_better - least) < 2e-3
    setup = FocusDilution(text=str(sample_text(name)), vocab=64).setup()
    assert theory.attention_growth_rate(**setup.problem.data) < 0 and early_better < 1
    losses = [stage.loss for stage in td.find_stages(traj) if stage.kind == "plateau"]
    assert abs(losses[1] - setup.plateaus["unigram"]) < 0.02


def test_without_order_in_the_text_attention_stays_off(sample_text, tmp_path):
    """Control: the same words in random order have nothing to attend to."""
    words = sample_text("tinystories-sample.txt").read_text(encoding="utf-8").split()
    shuffled = tmp_path / "shuffled.txt"
    shuffled.write_text(" ".join(np.random.default_rng(0).permutation(words)), encoding="utf-8")
    found, _, _ = focus(shuffled, 1000.0, 1e-3)
    assert abs(found - 1) < 0.02


# --- condensation and rank collapse, arXiv 2510.06954, Fig. 3 ---

MATRICES = ("w_v", "w_1", "w_2", "w_q", "w_k")
GELU_LOSS = decoder.loss_fn(jax.nn.gelu)


def stable_ranks(params, data):
    """(layers, matrices)"""
    del data
    layers = [[layer[name] for name in MATRICES] for layer in params["layers"]]
    ranks = [td.observables.stable_rank(w.reshape(w.shape[-2:])) for layer in layers for w in layer]
    return jnp.stack(ranks).reshape(len(layers), len(MATRICES))


def two_layers(path, init_scale):
    """Stable ranks while two layers learn which of 64 words follows 256 contexts of 8, and the loss beside them.

    The paper's decoder with GELU and residuals and no LayerNorm, at width 16 instead of 64: one head, no output matrix,
    no positions, embedding and output trained too.
    """
    contexts = td.data.read_contexts(path, 64, 256, 8, key=jr.key(0))
    params0 = td.inits.decoder_params(64, 16, 32, init_scale, key=jr.key(0), num_layers=2)
    params0["layers"] = [{name: layer[name] for name in MATRICES} for layer in params0["layers"]]
    problem = td.Problem(GELU_LOSS, contexts)
    traj = td.gradient_flow(problem, params0, 500.0, observables={"ranks": stable_ranks}, rtol=1e-3,
                            crossings={"learned": ("loss", 0.85)}, stop="learned")  # fmt: skip
    assert traj.status == "stopped"
    counts = np.bincount(np.asarray(contexts["targets"]))
    frequencies = counts[counts > 0] / np.sum(counts)
    return traj["ranks"], traj["loss"], float(-np.sum(frequencies * np.log(frequencies)))


def test_two_layers_condense_on_wikitext_and_then_keys_and_queries_collapse(sample_text):
    """Stable ranks, from 3.5 to 7.2 at the start: W_V at the unigram saddle, then W_1 and W_2, then W_Q and W_K.

    Those of the second layer come to 1.25 and rise again (1.10 in another draw of contexts); those of the first come to
    2.4 by the time the loss has halved, where this ends. The outer weights are no longer of rank one then: up to 1.8.
    A tenth of the tolerance moves these numbers by less than 0.002.
    """
    ranks, loss, unigram = two_layers(sample_text("wikitext-2-valid.txt"), 5e-3)
    outer, attention = ranks[:, :, :3], ranks[:, :, 3:]
    saddle, last = int(np.argmax(loss < unigram)), int(np.argmin(ranks[:, 1, 3]))
    assert np.max(outer[saddle, :, 0]) < 1.01 < 2 < np.min(outer[saddle, :, 1:])
    np.testing.assert_allclose(attention[saddle], attention[0], rtol=0.01)
    np.testing.assert_allclose(np.min(outer, axis=0), [[1.001, 1.153, 1.153], [1.001, 1.037, 1.057]], atol=2e-3)
    assert np.max(np.argmin(outer, axis=0)) < 0.5 * last  # long before
    np.testing.assert_allclose(np.min(attention[:, 1], axis=0), [1.247, 1.265], atol=5e-3)
    assert np.all(attention[-1, 1] > np.min(attention[:, 1], axis=0) + 0.04)
    np.testing.assert_allclose(np.min(attention[:, 0], axis=0), [2.91, 2.43], atol=0.02)


def test_two_layers_from_a_large_start_neither_condense_nor_collapse(sample_text):
    """The same contexts learned as well, from weights of size 0.25."""
    ranks, _, _ = two_layers(sample_text("wikitext-2-valid.txt"), 0.25)
    assert np.min(ranks) > 3.4
