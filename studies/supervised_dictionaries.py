"""Do dictionaries that were told what to find edit better than sparse autoencoders, and do training metrics tell which
of these edit well?

    python studies/supervised_dictionaries.py [--model FOLDER] [--output studies] [--quick]

At the last token of "When Mary and John went to the store, John gave a bottle of milk to" the model knows the indirect
object (Mary), the subject (John) and which of them came first. A supervised dictionary (`ms.supervised_dictionary`)
has a direction for every value of these, from 900 labelled prompts. An edit changes one of them; the truth is the
activation of the prompt in which it is changed. Quality: 1 - KL(truth || edited) / KL(truth || not edited), sums over
prompts; 1 is the truth, 0 is nothing done. Beside the supervised edits, by means and by least squares, a random
direction of the same length (the null), and 24 sparse autoencoders trained on the same activations, each edited by 4
features (`ms.sparse_edit`), the best one by 1 and 16 too: what correlates over dictionaries with the quality? Rules,
written before looking: supervised edits are better if they beat the best SAE's by 4 features for most attributes; a
metric predicts quality if the 95 % interval of its rank correlation, bootstrapped over dictionaries, is on one side of
0; what they say is necessary if taking it out loses more than half of what the mean loses, and more than a random
direction does. Without the model of recipes/smollm2 the bundled one is read, which knows little of indirect objects.
Writes supervised_dictionaries.svg and .md.
"""

from __future__ import annotations

import copy
import itertools
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from indirect_objects import NAMES, TEMPLATES
from scipy.stats import rankdata
from smollm2 import DRAWS, arguments, estimate, opened
from torch import Tensor

import monosem as ms
from monosem.analysis import rows_at
from monosem.models import SubjectModel
from monosem.models.writing import new_cache

ATTRIBUTES = ("object", "subject", "order")
KS = (1, 4, 16)
BY = 4
"""Features by which an edit is made, where dictionaries are compared."""
WIDTHS, SPARSITIES = (256, 768), (4, 12, 36)
KINDS = ("topk", "batchtopk", "gated", "relu")
ROWS = 30_000
"""To train each on, with repetition."""
ROWS_AT_ONCE = 240
"""Prompts x edits in one pass."""
Values = dict[str, list[Any]]


def drawn(names: list[str], n: int, n_test: int) -> tuple[Values, Values]:
    """Values of every attribute: all that there can be, in a random order, `n` of them and `n_test` others."""
    orders, templates = ("object first", "subject first"), range(len(TEMPLATES))
    every = [each for each in itertools.product(names, names, orders, templates) if each[0] != each[1]]
    chosen = [every[i] for i in np.random.default_rng(0).permutation(len(every))]
    keys = (*ATTRIBUTES, "template")
    train, test = chosen[: min(n, len(every) - n_test)], chosen[-n_test:]
    return tuple(dict(zip(keys, map(list, zip(*of, strict=True)), strict=True)) for of in (train, test))  # type: ignore[return-value]


def texts(values: Values) -> list[str]:
    """The prompts."""
    found: list[str] = []
    for name, subject, order, template in zip(*values.values(), strict=True):
        first, second = (name, subject) if order == "object first" else (subject, name)
        found.append(TEMPLATES[template].format(A=f" {first}", B=f" {second}", S=f" {subject}"))
    return found


def otherwise(values: Values, attribute: str, names: list[str], seed: int) -> Values:
    """The same, but that one attribute has another value."""
    rng = np.random.default_rng(seed)
    changed = {name: list(of) for name, of in values.items()}
    for i in range(len(values["object"])):
        if attribute == "order":
            both = ("object first", "subject first")
            changed["order"][i] = both[1 - both.index(values["order"][i])]
        else:
            taken = {values["object"][i], values["subject"][i]}
            changed[attribute][i] = rng.choice([name for name in names if name not in taken])
    return changed


