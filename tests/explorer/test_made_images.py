"""Images made for features, in the explorer: as they were saved, and nothing where there is none."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydantic import TypeAdapter

import monosem as ms
from monosem.analysis import OptimisedImages
from monosem.explorer import export_feature, export_site, open_dictionaries, shapes
from monosem.explorer.page import Page
from monosem.features import harvest
from monosem.models import SubjectModel
from monosem.sae import SAE

FEATURES = (2, 5, 7, 11)


@pytest.fixture(scope="module")
def made(
    vit: SubjectModel, vit_sae: SAE, photos: np.ndarray, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, OptimisedImages]:
    """A run of images, and images made for some of its features beside the store."""
    folder = tmp_path_factory.mktemp("made") / "vit"
    vit_sae.save(folder / "sae")
    harvest(vit_sae, folder / "features", vit, images=photos, progress=False)
    images = ms.optimise_image(vit, vit_sae, FEATURES, images=photos, steps=48, n_random=4, progress=False)
    images.save(folder / "optimised")
    return folder, images


def test_the_server_tells_what_was_made(made: tuple[Path, OptimisedImages], serve: Callable[..., Any]) -> None:
    folder, images = made
    with serve(folder) as client:
        for i, latent in enumerate(FEATURES):
            feature = TypeAdapter(shapes.Feature).validate_python(client.get(f"/api/d/vit/f/{latent}"))
            found = feature["made_image"]
            assert found is not None
            assert found["activation"] == pytest.approx(images.activation[i], rel=1e-4)
            assert found["activations"] == pytest.approx(images.activations[i].tolist(), rel=1e-3)
            assert found["activations"][found["peak"]] == max(found["activations"])
            assert found["natural"] == pytest.approx((images.natural or [])[i], rel=1e-4)
            assert (found["random"], found["start"]) == pytest.approx((images.random[i], images.start[i]), rel=1e-4)
            assert (found["n_natural"], found["n_random"]) == (20, 4)
            reply = client.ask(f"/api/d/vit/f/{latent}/image")
            assert (reply.status, reply.headers["content-type"]) == (200, "image/png")
            assert reply.body == (folder / f"optimised/{latent}.png").read_bytes()
        assert client.get("/api/d/vit/f/3")["made_image"] is None
        assert client.ask("/api/d/vit/f/3/image").status == 404
        assert client.ask("/api/d/vit/f/99/image").status == 404


def test_images_of_other_weights_of_another_size_or_damaged_are_left_out(
    made: tuple[Path, OptimisedImages], tmp_path: Path, serve: Callable[..., Any]
) -> None:
    folder = shutil.copytree(made[0], tmp_path / "vit")
    index = folder / "optimised/images.json"
    whole = index.read_text()
    for damaged in (
        whole.replace('"dictionary": "', '"dictionary": "0'),
        whole.replace('"activations": [', '"activations": [1.0,'),
        "{",
    ):
        index.write_text(damaged)
        with serve(folder) as client:
            assert client.get("/api/d/vit/f/2")["made_image"] is None
            reply = client.ask("/api/d/vit/f/2/image")
            assert (reply.status, "ms.optimise_image" in reply.json["error"]) == (404, True)


def test_a_dictionary_of_text_has_none(client: Any) -> None:
    assert client.get("/api/d/small/f/3")["made_image"] is None
    assert client.ask("/api/d/small/f/3/image").status == 404


def test_the_page_a_static_site_and_one_file_show_it(
    made: tuple[Path, OptimisedImages], serve: Callable[..., Any], look: Callable[..., Any], tmp_path: Path
) -> None:
    folder, images = made
    on = int((images.activations[1] > 0).sum())
    site = export_site(open_dictionaries([folder]), tmp_path / "site")
    with (
        serve(folder, page=Page()) as client,
        look(client.base) as visit,
        look((site / "index.html").as_uri()) as still,
    ):
        for seen, address in ((visit, "/d/vit/f/5"), (still, "#/d/vit/f/5")):
            seen.open(address)
            part = seen.page.locator("section", has=seen.page.get_by_role("heading", name="Made for it", exact=True))
            image = part.locator("figure img")
            image.wait_for()
            assert image.evaluate("image => image.decode().then(() => image.naturalWidth)") == 8
            assert part.locator("figure rect:not(.peak)").count() == on
            assert part.locator("tr").count() == 4
            assert "best of 20 natural images" in part.inner_text()
            part.locator(".picture").hover()
            assert "of the image made for it" in seen.page.locator(".tip").inner_text()
            part.locator("figure button").click()
            assert part.locator("figure button").get_attribute("aria-expanded") == "true"
        visit.shoot("made_image")
        visit.open("/d/vit/f/3")
        visit.page.get_by_text("No image has been made for it").wait_for()
        still.open("#/d/vit/f/3")
        still.page.get_by_role("heading", name="Strongest", exact=True).wait_for()
        assert still.page.get_by_text("No image has been made for it").count() == 0
    one = export_feature(open_dictionaries([folder]), 5, tmp_path / "one.html").read_text()
    assert "Made for it:" in one
    assert "on the best of 20 natural ones" in one
