"""What dictionaries know of the board: rows stand beside the right boards, controls beside the SAE."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel

import monosem as ms
from monosem.errors import ConfigError, MismatchError
from monosem.evaluation.board import KINDS, NOTHING, PROBES, BoardReport, board_rows, board_scores
from monosem.evaluation.definitions import DEFINITIONS
from monosem.evaluation.states import floor_scores, probe_states, told_scores
from monosem.models import SubjectModel
from monosem.sae import SAEMetadata
from monosem.synthetic.othello import LONGEST, N_TOKENS, SQUARES, othello_games


@pytest.fixture(scope="module")
def player() -> SubjectModel:
    """A model of the right kind that never learned to play."""
    torch.manual_seed(0)
    sizes: dict[str, Any] = {"n_embd": 32, "n_layer": 1, "n_head": 2, "n_positions": LONGEST, "vocab_size": N_TOKENS}
    return ms.load_model(GPT2LMHeadModel(GPT2Config(**sizes, bos_token_id=None, eos_token_id=None)).eval())


@pytest.fixture(scope="module")
def othello() -> SubjectModel:
    return ms.load_model("othello")


@pytest.fixture(scope="module")
def report(player: SubjectModel) -> BoardReport:
    saes = {f"k={k}": ms.TopKSAE(player.d_model, 64, k=k) for k in (4, 16)}
    rows = board_rows(player, "resid_post.0", othello_games(40, 9))
    for sae in saes.values():
        sae.initialise(rows.x)
    return board_scores(saes, player, "resid_post.0", games=60)


def test_a_row_stands_beside_the_board_after_its_move(player: SubjectModel) -> None:
    games = othello_games(300, 1)  # more than go through the model at a time
    rows, row = board_rows(player, "resid_post.0", games, first=5), 0
    x = player.capture(torch.from_numpy(games.tokens), ["resid_post.0"])["resid_post.0"]
    for game in range(len(games.tokens)):
        for position in range(1, int(games.playing[game].sum())):
            board = games.boards[game, position]
            assert rows.games[row] == game + 5
            if position % 11 == 1:
                assert rows.truth[row].tolist() == [stone == kind for kind in KINDS.values() for stone in board]
                torch.testing.assert_close(rows.x[row], x[game, position])
            row += 1
    assert row == len(rows.x) == len(rows.truth)
    assert (rows.truth.reshape(row, len(KINDS), SQUARES).sum(1) == 1).all()


def test_every_dictionary_has_its_random_control_beside_it(report: BoardReport) -> None:
    assert list(report.scores) == ["k=4", "k=16", "random k=4", "random k=16", PROBES, NOTHING]
    assert report.facts["train_games"] == report.facts["test_games"] == 30
    for name, column in report.columns.items():
        for metric, interval in column.items():
            assert metric in DEFINITIONS
            assert interval.low is not None, (name, metric)
            assert interval.high is not None
            assert 0 <= interval.low <= interval.value <= interval.high <= 1
    middle = [square for square in range(SQUARES) if square % 6 in (2, 3) and square // 6 in (2, 3)]
    unchanging = np.flatnonzero(np.isnan(report.scores["k=4"].f1))
    assert unchanging.tolist() == [2 * SQUARES + square for square in middle]  # never empty
    assert np.isnan(report.stones["k=4"].f1[2 * SQUARES :]).all()


def test_probes_find_more_than_nothing_even_where_the_model_cannot_play(report: BoardReport) -> None:
    assert report.scores[PROBES].reconstruction.value > report.scores[NOTHING].reconstruction.value
    assert report.scores[PROBES].latents is None


def test_a_report_is_printed_and_saved(report: BoardReport, tmp_path: Path) -> None:
    text = str(report)
    assert "linear probes" in text
    assert "30 games" in text
    report.save(tmp_path / "board.json")
    saved = json.loads((tmp_path / "board.json").read_text())
    value = report.columns["k=4"]["board_coverage"].value
    assert saved["columns"]["k=4"]["board_coverage"]["value"] == pytest.approx(value)


def test_what_is_no_model_of_othello_is_refused(tiny: SubjectModel, player: SubjectModel) -> None:
    sae = ms.TopKSAE(player.d_model, 64, k=4)
    with pytest.raises(MismatchError, match="no model of Othello"):
        board_rows(tiny, "resid_post.0", othello_games(2))
    with pytest.raises(ConfigError, match="4 games"):
        board_scores(sae, player, "resid_post.0", games=3)
    with pytest.raises(ConfigError, match="at least one SAE"):
        board_scores({}, player, "resid_post.0")
    with pytest.raises(ConfigError, match="hook point"):
        board_scores(sae, player)
    with pytest.raises(MismatchError):
        board_scores(ms.TopKSAE(16, 64, k=4), player, "resid_post.0", games=8)


def test_the_shipped_model_plays_legal_moves_and_a_board_can_be_read_in_it(othello: SubjectModel) -> None:
    games = othello_games(120, (7, 7))
    likeliest = othello(torch.from_numpy(games.tokens)).argmax(-1).cpu().numpy()
    right = np.take_along_axis(games.legal, likeliest[..., None], -1)[..., 0]
    moves = games.playing & games.legal[..., :SQUARES].any(-1)
    assert right[moves].mean() > 0.985
    rows = [board_rows(othello, "resid_post.2", othello_games(60, (8, part)), first=60 * part) for part in (0, 1)]
    told = probe_states((rows[0].x, rows[0].truth), rows[1].x, len(KINDS))
    known, asked = ((part.truth, part.games) for part in rows)
    assert told_scores(told, known, asked).reconstruction.value > 0.8
    assert floor_scores(known, asked).reconstruction.value < 0.5


def test_its_games_are_text_to_train_on_and_to_evaluate_with(othello: SubjectModel) -> None:
    source = ms.activations(othello, "resid_post.2", text=ms.othello_games(200).text, packing=False, buffer_tokens=4096)
    sae = ms.TopKSAE(othello.d_model, 64, k=8)
    ms.train(sae, source, tokens=8192, config=ms.TrainingConfig(batch_size=256), progress=False)
    assert sae.metadata.model == "othello"
    text = ms.othello_games(20, 1).text
    report = ms.evaluate(sae, text=text, tokens=400, loss_tokens=400, controls=False, progress=False)
    assert report["fvu"].value < 0.9
    assert report["ce"].value > float(report.facts["ce_clean"]) > 0
    assert board_scores(sae, games=20, controls=False, progress=False).facts["hook"] == "resid_post.2"


def test_the_full_suite_of_a_model_of_othello_has_its_board_and_no_english(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("monosem.evaluation.untrained.TOKENS", 2048)
    model, text = ms.load_model("othello"), ms.othello_games(300, seed=5).text
    sae = ms.TopKSAE(model.d_model, 64, k=8, seed=1)
    sae.metadata = SAEMetadata(
        hook="resid_post.3", context_length=40, prepend_bos=True, packing=False, exclude_special=True
    )
    report = ms.evaluate(sae, model, text=text, suite="full", tokens=320, loss_tokens=100, progress=False)
    assert report.facts["board_games"] == 10
    alone = board_scores(sae, model, "resid_post.3", games=20, progress=False).columns
    for key, interval in alone["SAE"].items():
        assert report[key] == interval
        assert report.columns["probes"][key] == alone["linear probes"][key]
        assert report.columns["mean"][key] == alone["knows nothing"][key]
        assert report.columns["random"][key] == alone["random SAE"][key]
    assert "untrained" in report.columns
    assert "probe_auroc_1" not in report.metrics
    assert "Board: on 10 games" in str(report)
