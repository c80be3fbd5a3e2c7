"""What dictionaries of a model that plays Othello know of the board, of which every square is known."""

from __future__ import annotations

from collections.abc import Mapping as Named
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from rich import box
from rich.table import Table
from torch import Tensor

from monosem.activations import join
from monosem.arguments import NotNegative, checked
from monosem.codes import SparseCodes
from monosem.errors import ConfigError, MismatchError
from monosem.evaluation.states import StateScores, floor_scores, probe_states, state_scores, told_scores
from monosem.files import write_json
from monosem.intervals import Interval
from monosem.models import SubjectModel, load_model
from monosem.sae import SAE
from monosem.sae.control import random_sae
from monosem.synthetic.othello import LONGEST, MINE, N_TOKENS, SQUARES, THEIRS, OthelloGames, othello_games
from monosem.text import printed
from monosem.work import as_job, doing

KINDS = {"mine": MINE, "theirs": THEIRS, "empty": 0}
"""What can be on a square, for the player who is to move; properties are in this order, 36 squares of each."""
STONES = np.arange(2 * SQUARES)
PROBES, NOTHING = "linear probes", "knows nothing"
AT_ONCE = 256  # games


@dataclass(frozen=True)
class BoardReport:
    """Coverage and board reconstruction of dictionaries, beside linear probes, random SAEs, and what knows nothing."""

    scores: dict[str, StateScores]
    """Of all properties: 36 squares of mine, 36 of theirs, 36 empty."""
    stones: dict[str, StateScores]
    """Of mine and theirs alone: that a square is empty, its own move says."""
    facts: dict[str, str | int]

    @property
    def columns(self) -> dict[str, dict[str, Interval]]:
        """Intervals by column and metric (of `DEFINITIONS`); they are over games."""
        return {
            name: {
                "board_coverage": score.coverage,
                "board_coverage_stones": self.stones[name].coverage,
                "board_reconstruction": score.reconstruction,
                "board_reconstruction_stones": self.stones[name].reconstruction,
            }
            for name, score in self.scores.items()
        }

    def table(self) -> Table:
        title = f"What is known of the board at {self.facts['hook']} of {self.facts['model']}"
        caption = "F1, 1 is best, with 95 % intervals over {test_games:,} games; chosen on {train_games:,} others."
        table = Table(title=title, caption=caption.format(**self.facts), box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
        table.title_justify = table.caption_justify = "left"
        table.add_column("")
        for name in ("coverage", "of stones", "reconstruction", "of stones"):
            table.add_column(name, justify="right", no_wrap=True)
        for name, column in self.columns.items():
            table.add_row(name, *(_cell(interval) for interval in column.values()))
        return table

    def __str__(self) -> str:
        return printed(self.table(), width=110)

    def save(self, path: str | Path) -> None:
        """Write JSON: facts, and the intervals by column and metric."""
        columns = {name: {m: i._asdict() for m, i in column.items()} for name, column in self.columns.items()}
        write_json(path, {"facts": self.facts, "columns": columns})


@dataclass(frozen=True)
class BoardRows:
    """Activations after every move of games, and the board there."""

    x: Float[Tensor, "rows d"]
    truth: np.ndarray
    """(rows, 108) whether a stone of mine stands on each square, one of theirs, none."""
    games: np.ndarray
    """(rows,) the game of each row."""


@checked
@as_job
@torch.no_grad()
def board_scores(
    sae: SAE | Named[str, SAE],
    model: SubjectModel | str | None = None,
    hook: str | None = None,
    *,
    games: int = 2000,
    seed: NotNegative = 0,
    controls: bool = True,
    progress: bool = True,
) -> BoardReport:
    """How much of the board of Othello the latents of dictionaries tell.

    Coverage: for every square and kind (mine, theirs, empty), the best F1 of any "latent above t times its maximum";
    the mean over these 108 properties (those that are ever true and ever false). Board reconstruction: all classifiers
    with a precision of 0.95 together draw the board; the F1 of what they draw, a mean over boards. Latents and
    thresholds are chosen on half of the games, the other half is measured. (Karvonen and others, 2024,
    arXiv:2408.00113.)

    Args:
        sae: a dictionary, or several of the same hook point by name.
        model: a model of Othello in the tokens of `othello_games`; the SAE's own if not given ("othello" is shipped).
        hook: the SAE's own if not given.
        games: random games, half to choose on, half to measure.
        seed: of the games.
        controls: also linear probes, a random SAE beside each, and what knows nothing of the row.
        progress: show where it is.

    Raises:
        ConfigError: fewer than 4 games, no SAE, or an SAE that knows no model or hook point where none is given.
        MismatchError: the model is none of Othello, or the SAE is of another width.
    """
    saes = {"SAE": sae} if isinstance(sae, SAE) else dict(sae)
    if games < 4 or not saes:
        raise ConfigError(f"at least one SAE and 4 games are needed, half of them to choose on: got {games} games")
    first = next(iter(saes.values()))
    given, hook = model or first.metadata.model, hook or first.metadata.hook
    if given is None or hook is None:
        raise ConfigError(
            "the SAE does not know its model and hook point: give them, such as 'othello', 'resid_post.2'"
        )
    subject = given if isinstance(given, SubjectModel) else load_model(given)
    for one in saes.values():
        join(one, subject, hook)
    half = games // 2
    train, test = (
        board_rows(subject, hook, othello_games(n, (seed, part)), first=part * half)
        for part, n in enumerate((half, games - half))
    )
    facts: dict[str, str | int] = {"model": subject.name, "hook": hook, "seed": seed}
    facts |= {"train_games": half, "test_games": games - half, "train_rows": len(train.x), "test_rows": len(test.x)}
    scores, stones = dict[str, StateScores](), dict[str, StateScores]()
    every = dict(saes)
    if controls:
        every |= {f"random {name}": random_sae(one, train.x.to(one.W_enc)) for name, one in saes.items()}
    with doing("Asking latents about squares", len(every) + controls, unit="dictionaries") as asking:
        for name, one in every.items():
            known, asked = ((_codes(one, rows.x), rows.truth, rows.games) for rows in (train, test))
            scores[name], stones[name] = (state_scores(known, asked, which) for which in (None, STONES))
            asking.advance(1)
        if controls:
            known, asked = ((rows.truth, rows.games) for rows in (train, test))
            told = probe_states((train.x, train.truth), test.x, len(KINDS))
            scores[PROBES], stones[PROBES] = (told_scores(told, known, asked, which) for which in (None, STONES))
            scores[NOTHING], stones[NOTHING] = (floor_scores(known, asked, which) for which in (None, STONES))
            asking.advance(1)
    return BoardReport(scores, stones, facts)


@torch.no_grad()
def board_rows(model: SubjectModel, hook: str, games: OthelloGames, first: int = 0) -> BoardRows:
    """Activations at a hook point after every move, and the boards; games are numbered from `first`.

    Raises:
        MismatchError: the model does not read tokens of Othello.
    """
    if not plays_othello(model):
        raise MismatchError(
            f"{model.name} has {_vocabulary(model):,} tokens and a context of {model.context_length}: no model of "
            f"Othello, which has {N_TOKENS} tokens and games of {LONGEST} positions"
        )
    kept = games.playing.copy()
    kept[:, 0] = False
    tokens, parts = torch.from_numpy(games.tokens), list[Tensor]()
    with doing("Reading games", len(tokens), unit="games") as reading:
        for start in range(0, len(tokens), AT_ONCE):
            x = model.capture(tokens[start : start + AT_ONCE].to(model.device), [hook])[hook]
            parts.append(x[torch.from_numpy(kept[start : start + AT_ONCE]).to(x.device)])
            reading.advance(len(x))
    truth = np.concatenate([games.boards[kept] == stone for stone in KINDS.values()], axis=1)
    return BoardRows(torch.cat(parts), truth, first + np.nonzero(kept)[0])


def plays_othello(model: SubjectModel) -> bool:
    """Whether a model has the tokens of `othello_games`, and room for a game."""
    return _vocabulary(model) == N_TOKENS and (model.context_length or LONGEST) >= LONGEST


def _vocabulary(model: SubjectModel) -> int:
    return int(getattr(getattr(model.module, "config", None), "vocab_size", 0))


def _codes(sae: SAE, x: Tensor) -> SparseCodes:
    return SparseCodes.cat([sae.encode(part.to(sae.W_enc)) for part in x.split(8192)])


def _cell(interval: Interval) -> str:
    span = "" if interval.low is None or interval.high is None else f" ({interval.low:.3f} - {interval.high:.3f})"
    return f"{interval.value:.3f}{span}"
