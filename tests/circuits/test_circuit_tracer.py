"""The same model, transcoders and prompt in circuit-tracer and here: equal edges wherever its definition is right."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from beside_circuit_tracer import Beside, beside, random_coder, read_case, run_theirs, write_case

import monosem as ms

PEERS = os.environ.get("MONOSEM_PEERS")
FROZEN = Path(__file__).parent / "data" / "beside_circuit_tracer"
"""Made by circuit-tracer 0.5.0 on TransformerLens 2.18: a GPT-2 of 2 layers, skip transcoders of 14 latents, random."""


def compared(folder: Path) -> Beside:
    model, coders, task = read_case(folder)
    return beside(ms.trace(model, coders, task["tokens"], task["targets"], progress=False), folder)


def agrees(both: Beside) -> None:
    """All edges but those from errors at the first position, which theirs sets to 0."""
    left_out = (both.kinds == "error") & (both.positions == 0)
    assert both.difference(~left_out) <= 1e-5
    assert not both.theirs[:, left_out].any()
    assert both.difference(left_out) > 0.01
    for kind in ("feature", "error", "token"):
        assert (both.theirs[:, both.kinds == kind] != 0).sum() > 20


def test_every_edge_is_theirs() -> None:
    agrees(compared(FROZEN))


def test_an_edge_that_were_another_would_be_seen() -> None:
    both = compared(FROZEN)
    row = int(np.abs(both.ours).max(1).argmax())
    at = int(np.abs(both.ours[row] * (both.kinds == "feature")).argmax())
    both.ours[row, at] *= 1.001
    with pytest.raises(AssertionError):
        agrees(both)


@pytest.mark.skipif(PEERS is None, reason="make interop sets MONOSEM_PEERS, the folder of the libraries' environments")
@pytest.mark.parametrize("seed", [1, 2])
def test_the_real_library_makes_the_same_edges_now(seed: int, tmp_path: Path) -> None:
    python = Path(PEERS or "") / "transformer_lens_2" / "bin" / "python"
    if not python.exists():
        pytest.skip("transformer_lens_2 is not installed")
    config = transformers.GPT2Config(vocab_size=40, n_embd=24, n_layer=3, n_head=4, n_positions=16, bos_token_id=1)
    module = transformers.GPT2LMHeadModel(config).eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            parameter.copy_(0.25 * torch.randn(parameter.shape, generator=generator))
            if parameter.ndim == 1 and name.endswith("weight"):
                parameter.add_(1)
    coders = [random_coder(layer, 24, 30) for layer in range(3)]
    tokens = [1, *torch.randint(2, 40, (9,), generator=generator).tolist()]
    write_case(tmp_path, module, coders, tokens, [7, 3, 11], features=10_000, batch=32)
    run_theirs(python, tmp_path)
    agrees(compared(tmp_path))
