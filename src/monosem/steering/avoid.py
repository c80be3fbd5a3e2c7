"""ms.avoid: which words of a prompt trigger a feature, and what to write in their place."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from monosem.arguments import checked
from monosem.codes import SparseCodes
from monosem.errors import ConfigError, DataError
from monosem.interventions.base import reads
from monosem.kernels import index_add_
from monosem.models import EditContext, SubjectModel
from monosem.sae import SAE
from monosem.text import special_tokens, well_formed
from monosem.work import as_job, doing

WORD = re.compile(r"\S+")
PLAIN = re.compile(r"[^\W\d_]+")


class Trigger(NamedTuple):
    """A word and how much of the features' pre-activation is due to it."""

    word: str
    start: int
    """Of its first letter in the prompt."""
    end: int
    share: float
    """Of the sum over all words of what they add or take."""


class Candidate(NamedTuple):
    """An edited prompt."""

    prompt: str
    edit: str
    """In words."""
    lowered: float
    """Share of the features' activation that is gone: 1 all, 0 nothing, negative: there is more."""
    changed: float
    """1 - the cosine between all other features' mean activations before and after: 0 is nothing."""

    @property
    def worth(self) -> float:
        """What it lowers less what it changes."""
        return self.lowered - self.changed

    def __str__(self) -> str:
        return f"{self.lowered:>8.0%}{self.changed:>9.3f}  {self.edit}"


@dataclass(frozen=True)
class Avoidance:
    """Why features fire in a prompt, and prompts in which they fire less."""

    prompt: str
    latents: list[int]
    activation: float
    """Sum of their codes over the prompt."""
    triggers: list[Trigger]
    """Strongest first."""
    candidates: list[Candidate]
    """Best first."""

    def __str__(self) -> str:
        names = ", ".join(map(str, self.latents))
        if not self.activation:
            return f"latents {names} never fire in this prompt: there is nothing to avoid"
        words = ", ".join(f"{t.word!r} {t.share:+.0%}" for t in self.triggers[:6])
        head = [f"latents {names}: {self.activation:.3g} in all", f"triggers: {words}", f"{'lowered':>8}{'changed':>9}"]
        return "\n".join([*head, *map(str, self.candidates)])


@checked
@as_job
def avoid(
    model: SubjectModel,
    sae: SAE,
    prompt: str,
    latents: int | Sequence[int],
    *,
    words: int = 3,
    alternatives: int = 4,
    progress: bool = True,
) -> Avoidance:
    """Which words of a prompt trigger unwanted features, and edits by which they fire less.

    The words that trigger them are found by one backward pass: the gradient of the features' pre-activations, where
    they fire, times what sets each token's embedding off from the mean embedding. Candidates drop one of these words,
    or put in its place what the model itself holds likely there; what each does is measured by reading it.

    Args:
        model: a causal language model with a tokenizer.
        sae: of whose latents.
        prompt: the text.
        latents: unwanted.
        words: triggers for which edits are tried, strongest first.
        alternatives: of the model, for each.
        progress: show it.

    Raises:
        ConfigError: there is no such latent, or a setting is wrong.
        DataError: the prompt is empty.
    """
    chosen = [latents] if isinstance(latents, int) else list(dict.fromkeys(latents))
    if not chosen or not all(0 <= latent < sae.n_latents for latent in chosen):
        raise ConfigError(f"give latents from 0 to {sae.n_latents - 1}, got {latents!r}")
    if words < 1 or alternatives < 0:
        raise ConfigError("words must be at least 1, alternatives at least 0")
    if len(sae.in_shape) > 1 or sae.metadata.hook is None:
        raise ConfigError("avoid needs an SAE that reads one site and knows its hook point")
    if not WORD.search(prompt):
        raise DataError("the prompt is empty")
    before = _codes(model, sae, [prompt])[0]
    total = float(before.select(chosen).values.sum())
    if not total:
        return Avoidance(prompt, chosen, 0.0, [], [])
    found, log_p = _triggers(model, sae, prompt, chosen)
    tried = [
        edit
        for trigger, choices in _places(model, prompt, found[:words], log_p, alternatives)
        for edit in _edits(prompt, trigger, choices)
    ]
    made: list[Candidate] = []
    with doing("candidates", len(tried), unit="prompts") as stage:
        after = _codes(model, sae, [text for text, _ in tried])
        for (text, said), codes in zip(tried, after, strict=True):
            lowered = 1 - float(codes.select(chosen).values.sum()) / total
            made.append(Candidate(text, said, lowered, _change(before, codes, chosen)))
        stage.advance(len(tried))
    made.sort(key=lambda candidate: -candidate.worth)
    return Avoidance(prompt, chosen, total, found, made)


@torch.no_grad()
def _codes(model: SubjectModel, sae: SAE, texts: list[str]) -> list[SparseCodes]:
    """Of every text, where the SAE reads."""
    hook = sae.metadata.hook
    assert hook is not None
    batch = model.padded(texts)
    x = model.capture(batch, [hook])[hook]
    kept = reads(sae.metadata, x, _context(model, batch, hook))
    return [sae.encode(row[mask]) for row, mask in zip(x, kept, strict=True)]


