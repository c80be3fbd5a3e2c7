"""The dense formula: equal to the sparse engine, and exported by PyTorch with any number of rows."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from written_saes import SAES, made

import monosem as ms
from monosem.errors import ConfigError

REFUSED = {"switch", "matching pursuit", "cross-layer", "cross-layer batchtopk"}


@torch.no_grad()
@pytest.mark.parametrize("name", SAES)
def test_it_is_the_sae_or_is_refused(name: str) -> None:
    sae, x = made(name)
    if name in REFUSED:
        with pytest.raises(ConfigError, match="no formula of one matrix"):
            ms.dense(sae)
        return
    reconstruction, codes = ms.dense(sae)(x)
    out = sae(x)
    torch.testing.assert_close(codes, out.codes.to_dense(), rtol=1e-5, atol=1e-4)
    torch.testing.assert_close(reconstruction, out.reconstruction, rtol=1e-5, atol=1e-4)
    assert 0 < (codes > 0).sum() < codes.numel()


@torch.no_grad()
@pytest.mark.parametrize("name", ["topk, centred and scaled", "jumprelu skip transcoder"])
def test_what_pytorch_exports_is_the_same_for_any_number_of_rows(name: str, tmp_path: Path) -> None:
    sae, x = made(name)
    program = torch.export.export(ms.dense(sae), (x,), dynamic_shapes=({0: torch.export.Dim("rows", min=2)},))
    torch.export.save(program, tmp_path / "sae.pt2")
    again = torch.export.load(tmp_path / "sae.pt2").module()
    for rows in (x, x[:5]):
        reconstruction, codes = again(rows)
        torch.testing.assert_close(codes, sae.encode(rows).to_dense(), rtol=1e-5, atol=1e-4)
        torch.testing.assert_close(reconstruction, sae(rows).reconstruction, rtol=1e-5, atol=1e-4)
