"""The table of metrics in docs/evaluation.md: `python tests/definitions_table.py` writes it from the definitions."""

from __future__ import annotations

from metric_battery import DOCS, between

from monosem.evaluation.definitions import GROUPS

BEGIN, END = "<!-- the definitions: python tests/definitions_table.py -->", "<!-- end of the definitions -->"
BETTER = {"up": "higher", "down": "lower", "none": ""}


def written() -> str:
    """One table a family."""
    lines = list[str]()
    for group, definitions in GROUPS.items():
        lines += [
            f"### {group}",
            "",
            "| key | metric | formula | unit | better | source; how it differs |",
            "|---|---|---|---|---|---|",
        ]
        for key, one in definitions.items():
            more = "; ".join(part for part in (one.source, one.differs) if part)
            cells = (f"`{key}`", one.label.strip(), one.formula, one.unit, BETTER[one.direction], more)
            lines.append(f"| {' | '.join(cell.replace('|', '&#124;') for cell in cells)} |")
        lines.append("")
    return "\n".join(lines).rstrip()


if __name__ == "__main__":
    DOCS.write_text(between(DOCS.read_text(), BEGIN, END, written()))
