"""What lies inside attention: each layer is computed anew from queries, keys, values and pattern, in every family."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from family_models import FAMILY_MODELS, FamilyModel, family_module, pooled
from torch import Tensor

from monosem.errors import ConfigError, HookError
from monosem.models import SubjectModel

NAMES = [name for name, spec in FAMILY_MODELS.items() if not spec.reads_images]
LAYER = 1


@pytest.fixture(params=[*FAMILY_MODELS])
def name(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def spec(name: str) -> FamilyModel:
    return FAMILY_MODELS[name]


@pytest.fixture
def model(name: str) -> SubjectModel:
    return SubjectModel(family_module(name))


def inside(model: SubjectModel, inputs: Any, layer: int = LAYER) -> dict[str, Tensor]:
    names = [f"attn_{kind}.{layer}" for kind in ("q", "k", "v", "pattern", "z")]
    found = model.capture(inputs, [f"resid_pre.{layer}", *names])
    return {name.partition(".")[0].removeprefix("attn_"): x for name, x in found.items()}


def by_head(x: Tensor, width: int, heads: int = 0) -> Tensor:
    """(batch, heads, pos, width), shared keys and values repeated for each of their queries."""
    x = x.unflatten(-1, (-1, width)).transpose(1, 2)
    return x.repeat_interleave(heads // x.shape[1], dim=1) if heads else x


def visible(model: SubjectModel, spec: FamilyModel, n: int) -> Tensor:
    """Which keys a query of block 1 may see, by config."""
    seen = torch.ones(n, n, dtype=torch.bool)
    if spec.family == "modernbert":  # layer 1 sees half its window on either side
        return (torch.arange(n)[:, None] - torch.arange(n)).abs() <= model.module.config.local_attention // 2
    if not spec.causal:
        return seen
    window = getattr(model.module.config, "sliding_window", None) or getattr(model.module.config, "window_size", None)
    kinds = getattr(model.module.config, "layer_types", None)
    if kinds is not None and kinds[LAYER] == "full_attention":
        window = None
    return seen.tril() if window is None else seen.tril() & ~seen.tril(-window)


def pattern_by_hand(model: SubjectModel, spec: FamilyModel, found: dict[str, Tensor]) -> Tensor:
    q, k = by_head(found["q"], spec.head_width), by_head(found["k"], spec.head_width, spec.n_heads)
    scale = getattr(model.module.config, "query_pre_attn_scalar", spec.head_width) ** -0.5
    scale = 1.0 if spec.family in ("gpt_neo", "opt") else scale  # OPT's queries are scaled before they meet keys
    scores = q @ k.transpose(2, 3) * scale
    if spec.family == "bloom":  # ALiBi: by the key's place, of four heads the slopes 1/4, 1/16, 1/64, 1/256
        slopes = torch.tensor([2.0**-2, 2.0**-4, 2.0**-6, 2.0**-8], dtype=scores.dtype)
        scores = scores + slopes[:, None, None] * torch.arange(scores.shape[-1])
    cap = getattr(model.module.config, "attn_logit_softcapping", None)
    if cap is not None:
        scores = (scores / cap).tanh() * cap
    scores = scores.masked_fill(~visible(model, spec, scores.shape[-1]), -torch.inf)
    if spec.family == "gpt_oss":  # each head has a score of its own for looking at nothing
        nothing: Any = model.module.get_submodule(model.hook_point(f"attn_q.{LAYER}").path).sinks
        scores = torch.cat([scores, nothing[:, None, None].expand_as(scores[..., :1])], dim=-1)
        return scores.softmax(-1)[..., :-1]
    eager = model.module.config._attn_implementation == "eager"  # which takes its softmax in float32
    return scores.softmax(-1, dtype=torch.float32 if eager else None).to(scores.dtype)


SINGLE = ("gptj", "gpt_neo", "bloom")
"""Families whose scores or softmax are of float32 whatever the model is of."""


def same(found: Tensor, expected: Tensor, model: SubjectModel | None = None) -> None:
    """In float64; of a model whose attention takes its softmax in float32, to that precision."""
    eager = model is not None and model.module.config._attn_implementation == "eager"
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5 if eager else 1e-12)


def test_heads_lie_side_by_side_and_shared_ones_once(model: SubjectModel, spec: FamilyModel) -> None:
    found = inside(model, spec.inputs())
    n, shared = found["z"].shape[1], spec.sizes.get("num_key_value_heads", spec.n_heads)
    assert found["q"].shape == (2, n, spec.n_heads * spec.head_width) == found["z"].shape
    assert found["k"].shape == (2, n, shared * spec.head_width) == found["v"].shape
    assert found["pattern"].shape == (2, spec.n_heads, n, n)


def test_the_pattern_is_the_softmax_of_queries_and_keys(model: SubjectModel, spec: FamilyModel) -> None:
    found = inside(model, spec.inputs())
    same(found["pattern"], pattern_by_hand(model, spec, found), model if spec.family in SINGLE else None)
    if spec.family != "gpt_oss":
        whole = torch.ones_like(found["pattern"][..., 0])
        torch.testing.assert_close(found["pattern"].sum(-1), whole, rtol=0, atol=1e-6)
    assert not found["pattern"][..., ~visible(model, spec, found["z"].shape[1])].any()


def test_attn_z_is_the_pattern_times_the_values(model: SubjectModel, spec: FamilyModel) -> None:
    found = inside(model, spec.inputs())
    z = found["pattern"] @ by_head(found["v"], spec.head_width, spec.n_heads)
    same(found["z"], z.transpose(1, 2).flatten(2))


@pytest.mark.parametrize("name", NAMES)
def test_the_pattern_is_the_one_that_transformers_reports(spec: FamilyModel, name: str) -> None:
    """Eager attention reports its softmax, taken in float32 where the family takes it so."""
    eager = SubjectModel(spec.build(attn_implementation="eager"))
    reported = eager.module(spec.inputs(), output_attentions=True).attentions[LAYER]
    ours = [SubjectModel(family_module(name)), eager]
    for model in ours:
        found = model.capture(spec.inputs(), [f"attn_pattern.{LAYER}"])[f"attn_pattern.{LAYER}"]
        torch.testing.assert_close(found, reported, rtol=0, atol=4e-6)


def test_looking_changes_no_bit_and_leaves_nothing_behind(model: SubjectModel, spec: FamilyModel) -> None:
    def output() -> Tensor:
        out = model(spec.inputs())
        return out if isinstance(out, Tensor) else pooled(out)

    before, attention = output(), model.module.get_submodule(model.hook_point("attn_q.0").path)
    config = getattr(attention, "config", model.module.config)
    own = config._attn_implementation
    others = [*attention._forward_hooks, *attention._forward_pre_hooks]  # the library puts some where it was asked
    places = [f"attn_{kind}.{layer}" for kind in ("q", "k", "v", "pattern") for layer in range(2)]
    with model.edit(dict.fromkeys(places, lambda x, _: x.clone())) as reports:
        assert torch.equal(output(), before)
        assert config._attn_implementation == own
    assert {report.calls for report in reports} == {1}
    assert [*attention._forward_hooks, *attention._forward_pre_hooks] == others
    model.capture(spec.inputs(), ["attn_pattern.0"])  # which stops within the layer
    assert config._attn_implementation == own
    assert torch.equal(output(), before)


def test_an_edit_goes_through_to_what_follows_from_it(model: SubjectModel, spec: FamilyModel) -> None:
    """Of each of the four by turns, the layer's result is what this file computes with the edited one."""
    plain = inside(model, spec.inputs())
    heads = spec.n_heads

    def change(x: Tensor, _: object = None) -> Tensor:
        return x.flip(-2) * 1.5 + torch.linspace(-1, 1, x.shape[-1], dtype=x.dtype)

    for kind in ("q", "k", "v", "pattern"):
        with model.edit({f"attn_{kind}.{LAYER}": change}):
            z = model.capture(spec.inputs(), [f"attn_z.{LAYER}"])[f"attn_z.{LAYER}"]
        changed = {**plain, kind: change(plain[kind])}
        pattern = changed["pattern"] if kind == "pattern" else pattern_by_hand(model, spec, changed)
        by_hand = (pattern @ by_head(changed["v"], spec.head_width, heads)).transpose(1, 2).flatten(2)
        same(z, by_hand, model if spec.family in SINGLE else None)
        assert not torch.allclose(z, plain["z"])


