"""ms.clean_task_vector: a task taken from examples as a vector, cleaned into few features, and what each is worth."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from jaxtyping import Float
from torch import Tensor

from monosem.arguments import NotNegative, Positive, checked
from monosem.errors import ConfigError
from monosem.models import SubjectModel
from monosem.sae import SAE
from monosem.steering.decompose import Decomposition, clean, decompose
from monosem.steering.tasks import (
    Form,
    Pair,
    Questions,
    Score,
    Way,
    at_ends,
    few_shot_prompts,
    put,
    require_way,
    split,
    zero_shot,
)
from monosem.steering.vectors import SteeringVector
from monosem.work import as_job, doing

PENALTIES = (0.02, 0.05, 0.1, 0.2, 0.4)
KEPT = 0.9
"""Share of the vector's own effect that a cleaned one must keep on the pairs of choice."""


@dataclass(frozen=True)
class CleanedTask:
    """A task's vector, its cleaned features, and how well queries are answered with each in place of the examples."""

    vector: SteeringVector
    cleaned: Decomposition
    encoded: Decomposition
    """What the SAE's encoder makes of the vector: where cleaning begins."""
    scores: dict[str, tuple[Score, int | None]]
    """On held-out pairs: of each way its score and its number of features."""
    path: list[tuple[float, int, float]]
    """Of every penalty tried: itself, features left, NLL on the pairs of choice."""
    judge: Questions = field(repr=False)
    """The held-out queries, without examples."""
    way: Way

    @property
    def pairs(self) -> int:
        """How many were held out."""
        return len(self.judge.ends)

    def score(self, vector: Float[Tensor, " d"]) -> Score:
        """How well the held-out queries are answered with any vector in the place of the examples."""
        return self.judge.score(self.vector.hook, put(vector.to(self.vector.vector), self.way))

    @property
    def fewer(self) -> float:
        """By how many times cleaning lowered the number of features."""
        return len(self.encoded.latents) / max(1, len(self.cleaned.latents))

    def kept(self, name: str = "cleaned") -> float:
        """Share of the vector's effect, in nats, that something keeps on held-out pairs."""
        nothing, vector = self.scores["nothing"][0].nll, self.scores["vector"][0].nll
        return (nothing - self.scores[name][0].nll) / (nothing - vector) if nothing != vector else float("nan")

    def __str__(self) -> str:
        lines = [f"{self.pairs} held-out pairs, {self.vector.about}", f"{'':<28}{'features':>9}{'NLL':>8}{'right':>8}"]
        for name, (score, features) in self.scores.items():
            lines.append(f"{name:<28}{'' if features is None else features:>9}{score.nll:>8.2f}{score.right:>8.0%}")
        lines.append(f"cleaning: {self.fewer:.1f} x fewer features, {self.kept():.0%} of the vector's effect")
        return "\n".join(lines)


@checked
@torch.no_grad()
def task_vector(
    model: SubjectModel,
    pairs: Sequence[Pair],
    hook: str,
    *,
    form: Form | None = None,
    shots: int = 8,
    prompts: int = 16,
    way: Way = "replace",
    seed: NotNegative = 0,
) -> SteeringVector:
    """What examples in a prompt leave at the token where the answer is to begin: mean over few-shot prompts.

    Args:
        model: a causal language model.
        pairs: inputs and outputs of the task, shots + prompts of them at least.
        hook: where.
        form: how examples are written.
        shots: examples in each prompt.
        prompts: whose mean is taken.
        way: "replace", the mean itself, to stand in the place of activations; "add", less the mean without examples.
        seed: of the draw.

    Raises:
        ConfigError: an unknown way.
        DataError: there are too few pairs.

    Source: Hendel et al., In-Context Learning Creates Task Vectors, 2023.
    """
    require_way(way)
    form = form or Form()
    asked, examples = split(pairs, [prompts], shots, seed)
    rows = at_ends(model, hook, few_shot_prompts(form, examples, asked, shots, seed))
    return _mean(model, hook, rows, form, asked, way)


def _mean(
    model: SubjectModel, hook: str, rows: Float[Tensor, "prompts d"], form: Form, asked: Sequence[Pair], way: Way
) -> SteeringVector:
    vector = rows.mean(0)
    if way == "add":
        vector = vector - at_ends(model, hook, [form.asked(word) for word, _ in asked]).mean(0)
    return SteeringVector(hook, vector.cpu(), f"task vector of {len(rows)} prompts, to {way}")


