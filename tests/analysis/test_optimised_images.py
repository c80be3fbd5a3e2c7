"""Images made for features: gradients beside finite differences, colours, and what they come to on the real path."""

from __future__ import annotations

import copy
import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from small_vit import HOOK

import monosem as ms
from monosem.activations import reopened
from monosem.analysis import KeptImages, OptimisedImages
from monosem.analysis.optimised_images import pre_activations
from monosem.analysis.picture import Pictures, colours_of, jittered
from monosem.data import Images
from monosem.errors import ConfigError, DataError, FileError
from monosem.models import SubjectModel
from monosem.sae import SAE
from monosem.sae.metadata import PixelFormat

SMALL = PixelFormat(height=8, width=8)


@pytest.fixture(scope="module")
def made(vit: SubjectModel, vit_sae: SAE, photos: np.ndarray) -> OptimisedImages:
    return ms.optimise_image(vit, vit_sae, range(24), images=photos, steps=64, n_random=8, progress=False)


def test_gradients_equal_finite_differences(vit: SubjectModel) -> None:
    model = SubjectModel(copy.deepcopy(vit.module).double())
    sae = ms.ReLUSAE(16, 4, dtype=torch.float64, seed=1)
    colours = torch.randn(3, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    pictures = Pictures(2, SMALL, colours, seed=3)
    pictures.spectrum.data *= 30

    def height() -> torch.Tensor:
        seen = jittered(pictures.images(), torch.Generator().manual_seed(5), 0.1, 5.0, 0.1)
        values = pre_activations(model, sae, HOOK, pictures.normalised(seen), sae.W_enc.data[:2], sae.b_enc.data[:2])
        return values.tanh().sum()

    (gradient,) = torch.autograd.grad(height(), [pictures.spectrum])
    along = torch.randn(gradient.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(7))
    ends: list[float] = []
    for step in (1e-5, -1e-5):
        pictures.spectrum.data += step * along
        ends.append(height().item())
        pictures.spectrum.data -= step * along
    assert (ends[0] - ends[1]) / 2e-5 == pytest.approx(float((gradient * along).sum()), rel=1e-6)
    assert gradient.abs().sum() > 0


def test_what_is_maximised_is_the_activation_before_selection(vit: SubjectModel, photos: np.ndarray) -> None:
    sae = ms.ReLUSAE(16, 6, seed=1)
    x = vit.capture(reopened(sae.metadata, vit, HOOK, images=photos)[0].read(0, 6).inputs, [HOOK])[HOOK]
    sae.initialise(x.flatten(0, 1))
    sae.b_dec.data.normal_(generator=torch.Generator().manual_seed(0))
    sae.b_enc.data.fill_(0.1)
    batch: Any = reopened(sae.metadata, vit, HOOK, images=photos)[0].read(0, 6)
    values = pre_activations(vit, sae, HOOK, batch.inputs, sae.W_enc.data, sae.b_enc.data)
    codes = sae.encode(x).to_dense()
    torch.testing.assert_close(values.relu(), torch.stack([codes[i, :, i] for i in range(6)]), atol=1e-5, rtol=1e-4)


def test_pictures_begin_grey_and_alike_whatever_their_number() -> None:
    one, three = (Pictures(n, SMALL, torch.eye(3), seed=2).images() for n in (1, 3))
    torch.testing.assert_close(one[0], three[0])
    assert 0.005 < float((one - 0.5).detach().abs().mean()) < 0.1
    pictures = Pictures(1, SMALL, torch.eye(3), seed=0)
    pictures.spectrum.data.zero_()
    assert torch.equal(pictures.images(), torch.full((1, 3, 8, 8), 0.5))
    assert (pictures.bytes() == 128).all()
    torch.testing.assert_close(pictures.normalised(pictures.images()), torch.zeros(1, 3, 8, 8))


def test_a_low_frequency_moves_more_than_a_high_one_by_the_ratio_of_them() -> None:
    heights: list[float] = []
    for column in (1, 4):
        pictures = Pictures(1, PixelFormat(height=16, width=16), torch.eye(3), seed=0)
        pictures.spectrum.data.zero_()
        pictures.spectrum.data[0, 0, 0, column, 0] = 1e-3
        heights.append(float((pictures.images() - 0.5).detach().abs().max()))
    assert heights[0] / heights[1] == pytest.approx(4, rel=1e-3)


def test_independent_colours_turn_into_those_of_the_images(photos: np.ndarray) -> None:
    colours = colours_of(Images(photos, SMALL), SMALL, torch.zeros((), dtype=torch.float64))
    wanted = np.cov(photos.reshape(-1, 3).T)
    found = (colours @ colours.T).numpy()
    np.testing.assert_allclose(found / found.max(), wanted / wanted.max(), atol=1e-6)
    assert float(colours.norm(dim=1).max()) == pytest.approx(1)
    assert torch.equal(colours_of(None, SMALL, torch.zeros(())), torch.eye(3))


def test_jitter_of_nothing_is_nothing_and_a_shift_is_a_shift() -> None:
    image = torch.rand(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(jittered(image, torch.Generator(), 0, 0, 0), image, atol=1e-5, rtol=0)
    moved = jittered(image, torch.Generator().manual_seed(0), 1 / 8, 0, 0)
    assert 0.01 < float((moved - image).abs().mean()) < 0.5
    assert float(moved.min()) >= 0
    assert float(moved.max()) <= 1


def test_an_image_made_for_a_feature_rises_far_above_natural_and_random_ones(made: OptimisedImages) -> None:
    alive = [i for i, best in enumerate(made.natural or []) if best > 0]
    assert len(alive) > 12
    times = np.array(made.times_natural)[alive]
    assert np.median(times) > 1.3
    assert (times > 1).mean() > 0.8
    above = np.array(made.activation)[alive] > np.array(made.random)[alive]
    assert above.mean() > 0.9
    assert (np.array(made.activation) >= np.array(made.start)).all()
    assert made.history.shape == (64, 24)


def test_the_activations_are_those_of_the_stored_images(
    vit: SubjectModel, vit_sae: SAE, made: OptimisedImages, photos: np.ndarray, tmp_path: Path
) -> None:
    made.save(tmp_path / "made")
    assert (tmp_path / "made/images.json").exists()
    for latent in (0, 7):
        folder = tmp_path / str(latent)
        folder.mkdir()
        (tmp_path / f"made/{latent}.png").rename(folder / "one.png")
        reader, _ = reopened(vit_sae.metadata, vit, HOOK, images=folder)
        x = vit.capture(reader.read(0, 1).inputs, [HOOK])[HOOK][0, 1:]  # the class token is not read
        own = vit_sae.encode(x).to_dense()[:, latent].detach()
        np.testing.assert_allclose(made.activations[latent, 1:], own, atol=1e-5)
        assert made.activations[latent, 0] == 0
    natural = [
        vit_sae.encode(vit.capture(p[None], [HOOK])[HOOK][0, 1:]).to_dense() for p in pixels(vit_sae, vit, photos)
    ]
    expected = torch.stack(natural).amax((0, 1)).detach()
    np.testing.assert_allclose(made.natural or [], expected, atol=1e-5)


def test_images_are_added_to_those_that_a_folder_has_of_the_same_dictionary(
    vit: SubjectModel, vit_sae: SAE, made: OptimisedImages, tmp_path: Path
) -> None:
    made.save(tmp_path / "made")
    again = ms.optimise_image(vit, vit_sae, [3], steps=2, n_random=0, progress=False)
    again.save(tmp_path / "made")
    kept = KeptImages(tmp_path / "made")
    assert sorted(kept.facts) == list(range(24))
    assert kept.facts[7]["activation"] == made.activation[7]
    assert kept.facts[7]["natural"] == (made.natural or [])[7]
    assert kept.facts[7]["activations"] == pytest.approx(made.activations[7].tolist(), rel=1e-4)
    assert (kept.facts[3]["natural"], kept.facts[3]["n_random"]) == (None, 0)
    with Image.open(io.BytesIO(kept.png(3))) as image:
        np.testing.assert_array_equal(np.asarray(image.convert("RGB")), np.asarray(again.image(3).convert("RGB")))
    with pytest.raises(IndexError, match="no image was made for feature 24"):
        kept.png(24)
    other = ms.optimise_image(vit, ms.TopKSAE(16, 24, k=4, seed=9), 0, hook=HOOK, steps=1, n_random=0, progress=False)
    with pytest.raises(ConfigError, match="another dictionary"):
        other.save(tmp_path / "made")
    (tmp_path / "made/3.png").write_bytes(b"nothing")
    with pytest.raises(FileError, match="no PNG"):
        kept.png(3)
    (tmp_path / "made/images.json").write_text('{"dictionary": "x", "images": [{"latent": "3"}]}')
    with pytest.raises(FileError, match=r"images\.0\."):
        KeptImages(tmp_path / "made")


def pixels(sae: SAE, model: SubjectModel, photos: np.ndarray) -> Any:
    return reopened(sae.metadata, model, HOOK, images=photos)[0].read(0, 20).inputs


def test_the_same_seed_makes_the_same_image(vit: SubjectModel, vit_sae: SAE) -> None:
    settings: dict[str, Any] = {"steps": 4, "n_random": 2, "progress": False}
    first, second = (ms.optimise_image(vit, vit_sae, 3, **settings) for _ in range(2))
    assert (first.images == second.images).all()
    assert first.natural is None
    assert "nan" in str(first)
    other = ms.optimise_image(vit, vit_sae, 3, seed=1, over="mean", jitter=False, **settings)
    assert (other.images != first.images).any()


def test_the_image_half_of_a_clip_is_read_likewise() -> None:
    from transformers import CLIPVisionConfig, CLIPVisionModel

    torch.manual_seed(0)
    sizes: dict[str, Any] = {
        "hidden_size": 16,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 32,
    }
    config = CLIPVisionConfig(image_size=8, patch_size=2, initializer_range=0.4, **sizes)
    model = SubjectModel(CLIPVisionModel(config).eval(), name="clip")
    sae = ms.TopKSAE(16, 24, k=4, seed=0)
    made = ms.optimise_image(model, sae, [1, 2, 3], steps=48, hook="resid_post.0", n_random=2, progress=False)
    assert sum(a > b for a, b in zip(made.activation, made.start, strict=True)) >= 2
    assert made.images.shape == (3, 8, 8, 3)


def test_bad_input_is_refused(vit: SubjectModel, vit_sae: SAE, bundled: SubjectModel, made: OptimisedImages) -> None:
    with pytest.raises(ConfigError, match="there are latents 0 to 23"):
        ms.optimise_image(vit, vit_sae, [3, 24])
    with pytest.raises(ConfigError, match="no latent is given"):
        ms.optimise_image(vit, vit_sae, [])
    with pytest.raises(ConfigError, match="over must be"):
        ms.optimise_image(vit, vit_sae, 1, over="min")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="hook"):
        ms.optimise_image(vit, ms.TopKSAE(16, 8, k=2), 1)
    with pytest.raises(DataError, match="reads no images"):
        ms.optimise_image(bundled, ms.TopKSAE(128, 8, k=2), 1, hook="resid_post.1")
    with pytest.raises(ConfigError, match="no image was made for latent 99"):
        made.image(99)
