"""Interventions on features: identities, bit for bit or in float64, and that what is asked for is what happens."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import monosem as ms
from monosem.errors import ConfigError, DataError, MismatchError
from monosem.interventions import FeatureEdit
from monosem.models import SubjectModel
from monosem.sae import SAE, BatchTopKSAE, GatedSAE, JumpReLUSAE, ReLUSAE, TopKSAE
from monosem.sae.metadata import InputFingerprint

HOOK = "resid_post.1"
WIDE = torch.float64


@pytest.fixture(scope="module")
def model(make_gpt2: Callable[..., nn.Module], tokenizer: Any) -> SubjectModel:
    """In float64."""
    return SubjectModel(make_gpt2(dtype=WIDE), tokenizer, "wide")


@pytest.fixture(scope="module")
def tokens() -> Tensor:
    return torch.randint(1, 4096, (4, 15), generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def x(model: SubjectModel, tokens: Tensor) -> Tensor:
    return model.capture(tokens, [HOOK])[HOOK]


def fitted(kind: type[SAE], x: Tensor, transform: str = "centre_scale", **settings: Any) -> SAE:
    sae = kind(32, 64, transform=transform, dtype=WIDE, seed=1, **settings)
    sae.initialise(x.reshape(-1, 32))
    with torch.no_grad():
        sae.b_enc.normal_(std=0.1, generator=torch.Generator().manual_seed(2))
        sae.b_dec.normal_(std=0.1, generator=torch.Generator().manual_seed(3))
    sae.metadata.hook = HOOK
    return sae


KINDS: list[tuple[type[SAE], str, dict[str, Any]]] = [
    (TopKSAE, "centre_scale", {"k": 9}),
    (TopKSAE, "layer_norm", {"k": 9}),
    (TopKSAE, "whiten", {"k": 9}),
    (BatchTopKSAE, "none", {"k": 9}),
    (JumpReLUSAE, "centre", {}),
    (ReLUSAE, "scale", {}),
    (GatedSAE, "centre_scale", {}),
]


@pytest.fixture(params=KINDS, ids=[f"{kind.__name__}-{transform}" for kind, transform, _ in KINDS])
def sae(request: pytest.FixtureRequest, x: Tensor) -> SAE:
    kind, transform, settings = request.param
    return fitted(kind, x, transform, **settings)


@pytest.fixture
def top(x: Tensor) -> SAE:
    return fitted(TopKSAE, x, k=9)


def common(sae: SAE, x: Tensor, n: int = 3) -> list[int]:
    """The latents that are on most often, but not everywhere."""
    counts = sae.encode(x).firing_counts()
    counts[counts == x.shape[:-1].numel()] = 0
    return counts.topk(n).indices.tolist()


def edited(model: SubjectModel, tokens: Any, *edits: Any) -> Tensor:
    with model.edit(list(edits)):
        return model.capture(tokens, [HOOK])[HOOK]


# Identities -----------------------------------------------------------------------------------------------------------


def test_what_changes_no_code_changes_no_bit(model: SubjectModel, tokens: Tensor, x: Tensor, sae: SAE) -> None:
    latents = common(sae, x)
    never = (sae.encode(x).firing_counts() == 0).nonzero()[:1, 0].tolist()
    largest = float(sae.encode(x).values.detach().max())
    plain = model(tokens)
    nothing: list[FeatureEdit] = [
        ms.Scale(sae, latents, 1.0),
        ms.Clamp(sae, latents, max=largest),
        ms.Clamp(sae, latents, min=0.0),
        ms.Add(sae, latents, 0.0),
        ms.Swap(sae, latents, tokens),
        ms.Swap(sae, latents, sae.encode(x)),
    ]
    if never:
        nothing += [ms.Ablate(sae, never), ms.Set(sae, never, 0.0)]
    for edit in nothing:
        with model.edit([edit]) as reports:
            assert torch.equal(model(tokens), plain), edit
        assert reports[0].calls == 1
        assert reports[0].met() == tokens.numel()
        assert not reports[0].did_something()
        assert "changed nothing" in str(reports[0])


def test_set_to_the_present_codes_changes_no_bit(model: SubjectModel, x: Tensor, sae: SAE) -> None:
    """Row by row: the setting of one position each."""
    latents = common(sae, x)
    one = torch.randint(1, 4096, (5, 1), generator=torch.Generator().manual_seed(4))
    codes = sae.encode(model.capture(one, [HOOK])[HOOK][:, 0]).select(latents).to_dense()
    with model.edit([ms.Set(sae, latents, codes)]) as reports:
        assert torch.equal(model(one), model.module(one).logits)
    assert not reports[0].did_something()


def test_the_change_is_exactly_the_sum_of_decoder_rows(
    model: SubjectModel, tokens: Tensor, x: Tensor, sae: SAE
) -> None:
    """With a transform of each row its deviation scales them; without the error term the reconstruction moves."""
    latents = common(sae, x)
    old = sae.encode(x).to_dense()
    rules: list[tuple[FeatureEdit, Callable[[Tensor], Tensor]]] = [
        (ms.Ablate(sae, latents), torch.zeros_like),
        (ms.Set(sae, latents, [1.0, 2.0, 3.0]), lambda c: torch.tensor([1.0, 2, 3], dtype=WIDE).expand_as(c)),
        (ms.Scale(sae, latents, -0.5), lambda c: -0.5 * c),
        (ms.Add(sae, latents, 0.7), lambda c: c + 0.7),
        (ms.Clamp(sae, latents, 0.1, 0.3), lambda c: c.clamp(0.1, 0.3)),
    ]
    for edit, rule in rules:
        new = old.clone()
        new[..., latents] = rule(old[..., latents])
        codes = ms.SparseCodes.from_dense(new)
        moved = sae.decode(codes, x) - sae.decode(sae.encode(x), x)
        torch.testing.assert_close(edited(model, tokens, edit), x + moved, rtol=1e-12, atol=1e-12)
        edit.keep_error = False
        torch.testing.assert_close(edited(model, tokens, edit), sae.decode(codes, x), rtol=1e-12, atol=1e-12)


def test_ablating_and_adding_back_is_the_identity(model: SubjectModel, tokens: Tensor, x: Tensor, sae: SAE) -> None:
    if sae.transform.per_row:
        pytest.skip("the deviation of a row is another once it has been edited, and a code is worth another length")
    latents = common(sae, x)
    codes = sae.encode(x).select(latents).to_dense()
    for row, position in ((0, 3), (2, 9)):
        back = ms.Where(positions=position, rows=row)
        there = codes[row, position]
        edits = [ms.Ablate(sae, latents, where=back), ms.Add(sae, latents, there, where=back)]
        torch.testing.assert_close(edited(model, tokens, *edits), x, rtol=1e-12, atol=1e-12)
    both = [ms.Add(sae, latents, 1.7), ms.Add(sae, latents, -1.7)]
    torch.testing.assert_close(edited(model, tokens, *both), x, rtol=1e-12, atol=1e-12)


def test_directions(model: SubjectModel, tokens: Tensor, x: Tensor) -> None:
    v = torch.randn(32, dtype=WIDE, generator=torch.Generator().manual_seed(6))
    u = v / v.norm()
    along = x @ u
    expected = {
        ms.AddVector(HOOK, v, strength=2): x + 2 * v,
        ms.Project(HOOK, v): x - along[..., None] * u,
        ms.Project(HOOK, v, scale=3): x + 2 * along[..., None] * u,
        ms.CapProjection(HOOK, v, most=0.1): x - (along - 0.1).relu()[..., None] * u,
    }
    for edit, wanted in expected.items():
        torch.testing.assert_close(edited(model, tokens, edit), wanted, rtol=1e-12, atol=1e-12)
    plain = model(tokens)
    for edit in (
        ms.AddVector(HOOK, v, strength=0),
        ms.Project(HOOK, v, scale=1),
        ms.CapProjection(HOOK, v, most=along.max() + 1),
    ):
        with model.edit([edit]) as reports:
            assert torch.equal(model(tokens), plain), edit
        assert "changed nothing" in str(reports[0])
    there_and_back = [ms.AddVector(HOOK, v), ms.AddVector(HOOK, v, strength=-1)]
    torch.testing.assert_close(edited(model, tokens, *there_and_back), x, rtol=1e-12, atol=1e-12)


def test_a_row_of_a_batch_equals_the_row_alone_each_with_its_setting(
    model: SubjectModel, tokens: Tensor, x: Tensor, top: SAE
) -> None:
    latents = common(top, x)
    amounts = torch.randn(4, 3, dtype=WIDE, generator=torch.Generator().manual_seed(7))
    vectors = torch.randn(4, 32, dtype=WIDE, generator=torch.Generator().manual_seed(8))

    def edits(rows: slice) -> list[Any]:
        return [
            ms.Add(top, latents, amounts[rows]),
            ms.Scale(top, latents[:1], amounts[rows, :1]),
            ms.AddVector("resid_post.0", vectors[rows], strength=amounts[rows, :1]),
            ms.Project("mlp_out.2", vectors[0], scale=amounts[rows, 1:2]),
            ms.Ablate(top, latents[2], by="resample", source=tokens, seed=3),
        ]

    with model.edit(edits(slice(None))):
        together = model(tokens)
    for row in range(4):
        with model.edit(edits(slice(row, row + 1))):
            torch.testing.assert_close(model(tokens[row : row + 1])[0], together[row], rtol=1e-10, atol=1e-10)


def test_several_edits_at_several_hooks_apply_in_their_order(
    model: SubjectModel, tokens: Tensor, x: Tensor, top: SAE
) -> None:
    latent = common(top, x, 1)[0]
    v = torch.randn(32, dtype=WIDE, generator=torch.Generator().manual_seed(6))
    set_, scale = ms.Set(top, latent, 2.0), ms.Scale(top, latent, 3.0)
    one_way = edited(model, tokens, set_, scale)
    again = top.encode(edited(model, tokens, set_)).select([latent]).to_dense()[..., 0]
    row = top.decoder_directions([latent])[0]
    torch.testing.assert_close(one_way, edited(model, tokens, set_) + 2 * again[..., None] * row, rtol=1e-9, atol=1e-9)
    assert (one_way - edited(model, tokens, scale, set_)).abs().max() > 1e-3
    both = [ms.AddVector("resid_post.0", v), ms.AddVector("mlp_out.2", v)]
    with model.edit(both) as reports:
        together = model(tokens)
    with model.edit(both[:1]), model.edit(both[1:]):
        assert torch.equal(model(tokens), together)
    assert [report.changed() for report in reports] == [tokens.numel()] * 2


# Values of other contexts ---------------------------------------------------------------------------------------------


def test_mean_and_resample_take_codes_of_other_contexts(
    model: SubjectModel, tokens: Tensor, x: Tensor, top: SAE
) -> None:
    latents = common(top, x)
    others = torch.randint(1, 4096, (3, 11), generator=torch.Generator().manual_seed(9))
    there = top.encode(model.capture(others, [HOOK])[HOOK]).select(latents).to_dense().reshape(-1, 3)
    rows = top.decoder_directions(latents)
    old = top.encode(x).select(latents).to_dense()
    mean = edited(model, tokens, ms.Ablate(top, latents, by="mean", source=others))
    torch.testing.assert_close(mean, x + (there.mean(0) - old) @ rows, rtol=1e-12, atol=1e-12)
    drawn = edited(model, tokens, ms.Ablate(top, latents, by="resample", source=others, seed=1))
    new = torch.linalg.lstsq(rows.T, (drawn - x).reshape(-1, 32).T).solution.T + old.reshape(-1, 3)
    distance = (new[:, None] - there).abs().amax(-1)
    assert distance.min(1).values.max() < 1e-9, "each is of one position of the source, all latents together"
    assert len(distance.argmin(1).unique()) > 5
    again = edited(model, tokens, ms.Ablate(top, latents, by="resample", source=others, seed=2))
    assert not torch.equal(again, drawn)


def test_features_are_patched_position_for_position_and_from_one_position(
    model: SubjectModel, tokens: Tensor, x: Tensor, top: SAE
) -> None:
    latents = common(top, x)
    other = tokens[1:2, :10]
    there = top.encode(x[1, :10]).select(latents).to_dense()
    rows, old = top.decoder_directions(latents), top.encode(x).select(latents).to_dense()
    found = edited(model, tokens, ms.Swap(top, latents, other))
    wanted = x.clone()
    wanted[:, :10] += (there - old[:, :10]) @ rows
    torch.testing.assert_close(found, wanted, rtol=1e-12, atol=1e-12)
    assert torch.equal(found[:, 10:], x[:, 10:]), "the other text has no such positions"
    last = edited(model, tokens, ms.Swap(top, latents, other, position=-1, where=ms.Where(positions=14)))
    torch.testing.assert_close(last[:, 14], x[:, 14] + (there[9] - old[:, 14]) @ rows, rtol=1e-12, atol=1e-12)
    assert torch.equal(last[:, :14], x[:, :14])


def test_swapping_all_latents_without_the_error_is_the_other_text_s_reconstruction(
    model: SubjectModel, tokens: Tensor, x: Tensor, top: SAE
) -> None:
    found = edited(model, tokens[:1], ms.Swap(top, list(range(64)), tokens[2:3], keep_error=False))
    torch.testing.assert_close(found[0], top(x[2]).reconstruction, rtol=1e-12, atol=1e-12)


# Where ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("where", "chosen"),
    [
        (ms.Where(positions=3), lambda t: torch.arange(15).expand_as(t) == 3),
        (ms.Where(positions=[0, -1]), lambda t: torch.isin(torch.arange(15), torch.tensor([0, 14])).expand_as(t)),
        (
            ms.Where(positions=slice(2, None, 3)),
            lambda t: torch.isin(torch.arange(15), torch.arange(2, 15, 3)).expand_as(t),
        ),
        (ms.Where(positions=slice(-4, -1)), lambda t: torch.isin(torch.arange(15), torch.arange(11, 14)).expand_as(t)),
        (ms.Where(positions=range(99)), None),
        (ms.Where(rows=[1, 3]), lambda t: torch.tensor([[False], [True], [False], [True]]).expand_as(t)),
        (ms.Where(phase="prompt"), lambda t: torch.ones_like(t, dtype=torch.bool)),
        (ms.Where(phase="generated"), lambda t: torch.zeros_like(t, dtype=torch.bool)),
        (lambda context: context.tokens % 2 == 0, lambda t: t % 2 == 0),
    ],
)
def test_only_where_it_is_asked_for(
    model: SubjectModel, tokens: Tensor, x: Tensor, top: SAE, where: Any, chosen: Callable[[Tensor], Tensor] | None
) -> None:
    edit = ms.Add(top, 3, 1.0, where=where)
    if chosen is None:
        with pytest.raises(DataError, match="position 15 is outside the text, which has 15 tokens"):
            edited(model, tokens, edit)
        return
    expected = torch.where(chosen(tokens)[..., None], x + top.decoder_directions([3])[0], x)
    assert torch.equal(edited(model, tokens, edit), expected)


def test_conditions_on_tokens_and_on_a_latent_hold_together(
    model: SubjectModel, tokens: Tensor, x: Tensor, top: SAE
) -> None:
    latent = common(top, x, 1)[0]
    code = top.encode(x).select([latent]).to_dense()[..., 0]
    threshold = float(code[code > 0].detach().median())
    v = torch.ones(32, dtype=WIDE)
    ids = tokens[code > threshold][:2].tolist() + tokens[code <= threshold][:1].tolist()
    wanted = (code > threshold) & torch.isin(tokens, torch.tensor(ids))
    where = ms.Where(tokens=ids, above=(latent, threshold), sae=top)
    assert torch.equal(edited(model, tokens, ms.AddVector(HOOK, v, where=where)), x + v * wanted[..., None])
    alone = edited(model, tokens, ms.Add(top, 3, 1.0, where=ms.Where(above=(latent, threshold))))
    assert torch.equal((alone != x).any(-1), code > threshold)
    with model.edit([ms.AddVector(HOOK, v, where=ms.Where(above=(1, 0.0)))]), pytest.raises(ConfigError, match="whose"):
        model(tokens)


def test_words_are_found_among_tokens(model: SubjectModel, top: SAE) -> None:
    tokens = model.tokens("the man and the dog")
    with model.edit([ms.Add(top, 3, 1.0, where=ms.Where(tokens=[" the", " dog"]))]) as reports:
        model(tokens)
    assert reports[0].changed() == 2
    wrong = ms.Add(top, 3, 1.0, where=ms.Where(tokens=" the man"))
    with model.edit([wrong]), pytest.raises(ConfigError, match="' the man' is not one token but 2: ' the', ' man'"):
        model(tokens)


def test_an_sae_s_rules_hold_for_its_features(model: SubjectModel, top: SAE, tokens: Tensor) -> None:
    """Special tokens, first positions, norms: one rule with Splice."""
    tokens = tokens.clone()
    tokens[:, 0] = tokens[1, 7] = 0
    x = model.capture(tokens, [HOOK])[HOOK]
    top.metadata.skip_first = 3
    norms = x[:, 3:].norm(dim=-1)
    top.metadata.max_norm = {HOOK: norms.flatten().sort().values[-4].item()}
    mask = torch.ones_like(tokens)
    mask[2, 12:] = 0
    inputs = {"input_ids": tokens, "attention_mask": mask}
    left = (edited(model, inputs, ms.Add(top, 3, 1.0)) == edited(model, inputs)).all(-1)
    assert torch.equal(left, (edited(model, inputs, ms.Splice(top)) == edited(model, inputs)).all(-1))
    assert left[:, :3].all()
    assert left[1, 7]
    assert left[2, 12:].all()
    assert (~left).sum() < tokens.numel() - 12 - 1 - 3


def test_a_schedule_scales_what_is_moved(model: SubjectModel, top: SAE) -> None:
    v = torch.randn(32, dtype=WIDE, generator=torch.Generator().manual_seed(6))
    seen: list[tuple[int, Tensor]] = []

    class Look:
        hooks = (HOOK,)

        def apply(self, x: Tensor, context: Any) -> Tensor:
            seen.extend(zip(context.step[0].tolist(), x[0], strict=True))
            return x

    schedule = [(1, 1.0), (3, 0.0), (5, 2.0)]
    edits = [Look(), ms.AddVector(HOOK, v, where=ms.Where(phase="generated", schedule=schedule)), Look()]
    ms.generate(model, "One day", edits=edits, max_new_tokens=8, temperature=0)
    n = model.tokens("One day").shape[1]
    before, after = seen[:n], seen[n : 2 * n]
    for i in range(7):
        before.append(seen[2 * n + 2 * i])
        after.append(seen[2 * n + 2 * i + 1])
    factors = {0: 0.0, 1: 1.0, 2: 0.5, 3: 0.0, 4: 1.0, 5: 2.0, 6: 2.0, 7: 2.0}
    for (step, old), (_, new) in zip(before, after, strict=True):
        torch.testing.assert_close(new - old, factors[step] * v, rtol=1e-9, atol=1e-9)


def test_an_edit_within_another_looks_at_the_model_as_it_is(model: SubjectModel, tokens: Tensor, top: SAE) -> None:
    """What an edit asks the model when it is put in is asked without the edits around it."""
    other = torch.randint(1, 4096, (2, 9), generator=torch.Generator().manual_seed(5))
    outer = ms.AddVector("resid_post.0", torch.full((32,), 30.0), where=ms.Where(positions=14))
    inner = [ms.Ablate(top, [1, 2, 3], by="mean", source=other), ms.Swap(top, [4], other[:1])]
    with model.edit([outer, *inner]):
        together = model(tokens)
    again = [ms.Ablate(top, [1, 2, 3], by="mean", source=other), ms.Swap(top, [4], other[:1])]
    with model.edit([outer]), model.edit(again):
        assert torch.equal(model(tokens), together)


# Reports, and bad input -----------------------------------------------------------------------------------------------


def test_ran_and_did_something_are_told_apart(model: SubjectModel, tokens: Tensor, x: Tensor, top: SAE) -> None:
    latent = common(top, x, 1)[0]
    on = (top.encode(x).select([latent]).to_dense()[..., 0] > 0).sum(1)
    nowhere = ms.Ablate(top, latent, where=ms.Where(tokens=[4095]))
    with model.edit([ms.Ablate(top, latent), nowhere, ms.AddVector("resid_post.0", torch.zeros(32))]) as reports:
        assert "never ran" in str(reports[0])
        model.capture(tokens, ["resid_pre.1"])
        assert [report.calls for report in reports] == [0, 0, 1]
        model(tokens)
    assert reports[0].met() == tokens.numel()
    assert [reports[0].changed(row) for row in range(4)] == on.tolist()
    assert str(reports[0]) == f"Ablate(latent {latent}, '{HOOK}'): changed {int(on.sum())} of 60 positions"
    assert reports[0].largest > 0
    assert "met no position" in str(reports[1])
    assert "the vector or its strength is 0" in str(reports[2])


def test_an_edit_is_removed_whatever_happens_inside_the_block(model: SubjectModel, tokens: Tensor, top: SAE) -> None:
    plain = model(tokens)
    force = model.edit([ms.Add(top, 1, 5.0)])
    for error in (KeyError, KeyboardInterrupt, GeneratorExit):
        with pytest.raises(error), force:  # noqa: PT012
            assert not torch.equal(model(tokens), plain)
            raise error
        assert torch.equal(model(tokens), plain)
    with pytest.raises(DataError), model.edit([ms.Add(top, 1, torch.ones(3, 1))]):
        model(tokens)
    assert torch.equal(model(tokens), plain)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda sae: ms.Ablate(sae, 64), "there is no latent 64: this SAE has latents 0 to 63"),
        (lambda sae: ms.Ablate(sae, [1, 1]), "named twice"),
        (lambda sae: ms.Ablate(sae, []), "whole numbers"),
        (lambda sae: ms.Ablate(sae, 1.5), "whole numbers"),
        (lambda sae: ms.Ablate(sae, 1, by="median"), "by must be"),
        (lambda sae: ms.Ablate(sae, 1, by="mean"), "give source="),
        (lambda sae: ms.Set(sae, 1, float("nan")), "to must be finite"),
        (lambda sae: ms.Add(sae, [1, 2], [1.0, 2.0, 3.0]), r"shape \(3,\) for 2 latents"),
        (lambda sae: ms.Add(sae, 1, "much"), "amount must be numbers"),
        (lambda sae: ms.Clamp(sae, 1), "min, max or both"),
        (lambda sae: ms.Scale(sae, 1, 2.0, where="here"), "where must be"),
        (lambda sae: ms.Swap(sae, 1, torch.zeros(3)), "source must be token ids"),
        (lambda _: ms.AddVector(HOOK, [1.0, float("inf")]), "not finite"),
        (lambda _: ms.Project(HOOK, torch.zeros(32)), "points nowhere"),
        (lambda _: ms.CapProjection(HOOK, torch.ones(32), most=float("inf")), "finite"),
        (lambda _: ms.Where(phase="later"), "phase"),
        (lambda _: ms.Where(positions=1.5), "whole numbers"),
        (lambda _: ms.Where(schedule=[(3, 1), (1, 0)]), "growing steps"),
        (lambda _: ms.Where(above=(1,)), "above must be"),
        (lambda sae: ms.Where(above=(64, 0.0), sae=sae), "latent 64"),
    ],
)
def test_bad_settings_are_refused_before_anything_runs(top: SAE, make: Callable[[SAE], Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words) as error:
        make(top)
    assert "\n" not in str(error.value)


def test_what_does_not_fit_the_model_or_the_batch_is_refused(
    model: SubjectModel, tokens: Tensor, x: Tensor, top: SAE
) -> None:
    with pytest.raises(MismatchError, match="width 32"), model.edit([ms.Add(top, 1, 1.0, hook="mlp_mid.1")]):
        pass
    with (
        pytest.raises(ms.MonosemError, match=r"resid_post\.9"),
        model.edit([ms.AddVector("resid_post.9", torch.ones(32))]),
    ):
        pass
    cases = [
        (ms.AddVector(HOOK, torch.ones(31)), "width 31"),
        (ms.AddVector(HOOK, torch.ones(3, 32)), "3 rows, the batch has 4"),
        (ms.Add(top, 1, torch.ones(5, 1)), "5 rows, the batch has 4"),
        (ms.Add(top, 1, 1.0, where=torch.ones(4, 3, dtype=torch.bool)), "shape"),
        (ms.Add(top, 1, 1.0, where=torch.ones(4, 15)), "bools"),
        (ms.Add(top, 1, 1.0, where=ms.Where(positions=-16)), "position -16 is outside the text"),
        (ms.Swap(top, 1, tokens[:2]), "2 contexts"),
        (ms.Swap(top, 1, tokens[:1], position=15), "position 15 is outside the source"),
    ]
    for edit, words in cases:
        with model.edit([edit]), pytest.raises(ms.MonosemError, match=words):
            model(tokens)
    bare = fitted(TopKSAE, x, k=9)
    bare.metadata.hook = None
    with pytest.raises(ConfigError, match="does not know its hook point"):
        ms.Ablate(bare, 1)


def test_an_sae_is_asked_once_whether_it_fits_whatever_edits_there_are(
    model: SubjectModel, tokens: Tensor, x: Tensor
) -> None:
    """The question runs the model on what the SAE was probed on."""
    sae = fitted(TopKSAE, x, k=9)
    sae.probe["tokens"], sae.probe["kept"] = tokens, torch.ones_like(tokens, dtype=torch.bool)
    norm, fvu = float(x.norm(dim=-1).mean()), 1.0
    sae.metadata.fingerprint = InputFingerprint(mean_norm=norm, fvu=fvu, l0=9)
    ran: list[int] = []
    handle = model.module.register_forward_pre_hook(lambda *_: ran.append(1))

    def runs(edit: Any) -> int:
        ran.clear()
        with model.edit([edit]):
            return len(ran)

    try:
        assert runs(ms.Ablate(sae, 1)) > 0
        assert runs(ms.Ablate(sae, 2)) == runs(ms.Add(sae, 3, 1.0)) == runs(ms.Splice(sae)) == 0
        assert runs(ms.Add(sae, 3, 1.0, hook="resid_pre.2")) > 0, "at another hook point it is another question"
        with torch.no_grad():
            sae.b_enc[0] += 1
        assert runs(ms.Ablate(sae, 1)) > 0, "it is another SAE"
    finally:
        handle.remove()
