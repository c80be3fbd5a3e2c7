"""evaluate: on vectors and on a model, beside its controls, the same at any size of batch, and saved as it is."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import monosem as ms
from monosem.codes import SparseCodes
from monosem.data import ContextBatch, Document, PackedText
from monosem.errors import ConfigError, DataError, FileError, MismatchError
from monosem.evaluation import EvaluationReport
from monosem.evaluation.report import number
from monosem.models import SubjectModel
from monosem.sae import SAEMetadata
from monosem.text import printed

MODULE = sys.modules["monosem.evaluation.evaluate"]
ROWS_MODULE = sys.modules["monosem.evaluation.vectors"]
HOOK = "resid_post.1"
TEXTS = [
    f"{who} went {where} and was not seen again for years."
    for who in ("We", "They", "Anna")
    for where in ("home", "far away", "north")
]


def random_sae(d: int = 32, seed: int = 0, **settings: Any) -> ms.TopKSAE:
    sae = ms.TopKSAE(d, 3 * d, k=6, seed=seed, **settings)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        sae.b_enc.copy_(0.1 * torch.randn(3 * d, generator=generator))
        sae.b_dec.copy_(0.1 * torch.randn(d, generator=generator))
    return sae


@pytest.fixture
def sae(tiny: SubjectModel) -> ms.TopKSAE:
    made = random_sae()
    made.initialise(torch.cat([tiny.capture(t, [HOOK])[HOOK][0] for t in TEXTS]))
    made.metadata = SAEMetadata(hook=HOOK, context_length=16, prepend_bos=True, exclude_special=True)
    return made


@pytest.fixture
def vectors() -> Tensor:
    return torch.randn(200, 32, generator=torch.Generator().manual_seed(0)) @ torch.diag(torch.linspace(0.1, 2, 32)) + 1


def by_plain_loop(sae: ms.TopKSAE, model: SubjectModel) -> dict[str, float]:
    """FVU, L0 and dead share, one token at a time."""
    text = PackedText([Document(t) for t in TEXTS], model.tokenizer, 16).read(0, 1000)
    rows, rebuilt, counts = list[Tensor](), list[Tensor](), torch.zeros(sae.n_latents)
    for tokens, special in zip(text.tokens, text.special, strict=True):
        activations = model.capture(tokens[None], [HOOK])[HOOK][0]
        for position in range(16):
            if not special[position]:
                rows.append(activations[position])
                rebuilt.append(sae(activations[position : position + 1]).reconstruction[0])
                counts += sae.encode(activations[position : position + 1]).to_dense()[0] > 0
    x, y = torch.stack(rows).double(), torch.stack(rebuilt).double()
    return {
        "fvu": ((x - y).pow(2).sum() / (x - x.mean(0)).pow(2).sum()).item(),
        "l0": counts.sum().item() / len(x),
        "dead_share": (counts == 0).float().mean().item(),
        "rows": len(x),
    }


def test_the_numbers_are_those_of_a_plain_loop_over_tokens(tiny: SubjectModel, sae: ms.TopKSAE) -> None:
    report = ms.evaluate(sae, tiny, text=TEXTS, progress=False)
    expected = by_plain_loop(sae, tiny)
    assert report.facts["rows"] == expected["rows"]
    assert report["fvu"].value == pytest.approx(expected["fvu"], rel=1e-4)
    assert report["l0"].value == pytest.approx(expected["l0"], rel=1e-3)
    assert report["dead_share"].value == pytest.approx(expected["dead_share"], abs=0.02)
    assert report.firing_rates.sum() == pytest.approx(report["l0"].value)
    assert report.l0_counts.sum() == expected["rows"]


def test_the_numbers_do_not_move_with_the_contexts_in_a_pass(
    tiny: SubjectModel, sae: ms.TopKSAE, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = ms.evaluate(sae, tiny, text=TEXTS, progress=False)
    monkeypatch.setattr(SubjectModel, "contexts_at_once", lambda model, length: 1)
    single = ms.evaluate(sae, tiny, text=TEXTS, progress=False)
    for column, metrics in whole.columns.items():
        for name, interval in metrics.items():
            assert single.columns[column][name].value == pytest.approx(
                interval.value, rel=1e-3, abs=1e-4, nan_ok=True
            ), name


def test_the_controls_stand_beside_it(tiny: SubjectModel, sae: ms.TopKSAE) -> None:
    report = ms.evaluate(sae, tiny, text=TEXTS, progress=False)
    assert list(report.columns) == ["SAE", "mean", "PCA", "neurons", "random"]
    assert report.columns["mean"]["fvu"].value == pytest.approx(1, abs=1e-5)
    assert report.columns["mean"]["explained_variance"].value == pytest.approx(0, abs=1e-5)
    assert report.columns["mean"]["loss_recovered_mean"].value == 0
    assert 0 < report.columns["PCA"]["fvu"].value < 1
    assert report.columns["PCA"]["l0"].value == round(report["l0"].value)
    assert report.columns["PCA"]["kl"].value >= 0
    assert report.facts["ce_zero"] > 0
    without = ms.evaluate(sae, tiny, text=TEXTS, controls=False, loss_tokens=0, progress=False)
    assert "PCA" not in without.columns
    assert "ce" not in without.metrics


def test_a_dictionary_that_loses_nothing_recovers_everything(tiny: SubjectModel) -> None:
    sae = ms.ReLUSAE(32, 64, transform="none")
    with torch.no_grad():
        sae.W_enc.copy_(torch.cat([torch.eye(32), -torch.eye(32)]))
        sae.W_dec.copy_(sae.W_enc)
    report = ms.evaluate(sae, tiny, HOOK, text=TEXTS, controls=False, progress=False)
    assert report["fvu"].value == 0
    assert report["l0"].value == 32
    assert report["ce"].value == pytest.approx(report.facts["ce_clean"])
    assert report["loss_recovered_mean"].value == pytest.approx(1)
    assert report["loss_recovered_zero"].value == pytest.approx(1)
    assert report["kl"].value == pytest.approx(0, abs=1e-6)


def test_tokens_and_loss_tokens_are_kept_to(tiny: SubjectModel, sae: ms.TopKSAE) -> None:
    many = [t * 5 for t in TEXTS * 20]
    report = ms.evaluate(sae, tiny, text=many, tokens=16 * 40, loss_tokens=100, controls=False, progress=False)
    assert 16 * 40 <= report.facts["rows"] < 16 * 41
    assert 100 <= report.facts["predictions"] < 100 + 2 * 16


def test_observers_see_every_batch_and_its_codes(tiny: SubjectModel, sae: ms.TopKSAE) -> None:
    seen: list[tuple[ContextBatch, Tensor, SparseCodes, Tensor]] = []
    report = ms.evaluate(sae, tiny, text=TEXTS * 20, observers=[lambda *a: seen.append(a)], progress=False)
    assert len(seen) > 1
    assert sum(int(kept.sum()) for _, kept, _, _ in seen) == report.facts["rows"]
    for batch, kept, codes, x in seen:
        assert torch.equal(sae.encode(x).to_dense(), codes.to_dense())
        assert codes.shape == (int(kept.sum()), sae.n_latents)
        assert not (kept & batch.special).any()


def test_positions_follow_the_rule_that_the_sae_remembers(tiny: SubjectModel, sae: ms.TopKSAE) -> None:
    without = ms.evaluate(sae, tiny, text=TEXTS, controls=False, progress=False)
    sae.metadata = sae.metadata.model_copy(update={"exclude_special": False})
    with_them = ms.evaluate(sae, tiny, text=TEXTS, controls=False, progress=False)
    text = PackedText([Document(t) for t in TEXTS], tiny.tokenizer, 16).read(0, 1000)
    assert without.facts["rows"] == int((~text.special).sum())
    assert with_them.facts["rows"] == int((~text.padding).sum())


def test_vectors_give_the_numbers_of_numpy(vectors: Tensor) -> None:
    sae = random_sae()
    sae.initialise(vectors)
    for given in (vectors, vectors.numpy(), vectors.double().numpy()):
        report = ms.evaluate(sae, given)
        with torch.no_grad():
            rebuilt = sae(vectors).reconstruction.double().numpy()
        x = vectors.double().numpy()
        fvu = ((x - rebuilt) ** 2).sum() / ((x - x.mean(0)) ** 2).sum()
        assert report["fvu"].value == pytest.approx(fvu, rel=1e-5)
        assert report["fvu"].low < fvu < report["fvu"].high
        assert list(report.columns) == ["SAE", "mean", "PCA", "neurons", "random"]
        assert report.columns["mean"]["fvu"].value == pytest.approx(1, rel=1e-6)
        assert report.facts["rows"] == 200


def test_vectors_that_may_only_be_read_are_fine(vectors: Tensor, tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", vectors.numpy())
    mapped = np.load(tmp_path / "x.npy", mmap_mode="r")
    sae = random_sae()
    sae.initialise(vectors)
    assert ms.evaluate(sae, mapped)["fvu"] == ms.evaluate(sae, vectors)["fvu"]


def test_vectors_do_not_move_with_the_batch_size(vectors: Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    sae = random_sae()
    sae.initialise(vectors)
    whole = ms.evaluate(sae, vectors)
    monkeypatch.setattr(ROWS_MODULE, "ROWS", 33)
    for name, interval in ms.evaluate(sae, vectors).metrics.items():
        assert interval.value == pytest.approx(whole[name].value, rel=1e-5, nan_ok=True)


@pytest.mark.parametrize("of", ["vectors", "model"])
def test_a_report_prints_saves_and_loads_back_equal(
    of: str, tiny: SubjectModel, sae: ms.TopKSAE, vectors: Tensor, tmp_path: Path
) -> None:
    report = ms.evaluate(sae, vectors) if of == "vectors" else ms.evaluate(sae, tiny, text=TEXTS, progress=False)
    path = tmp_path / "evaluation.json"
    report.save(path)
    loaded = EvaluationReport.load(path)
    assert loaded.columns == report.columns
    assert loaded.facts == report.facts
    np.testing.assert_allclose(loaded.firing_rates, report.firing_rates, rtol=1e-5)
    assert np.array_equal(loaded.l0_counts, report.l0_counts)
    assert str(loaded) == str(report)
    printed = str(report)
    for word in ("FVU", "95 % interval", "PCA", "random", "share of dead latents"):
        assert word in printed
    assert max(map(len, printed.splitlines())) <= 100
    json.loads(path.read_text())


@pytest.mark.parametrize("content", ["", "{", "[]", '{"columns": {}}', '{"columns": 5, "facts": {}}'])
def test_a_damaged_report_is_named(tmp_path: Path, content: str) -> None:
    path = tmp_path / "evaluation.json"
    path.write_text(content)
    with pytest.raises(FileError, match=r"evaluation\.json"):
        EvaluationReport.load(path)


def test_what_is_not_known_must_be_given(
    tiny: SubjectModel, sae: ms.TopKSAE, vectors: Tensor, make_gpt2: Callable[..., nn.Module]
) -> None:
    bare = random_sae()
    with pytest.raises(ConfigError, match="does not know its model"):
        ms.evaluate(bare)
    with pytest.raises(ConfigError, match="does not know its hook point"):
        ms.evaluate(bare, tiny)
    sae.metadata = sae.metadata.model_copy(update={"text": "my/own.txt"})
    with pytest.raises(ConfigError, match=r"my/own\.txt: name a held-out text"):
        ms.evaluate(sae, tiny)
    with pytest.raises(DataError, match="empty"):
        ms.evaluate(sae, tiny, text=[""])
    with pytest.raises(DataError, match="no rows"):
        ms.evaluate(random_sae(), vectors[:0])
    with pytest.raises(DataError, match="no tokenizer"):
        ms.evaluate(sae, SubjectModel(tiny.module), text=TEXTS)
    for tokens in (0, -5):
        with pytest.raises(ConfigError, match=r"tokens must be a whole number of at least 1"):
            ms.evaluate(sae, tiny, text=TEXTS, tokens=tokens, progress=False)


def test_what_does_not_fit_is_said(
    tiny: SubjectModel, sae: ms.TopKSAE, vectors: Tensor, make_gpt2: Callable[..., nn.Module]
) -> None:
    with pytest.raises(MismatchError, match=r"reads width 32, mlp_mid\.1 of tiny has width 128"):
        ms.evaluate(sae, tiny, "mlp_mid.1", text=TEXTS, progress=False)
    with pytest.raises(MismatchError, match=r"width 32, got activations of shape \(200, 16\)"):
        ms.evaluate(sae, vectors[:, :16])
    short = SubjectModel(make_gpt2(positions=8), tiny.tokenizer, "short")
    with pytest.raises(MismatchError, match="contexts of 16 tokens, short has a context of 8"):
        ms.evaluate(sae, short, text=TEXTS, progress=False)


def test_an_sae_that_knows_everything_is_evaluated_alone(small_run: Path) -> None:
    sae = ms.load_sae(small_run)
    report = ms.evaluate(sae, tokens=2000, loss_tokens=300, controls=False, progress=False)
    assert report.facts["model"] == "bundled"
    assert report.facts["hook"] == "resid_post.2"
    assert report.facts["data"] == "bundled:held_out"


def test_a_scorecard_fits_every_terminal_whole_and_says_why_a_metric_has_no_interval() -> None:
    planted = ms.PlantedDictionary(24, 16, l0=2, seed=1)
    report = ms.evaluate(ms.TopKSAE(16, 24, k=2), planted, tokens=1200, progress=False)
    one = report.table()
    assert [column.header for column in one.columns][:3] == ["", "SAE", "95 % interval"]
    for width in (80, 100):
        shown = printed(*report.fitting(width), width=width)
        assert "…" not in shown
        assert len(report.fitting(width)) == (2 if width == 80 else 1)
        assert max(map(len, shown.splitlines())) <= width
        for name in report.columns:
            for key, value in report.columns[name].items():
                assert number(value.value) in shown, (name, key)
    whole = " ".join(printed(one, width=500).split())
    marked = re.findall(r"none \((.)\)", whole)
    reasons = dict(re.findall(r"(?<!none )\((\w)\) (.*?)\.(?= \(\w\) |$)", whole))
    assert set(marked) == set(reasons)
    assert set(reasons.values()) == {
        note.removeprefix("no interval: ")
        for key, note in report.notes.items()
        if key in report.metrics and report[key].low is None
    }
    lacking = [key for key, value in report.metrics.items() if value.low is None]
    assert not [key for key in lacking if key not in report.notes]
