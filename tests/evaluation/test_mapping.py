"""Losses of what predicts several sources: each is replaced in its own model by its own part, one at a time."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import monosem as ms
from monosem.activations import Mapping
from monosem.data import Document, PackedText
from monosem.evaluation import EvaluationReport
from monosem.models import ModelSet, SubjectModel
from monosem.sae import SAE, SAEMetadata

TEXTS = [f"{who} went {where} and came back." for who in ("We", "They", "Anna") for where in ("home", "north")]
LAYERS = ["resid_post.0", "resid_post.2"]
RULES: dict[str, Any] = {"context_length": 16, "prepend_bos": True, "packing": True, "exclude_special": True}


@pytest.fixture(scope="module")
def models(make_gpt2: Callable[..., nn.Module], letter_tokenizer: type) -> list[SubjectModel]:
    made = (make_gpt2(vocabulary=128, width=16, seed=seed) for seed in (0, 1))
    return [SubjectModel(module, letter_tokenizer(), name) for module, name in zip(made, ("base", "chat"), strict=True)]


def perfect(**known: Any) -> ms.Crosscoder:
    """A crosscoder of two sources that reconstructs everything."""
    sae = ms.Crosscoder(16, 64, n_sources=2, sparsity="l1", transform="none")
    with torch.no_grad():
        sae.W_enc.copy_(torch.cat([torch.eye(32), -torch.eye(32)]))
        sae.W_dec.copy_(sae.W_enc)
    sae.metadata = SAEMetadata(**RULES, **known)
    return sae


def measured(sae: SAE, model: SubjectModel | ModelSet, **options: Any) -> EvaluationReport:
    return ms.evaluate(sae, model, text=TEXTS, progress=False, **options)


def two_sources(models: list[SubjectModel], of: str) -> tuple[ms.Crosscoder, SubjectModel | ModelSet, list[str]]:
    """A perfect crosscoder of two layers, or of two models, and the names of its sources."""
    if of == "layers":
        return perfect(hooks=LAYERS), models[0], LAYERS
    names = ["resid_post.1 of base", "resid_post.1 of chat"]
    return perfect(hook="resid_post.1", models=["base", "chat"]), ModelSet(models), names


@pytest.mark.parametrize("of", ["layers", "models"])
def test_what_reconstructs_everything_recovers_all_and_the_mean_nothing(models: list[SubjectModel], of: str) -> None:
    sae, model, sources = two_sources(models, of)
    report = measured(sae, model)
    own = [f"loss_recovered_{ablation} at {source}" for ablation in ("mean", "zero") for source in sources]
    for metric in ("loss_recovered_mean", "loss_recovered_zero", *own):
        assert report[metric].value == pytest.approx(1, abs=1e-5)
        if "zero" not in metric:
            assert report.columns["mean"][metric].value == 0
    assert report["ce"].value == pytest.approx(report.facts["ce_clean"], rel=1e-5)
    assert report.facts["sources"] == 2


@pytest.mark.parametrize("of", ["layers", "models"])
@pytest.mark.parametrize("silent", [0, 1])
def test_each_source_is_replaced_by_its_own_part_in_its_own_model(
    models: list[SubjectModel], of: str, silent: int
) -> None:
    sae, model, sources = two_sources(models, of)
    with torch.no_grad():
        sae.decoder_of(silent).zero_()
    report = measured(sae, model, controls=False)
    for source, name in enumerate(sources):
        expected = 0 if source == silent else 1
        assert report[f"loss_recovered_zero at {name}"].value == pytest.approx(expected, abs=1e-5)
    assert report["loss_recovered_zero"].value == pytest.approx(0.5, abs=1e-5)
    mean, *own = (report[f"loss_recovered_mean{at}"] for at in ("", *(f" at {name}" for name in sources)))
    assert mean.value == pytest.approx(sum(interval.value for interval in own) / 2)
    assert mean.low is not None
    assert mean.high is not None
    assert mean.low < mean.value < mean.high


def by_hand(sae: SAE, model: SubjectModel, reads: list[str], predicts: list[str]) -> list[dict[str, float]]:
    """Clean loss, and loss with one hook point replaced, at each: one context at a time, by plain hooks."""
    contexts = PackedText([Document(t) for t in TEXTS], model.tokenizer, 16).read(0, 1000)
    losses: list[dict[str, list[Tensor]]] = [{"clean": [], "SAE": [], "zero": []} for _ in predicts]
    for tokens, special, padding in zip(contexts.tokens, contexts.special, contexts.padding, strict=True):
        captured = model.capture(tokens[None], reads)
        kept = ~special & ~padding
        rebuilt = sae(torch.stack([captured[hook][0][kept] for hook in reads], 1)).reconstruction
        counted = kept[:-1] & ~padding[1:]
        for number, hook in enumerate(predicts):
            module = model.module.get_submodule(model.hook_point(hook).path)
            for name, part in (("clean", None), ("SAE", rebuilt[:, number]), ("zero", torch.zeros(1))):

                def change(_m: Any, _a: Any, out: Any, part: Tensor | None = part, kept: Tensor = kept) -> Any:
                    whole = out if isinstance(out, Tensor) else out[0]
                    if part is None:
                        return out
                    new = whole.clone()
                    new[0, kept] = part
                    return new if isinstance(out, Tensor) else (new, *out[1:])

                handle = module.register_forward_hook(change)
                with torch.no_grad():
                    logits = model.module(tokens[None]).logits[0, :-1]
                handle.remove()
                losses[number][name].append(F.cross_entropy(logits, tokens[1:], reduction="none")[counted])
    return [{name: torch.cat(parts).double().mean().item() for name, parts in own.items()} for own in losses]


@pytest.mark.parametrize("kind", ["crosscoder", "cross_layer_transcoder"])
def test_losses_are_those_of_plain_hooks(models: list[SubjectModel], kind: str) -> None:
    generator = torch.Generator().manual_seed(0)
    if kind == "crosscoder":
        sae, reads, predicts = ms.Crosscoder(16, 48, n_sources=2, k=6), LAYERS, LAYERS
        sae.metadata = SAEMetadata(hooks=LAYERS, **RULES)
    else:
        sae = ms.CrossLayerTranscoder(16, 48, n_layers=2, k=6)
        reads, predicts = ["mlp_in.0", "mlp_in.2"], ["mlp_out.0", "mlp_out.2"]
        sae.metadata = SAEMetadata(hooks=reads, target_hooks=predicts, **RULES)
    with torch.no_grad():
        sae.threshold.fill_(0.1)
        for parameter in (sae.b_enc, sae.b_dec):
            parameter.copy_(0.1 * torch.randn(parameter.shape, generator=generator))
    report, expected = measured(sae, models[0], controls=False), by_hand(sae, models[0], reads, predicts)
    recovered: list[float] = []
    for hook, losses in zip(predicts, expected, strict=True):
        recovered.append((losses["zero"] - losses["SAE"]) / (losses["zero"] - losses["clean"]))
        assert report[f"loss_recovered_zero at {hook}"].value == pytest.approx(recovered[-1], rel=1e-3, abs=1e-4)
    assert report["loss_recovered_zero"].value == pytest.approx(sum(recovered) / 2, rel=1e-3, abs=1e-4)
    assert report["ce"].value == pytest.approx(sum(losses["SAE"] for losses in expected) / 2, rel=1e-4)
    assert report.facts["ce_clean"] == pytest.approx(expected[0]["clean"], rel=1e-4)


def test_the_table_shows_every_source_under_the_mean(models: list[SubjectModel], tmp_path: Any) -> None:
    report = measured(perfect(hooks=LAYERS), models[0])
    lines = [line.strip() for line in str(report).splitlines()]
    first = next(i for i, line in enumerate(lines) if line.startswith("loss recovered (mean)"))
    for line, start in zip(lines[first + 1 :], [*(f"at {hook}" for hook in LAYERS), "loss recovered"], strict=False):
        assert line.startswith(start)
    assert "means over 2 sources, replaced one at a time" in str(report)
    report.save(tmp_path / "evaluation.json")
    assert EvaluationReport.load(tmp_path / "evaluation.json").columns == report.columns


def test_a_model_that_predicts_nothing_leaves_the_losses_out(models: list[SubjectModel]) -> None:
    bare = [SubjectModel(model.module.get_submodule("transformer"), model.tokenizer, model.name) for model in models]
    report = measured(perfect(hook="resid_post.1", models=["base", "chat"]), ModelSet(bare), controls=False)
    assert report["fvu"].value == 0
    assert "loss_recovered_mean" not in report.metrics
    half = measured(perfect(hook="resid_post.1", models=["base", "chat"]), ModelSet([bare[0], models[1]]))
    assert half.facts["sources"] == 1
    assert half["loss_recovered_mean"].value == half["loss_recovered_mean at resid_post.1 of chat"].value


def test_rows_that_were_extreme_in_one_of_the_models_are_left_out(models: list[SubjectModel]) -> None:
    both, sae = ModelSet(models), perfect(hook="resid_post.1", models=["base", "chat"])
    batch = PackedText([Document(t) for t in TEXTS], both.tokenizer, 16).read(0, 4)
    norms = both.capture(batch.inputs, ["resid_post.1"])["resid_post.1"].norm(dim=-1)
    limits = {"base": norms[..., 0].median().item(), "chat": norms[..., 1].median().item()}
    for names in (["base"], ["chat"], ["base", "chat"]):
        sae.metadata = sae.metadata.model_copy(update={"max_norm": {f"resid_post.1 of {n}": limits[n] for n in names}})
        _, _, kept = Mapping(sae, both).read(batch)
        expected = ~batch.special & ~batch.padding
        for name in names:
            expected &= norms[..., ["base", "chat"].index(name)] <= limits[name]
        assert torch.equal(kept, expected)
        assert 0 < kept.sum() < (~batch.special & ~batch.padding).sum()


def test_a_wrong_hook_is_said_of_several_sources_and_of_what_predicts_another_place(models: list[SubjectModel]) -> None:
    """As of a plain SAE, and not where all is as in training."""
    both = ModelSet(models)
    for sae, model in (
        (perfect(hooks=LAYERS), models[0]),
        (perfect(hook="resid_post.1", models=["base", "chat"]), both),
        (transcoder := ms.Transcoder(16, 48, k=6), models[0]),
    ):
        if sae is transcoder:
            sae.metadata = SAEMetadata(hook="mlp_in.0", target_hook="mlp_out.0", **RULES)
        options: dict[str, Any] = {"loss_tokens": 0, "tokens": 32, "controls": False}
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            measured(sae, model, **options)
        if sae.metadata.hook:
            with pytest.warns(UserWarning, match=f"trained at {sae.metadata.hook}, not at resid_post.0"):
                measured(sae, model, hook="resid_post.0", **options)
        assert ms.check(sae, model).problems == []
    wrong = ms.check(perfect(hooks=LAYERS), models[0], ["resid_post.0", "resid_post.1"])
    assert wrong.problems == ["the SAE was trained at resid_post.0 + resid_post.2, not at resid_post.0 + resid_post.1"]
    same = ms.check(perfect(hooks=LAYERS), models[0], ["resid_pre.1", "resid_post.2"])
    assert same.problems == []
