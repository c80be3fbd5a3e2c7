"""Losses of models that do not write: classes of images, padded text; and evaluation on images."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from small_vit import HOOK
from torch import Tensor, nn
from torch.nn import functional as F

import monosem as ms
from monosem.activations import reopened
from monosem.data import Document, PackedText
from monosem.errors import ConfigError, DataError
from monosem.evaluation.downstream import OutputLoss
from monosem.evaluation.language import LanguageLoss
from monosem.evaluation.losses import downstream_loss
from monosem.models import SubjectModel
from monosem.sae import SAE, SAEMetadata


def replacements(sae: SAE) -> dict[str, Callable[[Tensor], Tensor]]:
    return {"SAE": lambda x: sae(x).reconstruction, "zero": torch.zeros_like, "mean": lambda x: x.mean(0).expand_as(x)}


def by_hand(vit: SubjectModel, pixels: Tensor, function: Callable[[Tensor], Tensor]) -> Tensor:
    """Logits with patches alone replaced, one image at a time, by a plain hook."""
    layer = vit.module.get_submodule(vit.hook_point(HOOK).path)
    rows: list[Tensor] = []
    for image in pixels:
        change = layer.register_forward_hook(lambda _m, _a, out: torch.cat([out[:, :1], function(out[0, 1:])[None]], 1))
        with torch.no_grad():
            rows.append(vit.module(image[None]).logits[0])
        change.remove()
    return torch.stack(rows)


def test_the_loss_of_labels_is_the_cross_entropy_by_hand(
    vit: SubjectModel, vit_sae: SAE, photos: np.ndarray, labels: np.ndarray
) -> None:
    report = ms.evaluate(vit_sae, vit, images=photos, labels=labels, progress=False)
    reader, _ = reopened(vit_sae.metadata, vit, HOOK, images=photos)
    pixels, right = reader.read(0, 20).inputs, torch.from_numpy(labels)
    clean = vit(pixels)
    logits = by_hand(vit, pixels, lambda x: vit_sae(x).reconstruction)
    zero = by_hand(vit, pixels, torch.zeros_like)
    ce, ce_clean, ce_zero = (F.cross_entropy(x, right).item() for x in (logits, clean, zero))
    assert report["ce"].value == pytest.approx(ce, rel=1e-4)
    assert report.facts["ce_clean"] == pytest.approx(ce_clean, rel=1e-4)
    assert report["loss_recovered_zero"].value == pytest.approx((ce_zero - ce) / (ce_zero - ce_clean), rel=1e-3)
    assert report["kl"].value == pytest.approx(
        F.kl_div(logits.log_softmax(-1), clean.softmax(-1), reduction="batchmean").item(), rel=1e-3
    )
    assert report["accuracy"].value == (logits.argmax(-1) == right).double().mean()
    assert report.facts["accuracy_clean"] == (clean.argmax(-1) == right).double().mean()


def test_reconstruction_is_measured_on_the_patches_alone(vit: SubjectModel, vit_sae: SAE, photos: np.ndarray) -> None:
    report = ms.evaluate(vit_sae, vit, images=photos, progress=False)
    reader, _ = reopened(vit_sae.metadata, vit, HOOK, images=photos)
    x = vit.capture(reader.read(0, 20).inputs, [HOOK])[HOOK][:, 1:].reshape(-1, 16)
    error = (x - vit_sae(x).reconstruction).pow(2).sum() / (x - x.mean(0)).pow(2).sum()
    assert report.facts["rows"] == 20 * 16
    assert report["fvu"].value == pytest.approx(error.item(), rel=1e-4)
    low, high = report["fvu"].low, report["fvu"].high
    assert low is not None
    assert high is not None
    assert low < report["fvu"].value < high
    assert "patches" in str(report)
    assert ms.evaluate(vit_sae, vit, images=photos, tokens=16 * 4, progress=False).facts["rows"] == 4 * 16


def test_without_labels_recovery_is_in_kl_from_the_own_output(
    vit: SubjectModel, vit_sae: SAE, photos: np.ndarray
) -> None:
    report = ms.evaluate(vit_sae, vit, images=photos, progress=False)
    kl, zero = report["kl"].value, report.columns["mean"]["kl"].value
    assert report["loss_recovered_mean"].value == pytest.approx(1 - kl / zero)
    assert not {"ce", "accuracy"} & set(report.metrics)
    assert 0 <= report["agreement"].value <= 1
    assert "KL" in str(report.facts["loss"])


def test_labels_of_other_classes_than_the_models_do_not_count(
    vit: SubjectModel, vit_sae: SAE, photos: np.ndarray
) -> None:
    def loss(own: dict[int, str], classes: list[str] | None, given: np.ndarray) -> OutputLoss:
        reader, _ = reopened(SAEMetadata(), vit, HOOK, images=photos, labels=given)
        reader.classes = classes  # pyright: ignore[reportAttributeAccessIssue]
        config = vit.module.config
        before, config.id2label = config.id2label, own  # pyright: ignore
        try:
            found = downstream_loss(vit, HOOK, replacements(vit_sae), reader)
        finally:
            config.id2label = before  # pyright: ignore
        assert isinstance(found, OutputLoss)
        return found

    given, names = np.arange(20) % 3, {0: "Cat", 1: "Dog", 2: "Cow"}
    assert loss(names, ["cat", "dog", "cow"], given).labels
    assert not loss(names, ["cow", "dog", "cat"], given).labels
    assert loss(names, None, given).labels
    with pytest.raises(DataError, match="labels go up to 5, vit has 3 classes"):
        loss({i: f"LABEL_{i}" for i in range(3)}, None, np.arange(20) % 6)


def test_padding_in_a_batch_of_texts_changes_no_loss(
    make_gpt2: Callable[..., nn.Module], letter_tokenizer: type
) -> None:
    """Texts that begin contexts of their own, padded, lose what each loses alone."""
    model = SubjectModel(make_gpt2(seed=6, vocabulary=128), letter_tokenizer(), "tiny")
    texts = ["the cat sat", "a bird", "dogs bark at night"]
    hook, together = "resid_post.1", []
    functions = {"zero": torch.zeros_like, "mean": lambda x: 0.5 * x}
    losses: list[LanguageLoss] = []
    for given in ([texts], [[text] for text in texts]):
        loss = LanguageLoss(model, hook, functions)
        for some in given:
            length = 24 if len(some) > 1 else len(some[0]) + 1
            batch = PackedText([Document(t) for t in some], letter_tokenizer(), length, packing=False).read(0, 9)
            loss.add(batch, ~batch.special & ~batch.padding)
        losses.append(loss)
        together.append({name: loss.sums.total(name) for name in ("predictions", "clean", "zero", "kl mean")})
    for name, value in together[0].items():
        assert value == pytest.approx(together[1][name], rel=1e-4), name


def test_what_predicts_nothing_has_no_loss(vit_sae: SAE, photos: np.ndarray) -> None:
    from transformers import ViTConfig, ViTModel

    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    encoder = SubjectModel(ViTModel(ViTConfig(image_size=8, patch_size=2, **sizes)).eval(), name="encoder")
    report = ms.evaluate(vit_sae, encoder, HOOK, images=photos, progress=False)
    assert "fvu" in report.metrics
    assert "kl" not in report.metrics
    with pytest.raises(ConfigError, match="name other images"):
        ms.evaluate(vit_sae, encoder, HOOK)


@pytest.mark.parametrize("noise", [0.0, 1e-8])
def test_a_loss_that_no_ablation_moves_has_no_share_that_is_recovered(noise: float) -> None:
    """A model whose output does not depend on the hook point: nothing is lost, so nothing is recovered."""
    loss, n = LanguageLoss(SubjectModel(nn.Linear(2, 2)), "", {}), np.arange(50)
    loss.sums.add("predictions", n, np.ones(50))
    for name, moved in (("clean", 0.0), ("SAE", noise), ("zero", noise), ("mean", 1.0)):
        loss.sums.add(name, n, np.full(50, 2.0 + moved))
        loss.sums.add(f"kl {name}", n, np.zeros(50))
    found = loss.metrics("SAE")
    assert np.isnan(found["loss_recovered_zero"].value)
    assert found["loss_recovered_zero"][1:] == (None, None)
    assert found["loss_recovered_mean"].value == pytest.approx(1)
