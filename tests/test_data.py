import itertools
import sys
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest

from thetadot import data as td_data
from thetadot.data import chains, text

LAW = jnp.array([0.75, 0.19, 0.05, 0.01])


def random_transition(d, seed=0):
    weights = np.exp(np.random.default_rng(seed).normal(size=(d, d)))
    return weights / weights.sum(axis=1, keepdims=True)


@pytest.mark.parametrize("persistence", [0.5, 0.0, 0.99, -0.01])
def test_persistent_chain_entry_by_entry(persistence):
    chain = td_data.persistent_chain(LAW, persistence)
    for i in range(4):
        for j in range(4):
            expected = persistence * (i == j) + (1 - persistence) * float(LAW[j])
            assert float(chain[i, j]) == pytest.approx(expected, rel=1e-14)
    td_data.check_transition(chain)
    np.testing.assert_allclose(td_data.stationary_law(chain), LAW, rtol=1e-12)


def test_persistent_chain_can_be_traced():
    chains_of = jax.jit(jax.vmap(td_data.persistent_chain, in_axes=(None, 0)))
    np.testing.assert_allclose(chains_of(LAW, jnp.array([0.1, 0.5]))[1], td_data.persistent_chain(LAW, 0.5))


@pytest.mark.parametrize("persistence", [1.0, 1.5, -0.2])
def test_persistence_out_of_range(persistence):
    with pytest.raises(ValueError, match=r"`persistence` must lie in \[-0\.010101, 1\)"):
        td_data.persistent_chain(LAW, persistence)


@pytest.mark.parametrize(
    "law, sentence",
    [
        ([0.5, 0.47], r"`stationary` must sum to one; got sum 0\.97\. Divide it by its sum\."),
        ([0.5, 0.5, 0.0], r"`stationary` must be positive; got stationary\[2\] = 0\."),
        ([1.5, -0.5], r"`stationary` must be positive; got stationary\[1\] = -0\.5\."),
        ([0.5, float("nan")], r"`stationary` must be finite"),
        ([[0.5, 0.5]], r"`stationary` must be a vector .* got shape \(1, 2\)\."),
        ([1.0], r"`stationary` must be a vector of at least two"),
    ],
)
def test_laws_are_checked(law, sentence):
    with pytest.raises(ValueError, match=sentence):
        td_data.check_law(np.array(law))
    if np.ndim(law) == 1 and len(law) > 1:
        with pytest.raises(ValueError, match=sentence):
            td_data.persistent_chain(law, 0.5)


@pytest.mark.parametrize(
    "transition, sentence",
    [
        ([[0.5, 0.5], [0.6, 0.5]], r"rows that sum to one; row 1 sums to 1\.1\. Divide each row by its sum\."),
        ([[1.5, -0.5], [0.5, 0.5]], r"`transition` must not be negative; got transition\[0, 1\] = -0\.5\."),
        ([[0.5, 0.5], [float("inf"), 0.5]], r"`transition` must be finite; row 1 is not\."),
        ([[0.5, 0.5]], r"`transition` must be a square matrix .* got shape \(1, 2\)\."),
    ],
)
def test_transitions_are_checked(transition, sentence):
    with pytest.raises(ValueError, match=sentence):
        td_data.check_transition(np.array(transition))
    with pytest.raises(ValueError, match=sentence):
        td_data.stationary_law(np.array(transition))


@pytest.mark.parametrize("d", [2, 5, 40])
def test_stationary_law_is_the_left_eigenvector(d):
    transition = random_transition(d)
    law = np.asarray(td_data.stationary_law(transition))
    np.testing.assert_allclose(law @ transition, law, rtol=1e-12)
    assert law.sum() == pytest.approx(1, rel=1e-14)
    # Independent: the rows of a high power of P.
    np.testing.assert_allclose(np.linalg.matrix_power(transition, 4096)[0], law, rtol=1e-10)


def test_periodic_chains_have_a_stationary_law():
    np.testing.assert_allclose(td_data.stationary_law(np.roll(np.eye(3), 1, axis=1)), np.full(3, 1 / 3), rtol=1e-14)


def test_reducible_chains_are_refused():
    with pytest.raises(ValueError, match="more than one stationary law"):
        td_data.stationary_law(np.eye(3))
    with pytest.raises(ValueError, match="gives token 1 probability zero"):
        td_data.stationary_law(np.array([[1.0, 0.0], [0.5, 0.5]]))


