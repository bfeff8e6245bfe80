"""Focus and dilution on real texts: which words attention turns to, and what the chain of a text says beforehand."""

import numpy as np
import pytest

import thetadot as td
from thetadot.experiments import FocusDilution, run
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
