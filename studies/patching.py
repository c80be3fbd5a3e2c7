"""Feature patching on indirect objects: do a few features say who gets the milk?

    python studies/patching.py [RUN] [--model FOLDER] [--output studies] [--quick]

"When Mary and John went to the store, John gave a bottle of milk to" is followed by the name that does not come again.
The same prompt with the other name repeated is its source. Codes of the source are put into the prompt (`ms.Swap`), at
the repeated name, at the last token, or at all from the one to the other; the difference of the two names' logits
shows which share of the way to the source's it goes. Beside it what the whole activation does, and what the SAE leaves
unexplained. A few features are picked by attribution (codes times gradients, of the prompt's own codes, which go, less
the source's, which come) on some templates and names, and tried on other templates, with the same names and with names
that were not seen; the floor is as many features drawn at random of those that are on there.

Rules, written before looking, on templates and names of which nothing was picked. The place is that at which the whole
activation goes furthest, of the repeated name and the last token. Features carry it if all of them go half as far at
least as the whole activation. Few are enough if 16 picked ones go half as far as all, with their whole 95 % interval
(prompts drawn anew) above that of 16 at random. RUN is that of recipes/smollm2. Writes patching.svg and .md.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from smollm2 import DRAWS, Estimate, arguments, opened
from torch import Tensor

import monosem as ms
from monosem.interventions import Replace
from monosem.models import SubjectModel
from monosem.sae import SAE

TEMPLATES = [
    "When{A} and{B} went to the store,{S} gave a bottle of milk to",
    "Then,{A} and{B} had a long argument, and afterwards{S} said to",
    "After{A} and{B} found a ring in the garden,{S} decided to give it to",
    "While{A} and{B} were working at the office,{S} gave a computer to",
    "The day{A} and{B} met at the station,{S} handed a letter to",
    "Friends{A} and{B} were sitting in the kitchen when{S} passed a plate to",
]
"""The first half to pick features on, the second to try them on."""
NAMES = "Mary John Tom Anna James Sarah David Paul Peter Kate Mark Emma Jack Lucy Sam Alice Robert Susan Michael Laura"
PROMPTS = 16
"""Of each template and set of names."""
COUNTS = (1, 4, 16, 64)
FEW = COUNTS.index(16)
RANDOM = 3
"""Draws of random features."""
PLACES = ("the repeated name", "the last token", "from the one to the other")


@dataclass
class Prompts:
    """Prompts of one template, and the same with the other name repeated."""

    base: Tensor
    """(prompts, pos)"""
    source: Tensor
    names: Tensor
    """(prompts, 2) the name that is right, and the repeated one."""

    @property
    def repeated(self) -> int:
        """Where the repeated name stands: the only place at which base and source differ."""
        return int((self.base != self.source).any(0).nonzero()[0, 0])

    def positions(self, place: str) -> list[int]:
        first, last = self.repeated, self.base.shape[1] - 1
        return {PLACES[0]: [first], PLACES[1]: [last], PLACES[2]: list(range(first, last + 1))}[place]

    def difference(self, logits: Tensor) -> Tensor:
        """(prompts,) the logit of the right name less that of the repeated one."""
        last = logits[:, -1] if logits.ndim == 3 else logits
        return last.gather(1, self.names[:, :1])[:, 0] - last.gather(1, self.names[:, 1:])[:, 0]


def prompts(model: SubjectModel, template: str, names: Sequence[str], seed: int, n: int) -> Prompts:
    """Of pairs of names drawn at random; every other prompt repeats the second one."""
    rng = np.random.default_rng(seed)
    pairs = rng.permutation(list(itertools.permutations(range(len(names)), 2)))[:n]
    texts: list[list[str]] = [[], []]
    ids: list[list[int]] = []
    for number, (a, b) in enumerate(pairs.tolist()):
        first, second = f" {names[a]}", f" {names[b]}"
        repeated, right = (second, first) if number % 2 else (first, second)
        for into, subject in zip(texts, (repeated, right), strict=True):
            into.append(template.format(A=first, B=second, S=subject))
        ids.append([model.tokenizer(name, add_special_tokens=False)["input_ids"][0] for name in (right, repeated)])
    base, source = (model.padded(side)["input_ids"] for side in texts)
    return Prompts(base, source, torch.tensor(ids, device=base.device))


@torch.no_grad()
def measured(model: SubjectModel, given: Prompts, edits: Sequence[Any]) -> Tensor:
    """(prompts,) the difference of logits with edits in force."""
    with model.edit(list(edits)):
        return given.difference(model(given.base))


class Case:
    """One set of prompts with what is there before anything is patched."""

    def __init__(self, model: SubjectModel, sae: SAE, hook: str, given: Prompts) -> None:
        self.model, self.sae, self.hook, self.given = model, sae, hook, given
        with torch.no_grad():
            self.clean = given.difference(model(given.base))
            self.other = given.difference(model(given.source))
            sides = [model.capture(ids, [hook])[hook] for ids in (given.base, given.source)]
            self.x, self.y = sides
            self.codes = [sae.encode(side) for side in sides]
            self.errors = [side - sae.decode(codes, side) for side, codes in zip(sides, self.codes, strict=True)]

    def moved(self, edits: Sequence[Any]) -> np.ndarray:
        """(prompts, 2) how far the difference goes towards the source's, and how far the source's is away."""
        found = measured(self.model, self.given, edits)
        return torch.stack([self.clean - found, self.clean - self.other], 1).double().cpu().numpy()

    def whole(self, place: str) -> list[Any]:
        """The activations of the source."""
        return [self._replaced(place, self.y)]

    def unexplained(self, place: str) -> list[Any]:
        """What the SAE leaves unexplained in the source, and the features of the prompt itself."""
        return [self._replaced(place, self.x - self.errors[0] + self.errors[1])]

    def features(self, place: str, latents: Sequence[int] | None = None) -> list[Any]:
        """The source's codes of some latents, or of all that are on in either."""
        chosen = self.on(place) if latents is None else list(latents)
        where = ms.Where(positions=self.given.positions(place))
        return [ms.Swap(self.sae, chosen, self.given.source, hook=self.hook, where=where)]

    def on(self, place: str) -> list[int]:
        """Latents that are on at a place, in base or source."""
        at = self.given.positions(place)
        dense = sum((codes.to_dense()[:, at] > 0).sum((0, 1)) for codes in self.codes)
        assert isinstance(dense, Tensor)
        return dense.nonzero()[:, 0].tolist()

    def _replaced(self, place: str, by: Tensor) -> Replace:
        chosen = torch.zeros(self.x.shape[:2], dtype=torch.bool, device=self.x.device)
        chosen[:, self.given.positions(place)] = True
        rows = by[chosen]
        return Replace(self.hook, lambda x: rows.to(x), where=chosen)

    def scores(self, place: str) -> Tensor:
        """(latents,) by how much each, put in as in the source, is foretold to lower the difference.

        Codes times gradient, of the prompt's codes, which go, less the source's, which come: each in its own prompt.
        """
        at, total = self.given.positions(place), torch.zeros(self.sae.n_latents)
        for ids, sign in ((self.given.base, 1), (self.given.source, -1)):
            found = ms.attribute(self.model, self.sae, ids, of=self._number, hook=self.hook)
            total += sign * found.scores.to_dense()[:, at].sum((0, 1)).cpu().float()
        return total / len(self.given.base)

    def _number(self, out: Any) -> Tensor:
        return self.given.difference(out.logits)


