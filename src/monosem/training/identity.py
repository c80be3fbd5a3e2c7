"""What decides the bits of a run: kept in its folder, and compared when the run goes on."""

from __future__ import annotations

import json
import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

from pydantic import BaseModel

from monosem.activations import ActivationSource
from monosem.errors import ConfigError, RankError
from monosem.files import as_json, read_json, write_json
from monosem.ranks import Group
from monosem.sae import SAE
from monosem.sae.identity import dictionary_hash
from monosem.training.config import TrainingConfig

FILE = "identity.json"
FREE = {"lr", "checkpoint_minutes", "loggers", "latent_ranks"}
"""Settings of training that may differ; the rate is compared as what it comes to."""
WEIGHTS = "weights at the start"
TOKENS_REMEDY = (
    "Schedules are made for the length of a run. To train the dictionary on: ms.train(ms.load_sae({path!r}), ..., "
    "path=another folder)"
)

_runs: WeakKeyDictionary[SAE, str] = WeakKeyDictionary()
"""The run that an SAE in memory has been trained in: it has other weights than that run began with."""


class _Saved(BaseModel):
    run: str
    settings: dict[str, Any]


@dataclass(frozen=True)
class Identity:
    """A run: an id of its own, and every setting that decides its bits."""

    run: str
    """Drawn anew whenever a run begins; kept when it goes on."""
    settings: dict[str, Any]

    @staticmethod
    def of(
        sae: SAE, source: ActivationSource, config: TrainingConfig, tokens: int, loss: str | None = None
    ) -> Identity:
        """The identity of a run that is to begin."""
        shape = {"n_latents": sae.n_latents, "d_in": sae.d_in, "d_out": sae.d_out}
        about = {"architecture": sae.architecture, **shape, **sae.settings, "transform": sae.transform.kind}
        about |= {"dtype": str(sae.W_enc.dtype).removeprefix("torch.")}
        trained = {"lr": config.peak_lr(sae.n_latents), **config.model_dump(exclude=FREE)}
        found = {"tokens": tokens, "training": trained, "sae": about, "activations": source.identity()}
        found |= {} if loss is None else {"loss": loss}
        found["sae"][WEIGHTS] = dictionary_hash(sae) + (" (trained before)" if sae.metadata.tokens_trained else "")
        return Identity(secrets.token_hex(8), json.loads(as_json(_flat(found))))

    @staticmethod
    def read(folder: Path) -> Identity | None:
        """That of the run in a folder, if it has one.

        Raises:
            FileError: it is damaged.
        """
        path = folder / FILE
        if not path.is_file():
            return None
        remedy = f"delete it to go on without comparing settings, or delete {folder} to begin again"
        saved = read_json(path, _Saved, remedy=remedy)
        return Identity(saved.run, saved.settings)

    def require_alike(self, every: Group) -> None:
        """See that all processes of a job have the same settings, weights and data.

        Raises:
            RankError: naming what differs, and where.
        """
        said = every.words(self.settings)
        for rank, other in enumerate(said):
            differing = [
                f"{name} ({other.get(name)!s:.60}; process 0: {said[0].get(name)!s:.60})"
                for name in self.settings
                if other.get(name) != said[0].get(name)
            ]
            if differing:
                raise RankError(
                    f"process {rank} of {every.size} sees another {', '.join(differing)}: give all processes the same "
                    "files and settings"
                )

    def write(self, folder: Path) -> None:
        write_json(folder / FILE, {"run": self.run, "settings": self.settings}, indent=1)

    def own(self, sae: SAE) -> None:
        """Remember that it is this run which trains an SAE."""
        _runs[sae] = self.run

    def require_same(self, folder: Path, sae: SAE, asked: Identity) -> None:
        """Refuse to go on with other settings.

        Raises:
            ConfigError: naming every setting that differs, with its old value and the new one.
        """
        passed = {f"sae.{WEIGHTS}"} if _runs.get(sae) == self.run else set[str]()
        names = dict.fromkeys([*self.settings, *asked.settings])
        absent = "none"
        differing = [
            f"{name} ({self.settings.get(name, absent)!s:.80} then, {asked.settings.get(name, absent)!s:.80} now)"
            for name in names
            if name not in passed and self.settings.get(name, absent) != asked.settings.get(name, absent)
        ]
        if not differing:
            return
        extra = f" {TOKENS_REMEDY.format(path=str(folder))}." if differing[0].startswith("tokens (") else ""
        raise ConfigError(
            f"{folder} holds a run with another {', '.join(differing)}. Give another folder (path=..., "
            f"--set output=...), or delete that one to begin again.{extra}"
        )


def _flat(nested: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in nested.items():
        found |= _flat(value, f"{prefix}{name}.") if isinstance(value, Mapping) else {prefix + name: value}
    return found
