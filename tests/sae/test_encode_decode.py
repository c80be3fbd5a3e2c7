"""What all architectures share: raw activations in, raw reconstructions out; values and gradients as in the formula."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from monosem.codes import SparseCodes
from monosem.errors import ConfigError, DataError
from monosem.kernels import reference, sparse
from monosem.sae import SAE, ReLUSAE, TopKSAE

MakeSAE = Callable[..., SAE]
CASES = [pytest.param(TopKSAE, {"k": 4}, id="topk"), pytest.param(ReLUSAE, {}, id="relu")]
KINDS = ["centre_scale", "centre", "scale", "none"]


@pytest.fixture(params=["sparse", "dense"], autouse=True)
def evaluation(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sparse, "DENSE_ABOVE", 2.0 if request.param == "sparse" else -1.0)


def raw(*shape: int, seed: int = 1) -> Tensor:
    return 3 * torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) + 1


def by_hand(sae: SAE, x: Tensor) -> tuple[Tensor, Tensor]:
    """Dense codes and reconstruction, from the formula."""
    mean, scale = sae.transform.mean, sae.transform.scale
    pre = ((x - mean) * scale - sae.b_dec) @ sae.W_enc.T + sae.b_enc
    codes = torch.relu(reference.keep_top_k(pre, sae.k) if isinstance(sae, TopKSAE) else pre)
    return codes, (codes @ sae.W_dec + sae.b_dec) / scale + mean


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("cls", "options"), CASES)
def test_encode_and_decode_equal_the_formula_on_raw_activations(
    cls: type[SAE], options: dict[str, int], kind: str, make_sae: MakeSAE
) -> None:
    sae = make_sae(cls, transform=kind, **options)
    x = raw(6, 5, 7)
    codes, reconstruction = by_hand(sae, x)
    assert torch.allclose(sae.encode(x).to_dense(), codes, rtol=0, atol=1e-12)
    assert torch.allclose(sae.decode(sae.encode(x)), reconstruction, rtol=0, atol=1e-12)
    assert torch.equal(sae(x).reconstruction, sae.decode(sae(x).codes))
    assert torch.allclose(sae.decode(SparseCodes.from_dense(codes)), reconstruction, rtol=0, atol=1e-12)


@pytest.mark.parametrize(("cls", "options"), CASES)
def test_every_gradient_through_the_sae_equals_dense_autograd(
    cls: type[SAE], options: dict[str, int], make_sae: MakeSAE, assert_near: Callable[[Tensor, Tensor], None]
) -> None:
    grads: list[list[Tensor]] = []
    weights = raw(30, 7, seed=2), raw(30, 20, seed=3)
    for function in (lambda sae, x: (sae(x).codes.to_dense(), sae(x).reconstruction), by_hand):
        sae, x = make_sae(cls, **options), raw(30, 7).requires_grad_()
        codes, reconstruction = function(sae, x)
        loss = (reconstruction * weights[0]).sum() + (codes * weights[1]).sum()
        grads.append(list(torch.autograd.grad(loss, [x, *sae.parameters()])))
    for found, expected in zip(*grads, strict=True):
        assert_near(found, expected)


@pytest.mark.parametrize("shape", [(7,), (1, 7), (0, 7), (3, 7), (2, 0, 7), (2, 3, 4, 7)])
@pytest.mark.parametrize(("cls", "options"), CASES)
def test_any_batch_shape_is_kept(
    cls: type[SAE], options: dict[str, int], shape: tuple[int, ...], make_sae: MakeSAE
) -> None:
    sae, x = make_sae(cls, **options), raw(*shape)
    codes, reconstruction = by_hand(sae, x)
    out = sae(x)
    assert out.codes.shape == codes.shape
    assert out.reconstruction.shape == x.shape
    assert torch.allclose(out.reconstruction, reconstruction, rtol=0, atol=1e-12)


@pytest.mark.parametrize(("cls", "options"), CASES)
def test_a_row_does_not_depend_on_its_batch_mates(cls: type[SAE], options: dict[str, int], make_sae: MakeSAE) -> None:
    sae, x = make_sae(cls, **options), raw(600, 7)
    together = sae(x)
    order = torch.randperm(600, generator=torch.Generator().manual_seed(0))
    shuffled = sae(x[order])
    assert torch.allclose(shuffled.codes.to_dense(), together.codes.to_dense()[order], rtol=0, atol=1e-12)
    for row in (0, 1, 300, 599):
        alone = sae(x[row])
        assert torch.allclose(alone.codes.to_dense(), together.codes[row].to_dense(), rtol=0, atol=1e-12)
        assert torch.allclose(alone.reconstruction, together.reconstruction[row], rtol=0, atol=1e-12)


@pytest.mark.parametrize(("cls", "options"), CASES)
def test_inputs_of_another_dtype_are_taken_in_that_of_the_sae(
    cls: type[SAE], options: dict[str, int], make_sae: MakeSAE
) -> None:
    sae, x = make_sae(cls, **options, dtype=torch.float32), raw(9, 7)
    for dtype in (torch.float16, torch.bfloat16, torch.float64):
        given = x.to(dtype)
        assert torch.equal(sae(given).reconstruction, sae(given.float()).reconstruction)


def test_wrong_widths_are_refused(make_sae: MakeSAE) -> None:
    sae, other = make_sae(TopKSAE, k=4), make_sae(TopKSAE, n_latents=30, k=4)
    with pytest.raises(DataError, match="width 7"):
        sae.encode(raw(3, 8))
    with pytest.raises(DataError, match="20 latents"):
        sae.decode(other.encode(raw(3, 7)))


@pytest.mark.parametrize("x", [raw(3, 7).numpy(), raw(3, 7).tolist(), raw(3, 7) * 1j], ids=["array", "list", "complex"])
def test_what_is_no_tensor_of_real_numbers_is_refused(x: Any, make_sae: MakeSAE) -> None:
    for call in (make_sae(TopKSAE, k=4).encode, make_sae(TopKSAE, k=4)):
        with pytest.raises(DataError, match="this SAE reads a tensor of real numbers, got"):
            call(x)


@pytest.mark.parametrize("transform", KINDS)
@pytest.mark.parametrize(("cls", "options"), CASES)
def test_a_new_sae_gives_back_the_energy_of_its_inputs(cls: type[SAE], options: dict[str, int], transform: str) -> None:
    sae, x = cls(7, 40, transform=transform, dtype=torch.float64, **options), raw(800, 7)  # pyright: ignore
    sae.initialise(x)
    out = sae.transform(sae(x).reconstruction)
    assert out.pow(2).sum().item() == pytest.approx(sae.transform(x).pow(2).sum().item(), rel=1e-9)
    assert torch.allclose(sae.W_dec.norm(dim=-1), torch.ones(40, dtype=torch.float64))
    assert torch.allclose(sae.W_enc / sae.W_enc.norm(dim=-1, keepdim=True), sae.W_dec)


def test_the_seed_decides_the_weights() -> None:
    weights = [TopKSAE(7, 40, k=3, seed=seed).W_dec for seed in (0, 0, 1)]
    assert torch.equal(weights[0], weights[1])
    assert not torch.allclose(weights[0], weights[2])


def test_sizes_below_one_are_refused() -> None:
    with pytest.raises(ConfigError, match="d_in must be a whole number of at least 1"):
        ReLUSAE(0, 4)
    with pytest.raises(ConfigError, match="n_latents must be a whole number of at least 1"):
        ReLUSAE(4, 0)


def test_a_subclass_of_an_architecture_does_not_take_its_place_in_files() -> None:
    class Special(TopKSAE):
        pass

    assert SAE.registry["topk"] is TopKSAE
    assert Special(7, 9, k=2).architecture == "topk"
