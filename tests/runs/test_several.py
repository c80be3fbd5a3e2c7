"""Several dictionaries from one run.yaml: which there are, that each is what it would be alone, and what is left."""

from __future__ import annotations

import json
import re
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from shared_fixtures import run_command

import monosem as ms
from monosem.errors import ConfigError, FileError, HookError, MonosemError
from monosem.explorer.dictionary import open_dictionaries
from monosem.features import FeatureStore
from monosem.runs import Run, RunConfig, describe_each, feature_folders, run_evaluations
from monosem.sae import SAEMetadata, Transcoder

POINTS = ["embed", *(f"{kind}.{layer}" for layer in range(3) for kind in ("attn_out", "mlp_in", "mlp_out"))]
EXECUTABLE = Path(sys.executable).parent / "monosem"

DESCRIPTION: dict[str, Any] = {
    "hooks": ["attn_out.0", "attn_out.1"],
    "tokens": 1200,
    "sae": {"n_latents": 48},
    "grid": {"sae.k": [4]},
    "dictionaries": {
        "topk": None,
        "across": {"hook": "resid_post.*", "sae": {"architecture": "crosscoder", "k": 8}},
        "mlp": {"hook": "mlp_in.2", "target": "mlp_out.2", "sae": {"architecture": "transcoder", "k": 8}},
        "clt": {"hook": "mlp_in.*", "target": "mlp_out.*", "sae": {"architecture": "cross_layer_transcoder", "k": 8}},
    },
    "training": {"batch_size": 256, "log_every": 2, "checkpoint_minutes": 0},
    "activations": {"buffer_tokens": 1024, "context_length": 64},
    "evaluation": {"tokens": 500, "loss_tokens": 200},
}
NAMES = ["topk-attn_out.0-k4", "topk-attn_out.1-k4", "across", "mlp", "clt"]


def described(**content: Any) -> dict[str, RunConfig]:
    return describe_each(RunConfig.of(content), POINTS)


# Which dictionaries there are -----------------------------------------------------------------------------------------


def test_a_description_of_one_is_that_one_under_an_empty_name() -> None:
    assert described(hook="mlp_out.1") == {"": RunConfig(hook="mlp_out.1")}
    assert not RunConfig().several


def test_hooks_and_grid_multiply_and_are_named_by_what_varies() -> None:
    found = described(output="o", hooks="attn_out.*", grid={"sae.k": [8, 16], "training.lr": [1e-3]})
    assert list(found) == [f"attn_out.{layer}-k{k}-lr0.001" for layer in range(3) for k in (8, 16)]
    one = found["attn_out.2-k16-lr0.001"]
    expected = RunConfig.of(
        {"output": "o/attn_out.2-k16-lr0.001", "hook": "attn_out.2", "sae": {"k": 16}, "training": {"lr": 1e-3}}
    )
    assert one == expected
    assert describe_each(one) == {"": one}


def test_what_a_dictionary_sets_itself_is_not_varied_for_it() -> None:
    found = described(
        hooks=["attn_out.0", "attn_out.1"],
        grid={"sae.k": [8, 16]},
        dictionaries={
            "a": {"sae": {"k": 3}},
            "b": {"hook": "embed"},
            "c": {"sae.n_latents": 10, "sae.k": 2, "hook": "embed"},
        },
    )
    assert list(found) == ["a-attn_out.0", "a-attn_out.1", "b-k8", "b-k16", "c"]
    assert (found["c"].sae.n_latents, found["c"].hook) == (10, "embed")


def test_another_architecture_takes_of_the_common_parameters_what_it_has() -> None:
    found = described(
        sae={"k": 5, "n_latents": 64, "seed": 3},
        grid={"sae.architecture": ["topk", "relu"], "sae.k": [8, 16], "sae.coefficient": [0.1]},
    )
    assert list(found) == ["topk-k8", "topk-k16", "relu-coefficient0.1"]
    assert found["relu-coefficient0.1"].sae.model_dump() == {
        "architecture": "relu",
        "n_latents": 64,
        "seed": 3,
        "coefficient": 0.1,
    }


