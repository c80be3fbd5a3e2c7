"""The explorer on images: thumbnails by number alone, patches with their activations, what images cannot do."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from small_vit import CLASSES

from monosem.explorer import export_feature, export_site, open_dictionaries
from monosem.explorer.page import Page
from monosem.features import FeatureStore, harvest
from monosem.models import SubjectModel
from monosem.sae import SAE

LATENTS = 24


@pytest.fixture(scope="module")
def vit_run(
    vit: SubjectModel, vit_sae: SAE, photos: np.ndarray, labels: np.ndarray, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    folder = tmp_path_factory.mktemp("images") / "vit"
    archive = folder.with_name("photos.npz")
    np.savez(archive, x=photos, y=labels, classes=np.array(CLASSES))
    vit_sae.save(folder / "sae")
    harvest(vit_sae, folder / "features", vit, images=archive, progress=False)
    archive.unlink()
    return folder


@pytest.fixture
def client(vit_run: Path, serve: Any) -> Iterator[Any]:
    with serve(vit_run) as found:
        yield found


def png_of(store: FeatureStore, number: int) -> bytes:
    assert store.pictures is not None
    return store.pictures.png(number)


def strongest(store: FeatureStore) -> int:
    return max(range(LATENTS), key=lambda latent: store[latent].count)


def test_an_image_is_a_png_by_its_number(client: Any, vit_run: Path) -> None:
    store = FeatureStore(vit_run)
    feature = client.get(f"/api/d/vit/f/{strongest(store)}")
    number = feature["top"][0]["document"]
    reply = client.ask(f"/api/d/vit/image/{number}")
    assert reply.status == 200
    assert reply.headers["content-type"] == "image/png"
    assert reply.headers["x-content-type-options"] == "nosniff"
    assert reply.body == png_of(store, number)
    assert feature["top"][0]["label"] == CLASSES[number % 3]


@pytest.mark.parametrize(
    ("path", "status"),
    [("99999", 404), ("-1", 404), ("x", 422), ("1.png", 422), ("..%2f..%2findex.json", 404), ("1%20or%201=1", 422)],
)
def test_nothing_but_an_image_of_the_store_can_be_asked_for(client: Any, path: str, status: int) -> None:
    reply = client.ask(f"/api/d/vit/image/{path}")
    assert reply.status == status
    assert reply.headers["content-type"] == "application/json"


def test_a_page_knows_how_patches_lie(client: Any, vit_run: Path) -> None:
    about: dict[str, Any] = client.get("/api/d/vit")
    assert about["images"] == {"rows": 4, "columns": 4, "special": ["class token"], "classes": CLASSES}
    feature = client.get(f"/api/d/vit/f/{strongest(FeatureStore(vit_run))}")
    for example in feature["top"]:
        assert len(example["activations"]) == 17
        assert example["activations"][example["peak"]] == pytest.approx(example["activation"], rel=1e-3)


def test_what_takes_text_is_said_to_need_it(client: Any) -> None:
    assert "images" in client.get("/api/d/vit")["can"]["prompt"]
    reply = client.ask("/api/d/vit/prompt", "POST", {"text": "a dog"})
    assert reply.status == 409
    assert "reads images" in reply.json["error"]
    assert client.ask("/api/d/vit/context", text="x", context=0, latent=0).status in (400, 409)
    assert client.get("/api/d/vit/search", q="blue")["words"]
    assert any(row["how"] == "images" for row in client.get("/api/d/vit/search", q="red")["results"])


def test_an_export_holds_its_images(vit_run: Path, page: Page, tmp_path: Path) -> None:
    folder = export_site(open_dictionaries([vit_run]), tmp_path / "site", page)
    store = FeatureStore(vit_run)
    for latent in range(LATENTS):
        for example in store[latent].top:
            file = folder / f"data/d/vit/image/{example.document}.png"
            assert file.read_bytes() == png_of(store, example.document)
    one = export_feature(open_dictionaries([vit_run]), strongest(store), tmp_path / "one.html").read_text()
    assert "data:image/png;base64," in one
    assert "img-src data:" in one


def test_a_site_opened_from_a_file_shows_its_images(vit_run: Path, look: Any, tmp_path: Path) -> None:
    latent = strongest(FeatureStore(vit_run))
    site = export_site(open_dictionaries([vit_run]), tmp_path / "site")
    with look((site / "index.html").as_uri()) as visit:
        visit.open(f"#/d/vit/f/{latent}")
        image = visit.page.locator("figure img").first
        image.wait_for()
        assert image.evaluate("image => image.decode().then(() => image.naturalWidth)") == 8
        assert visit.page.locator("figure rect").count() > 0


def test_the_card_shades_the_patches_of_images(vit_run: Path, look: Any, serve: Any) -> None:
    store = FeatureStore(vit_run)
    latent = strongest(store)
    feature = store[latent]
    with serve(vit_run, page=Page()) as client, look(client.base) as visit:
        visit.open(f"/d/vit/f/{latent}")
        first = visit.page.locator("figure").first
        first.locator("img").wait_for()
        assert first.locator("img").evaluate("image => image.decode().then(() => image.naturalWidth)") == 8
        on = int((feature.top[0].activations > 0).sum())
        assert first.locator("rect:not(.peak)").count() == on
        assert visit.page.locator("figure").count() >= len(feature.top)
        first.locator(".picture").hover()
        assert "of image" in visit.page.locator(".tip").inner_text()
        first.locator("button").click()
        assert first.locator("button").get_attribute("aria-expanded") == "true"
        visit.shoot("image_card")
