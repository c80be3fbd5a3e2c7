"""The SAE of the shuffled model, beside one that is kept in half precision."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import pytest
import torch

import monosem as ms
from monosem.errors import ConfigError
from monosem.evaluation import untrained
from monosem.evaluation.probing import usefulness
from monosem.models import SubjectModel
from monosem.work import Stage, doing

WORDS = ["the", "king", "of", "France", "was", "bald", "and", "sat", "on", "a", "chair", "by", "night"]
TEXT = [" ".join(WORDS[(i * j + j) % len(WORDS)] for j in range(60)) for i in range(40)]


def test_a_dictionary_in_half_precision_has_a_control_that_was_trained(
    tiny: SubjectModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module, name, value in ((untrained, "TOKENS", 1024), (untrained, "LEAST", 512), (usefulness, "EXAMPLES", 160)):
        monkeypatch.setattr(module, name, value)
    stages: list[Stage] = []

    @contextmanager
    def watched(*asked: Any, **more: Any) -> Iterator[Stage]:
        with doing(*asked, **more) as stage:
            stages.append(stage)
            yield stage

    monkeypatch.setattr(untrained, "doing", watched)
    sae = ms.TopKSAE(32, 64, k=4, dtype=torch.float16)
    sae.metadata.hook, sae.metadata.tokens_trained = "resid_post.1", 100_000
    report = ms.evaluate(sae, tiny, text=TEXT, tokens=1000, suite="full", untrained_tokens=1500, progress=False)
    assert 0 < report.columns["untrained"]["fvu"].value < 2
    tokens = int(report.facts["untrained_tokens"])
    assert 1500 <= tokens < 1500 + 2048  # a whole batch at the end
    assert [(stage.name, stage.total, stage.unit) for stage in stages] == [(untrained.TRAINING, 1500, "tokens")]
    assert stages[0].done == tokens  # so its share and what is left were told all along
    fewer = round(100_000 / tokens)
    assert f"{fewer} times fewer than the SAE (100,000): it is worse for that alone" in str(report).replace("\n", " ")


@pytest.mark.parametrize(("wanted", "length"), [(None, 600), (5000, 5000)])
def test_the_control_has_as_many_tokens_as_the_sae_or_as_are_asked_for(
    wanted: int | None, length: int, tiny: SubjectModel
) -> None:
    assert untrained.training_length(tiny, 600, wanted) == length
    with pytest.raises(ConfigError, match=r"untrained_tokens must be a whole number of at least 1 or None, not 0"):
        ms.evaluate(ms.TopKSAE(32, 64, k=4), tiny, "resid_post.1", untrained_tokens=0)


@pytest.mark.parametrize(
    ("parameters", "tokens"),
    [(3_000_000, 300_000), (135_000_000, 37_037), (7 * 10**9, 20_000)],
)
def test_the_larger_the_model_the_fewer_tokens_its_control_is_trained_on(parameters: int, tokens: int) -> None:
    """Forward passes of at most 1e13 operations (minutes on two cores) as long as the control has 20,000 tokens."""
    large: Any = SimpleNamespace(module=SimpleNamespace(parameters=lambda: [torch.empty(parameters, device="meta")]))
    assert untrained.training_length(large, 2_000_000) == tokens
