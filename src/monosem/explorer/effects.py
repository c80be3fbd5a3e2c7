"""What ablating features does to a text: exactly, by running the model without them."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor

from monosem.errors import ConfigError
from monosem.explorer.dictionary import Dictionary, Unavailable
from monosem.explorer.shapes import Ablated, AskedTotal, Totals
from monosem.explorer.subject import Subjects, require_context, run_text, target_of
from monosem.interventions import Scale, effects
from monosem.models import SubjectModel
from monosem.sae import SAE


def ablated_context(subjects: Subjects, dictionary: Dictionary, text: str, context: int, latent: int) -> Ablated:
    """For every token of a harvested context, the change of its log-likelihood when a latent is ablated throughout.

    Raises:
        ConfigError: the store is of no such text or context.
        Unavailable: the text cannot be read any more, or the model predicts no next token.
    """
    dictionary.check(latent)
    require_context(dictionary, text, context)

    def ask(sae: SAE, model: SubjectModel) -> Ablated:
        require_prediction(model)
        batch = subjects.contexts(dictionary, sae, model, text).read(context, context + 1)
        there = ~batch.padding[0]
        changes = effects(model, sae, batch.tokens[:, there], latent, hook=str(dictionary.hook)).change[0, 1:]
        documents, positions = batch.document[0][there].tolist(), batch.position[0][there].tolist()
        return Ablated(
            effects=[None, *(float(f"{change:.4g}") for change in changes.tolist())],
            document=[d if d >= 0 else None for d in documents],
            position=[p if p >= 0 else None for p in positions],
        )

    return subjects.ask(dictionary, ask)


def total_effects(subjects: Subjects, dictionary: Dictionary, asked: AskedTotal) -> Totals:
    """What features add to the logit of a next token, by all that they do: the model with less the model without each.

    Raises:
        ConfigError: what was asked for is not one token.
        Unavailable: the model predicts no next token.
    """
    latents = [dictionary.check(latent) for latent in asked.latents]

    def ask(sae: SAE, model: SubjectModel) -> Totals:
        require_prediction(model)
        found = target_of(dictionary.store.vocabulary, model, asked.target)
        if found.target is None:
            raise ConfigError(found.refused or "give a next token")
        tokens = torch.tensor([run_text(dictionary, sae, model, asked.text).tokens], device=model.device)
        totals = logit_losses(model, sae, tokens, latents, found.target["token"], str(dictionary.hook))
        pairs = zip(latents, totals.tolist(), strict=True)
        return Totals(target=found.target, totals={str(latent): float(f"{total:.4g}") for latent, total in pairs})

    return subjects.ask(dictionary, ask)


def require_prediction(model: SubjectModel) -> None:
    """Raise Unavailable where a model predicts no next token."""
    if not model.writes_text:
        raise Unavailable(f"{model.name} predicts no next token: there is no effect to measure")


@torch.no_grad()
def logit_losses(
    model: SubjectModel, sae: SAE, tokens: Int[Tensor, "1 pos"], latents: Sequence[int], target: int, hook: str
) -> Float[Tensor, " latents"]:
    """The target's logit after the last token, relative to the mean of all: as it is less with each latent ablated.

    Every row of a batch goes without one latent, so that all share its encoding.
    """

    def told(given: Tensor) -> Tensor:
        logits = model(given)[:, -1].float()
        return logits[:, target] - logits.mean(-1)

    plain, found = told(tokens), list[Tensor]()
    for part in torch.tensor(latents).split(model.contexts_at_once(tokens.shape[1])):
        without = Scale(sae, part.tolist(), 1 - torch.eye(len(part)), hook=hook)
        with model.edit([without]):
            found.append(plain - told(tokens.expand(len(part), -1)))
    return torch.cat(found) if found else plain[:0]
