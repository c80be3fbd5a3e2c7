"""One pass for several dictionaries, kept on disk, in several processes: the numbers that each has alone."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import monosem as ms
from monosem.errors import ConfigError, DataError, FileError, MismatchError
from monosem.evaluation import EvaluationReport
from monosem.evaluation.dark_matter import DarkMatter
from monosem.evaluation.definitions import DEFINITIONS
from monosem.evaluation.epsilon import norm_corrected, same_angle, same_distance, with_error
from monosem.evaluation.going_on import Keeper
from monosem.evaluation.l0 import L0
from monosem.evaluation.longer import beyond_training
from monosem.evaluation.metric import Seen
from monosem.evaluation.report import report_schema
from monosem.evaluation.suites import CALLS
from monosem.intervals import DocumentSums, Interval
from monosem.models import SubjectModel
from monosem.sae import SAEMetadata
from monosem.work import Stage

HOOK = "resid_post.1"
PLACES = ("home", "north", "far") * 4
TEXTS = [f"{who} went {where} and came back." for who in ("We", "They", "Anna") for where in PLACES]


def made(model: SubjectModel, seed: int, k: int = 6, **settings: Any) -> ms.TopKSAE:
    sae = ms.TopKSAE(32, 96, k=k, seed=seed, **settings)
    sae.initialise(torch.cat([model.capture(t, [HOOK])[HOOK][0] for t in TEXTS]))
    sae.metadata = SAEMetadata(hook=HOOK, context_length=16, prepend_bos=True, exclude_special=True)
    return sae


def measured(sae: Any, model: SubjectModel, **options: Any) -> EvaluationReport:
    return ms.evaluate(sae, model, text=TEXTS, progress=False, **options)


def values(interval: Interval) -> list[float]:
    return [math.nan if value is None else value for value in interval]


def same(a: EvaluationReport, b: EvaluationReport, rel: float = 1e-9) -> None:
    assert list(a.columns) == list(b.columns)
    for name, metrics in a.columns.items():
        assert list(metrics) == list(b.columns[name])
        for key, interval in metrics.items():
            found = values(b.columns[name][key])
            assert found == pytest.approx(values(interval), rel=rel, abs=max(1e-9, rel * 1e-3), nan_ok=True), key


def test_several_saes_in_one_pass_have_the_numbers_that_each_has_alone(tiny: SubjectModel) -> None:
    saes = {"wide": made(tiny, 1), "narrow": made(tiny, 2, k=4)}
    together = measured(saes, tiny)
    assert together.saes == ["wide", "narrow"]
    assert list(together.columns) == ["wide", "narrow", "mean", "PCA", "neurons", "random"]
    for name, sae in saes.items():
        alone, own = measured(sae, tiny), together.of(name)
        for key, interval in alone.metrics.items():
            if "other" not in key:  # how near the others are is of all together
                assert values(own[key]) == pytest.approx(values(interval), rel=1e-6, abs=1e-9, nan_ok=True), key
        assert own.tables["SAE"].keys() == alone.tables["SAE"].keys()
        assert np.array_equal(own.firing_rates, alone.firing_rates)
    assert "wide" in str(together)
    assert "narrow" in str(together)
    assert list(measured([*saes.values()], tiny, loss_tokens=0).saes) == ["SAE 1", "SAE 2"]


def test_what_cannot_share_a_pass_is_said(tiny: SubjectModel) -> None:
    one, other = made(tiny, 1), made(tiny, 2)
    other.metadata = other.metadata.model_copy(update={"hook": "resid_post.0"})
    with pytest.raises(MismatchError, match=r"b and a cannot share a pass: reads .*resid_post\.0.*one by one"):
        measured({"a": one, "b": other}, tiny)
    other.metadata = one.metadata.model_copy(update={"context_length": 8})
    with pytest.raises(MismatchError, match="context_length 8 and 16"):
        measured({"a": one, "b": other}, tiny)
    with pytest.raises(ConfigError, match="cannot be called 'PCA'"):
        measured({"PCA": one}, tiny)
    with pytest.raises(ConfigError, match="no SAE"):
        measured({}, tiny)


def test_several_saes_are_measured_where_all_of_them_read(tiny: SubjectModel) -> None:
    one, other = made(tiny, 1), made(tiny, 2)
    other.metadata = other.metadata.model_copy(update={"skip_first": 5})
    together = measured({"a": one, "b": other}, tiny, loss_tokens=0)
    assert together.facts["rows"] == measured(other, tiny, loss_tokens=0).facts["rows"]


def test_every_metric_is_defined_in_words_and_every_value_is_a_number_or_undefined(tiny: SubjectModel) -> None:
    report = measured(made(tiny, 1), tiny)
    for metrics in report.columns.values():
        for key, interval in metrics.items():
            assert key in DEFINITIONS, key
            assert len(DEFINITIONS[key].label) <= 32
            for value in values(interval):
                assert math.isnan(value) or abs(value) < 1e9, key
    for key, metric in report.metrics.items():
        assert metric.low is not None or key in report.notes or math.isnan(metric.value), f"{key} has no interval"


def test_the_report_is_json_for_the_strictest_reader(tiny: SubjectModel, tmp_path: Path) -> None:
    report, path = measured(made(tiny, 1), tiny), tmp_path / "evaluation.json"
    report.columns["SAE"]["fvu"] = Interval(math.nan)
    report.save(path)

    def refuse(word: str) -> None:
        raise AssertionError(word)

    content = json.loads(path.read_text(), parse_constant=refuse)
    assert content["columns"]["SAE"]["fvu"]["value"] is None
    schema = report_schema()
    assert set(schema["required"]) <= set(content) <= set(schema["properties"])
    loaded = EvaluationReport.load(path)
    same(report, loaded)
    assert loaded.tables == report.tables
    assert loaded.notes == report.notes


def test_a_report_of_an_earlier_version_is_read(tmp_path: Path) -> None:
    old = {"facts": {"rows": 3, "data": "x"}, "columns": {"SAE": {"fvu": {"value": 0.5, "low": None, "high": None}}}}
    path = tmp_path / "evaluation.json"
    path.write_text(json.dumps({**old, "firing_rates": [0.5, 0.0], "l0_counts": [1, 2]}))
    report = EvaluationReport.load(path)
    assert report["fvu"].value == 0.5
    assert report.firing_rates.tolist() == [0.5, 0.0]


# The state on disk, and several processes ---------------------------------------------------------------------------


class Killed(Exception):
    """Nothing after it is done."""


def test_a_state_of_another_evaluation_is_refused(
    tiny: SubjectModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sae, kept = made(tiny, 1), tmp_path / "state"

    def killed(keeper: Keeper, start: int, rows: int) -> None:
        keeper.place = start, rows
        keeper.save()
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(Keeper, "round_is_over", killed)
        with pytest.raises(Killed):
            measured(sae, tiny, keep=kept)
    with pytest.raises(FileError, match="another evaluation: delete it"):
        measured(sae, tiny, keep=kept, tokens=100)
    with pytest.raises(FileError, match="another evaluation: delete it"):
        measured(sae, tiny, keep=kept, suite="full")
    state = kept / "pass.safetensors"
    state.write_bytes(state.read_bytes()[:100])
    with pytest.raises(FileError, match="delete it to begin again"):
        measured(sae, tiny, keep=kept)


PROGRAM = """
import sys
import torch
import monosem as ms
from monosem.models import SubjectModel
from monosem.ranks import everyone, working_together
torch.set_num_threads(1)
SubjectModel.contexts_at_once = lambda model, length: 2
with working_together():
    sae = ms.load_sae(sys.argv[1])
    report = ms.evaluate(sae, ms.load_model("bundled"), tokens=1500, loss_tokens=700, progress=False)
    if everyone().first:
        report.save(sys.argv[2])