def test_the_star_in_a_target_is_the_layer_of_the_hook_or_a_pattern_of_its_own() -> None:
    layers = described(hooks="mlp_in.*", target="mlp_out.*", sae={"architecture": "transcoder"})
    assert [(one.hook, one.target) for one in layers.values()] == [(f"mlp_in.{i}", f"mlp_out.{i}") for i in range(3)]
    whole = described(hook="mlp_in.*", target="mlp_out.*")[""]
    assert (whole.hook, whole.target) == ([f"mlp_in.{i}" for i in range(3)], [f"mlp_out.{i}" for i in range(3)])
    assert whole.reads == "mlp_in.0-2 -> mlp_out.0-2"


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ({"hooks": "attn.*"}, "no hook point fits the pattern 'attn.*': there are embed, attn_out"),
        ({"grid": {"text": ["a", "b"]}}, "grid: all dictionaries of a run share text"),
        ({"grid": {"training.batch_size": [5]}}, "share training.batch_size"),
        ({"grid": {"sae.kk": [5]}, "hooks": "embed"}, None),
        (
            {"grid": {"sae.kk": [5], "sae.architecture": ["topk", "relu"]}},
            "grid.sae.kk: none of the dictionaries has it",
        ),
        ({"dictionaries": {"a": {"text": "x"}}}, "dictionaries.a: all dictionaries of a run share text"),
        ({"dictionaries": {"../a": None}}, "dictionaries: '../a' must be letters"),
        (
            {"dictionaries": {"a": {"training": {"lr": -1}}}},
            "dictionary a: training.lr: input should be greater than 0",
        ),
        ({"grid": {"sae.k": 5}}, "grid.sae.k: input should be a valid list"),
        (
            {"dictionaries": {"a-k4": {"sae.k": 3}, "a": None}, "grid": {"sae.k": [4]}},
            "two dictionaries would be called",
        ),
        ({"hooks": "attn_out.*", "hook": "embed"}, "hooks and hook cannot be given together"),
        ({"vectors": "x.npy", "hook": "embed"}, "vectors and hook cannot be given together"),
        (
            {"vectors": "x.npy", "activations": {"packing": False}},
            "activations.packing: ready vectors have no contexts",
        ),
        ({"images": "folder", "text": "a.txt"}, "images and text cannot be given together"),
        ({"hook": None}, "hook: name a hook point"),
        ({"model": None}, "model: name a model"),
    ],
)
def test_a_description_that_cannot_be_is_refused_in_words(content: dict[str, Any], says: str | None) -> None:
    if says is None:  # what only the architecture can refuse, it refuses when it is built
        with pytest.raises(ConfigError, match=r"sae\.kk: topk has no such parameter"):
            described(**content)["embed-kk5"].sae.build(8)
        return
    with pytest.raises((ConfigError, HookError)) as error:
        described(**content)
    assert says in str(error.value)
    assert "\n" not in str(error.value)


# A whole run ----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of five dictionaries at fourteen hook points of the bundled model, by the command line."""
    path = tmp_path_factory.mktemp("several") / "out"
    (path.parent / "run.yaml").write_text(yaml.safe_dump({**DESCRIPTION, "output": str(path)}))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["monosem", "train", str(path.parent / "run.yaml")])
        assert run_command() == 0
    return path


def trained(path: Path) -> tuple[bytes, bytes, bytes]:
    names = ("sae/sae.safetensors", "sae/cfg.json", "metrics.jsonl")
    return tuple((path / name).read_bytes() for name in names)  # pyright: ignore[reportReturnType]


def test_every_dictionary_has_a_run_folder_and_all_have_one_table_and_one_figure(folder: Path) -> None:
    run = Run(folder)
    assert sorted(run.members) == sorted(NAMES)
    assert run.finished
    assert {path.name for path in folder.iterdir()} == {*NAMES, "run.yaml", "README.md", "results.json", "results.svg"}
    rows = json.loads((folder / "results.json").read_text())["dictionaries"]
    assert set(rows) == set(NAMES)
    for name, row in rows.items():
        report = run.members[name].evaluation()
        assert row["fvu"] == list(report["fvu"])
        assert row["loss_recovered_mean"] == list(report["loss_recovered_mean"])
        assert (folder / name / "features" / "index.json").is_file()
    assert rows["mlp"]["hook"] == "mlp_in.2 -> mlp_out.2"
    assert (folder / "results.svg").read_text().count("<svg") == 1
    kinds = {name: type(member.sae()).__name__ for name, member in run.members.items()}
    assert (kinds["across"], kinds["mlp"], kinds["clt"]) == ("Crosscoder", "Transcoder", "CrossLayerTranscoder")
    assert run.members["across"].sae().in_shape == (4, 256)


