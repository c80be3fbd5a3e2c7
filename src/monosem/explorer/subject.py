"""The model behind a dictionary: loaded when first asked for, run by one thread, while the server goes on answering."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple, Protocol, TypeVar

import numpy as np
import torch
from torch import Tensor

from monosem.activations import Wanted, join, positions_read, read_rows, reopened
from monosem.analysis import logit_weights
from monosem.codes import SparseCodes
from monosem.data import BatchReader, Document, PackedText
from monosem.errors import ConfigError, DataError, MismatchError, MonosemError
from monosem.explorer.dictionary import Dictionary, Unavailable
from monosem.explorer.shapes import (
    Abilities,
    Context,
    Histogram,
    ModelState,
    Prompt,
    PromptFeature,
    PromptToken,
    Question,
    TokenChance,
)
from monosem.explorer.targets import Asked, find_target
from monosem.features.harvest import context_kind
from monosem.features.tables import histogram_edges
from monosem.models import EditContext, SubjectModel, load_model
from monosem.models.vocabulary import Vocabulary
from monosem.sae import SAE

LIKELIEST = 10
LARGEST_TEXT = 2**28
"""Bytes of a text file that a wider context is read from: it is tokenised up to there."""
ROWS_AT_ONCE = 64
LOGIT_BINS = 60
T = TypeVar("T")


class Source(Protocol):
    """An SAE and the name of its model: a dictionary, or an SAE alone."""

    @property
    def name(self) -> str: ...
    @property
    def model_name(self) -> str | None: ...
    @property
    def hook(self) -> str | None: ...
    @property
    def index(self) -> dict[str, Any]: ...
    @property
    def can(self) -> Abilities: ...
    def sae(self) -> SAE: ...


class Pass(NamedTuple):
    """A text through model and dictionary."""

    tokens: list[int]
    truncated: int
    read: list[int]
    """Which tokens the SAE has read: the rows of the codes."""
    codes: SparseCodes
    logits: Tensor | None
    """(vocabulary,) at the last token; None where the model predicts no next token."""


class Subjects:
    """The models of some dictionaries, each loaded once; one thread runs them."""

    def __init__(self) -> None:
        self._worker = ThreadPoolExecutor(1, "model")
        self._models: dict[str, SubjectModel] = {}
        self._loading: dict[tuple[str, str], Future[None]] = {}
        """By dictionary and model."""
        self._texts: dict[tuple[str, str], BatchReader] = {}
        self._lock = threading.Lock()

    def close(self) -> None:
        """End the thread; what it has not begun is dropped."""
        self._worker.shutdown(wait=False, cancel_futures=True)

    def run(self, work: Callable[[], T]) -> Future[T]:
        """Do something on the model's thread."""
        return self._worker.submit(work)

    # The model ---------------------------------------------------------------------------------------------------

    def state(self, dictionary: Source) -> ModelState:
        """Whether a dictionary's model is loaded."""
        why_not = dictionary.can["prompt"]
        if why_not:
            return ModelState(state="none", words=why_not, chat=None, writes=None)
        loading = self._loading.get((dictionary.name, str(dictionary.model_name)))
        if loading is None:
            return ModelState(
                state="idle", words=f"{dictionary.model_name} is loaded at the first prompt", chat=None, writes=None
            )
        if not loading.done():
            return ModelState(state="loading", words=f"loading {dictionary.model_name}", chat=None, writes=None)
        error = loading.exception()
        if error:
            return ModelState(state="failed", words=str(error), chat=None, writes=None)
        model = self._models[str(dictionary.model_name)]
        chat = getattr(model.tokenizer, "chat_template", None) is not None
        return ModelState(
            state="ready", words=f"{dictionary.model_name} is loaded", chat=chat, writes=model.writes_text
        )

    def begin(self, dictionary: Source) -> ModelState:
        """Begin to load a dictionary's model; a failed one is tried again."""
        if dictionary.can["prompt"] is None:
            self._begin(dictionary, str(dictionary.model_name))
        return self.state(dictionary)

    def _begin(self, dictionary: Source, name: str) -> Future[None]:
        with self._lock:
            known = self._loading.get((dictionary.name, name))
            if known is None or (known.done() and known.exception()):
                known = self._loading[dictionary.name, name] = self.run(lambda: self._load(dictionary, name))
        return known

    def ask(self, dictionary: Source, work: Callable[[SAE, SubjectModel], T], beside: str | None = None) -> T:
        """Do something with a dictionary's SAE and model, and wait for it.

        Args:
            dictionary: whose.
            work: what to do.
            beside: another model that the SAE is to read, in place of its own.

        Raises:
            Unavailable: they are not there or do not fit.
        """
        if dictionary.can["prompt"]:
            raise Unavailable(f"{dictionary.name}: {dictionary.can['prompt']}")
        name = beside or str(dictionary.model_name)
        loading = self._begin(dictionary, name)

        def then() -> T:
            try:
                loading.result()
            except MonosemError as error:
                raise Unavailable(str(error)) from error
            with torch.no_grad():
                return work(dictionary.sae(), self._models[name])

        return self.run(then).result()

    def _load(self, dictionary: Source, name: str) -> None:
        sae = dictionary.sae()
        if name not in self._models:
            self._models[name] = load_model(name)
        model = self._models[name]
        wanted = dictionary.index.get("model_fingerprint") if name == dictionary.model_name else None
        if wanted is not None and wanted != model.fingerprint():
            raise MismatchError(f"{name} is not the model that was harvested: its weights differ")
        join(sae, model, str(dictionary.hook))
        context_kind([sae], model)

    # What it is asked --------------------------------------------------------------------------------------------

    def read(self, dictionary: Dictionary, text: str) -> Pass:
        """A text through model and dictionary, cut to the context that the SAE knows."""
        return self.ask(dictionary, lambda sae, model: run_text(dictionary, sae, model, text))

    def prompt(self, dictionary: Dictionary, question: Question) -> Prompt:
        """The answer to a prompt."""
        return self.ask(dictionary, lambda sae, model: _prompt(dictionary, sae, model, question))

    def logits(self, dictionary: Dictionary, latent: int) -> Histogram:
        """The vocabulary by a latent's logit weights, relative to their mean.

        Raises:
            Unavailable: the model has no output embeddings, or the SAE writes another width.
        """
        dictionary.check(latent)
        return self.ask(dictionary, lambda sae, model: _logits(dictionary, sae, model, latent))

    def context(self, dictionary: Dictionary, text: str, context: int, latent: int) -> Context:
        """A whole context of a text that was harvested, with a latent's activations.

        Raises:
            ConfigError: the store is of no such text or context.
            Unavailable: the text cannot be read any more.
        """
        dictionary.check(latent)
        require_context(dictionary, text, context)
        return self.ask(dictionary, lambda sae, model: self._context(dictionary, sae, model, text, context, latent))

    def _context(
        self, dictionary: Dictionary, sae: SAE, model: SubjectModel, text: str, context: int, latent: int
    ) -> Context:
        hook = str(dictionary.hook)
        batch = self.contexts(dictionary, sae, model, text).read(context, context + 1)
        (found,) = read_rows(model, batch, [Wanted(sae.metadata, [hook])])
        tokens = batch.tokens[0][~batch.padding[0]].tolist()
        codes = sae.encode(found.rows[hook].to(sae.W_enc.device))
        activations = np.zeros(len(tokens))
        for row, place in enumerate(found.kept[0].nonzero()[:, 0].tolist()):
            at = slice(int(codes.offsets[row]), int(codes.offsets[row + 1]))
            on = codes.indices[at] == latent
            activations[place] = float(codes.values[at][on].sum())
        documents, positions = batch.document[0].tolist(), batch.position[0].tolist()
        return Context(
            texts=dictionary.store.vocabulary.texts(tokens),
            activations=[float(f"{a:.4g}") for a in activations],
            document=[d if d >= 0 else None for d in documents[: len(tokens)]],
            position=[p if p >= 0 else None for p in positions[: len(tokens)]],
        )

    def contexts(self, dictionary: Dictionary, sae: SAE, model: SubjectModel, text: str) -> BatchReader:
        """A harvested text, cut as it was then. Only on the model's thread."""
        key = (dictionary.name, text)
        if key not in self._texts:
            path = Path(text).expanduser()
            if path.is_file() and path.stat().st_size > LARGEST_TEXT:
                raise Unavailable(f"{text} is too large to find a context in: {path.stat().st_size / 2**30:.1f} GiB")
            try:
                self._texts[key], _ = reopened(sae.metadata, model, str(dictionary.hook), text=text)
            except MonosemError as error:
                raise Unavailable(f"the text cannot be read any more: {error}") from error
        return self._texts[key]


