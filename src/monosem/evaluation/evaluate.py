"""evaluate: one pass over held-out text for every metric and every control."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from monosem.activations import (
    ActivationSource,
    Mapping,
    Reading,
    Wanted,
    is_mapping,
    join,
    reopened,
    rows_a_context,
)
from monosem.codes import SparseCodes
from monosem.data import Batch
from monosem.data.documents import Text
from monosem.errors import ConfigError
from monosem.evaluation.controls import PCA
from monosem.evaluation.downstream import LOSSES, DownstreamLoss
from monosem.evaluation.losses import add_losses, downstream_loss, share_of
from monosem.evaluation.mapping import measure_mapping
from monosem.evaluation.progress import measured, tell_place
from monosem.evaluation.reconstruction import Reconstruction
from monosem.evaluation.report import EvaluationReport
from monosem.evaluation.sources import SourceLosses
from monosem.evaluation.vectors import measure_rows, measure_source
from monosem.intervals import Interval
from monosem.models import ModelSet, SubjectModel, load_model
from monosem.ranks import everyone
from monosem.sae import SAE
from monosem.sae.control import random_sae
from monosem.work import as_job, doing, each, stage

Observer = Callable[[Batch, Bool[Tensor, "contexts pos"], SparseCodes, Float[Tensor, "rows d_in"]], None]
"""Called for every batch with the contexts, the positions that the SAE reads, their codes and their activations."""

FIT_TOKENS = 32_768


@as_job
@torch.no_grad()
def evaluate(
    sae: SAE,
    model: SubjectModel | ModelSet | ActivationSource | Tensor | np.ndarray | None = None,
    hook: str | None = None,
    *,
    target: Tensor | np.ndarray | None = None,
    text: Text | None = None,
    images: Any = None,
    labels: Any = None,
    tokens: int = 500_000,
    loss_tokens: int = 65_536,
    controls: bool = True,
    observers: Sequence[Observer] = (),
    progress: bool = True,
) -> EvaluationReport:
    """Measure an SAE on text or images that it was not trained on, beside its controls.

    Reconstruction (L0, FVU, explained variance, cosine, norm ratio), dead latents and firing rates on `tokens` tokens;
    on the first `loss_tokens` of them also the model's loss clean, spliced and ablated, and KL: cross-entropy of the
    next token, of the labels of images, or where there is nothing to predict, KL from its own output. Intervals are
    95 % bootstrap intervals over documents or images. Controls: predicting the mean, PCA with k = mean L0
    components, and a frozen random SAE.

    A transcoder is measured by what it predicts; what predicts several hook points or models side by side, by all of
    them together. Its losses are means over them: each is replaced in its own model by its part of the reconstruction,
    one at a time.

    Args:
        sae: the SAE.
        model: the subject model (several for a crosscoder of models), or ready activations, (rows, d_in) or, of several
            sources, (rows, source, d_in); or a source of activations, such as a store, whose first rows are read; the
            SAE's own model if not given.
        hook: name of the hook point; the SAE's own if not given.
        target: of ready activations those that a transcoder must predict, (rows, d_out) or (rows, layer, d_out).
        text: what to read; the bundled held-out text if not given and the SAE was trained on the bundled text.
        images: what to read in place of text: what `Images` takes.
        labels: one integer an image, where the images come without.
        tokens: tokens (or positions of images) to measure: rows that the SAE reads, at most one context more; the text
            is read once.
        loss_tokens: tokens for the losses; 0 leaves them out.
        controls: measure them too.
        observers: called with the codes of every batch, so that one pass serves all.
        progress: show where it is.

    Raises:
        ConfigError: what the SAE does not know was not given, or tokens is not positive.
        MismatchError: the model's activations have another width, its tokenizer another vocabulary, or its context is
            too short.
        DataError: the text is empty.
    """
    if tokens < 1:
        raise ConfigError(f"tokens must be at least 1, got {tokens}")
    if isinstance(model, ActivationSource | Tensor | np.ndarray):
        if isinstance(model, ActivationSource):
            sums, data = measure_source(sae, model, tokens, controls), model.words
        else:
            sums, data = measure_rows(sae, model, target, tokens, controls), "the rows given"
        return _report(sae, sums.parts, {} if sums.pca is None else {"PCA": sums.pca}, {"data": data}, None)
    if target is not None:
        raise ConfigError("target goes with ready rows, evaluate(sae, x, target=y): with a model it is read there")
    given, (model, hook, text) = hook, _fill_in(sae, model, hook, text, images)
    if isinstance(model, ModelSet) or is_mapping(sae):
        mapping = Mapping(sae, model, given)
        join(sae, model, mapping.hooks)
        sums, facts = measure_mapping(
            mapping,
            {"text": text, "images": images, "labels": labels},
            tokens=tokens,
            loss_tokens=loss_tokens,
            controls=controls,
            observers=observers,
        )
        return _report(sae, sums.parts, sums.controls, facts, sums.loss if sums.n_predictions else None)
    join(sae, model, hook)
    contexts, name = reopened(sae.metadata, model, hook, text=text, images=images, labels=labels)
    rows_a_context(contexts, sae.metadata)
    wanted = [Wanted(sae.metadata, [hook])]
    with doing("reading a sample"):
        first = Reading(model, contexts, wanted, min(tokens, FIT_TOKENS))
        sample = torch.cat([piece.found[0].rows[hook] for piece in first])
    l0 = max(1, round(sae.encode(sample[:4096]).l0().double().mean().item()))
    with doing("fitting controls"):
        functions = _controls(sae, sample, l0) if controls else {"mean": _constant(sample.mean(0))}
    every = everyone()
    parts = {column: Reconstruction(sample.mean(0)) for column in ("SAE", *functions)}
    replacements = {"SAE": lambda x: sae(x).reconstruction, "zero": torch.zeros_like, **functions}
    loss = downstream_loss(model, hook, replacements, contexts) if loss_tokens else None
    losing = stage(LOSSES, 0 if loss is None else min(loss_tokens, tokens), unit="tokens")
    for piece in measured(Reading(model, contexts, wanted, tokens)):
        batch, x, kept = piece.batch, piece.found[0].rows[hook], piece.found[0].kept
        codes = sae.encode(x)
        documents = batch.document[kept]
        for column, part in parts.items():
            rebuilt = sae.decode(codes, x) if column == "SAE" else functions[column](x)
            part.add(x, rebuilt, documents, codes if column == "SAE" else None)
        for observer in observers:
            tell_place(observer, piece.start)
            observer(batch, kept, codes, x)
        if loss is not None:
            with losing:
                losing.advance(every.size * add_losses(loss, batch, kept, share_of(loss_tokens, tokens)))
    losing.close()
    for part in [*parts.values(), *([loss] if loss is not None else [])]:
        part.add_up(every)
    things = "patches" if images is not None else "tokens"
    facts: dict[str, str | int | float] = {"model": model.name, "hook": hook, "data": name, "things": things}
    return _report(sae, parts, functions, facts, loss if loss is not None and loss.n_predictions else None)


def _fill_in(
    sae: SAE, model: SubjectModel | ModelSet | None, hook: str | None, text: Text | None, images: Any
) -> tuple[SubjectModel | ModelSet, str, Text | None]:
    known = sae.metadata
    if model is None:
        if known.model is None and not known.models:
            raise ConfigError("this SAE does not know its model: evaluate(sae, model, hook)")
        own = [load_model(name) for name in known.models or [known.model or ""]]
        model = ModelSet(own) if known.models else own[0]
    hook = hook or known.hook or (known.hooks or [None])[0]
    if hook is None:
        raise ConfigError("this SAE does not know its hook point: evaluate(sae, model, 'resid_post.2')")
    if text is None and images is None:
        for name, what, data in (("images", "other images", known.images), ("text", "a held-out text", known.text)):
            if data is not None and data.partition(":")[0] != "bundled":
                raise ConfigError(f"the SAE was trained on {data}: name {what}, evaluate(sae, {name}=...)")
        text = "bundled:held_out"
    return model, model.hook_point(hook).name, text


def _constant(value: Tensor) -> Callable[[Tensor], Tensor]:
    return lambda x: value.to(x).expand_as(x)


def _controls(sae: SAE, sample: Tensor, k: int) -> dict[str, Callable[[Tensor], Tensor]]:
    frozen = random_sae(sae, sample)
    return {"mean": _constant(sample.mean(0)), "PCA": PCA(sample, k), "random": lambda x: frozen(x).reconstruction}


def _report(
    sae: SAE,
    parts: dict[str, Reconstruction],
    functions: dict[str, Callable[[Tensor], Tensor]],
    facts: dict[str, str | int | float],
    loss: DownstreamLoss | SourceLosses | None,
) -> EvaluationReport:
    columns: dict[str, dict[str, Interval]] = {}
    for name, part in each("computing intervals", list(parts.items()), unit=""):
        columns[name] = part.metrics()
        if loss is not None:
            columns[name] |= loss.metrics(name)
    pca = functions.get("PCA")
    if isinstance(pca, PCA):
        columns["PCA"]["l0"] = Interval(pca.k)
    main = parts["SAE"]
    facts = {**facts, "rows": main.n_rows, "architecture": sae.architecture, "n_latents": sae.n_latents}
    if loss is not None:
        facts |= loss.facts()
    firing = main.firing if main.firing is not None else torch.zeros(sae.n_latents)
    return EvaluationReport(columns, facts, firing.numpy() / main.n_rows, main.l0_counts)
