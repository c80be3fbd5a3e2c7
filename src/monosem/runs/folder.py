"""The run folder: what stands in it, and reading it."""

from __future__ import annotations

import re
from pathlib import Path

from monosem.arguments import checked
from monosem.errors import ConfigError, FileError
from monosem.evaluation import EvaluationReport
from monosem.evaluation.paired import with_draws
from monosem.features import FeatureStore
from monosem.runs.config import RunConfig
from monosem.sae import SAE, load_sae
from monosem.spelling import path_meant
from monosem.training.loggers import read_history

README = """\
# A monosem run

`run.yaml` describes it, fully resolved. To repeat it: `monosem train run.yaml --set output=another_folder`.

| | |
|---|---|
| `sae/` | the trained SAE: `cfg.json`, `sae.safetensors`; in Python `ms.load_sae("{path}")` |
| `metrics.jsonl` | one line per logged step: tokens, loss, fvu, l0, dead, lr |
| `evaluation.json` | metrics on held-out text with 95 % intervals, and their controls |
| `evaluation_draws.safetensors` | what `monosem compare` needs to pair them with those of another run |
| `features/` | statistics and passages of every latent (Parquet): `monosem top {path} [LATENT ...]` |
| `features/explanations/` | what they mean, in a line each: `monosem explain {path}` |
| `figures/` | loss curve, firing rates, L0 |
| `identity.json` | all that decides the bits of the run; with other settings it is not gone on with |
| `checkpoints/` | the newest checkpoint; `monosem train {path}/run.yaml` goes on from it |
"""

README_SEVERAL = """\
# A monosem run of several dictionaries

`run.yaml` describes them. To repeat it: `monosem train run.yaml --set output=another_folder`; the same command goes on
where the run was stopped. One pass of the model has fed them all; each folder here is a run of its own:
`monosem eval|harvest|top|info {path}/NAME`, and `monosem explore {path}` opens them all.

| | |
|---|---|
| `NAME/` | one dictionary: `sae/`, `evaluation.json`, `features/`, ... |
| `results.json` | held-out metrics of all, with 95 % intervals |
| `results.svg` | L0 against variance unexplained, and against loss recovered |
"""


class Run:
    """A run folder: of one dictionary, or of several, which have folders of their own in it."""

    @checked
    def __init__(self, path: str | Path) -> None:
        """Open a run folder.

        Raises:
            FileError: there is no run in it.
        """
        self.path = Path(path)
        if not (self.path / "run.yaml").is_file():
            what = "holds no run (no run.yaml)" if self.path.exists() else "does not exist"
            raise FileError(
                f"{self.path} {what}: give the folder that `monosem train` has written{path_meant(self.path)}"
            )

    @property
    def config(self) -> RunConfig:
        return RunConfig.read(self.path / "run.yaml")

    @property
    def members(self) -> dict[str, Run]:
        """The runs of the dictionaries, by name; of one that is alone, itself, with an empty name."""
        described = self.config
        if not described.several:
            return {"": self}
        found = [Run(path.parent) for path in self.path.glob("*/run.yaml")]
        own = [run for run in found if Path(run.config.output) == Path(described.output) / run.path.name]
        return {run.path.name: run for run in sorted(own, key=lambda run: _natural(run.path.name))}

    @property
    def finished(self) -> bool:
        """Whether all is trained."""
        members = self.members
        return bool(members) and all((run.path / "sae" / "cfg.json").is_file() for run in members.values())

    def sae(self) -> SAE:
        """The trained SAE.

        Raises:
            FileError: there is none, or there are several.
        """
        self.require_one()
        if not self.finished:
            raise FileError(f"{self.path} has no trained SAE yet: go on with `monosem train {self.path}/run.yaml`")
        return load_sae(self.path / "sae")

    def require_one(self) -> None:
        """Refuse a run of several dictionaries.

        Raises:
            FileError: with the names of its dictionaries.
        """
        if self.config.several:
            folders = ", ".join(f"{self.path}/{name}" for name in self.members)
            raise FileError(f"{self.path} has several dictionaries: give the folder of one ({folders})")

    def model_name(self) -> str:
        """What `load_model` takes, of the one model that is read.

        Raises:
            ConfigError: it is of several models side by side, or of ready vectors.
        """
        name = self.config.model
        if not isinstance(name, str):
            of = "no model" if name is None else f"several models ({', '.join(name)})"
            raise ConfigError(f"{self.path} is of {of}: texts are read by one")
        return name

    def history(self) -> list[dict[str, float]]:
        """The lines of metrics.jsonl; the last one of a killed run may be torn."""
        return read_history(self.path / "metrics.jsonl")

    def evaluation(self) -> EvaluationReport:
        self.require_one()
        if not (self.path / "evaluation.json").is_file():
            raise FileError(f"{self.path} has not been evaluated: `monosem eval {self.path}`")
        return with_draws(EvaluationReport.load(self.path / "evaluation.json"), self.path)

    def features(self) -> FeatureStore:
        """The feature store of the run.

        Raises:
            FileError: it has none, or one that cannot be read.
        """
        self.require_one()
        if not (self.path / "features" / "index.json").is_file():
            raise FileError(f"{self.path} has no features yet: `monosem harvest {self.path}`")
        return FeatureStore(self.path / "features")


def _natural(name: str) -> list[tuple[bool, float, str]]:
    """Sorts numbers in names by size: k8 before k16."""
    parts = re.findall(r"\d+(?:\.\d+)?|\D+", name)
    return [(part[0].isdigit(), float(part) if part[0].isdigit() else 0, part) for part in parts]


def feature_folders(path: Path) -> list[Path]:
    """What there is to explore in a folder: itself, or all dictionaries of a run of several.

    Raises:
        FileError: none of the dictionaries is there yet.
    """
    if not (path / "run.yaml").is_file() or not Run(path).config.several:
        return [path]
    found = [run.path for run in Run(path).members.values()]
    if not found:
        raise FileError(f"{path} has no dictionaries yet: go on with `monosem train {path}/run.yaml`")
    return found
