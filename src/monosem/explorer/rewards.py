"""Two answers side by side: what a reward model gives them, and the features that make the difference."""

from __future__ import annotations

from collections import defaultdict
from typing import Any, NamedTuple

import torch
from torch import Tensor

from monosem.errors import DataError
from monosem.explorer.dictionary import Dictionary, Unavailable
from monosem.explorer.doctor import known_features, require_room, require_words
from monosem.explorer.scoring import gives_reward
from monosem.explorer.shapes import AskedRewards, Rewarded, RewardFeature, Rewards
from monosem.explorer.subject import Subjects
from monosem.interventions import attribute
from monosem.models import SubjectModel
from monosem.sae import SAE

STEPS = 8
"""Of the integrated gradients, a forward and backward pass each."""


class Scored(NamedTuple):
    """One answer."""

    told: Rewarded
    parts: dict[int, float]
    """By latent: the part of the reward that it makes."""
    by_token: dict[int, list[tuple[int, float, float]]]


def compared_rewards(subjects: Subjects, dictionary: Dictionary, asked: AskedRewards) -> Rewards:
    """The rewards of two answers, and the features whose parts in them differ most.

    Parts are integrated gradients from no features to all of them: they add up to what goes away without the features.

    Raises:
        DataError: a text is empty or too long.
        Unavailable: there is no reward model.
    """
    if dictionary.can["rewards"]:
        raise Unavailable(f"{dictionary.name}: {dictionary.can['rewards']}")

    def ask(sae: SAE, model: SubjectModel) -> Rewards:
        if not gives_reward(model):
            raise Unavailable(f"{model.name} is no reward model: it does not give a text one number")
        first, second = (_scored(dictionary, sae, model, asked, answer) for answer in asked.answers)
        latents = {*first.parts, *second.parts}
        parts = {latent: (first.parts.get(latent, 0.0), second.parts.get(latent, 0.0)) for latent in latents}
        strongest = sorted(latents, key=lambda latent: (-abs(parts[latent][1] - parts[latent][0]), latent))[: asked.top]
        names = known_features(dictionary, strongest)
        features = [
            RewardFeature(
                **names[latent],
                parts=parts[latent],
                by_token=(first.by_token.get(latent, []), second.by_token.get(latent, [])),
            )
            for latent in strongest
        ]
        return Rewards(model=model.name, answers=(first.told, second.told), features=features, total=len(latents))

    return subjects.ask(dictionary, ask, dictionary.reward_name)


def _scored(dictionary: Dictionary, sae: SAE, model: SubjectModel, asked: AskedRewards, answer: str) -> Scored:
    require_words(answer)
    ids, first = _read(model, asked, answer)
    tokens = torch.tensor([ids])
    require_room(model, tokens.shape[1])
    found = attribute(
        model,
        sae,
        tokens.to(model.device),
        of=_reward,
        method="integrated",
        steps=STEPS,
        hook=str(dictionary.hook),
    )
    parts, by_token = defaultdict[int, float](float), defaultdict[int, list[tuple[int, float, float]]](list)
    entries = zip(
        found.codes.rows().tolist(),
        found.codes.indices.tolist(),
        found.codes.values.tolist(),
        found.scores.values.tolist(),
        strict=True,
    )
    for token, latent, activation, part in entries:
        if activation > 0:
            parts[latent] += part
            by_token[latent].append((token, activation, part))
    assert found.baseline is not None
    told = Rewarded(
        texts=dictionary.store.vocabulary.texts(ids),
        first=first,
        reward=float(found.metric[0]),
        features=float(found.metric[0] - found.baseline[0]),
    )
    return Scored(told, dict(parts), dict(by_token))


def _read(model: SubjectModel, asked: AskedRewards, answer: str) -> tuple[list[int], int]:
    """The tokens of prompt and answer, and the number of the answer's first one."""
    if not asked.prompt:
        return model.tokens(answer)[0].tolist(), 0
    if asked.chat and getattr(model.tokenizer, "chat_template", None) is not None:
        messages = [{"role": "user", "content": asked.prompt}]
        text = model.tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
        before = model.tokenizer(text, add_special_tokens=False)["input_ids"]
    else:
        before = model.tokens(asked.prompt)[0].tolist()
        apart = asked.prompt[-1].isspace() or answer[0].isspace()
        answer = answer if apart else " " + answer
    return before + model.tokenizer(answer, add_special_tokens=False)["input_ids"], len(before)


def _reward(out: Any) -> Tensor:
    logits = getattr(out, "logits", out)
    if logits.ndim != 2 or logits.shape[1] != 1:
        raise DataError(f"the model gives {tuple(logits.shape)}, not one number for each text")
    return logits[:, 0]
