"""An SAE of the untrained model: what a metric makes of a dictionary of features that nobody has learnt.

Heap et al., Sparse autoencoders can interpret randomly initialized transformers, 2025.
"""

from __future__ import annotations

import copy

import torch

from monosem.activations import activations
from monosem.evaluation.controls import Mean
from monosem.evaluation.losses import Losses
from monosem.evaluation.metric import Column, Dictionary
from monosem.evaluation.model_reading import ModelReading
from monosem.evaluation.reconstruction import Reconstruction
from monosem.evaluation.survey import Extra, OnePlace, Survey, pass_over
from monosem.models import SubjectModel
from monosem.sae import SAE
from monosem.training import Step, Trainer, TrainingConfig, train
from monosem.work import doing

TOKENS, LEAST, WORK = 300_000, 20_000, 5e12
"""For how many tokens its SAE is trained: the first, as many at most as the other one; fewer, down to the second, where
parameters of the model times tokens would exceed the third."""
MEASURED, LOSSES = 65_536, 16_384
"""Tokens on which it is measured, at most; and no more than it was trained on."""
SEED = 7
TRAINING = "training an SAE of the untrained model"


def untrained_model(model: SubjectModel, seed: int = SEED) -> SubjectModel:
    """A copy whose weight matrices have their numbers shuffled, each among themselves: their sizes are as they were."""
    module = copy.deepcopy(model.module)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            if parameter.ndim > 1:
                order = torch.randperm(parameter.numel(), generator=generator).to(parameter.device)
                parameter.copy_(parameter.reshape(-1)[order].reshape(parameter.shape))
    return SubjectModel(module, model.tokenizer, f"{model.name}, untrained")


def untrained(survey: Survey) -> Extra | None:
    """A column "untrained": an SAE like the first, trained on the shuffled model and measured there."""
    place = _place(survey)
    if place is None:
        return None
    first, reading = next(iter(survey.saes.values())), place.reading
    model, hook = untrained_model(place.model), reading.first.hooks[0]
    length = training_length(model, first.metadata.tokens_trained, survey.untrained_tokens)
    sae = _trained(first, model, hook, length, survey)
    own = ModelReading({"untrained": sae}, model, hook, min(MEASURED, survey.tokens, length), **reading.asked)
    _, sample = own.sample(8192)
    columns: dict[str, Column] = {"untrained": Dictionary(sae), "mean": Mean(sample)}
    losses = Losses(
        own.first.predicted, list(columns), own.contexts, own.known, min(LOSSES, survey.loss_tokens, length)
    )
    own.losses, own.work = losses, "evaluating the untrained model"
    rebuilt = Reconstruction(sample.mean(0), ["untrained"])
    pass_over(own, columns, [rebuilt, losses], survey.keeper("untrained", [rebuilt, losses]))
    found = rebuilt.result("untrained")
    if "kl" in (cost := losses.result("untrained")):  # what it predicts is noise: its own loss says nothing
        found["kl"] = cost["kl"]
    facts: dict[str, str | int | float] = {"untrained_tokens": sae.metadata.tokens_trained}
    if first.metadata.tokens_trained:
        facts["tokens_trained"] = first.metadata.tokens_trained
    return Extra({"untrained": found}, facts=facts)


def tokens_to_come(survey: Survey) -> int:
    """How many tokens will be trained on for it."""
    place, (first, *_) = _place(survey), survey.saes.values()
    if place is None:
        return 0
    return training_length(place.model, first.metadata.tokens_trained, survey.untrained_tokens)


def _place(survey: Survey) -> OnePlace | None:
    place = survey.one_place()
    return place if place and place.reading.first.alone and place.reading.things == "tokens" else None


def training_length(model: SubjectModel, trained: int | None, wanted: int | None = None) -> int:
    """How many tokens the SAE of the untrained model is trained for, where nobody says so."""
    if wanted is not None:
        return wanted
    parameters = sum(parameter.numel() for parameter in model.module.parameters())
    return min(TOKENS, trained or TOKENS, max(LEAST, round(WORK / parameters)))


def _trained(first: SAE, model: SubjectModel, hook: str, tokens: int, survey: Survey) -> SAE:
    known = first.metadata
    common = {**first.common, "dtype": torch.float32}
    sae = type(first)(first.d_in, first.n_latents, **first.settings, **common, seed=SEED)
    text = known.text if (known.text or "").partition(":")[0] == "bundled" else None
    reading = survey.reading
    assert isinstance(reading, ModelReading)
    source = activations(
        model,
        hook,
        text=text or reading.asked["text"],
        context_length=reading.known.context_length,
        prepend_bos=reading.known.prepend_bos,
        packing=reading.known.packing,
        buffer_tokens=max(1, min(131_072, tokens // 4)),  # no more is read than is trained on
    )
    folder, config = None, TrainingConfig()
    if survey.keeping:
        folder = survey.keeping.path / "untrained"
        config = TrainingConfig(checkpoint_minutes=survey.keeping.minutes)
    with doing(TRAINING, tokens, unit="tokens") as stage, torch.enable_grad():

        def show(trainer: Trainer, step: Step) -> None:
            stage.advance(trainer.tokens - stage.done)

        train(sae, source, tokens=tokens, config=config, path=folder, callbacks=[show])
    return sae