def test_sampled_sequences_have_the_chain_s_frequencies():
    """40 000 transitions a row at least: five standard deviations are 5 sqrt(p (1-p) / 40 000) <= 0.0125."""
    transition = jnp.asarray(random_transition(3))
    draw = jax.jit(td_data.sample_sequences, static_argnums=(1, 2))
    sequences, targets = draw(transition, 20_000, 10, key=jr.key(0))
    assert sequences.shape == (20_000, 10) and targets.shape == (20_000,)
    tokens = np.concatenate([sequences, targets[:, None]], axis=1)
    counts = np.zeros((3, 3))
    np.add.at(counts, (tokens[:, :-1].ravel(), tokens[:, 1:].ravel()), 1)
    assert counts.sum(axis=1).min() > 40_000
    assert np.abs(counts / counts.sum(axis=1, keepdims=True) - transition).max() < 0.0125
    assert np.abs(counts / counts.sum(axis=1, keepdims=True) - transition.T).max() > 0.05
    # x_1 is uniform, and x_{s+1} follows x_s.
    assert np.abs(np.bincount(tokens[:, 0]) / 20_000 - 1 / 3).max() < 0.02
    last = np.zeros((3, 3))
    np.add.at(last, (tokens[:, -2], tokens[:, -1]), 1)
    assert np.abs(last / last.sum(axis=1, keepdims=True) - transition).max() < 0.04


def test_sampled_sequences_start_where_told_and_repeat_with_the_key():
    law = jnp.array([0.0, 1.0, 0.0])
    transition = jnp.asarray(random_transition(3))
    first, _ = td_data.sample_sequences(transition, 50, 4, key=jr.key(0), initial_law=law)
    again, _ = td_data.sample_sequences(transition, 50, 4, key=jr.key(0), initial_law=law)
    other, _ = td_data.sample_sequences(transition, 50, 4, key=jr.key(1), initial_law=law)
    assert np.all(np.asarray(first)[:, 0] == 1)
    assert np.array_equal(first, again) and not np.array_equal(first, other)


@pytest.mark.parametrize("size, shape", [(5, (5, 5)), ((6, 4), (6, 4))])
def test_orthogonal_target_has_the_singular_values(size, shape):
    values = jnp.array([4.0, 2.0, 1.0])
    target = td_data.orthogonal_target(values, size, key=jr.key(0))
    assert target.shape == shape
    spectrum = np.linalg.svd(target, compute_uv=False)
    np.testing.assert_allclose(spectrum[:3], values, rtol=1e-13)
    assert spectrum[3:].max() < 1e-14


def test_orthogonal_target_takes_one_key_for_each_side():
    values = jnp.array([4.0, 2.0, 1.0])
    target = td_data.orthogonal_target(values, 10, key=jnp.stack([jr.key(0), jr.key(1)]))
    u, _ = np.linalg.qr(jr.normal(jr.key(0), (10, 10)))
    v, _ = np.linalg.qr(jr.normal(jr.key(1), (10, 10)))
    np.testing.assert_allclose(target, u[:, :3] @ np.diag(values) @ v[:, :3].T, atol=1e-13)
    with pytest.raises(ValueError, match="has 3 values, but a 2×2 matrix has at most 2"):
        td_data.orthogonal_target(values, 2, key=jr.key(0))


# ── text ──


def test_ridge_samples_see_one_direction_only():
    samples = td_data.ridge_samples(jnp.sin, 50, 4, key=jr.key(0))
    t = np.asarray(samples["x"])[:, :4]
    assert samples["x"].shape == (50, 5) and np.all(np.asarray(samples["x"])[:, 4] == 1.0)
    assert np.min(t) < -0.9 and np.max(t) > 0.9 and np.max(np.abs(t)) <= 1.0
    np.testing.assert_allclose(samples["y"], np.sin(t.sum(axis=1) / 2), rtol=1e-12)