def share(rows: list[np.ndarray]) -> Estimate:
    """How far on the way to the source, of means over prompts drawn anew with replacement."""
    both = np.concatenate(rows)
    rng = np.random.default_rng(0)
    sums = both[rng.integers(0, len(both), (DRAWS, len(both)))].sum(1)
    low, high = np.quantile(sums[:, 0] / sums[:, 1], [0.025, 0.975])
    return Estimate(float(both[:, 0].sum() / both[:, 1].sum()), float(low), float(high))


def over(cases: Sequence[Case], edits: Callable[[Case], Sequence[Any]]) -> Estimate:
    return share([case.moved(edits(case)) for case in cases])


Result = dict[str, Estimate]


def ceilings(cases: Sequence[Case], place: str) -> Result:
    """What can be reached at a place."""
    return {
        "the whole activation": over(cases, lambda case: case.whole(place)),
        "all features": over(cases, lambda case: case.features(place)),
        "what the SAE leaves unexplained": over(cases, lambda case: case.unexplained(place)),
    }


def draw(path: Path, few: dict[str, list[Estimate]], tops: Result, place: str) -> None:
    """The figure."""
    import matplotlib.pyplot as plt

    plt.rcParams["svg.hashsalt"] = "monosem"
    figure, axis = plt.subplots(figsize=(5.6, 3.6))
    for name, line in few.items():
        values = np.array(line)
        error = np.maximum(0, [values[:, 0] - values[:, 1], values[:, 2] - values[:, 0]])
        axis.errorbar(COUNTS, values[:, 0], error, marker="o", capsize=2, label=name)
    for (name, value), style in zip(tops.items(), ("-", "--", ":"), strict=True):
        axis.axhline(value[0], color="0.5", linestyle=style, linewidth=1, label=name)
    axis.set(xscale="log", xticks=COUNTS, xticklabels=COUNTS, xlabel=f"features swapped, at {place}")
    axis.set(ylabel="share of the way to the source")
    axis.spines[["top", "right"]].set_visible(False)
    axis.legend(frameon=False, fontsize=8)
    figure.tight_layout()
    figure.savefig(path, metadata={"Date": None})


