"""Harvest of images: examples are whole images with their patches, beside a plain loop over all of them."""

from __future__ import annotations

import io
import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from small_vit import CLASSES, HOOK

import monosem as ms
from monosem.activations import reopened
from monosem.errors import ConfigError, FileError, MismatchError
from monosem.features import FeatureStore, harvest
from monosem.features.pictures import Pictures
from monosem.models import SubjectModel
from monosem.sae import SAE


@pytest.fixture(scope="module")
def archive(photos: np.ndarray, labels: np.ndarray, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("photos") / "photos.npz"
    np.savez(path, x=photos, y=labels, classes=np.array(CLASSES))
    return path


@pytest.fixture(scope="module")
def store(vit: SubjectModel, vit_sae: SAE, archive: Path, tmp_path_factory: pytest.TempPathFactory) -> FeatureStore:
    folder = tmp_path_factory.mktemp("store") / "features"
    return harvest(vit_sae, folder, vit, images=archive, progress=False)


@pytest.fixture(scope="module")
def plain(vit: SubjectModel, vit_sae: SAE, photos: np.ndarray) -> np.ndarray:
    """(images, patches, latents) activations, one image at a time."""
    reader, _ = reopened(vit_sae.metadata, vit, HOOK, images=photos)
    rows = [vit.capture(pixels[None], [HOOK])[HOOK][0, 1:] for pixels in reader.read(0, 20).inputs]
    return torch.stack([vit_sae.encode(x).to_dense() for x in rows]).detach().numpy()


def pictures_of(store: FeatureStore) -> Pictures:
    assert store.pictures is not None
    return store.pictures


def test_top_examples_are_the_strongest_images_with_all_their_patches(store: FeatureStore, plain: np.ndarray) -> None:
    assert store.n_tokens == 20 * 16
    for feature in store.features(range(24)):
        mine = plain[:, :, feature.latent]
        assert feature.count == (mine > 0).sum()
        strongest = np.sort(mine.max(1))[::-1]
        expected = strongest[strongest > 0][: len(feature.top)]
        assert len(feature.top) == min(12, (strongest > 0).sum())
        np.testing.assert_allclose([e.activation for e in feature.top], expected, rtol=1e-5)
        assert len({e.document for e in feature.top}) == len(feature.top)
        for example in [*feature.top, *feature.samples]:
            patches, real = pictures_of(store).patches(example.activations), mine[example.document].reshape(4, 4)
            np.testing.assert_allclose(patches, real, atol=real.max() / 250)
            assert ((patches > 0) == (real > 0)).all()
            assert example.activation == pytest.approx(real.ravel()[example.peak - 1], rel=1e-5)
        for example in feature.silent:
            assert mine[example.document].max() == 0


def test_places_are_named_and_the_class_token_is_special(store: FeatureStore) -> None:
    names = [store.vocabulary.text(i) for i in range(17)]
    assert names[0] == "class token"
    assert names[1] == "row 1, column 1"
    assert names[8] == "row 2, column 4"
    assert store.vocabulary.special == {0}
    example = store[0].top[0]
    assert example.texts == names
    assert store.search(token="row 2, column 4").column_names == ["latent", "score", "how"]


def test_a_class_token_that_is_read_stands_before_the_patches(
    vit: SubjectModel, vit_sae: SAE, archive: Path, tmp_path: Path, photos: np.ndarray
) -> None:
    reads_all = ms.TopKSAE(16, 24, k=4)
    reads_all.load_state_dict(vit_sae.state_dict())
    reads_all.metadata = vit_sae.metadata.model_copy(update={"exclude_special": False})
    store = harvest(reads_all, tmp_path, vit, images=archive, progress=False)
    assert store.n_tokens == 20 * 17
    reader, _ = reopened(vit_sae.metadata, vit, HOOK, images=photos)
    x = vit.capture(reader.read(0, 20).inputs, [HOOK])[HOOK]
    real = vit_sae.encode(x.reshape(-1, 16)).to_dense().reshape(20, 17, 24).detach().numpy()
    for feature in store.features(range(24)):
        for example in feature.top:
            row = real[example.document, :, feature.latent]
            np.testing.assert_allclose(example.activations, row, atol=row.max() / 250)


def test_the_store_shows_images_without_the_data(
    vit: SubjectModel, vit_sae: SAE, photos: np.ndarray, labels: np.ndarray, tmp_path: Path
) -> None:
    for i, photo in enumerate(photos):
        file = tmp_path / "data" / CLASSES[labels[i]] / f"{i:02}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(photo).save(file)
    store = harvest(vit_sae, tmp_path / "features", vit, images=tmp_path / "data", progress=False)
    files = sorted((tmp_path / "data").glob("*/*.png"))
    shown = {f.name: np.asarray(Image.open(f)) for f in files}
    for file in files:
        file.unlink()
    store = FeatureStore(store.path)
    about = store.index["images"]
    assert (about["rows"], about["columns"], about["n_special"], about["classes"]) == (4, 4, 1, CLASSES)
    assert about["source"] == str(tmp_path / "data")
    assert len(about["source_hash"]) == 16
    for example in store[1].top:
        picture = np.asarray(Image.open(io.BytesIO(pictures_of(store).png(example.document))))
        assert np.abs(picture.astype(int) - shown[files[example.document].name]).max() <= 1
        assert pictures_of(store).label(example.document) == files[example.document].parent.name
    with pytest.raises(IndexError, match="no image 999"):
        pictures_of(store).png(999)


def test_large_images_are_kept_small(vit_sae: SAE) -> None:
    from monosem.data import Images
    from monosem.sae.metadata import PixelFormat

    images = Images(np.full((1, 300, 400, 3), 77, np.uint8), PixelFormat(height=192, width=256))
    picture = Image.open(io.BytesIO(images.thumbnails([0])[0]))
    assert picture.size == (128, 96)
    assert np.abs(np.asarray(picture).astype(int) - 77).max() <= 1


def test_a_harvest_that_goes_on_equals_one_at_once(
    vit: SubjectModel, vit_sae: SAE, archive: Path, store: FeatureStore, tmp_path: Path
) -> None:
    first = harvest(vit_sae, tmp_path, vit, images=archive, tokens=16 * 7, keep_state=True, progress=False)
    assert first.n_tokens == 7 * 16
    again = harvest(vit_sae, tmp_path, vit, images=archive, progress=False)
    assert again.n_tokens == store.n_tokens
    assert again.sql("select * from images").equals(store.sql("select * from images"))
    for mine, whole in zip(again.features(range(24)), store.features(range(24)), strict=True):
        assert mine.count == whole.count
        assert [e.document for e in mine.top] == [e.document for e in whole.top]
        for a, b in zip(mine.top, whole.top, strict=True):
            np.testing.assert_allclose(a.activations, b.activations, atol=b.activation / 250)


def test_other_images_do_not_add_up(
    vit: SubjectModel, vit_sae: SAE, archive: Path, photos: np.ndarray, tmp_path: Path
) -> None:
    harvest(vit_sae, tmp_path / "one", vit, images=archive, tokens=17, keep_state=True, progress=False)
    np.savez(archive.with_name("others.npz"), x=photos[::-1])
    with pytest.raises(FileError, match="another harvest"):
        harvest(vit_sae, tmp_path / "one", vit, images=archive.with_name("others.npz"), progress=False)
    other = ms.TopKSAE(16, 24, k=4)
    with pytest.raises(MismatchError, match="different pixels"):
        harvest([vit_sae, other], [tmp_path / "a", tmp_path / "b"], vit, HOOK, images=archive, progress=False)


def test_features_are_found_by_the_class_of_their_images(store: FeatureStore) -> None:
    found = store.search(words="red").to_pylist()
    for row in found[:3]:
        top = store[row["latent"]].top
        share = sum(e.activation for e in top if e.document % 3 == 2) / sum(e.activation for e in top)
        assert row["score"] == pytest.approx(share, rel=1e-4)
    assert [r["score"] for r in found] == sorted((r["score"] for r in found), reverse=True)
    with pytest.raises(ConfigError, match=r"none is called 'green'.*bright, dark, red"):
        store.search(words="green")
    assert store.notable(5) == [] or set(store.notable(5)) <= set(range(24))


def test_features_are_named_by_the_class_of_their_images(store: FeatureStore) -> None:
    """`red` is every third image; a latent that is true to no class is named by its place."""
    by_class = 0
    for feature in store.features(range(24)):
        if not feature.count:
            continue
        classes = Counter(CLASSES[e.document % 3] for e in feature.top)
        ((_, most),) = classes.most_common(1)
        steady = feature.top[-1].activation / feature.top[0].activation
        assert feature.clarity == pytest.approx(most / store.index["settings"]["top"] * steady, rel=1e-5)
        if 2 * most >= len(feature.top):
            by_class += 1
            assert feature.name in [name for name, n in classes.items() if n == most]
        else:
            assert feature.name.startswith(("row", "class token"))
    assert by_class > 0


def test_a_feature_shows_itself_with_its_images(store: FeatureStore) -> None:
    feature = max(store.features(range(24)), key=lambda f: f.count)
    card = feature._repr_html_()
    assert card.count("data:image/png;base64,") >= len(feature.top)
    assert "<script" not in card
    assert "patches" in card
    text = repr(feature)
    assert f"image {feature.top[0].document} (" in text
    assert "█" in text
    assert json.loads(json.dumps(feature.to_dict()))["top"][0]["document"] == feature.top[0].document
