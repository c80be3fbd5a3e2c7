"""The prompt doctor: what is unusual in a prompt and its answers, which words trigger a feature, and what helps."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch

from monosem.errors import DataError
from monosem.explorer.dictionary import Dictionary
from monosem.explorer.effects import require_prediction
from monosem.explorer.shapes import (
    AskedAvoidance,
    AskedDiagnosis,
    Avoidance,
    Candidate,
    Diagnosed,
    Diagnosis,
    Known,
    Unusual,
    Word,
)
from monosem.explorer.subject import Subjects
from monosem.models import SubjectModel
from monosem.sae import SAE
from monosem.steering import avoid, diagnose
from monosem.steering.diagnose import Unusual as Found


def known_features(dictionary: Dictionary, latents: Iterable[int]) -> dict[int, Known]:
    """Names and largest activations."""
    found = dictionary.all_named(latents)
    most = {latent: float(dictionary.maxima[latent]) for latent in found}
    return {latent: Known(**named, max=most[latent] if most[latent] > 0 else None) for latent, named in found.items()}


def diagnosed(subjects: Subjects, dictionary: Dictionary, asked: AskedDiagnosis) -> Diagnosis:
    """What is unusual in a prompt, and in each answer to it.

    Raises:
        DataError: they are longer than what the model reads.
        ConfigError: a chat is wanted of a model without a template.
        Unavailable: the model predicts no next token.
    """

    def ask(sae: SAE, model: SubjectModel) -> Diagnosis:
        require_prediction(model)
        require_words(asked.prompt)
        prompt = [{"role": "user", "content": asked.prompt}] if asked.chat else asked.prompt
        longest = max(len(model.tokens(asked.prompt + answer)[0]) for answer in asked.answers or [""])
        require_room(model, longest)
        rates = torch.from_numpy(dictionary.rates).double().nan_to_num()
        found = diagnose(model, sae, prompt, answers=asked.answers, baseline=rates, top=asked.top)
        first = len(found.ids)
        texts = dictionary.store.vocabulary.texts
        answers = [
            Diagnosed(texts=texts(ids), unusual=_unusual(unusual, first))
            for ids, unusual in zip(found.answer_ids, found.answers, strict=True)
        ]
        mentioned = {item.latent for part in (found.prompt, *found.answers) for item in part}
        return Diagnosis(
            prompt=Diagnosed(texts=texts(found.ids), unusual=_unusual(found.prompt, 0)),
            answers=answers,
            features={str(latent): known for latent, known in known_features(dictionary, mentioned).items()},
        )

    return subjects.ask(dictionary, ask)


def avoided(subjects: Subjects, dictionary: Dictionary, asked: AskedAvoidance) -> Avoidance:
    """Which words of a prompt trigger features, and prompts in which they fire less.

    Raises:
        DataError: it is longer than what the model reads.
        Unavailable: the model predicts no next token.
    """
    latents = [dictionary.check(latent) for latent in asked.latents]

    def ask(sae: SAE, model: SubjectModel) -> Avoidance:
        require_prediction(model)
        require_words(asked.prompt)
        require_room(model, len(model.tokens(asked.prompt)[0]))
        found = avoid(
            model, sae, asked.prompt, latents, words=asked.words, alternatives=asked.alternatives, progress=False
        )
        words, end = list[Word](), 0
        for trigger in sorted(found.triggers, key=lambda trigger: trigger.start):
            words += [
                Word(text=asked.prompt[end : trigger.start], share=None),
                Word(text=trigger.word, share=trigger.share),
            ]
            end = trigger.end
        words.append(Word(text=asked.prompt[end:], share=None))
        candidates = [
            Candidate(prompt=one.prompt, edit=one.edit, lowered=one.lowered, changed=one.changed)
            for one in found.candidates
        ]
        return Avoidance(
            activation=found.activation, words=[word for word in words if word["text"]], candidates=candidates
        )

    return subjects.ask(dictionary, ask)


def require_words(text: str) -> None:
    """Raise DataError where there is nothing to read."""
    if not text.strip(" \t\r\n\0"):
        raise DataError("the text is empty: type some words")


def require_room(model: SubjectModel, tokens: int) -> None:
    """Raise DataError where a text is longer than what the model reads."""
    if model.context_length is not None and tokens > model.context_length:
        raise DataError(f"{tokens} tokens do not fit the model's context of {model.context_length}: shorten the text")


def _unusual(found: Sequence[Found], first: int) -> list[Unusual]:
    """With tokens counted from the first of the text's own."""
    return [
        Unusual(
            latent=one.latent,
            fires=one.fires,
            read=one.tokens,
            baseline=one.baseline,
            surprise=one.surprise,
            strongest=one.strongest,
            peak=one.peak - first,
            by_token=[(place - first, value) for place, value in one.by_token],
        )
        for one in found
    ]
