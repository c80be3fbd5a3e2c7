"""What a hook point of another library is called here, and its model on the hub."""

from __future__ import annotations

import re
from typing import Any

from monosem.hook_names import from_transformer_lens

BLOCK = re.compile(r"(?:.*\.)?(?:layers|h|blocks|layer)\.(\d+)(?::(input|output))?")
"""The path of a block of any family: what goes in is resid_pre, what comes out is resid_post."""

RMS_NORM = re.compile("gemma|llama|qwen|mistral", re.IGNORECASE)
"""In the names of models whose norms are RMSNorm."""

MODELS = {
    "gpt2-small": "openai-community/gpt2",
    "gpt2": "openai-community/gpt2",
    "gpt2-medium": "openai-community/gpt2-medium",
    "gpt2-large": "openai-community/gpt2-large",
    "gpt2-xl": "openai-community/gpt2-xl",
    "gelu-1l": "NeelNanda/GELU_1L512W_C4_Code",
    "tiny-stories-1L-21M": "roneneldan/TinyStories-1Layer-21M",
    "mistral-7b": "mistralai/Mistral-7B-v0.1",
    "mistral-7b-instruct": "mistralai/Mistral-7B-Instruct-v0.1",
}
"""Names that TransformerLens gives to models, where they do not follow the rules of `model_of`."""
OWNERS = (
    ("pythia-", "EleutherAI/"),
    ("gemma-", "google/"),
    ("Qwen", "Qwen/"),
    ("qwen", "Qwen/"),
    ("Llama-", "meta-llama/"),
)


def model_of(name: Any) -> str | None:
    """The model's name on the hub."""
    if not isinstance(name, str) or not name:
        return None
    if "/" in name or name in MODELS:
        return MODELS.get(name, name)
    return next((owner + name for start, owner in OWNERS if name.startswith(start)), name)


def hook_of(name: str | None) -> str | None:
    """The canonical name of a hook point of TransformerLens or of a module path; of a path that has none, itself.

    A path is a module's output; which of our names that is for what lies inside a block depends on the model's family,
    so it stays a path.
    """
    if not name:
        return None
    if name.startswith(("blocks.", "ln_final.", "hook_")):
        return from_transformer_lens(name)
    block = BLOCK.fullmatch(name)
    if block is None:
        return name
    return f"{'resid_pre' if block[2] == 'input' else 'resid_post'}.{block[1]}"


def normalised(name: str | None, model: str | None) -> str | None:
    """The hook point whose rows, scaled to norm sqrt(d), are what TransformerLens gives at `ln2.hook_normalized`.

    There an RMSNorm's output stands before its gain, which no module of the model gives out. None of other places, and
    of other norms.
    """
    found = re.fullmatch(r"blocks\.(\d+)\.ln2\.hook_normalized", name or "")
    return f"resid_mid.{found[1]}" if found and RMS_NORM.search(model or "") else None


def bos_of(value: Any) -> bool | None:
    """A rule about the beginning of contexts, where it is one."""
    return value if isinstance(value, bool) else None


def length_of(value: Any) -> int | None:
    """A context length, where it is one."""
    return value if isinstance(value, int) and not isinstance(value, bool) and 1 <= value <= 2**27 else None
