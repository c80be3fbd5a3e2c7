"""ms.generate: with a cache or without, alone or in a batch, it writes the same; what is asked for is in the answer."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

import monosem as ms
from monosem.errors import ConfigError, DataError
from monosem.models import SubjectModel
from monosem.sae import TopKSAE

HOOK = "resid_post.1"
PROMPTS = ["One day", "The cat and the dog", "In"]


@pytest.fixture(scope="module")
def model(make_gpt2: Callable[..., nn.Module], tokenizer: Any) -> SubjectModel:
    """In float64."""
    return SubjectModel(make_gpt2(dtype=torch.float64), tokenizer, "wide")


@pytest.fixture(scope="module")
def sae(model: SubjectModel) -> TopKSAE:
    made = TopKSAE(32, 64, k=9, dtype=torch.float64, seed=1)
    made.initialise(model.capture(torch.arange(1, 60)[None], [HOOK])[HOOK][0])
    made.metadata.hook, made.metadata.skip_first = HOOK, 1
    return made


def edits(sae: TopKSAE) -> list[Any]:
    v = torch.randn(32, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    return [
        ms.Scale(sae, list(range(20)), 2.0),
        ms.Set(sae, [30, 31], [[3.0, 0.0], [0.0, 3.0], [2.0, 2.0]], where=ms.Where(phase="generated")),
        ms.AddVector("resid_post.0", v, where=ms.Where(positions=[-1, 9], schedule=[(0, 1.0), (6, 3.0)])),
        ms.Ablate(sae, 5, by="resample", source=torch.arange(100, 140)[None]),
        ms.CapProjection("mlp_out.2", v, most=0.1),
    ]


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_cached_generation_equals_uncached_and_a_row_equals_the_row_alone(
    model: SubjectModel, sae: TopKSAE, temperature: float
) -> None:
    settings = {"max_new_tokens": 12, "temperature": temperature, "features": sae}
    together = ms.generate(model, PROMPTS, edits=edits(sae), seed=4, **settings)
    plain = ms.generate(model, PROMPTS, seed=4, **settings)
    assert [g.tokens for g in together] != [g.tokens for g in plain]
    again = ms.generate(
        model, PROMPTS, edits=edits(sae), seed=4, max_new_tokens=12, temperature=temperature, cached=False
    )
    assert [g.tokens for g in again] == [g.tokens for g in together]
    for row, prompt in enumerate(PROMPTS):
        own = edits(sae)
        own[1] = ms.Set(sae, [30, 31], own[1].to.numbers[row], where=own[1].where)
        alone = ms.generate(model, prompt, edits=own, seed=4 + row, **settings)
        assert alone.tokens == together[row].tokens
        assert alone.text == together[row].text
        found, expected = together[row].features, alone.features
        torch.testing.assert_close(found.to_dense(), expected.to_dense(), rtol=1e-9, atol=1e-9)
        assert [r.changed(row) for r in together[row].reports] == [r.changed() for r in alone.reports]


def test_features_are_those_of_one_forward_pass_over_the_whole_text(model: SubjectModel, sae: TopKSAE) -> None:
    edit = ms.Add(sae, 7, 4.0)
    out = ms.generate(model, "One day", edits=[edit], features=sae, max_new_tokens=6, temperature=0)
    whole = torch.tensor([out.prompt_tokens + out.tokens])
    with model.edit([edit]):
        x = model.capture(whole, [HOOK])[HOOK]
    expected = sae.encode(x[0]).to_dense()
    expected[0] = 0  # the SAE reads neither the first position nor special tokens
    assert out.features.shape == (whole.shape[1], 64)
    torch.testing.assert_close(out.features.to_dense(), expected, rtol=1e-9, atol=1e-9)
    assert out.text == model.tokenizer.decode(out.tokens)
    assert str(out) == "One day" + out.text


@pytest.mark.parametrize("least", [{"temperature": 1e-300}, {"temperature": 1e-30}, {"top_p": 1e-300}, {"top_k": 1}])
def test_where_nothing_is_left_to_chance_it_is_the_likeliest(model: SubjectModel, least: dict[str, float]) -> None:
    settings: Any = {"max_new_tokens": 6, "temperature": 1.0, "seed": 3, **least}
    for each in (model, single(model)):
        likeliest = ms.generate(each, "One day", max_new_tokens=6, temperature=0)
        assert ms.generate(each, "One day", **settings).tokens == likeliest.tokens


def single(model: SubjectModel) -> SubjectModel:
    """The same in float32, which knows no number below 1e-45."""
    return SubjectModel(copy.deepcopy(model.module).float(), model.tokenizer, model.name)


def test_pieces_add_up_to_the_text_and_nothing_is_in_force_between_them(model: SubjectModel, sae: TopKSAE) -> None:
    edit, tokens = ms.Add(sae, 7, 9.0), model.tokens("The cat")
    plain = model(tokens)
    writing = ms.stream(model, PROMPTS, edits=[edit], max_new_tokens=9, temperature=1.0, seed=1)
    texts = ["", "", ""]
    for piece in writing:
        texts[piece.row] += piece.text
        assert torch.equal(model(tokens), plain)
    assert texts == [g.text for g in writing.generations]
    assert [g.finish for g in writing.generations] == ["length"] * 3
    assert texts == [
        g.text for g in ms.generate(model, PROMPTS, edits=[edit], max_new_tokens=9, temperature=1.0, seed=1)
    ]


def test_who_stops_taking_pieces_ends_the_generation(model: SubjectModel) -> None:
    class HungUp(Exception):
        pass

    heard: list[str] = []

    def listen(piece: Any) -> None:
        heard.append(piece.text)
        if len(heard) == 3:
            raise HungUp

    seen: list[int] = []

    class Count:
        hooks = ("resid_post.0",)

        def apply(self, x: torch.Tensor, context: Any) -> torch.Tensor:
            seen.append(1)
            return x

    with pytest.raises(HungUp):
        ms.generate(model, "One day", edits=[Count()], max_new_tokens=30, stream=listen)
    assert len(seen) == 3
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.module.modules())


def test_a_stop_string_is_cut_off_and_never_told_in_part(model: SubjectModel) -> None:
    whole = ms.generate(model, "One day", max_new_tokens=20, temperature=0).text
    stop = whole[7:12]
    at = whole.find(stop)
    told: list[str] = []
    out = ms.generate(
        model,
        "One day",
        max_new_tokens=20,
        temperature=0,
        stop=[stop, "never there"],
        stream=lambda p: told.append(p.text),
    )
    assert out.text == "".join(told) == whole[:at]
    assert out.finish == "stop"
    assert len(out.tokens) < 20


def test_the_end_of_a_text_ends_its_row_alone(model: SubjectModel) -> None:
    """The tokenizer's end token is made the likeliest once, in one row."""
    end = model.tokenizer.eos_token_id
    away = model.module.lm_head.weight[end].detach() * 1000
    finish = ms.AddVector("final_norm", away, where=ms.Where(rows=1, positions=8))
    out = ms.generate(model, PROMPTS, edits=[finish], max_new_tokens=10, temperature=0)
    assert [g.finish for g in out] == ["length", "stop", "length"]
    n = len(out[1].prompt_tokens)
    assert len(out[1].tokens) == 10 - n
    assert out[1].tokens[-1] == end
    assert [len(g.tokens) for g in (out[0], out[2])] == [10, 10]
    assert model.tokenizer.decode([end]) not in out[1].text