@pytest.mark.parametrize("name", ["topk-attn_out.1-k4", "across", "mlp", "clt"])
def test_each_ends_in_the_bits_that_its_own_run_yaml_gives_alone(
    folder: Path, name: str, tmp_path: Path, monosem: Callable[..., Any]
) -> None:
    alone = tmp_path / "alone"
    outcome = monosem("train", folder / name / "run.yaml", f"--set=output={alone}", "--no-evaluation")
    assert outcome.code == 0, outcome.err
    assert trained(alone) == trained(folder / name)


def test_killed_and_called_again_all_end_in_the_same_bits(
    folder: Path, tmp_path: Path, monosem: Callable[..., Any], forks: Any
) -> None:
    other = tmp_path / "out"
    command = ["train", str(folder.parent / "run.yaml"), f"--set=output={other}", "--no-evaluation"]
    process = forks("monosem", *command)
    process.until(lambda: list(other.glob("topk-attn_out.1-k4/checkpoints/step_0000000[2-4]")))
    process.kill()
    assert not Run(other).finished
    assert monosem(*command).code == 0
    for name in NAMES:
        assert [part == whole for part, whole in zip(trained(other / name), trained(folder / name), strict=True)] == [
            True
        ] * 3


def test_the_commands_work_on_all_and_on_each(folder: Path, monosem: Callable[..., Any]) -> None:
    told = monosem("info", folder).out
    assert all(name in told for name in NAMES)
    assert "mlp_in.2 -> mlp_out.2" in told
    assert "mlp_in.2 -> mlp_out.2" in monosem("info", folder / "mlp").out
    assert "latent 3" in monosem("top", folder / "topk-attn_out.0-k4", 3).out
    refused = monosem("top", folder)
    assert refused.code == 2
    assert "has several dictionaries: give the folder of one" in refused.err
    assert sorted(path.name for path in feature_folders(folder)) == sorted(NAMES)
    assert feature_folders(folder / "mlp") == [folder / "mlp"]
    for name in ("across", "clt", "mlp"):
        assert monosem("harvest", folder / name, "--tokens", 500).code == 0
        store = FeatureStore(folder / name)
        assert store.n_tokens < 600
        assert "latent 3" in monosem("top", folder / name, 3).out
    assert [part.source for part in FeatureStore(folder / "across")[3].parts] == [f"resid_post.{i}" for i in range(4)]
    assert FeatureStore(folder / "clt")[0].reads == "mlp_in.0"


