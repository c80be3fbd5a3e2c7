"""The pass held still: equal to the model, its cotangents to autograd's, its rows to what they add up to."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from family_models import FAMILY_MODELS, LAYERS, VOCABULARY, D, family_module
from torch import Tensor, nn

import monosem as ms
from monosem.circuits.frozen.frozen import Frozen
from monosem.circuits.frozen.units import units_of
from monosem.circuits.graph.sources import Sources
from monosem.errors import ConfigError, DataError
from monosem.models import SubjectModel
from monosem.models.blocks import BLOCKS, block_module, block_of
from monosem.sae import SAE

CAUSAL = [name for name, one in FAMILY_MODELS.items() if one.family in BLOCKS]
TOKENS = torch.randint(3, VOCABULARY, (1, 9), generator=torch.Generator().manual_seed(1))
Make = Callable[..., SAE]


def subject(name: str) -> SubjectModel:
    return SubjectModel(family_module(name), None, name)


def test_every_causal_family_is_traced() -> None:
    assert {FAMILY_MODELS[name].family for name in CAUSAL} == set(BLOCKS)


@pytest.mark.parametrize("name", CAUSAL)
def test_the_pass_held_still_is_the_models(name: str) -> None:
    """All sites have the model's values (RMS norms of transformers round to float32 within)."""
    model = subject(name)
    frozen = Frozen(model, TOKENS, [])
    inner = ("attn_q", "attn_k", "attn_v", "attn_pattern", "mlp_mid")
    hooks = [hook for hook in model.hook_points if hook.partition(".")[0] not in inner]
    for hook, x in model.capture(TOKENS, hooks).items():
        found = frozen.sites[frozen.at[frozen._canonical(hook)]].value
        assert (found - x[0]).abs().max() <= 5e-7 * x.abs().max(), hook


@contextmanager
def detached(model: SubjectModel) -> Iterator[dict[str, Tensor]]:
    """Within this block the module's own code runs with patterns, norm scales and MLP outputs that carry no gradient.

    Yields the leaves by which to differentiate: the embedding, and what each MLP adds.
    """
    leaves: dict[str, Tensor] = {}
    block = block_of(model)
    names = [block.attention_norm, block.mlp_norm, block.after_attention]
    norms = [block_module(model, layer, name) for layer in range(model.n_layers) for name in names if name]
    norms.append(model.module.get_submodule(model.hook_point("final_norm").path))

    def held(module: nn.Module, args: tuple[Any, ...], _: Any) -> Tensor:
        x, weight = args[0], module.weight
        if isinstance(module, nn.LayerNorm):
            centred = x - x.mean(-1, keepdim=True)
            scale = (centred.pow(2).mean(-1, keepdim=True) + module.eps).sqrt().detach()
            return centred / scale * weight + module.bias
        epsilon = module.eps if hasattr(module, "eps") else module.variance_epsilon
        weight = 1 + weight if "Gemma" in type(module).__name__ else weight
        return x / (x.pow(2).mean(-1, keepdim=True) + epsilon).sqrt().detach() * weight

    def leaf(name: str) -> Callable[[Tensor, Any], Tensor]:
        def function(x: Tensor, _: Any) -> Tensor:
            leaves[name] = x.detach().clone().requires_grad_()
            return leaves[name] * 1

        return function

    inner = [f"{point}.{layer}" for point in ("attn_q", "attn_k") for layer in range(model.n_layers)]
    edits = {name: lambda x, _: x.detach() for name in inner}  # what makes the pattern
    edits |= {name: leaf(name) for name in ("embed", *(f"mlp_out.{layer}" for layer in range(model.n_layers)))}
    handles = [norm.register_forward_hook(held) for norm in norms]
    try:
        with model.edit(edits):
            yield leaves
    finally:
        for handle in handles:
            handle.remove()


