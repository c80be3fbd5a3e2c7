"""What probes have come to: prints as a table, saves as JSON, draws its bars."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

from rich import box
from rich.table import Table

from monosem.errors import ConfigError
from monosem.evaluation.paired import Difference
from monosem.files import replacing, write_json
from monosem.intervals import Interval
from monosem.spelling import listed
from monosem.text import printed


class ProbeRow(NamedTuple):
    """One probe: how well it tells a label from the others on test texts."""

    split: str
    """"" for the test texts as they were drawn; "without SOURCE", "with SOURCE" where one is left out."""
    label: str
    """The positive side; "mean" over the labels."""
    column: str
    """What the probe reads: an SAE by its name, or a control."""
    k: int | str
    """How many of it; "all"."""
    auroc: Interval
    accuracy: Interval
    """Balanced: the mean of the shares of both sides that are told rightly."""
    n_train: int
    n_test: int


class Chosen(NamedTuple):
    """The latents that a probe of an SAE reads, chosen on the training texts."""

    column: str
    label: str
    k: int | str
    latents: list[int]
    weights: list[float]
    """In log odds by standard deviation of a latent."""


@dataclass
class ProbeReport:
    """How well labels are told apart by k latents, and by what stands beside them."""

    MEAN: ClassVar[str] = "mean"

    facts: dict[str, str | int | float]
    rows: list[ProbeRow] = field(default_factory=list)
    chosen: list[Chosen] = field(default_factory=list)
    differences: list[tuple[str, str, int | str, Difference]] = field(default_factory=list)
    """SAE, what it is compared with, k, and by how much its AUROC is above the other's; paired on the test texts."""
    notes: dict[str, str] = field(default_factory=dict)
    """Why something was not measured."""

    def __getitem__(self, key: tuple[str, int | str] | tuple[str, int | str, str]) -> ProbeRow:
        """Of a column and k, the mean over labels: `report["SAE", 5]`; in a split: `report["SAE", 5, "without a"]`.

        Raises:
            ConfigError: it was not measured.
        """
        column, k = key[:2]
        split = key[2] if len(key) == 3 else ""
        for row in self.of(split):
            if (row.column, row.k, row.label) == (column, k, self.MEAN):
                return row
        have = list(dict.fromkeys(f"{row.column}, {row.k}" for row in self.of(split)))
        raise ConfigError(f"no probe of {column!r} with k={k!r} was made; there are {listed(f'{column}, {k}', have)}")

    def of(self, split: str = "") -> list[ProbeRow]:
        """The rows of a split."""
        return [row for row in self.rows if row.split == split]

    def difference(self, other: str, k: int | str, sae: str = "SAE") -> Difference:
        """By how much the AUROC of an SAE is above that of a control.

        Raises:
            ConfigError: it was not measured.
        """
        for name, beside, number, apart in self.differences:
            if (name, beside, number) == (sae, other, k):
                return apart
        raise ConfigError(f"{sae!r} was not compared with {other!r} at k={k!r}")

    @property
    def labels(self) -> list[str]:
        return list(dict.fromkeys(row.label for row in self.rows if row.label != self.MEAN))

    @property
    def left_out(self) -> list[str]:
        """The sources that were left out in turn."""
        return [row[8:] for row in dict.fromkeys(r.split for r in self.rows) if row.startswith("without ")]

    def table(self, metric: str = "auroc") -> Table:
        """A row for each column, a column for each k: "auroc" or "accuracy", the mean over labels."""
        rows = [row for row in self.of() if row.label == self.MEAN]
        ks = list(dict.fromkeys(row.k for row in rows if row.k != "all"))
        words = {"auroc": "AUROC", "accuracy": "balanced accuracy"}[metric]
        several = f", mean over {len(self.labels)} labels" if len(self.labels) > 1 else f" for {self.labels[0]!r}"
        table = _table(f"{words}{several} (0.5 is chance)")
        for k in ks:
            table.add_column(f"k={k}", justify="right", no_wrap=True)
        for name in dict.fromkeys(row.column for row in rows):
            found = {row.k: getattr(row, metric) for row in rows if row.column == name}
            if "all" in found:
                table.add_row(name, said(found["all"]), *[""] * (len(ks) - 1))
            else:
                table.add_row(name, *(said(found[k]) if k in found else "" for k in ks))
        if metric == "auroc":
            table.caption = self._caption()
        return table

    def sources_table(self) -> Table | None:
        """AUROC on the test texts of each source, learned with it and without; None if none was left out."""
        if not self.left_out:
            return None
        table = _table("AUROC on a source, learned from all sources / from the others alone")
        rows = [row for row in self.rows if row.label == self.MEAN and row.split]
        largest = max((row.k for row in rows if isinstance(row.k, int)), default=1)
        shown = list(dict.fromkeys(r.column for r in rows if r.k in (largest, "all")))
        table.add_column("test texts", justify="right")
        for name in shown:
            table.add_column(name, justify="right")
        for source in self.left_out:
            cells: list[str] = []
            for name in shown:
                k = "all" if any(r.column == name and r.k == "all" for r in rows) else largest
                pair = [self[name, k, f"{way} {source}"].auroc for way in ("with", "without")]
                cells.append(" / ".join(f"{one.value:.2f}" for one in pair))
            table.add_row(source, str(self.of(f"without {source}")[0].n_test), *cells)
        table.caption = f"k={largest}"
        return table

    def latents_table(self, k: int | None = None) -> Table:
        """Which latents tell each label, chosen on the training texts; of the largest k, or the one given."""
        sizes = [one.k for one in self.chosen if isinstance(one.k, int)]
        wanted = k if k is not None else max((n for n in sizes if n <= 5), default=max(sizes, default=1))
        table = _table(f"the {wanted} latents chosen on the training texts (sign: for or against the label)")
        table.add_column("SAE")
        table.add_column("latents", overflow="fold")
        for one in self.chosen:
            if one.k == wanted:
                cells = [f"{'+' if w >= 0 else '-'}{n}" for n, w in zip(one.latents, one.weights, strict=True)]
                table.add_row(one.label, one.column, "  ".join(cells))
        return table

    def tables(self) -> list[Table]:
        """All that is to be printed."""
        more = self.sources_table()
        return [self.table(), self.table("accuracy"), *([more] if more else []), self.latents_table()]

    def _caption(self) -> str:
        f = self.facts
        lines = [
            f"{f['hook']} of {f['model']}, {f['data']}.",
            f"{f['train']:,} texts to learn from, {f['test']:,} to be tried on.",
        ]
        name = self.chosen[0].column if self.chosen else "SAE"
        best = max((row.k for row in self.of() if isinstance(row.k, int)), default=1)
        for sae, other, k, apart in self.differences:
            if sae == name and k == best and other in ("random SAE", "all of x") and apart.low == apart.low:
                span = f"{apart.low:+.3f} to {apart.high:+.3f}, smallest that could be shown {apart.smallest:.3f}"
                lines.append(f"{sae}, k={k}, less {other}: {apart.value:+.3f} ({span}).")
        lines += [f"not measured {name}: {why}" for name, why in self.notes.items()]
        return "\n".join(lines)

    def __str__(self) -> str:
        return printed(*self.tables(), width=110)

    def to_json(self) -> dict[str, Any]:
        """As plain data."""

        def plain(row: Any) -> dict[str, Any]:
            return {name: v._asdict() if isinstance(v, Interval) else v for name, v in row._asdict().items()}

        return {
            "facts": self.facts,
            "rows": [plain(row) for row in self.rows],
            "chosen": [one._asdict() for one in self.chosen],
            "differences": [
                {"column": a, "other": b, "k": k, "auroc": apart._asdict()} for a, b, k, apart in self.differences
            ],
            "notes": self.notes,
        }

    def save(self, path: str | Path) -> None:
        """Write JSON."""
        write_json(path, self.to_json(), indent=1)

    def draw(self, path: str | Path) -> None:
        """Draw the bars: AUROC of every column by k, with intervals; SVG or PNG by the name."""
        from matplotlib import rc_context
        from matplotlib.figure import Figure

        rows = [row for row in self.of() if row.label == self.MEAN]
        ks = list(dict.fromkeys(row.k for row in rows if row.k != "all"))
        names = [
            n for n in dict.fromkeys(row.column for row in rows) if any(r.k != "all" and r.column == n for r in rows)
        ]
        with rc_context({"svg.hashsalt": "monosem"}):
            figure = Figure(figsize=(1.6 + 1.5 * len(ks), 3.6), layout="constrained")
            axes = figure.add_subplot()
            axes.spines[["top", "right"]].set_visible(False)
            width = 0.84 / len(names)
            for place, name in enumerate(names):
                found = {row.k: row.auroc for row in rows if row.column == name}
                at = [i + (place - (len(names) - 1) / 2) * width for i in range(len(ks))]
                values = [found[k].value for k in ks]
                spans = [
                    [max(0.0, v - (found[k].low or v)), max(0.0, (found[k].high or v) - v)]
                    for k, v in zip(ks, values, strict=True)
                ]
                axes.bar(at, values, width, label=name, color=COLOURS[place % len(COLOURS)])
                axes.errorbar(
                    at,
                    values,
                    [list(side) for side in zip(*spans, strict=True)],
                    fmt="none",
                    ecolor="#333333",
                    elinewidth=0.8,
                )
            whole = next((row.auroc.value for row in rows if row.k == "all"), None)
            if whole is not None:
                axes.axhline(whole, color="#333333", linestyle="--", linewidth=1, label="all of x, logistic regression")
            axes.axhline(0.5, color="#bbbbbb", linewidth=1)
            axes.set_xticks(range(len(ks)), [f"k={k}" for k in ks])
            axes.set(ylim=(0.4, 1.0), ylabel="AUROC on test texts")
            axes.set_title(
                f"{str(self.facts['data']).rpartition('/')[2]}, {self.facts['hook']}", fontsize=9, loc="left"
            )
            axes.legend(frameon=False, fontsize=7, loc="upper left", bbox_to_anchor=(1, 1))
            with replacing(path) as new:
                kind = Path(path).suffix.removeprefix(".") or "svg"
                figure.savefig(new, format=kind, metadata={"Date": None} if kind == "svg" else None)


COLOURS = ("#e07b00", "#999999", "#2166ac", "#92c5de", "#4d9221", "#dddddd", "#762a83")


def said(interval: Interval) -> str:
    """A value with half of its interval's width."""
    if interval.value != interval.value:
        return "undefined"
    if interval.low is None or interval.high is None:
        return f"{interval.value:.3f}"
    return f"{interval.value:.3f} ±{(interval.high - interval.low) / 2:.3f}"


def _table(title: str) -> Table:
    table = Table(title=title, box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    table.title_justify = table.caption_justify = "left"
    table.add_column("", no_wrap=True)
    return table