@checked
@as_job
def clean_task_vector(
    model: SubjectModel,
    sae: SAE,
    pairs: Sequence[Pair],
    *,
    form: Form | None = None,
    shots: int = 8,
    train: int = 16,
    held_out: int = 32,
    way: Way = "replace",
    penalties: Sequence[float] = PENALTIES,
    steps: Positive = 40,
    seed: NotNegative = 0,
    progress: bool = True,
) -> CleanedTask:
    """Take a task's vector from few-shot prompts, clean it, and compare on pairs that neither has seen.

    Cleaning optimises a nonnegative sparse code of the SAE so that queries without examples are answered well with it;
    see `ms.decompose(method="task")`. Of the penalties that one is chosen which leaves the fewest features and, on
    pairs of their own, 90 % of the vector's effect; if none does, that of the least loss.

    Compared are: nothing in place of the examples; the examples themselves; the vector; its reconstruction by the SAE;
    the vector of reconstructions (the mean of the SAE's reconstructions of each prompt); gradient pursuit with as many
    features as the cleaned one has; the cleaned one.

    Args:
        model: a causal language model.
        sae: at whose hook point the vector is taken and put in.
        pairs: inputs and outputs of the task: shots + 2 train + held_out of them at least.
        form: how examples are written.
        shots: examples in each prompt.
        train: pairs to optimise on; as many more to choose the penalty by.
        held_out: pairs to compare on.
        way: "replace" the activation at the end of the query, or "add" to it.
        penalties: tried one after another, from the least, each going on from the one before.
        steps: of the optimiser for each penalty, at most.
        seed: of the draw.
        progress: show it.

    Raises:
        ConfigError: a setting is wrong.
        DataError: there are too few pairs.
    """
    require_way(way)
    hook, form = sae.metadata.hook, form or Form()
    if hook is None:
        raise ConfigError("this SAE does not know its hook point: set sae.metadata.hook = 'resid_post.2'")
    if not penalties:
        raise ConfigError("give one penalty at least")
    trained, choice, judged, examples = split(pairs, [train, train, held_out], shots, seed)
    rows = at_ends(model, hook, few_shot_prompts(form, examples, trained, shots, seed))
    vector = _mean(model, hook, rows, form, trained, way)
    of = "activation" if way == "replace" else "direction"
    encoded = decompose(vector, sae, "encoder", of=of)
    asked, chooser, judge = (zero_shot(model, form, part) for part in (trained, choice, judged))

    with doing("cleaning", len(penalties) * steps, unit="steps") as stage, asked.again(hook):

        def loss(candidate: Float[Tensor, " d"]) -> Float[Tensor, ""]:
            stage.advance(1)
            return asked.asked(hook, put(candidate, way))[0].mean()

        tried = clean(vector, sae, loss, sorted(penalties), of=of, steps=steps)
    found = [(one, chooser.score(hook, put(one.reconstruction, way)).nll) for one in tried]
    cleaned = _chosen(found, chooser.score().nll, chooser.score(hook, put(vector.vector, way)).nll)
    pursued = decompose(vector, sae, "pursuit", k=max(1, len(cleaned.latents)), of=of)
    means = _of_reconstructions(model, sae, rows, form, trained, hook, way)
    scores: dict[str, tuple[Score, int | None]] = {"nothing": (judge.score(), None)}
    prompts = few_shot_prompts(form, examples, judged, shots, seed + 1)
    answers = [form.answer.replace("{output}", b) for _, b in judged]
    scores["examples"] = (_few_shot(model, prompts, answers), None)
    for name, candidate, features in (
        ("vector", vector.vector, None),
        ("its reconstruction", encoded.reconstruction, len(encoded.latents)),
        ("vector of reconstructions", means, None),
        ("pursuit", pursued.reconstruction, len(pursued.latents)),
        ("cleaned", cleaned.reconstruction, len(cleaned.latents)),
    ):
        scores[name] = (judge.score(hook, put(candidate.to(vector.vector), way)), features)
    path = [(penalty, len(d.latents), nll) for penalty, (d, nll) in zip(sorted(penalties), found, strict=True)]
    return CleanedTask(vector, cleaned, encoded, scores, path, judge, way)


def _chosen(found: list[tuple[Decomposition, float]], nothing: float, vector: float) -> Decomposition:
    enough = [(len(d.latents), nll, d) for d, nll in found if nothing - nll >= KEPT * (nothing - vector)]
    if enough:
        return min(enough, key=lambda item: item[:2])[2]
    return min(found, key=lambda item: item[1])[0]


@torch.no_grad()
def _of_reconstructions(
    model: SubjectModel,
    sae: SAE,
    rows: Float[Tensor, "prompts d"],
    form: Form,
    asked: Sequence[Pair],
    hook: str,
    way: Way,
) -> Float[Tensor, " d"]:
    mean = sae(rows).reconstruction.mean(0)
    if way == "add":
        plain = at_ends(model, hook, [form.asked(word) for word, _ in asked])
        mean = mean - sae(plain).reconstruction.mean(0)
    return mean


@torch.no_grad()
def _few_shot(model: SubjectModel, prompts: Sequence[str], answers: Sequence[str]) -> Score:
    """Few at a time: they are long."""
    scores: list[tuple[Score, int]] = []
    for start in range(0, len(prompts), 8):
        part = slice(start, start + 8)
        scores.append((Questions(model, prompts[part], answers[part]).score(), len(prompts[part])))
    right = sum(score.right * n for score, n in scores) / len(prompts)
    return Score([nll for score, _ in scores for nll in score.each], right)
