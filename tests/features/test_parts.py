"""Features of what reads several sources side by side: crosscoders of layers and of models, cross-layer transcoders."""

from __future__ import annotations

import copy
import io
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from rich.console import Console
from shared_fixtures import random_gpt2
from small_store import LENGTH, SETTINGS

from monosem.activations import Mapping
from monosem.analysis import direction_logits
from monosem.data import PackedText, read_documents
from monosem.features import FeatureStore, harvest, near_misses, print_features
from monosem.models import ModelSet, SubjectModel
from monosem.sae import SAE, Crosscoder, CrossLayerTranscoder, SAEMetadata

N, TOKENS = 24, 2400
LAYERS = ["resid_post.0", "resid_post.1", "resid_post.2"]


def scrambled(sae: SAE, seed: int = 1) -> SAE:
    """Random weights everywhere, transforms of different scales, a threshold that some pass."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in sae.parameters():
            parameter.copy_(0.3 * torch.randn(parameter.shape, generator=generator))
        for transform in {sae.transform, sae.target_transform}:
            transform.mean.copy_(0.1 * torch.randn(transform.mean.shape, generator=generator))
            transform.scale.copy_(torch.rand(transform.scale.shape, generator=generator) + 0.5)
            transform.fitted = True
        sae.threshold.fill_(0.5)
    return sae


@pytest.fixture(scope="module")
def pair(small_model: SubjectModel) -> ModelSet:
    other = SubjectModel(random_gpt2(seed=7), small_model.tokenizer, "other")
    return ModelSet([small_model, other])


def cases(small_model: SubjectModel, pair: ModelSet) -> dict[str, tuple[SAE, SubjectModel | ModelSet]]:
    crossed = scrambled(Crosscoder(32, N, n_sources=3, k=4))
    crossed.metadata = SAEMetadata(hooks=LAYERS, context_length=LENGTH)
    l1 = scrambled(Crosscoder(32, N, n_sources=2, sparsity="l1", k=4))
    l1.metadata = SAEMetadata(hook="resid_post.1", models=["tiny", "other"], context_length=LENGTH)
    layered = scrambled(CrossLayerTranscoder(32, N, n_layers=3, k=4))
    layered.metadata = SAEMetadata(
        hooks=[f"mlp_in.{i}" for i in range(3)],
        target_hooks=[f"mlp_out.{i}" for i in range(3)],
        context_length=LENGTH,
        skip_first=2,
    )
    return {"layers": (crossed, small_model), "models": (l1, pair), "clt": (layered, small_model)}


@pytest.fixture(scope="module", params=["layers", "models", "clt"])
def case(
    request: pytest.FixtureRequest, small_model: SubjectModel, pair: ModelSet, tmp_path_factory: pytest.TempPathFactory
) -> tuple[SAE, SubjectModel | ModelSet, FeatureStore]:
    sae, model = cases(small_model, pair)[request.param]
    folder = tmp_path_factory.mktemp(request.param)
    return sae, model, harvest(sae, folder, model, tokens=TOKENS, settings=SETTINGS, progress=False)


def test_they_fire_where_a_plain_pass_says(case: tuple[SAE, SubjectModel | ModelSet, FeatureStore]) -> None:
    sae, model, store = case
    text = PackedText(read_documents("bundled:held_out"), model.tokenizer, LENGTH)
    x, _, kept = Mapping(sae, model).read(text.read(0, store.index["texts"][0]["stop_context"]))
    dense = sae.encode(x).to_dense().detach()
    assert store.n_tokens == len(x) == int(kept.sum())
    assert 0 < (dense > 0).double().mean() < 0.9
    document = text.read(0, store.index["texts"][0]["stop_context"]).document[kept]
    for feature in store.features(range(N)):
        own = dense[:, feature.latent]
        assert abs(feature.count - int((own > 0).sum())) <= 1, "up to a rounding at the threshold"
        if feature.count > 1:
            assert feature.max == pytest.approx(float(own.max()), rel=1e-4)
            assert feature.top[0].document == int(document[own.argmax()])
            assert feature.top[0].activation == feature.max


def test_parts_are_those_of_the_weights(case: tuple[SAE, SubjectModel | ModelSet, FeatureStore]) -> None:
    sae, model, store = case
    rows = sae.decoder_directions().float()
    names = list(Mapping(sae, model).predicted)
    trained = sae.part(torch.arange(N))[2].unflatten(1, sae.out_shape).norm(dim=-1)
    if isinstance(sae, Crosscoder):
        torch.testing.assert_close(trained / trained.sum(1, keepdim=True), sae.relative_norms())
    for feature in store.features(range(N)):
        own = rows[feature.latent]
        written = own.norm(dim=-1).nonzero()[:, 0].tolist()
        assert [part.source for part in feature.parts] == [names[i] for i in written]
        for i, part in zip(written, feature.parts, strict=True):
            assert part.norm == pytest.approx(float(own[i].norm()), rel=1e-5)
            assert part.share == pytest.approx(float(trained[feature.latent, i] / trained[feature.latent].sum()))
            for j, cosine in enumerate(part.cosines):
                expected = torch.cosine_similarity(own[i], own[j], dim=0)
                assert (cosine is None) == (j not in written)
                assert cosine is None or cosine == pytest.approx(float(expected), abs=1e-5)
        assert sum(part.share for part in feature.parts) == pytest.approx(1)
        if isinstance(sae, CrossLayerTranscoder):
            layer = feature.latent // sae.latents_per_layer
            assert feature.reads == f"mlp_in.{layer}"
            assert [part.source for part in feature.parts] == [f"mlp_out.{m}" for m in range(layer, 3)]
        else:
            assert feature.reads is None


def test_promoted_tokens_are_of_each_source_and_of_all(case: tuple[SAE, SubjectModel | ModelSet, FeatureStore]) -> None:
    """A crosscoder's own are those of its largest part; what a transcoder writes to all layers adds up."""
    sae, model, store = case
    rows = sae.decoder_directions().float()
    models = [of for of, _ in Mapping(sae, model).predicted.values()]
    for feature in store.features(range(0, N, 5)):
        for part, source in zip(feature.parts, range(len(models) - len(feature.parts), len(models)), strict=True):
            logits = direction_logits(rows[feature.latent, source][None], models[source])[0]
            assert part.promoted[0].token == int(logits.argmax())
            assert part.suppressed[0].weight == pytest.approx(float(logits.min() - logits.mean()), rel=1e-3)
        if isinstance(sae, CrossLayerTranscoder):
            together = direction_logits(rows[feature.latent].sum(0)[None], models[0])[0]
            assert feature.promoted[0].token == int(together.argmax())
        else:
            largest = max(feature.parts, key=lambda part: part.share)
            assert feature.promoted == largest.promoted
            assert feature.logits is not None


