"""Names say what strong firings share, clarity how much of them: against plain loops over the text."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
import torch
from naming import describes
from small_store import Made

from monosem.codes import SparseCodes
from monosem.data import ContextBatch
from monosem.features import FeatureStore, Harvest, write_store
from monosem.models import SubjectModel
from monosem.sae import TopKSAE


class Firings:
    """The strong firings of one latent: weight, word and word before of each, from the text token by token."""

    def __init__(self, made: Made, latent: int) -> None:
        texts = [made.store.vocabulary.text(token) for token in range(len(made.store.vocabulary))]
        special = made.store.vocabulary.special
        dense, contexts = made.dense[..., latent], made.tokens.tolist()
        most = float(dense.max())
        self.weights, self.words, self.before, self.tokens, self.texts = [list[Any]() for _ in range(5)]
        for context, position in dense.nonzero().tolist():
            value = float(dense[context, position])
            if value < 0.25 * most:
                continue
            row = contexts[context]

            def joined(i: int, row: list[int] = row) -> bool:
                inner = row[i] not in special and row[i + 1] not in special
                return inner and all(
                    c.isalnum() or c == "\ufffd" for c in (texts[row[i]][-1:] or " ", texts[row[i + 1]][:1] or " ")
                )

            def word(at: int, row: list[int] = row, joined: Any = joined) -> tuple[str, int]:
                first = last = at
                while first > 0 and joined(first - 1):
                    first -= 1
                while last + 1 < len(row) and joined(last):
                    last += 1
                pieces = b"".join(made.store.vocabulary.pieces[token] for token in row[first : last + 1])
                text = pieces.decode(errors="replace")
                return (text.strip() or text).lower() if row[at] not in special else "", first

            here, first = word(position)
            self.weights.append((value / most) ** 4)
            self.words.append(here)
            self.before.append(word(first - 1)[0] if first > 0 else "")
            self.tokens.append(texts[row[position]].strip().lower())
            self.texts.append(texts[row[position]])

    def share(self, holds: Callable[[str, str, str, str], bool]) -> float:
        """Of their weight, where something holds of word, word before and token."""
        rows = zip(self.weights, self.words, self.before, self.tokens, self.texts, strict=True)
        return sum(weight for weight, *about in rows if holds(*about)) / sum(self.weights)

    def of_name(self, name: str) -> float:
        """How much of them a name holds for."""
        return self.share(lambda word, before, token, text: describes(name.lower(), word, token, before, text))


def test_names_hold_for_as_much_as_they_claim_and_nothing_clear_goes_unnamed(made: Made) -> None:
    named = 0
    for feature in made.store.features(range(len(made.store))):
        if not feature.count:
            assert (feature.name, feature.clarity) == ("never fired", None)
            continue
        firings = Firings(made, feature.latent)
        if feature.name is None and len(firings.weights) < 4:
            assert feature.clarity == 0, "too few to say"
        elif feature.name is None:
            assert feature.clarity == 0
            for said in (firings.words, firings.before):
                weights = Counter[str]()
                for one, weight in zip(said, firings.weights, strict=True):
                    weights[one] += weight
                assert all(weight < 0.52 * sum(firings.weights) for one, weight in weights.items() if one)
        elif feature.name != "CAPITALS":
            named += 1
            assert feature.clarity == pytest.approx(firings.of_name(feature.name), abs=0.02), feature.name
            assert feature.clarity >= 0.5
    assert named > 3


@pytest.mark.parametrize(
    ("pieces", "name", "piece"),
    [
        ([" ", "gard", "en", "s", " are"], "gard·en·s", "en"),  # before and after, up to the space
        ([".", '"', "gard", "en", "."], "g·arden", "g"),
        ([" one", " two", "\n", " three", " four"], f"two {chr(10)!r}", repr("\n")),
        ([" the", " caf", "\u00e9", "s", "."], "the caf\u00e9s", "caf\u00e9s"),  # of several tokens: no end
    ],
)
def test_a_name_is_the_whole_word_around_the_peak(
    pieces: list[str], name: str, piece: str | None, small_model: SubjectModel, tmp_path_factory: pytest.TempPathFactory
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
    assert store[1].clarity == pytest.approx(1)
    assert (store[1].name_piece and name[slice(*store[1].name_piece)]) == piece
