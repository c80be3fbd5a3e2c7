"""What share of a reward difference do features explain, and can an answer be written from features that fools it?

    python studies/reward.py [RUN] --pairs PAIRS [--model FOLDER] [--reward FOLDER] [--output studies] [--quick]

PAIRS are those that the reward model (recipes/reward) was trained on; only questions that were held out from it are
used, half of them to choose features, half to test. Rules, written before looking, but for a trial of 16 pairs.
Explained: the reward of the chosen answer less that of the rejected one, once as it is and once with what the
dictionary's features say taken out of resid_post.15 at every token (errors stay); the difference is the features' part,
and their share is 1 - sum (whole - part)^2 / sum whole^2. Floors: a dictionary that never learned, and the parts of
other pairs. Which: integrated gradients (`ms.attribute`), chosen less rejected; features with the largest sums of
magnitudes are ablated on the other half, beside as many of those that fire there drawn at random. Fooling: the 8
features with the highest score where they fire (on 5 answers at least, one half) give words, the two tokens of letters
that each fires on most, to an answer that says nothing; beside it the best of such words, picked by the reward itself
on 3 questions, and an answer of SmolLM2 with these features raised. They fool it if on more than half of the questions
their reward is above that of the answer that people chose, and in the mean above their control's. Controls: the same of
features drawn at random; SmolLM2 alone. RUN is that of recipes/smollm2. Writes reward.svg and .md.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from smollm2 import ROOT, Estimate, arguments, estimate, opened
from torch import Tensor

import monosem as ms
from monosem.codes import SparseCodes
from monosem.features import FeatureStore
from monosem.interventions import Ablate
from monosem.models import SubjectModel
from monosem.sae import SAE
from monosem.sae.control import random_sae
from monosem.steering.dose import typical_length
from monosem.steering.reading import batches, spoken
from monosem.text import special_tokens
from monosem.work import each

sys.path.append(str(ROOT / "recipes" / "reward"))
from pairs import Pair, asked, read_pairs

STEPS = 6
TEXTS = 16
"""At once."""
COUNTS = (10, 100)
FOOLING, WORDS_EACH, ANSWERS = 8, 2, 5
SEARCH_ON, SEARCH_WORDS, SEARCH_LENGTH = 3, 24, 10
RAISED = 0.3
"""Length that raising the features adds, in the typical length of activations."""
NEW_TOKENS = 40


def reward(out: object) -> Tensor:
    """(texts,) what the model says."""
    return out.logits[:, 0]  # type: ignore[attr-defined]


@torch.no_grad()
def rewards(judge: SubjectModel, texts: Sequence[str], edits: Sequence[ms.Ablate] = ()) -> np.ndarray:
    """(texts,) of whole texts."""
    found = np.zeros(len(texts))
    order = sorted(range(len(texts)), key=lambda i: len(texts[i]))  # little padding
    for start in range(0, len(texts), TEXTS):
        chosen = order[start : start + TEXTS]
        with judge.edit(list(edits)):
            found[chosen] = judge(judge.padded([texts[i] for i in chosen]))[:, 0].float().numpy()
    return found


@dataclass
class Explained:
    """Of pairs: whole reward differences, and the part that features have in them."""

    whole: np.ndarray
    """(pairs,)"""
    part: np.ndarray
    """(pairs,)"""
    scores: Tensor
    """(texts, latents) of integrated gradients, chosen and rejected in turn, summed over positions."""
    fires: Tensor
    """(texts, latents) whether it fires."""
    incomplete: float
    """Mean magnitude by which the scores of a text do not add up to its part, over that of the part."""

    def share(self, part: np.ndarray | None = None) -> Estimate:
        """Of the squared differences that the parts explain; drawn anew by pairs."""
        part = self.part if part is None else part
        draws = np.random.default_rng(0).integers(0, len(part), (4000, len(part)))
        left, all_ = (self.whole - part) ** 2, self.whole**2
        shares = 1 - left[draws].sum(1) / all_[draws].sum(1)
        low, high = np.quantile(shares, [0.025, 0.975])
        return Estimate(float(1 - left.sum() / all_.sum()), float(low), float(high))


def explained(judge: SubjectModel, sae: SAE, pairs: Sequence[Pair], steps: int, name: str) -> Explained:
    """Attribute the reward of both answers of every pair."""
    order = sorted(range(len(pairs)), key=lambda i: max(map(len, pairs[i].texts())))  # little padding
    back = np.argsort(order)
    texts = [text for i in order for text in pairs[i].texts()]
    whole, part, scores, fires = list[float](), list[float](), list[Tensor](), list[Tensor]()
    missing: list[float] = []
    for start in each(name, range(0, len(texts), TEXTS), 1, "batches"):
        found = ms.attribute(
            judge, sae, texts[start : start + TEXTS], of=reward, method="integrated", steps=steps, hook="resid_post.15"
        )
        assert found.baseline is not None
        whole += found.metric.tolist()
        part += (found.metric - found.baseline).tolist()
        missing += found.incompleteness.abs().tolist()
        scores.append(by_text(found.scores))
        fires.append(by_text(found.codes) > 0)
    all_, features = (np.array(values).reshape(-1, 2)[back] for values in (whole, part))
    incomplete = float(np.mean(missing) / np.abs(features).mean())
    said, on = (torch.cat(rows).unflatten(0, (-1, 2))[back].flatten(0, 1) for rows in (scores, fires))
    return Explained(all_[:, 0] - all_[:, 1], features[:, 0] - features[:, 1], said, on, incomplete)


def by_text(codes: SparseCodes) -> Tensor:
    """(texts, latents) sums over positions."""
    n, length = codes.batch_shape[:2]
    sums = torch.zeros(n, codes.n_latents)
    rows = codes.rows() // length
    return sums.index_put_((rows.long(), codes.indices.long()), codes.values.detach().float(), accumulate=True)


@torch.no_grad()
def never_learned(judge: SubjectModel, sae: SAE, pairs: Sequence[Pair]) -> SAE:
    """A dictionary of the same kind, size and number of active latents, with random rows."""
    special = torch.tensor(sorted(special_tokens(judge.tokenizer)))
    rows: list[Tensor] = []
    for batch in batches(judge, [pair.texts()[0] for pair in pairs[:32]]):
        x = judge.capture(batch, ["resid_post.15"])["resid_post.15"]
        rows.append(x[spoken(x, batch, special)])
    fresh = random_sae(sae, torch.cat(rows))
    fresh.metadata = sae.metadata.model_copy(update={"fingerprint": None})
    return fresh


def ablated(
    judge: SubjectModel, sae: SAE, pairs: Sequence[Pair], whole: np.ndarray, latents: Sequence[int]
) -> np.ndarray:
    """(pairs,) the part of the differences that goes away without some latents, exactly."""
    found = rewards(judge, [text for pair in pairs for text in pair.texts()], [Ablate(sae, list(latents))])
    return whole - (found[::2] - found[1::2])


def words_of(store: FeatureStore, latents: Sequence[int]) -> list[str]:
    """The tokens of letters that each fires on most."""
    found: list[str] = []
    for feature in store.features(list(latents)):
        words = [one.text.strip() for one in feature.firing_tokens]
        found += [word for word in words if word.isalpha()][:WORDS_EACH]
    return found


def searched(judge: SubjectModel, questions: Sequence[str], words: Sequence[str], length: int) -> list[str]:
    """Words one after another, each the one with the highest mean reward on some questions."""
    chosen: list[str] = []
    for _ in each("searching words", range(length), 1, "words"):
        tried = [" ".join([*chosen, word]) for word in words]
        found = rewards(judge, [asked(question) + text for text in tried for question in questions])
        chosen.append(words[int(found.reshape(len(words), -1).mean(1).argmax())])
    return chosen


def raised(
    model: SubjectModel, sae: SAE, store: FeatureStore, questions: Sequence[str], latents: Sequence[int]
) -> list[str]:
    """Answers of the language model; features are raised in proportion to their largest activations."""
    edits: list[ms.AddVector] = []
    if latents:
        largest = {feature.latent: feature.max or 1.0 for feature in store.features(list(latents))}
        vector = ms.steering_vector(sae, largest)
        edits = [vector.edit(RAISED * typical_length(model, vector.hook, list(questions[:16])) / vector.norm)]
    answers: list[str] = []
    for start in each("writing answers", range(0, len(questions), TEXTS), 1, "batches"):
        prompts = [asked(question) for question in questions[start : start + TEXTS]]
        written = ms.generate(model, prompts, edits=edits, max_new_tokens=NEW_TOKENS, temperature=0.7, seed=start)
        answers += [one.text.strip() or "." for one in written]
    return answers


def draw(path: Path, halves: list[Explained], few: dict[str, list[Estimate]], fooled: dict[str, np.ndarray]) -> None:
    """The figure."""
    import matplotlib.pyplot as plt

    plt.rcParams["svg.hashsalt"] = "monosem"
    figure, axes = plt.subplots(1, 3, figsize=(13, 3.8), layout="constrained")
    whole, part = (np.concatenate([getattr(half, name) for half in halves]) for name in ("whole", "part"))
    axes[0].scatter(whole, part, s=9, color="#1f6f8b", alpha=0.6)
    axes[0].axline((0, 0), slope=1, color="0.7", lw=1)
    axes[0].set(xlabel="reward, chosen less rejected", ylabel="of it the features' part", title="every held-out pair")
    for (name, values), colour in zip(few.items(), ("#1f6f8b", "#999999"), strict=True):
        errors = [[one.mean - one.low for one in values], [one.high - one.mean for one in values]]
        axes[1].errorbar(COUNTS, [one.mean for one in values], errors, marker="o", capsize=3, color=colour, label=name)
    axes[1].set(xscale="log", xlabel="features ablated", title="share of the differences that goes away")
    axes[1].set_xticks(COUNTS, [str(count) for count in COUNTS])
    axes[1].legend(frameon=False, fontsize=8)
    values = list(fooled.values())
    axes[2].boxplot(values, orientation="horizontal", widths=0.6, showfliers=False, medianprops={"color": "#b5532a"})
    axes[2].set_yticks(range(1, len(values) + 1), list(fooled), fontsize=8)
    axes[2].axvline(0, color="0.7", lw=1)
    axes[2].invert_yaxis()
    axes[2].set(title="reward, less that of the chosen answer")
    for axis in axes:
        axis.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, metadata={"Date": None})


def verdict(
    shares: dict[str, Estimate], few: dict[str, list[Estimate]], fooled: dict[str, np.ndarray], right: Estimate
) -> str:
    """What came out, whichever way."""
    learned, random, other = shares.values()
    beyond = "more than a dictionary that never learned" if learned.low > random.high else "no more than the floors"
    shown = {name: estimate(values > 0) for name, values in fooled.items()}
    made = ["words of features", "words searched", "features raised"]
    controls = ["words of random features", "words of random features", "random features raised"]
    above = {name: estimate(fooled[name] - fooled[control]) for name, control in zip(made, controls, strict=True)}
    often = [name for name in made if shown[name].low > 0.5 and above[name].low > 0]
    fools = (
        f"It is fooled by {' and '.join(often)}" if often else "That an answer made from features fools it is not shown"
    )
    said = ", ".join(f"{name} {one.text('.0%')}" for name, one in shown.items())
    return (
        f"Features explain {learned.text('.0%')} of the reward differences of held-out pairs, {beyond} "
        f"({random.text('.0%')}; parts of other pairs {other.text('.0%')}); {COUNTS[0]} features chosen on other pairs "
        f"{few['by attribution'][0].text('.0%')}, as many at random {few['at random'][0].text('.0%')}. "
        f"{fools}: above the chosen answer are {said}; reward above the control's: "
        f"{', '.join(f'{name} {one.text()}' for name, one in above.items())}. "
        f"The reward model itself prefers the chosen answer in {right.text('.0%')} of these pairs."
    )


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--pairs", type=Path, required=True, help="what the reward model was trained on")
    parser.add_argument("--reward", type=Path, default=ROOT / "recipes" / "reward" / "work" / "model")
    given = parser.parse_args()
    start = time.perf_counter()
    judge, run = ms.load_model(given.reward, device="cpu"), ms.Run(given.run)
    sae, store = run.sae(), run.features()
    pairs = [pair for pair in read_pairs(given.pairs) if pair.held_out]
    pairs = [pairs[i] for i in np.random.default_rng(0).permutation(len(pairs))[: 16 if given.quick else 120]]
    sides = pairs[::2], pairs[1::2]
    steps = 2 if given.quick else STEPS
    halves = [explained(judge, sae, side, steps, f"attributing, half {i}") for i, side in enumerate(sides, 1)]
    fresh = never_learned(judge, sae, sides[0])
    floor = explained(judge, fresh, sides[1], 1, "the floor")
    shares = {
        "features": halves[1].share(),
        "a dictionary that never learned": floor.share(),
        "parts of other pairs": halves[1].share(np.roll(halves[1].part, 1)),
    }
    gaps = halves[0].scores[::2] - halves[0].scores[1::2]
    order = gaps.abs().sum(0).argsort(descending=True).tolist()
    firing = halves[1].fires.any(0).nonzero()[:, 0].numpy()
    rng = np.random.default_rng(0)
    chosen = {
        "by attribution": [order[:n] for n in COUNTS],
        "at random": [rng.choice(firing, min(n, len(firing)), replace=False).tolist() for n in COUNTS],
    }
    few = {
        name: [halves[1].share(ablated(judge, sae, sides[1], halves[1].whole, latents)) for latents in lists]
        for name, lists in chosen.items()
    }
    enough = halves[0].fires.sum(0) >= (2 if given.quick else ANSWERS)
    worth = torch.where(enough, halves[0].scores.sum(0) / halves[0].fires.sum(0).clamp_min(1), -torch.inf)
    top = worth.topk(FOOLING).indices.tolist()
    drawn = rng.choice(enough.nonzero()[:, 0].numpy(), FOOLING, replace=False).tolist()
    questions = [pair.question for pair in sides[1]][: 4 if given.quick else 48]
    vocabulary = list(dict.fromkeys(words_of(store, worth.topk(SEARCH_WORDS // WORDS_EACH).indices.tolist())))
    search_on = [pair.question for pair in sides[0]][:SEARCH_ON]
    best = " ".join(searched(judge, search_on, vocabulary, 2 if given.quick else SEARCH_LENGTH))
    model = opened(given.model)
    made = {
        "words of features": [" ".join(words_of(store, top))] * len(questions),
        "words searched": [best] * len(questions),
        "words of random features": [" ".join(words_of(store, drawn))] * len(questions),
        "features raised": raised(model, sae, store, questions, top),
        "random features raised": raised(model, sae, store, questions, drawn),
        "SmolLM2 alone": raised(model, sae, store, questions, []),
    }
    of_chosen = rewards(judge, [pair.texts()[0] for pair in sides[1]][: len(questions)])
    fooled = {
        name: rewards(judge, [asked(q) + answer for q, answer in zip(questions, answers, strict=True)]) - of_chosen
        for name, answers in made.items()
    }
    right = estimate(np.concatenate([half.whole for half in halves]) > 0)
    said = verdict(shares, few, fooled, right)
    given.output.mkdir(parents=True, exist_ok=True)
    draw(given.output / "reward.svg", halves, few, fooled)
    about = store.index
    names = {feature.latent: feature.title for feature in store.features(order[:12] + top)}
    means = gaps.mean(0)
    lines = ["| feature | chosen less rejected, mean | mean magnitude |", "|---|---|---|"]
    for latent in order[:12]:
        magnitude = float(gaps[:, latent].abs().mean())
        lines.append(f"| {latent} {plain(names[latent])} | {float(means[latent]):+.3f} | {magnitude:.3f} |")
    answers = [f"- {name}: {plain(texts[0])[:200]}" for name, texts in made.items()]
    parts = [
        "# What is a reward made of?",
        "Written by `python studies/reward.py --pairs PAIRS`, as it came out.",
        f"**{said}**",
        "![parts of rewards](reward.svg)",
        "A reward model of 20 layers (recipes/reward), whose first 16 are those of SmolLM2-135M-Instruct; a "
        f"{about['architecture']} SAE of {store.n_latents:,} latents at {about['hook']}, trained on other text. "
        f"{len(pairs)} held-out pairs, half to choose features; {len(questions)} questions of the other half to fool "
        f"it on. Integrated gradients of {steps} steps add up to the parts within {halves[0].incomplete:.0%}. 95 % "
        "intervals, bootstrap over pairs or questions. A share below 0 is worse than to say nothing.",
        "## Share of the reward differences\n\n| | share |\n|---|---|\n"
        + "\n".join(
            [f"| {name} | {one.text('.0%')} |" for name, one in shares.items()]
            + [
                f"| {count} features {name}, ablated | {one.text('.0%')} |"
                for name, values in few.items()
                for count, one in zip(COUNTS, values, strict=True)
            ]
        ),
        "## Features with the largest parts in the differences\n\n" + "\n".join(lines),
        "## Answers made from features\n\n"
        "| | above the chosen answer | reward less that of the chosen one |\n|---|---|---|\n"
        + "\n".join(
            f"| {name} | {estimate(values > 0).text('.0%')} | {estimate(values).text()} |"
            for name, values in fooled.items()
        )
        + f"\n\nFeatures: {', '.join(f'{latent} {plain(names[latent])}' for latent in top)}. "
        "To the first question:\n\n" + "\n".join(answers),
    ]
    (given.output / "reward.md").write_text("\n\n".join(parts) + "\n")
    print(f"{said}\n{time.perf_counter() - start:.0f} s; {given.output / 'reward.md'}")


def plain(text: str) -> str:
    """In one line of Markdown."""
    return " ".join(text.split()).replace("|", "\\|").replace("*", "\\*")


if __name__ == "__main__":
    main()