def require_context(dictionary: Dictionary, text: str, context: int) -> None:
    """Raise ConfigError where a store is of no such text or context."""
    spans = [t for t in dictionary.index["texts"] if t["text"] == text]
    if not any(t["first_context"] <= context < t["stop_context"] for t in spans):
        raise ConfigError(f"context {context} of {text!r} is none that {dictionary.name} was harvested on")


def run_text(dictionary: Dictionary, sae: SAE, model: SubjectModel, text: str) -> Pass:
    """One forward pass of a text; the SAE reads what it read in training."""
    length, bos = context_kind([sae], model)
    if not text.strip("\0"):
        raise DataError("the text is empty: type some words")
    document = PackedText([Document(text)], model.tokenizer, length, prepend_bos=bos, packing=False)
    whole = document.read(0, 1 + len(text))
    if not len(whole):
        raise DataError("the text has no tokens: type some words")
    batch = whole.of(torch.arange(1), int((~whole.padding[0]).sum()))
    captured: list[Tensor] = []

    def keep(x: Tensor, _: EditContext) -> Tensor:
        captured.append(x.clone())
        return x

    hook = str(dictionary.hook)
    with model.edit({hook: keep}):
        logits = model(batch.tokens)
    kept = positions_read(sae.metadata, batch, {hook: captured[0]})
    if not kept.any():
        why = "has only special tokens" if batch.special.all() else "has no position that the SAE reads"
        raise DataError(f"the text {why}: type some words")
    codes = sae.encode(captured[0][kept.to(captured[0].device)].float().to(sae.W_enc.device))
    writes = isinstance(logits, Tensor) and logits.ndim == 3 and model.writes_text
    return Pass(
        batch.tokens[0].tolist(),
        int((whole.document[1:] >= 0).sum()),
        kept[0].nonzero()[:, 0].tolist(),
        codes,
        logits[0, -1].float().cpu() if writes else None,
    )


