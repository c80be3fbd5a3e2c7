"""The usefulness of dictionaries in the full suite: probes of the bundled text's sources, and alarms at mixed words."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any
from zlib import crc32

import numpy as np

from monosem.evaluation.going_on import Columns, Keeping
from monosem.evaluation.probing.compare import compare_texts
from monosem.evaluation.probing.labelled import read_labelled
from monosem.evaluation.probing.measure import CHANNELS, DENSE, PCA, RANDOM
from monosem.evaluation.probing.probe import probe
from monosem.intervals import Interval
from monosem.models import SubjectModel
from monosem.sae import SAE

EXAMPLES, WORDS = 400, 80
"""Texts, and words of each."""
KS = (1, 5)
IN_REPORT = {RANDOM: "random", CHANNELS: "neurons", PCA: "PCA"}
"""Under which names the report has these controls."""


def usefulness(
    saes: Mapping[str, SAE], model: SubjectModel, hook: str, keeping: Keeping | None = None
) -> dict[str, dict[str, Interval]]:
    """Metrics by column.

    Probed is which source of the bundled held-out text a passage is from; an alarm is to tell passages from the same
    passages with their words in random order. What is done, and how far the reading is, is kept with `keeping`.
    """
    bundled = read_labelled("bundled:held_out", label="source")
    texts = [" ".join(text.split()[:WORDS]) for text in bundled.texts]
    passages = [{"text": text, "label": label} for text, label in zip(texts, bundled.labels.tolist(), strict=True)]

    def probed() -> Columns:
        kept = {"keep": keeping.path / "probing", "minutes": keeping.minutes} if keeping else {}
        return _probed(saes, passages, model=model, hook=hook, examples=EXAMPLES, random_saes=1, **kept)

    def alarmed() -> Columns:
        return {name: _alarms(sae, texts[: EXAMPLES // 2], model, hook) for name, sae in saes.items()}

    columns = keeping.once("probes", probed) if keeping else probed()
    for name, found in (keeping.once("alarms", alarmed) if keeping else alarmed()).items():
        columns[name] |= found
    return columns


def _probed(saes: Mapping[str, SAE], passages: list[dict[str, str]], **options: Any) -> Columns:
    found = probe(saes, passages, KS, **options)
    columns: dict[str, dict[str, Interval]] = {}
    for name in (*saes, *IN_REPORT):
        rows = {k: found[name, k] for k in KS}
        columns[IN_REPORT.get(name, name)] = {
            **{f"probe_auroc_{k}": row.auroc for k, row in rows.items()},
            "probe_accuracy_5": rows[5].accuracy,
        }
    for name in saes:
        dense = found.difference(DENSE, 5, name)
        columns[name]["probe_auroc_lost"] = Interval(-dense.value, -dense.high, -dense.low)
    return columns


def _alarms(sae: SAE, texts: list[str], model: SubjectModel, hook: str) -> dict[str, Interval]:
    mixed = [in_random_order(text) for text in texts]
    alarms = compare_texts(sae, texts, mixed, model=model, hook=hook, tokens=len(texts) * WORDS * 2).alarms
    return {"alarm_l0": alarms["l0"], "alarm_error": alarms["relative_error"], "alarm_norm": alarms["norm"]}


def in_random_order(text: str) -> str:
    """The words of a text, always in the same other order."""
    words = text.split()
    return " ".join(words[i] for i in np.random.default_rng(crc32(text.encode())).permutation(len(words)))