@pytest.mark.parametrize("name", CAUSAL)
def test_cotangents_are_those_of_autograd_on_a_detached_copy(name: str) -> None:
    model = SubjectModel(copy.deepcopy(family_module(name)), None, name)
    with detached(model):  # in float64 throughout: the norms of transformers round to float32
        frozen = Frozen(model, TOKENS, [])
    generator = torch.Generator().manual_seed(0)
    directions = torch.randn(3, D, generator=generator, dtype=torch.float64)
    positions = torch.tensor([8, 4, 6])
    found: dict[str, Tensor] = {}

    def visit(number: int, g: Tensor) -> None:
        site = frozen.sites[number].name
        if site == "resid_pre.0" or site.startswith("mlp_out"):
            found["embed" if site == "resid_pre.0" else site] = g

    cotangent = torch.zeros(3, 9, D, dtype=torch.float64)
    cotangent[torch.arange(3), positions] = directions
    frozen.pull(frozen.at["final_norm"], cotangent, visit)
    with torch.enable_grad(), detached(model) as leaves:
        seen: list[Tensor] = []
        final = model.module.get_submodule(model.hook_point("final_norm").path)
        handle = final.register_forward_hook(lambda _module, _args, output: seen.append(output))
        model._call(TOKENS)
        handle.remove()
        for row in range(3):
            number = seen[0][0, positions[row]] @ directions[row]
            expected = torch.autograd.grad(number, list(leaves.values()), retain_graph=True)
            for hook, gradient in zip(leaves, expected, strict=True):
                assert (found[hook][row] - gradient[0]).abs().max() <= 1e-12 * gradient.abs().max(), hook
    assert set(found) == set(leaves)
    assert len(leaves) == LAYERS + 1


