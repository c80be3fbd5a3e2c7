"""The losses of what predicts several sources at once: hook points, models, or both."""

from __future__ import annotations

from collections.abc import Mapping

from monosem.evaluation.downstream import DownstreamLoss
from monosem.intervals import Interval, mean_interval

RECOVERED = ("loss_recovered_mean", "loss_recovered_zero")


class SourceLosses:
    """One source at a time is replaced by its own part of what is predicted, in its own model; the others stay.

    A metric is the mean over the sources; loss recovered is also there for each, as "loss_recovered_mean at SOURCE".
    """

    def __init__(self, losses: Mapping[str, DownstreamLoss]) -> None:
        """Put losses side by side, by the name of the source."""
        self.losses = dict(losses)

    def metrics(self, name: str) -> dict[str, Interval]:
        """The means over the sources of what all have, and what each recovers, of one replacement."""
        each = [(loss.sums, loss.ratios(name)) for loss in self.losses.values()]
        shared = [metric for metric in each[0][1] if all(metric in ratios for _, ratios in each)]
        found = {metric: mean_interval([(sums, ratios[metric]) for sums, ratios in each]) for metric in shared}
        for metric in RECOVERED:
            for source, (sums, ratios) in zip(self.losses, each, strict=True):
                found[f"{metric} at {source}"] = sums.interval(ratios[metric])
        return found

    def facts(self) -> dict[str, str | int | float]:
        """Those of the first source; of losses, the means over the sources."""
        each = [loss.facts() for loss in self.losses.values()]
        shared = {key: value for key, value in each[0].items() if all(key in facts for facts in each)}
        means = {
            key: sum(float(facts[key]) for facts in each) / len(each)
            for key, value in shared.items()
            if isinstance(value, float)
        }
        return shared | means | {"sources": len(each)}
