"""Norms are removed by fine-tuning: what is removed is exactly what is said, and the result is an ordinary model."""

from __future__ import annotations

import copy
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from family_models import FAMILY_MODELS
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM

import monosem as ms
from monosem.analysis.logit_lens import norm_of
from monosem.errors import ConfigError, DataError, MismatchError
from monosem.models import SubjectModel
from monosem.training.model_tuning import Changes, Tuning, TuningConfig, losses_of
from monosem.training.norm_schedule import NormSchedule, Removal
from monosem.training.norm_switches import EPSILON, Switches

WORDS = ["the", "king", "of", "France", "was", "bald", "and", "sat", "on", "a", "chair", "by", "night"]
TEXT = [" ".join(WORDS[(i * j + j) % len(WORDS)] for j in range(60)) for i in range(40)]
REMOVABLE = ["gpt2", "gpt_neox", "llama", "llama with biases", "mistral", "qwen2", "gemma", "phi", "phi3"]
SMALL: dict[str, Any] = {"tokens": 16 * 64, "batch_tokens": 64, "context_length": 32, "held_out_tokens": 200}


def removed_all(switches: Switches, tokens: Tensor, layers: int) -> None:
    for removal in NormSchedule().removals(layers):
        switches.see(tokens)
        switches.remove([removal], lambda: switches.model.module(tokens, use_cache=False))


def test_the_schedule_is_the_published_one() -> None:
    """12 layers, 2,000 steps: ln_2 from 200 by 20, ln_1 for q and k from 440 by 20, for v from 680 by 30, ln_f 1040."""
    removals = NormSchedule.over(2000, 12).removals(12)
    assert removals == NormSchedule().removals(12)
    steps = {(removal.part, removal.layer): removal.step for removal in removals}
    for layer in range(12):
        assert steps["mlp", layer] == 200 + 20 * layer
        assert steps["queries and keys", layer] == 440 + 20 * layer
        assert steps["values", layer] == 680 + 30 * layer
    assert [tuple(removal) for removal in removals[-3:]] == [
        (1040, "final", None),
        (1060, "separators", None),
        (1160, "first", None),
    ]


@pytest.mark.parametrize(("steps", "layers"), [(16, 3), (60, 4), (500, 4), (2000, 48)])
def test_in_other_lengths_the_order_stays_and_no_two_fall_on_a_step(steps: int, layers: int) -> None:
    removals = NormSchedule.over(steps, layers).removals(layers)
    places = [removal.step for removal in removals]
    assert len(removals) == 3 * layers + 3
    assert places == sorted(set(places))
    assert [r.part for r in removals] == [r.part for r in NormSchedule().removals(layers)]


@pytest.mark.parametrize("family", REMOVABLE)
def test_held_at_their_true_scales_norms_are_what_they_were(family: str) -> None:
    """One text of two tokens: each of the kinds of positions has one token, whose mean scale is its own."""
    model = SubjectModel(FAMILY_MODELS[family].build(), None, family)
    tokens = torch.tensor([[5, 7]])
    before = model(tokens)
    switches = Switches(model)
    with switches.within():
        for removal in NormSchedule().removals(model.n_layers)[:-2]:
            switches.see(tokens)
            switches.remove([removal], lambda: model.module(tokens, use_cache=False))
            torch.testing.assert_close(model(tokens), before, rtol=1e-4, atol=1e-5)
        assert all(len(set(norm.sigma.tolist())) > 1 for norm in switches.norms.values())
        other = torch.tensor([[9, 30]])
        switches.see(other)
        held = model(other)
    assert (held - model(other)).abs().max() > 1e-3  # another text's scales are not these
    torch.testing.assert_close(model(tokens), before, rtol=0, atol=0)  # the model has its own norms again


def test_values_may_have_the_norm_that_queries_and_keys_have_lost() -> None:
    """Between the two removals, values are as before and queries are those of held scales."""
    model = SubjectModel(FAMILY_MODELS["gpt2"].build(), None, "gpt2")
    tokens = torch.randint(3, 40, (3, 9), generator=torch.Generator().manual_seed(0))
    before = model.capture(tokens, ["attn_q.0", "attn_v.0"])
    switches = Switches(model)
    with switches.within():
        for part in ("queries and keys", "values"):
            switches.see(tokens)
            switches.remove([Removal(0, part, 0)], lambda: model.module(tokens, use_cache=False))
            now = model.capture(tokens, ["attn_q.0", "attn_v.0"])
            assert (now["attn_q.0"] - before["attn_q.0"]).abs().max() > 1e-3
            same = torch.equal(now["attn_v.0"], before["attn_v.0"])
            assert same == (part == "queries and keys")