def test_words_of_prose_and_of_pre_tokenized_text():
    assert text.split_words('Lily said, "Mom, don\'t!"') == ["lily", "said", ",", '"', "mom", ",", "don't", "!", '"']
    assert text.split_words("the <unk> 's well @-@ known U.S. ( 1 @,@ 000 )\n") == [
        *("the", "<unk>", "'s", "well", "@-@", "known", "u.s", ".", "(", "1", "@,@", "000", ")")
    ]
    assert text.split_words("Straße été 東京") == ["straße", "été", "東京"]
    assert text.split_words(" \n\t ") == []


def test_corpus_by_hand(tmp_path):
    words = ("a b a c a b d " * 20).split()
    path = tmp_path / "hand.txt"
    path.write_text(" ".join(words).upper() + "\n", encoding="utf-8")
    corpus = td_data.read_corpus(path, 3, smoothing=2.0)
    assert corpus.words == ("a", "b", "<oov>")
    tokens = [{"a": 0, "b": 1}.get(word, 2) for word in words]
    counts = np.zeros((3, 3))
    for first, second in itertools.pairwise(tokens):
        counts[first, second] += 1
    np.testing.assert_array_equal(corpus.counts, counts)
    for i in range(3):
        for j in range(3):
            expected = (counts[i, j] + 2.0 * tokens.count(j) / len(tokens)) / (counts[i].sum() + 2.0)
            assert float(corpus.transition[i, j]) == pytest.approx(expected, rel=1e-13)
    np.testing.assert_allclose(corpus.stationary @ corpus.transition, corpus.stationary, rtol=1e-13)
    np.testing.assert_allclose(corpus.stationary, np.bincount(tokens) / len(tokens), atol=0.01)
    assert set(corpus.data) == {"stationary", "transition"}
    assert repr(corpus) == "Corpus(3 words, 139 bigrams: a b <oov> ...)"


def test_contexts_are_windows_of_the_text(tmp_path):
    """A text of 4 words a line: where a context begins is seen from its first word."""
    path = tmp_path / "count.txt"
    path.write_text("zero one two three\n" * 50, encoding="utf-8")
    numbers = {word: i for i, word in enumerate(td_data.read_corpus(path, 4).words)}
    assert set(numbers) == {"zero", "one", "two", "<oov>"}
    cycle = [numbers[word] for word in ("zero", "one", "two", "<oov>")]
    contexts = td_data.read_contexts(path, 4, 30, 6, key=jr.key(0))
    assert contexts["tokens"].shape == (30, 6)
    for row, target in zip(np.asarray(contexts["tokens"]), np.asarray(contexts["targets"]), strict=True):
        first = cycle.index(row[0])
        assert [*row, target] == [cycle[(first + i) % 4] for i in range(7)]
    every = td_data.read_contexts(path, 4, 194, 6, key=jr.key(1))
    assert (
        np.bincount(np.asarray(every["targets"]), minlength=4).tolist() == np.bincount((np.arange(6, 200)) % 4).tolist()
    )
    with pytest.raises(ValueError, match="has 194 of this length"):
        td_data.read_contexts(path, 4, 195, 6, key=jr.key(0))


def test_line_breaks_do_not_matter(tmp_path):
    one, other = tmp_path / "one.txt", tmp_path / "other.txt"
    one.write_text("a b c " * 30, encoding="utf-8")
    other.write_text("a b c\r\n" * 30, encoding="utf-8-sig")
    first, second = td_data.read_corpus(one, 3), td_data.read_corpus(str(other), 3)
    assert first.words == second.words
    np.testing.assert_array_equal(first.counts, second.counts)


def test_smoothing_makes_every_chain_irreducible(tmp_path):
    path = tmp_path / "reducible.txt"
    path.write_text("a " * 50 + "b " * 50, encoding="utf-8")
    corpus = td_data.read_corpus(path, 2)
    td_data.check_law(corpus.stationary)
    assert float(corpus.transition.min()) > 0
    with pytest.raises(ValueError, match="`smoothing` must be positive"):
        td_data.read_corpus(path, 2, smoothing=0.0)


BAD_FILES = {
    "empty.txt": (b"", "found no words: the text is empty"),
    "blank.txt": (b" \n\n ", "found no words: the text is empty"),
    "latin.txt": ("été ".encode("latin-1") * 100, "is not UTF-8 text"),
    "binary.txt": (b"\x89PNG\r\n\x1a\n\x00\x00\xff", "is not UTF-8 text"),
    "nul.txt": (b"a b \x00 c" * 50, "found binary data"),
    "few.txt": (b"a b a b " * 100, "`vocab_size` must be at most 2, the number of different words"),
    "short.txt": (b"a b c d e f g", "found 7 words, too few: `vocab_size=4` needs at least 40"),
}