def test_the_table_filters_by_share(case: tuple[SAE, SubjectModel | ModelSet, FeatureStore]) -> None:
    sae, _, store = case
    trained = sae.part(torch.arange(N))[2].unflatten(1, sae.out_shape).norm(dim=-1)
    expected = (trained[:, 0] / trained.sum(1) > 0.4).nonzero()[:, 0].tolist()
    found = store.table(where="share_0 > 0.4", columns=["latent", "share_0"], limit=None)
    assert found.column("latent").to_pylist() == expected
    if isinstance(sae, CrossLayerTranscoder):
        assert store.count("reads = 1") == sae.latents_per_layer


def test_they_are_shown(case: tuple[SAE, SubjectModel | ModelSet, FeatureStore]) -> None:
    _, _, store = case
    feature = next(f for f in store.features(range(N)) if f.count and len(f.parts) > 1)
    console = Console(record=True, width=120, file=io.StringIO())
    print_features(console, [feature])
    said, card = console.export_text(), feature._repr_html_()
    for part in feature.parts:
        assert part.source in said
        assert part.source in card
        assert part.source in repr(feature)
    plain = json.loads(json.dumps(feature.to_dict()))
    assert plain["parts"][0]["source"] == feature.parts[0].source


def test_near_misses_are_the_closest_that_are_off(case: tuple[SAE, SubjectModel | ModelSet, FeatureStore]) -> None:
    sae, model, _ = case
    text = PackedText(read_documents("bundled:held_out"), model.tokenizer, LENGTH)
    x, _, _ = Mapping(sae, model).read(text.read(0, 3))
    codes = sae.encode(x)
    values, latents = near_misses(sae, x, codes, 4)
    encoder, bias, _ = sae.part(torch.arange(N))
    pre = sae.centred(sae.transform(sae.rows_of(x)[1])) @ encoder.T + bias
    sizes = sae.sizes() if isinstance(sae, Crosscoder) else torch.ones(N)
    off = (pre * sizes).detach().masked_fill(codes.to_dense() > 0, -torch.inf)
    best = off.topk(4).values
    there = ~best.isinf()
    chosen = sizes.expand(len(x), -1).gather(1, latents.clamp_min(0))
    torch.testing.assert_close((values * chosen)[there], best[there], rtol=1e-3, atol=1e-4)


def test_a_harvest_of_several_goes_on_and_adds_up(small_model: SubjectModel, pair: ModelSet, tmp_path: Path) -> None:
    sae, model = cases(small_model, pair)["layers"]
    harvest(sae, tmp_path / "a", model, tokens=TOKENS // 2, keep_state=True, settings=SETTINGS, progress=False)
    further = harvest(sae, tmp_path / "a", model, tokens=TOKENS, settings=SETTINGS, progress=False)
    whole = harvest(copy.deepcopy(sae), tmp_path / "b", model, tokens=TOKENS, settings=SETTINGS, progress=False)
    for a, b in zip(further.features(range(N)), whole.features(range(N)), strict=True):
        assert (a.count, a.max, a.parts) == (b.count, b.max, b.parts)
        assert np.array_equal([e.activation for e in a.top], [e.activation for e in b.top])
