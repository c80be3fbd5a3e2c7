"""ms.probe and ms.compare_texts on a model: planted features, controls, order, bad input."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy import sparse

import monosem as ms
from monosem.activations import reading
from monosem.errors import ConfigError, DataError, Interrupted, MismatchError
from monosem.evaluation.probing import ProbeReport
from monosem.evaluation.probing.compare import Side, _differences
from monosem.evaluation.probing.pooled import PooledCodes, place_of, pooled
from monosem.files import as_json
from monosem.models import SubjectModel
from monosem.sae import SAE

WORDS = ("river", "stone", "house", "garden", "window", "table", "music", "paper", "summer", "winter")
HOOK = "embed"


@pytest.fixture(scope="module")
def model(tiny_module: Any, tokenizer: Any) -> SubjectModel:
    """The tiny model, in which a king is not to be overlooked, wherever he stands."""
    model = SubjectModel(copy.deepcopy(tiny_module), tokenizer, "tiny")
    with torch.no_grad():
        model.module.get_submodule("transformer.wte").weight[model.tokens("the king")[0, -1]] *= 8
    return model


@pytest.fixture(scope="module")
def planted(model: SubjectModel) -> SAE:
    """Latent 5 is on where the token " king" is read, and nowhere else; the others know nothing of it."""
    sae = ms.ReLUSAE(32, 64, transform="none", seed=0)
    king = model.capture(model.tokens("the king"), [HOOK])[HOOK][0, -1]
    with torch.no_grad():
        sae.b_dec.zero_()
        sae.b_enc.zero_()
        sae.W_enc -= (sae.W_enc @ king)[:, None] * king / king.norm() ** 2
        sae.W_enc[5] = king / king.norm()
        sae.b_enc[5] = -0.5 * king.norm()
        sae.W_dec[5] = king / king.norm()
    sae.metadata.hook, sae.metadata.prepend_bos, sae.metadata.context_length = HOOK, True, 32
    return sae.eval()


def made(n: int, seed: int = 0) -> list[dict[str, Any]]:
    """Texts of random words; those labelled "royal" name a king."""
    rng = np.random.default_rng(seed)
    rows = []
    for i in range(n):
        words = [str(word) for word in rng.choice(WORDS, 6)]
        if i % 2:
            words[int(rng.integers(1, 6))] = "king"
        rows.append({"text": f"the {' '.join(words)}", "label": ["plain", "royal"][i % 2], "source": "ab"[i % 4 > 1]})
    return rows


@pytest.fixture(scope="module")
def found(planted: SAE, model: SubjectModel) -> ProbeReport:
    return ms.probe(planted, made(160), (1, 4), model=model, random_saes=2, progress=False)


def test_one_planted_latent_tells_the_label_and_shuffled_labels_come_to_chance(found: ProbeReport) -> None:
    assert found["SAE", 1].auroc.value > 0.99
    assert found["SAE", 1].accuracy.value > 0.95
    assert [one.latents for one in found.chosen if one.k == 1] == [[5]]
    for k in (1, 4):
        shuffled = found["shuffled labels", k].auroc
        assert shuffled.low is not None
        assert shuffled.high is not None
        assert shuffled.low <= 0.5 <= shuffled.high
    apart = found.difference("shuffled labels", 1)
    assert apart.value == pytest.approx(found["SAE", 1].auroc.value - found["shuffled labels", 1].auroc.value)
    assert apart.low > 0
    assert apart.smallest > 0
    assert {row.column for row in found.rows} >= {"random SAE", "PCA of x", "channels of x", "all of x"}
    assert found["all of x", "all"].auroc.value > 0.99
    assert found.facts["train"] == 128
    with pytest.raises(ConfigError, match=r"no probe of 'SEA' with k=1 was made; there are SAE, 1"):
        _ = found["SEA", 1]


def test_the_order_of_examples_does_not_matter(found: ProbeReport, planted: SAE, model: SubjectModel) -> None:
    rows = made(160)
    mixed = [rows[i] for i in np.random.default_rng(5).permutation(len(rows))]
    again = ms.probe({"SAE": planted}, mixed, (4, 1), model=model, random_saes=2, progress=False)
    assert json.dumps(again.to_json()) == json.dumps(found.to_json())


def test_flipped_test_labels_flip_the_score_and_nothing_else(planted: SAE, model: SubjectModel) -> None:
    test = made(60, seed=1)
    flipped = [row | {"label": {"plain": "royal", "royal": "plain"}[row["label"]]} for row in test]
    options: Any = {"model": model, "controls": False, "progress": False}
    one, other = (ms.probe(planted, made(80), (1, 3), test=t, **options) for t in (test, flipped))
    assert one.chosen == other.chosen
    assert one["SAE", 3].auroc.value == pytest.approx(1 - other["SAE", 3].auroc.value)
    overlap = ms.probe(planted, made(80), 1, test=made(80)[:30], **options)
    assert overlap.facts["train"] == 80 - overlap.facts["dropped, also in the test"]
    assert overlap.facts["dropped, also in the test"] >= 28


def test_sources_are_left_out_in_turn(planted: SAE, model: SubjectModel, tmp_path: Any) -> None:
    found = ms.probe(
        planted, made(160), 1, model=model, leave_out="source", test_share=0.4, controls=False, progress=False
    )
    assert found.left_out == ["a", "b"]
    for source in "ab":
        without, with_it = (found["SAE", 1, f"{way} {source}"] for way in ("without", "with"))
        assert without.n_test == with_it.n_test
        assert without.n_train < with_it.n_train
        assert without.auroc.value > 0.99
    assert "AUROC on a source" in str(found)
    found.save(tmp_path / "probe.json")
    assert json.loads((tmp_path / "probe.json").read_text())["rows"][0]["auroc"]["value"] > 0.9
    for name in ("probe.svg", "probe.png"):
        found.draw(tmp_path / name)
        assert (tmp_path / name).stat().st_size > 1000


def test_several_labels_are_told_each_from_all_others(planted: SAE, model: SubjectModel) -> None:
    rows = [row | {"label": "stone"} if "stone" in row["text"] else row for row in made(300)]
    found = ms.probe(planted, rows, 2, model=model, controls=False, progress=False)
    assert found.labels == ["plain", "royal", "stone"]
    per_label = [row.auroc.value for row in found.of() if row.column == "SAE" and row.label != "mean"]
    assert found["SAE", 2].auroc.value == pytest.approx(np.mean(per_label))
    assert "mean over 3 labels" in str(found)


@pytest.mark.parametrize("pool", ["mean", "max", "last"])
def test_pooled_codes_are_those_of_a_loop_over_texts(planted: SAE, model: SubjectModel, pool: Any) -> None:
    texts = ["the king of the river", "stone", "a king and another king " * 12, "garden window"]
    place = place_of({"SAE": planted}, model, None)
    read = pooled(place, texts, {"SAE": planted.encode}, {"SAE": 64}, {"x": HOOK}, pool)
    for i, text in enumerate(texts):
        pieces = model.tokens(text)[0, 1:].split(31)  # in contexts of 32, each behind a BOS
        rows = [model.capture(torch.cat([torch.tensor([0]), p])[None], [HOOK])[HOOK][0, 1:] for p in pieces]
        x = torch.cat(rows)
        dense = planted.encode(x).to_dense()
        for name, values in (("SAE", dense), ("x", x)):
            wanted = {"mean": values.mean(0), "max": values.max(0).values, "last": values[-1]}[pool]
            got = read.columns[name].read(np.arange(values.shape[1]))[i]
            assert np.allclose(got, wanted.detach().double().numpy(), atol=1e-4), (name, text)
    assert read.n_tokens[1] == (1 if pool == "last" else len(model.tokens("stone")[0]) - 1)


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"k": 0}, ConfigError, "a whole number from 1 on"),
        ({"k": []}, ConfigError, "a whole number from 1 on"),
        ({"pool": "sum"}, ConfigError, "pool must be one of 'mean', 'max', 'last'"),
        ({"choose": "lasso"}, ConfigError, "choose must be one of 'greedy'"),
        ({"test_share": 1.0}, ConfigError, "between 0 and 1"),
        ({"leave_out": "author"}, DataError, "row 0 has no column 'author'"),
        ({"test": [{"text": f"x {i}", "label": f"odd{i % 2}"} for i in range(40)]}, DataError, "the label 'odd0'"),
        ({"data": made(8)}, DataError, "fewer than 5"),
    ],
)
def test_bad_input_is_refused(planted: SAE, model: SubjectModel, options: Any, error: Any, words: Any) -> None:
    given = {"data": made(80), "k": 1, "model": model, "progress": False} | options
    with pytest.raises(error, match=words):
        ms.probe(planted, **given)


def test_an_sae_that_does_not_belong_to_the_model_is_refused(model: SubjectModel) -> None:
    narrow = ms.ReLUSAE(16, 8, transform="none")
    with pytest.raises(ConfigError, match="does not know its hook point"):
        ms.probe(narrow, made(80), 1, model=model, progress=False)
    with pytest.raises(ConfigError, match="does not know its model"):
        ms.probe(narrow, made(80), 1, progress=False)
    with pytest.raises(MismatchError, match="16"):
        ms.probe(narrow, made(80), 1, model=model, hook=HOOK, progress=False)


def test_activations_that_are_no_numbers_are_refused(planted: SAE, tiny: SubjectModel) -> None:
    with torch.no_grad():
        tiny.module.get_submodule("transformer.wte").weight[tiny.tokens("a king")[0, -1]] = torch.nan
    with pytest.raises(DataError, match="the activations at embed of tiny are not finite in text"):
        ms.probe(planted, made(80), 1, model=tiny, controls=False, progress=False)


def test_an_sae_in_half_precision_has_random_ones_beside_it_that_fire(model: SubjectModel) -> None:
    sae = ms.TopKSAE(32, 64, k=4, dtype=torch.float16, seed=0)
    sae.metadata.hook, sae.metadata.prepend_bos, sae.metadata.context_length = HOOK, True, 32
    found = ms.probe(sae, made(80), 4, model=model, random_saes=1, progress=False)
    assert found["random SAE", 4].auroc != (0.5, 0.5, 0.5)


def side(counts: np.ndarray, tokens: np.ndarray) -> Side:
    return Side(sparse.csr_array(counts.astype(float)), tokens.astype(float), {})


def documents(rates: np.ndarray, n: int, rng: np.random.Generator) -> Side:
    """Documents of unequal length in which features come in bursts."""
    tokens = rng.integers(20, 200, n)
    bursts = rng.gamma(0.5, 2.0, (n, len(rates)))
    return side(rng.poisson(rates * bursts * tokens[:, None]), tokens)


def test_rates_that_do_not_differ_are_seldom_said_to_and_those_that_do_are_found() -> None:
    rng = np.random.default_rng(0)
    rates = np.geomspace(0.001, 0.05, 400)
    low, found = [], 0
    for _ in range(5):
        same, _ = _differences(documents(rates, 120, rng), documents(rates, 150, rng))
        low += [feature.p < 0.05 for feature in same]
        found += sum(feature.corrected <= 0.05 for feature in same)
    assert 0.03 < np.mean(low) < 0.07
    assert found <= 2
    other = rates.copy()
    other[[390, 395]] *= [3, 1 / 3]
    features, _ = _differences(documents(rates, 120, rng), documents(other, 150, rng))
    assert {feature.latent for feature in features[:2]} == {390, 395}
    assert {f.latent: f.difference.value > 0 for f in features[:2]} == {390: True, 395: False}


def test_rates_and_their_variance_are_those_of_a_plain_loop() -> None:
    rng = np.random.default_rng(3)
    a, b = (documents(np.full(3, 0.2), 12, rng) for _ in range(2))
    features, skipped = _differences(a, b)
    assert skipped == 0
    one = next(feature for feature in features if feature.latent == 1)
    rates, variance = [], 0.0
    for part in (a, b):
        counts, n = part.firing.toarray()[:, 1], part.tokens
        rates.append(counts.sum() / n.sum())
        variance += sum((c - rates[-1] * t) ** 2 for c, t in zip(counts, n, strict=True)) / n.sum() ** 2 * 12 / 11
    assert one.rate_a == pytest.approx(rates[0])
    assert one.difference.value == pytest.approx(rates[1] - rates[0])
    assert (one.difference.high or 0) - one.difference.value == pytest.approx(2.200985 * variance**0.5, rel=1e-5)


def test_a_word_of_one_text_alone_is_found_with_its_latent(planted: SAE, model: SubjectModel, tmp_path: Any) -> None:
    rows = made(120)
    plain, royal = ([row["text"] for row in rows if row["label"] == label] for label in ("plain", "royal"))
    found = ms.compare_texts(planted, plain, royal, model=model, labels={5: "a king"}, progress=False)
    first = found.differing[0]
    assert first.latent == 5
    assert first.rate_a == 0
    assert first.documents_b == len(royal)
    assert first.difference.value == pytest.approx(first.rate_b)
    assert "a king" in str(found)
    same = ms.compare_texts(planted, plain[::2], plain[1::2], model=model, progress=False)
    assert same.differing == []
    for alarm in same.alarms.values():
        assert alarm.low is not None
        assert alarm.low <= 0.5 <= (alarm.high or 0)
    found.save(tmp_path / "texts.json")
    assert json.loads((tmp_path / "texts.json").read_text())["features"][0]["latent"] == 5
    with pytest.raises(DataError, match=r"has 2 documents, fewer than 10: .*a \.txt file is one"):
        ms.compare_texts(planted, plain[:2], royal, model=model, progress=False)
    with pytest.raises(ConfigError, match="level is between 0 and 1"):
        ms.compare_texts(planted, plain, royal, model=model, level=5, progress=False)


@pytest.mark.parametrize("pool", ["mean", "max"])
def test_a_pass_over_texts_that_was_stopped_goes_on_to_the_same_numbers(
    pool: Any, model: SubjectModel, planted: SAE, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options: Any = {"model": model, "pool": pool, "random_saes": 1, "progress": False}
    monkeypatch.setattr(SubjectModel, "contexts_at_once", lambda model, length: 16)
    monkeypatch.setattr(reading, "READ_TOKENS", 1)
    whole = ms.probe(planted, made(120), (1, 2), **options)
    read, batches = PooledCodes.add, list[int]()

    def stopped(self: PooledCodes, codes: Any, texts: Any) -> None:
        batches.append(int(texts.min()))
        if len(batches) == 9:
            raise Interrupted("stopped")
        read(self, codes, texts)

    monkeypatch.setattr(PooledCodes, "add", stopped)
    with pytest.raises(Interrupted):
        ms.probe(planted, made(120), (1, 2), keep=tmp_path / "kept", minutes=0, **options)
    assert ms.probe(planted, made(100, 3), 1, keep=tmp_path / "kept", **options)["SAE", 1].n_test  # of other texts
    assert list((tmp_path / "kept").iterdir()), "what another call has kept stays"
    batches.clear()
    batches += [0] * 9
    found = ms.probe(planted, made(120), (1, 2), keep=tmp_path / "kept", minutes=0, **options)
    assert min(batches[9:]) > 0, "texts that were read are read again"
    assert as_json(found.to_json()) == as_json(whole.to_json())
    assert not (tmp_path / "kept").exists()