"""


def test_two_processes_find_the_numbers_of_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, forks: Any) -> None:
    sae = ms.TopKSAE(256, 64, k=4, seed=0)
    sae.metadata = SAEMetadata(hook="resid_post.2", context_length=64, prepend_bos=True, exclude_special=True)
    sae.save(tmp_path / "sae")
    for process in forks.together(2, "-c", PROGRAM, tmp_path / "sae", tmp_path / "2.json"):
        assert process.wait() == 0, process.said
    monkeypatch.setattr(SubjectModel, "contexts_at_once", lambda model, length: 2)
    alone = ms.evaluate(sae, ms.load_model("bundled", device="cpu"), tokens=1500, loss_tokens=700, progress=False)
    together = EvaluationReport.load(tmp_path / "2.json")
    assert together.facts.keys() == alone.facts.keys()
    for key, fact in alone.facts.items():
        assert together.facts[key] == (pytest.approx(fact, rel=1e-6) if isinstance(fact, float) else fact)
    same(together, alone, rel=1e-4)
    assert np.array_equal(together.l0_counts, alone.l0_counts)


# What metrics say of what is known -----------------------------------------------------------------------------------


def test_other_errors_are_as_far_away_and_at_the_same_angle() -> None:
    generator = torch.Generator().manual_seed(0)
    x, y, noise = (torch.randn(50, 12, generator=generator, dtype=torch.float64) for _ in range(3))
    distance = (y - x).norm(dim=-1)
    torch.testing.assert_close((same_distance(x, y, noise) - x).norm(dim=-1), distance)
    turned = same_angle(x, y, noise)
    torch.testing.assert_close((turned - x).norm(dim=-1), distance)
    torch.testing.assert_close(torch.cosine_similarity(turned, x), torch.cosine_similarity(y, x))
    assert (torch.cosine_similarity(turned - x, y - x) < 0.999).all()
    torch.testing.assert_close(norm_corrected(x, y, noise).norm(dim=-1), x.norm(dim=-1))
    torch.testing.assert_close(with_error(x, y, noise), x)
    assert torch.equal(same_distance(x, x, noise), x)
    assert torch.isfinite(same_angle(torch.zeros_like(x), torch.zeros_like(x), noise)).all()


def test_with_its_error_put_back_a_dictionary_costs_nothing(
    tiny: SubjectModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    report = measured(made(tiny, 1), tiny)
    assert report["kl_with_error"].value == pytest.approx(0, abs=1e-6)
    monkeypatch.setattr("monosem.evaluation.suites.ONE_IN", 1)
    report = measured(made(tiny, 1), tiny)
    assert report["ce_with_error"].value == pytest.approx(report.facts["ce_clean"], rel=1e-5)
    assert report["kl_over_random"].value == pytest.approx(report["kl"].value / report["kl_random"].value)
    ratios = report.tables["SAE"]["error_by_position"].columns["KL over a random error's"]
    assert min(ratios) <= report["kl_over_random"].value <= max(ratios)


def test_other_errors_are_measured_in_one_of_three_contexts_at_any_batch_size(
    tiny: SubjectModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = measured(made(tiny, 1), tiny)
    monkeypatch.setattr(SubjectModel, "contexts_at_once", lambda model, length: 2)
    parts = measured(made(tiny, 1), tiny)
    for key in ("kl_random", "kl_random_cosine", "kl_norm_corrected", "kl_over_random"):
        assert parts[key].value == pytest.approx(whole[key].value, rel=1e-4)
        assert "one of 3" in whole.notes[key]


def test_curves_add_up_to_their_means(tiny: SubjectModel) -> None:
    report = measured(made(tiny, 1), tiny)
    for key in ("loss_by_position", "loss_by_frequency"):
        columns = report.tables["SAE"][key].columns
        n = np.array(columns["predictions"])
        assert n.sum() == report.facts["predictions"]
        assert (n * np.array(columns["loss"])).sum() / n.sum() == pytest.approx(report["ce"].value)
        assert (n * np.array(columns["KL"])).sum() / n.sum() == pytest.approx(report["kl"].value)
        assert (n * np.array(columns["clean loss"])).sum() / n.sum() == pytest.approx(report.facts["ce_clean"])


def test_every_pass_of_the_model_is_progress_and_each_kind_of_contexts_has_a_name(
    tiny: SubjectModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a slow model a batch takes minutes."""
    told: dict[str, list[float]] = {}
    advance = Stage.advance

    def listen(stage: Stage, units: float) -> None:
        told.setdefault(stage.name, []).append(units)
        advance(stage, units)

    monkeypatch.setattr(Stage, "advance", listen)
    monkeypatch.setitem(CALLS, "full", [beyond_training])
    sae, text = made(tiny, 1), [" ".join(TEXTS[i : i + 6]) for i in range(30)]
    sae.metadata.context_length = 10
    report = ms.evaluate(sae, tiny, text=text, suite="full", tokens=300, loss_tokens=200, progress=False)
    assert {"evaluating", "evaluating longer contexts", "measuring losses"} <= set(told)
    passes = told["measuring losses"]
    assert len(passes) > 2 * (1 + len(report.columns))  # without and with each column, in contexts of both lengths
    assert max(passes) < 100


