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
    Crosscoder,
    GatedSAE,
    InputTransform,
    JumpReLUSAE,
    MatryoshkaSAE,
    ProLUSAE,
    ReLUSAE,
    SkipTranscoder,
    SwitchSAE,
    TopKSAE,
    convert,
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
    pytest.param(GatedSAE, {"d_out": 5}, id="gated transcoder"),
    pytest.param(SwitchSAE, {"k": 2, "n_experts": 4, "d_out": 5}, id="switch transcoder"),
    pytest.param(SkipTranscoder, {"k": 4, "d_out": 5}, id="skip transcoder"),
]
WHITENED = [
    pytest.param(cls, options, kind, id=f"{cls.architecture} {' '.join(options)} {kind}")
    for kind in ("whiten", "whiten_pca")
    for cls, options in [
        (TopKSAE, {"k": 4}),
        (BatchTopKSAE, {"k": 4}),
        (SwitchSAE, {"k": 2, "n_experts": 4}),
        (JumpReLUSAE, {}),
        (GatedSAE, {}),
        (ProLUSAE, {}),
        (SkipTranscoder, {"k": 4, "d_out": 5}),
    ]
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


@pytest.mark.parametrize(("cls", "options", "kind"), WHITENED)
def test_whitening_folds_exactly_and_changes_no_selection(
    cls: type[SAE], options: dict[str, Any], kind: Any, x: Tensor, make_sae: MakeSAE, assert_near: Near
) -> None:
    sae = make(make_sae, cls, {**options, "transform": kind})
    mixed = x @ torch.randn(7, 7, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    sae.fit_transforms(mixed, None if sae.subtract_b_dec else mixed[:, :5] ** 2)
    folded = fold(sae)
    before, after = sae(mixed), folded(mixed)
    assert_near(after.reconstruction.detach(), before.reconstruction.detach())
    assert torch.equal(after.codes.to_dense() > 0, before.codes.to_dense() > 0)
    assert_near(fold(sae, norms=False).encode(mixed).to_dense().detach(), before.codes.to_dense().detach())
    if not sae.latents_compete:
        assert_near(folded.W_dec.norm(dim=1).detach(), torch.ones(20, dtype=torch.float64))
    again = unfold(folded, sae.transform, sae.target_transform)
    assert_near(again(mixed).reconstruction.detach(), before.reconstruction.detach(), 1e-9)
    assert torch.equal(again.encode(mixed).to_dense() > 0, before.codes.to_dense() > 0)


def test_a_map_that_is_another_for_every_row_is_refused(make_sae: MakeSAE) -> None:
    with pytest.raises(ConfigError, match="layer_norm"):
        fold(make_sae(ReLUSAE, transform="layer_norm"))
    with pytest.raises(ConfigError, match="layer_norm"):
        unfold(make_sae(ReLUSAE, transform="none"), InputTransform(7, "layer_norm"))


def test_what_has_no_such_sae_is_refused_with_what_serves_instead(x: Tensor, make_sae: MakeSAE) -> None:
    with pytest.raises(ConfigError, match="convert"):
        fold(make_sae(ReLUSAE, tied=True))
    with pytest.raises(ConfigError, match="convert"):
        fold(make_sae(ProLUSAE, d_out=5))
    crosscoder = make_sae(Crosscoder, k=4)
    crosscoder.transform.scale[0] = 2
    with pytest.raises(ConfigError, match="decoder_directions"):
        fold(crosscoder)
    with pytest.raises(ConfigError, match="width 5"):
        unfold(make_sae(ReLUSAE, transform="none"), fitted(5))
    for exact in (convert(make_sae(ReLUSAE, tied=True), "jumprelu"), convert(make_sae(ProLUSAE, d_out=5), "jumprelu")):
        difference = fold(exact)(x).reconstruction - exact(x).reconstruction
        assert difference.abs().max() < 1e-9


def fitted(width: int) -> InputTransform:
    transform = InputTransform(width, dtype=torch.float64)
    transform.fit(torch.randn(50, width, generator=torch.Generator().manual_seed(0), dtype=torch.float64))
    return transform


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
        fold(sae, norms=True)
    for folded in (fold(sae), fold(sae, norms=False)):
        assert folded.W_dec[0].norm() > 1.9 * folded.W_dec[1].norm()


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
