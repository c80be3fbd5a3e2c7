"""Our SAE spliced into a model of another library, beside its own hooks with the dense formula. Run by its Python.

spliced_elsewhere.py transformer_lens_2 | transformer_lens_4 | nnsight
"""

from __future__ import annotations

import sys
import warnings

import torch
from transformers import GPT2Config, GPT2LMHeadModel

import monosem as ms

WIDTH, VOCABULARY = 32, 60
TOKENS = torch.arange(10, 30).reshape(2, 10)


def gpt2():
    torch.manual_seed(0)
    config = GPT2Config(n_layer=3, n_embd=WIDTH, n_head=4, vocab_size=VOCABULARY, n_positions=32)
    return GPT2LMHeadModel(config).eval()


def sae(hook, width=WIDTH):
    made = ms.TopKSAE(width, 96, k=9, transform="none", seed=4)
    made.metadata.hook, made.metadata.exclude_special = hook, False
    with torch.no_grad():
        made.b_enc.normal_(0, 0.1, generator=torch.Generator().manual_seed(1))
        made.b_dec.normal_(0, 0.1, generator=torch.Generator().manual_seed(2))
    return made


def formula(made, x):
    return ms.dense(made)(x.flatten(0, 1))[0].reshape(x.shape)


def transformer_lens_2():
    from transformer_lens import HookedTransformer, HookedTransformerConfig

    torch.manual_seed(0)
    config = HookedTransformerConfig(
        n_layers=3, d_model=WIDTH, n_ctx=32, d_head=8, n_heads=4, d_vocab=VOCABULARY, act_fn="gelu"
    )
    check_hooked(HookedTransformer(config))


def transformer_lens_4():
    from transformer_lens import TransformerBridge

    from monosem.models.load import BUNDLED

    check_hooked(TransformerBridge.boot_transformers(str(BUNDLED), device="cpu"), width=256)


def check_hooked(model, width=WIDTH):
    places = {"resid_post.1": "blocks.1.hook_resid_post", "mlp_out.0": "blocks.0.hook_mlp_out"}
    for ours, theirs in places.items():
        made = sae(ours, width)
        expected = model.run_with_hooks(TOKENS, fwd_hooks=[(theirs, lambda x, hook, made=made: formula(made, x))])
        plain = model(TOKENS)
        with ms.spliced(model, ms.Splice(made)):
            found = model(TOKENS)
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
        assert torch.equal(model(TOKENS), plain), "the edit stayed"
        assert (found - plain).abs().max() > 0.01
    heads = sae("attn_z.1", width)
    with ms.spliced(model, ms.Splice(heads)):
        found = model(TOKENS)
    own = [("blocks.1.attn.hook_z", lambda x, hook: formula(heads, x.flatten(2)).reshape(x.shape))]
    torch.testing.assert_close(found, model.run_with_hooks(TOKENS, fwd_hooks=own), rtol=1e-4, atol=1e-4)
    said = ""
    try:
        with ms.spliced(model, ms.Splice(sae("resid_post.7", width))):
            pass
    except ms.MonosemError as error:
        said = str(error)
    assert "no hook point" in said, said


def nnsight():
    from nnsight import NNsight

    module, made = gpt2(), sae("resid_post.1")
    with ms.spliced(module, ms.Splice(made)):
        expected = module(TOKENS).logits
    model = NNsight(module)
    with ms.spliced(model, ms.Splice(made)):
        with model.trace(TOKENS):
            after = model.transformer.h[2].output.save()
            found = model.lm_head.output.save()
        direct = module(TOKENS).logits
    torch.testing.assert_close(direct, expected)
    torch.testing.assert_close(found, expected)
    with model.trace(TOKENS):
        plain = model.transformer.h[2].output.save()
    assert (first(after) - first(plain)).abs().max() > 0.01


def first(output):
    return output[0] if isinstance(output, tuple) else output


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    with torch.no_grad():
        globals()[sys.argv[1]]()
    print("equal")
