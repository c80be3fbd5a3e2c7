"""A folder for the hub: the files of three libraries that give the same, figures with intervals, and how to load it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import yaml
from written_saes import made

import monosem as ms
from monosem.errors import ConfigError
from monosem.evaluation.saebench import CATEGORIES, NOT_MEASURED, saebench_result
from monosem.runs import Run
from monosem.runs.publish import publish


def test_a_run_becomes_a_folder_that_says_how_it_is_loaded(
    small_run: Path, tmp_path: Path, monosem: Callable[..., object]
) -> None:
    folder, run = tmp_path / "out", Run(small_run)
    outcome = monosem("export", small_run, folder, "--to", "hub", "--name", "somebody/my-sae")
    assert getattr(outcome, "code", None) == 0, outcome
    sae, x = ms.load_sae(small_run), 50 * torch.randn(30, 256, generator=torch.Generator().manual_seed(0))
    expected = sae(x)
    loaded = [ms.load_sae(folder / name) for name in ("monosem", "saelens", "sparsify")]
    for one in loaded:
        torch.testing.assert_close(one(x).reconstruction, expected.reconstruction, rtol=1e-4, atol=1e-2)
        torch.testing.assert_close(one.encode(x).l0(), expected.codes.l0())
    text = (folder / "README.md").read_text()
    head = yaml.safe_load(text.split("---")[1])
    assert {"saelens", "sparsify", "sparse-autoencoder"} <= set(head["tags"])
    fvu = run.evaluation()["fvu"]
    assert f"| {fvu.value:.4g} | {fvu.low:.4g} to {fvu.high:.4g} |" in text
    for words in ('ms.load_sae("somebody/my-sae/monosem")', "SAE.from_pretrained", "SparseCoder", "resid_post.2"):
        assert words in text
    assert str(small_run) not in text


def test_what_only_ours_holds_is_written_in_ours_alone(tmp_path: Path) -> None:
    sae, x = made("switch")
    publish(sae, tmp_path / "out", "somebody/one")
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["README.md", "monosem"]
    assert torch.equal(ms.load_sae(tmp_path / "out" / "monosem")(x).reconstruction, sae(x).reconstruction)


@pytest.mark.parametrize("name", ["alone", "a/b/c", "/b"])
def test_a_name_that_is_none_is_refused(name: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="owner/name"):
        publish(made("topk")[0], tmp_path / "out", name)
    assert not (tmp_path / "out").exists()


def test_a_folder_with_something_in_it_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "other").write_text("mine")
    with pytest.raises(ConfigError, match="holds something"):
        publish(made("topk")[0], tmp_path, "a/b")


def test_the_result_of_saebench_has_all_that_it_asks_for(small_run: Path, tmp_path: Path) -> None:
    report = Run(small_run).evaluation()
    result = json.loads(json.dumps(saebench_result(report, "my-sae")))
    metrics = result["eval_result_metrics"]
    assert {key: tuple(own) for key, own in metrics.items()} == {key: tuple(names) for key, names in CATEGORIES.items()}
    assert metrics["reconstruction_quality"]["explained_variance"] == pytest.approx(1 - report["fvu"].value, abs=1e-6)
    assert metrics["sparsity"]["l0"] == report["l0"].value
    losses = metrics["model_performance_preservation"]
    recovered = (losses["ce_loss_with_ablation"] - losses["ce_loss_with_sae"]) / (
        losses["ce_loss_with_ablation"] - losses["ce_loss_without_sae"]
    )
    assert losses["ce_loss_score"] == pytest.approx(recovered, abs=0.02)
    behaviour = metrics["model_behavior_preservation"]
    assert behaviour["kl_div_with_ablation"] > behaviour["kl_div_with_sae"] > 0
    assert behaviour["kl_div_score"] == pytest.approx(1 - report["kl"].value / report.facts["kl_zero"])
    assert metrics["shrinkage"]["relative_reconstruction_bias"] == report["relative_bias"].value
    assert metrics["misc_metrics"]["average_max_decoder_cosine_sim"] == report["decoder_max_cosine"].value
    assert "mean of the ratios" in result["eval_result_unstructured"]["differs"]["relative_reconstruction_bias"]
    assert metrics["misc_metrics"]["frac_alive"] == pytest.approx(1 - report["dead_share"].value)
    unmeasured = result["eval_result_unstructured"]["not_measured"]
    assert "sparsity.l1" in unmeasured
    assert all(metrics[one.split(".")[0]][one.split(".")[1]] == NOT_MEASURED for one in unmeasured)
    assert result["eval_result_unstructured"]["intervals_95_percent"]["fvu"][1] < report["fvu"].value


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--to", "hub"], "--name OWNER/NAME"),
        (["--name", "a/b"], "takes no --name"),
        (["--upload"], "--upload is for"),
        (["--to", "neuronpedia", "--name", "m/1-s", "--upload"], "NEURONPEDIA_API_KEY"),
    ],
)
def test_options_that_do_not_go_together_are_refused(
    arguments: list[str], words: str, tmp_path: Path, monosem: Callable[..., object], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("NEURONPEDIA_API_KEY", raising=False)
    made("topk")[0].save(tmp_path / "sae")
    outcome = monosem("export", tmp_path / "sae", tmp_path / "out", *arguments)
    assert getattr(outcome, "code", None) == 2
    assert words in getattr(outcome, "err", "")
    assert not (tmp_path / "out").exists()
