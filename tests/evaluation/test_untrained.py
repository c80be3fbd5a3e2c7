"""The SAE of the shuffled model, beside one that is kept in half precision."""

from __future__ import annotations

import pytest
import torch

import monosem as ms
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
    sae.metadata.hook = "resid_post.1"
    report = ms.evaluate(sae, tiny, text=TEXT, tokens=1000, suite="full", progress=False)
    assert 0 < report.columns["untrained"]["fvu"].value < 2
