"""evaluate: one pass over held-out text for every dictionary, every metric and every control."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from monosem.activations import ActivationSource, PlantedActivations, models_of
from monosem.arguments import NotNegative, Positive, checked
from monosem.codes import SparseCodes
from monosem.data import Batch
from monosem.data.documents import Text
from monosem.errors import ConfigError
from monosem.evaluation.controls import PCA, fit_controls
from monosem.evaluation.downstream import LOSSES
from monosem.evaluation.going_on import Keeping
from monosem.evaluation.last_word import require_passages
from monosem.evaluation.losses import Losses
from monosem.evaluation.metric import Column, Dictionary, Metric, Seen
from monosem.evaluation.model_reading import ModelReading
from monosem.evaluation.reconstruction import Reconstruction
from monosem.evaluation.report import EvaluationReport
from monosem.evaluation.suites import extras_of, metrics_of, of_dictionary
from monosem.evaluation.survey import Suite, Survey
from monosem.evaluation.truth import Planted
from monosem.evaluation.untrained import tokens_to_come
from monosem.evaluation.vectors import VectorReading
from monosem.intervals import Interval
from monosem.models import ModelSet, SubjectModel, load_model
from monosem.ranks import everyone
from monosem.sae import SAE
from monosem.sae.identity import dictionary_hash
from monosem.synthetic import is_world
from monosem.work import as_job, doing, each, job, stage

Observer = Callable[[Batch, Bool[Tensor, "contexts pos"], SparseCodes, Float[Tensor, "rows d_in"]], None]
"""Called for every batch with the contexts, the positions that the SAE reads, their codes and their activations."""

FIT_TOKENS = 32_768
"""Rows to which controls are fitted."""


@checked
@as_job
@torch.no_grad()
def evaluate(
    sae: SAE | Mapping[str, SAE] | Sequence[SAE],
    model: SubjectModel | ModelSet | ActivationSource | Planted | Tensor | np.ndarray | None = None,
    hook: str | Sequence[str] | None = None,
    *,
    suite: Suite = "core",
    target: Tensor | np.ndarray | None = None,
    text: Text | None = None,
    images: Any = None,
    labels: Any = None,
    tokens: Positive = 500_000,
    loss_tokens: NotNegative = 65_536,
    controls: bool = True,
    observers: Sequence[Observer] = (),
    last_words: str | Path | None = None,
    untrained_tokens: Positive | None = None,
    keep: str | Path | None = None,
    minutes: float = 2.0,
    progress: bool = True,
) -> EvaluationReport:
    """Measure SAEs on text or images that they were not trained on, beside their controls.

    Reconstruction (L0, FVU, explained variance, cosine, norm ratio), dead latents and firing rates on `tokens` tokens;
    on the first `loss_tokens` of them also the model's loss clean, spliced and ablated, and KL: cross-entropy of the
    next token, of the labels of images, or where there is nothing to predict, KL from its own output. Intervals are
    95 % bootstrap intervals over documents or images. Controls: predicting the mean, PCA with k = mean L0
    components, as many raw neurons, and a frozen random SAE.

    Several SAEs of one place share the pass and the controls; each has a column, and all are measured on the positions
    that every one of them reads.

    A transcoder is measured by what it predicts; what predicts several hook points or models side by side, by all of
    them together. Its losses are means over them: each is replaced in its own model by its part of the reconstruction,
    one at a time.

    Args:
        sae: the SAE, or several, by name.
        model: the subject model (several for a crosscoder of models), or ready activations, (rows, d_in) or, of several
            sources, (rows, source, d_in); or a source of activations, such as a store, whose first rows are read; or a
            generator with known truth (`ms.SynthSAEBench`), against which SAEs are measured too; the SAE's own model or
            synthetic world if not given.
        hook: name of the hook point; the SAE's own if not given.
        suite: "core", what one pass of the model says; "full", all that is known of a dictionary.
        target: of ready activations those that a transcoder must predict, (rows, d_out) or (rows, layer, d_out).
        text: what to read; the bundled held-out text if not given and the SAE was trained on the bundled text.
        images: what to read in place of text: what `Images` takes.
        labels: one integer an image, where the images come without.
        tokens: tokens (or positions of images) to measure: rows that the SAE reads, at most one context more; the text
            is read once.
        loss_tokens: tokens for the losses; 0 leaves them out.
        controls: measure them too.
        observers: called with the codes of the first SAE of every batch, so that one pass serves all.
        last_words: a file of passages whose last word is to be guessed (LAMBADA), one a line, or with a key "text".
        untrained_tokens: of "full", on how many the SAE of the untrained model is trained; if not given, as many as the
            SAE, but at most 300,000, and fewer of a large model.
        keep: a folder in which the states of all passes are kept every few `minutes`; the same call goes on from it,
            with any number of processes, to the same numbers. It goes when all is done.
        minutes: between saves.
        progress: show where it is.

    Raises:
        ConfigError: what the SAE does not know was not given, or tokens is not positive.
        MismatchError: the model's activations have another width, its tokenizer another vocabulary, or its context is
            too short; or several SAEs cannot share a pass.
        DataError: the text is empty.
    """
    saes = named(sae)
    drawn = next(iter(saes.values())).metadata.vectors if model is None else None
    if drawn is not None and is_world(drawn):
        model = PlantedActivations(drawn)
    if isinstance(model, PlantedActivations):
        drawn, model = model.name, model.planted
    reading: VectorReading | ModelReading
    facts: dict[str, str | int | float]
    if isinstance(model, Planted):
        reading = VectorReading.of_planted(next(iter(saes.values())), model, tokens)
        facts = {"data": drawn or type(model).__name__}
    elif isinstance(model, ActivationSource | Tensor | np.ndarray):
        reading = _vectors(saes, model, target, tokens)
        data = model.words if isinstance(model, ActivationSource) else "the rows given"
        facts = {"data": data}
    else:
        if target is not None:
            raise ConfigError("target goes with ready rows, evaluate(sae, x, target=y): with a model it is read there")
        first = next(iter(saes.values()))
        model, text = _fill_in(first, model, hook, text, images)
        reading = ModelReading(saes, model, hook, tokens, text=text, images=images, labels=labels)
        facts = reading.facts
    if last_words is not None:
        require_passages(last_words, loss_tokens)
    with doing("reading a sample"):
        x, wanted = reading.sample(FIT_TOKENS)
    with doing("fitting controls"):
        columns: dict[str, Column] = {name: Dictionary(one) for name, one in saes.items()}
        columns |= fit_controls(saes, x, wanted, controls)
    losses: Losses | None = None
    if isinstance(reading, ModelReading) and loss_tokens:
        sources = reading.first.predicted
        losses = Losses(sources, list(columns), reading.contexts, reading.known, min(loss_tokens, tokens))
        reading.losses = losses
    planted = model if isinstance(model, Planted) else None
    survey = Survey(
        saes, columns, reading, x, wanted, losses, last_words, tokens, loss_tokens, untrained_tokens, planted
    )
    metrics = metrics_of(survey, suite)
    keeper = None
    if keep is not None and isinstance(reading, ModelReading):
        about = {**facts, "tokens": tokens, "loss_tokens": loss_tokens, "suite": suite, "columns": list(columns)}
        about["dictionaries"] = [dictionary_hash(one) for one in saes.values()]
        about["model"] = [one.fingerprint() for one in models_of(reading.model)]
        if untrained_tokens is not None:
            about["untrained_tokens"] = untrained_tokens
        about["last_words"] = None if last_words is None else str(last_words)
        survey.keeping = Keeping(keep, about, minutes)
        keeper = survey.keeping.keeper("pass", metrics, observers)
    if suite == "full":
        with job() as shown:
            shown.expect("training", tokens_to_come(survey))
    losing = stage(LOSSES, min(loss_tokens, tokens) if losses else 0, unit="tokens")
    if losses:
        losses.work = losing
    with keeper.request if keeper else nullcontext():
        for seen in reading.seen(columns, keeper):
            _tell(observers, seen, next(iter(saes)))
            for metric in metrics:
                metric.add(seen)
    losing.close()
    if keeper and (suite == "full" or last_words):  # more is to come
        keeper.save()
    for metric in metrics:
        metric.add_up(everyone())
    report = _report(survey, metrics, facts, suite)
    if survey.keeping:
        survey.keeping.forget()
    return report


def named(sae: SAE | Mapping[str, SAE] | Sequence[SAE]) -> dict[str, SAE]:
    """SAEs by name: one is "SAE"; of several without names, "SAE 1" and so on.

    Raises:
        ConfigError: there is none, or one has the name of a control.
    """
    if isinstance(sae, SAE):
        return {"SAE": sae}
    saes = dict(sae) if isinstance(sae, Mapping) else {f"SAE {number}": one for number, one in enumerate(sae, 1)}
    if not saes:
        raise ConfigError("there is no SAE to evaluate")
    for name in ("mean", "zero", "clean", "PCA", "neurons", "random"):
        if name in saes:
            raise ConfigError(f"an SAE cannot be called {name!r}: that is the name of a control")
    return saes


def _vectors(
    saes: Mapping[str, SAE],
    model: ActivationSource | Tensor | np.ndarray,
    target: Tensor | np.ndarray | None,
    tokens: int,
) -> VectorReading:
    first = next(iter(saes.values()))
    if isinstance(model, ActivationSource):
        return VectorReading.of_source(first, model, tokens)
    return VectorReading.of(first, model, target, tokens)


def _fill_in(
    sae: SAE, model: SubjectModel | ModelSet | None, hook: Any, text: Text | None, images: Any
) -> tuple[SubjectModel | ModelSet, Text | None]:
    known = sae.metadata
    if model is None:
        if known.model is None and not known.models:
            raise ConfigError("this SAE does not know its model: evaluate(sae, model, hook)")
        own = [load_model(name) for name in known.models or [known.model or ""]]
        model = ModelSet(own) if known.models else own[0]
    if not (hook or known.hook or known.hooks):
        raise ConfigError("this SAE does not know its hook point: evaluate(sae, model, 'resid_post.2')")
    if text is None and images is None:
        for name, what, data in (("images", "other images", known.images), ("text", "a held-out text", known.text)):
            if data is not None and data.partition(":")[0] != "bundled":
                raise ConfigError(f"the SAE was trained on {data}: name {what}, evaluate(sae, {name}=...)")
        text = "bundled:held_out"
    return model, text


def _tell(observers: Sequence[Observer], seen: Seen, first: str) -> None:
    """Show a batch to the observers; those with a method `at` also learn where in the data it begins."""
    if not observers:
        return
    codes = seen.codes(first)
    assert codes is not None
    assert seen.batch is not None
    assert seen.kept is not None
    for observer in observers:
        if seen.start < getattr(observer, "next_context", 0):
            continue
        at = getattr(observer, "at", None)
        if at is not None:
            at(seen.start)
        observer(seen.batch, seen.kept, codes, seen.x)


def _report(
    survey: Survey, metrics: Sequence[Metric], facts: dict[str, str | int | float], suite: Suite
) -> EvaluationReport:
    columns: dict[str, dict[str, Interval]] = {}
    for name in each("computing intervals", list(survey.columns), unit=""):
        columns[name] = {key: value for metric in metrics for key, value in metric.result(name).items()}
    for name, sae in survey.saes.items():
        columns[name] |= of_dictionary(sae, suite)
    tables = {
        name: {key: table for metric in metrics for key, table in metric.tables(name).items()}
        for name in survey.columns
    }
    notes = {key: note for metric in metrics for key, note in metric.notes().items()}
    for extra in extras_of(survey, suite):
        notes |= extra.notes
        facts |= extra.facts
        for name, found in extra.columns.items():
            columns.setdefault(name, {}).update(found)
        for name, found in extra.tables.items():
            tables.setdefault(name, {}).update(found)
    pca = survey.columns.get("PCA")
    if isinstance(pca, PCA):
        columns["PCA"]["l0"] = Interval(pca.k)
    main = next(metric for metric in metrics if isinstance(metric, Reconstruction))
    first = next(iter(survey.saes.values()))
    facts = {**facts, "rows": main.n_rows, "architecture": first.architecture, "n_latents": first.n_latents}
    for metric in metrics:
        facts |= metric.facts()
    return EvaluationReport(
        columns,
        facts,
        {name: main.firing_rates(name) for name in survey.saes},
        {name: main.l0_counts(name) for name in survey.saes},
        notes=notes,
        tables=tables,
    )
