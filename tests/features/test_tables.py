"""Passages: the union of windows."""

from __future__ import annotations

import numpy as np
import pytest

from monosem.features.tables import _passages


@pytest.mark.parametrize("seed", range(20))
def test_passages_are_the_union_of_windows_that_overlap_or_touch(seed: int) -> None:
    """Against plain sets, in contexts of 30 tokens; what no window shows is not stored."""
    rng = np.random.default_rng(seed)
    n, longest = 25, 6
    contexts, begin = rng.integers(0, 4, n), rng.integers(0, 24, n)
    length, latents = rng.integers(1, longest + 1, n), rng.integers(0, 5, n)
    text = rng.integers(1, 100, (4, 30 + longest))
    window = np.arange(longest) < length[:, None]
    tokens = np.where(window, text[contexts[:, None], begin[:, None] + np.arange(longest)], 0)
    number, starts, passages = _passages(contexts, begin, length, tokens, window, latents)
    stored: set[tuple[int, int]] = set()
    for p, (first, stop) in enumerate(zip(passages["ends"][:-1], passages["ends"][1:], strict=True)):
        context, offset = passages["context"][p], passages["offset"][p]
        assert passages["tokens"][first:stop].tolist() == text[context, offset : offset + stop - first].tolist()
        places = {(context, offset + i) for i in range(stop - first)}
        assert not stored & ({(context, offset - 1), (context, offset + stop - first)} | places), "they would be one"
        stored |= places
    expected = {(contexts[i], begin[i] + j) for i in range(n) for j in range(length[i])}
    assert stored == expected
    for i in range(n):
        assert passages["context"][number[i]] == contexts[i]
        assert passages["offset"][number[i]] + starts[i] == begin[i]
    users = [latents[number == p].min() for p in range(len(passages["context"]))]
    assert users == sorted(users), "in the order of the first latent that uses them"


def test_words_of_a_word_piece_tokenizer_stand_apart() -> None:
    """[CLS] and [SEP] as they are; "##" goes on with what stands before."""
    from tokenizers import Tokenizer, decoders, models
    from transformers import PreTrainedTokenizerFast

    from monosem.features import Vocabulary

    words = {"[UNK]": 0, "[CLS]": 1, "the": 2, "pond": 3, "##s": 4}
    tokenizer = Tokenizer(models.WordPiece(words, unk_token="[UNK]"))
    tokenizer.decoder = decoders.WordPiece()
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="[UNK]", cls_token="[CLS]")
    assert "".join(Vocabulary.of(fast).texts([1, 2, 3, 4])) == "[CLS] the ponds"
