"""All studies on one page, docs/studies.md: what was asked, what came out, the figure and the command.

    python studies/page.py

A study's title and its verdict, the first paragraph in bold, are taken from its own page as they stand there.
"""

from __future__ import annotations

import re
from pathlib import Path

HERE = Path(__file__).parent
PAGE = HERE.parent / "docs" / "studies.md"
HEAD = """# Studies

What was asked of dictionaries and of the tools for them, and what came out, negative results too. Each is one command,
made for minutes on two cores, and writes its page and figure anew; the page behind a title has tables, intervals and
how it was made. All are of small models (the bundled one of 4 layers, SmolLM2-135M): they show what a method does
there, and are no laws.

Written by `python studies/page.py` from the studies' own pages.
"""


def entry(page: Path) -> str:
    """One study's part of the page."""
    text = page.read_text(encoding="utf-8")
    title = text.splitlines()[0].removeprefix("# ")
    verdict = next(part for part in re.split(r"\n\s*\n", text) if part.startswith("**"))
    figure = page.with_suffix(".svg")
    shown = f"![{title}](../studies/{figure.name})\n\n" if figure.is_file() else ""
    return f"## [{title}](../studies/{page.name})\n\n{verdict}\n\n{shown}`python studies/{page.stem}.py`\n"


def page() -> str:
    """The whole page."""
    return "\n".join([HEAD, *(entry(each) for each in sorted(HERE.glob("*.md")))])


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
    print(f"{PAGE}: {len(list(HERE.glob('*.md')))} studies")
