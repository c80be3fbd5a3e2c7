"""recipes/reward: pairs are divided by question; training goes on where it stopped, and leaves lower layers be."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
import transformers

import monosem as ms

RECIPE = Path(__file__).parents[1] / "recipes" / "reward"


@pytest.fixture
def recipe(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """Its script, as a module."""
    monkeypatch.syspath_prepend(str(RECIPE))
    spec = importlib.util.spec_from_file_location("train_reward", RECIPE / "train.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def pairs(tmp_path: Path) -> Path:
    """Of 24 questions, twice each: what is chosen is polite."""
    rows = [
        {
            "chosen": f"\n\nHuman: Is it {i}?\n\nAssistant: Please, yes, {j}.",
            "rejected": f"\n\nHuman: Is it {i}?\n\nAssistant: Go away {j}.",
        }
        for i in range(24)
        for j in range(2)
    ]
    path = tmp_path / "pairs.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)))
    return path


def test_questions_are_on_one_side_alone_and_answers_behind_them(recipe: ModuleType, pairs: Path) -> None:
    found = recipe.read_pairs(pairs)
    sides = [{pair.question for pair in found if pair.held_out is side} for side in (True, False)]
    assert len(found) == 48
    assert all(sides)
    assert not sides[0] & sides[1]
    chosen, rejected = found[0].texts()
    assert chosen == "<|im_start|>user\nIs it 0?<|im_end|>\n<|im_start|>assistant\nPlease, yes, 0."
    assert rejected.endswith("assistant\nGo away 0.")


def test_a_run_that_was_stopped_ends_with_the_same_weights_and_the_lower_layers_are_the_model_s(
    recipe: ModuleType, pairs: Path, tmp_path: Path, tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes: dict[str, Any] = {
        "hidden_size": 32,
        "num_hidden_layers": 21,
        "num_attention_heads": 4,
        "intermediate_size": 48,
    }
    torch.manual_seed(0)
    config = transformers.LlamaConfig(vocab_size=4096, max_position_embeddings=256, pad_token_id=0, **sizes)
    transformers.LlamaForCausalLM(config).save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")

    def run(work: str, *more: str) -> None:
        words = [
            "train.py",
            str(pairs),
            "--model",
            str(tmp_path / "model"),
            "--work",
            str(tmp_path / work),
            "--epochs",
            "1",
        ]
        monkeypatch.setattr(sys, "argv", [*words, *more])
        recipe.main()

    run("whole")
    run("stopped", "--minutes", "0")
    assert not (tmp_path / "stopped" / "model").exists()
    run("stopped")
    base = ms.load_model(tmp_path / "model")
    whole, stopped = (ms.load_model(tmp_path / work / "model") for work in ("whole", "stopped"))
    texts = [text for pair in recipe.read_pairs(pairs)[:3] for text in pair.texts()]
    batch = base.padded(texts)
    assert torch.equal(whole(batch), stopped(batch))
    hooks = ["resid_post.15", "resid_post.19"]
    ours, theirs = whole.capture(batch, hooks), base.capture(batch, hooks)
    assert torch.equal(ours[hooks[0]], theirs[hooks[0]])
    assert not torch.equal(ours[hooks[1]], theirs[hooks[1]])
