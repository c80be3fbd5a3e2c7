"""Surgery: folding changes units and nothing else; pruning takes latents away and leaves the others as they are."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from monosem.errors import ConfigError
from monosem.sae import (
    SAE,
    BatchTopKSAE,
    InputTransform,
    MatryoshkaSAE,
    ReLUSAE,
    TopKSAE,
    fold,
    load_sae,
    prune,
    unfold,
)

MakeSAE = Callable[..., SAE]
Near = Callable[..., None]
CASES = [
    pytest.param(TopKSAE, {"k": 4}, id="topk"),
    pytest.param(TopKSAE, {"k": 4, "d_out": 5}, id="transcoder"),
    pytest.param(BatchTopKSAE, {"k": 4}, id="batchtopk"),
    pytest.param(MatryoshkaSAE, {"k": 4}, id="matryoshka"),
    pytest.param(ReLUSAE, {}, id="relu"),
    pytest.param(ReLUSAE, {"d_out": 5}, id="relu transcoder"),
    pytest.param(ReLUSAE, {"transform": "none"}, id="relu without transform"),
]


@pytest.fixture
def x() -> Tensor:
    return 3 * torch.randn(50, 7, generator=torch.Generator().manual_seed(1), dtype=torch.float64) + 1


def make(make_sae: MakeSAE, cls: type[SAE], options: dict[str, Any]) -> SAE:
    sae = make_sae(cls, **options)
    if isinstance(sae, BatchTopKSAE):
        sae.running_threshold.fill_(0.2)
        sae.threshold_weight.fill_(0.5)
    return sae


@pytest.mark.parametrize("norms", [True, False])
@pytest.mark.parametrize(("cls", "options"), CASES)
def test_a_folded_sae_reads_and_writes_raw_activations_as_before(
    cls: type[SAE], options: dict[str, Any], norms: bool, x: Tensor, make_sae: MakeSAE, assert_near: Near
) -> None:
    sae = make(make_sae, cls, options)
    if not sae.subtract_b_dec:
        sae.target_transform.scale.fill_(1.3)
    before, factor = sae(x), sae.W_dec.norm(dim=1) / sae.target_transform.scale
    folded = fold(sae, norms=norms)
    assert folded.transform.kind == folded.target_transform.kind == "none"
    after = folded(x)
    assert_near(after.reconstruction.detach(), before.reconstruction.detach())
    codes = before.codes.to_dense().detach() * (factor.detach() if norms else 1)
    assert_near(after.codes.to_dense().detach(), codes)
    assert sae.transform.kind == options.get("transform", "centre_scale")
    if norms:
        assert_near(folded.W_dec.norm(dim=1).detach(), torch.ones(sae.n_latents, dtype=torch.float64))


@pytest.mark.parametrize(("cls", "options"), CASES)
def test_unfold_is_the_reverse_of_fold(
    cls: type[SAE], options: dict[str, Any], x: Tensor, make_sae: MakeSAE, assert_near: Near
) -> None:
    sae = make(make_sae, cls, options)
    again = unfold(fold(sae, norms=False), sae.transform, sae.target_transform, norms=False)
    for name, tensor in sae.state_dict().items():
        assert_near(again.state_dict()[name], tensor)
    assert_near(again(x).reconstruction.detach(), sae(x).reconstruction.detach())


def test_an_sae_of_raw_activations_can_be_brought_behind_a_transform(
    x: Tensor, make_sae: MakeSAE, assert_near: Near
) -> None:
    sae = make_sae(ReLUSAE, transform="none")
    transform = InputTransform(7, dtype=torch.float64)
    with pytest.raises(ConfigError, match="not fitted"):
        unfold(sae, transform)
    transform.fit(x)
    behind = unfold(sae, transform)
    assert_near(behind(x).reconstruction.detach(), sae(x).reconstruction.detach())
    assert_near(behind.W_dec.norm(dim=1).detach(), torch.ones(20, dtype=torch.float64))


def test_norms_of_latents_that_compete_are_not_folded(make_sae: MakeSAE) -> None:
    sae = make_sae(TopKSAE, k=4)
    with torch.no_grad():
        sae.W_dec[0] *= 2
    with pytest.raises(ConfigError, match="norms=False"):
        fold(sae)
    fold(sae, norms=False)


def test_a_folded_sae_is_saved_and_loaded(x: Tensor, make_sae: MakeSAE, tmp_path: Path) -> None:
    folded = fold(make(make_sae, BatchTopKSAE, {"k": 4}))
    folded.save(tmp_path)
    assert torch.equal(load_sae(tmp_path)(x).reconstruction, folded(x).reconstruction)


# Pruning ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("cls", "options"),
    [
        (ReLUSAE, {}),
        (ReLUSAE, {"d_out": 5}),
        (BatchTopKSAE, {"k": 4}),
        (MatryoshkaSAE, {"k": 4, "widths": [3, 12, 20]}),
    ],
)
def test_latents_that_stay_have_the_codes_that_they_had(
    cls: type[SAE], options: dict[str, Any], x: Tensor, make_sae: MakeSAE, assert_near: Near, tmp_path: Path
) -> None:
    sae = make(make_sae, cls, options)
    keep = torch.tensor([1, 3, 4, 11, 13, 14, 19])
    mask = torch.zeros(20, dtype=torch.bool)
    mask[keep] = True
    small = prune(sae, mask)
    assert small.n_latents == 7
    codes = sae.encode(x).select(keep)
    assert_near(small.encode(x).to_dense().detach(), codes.to_dense().detach())
    kept = sae.encode(x).to_dense() * mask
    raw = sae.target_transform.inverse(kept @ sae.W_dec + sae.b_dec)
    assert_near(small(x).reconstruction.detach(), raw.detach())
    assert torch.equal(prune(sae, keep.tolist()).W_enc, small.W_enc)
    if isinstance(small, MatryoshkaSAE):
        assert small.widths == [1, 4, 7]
    small.save(tmp_path)
    assert torch.equal(load_sae(tmp_path)(x).reconstruction, small(x).reconstruction)


def test_with_a_fixed_k_latents_that_never_fire_can_go(x: Tensor, make_sae: MakeSAE) -> None:
    sae = make_sae(TopKSAE, k=4)
    with torch.no_grad():
        sae.b_enc[5:12] = -100
    fired = sae.encode(x).firing_counts() > 0
    assert 4 < fired.sum() < 14
    small = prune(sae, fired)
    assert torch.allclose(small(x).reconstruction, sae(x).reconstruction, rtol=0, atol=1e-12)


def test_k_is_cut_to_the_latents_that_are_left(make_sae: MakeSAE) -> None:
    assert prune(make_sae(TopKSAE, k=4), [0, 5]).settings["k"] == 2


@pytest.mark.parametrize("keep", [[], [20], [-1], torch.ones(19, dtype=torch.bool)])
def test_only_latents_that_there_are_can_be_kept(keep: Any, make_sae: MakeSAE) -> None:
    with pytest.raises(ConfigError, match="keep"):
        prune(make_sae(ReLUSAE), keep)
