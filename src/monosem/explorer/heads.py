"""The heads of the model behind a dictionary: measured when asked for, and kept in `heads.json` beside the store."""

from __future__ import annotations

import math
import threading
from contextlib import suppress
from typing import Any, Literal

import numpy as np
import torch

from monosem.analysis.logit_lens import direction_logits
from monosem.circuits import MEANING, Composition, Heads, composition, head_features, look, written_features
from monosem.circuits.heads.features import stream_layer
from monosem.circuits.heads.heads import heads
from monosem.circuits.heads.looks import Part
from monosem.circuits.heads.weights import attention_of, n_heads, output_matrix
from monosem.errors import ConfigError, DataError, FileError
from monosem.explorer import shapes
from monosem.explorer.dictionary import Dictionary, Unavailable
from monosem.explorer.doctor import require_room, require_words
from monosem.explorer.site import Site
from monosem.models import SubjectModel
from monosem.sae import SAE

DOCUMENTS = 60
BEHIND = 6
"""Tokens shown behind an example's query, and at most so many before."""
BEFORE = 48
LONGEST = 160
"""Tokens of a prompt whose pattern is shown."""
SHOWN = 10


class HeadShelves:
    """The heads behind every dictionary of a site, by model."""

    def __init__(self, site: Site) -> None:
        self.site = site
        self._measured: dict[str, Heads] = {}
        self._composed: dict[str, Composition] = {}
        self._lock = threading.Lock()

    def view(self, name: str) -> shapes.HeadsView:
        """What is known of the heads."""
        dictionary = self.site[name]
        model = str(dictionary.model_name)
        why_not = dictionary.can["prompt"]
        found = None if why_not else self._known(dictionary)
        return shapes.HeadsView(model=model, why_not=why_not, measured=None if found is None else _scores(found))

    def measure(self, name: str) -> shapes.HeadsView:
        """Measure them, and keep what was found.

        Raises:
            ConfigError: the model's family is not known.
        """
        dictionary = self.site[name]

        def ask(_: SAE, model: SubjectModel) -> Heads:
            names: list[str] = dictionary.index.get("text_names") or ["bundled"]
            try:
                return heads(model, names[0], documents=DOCUMENTS, progress=False)
            except (FileError, DataError):  # the text that was harvested is no longer there
                return heads(model, "bundled", documents=DOCUMENTS, progress=False)

        if self._known(dictionary) is None:
            found = self.site.subjects.ask(dictionary, ask)
            with self._lock:
                self._measured[str(dictionary.model_name)] = found
            with suppress(FileError):  # then it is known as long as the server runs
                found.save(self._file(dictionary))
        return self.view(name)

    def head(self, name: str, layer: int, head: int) -> shapes.HeadView:
        """One head."""
        dictionary = self.site[name]
        found = self._known(dictionary)
        if found is None:
            raise Unavailable("the heads have not been measured: ask for that first")

        def ask(sae: SAE, model: SubjectModel) -> shapes.HeadView:
            check_head(model, layer, head)
            between = self._between(str(dictionary.model_name), model)
            number = between.heads.index((layer, head))
            try:
                features = head_features(model, sae, layer, head, n=SHOWN)
            except ConfigError:  # a dictionary of another place than the residual stream
                features = None
            lists = {
                side: self._named(dictionary, getattr(features, side, []))
                for side in ("queries", "keys", "values", "writes")
            }
            examples = [_example(dictionary, model, found, each, layer, head) for each in found.examples[layer, head]]
            return shapes.HeadView(
                layer=layer,
                head=head,
                examples=examples,
                reads=_composed(between, number, reads=True),
                read_by=_composed(between, number, reads=False),
                alike=_alike(between, number),
                chance=between.chance,
                **lists,
            )

        return self.site.subjects.ask(dictionary, ask)

    def pattern(self, name: str, layer: int, head: int, asked: shapes.AskedHead) -> shapes.HeadPattern:
        """A head on a prompt.

        Raises:
            DataError: the prompt is empty or too long, or has no such token.
        """
        dictionary = self.site[name]
        require_words(asked.text)

        def ask(sae: SAE, model: SubjectModel) -> shapes.HeadPattern:
            check_head(model, layer, head)
            tokens = model.tokens(asked.text)
            n = tokens.shape[1]
            require_room(model, n)
            if n > LONGEST:
                raise DataError(f"{n} tokens are more than the {LONGEST} of which a pattern is shown: shorten the text")
            query = n - 1 if asked.query is None else asked.query
            if query >= n or (asked.key is not None and asked.key > query):
                raise DataError(f"the text has tokens 0 to {n - 1}, and a query sees no key behind it")
            seen = model.capture(tokens, [f"attn_pattern.{layer}", f"attn_z.{layer}"])
            rows = seen[f"attn_pattern.{layer}"][0, head].float().cpu().numpy()
            z = seen[f"attn_z.{layer}"][0, query].unflatten(-1, (n_heads(model), -1))[head]
            with torch.no_grad():
                logits = direction_logits((output_matrix(model, layer)[head] @ z)[None], model)[0].float().cpu()
            logits = logits - logits.mean()
            sides = logits.topk(SHOWN), logits.topk(SHOWN, largest=False)
            text = dictionary.store.vocabulary.text
            promoted, suppressed = (
                [
                    shapes.TokenLogit(text=text(token), logit=value)
                    for token, value in zip(side.indices.tolist(), side.values.tolist(), strict=True)
                ]
                for side in sides
            )
            at = _stands(model, sae)
            written = [] if at is None or at <= layer else written_features(model, sae, tokens, layer, head, query)
            return shapes.HeadPattern(
                texts=dictionary.store.vocabulary.texts(tokens[0].tolist()),
                pattern=[_rounded(row[: i + 1]) for i, row in enumerate(rows)],
                query=query,
                promoted=promoted,
                suppressed=suppressed,
                written=self._named(dictionary, written),
                look=_look(dictionary, model, sae, tokens, layer, head, query, asked.key) if at == layer else None,
            )

        return self.site.subjects.ask(dictionary, ask)

    # What is known ------------------------------------------------------------------------------------------------

    def _file(self, dictionary: Dictionary) -> Any:
        return dictionary.store.path.resolve().parent / "heads.json"

    def _known(self, dictionary: Dictionary) -> Heads | None:
        name = str(dictionary.model_name)
        with self._lock:
            if name not in self._measured and self._file(dictionary).is_file():
                try:
                    found = Heads.load(self._file(dictionary))
                except FileError:  # damaged: measured anew
                    return None
                if found.fingerprint == dictionary.index.get("model_fingerprint", found.fingerprint):
                    self._measured[name] = found
            return self._measured.get(name)

    def _between(self, name: str, model: SubjectModel) -> Composition:
        if name not in self._composed:
            self._composed[name] = composition(model)
        return self._composed[name]

    def _named(self, dictionary: Dictionary, strengths: list[tuple[int, float]]) -> list[shapes.HeadFeature]:
        names = dictionary.all_named(latent for latent, _ in strengths)
        return [shapes.HeadFeature(**names[latent], strength=strength) for latent, strength in strengths]