@pytest.mark.parametrize("name", ["gpt2", "llama", "gemma2", "olmo2"])
def test_what_is_held_still_has_no_second_derivative(name: str) -> None:
    """And the model itself has one: not by chance are first derivatives all that there is."""
    model = SubjectModel(FAMILY_MODELS[name].build(attn_implementation="eager"), None, name)
    v = torch.randn(1, 9, D, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    final = model.module.get_submodule(model.hook_point("final_norm").path)

    def curvature(leaves: dict[str, Tensor]) -> float:
        seen: list[Tensor] = []
        handle = final.register_forward_hook(lambda _module, _args, output: seen.append(output))
        model._call(TOKENS)
        handle.remove()
        (slope,) = torch.autograd.grad((seen[0][0, -1] * v[0, 0]).sum(), leaves["embed"], create_graph=True)
        along = (slope * v).sum()
        if not along.requires_grad:
            return 0.0
        (second,) = torch.autograd.grad(along, leaves["embed"], allow_unused=True)
        return 0.0 if second is None else float(second.abs().max())

    def leaf(x: Tensor, _: Any) -> Tensor:
        free["embed"] = x.detach().clone().requires_grad_()
        return free["embed"] * 1

    with torch.enable_grad(), detached(model) as leaves:
        assert curvature(leaves) == 0
    free: dict[str, Tensor] = {}
    with torch.enable_grad(), model.edit({"embed": leaf}):
        assert curvature(free) > 1e-3


@pytest.mark.parametrize("name", CAUSAL)
def test_forwards_is_the_mirror_of_backwards(name: str) -> None:
    frozen = Frozen(subject(name), TOKENS, [])
    sources = Sources(frozen)
    site, generator = frozen.at["final_norm"], torch.Generator().manual_seed(0)
    directions = torch.randn(2, D, generator=generator, dtype=torch.float64)
    rows = sources.rows(site, torch.tensor([8, 5]), directions)
    moved = frozen.push(sources.changes(range(sources.n_columns)))[site]
    expected = torch.stack([moved[:, 8] @ directions[0], moved[:, 5] @ directions[1]])
    assert (rows - expected).abs().max() <= 1e-12 * rows.abs().max()


# With dictionaries in it ----------------------------------------------------------------------------------------------


def mixes(name: str, make: Make) -> dict[str, Any]:
    """Several ways to cover a model of two layers."""
    width = 16 if name == "gpt2" else FAMILY_MODELS[name].n_heads * FAMILY_MODELS[name].head_width

    def at(hook: str, cls: type[SAE] = ms.TopKSAE, d_in: int = D, seed: int = 0, **options: Any) -> SAE:
        return make(cls, d_in, 30, hook=hook, seed=seed, **({"k": 5} if cls is ms.TopKSAE else {}), **options)

    def coder(layer: int, cls: type[SAE] = ms.Transcoder) -> SAE:
        options = {"k": 6} if cls is not ms.JumpReLUSkipTranscoder else {}
        return make(cls, D, 30, hook=f"mlp_in.{layer}", target_hook=f"mlp_out.{layer}", seed=layer, **options)

    crossing = make(
        ms.CrossLayerTranscoder,
        D,
        40,
        n_layers=2,
        own_thresholds=True,
        skip=True,
        k=6,
        hooks=["mlp_in.0", "mlp_in.1"],
        target_hooks=["mlp_out.0", "mlp_out.1"],
    )
    return {
        "nothing": [],
        "transcoders": [coder(0), coder(1)],
        "skip": [coder(0, ms.SkipTranscoder), coder(1, ms.JumpReLUSkipTranscoder)],
        "cross-layer": crossing,
        "streams": [at("resid_pre.0"), at("resid_post.0", ms.GatedSAE), at("resid_post.1", ms.ReLUSAE)],
        "everywhere": [
            at("attn_z.0", d_in=width),
            at("attn_out.0", ms.JumpReLUSAE, seed=1),
            at("mlp_in.0", seed=2, transform="whiten"),
            coder(0),
            at("resid_post.0", seed=3, transform="layer_norm"),
            at("mlp_out.1", seed=4),
            at("final_norm", seed=5, skip_first=2),
        ],
        "one layer": [coder(1)],
    }


def check_conservation(graph: ms.Graph) -> None:
    audit = graph.audit()
    assert audit.largest_error <= 1e-12
    assert len(audit.errors) == graph.n_features + len(graph.targets)


MIXES = ("nothing", "transcoders", "skip", "cross-layer", "streams", "everywhere", "one layer")


@pytest.mark.parametrize("mix", MIXES)
@pytest.mark.parametrize("name", ["gpt2", "llama with biases", "gemma2", "gpt_neox"])
def test_rows_add_up_to_what_they_are_of(name: str, mix: str, make_dictionary: Make) -> None:
    graph = ms.trace(subject(name), mixes(name, make_dictionary)[mix], TOKENS, target=[7, (3, 5)], progress=False)
    check_conservation(graph)
    assert (graph.n_features > 0) == (mix != "nothing")
    logits = subject(name).forward(TOKENS)[0, -1]
    cap = 30.0 if name == "gemma2" else None
    logits = logits if cap is None else cap * torch.atanh(logits / cap)
    expected = [logits[7] - logits.mean(), logits[3] - logits[5]]
    for target, value in zip(graph.targets, expected, strict=True):
        assert target["value"] == pytest.approx(float(value), abs=1e-5)


@pytest.mark.parametrize("name", CAUSAL)
def test_rows_add_up_in_every_family(name: str, make_dictionary: Make) -> None:
    found = mixes(name, make_dictionary)
    check_conservation(ms.trace(subject(name), found["transcoders"], TOKENS, target=7, progress=False))
    if name not in ("phi3", "glm4") and not FAMILY_MODELS[name].experts:  # whose gates and ups are one matrix
        graph = ms.trace(subject(name), "neurons", TOKENS, target=7, max_features=40, progress=False)
        check_conservation(graph)
        assert not graph.audit().signed["error"].any()


@pytest.mark.parametrize("mix", MIXES)
@pytest.mark.parametrize("name", ["gpt2", "llama with biases", "gemma2", "gpt_neox"])
def test_what_dictionaries_put_there_is_the_model(name: str, mix: str, make_dictionary: Make) -> None:
    """All sources together, errors among them, come to the model's own values at every site and position."""
    model = subject(name)
    frozen = Frozen(model, TOKENS, units_of(model, mixes(name, make_dictionary)[mix]))
    sources = Sources(frozen)
    moved = frozen.push(sources.changes(range(sources.n_columns)))
    inner = ("attn_q", "attn_k", "attn_v", "attn_pattern", "mlp_mid")
    hooks = [hook for hook in model.hook_points if hook.partition(".")[0] not in inner]
    rounding = 5e-7 if name in ("llama with biases", "gemma2") else 1e-12  # RMS norms of transformers count in float32
    for hook, x in model.capture(TOKENS, hooks).items():
        found = moved[frozen.at[frozen._canonical(hook)]].sum(0)
        assert (found - x[0]).abs().max() <= rounding * x.abs().max(), hook


def test_features_that_read_are_the_dictionarys(make_dictionary: Make) -> None:
    """The goal of a feature's row is its activation, its constant what its encoder adds: b_enc - W_enc b_dec."""
    model = subject("gpt2")
    sae = make_dictionary(ms.TopKSAE, D, 30, hook="resid_post.0", k=5)
    graph = ms.trace(model, sae, TOKENS, target=7, progress=False)
    codes = sae.encode(model.capture(TOKENS, ["resid_post.0"])["resid_post.0"])[0].to_dense().detach()
    for number in range(graph.n_features):
        at, latent = int(graph.nodes.position[number]), int(graph.nodes.latent[number])
        assert graph.nodes.activation[number] == pytest.approx(float(codes[at, latent]))
        assert graph.row_total[number] == pytest.approx(float(codes[at, latent]))
    own = int((graph.nodes.hook == "target").argmax())
    with torch.no_grad():
        shift = -sae.transform.scale * sae.transform.mean - sae.b_dec
        constants = sae.b_enc + sae.W_enc @ shift
    for number in range(graph.n_features):
        assert graph.edge(own, number) == pytest.approx(float(constants[int(graph.nodes.latent[number])]))
    assert graph.n_features == int((codes > 0).sum())


def test_positions_that_are_never_read_are_error_alone(make_dictionary: Make) -> None:
    sae = make_dictionary(ms.TopKSAE, D, 30, hook="resid_post.0", k=5, skip_first=3)
    frozen = Frozen(subject("gpt2"), TOKENS, units_of(subject("gpt2"), sae))
    site = frozen.sites[frozen.at["resid_pre.1"]]
    assert site.error is not None
    assert torch.equal(site.error[1][:3], site.value[:3])
    assert int(frozen.units[0].positions.min()) == 3
    graph = ms.trace(subject("gpt2"), sae, TOKENS, target=7, progress=False)
    assert graph.nodes.position[graph.nodes.kind == "feature"].min() == 3


# Targets --------------------------------------------------------------------------------------------------------------


def test_targets_of_all_kinds_add_up(make_dictionary: Make) -> None:
    model = subject("gpt2")
    sae = make_dictionary(ms.TopKSAE, D, 30, hook="resid_post.0", k=5)
    direction = torch.randn(D, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    codes = sae.encode(model.capture(TOKENS, ["resid_post.0"])["resid_post.0"])[0].detach()
    latent = int(codes.indices[codes.offsets[5]])
    value = float(codes.values[codes.offsets[5]])
    x = model.capture(TOKENS, ["resid_mid.1"])["resid_mid.1"][0, 5]
    targets: list[Any] = [
        ("resid_mid.1", direction),
        ("resid_mid.1", direction, 2.5),
        ("feature", "resid_post.0", latent),
    ]
    graph = ms.trace(model, sae, TOKENS, targets, position=5, progress=False)
    check_conservation(graph)
    expected = [float(x @ direction), float(x @ direction) + 2.5, value]
    assert [target["value"] for target in graph.targets] == pytest.approx(expected)
    loss = ms.trace(model, sae, TOKENS, "loss", progress=False)
    check_conservation(loss)
    final = model.capture(TOKENS, ["final_norm"])["final_norm"][0, :-1].requires_grad_()
    logits = final @ model.module.get_output_embeddings().weight.T
    value = torch.nn.functional.cross_entropy(logits, TOKENS[0, 1:])
    (slope,) = torch.autograd.grad(value, final)
    assert loss.targets[0]["value"] == pytest.approx(float((slope * final).sum().detach()))


def test_the_likeliest_tokens_are_the_targets(make_dictionary: Make) -> None:
    model = subject("gpt2")
    graph = ms.trace(model, [], TOKENS, progress=False)
    chances = model.forward(TOKENS)[0, -1].softmax(-1)
    found = [target["probability"] for target in graph.targets]
    assert found == pytest.approx(chances.topk(len(found)).values.tolist())
    assert len(found) == 10 or 0.95 <= sum(found) < 0.95 + found[-1]


# What is refused ------------------------------------------------------------------------------------------------------


def test_bad_input_is_refused_before_work_starts(make_dictionary: Make) -> None:
    model = subject("gpt2")
    sae = make_dictionary(ms.TopKSAE, D, 30, hook="resid_post.0", k=5)
    with pytest.raises(ConfigError, match="no token 40"):
        ms.trace(model, sae, TOKENS, 40)
    with pytest.raises(DataError, match="position 9 is outside"):
        ms.trace(model, sae, TOKENS, 7, position=9)
    with pytest.raises(DataError, match="has 30 tokens"):
        ms.trace(model, sae, TOKENS.repeat(1, 4)[:, :30], 7)
    with pytest.raises(DataError, match="token 99"):
        ms.trace(model, sae, [3, 99], 7)
    with pytest.raises(ConfigError, match="two dictionaries"):
        ms.trace(model, [sae, sae], TOKENS, 7)
    with pytest.raises(ConfigError, match=r"no graph leads through attn_q\.0"):
        ms.trace(model, make_dictionary(ms.TopKSAE, D, 30, hook="attn_q.0", k=5), TOKENS, 7)
    with pytest.raises(DataError, match="is off at position"):
        ms.trace(model, sae, TOKENS, ("feature", "resid_post.0", _off(model, sae)))
    with pytest.raises(ConfigError, match="reads no single place"):
        ms.trace(model, make_dictionary(ms.Crosscoder, D, 40), TOKENS, 7)
    with pytest.raises(ConfigError, match="does not predict the next token: this is of causal models alone"):
        ms.trace(subject("bert"), sae, TOKENS, 7)
    with pytest.raises(ms.MonosemError):
        ms.trace(model, make_dictionary(ms.TopKSAE, 7, 30, hook="resid_post.0", k=5), TOKENS, 7)


def test_families_and_blocks_that_are_not_known_are_named() -> None:
    import transformers

    small = {"vocab_size": VOCABULARY, "n_layers": 1, "n_heads": 2, "d_model": 8}
    mpt = SubjectModel(transformers.MptForCausalLM(transformers.MptConfig(**small)), None, "it")
    for ask in (lambda: ms.trace(mpt, [], TOKENS, 7), lambda: ms.heads(mpt, ["a text"])):
        with pytest.raises(ConfigError, match=r"known family; it is mpt|these families: gpt2, .*; it is mpt"):
            ask()
    for name, change in (
        ("opt", {"do_layer_norm_before": False}),  # as OPT-350m
        ("bloom", {"apply_residual_connection_post_layernorm": True}),
    ):
        other = SubjectModel(FAMILY_MODELS[name].build(**change), None, "it")
        with pytest.raises(ConfigError, match=rf"not traced in it: its blocks .* otherwise than .* family, {name}"):
            ms.trace(other, [], TOKENS, 7)
    with pytest.raises(ConfigError, match=r"mixture of experts \(mixtral\): its neurons have no hook point"):
        ms.trace(subject("mixtral"), "neurons", TOKENS, 7)


def _off(model: SubjectModel, sae: SAE) -> int:
    codes = sae.encode(model.capture(TOKENS, ["resid_post.0"])["resid_post.0"])[0, -1].to_dense()
    return int((codes == 0).nonzero()[0])
