"""ms.probe: what a few latents of an SAE know about labels, beside what else could know it."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch

from monosem.arguments import NotNegative, checked
from monosem.errors import ConfigError, DataError
from monosem.evaluation.going_on import Keeping
from monosem.evaluation.probing.columns import Choose
from monosem.evaluation.probing.labelled import Data, Labelled, read_labelled
from monosem.evaluation.probing.measure import CHANNELS, NEURONS, RANDOM, measure
from monosem.evaluation.probing.pooled import Place, Pool, Pooled, place_of, pooled, read_texts
from monosem.evaluation.probing.report import ProbeReport
from monosem.evaluation.probing.splits import Split, drawn_split, require_enough, without_source
from monosem.files import as_json
from monosem.models import SubjectModel
from monosem.ranks import everyone
from monosem.sae import SAE
from monosem.sae.control import random_sae
from monosem.sae.identity import dictionary_hash
from monosem.spelling import listed
from monosem.work import as_job, doing

SAMPLE = 4_096
"""Tokens by which random SAEs are scaled."""


@checked
@as_job
@torch.no_grad()
def probe(
    sae: SAE | Mapping[str, SAE],
    data: Data,
    k: int | Sequence[int] = (1, 2, 5, 10, 20),
    *,
    model: SubjectModel | None = None,
    hook: str | None = None,
    test: Data | None = None,
    leave_out: str | None = None,
    text_column: str = "text",
    label_column: str = "label",
    pool: Pool = "mean",
    choose: Choose = "greedy",
    test_share: float = 0.2,
    examples: int | None = None,
    controls: bool = True,
    random_saes: int = 3,
    seed: NotNegative = 0,
    keep: str | Path | None = None,
    minutes: float = 2.0,
    progress: bool = True,
) -> ProbeReport:
    """How well k latents tell the labels of texts apart: chosen and fitted on some texts, reported on others.

    found = ms.probe(sae, "reviews.csv", k=(1, 5, 20))
    print(found); found["SAE", 5].auroc

    A text is the mean of its tokens' codes. On the training texts k latents are chosen and a logistic regression is
    fitted, both sides of equal weight; AUROC and balanced accuracy are of the test texts, with 95 % bootstrap intervals
    over them. Of more than two labels each is told from all others. Beside it, by the same rule: neurons (of the MLP
    in the same layer), channels and principal components of x, frozen random SAEs, and the SAE with all labels
    shuffled, which must come to 0.5; and a logistic regression on all of x. Nothing is ever chosen on test texts.

    Args:
        sae: an SAE, or several of one hook point by name.
        data: labelled texts: a file (.jsonl, .csv, .parquet), rows as mappings, or a mapping of labels to texts.
        k: how many latents, or several such numbers.
        model: its model; the SAE's own if not given.
        hook: what it reads; the SAE's own if not given.
        test: other labelled texts to be tried on; else a share of `data`, drawn by a hash of the text.
        leave_out: a column of sources (such as data sets or authors): each in turn is left out of training and the
            probe is tried on its test texts, beside a probe that learned from all sources.
        text_column: the name of the column of the text.
        label_column: of the label.
        pool: of a text's tokens the "mean", the "max" of each latent, or the "last".
        choose: "greedy", each latent as the one that most helps those before it; "difference", by the difference of the
            means (Gurnee et al., 2023; SAEBench).
        test_share: the share of texts for the test.
        examples: take so many texts at most.
        controls: measure what stands beside it too.
        random_saes: how many of them; their mean is reported.
        seed: of the split, the shuffled labels and the random SAEs.
        keep: a folder in which the state of the pass over the texts is kept every few `minutes`; the same call goes on
            from it, to the same numbers, and others leave it alone. It goes when all is done. Of one process alone.
        minutes: between saves.
        progress: show where it is.

    Raises:
        ConfigError: a setting is out of range, or model or hook are not known.
        DataError: columns are missing, there is one label only, too few texts of one, or activations are not finite.
        FileError: a file cannot be read, or what is kept is of another call.
        MismatchError: the SAE does not fit the model.
    """
    ks = _numbers(k)
    if not 0 < test_share < 1:
        raise ConfigError(f"test_share is the share of texts for the test, between 0 and 1, got {test_share}")
    saes = dict(sae) if isinstance(sae, Mapping) else {"SAE": sae}
    if not saes:
        raise ConfigError("there is no SAE to probe")
    columns = {"text": text_column, "label": label_column, "source": leave_out}
    given = read_labelled(data, **columns, seed=seed)
    given, split = _split(given, test, columns, test_share, examples, seed)
    place = place_of(saes, model, hook)
    keeping = None
    if keep is not None and everyone().size == 1:
        about = {"texts": given.keys, "labels": given.labels.tolist(), "train": split.train.tolist(), "pool": pool}
        about |= {"random": random_saes if controls else 0, "seed": seed, "hook": place.hook}
        about |= {"model": place.model.fingerprint(), "saes": {n: dictionary_hash(one) for n, one in saes.items()}}
        name = hashlib.sha256(as_json(about).encode()).hexdigest()
        keeping = Keeping(Path(keep) / name[:16], {"probing": name}, minutes)
    read = _read(place, saes, given, split, pool, random_saes if controls else 0, seed, controls, keeping)
    report = ProbeReport(
        facts={
            "model": place.model.name,
            "hook": place.hook,
            "data": given.name,
            "texts": len(given),
            "train": len(split.train),
            "test": len(split.test),
            "tokens": int(read.n_tokens.sum()),
            "pool": pool,
            "choose": choose,
            "seed": seed,
            **{f"dropped, {reason}": n for reason, n in given.dropped.items()},
        }
    )
    splits = [split]
    if leave_out is not None:
        for source in np.unique(given.sources):
            found = without_source(given, split, str(source))
            if isinstance(found, str):
                report.notes[f"without {source}"] = found
            else:
                splits += found
    problems = [len(np.unique(given.labels)) - (len(np.unique(given.labels)) == 2)] * len(splits)
    with doing("probing", float(sum(problems)), unit="probes") as work:
        for one in splits:
            measure(report, read, given, one, ks, choose, list(saes), seed, work.advance)
    if keeping:
        keeping.forget()
        with suppress(OSError):  # another call's state is there too
            keeping.path.parent.rmdir()
    return report


def _split(
    given: Labelled, test: Data | None, columns: dict[str, Any], test_share: float, examples: int | None, seed: int
) -> tuple[Labelled, Split]:
    """The texts, and which of them are for the test; a text that is in both files is for the test alone."""
    if examples is not None:
        given = given.of(_spread(given, examples))
    if test is None:
        return given, drawn_split(given, test_share)
    other = read_labelled(test, **columns, seed=seed)
    if examples is not None:
        other = other.of(_spread(other, examples))
    strange = sorted(set(other.labels.tolist()) - set(given.labels.tolist()))
    if strange:
        raise DataError(
            f"{other.name} has the label {strange[0]!r}, which {given.name} has not ("
            f"{listed(strange[0], sorted(set(given.labels.tolist())))}): give both the same labels"
        )
    in_test = set(other.keys)
    own = np.array([key not in in_test for key in given.keys], bool)
    kept = given.of(np.flatnonzero(own))
    dropped = {**given.dropped}
    if not own.all():
        dropped["also in the test"] = int((~own).sum())
    both = Labelled(
        kept.texts + other.texts,
        np.concatenate([kept.labels, other.labels]),
        np.concatenate([kept.sources, other.sources]),
        kept.keys + other.keys,
        f"{given.name}, tried on {other.name}",
        dropped,
    )
    split = Split("", np.arange(len(kept)), np.arange(len(kept), len(both)))
    require_enough(both, split)
    return both, split


def _spread(data: Labelled, n: int) -> np.ndarray:
    """So many of the texts, of every label as many as of the others, as far as there are."""
    rank = np.zeros(len(data), np.int64)
    for label in np.unique(data.labels):
        rows = np.flatnonzero(data.labels == label)
        rank[rows] = np.arange(len(rows))
    return np.sort(np.argsort(rank, kind="stable")[: max(1, n)])


def _read(
    place: Place,
    saes: Mapping[str, SAE],
    data: Labelled,
    split: Split,
    pool: Pool,
    n_random: int,
    seed: int,
    controls: bool,
    keeping: Keeping | None,
) -> Pooled:
    """One pass over the texts, for SAEs and controls."""
    readers = dict(saes)
    if n_random:
        few = [data.texts[i] for i in split.train[:SAMPLE]]
        sample = torch.cat([r.x[place.hook] for r in read_texts(place, few, rows=SAMPLE, what="scaling controls")])
        first = next(iter(saes.values()))
        readers |= {f"{RANDOM} {i}": random_sae(first, sample, seed=12345 + seed + i) for i in range(n_random)}
    hooks = {CHANNELS: place.hook}
    if controls and (neurons := _neurons(place)) is not None:
        hooks[NEURONS] = neurons
    encoders = {name: reader.encode for name, reader in readers.items()}
    return pooled(place, data.texts, encoders, {n: r.n_latents for n, r in readers.items()}, hooks, pool, keeping)


def _neurons(place: Place) -> str | None:
    """The MLP's neurons in the layer of the hook point, where the model has them."""
    layer = re.search(r"\.(\d+)$", place.hook)
    name = f"mlp_mid.{layer.group(1)}" if layer else ""
    return name if name in place.model.hook_points else None


def _numbers(k: int | Sequence[int]) -> list[int]:
    ks = [k] if isinstance(k, int) else list(k)
    if not ks or any(not isinstance(n, int) or isinstance(n, bool) or n < 1 for n in ks):
        raise ConfigError(f"k is how many latents a probe reads, a whole number from 1 on, or several; got {k!r}")
    return sorted(set(ks))
