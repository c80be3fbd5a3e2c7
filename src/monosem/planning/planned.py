"""Plan: what a run will take, and how it is printed."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from rich import box
from rich.console import Group
from rich.markup import escape
from rich.table import Table

from monosem.planning.hardware import GIB, Hardware, Kind
from monosem.planning.labour import Stage
from monosem.planning.memory import Moment, Part
from monosem.planning.shapes import Subject
from monosem.runs import RunConfig
from monosem.text import printed

SHOWN = 4
"""Dictionaries that are named."""


@dataclass(frozen=True)
class Plan:
    """What a run will take. Prints as a table."""

    config: RunConfig
    subject: Subject = field(repr=False)
    hardware: Hardware = field(repr=False)
    gpus: int
    moments: list[Moment] = field(repr=False)
    """When it holds most, and what."""
    disk: list[Part] = field(repr=False)
    stages: list[Stage] = field(repr=False)
    rates: Mapping[Kind, float] = field(repr=False)
    """What one device does in a second."""
    start_s: float
    calibrated: bool
    remarks: list[str] = field(default_factory=list)
    refusals: list[str] = field(default_factory=list)
    """Why it cannot be done."""
    remedies: list[str] = field(default_factory=list)
    """What would fit."""

    @property
    def peak(self) -> Moment:
        """When a device (of a CPU: the machine) holds most."""
        return max(self.moments, key=lambda moment: moment.total(None if self.hardware.is_cpu else False))

    @property
    def memory_bytes(self) -> float:
        """The most that a device holds; without a GPU, the process."""
        return self.peak.total(None if self.hardware.is_cpu else False)

    @property
    def host_bytes(self) -> float:
        """The most that a process holds in the memory of its host, beside a GPU's; without a GPU, in all."""
        return max(moment.total(None if self.hardware.is_cpu else True) for moment in self.moments)

    @property
    def disk_bytes(self) -> float:
        return sum(part.bytes for part in self.disk)

    @property
    def seconds(self) -> float:
        """From its beginning to its end."""
        return self.start_s + sum(stage.seconds(self.rates) for stage in self.stages)

    @property
    def device_hours(self) -> float:
        return self.seconds * self.gpus / 3600

    @property
    def tokens_per_second(self) -> float:
        """Of the first stage, all devices together."""
        first = self.stages[0]
        return first.tokens / max(1e-9, first.seconds(self.rates))

    @property
    def flops(self) -> float:
        """Multiplications and additions, of all devices."""
        kinds = (stage.work.get(kind, 0.0) for stage in self.stages for kind in ("model", "matmul"))
        sums = sum(stage.work.get("sparse", 0.0) / 2 for stage in self.stages)
        return (sum(kinds) + sums) * self.gpus

    @property
    def fits(self) -> bool:
        return not self.refusals

    @property
    def refusal(self) -> str:
        """Why it cannot be done, and what could be, in one line."""
        would = f" What would fit: {'; '.join(self.remedies)}" if self.remedies else ""
        return f"{'; '.join(self.refusals)}.{would}"

    def table(self) -> Group:
        """What to print."""
        own, moment = self.hardware, self.peak
        what = own.name if self.gpus == 1 else f"{self.gpus} x {own.name}"
        lines = [f"[bold]Plan of {escape(self.config.reads)}[/bold] on {what}"]
        lines += [f"  {escape(line)}" for line in _dictionaries(self.subject)]
        held = _table("memory of the machine" if own.is_cpu else "memory of each device", f"while {moment.name}")
        for part in sorted(moment.parts, key=lambda part: -part.bytes):
            if own.is_cpu or not part.host:
                held.add_row(part.name, size(part.bytes), part.counted)
        held.add_section()
        held.add_row("in all", size(self.memory_bytes), f"of {own.memory_gib:,.1f} GiB", style="bold")
        if not own.is_cpu:
            held.add_row("host, each process", size(self.host_bytes), "")
        disk = _table("disk", "")
        for part in self.disk:
            disk.add_row(part.name, size(part.bytes), part.counted)
        return Group("\n".join(lines), "", held, disk, self._times(), *self._words())

    def _times(self) -> Table:
        table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), show_footer=False)
        for name in ("time", "tokens", "tokens/s", "in all", "model", "dictionary", "other"):
            table.add_column(name, justify="left" if name == "time" else "right", no_wrap=True)
        table.add_row("starting", "", "", duration(self.start_s), "", "", "")
        for stage in self.stages:
            total = stage.seconds(self.rates)
            kinds = {kind: amount / self.rates[kind] for kind, amount in stage.work.items()}
            model = kinds.get("model", 0.0)
            own = sum(kinds.get(kind, 0.0) for kind in ("matmul", "sparse", "memory"))
            shares = (f"{100 * part / max(total, 1e-12):.0f}%" for part in (model, own, total - model - own))
            table.add_row(stage.name, f"{stage.tokens:,}", f"{stage.tokens / total:,.0f}", duration(total), *shares)
        table.add_section()
        table.add_row("in all", "", "", duration(self.seconds), "", "", "", style="bold")
        return table

    def _words(self) -> list[str]:
        """Below the tables: arithmetic, hours, what to know, and what is wrong."""
        hours = "" if self.gpus == 1 else f", {self.device_hours:,.1f} hours of devices"
        found = [f"{self.flops:.2e} multiplications and additions{hours}."]
        found += [escape(f"{remark[:1].upper()}{remark[1:]}.") for remark in self.remarks]
        return found

    def __str__(self) -> str:
        return printed(self.table(), width=100)

    def to_dict(self) -> dict[str, Any]:
        """All figures, as JSON has them."""
        return {
            "hardware": self.hardware.name,
            "gpus": self.gpus,
            "calibrated": self.calibrated,
            "fits": self.fits,
            "memory": {moment.name: {part.name: part.bytes for part in moment.parts} for moment in self.moments},
            "disk": {part.name: part.bytes for part in self.disk},
            "stages": {
                stage.name: {"tokens": stage.tokens, "seconds": stage.seconds(self.rates), "work": dict(stage.work)}
                for stage in self.stages
            },
            "memory_bytes": self.memory_bytes,
            "host_bytes": self.host_bytes,
            "disk_bytes": self.disk_bytes,
            "start_seconds": self.start_s,
            "seconds": self.seconds,
            "flops": self.flops,
            "refusals": self.refusals,
            "remedies": self.remedies,
            "remarks": self.remarks,
        }


