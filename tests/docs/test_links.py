"""Links of the documentation lead somewhere; what it says of commands, scripts, targets and extras is so."""

from __future__ import annotations

import json
import re
import runpy
import shlex
import tomllib
from pathlib import Path
from typing import Any

import pytest
import typer
from blocks import ALL_PAGES, ROOT, anchors, blocks, links, prose

from monosem.cli.main import app

COMMANDS: dict[str, Any] = typer.main.get_command(app).commands  # pyright: ignore
NAMES = [str(page.relative_to(ROOT)) for page in ALL_PAGES]


def options(command: str) -> set[str]:
    """Its long options, both forms of a switch."""
    return {
        o
        for p in COMMANDS[command].params
        for o in (*p.opts, *p.secondary_opts)
        if o.startswith("--") and o != "--help"
    }


@pytest.mark.parametrize("name", NAMES)
def test_links_lead_somewhere(name: str) -> None:
    page = ROOT / name
    for link in links(page):
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.exists(), f"{name}: {link}: no such file"
        assert not anchor or anchor in anchors(target), f"{name}: {link}: no such heading"


@pytest.mark.parametrize("name", NAMES)
def test_commands_exist_with_their_options(name: str) -> None:
    """Those in blocks and those within a sentence."""
    page = ROOT / name
    lines = [(b.where, command) for b in blocks(page) for command in b.commands()]
    lines += [(name, code) for code in re.findall(r"`((?:monosem|python|make|pip) [^`]+)`", prose(page))]
    makefile, extras = (ROOT / "Makefile").read_text(), tomllib.loads((ROOT / "pyproject.toml").read_text())
    for where, line in lines:
        program, *words = shlex.split(line.replace("|", " ").replace("...", " "))
        flags = {word.partition("=")[0] for word in words if word.startswith("--")}
        if program == "monosem":
            wanted = [word for word in words if word in COMMANDS][:1]
            known = options(wanted[0]) if wanted else {"--version", "--debug"}
            assert wanted or flags or words[0].startswith("-"), f"{where}: {line}: no such command"
            assert flags <= known | {"--help", "--debug"}, f"{where}: {line}: no such option"
        elif program == "python" and words[0].endswith(".py"):
            script = ROOT / words[0]
            assert script.is_file(), f"{where}: {line}: no such script"
            source = script.read_text()
            lacking = [flag for flag in flags if flag != "--help" and f'"{flag}"' not in source]
            assert not lacking, f"{where}: {line}: no option {lacking}"
        elif program == "make":
            targets = [word for word in words if "=" not in word]
            assert all(re.search(rf"^{target}:", makefile, re.M) for target in targets), f"{where}: {line}: no target"
        for extra in re.findall(r"monosem\[(\w+)\]", line):
            assert extra in extras["project"]["optional-dependencies"], f"{where}: {line}: no such extra"


@pytest.mark.parametrize("name", NAMES)
def test_what_is_trained_is_there(name: str) -> None:
    """A run.yaml of a command is a file of the repository, or stands on the page before it, to be saved."""
    shown: set[str] = set()
    for block in blocks(ROOT / name):
        if block.language == "yaml":
            shown |= set(re.findall(r"\A# (\S+\.yaml)\n", block.text))
        for command in block.commands():
            for file in re.findall(r"^monosem train (\S+\.yaml)", command):
                assert file in shown or (ROOT / file).is_file(), f"{block.where}: {command}: no such file"


def test_every_option_is_documented() -> None:
    """docs/command_line.md has a line for each command, with exactly its options."""
    table = dict(
        re.findall(r"^\| `monosem ([\w-]+).*?` \|.*?\|(.*)\|$", (ROOT / "docs/command_line.md").read_text(), re.M)
    )
    assert set(table) == set(COMMANDS)
    for command, cell in table.items():
        assert set(re.findall(r"--[\w-]+", cell)) == options(command), command
        assert all(getattr(p, "help", None) for p in COMMANDS[command].params if p.opts[0].startswith("-")), command


def test_files_of_data_in_the_documentation_can_be_read() -> None:
    for page in ALL_PAGES:
        for block in blocks(page):
            if block.language == "json":
                json.loads(block.text)


def test_a_page_that_is_wrong_is_noticed(tmp_path: Path) -> None:
    """The reading of pages itself: fences, indents, `$`, continuations, marks, anchors."""
    page = tmp_path / "page.md"
    page.write_text(
        "# A title: of `two`\n\n    make demo   # words\n\n<!-- not run: takes a day -->\n```python\nx = 1\n```\n"
        "```\n$ monosem train a.yaml \\\n    --set k=1\nan output\n```\n```\nan output\n```\n"
        "[here](#a-title-of-two) ![there](none.png) `[not](one)` [out](https://example.org)\n"
    )
    found = blocks(page)
    assert [(b.line, b.language, b.not_run) for b in found[:2]] == [(3, "indented", None), (7, "python", "takes a day")]
    assert [b.commands() for b in found] == [["make demo"], [], ["monosem train a.yaml --set k=1"], []]
    assert anchors(page) == {"a-title-of-two"}
    assert links(page) == ["#a-title-of-two", "none.png"]


def test_the_page_of_studies_is_made_of_their_own() -> None:
    written = runpy.run_path(str(ROOT / "studies" / "page.py"))["page"]()
    assert (ROOT / "docs" / "studies.md").read_text(encoding="utf-8") == written, "run: python studies/page.py"
