"""Explanations of others are taken in: our own JSON, and Neuronpedia's in each of its shapes."""

from __future__ import annotations

import gzip
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from monosem.errors import ConfigError, DataError, FileError
from monosem.features import Explanation, Explanations, FeatureStore, Score
from monosem.features.exchange import import_explanations
from monosem.features.neuronpedia import write_export

ROWS: list[dict[str, Any]] = [
    {
        "id": "a1",
        "modelId": "gpt2-small",
        "layer": "6-res-jb",
        "index": "7",
        "description": " names of  rivers\n",
        "authorId": "someone",
        "typeName": "oai_token-act-pair",
        "explanationModelName": "gpt-4o-mini",
    },
    {"modelId": "gpt2-small", "layer": "6-res-jb", "index": 7, "description": "again", "typeName": "oai_token-act-pair"}
    | {"explanationModelName": "gpt-4o-mini"},
    {"modelId": "gpt2-small", "layer": "6-res-jb", "index": 8, "description": ""},
    {"modelId": "gpt2-small", "layer": "6-res-jb", "index": 9, "description": "dates", "explanationModelName": None},
]


@pytest.fixture
def store(small_run: Path, tmp_path: Path) -> FeatureStore:
    shutil.copytree(small_run, tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "features" / "explanations", ignore_errors=True)
    return FeatureStore(tmp_path / "run")


def lines(rows: list[dict[str, Any]]) -> bytes:
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


def as_list(folder: Path) -> Path:
    (folder / "export.json").write_text(json.dumps(ROWS))
    return folder / "export.json"


def as_object(folder: Path) -> Path:
    (folder / "export.json").write_text(json.dumps({"explanations": ROWS}))
    return folder / "export.json"


def as_lines(folder: Path) -> Path:
    (folder / "export.jsonl").write_bytes(lines(ROWS))
    return folder / "export.jsonl"


def as_folder(folder: Path) -> Path:
    home = folder / "gpt2-small" / "6-res-jb" / "explanations"
    home.mkdir(parents=True)
    for number, rows in enumerate((ROWS[:2], ROWS[2:])):
        (home / f"batch-{number}.jsonl.gz").write_bytes(gzip.compress(lines(rows)))
    return folder / "gpt2-small" / "6-res-jb"


@pytest.mark.parametrize("write", [as_list, as_object, as_lines, as_folder])
def test_neuronpedia_in_each_of_its_shapes(store: FeatureStore, tmp_path: Path, write: Callable[[Path], Path]) -> None:
    import_explanations(store, write(tmp_path))
    found = store.explanations("neuronpedia: gpt-4o-mini, oai_token-act-pair")
    assert [(item.latents, item.text) for item in found] == [([7], "names of rivers")]
    best = store.explanations().get(9)
    assert best is not None
    assert (best.text, best.explainer) == ("dates", "neuronpedia: unknown")
    assert store.explanations().get(8) is None


def test_what_we_write_comes_back_as_it_was(store: FeatureStore, tmp_path: Path) -> None:
    score = Score(value=0.7, low=0.6, high=0.8, n=40, judge="a model", details={"level 1": 0.5})
    items = [
        Explanation(
            latents=[1], text="one", explainer="a model", scores={"detection": score}, seen=[3], failure="rare"
        ),
        Explanation(latents=[2, 3], text="both", explainer="a model", side="output", sure=0.5),
        Explanation(latents=[2], text="two", explainer="person"),
    ]
    Explanations(store.path, None, items).to_json(tmp_path / "ours.json")
    import_explanations(store, tmp_path / "ours.json")
    assert [*store.explanations("a model"), *store.explanations("person")] == items


def test_what_is_exported_for_neuronpedia_is_read(store: FeatureStore, tmp_path: Path) -> None:
    item = Explanation(latents=[4], text="names of rivers", explainer="a model")
    Explanations(store.path, "a model", [item]).save()
    home = write_export(store, tmp_path, model_id="tiny", source="2-res", latents=range(8), progress=False)
    (found,) = import_explanations(store, home)
    assert [(one.latents, one.text, one.explainer) for one in found] == [
        ([4], "names of rivers", "neuronpedia: unknown")
    ]


@pytest.mark.parametrize(
    ("content", "error", "words"),
    [
        ([{**ROWS[0], "index": 10**6}], ConfigError, "latent 1000000"),
        ([{**ROWS[0], "index": -1}], ConfigError, "latent -1"),
        ([ROWS[0], {**ROWS[0], "layer": "7-res-jb"}], ConfigError, "source"),
        ([{"index": "x", "description": "y"}], FileError, "index"),
        ([{**ROWS[0], "description": None}], DataError, "no explanations"),
        ({"else": 1}, FileError, "no list"),
        ([3], FileError, "export.json"),
    ],
)
def test_bad_files_are_refused_and_nothing_is_written(
    store: FeatureStore, tmp_path: Path, content: Any, error: type[Exception], words: str
) -> None:
    (tmp_path / "export.json").write_text(json.dumps(content))
    with pytest.raises(error, match=words):
        import_explanations(store, tmp_path / "export.json")
    assert len(store.explanations()) == 0


def test_one_source_of_several_is_chosen(store: FeatureStore, tmp_path: Path) -> None:
    (tmp_path / "all.json").write_text(json.dumps([ROWS[0], {**ROWS[0], "layer": "7-res-jb", "description": "lakes"}]))
    import_explanations(store, tmp_path / "all.json", source="7-res-jb")
    found = store.explanations().get(7)
    assert found is not None
    assert found.text == "lakes"


def test_the_command_takes_them_in(store: FeatureStore, tmp_path: Path, monosem: Callable[..., Any]) -> None:
    done = monosem("explain", store.path.parent, "--import", as_folder(tmp_path))
    assert done.code == 0, done.err
    assert "1 explanations by neuronpedia: gpt-4o-mini, oai_token-act-pair" in done.out
