"""A harvest that is killed goes on, and equals one that never was; a kept state reads on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from small_store import LATENTS, SETTINGS, Made, small_sae
from streams import assert_equal

import monosem as ms
from monosem.errors import FileError
from monosem.features import Harvest
from monosem.features.files import STATE

SCRIPT = """
import sys, time
sys.path[:0] = [{tests!r} + "/features", {tests!r}]
import torch
torch.set_num_threads(1)
from transformers import AutoTokenizer
from shared_fixtures import random_gpt2
from small_store import SETTINGS, small_sae
from monosem.features import harvest
from monosem.models import BUNDLED, SubjectModel
model = SubjectModel(random_gpt2(), AutoTokenizer.from_pretrained(str(BUNDLED)), "tiny")
harvest(small_sae(), {folder!r}, model, tokens=200_000, settings=SETTINGS, minutes=0, progress=False)
"""
TOKENS = 20_000


def test_a_harvest_killed_goes_on_and_equals_one_never_killed(made: Made, tmp_path: Path, forks: Any) -> None:
    folder = tmp_path / "killed"
    process = forks("-c", SCRIPT.format(tests=str(Path(__file__).parents[1]), folder=str(folder)))
    process.until((folder / STATE).is_file)
    process.kill()
    read = Harvest.load(folder / STATE).next_context
    assert 0 < read * 24 < TOKENS
    assert not (folder / "index.json").exists()
    options = {"tokens": TOKENS, "settings": SETTINGS, "keep_state": True, "progress": False}
    resumed = ms.harvest(small_sae(), folder, made.model, **options)
    whole = ms.harvest(small_sae(), tmp_path / "whole", made.model, **options)
    assert_equal(Harvest.load(folder / STATE), Harvest.load(tmp_path / "whole" / STATE))
    assert [f.to_dict() for f in resumed.features(range(LATENTS))] == [
        f.to_dict() for f in whole.features(range(LATENTS))
    ]
    assert resumed.index == whole.index


def test_a_kept_state_reads_on(made: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(made.model, "contexts_at_once", lambda length: 16)  # the same batches: a matmul's last bit
    options = {"settings": SETTINGS, "keep_state": True, "progress": False}
    ms.harvest(small_sae(), tmp_path / "a", made.model, tokens=1536, **options)
    grown = ms.harvest(small_sae(), tmp_path / "a", made.model, tokens=3072, **options)
    whole = ms.harvest(small_sae(), tmp_path / "b", made.model, tokens=3072, **options)
    assert grown.index == whole.index
    assert grown[7].to_dict() == whole[7].to_dict()


def test_a_state_of_another_harvest_is_refused(made: Made, tmp_path: Path) -> None:
    ms.harvest(small_sae(), tmp_path, made.model, tokens=500, settings=SETTINGS, keep_state=True, progress=False)
    changed = small_sae()
    changed.W_dec.data[3] *= 2
    with pytest.raises(FileError, match="facts differ"):
        ms.harvest(changed, tmp_path, made.model, settings=SETTINGS)
    with pytest.raises(FileError, match="settings differ"):
        ms.harvest(small_sae(), tmp_path, made.model)
    with pytest.raises(FileError, match="bundled:held_out"):
        ms.harvest(small_sae(), tmp_path, made.model, text="bundled", settings=SETTINGS)