def test_an_edit_in_place_is_an_edit(model: SubjectModel, spec: FamilyModel) -> None:
    for kind in ("q", "k", "v", "pattern"):
        hook = f"attn_{kind}.{LAYER}"
        with model.edit({hook: lambda x, _: x.mul_(-2)}):
            in_place = model.capture(spec.inputs(), [f"attn_out.{LAYER}"])[f"attn_out.{LAYER}"]
        with model.edit({hook: lambda x, _: x * -2}):
            same(in_place, model.capture(spec.inputs(), [f"attn_out.{LAYER}"])[f"attn_out.{LAYER}"])


@pytest.mark.parametrize("name", NAMES)
def test_padding_is_seen_by_no_token(model: SubjectModel, spec: FamilyModel) -> None:
    tokens, mask = spec.inputs(), torch.ones(2, 9, dtype=torch.int64)
    mask[1, 6:] = 0
    found = model.capture({"input_ids": tokens, "attention_mask": mask}, ["attn_pattern.1", "attn_v.1", "attn_z.1"])
    alone = model.capture(tokens[1:, :6], ["attn_pattern.1"])["attn_pattern.1"]
    same(found["attn_pattern.1"][1:, :, :6, :6], alone, model)
    assert not found["attn_pattern.1"][1, :, :6, 6:].any()
    values = by_head(found["attn_v.1"], spec.head_width, spec.n_heads)
    z = (found["attn_pattern.1"] @ values).transpose(1, 2).flatten(2)
    same(found["attn_z.1"][mask.bool()], z[mask.bool()])


