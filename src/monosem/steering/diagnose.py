"""ms.diagnose: which features a prompt and its answers trigger that are unusual, token by token."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from monosem.arguments import NotNegative, checked
from monosem.codes import SparseCodes
from monosem.errors import ConfigError
from monosem.features import FeatureStore
from monosem.interventions import generate
from monosem.interventions.generate import read_prompt
from monosem.models import SubjectModel
from monosem.sae import SAE
from monosem.text import well_formed

ROW = 40
"""Characters of a name that are shown."""


class Unusual(NamedTuple):
    """A feature that fires more often in a text than it does elsewhere."""

    latent: int
    name: str
    fires: int
    """Tokens on which it fires."""
    tokens: int
    """Tokens that the SAE read."""
    baseline: float
    """Its firing rate elsewhere."""
    surprise: float
    """-log10 of the probability that it fires so often or oftener at its usual rate, token for token by itself."""
    strongest: float
    peak: int
    """Number of the token on which it is strongest."""
    word: str
    """That token."""
    by_token: list[tuple[int, float]]
    """Where it fires, and how strongly."""

    def __str__(self) -> str:
        rate = f"{self.fires} of {self.tokens} tokens, usually {self.baseline:.2%}"
        peak = f"{self.strongest:>7.2f} at {self.word!r:<14}"
        return f"{self.latent:>7}  {self.surprise:>6.1f}  {rate:<38} {peak} {self.name[:ROW]}"


@dataclass(frozen=True)
class Diagnosis:
    """What is unusual in a prompt, and in each of its answers."""

    prompt: list[Unusual]
    answers: list[list[Unusual]]
    texts: list[str]
    """The answers."""
    tokens: list[str]
    """Of the prompt, as the model reads it."""
    ids: list[int]
    """The same, as numbers."""
    answer_ids: list[list[int]]
    """Of each answer."""

    def only_in_answers(self) -> list[Unusual]:
        """What answers trigger and the prompt does not, most unusual first."""
        known = {item.latent for item in self.prompt}
        found: dict[int, Unusual] = {}
        for item in (item for answer in self.answers for item in answer if item.latent not in known):
            if item.latent not in found or item.surprise > found[item.latent].surprise:
                found[item.latent] = item
        return sorted(found.values(), key=lambda item: -item.surprise)

    def __str__(self) -> str:
        head = f"{'latent':>7}  {'-log10 p':>6}  {'fires':<38} {'strongest':>7}"
        lines = ["prompt", head, *map(str, self.prompt)]
        for number, (text, found) in enumerate(zip(self.texts, self.answers, strict=True), 1):
            lines += [f"answer {number}: {text.strip()[:90]!r}", *map(str, found)]
        return "\n".join(lines)


@checked
def diagnose(
    model: SubjectModel,
    sae: SAE,
    prompt: Any,
    *,
    answers: int | Sequence[str] = 1,
    baseline: FeatureStore | Sequence[float] | Tensor,
    top: int = 8,
    max_new_tokens: int = 40,
    temperature: float = 0.9,
    seed: NotNegative = 0,
) -> Diagnosis:
    """Which features a prompt and each answer trigger, against how often they fire elsewhere.

    Args:
        model: a causal language model with a tokenizer.
        sae: the SAE.
        prompt: a text, or a chat (messages with `role` and `content`).
        answers: how many to have written, or answers that are there.
        baseline: firing rates to compare with: a store of the same SAE, or (n_latents,) numbers.
        top: features shown of each text, most unusual first.
        max_new_tokens: of each answer.
        temperature: of the answers.
        seed: of the first answer.

    Raises:
        ConfigError: the baseline is of another SAE, or a setting is wrong.
        DataError: the prompt is empty.
    """
    rates = _rates(sae, baseline)
    names = _Names(baseline)
    if isinstance(answers, int):
        if answers < 0 or top < 1:
            raise ConfigError("answers must be at least 0, top at least 1")
        made = generate(
            model,
            [prompt] * max(1, answers),
            features=sae,
            max_new_tokens=max_new_tokens if answers else 1,
            temperature=temperature,
            seed=seed,
        )
        ids = made[0].prompt_tokens
        codes = [generation.features for generation in made]
        texts = [generation.text for generation in made][:answers]
        tails = [generation.tokens for generation in made][:answers]
    else:
        ids, texts = read_prompt(model, prompt)[0]["input_ids"][0].tolist(), list(answers)
        tails = [_tail(model, prompt, ids, text) for text in texts]
        whole = [ids + tail for tail in tails] or [ids]
        codes = [_read(model, sae, row) for row in whole]
    words = [model.tokenizer.decode([i]) for i in ids]
    n = len(ids)
    found = _unusual(codes[0][:n], words, rates, names, top, 0)
    of_answers = [
        _unusual(code[n:], [model.tokenizer.decode([i]) for i in tail], rates, names, top, n)
        for code, tail in zip(codes, tails, strict=False)
    ]
    return Diagnosis(found, of_answers, texts, words, ids, tails)


def _tail(model: SubjectModel, prompt: Any, ids: list[int], answer: str) -> list[int]:
    """The tokens of an answer: as the whole text is read, if the prompt is read alike in it; or else by themselves."""
    whole = model.tokens(prompt + answer)[0].tolist() if isinstance(prompt, str) else []
    if whole[: len(ids)] == ids:
        return whole[len(ids) :]
    return model.tokenizer(well_formed(answer), add_special_tokens=False)["input_ids"]


def _read(model: SubjectModel, sae: SAE, ids: list[int]) -> SparseCodes:
    from monosem.interventions.reading import Features

    reader = Features(sae)
    with model.edit([reader]):
        model(torch.tensor([ids], device=model.device))
    return reader.codes[0][0]


class _Names:
    """Of features, asked for few."""

    def __init__(self, baseline: Any) -> None:
        self.store = baseline if isinstance(baseline, FeatureStore) else None

    def of(self, latents: list[int]) -> dict[int, str]:
        if self.store is None or not latents:
            return {}
        return {feature.latent: feature.name or "" for feature in self.store.features(latents)}


@torch.no_grad()
def _rates(sae: SAE, baseline: Any) -> Float[Tensor, " n_latents"]:
    if isinstance(baseline, FeatureStore):
        baseline = [rate or 0.0 for rate in baseline.columns(["rate"]).column("rate").to_pylist()]
    rates = torch.as_tensor(baseline, dtype=torch.float64)
    if rates.shape != (sae.n_latents,) or not bool(((rates >= 0) & (rates <= 1)).all()):
        raise ConfigError(f"the baseline must be {sae.n_latents} firing rates from 0 to 1: give a store of this SAE")
    return rates


@torch.no_grad()
def _unusual(codes: SparseCodes, words: list[str], rates: Tensor, names: _Names, top: int, first: int) -> list[Unusual]:
    from scipy.stats import binom

    rows, latents, values = codes.rows(), codes.indices.long(), codes.values
    on = values > 0
    rows, latents, values = rows[on], latents[on], values[on]
    read = len(rows.unique())
    if not read:
        return []
    counts = torch.bincount(latents, minlength=codes.n_latents)
    some = counts.nonzero()[:, 0]
    floor = 1e-6  # of a latent that never fired where the rates were counted
    log_p = binom.logsf(counts[some].cpu().numpy() - 1, read, rates[some.cpu()].clamp_min(floor).numpy())
    order = torch.from_numpy(log_p).argsort(stable=True)[:top].tolist()
    chosen = [int(some[i]) for i in order]
    known = names.of(chosen)
    found: list[Unusual] = []
    for i, latent in zip(order, chosen, strict=True):
        mine = latents == latent
        places = sorted(zip(rows[mine].tolist(), values[mine].tolist(), strict=True))
        at, strongest = max(places, key=lambda place: place[1])
        surprise = float(-log_p[i] / math.log(10))
        by_token = [(first + row, value) for row, value in places]
        rate = float(rates[latent])
        found.append(
            Unusual(
                latent,
                known.get(latent, ""),
                len(places),
                read,
                rate,
                surprise,
                strongest,
                first + at,
                words[at],
                by_token,
            )
        )
    return found
