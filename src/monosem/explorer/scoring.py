"""Reward models: those that give a text one number."""

from __future__ import annotations

import json
from pathlib import Path

from monosem.models import SubjectModel

KIND = "ForSequenceClassification"


def names_reward(model: str | None) -> bool:
    """Whether a model's folder says that it is one."""
    try:
        config = json.loads((Path(str(model)).expanduser() / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    kinds = config.get("architectures") if isinstance(config, dict) else None
    return isinstance(kinds, list) and len(kinds) > 0 and str(kinds[0]).endswith(KIND)


def gives_reward(model: SubjectModel) -> bool:
    """Whether a model is one."""
    labels = getattr(getattr(model.module, "config", None), "num_labels", 0)
    return type(model.module).__name__.endswith(KIND) and labels == 1
