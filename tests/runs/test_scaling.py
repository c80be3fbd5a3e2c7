"""Sweeps of width and tokens: from one pass, gone on with after a kill, refused before work where need be."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from monosem.activations import VectorActivations
from monosem.errors import ConfigError, MismatchError
from monosem.runs import RunConfig, Sweep, run_scaling, scaling
from monosem.sae import TopKSAE, load_sae
from monosem.synthetic import PlantedDictionary
from monosem.training import TrainingConfig, train

WIDTHS, TOKENS = [8, 16, 32], [1024, 2048, 4096]
CONFIG = TrainingConfig(batch_size=256, checkpoint_minutes=60)


@pytest.fixture(scope="module")
def rows() -> torch.Tensor:
    truth = PlantedDictionary(32, 12, l0=3, noise=0.05, seed=0)
    return truth.sample(12_000).x


def sweep(rows: torch.Tensor, path: Path | None = None, **options: Any) -> Sweep:
    options = {"widths": WIDTHS, "tokens": TOKENS, "held_out": rows[10_000:], "config": CONFIG, **options}
    return scaling(
        lambda n: TopKSAE(12, n, k=3), VectorActivations(rows[:10_000]), path=path, progress=False, **options
    )


@pytest.fixture(scope="module")
def swept(rows: torch.Tensor, tmp_path_factory: pytest.TempPathFactory) -> tuple[Sweep, Path]:
    folder = tmp_path_factory.mktemp("sweep")
    return sweep(rows, folder), folder


def test_every_width_has_every_number_of_tokens_and_is_what_it_would_be_alone(
    swept: tuple[Sweep, Path], rows: torch.Tensor
) -> None:
    found, folder = swept
    assert list(found.saes) == [f"{n}x{d}" for n in WIDTHS for d in TOKENS]
    alone = TopKSAE(12, 16, k=3)
    train(alone, VectorActivations(rows[:10_000]), tokens=2048, config=CONFIG, progress=False)
    for sae in (found.saes["16x2048"], load_sae(folder / "16x2048" / "sae")):
        assert all(torch.equal(sae.state_dict()[key], tensor) for key, tensor in alone.state_dict().items())
    with torch.no_grad():
        out = alone(rows[10_000:])
    x = rows[10_000:].double()
    fvu = (x - out.reconstruction).pow(2).sum() / (x - x.mean(0)).pow(2).sum()
    assert found.losses["16x2048"].value == pytest.approx(float(fvu), rel=1e-5)
    assert found.law.losses[list(found.saes).index("16x2048")] == found.losses["16x2048"].value
    assert (folder / "scaling.svg").stat().st_size > 1000
    assert (folder / "scaling.json").is_file()


def test_the_same_call_again_is_the_same_law(swept: tuple[Sweep, Path], rows: torch.Tensor) -> None:
    again = sweep(rows, swept[1])
    assert np.array_equal(again.law.parameters, swept[0].law.parameters)
    assert np.array_equal(again.law.draws, swept[0].law.draws)


def test_compute_may_have_a_limit(rows: torch.Tensor) -> None:
    found = sweep(rows, most=32 * 2048, widths=[4, *WIDTHS])
    assert [name for name in found.saes if name.startswith("32x")] == ["32x1024", "32x2048"]
    assert found.law.compute.max() == 32 * 2048


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"widths": [8, 16]}, "needs 3 widths"),
        ({"tokens": [1024, 1024, 4096]}, "3 numbers of tokens"),
        ({"most": 9000}, "needs 3 widths"),
        ({"tokens": [1024, 4096, 20_000]}, "longest schedule has 20,000 tokens, and the data about 10,000"),
        ({"metric": "cosine"}, "'cosine' is none of"),
        ({"held_out": torch.zeros(5, 7)}, "rows of shape"),
    ],
)
def test_what_cannot_be_swept_is_refused_before_work(rows: torch.Tensor, options: dict[str, Any], says: str) -> None:
    with pytest.raises((ConfigError, MismatchError), match=says):
        sweep(rows, **options)


def test_a_description_of_several_dictionaries_is_refused(tmp_path: Path) -> None:
    config = RunConfig.of({"output": str(tmp_path / "run"), "grid": {"sae.k": [4, 8]}})
    with pytest.raises(ConfigError, match="leave out hooks, grid and dictionaries"):
        run_scaling(config)
    assert not (tmp_path / "run").exists()


def test_a_schedule_longer_than_the_text_is_refused_before_work(tmp_path: Path) -> None:
    config = RunConfig.of({"output": str(tmp_path / "run"), "tokens": 40_000_000})
    with pytest.raises(ConfigError, match=r"40,000,000 tokens, and the data about [4-9],"):
        run_scaling(config, progress=False)
    assert not list((tmp_path / "run").glob("*/sae"))


def arguments(rows: torch.Tensor, folder: Path, output: Path) -> list[str]:
    np.save(folder / "train.npy", rows[:10_000].numpy())
    np.save(folder / "test.npy", rows[10_000:].numpy())
    values = {
        "output": output,
        "vectors": folder / "train.npy",
        "evaluation.vectors": folder / "test.npy",
        "sae.k": 3,
        "training.batch_size": 256,
        "training.checkpoint_minutes": 0,
    }
    settings = [word for key, value in values.items() for word in ("--set", f"{key}={value}")]
    return ["scaling", *settings, "--widths", "8,16,32", "--tokens", "1024,2048,4096"]


def test_the_command_killed_on_the_way_goes_on_to_the_same_law(
    rows: torch.Tensor, tmp_path: Path, monosem: Callable[..., Any], swept: tuple[Sweep, Path], forks: Any
) -> None:
    words = arguments(rows, tmp_path, tmp_path / "run")
    process = forks("monosem", *words)
    process.until(lambda: list((tmp_path / "run").glob("32x4096/checkpoints/step_*")))
    process.kill()
    found = monosem(*words)
    assert found.code == 0, found.err
    assert "loss = floor + a (latents / 16)^-alpha" in found.out
    assert ("latents x tokens: " in found.out) != ("No recommendation: " in found.out)
    for name, sae in swept[0].saes.items():
        own = load_sae(tmp_path / "run" / name / "sae").state_dict()
        assert all(torch.equal(own[key], tensor) for key, tensor in sae.state_dict().items()), name
    assert monosem(*words).out == found.out  # nothing is trained or measured again


def test_the_command_says_in_a_line_what_is_wrong(monosem: Callable[..., Any], tmp_path: Path) -> None:
    output = f"output={tmp_path / 'run'}"
    assert "--widths: write whole numbers" in monosem("scaling", "--set", output, "--widths", "8,x").err
    assert "needs 3 widths" in monosem("scaling", "--set", output, "--widths", "8,16").err
