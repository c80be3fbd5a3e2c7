"""SAEs of random weights, and what it means that two tensors are equal."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import settings

from monosem.kernels import sparse
from monosem.sae import SAE, TrainingContext
from monosem.sae.weights import row_norms

settings.register_profile("monosem", max_examples=40, deadline=None, derandomize=True)
settings.load_profile("monosem")


@pytest.fixture
def make_sae() -> Callable[..., SAE]:
    """A factory of SAEs in float64 in which everything is random: every weight, every bias, the input transform."""

    def make(cls: type[SAE], d_in: int = 7, n_latents: int = 20, *, seed: int = 0, **options: Any) -> SAE:
        sae = cls(d_in, n_latents, **{"dtype": torch.float64, **options})
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for parameter in sae.parameters():
                parameter.copy_(0.5 * torch.randn(parameter.shape, generator=generator, dtype=torch.float64))
            for parameter in (sae.get_parameter(name) for name in sae.unit_rows):
                parameter.flatten(1).div_(row_norms(parameter.flatten(1)))
            if sae.transform.kind != "none":
                for transform in {sae.transform, sae.target_transform}:
                    transform.mean.copy_(torch.randn(transform.mean.shape, generator=generator))
                    transform.scale.fill_(0.7)
                    transform.fitted = True
        return sae

    return make


@pytest.fixture
def assert_near() -> Callable[..., None]:
    """Asserts that two tensors differ by no more than a share of the second one's maximum."""

    def check(found: torch.Tensor, expected: torch.Tensor, share: float | None = None) -> None:
        share = share if share is not None else (1e-10 if expected.dtype == torch.float64 else 1e-5)
        assert found.shape == expected.shape
        if expected.numel():
            assert (found - expected).abs().max().item() <= share * expected.abs().max().item()

    return check


@pytest.fixture(params=["sparse", "dense"])
def evaluation(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Each test twice: with only the selected entries evaluated, and with all."""
    monkeypatch.setattr(sparse, "DENSE_ABOVE", 2.0 if request.param == "sparse" else -1.0)
    return request.param


@pytest.fixture
def assert_same_loss(assert_near: Callable[..., None]) -> Callable[..., None]:
    """Asserts that training_loss is a formula (loss, its terms, codes), in value and in all gradients."""

    def check(
        sae: SAE, formula: Callable[..., tuple[torch.Tensor, dict[str, torch.Tensor], torch.Tensor]], rows: int = 200
    ) -> None:
        generator = torch.Generator().manual_seed(1)
        x, other = (torch.randn(rows, d, generator=generator, dtype=torch.float64) for d in (sae.d_in, sae.d_out))
        x, target = x.to(sae.W_enc.dtype), (x if sae.subtract_b_dec else other).to(sae.W_enc.dtype)
        found = sae.training_loss(x, target, TrainingContext())
        expected, terms, codes = formula(sae, x, target)
        assert_near(found.loss, expected)
        for name, term in terms.items():
            assert_near(found.terms[name], term)
        assert torch.equal(found.fired, (codes > 0).sum(0))
        assert 0 < found.fired.sum() < codes.numel()
        grads = [torch.autograd.grad(loss, list(sae.parameters())) for loss in (found.loss, expected)]
        for grad, expected_grad in zip(*grads, strict=True):
            assert_near(grad, expected_grad)
            assert grad.any()

    return check


@pytest.fixture(scope="session")
def planted() -> Callable[..., tuple[torch.Tensor, torch.Tensor]]:
    """A factory of planted dictionaries: unit directions, and rows that are sparse positive sums of them."""

    def make(d: int = 16, features: int = 24, rows: int = 40_000, on: float = 0.08, seed: int = 0) -> Any:
        generator = torch.Generator().manual_seed(seed)
        directions = torch.nn.functional.normalize(torch.randn(features, d, generator=generator), dim=1)
        strength = 0.5 + torch.rand(rows, features, generator=generator)
        return directions, (strength * (torch.rand(rows, features, generator=generator) < on)) @ directions

    return make
