"""What SAEBench's and SAELens's own functions make of our dictionary, model and tokens: frozen for the tests.

Run it in an environment that has both of them (`pip install sae-bench==0.6.0 sae-lens==6.54.12`) and monosem:

    python tests/evaluation/peers/benchmark_numbers.py

Their functions get what they ask for through three small stand-ins: a model that runs with their hooks, a dictionary
that gives dense codes, and a store that hands out the tokens which `tests/evaluation/test_peers_numbers.py` reads too.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import sae_bench.evals.core.main as saebench
import sae_lens.evals as saelens
import torch
from torch import Tensor
from torch.nn import functional as F

import monosem as ms
from monosem.activations import reopened
from monosem.codes import SparseCodes

DATA = Path(__file__).parents[2] / "data"
CONTEXTS, BATCH = 16, 4
HOOK, THEIR_HOOK = "resid_post.2", "blocks.2.hook_resid_post"


class TheirModel:
    """Our model, as TransformerLens has one."""

    def __init__(self, model: ms.SubjectModel) -> None:
        self.model = model

    def __call__(self, tokens: Tensor, return_type: str, loss_per_token: bool) -> tuple[Tensor, Tensor]:
        assert return_type == "both"
        assert loss_per_token
        logits = self.model(tokens).float()
        losses = F.cross_entropy(logits[:, :-1].flatten(0, 1), tokens[:, 1:].flatten(), reduction="none")
        return logits, losses.view(len(tokens), -1)

    def run_with_hooks(
        self, tokens: Tensor, *, fwd_hooks: list[tuple[str, Callable[..., Tensor]]], **options: Any
    ) -> tuple[Tensor, Tensor]:
        ((name, function),) = fwd_hooks
        assert name == THEIR_HOOK
        with self.model.edit({HOOK: lambda x, _: function(x, None)}):
            return self(tokens, **options)

    def run_with_cache(self, tokens: Tensor, *, names_filter: list[str], **_: Any) -> tuple[None, dict[str, Tensor]]:
        assert names_filter == [THEIR_HOOK]
        return None, {THEIR_HOOK: self.model.capture(tokens, [HOOK])[HOOK]}


class TheirSAE:
    """Our dictionary, as SAELens has one: dense codes, encoder (d, latents)."""

    def __init__(self, sae: ms.SAE) -> None:
        self.sae, self.device = sae, torch.device("cpu")
        self.W_enc, self.W_dec, self.b_enc = sae.W_enc.detach().T, sae.W_dec.detach(), sae.b_enc.detach()
        place = {"hook_name": THEIR_HOOK, "hook_head_index": None, "hook_layer": 2}
        self.cfg = SimpleNamespace(
            **place, d_sae=sae.n_latents, architecture_str="topk", metadata=SimpleNamespace(**place)
        )

    def encode(self, x: Tensor) -> Tensor:
        return self.sae.encode(x).to_dense()

    def decode(self, codes: Tensor) -> Tensor:
        return self.sae.decode(SparseCodes.from_dense(codes))


class TheirStore:
    """Our tokens, batch by batch."""

    def __init__(self, tokens: Tensor) -> None:
        self.batches = iter(tokens.split(BATCH))

    def get_batch_tokens(self, _: int) -> Tensor:
        return next(self.batches)


def of_library(library: Any, model: Any, sae: Any, tokens: Tensor, *scaler: Any) -> dict[str, float]:
    """Every number of one library, and of KL also that over the positions whose next token is known."""
    shared = {"n_batches": CONTEXTS // BATCH, "eval_batch_size_prompts": BATCH}
    found = library.get_downstream_reconstruction_metrics(
        sae, model, TheirStore(tokens), *scaler, compute_kl=True, compute_ce_loss=True, **shared
    )
    numbers, features = library.get_sparsity_and_variance_metrics(
        sae,
        model,
        TheirStore(tokens),
        *scaler,
        compute_l2_norms=True,
        compute_sparsity_metrics=True,
        compute_variance_metrics=True,
        compute_featurewise_density_statistics=True,
        model_kwargs={},
        **shared,
    )
    found |= numbers
    each = (
        library.get_recons_loss(sae, model, *scaler, tokens, compute_kl=True, compute_ce_loss=False)
        if scaler
        else (library.get_recons_loss(sae, model, tokens, TheirStore(tokens), compute_kl=True, compute_ce_loss=False))
    )
    found["kl_div_with_sae, next token known"] = float(each["kl_div_with_sae"][:, :-1].mean())
    weights = library.get_featurewise_weight_based_metrics(sae)
    found["encoder_decoder_cosine_sim, mean"] = float(torch.tensor(weights["encoder_decoder_cosine_sim"]).mean())
    if library is saebench:
        found |= saebench.calculate_misc_metrics({**features, **weights})
    return found


@torch.no_grad()
def main() -> None:
    model, sae = ms.load_model("bundled"), ms.load_sae(DATA / "demo_sae").float()
    sae.metadata = sae.metadata.model_copy(update={"exclude_special": False, "prepend_bos": False})
    batch = reopened(sae.metadata, model, HOOK, text="bundled:held_out")[0].read(0, CONTEXTS)
    assert not batch.padding.any(), "these libraries know of no padding"
    tokens = batch.tokens
    scaler = SimpleNamespace(scale=lambda x: x, unscale=lambda x: x)
    theirs = TheirModel(model), TheirSAE(sae), tokens
    found = {
        "versions": {name: version(name) for name in ("sae-bench", "sae-lens")},
        "contexts": CONTEXTS,
        "tokens": tokens.numel(),
        "saebench": of_library(saebench, *theirs),
        "saelens": of_library(saelens, *theirs, scaler),
    }
    (DATA / "evaluation" / "benchmark_numbers.json").write_text(json.dumps(found, indent=2) + "\n")
    print(json.dumps(found, indent=2))


if __name__ == "__main__":
    main()
