"""The recipe of SmolLM2's dictionary: its run can be read, its conversations are made of the documents' own words."""

from __future__ import annotations

import importlib.util
import json
import re
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

from blocks import ROOT

from monosem.data import read_documents
from monosem.runs import RunConfig

RECIPE = ROOT / "recipes/smollm2"


def script(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"smollm2_{name}", RECIPE / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def rows(path: Path) -> Iterator[dict]:
    with path.open() as file:
        yield from map(json.loads, file)


def test_the_text_is_every_document_once_a_third_as_conversations(tmp_path: Path) -> None:
    script("text").write("bundled:held_out", tmp_path / "held_out.jsonl", seed=1)
    documents = list(read_documents("bundled:held_out"))
    written = list(rows(tmp_path / "held_out.jsonl"))
    assert len(written) == len(documents)
    talks = [(row["messages"], d) for row, d in zip(written, documents, strict=True) if "messages" in row]
    assert 0.2 < len(talks) / len(written) < 0.4
    assert {len(messages) for messages, _ in talks} == {2, 4}
    for messages, document in talks:
        assert [m["role"] for m in messages] == ["user", "assistant"] * (len(messages) // 2)
        words = re.sub(r"\s+", " ", document.text)
        assert all(re.sub(r"\s+", " ", m["content"]) in words for m in messages[1::2])
        assert not any("{" in m["content"].split("\n")[0] for m in messages[::2] if "{" not in document.text)
    plain = [(row["text"], d.text) for row, d in zip(written, documents, strict=True) if "text" in row]
    assert all(ours == theirs for ours, theirs in plain)
    again = read_documents(tmp_path / "held_out.jsonl")
    assert [bool(d.messages) for d in list(again)] == ["messages" in row for row in written]


def test_the_run_is_what_the_makefile_makes() -> None:
    config = RunConfig.read(RECIPE / "run.yaml")
    assert (config.tokens, config.sae.n_latents, config.activations.max_norm_ratio) == (2_000_000, 8192, 10)
    made = re.findall(r"recipes/smollm2/(\w+)\.py (\S+)", (ROOT / "Makefile").read_text())
    assert dict(made)["model"] == config.model
    assert [f"{dict(made)['text']}/{name}.jsonl" for name in ("train", "held_out")] == [
        config.text,
        config.evaluation.text,
    ]
