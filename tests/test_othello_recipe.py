"""recipes/othello: a run that was killed goes on as if it had not been, and what it writes can be studied."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

import monosem as ms

SCRIPT = Path(__file__).parents[1] / "recipes" / "othello" / "train.py"


@pytest.fixture
def recipe(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """Its script, as a module, of a smaller model and smaller steps."""
    spec = importlib.util.spec_from_file_location("train_othello", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.setattr(module, "BATCH", 16)
    monkeypatch.setattr(module, "HELD_OUT_GAMES", 32)
    monkeypatch.setattr(module, "WIDTH", 32)
    monkeypatch.setattr(module, "LAYERS", 2)
    return module


class Killed(Exception):
    pass


def test_a_run_that_was_killed_ends_with_the_same_weights(
    recipe: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def run(work: str) -> None:
        words = ["train.py", "--work", str(tmp_path / work), "--steps", "8", "--checkpoint-every", "3"]
        monkeypatch.setattr(sys, "argv", words)
        recipe.main()

    play, played = recipe.othello_games, []

    def killed_at(*given: object) -> object:
        played.append(given)
        if len(played) == 6:  # in the fifth step: the last checkpoint is of the third
            raise Killed
        return play(*given)

    run("whole")
    monkeypatch.setattr(recipe, "othello_games", killed_at)
    with pytest.raises(Killed):
        run("stopped")
    monkeypatch.setattr(recipe, "othello_games", play)
    run("stopped")
    whole, stopped = (torch.load(tmp_path / name / "checkpoint.pt", weights_only=True) for name in ("whole", "stopped"))
    assert stopped["step"] == 8
    for name, weights in whole["model"].items():
        assert torch.equal(weights, stopped["model"][name]), name
    log = [json.loads(line) for line in (tmp_path / "stopped" / "log.jsonl").read_text().splitlines()]
    assert [line["step"] for line in log] == [3, 6, 8]

    model = ms.load_model(tmp_path / "stopped" / "model")
    figures = json.loads((tmp_path / "stopped" / "model" / "evaluation.json").read_text())
    assert figures["games"] == 8 * 16
    assert 0 < figures["legal_share"] < 1
    games = ms.othello_games(6, 4)
    source: Any = ms.activations(model, "resid_post.0", text=games.text, packing=False)
    rows = {tuple(row.tolist()) for row in source.contexts.read(0, 6).tokens}
    assert rows == {tuple(row.tolist()) for row in games.tokens}, "text is read as the tokens that were trained on"


def test_figures_of_a_model_that_knows_the_rules_are_perfect(recipe: ModuleType) -> None:
    class Oracle(torch.nn.Module):
        def forward(self, tokens: torch.Tensor, use_cache: bool) -> object:
            games = recipe.othello_games(len(tokens), (recipe.HELD_OUT, 0), tokens.shape[1])
            assert tokens.equal(torch.from_numpy(games.tokens))
            return type("Out", (), {"logits": torch.from_numpy(games.legal).float() * 100})

    figures = recipe.measured(Oracle(), 10)
    assert figures == {"legal_share": 1, "legal_moves": 1, "legal_mass": 1, "all_legal": 1, "divergence": 0}