@pytest.mark.parametrize("name", BAD_FILES)
def test_bad_texts_are_refused_in_one_sentence(tmp_path, name):
    content, sentence = BAD_FILES[name]
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(ValueError, match=sentence) as caught:
        td_data.read_corpus(path, 4)
    assert "\n" not in str(caught.value) and name in str(caught.value)


def test_unreadable_files_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"absent\.txt'\)` cannot read the file: No such file or directory"):
        td_data.read_corpus(tmp_path / "absent.txt", 4)
    with pytest.raises(ValueError, match="cannot read the file: Is a directory"):
        td_data.read_corpus(tmp_path, 4)
    with pytest.raises(ValueError, match="`vocab_size` must be at least 2"):
        td_data.read_corpus(tmp_path / "absent.txt", 1)


@pytest.mark.parametrize("name", ["wikitext-2-valid.txt", "tinystories-sample.txt"])
def test_real_text(sample_text, name):
    corpus = td_data.read_corpus(sample_text(name), 32)
    assert {"the", ",", ".", "<oov>"} <= set(corpus.words) and len(set(corpus.words)) == 32
    assert np.max(np.abs(corpus.stationary @ corpus.transition - corpus.stationary)) < 1e-14
    frequencies = corpus.counts.sum(axis=1) / corpus.counts.sum()
    assert np.max(np.abs(corpus.stationary - frequencies)) < 1e-3
    assert np.all(np.diff(frequencies[:-1]) <= 1e-5)


def fake_datasets(monkeypatch, rows):
    calls = []

    def load_dataset(name, config, *, split, streaming):
        calls.append((name, config, split, streaming))
        return iter(rows)

    monkeypatch.setitem(sys.modules, "datasets", SimpleNamespace(load_dataset=load_dataset))
    return calls


def test_hub_corpora_by_name_configuration_and_split(monkeypatch, tmp_path):
    calls = fake_datasets(monkeypatch, [{"text": "a b c"}] * 30)
    corpus = td_data.read_corpus("hub:group/name:config:validation", 3)
    td_data.read_corpus("hub:group/name", 3)
    assert calls == [("group/name", "config", "validation", True), ("group/name", None, "train", True)]
    path = tmp_path / "same.txt"
    path.write_text("a b c\n" * 30, encoding="utf-8")
    np.testing.assert_array_equal(corpus.counts, td_data.read_corpus(path, 3).counts)


def test_hub_problems_are_one_sentence(monkeypatch):
    fake_datasets(monkeypatch, [{"label": 1}])
    with pytest.raises(ValueError, match=r"its columns are \['label'\], and one named text is needed"):
        td_data.read_corpus("hub:name", 3)
    with pytest.raises(ValueError, match="must name a corpus as hub:NAME"):
        td_data.read_corpus("hub:a:b:c:d", 3)
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(ValueError, match=r"needs the `datasets` package: pip install 'thetadot\[text\]'"):
        td_data.read_corpus("hub:name", 3)


def test_sum_tolerance_accepts_single_precision():
    law = np.array([0.7, 0.1, 0.1, 0.1], np.float32)
    td_data.check_law(law)
    assert abs(float(law.sum(dtype=np.float64)) - 1) < chains._SUM_TOLERANCE


@pytest.mark.parametrize("size, shape", [(4, (4, 4)), ((2, 5), (2, 5))])
def test_observed_entries_are_as_many_as_asked_for(size, shape):
    masks = np.stack([td_data.observed_entries(size, 3, key=key) for key in jr.split(jr.key(0), 200)])
    assert masks.shape == (200, *shape) and set(np.unique(masks)) == {0.0, 1.0}
    assert np.all(masks.sum(axis=(1, 2)) == 3)
    share = 3 / (shape[0] * shape[1])
    assert np.all(np.abs(masks.mean(axis=0) - share) < 5 * np.sqrt(share / 200))  # every entry alike
    with pytest.raises(ValueError, match="num_observed"):
        td_data.observed_entries(size, 0, key=jr.key(0))
