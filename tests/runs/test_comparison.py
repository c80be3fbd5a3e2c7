"""monosem compare: runs side by side, paired where they were measured on the same rows, and the figures."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console

import monosem as ms
from monosem.errors import ConfigError, FileError
from monosem.evaluation.paired import DRAWS, Difference, paired_difference, save_draws
from monosem.evaluation.report import EvaluationReport
from monosem.runs.comparison import Comparison, compare_runs
from monosem.runs.comparison_figures import draw_comparison

D, N = 8, 40


def rows(seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(400, D, generator=generator) + 0.5


def write_run(folder: Path, sae: ms.SAE, report: EvaluationReport) -> None:
    folder.mkdir(parents=True)
    (folder / "run.yaml").write_text(f"output: {folder}\nvectors: x.npy\nsae: {{architecture: topk, n_latents: {N}}}\n")
    sae.save(folder / "sae")
    report.save(folder / "evaluation.json")
    save_draws(report, folder)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, EvaluationReport]:
    """Three runs: a and b measured together, c on other rows."""
    folder = tmp_path_factory.mktemp("runs")
    saes: dict[str, ms.SAE] = {name: ms.TopKSAE(D, N, k=k, seed=k) for name, k in (("a", 3), ("b", 5))}
    for sae in saes.values():
        sae.initialise(rows(0))
    together = ms.evaluate(saes, rows(1), progress=False)
    for name, sae in saes.items():
        write_run(folder / name, sae, together.of(name))
    write_run(folder / "c", saes["a"], ms.evaluate(saes["a"], rows(2)[:300], progress=False))
    return folder, together


def printed(comparison: Comparison, metrics: tuple[str, ...] = ()) -> str:
    console = Console(width=120)
    with console.capture() as captured:
        console.print(comparison.table(metrics))
    return captured.get()


def test_runs_of_the_same_rows_are_paired_as_their_columns_were(made: tuple[Path, EvaluationReport]) -> None:
    folder, together = made
    comparison = compare_runs([folder / "a", folder / "b"])
    found = comparison.differences("fvu")["b"]
    expected = paired_difference(together.columns["a"]["fvu"], together.columns["b"]["fvu"])
    assert isinstance(found, Difference)
    assert expected is not None
    assert found == pytest.approx(expected, rel=1e-3, abs=1e-5)
    assert found.told
    text = printed(comparison)
    assert f"{found.value:+.4g} *" in text
    assert "2 runs" in text
    assert "can show" in text


def test_what_cannot_be_paired_says_why(made: tuple[Path, EvaluationReport]) -> None:
    folder, _ = made
    comparison = compare_runs([folder / "a", folder / "c"])
    assert comparison.differences("fvu") == {"c": "they were measured on other documents"}
    assert comparison.differences("dead_share") == {"c": "one of them has no interval"}
    assert "other documents: fvu" in printed(comparison, ("fvu",)).replace("\n", " ")


def test_draws_of_an_older_evaluation_are_not_those_of_this_one(
    made: tuple[Path, EvaluationReport], tmp_path: Path
) -> None:
    folder, _ = made
    for name in ("a", "b"):
        shutil.copytree(folder / name, tmp_path / name)
    shutil.copy(folder / "c" / DRAWS, tmp_path / "b" / DRAWS)
    assert compare_runs([tmp_path / "a", tmp_path / "b"]).differences("fvu") == {"b": "one of them has no interval"}
    (tmp_path / "b" / DRAWS).write_bytes(b"damaged")
    with pytest.raises(FileError, match="evaluate the run again"):
        compare_runs([tmp_path / "a", tmp_path / "b"])


def test_what_is_asked_for_wrongly_is_refused(made: tuple[Path, EvaluationReport], tmp_path: Path) -> None:
    folder, _ = made
    with pytest.raises(ConfigError, match="named twice"):
        compare_runs([folder / "a", folder / "a"])
    with pytest.raises(ConfigError, match=r"no metric 'fuv' was measured.*fvu"):
        compare_runs([folder / "a"]).table(["fuv"])
    shutil.copytree(folder / "a", tmp_path / "a")
    (tmp_path / "a" / "evaluation.json").unlink()
    with pytest.raises(FileError, match="monosem eval"):
        compare_runs([tmp_path / "a"])


def test_the_command_prints_the_table_and_writes_figures(
    made: tuple[Path, EvaluationReport], tmp_path: Path, monosem: Callable[..., Any]
) -> None:
    folder, _ = made
    outcome = monosem("compare", folder / "a", folder / "b", "--metric", "all", "--figures", tmp_path / "figures")
    assert outcome.code == 0
    assert "nearest other, decoder" in outcome.out
    names = {path.name for path in (tmp_path / "figures").iterdir()}
    assert names == {"pareto.png", "firing_rates.png", "clusters.png", "stability.png"}
    assert all((tmp_path / "figures" / name).stat().st_size > 5_000 for name in names)


def test_figures_of_probing_and_position_are_drawn_where_there_is_something_to_draw(
    made: tuple[Path, EvaluationReport], tmp_path: Path
) -> None:
    from monosem.evaluation.definitions import GROUPS
    from monosem.evaluation.tables import DataTable
    from monosem.intervals import Interval

    folder, _ = made
    comparison = compare_runs([folder / "a", folder / "b"])
    curve = {
        "position": [0, 1],
        "clean loss": [3.0, 2.9],
        "loss": [3.2, 3.0],
        "loss low": [3.1, None],
        "loss high": [3.3, None],
    }
    for report in comparison.reports.values():
        report.tables.setdefault("SAE", {})["loss_by_position"] = DataTable("Loss", curve)
        for column in ("SAE", "random"):
            for key in list(GROUPS["Usefulness"])[:2]:
                report.columns[column][key] = Interval(0.8, 0.7, 0.9)
    names = {path.name for path in draw_comparison(comparison, tmp_path)}
    assert "loss_by_position.png" in names
    assert ("probing.png" in names) == bool(GROUPS["Usefulness"])