CAUSAL = [name for name, spec in FAMILY_MODELS.items() if spec.causal]


@pytest.mark.parametrize("name", CAUSAL)
def test_what_is_edited_in_the_prompt_holds_while_text_is_written(model: SubjectModel, spec: FamilyModel) -> None:
    """Keys and values that are kept for later tokens are the edited ones: as if all were read at once."""
    tokens = spec.inputs(batch=1)
    patterns: list[Tensor] = []

    def third(x: Tensor, context: Any) -> Tensor:
        chosen = (context.positions == 2)[..., None]
        return torch.where(chosen, -x + torch.linspace(0, 3, x.shape[-1], dtype=x.dtype), x)

    def note(x: Tensor, _: object) -> Tensor:
        patterns.append(x.clone())
        return x

    with torch.no_grad(), model.edit({"attn_k.0": third, "attn_v.1": third, "attn_pattern.1": note}):
        at_once = model(tokens)
        out = model.module(tokens[:, :5], use_cache=True)
        steps = [out.logits]
        for i in range(5, tokens.shape[1]):
            out = model.module(tokens[:, i : i + 1], past_key_values=out.past_key_values, use_cache=True)
            steps.append(out.logits)
    same(torch.cat(steps, dim=1), at_once, model)
    assert not torch.allclose(at_once, model(tokens))
    last = patterns[-1]  # a window's keys may have been dropped
    same(last, patterns[0][:, :, -1:, -last.shape[-1] :], model)


def test_gradients_flow_through_what_is_watched(model: SubjectModel, spec: FamilyModel) -> None:
    """And an edit may put a leaf there: the gradient of it is that of the layer written by hand."""
    found = inside(model, spec.inputs())
    leaves: dict[str, Tensor] = {}
    for kind in ("q", "k", "v", "pattern"):

        def leaf(x: Tensor, _: object, kind: str = kind) -> Tensor:
            leaves[kind] = x.detach().clone().requires_grad_()
            return leaves[kind]

        after: list[Tensor] = []
        hooks: dict[str, Any] = {
            f"attn_{kind}.{LAYER}": leaf,
            f"attn_z.{LAYER}": lambda x, _, to=after: to.append(x) or x,
        }
        with torch.enable_grad(), model.edit(hooks):
            model.module(**model.inputs.arguments(spec.inputs(), model.device))
        (found_gradient,) = torch.autograd.grad(after[0].square().sum(), leaves[kind])
        changed = {**found, kind: leaves[kind]}
        pattern = changed["pattern"] if kind == "pattern" else pattern_by_hand(model, spec, changed)
        z = pattern @ by_head(changed["v"], spec.head_width, spec.n_heads)
        (by_hand,) = torch.autograd.grad(z.square().sum(), leaves[kind])
        torch.testing.assert_close(found_gradient, by_hand, rtol=0, atol=1e-3 if spec.family in SINGLE else 1e-9)


def test_names_of_transformer_lens_are_known(make_gpt2: Any) -> None:
    model = SubjectModel(make_gpt2(seed=0, vocabulary=30, layers=2))
    for theirs, ours in (("pattern", "pattern"), ("rot_q", "q"), ("rot_k", "k"), ("v", "v")):
        assert model.hook_point(f"blocks.1.attn.hook_{theirs}").name == f"attn_{ours}.1"


def test_any_attention_of_transformers_is_looked_into_by_its_path(make_gpt2: Any) -> None:
    model = SubjectModel(make_gpt2(seed=0, vocabulary=30, layers=2))
    tokens = torch.arange(8)[None]
    by_path = model.capture(tokens, ["transformer.h.1.attn:pattern"])["transformer.h.1.attn:pattern"]
    assert torch.equal(by_path, model.capture(tokens, ["attn_pattern.1"])["attn_pattern.1"])
    with pytest.raises(HookError, match="GPT2MLP is no attention"):
        model.capture(tokens, ["transformer.h.1.mlp:query"])


def test_a_pattern_is_no_activation_to_train_on(make_gpt2: Any) -> None:
    from monosem.activations import LiveActivations

    model = SubjectModel(make_gpt2(seed=0, vocabulary=30, layers=2))
    with pytest.raises(ConfigError, match=r"attn_pattern\.1 has .* read attn_z\.1"):
        LiveActivations(model, "attn_pattern.1")
