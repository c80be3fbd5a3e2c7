"""Every metric on four dictionaries of known worth, in a small world whose features are known.

`python tests/metric_battery.py` measures them from five seeds and writes the table in docs/evaluation.md (minutes).

The world: a random transformer whose tokens are sums of a few planted directions, read at `embed`, and text that it
has written itself. The oracle knows of every token what it is made of; "best k" is a TopK SAE with the true number of
latents on, trained; "permuted" is that one with its decoder rows in another order: its latents fire as well, and write
nonsense; "untrained" is a random one.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from shared_fixtures import LetterTokenizer, random_gpt2
from torch import Tensor

import monosem as ms
from monosem.codes import SparseCodes
from monosem.evaluation.definitions import DEFINITIONS, GROUPS
from monosem.evaluation.probing.absorption import letters_of, metrics_of_letters
from monosem.evaluation.probing.columns import Columns
from monosem.evaluation.probing.measure import DENSE
from monosem.evaluation.truth import score_codes
from monosem.models import SubjectModel
from monosem.sae import ReLUSAE
from monosem.sae.control import random_sae
from monosem.synthetic import PlantedDictionary
from monosem.training import Trainer, TrainingConfig

DOCS = Path(__file__).parents[1] / "docs" / "evaluation.md"
BEGIN, END = "<!-- the battery: python tests/metric_battery.py -->", "<!-- end of the battery -->"
NAMES = ("oracle", "best k", "permuted", "untrained")
D, N_FEATURES, L0 = 32, 64, 3
FIRST, VOCABULARY, LENGTH, PIECE = 256, 768, 48, 11
"""Tokens that the text has begin at the first number: letters."""
LABELLED, LABELS = 2_000, 10
"""Rows, labelled by the strongest feature of the commonest ones, that absorption is asked of."""


class Letters(LetterTokenizer):
    """A token a letter."""

    def __len__(self) -> int:
        return VOCABULARY


class Oracle(ReLUSAE):
    """Knows the rows of a table and what they are made of."""

    def know(self, x: Tensor, codes: SparseCodes, planted: PlantedDictionary) -> Oracle:
        self.table, self.known = x, codes
        with torch.no_grad():
            self.W_enc.copy_(planted.features)
            self.W_dec.copy_(planted.features)
            self.b_dec.copy_(planted.mean)
        return self

    def encode(self, x: Tensor) -> SparseCodes:
        return self.known[torch.cdist(x, self.table).argmin(-1)]


@dataclass
class World:
    """What is planted, the model that is made of it, and its text."""

    planted: PlantedDictionary
    x: Tensor
    """(tokens, d) what each token is."""
    codes: SparseCodes
    model: SubjectModel
    text: list[str]


@torch.no_grad()
def make_world(seed: int, documents: int) -> World:
    planted = PlantedDictionary(N_FEATURES, D, l0=L0, skew=0.5, noise=0.02, mean_norm=1.0, seed=seed)
    x, codes = planted.sample(VOCABULARY, seed)
    module: Any = random_gpt2(seed, width=D, layers=2, heads=4, vocabulary=VOCABULARY, positions=LENGTH)
    module.transformer.wte.weight.copy_(x)
    module.transformer.wpe.weight.zero_()
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randint(FIRST, VOCABULARY, (documents, 1), generator=generator)
    for _ in range(LENGTH - 2):
        chances = module(tokens).logits[:, -1, FIRST:].softmax(-1)
        tokens = torch.cat([tokens, FIRST + torch.multinomial(chances, 1, generator=generator)], 1)
    text = ["".join(map(chr, row)) for row in tokens.tolist()]
    return World(planted, x, codes, SubjectModel(module, Letters(), "planted"), text)


def make_four(world: World, seed: int, steps: int) -> dict[str, ms.SAE]:
    best = ms.TopKSAE(D, N_FEATURES, k=L0, seed=seed)
    trainer = Trainer(best, TrainingConfig(batch_size=512, lr=0.01))
    for batch, _ in zip(world.planted.batches(512, seed + 1), range(steps), strict=False):
        trainer.step(batch.x)
    best.eval()
    permuted = ms.TopKSAE(D, N_FEATURES, k=L0)
    permuted.load_state_dict(best.state_dict())
    permuted.transform.fitted = True
    order = torch.randperm(N_FEATURES, generator=torch.Generator().manual_seed(seed))
    with torch.no_grad():
        permuted.W_dec.copy_(best.W_dec[order])
    oracle = Oracle(D, N_FEATURES, transform="none").know(world.x, world.codes, world.planted)
    return dict(zip(NAMES, (oracle, best, permuted, random_sae(best, world.x, seed=seed + 7)), strict=True))


def measure(seed: int, documents: int = 48, steps: int = 500) -> dict[str, dict[str, float]]:
    """By dictionary and metric."""
    world = make_world(seed, documents)
    saes = make_four(world, seed, steps)
    report = ms.evaluate(
        saes, world.model, "embed", text=world.text, tokens=10**6, loss_tokens=10**6, controls=False, progress=False
    )
    found = {name: {key: interval.value for key, interval in report.columns[name].items()} for name in NAMES}
    useful, absorption = probed(saes, world), absorbed(saes, world, seed)
    for name, sae in saes.items():
        with torch.no_grad():
            fired = sae.encode(world.x)
        truth = score_codes(sae.decoder_directions(), fired, world.planted, world.codes)
        found[name] |= {key: interval.value for key, interval in truth.values.items()}
        found[name] |= useful[name] | absorption[name] | alarmed(sae, world, seed)
    return found


def probed(saes: dict[str, ms.SAE], world: World) -> dict[str, dict[str, float]]:
    """Probes of whether a planted feature is anywhere in a piece of text: of one that is in about half of them."""
    pieces = [text[start : start + PIECE] for text in world.text for start in range(0, len(text) - PIECE + 1, PIECE)]
    on = world.codes.to_dense() > 0
    held = torch.stack([on[[ord(letter) for letter in piece]].any(0) for piece in pieces])
    feature = int((held.double().mean(0) - 0.5).abs().argmin())
    rows = [{"text": piece, "label": has} for piece, has in zip(pieces, held[:, feature].int().tolist(), strict=True)]
    report = ms.probe(
        saes, rows, (1, 5), model=world.model, hook="embed", pool="max", test_share=0.4, controls=False, progress=False
    )
    return {
        name: {f"probe_auroc_{k}": report[name, k].auroc.value for k in (1, 5)}
        | {"probe_accuracy_5": report[name, 5].accuracy.value}
        | {"probe_auroc_lost": -report.difference(DENSE, 5, name).value}
        for name in saes
    }


def alarmed(sae: ms.SAE, world: World, seed: int) -> dict[str, float]:
    """Alarms at text of other tokens: all of them equally often."""
    generator = torch.Generator().manual_seed(seed + 11)
    size = (len(world.text), len(world.text[0]))
    strange = torch.randint(FIRST, VOCABULARY, size, generator=generator).tolist()
    other = ["".join(map(chr, row)) for row in strange]
    options: Any = {"model": world.model, "hook": "embed", "tokens": 10**6, "progress": False}
    found = ms.compare_texts(sae, world.text, other, **options).alarms
    return {
        "alarm_l0": found["l0"].value,
        "alarm_error": found["relative_error"].value,
        "alarm_norm": found["norm"].value,
    }


@torch.no_grad()
def absorbed(saes: dict[str, ms.SAE], world: World, seed: int) -> dict[str, dict[str, float]]:
    """Absorption and splitting of the label of a row: which of the commonest features is the strongest in it."""
    x, codes = world.planted.sample(LABELLED, seed + 13)
    labels = codes.to_dense().argmax(-1)
    kept = labels < LABELS
    truth = codes[kept.nonzero()[:, 0]]
    found: dict[str, dict[str, float]] = {}
    for name, sae in saes.items():
        fired = truth if isinstance(sae, Oracle) else sae.encode(x[kept])
        codes_of, x_of = (Columns(rows.double().numpy()) for rows in (fired.to_dense(), x[kept]))
        letters = letters_of(codes_of, x_of, labels[kept].numpy(), sae.decoder_directions().double().numpy())
        found[name] = {key: one.value for key, one in metrics_of_letters(letters, int(kept.sum()) // 5).items()}
    return found


@dataclass
class Row:
    """What a metric makes of the four, as means over seeds."""

    means: dict[str, float]
    noise: float
    """Coefficient of variation over seeds of the trained one: standard deviation over |mean|."""
    tells: float
    """Trained from untrained: the difference of their means in standard deviations (over seeds) of that difference."""


def rows(runs: list[dict[str, dict[str, float]]]) -> dict[str, Row]:
    """By metric, those that all four have and that are defined in this world."""
    found: dict[str, Row] = {}
    for key in DEFINITIONS:
        if not all(key in run[name] for run in runs for name in NAMES):
            continue
        if all(math.isnan(run[name][key]) for run in runs for name in NAMES):
            continue
        values = {name: np.array([run[name][key] for run in runs]) for name in NAMES}
        best, apart = values["best k"], values["best k"] - values["untrained"]
        spread = apart.std(ddof=1) if len(runs) > 1 else math.nan
        found[key] = Row(
            {name: float(own.mean()) for name, own in values.items()},
            float(best.std(ddof=1) / abs(best.mean())) if len(runs) > 1 and best.mean() else math.nan,
            float(abs(apart.mean()) / spread) if spread else math.nan,
        )
    return found


def table(found: dict[str, Row], seeds: int) -> str:
    lines = [
        f"Means over {seeds} seeds (of the world, the text and the training). *Noise*: the coefficient of variation",
        "over seeds of *best k*. *Tells*: by how many standard deviations over seeds *best k* is from *untrained*;",
        "below about 3 a metric does not tell a trained dictionary from one that never learned. A dash: not defined",
        "here; metrics that are defined of none of the four are left out.",
        "",
        f"| metric | better | {' | '.join(NAMES)} | noise | tells |",
        f"|---|---|{'---:|' * (len(NAMES) + 2)}",
    ]
    for group, definitions in GROUPS.items():
        own = [key for key in definitions if key in found]
        if own:
            lines.append(f"| **{group}** |{' |' * (len(NAMES) + 3)}")
        for key in own:
            row, better = found[key], {"up": "higher", "down": "lower", "none": ""}[DEFINITIONS[key].direction]
            means = " | ".join(_cell(row.means[name]) for name in NAMES)
            noise = "–" if math.isnan(row.noise) else f"{row.noise:.1%}"
            tells = "–" if math.isnan(row.tells) else f"{row.tells:.1f}" if row.tells < 100 else "> 100"
            lines.append(f"| {DEFINITIONS[key].label.strip()} (`{key}`) | {better} | {means} | {noise} | {tells} |")
    return "\n".join(lines)


def _cell(value: float) -> str:
    return "–" if math.isnan(value) else f"{value:.3g}" if abs(value) >= 1e-3 or not value else f"{value:.0e}"


def between(text: str, begin: str, end: str, new: str) -> str:
    """A text with what stands between two marks replaced."""
    before, _, rest = text.partition(begin)
    _, _, after = rest.partition(end)
    return f"{before}{begin}\n\n{new}\n\n{end}{after}"


def main() -> None:
    runs = []
    for seed in range(5):
        runs.append(measure(seed))
        print(f"seed {seed} measured", flush=True)
    written = table(rows(runs), len(runs))
    DOCS.write_text(between(DOCS.read_text(), BEGIN, END, written))
    print(written)


if __name__ == "__main__":
    main()
