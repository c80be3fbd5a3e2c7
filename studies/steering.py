"""Is steering real? Do words that a feature is not known by come when it is raised, and only when it is?

    python studies/steering.py [RUN] [--model FOLDER] [--output studies] [--quick]

Rules, written before looking, but for a trial of two or three features, after which effects became logarithms text by
text. Features: those that fire 100 times at least and on at most 1 % of tokens, and whose
strongest passages share four words at least which are neither tokens that the feature fires on, nor such as its decoder
promotes, nor in its name (passage_words.py): the held-out words. 20 of them are drawn at random; beside them the 10 of
highest steering worth (output score) and the 10 of highest clarity. Each is raised by growing amounts while openings
are continued (`ms.dose_response`), up to the knee: the strongest dose before the text gets 0.5 nats a token more
surprising to the plain model, or repeats itself. Effect: the logarithm of the held-out words' probability with
steering over that without, mean of the texts. Floors: a direction drawn at random, of the same length; and the held-out
words of the other features under the same steering. RUN is that of recipes/smollm2. Writes steering.svg and .md.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from passage_words import Words, words_of
from scipy.stats import spearmanr
from smollm2 import Estimate, arguments, difference, estimate, in_logarithms, opened, random_vector
from torch import Tensor

import monosem as ms
from monosem.features import FeatureStore
from monosem.features.statistics import Ranked
from monosem.features.worth import LENGTH, steering_worth
from monosem.models import SubjectModel
from monosem.sae import SAE
from monosem.steering import DoseResponse
from monosem.steering.dose import first_tokens

OFTEN, SELDOM = 100, 0.01
OPENINGS = [
    "I think that",
    "Yesterday I",
    "The most important thing is",
    "When we arrived, we",
    "It was",
    "They said that",
    "In the letter she wrote",
    "People say that",
]
NEW_TOKENS = 24
FIXED, FIXED_LENGTH = 8, 48
"""Texts on which the words of all features are looked at under the same steering, and their tokens."""
WORTH_CONTEXTS = 4
GROUPS = ("drawn at random", "highest steering worth", "highest clarity")


@dataclass
class Steered:
    """One feature, and what raising it did, in logarithms."""

    latent: int
    name: str
    words: Words
    response: DoseResponse
    floor: DoseResponse | None
    """Of the random direction, at the same strengths."""

    @property
    def at_knee(self) -> int:
        """The number of its last fluent dose."""
        return self.response.doses.index(self.response.knee)

    def rise(self, dose: int, floor: bool = False) -> float:
        """Of the words' probability, a logarithm."""
        return (self.floor if floor and self.floor else self.response).doses[dose].effect

    @property
    def trend(self) -> float | None:
        """Rank correlation of strength and effect up to the knee; None of fewer than three doses."""
        until = self.at_knee + 1
        effects = [dose.effect for dose in self.response.doses[:until]]
        return float(spearmanr(range(until), effects)[0]) if until >= 3 else None  # pyright: ignore


def eligible(store: FeatureStore, quick: bool) -> dict[int, Words]:
    """The features that the rule lets in, with their words."""
    table = store.table(where=f"count >= {OFTEN} and rate <= {SELDOM}", columns=["latent"], limit=None)
    allowed = set(table.column("latent").to_pylist())
    found = {latent: words for latent, words in words_of(store).items() if latent in allowed}
    return dict(list(found.items())[:60]) if quick else found


