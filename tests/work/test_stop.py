"""Asked to stop, long work stops at the next safe place, saves, and goes on from there; whatever it is doing."""

from __future__ import annotations

import signal
import time
from pathlib import Path
from typing import Any

import pytest

from monosem.errors import Interrupted

SLOW = """
import sys, time
sys.path[:0] = [{tests!r}, {tests!r} + "/features"]
import torch
torch.set_num_threads(1)
from shared_fixtures import LetterTokenizer, random_gpt2
import monosem as ms
from monosem.errors import Interrupted
from monosem.models import SubjectModel
from monosem.sae import SAEMetadata

model = SubjectModel(random_gpt2(vocabulary=128, width=16, layers=2, positions=32), LetterTokenizer(), "slow")
model.contexts_at_once = lambda length: 4
words = [f"{{i}} {{i * i * i}} and {{i * 7919 % 1000}} " * 9 for i in range(400)]
sae = ms.TopKSAE(16, 24, k=2)


def slowly(*_):
    print("reading", flush=True)
    time.sleep(0.1)


try:
    if {what!r} == "train":
        source = ms.activations(model, "mlp_in.0", text=words, buffer_tokens=2560)
        steps = []

        def second_pool(trainer, _):
            if trainer.steps == 15:  # the first pool has about 19 batches
                model.module.transformer.h[0].register_forward_pre_hook(slowly)

        config = ms.TrainingConfig(batch_size=64, checkpoint_minutes=60)
        ms.train(sae, source, tokens=64 * 200, config=config, path={folder!r}, callbacks=[second_pool], progress=False)
    else:
        from transformers import AutoTokenizer
        from monosem.models import BUNDLED

        model = SubjectModel(random_gpt2(), AutoTokenizer.from_pretrained(str(BUNDLED)), "slow")
        model.contexts_at_once = lambda length: 4
        sae = ms.TopKSAE(32, 24, k=2)
        sae.metadata = SAEMetadata(hook="resid_post.1", context_length=24)
        model.module.transformer.h[0].register_forward_pre_hook(slowly)
        ms.harvest(sae, {folder!r}, model, tokens=100_000, progress=False)
except Interrupted as error:
    print(error, flush=True)
    sys.exit(7)
"""


@pytest.mark.parametrize("what", ["train", "harvest"])
def test_sigterm_while_the_model_reads_saves_and_ends_within_a_forward_pass(
    what: str, tmp_path: Path, forks: Any
) -> None:
    folder = tmp_path / "out"
    script = SLOW.format(tests=str(Path(__file__).parents[1]), what=what, folder=str(folder))
    child = forks("-c", script)
    child.until(lambda: child.said.count("reading") >= 4)  # the first may be a look
    asked = time.monotonic()
    child.send_signal(signal.SIGTERM)
    assert child.wait() == 7, child.said
    assert child.said.count("reading") < 8, "a buffer takes 20 forward passes"
    assert "stopped after" in child.said
    assert time.monotonic() - asked < 60
    saved = "checkpoints/step_*" if what == "train" else "harvest.safetensors"
    assert len(list(folder.glob(saved))) == 1


def test_what_is_stopped_by_its_user_is_one_kind_of_error() -> None:
    from monosem.training import TrainingInterrupted

    assert issubclass(TrainingInterrupted, Interrupted)
