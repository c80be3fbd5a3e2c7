"""A graph of decoders that stay in their files is that of decoders in memory."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from family_models import FAMILY_MODELS, LAYERS, VOCABULARY, D
from safetensors.torch import save_file
from torch import Tensor

import monosem as ms
from monosem.models import SubjectModel
from monosem.sae import CrossLayerTranscoder

N = 40
TOKENS = torch.randint(3, VOCABULARY, (1, 9), generator=torch.Generator().manual_seed(1))
HOOKS = {
    "hooks": [f"mlp_in.{layer}" for layer in range(LAYERS)],
    "target_hooks": [f"mlp_out.{layer}" for layer in range(LAYERS)],
}


def written(folder: Path, model: SubjectModel) -> Path:
    """A set across layers whose latents are all off at the last three tokens, in another library's layout."""
    folder.mkdir()
    read = model.capture(TOKENS, HOOKS["hooks"])
    for layer, hook in enumerate(HOOKS["hooks"]):
        generator = torch.Generator().manual_seed(layer)

        def normal(*shape: int, generator: torch.Generator = generator) -> Tensor:
            return torch.randn(*shape, generator=generator)

        p = {"w_enc": normal(D, N), "b_enc": normal(N), "b_dec": normal(D), "w_dec": normal(N, LAYERS, D)}
        before = read[hook][0] @ p["w_enc"] + p["b_enc"]
        p["threshold"] = before[6:].amax(0).clamp_min(0) + 1e-3
        save_file(p, folder / f"params_layer_{layer}.safetensors")
    return folder


def test_lazy_decoders_make_the_same_graph_and_silent_tokens_at_the_end_have_no_features(tmp_path: Path) -> None:
    model = SubjectModel(FAMILY_MODELS["llama"].build().float(), None, "llama")
    folder, graphs, answers = written(tmp_path / "set", model), list[ms.Graph](), list[Tensor]()
    for lazy in (False, True):
        sae = ms.load_sae(folder, lazy=lazy)
        assert isinstance(sae, CrossLayerTranscoder)
        sae.metadata = sae.metadata.model_copy(update=HOOKS)
        sae.metadata.skip_first = 0
        graphs.append(ms.trace(model, sae, TOKENS, target=7, progress=False))
        x = torch.stack([value[0] for value in model.capture(TOKENS, HOOKS["hooks"]).values()], dim=1)
        with torch.no_grad():
            out = sae(x)
        answers.append(out.reconstruction)
        assert out.codes.l0()[6:].tolist() == [0, 0, 0]
        assert out.codes.l0()[:6].sum() > 10
        dense = out.codes.to_dense()
        for target in range(LAYERS):  # every layer's latents by the rows that write there, silent ones among them
            by_hand = sae.b_dec.detach().unflatten(0, sae.out_shape)[target].expand(9, -1)
            for layer in range(target + 1):
                own = slice(layer * N, (layer + 1) * N)
                by_hand = by_hand + dense[:, own] @ sae.decoder_of(layer).detach()[:, target - layer]
            torch.testing.assert_close(out.reconstruction[:, target], by_hand, rtol=1e-5, atol=1e-5)
    eager, lazily = graphs
    assert eager.n_features == lazily.n_features > 10
    assert eager.nodes.position[eager.nodes.kind == "feature"].max() < 6
    assert eager.nodes.ids() == lazily.nodes.ids()
    np.testing.assert_array_equal(eager.matrix().toarray(), lazily.matrix().toarray())
    assert torch.equal(*answers)
    assert eager.audit().largest_error <= 1e-5