def verdict(tops: dict[str, Result], few: dict[str, list[Estimate]], place: str) -> str:
    """What the figures say, whichever way they have come out."""
    whole, features, rest = tops[place].values()
    old, new, chance = (line[FEW] for line in few.values())
    carried = "carry it" if features.mean >= 0.5 * whole.mean else "do not carry it"
    enough = new.mean >= 0.5 * features.mean and new.low > chance.high
    return (
        f"At {place} the whole activation goes {whole.text('.0%')} of the way to the source, all features "
        f"{features.text('.0%')} and what the SAE leaves unexplained {rest.text('.0%')}: features {carried}. On "
        f"templates and names of which nothing was picked {COUNTS[FEW]} features go {new.text('.0%')} of the way "
        f"({old.text('.0%')} with the names of the picking), as many at random {chance.text('.0%')}: few features "
        f"{'are' if enough else 'are not'} enough."
    )


def main() -> None:
    given = arguments(__doc__).parse_args()
    start = time.perf_counter()
    sae, model = ms.Run(given.run).sae(), opened(given.model)
    hook, names = str(sae.metadata.hook), NAMES.split()
    seen, unseen = names[: len(names) // 2], names[len(names) // 2 :]
    half, n = len(TEMPLATES) // 2, 4 if given.quick else PROMPTS
    tried = 1 if given.quick else half

    def tell(words: str) -> None:
        print(f"{words}, {time.perf_counter() - start:.0f} s", flush=True)

    def cases(templates: Sequence[str], of: Sequence[str], seed: int) -> list[Case]:
        return [Case(model, sae, hook, prompts(model, one, of, seed + i, n)) for i, one in enumerate(templates)]

    later = TEMPLATES[half : half + tried]
    picked, old, new = cases(TEMPLATES[:tried], seen, 0), cases(later, seen, 10), cases(later, unseen, 20)
    clean = torch.cat([case.clean for case in new])
    tell("prompts are read")
    tops = {place: ceilings(new, place) for place in PLACES}
    tell("the ceilings are known")
    place = max(PLACES[:2], key=lambda one: tops[one]["the whole activation"].mean)
    scores = torch.stack([case.scores(place) for case in picked]).mean(0)
    order = scores.argsort(descending=True).tolist()
    alive = sorted({latent for case in picked for latent in case.on(place)})
    tell(f"{len(alive)} features are on there, and scored")
    few: dict[str, list[Estimate]] = {
        "picked, same names": [over(old, lambda case, n=n: case.features(place, order[:n])) for n in COUNTS],
        "picked, other names": [over(new, lambda case, n=n: case.features(place, order[:n])) for n in COUNTS],
        "random of those on there": [],
    }
    for count in COUNTS:
        rows: list[np.ndarray] = []
        for seed in range(RANDOM):
            dealt = np.random.default_rng(seed).permutation(alive).tolist()[:count]
            rows += [case.moved(case.features(place, dealt)) for case in new]
        few["random of those on there"].append(share(rows))
    said = verdict(tops, few, place)
    given.output.mkdir(parents=True, exist_ok=True)
    draw(given.output / "patching.svg", few, tops[place], place)
    lens = ms.logit_lens(sae, model, order[:8], 5)
    alone = [over(new, lambda case, latent=latent: case.features(place, [latent])) for latent in order[:8]]
    first = "| | " + " | ".join(PLACES) + " |\n|---|---|---|---|\n"
    lines = [f"| {name} | " + " | ".join(tops[one][name].text(".2f") for one in PLACES) + " |" for name in tops[place]]
    second = "| | " + " | ".join(map(str, COUNTS)) + " |\n" + "|---" * (len(COUNTS) + 1) + "|\n"
    third = [f"| {name} | " + " | ".join(value.text(".2f") for value in values) + " |" for name, values in few.items()]
    told = [
        f"| {latent} | {scores[latent]:.3f} | {found.text('.3f')} | {' '.join(repr(t) for t, _ in effects.promoted)} |"
        for latent, effects, found in zip(order[:8], lens, alone, strict=True)
    ]
    fvu = sae.metadata.fingerprint.fvu if sae.metadata.fingerprint else None
    parts = [
        "# Feature patching on indirect objects",
        "Written by `python studies/patching.py`, as it came out.",
        f"**{said}**",
        "![share of the way by number of features](patching.svg)",
        f"{n} prompts of each of {tried} templates and {len(unseen)} names of which nothing was picked; "
        f"{sae.n_latents:,} latents of a {sae.architecture} SAE at {hook} of SmolLM2-135M-Instruct"
        f"{'' if fvu is None else f' (FVU {fvu:.2f})'}. The model names the right one in "
        f"{float((clean > 0).double().mean()):.0%} of them, by {float(clean.mean()):.1f} in logits. Shares are of "
        "sums over prompts, with 95 % bootstrap intervals over prompts.",
        f"## What can be reached\n\n{first}" + "\n".join(lines),
        f"## A few features, at {place}\n\n{second}" + "\n".join(third) + f"\n\nRandom: {RANDOM} draws.",
        "## The first eight, each alone\n\n| latent | foretold, in logits | share of the way | promotes at the output "
        "|\n|---|---|---|---|\n" + "\n".join(told),
    ]
    (given.output / "patching.md").write_text("\n\n".join(parts) + "\n")
    print(f"{said}\n{time.perf_counter() - start:.0f} s; {given.output / 'patching.md'}")


if __name__ == "__main__":
    main()
