"""Several dictionaries at once: perfect ones cost nothing, blind ones what the means do, and what is refused."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import monosem as ms
from monosem.errors import ConfigError, MismatchError
from monosem.models import SubjectModel
from monosem.sae import SAE

TEXT = ["the quick brown fox jumps over it all day and night" * 2] * 6
OPTIONS: dict[str, Any] = {"text": TEXT, "tokens": 400, "progress": False}


def perfect(d: int, hook: str) -> SAE:
    """Every coordinate and its opposite: it rebuilds all that it reads."""
    made = ms.TopKSAE(d, 2 * d, k=d, transform="none")
    both = torch.cat([torch.eye(d), -torch.eye(d)])
    with torch.no_grad():
        made.W_enc.copy_(both)
        made.W_dec.copy_(both)
    made.metadata.hook = hook
    return made


def blind(d: int, hook: str, seed: int) -> SAE:
    made = ms.TopKSAE(d, 16, k=1, transform="none", seed=seed)
    made.metadata.hook = hook
    return made


def test_perfect_dictionaries_cost_nothing_alone_or_together(tiny: SubjectModel) -> None:
    saes = {str(layer): perfect(tiny.d_model, f"resid_post.{layer}") for layer in range(2)}
    found = ms.splice_together(saes, tiny, **OPTIONS)
    assert list(found.costs) == ["0", "1", "together"]
    for cost in (*found.costs.values(), found.beyond):
        assert cost.value == pytest.approx(0, abs=1e-5)


def test_together_is_what_the_model_loses_with_all_in(tiny: SubjectModel) -> None:
    saes = {str(layer): blind(tiny.d_model, f"resid_post.{layer}", layer) for layer in range(2)}
    one = ms.splice_together(saes, tiny, **OPTIONS)
    costs = {name: cost.value for name, cost in one.costs.items()}
    assert one.beyond.value == pytest.approx(costs["together"] - costs["0"] - costs["1"], abs=1e-6)
    assert min(abs(costs["0"]), abs(costs["1"])) > 1e-4
    beside = ms.splice_together({"a": saes["0"], "b": perfect(tiny.d_model, "resid_post.1")}, tiny, **OPTIONS)
    assert beside.costs["together"].value == pytest.approx(costs["0"], abs=1e-5)
    assert beside.clean.value == pytest.approx(one.clean.value)
    assert "beyond the sum" in str(one)


def test_what_cannot_be_put_in_together_is_refused(tiny: SubjectModel) -> None:
    first, second = (perfect(tiny.d_model, f"resid_post.{layer}") for layer in range(2))
    nowhere = ms.TopKSAE(tiny.d_model, 16, k=1)
    cases: list[tuple[dict[str, SAE], dict[str, Any], str]] = [
        ({}, {}, "two dictionaries"),
        ({"a": first}, {}, "two dictionaries"),
        ({"together": first, "b": second}, {}, "two dictionaries"),
        ({"a": first, "b": second}, {"tokens": 0}, "at least"),
        ({"a": first, "b": first}, {}, "both of resid_post.0"),
        ({"a": first, "b": nowhere}, {}, "no SAE that knows"),
    ]
    for saes, options, says in cases:
        with pytest.raises(ConfigError, match=says):
            ms.splice_together(saes, tiny, **{**OPTIONS, **options})
    with pytest.raises(MismatchError):
        ms.splice_together({"a": first, "b": perfect(7, "resid_post.1")}, tiny, **OPTIONS)
