"""The command line: what it leaves behind, and that every mistake ends in one clear line before work starts."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from inspect import cleandoc
from pathlib import Path
from typing import Any

import pytest
import yaml
from torch import nn
from typer.main import get_command

import monosem as ms
from monosem.cli.main import app
from monosem.errors import FileError
from monosem.evaluation import EvaluationReport
from monosem.runs import Run
from monosem.sae import SAE

Command = Callable[..., Any]
EXECUTABLE = Path(sys.executable).parent / "monosem"


@pytest.fixture
def copied_run(small_run: Path, tmp_path: Path) -> Path:
    """A copy of the small run, to be spoilt."""
    shutil.copytree(small_run, tmp_path / "run")
    return tmp_path / "run"


def one_line(outcome: Any) -> str:
    """The one line of an expected error: on stderr, exit code 2, nothing else printed."""
    assert outcome.code == 2, outcome
    assert outcome.out == ""
    lines = outcome.err.strip().splitlines()
    assert len(lines) == 1, outcome.err
    assert lines[0].startswith("monosem: ")
    assert "Traceback" not in outcome.err
    return lines[0]


# A whole run ----------------------------------------------------------------------------------------------------------


def test_a_run_leaves_a_folder_that_explains_itself(small_run: Path) -> None:
    assert {path.name for path in small_run.iterdir()} == {
        "run.yaml",
        "README.md",
        "sae",
        "metrics.jsonl",
        "checkpoints",
        "identity.json",
        "evaluation.json",
        "evaluation_draws.safetensors",
        "features",
        "figures",
    }
    assert {path.name for path in (small_run / "sae").iterdir()} == {"cfg.json", "sae.safetensors"}
    tables = {"features", "details", "examples", "passages", "vocabulary", "contexts", "words", "word_features"}
    assert {path.name for path in (small_run / "features").iterdir()} == {"index.json", *tables, "explanations"}
    assert {path.name for path in (small_run / "figures").iterdir()} == {"loss.png", "firing_rates.png", "l0.png"}
    for figure in (small_run / "figures").iterdir():
        assert figure.read_bytes()[:4] == b"\x89PNG"
    readme = (small_run / "README.md").read_text()
    assert all(name in readme for name in ("run.yaml", "sae/", "metrics.jsonl", "evaluation.json", "features/"))
    assert [path.name for path in (small_run / "checkpoints").iterdir()] == ["step_00000040"]


def test_run_yaml_is_resolved_and_repeats_the_run(small_run: Path) -> None:
    content = yaml.safe_load((small_run / "run.yaml").read_text())
    assert content["sae"] == {"architecture": "topk", "n_latents": 256, "k": 16}
    assert content["activations"]["exclude_special"] is True
    assert content["training"]["warmup"] == 0.05
    assert ms.RunConfig.read(small_run / "run.yaml").output == str(small_run)


def test_metrics_are_one_line_per_logged_step(small_run: Path) -> None:
    rows = [json.loads(line) for line in (small_run / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [10, 20, 30, 40]
    assert [row["tokens"] for row in rows] == [5120, 10240, 15360, 20480]
    assert {"loss", "fvu", "l0", "dead", "lr"} <= set(rows[0])
    assert rows[-1]["fvu"] < rows[0]["fvu"]


def test_the_sae_knows_where_it_comes_from_and_fits_its_model(small_run: Path, bundled: ms.SubjectModel) -> None:
    sae = ms.load_sae(small_run)
    known = sae.metadata
    assert (known.model, known.hook, known.text) == ("bundled", "resid_post.2", "bundled")
    assert (known.context_length, known.prepend_bos, known.tokens_trained) == (256, True, 20480)
    assert str(ms.check(sae, bundled)) == "SAE and model fit"


def test_the_evaluation_beats_its_controls_where_it_must(small_run: Path) -> None:
    report = EvaluationReport.load(small_run / "evaluation.json")
    assert report["l0"].value <= 16
    assert report["fvu"].value < report.columns["mean"]["fvu"].value
    assert report.columns["mean"]["fvu"].value == pytest.approx(1, abs=0.05)
    assert 7000 < report.facts["rows"] <= 8192
    assert report.facts["predictions"] >= 2000
    assert Run(small_run).features().n_tokens == report.facts["rows"]


# Looking at it --------------------------------------------------------------------------------------------------------


def test_top_prints_the_latents_named(monosem: Command, small_run: Path) -> None:
    latent = Run(small_run).features().table(sort="-count", limit=1).column("latent")[0].as_py()
    outcome = monosem("top", small_run, latent, 3, "-n", 2)
    assert outcome.code == 0
    assert f"latent {latent}  fires on" in outcome.out
    assert "latent 3" in outcome.out
    assert "promotes" in outcome.out
    assert "suppresses" in outcome.out
    lines = outcome.out.splitlines()
    assert max(map(len, lines)) <= 110
    body = [line for line in lines[: lines.index("")] if line.startswith("  ") and "promotes" not in line]
    assert sum("«" in line for line in body if "suppresses" not in line) == 2


def test_explain_says_what_features_mean_and_how_well_that_holds(monosem: Command, copied_run: Path) -> None:
    store = Run(copied_run).features()
    latent = store.table(sort="-count", limit=1).column("latent")[0].as_py()
    assert len(store.explanations("rules")) >= store.count("count > 0") - store.count("count < 3")
    shutil.rmtree(store.path / "explanations")
    outcome = monosem("explain", copied_run, latent, "--json", copied_run / "said.json")
    assert outcome.code == 0
    assert outcome.out.split()[:5] == ["latent", "F1", "95", "%", "sure"]
    (said,) = [item for item in store.explanations() if item.side == "input"]
    assert said.latents == [latent]
    assert f"mean F1 {said.scores['rule'].value:.3f} of 1 on text that the harvest did not see" in outcome.out
    assert "".join(said.text.split()) in "".join(outcome.out.split())
    assert json.loads((copied_run / "said.json").read_text())[0]["text"] == said.text
    assert "no latent 256" in one_line(monosem("explain", copied_run, 256))
    assert said.text[:20] in monosem("top", copied_run, latent).out
    assert "1 by rules" in monosem("info", copied_run).out


def test_harvest_rewrites_the_features_of_a_run(monosem: Command, copied_run: Path) -> None:
    before = Run(copied_run).features()
    outcome = monosem("harvest", copied_run, "--tokens", 4096, "--text", "bundled")
    assert outcome.code == 0
    after = Run(copied_run).features()
    assert after.index["text_names"] == ["bundled"] != before.index["text_names"]
    assert 4096 <= after.n_tokens < 4096 + 256  # to the end of a context
    assert f"256 latents over {after.n_tokens:,} tokens" in outcome.out
    assert after[3].name != "never fired" or after[3].count == 0


def test_top_without_latents_finds_some_itself(monosem: Command, small_run: Path) -> None:
    assert monosem("top", small_run, "--count", 2).code == 0


@pytest.mark.parametrize("suffix", ["svg", "html"])
def test_top_can_write_a_picture(monosem: Command, small_run: Path, tmp_path: Path, suffix: str) -> None:
    outcome = monosem("top", small_run, 3, "--save", tmp_path / f"top.{suffix}")
    assert outcome.code == 0
    assert outcome.out == ""
    assert "latent" in (tmp_path / f"top.{suffix}").read_text()


def test_info_says_what_a_run_an_sae_and_a_model_are(monosem: Command, small_run: Path) -> None:
    run = monosem("info", small_run).out
    for words in ("finished", "resid_post.2", "20,480 of 20,000", "held-out fvu", "TopKSAE", "256"):
        assert words in run
    sae = monosem("info", small_run / "sae").out
    for words in ("TopKSAE", "n_latents", "trained: hook", "probe batch: fvu", "centre_scale"):
        assert words in sae
    model = monosem("info", "bundled").out
    for words in ("gpt2", "resid_post.0-3", "final_norm", "256", "4,273,664"):
        assert words in model


def test_info_of_an_unfinished_run_says_how_to_go_on(monosem: Command, copied_run: Path) -> None:
    shutil.rmtree(copied_run / "sae")
    (copied_run / "evaluation.json").unlink()
    with (copied_run / "metrics.jsonl").open("a") as file:
        file.write('{"step": 41, "to')
    outcome = monosem("info", copied_run)
    assert outcome.code == 0
    assert "stopped; go on with: monosem train" in outcome.out


def test_eval_measures_again_as_asked(monosem: Command, copied_run: Path) -> None:
    before = EvaluationReport.load(copied_run / "evaluation.json")
    shutil.rmtree(copied_run / "figures")
    outcome = monosem("eval", copied_run, "--tokens", 1000, "--loss-tokens", 0)
    assert outcome.code == 0
    assert outcome.out.startswith("Evaluation at resid_post.2 of bundled")
    assert "FVU" in outcome.out
    assert outcome.err == ""
    after = EvaluationReport.load(copied_run / "evaluation.json")
    assert after.facts["rows"] < 1100 < before.facts["rows"]
    assert "ce" not in after.metrics
    assert (copied_run / "figures" / "l0.png").is_file()


@pytest.mark.parametrize(
    ("asked", "says"),
    [
        (("--images", "."), "bundled reads text, not images"),
        (("--last-words", "nowhere"), "text 'nowhere' is not a file"),
        (("--model", "elsewhere"), "says its model itself, 'bundled', not 'elsewhere': leave --model out"),
    ],
)
def test_eval_of_what_the_run_does_not_read_ends_before_it_begins(
    monosem: Command, small_run: Path, asked: tuple[str, str], says: str
) -> None:
    def written() -> dict[Path, int]:
        return {file: file.stat().st_mtime_ns for file in small_run.rglob("[!.]*") if file.is_file()}

    before = written()
    outcome = monosem("eval", small_run, *asked)
    assert outcome.code == 2
    assert says in outcome.err
    assert written() == before


def test_training_a_finished_run_again_changes_nothing(monosem: Command, copied_run: Path) -> None:
    before = (copied_run / "sae" / "sae.safetensors").read_bytes()
    metrics = (copied_run / "metrics.jsonl").read_text()
    config = yaml.safe_load((copied_run / "run.yaml").read_text())
    (copied_run / "run.yaml").write_text(yaml.safe_dump({**config, "output": str(copied_run)}))
    outcome = monosem("train", copied_run / "run.yaml", "--no-evaluation")
    assert outcome.code == 0
    assert (copied_run / "sae" / "sae.safetensors").read_bytes() == before
    assert (copied_run / "metrics.jsonl").read_text() == metrics


def test_list_names_every_key(monosem: Command) -> None:
    outcome = monosem("train", "--list")
    assert outcome.code == 0
    for key in ("training.lr", "activations.buffer_tokens", "evaluation.loss_tokens", "sae.n_latents", "output"):
        assert key in outcome.out


def test_the_manual_of_train_has_every_architecture_with_equation_use_parameters_and_source(monosem: Command) -> None:
    outcome = monosem("train", "--help")
    assert outcome.code == 0
    architectures = outcome.out.partition("Architectures")[2]
    assert architectures.count("Source: ") == len(SAE.registry)
    for name, kind in SAE.registry.items():
        assert f"\n{name}  {kind.good_for}\n" in architectures
        part = architectures.partition(f"\n{name}  ")[2].partition("Source: ")[0]
        assert " = " in part
        assert [parameter for parameter in kind.parameters_of() if f"sae.{parameter}" not in part] == []


@pytest.mark.parametrize("command", ["demo", "train", "eval", "harvest", "top", "info"])
def test_every_command_has_a_manual(monosem: Command, command: str) -> None:
    outcome = monosem(command, "--help")
    assert outcome.code == 0
    assert f"monosem {command}" in outcome.out
    assert len(outcome.out.splitlines()) > 8
    if command == "train":
        assert "monosem train run.yaml --set hook=mlp_out.1" in outcome.out


@pytest.mark.parametrize("command", sorted(get_command(app).commands))  # type: ignore[attr-defined]
def test_examples_in_a_manual_have_lines_of_their_own(
    monosem: Command, command: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "160")
    written = cleandoc(get_command(app).commands[command].help or "").splitlines()  # type: ignore[attr-defined]
    shown = [" ".join(line.split()) for line in monosem(command, "--help").out.splitlines()]
    examples = [" ".join(line.split()) for line in written if line.startswith("    ")]
    assert [line for line in examples if line not in shown] == []
    assert not any("\\b" in line for line in shown)


def test_the_manual_of_all_names_every_command(monosem: Command) -> None:
    for flag in ("--help", "-h"):
        outcome = monosem(flag)
        assert outcome.code == 0
        assert all(command in outcome.out for command in ("demo", "train", "eval", "harvest", "top", "info", "--debug"))


# Mistakes -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        (["hook=resid_pst.2"], "no hook point 'resid_pst.2'. Layers are 0 to 3. Near: resid_post.2"),
        (["hook=resid_post.9"], "Layers are 0 to 3"),
        (["sae.k=300", "sae.n_latents=256"], "k must be between 1 and n_latents = 256, got 300"),
        (["sae.architecture=topq"], "sae.architecture: unknown 'topq'; there are"),
        (["sae.architecture=topq"], ". Did you mean topk?"),
        (["sae.kk=3"], "sae.kk: topk has no such parameter"),
        (["sae.nlatents=3"], ". Did you mean sae.n_latents?"),
        (["grid={sea.k: [3]}"], "grid: unknown key 'sea.k'. Did you mean sae.k?"),
        (["training.loggers=[tensorbord]"], ". Did you mean tensorboard?"),
        (["model=bundeld"], "there is no model 'bundeld' here. Did you mean bundled?"),
        (["sae.k=many"], "sae.k: input should be a valid integer"),
        (["tokens=1" + "0" * 400], "tokens: the number is too large: write one of at most 1e+18"),
        (["grid={sae.k: [4, 1" + "0" * 30 + "]}"], "grid.sae.k.1: the number is too large"),
        (["tokens=many"], "tokens: input should be a valid integer"),
        (["hok=resid_post.2"], "unknown key 'hok'; known here: output, model, hook"),
        (["hok=resid_post.2"], ". Did you mean hook?"),
        (["nlatents=256"], ". Did you mean sae.n_latents?"),
        (["training.learning_rate=1"], "unknown key 'training.learning_rate'; known here: lr"),
        (["text=TMP/missing.txt", "evaluation.text=bundled:held_out"], "missing.txt' is not a file"),
        (["text=TMP/empty.txt", "evaluation.text=bundled:held_out"], "empty.txt' is empty"),
        (["text=TMP/own.txt"], "evaluation.text: the run trains on"),
        (["evaluation.text=TMP/missing.txt"], "missing.txt' is not a file"),
        (["text=bundled:test", "evaluation.text=bundled"], "no split 'test'"),
        (["model=TMP/no_model"], "no_model is not a folder"),
        (["model=TMP/folder"], "cannot load the model"),
        (["activations.context_length=999"], "context_length 999 is longer than the model's own 256"),
        (["hook=transformer"], "transformer gives a"),
        (["images=TMP/pictures", "evaluation.images=TMP/pictures"], "bundled reads text, not images: give text="),
        (["text=TMP/labels.jsonl", "evaluation.text=bundled"], "it has labels without text: label"),
        (["text=TMP/talk.jsonl", "evaluation.text=bundled"], "has no chat template"),
        (["model=TMP/bare", "hook=resid_post.0"], "bare has no tokenizer to read text with: put its files"),
    ],
)
def test_a_wrong_setting_ends_in_one_line_before_work_starts(
    monosem: Command, tmp_path: Path, make_gpt2: Callable[..., Any], settings: list[str], says: str
) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "pictures").mkdir()
    (tmp_path / "pictures" / "a.png").write_bytes(b"")
    (tmp_path / "labels.jsonl").write_text('{"label": 1}\n')
    (tmp_path / "talk.jsonl").write_text('{"messages": [{"role": "user", "content": "Who?"}]}\n')
    if any("bare" in setting for setting in settings):
        make_gpt2().save_pretrained(tmp_path / "bare")
    (tmp_path / "empty.txt").write_text("\n")
    (tmp_path / "own.txt").write_text("Some words.")
    given = [f"--set={setting.replace('TMP', str(tmp_path))}" for setting in settings]
    outcome = monosem("train", *given, f"--set=output={tmp_path / 'run'}")
    assert says in one_line(outcome)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("command", "says"),
    [
        ("scaling --widths inf,5,6", "--widths: write whole numbers with commas, such as 512,1024,2048, got 'inf'"),
        ("scaling --tokens 1e400", "--tokens: write whole numbers"),
        ("scaling --most nan", "the most compute, latents x tokens, must be above 0, got nan"),
        ("scaling --budget nan", "a budget must be above 0 and an overhead not negative, got nan"),
        ("scaling --overhead nan", "an overhead not negative, got 1.0 and nan"),
        ("heads bundled --save TMP", "cannot be written ([Errno 21] a folder stands there)"),
        ("graph missing --prompt=", "--prompt is empty"),
        ("top missing --save TMP/file/x.svg", "x.svg cannot be written"),
        ("graph missing --prompt x --save TMP/file", "file cannot be written ([Errno 20] Not a directory"),
        ("graph missing --prompt x --html TMP/file/x.html", "x.html cannot be written"),
        ("probe missing data.csv --figure TMP", "cannot be written"),
        (f"probe missing data.csv --k 5,{'9' * 5000}", "--k is whole numbers with commas between them"),
        ("probe missing data.csv --k ²", "--k is whole numbers with commas between them"),
        ("compare missing --figures TMP/file", "cannot be written"),
        ("compare-texts missing a b --save TMP", "cannot be written"),
        ("token-sets missing --save TMP", "cannot be written"),
        ("explore missing --export TMP/file", "cannot be written"),
        ("explore missing --feature 3", "one feature in one file takes both"),
        ("plan --hardware=", "hardware: '' is not in the table"),
    ],
)
def test_what_cannot_be_ends_in_a_line_before_the_work_whose_result_it_concerns(
    monosem: Command, tmp_path: Path, command: str, says: str
) -> None:
    (tmp_path / "file").write_text("x")
    outcome = monosem(*command.replace("TMP", str(tmp_path)).split())
    assert outcome.code == 2, outcome
    assert says in outcome.err
    assert "fault of monosem" not in outcome.err
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


@pytest.mark.filterwarnings("default")
def test_documents_that_cannot_be_read_are_skipped_counted_and_named(monosem: Command, tmp_path: Path) -> None:
    texts = [" ".join(str((i + 7) * j * j) for j in range(40)) for i in range(60)]
    rows = ["no JSON", '{"text": 5}', *(json.dumps({"text": text}) for text in texts)]
    (tmp_path / "own.jsonl").write_text("\n".join(rows))
    small = ["tokens=256", "sae.n_latents=32", "sae.k=4", "training.batch_size=64", "activations.buffer_tokens=512"]
    settings = [*small, f"text={tmp_path}/own.jsonl", f"output={tmp_path}/run", "activations.context_length=32"]
    outcome = monosem("train", *(f"--set={setting}" for setting in settings), "--no-evaluation")
    assert outcome.code == 0, outcome.err
    assert "To look at features" not in outcome.out, "there are none without an evaluation"
    assert outcome.err.startswith("warning: text ")
    assert "skipped (2); the first: " in outcome.err
    assert "own.jsonl cannot be read as text: line 1 is no JSON object" in outcome.err
    assert ms.load_sae(tmp_path / "run").metadata.documents_skipped == 2


@pytest.mark.parametrize("command", ["info", "top", "eval", "harvest", "explore"])
def test_a_run_that_is_not_there_is_looked_for_in_runs(
    monosem: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: str
) -> None:
    """Before any hub is asked: here a model would be loaded from one."""
    (tmp_path / "runs/demo").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("monosem.models.load._pretrained", lambda *_: pytest.fail("a hub was asked"))
    for word in ("demmo", "demo", "runs/dmo"):
        assert ". Did you mean runs/demo?" in one_line(monosem(command, word))


@pytest.mark.parametrize("words", [("info", "x" * 5000), ("train", "--set", "tokens=" + "9" * 5000)])
def test_a_word_without_end_is_cut_in_the_line(monosem: Command, words: tuple[str, ...]) -> None:
    refused = monosem(*words)
    assert refused.code == 2
    assert refused.err.count("\n") == 1
    assert 300 < len(refused.err) < 700
    assert re.search(r"(\w)\1{99}\.\.\.", refused.err)


def test_a_missing_run_yaml_ends_in_one_line(monosem: Command, tmp_path: Path) -> None:
    assert "my.yaml does not exist: give a run.yaml" in one_line(monosem("train", tmp_path / "my.yaml"))


def test_a_wrong_key_in_run_yaml_names_the_file(monosem: Command, tmp_path: Path) -> None:
    path = tmp_path / "my.yaml"
    path.write_text("training: {epochs: 3}\n")
    assert f"{path}: unknown key 'training.epochs'" in one_line(monosem("train", path))


def test_a_folder_that_holds_another_run_is_not_touched(monosem: Command, copied_run: Path) -> None:
    config = yaml.safe_load((copied_run / "run.yaml").read_text())
    config["output"], config["tokens"] = str(copied_run), 30_000
    other = copied_run.parent / "other.yaml"
    other.write_text(yaml.safe_dump(config))
    before = (copied_run / "run.yaml").read_text()
    says = one_line(monosem("train", other))
    assert "holds a run with another tokens" in says
    assert "--set output=" in says
    assert (copied_run / "run.yaml").read_text() == before


def test_a_folder_that_cannot_be_written_ends_in_one_line(monosem: Command, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    assert "file" in one_line(monosem("train", f"--set=output={tmp_path}/file/run", "--set=sae.n_latents=64"))


@pytest.mark.parametrize("command", ["harvest", "info", "eval"])
@pytest.mark.parametrize("file", ["sae/sae.safetensors", "sae/cfg.json", "run.yaml"])
def test_a_damaged_file_of_a_run_is_named(monosem: Command, copied_run: Path, command: str, file: str) -> None:
    path = copied_run / file
    path.write_bytes(b"\xff" + path.read_bytes()[1:300])
    assert file.rpartition("/")[2] in one_line(monosem(command, copied_run))


@pytest.mark.parametrize(("command", "file"), [("info", "evaluation.json"), ("top", "features/index.json")])
def test_damaged_results_of_a_run_are_named(monosem: Command, copied_run: Path, command: str, file: str) -> None:
    (copied_run / file).write_bytes(b"\xff\xfe")
    assert str(copied_run / file) in one_line(monosem(command, copied_run))


def test_top_of_a_latent_that_does_not_exist_says_which_do(monosem: Command, small_run: Path) -> None:
    assert "no latent 256: this SAE has 0 to 255" in one_line(monosem("top", small_run, 256))
    assert "a picture is written as .svg or .html" in one_line(monosem("top", small_run, 3, "--save", "x.pdf"))


@pytest.mark.parametrize("command", ["top", "eval", "harvest", "info"])
def test_a_folder_without_a_run_is_named(monosem: Command, tmp_path: Path, command: str) -> None:
    assert f"{tmp_path} " in one_line(monosem(command, tmp_path))
    assert str(tmp_path / "none") in one_line(monosem(command, tmp_path / "none"))


def test_a_run_without_features_or_without_an_sae_says_what_to_do(monosem: Command, copied_run: Path) -> None:
    shutil.rmtree(copied_run / "features")
    assert f"monosem harvest {copied_run}" in one_line(monosem("top", copied_run))
    shutil.rmtree(copied_run / "sae")
    assert f"monosem train {copied_run}/run.yaml" in one_line(monosem("eval", copied_run))


def test_eval_with_a_model_of_another_width_is_refused(
    monosem: Command, copied_run: Path, make_gpt2: Callable[..., nn.Module], tokenizer: Any
) -> None:
    model = copied_run.parent / "narrow"
    make_gpt2(layers=4, positions=256).save_pretrained(model)
    tokenizer.save_pretrained(model)
    config = yaml.safe_load((copied_run / "run.yaml").read_text())
    (copied_run / "run.yaml").write_text(yaml.safe_dump({**config, "model": str(model)}))
    says = one_line(monosem("eval", copied_run))
    assert f"the SAE reads width 256, resid_post.2 of {model} has width 32" in says


def test_a_wrong_option_is_the_usual_error_of_a_command_line(monosem: Command, small_run: Path) -> None:
    for arguments in (["eval", small_run, "--tokens", 0], ["top", small_run, "x"], ["tran"], ["train", "--sett", "x"]):
        outcome = monosem(*arguments)
        assert outcome.code == 2
        assert "Traceback" not in outcome.err
        assert "Usage" in outcome.err


def test_info_of_nothing_says_what_could_be_there(monosem: Command, tmp_path: Path) -> None:
    assert "no run (run.yaml), no SAE (cfg.json) and no model" in one_line(monosem("info", tmp_path))


def test_the_real_executable_ends_in_one_line(tmp_path: Path) -> None:
    done = subprocess.run([str(EXECUTABLE), "train", str(tmp_path / "none.yaml")], capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.startswith("monosem: ")
    assert done.stderr.count("\n") == 1


def test_with_debug_the_error_itself_is_shown(monosem: Command, tmp_path: Path) -> None:
    for arguments in (["train", tmp_path / "none.yaml", "--debug"], ["--debug", "train", tmp_path / "none.yaml"]):
        with pytest.raises(FileError):
            monosem(*arguments)
