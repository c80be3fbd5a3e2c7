"""Do L0 and error of a dictionary raise an alarm at texts of another kind, and what else would have?

    python studies/alarm.py [RUN] [--model MODEL] [--documents 60] [--words 60]

Passages of the bundled held-out text stand against texts of other kinds that every machine has: other passages with
their words in random order, in capitals, with the letters of every word turned round, and Python's own source. Scores
of a passage: mean L0, squared error, squared error by squared norm; beside them what needs no dictionary: the norm of
the activations, and the model's own loss. AUROC of "more in the other kind", 95 % bootstrap intervals. The claim that
is tried: reconstruction error and L0 rise off distribution, so that they can serve as alarms. Rule, written before
looking: a score is an alarm for a kind if the lower end of its interval is above 0.8, and of use beside the loss if its
AUROC is above that of the loss for at least one kind. Writes alarm.svg and .md.
"""

from __future__ import annotations

import inspect
import json
import statistics
import textwrap
import time
from pathlib import Path

import numpy as np
from smollm2 import arguments, opened

import monosem as ms
from monosem.evaluation.probing import read_labelled
from monosem.evaluation.probing.scores import drawn_auroc, interval_of, weights_of
from monosem.evaluation.probing.usefulness import in_random_order
from monosem.intervals import Interval
from monosem.interventions.effects import log_likelihood
from monosem.models import SubjectModel

ALARM = 0.8


def kinds(documents: int, words: int) -> tuple[list[str], dict[str, list[str]]]:
    """Passages, and texts of other kinds, as many of each."""
    found = read_labelled("bundled:held_out", label="source").texts
    passages = [" ".join(text.split()[:words]) for text in found[: 2 * documents]]
    one, other = passages[:documents], passages[documents:]
    source = "\n".join(inspect.getsource(module) for module in (textwrap, json, statistics, inspect))
    size = sum(map(len, one)) // documents
    code = [source[i : i + size] for i in range(0, len(source) - size, size)][:documents]
    return one, {
        "other passages (no alarm is right)": other,
        "words in random order": [in_random_order(text) for text in other],
        "capitals": [text.upper() for text in other],
        "words turned round": [" ".join(word[::-1] for word in text.split()) for text in other],
        "Python": code,
    }


def losses(model: SubjectModel, texts: list[str]) -> np.ndarray:
    """Of each text, in nats a token."""
    found = []
    for text in texts:
        inputs = model.padded([text])
        likelihood = log_likelihood(model(inputs), inputs)[0]
        found.append(-float(likelihood[1:].mean()))
    return np.array(found)


def auroc_of(a: np.ndarray, b: np.ndarray) -> Interval:
    weights = np.concatenate([weights_of(len(a), 0), weights_of(len(b), 1)])
    return interval_of(drawn_auroc(np.concatenate([a, b]), np.arange(len(a) + len(b)) >= len(a), weights))


def draw(path: Path, found: dict[str, dict[str, Interval]]) -> None:
    """The figure: AUROC by kind and score."""
    import matplotlib.pyplot as plt

    plt.rcParams["svg.hashsalt"] = "monosem"
    figure, axis = plt.subplots(figsize=(7.5, 3.4))
    scores = list(next(iter(found.values())))
    colours = ("#e07b00", "#b2182b", "#f4a582", "#999999", "#2166ac")
    for place, (score, colour) in enumerate(zip(scores, colours, strict=True)):
        values = [one[score] for one in found.values()]
        at = np.arange(len(values)) + 0.14 * (place - 2)
        spans = np.array([[v.value - (v.low or v.value), (v.high or v.value) - v.value] for v in values]).T
        middle = [v.value for v in values]
        axis.errorbar(middle, at, xerr=spans.clip(0), fmt="o", ms=4, color=colour, label=score)
    axis.axvline(0.5, color="#bbbbbb", linewidth=1)
    axis.set_yticks(range(len(found)), list(found))
    axis.invert_yaxis()
    axis.set(xlabel="AUROC, more in the other kind", xlim=(-0.02, 1.02))
    axis.spines[["top", "right"]].set_visible(False)
    axis.legend(frameon=False, fontsize=7, loc="upper left", bbox_to_anchor=(1, 1))
    figure.tight_layout()
    figure.savefig(path, metadata={"Date": None})


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--documents", type=int, default=60, help="passages of each kind")
    parser.add_argument("--words", type=int, default=60, help="words of each")
    given = parser.parse_args()
    start = time.perf_counter()
    sae = ms.load_sae(given.run / "sae")
    model = ms.load_model("bundled") if sae.metadata.model == "bundled" else opened(given.model)
    here, others = kinds(15 if given.quick else given.documents, given.words)
    words = {"l0": "L0", "error": "error", "relative_error": "error by norm", "norm": "norm (no dictionary)"}
    plain = losses(model, here)
    found: dict[str, dict[str, Interval]] = {}
    for kind, texts in others.items():
        alarms = ms.compare_texts(sae, here, texts, model=model).alarms
        loss = auroc_of(plain, losses(model, texts))
        found[kind] = {words[name]: one for name, one in alarms.items()} | {"loss (no dictionary)": loss}
    strange = list(found)[1:]
    lines = ["| kind | " + " | ".join(found[strange[0]]) + " |", "|---" * (1 + len(found[strange[0]])) + "|"]
    for kind, scores in found.items():
        cells = [f"{one.value:.2f} ({one.low:.2f} to {one.high:.2f})" for one in scores.values()]
        lines.append(f"| {kind} | {' | '.join(cells)} |")
    said: list[str] = []
    for score in found[strange[0]]:
        raised = sum((found[kind][score].low or 0) > ALARM for kind in strange)
        said.append(f"{score} {raised}")
    beyond = [
        f"{score} at {kind}"
        for score in ("L0", "error", "error by norm")
        for kind in strange
        if found[kind][score].value > found[kind]["loss (no dictionary)"].value
    ]
    verdict = (
        f"Alarms at {len(strange)} kinds of strange text (the interval's lower end above {ALARM}): {', '.join(said)}. "
        + (
            f"Above the model's own loss: {', '.join(beyond)}."
            if beyond
            else "None is ever above the model's own loss."
        )
    )
    given.output.mkdir(parents=True, exist_ok=True)
    draw(given.output / "alarm.svg", found)
    parts = [
        "# Do L0 and error raise an alarm at texts of another kind?",
        "Written by `python studies/alarm.py`, as it came out.",
        f"**{verdict}**",
        "![AUROC by kind](alarm.svg)",
        f"{model.name.rpartition('/')[2]}, {sae.metadata.hook}, a {sae.architecture} SAE of {sae.n_latents:,} latents; "
        f"{len(here)} passages of {given.words} words of the bundled held-out text, as many of each kind. AUROC of "
        '"more in the other kind", 95 % bootstrap intervals over passages; below 0.5 the other kind has less of it.',
        "\n".join(lines),
    ]
    (given.output / "alarm.md").write_text("\n\n".join(parts) + "\n")
    print(f"{verdict}\n{time.perf_counter() - start:.0f} s; {given.output / 'alarm.md'}")


if __name__ == "__main__":
    main()
