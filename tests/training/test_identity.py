"""A folder goes on with the run that it holds, and with no other: whatever decides the bits is compared and named."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from monosem.activations import LiveActivations, VectorActivations
from monosem.errors import ConfigError
from monosem.models import SubjectModel
from monosem.sae import SAE, ReLUSAE, TopKSAE, load_sae
from monosem.training import TrainingConfig, TrainingInterrupted, fit, train, train_together

CONFIG = TrainingConfig(batch_size=10, checkpoint_minutes=0, log_every=2, lr=1e-3)


def rows(seed: int = 0) -> Tensor:
    return torch.randn(60, 6, generator=torch.Generator().manual_seed(seed)) + 1


def call(path: Path, *, stop_at: int | None = None, sae: SAE | None = None, **changes: Any) -> Any:
    def stop(trainer: Any, _: Any) -> None:
        if trainer.steps == stop_at:
            raise TrainingInterrupted

    options: dict[str, Any] = {"tokens": 60, "config": CONFIG, "source": VectorActivations(rows())} | changes
    return train(sae or TopKSAE(6, 24, k=3), path=path, callbacks=[stop], progress=False, **options)


def content(path: Path) -> dict[str, bytes]:
    return {str(file.relative_to(path)): file.read_bytes() for file in path.rglob("*") if file.is_file()}


def changed_row() -> Tensor:
    x = rows()
    x[17, 3] += 1
    return x


OTHERS: dict[str, tuple[dict[str, Any], str]] = {
    "rate": ({"config": CONFIG.model_copy(update={"lr": 2e-3})}, r"training.lr \(0.001 then, 0.002 now\)"),
    "batch size": (
        {"config": CONFIG.model_copy(update={"batch_size": 20})},
        r"training.batch_size \(10 then, 20 now\)",
    ),
    "schedule": ({"config": CONFIG.model_copy(update={"decay": 0.5})}, r"training.decay \(0.2 then, 0.5 now\)"),
    "length": ({"tokens": 80}, r"tokens \(60 then, 80 now\).* ms.train\(ms.load_sae\("),
    "architecture": ({"sae": ReLUSAE(6, 24)}, r"sae.architecture \(topk then, relu now\)"),
    "k": ({"sae": TopKSAE(6, 24, k=4)}, r"sae.k \(3 then, 4 now\)"),
    "width": ({"sae": TopKSAE(6, 32, k=3)}, r"sae.n_latents \(24 then, 32 now\)"),
    "transform": ({"sae": TopKSAE(6, 24, k=3, transform="none")}, r"sae.transform \(centre_scale then, none now\)"),
    "precision": ({"sae": TopKSAE(6, 24, k=3, dtype=torch.float64)}, r"sae.dtype \(float32 then, float64 now\)"),
    "seed": ({"sae": TopKSAE(6, 24, k=3, seed=1)}, r"sae.weights at the start \("),
    "data": ({"source": VectorActivations(rows(1))}, r"activations.data \("),
    "one number of the data": ({"source": VectorActivations(changed_row())}, r"activations.data \("),
    "order of the data": ({"source": VectorActivations(rows(), seed=1)}, r"activations.seed \(0 then, 1 now\)"),
}


@pytest.mark.parametrize("stop_at", [4, None], ids=["stopped", "finished"])
def test_another_run_is_refused_by_name_and_nothing_is_touched(tmp_path: Path, stop_at: int | None) -> None:
    if stop_at:
        with pytest.raises(TrainingInterrupted):
            call(tmp_path, stop_at=stop_at)
    else:
        call(tmp_path)
    before = content(tmp_path)
    for what, (changes, says) in OTHERS.items():
        with pytest.raises(ConfigError, match=f"{tmp_path} holds a run with another .*{says}") as error:
            call(tmp_path, **{name: copy.deepcopy(value) for name, value in changes.items()})
        assert "path=" in str(error.value), what
        assert "delete" in str(error.value), what
        assert content(tmp_path) == before, what
    call(tmp_path)


def test_fit_and_train_together_refuse_too(tmp_path: Path) -> None:
    options: dict[str, Any] = {"tokens": 60, "config": CONFIG, "progress": False}
    fit(TopKSAE(6, 24, k=3), rows(), path=tmp_path / "fit", **options)
    with pytest.raises(ConfigError, match=r"activations\.data"):
        fit(TopKSAE(6, 24, k=3), rows(1), path=tmp_path / "fit", **options)
    both = {"a": TopKSAE(6, 24, k=3), "b": TopKSAE(6, 24, k=2)}
    train_together(both, VectorActivations(rows()), path=tmp_path / "both", **options)
    before = content(tmp_path / "both")
    other = {"a": TopKSAE(6, 24, k=3), "b": TopKSAE(6, 24, k=5)}
    with pytest.raises(ConfigError, match=r"both/b holds a run with another sae.k \(2 then, 5 now\)"):
        train_together(other, VectorActivations(rows()), path=tmp_path / "both", **options)
    assert content(tmp_path / "both") == before


def test_what_decides_no_bits_may_differ(tmp_path: Path) -> None:
    with pytest.raises(TrainingInterrupted):
        call(tmp_path, stop_at=4)
    default = TopKSAE(6, 24, k=3)
    found = call(tmp_path, sae=default, config=CONFIG.model_copy(update={"checkpoint_minutes": 9.0}))
    assert found.sae.metadata.tokens_trained == 60


def test_a_finished_run_is_read_and_nothing_is_written(tmp_path: Path) -> None:
    expected = call(tmp_path)
    before, times = content(tmp_path), {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*")}
    (tmp_path / "checkpoints" / "step_00000006.bak").mkdir()
    found = call(tmp_path)
    assert found.history == expected.history
    assert all(torch.equal(found.sae.state_dict()[n], t) for n, t in expected.sae.state_dict().items())
    (tmp_path / "checkpoints" / "step_00000006.bak").rmdir()
    assert content(tmp_path) == before
    assert {p: p.stat().st_mtime_ns for p in times if p.is_file()} == {p: t for p, t in times.items() if p.is_file()}


def test_the_same_object_goes_on_though_it_has_been_trained_meanwhile(tmp_path: Path) -> None:
    sae, expected = TopKSAE(6, 24, k=3), call(tmp_path / "whole")
    with pytest.raises(TrainingInterrupted):
        call(tmp_path / "run", stop_at=4, sae=sae)
    found = call(tmp_path / "run", sae=sae)
    assert torch.equal(found.sae.W_dec, expected.sae.W_dec)
    call(tmp_path / "run", sae=sae)
    with pytest.raises(ConfigError, match=r"weights at the start .*trained before"):
        call(tmp_path / "run", sae=load_sae(tmp_path / "whole"))


def test_a_trained_sae_of_unknown_origin_is_not_overwritten(tmp_path: Path) -> None:
    call(tmp_path / "other").sae.save(tmp_path / "run" / "sae")
    with pytest.raises(ConfigError, match="holds a trained SAE, and nothing says how it was trained"):
        call(tmp_path / "run")


def test_a_run_before_its_first_checkpoint_may_be_changed(tmp_path: Path) -> None:
    with pytest.raises(TrainingInterrupted):
        call(tmp_path, stop_at=2, config=CONFIG.model_copy(update={"checkpoint_minutes": 60.0}))
    call(tmp_path, tokens=80)


def test_a_source_of_text_says_all_that_decides_its_rows(make_gpt2: Callable[..., Any], letter_tokenizer: type) -> None:
    model = SubjectModel(make_gpt2(vocabulary=128, width=16, layers=2), letter_tokenizer(), "letters")
    other = SubjectModel(make_gpt2(seed=1, vocabulary=128, width=16, layers=2), letter_tokenizer(), "letters")
    double = SubjectModel(copy.deepcopy(model.module).double(), letter_tokenizer(), "letters")
    texts = [chr(97 + i) * (40 + i) for i in range(20)]

    def identity(model: SubjectModel = model, hook: Any = "mlp_in.0", text: Any = None, **changes: Any) -> Any:
        options: dict[str, Any] = {"context_length": 32, "buffer_tokens": 320} | changes
        return LiveActivations(model, hook, texts if text is None else text, **options).identity()

    whole = identity()
    assert identity() == whole
    different = [
        identity(other),
        identity(double),
        identity(hook="mlp_in.1"),
        identity(text=[*texts[:-1], "another"]),
        identity(text=texts[::-1]),
        *(identity(**{name: value}) for name, value in CHANGES.items()),
    ]
    assert all(one != whole for one in different)
    several = LiveActivations(model, ["mlp_in.0", "mlp_in.1"], texts, context_length=32, buffer_tokens=320)
    assert several.select("mlp_in.0").identity() == whole, "alone or from one pass, the rows are the same"
    assert several.pair("mlp_in.0", "mlp_in.1").identity() != whole


CHANGES: dict[str, Any] = {
    "context_length": 16,
    "buffer_tokens": 640,
    "seed": 1,
    "skip_first": 1,
    "exclude_special": False,
    "prepend_bos": False,
    "packing": False,
    "last_only": True,
    "max_norm_ratio": 10.0,
}


def test_a_large_array_is_known_again_by_a_part_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    from monosem.activations import content as hashing

    monkeypatch.setattr(hashing, "WHOLE_BYTES", 100)
    monkeypatch.setattr(hashing, "SAMPLED_ROWS", 5)
    x = np.arange(90.0).reshape(30, 3)
    assert hashing.rows_hash(x) == hashing.rows_hash(x.copy())
    assert hashing.rows_hash(x) != hashing.rows_hash(x + 1)
    assert hashing.rows_hash(torch.from_numpy(x)) == hashing.rows_hash(torch.from_numpy(x.copy()))
