"""Parts of a source of several hook points: what one dictionary reads and what it must predict."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from monosem.activations.source import ActivationSource
from monosem.errors import ConfigError
from monosem.sae import SAEMetadata


class HookSource(ActivationSource):
    """A source whose rows hold what several hook points saw at one position, side by side."""

    widths: dict[str, int]
    """Columns of every hook point, in their order."""
    n_models: int = 1
    """Models side by side at each of them."""

    @abstractmethod
    def canonical(self, hook: str) -> str:
        """The name by which `widths` knows a hook point."""

    def select(self, hook: str) -> HookView:
        """The same rows at one of the hook points; all such sources share one forward pass."""
        return HookView(self, [self._own(hook)])

    def pair(self, hook: str | Sequence[str], target: str | Sequence[str]) -> HookView:
        """The same rows at two hook points: what a transcoder reads, and what it must predict.

        Lists of as many hook points are stacked: what a cross-layer transcoder reads and predicts.
        """
        hooks, targets = ([names] if isinstance(names, str) else names for names in (hook, target))
        stacked = not isinstance(hook, str)
        return HookView(self, [self._own(h) for h in hooks], [self._own(t) for t in targets], stacked=stacked)

    def stack(self, hooks: Sequence[str] | None = None) -> HookView:
        """The same rows at several hook points of equal width (all, if not given): what a crosscoder reads."""
        return HookView(self, [self._own(hook) for hook in hooks] if hooks else list(self.widths), stacked=True)

    def _own(self, hook: str) -> str:
        name = self.canonical(hook)
        if name not in self.widths:
            raise ConfigError(f"this source does not read {name}: open it with activations(model, [..., {name!r}])")
        return name


class HookView(ActivationSource):
    """Some of the columns of a source of several hook points, in the same order of rows.

    `split(rows)` gives (x, target): x (rows, d), or (rows, source, d) where several hook points are stacked, and target
    alike, or None where x itself is to be predicted. Views of one source share its forward passes: `train_together`
    reads batches of the whole, of which each takes its columns.
    """

    def __init__(
        self,
        source: HookSource,
        hooks: Sequence[str],
        targets: Sequence[str] | None = None,
        *,
        stacked: bool = False,
    ) -> None:
        """View some hook points.

        Args:
            source: the source, which reads them all.
            hooks: what is read.
            targets: what is to be predicted, if that is something else; as many.
            stacked: whether hook points stand side by side along a dimension of their own.

        Raises:
            ConfigError: hook points of different widths are to be stacked, or hooks and targets do not pair up.
        """
        self.source, self.hooks, self.targets = source, list(hooks), list(targets or [])
        for names in (self.hooks, self.targets):
            if len({source.widths[hook] for hook in names}) > 1:
                widths = ", ".join(f"{hook}: {source.widths[hook]}" for hook in names)
                raise ConfigError(f"only hook points of equal width can be stacked ({widths})")
        if self.targets and len(self.targets) != len(self.hooks):
            raise ConfigError(f"{len(self.hooks)} hook points and {len(self.targets)} targets: name as many of both")
        self.stacked = stacked or source.n_models > 1
        self.n_sources = len(self.hooks) * source.n_models if self.stacked else 1
        self.d_in = source.widths[self.hooks[0]] // source.n_models
        ends = dict(zip(source.widths, torch.tensor(list(source.widths.values())).cumsum(0).tolist(), strict=True))
        names = [*self.hooks, *self.targets]
        self._columns = [slice(ends[hook] - source.widths[hook], ends[hook]) for hook in names]

    @property
    def d_out(self) -> int:
        return self.source.widths[self.targets[0]] // self.source.n_models if self.targets else self.d_in

    @property
    def metadata(self) -> SAEMetadata:
        several = self.stacked and len(self.hooks) > 1
        changes = {
            "hook": None if several else self.hooks[0],
            "hooks": self.hooks if several else None,
            "target_hook": self.targets[0] if self.targets and not several else None,
            "target_hooks": self.targets if self.targets and several else None,
        }
        return self.source.metadata.model_copy(update=changes)

    @property
    def whole(self) -> ActivationSource:
        return self.source

    @property
    def words(self) -> str:
        return self.source.words

    def by_context(self) -> HookView:
        whole = self.source.by_context()
        assert isinstance(whole, HookSource)
        return HookView(whole, self.hooks, self.targets, stacked=self.stacked)

    def documents(self, number: int) -> Int[Tensor, " rows"] | None:
        return self.source.documents(number)

    def take(self, rows: Float[Tensor, "batch columns"]) -> Float[Tensor, "batch own_columns"]:
        parts = [rows[:, columns] for columns in self._columns]
        return parts[0] if len(parts) == 1 else torch.cat(parts, 1)

    def split(self, rows: Float[Tensor, "batch columns"]) -> tuple[Tensor, Tensor | None]:
        x, target = rows[:, : self.n_sources * self.d_in], rows[:, self.n_sources * self.d_in :]
        if self.stacked:
            x, target = (part.reshape(len(rows), self.n_sources, -1) for part in (x, target))
        return x, target if self.targets else None

    def make_pool(self, number: int) -> Float[Tensor, "rows own_columns"]:
        return self.take(self.source.pool(number))

    def pool(self, number: int) -> Float[Tensor, "rows own_columns"]:
        """As `make_pool`; the whole source remembers its last one."""
        return self.make_pool(number)

    def identity(self) -> dict[str, Any]:
        own = {"hooks": self.hooks, "targets": self.targets, "stacked": self.stacked}
        return {**self.source.identity(), **own}

    def state(self) -> dict[str, Any]:
        return self.source.state()

    def load_state(self, state: dict[str, Any]) -> None:
        self.source.load_state(state)

    def probe(self) -> dict[str, Tensor]:
        probe = self.source.probe()
        return probe if "tokens" in probe else {"activations": self.take(probe["activations"])}

    def probe_activations(self, probe: dict[str, Tensor]) -> Float[Tensor, "rows own_columns"]:
        if "tokens" not in probe:
            return probe["activations"]
        return self.take(self.source.probe_activations(probe))
