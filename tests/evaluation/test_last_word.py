"""Last words: guessed as the model's own logits say, and what cannot be is said before any text is read."""

from itertools import islice
from pathlib import Path

import pytest
import torch
from torch import Tensor

import monosem as ms
from monosem.data import read_documents
from monosem.errors import ConfigError, DataError, FileError
from monosem.evaluation.model_reading import ModelReading
from monosem.models import SubjectModel

HOOK = "resid_post.1"


@pytest.fixture(scope="module")
def passages(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Beginnings of held-out texts, and one text of a single word, which is no passage."""
    documents = islice(iter(read_documents("bundled:held_out")), 40)  # pyright: ignore
    texts = [" ".join(document.text.split()[:12]) for document in documents]
    file = tmp_path_factory.mktemp("last") / "passages.txt"
    file.write_text("\n".join([*texts, "alone"]))
    return file


@torch.no_grad()
def test_a_word_is_guessed_where_all_its_tokens_are_the_likeliest(bundled: SubjectModel, passages: Path) -> None:
    sae = ms.ReLUSAE(bundled.d_model, 2 * bundled.d_model)  # moves x a part of the way to its mean
    ids = torch.randint(5, 4000, (8, 64), generator=torch.Generator().manual_seed(0))
    sae.initialise(bundled.capture(ids, [HOOK])[HOOK].flatten(0, 1))
    axes = torch.eye(bundled.d_model)
    sae.W_enc.copy_(torch.cat([axes, -axes]))
    sae.W_dec.copy_(0.4 * sae.W_enc)
    sae.b_enc.zero_()
    report = ms.evaluate(
        sae, bundled, HOOK, tokens=1000, loss_tokens=1000, last_words=passages, controls=False, progress=False
    )

    def put(x: Tensor, _: object) -> Tensor:
        return torch.cat([x[:, :1], sae(x[:, 1:].flatten(0, 1)).reconstruction.unflatten(0, (1, -1))], dim=1)

    guessed = {"clean": 0, "SAE": 0}
    texts = [text for text in passages.read_text().splitlines() if " " in text]
    for text in texts:
        whole, before = (bundled.tokenizer(one)["input_ids"] for one in (text, text.rsplit(" ", 1)[0]))
        ids = torch.tensor([[bundled.tokenizer.bos_token_id, *whole]])
        n = len(whole) - len(before)
        right = [bundled(ids)[0, -1 - n : -1].argmax(-1)]
        with bundled.attach(bundled.hook_point(HOOK), put):
            right.append(bundled(ids)[0, -1 - n : -1].argmax(-1))
        for name, found in zip(guessed, right, strict=True):
            guessed[name] += torch.equal(found.cpu(), ids[0, -n:])
    assert report.facts["last_words"] == len(texts)
    assert 0 < guessed["SAE"] < guessed["clean"] < len(texts), "neither none nor all, or nothing is compared"
    assert report.facts["last_word_clean"] == pytest.approx(guessed["clean"] / len(texts))
    assert report.columns["SAE"]["last_word"].value == pytest.approx(guessed["SAE"] / len(texts))


@pytest.mark.parametrize(
    ("content", "loss_tokens", "error", "says"),
    [
        (None, 100, FileError, "is not a file"),
        ("alone\nword\n", 100, DataError, "no passage has two words"),
        ("two words\n", 0, ConfigError, "with loss_tokens above 0"),
    ],
)
def test_what_cannot_be_is_said_before_the_work(
    bundled: SubjectModel,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    content: str | None,
    loss_tokens: int,
    error: type[Exception],
    says: str,
) -> None:
    def read(*_: object) -> None:
        raise AssertionError("text is read")

    monkeypatch.setattr(ModelReading, "sample", read)
    if content is not None:
        (tmp_path / "words.txt").write_text(content)
    sae = ms.TopKSAE(bundled.d_model, 64, k=4)
    with pytest.raises(error, match=says):
        ms.evaluate(
            sae, bundled, HOOK, tokens=500, loss_tokens=loss_tokens, last_words=tmp_path / "words.txt", progress=False
        )
