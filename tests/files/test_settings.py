"""Settings and lengths that a program gives: what does not fit is refused in a line, by name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import monosem as ms
from monosem.errors import ConfigError
from monosem.features import HarvestSettings
from monosem.training.revival import RevivalConfig

X = torch.randn(64, 6, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(
    ("make", "values", "words"),
    [
        (ms.TrainingConfig, {"lr": float("nan")}, "TrainingConfig: lr: input should be greater than 0, got nan"),
        (ms.TrainingConfig, {"batch_size": 2.5}, "TrainingConfig: batch_size: .*, got 2.5"),
        (ms.TrainingConfig, {"batchsize": 5}, "TrainingConfig has no setting 'batchsize'; it has lr, batch_size, .*"),
        (ms.TrainingConfig, {"revival": {"method": "prayer"}}, "TrainingConfig: revival.method: .*, got 'prayer'"),
        (RevivalConfig, {"method": 5}, "RevivalConfig: method: .*, got 5"),
        (HarvestSettings, {"near_every": -1}, "HarvestSettings: near_every: .*, got -1"),
    ],
)
def test_a_setting_that_does_not_fit_is_named(make: Any, values: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=f"^{words}") as error:
        make(**values)
    assert "\n" not in str(error.value)


def test_settings_that_fit_are_as_ever() -> None:
    assert ms.TrainingConfig(revival={"method": "resample"}).revival.method == "resample"  # pyright: ignore[reportArgumentType]
    assert ms.TrainingConfig.model_validate({"lr": 1}) == ms.TrainingConfig(lr=1)


@pytest.mark.parametrize("value", [7, 7.0, np.int64(7), torch.tensor(7)])
def test_whole_numbers_of_every_kind_are_whole_numbers(value: Any) -> None:
    sae = ms.TopKSAE(value, value, k=value)
    assert [type(size) for size in (sae.d_in, sae.n_latents, sae.k)] == [int, int, int]


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 2.5, "7", None, [7]])
def test_what_is_no_whole_number_is_refused_wherever_a_length_is_asked(
    value: Any, tmp_path: Path, tiny: ms.SubjectModel
) -> None:
    sae, words = ms.TopKSAE(6, 8, k=2), "tokens must be a whole number of at least 1"
    for call in (
        lambda: ms.train(sae, ms.activations(X), tokens=value, progress=False),
        lambda: ms.train_together({"a": sae}, ms.activations(X), tokens=value if value != [7] else {"a": value}),
        lambda: ms.evaluate(sae, X, tokens=value, progress=False),
        lambda: ms.harvest(sae, tmp_path / "features", X, tokens=value, progress=False),
        lambda: ms.store_activations(tiny, "embed", path=tmp_path / "acts", tokens=value),
    ):
        with pytest.raises(ConfigError, match=words):
            call()
    with pytest.raises(ConfigError, match="n_latents must be a whole number"):
        ms.TopKSAE(6, value, k=2)
    with pytest.raises(ConfigError, match="k must be a whole number"):
        ms.TopKSAE(6, 8, k=value)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("path", ["", " "])
def test_a_folder_to_write_into_has_a_name(path: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What an unset variable of a shell gives is not the folder one happens to be in."""
    monkeypatch.chdir(tmp_path)
    sae = ms.TopKSAE(6, 8, k=2)
    for write in (
        lambda: ms.fit(sae, X, tokens=64, path=path, progress=False),
        lambda: ms.train_together({"a": sae}, ms.activations(X), tokens=64, path=path, progress=False),
        lambda: sae.save(path),
        lambda: ms.harvest(sae, path, X, tokens=64, progress=False),
        lambda: ms.export_sae(sae, path),
    ):
        with pytest.raises(ConfigError, match="no folder has the empty name"):
            write()
    with pytest.raises(ConfigError, match="output: no folder has the empty name"):
        ms.RunConfig.read(None, ["output=' '"])
    assert not list(tmp_path.iterdir())


def test_a_batch_that_this_machine_cannot_hold_is_refused_before_any_row_is_read() -> None:
    with pytest.raises(ConfigError, match=r"training.batch_size: 1,000,000,000,000 rows take [0-9,]+ GiB"):
        ms.fit(ms.TopKSAE(6, 8, k=2), X, config=ms.TrainingConfig(batch_size=10**12), progress=False)


def test_where_nothing_says_how_much_memory_there_is_no_batch_is_refused_for_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delattr("os.sysconf")  # as on Windows
    trained = ms.fit(ms.TopKSAE(6, 8, k=2), X, tokens=64, config=ms.TrainingConfig(batch_size=32), progress=False)
    assert trained.history
