"""SubjectModel: capture, edit, generate, load."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from monosem.errors import ConfigError, DataError, FileError, HookError
from monosem.models import BUNDLED, EditContext, SubjectModel, load_model

TEXT = "The old house stood near the river, and nobody went there."


@pytest.fixture
def tokens() -> Tensor:
    return torch.randint(1, 4096, (3, 12), generator=torch.Generator().manual_seed(0))


def n_hooks(module: nn.Module) -> int:
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in module.modules())


class Recorder:
    """An edit that changes nothing and notes the context of every call."""

    def __init__(self, *hooks: str) -> None:
        self.hooks = list(hooks)
        self.seen: list[EditContext] = []

    def apply(self, x: Tensor, context: EditContext) -> Tensor:
        self.seen.append(context)
        return x.clone()


# Capture --------------------------------------------------------------------------------------------------------------


def test_capture_changes_no_bit_of_the_output(tiny: SubjectModel, tokens: Tensor) -> None:
    before = tiny.module(tokens).logits
    captured = tiny.capture(tokens, [*tiny.hook_points, "lm_head:output"])
    assert torch.equal(captured["lm_head:output"], before)
    assert torch.equal(tiny(tokens), before)
    assert torch.equal(tiny.module(tokens).logits, before)
    assert n_hooks(tiny.module) == 0


def test_the_forward_pass_stops_after_the_last_hook_point(tiny: SubjectModel, tokens: Tensor) -> None:
    calls: Counter[str] = Counter()
    for name, module in tiny.module.named_modules():
        module.register_forward_pre_hook(lambda _m, _a, name=name: calls.update([name]))
    tiny.capture(tokens, ["resid_mid.1", "resid_post.0"])
    ran = {name for name, count in calls.items() if count}
    assert {"transformer.h.0", "transformer.h.1", "transformer.h.1.attn"} <= ran
    later = [name for name in ran if name.startswith(("transformer.h.1.mlp", "transformer.h.2", "lm_head"))]
    assert later == []
    assert "transformer.ln_f" not in ran
    assert all(calls[name] == 1 for name in ran)


def test_capture_takes_tokens_text_and_keyword_arguments(tiny: SubjectModel, tokenizer: Any) -> None:
    ids = tiny.tokens(TEXT)
    assert ids[0].tolist() == [tokenizer.bos_token_id, *tokenizer(TEXT)["input_ids"]]
    expected = tiny.capture(ids, ["mlp_out.1"])["mlp_out.1"]
    for inputs in (TEXT, [TEXT], {"input_ids": ids}, ids.to(torch.int32)):
        assert torch.equal(tiny.capture(inputs, ["mlp_out.1"])["mlp_out.1"], expected)


def test_captures_are_not_spoiled_by_later_operations_in_place() -> None:
    module = nn.Sequential(nn.Linear(4, 6), nn.ReLU(inplace=True), nn.Linear(6, 2))
    model = SubjectModel(module)
    x = torch.randn(5, 4)
    captured = model.capture(x, ["0", "2"])
    assert torch.equal(captured["0"], nn.functional.linear(x, module[0].weight, module[0].bias))


def test_two_names_of_one_place_give_the_same(tiny: SubjectModel, tokens: Tensor) -> None:
    names = ["resid_post.1", "blocks.1.hook_resid_post", "transformer.h.1"]
    found = tiny.capture(tokens, names)
    assert list(found) == names
    assert all(torch.equal(found[name], found[names[0]]) for name in names)


def test_texts_must_be_equally_long_and_not_empty(tiny: SubjectModel) -> None:
    with pytest.raises(DataError, match="unequal length"):
        tiny.capture(["one", "one two three four"], ["embed"])
    with pytest.raises(DataError, match="empty"):
        tiny.tokens("", prepend_bos=False)


def test_a_hook_point_that_is_never_reached_is_an_error(tiny: SubjectModel) -> None:
    class Idle(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.used, self.idle = nn.Linear(3, 3), nn.Linear(3, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.used(x)

    with pytest.raises(HookError, match="never reached idle"):
        SubjectModel(Idle()).capture(torch.randn(2, 3), ["used", "idle"])


# Edit -----------------------------------------------------------------------------------------------------------------


def test_an_identity_edit_changes_no_bit(tiny: SubjectModel, tokens: Tensor) -> None:
    before = tiny(tokens)
    with tiny.edit(dict.fromkeys(tiny.hook_points, lambda x, _: x.clone())):
        assert torch.equal(tiny(tokens), before)
    with tiny.edit(dict.fromkeys(tiny.hook_points, lambda x, _: x)):
        assert torch.equal(tiny(tokens), before)
    with tiny.edit([Recorder(*tiny.hook_points)]):
        assert torch.equal(tiny(tokens), before)
    assert torch.equal(tiny(tokens), before)


@pytest.mark.parametrize("kind", ["resid_pre.1", "resid_mid.1", "resid_post.1", "attn_z.1", "mlp_mid.1", "final_norm"])
def test_an_edit_really_changes_what_follows_and_nothing_before(tiny: SubjectModel, tokens: Tensor, kind: str) -> None:
    before = tiny(tokens)
    earlier = tiny.capture(tokens, ["resid_post.0"])["resid_post.0"]
    shift = torch.randn(tiny.width(kind), generator=torch.Generator().manual_seed(3))
    with tiny.edit({kind: lambda x, _: x + shift}):
        after = tiny(tokens)
        seen = tiny.capture(tokens, ["resid_post.0", kind])
    assert (after - before).abs().max() > 1e-3
    assert torch.equal(seen["resid_post.0"], earlier)
    torch.testing.assert_close(seen[kind], tiny.capture(tokens, [kind])[kind] + shift)


def test_replacing_the_residual_stream_equals_a_run_that_began_there(tiny: SubjectModel, tokens: Tensor) -> None:
    """With another prompt's stream put in its place, the output is the other prompt's."""
    other = tokens.flip(1)
    stream = tiny.capture(other, ["resid_post.1"])["resid_post.1"]
    with tiny.edit({"resid_post.1": lambda x, _: stream}):
        assert torch.equal(tiny(tokens), tiny.module(other, use_cache=False).logits)


def test_several_edits_at_one_point_apply_in_the_order_given(tiny: SubjectModel, tokens: Tensor) -> None:
    class Apply:
        hooks = ("resid_post.1",)

        def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
            self.function = function

        def apply(self, x: Tensor, _: EditContext) -> Tensor:
            return self.function(x)

    x = tiny.capture(tokens, ["resid_post.1"])["resid_post.1"]
    add, double = Apply(lambda x: x + 1), Apply(lambda x: x * 2)
    for edits, expected in (([add, double], (x + 1) * 2), ([double, add], x * 2 + 1)):
        with tiny.edit(edits):
            assert torch.equal(tiny.capture(tokens, ["resid_post.1"])["resid_post.1"], expected)
    with tiny.edit([add]), tiny.edit([double]):
        assert torch.equal(tiny.capture(tokens, ["resid_post.1"])["resid_post.1"], (x + 1) * 2)


def test_the_context_has_tokens_positions_mask_and_hook(tiny: SubjectModel, tokens: Tensor) -> None:
    mask = torch.ones_like(tokens)
    mask[1, 8:] = 0
    recorder = Recorder("blocks.0.hook_resid_post", "mlp_mid.2")
    with tiny.edit([recorder]):
        tiny({"input_ids": tokens, "attention_mask": mask})
        tiny(tokens)
    assert [c.hook for c in recorder.seen] == ["resid_post.0", "mlp_mid.2"] * 2
    for context in recorder.seen:
        assert torch.equal(context.tokens, tokens)
        assert torch.equal(context.positions, torch.arange(12).expand(3, 12))
        assert not context.generated.any()
    assert torch.equal(recorder.seen[0].mask, mask.bool())
    assert recorder.seen[2].mask.all()


def test_padding_behind_changes_nothing_before_it(tiny: SubjectModel, tokens: Tensor) -> None:
    mask = torch.ones_like(tokens)
    mask[:, 9:] = 0
    padded = tiny.capture({"input_ids": tokens, "attention_mask": mask}, ["resid_post.2"])["resid_post.2"]
    short = tiny.capture(tokens[:, :9], ["resid_post.2"])["resid_post.2"]
    torch.testing.assert_close(padded[:, :9], short, rtol=1e-4, atol=1e-4)


def test_hooks_are_removed_after_an_exception(tiny: SubjectModel, tokens: Tensor) -> None:
    def fail(x: Tensor, _: EditContext) -> Tensor:
        raise RuntimeError("on purpose")

    before = tiny(tokens)
    with pytest.raises(RuntimeError, match="on purpose"), tiny.edit({"resid_post.1": fail}):
        tiny(tokens)
    assert n_hooks(tiny.module) == 0
    with pytest.raises(KeyError), tiny.edit({"resid_post.1": lambda x, _: x * 0}):
        raise KeyError
    assert n_hooks(tiny.module) == 0
    with pytest.raises(DataError, match="has no token 14021"):
        tiny.capture(tokens + 10_000, ["resid_post.1"])
    assert n_hooks(tiny.module) == 0
    assert torch.equal(tiny(tokens), before)


def test_an_edit_of_an_unknown_hook_point_leaves_no_hook(tiny: SubjectModel) -> None:
    with pytest.raises(HookError), tiny.edit({"resid_post.0": lambda x, _: x, "resid_post.12": lambda x, _: x}):
        pass
    assert n_hooks(tiny.module) == 0


# Generate -------------------------------------------------------------------------------------------------------------


def test_edits_during_generation_know_what_is_prompt_and_what_is_generated(tiny: SubjectModel, tokenizer: Any) -> None:
    recorder = Recorder("resid_post.1")
    with tiny.edit([recorder]):
        text = tiny.generate(TEXT, max_new_tokens=6, temperature=0)
    prompt = tiny.tokens(TEXT)
    first, *rest = recorder.seen
    assert torch.equal(first.tokens, prompt)
    assert not first.generated.any()
    assert len(rest) == 5  # the last token is never read
    for i, context in enumerate(rest):
        assert context.positions.tolist() == [[prompt.shape[1] + i]]
        assert context.mask.tolist() == [[True]]
        assert context.generated.tolist() == [[True]]
    written = torch.cat([c.tokens for c in recorder.seen], dim=1)[0]
    assert text.startswith(tokenizer.decode(written, skip_special_tokens=True))
    tiny.capture(TEXT, ["embed"])
    with tiny.edit([recorder]):
        tiny(TEXT)
    assert not recorder.seen[-1].generated.any()


def test_generation_with_a_cache_and_an_edit_equals_whole_forward_passes(tiny: SubjectModel, tokenizer: Any) -> None:
    shift = torch.randn(32, generator=torch.Generator().manual_seed(5))

    def steer(x: Tensor, context: EditContext) -> Tensor:
        odd = context.positions % 2 == 1
        return torch.where(odd[..., None], x + shift, x)

    tokens = tiny.tokens(TEXT)
    with tiny.edit({"resid_post.0": steer}):
        text = tiny.generate(TEXT, max_new_tokens=8, temperature=0)
        for _ in range(8):
            tokens = torch.cat([tokens, tiny(tokens)[:, -1].argmax(-1, keepdim=True)], dim=1)
    assert text == tokenizer.decode(tokens[0], skip_special_tokens=True)
    assert text != tiny.generate(TEXT, max_new_tokens=8, temperature=0)


def test_generation_is_the_same_for_the_same_seed_and_leaves_torch_s_own_seed_alone(tiny: SubjectModel) -> None:
    torch.manual_seed(7)
    expected = torch.rand(3)
    torch.manual_seed(7)
    texts = [tiny.generate(TEXT, max_new_tokens=10, temperature=1.0, seed=seed) for seed in (1, 1, 2)]
    assert texts[0] == texts[1] != texts[2]
    assert texts[0].startswith(TEXT)
    assert torch.equal(torch.rand(3), expected)
    greedy = {tiny.generate(TEXT, max_new_tokens=10, temperature=0, seed=seed) for seed in (1, 2)}
    assert len(greedy) == 1


def test_generation_refuses_what_does_not_fit_the_context(tiny: SubjectModel) -> None:
    n = tiny.tokens(TEXT).shape[1]
    tiny.generate(TEXT, max_new_tokens=64 - n, temperature=0)
    with pytest.raises(DataError, match="do not fit the context of 64"):
        tiny.generate(TEXT, max_new_tokens=65 - n)


# Fingerprints ---------------------------------------------------------------------------------------------------------


def test_fingerprints_are_equal_for_equal_weights_in_any_precision(
    make_gpt2: Callable[..., nn.Module], tiny: SubjectModel
) -> None:
    rounded = make_gpt2().half()
    prints = {SubjectModel(make_gpt2().half().to(dtype)).fingerprint() for dtype in (torch.half, torch.float)}
    assert prints == {SubjectModel(rounded).fingerprint()}
    assert SubjectModel(make_gpt2()).fingerprint() == tiny.fingerprint()


def test_fingerprints_differ_for_different_weights(make_gpt2: Callable[..., nn.Module], tiny: SubjectModel) -> None:
    others = [make_gpt2(seed=1), make_gpt2(), make_gpt2(), make_gpt2(layers=2)]
    with torch.no_grad():
        others[1].get_parameter("transformer.h.1.ln_2.weight").mul_(1.1)
        others[2].get_parameter("transformer.h.2.mlp.c_fc.weight").add_(0.01)
    prints = {tiny.fingerprint(), *(SubjectModel(other).fingerprint() for other in others)}
    assert len(prints) == 5


def test_the_tokenizer_s_fingerprint_is_of_its_vocabulary(tiny: SubjectModel, letter_tokenizer: Any) -> None:
    assert tiny.tokenizer_fingerprint() == load_model("bundled").tokenizer_fingerprint()
    assert SubjectModel(tiny.module, letter_tokenizer()).tokenizer_fingerprint() != tiny.tokenizer_fingerprint()
    assert SubjectModel(tiny.module).tokenizer_fingerprint() is None


# Load -----------------------------------------------------------------------------------------------------------------


def test_a_folder_that_transformers_has_written_loads(tiny: SubjectModel, tmp_path: Path, tokens: Tensor) -> None:
    tiny.module.save_pretrained(tmp_path / "m")
    tiny.tokenizer.save_pretrained(tmp_path / "m")
    loaded = load_model(tmp_path / "m", device="cpu")
    assert loaded.name == str(tmp_path / "m")
    assert (loaded.family, loaded.n_layers, loaded.d_model, loaded.context_length) == ("gpt2", 3, 32, 64)
    assert torch.equal(loaded(tokens), tiny(tokens))
    assert loaded.fingerprint() == tiny.fingerprint()
    assert loaded.tokenizer_fingerprint() == tiny.tokenizer_fingerprint()
    assert not any(p.requires_grad for p in loaded.module.parameters())
    assert not loaded.module.training


def test_the_bundled_model_loads_by_its_name(bundled: SubjectModel) -> None:
    assert bundled.name == "bundled"
    assert (bundled.family, bundled.n_layers, bundled.d_model, bundled.context_length) == ("gpt2", 4, 256, 256)
    assert next(bundled.module.parameters()).dtype == torch.float32
    assert bundled(TEXT).shape[-1] == len(bundled.tokenizer) == 4096


def test_any_module_is_taken_with_and_without_a_tokenizer(tiny: SubjectModel, tokens: Tensor) -> None:
    bare = load_model(tiny.module)
    assert bare.name == "GPT2LMHeadModel"
    assert torch.equal(bare(tokens), tiny(tokens))
    with pytest.raises(DataError, match="no tokenizer"):
        bare.capture(TEXT, ["embed"])
    with pytest.raises(DataError, match="no tokenizer"):
        bare.generate(TEXT)
    assert torch.equal(load_model(tiny.module, tiny.tokenizer, name="mine")(TEXT), tiny(TEXT))


def one_line(error: pytest.ExceptionInfo[Exception]) -> str:
    assert "\n" not in str(error.value)
    return str(error.value)


def test_a_missing_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileError) as error:
        load_model(tmp_path / "nothing")
    assert str(tmp_path / "nothing") in one_line(error)
    with pytest.raises(FileError) as error:
        load_model("./no/such/folder")
    assert "./no/such/folder" in one_line(error)


def test_a_hub_id_that_cannot_be_reached_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(FileError, match="cannot load the model 'no/such-model'") as error:
        load_model("no/such-model")
    assert "(offline: HF_HUB_OFFLINE is set). Give 'bundled'" in one_line(error)


@pytest.mark.parametrize("damage", ["empty", "no JSON", "no model", "torn weights"])
def test_a_folder_of_something_else_is_named(tiny: SubjectModel, tmp_path: Path, damage: str) -> None:
    folder = tmp_path / "m"
    tiny.module.save_pretrained(folder)
    tiny.tokenizer.save_pretrained(folder)
    if damage == "empty":
        for file in folder.iterdir():
            file.unlink()
    elif damage == "no JSON":
        (folder / "config.json").write_text("{ no json")
    elif damage == "no model":
        (folder / "config.json").write_text('{"model_type": "teapot"}')
    else:
        (folder / "model.safetensors").write_bytes((folder / "model.safetensors").read_bytes()[:1000])
    with pytest.raises(FileError) as error:
        load_model(folder)
    assert str(folder) in one_line(error)


# Models of other kinds ------------------------------------------------------------------------------------------------


@pytest.fixture
def perceptron() -> SubjectModel:
    torch.manual_seed(0)
    return SubjectModel(nn.Sequential(nn.Linear(6, 10), nn.GELU(), nn.Sequential(nn.Linear(10, 4))))


def test_a_module_of_floats_can_be_captured_and_edited(perceptron: SubjectModel) -> None:
    x = torch.randn(7, 6)
    first, last = perceptron.module[0], perceptron.module[2][0]
    captured = perceptron.capture(x, ["0", "1", "2.0:input"])
    assert torch.equal(captured["0"], first(x))
    assert torch.equal(captured["1"], captured["2.0:input"])
    assert torch.equal(perceptron(x), last(captured["1"]))
    assert perceptron.width("1", x) == 10
    assert "2.0" in perceptron.hook_points
    recorder = Recorder("0")
    with perceptron.edit([recorder]), perceptron.edit({"1": lambda h, _: torch.zeros_like(h)}):
        assert torch.equal(perceptron(x), last.bias.expand(7, 4))
    assert recorder.seen == [EditContext("0")]


def test_a_module_without_a_width_says_how_to_find_it(perceptron: SubjectModel) -> None:
    with pytest.raises(ConfigError, match=r"width\(hook, inputs\)"):
        _ = perceptron.d_model
    assert BUNDLED.is_dir()
