"""What models read: batches with padding, pixels, half precision, compiled modules; and what they refuse."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from family_models import FAMILY_MODELS, IMAGE, VOCABULARY, family_module
from torch import Tensor, nn

from monosem.errors import ConfigError, DataError, HookError
from monosem.models import SubjectModel

TEXT_FAMILIES = [name for name, spec in FAMILY_MODELS.items() if not spec.reads_images]
IMAGE_FAMILIES = [name for name, spec in FAMILY_MODELS.items() if spec.reads_images]
HOOKS = ["resid_pre.1", "attn_z.0", "attn_out.1", "mlp_mid.1", "resid_post.1"]


def hooks_of(name: str) -> list[str]:
    """Of several MLPs neurons have no point."""
    return [hook for hook in HOOKS if not (FAMILY_MODELS[name].experts and hook.startswith("mlp_mid"))]


def subject(name: str, **parts: Any) -> SubjectModel:
    return SubjectModel(family_module(name), **parts)


def one_line(error: pytest.ExceptionInfo[Exception]) -> str:
    assert "\n" not in str(error.value)
    return str(error.value)


# Padding --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("side", ["behind", "in front"])
@pytest.mark.parametrize("name", TEXT_FAMILIES)
def test_a_padded_batch_equals_each_text_alone_where_it_is_not_padding(name: str, side: str) -> None:
    model, tokens = SubjectModel(FAMILY_MODELS[name].build().float()), FAMILY_MODELS[name].inputs()
    short = slice(0, 6) if side == "behind" else slice(3, 9)
    mask = torch.zeros_like(tokens)
    mask[0], mask[1, short] = 1, 1
    hooks = hooks_of(name)
    together = model.capture({"input_ids": tokens.where(mask == 1, 0), "attention_mask": mask}, hooks)
    for row, part in ((0, slice(0, 9)), (1, short)):
        alone = model.capture(tokens[row : row + 1, part], hooks)
        for hook in hooks:
            torch.testing.assert_close(together[hook][row, part], alone[hook][0], rtol=1e-4, atol=1e-4)


def test_edits_know_the_positions_of_a_batch_padded_in_front() -> None:
    model, tokens = subject("gpt2"), FAMILY_MODELS["gpt2"].inputs()
    mask = torch.ones_like(tokens)
    mask[1, :3] = 0
    seen = []
    with model.edit({"resid_post.0": lambda x, context: seen.append(context) or x}):
        model({"input_ids": tokens, "attention_mask": mask})
    assert seen[0].positions.tolist() == [list(range(9)), [0, 0, 0, *range(6)]]
    assert torch.equal(seen[0].mask, mask.bool())


def test_texts_of_any_length_become_one_batch_with_a_mask(tiny: SubjectModel) -> None:
    texts = ["The old house", "The old house stood near the river."]
    batch = tiny.padded(texts)
    captured = tiny.capture(batch, ["resid_post.2"])["resid_post.2"]
    for row, text in enumerate(texts):
        alone = tiny.capture(text, ["resid_post.2"])["resid_post.2"][0]
        assert batch["attention_mask"][row].sum() == len(alone)
        torch.testing.assert_close(captured[row, : len(alone)], alone, rtol=1e-4, atol=1e-4)
    with pytest.raises(DataError, match=r"give model\.padded"):
        tiny.tokens(texts)


def test_where_there_is_no_bos_a_tokenizer_s_own_special_tokens_stand_around_the_text() -> None:
    class Encoder:
        bos_token_id = None

        def __call__(self, text: str, add_special_tokens: bool, **_: Any) -> dict[str, list[int]]:
            inner = [5 + len(word) for word in text.split()]
            return {"input_ids": [3, *inner, 4] if add_special_tokens else inner}

    model = subject("bert", tokenizer=Encoder())
    assert model.tokens("a bc").tolist() == [[3, 6, 7, 4]]
    assert model.tokens("a bc", prepend_bos=False).tolist() == [[6, 7]]


def test_positions_that_a_model_keeps_for_padding_are_no_tokens() -> None:
    """RoBERTa numbers positions from behind that of padding: 514 rows of its table are 512 tokens."""
    module = FAMILY_MODELS["roberta"].build(max_position_embeddings=514, pad_token_id=1, bos_token_id=0)
    model = SubjectModel(module)
    assert model.context_length == 512
    assert model.capture(torch.full((1, 512), 5), ["resid_post.1"])["resid_post.1"].shape == (1, 512, 16)
    with pytest.raises(DataError, match="513 tokens are more than the context of RobertaForMaskedLM, 512"):
        model.capture(torch.full((1, 513), 5), ["resid_post.1"])
    assert subject("bert").context_length == subject("gpt2").context_length == subject("roberta").context_length == 24


def test_a_text_that_begins_with_bos_gets_no_second_and_lone_surrogates_are_replaced(tiny: SubjectModel) -> None:
    bos = tiny.tokenizer.bos_token
    assert torch.equal(tiny.tokens(f"{bos}Then he went"), tiny.tokens("Then he went"))
    assert tiny.tokens(f"{bos}Then")[0].tolist().count(tiny.tokenizer.bos_token_id) == 1
    assert torch.equal(tiny.tokens("bad \ud83d one"), tiny.tokens("bad \ufffd one"))
    assert torch.equal(tiny.tokens("an \ud83e\udd89"), tiny.tokens("an \U0001f989"))
    assert torch.equal(tiny.padded(["\udc80"])["input_ids"], tiny.padded(["\ufffd"])["input_ids"])


def test_an_encoder_s_tokens_stand_between_class_token_and_separator(roberta_tokenizer: Any) -> None:
    model = subject("roberta", tokenizer=roberta_tokenizer)
    cls, sep = roberta_tokenizer.cls_token_id, roberta_tokenizer.sep_token_id
    words = roberta_tokenizer("a b", add_special_tokens=False)["input_ids"]
    assert model.tokens("a b").tolist() == [[cls, *words, sep]] == model.tokens("<s>a b</s>").tolist()
    assert model.tokens("a b", prepend_bos=False).tolist() == [words]


# Images ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", IMAGE_FAMILIES)
def test_pixels_can_be_given_bare_or_as_a_keyword(name: str) -> None:
    model, pixels = subject(name), FAMILY_MODELS[name].inputs()
    bare = model.capture(pixels, HOOKS)
    named = model.capture({"pixel_values": pixels}, HOOKS)
    assert all(torch.equal(bare[hook], named[hook]) for hook in HOOKS)
    assert bare["resid_post.1"].shape == (2, model.context_length, 16)


def test_images_pass_the_model_s_own_processor() -> None:
    from transformers import CLIPImageProcessorPil

    size = {"height": IMAGE, "width": IMAGE}
    processor = CLIPImageProcessorPil(size=size, crop_size=size, image_mean=[0.5] * 3, image_std=[0.25] * 3)
    model = subject("vit", processor=processor)
    image = np.full((IMAGE, IMAGE, 3), 51, dtype=np.uint8)
    pixels = model.pixels([image, image])
    torch.testing.assert_close(pixels, torch.full((2, 3, IMAGE, IMAGE), (51 / 255 - 0.5) / 0.25))
    assert model.capture(pixels, ["embed"])["embed"].shape == (2, 5, 16)


def test_dinov2_takes_other_sizes_of_image() -> None:
    model = subject("dinov2")
    assert model.capture(torch.randn(1, 3, 16, 16), ["resid_post.1"])["resid_post.1"].shape == (1, 17, 16)


def test_of_several_models_in_one_module_the_known_one_is_studied() -> None:
    """A CLIP's image half, read from pixels alone; a Gemma 3 with eyes, read from text."""
    import transformers
    from family_models import GEMMA, PIXELS, TEXT, randomise

    text = {k: TEXT[k] for k in ("vocab_size", "hidden_size", "num_hidden_layers", "intermediate_size")}
    ends = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
    clip = transformers.CLIPModel(
        transformers.CLIPConfig(
            text_config={**text, **ends, "num_attention_heads": 4, "max_position_embeddings": 12},
            vision_config=PIXELS,
        )
    )
    model = SubjectModel(randomise(clip))
    assert (model.family, model.n_layers, model.d_model, model.context_length) == ("clip_vision_model", 2, 16, 5)
    assert model.hook_point("resid_post.1").path == "vision_model.encoder.layers.1"
    assert model.width("mlp_mid.1") == 20

    gemma = transformers.Gemma3ForConditionalGeneration(
        transformers.Gemma3Config(
            text_config=GEMMA, vision_config=PIXELS, mm_tokens_per_image=4, image_token_index=39, boi_token_index=38
        )
    )
    model = SubjectModel(randomise(gemma))
    assert (model.family, model.n_layers, model.d_model, model.context_length) == ("gemma3_text", 2, 16, 24)
    assert model.hook_point("resid_post.1").path == "model.language_model.layers.1"
    assert model.width("attn_z.1") == 24


