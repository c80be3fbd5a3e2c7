"""Does cleaning an in-context task vector cut its features by five while keeping its effect?

    python studies/cleaning.py [RUN] [--model FOLDER] [--pairs FILE] [--output studies] [--quick]

Examples in a prompt leave a vector at the token where the answer begins; put in the place of the activation there, it
makes the model do the task without examples. Cleaned (`ms.clean_task_vector`), it is a few features of a dictionary.
Two tasks: antonyms, and Spanish words into English. Pairs: the English word is among the commonest tokens, and the
model answers behind examples. Beside it the vector, its reconstruction, the vector of reconstructions, and gradient
pursuit with as many features; floors: as many features drawn at random from those of the encoder, and the cleaned
vector of the other task.

Rules, written before looking, on pairs that nothing was fitted to: it cuts if the encoder finds 5 times as many
features at least; it keeps if it has 90 % at least of the vector's effect (nats of the answers, less those without
vector), and its interval is above those of both floors. If the vector's own effect is not above 0, nothing is said.

RUN is that of recipes/smollm2; FILE has a pair a line, {"task", "input", "output"}: the tasks of Todd et al., Function
Vectors in Large Language Models, 2024. Writes cleaning.svg and .md.
"""

from __future__ import annotations

import gzip
import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random

import numpy as np
import torch
from smollm2 import DRAWS, ROOT, Estimate, arguments, opened
from torch import Tensor

import monosem as ms
from monosem.models import SubjectModel
from monosem.sae import SAE
from monosem.steering import CleanedTask, Form
from monosem.steering.tasks import Pair, Questions, Score, few_shot_prompts

TASKS = {"antonyms": ("antonym", False), "Spanish to English": ("english-spanish", True)}
"""Names in the file, and whether input and output change places."""
FORM = Form(between=", ")
COMMON = 12_000
"""Numbers of tokens below which a word is common: the tokenizer has learned the commonest first."""
SHOTS = 5
WANTED, MOST = 60, 384
"""Pairs that are kept of a task, and that are asked for them."""
FLOORS = ("as many at random", "the other task's cleaned")


@dataclass
class Task:
    """One task, cleaned, and its floors."""

    name: str
    done: CleanedTask
    floors: dict[str, list[Score]]
    asked: int
    kept: int

    def share(self, scores: Sequence[Score]) -> Estimate:
        """Of the vector's effect, over held-out pairs drawn anew with replacement; of several the mean."""
        nothing, vector = (np.array(self.done.scores[name][0].each) for name in ("nothing", "vector"))
        effect, part = nothing - vector, nothing - np.mean([score.each for score in scores], 0)
        draws = np.random.default_rng(0).integers(0, len(effect), (DRAWS, len(effect)))
        low, high = np.quantile(part[draws].sum(1) / effect[draws].sum(1), [0.025, 0.975])
        return Estimate(float(part.sum() / effect.sum()), float(low), float(high))

    def effect(self) -> Estimate:
        """Of the vector, in nats a pair."""
        nothing, vector = (np.array(self.done.scores[name][0].each) for name in ("nothing", "vector"))
        drawn = (nothing - vector)[np.random.default_rng(0).integers(0, len(vector), (DRAWS, len(vector)))].mean(1)
        return Estimate(float((nothing - vector).mean()), *(float(q) for q in np.quantile(drawn, [0.025, 0.975])))

    def shares(self) -> dict[str, Estimate]:
        """Of everything that can stand in the place of the examples."""
        own = {name: [score] for name, (score, _) in self.done.scores.items() if name not in ("nothing", "examples")}
        return {name: self.share(scores) for name, scores in {**own, **self.floors}.items()}

    def features(self, name: str) -> int | None:
        """How many there are in it."""
        if name == FLOORS[0]:
            return len(self.done.cleaned.latents)
        return self.done.scores[name][1] if name in self.done.scores else None

    def outcome(self) -> str:
        """By the rules."""
        if self.effect().low <= 0:
            return f"{self.name}: the vector itself has no effect above 0 ({self.effect().text()} nats)"
        shares, fewer = self.shares(), self.done.fewer
        cleaned = shares["cleaned"]
        above = all(cleaned.low > shares[name].high for name in self.floors)
        cuts = f"{'cuts' if fewer >= 5 else 'does not cut'} ({len(self.done.encoded.latents)} to "
        cuts += f"{len(self.done.cleaned.latents)} features, {fewer:.1f} times fewer)"
        keeps = "keeps" if cleaned.mean >= 0.9 and above else "does not keep"
        floors = ", ".join(f"{name} {shares[name].text('.0%')}" for name in self.floors)
        return f"{self.name}: cleaning {cuts} and {keeps} the effect ({cleaned.text('.0%')} of the vector's; {floors})"


