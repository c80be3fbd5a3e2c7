"""Every attention head of a model, with scores of what it does, and where it did most."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from monosem.activations.inputs import open_text
from monosem.arguments import NotNegative, Positive, checked
from monosem.circuits.heads.scores import MEANING, Example, Sums, Watch, read, readings
from monosem.circuits.heads.successors import successions
from monosem.circuits.heads.weights import attention_of, n_heads
from monosem.data.documents import Text
from monosem.errors import ConfigError, DataError, FileError
from monosem.files import read_json, write_json
from monosem.intervals import draws
from monosem.models import SubjectModel
from monosem.work import doing
from monosem.work.progress import as_job

FORMAT, VERSION = "monosem heads", 1
LONGEST = 256
"""Tokens of a document that are read, if not said otherwise."""
AT_ONCE = 8
"""Documents in one pass, each with its probe."""


@dataclass(frozen=True)
class Score:
    """One score of every head, (layers, heads) each; NaN where nothing could be measured."""

    value: np.ndarray
    low: np.ndarray
    high: np.ndarray
    """The 95 % interval over documents (over pairs of words, of successors)."""
    chance: float | None = None
    """What attention alike to all that is visible gives, or words at random; None where there is no such number."""


@dataclass(frozen=True)
class Heads:
    """Every head of a model, with its scores."""

    model: str
    fingerprint: str
    documents: int
    tokens: int
    """Of these documents; their probes come on top."""
    scores: dict[str, Score]
    """By name; `MEANING` says what each is."""
    examples: dict[tuple[int, int], list[Example]]
    """Of each head the documents where it moved most, strongest first."""
    texts: list[list[int]]
    """Tokens of the documents that examples are of, by their numbers; empty for others."""
    rows: dict[str, list[list[float]]]
    """Of each row of words, how often each head raises the next one."""

    @property
    def n_layers(self) -> int:
        return len(self.scores["entropy"].value)

    @property
    def n_heads(self) -> int:
        return self.scores["entropy"].value.shape[1]

    def __getitem__(self, score: str) -> Score:
        """A score by name.

        Raises:
            ConfigError: there is no such score.
        """
        if score not in self.scores:
            raise ConfigError(f"heads have no score {score!r}: {', '.join(self.scores)}")
        return self.scores[score]

    def top(self, score: str, n: int = 5) -> list[tuple[int, int]]:
        """Layer and number of the heads with the highest score."""
        values = np.nan_to_num(self[score].value, nan=-math.inf)
        order = np.argsort(-values, axis=None, kind="stable")[:n]
        return [divmod(int(i), self.n_heads) for i in order]

    def head(self, layer: int, number: int) -> dict[str, float]:
        """All scores of one head."""
        return {name: float(score.value[layer, number]) for name, score in self.scores.items()}

    def to_json(self) -> dict[str, Any]:
        """As plain values: what `save` writes."""
        scores = {name: {k: _plain(v) for k, v in vars(score).items()} for name, score in self.scores.items()}
        examples = {
            f"{layer}.{head}": [list(example) for example in found] for (layer, head), found in self.examples.items()
        }
        kept = {
            "model": self.model,
            "fingerprint": self.fingerprint,
            "documents": self.documents,
            "tokens": self.tokens,
        }
        found = {"scores": scores, "examples": examples, "texts": self.texts, "rows": self.rows}
        return {"format": FORMAT, "version": VERSION, **kept, **found}

    def save(self, path: str | Path) -> None:
        """Write a file of JSON.

        Raises:
            FileError: it cannot be written.
        """
        write_json(path, self.to_json())

    @classmethod
    def load(cls, path: str | Path) -> Heads:
        """Read what `save` wrote.

        Raises:
            FileError: it is no such file, or damaged.
        """
        content = read_json(path, dict[str, Any])
        if content.get("format") != FORMAT or content.get("version") != VERSION:
            raise FileError(f"{path} holds no scores of heads: write it with monosem heads MODEL --save {path}")
        try:
            scores = {
                str(name): Score(
                    np.array(s["value"], float),
                    np.array(s["low"], float),
                    np.array(s["high"], float),
                    _number(s["chance"]),
                )
                for name, s in content["scores"].items()
            }
            examples = {
                _place(name): [Example(float(e[0]), int(e[1]), int(e[2]), int(e[3]), float(e[4])) for e in found]
                for name, found in content["examples"].items()
            }
            texts = [[int(token) for token in text] for text in content["texts"]]
            rows = {str(name): [[float(x) for x in row] for row in found] for name, found in content["rows"].items()}
            facts = (str(content["model"]), str(content["fingerprint"]), int(content["documents"]))
            heads = cls(*facts, int(content["tokens"]), scores, examples, texts, rows)
            whole = {s.shape for score in scores.values() for s in (score.value, score.low, score.high)}
            inside = all(0 <= e.document < len(texts) for found in examples.values() for e in found)
            if len(whole) != 1 or len(heads["entropy"].value.shape) != 2 or not inside:
                raise ValueError("its parts do not fit together")
        except (KeyError, TypeError, ValueError, IndexError, AttributeError, ConfigError) as error:
            raise FileError(f"{path} is damaged: {error}. Write it anew with monosem heads") from error
        return heads

    def __str__(self) -> str:
        """For every score the five heads that have most of it."""
        lines = [
            f"{self.model}: {self.n_layers} layers of {self.n_heads} heads, "
            f"on {self.documents:,} documents ({self.tokens:,} tokens)"
        ]
        for name, score in self.scores.items():
            tops = [
                (place, *(float(x[place]) for x in (score.value, score.low, score.high))) for place in self.top(name)
            ]
            words = "  ".join(f"{p[0]}.{p[1]} {v:.2f} [{a:.2f}, {b:.2f}]" for p, v, a, b in tops if not math.isnan(v))
            chance = "" if score.chance is None else f"  (chance {score.chance:.2f})"
            lines.append(f"  {name:10} {words or 'not measured'}{chance}")
        return "\n".join(lines)


@checked
@as_job
def heads(
    model: SubjectModel,
    texts: Text = "bundled",
    *,
    documents: int = 100,
    context_length: Positive | None = None,
    examples: int = 6,
    seed: NotNegative = 0,
    progress: bool = True,
) -> Heads:
    """Measure what every attention head does, in one pass that keeps one layer's patterns at a time.

    found = ms.heads(ms.load_model("bundled"))
    print(found); found.top("induction"); found["previous"].value[2, 5]

    Every document is read as it is, and once more as some of its tokens in random order, twice in a row: on that,
    induction and duplicate tokens are measured, where nothing but the repetition tells what comes next. Means are over
    positions, then over documents; the first position, which can attend to nothing else, is left out. What a score
    means: `monosem.circuits.MEANING`.

    Args:
        model: a causal language model of a known family.
        texts: what `read_documents` takes.
        documents: how many to read, in random order.
        context_length: tokens of each; at most 256 if not given.
        examples: documents kept for each head.
        seed: of the order, the probes and the resampling.
        progress: show where it is.

    Raises:
        ConfigError: the model's family is not known, or it is no causal language model.
        DataError: no document has eight different tokens.
    """
    for layer in range(max(1, model.n_layers)):
        attention_of(model, layer)
    if documents < 1 or examples < 1:
        raise ConfigError(f"documents and examples are at least 1, got {documents} and {examples}")
    length = context_length or min(model.context_length or LONGEST, LONGEST)
    contexts, facts = open_text(model, texts, context_length=length, packing=False, seed=seed)
    sums = Sums(model.n_layers, n_heads(model), examples)
    watch = Watch(model, sums, seed)
    with torch.no_grad(), doing("reading heads", documents, unit="documents") as work:
        for reading in readings(contexts, int(facts["prepend_bos"]), documents, AT_ONCE, seed):
            read(model, watch, reading)
            work.advance(reading.n)
    if not sums.texts:
        raise DataError("no document has eight different tokens: give longer ones")
    found = {
        name: _score(np.stack(sums.values[name]), sums.chances.get(name), seed)
        for name in MEANING
        if name in sums.values
    }
    rows = successions(model, watch)
    found["successor"] = _successors(rows, model, seed)
    best = {place: sorted(each, reverse=True) for place, each in sorted(sums.examples.items())}
    shown = {example.document for each in best.values() for example in each}
    return Heads(
        model.name,
        model.fingerprint(),
        len(sums.texts),
        sum(map(len, sums.texts)),
        found,
        best,
        [text if number in shown else [] for number, text in enumerate(sums.texts)],
        {name: each.double().mean(0).tolist() for name, each in rows.items()},
    )


def _score(values: np.ndarray, chances: list[float] | None, seed: int) -> Score:
    """Of (documents, layers, heads) the mean over documents with its interval."""
    n = len(values)
    flat = values.reshape(n, -1)
    resampled = draws(n, seed) @ flat / n
    low, high = np.quantile(resampled, [0.025, 0.975], axis=0) if n > 1 else np.full((2, flat.shape[1]), np.nan)
    shape = values.shape[1:]
    chance = None if chances is None else float(np.mean(chances))
    return Score(values.mean(0), low.reshape(shape), high.reshape(shape), chance)


def _successors(rows: dict[str, torch.Tensor], model: SubjectModel, seed: int) -> Score:
    if not rows:
        nothing = np.full((model.n_layers, n_heads(model)), np.nan)
        return Score(nothing, nothing, nothing)
    chance = [1 / (len(each) + 1) for each in rows.values() for _ in each]
    return _score(torch.cat(list(rows.values())).double().numpy(), chance, seed)


def _plain(value: Any) -> Any:
    return value.tolist() if isinstance(value, np.ndarray) else value


def _number(value: Any) -> float | None:
    return None if value is None else float(value)


def _place(name: str) -> tuple[int, int]:
    layer, _, head = name.partition(".")
    return int(layer), int(head)
