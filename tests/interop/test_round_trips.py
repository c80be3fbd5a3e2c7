"""What is written for another library comes back: to the bit where its files hold it as it is."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from test_writers import FORMULAS, HELD, WITH_FOLD
from written_saes import SAES, made

import monosem as ms
from monosem.interop.export import Format
from monosem.interop.hook import hook_of, model_of


@torch.no_grad()
@pytest.mark.parametrize("to", FORMULAS)
def test_what_is_written_for_another_library_is_read_back(to: Format, tmp_path: Path) -> None:
    for name in sorted(HELD[to] | WITH_FOLD[to], key=list(SAES).index):
        sae, x = made(name)
        back = ms.load_sae(ms.export_sae(sae, tmp_path / name / "layers.2", to, fold=True))
        ours, found = sae(x), back(x)
        pairs = (
            (found.reconstruction, ours.reconstruction),
            (found.codes.to_dense(), ours.codes.to_dense()),
        )
        for theirs, own in pairs:
            if name in HELD[to]:
                assert torch.equal(theirs, own), f"{to}: {name}"
            assert (theirs - own).abs().max() <= 1e-5 * own.abs().max(), f"{to}: {name}"


@pytest.mark.parametrize(
    ("theirs", "ours"),
    [
        ("blocks.3.hook_resid_post", "resid_post.3"),
        ("blocks.3.attn.hook_z", "attn_z.3"),
        ("layers.3", "resid_post.3"),
        ("model.layers.3:output", "resid_post.3"),
        ("transformer.h.3:input", "resid_pre.3"),
        ("layers.0.mlp", "layers.0.mlp"),
        ("embed_tokens", "embed_tokens"),
        (None, None),
    ],
)
def test_hook_points_have_our_names_where_every_model_family_has_them(theirs: str | None, ours: str | None) -> None:
    assert hook_of(theirs) == ours


@pytest.mark.parametrize(
    ("theirs", "ours"),
    [
        ("gpt2-small", "openai-community/gpt2"),
        ("pythia-70m-deduped", "EleutherAI/pythia-70m-deduped"),
        ("gemma-2-2b", "google/gemma-2-2b"),
        ("meta-llama/Llama-3.1-8B", "meta-llama/Llama-3.1-8B"),
        ("bundled", "bundled"),
        ("", None),
        (7, None),
    ],
)
def test_models_have_their_names_on_the_hub(theirs: object, ours: str | None) -> None:
    assert model_of(theirs) == ours