def read_pairs(path: Path, task: str, turned: bool, model: SubjectModel) -> list[Pair]:
    """Those of common words, shuffled."""
    opener = gzip.open if path.suffix == ".gz" else open
    with opener(path, "rt") as lines:
        rows = [row for row in map(json.loads, lines) if row["task"] == task]
    pairs = [(row["output"], row["input"]) if turned else (row["input"], row["output"]) for row in rows]
    pairs = list({pair[0]: pair for pair in pairs if pair[0] != pair[1]}.values())

    def common(word: str) -> bool:
        ids = model.tokenizer(f" {word}", add_special_tokens=False)["input_ids"]
        return word.isalpha() and len(ids) == 1 and ids[0] < COMMON

    found = [(a, b) for a, b in pairs if common(b) and (turned or common(a))]
    Random(0).shuffle(found)
    return found


@torch.no_grad()
def answered(model: SubjectModel, pairs: list[Pair], wanted: int, most: int) -> tuple[list[Pair], int]:
    """Those that the model answers behind examples, until there are enough; and how many were asked."""
    examples, rest = pairs[:40], pairs[40 : 40 + most]
    kept, start = list[Pair](), 0
    for start in range(0, len(rest), 16):
        part = rest[start : start + 16]
        prompts = few_shot_prompts(FORM, examples, part, SHOTS, start)
        _, right = Questions(model, prompts, [FORM.answer.replace("{output}", b) for _, b in part]).asked()
        kept += [pair for pair, good in zip(part, right.tolist(), strict=True) if good]
        if len(kept) >= wanted:
            break
    return kept, min(len(rest), start + 16)


def at_random(done: CleanedTask, sae: SAE, draws: int) -> list[Score]:
    """As many features as the cleaned vector has, of those that the encoder finds, with its amounts."""
    whole, found = done.encoded, list[Score]()
    for seed in range(draws):
        chosen = Random(seed).sample(range(len(whole.latents)), len(done.cleaned.latents))
        rows = sae.decoder_directions([whole.latents[i] for i in chosen])
        made: Tensor = torch.tensor([whole.amounts[i] for i in chosen]).to(rows) @ rows
        found.append(done.score(whole.offset + made))
    return found


def draw(path: Path, tasks: Sequence[Task]) -> None:
    """The figure."""
    import matplotlib.pyplot as plt

    plt.rcParams["svg.hashsalt"] = "monosem"
    figure, axes = plt.subplots(1, len(tasks), figsize=(4.8 * len(tasks), 3.2), squeeze=False, sharex=True)
    for axis, task in zip(axes[0], tasks, strict=True):
        shares = task.shares()
        y = np.arange(len(shares))[::-1]
        means = np.array([share.mean for share in shares.values()])
        error = np.maximum(0, [means - [s.low for s in shares.values()], [s.high for s in shares.values()] - means])
        colours = ["#b5532a" if name == "cleaned" else "0.6" if name in task.floors else "#1f6f8b" for name in shares]
        axis.barh(y, means, color=colours, height=0.6)
        axis.errorbar(means, y, xerr=error, fmt="none", ecolor="0.2", capsize=2)
        names = [f"{name} ({n})" if (n := task.features(name)) is not None else name for name in shares]
        axis.set(title=task.name, yticks=y, yticklabels=names, xlabel="share of the vector's effect")
        axis.axvline(0, color="0.3", linewidth=0.8)
        axis.spines[["top", "right"]].set_visible(False)
    figure.tight_layout()
    figure.savefig(path, metadata={"Date": None})