@pytest.mark.parametrize("family", REMOVABLE)
def test_folded_into_weights_the_model_is_an_ordinary_one_and_linear_in_its_norms(family: str, tmp_path: Path) -> None:
    model = SubjectModel(FAMILY_MODELS[family].build(), None, family)
    tokens = torch.randint(3, 40, (4, 9), generator=torch.Generator().manual_seed(0))
    switches = Switches(model)
    with switches.within():
        removed_all(switches, tokens, model.n_layers)
        switched = model(tokens)
    switches.fold()
    assert type(model.module).__name__ == FAMILY_MODELS[family].head
    torch.testing.assert_close(model(tokens), switched, rtol=1e-4, atol=1e-4)
    model.save(tmp_path / "model")
    assert not [path for path in (tmp_path / "model").iterdir() if path.suffix in (".bin", ".pt", ".pkl")]
    again = ms.load_model(tmp_path / "model", device="cpu", dtype=torch.float64)
    torch.testing.assert_close(again(tokens), model(tokens), rtol=1e-5, atol=1e-5)
    norm = again.module.get_submodule(again.hook_point("final_norm").path)
    x, y = torch.randn(2, 1, 3, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    zero = norm(torch.zeros_like(x))
    torch.testing.assert_close(norm(x + 3 * y) - zero, norm(x) - zero + 3 * (norm(y) - zero), rtol=1e-4, atol=1e-5)


def test_a_step_s_gradient_is_that_of_finite_differences() -> None:
    """With half of the norms removed; in float64."""
    model = SubjectModel(FAMILY_MODELS["gpt2"].build(), None, "gpt2")
    tokens = torch.randint(3, 40, (2, 9), generator=torch.Generator().manual_seed(0))
    parameters = dict(model.module.named_parameters())
    switches = Switches(model)

    def loss() -> Tensor:
        logits = model.module(tokens, use_cache=False).logits[:, :-1]
        return nn.functional.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten())

    with switches.within():
        for removal in NormSchedule().removals(2)[:4]:
            switches.see(tokens)
            switches.remove([removal], lambda: model.module(tokens, use_cache=False))
        loss().backward()
        generator = torch.Generator().manual_seed(2)
        for name in ("transformer.wte.weight", "transformer.h.0.ln_1.weight", "transformer.h.1.ln_2.bias"):
            p = parameters[name]
            assert p.grad is not None
            direction = torch.randn(p.shape, generator=generator, dtype=p.dtype)
            ends = list[float]()
            for sign in (1, -1):
                with torch.no_grad():
                    p.add_(sign * 1e-5 * direction)
                    ends.append(loss().item())
                    p.sub_(sign * 1e-5 * direction)
            assert (ends[0] - ends[1]) / 2e-5 == pytest.approx(float((p.grad * direction).sum()), rel=1e-6)


@pytest.fixture(scope="module")
def removal(tiny_module: nn.Module, tokenizer: Any, tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = tmp_path_factory.mktemp("norms")
    model = SubjectModel(copy.deepcopy(tiny_module), tokenizer, "tiny")
    before = model.fingerprint()
    done = ms.remove_layer_norm(model, TEXT, held_out=TEXT[:3], path=folder, progress=False, **SMALL)
    assert model.fingerprint() == before  # the model given is left as it is
    return done, folder


def test_a_model_of_rms_norms_as_smollm2_is_tuned_without_them(tokenizer: Any) -> None:
    """Grouped queries, tied embeddings: in the end its norms are linear, those of the control are not."""
    torch.manual_seed(0)
    sizes: dict[str, Any] = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "tie_word_embeddings": True}
    config = LlamaConfig(vocab_size=4096, max_position_embeddings=64, **sizes, **heads)
    model = SubjectModel(LlamaForCausalLM(config).eval(), tokenizer, "rms")
    done = ms.remove_layer_norm(model, TEXT, held_out=TEXT[:3], progress=False, **SMALL)
    assert done.model.module.config.rms_norm_eps == EPSILON
    x = torch.randn(5, 32, generator=torch.Generator().manual_seed(0))
    for tuned, linear in ((done.model, True), (done.control, False)):
        norms = [each for each in tuned.module.modules() if type(each).__name__ == "LlamaRMSNorm"]
        assert len(norms) == 5
        for norm in norms:
            with torch.no_grad():
                assert torch.allclose(norm(3 * x), 3 * norm(x), rtol=1e-4) is linear
    assert done.losses["removed"][0] == done.losses["control"][0]
    assert done.losses["removed"][-1] != done.losses["control"][-1]
    assert abs(done.gap.value) < 1