def test_evaluation_goes_on_where_it_was_stopped_and_begins_anew_with_other_settings(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from monosem.runs import pipeline

    shutil.copytree(folder, tmp_path / "out")
    config = yaml.safe_load((tmp_path / "out" / "run.yaml").read_text())
    (tmp_path / "out" / "run.yaml").write_text(yaml.safe_dump({**config, "output": "elsewhere"}))
    for name in NAMES:
        one = yaml.safe_load((tmp_path / "out" / name / "run.yaml").read_text())
        (tmp_path / "out" / name / "run.yaml").write_text(yaml.safe_dump({**one, "output": f"elsewhere/{name}"}))
    results = json.loads((folder / "results.json").read_text())
    kept = dict(list(results["dictionaries"].items())[:3])
    (tmp_path / "out" / "results.json").write_text(json.dumps({**results, "dictionaries": kept}))
    measured: list[str] = []

    def counted(run: Run, *_: Any) -> Any:
        measured.append(run.path.name)
        return run.evaluation()

    monkeypatch.setattr(pipeline, "run_evaluation", counted)
    again = run_evaluations(Run(tmp_path / "out"), progress=False)
    assert sorted(measured) == sorted(set(NAMES) - set(kept))
    assert again.rows == results["dictionaries"]
    measured.clear()
    config = Run(folder).config.evaluation.model_copy(update={"tokens": 999})
    run_evaluations(Run(tmp_path / "out"), config=config, progress=False)
    assert sorted(measured) == sorted(NAMES)


# What does not fit ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        (["hook=resid_post.*"], "topk reads one hook point of one model, 4 are given"),
        (["sae.architecture=transcoder"], "target: a transcoder predicts another hook point"),
        (["sae.architecture=crosscoder", "hook=resid_post.*", "sae.n_sources=3"], "sae.n_sources: 3, but there are 4"),
        (["sae.architecture=crosscoder", "hook=[mlp_in.0, mlp_mid.0]"], "equal width"),
        (["sae.architecture=crosscoder"], "the SAE reads 2 activations side by side, the source has 1"),
        (["hook=mlp_in.0", "target=[mlp_out.0, mlp_out.1]"], "1 hook points and 2 targets"),
        (["training.loggers=[paper]"], "training.loggers: unknown 'paper'; there are tensorboard, wandb"),
        (["vectors=TMP/none.npy", "evaluation.vectors=TMP/none.npy"], "none.npy"),
        (["vectors=TMP/none.npy"], "evaluation.vectors: the run trains on"),
    ],
)
def test_what_does_not_fit_ends_in_one_line_before_work_starts(
    monosem: Callable[..., Any], tmp_path: Path, settings: list[str], says: str
) -> None:
    given = [f"--set={setting.replace('TMP', str(tmp_path))}" for setting in settings]
    outcome = monosem("train", *given, "--set=sae.n_latents=64", f"--set=output={tmp_path / 'run'}")
    assert outcome.code == 2
    assert len(outcome.err.strip().splitlines()) == 1
    assert says in outcome.err


def test_a_run_of_several_without_features_says_how_to_get_them(tmp_path: Path) -> None:
    RunConfig.of({"hooks": ["embed"], "output": str(tmp_path)}).write(tmp_path / "run.yaml")
    RunConfig.of({"hook": "embed", "output": f"{tmp_path}/embed"}).write(tmp_path / "embed" / "run.yaml")
    with pytest.raises(FileError, match=f"monosem harvest {re.escape(str(tmp_path / 'embed'))}"):
        open_dictionaries(feature_folders(tmp_path))
    with pytest.raises(MonosemError, match="several dictionaries"):
        Run(tmp_path).sae()


# The whole of the configuration ---------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("default")
def test_every_rule_of_the_run_yaml_is_kept_by_the_sae(monosem: Callable[..., Any], tmp_path: Path) -> None:
    (tmp_path / "own.txt").write_text("Once upon a time there was a dog. " * 40)
    rules = {"packing": False, "skip_first": 3, "max_norm_ratio": 8.0, "context_length": 32, "prepend_bos": False}
    rules |= {"exclude_special": False, "buffer_tokens": 640}
    given = [f"--set=activations.{key}={value}" for key, value in rules.items()]
    sizes = ["--set=sae.n_latents=32", "--set=sae.k=2", "--set=tokens=64", "--set=training.batch_size=32"]
    outcome = monosem(
        "train",
        *given,
        *sizes,
        f"--set=text={tmp_path / 'own.txt'}",
        f"--set=output={tmp_path / 'run'}",
        "--no-evaluation",
    )
    assert outcome.code == 0, outcome.err
    known = json.loads((tmp_path / "run" / "sae" / "cfg.json").read_text())["metadata"]
    del rules["buffer_tokens"]  # it decides nothing of what the SAE is
    assert {key: known[key] for key in rules} == rules
    assert known["max_norm"]["resid_post.2"] > 0
    assert known["text"] == str(tmp_path / "own.txt")
    assert "occur again" in outcome.err  # what the look at the rows has found
    assert outcome.err.count("warning: ") == 1


