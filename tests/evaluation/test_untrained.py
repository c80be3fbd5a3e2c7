"""The SAE of the shuffled model, beside one that is kept in half precision."""

from __future__ import annotations

import pytest
import torch

import monosem as ms
from monosem.errors import ConfigError
from monosem.evaluation import untrained
from monosem.evaluation.probing import usefulness
from monosem.models import SubjectModel

WORDS = ["the", "king", "of", "France", "was", "bald", "and", "sat", "on", "a", "chair", "by", "night"]
TEXT = [" ".join(WORDS[(i * j + j) % len(WORDS)] for j in range(60)) for i in range(40)]


def test_a_dictionary_in_half_precision_has_a_control_that_was_trained(
    tiny: SubjectModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module, name, value in ((untrained, "TOKENS", 1024), (untrained, "LEAST", 512), (usefulness, "EXAMPLES", 160)):
        monkeypatch.setattr(module, name, value)
    sae = ms.TopKSAE(32, 64, k=4, dtype=torch.float16)
    sae.metadata.hook, sae.metadata.tokens_trained = "resid_post.1", 100_000
    report = ms.evaluate(sae, tiny, text=TEXT, tokens=1000, suite="full", untrained_tokens=1500, progress=False)
    assert 0 < report.columns["untrained"]["fvu"].value < 2
    tokens = int(report.facts["untrained_tokens"])
    assert 1500 <= tokens < 1500 + 2048  # a whole batch at the end
    fewer = round(100_000 / tokens)
    assert f"{fewer} times fewer than the SAE (100,000): it is worse for that alone" in str(report).replace("\n", " ")


@pytest.mark.parametrize(("wanted", "length"), [(None, 600), (5000, 5000)])
def test_the_control_has_as_many_tokens_as_the_sae_or_as_are_asked_for(
    wanted: int | None, length: int, tiny: SubjectModel
) -> None:
    assert untrained.training_length(tiny, 600, wanted) == length
    with pytest.raises(ConfigError, match="untrained_tokens must be at least 1, got 0"):
        ms.evaluate(ms.TopKSAE(32, 64, k=4), tiny, "resid_post.1", untrained_tokens=0)
