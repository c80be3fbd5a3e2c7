"""The run folder: what stands in it, and reading it."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path

from monosem.errors import FileError
from monosem.evaluation import EvaluationReport
from monosem.features import FeatureStore
from monosem.runs.config import RunConfig
from monosem.sae import SAE, load_sae

README = """\
# A monosem run

`run.yaml` describes it, fully resolved. To repeat it: `monosem train run.yaml --set output=another_folder`.

| | |
|---|---|
| `sae/` | the trained SAE: `cfg.json`, `sae.safetensors`; in Python `ms.load_sae("{path}")` |
| `metrics.jsonl` | one line per logged step: tokens, loss, fvu, l0, dead, lr |
| `evaluation.json` | metrics on held-out text with 95 % intervals, and their controls |
| `features/` | statistics and passages of every latent (Parquet): `monosem top {path} [LATENT ...]` |
| `figures/` | loss curve, firing rates, L0 |
| `checkpoints/` | the newest checkpoint; `monosem train {path}/run.yaml` goes on from it |
"""


class Run:
    """A run folder."""

    def __init__(self, path: str | Path) -> None:
        """Open a run folder.

        Raises:
            FileError: there is no run in it.
        """
        self.path = Path(path)
        if not (self.path / "run.yaml").is_file():
            what = "holds no run (no run.yaml)" if self.path.exists() else "does not exist"
            raise FileError(f"{self.path} {what}: give the folder that `monosem train` has written")

    @property
    def config(self) -> RunConfig:
        return RunConfig.read(self.path / "run.yaml")

    @property
    def finished(self) -> bool:
        return (self.path / "sae" / "cfg.json").is_file()

    def sae(self) -> SAE:
        if not self.finished:
            raise FileError(f"{self.path} has no trained SAE yet: go on with `monosem train {self.path}/run.yaml`")
        return load_sae(self.path / "sae")

    def history(self) -> list[dict[str, float]]:
        """The lines of metrics.jsonl; the last one of a killed run may be torn."""
        path, rows = self.path / "metrics.jsonl", list[dict[str, float]]()
        for line in path.read_text().splitlines() if path.is_file() else []:
            with contextlib.suppress(ValueError):
                rows.append(json.loads(line))
        return rows

    def evaluation(self) -> EvaluationReport:
        if not (self.path / "evaluation.json").is_file():
            raise FileError(f"{self.path} has not been evaluated: `monosem eval {self.path}`")
        return EvaluationReport.load(self.path / "evaluation.json")

    def features(self) -> FeatureStore:
        """The feature store of the run.

        Raises:
            FileError: it has none, or one that cannot be read.
        """
        if not (self.path / "features" / "index.json").is_file():
            raise FileError(f"{self.path} has no features yet: `monosem harvest {self.path}`")
        return FeatureStore(self.path / "features")
