"""Conversion: another architecture, the same codes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from monosem.errors import ConfigError
from monosem.sae import SAE, BatchTopKSAE, TopKSAE, convert, prune_activations
from monosem.sae.convert import CONVERSIONS

MakeSAE = Callable[..., SAE]
EXACT = ["relu", "batchtopk", "matryoshka", "prolu"]
needs_jumprelu = pytest.mark.skipif("jumprelu" not in SAE.registry, reason="jumprelu is not there yet")


def make(make_sae: MakeSAE, architecture: str, **options: Any) -> SAE:
    if architecture not in SAE.registry:
        pytest.skip(f"{architecture} is not there yet")
    kind = SAE.registry[architecture]
    sae = make_sae(kind, 7, 20, **({"k": 4} if issubclass(kind, TopKSAE) else {}), **options)
    if isinstance(sae, BatchTopKSAE):
        sae.running_threshold.fill_(0.2)
        sae.threshold_weight.fill_(0.5)
    return sae


@needs_jumprelu
@pytest.mark.parametrize("options", [{}, {"d_out": 5}, {"dtype": torch.float32}])
@pytest.mark.parametrize("source", EXACT)
def test_codes_and_reconstructions_are_equal_to_the_bit(
    source: str, options: dict[str, Any], make_sae: MakeSAE
) -> None:
    sae = make(make_sae, source, **options)
    x = torch.randn(200, 7, generator=torch.Generator().manual_seed(1), dtype=sae.W_enc.dtype)
    new = convert(sae, "jumprelu")
    assert new.architecture == "jumprelu"
    found, expected = new(x), sae(x)
    assert 0 < expected.codes.l0().double().mean() < 20
    assert torch.equal(found.codes.to_dense(), expected.codes.to_dense())
    assert torch.equal(found.reconstruction, expected.reconstruction)


@needs_jumprelu
@pytest.mark.parametrize("log_scale", [0.0, 0.4])
def test_gated_is_jumprelu_up_to_rounding(log_scale: float, make_sae: MakeSAE) -> None:
    sae = make(make_sae, "gated")
    with torch.no_grad():
        sae.get_parameter("r_mag").mul_(log_scale)
    x = torch.randn(200, 7, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    found, expected = convert(sae, "jumprelu").encode(x).to_dense(), sae.encode(x).to_dense()
    assert ((expected > 0).sum(0) > 0).sum() > 10
    assert torch.allclose(found, expected, rtol=0, atol=1e-12)


@needs_jumprelu
def test_weak_activations_are_off_and_the_others_as_they_were(make_sae: MakeSAE) -> None:
    sae = make(make_sae, "relu")
    x = torch.randn(200, 7, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    before, after = sae.encode(x).to_dense(), prune_activations(sae, 0.5).encode(x).to_dense()
    assert torch.equal(after, torch.where(before > 0.5, before, 0))
    each = torch.linspace(0, 2, 20, dtype=torch.float64)
    assert torch.equal(prune_activations(sae, each).encode(x).to_dense(), torch.where(before > each, before, 0))


def test_what_is_not_equivalent_is_refused(make_sae: MakeSAE) -> None:
    with pytest.raises(ConfigError, match=r"topk cannot be converted to jumprelu; there are .*relu to jumprelu"):
        convert(make_sae(TopKSAE, k=4), "jumprelu")
    assert all(end == "jumprelu" for _, end in CONVERSIONS)
