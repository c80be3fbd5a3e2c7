"""The SAE of the shuffled model, beside one that is kept in half precision."""

from __future__ import annotations

import pytest
import torch

import monosem as ms
from monosem.evaluation import untrained


def test_a_dictionary_in_half_precision_has_a_control_that_was_trained(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(untrained, "TOKENS", 2048)
    monkeypatch.setattr(untrained, "LEAST", 1024)
    sae = ms.TopKSAE(256, 64, k=4, dtype=torch.float16)
    sae.metadata.hook, sae.metadata.model = "resid_post.1", "bundled"
    report = ms.evaluate(sae, ms.load_model("bundled"), tokens=2000, suite="full", progress=False)
    assert 0 < report.columns["untrained"]["fvu"].value < 2
