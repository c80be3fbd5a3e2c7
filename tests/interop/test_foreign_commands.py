"""The commands work on a dictionary in another library's files as on a run."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from typer.testing import CliRunner

import monosem as ms
from monosem.cli.main import app
from monosem.errors import ConfigError, FileError
from monosem.models import SubjectModel
from monosem.runs import open_run

DATA = Path(__file__).parents[1] / "data"
DEMO, FROZEN = DATA / "demo_sae", DATA / "interop"
N = 256
MANY_WORDS = (
    "The king of England went to the river in 1923, where his family had lived; she said that they were happy. "
)


@pytest.fixture(scope="module")
def published(bundled: SubjectModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Few latents of the demo's dictionary in the files of SAELens: it reads the bundled model."""
    demo = ms.load_sae(DEMO).float()
    codes = demo.encode(bundled.capture(MANY_WORDS, ["resid_post.2"])["resid_post.2"][0, 1:]).to_dense()
    kept = codes.detach().sum(0).topk(N).indices.sort().values
    sae = ms.fold(ms.prune(demo, kept.tolist()), norms=False)
    folder = tmp_path_factory.mktemp("published") / "sae"
    folder.mkdir()
    tensors = {"W_enc": sae.W_enc.T, "W_dec": sae.W_dec, "b_enc": sae.b_enc, "b_dec": sae.b_dec}
    save_file(
        {name: t.detach().contiguous().clone() for name, t in tensors.items()}, folder / "sae_weights.safetensors"
    )
    metadata = {
        "model_name": "bundled",
        "hook_name": "blocks.2.hook_resid_post",
        "context_size": 64,
        "prepend_bos": True,
    }
    config = {"architecture": "topk", "d_in": sae.d_in, "d_sae": len(kept), "k": sae.settings["k"], "dtype": "float32"}
    (folder / "cfg.json").write_text(json.dumps({**config, "metadata": metadata}))
    return folder


def monosem(*arguments: str | Path) -> str:
    done = CliRunner().invoke(app, [*map(str, arguments)])
    assert done.exit_code == 0, done.exception
    return done.output


def test_a_foreign_dictionary_is_described_measured_harvested_and_explored(
    published: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    told = monosem("info", published)
    assert "SAELens" in told
    assert "resid_post.2" in told
    assert "Written" in monosem("explore", published, "--tokens", "1000", "--feature", "7", "--html", "feature.html")
    assert (tmp_path / "feature.html").is_file()
    (path,) = (tmp_path / "runs").iterdir()
    run = ms.Run(path)
    assert run.sae().metadata.layout == "SAELens"
    assert run.features().n_tokens >= 1000
    assert "7" in monosem("top", published, "7", "-n", "1")
    assert "FVU" in monosem("eval", published, "--tokens", "1000", "--loss-tokens", "0")
    x = torch.randn(5, 256)
    assert torch.equal(run.sae()(x).reconstruction, ms.load_sae(published)(x).reconstruction)


def test_what_the_files_do_not_say_is_asked_for_and_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    silent = FROZEN / "sparsify" / "topk" / "layers.3"
    with pytest.raises(ConfigError, match="--model OWNER/NAME"):
        open_run(silent)
    run = open_run(silent, model="bundled", hook="resid_post.1")
    assert (run.config.model, run.config.hook) == ("bundled", "resid_post.1")
    assert open_run(silent).path == run.path


def test_a_run_says_itself_what_it_is_of(tmp_path: Path) -> None:
    (tmp_path / "run.yaml").write_text("model: bundled\nhook: resid_post.1\n")
    assert open_run(tmp_path, model="bundled", hook="resid_post.1").path == tmp_path
    with pytest.raises(
        ConfigError, match=r"says its hook itself, 'resid_post.1', not 'resid_post.2': leave --hook out"
    ):
        open_run(tmp_path, hook="resid_post.2")
    (tmp_path / "several").mkdir()
    (tmp_path / "several" / "run.yaml").write_text("model: bundled\nhooks: [resid_post.0, resid_post.1]\n")
    with pytest.raises(ConfigError, match=r"is a run, which says its hook itself: leave --hook out"):
        open_run(tmp_path / "several", hook="resid_post.1")
    with pytest.raises(ConfigError, match=r"leave --model out, or change model in .*run.yaml"):
        open_run(tmp_path, model="elsewhere")


def test_what_is_no_dictionary_is_told_as_before(tmp_path: Path) -> None:
    with pytest.raises(FileError, match=r"holds no run"):
        open_run(tmp_path)
    with pytest.raises(FileError, match="does not exist"):
        open_run(tmp_path / "nothing")
