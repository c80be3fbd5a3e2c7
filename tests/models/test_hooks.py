"""Hook points: their names, and that they lie where their names say."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from monosem.errors import HookError
from monosem.models import SubjectModel
from monosem.models.hooks import resolve

LAYERS = 3
CANONICAL = [
    "embed",
    *(
        f"{kind}.{layer}"
        for layer in range(LAYERS)
        for kind in (
            "resid_pre",
            "resid_mid",
            "resid_post",
            *("attn_q", "attn_k", "attn_v"),
            "attn_z",
            "attn_out",
            "mlp_in",
            "mlp_mid",
            "mlp_out",
        )
    ),
    "final_norm",
]
PLAIN = {
    "embed": ("drop", "output"),
    "resid_pre": ("h.{}", "input"),
    "resid_mid": ("h.{}.ln_2", "input"),
    "resid_post": ("h.{}", "output"),
    "attn_z": ("h.{}.attn.c_proj", "input"),
    "attn_out": ("h.{}.attn", "output"),
    "mlp_in": ("h.{}.mlp.c_fc", "input"),
    "mlp_mid": ("h.{}.mlp.act", "output"),
    "mlp_out": ("h.{}.mlp.dropout", "output"),
    "final_norm": ("ln_f", "output"),
}


@pytest.fixture(scope="module")
def exact(make_gpt2: Callable[..., nn.Module]) -> SubjectModel:
    """A random GPT-2 in float64."""
    return SubjectModel(make_gpt2(seed=1, vocabulary=50, layers=LAYERS, dtype=torch.float64))


@pytest.fixture(scope="module")
def tokens() -> Tensor:
    return torch.randint(0, 50, (2, 9), generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def captured(exact: SubjectModel, tokens: Tensor) -> dict[str, Tensor]:
    return exact.capture(tokens, CANONICAL)


def test_all_canonical_names_are_listed(exact: SubjectModel) -> None:
    assert sorted(exact.hook_points) == sorted(CANONICAL)


@pytest.mark.parametrize("name", [name for name in CANONICAL if name.partition(".")[0] in PLAIN])
def test_a_capture_equals_what_a_plain_hook_sees(
    exact: SubjectModel, tokens: Tensor, captured: dict[str, Tensor], name: str
) -> None:
    kind, _, layer = name.partition(".")
    path, side = PLAIN[kind]
    seen: list[Any] = []
    module = exact.module.get_submodule("transformer." + path.format(layer))
    if side == "output":
        handle = module.register_forward_hook(lambda _m, _a, out: seen.append(out))
    else:
        handle = module.register_forward_pre_hook(lambda _m, args: seen.append(args))
    exact.module(tokens)
    handle.remove()
    plain = seen[0][0] if isinstance(seen[0], tuple) else seen[0]
    torch.testing.assert_close(captured[name], plain, rtol=0, atol=1e-12)
    assert torch.equal(captured[name], exact.capture(tokens, [name])[name])


def test_captures_equal_a_gpt2_written_by_hand(
    exact: SubjectModel, tokens: Tensor, captured: dict[str, Tensor]
) -> None:
    """Every point, from the embedding to the logits, follows from the one before by the published formulas."""
    p = dict(exact.module.named_parameters())
    n, heads = tokens.shape[1], 4

    def same(name: str, expected: Tensor) -> None:
        torch.testing.assert_close(captured[name], expected, rtol=0, atol=1e-10)

    def norm(x: Tensor, name: str) -> Tensor:
        return F.layer_norm(x, x.shape[-1:], p[f"transformer.{name}.weight"], p[f"transformer.{name}.bias"])

    def affine(x: Tensor, name: str) -> Tensor:
        return x @ p[f"transformer.{name}.weight"] + p[f"transformer.{name}.bias"]

    x = p["transformer.wte.weight"][tokens] + p["transformer.wpe.weight"][:n]
    same("embed", x)
    for layer in range(LAYERS):
        same(f"resid_pre.{layer}", x)
        q, k, v = (
            part.reshape(2, n, heads, -1).transpose(1, 2)
            for part in affine(norm(x, f"h.{layer}.ln_1"), f"h.{layer}.attn.c_attn").chunk(3, dim=-1)
        )
        for kind, part in zip("qkv", (q, k, v), strict=True):
            same(f"attn_{kind}.{layer}", part.transpose(1, 2).flatten(2))
        scores = q @ k.transpose(-1, -2) / k.shape[-1] ** 0.5
        scores = scores.masked_fill(torch.ones(n, n).triu(1).bool(), float("-inf"))
        z = (scores.softmax(-1) @ v).transpose(1, 2).reshape(2, n, -1)
        same(f"attn_z.{layer}", z)
        same(f"attn_out.{layer}", affine(z, f"h.{layer}.attn.c_proj"))
        x = x + affine(z, f"h.{layer}.attn.c_proj")
        same(f"resid_mid.{layer}", x)
        same(f"mlp_in.{layer}", norm(x, f"h.{layer}.ln_2"))
        neurons = F.gelu(affine(norm(x, f"h.{layer}.ln_2"), f"h.{layer}.mlp.c_fc"), approximate="tanh")
        same(f"mlp_mid.{layer}", neurons)
        same(f"mlp_out.{layer}", affine(neurons, f"h.{layer}.mlp.c_proj"))
        x = x + affine(neurons, f"h.{layer}.mlp.c_proj")
        same(f"resid_post.{layer}", x)
    same("final_norm", norm(x, "ln_f"))
    logits = captured["final_norm"] @ p["transformer.wte.weight"].T
    torch.testing.assert_close(exact(tokens), logits, rtol=0, atol=1e-10)


@pytest.mark.parametrize("layer", range(LAYERS))
def test_the_residual_stream_adds_up(captured: dict[str, Tensor], layer: int) -> None:
    mid = captured[f"resid_pre.{layer}"] + captured[f"attn_out.{layer}"]
    torch.testing.assert_close(captured[f"resid_mid.{layer}"], mid, rtol=0, atol=1e-12)
    post = captured[f"resid_mid.{layer}"] + captured[f"mlp_out.{layer}"]
    torch.testing.assert_close(captured[f"resid_post.{layer}"], post, rtol=0, atol=1e-12)
    if layer + 1 < LAYERS:
        assert torch.equal(captured[f"resid_post.{layer}"], captured[f"resid_pre.{layer + 1}"])


@pytest.mark.parametrize("layer", range(LAYERS))
def test_attn_z_and_mlp_mid_are_what_the_output_matrices_read(
    exact: SubjectModel, captured: dict[str, Tensor], layer: int
) -> None:
    for source, target, path in (("attn_z", "attn_out", "attn"), ("mlp_mid", "mlp_out", "mlp")):
        matrix = exact.module.get_submodule(f"transformer.h.{layer}.{path}.c_proj")
        written = captured[f"{source}.{layer}"] @ matrix.weight + matrix.bias
        torch.testing.assert_close(captured[f"{target}.{layer}"], written, rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    ("theirs", "ours"),
    [
        ("blocks.1.hook_resid_pre", "resid_pre.1"),
        ("blocks.1.hook_resid_mid", "resid_mid.1"),
        ("blocks.2.hook_resid_post", "resid_post.2"),
        ("blocks.0.attn.hook_z", "attn_z.0"),
        ("blocks.0.hook_attn_out", "attn_out.0"),
        ("blocks.1.ln2.hook_normalized", "mlp_in.1"),
        ("blocks.1.mlp.hook_post", "mlp_mid.1"),
        ("blocks.2.hook_mlp_out", "mlp_out.2"),
        ("ln_final.hook_normalized", "final_norm"),
    ],
)
def test_transformer_lens_names_are_aliases(exact: SubjectModel, theirs: str, ours: str) -> None:
    assert exact.hook_point(theirs) == exact.hook_point(ours)
    assert exact.hook_point(theirs).name == ours


def test_transformer_lens_hook_embed_is_not_taken_for_embed(exact: SubjectModel) -> None:
    """In TransformerLens, positions are added after `hook_embed`; the canonical `embed` has them."""
    with pytest.raises(HookError, match="embed"):
        exact.hook_point("hook_embed")


def test_raw_module_paths_name_input_output_and_by_default_output(
    exact: SubjectModel, tokens: Tensor, captured: dict[str, Tensor]
) -> None:
    raw = {
        "transformer.h.1:input": "resid_pre.1",
        "transformer.h.1:output": "resid_post.1",
        "transformer.h.1": "resid_post.1",
        "transformer.h.2.mlp:input": "mlp_in.2",
        "transformer.h.2.attn": "attn_out.2",
    }
    found = exact.capture(tokens, list(raw))
    for path, name in raw.items():
        torch.testing.assert_close(found[path], captured[name], rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    ("wrong", "near"),
    [
        ("resid_pst.1", "resid_post.1"),
        ("residual_post.2", "resid_post.2"),
        ("resid_post.7", "Layers are 0 to 2"),
        ("blocks.9.hook_resid_post", "Layers are 0 to 2"),
        ("transformer.h.1.mpl", "transformer.h.1.mlp"),
        ("transformer.h.1:sideways", "transformer.h.1"),
        ("", "embed"),
        ("nonsense", "embed, resid_pre.0"),
    ],
)
def test_an_unknown_hook_point_is_answered_with_near_names(exact: SubjectModel, wrong: str, near: str) -> None:
    with pytest.raises(HookError) as error:
        exact.capture(torch.zeros(1, 1, dtype=torch.int64), [wrong])
    assert repr(wrong) in str(error.value)
    assert near in str(error.value)
    assert "\n" not in str(error.value)


def test_a_module_that_gives_no_tensor_is_no_hook_point(exact: SubjectModel, tokens: Tensor) -> None:
    with pytest.raises(HookError, match="transformer"):
        exact.capture(tokens, ["transformer:output"])


def test_an_unknown_family_has_its_module_paths_as_hook_points(exact: SubjectModel, tokens: Tensor) -> None:
    module = copy.deepcopy(exact.module)
    module.config.model_type = "of another kind"
    stranger = SubjectModel(module)
    assert "transformer.h.0.mlp" in stranger.hook_points
    with pytest.raises(HookError):
        stranger.hook_point("resid_post.1")
    path = "transformer.h.1:output"
    assert torch.equal(stranger.capture(tokens, [path])[path], exact.capture(tokens, ["resid_post.1"])["resid_post.1"])


def test_the_end_of_a_path_is_enough_where_one_module_alone_ends_so() -> None:
    inner = nn.ModuleDict({"a": nn.Linear(2, 2), "b": nn.ModuleDict({"a": nn.Linear(2, 2), "c": nn.Linear(2, 2)})})
    module = nn.ModuleDict({"model": inner})
    assert resolve("b.a:input", module, {}).path == "model.b.a"
    assert resolve("c", module, {}).path == "model.b.c"
    with pytest.raises(HookError):
        resolve("a", module, {})