def test_ready_vectors_are_trained_on_and_measured_without_a_model(monosem: Callable[..., Any], tmp_path: Path) -> None:
    import numpy as np

    x = np.random.default_rng(0).normal(size=(3000, 6)).astype(np.float32)
    np.save(tmp_path / "a.npy", x[:2500])
    np.save(tmp_path / "b.npy", x[2500:])
    run = tmp_path / "run"
    sizes = ["--set=sae.n_latents=12", "--set=tokens=4000", "--set=training.batch_size=100"]
    data = [f"--set=vectors={tmp_path / 'a.npy'}", f"--set=evaluation.vectors={tmp_path / 'b.npy'}"]
    outcome = monosem("train", *sizes, *data, "--set=grid={sae.k: [1, 3]}", f"--set=output={run}")
    assert outcome.code == 0, outcome.err
    few, more = (ms.Run(run / name) for name in ("k1", "k3"))
    assert few.sae().metadata.vectors == str(tmp_path / "a.npy")
    assert few.config.model is few.config.hook is few.config.text is None
    assert few.evaluation().facts["rows"] == 500
    assert few.evaluation()["fvu"].value > more.evaluation()["fvu"].value
    assert "a.npy" in monosem("info", run / "k1").out
    assert ms.FeatureStore(run / "k1").n_tokens == 500  # its features are those of the rows measured


# Measuring what predicts other hook points ---------------------------------------------------------------------------


TEXT = ["Once upon a time, there was a little dog who lived in a house.", "A cat sat."]


def read_by_hand(model: ms.SubjectModel) -> tuple[torch.Tensor, torch.Tensor]:
    """The one context of the text, and where its special tokens are."""
    bos, eos = model.tokenizer.bos_token_id, model.tokenizer.eos_token_id
    stream: list[int] = []
    for text in TEXT:
        stream += [eos if stream else bos, *model.tokens(text, prepend_bos=False)[0].tolist()]
    tokens = torch.tensor([stream], device=model.device)
    return tokens, (tokens == bos) | (tokens == eos)


def unexplained(target: torch.Tensor, rebuilt: torch.Tensor) -> float:
    return ((target - rebuilt).pow(2).sum() / (target - target.mean(0)).pow(2).sum()).item()


def test_a_transcoder_is_measured_by_what_it_predicts(folder: Path, bundled: ms.SubjectModel) -> None:
    sae = Run(folder / "mlp").sae()
    assert isinstance(sae, Transcoder)
    report = ms.evaluate(sae, bundled, text=TEXT, tokens=64, loss_tokens=64, progress=False)
    tokens, special = read_by_hand(bundled)
    captured = bundled.capture(tokens, ["mlp_in.2", "mlp_out.2"])
    x, target = (captured[hook][~special] for hook in ("mlp_in.2", "mlp_out.2"))
    rebuilt = sae(x).reconstruction
    assert report.facts["rows"] == len(x)
    assert report["fvu"].value == pytest.approx(unexplained(target, rebuilt), rel=1e-3)

    def predict(module_output: torch.Tensor, _: Any) -> torch.Tensor:
        out = module_output.clone()
        out[~special] = rebuilt
        return out

    counted = ~special[:, :-1]
    with bundled.edit({"mlp_out.2": predict}):
        logits = bundled(tokens)[:, :-1][counted]
    by_hand = torch.nn.functional.cross_entropy(logits, tokens[:, 1:][counted])
    assert report["ce"].value == pytest.approx(by_hand.item(), rel=1e-3)


def test_what_reads_and_predicts_several_layers_is_measured_on_all_together(bundled: ms.SubjectModel) -> None:
    hooks, targets = ([f"{kind}.{layer}" for layer in range(4)] for kind in ("mlp_in", "mlp_out"))
    tokens, special = read_by_hand(bundled)
    captured = bundled.capture(tokens, [*hooks, *targets])
    x, target = (torch.stack([captured[name][~special] for name in names], 1) for names in (hooks, targets))
    sae = ms.CrossLayerTranscoder(256, 64, n_layers=4, k=8)
    sae.initialise(x, target)
    sae.threshold.data *= 0.999  # it is one of these pre-activations, of which the last bit would decide
    sae.metadata = SAEMetadata(hooks=hooks, target_hooks=targets, context_length=64, prepend_bos=True)
    report = ms.evaluate(sae, bundled, text=TEXT, tokens=64, progress=False)
    assert [metric.partition(" at ")[2] for metric in report.metrics if "mean at" in metric] == targets
    assert report.facts["hook"] == f"{' + '.join(hooks)} -> {' + '.join(targets)}"
    rebuilt = sae(x).reconstruction
    assert report["fvu"].value == pytest.approx(unexplained(target.flatten(1), rebuilt.flatten(1)), rel=1e-3)
