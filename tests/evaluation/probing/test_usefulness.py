"""The full suite has probes and alarms of a language model's dictionary, each with its definition."""

from __future__ import annotations

from typing import Any

import pytest

import monosem as ms
from monosem.evaluation.definitions import DEFINITIONS, USEFULNESS
from monosem.evaluation.probing import usefulness as module
from monosem.evaluation.probing.usefulness import in_random_order
from monosem.models import SubjectModel


def test_the_full_suite_probes_and_the_core_suite_does_not(tiny: SubjectModel, monkeypatch: Any) -> None:
    monkeypatch.setattr(module, "EXAMPLES", 160)
    monkeypatch.setattr(module, "WORDS", 12)
    sae = ms.TopKSAE(32, 48, k=4, seed=0)
    sae.metadata.hook, sae.metadata.prepend_bos, sae.metadata.context_length = "resid_post.1", True, 32
    options: Any = {"text": ["the king of the river " * 12] * 30, "tokens": 900, "loss_tokens": 0, "progress": False}
    core, full = (ms.evaluate(sae, tiny, suite=suite, **options) for suite in ("core", "full"))
    assert set(USEFULNESS) <= set(DEFINITIONS)
    keys = {key for key in USEFULNESS if key.startswith(("probe_", "alarm_"))}
    assert keys <= set(full.metrics)
    assert not keys & set(core.metrics)
    for key in keys:
        one = full[key]
        assert one.low is not None
        assert one.low <= one.value <= (one.high or 0)
    assert full["alarm_l0"].value == pytest.approx(0.5)  # a fixed k tells nothing
    assert "probe_auroc_5" in full.columns["random"]
    assert "probe_auroc_5" in full.columns["PCA"]


def test_words_are_mixed_in_the_same_way_again() -> None:
    text = "one two three four five six seven"
    assert in_random_order(text) == in_random_order(text) != text
    assert sorted(in_random_order(text).split()) == sorted(text.split())