# Half precision and compiled modules ----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", FAMILY_MODELS)
def test_bfloat16_modules_are_captured_and_edited_in_bfloat16(name: str) -> None:
    spec = FAMILY_MODELS[name]
    model = SubjectModel(spec.build().to(torch.bfloat16))
    x = spec.inputs()
    captured = model.capture(x, hooks_of(name))
    assert {value.dtype for value in captured.values()} == {torch.bfloat16}
    with model.edit({"resid_post.0": lambda x, _: x.float() * 0.5}):  # an SAE computes in float32
        halved = model.capture(x, ["resid_pre.1"])["resid_pre.1"]
        model(x)
    assert halved.dtype == torch.bfloat16
    assert torch.equal(halved, captured["resid_pre.1"] * 0.5)


@pytest.mark.parametrize("how", ["wrapped", "in place", "its blocks", "after it was wrapped"])
def test_a_compiled_module_is_read_as_it_was_written(how: str) -> None:
    """No compiler runs: compiled code would not call the hooks."""
    spec = FAMILY_MODELS["llama"]
    module, plain = spec.build(), subject("llama")
    if how == "in place":
        module.compile(backend="eager")
    elif how == "its blocks":
        for block in module.model.layers:
            block.compile(backend="eager")
    model = SubjectModel(torch.compile(module, backend="eager") if how == "wrapped" else module)
    if how == "after it was wrapped":
        module.compile(backend="eager")
    tokens = spec.inputs()
    assert model.hook_points == plain.hook_points
    assert model.fingerprint() == plain.fingerprint()
    with forbidden_compiler():
        assert torch.equal(model(tokens), plain(tokens))
        for hook in HOOKS:
            assert torch.equal(model.capture(tokens, [hook])[hook], plain.capture(tokens, [hook])[hook])
        with model.edit({"resid_post.0": lambda x, _: x * 0}), plain.edit({"resid_post.0": lambda x, _: x * 0}):
            assert torch.equal(model(tokens), plain(tokens))


