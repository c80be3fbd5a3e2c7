"""What latents are made of, on the server: as the meta-SAE says, and nothing where there is none."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from pydantic import TypeAdapter

import monosem as ms
from monosem.explorer import export_site, open_dictionaries, shapes


@pytest.fixture(scope="module")
def made(run_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, ms.MetaSAE]:
    """The small run with the meta-latents of most of its latents beside it."""
    folder = shutil.copytree(run_folder, tmp_path_factory.mktemp("meta") / "small")
    sae = ms.load_sae(folder)
    latents = range(sae.n_latents - 3)
    return folder, ms.meta_sae(sae, 16, k=3, latents=latents, tokens=20_000, path=folder / "meta_sae", progress=False)


def test_the_server_tells_what_the_meta_sae_says(made: tuple[Path, ms.MetaSAE], serve: Callable[..., Any]) -> None:
    folder, meta = made
    with serve(folder) as client:
        feature = TypeAdapter(shapes.Feature).validate_python(client.get("/api/d/small/f/3"))
        parts = feature["made_of"]["parts"]  # type: ignore[index]
        assert [part["meta"] for part in parts] == [part.number for part in meta.made_of(3)]
        assert [part["weight"] for part in parts] == pytest.approx([part.weight for part in meta.made_of(3)], rel=1e-3)
        for part in parts:
            latents = meta.latents_of(part["meta"])
            assert part["count"] == len(latents)
            assert [o["latent"] for o in part["others"]] == [one.number for one in latents if one.number != 3][:3]
        one = TypeAdapter(shapes.MetaLatent).validate_python(client.get("/api/d/small/meta/5"))
        assert [latent["latent"] for latent in one["latents"]] == [part.number for part in meta.latents_of(5, 200)]
        every = TypeAdapter(shapes.MetaLatents).validate_python(client.get("/api/d/small/meta"))
        assert sorted(each["meta"] for each in every["metas"]) == list(range(16))
        counts = [each["count"] for each in every["metas"]]
        assert counts == sorted(counts, reverse=True)
        assert sum(counts) == int((meta.codes.values > 0).sum())
        assert [each["rows"] for each in every["explained"]] == list(meta.explained)
        assert every["latents"] == meta.codes.n_rows - 3
        assert client.get(f"/api/d/small/f/{meta.codes.n_rows - 1}")["made_of"] is None
        reply = client.ask("/api/d/small/meta/16")
        assert (reply.status, "meta-latents 0 to 15" in reply.json["error"]) == (404, True)


def test_without_meta_latents_it_says_how_they_are_found(client: Any) -> None:
    assert client.get("/api/d/small/f/3")["made_of"] is None
    reply = client.ask("/api/d/small/meta")
    assert (reply.status, "ms.meta_sae" in reply.json["error"]) == (404, True)


def test_meta_latents_of_other_weights_or_damaged_are_left_out(
    made: tuple[Path, ms.MetaSAE], tmp_path: Path, serve: Callable[..., Any]
) -> None:
    folder = shutil.copytree(made[0], tmp_path / "small")
    other = ms.TopKSAE(16, 64, k=4, transform="none")
    ms.meta_sae(other, 8, k=2, tokens=3000, controls=False, progress=False).save(folder / "meta_sae")
    with serve(folder) as client:
        assert client.get("/api/d/small/f/3")["made_of"] is None
    (folder / "meta_sae" / "weights.safetensors").write_bytes(b"nothing")
    with serve(folder) as client:
        assert client.get("/api/d/small/f/3")["made_of"] is None


def test_the_page_and_a_static_site_show_what_a_feature_is_made_of(
    made: tuple[Path, ms.MetaSAE], start: Callable[..., Any], look: Callable[..., Any]
) -> None:
    from monosem.explorer.page import Page

    folder, meta = made
    latent = next(i for i in range(meta.codes.n_rows) if meta.made_of(i))
    first = meta.made_of(latent)[0].number
    with start([folder], Page()) as client, look(client.base) as visit:
        visit.open(f"/d/small/f/{latent}")
        visit.page.get_by_role("link", name=f"m/{first}", exact=True).click()
        visit.page.get_by_role("heading", name=f"m/{first} meta-latent").wait_for()
        visit.page.get_by_text(f"A part of {len(meta.latents_of(first))} feature").wait_for()
        visit.page.get_by_role("link", name="All meta-latents").click()
        visit.page.get_by_text("16 meta-latents of").wait_for()
    site = export_site(open_dictionaries([folder]), folder.parent / "site")
    with look((site / "index.html").as_uri()) as visit:  # a double click
        visit.open(f"#/d/small/f/{latent}")
        visit.page.get_by_role("link", name=f"m/{first}", exact=True).click()
        visit.page.get_by_text(f"A part of {len(meta.latents_of(first))} feature").wait_for()
        visit.page.get_by_role("link", name="All meta-latents").click()
        visit.page.get_by_text("16 meta-latents of").wait_for()