def check_head(model: SubjectModel, layer: int, head: int) -> None:
    """Raise IndexError where there is no such head; ConfigError where heads are not known."""
    if model.n_layers:
        attention_of(model, 0)
    if layer >= model.n_layers or head >= n_heads(model):
        raise IndexError(
            f"{model.name} has {model.n_layers} layers of {n_heads(model)} heads: there is no {layer}.{head}"
        )


def _scores(found: Heads) -> shapes.HeadScores:
    return shapes.HeadScores(
        documents=found.documents,
        tokens=found.tokens,
        scores=[
            shapes.HeadScore(
                name=name,
                meaning=MEANING.get(name, name),
                value=_finite(score.value),
                low=_finite(score.low),
                high=_finite(score.high),
                chance=score.chance,
            )
            for name, score in found.scores.items()
        ],
    )


def _finite(values: np.ndarray) -> list[list[float | None]]:
    return [[float(f"{x:.5g}") if math.isfinite(x) else None for x in row] for row in values.tolist()]


def _rounded(row: np.ndarray) -> list[float]:
    return [round(x, 4) for x in row.tolist()]


def _example(
    dictionary: Dictionary, model: SubjectModel, found: Heads, each: Any, layer: int, head: int
) -> shapes.HeadExample:
    tokens = found.texts[each.document]
    until = tokens[: each.query + 1]
    hook = f"attn_pattern.{layer}"
    row = model.capture(torch.tensor([until]), [hook])[hook][0, head, -1].float().cpu().numpy()
    first = max(0, min(each.key - 4, each.query - BEFORE))
    shown = tokens[first : each.query + 1 + BEHIND]
    return shapes.HeadExample(
        texts=dictionary.store.vocabulary.texts(shown),
        query=each.query - first,
        key=each.key - first,
        attention=_rounded(row[first:]),
    )


def _composed(between: Composition, number: int, reads: bool) -> list[shapes.Beside]:
    found: list[shapes.Beside] = []
    for kind in ("query", "key", "value"):
        scores: torch.Tensor = getattr(between, kind)
        scores = scores[number] if reads else scores[:, number]
        for other, score in enumerate(scores.tolist()):
            if score > between.chance:
                layer, head = between.heads[other]
                found.append(shapes.Beside(layer=layer, head=head, kind=kind, score=score))
    return sorted(found, key=lambda each: -each["score"])[:6]


def _alike(between: Composition, number: int) -> list[shapes.Beside]:
    found: list[shapes.Beside] = []
    kinds: list[Literal["like_qk", "like_ov"]] = ["like_qk", "like_ov"]
    for kind, scores in zip(kinds, (between.similarity_qk[number], between.similarity_ov[number]), strict=True):
        for other, score in enumerate(scores.tolist()):
            if other != number:
                layer, head = between.heads[other]
                found.append(shapes.Beside(layer=layer, head=head, kind=kind, score=score))
    return sorted(found, key=lambda each: -abs(each["score"]))[:6]


def _stands(model: SubjectModel, sae: SAE) -> float | None:
    try:
        return stream_layer(model, sae)[0]
    except ConfigError:
        return None


def _look(
    dictionary: Dictionary,
    model: SubjectModel,
    sae: SAE,
    tokens: torch.Tensor,
    layer: int,
    head: int,
    query: int,
    key: int | None,
) -> shapes.HeadLook:
    split = look(model, sae, tokens, layer, head, query, key)
    top = split.top(SHOWN)
    names = dictionary.all_named({part.latent for pair in top for part in pair[:2] if part.kind == "feature"})

    def named(part: Part) -> Any:
        return names.get(part.latent) if part.kind == "feature" else None

    pairs = [
        shapes.HeadPair(query=named(one), query_is=one.kind, key=named(other), key_is=other.kind, value=value)
        for one, other, value in top
    ]
    rest = split.score - sum(pair["value"] for pair in pairs)
    return shapes.HeadLook(key=split.key, score=split.score, pairs=pairs, rest=rest)
