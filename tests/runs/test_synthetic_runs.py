"""A run.yaml of a synthetic world: trained, measured against its truth, harvested, killed and gone on with."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import monosem as ms
from monosem.activations import planted
from monosem.activations.planted import PlantedActivations
from monosem.errors import ConfigError, Interrupted, MismatchError
from monosem.runs import RunConfig, run_evaluation, run_training
from monosem.runs.pipeline import require_held_out
from monosem.synthetic import world

WORLD = "synthetic:planted,n_features=12,d=16,l0=1.5,orthogonal=true"


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("synthetic")
    (folder / "run.yaml").write_text(
        f"output: {folder / 'run'}\nvectors: {WORLD}\ntokens: 20480\n"
        "sae: {architecture: topk, n_latents: 12, k: 2}\n"
        "training: {batch_size: 256, lr: 0.02}\nevaluation: {tokens: 3000}\n"
    )
    config = RunConfig.read(folder / "run.yaml")
    require_held_out(config)
    run_evaluation(run_training(config, progress=False)[0], progress=False)
    return folder / "run"


def test_a_run_is_measured_against_the_truth_by_itself(run: Path) -> None:
    opened = ms.Run(run)
    report = opened.evaluation()
    assert report.facts["data"] == WORLD
    assert report["f1"] == ms.score_truth(opened.sae(), world(WORLD), 3000)["f1"]
    assert report["matched_cosine"].value > 0.9 > 0.6 > report.columns["random"]["matched_cosine"].value
    assert ms.evaluate(opened.sae(), tokens=3000, progress=False)["f1"] == report["f1"]  # the SAE knows its world


def test_eval_measures_again_and_full_has_the_ceiling(run: Path, monosem: Callable[..., Any]) -> None:
    outcome = monosem("eval", run, "--suite", "full", "--tokens", "2000")
    assert outcome.code == 0, outcome.err
    assert "F1 of firing" in outcome.out
    columns = json.loads((run / "evaluation.json").read_text())["columns"]
    assert columns["SAE"]["f1"]["value"] > columns["random"]["f1"]["value"]
    assert columns["probes"]["f1"]["value"] > 0.8


def test_its_features_show_rows_with_what_is_on_in_them(run: Path, monosem: Callable[..., Any]) -> None:
    store, sae = ms.FeatureStore(run), ms.Run(run).sae()
    latent, feature = divmod(int((sae.W_dec @ world(WORLD).features.T).argmax()), 12)
    assert store.rows is not None
    labels = [store.rows.label(example.document) for example in store[latent].top]
    assert labels
    assert all(f"f{feature}" in str(label).split() for label in labels[:3])
    assert monosem("info", run).out.count(WORLD) >= 1
    assert monosem("plan", run / "run.yaml").code == 0


def test_a_run_that_was_stopped_ends_in_the_same_dictionary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def describe(name: str) -> RunConfig:
        content = {"vectors": WORLD, "tokens": 4096, "sae": {"architecture": "topk", "n_latents": 12, "k": 2}}
        return RunConfig.of(content | {"output": str(tmp_path / name), "training": {"batch_size": 128}})

    draw, drawn = PlantedActivations.make_pool, []

    def stop(self: PlantedActivations, number: int) -> Any:
        drawn.append(number)
        if number == 2:
            raise Interrupted("stopped")
        return draw(self, number)

    monkeypatch.setattr(planted, "ROWS", 1024)
    whole = run_training(describe("small pools"), progress=False)[0].sae()
    monkeypatch.setattr(PlantedActivations, "make_pool", stop)
    with pytest.raises(Interrupted):
        run_training(describe("stopped"), progress=False)
    monkeypatch.setattr(PlantedActivations, "make_pool", draw)
    assert run_training(describe("stopped"), progress=False)[0].sae().W_dec.equal(whole.W_dec)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"vectors": "synthetic:smalll"}, "no synthetic world 'smalll'"),
        ({"vectors": WORLD, "hook": "embed"}, "vectors and hook cannot be given together"),
        ({"vectors": WORLD, "activations": {"packing": False}}, "ready vectors have no contexts"),
        ({"vectors": WORLD, "store": "x"}, "vectors and store cannot be given together"),
        ({"vectors": f"{WORLD},l1=3"}, "unknown setting 'l1'"),
        ({"vectors": WORLD, "sae": {"architecture": "crosscoder"}}, "the source has 1"),
    ],
)
def test_what_cannot_be_is_refused_before_work_starts(changes: dict[str, Any], said: str, tmp_path: Path) -> None:
    with pytest.raises((ConfigError, MismatchError), match=said):
        run_training(RunConfig.of(changes | {"output": str(tmp_path / "run")}), progress=False)
    assert not (tmp_path / "run").exists()