def test_past_the_training_s_contexts_the_curve_adds_up_to_its_mean_and_the_model_ends_it(
    tiny: SubjectModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(CALLS, "full", [beyond_training])
    sae, text = made(tiny, 1), [" ".join(TEXTS[i : i + 6]) for i in range(30)]
    sae.metadata.context_length = 10
    report = ms.evaluate(sae, tiny, text=text, suite="full", tokens=900, loss_tokens=900, progress=False)
    assert report.facts["longer_context"] == 40
    curve = report.tables["SAE"]["loss_by_position_long"].columns
    n, kl, place = (np.array(curve[key], float) for key in ("predictions", "KL", "position"))
    past = place >= 10
    assert 0 < n[past].sum() < n.sum()
    beyond, within = ((n * kl)[side].sum() / n[side].sum() for side in (past, ~past))
    assert report["kl_beyond"].value == pytest.approx(beyond)
    assert report["kl_beyond_over_within"].value == pytest.approx(beyond / within)
    sae.metadata.context_length = tiny.context_length
    report = ms.evaluate(sae, tiny, text=text, suite="full", tokens=300, loss_tokens=300, progress=False)
    assert "kl_beyond" not in report.metrics
    assert "no more than" in report.notes["kl_beyond"]


@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
def test_dark_matter_is_the_share_of_the_error_that_is_linear_in_the_input(share: float) -> None:
    generator = torch.Generator().manual_seed(0)
    x, noise = (torch.randn(4000, 8, generator=generator) for _ in range(2))
    error = math.sqrt(share) * x @ torch.linalg.qr(torch.randn(8, 8, generator=generator)).Q
    error = error + math.sqrt(1 - share) * noise + 3
    metric = DarkMatter(torch.zeros(8), ["SAE"])
    for part in range(0, 4000, 700):
        rows = slice(part, part + 700)
        metric.add(Seen.of(x[rows], {"SAE": x[rows] - error[rows]}, torch.arange(part, min(part + 700, 4000)) // 3))
    assert metric.result("SAE")["error_linear"].value == pytest.approx(share, abs=0.03)


def test_l0_at_beginnings_is_told_from_the_rest(tiny: SubjectModel) -> None:
    sae = made(tiny, 1)
    report = measured(sae, tiny, loss_tokens=0)
    assert report["l0_mode"].value == report["l0_beginning"].value == report["l0_later"].value == 6
    assert sum(report.tables["SAE"]["l0"].columns["share"]) == pytest.approx(1)
    assert L0(["SAE"]).notes()


def test_activations_that_are_not_finite_are_said(tiny: SubjectModel) -> None:
    sae = made(tiny, 1)
    with tiny.edit({HOOK: lambda x, context: x * math.nan}), pytest.raises(DataError, match="not finite"):
        measured(sae, tiny)


def test_too_little_text_for_an_interval_is_said(tiny: SubjectModel) -> None:
    report = ms.evaluate(made(tiny, 1), tiny, text=[" ".join(TEXTS)], progress=False)
    assert report["fvu"].low is None
    assert "one document" in str(report)


@pytest.mark.parametrize("x", [torch.zeros(40, 32), torch.full((40, 32), 3.0), torch.ones(1, 32)])
def test_rows_that_say_nothing_have_defined_values(x: Tensor, tmp_path: Path) -> None:
    sae = ms.TopKSAE(32, 96, k=6, transform="none")
    report = ms.evaluate(sae, x, progress=False)
    assert math.isnan(report["fvu"].value)
    report.save(tmp_path / "evaluation.json")
    assert "NaN" not in (tmp_path / "evaluation.json").read_text()
    assert "Infinity" not in (tmp_path / "evaluation.json").read_text()


def test_float32_says_what_float64_says() -> None:
    x = torch.randn(500, 32, generator=torch.Generator().manual_seed(1)) + 2
    single = ms.TopKSAE(32, 96, k=6, transform="none", seed=3)
    double = ms.TopKSAE(32, 96, k=6, transform="none", seed=3, dtype=torch.float64)
    with torch.no_grad():
        for own, other in zip(double.parameters(), single.parameters(), strict=True):
            own.copy_(other)
    a, b = ms.evaluate(single, x, controls=False), ms.evaluate(double, x, controls=False)
    for key in ("fvu", "cosine", "norm_ratio", "relative_bias", "l0"):
        assert a[key].value == pytest.approx(b[key].value, rel=1e-5)


def test_intervals_of_ratios_cover_the_truth_about_as_often_as_they_say() -> None:
    """FVU of planted errors, of documents of uneven length: 200 data sets."""
    rng, hits = np.random.default_rng(0), 0
    for number in range(200):
        sizes = rng.integers(1, 40, 60)
        documents = np.repeat(np.arange(60), sizes)
        level = np.repeat(rng.lognormal(0, 0.5, 60), sizes)
        sums = DocumentSums()
        sums.add("rows", documents, np.ones(len(documents)))
        sums.add("error", documents, level * rng.exponential(0.2, len(documents)))
        sums.add("energy", documents, rng.exponential(1.0, len(documents)))
        found = sums.interval(lambda s: s["error"] / s["energy"], seed=number)
        assert found.low is not None
        assert found.high is not None
        hits += found.low <= 0.2 * math.exp(0.125) <= found.high
    assert 0.88 <= hits / 200 <= 0.985


def test_a_harvest_that_listens_is_kept_beside_and_goes_on_with_it(
    tiny: SubjectModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from monosem.features import HarvestObserver, new_harvest

    sae, kept = made(tiny, 1), tmp_path / "state"
    monkeypatch.setattr(SubjectModel, "contexts_at_once", lambda model, length: 2)

    def observer() -> HarvestObserver:
        return HarvestObserver(new_harvest(sae, tiny, HOOK, "texts"), sae)

    whole, killed, again = observer(), observer(), observer()
    measured(sae, tiny, loss_tokens=0, observers=[whole])
    save, rounds = Keeper.save, list[int]()

    def until_the_third(keeper: Keeper) -> None:
        save(keeper)
        rounds.append(keeper.place[0])
        if len(rounds) == 3:
            raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(Keeper, "save", until_the_third)
        with pytest.raises(Killed):
            measured(sae, tiny, loss_tokens=0, observers=[killed], keep=kept, minutes=0)
    measured(sae, tiny, loss_tokens=0, observers=[again], keep=kept)
    assert again.harvest.n_tokens == whole.harvest.n_tokens
    for name, values_ in whole.harvest.totals._asdict().items():
        np.testing.assert_array_equal(getattr(again.harvest.totals, name), values_)
    assert not list(tmp_path.iterdir())