def test_a_chat_goes_through_the_model_s_own_template(make_gpt2: Callable[..., nn.Module], tokenizer: Any) -> None:
    import copy

    chatty = copy.deepcopy(tokenizer)
    chatty.chat_template = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}you: "
    model = SubjectModel(make_gpt2(), chatty)
    chat = [{"role": "user", "content": "hello"}]
    out = ms.generate(model, chat, max_new_tokens=4, temperature=0)
    assert out.prompt == "user: hello\nyou: "
    several = ms.generate(model, [chat, chat * 2], max_new_tokens=4, temperature=0)
    assert several[0].tokens == out.tokens
    assert several[1].prompt == "user: hello\nuser: hello\nyou: "


def test_what_cannot_be_written_is_refused_before_anything_runs(model: SubjectModel, sae: TopKSAE) -> None:
    v = torch.ones(32)
    cases: list[tuple[Any, dict[str, Any], type[Exception], str]] = [
        ([], {}, DataError, "got nothing"),
        (3, {}, ConfigError, "prompt must be a string, a list of strings"),
        ([{"role": "user", "content": "hello"}], {}, ConfigError, "no chat template"),
        ([{"role": "user"}], {}, DataError, "role and content"),
        ("One day", {"max_new_tokens": 0}, ConfigError, "max_new_tokens"),
        ("One day", {"max_new_tokens": 100}, DataError, "do not fit the context of 64"),
        ("One day", {"temperature": -1.0}, ConfigError, "temperature"),
        ("One day", {"top_p": 0.0}, ConfigError, "top_p"),
        ("One day", {"stop": [""]}, ConfigError, "stop"),
        ("One day", {"seed": [1, 2]}, ConfigError, "2 seeds for 1 prompts"),
        (
            "One day",
            {"edits": [ms.AddVector(HOOK, v, where=ms.Where(positions=53))]},
            DataError,
            "position 53 is outside",
        ),
        ("One day", {"edits": [ms.Add(sae, 1, torch.ones(2, 1))]}, DataError, "2 rows"),
    ]
    for prompt, options, kind, words in cases:
        with pytest.raises(kind, match=words):
            ms.generate(model, prompt, **options)
    bert = SubjectModel(nn.Linear(2, 2), name="a layer")
    with pytest.raises(ConfigError, match="a layer writes no text"):
        ms.generate(bert, "One day")


def test_the_head_reads_rows_in_order_so_that_its_weights_are_not_copied_for_each_row(model: SubjectModel) -> None:
    ordered: list[bool] = []
    head = model.module.get_output_embeddings()  # pyright: ignore[reportCallIssue]
    handle = head.register_forward_pre_hook(lambda _, args: ordered.append(args[0].is_contiguous()))
    try:
        ms.generate(model, PROMPTS, max_new_tokens=3)
    finally:
        handle.remove()
    assert ordered == [True] * 3
