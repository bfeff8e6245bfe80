"""From text to a Markov chain: a vocabulary, its bigram transition matrix and the stationary law."""

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import jax.random as jr
import numpy as np
from jaxtyping import Array, Float, Int

from thetadot._types import Key
from thetadot.data.chains import stationary_law

OUT_OF_VOCABULARY = "<oov>"
"""Stands for every word that is not among the most frequent ones."""

WORDS_PER_TYPE = 10
"""A text must have at least this many words per vocabulary entry."""

_WORD = re.compile(
    r"<\w+>"  # special tokens such as <unk>
    r"|@\S@"  # the marks @-@ @,@ @.@ of pre-tokenized corpora
    r"|\w+(?:['’.,-]\w+)*"  # words, with inner apostrophes, points, commas and hyphens
    r"|['’](?:s|t|d|m|ll|re|ve)\b"  # endings split off by a tokenizer
    r"|[^\w\s]"  # any other sign alone
)


@dataclass(frozen=True)
class Corpus:
    """Bigram statistics of a text.

    Attributes:
        words: The d vocabulary entries, most frequent first, `<oov>` last.
        stationary: π (d,), the exact stationary law of `transition`; close to the word frequencies.
        transition: P (d, d), smoothed and irreducible.
        counts: Raw bigram counts (d, d): how often word j follows word i.
    """

    words: tuple[str, ...]
    stationary: Float[Array, " d"]
    transition: Float[Array, "d d"]
    counts: np.ndarray

    @property
    def data(self) -> dict[str, Array]:
        """`{"stationary": π, "transition": P}`, as the losses of `thetadot.models.attention` take it."""
        return {"stationary": self.stationary, "transition": self.transition}

    def __repr__(self) -> str:
        """One line: sizes and the first words."""
        first = " ".join(self.words[:6])
        return f"Corpus({len(self.words)} words, {int(self.counts.sum())} bigrams: {first} ...)"


def read_corpus(source: str | Path, vocab_size: int, smoothing: float = 1.0) -> Corpus:
    """Reads a text and counts which word follows which, in one pass over the text as one sequence.

    The text is lowercased. Words keep inner apostrophes, points, commas and hyphens; every other sign is a word of its
    own; line breaks are spaces. A corpus's own mark for rare words, such as `<unk>`, is a word like any other. The
    vocabulary is the `vocab_size - 1` most frequent words (ties: the first to occur) and `<oov>` for all others.

    Smoothing adds `smoothing` imaginary bigrams to every row, spread like the frequencies q of the words:
    `P_ij = (C_ij + α q_j) / (Σ_j C_ij + α)`. So every entry of P is positive, and π is unique.

    Args:
        source: A UTF-8 text file; or `"hub:NAME[:CONFIG[:SPLIT]]"`, a corpus with a `text` column that the `datasets`
            package loads, such as `"hub:Salesforce/wikitext:wikitext-2-raw-v1:test"`; the split is `train` by default.
        vocab_size: d, the number of vocabulary entries including `<oov>`.
        smoothing: α > 0, imaginary bigrams a row; 1 disturbs only words that occur a few times.

    Raises:
        ValueError: If the source cannot be read, is not text, is empty, has fewer than `vocab_size` different words,
            or fewer than 10 words per vocabulary entry.
    """
    if not smoothing > 0:
        raise ValueError(f"`smoothing` must be positive, so that the stationary law is unique; got {smoothing:g}.")
    words, tokens = _read_tokens(source, vocab_size)
    return _corpus(words, tokens, smoothing)


def read_contexts(
    source: str | Path, vocab_size: int, num: int, length: int, *, key: Key
) -> dict[str, Int[Array, "..."]]:
    """Contexts of a text with the word that follows each, as `models.decoder` takes them.

    Args:
        source: As in `read_corpus`, whose vocabulary the tokens number.
        vocab_size: d, the number of vocabulary entries including `<oov>`.
        num: Number of contexts N; they begin at different places, and may overlap.
        length: Their length n in words.
        key: Draws the places.

    Returns:
        `{"tokens": (N, n), "targets": (N,)}`, 32-bit integers.

    Raises:
        ValueError: As `read_corpus`; or the text has fewer contexts.
    """
    _, tokens = _read_tokens(source, vocab_size)
    places = len(tokens) - length
    if length < 1 or not 1 <= num <= places:
        raise ValueError(
            f"`read_contexts(num={num}, length={length})` needs at least one context of one word and a text that has "
            f"as many; {str(source)!r} has {max(places, 0)} of this length."
        )
    rng = np.random.default_rng(np.asarray(jr.key_data(key)))
    starts = rng.choice(places, num, replace=False)
    windows = tokens[starts[:, None] + np.arange(length + 1)].astype(np.int32)
    return {"tokens": jnp.asarray(windows[:, :-1]), "targets": jnp.asarray(windows[:, -1])}