def table(task: Task) -> str:
    """As Markdown."""
    rows = ["| in the place of the examples | features | nats | right | share of the effect |", "|---|---|---|---|---|"]
    shares = task.shares()
    scores = {name: [score] for name, (score, _) in task.done.scores.items()} | task.floors
    for name, several in scores.items():
        n = task.features(name)
        nll, right = (float(np.mean(column)) for column in zip(*((s.nll, s.right) for s in several), strict=True))
        share = shares[name].text(".2f") if name in shares else ""
        rows.append(f"| {name} | {'' if n is None else n} | {nll:.2f} | {right:.0%} | {share} |")
    return "\n".join(rows)


def named(task: Task, sae: SAE, model: SubjectModel) -> str:
    """The features that are left."""
    cleaned = task.done.cleaned
    rows = ["| latent | amount | promotes at the output |", "|---|---|---|"]
    lens = ms.logit_lens(sae, model, cleaned.latents, 6)
    for latent, amount, effects in list(zip(cleaned.latents, cleaned.amounts, lens, strict=True))[:12]:
        words = " ".join(repr(token) for token, _ in effects.promoted)
        rows.append(f"| {latent} | {amount:.1f} | {words} |")
    return "\n".join(rows)


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument(
        "--pairs", type=Path, default=ROOT / "recipes" / "smollm2" / "work" / "function_vector_tasks.jsonl.gz"
    )
    given = parser.parse_args()
    start = time.perf_counter()
    sae, model = ms.Run(given.run).sae(), opened(given.model)
    wanted, most, draws = (21, 64, 2) if given.quick else (WANTED, MOST, 8)
    settings = {"penalties": (0.05, 0.2), "steps": 10} if given.quick else {}
    tasks: list[Task] = []
    for name, (task, turned) in TASKS.items():
        pairs, asked = answered(model, read_pairs(given.pairs, task, turned, model), wanted, most)
        n = (len(pairs) - SHOTS) // 4
        done = ms.clean_task_vector(
            model, sae, pairs, form=FORM, shots=SHOTS, train=max(1, n), held_out=max(1, 2 * n), **settings
        )
        print(
            f"{name}, {len(pairs)} of {asked} pairs answered, {time.perf_counter() - start:.0f} s\n{done}", flush=True
        )
        tasks.append(Task(name, done, {FLOORS[0]: at_random(done, sae, draws)}, asked, len(pairs)))
    for task, other in zip(tasks, tasks[::-1], strict=True):
        task.floors[FLOORS[1]] = [task.done.score(other.done.cleaned.reconstruction)]
    said = ". ".join(task.outcome() for task in tasks) + "."
    given.output.mkdir(parents=True, exist_ok=True)
    draw(given.output / "cleaning.svg", tasks)
    parts = [
        "# Does cleaning an in-context task vector cut its features by five while keeping its effect?",
        "Written by `python studies/cleaning.py`, as it came out.",
        f"**{said}**",
        "![share of the vector's effect](cleaning.svg)",
        f"{sae.n_latents:,} latents of a {sae.architecture} SAE at {sae.metadata.hook} of SmolLM2-135M-Instruct. "
        f"Queries `{FORM.query}`, {SHOTS} examples, put into the place of the activation at the query's last token. "
        "Shares are of sums over held-out pairs, with 95 % bootstrap intervals over pairs; numbers of features in "
        "parentheses in the figure. Rules: 5 times fewer features; 90 % of the effect, above both floors.",
        *(
            f"## {task.name[:1].upper()}{task.name[1:]}\n\n{task.kept} of {task.asked} pairs of common words are "
            f"answered behind examples and kept; {task.done.pairs} are held out. The vector's effect is "
            f"{task.effect().text('.2f')} nats a pair.\n\n{table(task)}\n\n{named(task, sae, model)}"
            for task in tasks
        ),
    ]
    (given.output / "cleaning.md").write_text("\n\n".join(parts) + "\n")
    print(f"{said}\n{time.perf_counter() - start:.0f} s; {given.output / 'cleaning.md'}")


if __name__ == "__main__":
    main()
