"""Connections: weights beside interventions, expectations beside loops, the lasso by its conditions; planted ones."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import monosem as ms
from monosem.circuits import Connections, connections, paths
from monosem.circuits.connections.lasso import lasso, violation
from monosem.circuits.connections.linear import fit_linear
from monosem.circuits.connections.pairs import Pairs
from monosem.codes import SparseCodes
from monosem.errors import ConfigError, DataError
from monosem.models import SubjectModel
from monosem.sae import SAE, TopKSAE, Transcoder

WIDE = torch.float64
TEXT = ["The king went to the old house and saw the river. " * 12, "One day a girl found a ring in the garden. " * 12]


@pytest.fixture(scope="module")
def model(make_gpt2: Callable[..., nn.Module], tokenizer: Any) -> SubjectModel:
    """In float64."""
    return SubjectModel(make_gpt2(dtype=WIDE), tokenizer, "wide")


def coder(model: SubjectModel, layer: int, seed: int = 0) -> Transcoder:
    read, write = f"mlp_in.{layer}", f"mlp_out.{layer}"
    x = {h: v.reshape(-1, 32) for h, v in model.capture(TEXT[0][:60], [read, write]).items()}
    made = Transcoder(32, 48, k=6, dtype=WIDE, seed=seed)
    made.initialise(x[read], x[write])
    with torch.no_grad():
        made.b_enc.normal_(std=0.1, generator=torch.Generator().manual_seed(seed))
    made.metadata.hook, made.metadata.target_hook = read, write
    return made


@pytest.fixture(scope="module")
def coders(model: SubjectModel) -> list[Transcoder]:
    return [coder(model, layer, layer) for layer in range(3)]


@pytest.fixture(scope="module")
def found(model: SubjectModel, coders: list[Transcoder]) -> Connections:
    return connections(model, coders[0], coders[2], TEXT, tokens=200, progress=False)


# Weights --------------------------------------------------------------------------------------------------------------


def test_a_weight_is_what_a_code_adds_to_a_pre_activation_while_the_norm_holds_still(
    model: SubjectModel, coders: list[Transcoder], found: Connections
) -> None:
    """By adding one decoder row to the residual stream before the last MLP, with the norm worked out by hand."""
    tokens = model.tokens("The king went home")
    x = model.capture(tokens, ["resid_mid.2"])["resid_mid.2"][0, 1:]  # special tokens are not read
    norm = model.module.get_submodule("transformer.h.2.ln_2")
    assert isinstance(norm, nn.LayerNorm)
    scale = (x.var(-1, unbiased=False, keepdim=True) + norm.eps).sqrt()

    def pre(stream: Tensor) -> Tensor:
        read = (stream - stream.mean(-1, keepdim=True)) / scale * norm.weight + norm.bias
        target = coders[2]
        return target.transform(read) @ target.W_enc.T + target.b_enc

    on = found.on(tokens)
    assert on.pre_activations.shape == (len(x), 48)
    torch.testing.assert_close(on.pre_activations, pre(x).detach(), rtol=1e-9, atol=1e-9)
    for source in (3, 17):
        moved = pre(x + 0.7 * coders[0].decoder_directions([source])[0]) - pre(x)
        expected = 0.7 * found.weights[source] / scale
        torch.testing.assert_close(moved.detach(), expected, rtol=1e-8, atol=1e-9)
    codes = coders[0].encode(model.capture(tokens, ["mlp_in.0"])["mlp_in.0"][0, 1:]).to_dense()
    for latent in (0, 9):
        parts = on.parts(latent)
        torch.testing.assert_close(parts, codes / scale * found.weights[:, latent], rtol=1e-9, atol=1e-9)
        torch.testing.assert_close(parts.sum(1) + on.rest(latent), on.pre_activations[:, latent])
    assert on.places.tolist() == [[0, i + 1] for i in range(len(x))]


def test_without_a_norm_between_weights_are_products_of_rows(model: SubjectModel, coders: list[Transcoder]) -> None:
    sae = TopKSAE(32, 40, k=5, dtype=WIDE)
    sae.initialise(model.capture(TEXT[0][:60], ["resid_post.1"])["resid_post.1"].reshape(-1, 32))
    sae.metadata.hook = "resid_post.1"
    plain = connections(model, coders[1], sae, latents=[4, 2], progress=False)
    raw = coders[1].W_dec / coders[1].target_transform.scale @ (sae.W_enc * sae.transform.scale).T
    torch.testing.assert_close(plain.weights, raw[:, [4, 2]].detach())
    assert plain.expected is None
    assert plain.into(2, 3)[0].source == int(raw[:, 2].abs().argmax())
    assert str(plain) == "mlp_out.1 -> resid_post.1: 48 x 2 weights"
    first = plain.out_of(5, 2)
    assert {one.target for one in first} == {4, 2}
    assert abs(first[0].weight) >= abs(first[1].weight)


def test_what_is_expected_and_who_is_on_together_is_what_a_loop_over_tokens_finds(
    model: SubjectModel, coders: list[Transcoder], found: Connections
) -> None:
    """Interference has no expectation: a weight between features that are never on together counts for nothing."""
    assert found.pairs is not None
    assert found.expected is not None
    assert found.together is not None
    source, target = found.pairs.source.to_dense(), found.pairs.target.to_dense()
    expected, together = torch.zeros(48, 48, dtype=WIDE), torch.zeros(48, 48)
    for f, y, scale in zip(source, target, found.pairs.shrunk, strict=True):
        expected += torch.outer(f, y) / scale
        together += torch.outer(f > 0, y > 0)
    expected = found.weights * expected / target.sum(0).clamp(min=1e-30)
    torch.testing.assert_close(found.expected, expected)
    assert torch.equal(found.together.float(), together)
    assert (found.expected[together == 0] == 0).all()
    assert 0 <= found.interference < 1
    assert (found.weights[together == 0] != 0).any()
    best = found.into(int(target.sum(0).argmax()), 3)
    assert best[0].together > 0
    assert "never on together" in str(found)
    there = model.capture(model.tokens(TEXT[0])[:, :60], ["resid_mid.2"])["resid_mid.2"][0]
    scale = (there.var(-1, unbiased=False) + 1e-5).sqrt()
    torch.testing.assert_close(found.pairs.shrunk[: len(scale) - 1], scale[1:], rtol=1e-6, atol=1e-6)


def test_paths_of_full_width_add_up_to_the_product_of_the_matrices(
    model: SubjectModel, coders: list[Transcoder]
) -> None:
    chain = [connections(model, coders[i], coders[i + 1], progress=False) for i in range(2)]
    whole = chain[0].weights @ chain[1].weights
    every = paths(chain, 7, k=10**6, width=10**6)
    assert len(every) == 48 * 48
    total = torch.zeros(48, dtype=WIDE)
    for path in every:
        total[path.latents[0]] += path.weight
    torch.testing.assert_close(total, whole[:, 7])
    (first, middle, last), weight = paths(chain, 7, k=1)[0]
    assert last == 7
    assert abs(weight - float(chain[0].weights[first, middle] * chain[1].weights[middle, 7])) < 1e-12
    assert abs(weight) == max(abs(path.weight) for path in every)
    with pytest.raises(ConfigError, match="gap"):
        paths([chain[1], chain[0]], 7)


def test_the_de_embedding_of_a_feature_that_reads_one_token_names_that_token(model: SubjectModel) -> None:
    token = model.tokens(" king", prepend_bos=False)[0, 0]
    with torch.no_grad():
        row = model.module.get_input_embeddings().weight[token]  # type: ignore[operator]
    sae = TopKSAE(32, 4, k=1, transform="none", dtype=WIDE)
    with torch.no_grad():
        sae.W_enc[2] = (row - row.mean()) / row.norm()
    sae.metadata.hook = "resid_pre.1"
    first = coder(model, 0)
    named = connections(model, first, sae, progress=False).de_embedding(2, 3)
    assert named[0][0] == " king"
    assert named[0][1] > named[1][1]


def test_what_leads_nowhere_is_refused(model: SubjectModel, coders: list[Transcoder], found: Connections) -> None:
    inner = TopKSAE(32, 8, k=2, dtype=WIDE)
    inner.metadata.hook = "attn_z.2"
    cases: list[tuple[SAE, SAE, str]] = [
        (coders[2], coders[0], "comes after"),
        (coders[0], inner, "connections are of the residual stream"),
        (coders[1], coders[1], "comes after"),
    ]
    for source, target, words in cases:
        with pytest.raises(ms.MonosemError, match=words):
            connections(model, source, target, progress=False)
    with pytest.raises(ConfigError, match="no latent 48"):
        found.out_of(48)
    with pytest.raises(ConfigError, match="not among the targets"):
        connections(model, coders[0], coders[1], latents=[3], progress=False).into(4)
    blind = connections(model, coders[0], coders[1], progress=False)
    with pytest.raises(ConfigError, match="only a text tells"):
        _ = blind.interference
    with pytest.raises(ConfigError, match="a fit needs a text"):
        blind.linear()


# Sparse linear connections --------------------------------------------------------------------------------------------


def problem(n: int = 400, m: int = 30, targets: int = 12) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(n, m, generator=generator, dtype=WIDE) @ (
        torch.eye(m, dtype=WIDE) + 0.3 * torch.randn(m, m, generator=generator, dtype=WIDE)
    )
    y = torch.randn(n, targets, generator=generator, dtype=WIDE) + x[:, :targets]
    return x.T @ x / n, x.T @ y / n


def test_the_lasso_meets_the_conditions_of_its_minimum_and_no_other_point_is_lower() -> None:
    gram, products = problem()
    for penalty in (0.5, 0.05, 0.005):
        solved = lasso(gram, products, penalty, tolerance=1e-6)
        assert solved.violation <= 1e-6
        slope = gram @ solved.weights - products
        assert (slope[solved.weights == 0].abs() <= penalty * (1 + 1e-6)).all()
        on = solved.weights != 0
        torch.testing.assert_close(slope[on], -penalty * solved.weights[on].sign(), rtol=1e-5, atol=1e-7)

        def cost(w: Tensor, p: float = penalty) -> Tensor:
            return (w * (gram @ w)).sum() / 2 - (w * products).sum() + p * w.abs().sum()

        generator = torch.Generator().manual_seed(1)
        for size in (1e-1, 1e-3):
            other = solved.weights + size * torch.randn(solved.weights.shape, generator=generator, dtype=WIDE)
            assert cost(other) > cost(solved.weights)
    assert violation(gram, products, torch.zeros_like(products), float(products.abs().max())) == 0
    assert lasso(gram, products, float(products.abs().max())).weights.abs().max() == 0


def test_planted_sparse_connections_are_recovered_and_what_is_not_linear_is_told_apart() -> None:
    """Targets 0 to 7 are sums of two sources, 8 to 11 products of two: on held-out documents the fit knows which."""
    generator = torch.Generator().manual_seed(3)
    n, m = 20_000, 40
    on = torch.rand(n, m, generator=generator) < 0.1
    source = on * (0.5 + torch.rand(n, m, generator=generator, dtype=WIDE))
    real = torch.zeros(m, 12, dtype=WIDE)
    for target in range(8):
        real[2 * target, target], real[2 * target + 1, target] = 1.0, 0.6
    target = source @ real
    for k in range(4):
        target[:, 8 + k] = source[:, 20 + 2 * k] * source[:, 21 + 2 * k] * 4
    documents = torch.arange(n) // 100
    pairs = Pairs(SparseCodes.from_dense(source), SparseCodes.from_dense(target), torch.ones(n), documents)
    fit = fit_linear(pairs, torch.arange(12), real, (0.3, 0.05, 0.01), 0.25, 20)
    assert fit.latents.tolist() == list(range(12))
    best = fit.weights[-1]
    assert torch.equal(best[:, :8].abs() > 0.05, real[:, :8] != 0)
    torch.testing.assert_close(best[:, :8].double(), real[:, :8], rtol=0.05, atol=0.02)
    assert (fit.explained[-1][:8] > 0.98).all()
    assert (fit.best[8:] < 0.5).all()
    assert (fit.by_weights[:8] > 0.99).all()
    assert (fit.by_chance < 0.1).all()
    assert max(fit.violations) <= 1e-3
    share, low, high = fit.share(0.9)
    assert share == 8 / 12
    assert low < share < high
    assert "at least 90% explained: 67%" in str(fit)
    with pytest.raises(DataError, match="on 100000 times"):
        fit_linear(pairs, torch.arange(12), real, (0.1,), 0.25, 100_000)


def test_a_fit_on_a_model_holds_its_conditions_and_counts_what_it_uses(found: Connections) -> None:
    fit = found.linear((0.5, 0.1), fewest=3, progress=False)
    assert max(fit.violations) <= 1e-3
    assert fit.explained.shape == (2, len(fit.latents))
    assert (fit.used[1] >= fit.used[0]).double().mean() > 0.9
    assert torch.equal(fit.used[1], (fit.weights[1] != 0).sum(0))


def test_by_way_of_a_head_a_weight_is_what_reaches_the_target_from_the_token_that_is_looked_at(
    model: SubjectModel, coders: list[Transcoder]
) -> None:
    """By hand: the decoder row normed, made a value of that head, mixed with weight 1, put out, and read."""
    found = connections(model, coders[0], coders[2], head=(1, 3), progress=False)
    block, last = (model.module.get_submodule(f"transformer.h.{i}") for i in (1, 2))
    row = coders[0].decoder_directions([5])[0]
    read = (row - row.mean()) * block.ln_1.weight  # type: ignore[union-attr, operator]
    value = (read @ block.attn.c_attn.weight[:, 64:]).unflatten(0, (4, 8))[3]  # type: ignore[union-attr, index]
    added = value @ block.attn.c_proj.weight[24:32]  # type: ignore[union-attr, index]
    seen = (added - added.mean()) * last.ln_2.weight  # type: ignore[union-attr, operator]
    expected = seen @ coders[2].encoder_directions().T
    torch.testing.assert_close(found.weights[5], expected.detach())
    assert len(found.de_embedding(4, 3)) == 3
    for options, words in (
        ({"head": (1, 4)}, "no head 4"),
        ({"head": (2, 0)}, None),
        ({"head": (0, 0)}, "does not lie between"),
        ({"head": (1, 0), "text": TEXT}, "leave the text out"),
    ):
        if words is not None:
            with pytest.raises(ConfigError, match=words):
                connections(model, coders[0], coders[2], progress=False, **options)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="needs its pattern"):
        found.on("The king")
