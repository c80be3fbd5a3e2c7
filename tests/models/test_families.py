"""Every family: the canonical hook points lie where their names say, whatever the block is built like."""

from __future__ import annotations

import subprocess
import sys
from collections import Counter
from typing import Any

import pytest
import torch
from family_models import FAMILY_MODELS, IMAGE, LAYERS, MIXED_MODELS, POSITIONS, D, FamilyModel, family_module
from torch import Tensor, nn

from monosem.models import FAMILIES, SubjectModel
from monosem.models.attention import INNER

ENCODERS = ("bert", "roberta", "xlm-roberta")
BARE = ("SiglipVisionModel", "DINOv3ViTModel")
"""Families that are tested without a head."""


@pytest.fixture(params=FAMILY_MODELS)
def name(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def spec(name: str) -> FamilyModel:
    return FAMILY_MODELS[name]


@pytest.fixture
def model(name: str) -> SubjectModel:
    return SubjectModel(family_module(name))


@pytest.fixture
def x(model: SubjectModel, spec: FamilyModel) -> dict[str, Tensor]:
    """All hook points of one batch."""
    return model.capture(spec.inputs(), model.hook_points)


def block(model: SubjectModel, layer: int) -> nn.Module:
    return model.module.get_submodule(model.hook_point(f"resid_post.{layer}").path)


def through(block: nn.Module, paths: tuple[str | None, ...], x: Tensor) -> Tensor:
    for path in paths:
        x = x if path is None else block.get_submodule(path)(x)
    return x


def same(found: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-10)


def test_every_family_is_tested() -> None:
    assert {spec.family for spec in FAMILY_MODELS.values()} | set(MIXED_MODELS) == set(FAMILIES)


def test_sizes_come_from_the_config(model: SubjectModel, spec: FamilyModel) -> None:
    assert (model.family, model.n_layers, model.d_model) == (spec.family, LAYERS, D)
    text = None if spec.family == "bloom" else POSITIONS  # ALiBi has no table of positions
    special = {"siglip_vision_model": 0, "dinov2_with_registers": 3}.get(spec.family, 1)
    assert model.context_length == ((IMAGE // 4) ** 2 + special if spec.reads_images else text)
    assert model.width("resid_post.1") == model.width("attn_out.0") == D
    assert model.width("attn_z.0") == spec.n_heads * spec.head_width


def test_every_point_is_batch_by_position_by_width(model: SubjectModel, x: dict[str, Tensor]) -> None:
    n = model.context_length if model.inputs.image_shape else 9
    assert {tuple(value.shape[:2]) for value in x.values()} == {(2, n)}
    assert all(value.dtype == torch.float64 for value in x.values())
    for i, value in enumerate(x.values()):
        assert not any(torch.equal(value, other) for other in list(x.values())[i + 2 :]), "two points that are one"


def test_captures_equal_what_plain_forward_hooks_see(
    model: SubjectModel, spec: FamilyModel, x: dict[str, Tensor]
) -> None:
    seen: dict[str, Tensor] = {}

    def note(name: str, value: Any) -> None:
        seen[name] = value[0] if isinstance(value, tuple) else value

    handles = []
    for name in model.hook_points:
        point = model.hook_point(name)
        module = model.module.get_submodule(point.path)
        if point.side in INNER:  # tests/models/test_attention.py
            continue
        if point.side == "output":
            handles.append(module.register_forward_hook(lambda _m, _a, out, name=name: note(name, out)))
        else:
            handles.append(module.register_forward_pre_hook(lambda _m, args, name=name: note(name, args)))
    model.module(spec.inputs())
    for handle in handles:
        handle.remove()
    assert seen.keys() == {name for name in x if name[:6] not in ("attn_q", "attn_k", "attn_v")}
    assert all(torch.equal(seen[name].reshape(x[name].shape), x[name]) for name in seen)


def test_the_residual_stream_is_what_transformers_itself_reports(
    model: SubjectModel, spec: FamilyModel, x: dict[str, Tensor]
) -> None:
    states = model.module(spec.inputs(), output_hidden_states=True).hidden_states
    stream = [x["embed"], *(x[f"resid_post.{layer}"] for layer in range(LAYERS))]
    for state, ours in zip(states[:-1], stream[:-1], strict=True):
        same(ours, state)
    last = x.get("final_norm", stream[-1])
    assert torch.equal(states[-1], last) or torch.equal(states[-1], stream[-1])
    assert torch.equal(x["embed"], x["resid_pre.0"])
    assert torch.equal(x["resid_post.0"], x["resid_pre.1"])


@pytest.mark.parametrize("layer", range(LAYERS))
def test_the_residual_stream_adds_up(model: SubjectModel, spec: FamilyModel, x: dict[str, Tensor], layer: int) -> None:
    pre, attn, mlp = x[f"resid_pre.{layer}"], x[f"attn_out.{layer}"], x[f"mlp_out.{layer}"]
    mid, post = x.get(f"resid_mid.{layer}"), x[f"resid_post.{layer}"]
    if spec.order == "parallel":
        assert mid is None
        same(post, pre + attn + mlp)
    elif spec.order == "serial":
        assert mid is not None
        same(mid, pre + attn)
        same(post, mid + mlp)
    else:
        assert mid is not None
        assert spec.sum_norms is not None
        first, second = (block(model, layer).get_submodule(path) for path in spec.sum_norms)
        same(mid, first(pre + attn))
        same(post, second(mid + mlp))


@pytest.mark.parametrize("layer", range(LAYERS))
def test_an_edit_of_the_stream_goes_on_in_all_that_reads_it(
    model: SubjectModel, spec: FamilyModel, x: dict[str, Tensor], layer: int
) -> None:
    """With other inputs' stream put in its place, what follows is theirs; a look behind the block may come before."""
    other = spec.inputs().flip(0)
    theirs = model.capture(other, model.hook_points)
    for point in ("resid_pre", "resid_mid", "resid_post"):
        hook = f"{point}.{layer}"
        if hook not in x:
            continue
        seen: list[Tensor] = []
        looks = {f"resid_post.{layer}": lambda now, _, seen=seen: seen.append(now) or now}
        with model.edit({**({} if point == "resid_post" else looks), hook: lambda _, __, hook=hook: theirs[hook]}):
            after = model.capture(spec.inputs(), [f"resid_post.{LAYERS - 1}"])
        same(after[f"resid_post.{LAYERS - 1}"], theirs[f"resid_post.{LAYERS - 1}"])
        assert not torch.equal(after[f"resid_post.{LAYERS - 1}"], x[f"resid_post.{LAYERS - 1}"])
        for value in seen:
            same(value, theirs[f"resid_post.{layer}"])
    same(model.capture(spec.inputs(), [f"resid_post.{layer}"])[f"resid_post.{layer}"], x[f"resid_post.{layer}"])


@pytest.mark.parametrize("layer", range(LAYERS))
def test_what_is_written_follows_from_attn_z_and_mlp_mid(
    model: SubjectModel, spec: FamilyModel, x: dict[str, Tensor], layer: int
) -> None:
    inside = block(model, layer)
    same(x[f"attn_out.{layer}"], through(inside, (spec.attn, spec.attn_after), x[f"attn_z.{layer}"]))
    if spec.experts:
        assert f"mlp_mid.{layer}" not in x
        out = inside.mlp(x[f"mlp_in.{layer}"])
        same(x[f"mlp_out.{layer}"], out[0] if isinstance(out, tuple) else out)  # GPT-OSS tells what it chose too
    else:
        same(x[f"mlp_out.{layer}"], through(inside, (spec.mlp, spec.mlp_after), x[f"mlp_mid.{layer}"]))
    read = x[f"resid_pre.{layer}" if spec.order == "parallel" else f"resid_mid.{layer}"]
    same(x[f"mlp_in.{layer}"], through(inside, (spec.mlp_norm,), read))


def test_attn_z_is_each_head_s_weighted_values_side_by_side(spec: FamilyModel, name: str) -> None:
    """From the attention pattern that transformers reports, and values projected here from the normed stream."""
    model = SubjectModel(spec.build(attn_implementation="eager"))
    pattern = model.module(spec.inputs(), output_attentions=True).attentions[1]
    values = values_by_hand(model, spec)
    values = values.repeat_interleave(spec.n_heads // values.shape[2], dim=2)
    z = torch.einsum("bhqk,bkhd->bqhd", pattern, values).flatten(2)
    same(model.capture(spec.inputs(), ["attn_z.1"])["attn_z.1"], z)


def values_by_hand(model: SubjectModel, spec: FamilyModel) -> Tensor:
    """(batch, pos, key-value head, width) of block 1."""
    inside, width = block(model, 1), spec.head_width
    x = model.capture(spec.inputs(), ["resid_pre.1"])["resid_pre.1"]
    for norm in (
        "ln_1",
        "self_attn_layer_norm",
        "input_layernorm",
        "layernorm_before",
        "layer_norm1",
        "norm1",
        "attn_norm",
    ):
        x = getattr(inside, norm)(x) if hasattr(inside, norm) else x
    if spec.family == "gpt2":
        x = inside.attn.c_attn(x)[..., 2 * D :]
    elif spec.family == "gpt_neox":  # query, key and value of each head lie together
        return inside.attention.query_key_value(x).unflatten(-1, (spec.n_heads, 3, width))[..., 2, :]
    elif spec.family == "bloom":
        return inside.self_attention.query_key_value(x).unflatten(-1, (spec.n_heads, 3, width))[..., 2, :]
    elif spec.family in ("gptj", "gpt_neo"):
        x = (inside.attn if spec.family == "gptj" else inside.attn.attention).v_proj(x)
    elif spec.family == "phi3":
        x = inside.self_attn.qkv_proj(x)[..., -2 * width :]
    elif spec.family in ENCODERS:
        x = inside.attention.self.value(x)
    elif spec.family == "modernbert":
        x = inside.attn.Wqkv(x)[..., 2 * D :]
    else:
        x = getattr(inside, "self_attn" if hasattr(inside, "self_attn") else "attention").v_proj(x)
    return x.unflatten(-1, (-1, width))


def test_the_head_reads_the_last_point(model: SubjectModel, spec: FamilyModel, x: dict[str, Tensor]) -> None:
    logits = model(spec.inputs())
    module: Any = model.module
    if "final_norm" in x and hasattr(module, "lm_head"):
        expected = module.lm_head(x["final_norm"]) * getattr(module.config, "logit_scale", 1)
        cap = getattr(module.config, "final_logit_softcapping", None)
        same(logits, expected if cap is None else (expected / cap).tanh() * cap)
    elif spec.family == "modernbert":
        same(logits, module.decoder(module.head(x["final_norm"])))
    elif spec.family == "siglip_vision_model":
        same(logits.pooler_output, module.head(x["final_norm"]))
    elif spec.family == "dinov3_vit":
        same(logits.pooler_output, x["final_norm"][:, 0])
    elif spec.family in ENCODERS:
        head = module.cls if spec.family == "bert" else module.lm_head
        same(logits, head(x["resid_post.1"]))
    elif spec.family == "vit":
        same(logits, module.classifier(x["final_norm"][:, 0]))
    elif spec.family.startswith("dinov2"):
        registers = getattr(module.config, "num_register_tokens", 0)
        pooled = torch.cat([x["final_norm"][:, 0], x["final_norm"][:, 1 + registers :].mean(1)], dim=1)
        same(logits, module.classifier(pooled))
    else:
        assert spec.family == "clip_vision_model"
        same(logits.image_embeds, module.visual_projection(module.vision_model.post_layernorm(x["resid_post.1"][:, 0])))


def test_an_identity_edit_changes_no_bit(model: SubjectModel, spec: FamilyModel) -> None:
    def output() -> Tensor:
        out = model(spec.inputs())
        return (
            out
            if isinstance(out, Tensor)
            else next(v for k, v in out.items() if k in ("image_embeds", "pooler_output"))
        )

    before = output()
    with model.edit(dict.fromkeys(model.hook_points, lambda x, _: x.clone())):
        assert torch.equal(output(), before)
    for hook in model.hook_points:
        with model.edit({hook: lambda x, _: 2 * x + 1 + torch.arange(x.shape[-1]) % 3}):
            assert not torch.equal(output(), before), f"an edit at {hook} reaches nothing"


def test_the_forward_pass_stops_after_the_last_hook_point(spec: FamilyModel) -> None:
    model, calls = SubjectModel(spec.build()), Counter()
    for path, module in model.module.named_modules():
        module.register_forward_pre_hook(lambda _m, _a, path=path: calls.update([path]))
    model(spec.inputs())
    order = list(calls)
    calls.clear()
    point = model.hook_point("attn_out.0")
    model.capture(spec.inputs(), ["attn_out.0", "embed"])
    first = model.hook_point("resid_post.0").path
    assert point.path in calls
    assert not any(path.startswith(model.hook_point("resid_post.1").path) for path in calls)
    assert not any(path.startswith((f"{first}.mlp", f"{first}.intermediate")) for path in calls)
    turning = {path for path in calls if path.endswith("rotary_emb")}  # of ModernBERT: for two kinds of layers
    assert {n for path, n in calls.items() if path not in turning} == {1}
    assert list(calls) == order[: len(calls)]


@pytest.mark.parametrize("head", ["", "SequenceClassification"])
def test_points_are_the_same_whatever_the_head(spec: FamilyModel, name: str, head: str) -> None:
    """Bare base models, and the classifiers that reward models are."""
    import transformers

    whole = family_module(name)
    if head:
        stem = spec.head.removesuffix("LMHeadModel").partition("For")[0]
        if not hasattr(transformers, stem + "For" + head):
            pytest.skip("no such class")
        other = spec.build(stem + "For" + head)
        load_base(other.base_model, base_of(whole))
        assert SubjectModel(other)(spec.inputs()).shape == (2, 2)
    else:
        other = base_of(whole)
    theirs, ours = SubjectModel(other), SubjectModel(whole)
    assert theirs.hook_points == ours.hook_points
    found, expected = (m.capture(spec.inputs(), m.hook_points) for m in (theirs, ours))
    for point in ours.hook_points:
        assert torch.equal(found[point], expected[point])


def base_of(module: nn.Module) -> nn.Module:
    if hasattr(module, "vision_model"):
        return module.get_submodule("vision_model")
    return module if type(module).__name__ in BARE else module.base_model


def load_base(to: nn.Module, from_: nn.Module) -> None:
    missing = to.load_state_dict(from_.state_dict(), strict=False).missing_keys
    assert all(key.startswith("pooler") for key in missing)


def test_the_tables_of_families_import_no_library() -> None:
    """What a model is built of is there when its table is asked for: nothing of transformers is loaded for it."""
    code = (
        "import sys; from monosem.models.families import FAMILIES; print(len(FAMILIES), 'transformers' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == [str(len(FAMILIES)), "False"]