def _prompt(dictionary: Dictionary, sae: SAE, model: SubjectModel, question: Question) -> Prompt:
    done = run_text(dictionary, sae, model, question.text)
    asked = None if question.latents is None else [dictionary.check(latent) for latent in question.latents]
    rows, values, latents = strongest(done.codes, question.top, asked)
    rarities = rarity(dictionary, latents, values)
    of_token: dict[int, list[tuple[int, float, float]]] = {}
    for row, latent, value, rare in zip(
        rows.tolist(), latents.tolist(), values.tolist(), rarities.tolist(), strict=True
    ):
        of_token.setdefault(done.read[row], []).append((latent, float(f"{value:.4g}"), float(f"{rare:.4g}")))
    read, vocabulary = set(done.read), dictionary.store.vocabulary
    texts = vocabulary.texts(done.tokens)
    tokens = [
        PromptToken(token=token, text=texts[i], special=i not in read, features=of_token.get(i, []))
        for i, token in enumerate(done.tokens)
    ]
    mentioned = np.unique(np.r_[latents, asked or []]).astype(int).tolist()
    target, refused, choices = target_of(vocabulary, model, question.target)
    effects = _effects(sae, model, mentioned, target["token"]) if target else [None] * len(mentioned)
    features, names = dict[str, PromptFeature](), dictionary.all_named(mentioned)
    for latent, effect in zip(mentioned, effects, strict=True):
        most = float(dictionary.maxima[latent])
        features[str(latent)] = PromptFeature(**names[latent], max=None if np.isnan(most) else most, effect=effect)
    logits = torch.zeros(0) if done.logits is None else done.logits
    chances = logits.softmax(-1).topk(min(LIKELIEST, len(logits)))
    likeliest = [
        TokenChance(token=token, text=vocabulary.text(token), probability=chance)
        for token, chance in zip(chances.indices.tolist(), chances.values.tolist(), strict=True)
        if token < len(vocabulary)
    ]
    return Prompt(
        text=question.text,
        tokens=tokens,
        truncated=done.truncated,
        features=features,
        next=likeliest,
        target=target,
        refused=refused,
        choices=choices,
    )


