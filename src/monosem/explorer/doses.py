"""How strongly a feature may be steered: its effect and the fluency that it costs, dose by dose."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

from monosem.errors import MonosemError
from monosem.explorer.answers import explained
from monosem.explorer.dictionary import Dictionary, Unavailable
from monosem.explorer.doctor import require_room, require_words
from monosem.explorer.effects import require_prediction
from monosem.explorer.shapes import AskedDoses, Dose
from monosem.explorer.subject import Subjects
from monosem.models import SubjectModel
from monosem.sae import SAE
from monosem.steering import DoseResponse, steering_vector
from monosem.steering.dose import TOLERANCE, each_dose

PROMOTED = 5
"""Tokens whose probability is the effect, where no words are given."""


class Doses:
    """The dose-response of a feature. Made on the model's thread, which then measures a dose at a time."""

    def __init__(self, dictionary: Dictionary, asked: AskedDoses, latent: int, sae: SAE, model: SubjectModel) -> None:
        """Check what is asked; nothing is written yet.

        Raises:
            DataError: a text is empty or too long, or there are no words.
            Unavailable: the model writes no text, or the SAE writes elsewhere than it reads.
        """
        require_prediction(model)
        for prompt in asked.prompts:
            require_words(prompt)
            require_room(model, len(model.tokens(prompt)[0]) + asked.max_tokens)
        promoted = [weight.text for weight in dictionary.store[latent].promoted if weight.text.strip()]
        self.words = asked.words or promoted[:PROMOTED]
        if not self.words:
            raise Unavailable(f"it is not known which tokens f/{latent} promotes: give words")
        self._vector = steering_vector(sae, latent, hook=str(dictionary.hook))
        self.strengths, self._left = each_dose(
            model,
            self._vector,
            asked.prompts,
            self.words,
            strengths=asked.strengths,
            max_new_tokens=asked.max_tokens,
            temperature=asked.temperature,
            seed=asked.seed,
        )
        self._done = DoseResponse(self._vector, [], "probability of the words", *TOLERANCE)

    def step(self) -> dict[str, Any]:
        """Another dose, and the strongest one before fluency breaks so far."""
        dose = next(self._left)
        self._done.doses.append(dose)
        told = Dose(
            strength=dose.strength,
            length=dose.length,
            effect=dose.effect,
            surprise=dose.surprise,
            perplexity=dose.perplexity,
            repetition=dose.repetition,
            text=dose.text,
            fluent=self._done.fluent(dose),
        )
        return {"dose": told, "knee": self._done.knee.strength}


async def told_doses(subjects: Subjects, doses: Doses) -> AsyncIterator[dict[str, Any]]:
    """What is to come, then every dose; or what went wrong. Between two doses the model is anybody's."""
    yield {"words": doses.words, "strengths": doses.strengths}
    try:
        for _ in doses.strengths:
            yield await asyncio.wrap_future(subjects.run(doses.step))
    except MonosemError as error:
        yield {"error": explained(error)[1]}