def _context(model: SubjectModel, batch: dict[str, Tensor], hook: str) -> EditContext:
    tokens = batch["input_ids"]
    positions = torch.arange(tokens.shape[1], device=tokens.device).expand_as(tokens)
    special = torch.isin(tokens, torch.tensor(sorted(special_tokens(model.tokenizer)), device=tokens.device))
    return EditContext(hook, tokens, positions, batch["attention_mask"].bool(), special)


def _change(before: SparseCodes, after: SparseCodes, latents: list[int]) -> float:
    means: list[Tensor] = []
    for codes in (before, after):
        mean = torch.zeros(codes.n_latents, dtype=codes.values.dtype, device=codes.device)
        index_add_(mean, codes.indices, codes.values.detach())
        mean[latents] = 0
        means.append(mean / max(1, codes.n_rows))
    return 1 - float(torch.cosine_similarity(*means, dim=0))


def _triggers(
    model: SubjectModel, sae: SAE, prompt: str, latents: list[int]
) -> tuple[list[Trigger], Float[Tensor, "pos vocabulary"]]:
    """Words by what they add, and what the model predicts at each place."""
    hook = sae.metadata.hook
    assert hook is not None
    kept: dict[str, Tensor] = {}

    def leaf(x: Tensor, _: EditContext) -> Tensor:
        kept["embed"] = x.detach().requires_grad_()
        return kept["embed"]

    def keep(x: Tensor, context: EditContext) -> Tensor:
        kept["x"], kept["read"] = x, reads(sae.metadata, x.detach(), context)
        return x

    batch = model.padded([prompt])
    with torch.enable_grad(), model.edit({"embed": leaf, hook: keep}):
        logits = model.module(**batch).logits
        rows = kept["x"][kept["read"]]
        W, b, _ = sae.part(torch.tensor(latents, device=rows.device))
        pre = sae.centred(sae.transform(rows.to(W))) @ W.T + b
        fires = sae.encode(rows.detach()).select(latents).to_dense() > 0
        (gradient,) = torch.autograd.grad((pre * fires).sum(), [kept["embed"]])
    table = model.module.get_input_embeddings().weight.detach()  # pyright: ignore
    worth = (gradient * (kept["embed"].detach() - table.mean(0))).sum(-1)[0]
    spans = _spans(model, prompt, batch["input_ids"][0])
    sums = [
        (
            match,
            float(sum(worth[i] for i, (start, end) in enumerate(spans) if start < match.end() and end > match.start())),
        )
        for match in WORD.finditer(prompt)
    ]
    scale = sum(abs(value) for _, value in sums) or 1.0
    found = [Trigger(match.group(), match.start(), match.end(), value / scale) for match, value in sums]
    return sorted(found, key=lambda t: -t.share), logits[0].detach().float().log_softmax(-1)


def _spans(model: SubjectModel, prompt: str, tokens: Int[Tensor, " pos"]) -> list[tuple[int, int]]:
    """Where each token stands in the prompt; (0, 0) for special ones put before it."""
    own = model.tokenizer(well_formed(prompt), add_special_tokens=False, return_offsets_mapping=True)
    spans = [tuple(span) for span in own["offset_mapping"]]
    before = len(tokens) - len(spans)
    return [(0, 0)] * before + spans  # type: ignore[return-value]


def _places(
    model: SubjectModel, prompt: str, triggers: list[Trigger], log_p: Float[Tensor, "pos vocabulary"], n: int
) -> list[tuple[Trigger, list[str]]]:
    """Each trigger with what the model would have written there: whole words."""
    tokens = model.padded([prompt])["input_ids"][0]
    spans = _spans(model, prompt, tokens)
    found: list[tuple[Trigger, list[str]]] = []
    for trigger in triggers:
        if trigger.share <= 0:
            continue
        first = next((i for i, (start, end) in enumerate(spans) if start <= trigger.start < end), 0)
        own = PLAIN.search(trigger.word)
        choices: list[str] = []
        for token in log_p[first - 1].topk(10 * n + 10).indices.tolist() if first else []:
            text = model.tokenizer.decode([token])
            word = text.strip()
            whole = PLAIN.fullmatch(word) and (text.startswith(" ") or trigger.start == 0)
            if whole and (own is None or word.lower() != own.group().lower()) and word not in choices:
                choices.append(word)
        found.append((trigger, choices[:n]))
    return found


def _edits(prompt: str, trigger: Trigger, choices: list[str]) -> list[tuple[str, str]]:
    """The prompt without the word, and with others in its place; punctuation around it stays."""
    before, after = prompt[: trigger.start], prompt[trigger.end :]
    core = PLAIN.search(trigger.word)
    head, tail = ("", "") if core is None else (trigger.word[: core.start()], trigger.word[core.end() :])
    tail = tail if core is not None and not PLAIN.search(tail) else ""
    dropped = re.sub(r"[ \t]{2,}", " ", (before.rstrip(" ") if tail else before) + head + tail + after).strip()
    edits = [(dropped, f"drop {trigger.word!r}")] if WORD.search(dropped) else []
    return edits + [
        (before + head + word + tail + after, f"{trigger.word!r} -> {head + word + tail!r}") for word in choices
    ]