def test_the_result_is_saved_beside_its_control_and_says_what_it_cost(removal: Any) -> None:
    done, folder = removal
    assert done.control.module.config.layer_norm_epsilon == 1e-5
    assert done.model.module.config.layer_norm_epsilon == EPSILON
    tokens = done.model.tokens("the king of France")
    for name, model in (("model", done.model), ("control", done.control)):
        torch.testing.assert_close(ms.load_model(folder / name, device=model.device)(tokens), model(tokens))
    one = done.on["held out"]
    assert one.gap.value == pytest.approx(one.removed.value - one.control.value)
    assert done.losses["removed"][:1] == done.losses["control"][:1]  # the same tokens; nothing is removed yet
    assert len(done.losses["removed"]) == 16
    assert "gap to control" in str(done)


def held_at(frozen: Any) -> dict[str, Any]:
    """Edits that hold all norms at the scales of a pass."""
    edits, inputs = dict[str, Any](), dict[str, Tensor]()
    for path, norm in frozen.norms.items():

        def keep(x: Tensor, _: Any, path: str = path) -> Tensor:
            inputs[path] = x
            return x

        def hold(x: Tensor, _: Any, path: str = path, norm: Any = norm) -> Tensor:
            return norm.apply(inputs[path]) + norm.bias

        edits |= {f"{path}:input": keep, f"{path}:output": hold}
    return edits


def test_a_graph_of_the_result_changes_by_nothing_when_scales_are_held(removal: Any) -> None:
    """Scales are 1 to the bit; the stream pushed about, the model does what it does with them held."""
    from monosem.circuits.frozen.frozen import Frozen

    done, _ = removal
    for model, free in ((done.model, True), (done.control, False)):
        one = Frozen(model, model.tokens("the king sat on"), [])
        assert all(bool((norm.scale == 1).all()) for norm in one.norms.values()) == free
        tokens = model.tokens("the king sat on")
        change = torch.randn(1, tokens.shape[1], 32, generator=torch.Generator().manual_seed(0))
        pushed = {"embed": lambda x, _, change=change: x + change}
        with model.edit(pushed):
            moved = model(tokens)
        with model.edit(pushed | held_at(one)):
            frozen = model(tokens)
        difference = (moved - frozen).abs().max() / moved.abs().max()
        assert bool(difference < 1e-5) == free


def test_the_result_works_where_models_do(removal: Any) -> None:
    done, _ = removal
    sae = ms.TopKSAE(32, 40, k=4, seed=1)
    sae.metadata.hook = "resid_post.1"
    graph = ms.trace(done.model, sae, "the king of France was", progress=False)
    assert graph.audit().largest_error < 1e-4
    gains, centres = norm_of(done.model.module.transformer.ln_f, 32)
    assert centres
    torch.testing.assert_close(gains.float(), done.model.module.transformer.ln_f.weight / EPSILON**0.5)
    assert done.model.generate("the king", max_new_tokens=3)


KILLED = """
import os, signal, sys
import torch
import monosem as ms
from monosem.training import model_tuning
sys.path.insert(0, {tests!r})
from shared_fixtures import random_gpt2
from transformers import AutoTokenizer
from monosem.models import BUNDLED, SubjectModel
torch.set_num_threads(1)
model_tuning.CHECKPOINT_SECONDS = 0
saves, save = [0], model_tuning.Tuning._save
def counted(self, *given):
    save(self, *given)
    saves[0] += 1
    if saves[0] == {kill}:
        os.kill(os.getpid(), signal.SIGKILL)
model_tuning.Tuning._save = counted
model = SubjectModel(random_gpt2(), AutoTokenizer.from_pretrained(str(BUNDLED)), "tiny")
ms.remove_layer_norm(model, {text!r}, held_out={text!r}, path={path!r}, progress=False, **{small!r})
"""


