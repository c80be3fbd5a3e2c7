"""Where the truth is known, dictionaries are measured against it.

Planted features always; the ceiling of probes and the board of a game in the full suite.
"""

from __future__ import annotations

from monosem.evaluation.board import NOTHING, PROBES, board_scores, plays_othello
from monosem.evaluation.metric import Dictionary
from monosem.evaluation.model_reading import ModelReading
from monosem.evaluation.probe_ceiling import probe_ceiling
from monosem.evaluation.survey import Extra, Survey
from monosem.evaluation.truth import score_truth
from monosem.models import SubjectModel

ROWS = 50_000
"""Planted rows on which firing is compared, at most; as many others as test the probes."""
PROBED, PROBE_ROWS = 512, 1_000_000
"""Features, the first of them, that logistic probes are trained for, and rows that they see, at most."""
IN_REPORT = {PROBES: "probes", NOTHING: "mean"}
"""Under which names the report has the controls of the board: what knows nothing of a row says what is commonest."""


def planted_truth(survey: Survey) -> Extra | None:
    """Scores of all dictionaries, the random one too, against planted features."""
    if survey.planted is None:
        return None
    rows = max(2, min(ROWS, survey.tokens))
    notes, columns = dict[str, str](), {}
    for name, column in survey.columns.items():
        if isinstance(column, Dictionary):
            found = score_truth(column.sae, survey.planted, rows)
            columns[name], notes = found.values, found.notes | notes
    return Extra(columns, notes=notes)


def ceiling(survey: Survey) -> Extra | None:
    """What logistic probes, trained on the truth, make of planted features."""
    if survey.planted is None:
        return None
    rows = max(2, min(ROWS, survey.tokens))
    n = min(PROBED, len(survey.planted.features), next(iter(survey.saes.values())).n_latents)
    found = probe_ceiling(survey.planted, n, rows=min(PROBE_ROWS, 20 * survey.tokens), test_rows=rows)
    probes = {"f1": found.f1, "precision": found.precision, "recall": found.recall}
    return Extra({"probes": probes}, facts={"probed_features": n})


def board(survey: Survey) -> Extra | None:
    """What dictionaries of a model of Othello know of the board, beside linear probes and what knows nothing."""
    reading = survey.reading
    if not isinstance(reading, ModelReading) or not isinstance(reading.model, SubjectModel):
        return None
    if len(reading.first.hooks) > 1 or not plays_othello(reading.model):
        return None
    games = max(4, min(2000, survey.tokens // 16))
    found = board_scores(survey.saes, reading.model, reading.first.hooks[0], games=games)
    names = {**{name: name for name in survey.saes}, **IN_REPORT, f"random {next(iter(survey.saes))}": "random"}
    columns = {names[name]: column for name, column in found.columns.items() if name in names}
    return Extra(columns, facts={"board_games": found.facts["test_games"]})
