"""monosem explain --judge and monosem score: a whole run, explained and tested by a real server."""

from __future__ import annotations

import shutil
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from chat_server import ChatServer

from monosem.features import FeatureStore


@pytest.fixture
def run(small_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy, and a cache of its own."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("PYTHONWARNINGS", "")
    shutil.copytree(small_run, tmp_path / "run", ignore=shutil.ignore_patterns("checkpoints", "explanations"))
    return tmp_path / "run"


def test_a_run_is_explained_and_scored_by_a_judge(chat: ChatServer, run: Path, monosem: Callable[..., Any]) -> None:
    latents = FeatureStore(run).table(sort="-count", limit=6).column("latent").to_pylist()
    judge = ("--judge", chat.url, "--model", "reader", "--prices", "1", "2")
    explained = monosem("explain", run, *latents, *judge)
    assert explained.code == 0, explained.err
    assert "6 questions to ask (0 more were answered before): at most" in explained.out
    assert "the word " in explained.out
    found = FeatureStore(run).explanations("reader")
    assert sorted(item.latents[0] for item in found) == sorted(latents)
    assert all(item.seen for item in found)

    scored = monosem("score", run, "detection", "--explainer", "reader", "--limit", "3", *judge)
    assert scored.code == 0, scored.err
    for words in ("shuffled among features", "L5", "Judged: detection by reader", "Kept with the explanations"):
        assert words in scored.out
    kept = FeatureStore(run).explanations("reader")
    assert sum("detection" in item.scores for item in kept) == 3
    assert len(kept) == 6
    asked = len(chat.requests)
    again = monosem("score", run, "detection", "--explainer", "reader", "--limit", "3", *judge)
    assert "0 questions to ask" in again.out
    assert len(chat.requests) == asked

    dear = monosem("score", run, "fuzzing", "--explainer", "reader", *judge, "--max-price", "0.000001")
    assert dear.code == 2
    assert "raise max_price" in dear.err
    assert len(chat.requests) == asked


def test_rules_and_surprisal_need_no_judge(run: Path, monosem: Callable[..., Any]) -> None:
    assert monosem("explain", run, "--no-measure").code == 0
    scored = monosem("score", run, "rule", "--explainer", "rules", "--limit", "40")
    assert scored.code == 0, scored.err
    assert "shuffled among features" in scored.out
    assert "Chance: rule 0." in scored.out


def test_no_judge_no_model_and_no_server_are_one_line_each(run: Path, monosem: Callable[..., Any]) -> None:
    assert monosem("explain", run, "1", "2", "--no-measure").code == 0
    missing = monosem("score", run, "detection", "--explainer", "rules")
    assert (missing.code, missing.err.count("\n")) == (2, 1)
    assert "detection needs a judge" in missing.err
    nameless = monosem("score", run, "detection", "--explainer", "rules", "--judge", "http://localhost:1/v1")
    assert "needs --model" in nameless.err
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    url = f"http://127.0.0.1:{port}/v1"
    gone = monosem("explain", run, "1", "--judge", url, "--model", "m", "--parallel", "1")
    assert gone.code == 2
    assert "(no connection" in gone.err
    unexplained = monosem("score", run, "rule", "--explainer", "nobody")
    assert unexplained.code == 2
    assert "can be tested" in unexplained.err
