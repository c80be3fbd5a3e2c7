"""Edits of dictionaries that write elsewhere than they read: what is asked for happens where they write, in float64."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import monosem as ms
from monosem.errors import ConfigError, MonosemError
from monosem.models import SubjectModel
from monosem.sae import SAE, Crosscoder, CrossLayerTranscoder, SkipTranscoder, Transcoder

WIDE = torch.float64
READ, WRITTEN = "mlp_in.1", "mlp_out.1"
LAYERS = (0, 1, 2)


@pytest.fixture(scope="module")
def model(make_gpt2: Callable[..., nn.Module], tokenizer: Any) -> SubjectModel:
    """In float64."""
    return SubjectModel(make_gpt2(dtype=WIDE), tokenizer, "wide")


@pytest.fixture(scope="module")
def tokens() -> Tensor:
    return torch.randint(1, 4096, (3, 11), generator=torch.Generator().manual_seed(0))


def looked(model: SubjectModel, tokens: Any, hooks: list[str], *edits: Any) -> dict[str, Tensor]:
    with model.edit(list(edits)):
        return model.capture(tokens, hooks)


def fitted(sae: SAE, x: Tensor, y: Tensor | None = None) -> SAE:
    """With biases and transforms that are not nothing."""
    sae.initialise(x.flatten(0, 1), None if y is None else y.flatten(0, 1))
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for name, parameter in sae.named_parameters():
            if name in ("b_enc", "b_dec", "W_skip"):
                parameter.normal_(std=0.1, generator=generator)
    return sae.requires_grad_(False)


@pytest.fixture(scope="module", params=["centre_scale", "layer_norm", "skip"])
def transcoder(request: pytest.FixtureRequest, model: SubjectModel, tokens: Tensor) -> SAE:
    there = model.capture(tokens, [READ, WRITTEN])
    kind = SkipTranscoder if request.param == "skip" else Transcoder
    transform = "centre_scale" if request.param == "skip" else request.param
    sae = fitted(kind(32, 64, k=9, transform=transform, dtype=WIDE, seed=1), there[READ], there[WRITTEN])
    sae.metadata.hook, sae.metadata.target_hook, sae.metadata.exclude_special = READ, WRITTEN, False
    return sae


@pytest.fixture(scope="module")
def layers(model: SubjectModel, tokens: Tensor) -> CrossLayerTranscoder:
    reads, writes = [f"mlp_in.{i}" for i in LAYERS], [f"mlp_out.{i}" for i in LAYERS]
    there = model.capture(tokens, reads + writes)
    sae = CrossLayerTranscoder(32, 48, n_layers=3, k=12, dtype=WIDE, seed=1)
    fitted(sae, *(torch.stack([there[name] for name in names], 2) for names in (reads, writes)))
    sae.metadata.hooks, sae.metadata.target_hooks, sae.metadata.exclude_special = reads, writes, False
    return sae


@pytest.fixture(scope="module")
def crosscoder(model: SubjectModel, tokens: Tensor) -> Crosscoder:
    hooks = ["resid_post.0", "resid_post.1"]
    there = model.capture(tokens, hooks)
    sae = Crosscoder(32, 64, n_sources=2, k=9, dtype=WIDE, seed=1)
    fitted(sae, torch.stack([there[name] for name in hooks], 2))
    sae.metadata.hooks, sae.metadata.exclude_special = hooks, False
    return sae


def common(codes: ms.SparseCodes, n: int = 3) -> list[int]:
    """The latents that are on most often, but not everywhere."""
    counts = codes.firing_counts()
    counts[counts == codes.to_dense()[..., 0].numel()] = 0
    return counts.topk(n).indices.tolist()


def close(a: Tensor, b: Tensor) -> None:
    torch.testing.assert_close(a, b, rtol=1e-11, atol=1e-11)


RULES: list[tuple[Callable[..., Any], Callable[[Tensor], Tensor]]] = [
    (lambda sae, latents, **how: ms.Ablate(sae, latents, **how), torch.zeros_like),
    (lambda sae, latents, **how: ms.Set(sae, latents, 1.5, **how), lambda c: torch.full_like(c, 1.5)),
    (lambda sae, latents, **how: ms.Scale(sae, latents, -0.5, **how), lambda c: -0.5 * c),
    (lambda sae, latents, **how: ms.Add(sae, latents, 0.7, **how), lambda c: c + 0.7),
    (lambda sae, latents, **how: ms.Clamp(sae, latents, 0.1, 0.3, **how), lambda c: c.clamp(0.1, 0.3)),
]


@pytest.mark.parametrize(("make", "rule"), RULES, ids=["ablate", "set", "scale", "add", "clamp"])
def test_a_transcoder_s_latents_change_what_the_mlp_writes_by_their_rows(
    model: SubjectModel, tokens: Tensor, transcoder: SAE, make: Callable[..., Any], rule: Callable[[Tensor], Tensor]
) -> None:
    before = model.capture(tokens, [READ, WRITTEN])
    codes = transcoder.encode(before[READ])
    latents = common(codes)
    new = codes.to_dense()
    new[..., latents] = rule(new[..., latents])
    made = transcoder.decode(ms.SparseCodes.from_dense(new), before[READ])
    after = looked(model, tokens, [READ, WRITTEN], make(transcoder, latents))
    assert torch.equal(after[READ], before[READ]), "what is read stays"
    close(after[WRITTEN], before[WRITTEN] + made - transcoder.decode(codes, before[READ]))
    whole = looked(model, tokens, [WRITTEN], make(transcoder, latents, keep_error=False))
    close(whole[WRITTEN], made)


def test_what_changes_no_code_of_a_transcoder_changes_no_bit(
    model: SubjectModel, tokens: Tensor, transcoder: SAE
) -> None:
    codes = transcoder.encode(model.capture(tokens, [READ])[READ])
    latents, plain = common(codes), model(tokens)
    edits = [
        ms.Scale(transcoder, latents, 1.0),
        ms.Add(transcoder, latents, 0.0),
        ms.Clamp(transcoder, latents, max=float(codes.values.max())),
        ms.Swap(transcoder, latents, tokens),
        ms.Swap(transcoder, latents, codes),
    ]
    for edit in edits:
        with model.edit([edit]) as reports:
            assert torch.equal(model(tokens), plain), edit
        assert reports[0].met() == tokens.numel()
        assert "changed nothing" in str(reports[0])
    assert str(edits[0]).endswith(f"{WRITTEN!r})")


def test_edits_of_one_transcoder_find_its_codes_as_earlier_ones_have_left_them(
    model: SubjectModel, tokens: Tensor, transcoder: SAE
) -> None:
    before = model.capture(tokens, [READ, WRITTEN])
    latents = common(transcoder.encode(before[READ]))
    one, two = latents[:1], latents[1:]

    def written(*edits: Any) -> Tensor:
        return looked(model, tokens, [WRITTEN], *edits)[WRITTEN]

    close(written(ms.Set(transcoder, one, 2.0), ms.Scale(transcoder, one, 3.0)), written(ms.Set(transcoder, one, 6.0)))
    close(written(ms.Add(transcoder, latents, 1.7), ms.Add(transcoder, latents, -1.7)), before[WRITTEN])
    codes = transcoder.encode(before[READ]).select(one).to_dense()
    where = ms.Where(rows=1, positions=4)
    back = [ms.Ablate(transcoder, one, where=where), ms.Add(transcoder, one, codes[1, 4], where=where)]
    close(written(*back), before[WRITTEN])
    apart = [ms.Ablate(transcoder, part, keep_error=False) for part in (one, two)]
    close(written(*apart), written(ms.Ablate(transcoder, latents, keep_error=False)))


def test_a_transcoder_is_edited_where_it_is_asked_for_and_with_codes_of_other_texts(
    model: SubjectModel, tokens: Tensor, transcoder: SAE
) -> None:
    before = model.capture(tokens, [READ, WRITTEN])
    codes = transcoder.encode(before[READ]).to_dense()
    latents = common(transcoder.encode(before[READ]))
    threshold = float(codes[..., latents[0]][codes[..., latents[0]] > 0].median())
    where = ms.Where(above=(latents[0], threshold))
    there = looked(model, tokens, [WRITTEN], ms.Add(transcoder, latents[1], 1.0, where=where))[WRITTEN]
    assert torch.equal((there != before[WRITTEN]).any(-1), codes[..., latents[0]] > threshold)
    swapped = looked(model, tokens[:1], [WRITTEN], ms.Swap(transcoder, list(range(64)), tokens[2:], keep_error=False))
    other = transcoder.decode(ms.SparseCodes.from_dense(codes[2:]), before[READ][:1])
    close(swapped[WRITTEN], other)
    mean = looked(model, tokens, [WRITTEN], ms.Ablate(transcoder, latents, by="mean", source=tokens, keep_error=False))
    new = codes.clone()
    new[..., latents] = codes[..., latents].mean((0, 1))
    close(mean[WRITTEN], transcoder.decode(ms.SparseCodes.from_dense(new), before[READ]))


def test_generation_rows_and_data_of_a_transcoder_s_edits(model: SubjectModel, transcoder: SAE) -> None:
    edit = ms.Add(transcoder, [3, 8], [2.0, -1.0], where=ms.Where(positions=slice(1, None)))
    options: dict[str, Any] = {"max_new_tokens": 6, "temperature": 0}
    cached = ms.generate(model, "One day the king", edits=[edit], **options)
    ids = model.tokens("One day the king")
    with model.edit([edit]):
        for token in cached.tokens:
            assert int(model(ids)[0, -1].argmax()) == token, "with the cache as without"
            ids = torch.cat([ids, torch.tensor([[token]])], 1)
    prompts = ["One day the king", "The dog"]
    together = ms.generate(model, prompts, edits=[ms.Add(transcoder, 3, [[4.0], [0.0]])], **options)
    alone = [
        ms.generate(model, p, edits=[ms.Add(transcoder, 3, x)], **options)
        for p, x in zip(prompts, (4.0, 0.0), strict=True)
    ]
    assert [one.tokens for one in together] == [one.tokens for one in alone]
    read = ms.edit_from_json(edit.to_json(), transcoder)
    with model.edit([edit]):
        expected = model(ids)
    with model.edit([read]):
        assert torch.equal(model(ids), expected)


def by_hand(model: SubjectModel, tokens: Tensor, sae: CrossLayerTranscoder, latents: dict[int, float]) -> Tensor:
    """Logits with some latents set, layer after layer: the codes of each are read with what came before edited."""
    added: dict[int, Tensor] = {layer: torch.zeros(*tokens.shape, 32, dtype=WIDE) for layer in LAYERS}

    def put(layer: int) -> Callable[..., Tensor]:
        return lambda x, _context: x + added[layer]

    functions = {f"mlp_out.{layer}": put(layer) for layer in LAYERS}
    for layer in LAYERS:
        with model.edit(functions):
            x = model.capture(tokens, [f"mlp_in.{layer}"])[f"mlp_in.{layer}"]
        t = sae.transform.sources[layer]
        for latent, value in latents.items():
            if latent // sae.latents_per_layer != layer:
                continue
            pre = t(x) @ sae.encoder_of(layer)[latent % sae.latents_per_layer] + sae.b_enc[latent]
            code = torch.where(pre > sae.threshold.clamp_min(0), pre, 0)
            for later in range(layer, 3):
                row = sae.decoder_of(layer)[latent % sae.latents_per_layer, later - layer]
                raw = sae.target_transform.sources[later].raw_directions(row[None])[0]  # pyright: ignore
                added[later] = added[later] + (value - code)[..., None] * raw
    with model.edit(functions):
        return model(tokens)


def test_latents_of_a_layer_write_to_it_and_to_all_later_ones(
    model: SubjectModel, tokens: Tensor, layers: CrossLayerTranscoder
) -> None:
    latents = {2: 1.5, 5: 0.0, 16 + 3: 2.0, 32 + 7: 0.0, 16 + 9: 0.5}
    expected = by_hand(model, tokens, layers, latents)
    with model.edit([ms.Set(layers, list(latents), list(latents.values()))]):
        close(model(tokens), expected)
    with model.edit([ms.Set(layers, latent, value) for latent, value in latents.items()]):
        close(model(tokens), expected)
    assert (expected - model(tokens)).abs().max() > 0.1


def test_without_the_error_the_layers_write_what_the_cross_layer_transcoder_predicts(
    model: SubjectModel, tokens: Tensor, layers: CrossLayerTranscoder
) -> None:
    edit = ms.Add(layers, 4, 1.0, keep_error=False)
    there = looked(model, tokens, [*layers.metadata.hooks, *layers.metadata.target_hooks], edit)  # type: ignore[misc]
    x = torch.stack([there[f"mlp_in.{layer}"] for layer in LAYERS], 2)
    codes = layers.encode(x).to_dense()
    codes[..., 4] += 1.0
    wanted = layers.decode(ms.SparseCodes.from_dense(codes), x)
    for layer in LAYERS:
        close(there[f"mlp_out.{layer}"], wanted[:, :, layer])


def test_a_crosscoder_of_layers_is_edited_at_the_last_of_them(
    model: SubjectModel, tokens: Tensor, crosscoder: Crosscoder
) -> None:
    hooks = crosscoder.metadata.hooks or []
    before = model.capture(tokens, hooks)
    x = torch.stack([before[hook] for hook in hooks], 2)
    codes = crosscoder.encode(x)
    latents = common(codes)
    new = codes.to_dense()
    new[..., latents] *= 3
    made = crosscoder.decode(ms.SparseCodes.from_dense(new))
    after = looked(model, tokens, hooks, ms.Scale(crosscoder, latents, 3.0))
    assert torch.equal(after[hooks[0]], before[hooks[0]])
    close(after[hooks[1]], before[hooks[1]] + (made - crosscoder.decode(codes))[:, :, 1])
    whole = looked(model, tokens, hooks, ms.Scale(crosscoder, latents, 3.0, keep_error=False))
    close(whole[hooks[1]], made[:, :, 1])


def test_what_may_never_fire_is_told_of_once(model: SubjectModel, tokens: Tensor, layers: CrossLayerTranscoder) -> None:
    latent = int(layers.encode(torch.stack([*model.capture(tokens, layers.metadata.hooks or []).values()], 2))
                 .firing_counts()[:16].argmax())  # fmt: skip
    rules = ms.Standing(layers, never=[latent])
    with model.edit([rules]):
        ruled = model(tokens)
    places = [(event.row, event.position) for event in rules.events]
    assert places
    assert len(set(places)) == len(places)
    with model.edit([ms.Ablate(layers, latent)]):
        assert torch.equal(model(tokens), ruled)


def test_dictionaries_that_do_not_say_where_are_refused(model: SubjectModel, layers: CrossLayerTranscoder) -> None:
    for bare in (ms.Transcoder(32, 64, k=9), ms.Crosscoder(32, 64, n_sources=2)):
        with pytest.raises(ConfigError, match="does not know where it reads and writes: set sae"):
            ms.Ablate(bare, 1)
    two = ms.Crosscoder(32, 64, n_sources=2)
    two.metadata.models, two.metadata.hook = ["a", "b"], "resid_post.1"
    with pytest.raises(ConfigError, match="several models"):
        ms.Ablate(two, 1)
    with pytest.raises(ConfigError, match="not resid_post"):
        ms.Ablate(layers, 1, hook="resid_post.2")
    with pytest.raises(ConfigError, match="does not write where it reads"):
        ms.effects(model, layers, "One day", 1)
    early = Transcoder(32, 64, k=9, transform="none", dtype=WIDE)
    early.metadata.hook, early.metadata.target_hook = "mlp_in.2", "mlp_out.0"
    with model.edit([ms.Add(early, 1, 1.0)]), pytest.raises(MonosemError, match="comes before"):
        model(torch.ones(1, 3, dtype=torch.int64))
