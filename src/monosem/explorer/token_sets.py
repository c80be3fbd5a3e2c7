"""Sets of tokens against the features of a dictionary: tested when asked for, and known as long as the server runs."""

from __future__ import annotations

import threading

import numpy as np

from monosem.analysis.token_sets import CLASSES, Enriched, TokenSets, token_sets
from monosem.errors import ConfigError
from monosem.explorer import shapes
from monosem.explorer.dictionary import Dictionary, Unavailable
from monosem.explorer.site import Site
from monosem.models import SubjectModel
from monosem.sae import SAE
from monosem.work import Job, job

EXAMPLES = 6


class TokenSetShelves:
    """What is known of the token sets of every dictionary of a site."""

    def __init__(self, site: Site) -> None:
        self.site = site
        self._tested: dict[str, TokenSets] = {}
        self._jobs: dict[str, Job] = {}
        self._lock = threading.Lock()

    def view(self, name: str) -> shapes.TokenSetsView:
        """All sets and classes, if they have been tested."""
        dictionary, found = self.site[name], self._tested.get(name)
        tested = None if found is None else _tested(dictionary, found)
        running = self._jobs.get(name)
        return shapes.TokenSetsView(
            model=str(dictionary.model_name),
            why_not=dictionary.can["prompt"],
            tested=tested,
            testing=None if running is None else running.line(),
        )

    def test(self, name: str) -> shapes.TokenSetsView:
        """Test them, if that has not been done.

        Raises:
            Unavailable: there is no logit lens for this dictionary.
        """
        dictionary = self.site[name]

        def ask(sae: SAE, model: SubjectModel) -> TokenSets:
            try:
                with job(False) as self._jobs[name]:
                    return token_sets(sae, model)
            except ConfigError as error:
                raise Unavailable(str(error)) from error
            finally:
                del self._jobs[name]

        with self._lock:
            if name not in self._tested:
                self._tested[name] = self.site.subjects.ask(dictionary, ask)
        return self.view(name)

    def own(self, name: str, latent: int) -> shapes.OwnSets:
        """Those of one feature."""
        self.site[name].check(latent)
        found = self._tested.get(name)
        if found is None:
            return shapes.OwnSets(found=None)
        sets = [_score(each) for each in found.of(latent)]
        return shapes.OwnSets(found=shapes.FeatureSets(feature_class=found.classes[latent], sets=sets))

    def features(
        self, name: str, of_set: str | None, of_class: str | None, suppressed: bool, n: int
    ) -> shapes.SetFeatures:
        """The features of a set, or of a class.

        Raises:
            ConfigError: there is no such set or class.
            Unavailable: they have not been tested.
        """
        dictionary, found = self.site[name], self._tested.get(name)
        if found is None:
            raise Unavailable("the token sets have not been tested: ask for that first")
        if of_set is not None:
            every = [(latent, _score(each)) for latent, each in found.top(of_set, len(found.latents), suppressed)]
        elif of_class in CLASSES:
            latents = np.flatnonzero(np.array(found.classes) == of_class)
            latents = latents[np.argsort(-dictionary.rates[latents], kind="stable")]
            every = [(int(latent), None) for latent in latents]
        else:
            raise ConfigError(f"there is no class {of_class!r}: there are {', '.join(CLASSES)}")
        shown = every[:n]
        if of_set is None:
            shown = [(latent, _score(each[0]) if (each := found.of(latent)) else None) for latent, _ in shown]
        named = dictionary.all_named([latent for latent, _ in shown])
        return shapes.SetFeatures(
            total=len(every), features=[shapes.SetFeature(**named[latent], score=score) for latent, score in shown]
        )


def _score(each: Enriched) -> shapes.SetScore:
    return shapes.SetScore(set=each.name, score=each.score, q=each.q, z=each.z, q_directions=each.q_directions)


def _tested(dictionary: Dictionary, found: TokenSets) -> shapes.TestedSets:
    enriched, text = found.enriched, dictionary.store.vocabulary.text
    up, down = (enriched > 0).sum(0), (enriched < 0).sum(0)
    order = np.argsort(-(up + down), kind="stable").tolist()
    names, classes = found.names, found.classes
    return shapes.TestedSets(
        n_tokens=found.n_tokens,
        called=int((enriched != 0).any(1).sum()),
        sets=[
            shapes.TestedSet(
                name=names[i],
                tokens=len(found.tokens[names[i]]),
                examples=[text(token) for token in found.tokens[names[i]][:EXAMPLES].tolist()],
                promoted=int(up[i]),
                suppressed=int(down[i]),
            )
            for i in order
        ],
        left_out=len(found.left_out),
        classes=[
            shapes.ClassShare(
                name=name, count=classes.count(name), share=classes.count(name) / len(classes), chance=chance
            )
            for name, chance in found.classes_by_chance.items()
        ],
    )
