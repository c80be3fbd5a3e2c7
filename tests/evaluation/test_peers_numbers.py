"""Our numbers are those of SAEBench's and SAELens's own functions on the same model, dictionary and tokens, where
their definition is right; where it is not, ours is another, and it is said which.

`peers/benchmark_numbers.py` called them and wrote what they said.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

import monosem as ms
from monosem.evaluation.directions import direction_metrics
from monosem.evaluation.firing import firing_metrics
from monosem.models import SubjectModel

DATA = Path(__file__).parents[1] / "data"
FROZEN: dict[str, Any] = json.loads((DATA / "evaluation" / "benchmark_numbers.json").read_text())
EQUAL = {
    "l0": "l0",
    "l2_ratio": "norm_ratio",
    "cossim": "cosine",
    "ce_loss_with_sae": "ce",
    "ce_loss_score": "loss_recovered_zero",
    "kl_div_with_sae, next token known": "kl",
}
"""Theirs, in both libraries, and ours."""


@pytest.fixture(scope="module")
def report(bundled: SubjectModel) -> ms.evaluation.EvaluationReport:  # type: ignore[name-defined]
    sae = ms.load_sae(DATA / "demo_sae").float()
    sae.metadata = sae.metadata.model_copy(update={"exclude_special": False, "prepend_bos": False})
    return ms.evaluate(
        sae, bundled, text="bundled:held_out", tokens=4096, loss_tokens=4096, controls=False, progress=False
    )


@pytest.mark.parametrize("library", ["saebench", "saelens"])
def test_what_both_define_alike_is_equal(library: str, report: Any) -> None:
    theirs = FROZEN[library]
    assert report.facts["rows"] == FROZEN["tokens"] == 4096
    for their_name, name in EQUAL.items():
        assert report[name].value == pytest.approx(theirs[their_name], abs=1e-4), their_name
    assert report.facts["ce_clean"] == pytest.approx(theirs["ce_loss_without_sae"], abs=1e-4)
    assert report.facts["ce_zero"] == pytest.approx(theirs["ce_loss_with_ablation"], abs=1e-4)


def test_explained_variance_is_that_of_saelens_and_not_that_of_saebench(report: Any) -> None:
    """SAEBench 0.6.0 subtracts no mean; and what it calls legacy is a mean of ratios, neither of which is 1 - FVU."""
    ours = report["explained_variance"].value
    assert ours == pytest.approx(FROZEN["saelens"]["explained_variance"], abs=1e-4)
    assert abs(ours - FROZEN["saebench"]["explained_variance"]) > 0.1
    assert abs(ours - FROZEN["saebench"]["explained_variance_legacy"]) > 1e-3


def test_the_mse_of_saebench_is_divided_by_the_tokens_of_a_batch(report: Any) -> None:
    d, batch = 256, 4 * 256
    assert report["mse"].value * d == pytest.approx(FROZEN["saelens"]["mse"], rel=1e-4)
    assert report["mse"].value * d / batch == pytest.approx(FROZEN["saebench"]["mse"], rel=1e-4)


@torch.no_grad()
def test_weights_and_firing_rates_say_the_same(report: Any) -> None:
    theirs, sae = FROZEN["saebench"], ms.load_sae(DATA / "demo_sae").float()
    found = direction_metrics(sae)
    assert found["decoder_max_cosine"].value == pytest.approx(theirs["average_max_decoder_cosine_sim"], abs=1e-5)
    assert found["encoder_max_cosine"].value == pytest.approx(theirs["average_max_encoder_cosine_sim"], abs=1e-5)
    alignment = found["encoder_decoder_cosine"].value
    assert alignment == pytest.approx(theirs["encoder_decoder_cosine_sim, mean"], abs=1e-5)
    fired = firing_metrics((report.firing_rates * 4096).round(), 4096)
    assert 1 - report["dead_share"].value == pytest.approx(theirs["frac_alive"], abs=1e-6)
    for their_name, name in {
        "freq_over_1_percent": "often_share",
        "freq_over_10_percent": "dense_share",
        "normalized_freq_over_1_percent": "often_firings",
        "normalized_freq_over_10_percent": "dense_firings",
    }.items():
        assert fired[name].value == pytest.approx(theirs[their_name], abs=1e-5), their_name
