"""SAEDashboard's runner, as its own environment runs it: `harvest.py --dashboard` calls this.

    python dashboard.py FOLDER FEATURES

FOLDER holds `model/` (GPT-2 of transformers) and `task.npz`: tokens and the weights of a ReLU SAE on raw activations.
Prints JSON: the seconds of the run alone, with its activations cached on disk as its own scripts do.
"""

import json
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from sae_dashboard.sae_vis_data import SaeVisConfig
from sae_dashboard.sae_vis_runner import SaeVisRunner
from sae_lens import StandardSAE, StandardSAEConfig
from transformer_lens import HookedTransformer, HookedTransformerConfig
from transformer_lens.pretrained.weight_conversions.gpt2 import convert_gpt2_weights
from transformers import AutoTokenizer, GPT2LMHeadModel

HOOK = "blocks.2.hook_resid_post"


def load(folder: Path) -> HookedTransformer:
    ours = GPT2LMHeadModel.from_pretrained(folder)
    c = ours.config
    config = HookedTransformerConfig(
        n_layers=c.n_layer,
        d_model=c.n_embd,
        n_ctx=c.n_positions,
        d_head=c.n_embd // c.n_head,
        n_heads=c.n_head,
        d_mlp=4 * c.n_embd,
        d_vocab=c.vocab_size,
        act_fn="gelu_new",
        normalization_type="LN",
        eps=c.layer_norm_epsilon,
        device="cpu",
    )
    model = HookedTransformer(config, tokenizer=AutoTokenizer.from_pretrained(folder))
    model.load_and_process_state_dict(
        convert_gpt2_weights(ours, config), fold_ln=False, center_writing_weights=False, center_unembed=False
    )
    tokens = torch.arange(64)[None]
    with torch.no_grad():
        gap = (model(tokens) - ours(tokens).logits).abs().max().item()
    assert gap < 1e-2, f"the converted model gives other logits (by {gap})"
    return model


def main() -> None:
    folder, n_features = Path(sys.argv[1]), int(sys.argv[2])
    task = {name: torch.from_numpy(value) for name, value in np.load(folder / "task.npz").items()}
    model = load(folder / "model")
    n_latents, d = task["W_enc"].shape
    sae = StandardSAE(StandardSAEConfig(d_in=d, d_sae=n_latents, device="cpu", apply_b_dec_to_input=False))
    sae.cfg.metadata.hook_name = HOOK
    sae.load_state_dict(
        {"W_enc": task["W_enc"].T.contiguous(), "b_enc": task["b_enc"], "W_dec": task["W_dec"], "b_dec": task["b_dec"]}
    )
    with tempfile.TemporaryDirectory() as cache:
        config = SaeVisConfig(
            hook_point=HOOK,
            features=list(range(n_features)),
            minibatch_size_features=n_features,
            minibatch_size_tokens=32,
            device="cpu",
            cache_dir=Path(cache),
        )
        begun = time.perf_counter()
        data = SaeVisRunner(config).run(encoder=sae, model=model, tokens=task["tokens"])
        seconds = time.perf_counter() - begun
    alive = sum(bool(f.feature_tables_data) for f in data.feature_data_dict.values())
    print(json.dumps({"seconds": seconds, "features": len(data.feature_data_dict), "shown": alive}))


if __name__ == "__main__":
    main()
