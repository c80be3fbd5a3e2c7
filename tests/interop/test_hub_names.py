"""Names of the hub: fetched from a server that answers as the hub does, then read from the cache when it is gone."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

import monosem as ms
from monosem.errors import ConfigError, FileError
from monosem.interop.downloads import hub_name

FROZEN = Path(__file__).parents[1] / "data" / "interop"
SHA = "0123456789abcdef0123456789abcdef01234567"


def test_a_name_of_the_hub_is_fetched_once_and_then_read_without_it(tmp_path: Path) -> None:
    asked = [
        ["someone/saes/sparsify/topk/layers.3", None],
        ["hf://someone/saes/dictionary_learning/gated/resid_post_layer_3", SHA],
        ["someone/saes/circuit_tracer/layers_relu/set/layer_1.safetensors", "main"],
        ["someone/saes", None],
        ["someone/saes/sparsify/topk/layers.4", None],
        ["someone/saes/sparsify/topk/layers.3", "nothing"],
        ["someone/other/sae", None],
    ]
    script = Path(__file__).parent / "small_hub.py"
    command = [sys.executable, str(script), str(FROZEN), str(tmp_path), json.dumps(asked)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout.splitlines()[-1])
    online, offline = told["online"], told["offline"]
    first, second, third = online[:3]
    assert first["fetched"] == ["sparsify/topk/layers.3/cfg.json", "sparsify/topk/layers.3/sae.safetensors"]
    assert (first["layout"], first["hook"], first["revision"]) == ("sparsify", "resid_post.3", SHA)
    assert first["source"] == "hf://someone/saes/sparsify/topk/layers.3"
    assert (second["layout"], second["hook"]) == ("dictionary_learning", "resid_post.3")
    assert third["fetched"] == [
        "circuit_tracer/layers_relu/set/config.yaml",
        "circuit_tracer/layers_relu/set/layer_1.safetensors",
    ]
    assert "dictionaries: name one, as hf://someone/saes/" in online[3]["error"]
    assert "Did you mean hf://someone/saes/sparsify/topk/layers.3?" in online[4]["error"]
    assert online[5]["error"] == "someone/saes has no revision 'nothing': give a branch, a tag or a commit"
    assert "there is no repository someone/other on the hub" in online[6]["error"]
    for before, after in zip(online[:3], offline[:3], strict=True):
        assert after == {**before, "fetched": []}
    for number in (4, 5, 6):
        assert "is not in the cache, and the hub cannot be reached" in offline[number]["error"]


def test_what_stands_here_goes_before_a_name_and_has_no_revision(tmp_path: Path) -> None:
    case = FROZEN / "saelens" / "standard" / "sae"
    assert ms.load_sae(str(case)).metadata.source == str(case)
    with pytest.raises(ConfigError, match="leave revision out"):
        ms.load_sae(case, revision="main")
    with pytest.raises(FileError, match="does not exist"):
        ms.load_sae(tmp_path / "nothing" / "here")


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("hf://a/b", ("a/b", "", None)),
        ("a/b/c/d.pt", ("a/b", "c/d.pt", None)),
        ("a/b@v1/c", ("a/b", "c", "v1")),
        ("a/b/c@refs/pr/1", ("a/b", "c", "refs/pr/1")),
        ("a/b@refs/pr/1/c", ("a/b", "c", "refs/pr/1")),
        ("hf://a/b/c.npz?revision=main", ("a/b", "c.npz", "main")),
        ("a", None),
        ("../a/b", None),
        ("a/b/../c", None),
        ("/a/b/c", ("a/b", "c", None)),
    ],
)
def test_a_name_is_a_repository_a_path_in_it_and_a_revision(
    text: str, name: tuple[str, str, str | None] | None
) -> None:
    assert hub_name(text) == name
