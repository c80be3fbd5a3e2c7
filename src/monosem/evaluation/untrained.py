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
from monosem.evaluation.survey import Extra, Survey, pass_over
from monosem.models import SubjectModel
from monosem.sae import SAE
from monosem.training import train
from monosem.work import doing

TOKENS = 300_000
"""For which its SAE is trained; as many at most as the other one."""
MEASURED, LOSSES = 65_536, 16_384
"""Tokens on which it is measured, at most."""
SEED = 7


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
    place = survey.one_place()
    if place is None or not place.reading.first.alone or place.reading.things != "tokens":
        return None
    first, reading = next(iter(survey.saes.values())), place.reading
    model, hook = untrained_model(place.model), reading.first.hooks[0]
    sae = _trained(first, model, hook, survey)
    asked = {**reading.asked}
    own = ModelReading({"untrained": sae}, model, hook, min(MEASURED, survey.tokens), **asked)
    _, sample = own.sample(8192)
    columns: dict[str, Column] = {"untrained": Dictionary(sae), "mean": Mean(sample)}
    losses = Losses(own.first.predicted, list(columns), own.contexts, own.known, min(LOSSES, survey.loss_tokens))
    own.losses = losses
    rebuilt = Reconstruction(sample.mean(0), ["untrained"])
    pass_over(own, columns, [rebuilt, losses])
    found = rebuilt.result("untrained")
    if "kl" in (cost := losses.result("untrained")):  # what it predicts is noise: its own loss says nothing
        found["kl"] = cost["kl"]
    return Extra({"untrained": found}, facts={"untrained_tokens": sae.metadata.tokens_trained})


def _trained(first: SAE, model: SubjectModel, hook: str, survey: Survey) -> SAE:
    known = first.metadata
    sae = type(first)(first.d_in, first.n_latents, **first.settings, **first.common, seed=SEED)
    text = known.text if (known.text or "").partition(":")[0] == "bundled" else None
    reading = survey.reading
    assert isinstance(reading, ModelReading)
    source = activations(
        model,
        hook,
        text=text or reading.asked["text"],
        context_length=reading.known.context_length,
        prepend_bos=reading.known.prepend_bos,
    )
    with doing("training an SAE of the untrained model"), torch.enable_grad():
        train(sae, source, tokens=min(TOKENS, known.tokens_trained or TOKENS), progress=False)
    return sae
