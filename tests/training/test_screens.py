"""Training with each screen: it comes to the same quality as without, and a run goes on to the same bits."""

from __future__ import annotations

import statistics

import pytest
import torch
from torch import Tensor
from torch.nn.functional import normalize

import monosem as ms
from monosem import kernels
from monosem.errors import ConfigError

CPU = torch.device("cpu")
SCREENS: list[kernels.Precision] = [name for name in ("bfloat16", "int8") if kernels.knows(name, CPU)]
ROWS, D, N, K = 512, 48, 512, 8


def batch(seed: int) -> Tensor:
    """Sums of eight of 300 directions, and noise."""
    generator = torch.Generator().manual_seed(seed)
    directions = normalize(torch.randn(300, D, generator=torch.Generator().manual_seed(0)), dim=1)
    places = torch.randint(0, 300, (ROWS, K), generator=generator)
    sizes = torch.rand(ROWS, K, generator=generator) + 0.5
    noise = 0.05 * torch.randn(ROWS, D, generator=generator)
    return (directions[places] * sizes[..., None]).sum(1) + noise


def trainer_of(kind: str, screen: kernels.Precision, seed: int) -> ms.Trainer:
    torch.manual_seed(seed)
    sae = {"topk": ms.TopKSAE, "batchtopk": ms.BatchTopKSAE}[kind](D, N, k=K)
    sae.initialise(batch(10_000 + seed))
    trainer = ms.Trainer(sae, ms.TrainingConfig(batch_size=ROWS, lr=3e-3))
    trainer.screen = screen
    return trainer


@pytest.mark.parametrize("screen", SCREENS)
@pytest.mark.parametrize("kind", ["topk", "batchtopk"])
def test_a_run_goes_on_to_the_same_bits(kind: str, screen: kernels.Precision) -> None:
    """The screen is among what a checkpoint holds, and is taken up by a trainer that would have chosen another."""
    through, halted = trainer_of(kind, screen, 0), trainer_of(kind, screen, 0)
    for i in range(12):
        through.step(batch(i))
    for i in range(6):
        halted.step(batch(i))
    resumed = trainer_of(kind, "float32", 1)
    resumed.sae.load_state_dict(halted.sae.state_dict())
    resumed.load_state(*halted.state())
    assert resumed.screen == screen
    for i in range(6, 12):
        resumed.step(batch(i))
    for name, tensor in through.sae.state_dict().items():
        assert torch.equal(tensor, resumed.sae.state_dict()[name]), name


@pytest.mark.parametrize("kind", ["topk", "batchtopk"])
def test_over_five_seeds_unexplained_variance_is_that_of_float32(kind: str) -> None:
    """The mean difference of pairs that share a seed lies within 99.9 % of what the seeds' own spread allows."""
    held = batch(77_777)

    def unexplained(screen: kernels.Precision, seed: int) -> float:
        trainer = trainer_of(kind, screen, seed)
        for i in range(40):
            trainer.step(batch(100 * seed + i))
        error = held - trainer.sae(held).reconstruction.detach()
        return float(error.pow(2).sum() / (held - held.mean(0)).pow(2).sum())

    plain = [unexplained("float32", seed) for seed in range(5)]
    allowed = 8.61 * statistics.stdev(plain) / 5**0.5  # Student's t, four degrees of freedom
    assert allowed < 0.1 * statistics.mean(plain)  # so that the comparison says something
    for screen in SCREENS:
        found = [unexplained(screen, seed) for seed in range(5)]
        assert abs(statistics.mean(found) - statistics.mean(plain)) <= allowed


@pytest.mark.parametrize("named", ["float32", *SCREENS])
def test_a_run_s_description_may_name_the_precision(named: kernels.Precision) -> None:
    config = ms.TrainingConfig.model_validate({"matmul": named, "batch_size": ROWS})
    trainer = ms.Trainer(ms.TopKSAE(D, N, k=K), config)
    assert trainer.screen == named
    state, tensors = trainer_of("topk", "float32", 0).state()
    trainer.load_state(state, tensors)
    assert trainer.screen == named, "what is named goes before what the run had found"


def test_a_precision_that_the_processor_has_not_is_refused_in_words(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernels, "knows", lambda precision, device: precision == "float32")
    with pytest.raises(ConfigError, match=r"training\.matmul: this processor has no products of int8: choose auto"):
        ms.Trainer(ms.TopKSAE(D, N, k=K), ms.TrainingConfig(matmul="int8"))
    with pytest.raises(ValueError, match=r"'auto', 'float32', 'bfloat16', 'int8' or 'float8'"):
        ms.TrainingConfig.model_validate({"matmul": "int4"})