class forbidden_compiler:  # noqa: N801
    """Within it, any compilation is an error."""

    def __enter__(self) -> None:
        torch._dynamo.reset()

        def fail(*_: Any) -> Any:
            raise AssertionError("something was compiled")

        self.patch = pytest.MonkeyPatch()
        self.patch.setattr("torch._dynamo.convert_frame.compile_frame", fail)

    def __exit__(self, *_: object) -> None:
        self.patch.undo()


# Refusals -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "inputs", "message"),
    [
        ("llama", "a text", "has no tokenizer: give token ids"),
        ("llama", torch.randn(2, 3, 8, 8), "reads tokens, got floats of shape (2, 3, 8, 8) (an image?)"),
        ("llama", torch.zeros(9, dtype=torch.int64), "reads tokens, got integers of shape (9,)"),
        ("llama", torch.zeros(0, 9, dtype=torch.int64), "reads tokens, got integers of shape (0, 9)"),
        ("llama", torch.zeros(1, 9, dtype=torch.bool), "reads tokens, got torch.bool of shape (1, 9)"),
        ("llama", torch.tensor([[0, -1]]), "has no token -1: its tokens are 0 to "),
        ("gpt2", {"input_ids": torch.tensor([[10**9]])}, "has no token 1000000000: its tokens are 0 to "),
        ("gpt2", {"input_ids": [[1, 2]]}, "cannot read a list as input_ids: give a tensor"),
        ("llama", torch.zeros(1, 25, dtype=torch.int64), "25 tokens are more than the context of"),
        ("gpt2", {"input_ids": torch.zeros(1, 25, dtype=torch.int64)}, "GPT2LMHeadModel, 24"),
        ("bert", {"pixel_values": torch.zeros(1, 3, 8, 8)}, "needs input_ids, got pixel_values"),
        ("bert", 7, "cannot read a int: give text, token ids (batch, pos)"),
        ("vit", "a text", "reads images, not text"),
        ("vit", ["a text"], "reads images, not text"),
        ("vit", torch.zeros(1, 5, dtype=torch.int64), "reads images, got integers of shape (1, 5)"),
        ("vit", torch.zeros(1, 3, 8, 8, dtype=torch.uint8), "as from model.pixels(images)"),
        ("vit", torch.zeros(1, 1, 8, 8), "give floats (batch, 3, 8, 8)"),
        ("vit", torch.zeros(1, 3, 16, 16), "got floats of shape (1, 3, 16, 16)"),
        ("clip_vision_model", {"input_ids": torch.zeros(1, 5)}, "needs pixel_values, got input_ids"),
    ],
)
def test_inputs_that_a_model_does_not_read_are_refused_in_one_line(name: str, inputs: Any, message: str) -> None:
    model = subject(name)
    for call in (model, lambda inputs: model.capture(inputs, ["embed"])):
        with pytest.raises(DataError) as error:
            call(inputs)
        assert message in one_line(error)
        assert type(model.module).__name__ in one_line(error)


