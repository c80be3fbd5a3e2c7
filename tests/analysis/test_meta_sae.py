"""Meta-SAEs: what latents are made of is found, chance stays chance, and edits by meta-latents are exact."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from torch.nn.functional import normalize

import monosem as ms
from monosem.analysis.cosines import nearest, random_directions, unit_rows
from monosem.errors import ConfigError, FileError, MismatchError
from monosem.models import SubjectModel

D, ATOMS, LATENTS = 64, 50, 2000


def with_rows(rows: torch.Tensor, seed: int = 0) -> ms.TopKSAE:
    """A dictionary with these decoder rows."""
    sae = ms.TopKSAE(rows.shape[1], len(rows), k=8, transform="none", seed=seed)
    with torch.no_grad():
        sae.W_dec.copy_(rows)
    return sae


@pytest.fixture(scope="module")
def planted() -> tuple[ms.TopKSAE, torch.Tensor, torch.Tensor]:
    """Latents that are sums of three of fifty atoms, longer and shorter; the atoms, and which latent has which."""
    generator = torch.Generator().manual_seed(0)
    atoms = normalize(torch.randn(ATOMS, D, generator=generator))
    chosen = torch.rand(LATENTS, ATOMS, generator=generator).topk(3).indices
    weights = 0.5 + torch.rand(LATENTS, 3, generator=generator)
    rows = torch.einsum("mk,mkd->md", weights, atoms[chosen])
    return with_rows(rows * (0.5 + torch.rand(LATENTS, 1, generator=generator))), atoms, chosen


@pytest.fixture(scope="module")
def found(planted: tuple[ms.TopKSAE, torch.Tensor, torch.Tensor]) -> ms.MetaSAE:
    return ms.meta_sae(planted[0], 64, k=3, tokens=150_000, controls=False, progress=False)


def test_planted_sums_of_atoms_are_recovered(
    planted: tuple[ms.TopKSAE, torch.Tensor, torch.Tensor], found: ms.MetaSAE
) -> None:
    _, atoms, chosen = planted
    cosines, which = nearest(atoms, found.directions)
    assert cosines.mean() > 0.99
    assert (cosines > 0.99).float().mean() > 0.95
    hits = [len(set(which[chosen[i]].tolist()) & {part.number for part in found.made_of(i, 3)}) for i in range(200)]
    assert sum(hits) / 600 > 0.95
    assert found.similarity.mean() > 0.98
    assert found.explained["decoder rows"].held_out.value > 0.9


def test_random_rows_stay_at_chance() -> None:
    """Held out, dictionaries of random rows explain no more than one that is itself random (2 of 20 by search)."""
    generator = torch.Generator().manual_seed(5)
    atoms = random_directions(16, 16, generator)
    chosen = torch.rand(600, 16, generator=generator).topk(2).indices
    rows = torch.einsum("mk,mkd->md", 0.5 + torch.rand(600, 2, generator=generator), atoms[chosen])
    found = ms.meta_sae(with_rows(rows), 20, k=2, tokens=60_000, progress=False)
    drawn, blank = random_directions(2000, 16, generator), with_rows(random_directions(20, 16, generator))
    made = unit_rows(blank.decode(ms.pursue(blank, drawn, k=2)))
    chance = float((drawn * made).sum(-1).pow(2).mean())
    assert found.explained["random rows"].held_out.value < chance + 0.05
    for name in ("random rows", "random rows, same covariance"):
        assert found.explained[name].held_out.high < found.explained["decoder rows"].held_out.low  # type: ignore[operator]
    assert set(found.controls) == {"random rows", "random rows, same covariance"}


def test_both_sides_tell_the_same_and_weights_make_up_the_row(
    planted: tuple[ms.TopKSAE, torch.Tensor, torch.Tensor], found: ms.MetaSAE
) -> None:
    sae = planted[0]
    parts = found.made_of(7)
    assert parts == sorted(parts, key=lambda part: -part.weight)
    assert all((7, part.weight) in found.latents_of(part.number) for part in parts)
    made = torch.stack([part.weight * found.directions[part.number] for part in parts]).sum(0)
    row = unit_rows(sae.decoder_directions([7]))[0]
    assert torch.nn.functional.cosine_similarity(row, made, dim=0) == pytest.approx(
        float(found.similarity[7]), abs=1e-5
    )


def test_a_meta_sae_comes_back_from_its_folder(found: ms.MetaSAE, tmp_path: Path) -> None:
    found.save(tmp_path / "meta")
    back = ms.MetaSAE.load(tmp_path / "meta")
    assert str(back) == str(found)
    assert torch.equal(back.codes.to_dense(), found.codes.to_dense())
    assert torch.equal(back.directions, found.directions)
    assert back.made_of(3) == found.made_of(3)
    (tmp_path / "meta" / "meta.json").write_text('{"dictionary": "x", "hook": null, "explained": {"a": [[1]]}}')
    with pytest.raises(FileError, match="make it anew"):
        ms.MetaSAE.load(tmp_path / "meta")
    with pytest.raises(FileError, match="make it anew"):
        ms.MetaSAE.load(tmp_path / "nothing")


def test_training_goes_on_in_its_folder_and_latents_left_out_have_no_part(tmp_path: Path) -> None:
    sae = with_rows(torch.randn(200, 16, generator=torch.Generator().manual_seed(1)))
    made = [
        ms.meta_sae(sae, 8, k=2, latents=range(150), tokens=5000, path=tmp_path, controls=False, progress=False)
        for _ in range(2)
    ]
    assert torch.equal(made[0].codes.values, made[1].codes.values)
    assert made[0].similarity[150:].isnan().all()
    assert not made[0].made_of(170)
    assert made[0].made_of(3)
    assert str(ms.MetaSAE.load(tmp_path)) == str(made[0])
    assert list(made[0].explained) == ["decoder rows"]


def test_latents_of_a_small_dictionary_are_recovered_where_it_has_the_atoms() -> None:
    """Each atom is split among forty latents, beside one atom more: the small dictionary is the atoms."""
    generator = torch.Generator().manual_seed(11)
    atoms = normalize(torch.randn(20, 32, generator=generator))
    parents = torch.arange(20).repeat_interleave(40)
    other = atoms[torch.randint(20, (800,), generator=generator)]
    rows = atoms[parents] + (0.2 + 0.3 * torch.rand(800, 1, generator=generator)) * other
    sae, small = with_rows(rows), with_rows(atoms)
    found = ms.meta_sae(sae, 30, k=2, tokens=80_000, progress=False)
    beside = found.against(sae, small)
    assert beside.parents == 20
    assert beside.found["meta-latents"].value > 0.9
    assert beside.found["random directions"].value == 0
    assert beside.to_small["meta-latents"].value > 0.8 > 0.6 > beside.to_small["those of random rows"].value
    assert beside.siblings.value > 0.95 > beside.siblings_by_chance.high > beside.siblings_by_chance.low  # type: ignore[operator]
    assert beside.named.value > 0.9 > beside.named_by_chance.high  # type: ignore[operator]
    assert beside.explains["the small dictionary's latents"].value > 0.97
    assert "20 of its latents are split" in " ".join(str(beside).split())


def test_shares_of_splits_are_at_chance_for_random_dictionaries() -> None:
    """Latents dealt out at random: what the permutations say is what is found."""
    generator = torch.Generator().manual_seed(2)
    rows = random_directions(600, 8, generator)
    sae, small = with_rows(rows), with_rows(random_directions(12, 8, generator))
    found = ms.meta_sae(sae, 12, k=2, tokens=60_000, controls=False, progress=False)
    shuffled = rows[torch.randperm(600, generator=generator)]
    beside = found.against(sae, small, threshold=0.5)
    from monosem.analysis.meta.overlap import overlap

    null = overlap(shuffled, found.codes, {"own": found.directions}, unit_rows(small.decoder_directions()), 0.5, 2, 0)
    assert null.siblings_by_chance.low <= null.siblings.value <= null.siblings_by_chance.high  # type: ignore[operator]
    assert beside.siblings.value > beside.siblings_by_chance.high  # type: ignore[operator]


def test_an_edit_without_all_its_parts_writes_what_was_left(tiny: SubjectModel) -> None:
    """Redirect, step by step: own rows change nothing, zeros are Ablate, meta-latents move it by weight x direction."""
    sae = ms.TopKSAE(32, 64, k=9, transform="none", seed=3)
    found = ms.meta_sae(sae, 8, k=2, tokens=5000, controls=False, progress=False)
    latent = next(i for i in range(64) if len(found.made_of(i)) > 1)
    tokens = torch.randint(0, 4096, (2, 12), generator=torch.Generator().manual_seed(0))
    hook, rows = "resid_post.1", sae.decoder_directions([latent])

    def after(*edits: ms.Redirect | ms.Ablate) -> torch.Tensor:
        with tiny.edit(list(edits)):
            return tiny.capture({"input_ids": tokens}, [hook])[hook]

    plain = after()
    assert torch.equal(after(ms.Redirect(sae, [latent], rows, hook=hook)), plain)
    ablated, zeros = after(ms.Ablate(sae, [latent], hook=hook)), ms.Redirect(sae, [latent], 0 * rows, hook=hook)
    assert not torch.equal(ablated, plain)
    assert torch.allclose(after(zeros), ablated, atol=1e-5)
    first = found.made_of(latent)[0]
    edit = found.edit(sae, latent, without=first.number, hook=hook)
    codes = sae.encode(plain).select([latent]).to_dense()
    expected = plain - codes * (rows.norm() * first.weight * found.directions[first.number])
    assert torch.allclose(after(edit), expected, atol=1e-5)
    back = found.edit(sae, latent, without=first.number, plus={first.number: first.weight}, hook=hook)
    assert torch.allclose(after(back), plain, atol=1e-5)
    everyone = found.edit(sae, without=first.number, hook=hook)
    assert set(everyone.latents) == {part.number for part in found.latents_of(first.number)}
    same = ms.edit_from_json(edit.to_json(), sae)
    assert torch.equal(after(same), after(edit))  # type: ignore[arg-type]


def test_what_is_wrong_is_said_before_work_starts(found: ms.MetaSAE) -> None:
    sae = ms.TopKSAE(16, 64, k=4, transform="none")
    with pytest.raises(ConfigError, match="twice as many latents"):
        ms.meta_sae(sae, 40)
    with pytest.raises(ConfigError, match="cannot be learned"):
        ms.meta_sae(sae, 8, k=9)
    with pytest.raises(ConfigError, match="latents 0 to 1999"):
        found.made_of(2000)
    with pytest.raises(ConfigError, match="meta-latents 0 to 63"):
        found.latents_of(64)
    with pytest.raises(MismatchError, match="another dictionary"):
        found.edit(sae, 0, without=0)
    own = ms.meta_sae(sae, 8, k=2, tokens=3000, controls=False, progress=False)
    other = next(i for i in range(8) if i not in {part.number for part in own.made_of(0)})
    with pytest.raises(ConfigError, match="nothing would change"):
        own.edit(sae, 0, without=other, hook="resid_post.1")
    with pytest.raises(MismatchError, match="width 24 and 16"):
        own.against(sae, ms.TopKSAE(24, 8, k=2))
    with pytest.raises(ConfigError, match="16 finite numbers"):
        ms.Redirect(sae, [0], torch.full((1, 16), math.nan), hook="resid_post.1")
    with pytest.raises(ConfigError, match="1 x 16"):
        ms.Redirect(sae, [0], torch.zeros(2, 16), hook="resid_post.1")
    normed = ms.TopKSAE(16, 64, k=4, transform="layer_norm")
    with pytest.raises(ConfigError, match="what they read"):
        ms.Redirect(normed, [0], torch.zeros(1, 16), hook="resid_post.1")