def strongest(
    codes: SparseCodes, n: int, among: Sequence[int] | None = None
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Row, value and latent of the n strongest entries of every row, row by row, strongest first.

    Args:
        codes: (rows, n_latents)
        n: at most so many a row.
        among: only these latents.
    """
    offsets = codes.offsets.cpu().numpy()
    values = codes.values.detach().float().cpu().numpy()
    latents = codes.indices.cpu().numpy()
    rows = np.repeat(np.arange(len(offsets) - 1), np.diff(offsets))
    kept = np.flatnonzero((values > 0) & (True if among is None else np.isin(latents, among)))
    order = kept[np.lexsort((latents[kept], -values[kept], rows[kept]))]
    rank = np.arange(len(order)) - np.searchsorted(rows[order], rows[order])
    chosen = order[rank < n]
    return rows[chosen], values[chosen], latents[chosen]


def rarity(dictionary: Dictionary, latents: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Minus log10 of the share of tokens on which each latent fires at least so strongly, by its histogram.

    Within a bin firings are spread evenly; less than half a firing counts as half.
    """
    tails = np.zeros(len(latents))
    wanted = np.unique(latents)
    if len(wanted):
        among = ", ".join(map(str, wanted.tolist()))
        found = dictionary.store.tables.run(
            "select latent, histogram_first, histogram from details "
            f"where latent between {wanted[0]} and {wanted[-1]} and latent in ({among})"
        ).to_pylist()
        entries = np.argsort(latents, kind="stable")
        starts = np.searchsorted(latents[entries], [row["latent"] for row in found] or [0])
        stops = np.searchsorted(latents[entries], [row["latent"] for row in found] or [0], side="right")
        for row, start, stop in zip(found, starts, stops, strict=False):
            counts = np.array(row["histogram"], float)
            if len(counts):
                edges = histogram_edges(row["histogram_first"], len(counts))
                above = np.concatenate([np.cumsum(counts[::-1])[::-1], [0.0]])
                tails[entries[start:stop]] = np.interp(values[entries[start:stop]], edges, above)
    return -np.log10(np.maximum(tails, 0.5) / max(1, dictionary.store.n_tokens))


def target_of(vocabulary: Vocabulary, model: SubjectModel, text: str | None) -> Asked:
    """The next token that somebody has typed."""
    if not text:
        return Asked(None, None, [])
    return find_target(vocabulary, text, model.tokens(text, prepend_bos=False)[0].tolist())


def _logits(dictionary: Dictionary, sae: SAE, model: SubjectModel, latent: int) -> Histogram:
    try:
        weights = logit_weights(sae, model, [latent])[0].float().cpu().numpy()[dictionary.store.vocabulary.known]
    except ConfigError as error:
        raise Unavailable(str(error)) from error
    counts, edges = np.histogram(weights - weights.mean(), LOGIT_BINS)
    return Histogram(edges=edges.tolist(), counts=counts.tolist())


def _effects(sae: SAE, model: SubjectModel, latents: Sequence[int], token: int) -> list[Any]:
    try:
        found: list[float] = []
        for start in range(0, len(latents), ROWS_AT_ONCE):
            weights = logit_weights(sae, model, latents[start : start + ROWS_AT_ONCE]).float()
            found += (weights[:, token] - weights.mean(-1)).tolist()
        return found
    except ConfigError:  # no output embeddings, or the SAE writes another width
        return [None] * len(latents)