def worth(store: FeatureStore, sae: SAE, model: SubjectModel, latents: Sequence[int]) -> dict[int, float]:
    """Output scores: the store's own, or measured here."""
    if "output_score" in store.table(limit=1).column_names:
        kept = store.columns(["output_score"]).column("output_score").to_pylist()
        return {latent: kept[latent] for latent in latents}
    contexts = store.tables.run("select tokens from contexts order by context").column("tokens").to_pylist()
    chosen = [row[:LENGTH] for row in contexts if len(row) >= LENGTH][:: max(1, len(contexts) // WORTH_CONTEXTS)]
    largest = np.zeros(sae.n_latents, np.float32)
    promoted = np.full((sae.n_latents, 8), -1)
    for feature in store.features(list(latents)):
        largest[feature.latent] = feature.max or 0
        tokens = [one.token for one in feature.promoted][:8]
        promoted[feature.latent, : len(tokens)] = tokens
    ranked = Ranked(promoted, np.zeros(promoted.shape, np.float32))
    assert sae.metadata.hook is not None
    found = steering_worth(sae, model, sae.metadata.hook, torch.tensor(chosen[:WORTH_CONTEXTS]), largest, ranked)
    if found is None:
        raise SystemExit(f"{model.name} does not let steering worth be measured")
    return {latent: float(found.output_score[latent]) for latent in latents}


def groups(store: FeatureStore, scores: dict[int, float], sizes: tuple[int, int]) -> dict[str, list[int]]:
    """Latents by the rule of each group."""
    clarity = store.columns(["clarity"]).column("clarity").to_pylist()
    latents = sorted(scores)
    drawn = np.random.default_rng(0).choice(latents, sizes[0], replace=False).tolist()
    by_worth = sorted(latents, key=lambda latent: -scores[latent])[: sizes[1]]
    by_clarity = sorted(latents, key=lambda latent: -(clarity[latent] or 0))[: sizes[1]]
    return dict(zip(GROUPS, (drawn, by_worth, by_clarity), strict=True))


@torch.no_grad()
def on_text(
    model: SubjectModel, tokens: Tensor, lists: Sequence[Sequence[int]], vector: ms.AddVector | None
) -> np.ndarray:
    """(lists,) mean probability of each list's words as the next token of fixed texts."""
    with model.edit([] if vector is None else [vector]):
        p = model(tokens)[:, 1:].float().softmax(-1)
    return np.array([float(p[..., list(words)].sum(-1).mean()) for words in lists])


def draw(path: Path, found: dict[str, list[Steered]], table: np.ndarray) -> None:
    """The figure."""
    import matplotlib.pyplot as plt

    plt.rcParams["svg.hashsalt"] = "monosem"
    figure, axes = plt.subplots(1, 3, figsize=(13, 3.6), layout="constrained")
    mine = found[GROUPS[0]]
    lengths = [dose.length for dose in mine[0].response.doses]
    for floor, colour, label in ((False, "#1f6f8b", "the feature"), (True, "#999999", "a random direction")):
        for one in mine:
            until = one.at_knee + 1
            axes[0].plot(lengths[:until], [one.rise(i, floor) for i in range(until)], color=colour, alpha=0.25, lw=1)
        counts = [i for i in range(len(lengths)) if sum(one.at_knee >= i for one in mine) >= 3]
        means = [estimate([one.rise(i, floor) for one in mine if one.at_knee >= i]) for i in counts]
        errors = [[e.mean - e.low for e in means], [e.high - e.mean for e in means]]
        x = [lengths[i] for i in counts]
        axes[0].errorbar(x, [e.mean for e in means], errors, color=colour, marker="o", capsize=2, label=label)
    axes[0].set(xlabel="length added, in lengths of activations", title="held-out words, up to the knee")
    axes[0].set_ylabel("log of their probability, over that without")
    for place, (group, members) in enumerate(found.items()):
        values = [one.rise(one.at_knee) for one in members]
        spread = np.random.default_rng(0).uniform(-0.15, 0.15, len(values))
        axes[1].plot(place + spread, values, "o", color="#1f6f8b", alpha=0.4, markersize=4)
        bar(axes[1], place, estimate(values), group)
    axes[1].set_xticks(range(len(found)), [group.replace(" ", "\n", 1) for group in found], fontsize=8)
    axes[1].set(title="at the knee, by how features were chosen")
    for place, values in enumerate(table.T):
        bar(axes[2], place, estimate(values), "")
    axes[2].set_xticks(
        range(3), ["its own\nheld-out words", "those of\nother features", "promoted\ntokens"], fontsize=8
    )
    axes[2].set(title="at the knee, on the same fixed texts, all features")
    for axis in axes:
        axis.axhline(0, color="0.8", lw=1, zorder=0)
        axis.spines[["top", "right"]].set_visible(False)
    axes[0].legend(frameon=False, fontsize=8)
    figure.savefig(path, metadata={"Date": None})


def bar(axis: object, place: float, value: Estimate, label: str) -> None:
    """A mean and its interval."""
    axis.errorbar(  # type: ignore[attr-defined]
        place, value.mean, [[value.mean - value.low], [value.high - value.mean]], fmt="s", color="black", capsize=4
    )


def verdict(found: dict[str, list[Steered]], table: np.ndarray) -> str:
    """What came out, whichever way."""
    mine = found[GROUPS[0]]
    rises = np.array([one.rise(one.at_knee) for one in mine])
    floors = np.array([one.rise(one.at_knee, floor=True) for one in mine])
    beyond, own = estimate(rises - floors), estimate(rises)
    trends = estimate([trend for one in mine if (trend := one.trend) is not None])
    special = estimate(table[:, 0] - table[:, 1])
    stuck = sum(one.at_knee == 0 for one in mine)
    real = "Steering is real" if beyond.low > 0 and special.low > 0 else "That steering is real is not shown"
    by_group = {group: np.array([one.rise(one.at_knee) for one in members]) for group, members in found.items()}
    gap = difference(by_group[GROUPS[1]], by_group[GROUPS[2]])
    better = "beat" if gap.low > 0 else "are worse than" if gap.high < 0 else "are not shown to beat"
    return (
        f"{real}: at the knee the held-out words are {np.exp(own.mean):.2f} times as likely as without steering (log "
        f"{own.text()}), {np.exp(beyond.mean):.2f} times as under a random direction of the same length (log "
        f"{beyond.text()}); rank correlation with strength up to the knee {trends.text()}; {stuck} of {len(mine)} "
        f"features break the text at the weakest dose. On fixed texts a feature's own held-out words rise by "
        f"{special.text()} more than those of other features. Features chosen by steering worth {better} those chosen "
        f"by clarity: {estimate(by_group[GROUPS[1]]).text()} against {estimate(by_group[GROUPS[2]]).text()}, "
        f"difference {gap.text()}."
    )


def rows(found: dict[str, list[Steered]]) -> str:
    """Every feature, as Markdown."""
    lines = ["| | feature | held-out words | knee | rise | random |", "|---|---|---|---|---|---|"]
    for group, members in found.items():
        for one in members:
            knee = one.response.knee.length
            floor = "" if one.floor is None else f"{one.rise(one.at_knee, floor=True):+.2f}"
            said = " ".join(one.words.held_out)
            name = one.name.replace("|", "\\|").replace("\n", "\\n")
            lines.append(
                f"| {group} | {one.latent} {name} | {said} | {knee:.2f} | {one.rise(one.at_knee):+.2f} | {floor} |"
            )
    return "\n".join(lines)


def main() -> None:
    given = arguments(__doc__).parse_args()
    start = time.perf_counter()
    model, run = opened(given.model), ms.Run(given.run)
    sae, store = run.sae(), run.features()
    openings = OPENINGS[:2] if given.quick else OPENINGS
    words = eligible(store, given.quick)
    chosen = groups(store, worth(store, sae, model, list(words)), (3, 2) if given.quick else (20, 10))
    done: dict[int, Steered] = {}

    def steered(latent: int, with_floor: bool) -> Steered:
        if latent in done and (done[latent].floor is not None or not with_floor):
            return done[latent]
        vector, own = ms.steering_vector(sae, latent), words[latent].held_out
        response = ms.dose_response(model, vector, openings, own, max_new_tokens=NEW_TOKENS)
        floor = None
        if with_floor:
            strengths = [dose.strength for dose in response.doses[1:]]
            other = random_vector(vector, latent)
            floor = ms.dose_response(model, other, openings, own, strengths=strengths, max_new_tokens=NEW_TOKENS)
        done[latent] = Steered(
            latent, store[latent].title, words[latent], in_logarithms(response), floor and in_logarithms(floor)
        )
        return done[latent]

    found = {group: [steered(latent, group == GROUPS[0]) for latent in of] for group, of in chosen.items()}
    every = list(done.values())
    contexts = store.tables.run("select tokens from contexts order by context desc").column("tokens").to_pylist()
    fixed = torch.tensor([row[:FIXED_LENGTH] for row in contexts if len(row) >= FIXED_LENGTH][:FIXED])
    lists = [first_tokens(model, one.words.held_out) for one in every]
    lists += [first_tokens(model, one.words.promoted) if one.words.promoted else [0] for one in every]
    plain = on_text(model, fixed, lists, None)
    n = len(every)
    table = np.zeros((n, 3))
    for i, one in enumerate(every):
        changed = np.log(on_text(model, fixed, lists, one.response.vector.edit(one.response.knee.strength)) / plain)
        table[i] = changed[i], np.delete(changed[:n], i).mean(), changed[n + i]
    said = verdict(found, table)
    given.output.mkdir(parents=True, exist_ok=True)
    draw(given.output / "steering.svg", found, table)
    head = " | ".join(estimate(column).text() for column in table.T)
    about = store.index
    parts = [
        "# Is steering real?",
        "Written by `python studies/steering.py`, as it came out.",
        f"**{said}**",
        "![rise of held-out words](steering.svg)",
        f"{len(words)} of {store.n_latents:,} features of a {about['architecture']} SAE at {about['hook']} of "
        f"SmolLM2-135M-Instruct fit the rule; {len(openings)} openings, {NEW_TOKENS} new tokens, doses of "
        f"{', '.join(f'{dose.length:.2f}' for dose in every[0].response.doses[1:])} lengths of an activation. "
        "Intervals: 95 %, bootstrap over features. The knee is found on the texts whose effect is told; the random "
        "direction is compared at the feature's own knee.",
        "On the same fixed texts, at the knee, logarithm of the rise:\n\n| its own held-out words | those of other "
        f"features | tokens that it promotes |\n|---|---|---|\n| {head} |",
        f"## Every feature\n\n{rows(found)}",
    ]
    (given.output / "steering.md").write_text("\n\n".join(parts) + "\n")
    print(f"{said}\n{time.perf_counter() - start:.0f} s; {given.output / 'steering.md'}")


if __name__ == "__main__":
    main()
