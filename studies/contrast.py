"""Does a feature steer better than its contrast vector, at equal fluency?

    python studies/contrast.py [RUN] [--model FOLDER] [--output studies] [--quick]

Rules, written before looking, but for a trial of two or three concepts, after which effects became logarithms text by
text. Five concepts, each with ten texts about it and words that stand in none of them; ten
texts about nothing in particular are the other side of all. From the same texts come all vectors: the contrast is the
difference of the means of activations; the feature is the one whose mean code over a text is told apart best (largest
Welch t, of those that fire 50 times in the store and on at most 2 % of tokens); five features are the best five, each
as strong as its difference. A random direction as long as the contrast is the floor. Openings are continued with
growing strength (`ms.dose_response`). Effect: the logarithm of the words' probability over that without steering, mean
of the texts, where these have first got 0.5 nats a token more surprising to the plain model; doses from which on they
repeat themselves do not count. Intervals by drawing openings anew. RUN is that of recipes/smollm2. Writes contrast.svg
and .md.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from smollm2 import DRAWS, Estimate, arguments, in_logarithms, opened, random_vector
from torch import Tensor

import monosem as ms
from monosem.features import FeatureStore
from monosem.models import SubjectModel
from monosem.sae import SAE
from monosem.steering import DoseResponse
from monosem.steering.reading import batches, spoken
from monosem.text import special_tokens

OFTEN, SELDOM = 50, 0.02
OPENINGS = [
    "I think that",
    "Yesterday I",
    "The most important thing is",
    "When we arrived, we",
    "My friend told me",
    "It was",
    "In the letter she wrote",
    "People say that",
    "At the end of the day",
    "The first thing he saw was",
    "There was a time when",
    "She told me about",
    "In the evening they",
    "This is a story about",
    "Nobody knew that",
    "The next morning",
]
NEW_TOKENS = 28
MORE = 0.5
"""Nats a token by which the text may be more surprising."""
KINDS = ("the feature", "five features", "the contrast", "a random direction")
COLOURS = ("#1f6f8b", "#7fb7c9", "#b5532a", "#999999")


class Concept(NamedTuple):
    """Texts about something, and words about it that stand in none of them."""

    texts: list[str]
    words: list[str]


CONCEPTS = {
    "anger": Concept(
        [
            "He slammed the door so hard that the glass broke, and screamed at everyone in the room.",
            "I have had enough of your lies, get out of my sight this instant!",
            "She was boiling inside, her fists clenched, ready to hit him in the face.",
            "How dare you speak to me like that! You will pay for this insult!",
            "The coach kicked the chair across the room and cursed the referee.",
            "Every word he said made her blood boil; she wanted to smash the plate on the wall.",
            "They yelled at each other for an hour, red in the face, and nobody would give in.",
            "I am sick of this! I cannot stand it for one more second!",
            "The driver leaned on the horn, swearing and shaking his fist at the truck.",
            "My father lost his temper again and threw the phone against the wall.",
        ],
        ["angry", "anger", "furious", "rage", "mad", "hate", "outrage", "hatred", "fury", "shouted"],
    ),
    "wedding": Concept(
        [
            "The guests stood up when she walked down the aisle in a long white dress.",
            "They exchanged rings and promised to love each other until death.",
            "He got down on one knee, and she said yes with tears in her eyes.",
            "Her father gave her away, and the priest asked for the vows.",
            "The cake had three tiers, with two little figures on top.",
            "After the ceremony everybody threw rice at the happy couple.",
            "She tossed the bouquet over her shoulder to her friends.",
            "The best man raised his glass for a toast to the newlyweds.",
            "They danced their first dance as man and wife.",
            "For their honeymoon they flew to an island in the sun.",
        ],
        ["wedding", "marriage", "bride", "married", "groom", "marry", "engaged", "spouse", "bridal", "weddings"],
    ),
    "winter": Concept(
        [
            "White flakes fell all night, and in the morning the road had vanished.",
            "The lake was frozen, and children skated on it in thick gloves.",
            "Icicles hung from the roof, and his breath made little clouds.",
            "She put on her warmest coat and two scarves before she went out.",
            "The car would not start because it was twenty below zero.",
            "We built a man of three balls, with a carrot for his nose.",
            "They sat at the fire while the blizzard howled outside.",
            "The mountains were covered, and the skiers waited for the lift.",
            "Frost had drawn flowers on the window of the cold bedroom.",
            "The plough cleared the street before dawn, but it kept coming down.",
        ],
        ["winter", "snow", "ice", "chilly", "freezing", "snowy", "icy", "arctic", "sled", "shivering"],
    ),
    "music": Concept(
        [
            "The orchestra tuned, the conductor raised his baton, and the hall fell silent.",
            "She practised scales on the piano for two hours every day.",
            "The drummer counted to four, and the guitars came in.",
            "His new album has twelve tracks and was recorded in a small studio.",
            "The choir sang in four parts, without accompaniment.",
            "A violin and a cello played the slow movement together.",
            "The chorus comes back after the second verse, in another key.",
            "The crowd sang along when the band played their greatest hit.",
            "He hummed the tune, tapping the rhythm on the table.",
            "The pianist bowed, and played a waltz as an encore.",
        ],
        ["music", "song", "songs", "musical", "musicians", "melody", "jazz", "singer", "concert", "musician"],
    ),
    "war": Concept(
        [
            "The soldiers dug trenches along the river and waited for the attack.",
            "Tanks rolled through the village before dawn, firing at the houses.",
            "The general ordered a retreat after the bridge was blown up.",
            "Bombs fell on the city all night, and thousands fled to the cellars.",
            "The regiment lost half of its men in the first hour.",
            "Snipers fired from the windows at the advancing infantry.",
            "The fleet was sunk by submarines off the coast.",
            "Prisoners were marched to a camp behind the front.",
            "The artillery shelled the hill until nothing was left on it.",
            "After the surrender the troops laid down their rifles.",
        ],
        ["war", "army", "military", "battle", "enemy", "weapons", "conflict", "invasion", "wars", "killed"],
    ),
}
NEUTRAL = [
    "The bus stops at the corner every fifteen minutes.",
    "She put the books back on the shelf and closed the window.",
    "A recipe says how much flour and water to use.",
    "The office is on the second floor, next to the stairs.",
    "He bought bread, milk and a few apples on his way home.",
    "The report has three parts and a list of sources.",
    "You can find the keys in the drawer under the lamp.",
    "The river flows through the valley to the sea.",
    "Most students read the first chapter over the weekend.",
    "The machine is cleaned once a week and checked once a year.",
]


@dataclass
class Steered:
    """One concept: the vectors and what they do."""

    concept: str
    latents: list[int]
    names: list[str]
    responses: dict[str, DoseResponse]
    """Of each kind, in logarithms."""

    def rise(self, kind: str, prompts: Sequence[int]) -> float:
        """Of the words' probability at equal fluency, a logarithm."""
        found = repeating_left_out(self.responses[kind].of(prompts))
        return found.at_surprise(found.doses[0].surprise + MORE)

    def drawn(self, kind: str) -> np.ndarray:
        """(draws,) rises with openings drawn anew, the same for every kind."""
        n = len(self.responses[kind].doses[0].effects)
        draws = np.random.default_rng(0).integers(0, n, (DRAWS // 8, n))
        return np.array([self.rise(kind, prompts.tolist()) for prompts in draws])

    def estimate(self, kind: str) -> Estimate:
        """With its interval."""
        n = len(self.responses[kind].doses[0].effects)
        low, high = np.quantile(self.drawn(kind), [0.025, 0.975])
        return Estimate(self.rise(kind, range(n)), float(low), float(high))


def repeating_left_out(response: DoseResponse) -> DoseResponse:
    """Up to the last dose before the text repeats itself."""
    plain = response.doses[0]
    loops = [dose.repetition > plain.repetition + response.more_repetition for dose in response.doses]
    return replace(response, doses=response.doses[: loops.index(True) if any(loops) else None])


@torch.no_grad()
def mean_codes(model: SubjectModel, sae: SAE, texts: Sequence[str]) -> Tensor:
    """(texts, latents) the mean code over the tokens of each text, special tokens and sinks left out."""
    special = torch.tensor(sorted(special_tokens(model.tokenizer)))
    hook = str(sae.metadata.hook)
    rows: list[Tensor] = []
    for batch in batches(model, texts):
        x = model.capture(batch, [hook])[hook].float()
        kept = spoken(x, batch, special)
        rows += [sae.encode(text[mask]).to_dense().mean(0) for text, mask in zip(x, kept, strict=True)]
    return torch.stack(rows)


def best(high: Tensor, low: Tensor, allowed: Tensor, n: int) -> list[int]:
    """The latents that are told apart best, by Welch's t."""
    spread = (high.var(0) / len(high) + low.var(0) / len(low)).sqrt()
    t = (high.mean(0) - low.mean(0)) / (spread + 1e-3)
    return torch.where(allowed, t, -torch.inf).topk(n).indices.tolist()


def allowed(store: FeatureStore) -> Tensor:
    """(latents,) those that the rule lets in."""
    table = store.table(where=f"count >= {OFTEN} and rate <= {SELDOM}", columns=["latent"], limit=None)
    mask = torch.zeros(store.n_latents, dtype=torch.bool)
    mask[table.column("latent").to_pylist()] = True
    return mask


def steered(
    model: SubjectModel, sae: SAE, store: FeatureStore, concept: str, low: Tensor, openings: Sequence[str]
) -> Steered:
    """Make the vectors of a concept, and steer with them."""
    about = CONCEPTS[concept]
    high = mean_codes(model, sae, about.texts)
    latents = best(high, low, allowed(store), 5)
    differences = (high.mean(0) - low.mean(0))[latents].tolist()
    contrast = ms.steering_vector(model, positive=about.texts, negative=NEUTRAL, hook=str(sae.metadata.hook))
    vectors = (
        ms.steering_vector(sae, latents[0]),
        ms.steering_vector(sae, dict(zip(latents, differences, strict=True))),
        contrast,
        random_vector(contrast, sum(map(ord, concept))),
    )
    responses = {
        kind: in_logarithms(ms.dose_response(model, vector, openings, about.words, max_new_tokens=NEW_TOKENS))
        for kind, vector in zip(KINDS, vectors, strict=True)
    }
    return Steered(concept, latents, [feature.title for feature in store.features(latents)], responses)


def draw(path: Path, found: list[Steered]) -> None:
    """The figure."""
    import matplotlib.pyplot as plt

    plt.rcParams["svg.hashsalt"] = "monosem"
    figure, axes = plt.subplots(1, len(found), figsize=(3.1 * len(found), 3.2), layout="constrained", squeeze=False)
    for axis, one in zip(axes[0], found, strict=True):
        for kind, colour in zip(KINDS, COLOURS, strict=True):
            doses = repeating_left_out(one.responses[kind]).doses
            surprise = [dose.surprise - doses[0].surprise for dose in doses]
            rise = [dose.effect for dose in doses]
            axis.plot(surprise, rise, color=colour, marker="o", markersize=3, label=kind)
        axis.axvline(MORE, color="0.7", linewidth=1, linestyle="--")
        axis.set_title(f"{one.concept}: {one.latents[0]} {one.names[0]}", fontsize=9)
        axis.set_xlabel("more surprise, nats a token", fontsize=8)
        axis.set_xlim(-0.6, 2.5)
        axis.spines[["top", "right"]].set_visible(False)
    axes[0, 0].set_ylabel("log rise of the words' probability", fontsize=8)
    axes[0, 0].legend(frameon=False, fontsize=7)
    figure.savefig(path, metadata={"Date": None})


def over_all(found: list[Steered], kind: str, other: str) -> Estimate:
    """The mean difference between two kinds over the concepts, openings drawn anew."""
    gaps = np.mean([one.drawn(kind) - one.drawn(other) for one in found], axis=0)
    n = range(len(found[0].responses[kind].doses[0].effects))
    low, high = np.quantile(gaps, [0.025, 0.975])
    return Estimate(float(np.mean([one.rise(kind, n) - one.rise(other, n) for one in found])), float(low), float(high))


def said_of(gap: Estimate, first: str, second: str) -> str:
    """In words."""
    if gap.low > 0:
        return f"{first} steers better than {second}"
    return f"{second} steers better than {first}" if gap.high < 0 else f"{first} and {second} are not told apart"


def verdict(found: list[Steered]) -> str:
    """What came out, whichever way."""
    feature, five, contrast, floor = KINDS
    gap, more, beyond = (
        over_all(found, kind, other) for kind, other in ((feature, contrast), (five, contrast), (contrast, floor))
    )
    words = said_of(gap, feature, contrast)
    n = range(len(found[0].responses[feature].doses[0].effects))
    wins = [one.concept for one in found if one.rise(feature, n) > one.rise(contrast, n)]
    return (
        f"{words[:1].upper()}{words[1:]} at equal fluency: log rise of the words {gap.text()} more, mean of "
        f"{len(found)} concepts (the feature is ahead in: {', '.join(wins) or 'none'}). "
        f"{said_of(more, five, contrast).capitalize()}: {more.text()}. "
        f"The contrast is {beyond.text()} above a random direction."
    )


def rows(found: list[Steered]) -> str:
    """As Markdown."""
    lines = ["| | feature | " + " | ".join(KINDS) + " |", "|---" * (2 + len(KINDS)) + "|"]
    for one in found:
        name = one.names[0].replace("|", "\\|").replace("\n", "\\n")
        cells = " | ".join(one.estimate(kind).text() for kind in KINDS)
        lines.append(f"| {one.concept} | {one.latents[0]} {name} | {cells} |")
    return "\n".join(lines)


def texts(found: list[Steered]) -> str:
    """What was written at the knee, to read."""
    lines: list[str] = []
    for one in found:
        for kind in KINDS[:3]:
            response = one.responses[kind]
            said = " ".join(response.knee.text.split())
            lines.append(f"- {one.concept}, {kind}, {response.knee.length:.2f} lengths: {OPENINGS[0]} {said}")
    return "\n".join(lines)


def main() -> None:
    given = arguments(__doc__).parse_args()
    start = time.perf_counter()
    model, run = opened(given.model), ms.Run(given.run)
    sae, store = run.sae(), run.features()
    openings = OPENINGS[:2] if given.quick else OPENINGS
    concepts = list(CONCEPTS)[: 2 if given.quick else None]
    low = mean_codes(model, sae, NEUTRAL)
    found = [steered(model, sae, store, concept, low, openings) for concept in concepts]
    said = verdict(found)
    given.output.mkdir(parents=True, exist_ok=True)
    draw(given.output / "contrast.svg", found)
    about = store.index
    parts = [
        "# Does a feature steer better than its contrast vector?",
        "Written by `python studies/contrast.py`, as it came out.",
        f"**{said}**",
        "![words by surprise](contrast.svg)",
        f"SmolLM2-135M-Instruct, a {about['architecture']} SAE of {store.n_latents:,} latents at {about['hook']}; "
        f"{len(openings)} openings, {NEW_TOKENS} new tokens. Rise: logarithm of the words' probability over that "
        f"without steering, where the text is {MORE} nats a token more surprising to the plain model. 95 % intervals "
        "by drawing openings anew; concepts are five and chosen by hand, so that the mean is of these five alone.",
        f"## Rise at equal fluency\n\n{rows(found)}",
        f"## Texts at the knee\n\n{texts(found)}",
    ]
    (given.output / "contrast.md").write_text("\n\n".join(parts) + "\n")
    print(f"{said}\n{time.perf_counter() - start:.0f} s; {given.output / 'contrast.md'}")


if __name__ == "__main__":
    main()