def test_killed_it_goes_on_to_the_same_bits(tmp_path: Path, forks: Any) -> None:
    """Killed after the control's 16 steps and 7 of the removal, then to the end; beside a run that was not killed."""
    for name, kills in (("whole", [0]), ("killed", [16 + 7, 0])):
        for kill in kills:
            code = KILLED.format(
                tests=str(Path(__file__).parents[1]),
                kill=kill,
                text=TEXT,
                path=str(tmp_path / name),
                small=SMALL,
            )
            done = forks("-c", code)
            assert done.wait() == (-signal.SIGKILL if kill else 0), done.said
    for model in ("model", "control"):
        files = [(tmp_path / name / model / "model.safetensors").read_bytes() for name in ("whole", "killed")]
        assert files[0] == files[1]


def test_another_run_s_folder_is_refused(removal: Any, tiny: SubjectModel) -> None:
    _, folder = removal
    with pytest.raises(MismatchError, match="run with another seed"):
        ms.remove_layer_norm(tiny, TEXT, held_out=TEXT[:3], path=folder, seed=4, progress=False, **SMALL)


def test_what_cannot_be_done_is_said_before_it_begins(tiny: SubjectModel, tokenizer: Any) -> None:
    with pytest.raises(DataError, match="last removal is at step 11, the tokens are enough for 4 steps of 64"):
        ms.remove_layer_norm(tiny, TEXT, held_out=TEXT, **{**SMALL, "tokens": 256})
    with pytest.raises(DataError, match="last removal is at step 530, the tokens are enough for 16"):
        ms.remove_layer_norm(tiny, TEXT, held_out=TEXT, schedule=NormSchedule(), **SMALL)
    with pytest.raises(DataError, match="tokens, 1,000,000 were asked for"):
        ms.remove_layer_norm(tiny, TEXT, held_out=TEXT, **{**SMALL, "tokens": 1_000_000})
    with pytest.raises(ConfigError, match="held_out="):
        ms.remove_layer_norm(tiny, TEXT)
    with pytest.raises(ConfigError, match="start is a number of steps, got -1"):
        NormSchedule(start=-1)
    for family, words in (
        ("gemma2", "norms in places"),
        ("qwen3", "q_norm"),
        ("opt", "in these families: gpt2, .* opt is opt"),
        ("bert", "does not predict"),
        ("vit", "does not predict"),
    ):
        with pytest.raises(ConfigError, match=words):
            ms.remove_layer_norm(SubjectModel(FAMILY_MODELS[family].build(), tokenizer, family))
    with pytest.raises(ConfigError, match="families"):
        ms.remove_layer_norm(SubjectModel(nn.Linear(3, 3), tokenizer, "linear"))


def test_a_step_of_the_tuner_is_adamw_s_of_the_mean_loss(tiny: SubjectModel) -> None:
    """Beside the plain loop: gradients of the mean over all predicted tokens, clipped, AdamW, warm-up and cosine."""
    from monosem.activations.inputs import open_text

    contexts, _ = open_text(tiny, TEXT, context_length=32, seed=0)
    config = TuningConfig(tokens=3 * 128, batch_tokens=128, lr=1e-2)
    mine, plain = (SubjectModel(copy.deepcopy(tiny.module).double(), tiny.tokenizer) for _ in range(2))
    Tuning(mine, contexts, config, 3, 1.0, Changes()).run("tuning", None, {})
    parameters = list(plain.module.parameters())
    for p in parameters:
        p.requires_grad_(True)
    groups: list[dict[str, Any]] = [
        {"params": [p for p in parameters if p.ndim > 1], "weight_decay": 0.1},
        {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, betas=(0.9, 0.95))
    for step, rate in enumerate((1e-2, 1e-2, 0.5e-2)):
        for group in optimizer.param_groups:
            group["lr"] = rate
        optimizer.zero_grad()
        batch = contexts.read(4 * step, 4 * step + 4)
        losses_of(plain, batch)[~batch.padding[:, 1:]].mean().backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
    for one, other in zip(mine.module.parameters(), parameters, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-9)
