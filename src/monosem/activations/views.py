"""Parts of a source of several hook points: one of them, an input and its target, or several side by side."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from monosem.activations.source import ActivationSource
from monosem.errors import ConfigError
from monosem.sae import SAEMetadata

if TYPE_CHECKING:
    from monosem.activations.live import LiveActivations


class HookView(ActivationSource):
    """Some of the columns of a source of several hook points, in the same order of rows.

    "select": what one hook point sees. "pair": `split(rows)` gives (x, target). "stack": it gives (rows, source, d).
    Several views of one source share its pools, and so its forward passes, while they go through them in step.
    """

    def __init__(self, source: LiveActivations, hooks: Sequence[str], form: Literal["select", "pair", "stack"]) -> None:
        self.source, self.hooks, self.form = source, list(hooks), form
        self._widths = [source.widths[hook] for hook in self.hooks]
        if form == "stack" and len(set(self._widths)) > 1:
            widths = ", ".join(f"{h}: {w}" for h, w in zip(self.hooks, self._widths, strict=True))
            raise ConfigError(f"only hook points of equal width can be stacked ({widths})")
        self.d_in, self.n_sources = self._widths[0], len(hooks) if form == "stack" else 1
        names = list(source.widths)
        ends = dict(zip(names, torch.tensor(list(source.widths.values())).cumsum(0).tolist(), strict=True))
        self._columns = [slice(ends[hook] - source.widths[hook], ends[hook]) for hook in self.hooks]

    @property
    def d_out(self) -> int:
        return self._widths[-1]

    @property
    def metadata(self) -> SAEMetadata:
        known = self.source.metadata
        changes = {
            "hook": self.hooks[0] if self.form != "stack" else None,
            "target_hook": self.hooks[1] if self.form == "pair" else None,
            "hooks": self.hooks if self.form == "stack" else None,
        }
        return known.model_copy(update=changes)

    def take(self, rows: Float[Tensor, "batch columns"]) -> Float[Tensor, "batch own_columns"]:
        """The columns of this view, of rows of the whole source."""
        parts = [rows[:, columns] for columns in self._columns]
        return parts[0] if len(parts) == 1 else torch.cat(parts, 1)

    def split(self, rows: Float[Tensor, "batch columns"]) -> tuple[Tensor, Tensor | None]:
        if self.form == "pair":
            return rows[:, : self.d_in], rows[:, self.d_in :]
        return (rows.reshape(len(rows), self.n_sources, self.d_in) if self.form == "stack" else rows), None

    def make_pool(self, number: int) -> Float[Tensor, "rows own_columns"]:
        return self.take(self.source.pool(number))

    def pool(self, number: int) -> Float[Tensor, "rows own_columns"]:
        """As `make_pool`; the whole source remembers its last one."""
        return self.make_pool(number)

    def probe(self) -> dict[str, Tensor]:
        probe = self.source.probe()
        return probe if "tokens" in probe else {"activations": self.take(probe["activations"])}

    def probe_activations(self, probe: dict[str, Tensor]) -> Float[Tensor, "rows own_columns"]:
        if "tokens" not in probe:
            return probe["activations"]
        return self.take(self.source.probe_activations(probe))
