"""run.yaml: read, overridden, resolved, and every mistake in it said in a line."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from monosem.errors import ConfigError, FileError, MismatchError, MonosemError
from monosem.runs import Run, RunConfig, demo_config, require_held_out
from monosem.runs.config import SAEConfig
from monosem.sae import SAE, ReLUSAE, TopKSAE
from monosem.training import TrainingConfig, train


def line_of(error: pytest.ExceptionInfo[MonosemError]) -> str:
    assert "\n" not in str(error.value)
    return str(error.value)


def test_without_a_file_there_are_the_defaults() -> None:
    assert RunConfig.read(None) == RunConfig()
    assert RunConfig().sae.build(16).n_latents == 4096
    assert TrainingConfig() == RunConfig().training


def test_a_resolved_file_reads_back_equal_and_names_every_key(tmp_path: Path) -> None:
    config = RunConfig.read(None, ["sae.k=7", "training.lr=1e-3", "activations.prepend_bos=false", "text=a.txt"])
    config.write(tmp_path / "deep" / "run.yaml")
    assert RunConfig.read(tmp_path / "deep" / "run.yaml") == config
    content = yaml.safe_load((tmp_path / "deep" / "run.yaml").read_text())
    assert set(content) == set(RunConfig.model_fields)
    for section in ("training", "activations", "evaluation"):
        assert set(content[section]) == set(type(getattr(config, section)).model_fields)
    assert [f.name for f in (tmp_path / "deep").iterdir()] == ["run.yaml"]


def test_overrides_win_over_the_file_and_have_yaml_s_types(tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    path.write_text("hook: mlp_out.1\nsae: {k: 9, n_latents: 64}\ntokens: 1e5\n")
    given = ["sae.n_latents=128", "tokens=2_000", "activations.exclude_special=no", "evaluation.text=null"]
    config = RunConfig.read(path, given)
    sae = config.sae.build(32)
    assert isinstance(sae, TopKSAE)
    assert (config.hook, config.tokens, sae.k, sae.n_latents) == ("mlp_out.1", 2000, 9, 128)
    assert config.activations.exclude_special is False
    assert config.evaluation.text is None
    assert RunConfig.read(path).tokens == 100_000


def test_an_empty_file_is_the_defaults(tmp_path: Path) -> None:
    (tmp_path / "run.yaml").write_text("# nothing yet\n")
    assert RunConfig.read(tmp_path / "run.yaml") == RunConfig()


@pytest.mark.parametrize("number", ["1e-3", "1E-3", "1.e-3", "0.001", ".1e-2", "+1e-03"])
def test_numbers_may_be_written_with_an_exponent(number: str) -> None:
    """YAML 1.1 takes `1e-3` for text."""
    config = RunConfig.read(None, ["sae.architecture=relu", f"sae.coefficient={number}", f"training.lr={number}"])
    sae = config.sae.build(16)
    assert isinstance(sae, ReLUSAE)
    assert sae.coefficient == config.training.lr == 0.001


@pytest.mark.parametrize("architecture", sorted(SAE.registry))
def test_every_architecture_can_be_built_with_every_parameter_that_it_lists(architecture: str) -> None:
    kind = SAE.registry[architecture]
    needed = {"cross_layer_transcoder": {"n_layers": 2}, "switch": {"k": 4}}.get(architecture, {})
    description = {"architecture": architecture, "n_latents": 64, "transform": "none", "seed": 3, **needed}
    sae = SAEConfig.model_validate(description).build(16)
    assert type(sae) is kind
    assert sae.transform.kind == "none"
    again = SAEConfig.model_validate({"architecture": architecture, "n_latents": 64, **sae.settings})
    assert again.build(16).settings == sae.settings


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("hok=resid_post.1", "unknown key 'hok'; known here: output, model, hook"),
        ("training.learning_rate=1", "unknown key 'training.learning_rate'; known here: lr, batch_size"),
        ("activations.bos=true", "unknown key 'activations.bos'; known here: context_length"),
        ("evaluation.steps=3", "unknown key 'evaluation.steps'; known here: text, images, vectors, tokens"),
        ("tokens=many", "tokens: input should be a valid integer"),
        ("tokens=0", "tokens: input should be greater than or equal to 1, got 0"),
        ("tokens=2.5", "tokens: input should be a valid integer"),
        ("training.lr=-1", "training.lr: input should be greater than 0, got -1"),
        ("training.beta1=1", "training.beta1: input should be less than 1, got 1"),
        ("sae.n_latents=none", "sae.n_latents: input should be a valid integer"),
        ("activations.seed=-1", "activations.seed: input should be greater than or equal to 0"),
        ("hook=null", "hook: name a hook point, such as resid_post.2"),
        ("sae=5", "sae: "),
        ("hook.layer=5", "hook: input should be a valid string"),
        ("hook", "write key=value"),
        ("=5", "write key=value"),
        ("hook=[resid_post.1", "the value cannot be read as YAML"),
    ],
)
def test_a_wrong_setting_is_named(override: str, says: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as error:
        RunConfig.read(None, [override])
    assert says in line_of(error)


def test_a_wrong_key_in_a_file_is_named_with_the_file(tmp_path: Path) -> None:
    path = tmp_path / "my.yaml"
    path.write_text("tokens: 5\ntraining:\n  epochs: 3\n")
    with pytest.raises(ConfigError) as error:
        RunConfig.read(path)
    assert line_of(error).startswith(f"{path}: unknown key 'training.epochs'")


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (None, "does not exist"),
        ("hook: [", "cannot be read as YAML"),
        ("a: b: c", "cannot be read as YAML"),
        ("\x00", "cannot be read as YAML"),
        ("- one\n- two", "must hold keys and values"),
        ("words", "must hold keys and values"),
    ],
)
def test_a_file_that_is_no_description_is_named(tmp_path: Path, content: str | None, says: str) -> None:
    path = tmp_path / "run.yaml"
    if content is not None:
        path.write_text(content)
    with pytest.raises(FileError) as error:
        RunConfig.read(path)
    assert str(path) in line_of(error)
    assert says in line_of(error)


@pytest.mark.parametrize(
    ("sae", "says"),
    [
        ({"architecture": "topq"}, "sae.architecture: unknown 'topq'; there are"),
        ({"kk": 3}, "sae.kk: topk has no such parameter; it has k,"),
        ({"architecture": "relu", "k": 3}, "sae.k: relu has no such parameter"),
        ({"k": 65}, "k must be between 1 and n_latents = 64, got 65"),
        ({"k": 0}, "k must be between 1 and n_latents = 64, got 0"),
        ({"k": "many"}, "sae.k: input should be a valid integer"),
        ({"k": 2.5}, "sae.k: input should be a valid integer"),
        ({"k": [2]}, "sae.k: input should be a valid integer"),
        ({"multi_coefficient": "x"}, "sae.multi_coefficient: input should be a valid number"),
        ({"transform": "fold"}, "sae.transform: "),
        ({"seed": "x"}, "sae.seed: input should be a valid integer"),
        ({"architecture": "relu", "coefficient": -0.5}, "coefficient must not be negative"),
    ],
)
def test_a_wrong_sae_is_named(sae: dict[str, object], says: str) -> None:
    with pytest.raises(ConfigError) as error:
        SAEConfig.model_validate({"n_latents": 64, **sae}).build(16)
    assert says in line_of(error)


def test_a_run_on_an_own_text_names_its_held_out_text_before_it_trains(tmp_path: Path) -> None:
    own = tmp_path / "own.txt"
    own.write_text("Some words.")
    with pytest.raises(ConfigError, match=r"evaluation\.text"):
        require_held_out(RunConfig(text=str(own)))
    with pytest.raises(FileError, match=r"missing\.txt"):
        require_held_out(RunConfig.read(None, [f"evaluation.text={tmp_path / 'missing.txt'}"]))
    require_held_out(RunConfig.read(None, [f"text={own}", f"evaluation.text={own}"]))
    require_held_out(RunConfig())


def test_the_demo_is_a_run_like_any_other() -> None:
    config = demo_config("runs/x")
    assert config == RunConfig.read(None, ["output=runs/x", "sae.n_latents=4096", "sae.k=24"])


def test_a_folder_without_a_run_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileError, match="does not exist"):
        Run(tmp_path / "none")
    with pytest.raises(FileError, match=r"no run\.yaml"):
        Run(tmp_path)


def test_an_unfinished_run_says_what_is_missing_and_how_to_go_on(tmp_path: Path) -> None:
    RunConfig(output=str(tmp_path)).write(tmp_path / "run.yaml")
    run = Run(tmp_path)
    assert not run.finished
    assert run.history() == []
    with pytest.raises(FileError, match="monosem train"):
        run.sae()
    for read, command in ((run.evaluation, "eval"), (run.features, "harvest")):
        with pytest.raises(FileError, match=f"monosem {command}"):
            read()
    (tmp_path / "metrics.jsonl").write_text('{"step": 10, "fvu": 0.5}\n{"step": 20, "fv')
    assert run.history() == [{"step": 10, "fvu": 0.5}]


def test_an_sae_of_another_width_than_the_activations_is_refused_before_training() -> None:
    import torch

    from monosem.activations import activations

    with pytest.raises(MismatchError, match="reads width 16, the activations have width 8: make it with d_in=8"):
        train(TopKSAE(16, 32, k=2), activations(torch.randn(50, 8)), tokens=100, progress=False)


@pytest.mark.parametrize("content", ["tokens: 2001-99-99", "tokens: !!int x", "[" * 3_000, "a: &a [*a]", "? [1]\n: 2"])
def test_yaml_that_cannot_be_read_is_named_with_its_file(content: str, tmp_path: Path) -> None:
    (tmp_path / "run.yaml").write_text(content)
    with pytest.raises(FileError, match=r"run\.yaml"):
        RunConfig.read(tmp_path / "run.yaml")


@pytest.mark.parametrize(
    "content", [b'{"step": 1, "tokens": 5}\n\xff\n', b"1\n", b'{"step": NaN, "tokens": 5}\n', b"[" * 200_000 + b"\n"]
)
def test_metrics_that_are_none_are_named_with_their_file(content: bytes, tmp_path: Path) -> None:
    RunConfig().write(tmp_path / "run.yaml")
    (tmp_path / "metrics.jsonl").write_bytes(content)
    with pytest.raises(FileError, match=r"metrics\.jsonl"):
        Run(tmp_path).history()


def test_figures_that_were_not_finite_come_back_as_nan(tmp_path: Path) -> None:
    RunConfig().write(tmp_path / "run.yaml")
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "tokens": 5, "fvu": NaN}\n{"step": 2, "tok')
    (row,) = Run(tmp_path).history()
    assert row["tokens"] == 5
    assert row["fvu"] != row["fvu"]
