"""evaluate: one pass over held-out text for every metric and every control."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Bool, Float
from rich.console import Console
from rich.progress import track
from torch import Tensor

from monosem.codes import SparseCodes
from monosem.data import ContextBatch, PackedText, kept_positions, read_documents
from monosem.errors import ConfigError, DataError, MismatchError
from monosem.evaluation.controls import PCA, random_sae
from monosem.evaluation.intervals import Interval
from monosem.evaluation.language import LanguageLoss
from monosem.evaluation.mapping import Mapping, is_mapping, measure_mapping
from monosem.evaluation.reconstruction import Reconstruction
from monosem.evaluation.report import EvaluationReport
from monosem.models import ModelSet, SubjectModel, load_model
from monosem.sae import SAE

Observer = Callable[[ContextBatch, Bool[Tensor, "contexts pos"], SparseCodes, Float[Tensor, "rows d_in"]], None]
"""Called for every batch with the contexts, the positions that the SAE reads, their codes and their activations."""

CONTEXTS_A_PASS = 16
FIT_TOKENS = 32_768
VECTOR_ROWS = 8192


@torch.no_grad()
def evaluate(
    sae: SAE,
    model: SubjectModel | ModelSet | Tensor | np.ndarray | None = None,
    hook: str | None = None,
    *,
    text: str | Path | Sequence[str] | None = None,
    tokens: int = 500_000,
    loss_tokens: int = 65_536,
    controls: bool = True,
    observers: Sequence[Observer] = (),
    progress: bool = True,
) -> EvaluationReport:
    """Measure an SAE on text that it was not trained on, beside its controls.

    Reconstruction (L0, FVU, explained variance, cosine, norm ratio), dead latents and firing rates on `tokens` tokens;
    on the first `loss_tokens` of them also the model's cross-entropy clean, spliced and ablated, and KL. Intervals are
    95 % bootstrap intervals over documents. Controls: predicting the mean, PCA with k = mean L0 components, and a
    frozen random SAE.

    A transcoder is measured by what it predicts; what reads several hook points or models side by side, by all of them
    together and without losses.

    Args:
        sae: the SAE.
        model: the subject model (several for a crosscoder of models), or ready activations (rows, d_in); the SAE's own
            model if not given.
        hook: name of the hook point; the SAE's own if not given.
        text: what to read; the bundled held-out text if not given and the SAE was trained on the bundled text.
        tokens: tokens to read, at most; the text is read once.
        loss_tokens: tokens for the losses; 0 leaves them out.
        controls: measure them too.
        observers: called with the codes of every batch, so that one pass serves all.
        progress: show a bar.

    Raises:
        ConfigError: what the SAE does not know was not given, or tokens is not positive.
        MismatchError: the model's activations have another width, or its context is too short.
        DataError: the text is empty.
    """
    if tokens < 1:
        raise ConfigError(f"tokens must be at least 1, got {tokens}")
    if isinstance(model, np.ndarray):
        model = torch.from_numpy(np.array(model[:tokens]))  # a copy: a mapped file cannot be written to
    if isinstance(model, Tensor):
        return _evaluate_vectors(sae, model, tokens, controls)
    given, (model, hook, text) = hook, _fill_in(sae, model, hook, text)
    if isinstance(model, ModelSet) or is_mapping(sae):
        sums, facts = measure_mapping(
            Mapping(sae, model, given),
            text,
            tokens=tokens,
            loss_tokens=loss_tokens,
            controls=controls,
            observers=observers,
            progress=progress,
        )
        return _report(sae, sums.parts, sums.controls, facts, sums.loss if sums.n_predictions else None)
    contexts = _contexts(sae, model, text)
    name = str(text) if isinstance(text, str | Path) else f"{len(text)} texts"
    n_contexts = -(-tokens // contexts.context_length)
    first, kept = _read(sae, contexts, 0, min(n_contexts, max(1, FIT_TOKENS // contexts.context_length)))
    sample, _ = _rows(sae, model, hook, first, kept)
    if sample.shape[1] != sae.d_in:
        raise MismatchError(
            f"the SAE reads width {sae.d_in}, {hook} of {model.name} has width {sample.shape[1]}: choose another hook"
        )
    l0 = max(1, round(sae.encode(sample[:4096]).l0().double().mean().item()))
    functions = _controls(sae, sample, l0) if controls else {"mean": _constant(sample.mean(0))}
    parts = {column: Reconstruction(sample.mean(0)) for column in ("SAE", *functions)}
    loss = LanguageLoss(model, hook, {"SAE": lambda x: sae(x).reconstruction, "zero": torch.zeros_like, **functions})
    steps = range(0, n_contexts, CONTEXTS_A_PASS)
    bar = Console(stderr=True)
    for start in track(steps, "evaluating", transient=True, console=bar, disable=not progress or not bar.is_terminal):
        batch, kept = _read(sae, contexts, start, min(start + CONTEXTS_A_PASS, n_contexts))
        if not len(batch):
            break
        x, kept = _rows(sae, model, hook, batch, kept)
        codes = sae.encode(x)
        documents = batch.document[kept]
        for column, part in parts.items():
            rebuilt = sae.decode(codes, x) if column == "SAE" else functions[column](x)
            part.add(x, rebuilt, documents, codes if column == "SAE" else None)
        for observer in observers:
            observer(batch, kept, codes, x)
        if loss.n_predictions < loss_tokens:
            loss.add(batch, kept)
    facts: dict[str, str | int | float] = {"model": model.name, "hook": hook, "data": name}
    return _report(sae, parts, functions, facts, loss if loss.n_predictions else None)


def _evaluate_vectors(sae: SAE, x: Tensor, tokens: int, controls: bool) -> EvaluationReport:
    """Rows are their own documents."""
    if x.ndim != 2 or x.shape[1] != sae.d_in:
        raise MismatchError(f"the SAE reads rows of width {sae.d_in}, got activations of shape {tuple(x.shape)}")
    x = x[:tokens].to(sae.W_enc.device, torch.float32)
    if not len(x):
        raise DataError("there are no rows to evaluate on")
    l0 = max(1, round(sae.encode(x[:4096]).l0().double().mean().item()))
    functions = _controls(sae, x[:FIT_TOKENS], l0) if controls else {}
    parts = {column: Reconstruction(x[:FIT_TOKENS].mean(0)) for column in ("SAE", *functions)}
    for number, rows in enumerate(x.split(VECTOR_ROWS)):
        documents = torch.arange(len(rows)) + number * VECTOR_ROWS
        codes = sae.encode(rows)
        for column, part in parts.items():
            rebuilt = sae.decode(codes, rows) if column == "SAE" else functions[column](rows)
            part.add(rows, rebuilt, documents, codes if column == "SAE" else None)
    return _report(sae, parts, functions, {"data": "the rows given"}, None)


def _fill_in(
    sae: SAE, model: SubjectModel | ModelSet | None, hook: str | None, text: str | Path | Sequence[str] | None
) -> tuple[SubjectModel | ModelSet, str, str | Path | Sequence[str]]:
    known = sae.metadata
    if model is None:
        if known.model is None and not known.models:
            raise ConfigError("this SAE does not know its model: evaluate(sae, model, hook)")
        own = [load_model(name) for name in known.models or [known.model or ""]]
        model = ModelSet(own) if known.models else own[0]
    hook = hook or known.hook or (known.hooks or [None])[0]
    if hook is None:
        raise ConfigError("this SAE does not know its hook point: evaluate(sae, model, 'resid_post.2')")
    if text is None:
        if known.text is not None and known.text.partition(":")[0] != "bundled":
            raise ConfigError(f"the SAE was trained on {known.text}: name a held-out text, evaluate(sae, text=...)")
        text = "bundled:held_out"
    return model, model.hook_point(hook).name, text


def _contexts(sae: SAE, model: SubjectModel, text: str | Path | Sequence[str]) -> PackedText:
    if model.tokenizer is None:
        raise DataError(f"{model.name} has no tokenizer to read text with")
    known = sae.metadata
    length = known.context_length or min(model.context_length or 1024, 1024)
    if model.context_length is not None and length > model.context_length:
        raise MismatchError(
            f"the SAE reads contexts of {length} tokens, {model.name} has a context of {model.context_length}"
        )
    bos = known.prepend_bos if known.prepend_bos is not None else model.tokenizer.bos_token_id is not None
    packing = known.packing is not False
    return PackedText(read_documents(text), model.tokenizer, length, prepend_bos=bos, packing=packing)


def _read(sae: SAE, contexts: PackedText, start: int, stop: int) -> tuple[ContextBatch, Bool[Tensor, "contexts pos"]]:
    """Contexts, and the positions that the SAE reads."""
    batch, known = contexts.read(start, stop), sae.metadata
    return batch, kept_positions(
        batch,
        exclude_special=known.exclude_special is not False,
        skip_first=known.skip_first or 0,
        last_only=bool(known.last_only),
    )


def _rows(
    sae: SAE, model: SubjectModel, hook: str, batch: ContextBatch, kept: Bool[Tensor, "contexts pos"]
) -> tuple[Float[Tensor, "rows d"], Bool[Tensor, "contexts pos"]]:
    """Activations at the positions kept, without those of a norm that was left out of training, and which these are."""
    x = model.capture(batch.inputs, [hook])[hook].to(torch.float32)
    limit = (sae.metadata.max_norm or {}).get(hook)
    if limit is not None:
        kept = kept & (x.norm(dim=-1) <= limit).cpu()
    return x[kept.to(x.device)], kept


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
    loss: LanguageLoss | None,
) -> EvaluationReport:
    columns: dict[str, dict[str, Interval]] = {}
    for name, part in parts.items():
        columns[name] = part.metrics()
        if loss is not None:
            columns[name] |= loss.metrics(name)
    pca = functions.get("PCA")
    if isinstance(pca, PCA):
        columns["PCA"]["l0"] = Interval(pca.k)
    main = parts["SAE"]
    facts = {**facts, "rows": main.n_rows, "architecture": sae.architecture, "n_latents": sae.n_latents}
    if loss is not None:
        facts |= {"predictions": loss.n_predictions, "ce_clean": loss.clean().value}
        facts |= {"ce_zero": loss.metrics("zero")["ce"].value, "ce_mean": loss.metrics("mean")["ce"].value}
    firing = main.firing if main.firing is not None else torch.zeros(sae.n_latents)
    return EvaluationReport(columns, facts, firing.numpy() / main.n_rows, main.l0_counts)