def _dictionaries(subject: Subject) -> Iterator[str]:
    for one in subject.dictionaries[:SHOWN]:
        k = "" if one.k is None else f", k = {one.k}"
        name = f"{one.name}: " if one.name else ""
        latents = f"{one.sae.n_latents:,} latents of width {one.d_in:,}"
        yield f"{name}{one.sae.architecture}, {latents}{k}, batch {one.batch:,}"
    if len(subject.dictionaries) > SHOWN:
        yield f"and {len(subject.dictionaries) - SHOWN} more"


def _table(name: str, when: str) -> Table:
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    table.add_column(name, no_wrap=True)
    table.add_column("", justify="right", no_wrap=True)
    table.add_column(when, style="dim")
    return table


def size(n_bytes: float) -> str:
    """In GiB, or MiB where that is little."""
    if n_bytes < 0.1 * GIB:
        return f"{n_bytes / 2**20:,.1f} MiB"
    return f"{n_bytes / GIB:,.2f} GiB" if n_bytes < 1000 * GIB else f"{n_bytes / GIB:,.0f} GiB"


def duration(seconds: float) -> str:
    """In seconds, minutes, hours or days."""
    if seconds < 120:
        return f"{seconds:,.0f} s"
    if seconds < 7200:
        return f"{seconds / 60:,.0f} min"
    return f"{seconds / 3600:,.1f} h" if seconds < 100 * 3600 else f"{seconds / 86400:,.1f} days"
