"""An SAE without a feature store: enough for a model that writes texts with its features."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from monosem.errors import ConfigError
from monosem.explorer.shapes import Abilities
from monosem.sae import SAE, load_sae
from monosem.sae.identity import dictionary_hash

NO_STORE = "there is no feature store: `monosem harvest` makes it"


class Alone:
    """The SAE of a run folder, loaded at once, and the model that it names."""

    def __init__(self, name: str, folder: Path) -> None:
        """Open it.

        Raises:
            FileError: it cannot be read.
            ConfigError: it does not say its model or hook point.
        """
        self.name, self._sae = name, load_sae(folder)
        known = self._sae.metadata
        self.model_name, self.hook = known.model, known.hook
        if self.model_name is None or self.hook is None:
            raise ConfigError(f"{folder}: the SAE does not say its model and its one hook point: it cannot be served")
        self.index: dict[str, Any] = {
            "dictionary": dictionary_hash(self._sae),
            "model_fingerprint": known.model_fingerprint,
        }
        """What a store's index would say."""
        self.can = Abilities(prompt=None, map=NO_STORE, notes=NO_STORE, context=NO_STORE, rewards=NO_STORE)

    def sae(self) -> SAE:
        """The SAE."""
        return self._sae
