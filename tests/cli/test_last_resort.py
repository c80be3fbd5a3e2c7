"""Every error ends in one line: 2 for what the user can mend, 1 for a fault of monosem, with `--debug` for the rest."""

from __future__ import annotations

import sys
from collections.abc import Callable

import pytest

from monosem.cli import main
from monosem.errors import FileError


def failing(error: BaseException) -> Callable[[], None]:
    def app() -> None:
        raise error

    return app


@pytest.mark.parametrize(
    ("error", "code", "words"),
    [
        (FileError("x.json is missing"), 2, "monosem: x.json is missing"),
        (PermissionError(13, "no"), 2, "no"),
        (KeyError("x"), 1, "KeyError('x')"),
        (FileError("x\ud83d"), 2, "x?"),
        (RecursionError("deep"), 1, "Please report it"),
        (RuntimeError("can't allocate memory: you tried to allocate 400 bytes. Error"), 2, "(400 bytes more were"),
        (RuntimeError("CUDA out of memory. Tried to allocate 2.5 GiB. GPU 0"), 2, "(2.5 GiB more were wanted): take"),
        (MemoryError(), 2, "not enough memory: take less"),
        (KeyboardInterrupt(), 130, "stopped"),
    ],
    ids=["expected", "system", "fault", "half a character", "recursion", "memory", "of a GPU", "of Python", "stopped"],
)
def test_every_error_is_one_line(
    error: BaseException, code: int, words: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(main, "app", failing(error))
    monkeypatch.setattr(sys, "argv", ["monosem", "info"])
    monkeypatch.delenv("MONOSEM_DEBUG", raising=False)
    with pytest.raises(SystemExit) as ended:
        main.run()
    said = capsys.readouterr().err
    assert ended.value.code == code
    assert said.count("\n") == 1
    assert words in said


def test_debug_shows_everything(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(main, "app", failing(KeyError("x")))
    monkeypatch.setattr(sys, "argv", ["monosem", "--debug", "info"])
    monkeypatch.setenv("MONOSEM_DEBUG", "")
    with pytest.raises(KeyError):
        main.run()
