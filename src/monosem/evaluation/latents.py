"""The dictionary family of metrics: how often its latents are on, and where they point."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from monosem.evaluation.directions import direction_metrics, rare_metrics
from monosem.evaluation.firing import alive_by_budget, firing_metrics, rate_histogram
from monosem.evaluation.metric import Column, Dictionary, Metric, Seen
from monosem.evaluation.neurons import neuron_metrics
from monosem.evaluation.tables import DataTable
from monosem.intervals import Interval
from monosem.models import SubjectModel
from monosem.sae import SAE

WHOLE = "no interval: all latents count, none is sampled (of more than 16,384 a sample is, and has one)"
RATES = "no interval: it depends on how many tokens were read more than on which"


class Latents(Metric):
    """Firing rates of every column that has latents; of dictionaries also what their directions say."""

    def __init__(
        self,
        columns: Mapping[str, Column],
        model: SubjectModel | None = None,
        hook: str | None = None,
        target_hook: str | None = None,
    ) -> None:
        """Begin; without a model nothing is said of its neurons."""
        super().__init__()
        self.columns, self.model, self.hook, self.target_hook = columns, model, hook, target_hook

    def add(self, seen: Seen) -> None:
        self.count("rows", np.array([len(seen)]))
        for name in self.columns:
            codes = seen.codes(name)
            if codes is not None:
                self.count(f"firing {name}", codes.firing_counts().cpu().numpy())

    @property
    def n_rows(self) -> int:
        return int(self.counts.get("rows", np.zeros(1))[0])

    def result(self, name: str) -> dict[str, Interval]:
        counts = self.counts.get(f"firing {name}")
        if counts is None:
            return {}
        found, column = firing_metrics(counts, self.n_rows), self.columns[name]
        if not isinstance(column, Dictionary):
            return found
        sae = column.sae
        found |= rare_metrics(sae, counts / max(1, self.n_rows), self.n_rows)
        found |= direction_metrics(sae, self._others(sae))
        if self.model is not None and self.hook is not None:
            found |= neuron_metrics(sae, self.model, self.hook, self.target_hook)
        return found

    def _others(self, sae: SAE) -> list[SAE]:
        """The other dictionaries but for the random one, which none is near."""
        saes = [one.sae for key, one in self.columns.items() if isinstance(one, Dictionary) and key != "random"]
        return [other for other in saes if other is not sae]

    def notes(self) -> dict[str, str]:
        rates = ("firing_rate_median", "dense_share", "dense_firings", "often_share", "often_firings")
        directions = (
            *("ultra_rare_share", "ultra_rare_encoder_cosine", "ultra_rare_decoder_cosine"),
            *("decoder_max_cosine", "encoder_max_cosine", "encoder_decoder_cosine", "cross_max_cosine"),
            *("neuron_encoder_cosine", "neuron_decoder_cosine"),
        )
        return dict.fromkeys(rates, RATES) | dict.fromkeys(directions, WHOLE)

    def tables(self, name: str) -> dict[str, DataTable]:
        counts = self.counts.get(f"firing {name}")
        if counts is None or not self.n_rows:
            return {}
        return {
            "alive_by_budget": DataTable(
                "Share of latents alive by tokens read (drawn at random)",
                alive_by_budget(counts, self.n_rows),
                {"tokens": "tokens", "alive_share": "share of latents"},
            ),
            "firing_rates": DataTable(
                "Latents by firing rate",
                rate_histogram(counts, self.n_rows),
                {"rate_from": "share of tokens", "rate_to": "share of tokens", "latents": "latents"},
            ),
        }
