"""explain: what features mean, by rules or by a judge."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

import numpy as np

from monosem.arguments import checked
from monosem.errors import ConfigError
from monosem.explain.held_out import HeldOut, held_out
from monosem.explain.measure import measure
from monosem.explain.questions import AnyJudge
from monosem.explain.rules import NAME, Rules
from monosem.explain.written import written
from monosem.features import Explanation, Explanations, FeatureStore
from monosem.features.rows import numbers
from monosem.models import ModelSet, SubjectModel
from monosem.sae import SAE
from monosem.spelling import listed
from monosem.work import as_job, doing


@runtime_checkable
class Explainer(Protocol):
    """Whatever explains latents: the rules, or a judge."""

    @property
    def name(self) -> str:
        """Who it is, as explanations say it."""
        ...

    def explain(self, store: FeatureStore, latents: Sequence[int]) -> list[Explanation]:
        """Explanations of some latents; none of those of which it has nothing to say."""
        ...


@checked
@as_job
def explain(
    store: FeatureStore,
    latents: Sequence[int] | None = None,
    explainer: str | Explainer | AnyJudge = NAME,
    *,
    sae: SAE | None = None,
    model: SubjectModel | ModelSet | None = None,
    hook: str | Sequence[str] | None = None,
    text: str | None = None,
    save: bool = True,
    progress: bool = True,
) -> Explanations:
    """Explain features: a plain line for each, kept beside the store, where `store.explanations()` finds it.

    The rules need no model: words, kinds of words, their pieces, what stands before, counted in the store's text, and
    what is promoted at the output. Each comes with the rule itself, whose F1 is its score: on text that the harvest did
    not see where `sae` and `model` are given and there is more of it, else on the store's samples left to tests.

    Args:
        store: of text.
        latents: which; all if not given.
        explainer: "rules", or a judge.
        sae: the dictionary, to measure rules on held-out text.
        model: the model that it is of.
        hook: its hook points, if the SAE does not know them.
        text: what to read where the text of the harvest is at its end.
        save: keep them; of the same explainer those of other latents stay.
        progress: show where it is.

    Returns:
        The explanations of these latents.

    Raises:
        ConfigError: there is no such explainer or latent, or of SAE and model only one is given.
        DataError: the store is of images or rows, or too old.
    """
    if isinstance(explainer, str) and explainer != NAME:
        raise ConfigError(f"explainer={explainer!r}: there is, by name, {listed(explainer, [NAME])}; or give a judge")
    if (sae is None) != (model is None):
        raise ConfigError("rules are measured with both: give sae and model, or neither")
    wanted = known_latents(store, latents)
    name = explainer if isinstance(explainer, str) else explainer.name
    if isinstance(explainer, AnyJudge):
        items = list(written(store, wanted, explainer, progress))
    elif not isinstance(explainer, str):
        items = explainer.explain(store, wanted)
    else:
        items = Rules(estimate=sae is None).explain(store, wanted)
    if sae is not None and model is not None and any(item.rule for item in items):
        new = held_out(store, sae, model, hook, text, progress=progress)
        items = Rules().explain(store, wanted) if new is None else _measured(store, items, new)
    if save:
        of_others = [item for item in store.explanations(name) if not set(item.latents) & set(wanted)]
        Explanations(store.path, name, sorted([*of_others, *items], key=lambda item: item.latents)).save()
    return Explanations(store.path, name, items)


def _measured(store: FeatureStore, items: list[Explanation], text: HeldOut) -> list[Explanation]:
    with doing("measuring rules"):
        maxima = np.nan_to_num(numbers(store.columns(["max"]).column("max")))
        return measure(items, maxima, text)


def known_latents(store: FeatureStore, latents: Sequence[int] | None) -> Sequence[int]:
    """Some latents of a store, each once, ascending; all if none are given.

    Raises:
        ConfigError: one is not there.
    """
    wanted = range(store.n_latents) if latents is None else sorted({int(latent) for latent in latents})
    for latent in (*wanted[:1], *wanted[-1:]):
        if not 0 <= latent < store.n_latents:
            raise ConfigError(f"there is no latent {latent}: this SAE has 0 to {store.n_latents - 1}")
    return wanted
