"""load_model: the bundled model, a local folder, a Hugging Face id, or any module."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch
from torch import nn

from monosem.errors import FileError
from monosem.models.subject import SubjectModel

BUNDLED = Path(__file__).parent / "bundled"


def load_model(
    model: str | Path | nn.Module,
    tokenizer: Any = None,
    *,
    device: torch.device | str | None = None,
    dtype: torch.dtype = torch.float32,
    name: str | None = None,
) -> SubjectModel:
    """A model to study.

    Args:
        model: "bundled", a folder or hub id that transformers can load as a causal language model, or any nn.Module.
        tokenizer: for a module: its tokenizer. For the others it is found beside the model.
        device: where to put it; CUDA where there is one if not given (a module stays where it is).
        dtype: precision of the weights as loaded (a module keeps its own).
        name: what SAEs trained on it remember as `metadata.model`; the given name or path if not given.

    Raises:
        FileError: there is no such model, or it cannot be read.
    """
    if isinstance(model, nn.Module):
        return SubjectModel(model if device is None else model.to(device), tokenizer, name)
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from transformers.utils import logging

    source = str(BUNDLED) if str(model) == "bundled" else str(model)
    if source.startswith((".", "/", "~")) and not Path(source).expanduser().is_dir():
        raise FileError(f"{source} is not a folder: give a model folder, a Hugging Face id, or 'bundled'")
    source = str(Path(source).expanduser()) if Path(source).expanduser().is_dir() else source
    bars = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        module = AutoModelForCausalLM.from_pretrained(source, dtype=dtype)
        tokenizer = tokenizer or AutoTokenizer.from_pretrained(source)
    except Exception as error:
        reason = str(error).strip().splitlines()[0].rstrip(".") if str(error).strip() else type(error).__name__
        offline = " (offline: HF_HUB_OFFLINE is set)" if os.environ.get("HF_HUB_OFFLINE") else ""
        raise FileError(
            f"cannot load the model {str(model)!r}: {reason}{offline}. "
            "Give 'bundled', a folder with config.json and weights, or a Hugging Face id that can be reached."
        ) from error
    finally:
        if bars:
            logging.enable_progress_bar()
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    return SubjectModel(nn.Module.to(module, device), tokenizer, name or str(model))