class Tried:
    """What the model says at the end of some prompts, edited or not.

    All but the last token of each is read once: an edit stands at the last, so that nothing before it changes, and many
    edits are read in one pass of one token.
    """

    def __init__(self, model: SubjectModel, hook: str, values: Values) -> None:
        self.model, self.hook, self.values = model, hook, values
        whole = texts(values)
        self.x = rows_at(model, hook, whole).float()
        self.parts: list[tuple[list[int], Tensor, Any]] = []
        for template in range(len(TEMPLATES)):
            chosen = [i for i, each in enumerate(values["template"]) if each == template]
            if not chosen:
                continue
            tokens, cache = model.tokens([whole[i] for i in chosen]), new_cache(model)
            with torch.no_grad():
                model({"input_ids": tokens[:, :-1], "past_key_values": cache, "use_cache": True})
            self.parts.append((chosen, tokens[:, -1:], cache))

    def said(self, changes: Mapping[str, Tensor]) -> Iterator[tuple[str, list[int], Tensor]]:
        """Of each change of the activations at the end and each template: the prompts, and what is said of them there.

        What is said is (prompts, vocabulary) log-probabilities.
        """
        for chosen, last, kept in self.parts:
            every, at_once = list(changes), max(1, ROWS_AT_ONCE // len(chosen))
            for names in (every[start : start + at_once] for start in range(0, len(every), at_once)):
                cache = copy.deepcopy(kept)
                cache.batch_repeat_interleave(len(names))
                change = torch.stack([changes[name][chosen] for name in names], 1).flatten(0, 1)
                tokens = last.repeat_interleave(len(names), 0)
                edit = ms.AddVector(self.hook, change, where=ms.Where(positions=-1))
                with torch.no_grad(), self.model.edit([edit]):
                    out = self.model({"input_ids": tokens, "past_key_values": cache, "use_cache": True})
                each = out[:, -1].unflatten(0, (len(chosen), len(names)))
                for i, name in enumerate(names):
                    yield name, chosen, each[:, i].float().log_softmax(-1).cpu()

    def whole(self, changes: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """(prompts, vocabulary) of each change."""
        found: dict[str, Tensor] = {}
        for name, chosen, last in self.said(changes):
            found.setdefault(name, torch.zeros(len(self.x), last.shape[1]))[chosen] = last
        return found

    def divergences(self, changes: Mapping[str, Tensor], truth: Mapping[str, Tensor]) -> dict[str, np.ndarray]:
        """(prompts,) KL(truth || changed) of each change, whose name ends in that of its truth."""
        found = {name: np.zeros(len(self.x)) for name in changes}
        for name, chosen, last in self.said(changes):
            found[name][chosen] = divergence(truth[name.rsplit("/", 1)[1]][chosen], last)
        return found


def divergence(p: Tensor, q: Tensor) -> np.ndarray:
    """(prompts,) KL(p || q) of log-probabilities."""
    return (p.exp() * (p - q)).sum(-1).clamp_min(0).double().numpy()


def share(part: np.ndarray, whole: np.ndarray, seed: int = 0) -> tuple[float, float, float]:
    """1 - sum(part) / sum(whole), with its 95 % bootstrap interval over prompts."""
    rng = np.random.default_rng(seed)
    rows = rng.integers(0, len(part), (DRAWS, len(part)))
    values = 1 - part[rows].sum(1) / np.maximum(1e-12, whole[rows].sum(1))
    low, high = np.quantile(values, [0.025, 0.975])
    return float(1 - part.sum() / max(1e-12, whole.sum())), float(low), float(high)


@dataclass
class Dictionary:
    """One SAE: what training says of it, and how well it edits."""

    name: str
    sae: Any
    fvu: float
    l0: float
    recovered: float = 0.0
    """1 - KL(clean || reconstruction at the end) / KL(clean || mean there)."""
    needed: tuple[float, float, float] = (0.0, 0.0, 0.0)
    """KL(clean || without the reconstruction at the end) / KL(clean || mean there)."""
    distance: float = 0.0
    """To the truth that is left after an edit by four features, as a share."""
    quality: dict[str, tuple[float, float, float]] = field(default_factory=dict[Any, Any])
    """Of each attribute's edits by four features."""

    @property
    def by_four(self) -> float:
        return float(np.mean([self.quality[name][0] for name in ATTRIBUTES]))


def named(
    tried: Tried, changes: Mapping[str, Tensor], truth: Mapping[str, Tensor], names: list[str]
) -> dict[str, list[str]]:
    """Which of the names is likeliest in each prompt: clean, at the truth of another object, and by edits of it."""
    model = tried.model
    ids = torch.tensor([int(model.tokens(f" {name}", prepend_bos=False)[0, 0]) for name in names])
    ours = {key: change for key, change in changes.items() if not key.startswith(("SAE", "nothing", "mean"))}
    said = tried.whole({key.split("/")[0]: change for key, change in ours.items() if key.endswith("/object")})
    said |= tried.whole({key.split("/")[0]: change for key, change in ours.items() if key.endswith("removed/clean")})
    said |= {"clean": truth["clean"], "truth": truth["object"]}
    return {kind: [names[i] for i in of[:, ids].argmax(1).tolist()] for kind, of in said.items()}


def agreement(a: Sequence[Any], b: Sequence[Any]) -> float:
    return float(np.mean([x == y for x, y in zip(a, b, strict=True)]))


def made(kind: str, d: int, width: int, l0: int, seed: int) -> Any:
    """An SAE of a kind, of about that L0."""
    if kind in ("topk", "batchtopk"):
        return (ms.TopKSAE if kind == "topk" else ms.BatchTopKSAE)(d, width, k=l0, seed=seed)
    return (ms.GatedSAE if kind == "gated" else ms.ReLUSAE)(d, width, target_l0=l0, seed=seed)


@torch.no_grad()
def told(sae: Any, x: Tensor, name: str) -> Dictionary:
    """What is measured of it on rows held out."""
    out = sae(x)
    fvu = float((x - out.reconstruction).pow(2).sum() / (x - x.mean(0)).pow(2).sum())
    return Dictionary(name, sae, fvu, float(out.codes.l0().float().mean()))


def rank_correlation(a: Sequence[float], b: Sequence[float]) -> tuple[float, float, float]:
    """Spearman's, with its 95 % bootstrap interval over dictionaries."""
    x, y, rng = np.array(a), np.array(b), np.random.default_rng(0)
    draws: list[float] = []
    for _ in range(1000):
        rows = rng.integers(0, len(x), len(x))
        if len(set(x[rows])) > 1 and len(set(y[rows])) > 1:
            draws.append(_correlation(x[rows], y[rows]))
    low, high = np.quantile(draws, [0.025, 0.975])
    return _correlation(x, y), float(low), float(high)


def _correlation(x: np.ndarray, y: np.ndarray) -> float:
    return float(np.corrcoef(rankdata(x), rankdata(y))[0, 1])


def written(value: tuple[float, float, float], form: str = ".2f") -> str:
    return f"{value[0]:{form}} ({value[1]:{form}} to {value[2]:{form}})"


def draw(path: Path, edits: dict[str, dict[str, Any]], dictionaries: list[Dictionary]) -> None:
    """The figure: quality by attribute, and by what training says."""
    import matplotlib.pyplot as plt

    plt.rcParams["svg.hashsalt"] = "monosem"
    figure, axes = plt.subplots(1, 3, figsize=(11, 3.4))
    for i, (name, of) in enumerate(edits.items()):
        values = np.array([of[attribute] for attribute in ATTRIBUTES])
        spread = np.maximum(0, [values[:, 0] - values[:, 1], values[:, 2] - values[:, 0]])
        at = np.arange(len(ATTRIBUTES)) + 0.11 * (i - len(edits) / 2)
        axes[0].errorbar(at, values[:, 0], spread, fmt="o", markersize=4, capsize=2, label=name)
    axes[0].set_xticks(range(len(ATTRIBUTES)), ATTRIBUTES)
    axes[0].axhline(0, color="0.8", linewidth=1)
    axes[0].set(ylabel="quality of the edit", title="1: the truth, 0: nothing done", ylim=(-0.6, 1.05))
    axes[0].legend(frameon=False, fontsize=6)
    for axis, key, label in (
        (axes[1], "fvu", "FVU, held out"),
        (axes[2], "distance", "distance left after 4 features"),
    ):
        for kind in KINDS:
            of = [each for each in dictionaries if each.name.startswith(kind)]
            axis.scatter([getattr(each, key) for each in of], [each.by_four for each in of], s=14, label=kind)
        axis.set(xlabel=label, ylabel="quality by 4 features")
    axes[1].legend(frameon=False, fontsize=7)
    for axis in axes:
        axis.spines[["top", "right"]].set_visible(False)
    figure.tight_layout()
    figure.savefig(path, metadata={"Date": None})


def main() -> None:
    options = arguments(__doc__).parse_args()
    began = time.process_time()
    known = options.model.is_dir()
    model = opened(options.model) if known else ms.load_model("bundled")
    what = "SmolLM2-135M-Instruct" if known else "the bundled model (SmolLM2 was not there)"
    hook = f"resid_post.{round(0.8 * model.n_layers)}" if known else "resid_post.2"
    names = [name for name in NAMES.split() if model.tokens(f" {name}", prepend_bos=False).shape[1] == 1]
    n_train, n_test, kinds, widths, sparsities = (
        (200, 12, ("topk", "relu"), (64,), (4, 12)) if options.quick else (900, 90, KINDS, WIDTHS, SPARSITIES)
    )
    train, test = drawn(names, n_train, n_test)
    x = rows_at(model, hook, texts(train)).float()
    print(f"{len(x):,} activations at {hook}, {time.process_time() - began:.0f} s", flush=True)
    supervised = {
        "supervised, means": ms.supervised_dictionary(None, x, train, hook=hook),
        "supervised, least squares": ms.supervised_dictionary(None, x, train, hook=hook, method="least_squares"),
    }

    tried = Tried(model, hook, test)
    others = {name: otherwise(tried.values, name, names, 2) for name in ATTRIBUTES}
    target = {name: rows_at(model, hook, texts(of)).float() for name, of in others.items()}
    dictionaries: list[Dictionary] = []
    fit, held_out = x[: -len(x) // 5], x[-len(x) // 5 :]
    for kind in kinds:
        for width in widths:
            for l0 in sparsities:
                sae = made(kind, x.shape[1], width, l0, seed=len(dictionaries))
                config = ms.TrainingConfig(batch_size=min(256, len(fit)), lr=1e-3)
                ms.fit(sae, fit, tokens=2000 if options.quick else ROWS, config=config, progress=False)
                dictionaries.append(told(sae, held_out, f"{kind} {width} L0 {l0}"))
    print(f"{len(dictionaries)} dictionaries, {time.process_time() - began:.0f} s", flush=True)

    changes = {"clean": torch.zeros_like(tried.x)} | {name: target[name] - tried.x for name in ATTRIBUTES}
    truth = tried.whole(changes)
    noise = torch.Generator().manual_seed(0)
    changes = {"mean/clean": x.mean(0) - tried.x}
    for name in ATTRIBUTES:
        changes[f"nothing/{name}"] = torch.zeros_like(tried.x)
        old, new = ({name: of[name]} for of in (tried.values, others[name]))
        for kind, dictionary in supervised.items():
            changes[f"{kind}/{name}"] = dictionary.change(old, new)
        length = changes[f"supervised, means/{name}"].norm(dim=1, keepdim=True)
        random = torch.randn(tried.x.shape, generator=noise)
        changes[f"random direction/{name}"] = random / random.norm(dim=1, keepdim=True) * length
    for kind, dictionary in supervised.items():
        changes[f"{kind}/clean"] = dictionary.reconstruct(tried.values) - tried.x
        changes[f"{kind}, removed/clean"] = removed = dictionary.removal(tried.values)
    random = torch.randn(tried.x.shape, generator=noise)
    changes["random, removed/clean"] = random / random.norm(dim=1, keepdim=True) * removed.norm(dim=1, keepdim=True)
    for number, each in enumerate(dictionaries):
        with torch.no_grad():
            rebuilt = each.sae(tried.x).reconstruction
        changes |= {f"SAE {number}/clean": rebuilt - tried.x, f"SAE {number}, removed/clean": x.mean(0) - rebuilt}
        left: list[float] = []
        for name in ATTRIBUTES:
            edit = ms.sparse_edit(each.sae, tried.x, target[name], BY)
            changes[f"SAE {number}/{name}"] = edit.change
            left.append(float(edit.distance[:, -1].mean()))
        each.distance = float(np.mean(left))
    away = tried.divergences(changes, truth)
    print(f"{len(changes)} edits, {time.process_time() - began:.0f} s", flush=True)

    def quality(kind: str, name: str) -> tuple[float, float, float]:
        return share(away[f"{kind}/{name}"], away["mean/clean" if name == "clean" else f"nothing/{name}"])

    def needed(kind: str) -> tuple[float, float, float]:
        value, low, high = quality(f"{kind}, removed", "clean")
        return 1 - value, 1 - high, 1 - low

    for number, each in enumerate(dictionaries):
        each.recovered = quality(f"SAE {number}", "clean")[0]
        each.needed = needed(f"SAE {number}")
        each.quality = {name: quality(f"SAE {number}", name) for name in ATTRIBUTES}
    edits: dict[str, dict[str, Any]] = {
        kind: {name: quality(kind, name) for name in ATTRIBUTES} for kind in (*supervised, "random direction")
    }
    best = max(dictionaries, key=lambda each: each.by_four)
    for k in KS:
        more = {f"{k}/{name}": ms.sparse_edit(best.sae, tried.x, target[name], k).change for name in ATTRIBUTES}
        away |= tried.divergences(more, truth)
        edits[f"best SAE, {k} feature{'s' * (k > 1)}"] = {name: quality(str(k), name) for name in ATTRIBUTES}
    kept = {kind: quality(kind, "clean") for kind in supervised}
    necessity = {kind: needed(kind) for kind in (*supervised, "random")} | {f"best SAE ({best.name})": best.needed}
    names_after = named(tried, changes, truth, names)

    qualities = [each.by_four for each in dictionaries]
    predictors = {
        "FVU": [each.fvu for each in dictionaries],
        "L0": [each.l0 for each in dictionaries],
        "KL recovered": [each.recovered for each in dictionaries],
        "distance left after 4 features": [each.distance for each in dictionaries],
    }
    found = {name: rank_correlation(values, qualities) for name, values in predictors.items()}
    accuracy = agreement(names_after["clean"], tried.values["object"])
    right = {kind: agreement(of, tried.values["object"]) for kind, of in names_after.items()}
    moved = {kind: agreement(of, others["object"]["object"]) for kind, of in names_after.items()}

    means, by_sae = edits["supervised, means"], edits[f"best SAE, {BY} features"]
    wins = sum(max(edits[kind][name][0] for kind in supervised) > by_sae[name][0] for name in ATTRIBUTES)
    is_needed = necessity["supervised, means"][1] > max(0.5, necessity["random"][2])
    tells = [f"{name} {written(of)}" for name, of in found.items() if of[1] > 0 or of[2] < 0]
    silent = [f"{name} {written(of)}" for name, of in found.items() if not (of[1] > 0 or of[2] < 0)]
    verdict = (
        f"Supervised edits are {'' if wins > len(ATTRIBUTES) / 2 else 'not '}better than those of the best of "
        f"{len(dictionaries)} SAEs by {BY} features, for {wins} of {len(ATTRIBUTES)} attributes; of the object they go "
        f"{written(means['object'])} of the way to the truth, the SAE {written(by_sae['object'])}, a random "
        f"direction of the same length {written(edits['random direction']['object'])}. "
        + (
            f"The quality of an SAE's edits goes with {'; '.join(tells)}"
            if tells
            else "Nothing measured predicts quality"
        )
        + (f", and not visibly with {'; '.join(silent)}." if silent else ".")
        + f" What the supervised directions say is {'' if is_needed else 'not shown to be '}necessary: "
        f"without them the model loses {written(necessity['supervised, means'])} of what it loses by the mean, "
        f"without as long a random direction {written(necessity['random'])}."
    )
    options.output.mkdir(parents=True, exist_ok=True)
    draw(options.output / "supervised_dictionaries.svg", edits, dictionaries)
    head = "| | " + " | ".join(ATTRIBUTES) + " |\n" + "|---" * (len(ATTRIBUTES) + 1) + "|\n"
    table = head + "\n".join(
        f"| {kind} | " + " | ".join(written(of[name]) for name in ATTRIBUTES) + " |" for kind, of in edits.items()
    )
    listing = "| dictionary | FVU | L0 | KL recovered | distance left | quality by 4 |\n" + "|---" * 6 + "|\n"
    listing += "\n".join(
        f"| {d.name} | {d.fvu:.3f} | {d.l0:.1f} | {d.recovered:.3f} | {d.distance:.2f} | {d.by_four:.2f} |"
        for d in sorted(dictionaries, key=lambda each: -each.by_four)
    )
    size = estimate(away["nothing/object"])
    sections = [
        "# Supervised dictionaries of indirect objects",
        "Written by `python studies/supervised_dictionaries.py`, as it came out.",
        f"**{verdict}**",
        "![quality of edits, and what goes with it](supervised_dictionaries.svg)",
        f"{len(x):,} prompts of {len(TEMPLATES)} templates to learn from, {n_test} others to edit, at the last token "
        f"of {hook} of {what}. Among {len(names)} names it says the right one in {accuracy:.0%}; with the other "
        f"prompt's activation there it says the other prompt's name in {moved['truth']:.0%}, with the supervised edit "
        f"in {moved['supervised, means']:.0%} (means) and {moved['supervised, least squares']:.0%} (least squares), "
        f"with a random one in {moved['random direction']:.0%}. Quality is 1 - KL(truth || edited) / KL(truth || not "
        f"edited), the latter {size.text('.2f')} nats for the object; 95 % bootstrap intervals over prompts. Rebuilt "
        f"from its values alone, the activation keeps {written(kept['supervised, means'])} (means) or "
        f"{written(kept['supervised, least squares'])} (least squares) of what its mean loses, in KL; FVU "
        f"{supervised['supervised, means'].fvu:.2f} and {supervised['supervised, least squares'].fvu:.2f}.",
        f"## Quality by attribute\n\n{table}\n\nThe best SAE, chosen on these very prompts, is {best.name}.",
        "## Are they all that the model needs?\n\nWhat a dictionary says of the activation is taken out and the rest "
        "left: KL(clean || without) / KL(clean || mean); 1 is as bad as the mean, 0 is nothing lost.\n\n"
        "| taken out | what is lost | right name |\n|---|---|---|\n"
        + "\n".join(
            f"| {kind} | {written(of)} | "
            + (f"{right[f'{kind}, removed']:.0%} |" if f"{kind}, removed" in right else " |")
            for kind, of in necessity.items()
        ),
        "## What goes with quality, over dictionaries\n\n| | rank correlation with the quality by 4 |\n|---|---|\n"
        + "\n".join(f"| {name} | {written(of)} |" for name, of in found.items()),
        f"## The dictionaries\n\n{listing}",
    ]
    (options.output / "supervised_dictionaries.md").write_text("\n\n".join(sections) + "\n")
    print(f"{verdict}\n{time.process_time() - began:.0f} s; {options.output / 'supervised_dictionaries.md'}")


if __name__ == "__main__":
    main()
