"""SAEDashboard in its two documented ways: `harvest.py --dashboard` calls this.

    python dashboard.py FOLDER BATCHES

FOLDER holds `model/` (GPT-2 of transformers) and `task.npz`: tokens and the weights of a ReLU SAE on raw activations.

readme  Its README's quick start: `SaeVisRunner` on 64 features at a time, the page of all saved as HTML. Two such
        batches, in float32 (the README has a GPU and bfloat16).
script  What it runs for Neuronpedia (`neuronpedia_runner.py`, "for internal use"): 128 features at a time, the model's
        activations cached on disk by the first batch, every batch written as JSON. The loop, the layout and all
        settings are those of the script at its defaults; it is not called whole because it reads its model and text
        from the Hugging Face hub.

Prints JSON: the seconds of either and of every batch of the script, and features worked on at a time.
"""

import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sae_dashboard.components_config import (
    ActsHistogramConfig,
    Column,
    FeatureTablesConfig,
    LogitsHistogramConfig,
    LogitsTableConfig,
    SequencesConfig,
)
from sae_dashboard.data_writing_fns import save_feature_centric_vis
from sae_dashboard.layout import SaeVisLayoutConfig
from sae_dashboard.neuronpedia.neuronpedia_converter import NeuronpediaConverter
from sae_dashboard.neuronpedia.neuronpedia_runner_config import NeuronpediaRunnerConfig
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


def layout(settings: NeuronpediaRunnerConfig) -> SaeVisLayoutConfig:
    """What is on a feature's page."""
    sequences = SequencesConfig(
        stack_mode="stack-all",
        buffer=None,
        compute_buffer=True,
        n_quantiles=settings.n_quantiles,
        top_acts_group_size=settings.top_acts_group_size,
        quantile_group_size=settings.quantile_group_size,
    )
    parts = [ActsHistogramConfig(), LogitsHistogramConfig(), LogitsTableConfig(), FeatureTablesConfig(n_rows=3)]
    return SaeVisLayoutConfig(columns=[Column(sequences, *parts)])


def readme(folder: Path, model: HookedTransformer, sae: StandardSAE, tokens: torch.Tensor) -> dict[str, float]:
    size, n_features = 64, 128
    begun = time.perf_counter()
    config = SaeVisConfig(
        hook_point=HOOK,
        features=list(range(n_features)),
        minibatch_size_features=size,
        minibatch_size_tokens=256,
        device="cpu",
    )
    data = SaeVisRunner(config).run(encoder=sae, model=model, tokens=tokens)
    save_feature_centric_vis(sae_vis_data=data, filename=folder / "page.html")
    return {"seconds": time.perf_counter() - begun, "features": n_features}


def script(folder: Path, model: HookedTransformer, sae: StandardSAE, tokens: torch.Tensor, n: int) -> dict[str, Any]:
    settings = NeuronpediaRunnerConfig(
        sae_set="relu", sae_path="", outputs_dir=str(folder), model_id="bundled", layer=2
    )
    settings.n_prompts_total, settings.n_tokens_in_prompt = tokens.shape
    tokenizer = model.tokenizer
    vocabulary = {token: text.replace("Ġ", " ") for text, token in tokenizer.vocab.items()}
    size = settings.n_features_at_a_time
    seconds: list[float] = []
    with tempfile.TemporaryDirectory() as cache:
        for number in range(n):
            begun = time.perf_counter()
            config = SaeVisConfig(
                hook_point=HOOK,
                features=list(range(number * size, (number + 1) * size)),
                minibatch_size_features=size,
                minibatch_size_tokens=settings.n_prompts_in_forward_pass,
                quantile_feature_batch_size=settings.quantile_feature_batch_size,
                device="cpu",
                feature_centric_layout=layout(settings),
                cache_dir=Path(cache),
                ignore_tokens={tokenizer.pad_token_id, tokenizer.bos_token_id, tokenizer.eos_token_id} - {None},
            )
            data = SaeVisRunner(config).run(encoder=sae, model=model, tokens=tokens)
            page = NeuronpediaConverter.convert_to_np_json(model, data, settings, vocabulary)
            (folder / f"batch-{number}.json").write_text(page)
            seconds.append(time.perf_counter() - begun)
            shown = sum(bool(each.feature_tables_data) for each in data.feature_data_dict.values())
            assert shown == size, f"{shown} of {size} features were shown"
            del data
    return {"seconds": seconds, "features": size}


@torch.no_grad()
def main() -> None:
    folder, n_batches = Path(sys.argv[1]), int(sys.argv[2])
    task = {name: torch.from_numpy(value) for name, value in np.load(folder / "task.npz").items()}
    model = load(folder / "model")
    n_latents, d = task["W_enc"].shape
    sae = StandardSAE(StandardSAEConfig(d_in=d, d_sae=n_latents, device="cpu", apply_b_dec_to_input=False))
    sae.cfg.metadata.hook_name = HOOK
    sae.load_state_dict(
        {"W_enc": task["W_enc"].T.contiguous(), "b_enc": task["b_enc"], "W_dec": task["W_dec"], "b_dec": task["b_dec"]}
    )
    run = script(folder, model, sae, task["tokens"], n_batches)
    print(json.dumps({"script": run, "readme": readme(folder, model, sae, task["tokens"])}))


if __name__ == "__main__":
    main()
