"""Options of commands that ask a judge, and the judge that they describe."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from monosem.explain import Judge, LocalJudge
    from monosem.explain.questions import Question

JudgeURL = Annotated[
    str | None,
    typer.Option(
        "--judge",
        help="An OpenAI-compatible endpoint, such as http://localhost:8000/v1, or `local` for a model on this machine. "
        "The key of a hosted one is read from MONOSEM_JUDGE_KEY or OPENAI_API_KEY.",
        metavar="URL",
    ),
]
JudgeModel = Annotated[
    str | None, typer.Option("--model", help="The judge's name there; with --judge local, what load_model takes.")
]
Prices = Annotated[
    tuple[float, float] | None,
    typer.Option(help="Of a million tokens in and a million out.", metavar="IN OUT"),
]
MaxPrice = Annotated[float | None, typer.Option("--max-price", help="Ask nothing that could cost more, in all.")]
Parallel = Annotated[int, typer.Option(min=1, help="Requests to the judge at once.")]
Words = Annotated[bool, typer.Option("--words", help="Ask for words alone, where the judge refuses log-probabilities.")]


def judge_of(
    url: str | None,
    model: str | None,
    prices: tuple[float, float] | None = None,
    max_price: float | None = None,
    parallel: int = 8,
    words: bool = False,
) -> Judge | LocalJudge | None:
    """The judge that options describe; None where none is asked for.

    Raises:
        ConfigError: one of the two is missing, or the settings do not go together.
    """
    from monosem.errors import ConfigError
    from monosem.explain import Judge, LocalJudge

    if url is None and model is None:
        return None
    if model is None:
        raise ConfigError(f"--judge {url} needs --model: the name of the model there")
    if url == "local":
        return LocalJudge(model)
    return Judge(model, url, prices=prices, max_price=max_price, parallel=parallel, chances=not words)


def say_estimate(judge: Judge | LocalJudge | None, questions: Sequence[Question]) -> None:
    """What the questions will cost, on the terminal, before any is asked."""
    from monosem.cli.console import console
    from monosem.explain import Judge

    if isinstance(judge, Judge):
        console().print(f"{judge.model}: {judge.estimate(questions)}", soft_wrap=True)
