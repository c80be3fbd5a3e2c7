"""Names are the words at the peaks, clarity says how far they agree: against plain loops over the stored examples."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
import torch
from small_store import Made

from monosem.codes import SparseCodes
from monosem.data import ContextBatch
from monosem.features import Example, FeatureStore, Harvest, write_store
from monosem.models import SubjectModel
from monosem.sae import TopKSAE


def word_at_peak(example: Example, special: str) -> str:
    """Token by token to both sides, while letters or digits meet."""
    texts, first = example.texts, example.peak
    last = first

    def meet(i: int) -> bool:
        a, b = texts[i], texts[i + 1]
        return special not in (a, b) and a[-1:].isalnum() and b[:1].isalnum()

    while first > 0 and meet(first - 1):
        first -= 1
    while last + 1 < len(texts) and meet(last):
        last += 1
    word = "".join(texts[first : last + 1])
    return word.strip() or word


def test_names_and_clarity_are_those_of_plain_loops(made: Made) -> None:
    special, top = made.model.tokenizer.eos_token, made.store.index["settings"]["top"]
    named_by_words = 0
    for feature in made.store.features(range(len(made.store))):
        if not feature.count:
            assert (feature.name, feature.clarity) == ("never fired", None)
            continue
        words = Counter(word_at_peak(example, special).lower() for example in feature.top)
        most = max(words.values())
        steady = feature.top[-1].activation / feature.top[0].activation
        assert feature.clarity == pytest.approx(most / top * steady, rel=1e-5)
        common = [word for word, n in words.items() if n == most]
        if 2 * most >= len(feature.top):
            named_by_words += 1
            assert feature.name.lower() in [word.strip() or repr(word) for word in common]
        else:
            peaks = Counter(int(example.tokens[example.peak]) for example in feature.top)
            texts = [made.store.vocabulary.text(t) for t, n in peaks.items() if n == max(peaks.values())]
            assert feature.name in [text.strip() or repr(text) for text in texts]
    assert named_by_words > 3


@pytest.mark.parametrize(
    ("pieces", "name"),
    [
        ([" ", "gard", "en", "s", " are"], "gardens"),  # before and after, up to the space
        ([".", '"', "gard", "en", "."], "garden"),
        ([" one", " two", "\n", " three", " four"], repr("\n")),
        ([" the", " caf", "\u00e9", "s", "."], "caf\u00e9s"),  # a character of several tokens is no end
    ],
)
def test_a_name_is_the_whole_word_around_the_peak(
    pieces: list[str], name: str, small_model: SubjectModel, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """The same five tokens at the beginning of twelve documents, the latent on at the third; from 2 down to 1."""
    tokenizer = small_model.tokenizer
    ids = [token for piece in pieces for token in tokenizer(piece)["input_ids"]]
    peak = sum(len(tokenizer(piece)["input_ids"]) for piece in pieces[:2])
    words = [token for text, token in tokenizer.get_vocab().items() if text.startswith("\u0120")]
    others = torch.tensor(sorted(words)[: 12 * 16]).reshape(12, 16)  # all documents go on otherwise
    tokens = torch.cat([torch.tensor(ids).expand(12, -1), others], 1)
    document = torch.arange(12)[:, None].expand_as(tokens)
    position = torch.arange(tokens.shape[1]).expand_as(tokens)
    dense = torch.zeros(12, tokens.shape[1], 3)
    dense[:, peak, 1] = torch.linspace(2, 1, 12)
    harvest = Harvest(3, len(tokenizer), tokens.shape[1])
    kept = torch.ones_like(tokens, dtype=torch.bool)
    batch = ContextBatch(tokens, document, position, ~kept)
    harvest.add(batch, kept, SparseCodes.from_dense(dense.reshape(-1, 3)))
    folder = tmp_path_factory.mktemp("named")
    store = FeatureStore(write_store(harvest, folder, TopKSAE(32, 3, k=1), small_model))
    assert store[1].name == name
    assert store[1].clarity == pytest.approx(0.5)
    assert store.search(token=name).to_pylist()[0] == {"latent": 1, "score": pytest.approx(0.5), "how": "named"}
    assert np.isclose(store.table("clarity is not null")["clarity"].to_numpy(), 0.5).tolist() == [True]
