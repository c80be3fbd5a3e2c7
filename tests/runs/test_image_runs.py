"""A run on images, from run.yaml to its features, through the real commands."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from small_vit import CLASSES, HOOK

import monosem as ms
from monosem.errors import ConfigError
from monosem.features import FeatureStore
from monosem.models import SubjectModel
from monosem.runs import Run, RunConfig, run_evaluation, run_harvest, run_training


@pytest.fixture(scope="module")
def run(vit: SubjectModel, photos: np.ndarray, labels: np.ndarray, tmp_path_factory: pytest.TempPathFactory) -> Run:
    folder = tmp_path_factory.mktemp("images")
    vit.module.save_pretrained(folder / "model")  # pyright: ignore
    np.savez(folder / "photos.npz", x=photos, y=labels, classes=np.array(CLASSES))
    content = {
        "output": str(folder / "run"),
        "model": str(folder / "model"),
        "hook": HOOK,
        "images": str(folder / "photos.npz"),
        "tokens": 640,
        "sae": {"n_latents": 24, "k": 4},
        "training": {"batch_size": 64},
        "activations": {"buffer_tokens": 320},
    }
    return run_training(RunConfig.of(content), progress=False)[0]


def test_held_out_images_are_asked_for_in_words(run: Run) -> None:
    with pytest.raises(ConfigError, match="names none to evaluate on: give --images"):
        run_evaluation(run, progress=False)
    with pytest.raises(ConfigError, match="names none to evaluate on: give --images"):
        run_harvest(run, progress=False)


def test_a_run_on_images_is_measured_and_leaves_features_that_show_images(run: Run) -> None:
    held_out = run.config.evaluation.model_copy(update={"images": run.config.images, "tokens": 340, "loss_tokens": 64})
    report = run_evaluation(run, config=held_out, progress=False)
    assert report.facts["rows"] == 320  # of 20 images the 17 places, but for the class token
    assert report.facts["things"] == "patches"
    assert report["fvu"].value < report.columns["random"]["fvu"].value
    store = FeatureStore(run.path)
    assert store.pictures is not None
    assert store.n_tokens == 320
    again = run_harvest(run, tokens=160, images=run.config.images, progress=False)
    assert again.pictures is not None
    assert again.n_tokens == 160


def test_images_that_cannot_be_read_are_counted_by_the_end_of_training(
    vit: SubjectModel, photos: np.ndarray, tmp_path: Path
) -> None:
    for number, photo in enumerate(photos):
        Image.fromarray(photo).save(tmp_path / f"{number:02}.png")
    for number in (7, 11):
        (tmp_path / f"{number:02}.png").write_bytes(b"no image")
    source = ms.activations(vit, HOOK, images=tmp_path, buffer_tokens=68)
    sae = ms.TopKSAE(source.d_in, 24, k=4)
    with pytest.warns(UserWarning, match=r"^images that cannot be read are skipped; the first: .*png"):
        ms.train(sae, source, tokens=640, config=ms.TrainingConfig(batch_size=64), progress=False)
    assert sae.metadata.documents_skipped == 2