def split_words(text: str) -> list[str]:
    """Cuts a text into lowercase words and signs: `Don't! @-@` gives `["don't", "!", "@-@"]`."""
    return _WORD.findall(text.lower())


def _read_tokens(source: str | Path, vocab_size: int) -> tuple[tuple[str, ...], np.ndarray]:
    """The vocabulary, most frequent words first, and the text as numbers of its entries."""
    if vocab_size < 2:
        raise ValueError(f"`vocab_size` must be at least 2, one word and {OUT_OF_VOCABULARY}; got {vocab_size}.")
    name = str(source)
    texts = _hub_texts(name) if name.startswith("hub:") else _file_texts(Path(source))
    vocabulary: dict[str, int] = {}
    stream = (vocabulary.setdefault(word, len(vocabulary)) for text in texts for word in split_words(text))
    tokens = np.fromiter(stream, np.int64)
    _check_length(name, len(tokens), len(vocabulary), vocab_size)

    frequencies = np.bincount(tokens)
    kept = np.argsort(-frequencies, kind="stable")[: vocab_size - 1]
    renumber = np.full(len(vocabulary), vocab_size - 1)
    renumber[kept] = np.arange(vocab_size - 1)
    spelled = list(vocabulary)
    words = (*(spelled[i] for i in kept), OUT_OF_VOCABULARY)
    return words, renumber[tokens]


def _corpus(words: tuple[str, ...], tokens: np.ndarray, smoothing: float) -> Corpus:
    d = len(words)
    counts = np.bincount(tokens[:-1] * d + tokens[1:], minlength=d * d).reshape(d, d)
    frequencies = np.bincount(tokens, minlength=d) / len(tokens)
    transition = (counts + smoothing * frequencies[None, :]) / (counts.sum(axis=1, keepdims=True) + smoothing)
    return Corpus(words, stationary_law(transition), jnp.asarray(transition), counts)


def _check_length(name: str, num_words: int, num_different: int, vocab_size: int) -> None:
    if num_words == 0:
        raise ValueError(f"`read_corpus({name!r})` found no words: the text is empty. Give another file.")
    if vocab_size > num_different:
        raise ValueError(
            f"`vocab_size` must be at most {num_different}, the number of different words in {name!r}; "
            f"got {vocab_size}. Lower it or give a longer text."
        )
    if num_words < WORDS_PER_TYPE * vocab_size:
        raise ValueError(
            f"`read_corpus({name!r})` found {num_words} words, too few: `vocab_size={vocab_size}` needs at least "
            f"{WORDS_PER_TYPE * vocab_size}. Lower it or give a longer text."
        )


def _file_texts(path: Path) -> Iterator[str]:
    """The lines of a file, so that a large one is never held as a whole."""
    try:
        with path.open(encoding="utf-8-sig") as file:
            for line in file:
                if "\0" in line:
                    raise ValueError(f"`read_corpus({str(path)!r})` found binary data. Give a plain UTF-8 text file.")
                yield line
    except UnicodeDecodeError as error:
        raise ValueError(f"`read_corpus({str(path)!r})` is not UTF-8 text. Convert it or give another file.") from error
    except OSError as error:
        raise ValueError(
            f"`read_corpus({str(path)!r})` cannot read the file: {error.strerror or error}. Check the path."
        ) from error


def _hub_texts(source: str) -> Iterable[str]:
    """The `text` column of a hub corpus, named as `hub:NAME[:CONFIG[:SPLIT]]`."""
    name, config, split = (*source.removeprefix("hub:").split(":"), "", "")[:3]
    if not name or source.count(":") > 3:
        raise ValueError(f"`read_corpus({source!r})` must name a corpus as hub:NAME[:CONFIG[:SPLIT]].")
    try:
        import datasets  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise ValueError(
            f"`read_corpus({source!r})` needs the `datasets` package: pip install 'thetadot[text]'."
        ) from error
    try:
        rows: Any = datasets.load_dataset(name, config or None, split=split or "train", streaming=True)
        for row in rows:
            if "text" not in row:
                raise ValueError(f"its columns are {sorted(row)}, and one named text is needed")
            yield row["text"]
    except Exception as error:  # whatever the client raises: network, name, split
        raise ValueError(
            f"`read_corpus({source!r})` could not load the corpus: {error}. Check its name and split."
        ) from error
