"""What a page of the documentation shows: its blocks in order, their commands, its headings and links."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
"""Whose examples are run."""
READ_TOO = ["CONTRIBUTING.md", "CHANGELOG.md", "benchmarks/README.md", *sorted(map(str, ROOT.glob("recipes/*/*.md")))]
BUNDLED = sorted(ROOT.glob("src/monosem/*/bundled/README.md"))
ALL_PAGES = [*PAGES, *(ROOT / name for name in READ_TOO), *BUNDLED]
PROGRAMS = ("monosem", "python", "make", "pip")
NOT_RUN = re.compile(r"<!-- not run: (.+) -->")


@dataclass(frozen=True)
class Block:
    """A fenced or indented block, or the rest of the line after `$`."""

    page: Path
    line: int
    """Of its first line, from 1."""
    language: str
    """As the fence names it; "indented" without a fence."""
    text: str
    not_run: str | None
    """The reason, where the line before says `<!-- not run: reason -->`."""

    @property
    def where(self) -> str:
        return f"{self.page.relative_to(ROOT)}:{self.line}"

    def commands(self) -> list[str]:
        """Command lines in it: all of its lines, or what stands behind `$`; without comments and continuations."""
        if self.language not in ("", "bash", "indented"):
            return []
        lines = re.sub(r"\s*\\\n\s*", " ", self.text).splitlines()
        asked = [line.removeprefix("$ ") for line in lines if line.startswith("$ ")]
        if not asked and not all(line.split()[:1] and line.split()[0] in PROGRAMS for line in lines):
            return []
        return [re.sub(r"\s+#.*", "", line).rstrip() for line in asked or lines]


def blocks(page: Path) -> list[Block]:
    found: list[Block] = []
    lines, at, reason = page.read_text().splitlines(), 0, None
    while at < len(lines):
        line = lines[at]
        if line.startswith("```"):
            end = next(i for i in range(at + 1, len(lines)) if lines[i].startswith("```"))
            found.append(Block(page, at + 2, line[3:].strip(), "\n".join(lines[at + 1 : end]), reason))
            at = end
        elif line.startswith("    ") and (at == 0 or not lines[at - 1].strip()):
            end = next((i for i in range(at, len(lines)) if not lines[i].startswith("    ")), len(lines))
            found.append(Block(page, at + 1, "indented", "\n".join(x[4:] for x in lines[at:end]), reason))
            at = end - 1
        match = NOT_RUN.fullmatch(line.strip())
        reason = match[1] if match else (reason if not line.strip() else None)
        at += 1
    return found


def prose(page: Path) -> str:
    """The page without its fenced blocks."""
    return re.sub(r"^```.*?^```\n?", "", page.read_text(), flags=re.M | re.S)


def anchors(page: Path) -> set[str]:
    """What `#...` can name: headings as GitHub spells them."""
    headings = re.findall(r"^#{1,6} (.+)$", prose(page), flags=re.M)
    spelled = [re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings]
    return {name if n == 0 else f"{name}-{n}" for i, name in enumerate(spelled) for n in [spelled[:i].count(name)]}


def links(page: Path) -> list[str]:
    """Where its links and images lead, but for addresses of the internet."""
    text = re.sub(r"`[^`\n]*`", "", prose(page))
    found = [*re.findall(r"\]\(([^)\s]+)\)", text), *re.findall(r"^\[[^\]]+\]: (\S+)", text, flags=re.M)]
    found += re.findall(r"(?:src|href)=\"([^\"]+)\"", text)
    return [link for link in found if not re.match(r"\w+://|mailto:", link)]