@pytest.mark.parametrize("text", [5, None, b"bytes", ["one", 2]])
def test_what_is_no_text_has_no_tokens(text: Any, tiny: SubjectModel) -> None:
    with pytest.raises(ConfigError, match="text must be a string or a list of strings"):
        tiny.tokens(text)


def test_one_hook_point_may_be_given_alone(tiny: SubjectModel) -> None:
    tokens = torch.tensor([[1, 2, 3]])
    alone, listed = (tiny.capture(tokens, hooks) for hooks in ("embed", ["embed"]))
    assert torch.equal(alone["embed"], listed["embed"])


def test_pixels_need_a_processor_and_a_model_that_reads_images() -> None:
    with pytest.raises(DataError, match="has no image processor"):
        subject("vit").pixels([])
    with pytest.raises(DataError, match="reads no images"):
        subject("llama").pixels([])


@pytest.mark.parametrize(
    ("name", "wrong", "near"),
    [
        ("gpt_neox", "resid_mid.1", "resid_pre.1"),
        ("phi", "blocks.0.hook_resid_mid", "resid_pre.0"),
        ("bert", "final_norm", "embed"),
        ("vit", "resid_post.2", "Layers are 0 to 1"),
    ],
)
def test_a_point_that_the_family_lacks_is_answered_with_near_names(name: str, wrong: str, near: str) -> None:
    with pytest.raises(HookError) as error:
        subject(name).hook_point(wrong)
    assert near in one_line(error)
    assert repr(wrong) in one_line(error)


@pytest.mark.parametrize("name", ["bert", "vit"])
def test_models_that_write_no_text_say_so(name: str) -> None:
    with pytest.raises(ConfigError, match="writes no text"):
        subject(name).generate("a text")


def test_the_width_of_an_unknown_module_needs_inputs() -> None:
    model = SubjectModel(nn.Sequential(nn.Linear(3, 4)))
    with pytest.raises(DataError, match=r"model.width\(hook, inputs\)"):
        model.width("0")
    assert model.width("0", torch.zeros(2, 3)) == 4


def test_a_module_built_unlike_its_family_has_raw_paths_alone() -> None:
    class Odd(nn.Module):
        def __init__(self, whole: nn.Module) -> None:
            super().__init__()
            self.config, self.table = whole.config, nn.Embedding(VOCABULARY, 4)

        def forward(self, input_ids: Tensor) -> Tensor:
            return self.table(input_ids)

    model = SubjectModel(Odd(family_module("llama")))
    assert model.hook_points == ["table"]
    assert model.capture(torch.zeros(1, 2, dtype=torch.int64), ["table"])["table"].shape == (1, 2, 4)
