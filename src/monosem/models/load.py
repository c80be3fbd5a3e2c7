"""load_model: the bundled model, a local folder or GGUF file, a Hugging Face id, or any module."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from monosem import kernels
from monosem.arguments import Device, Floating, checked
from monosem.errors import ConfigError, FileError
from monosem.files import one_line, safetensors_shapes
from monosem.hub import offline, reachable
from monosem.models.gguf import check_gguf, gguf_file
from monosem.models.subject import SubjectModel
from monosem.spelling import nearest, path_meant

BUNDLED = Path(__file__).parent / "bundled"
SHIPPED = {"bundled": BUNDLED, "othello": Path(__file__).parent / "othello"}
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "vocab.json", "vocab.txt", "*.model")
PROCESSOR_FILES = ("preprocessor_config.json", "processor_config.json")
EYES = {"clip": "CLIPVisionModel", "siglip": "SiglipVisionModel"}
"""Of models with an image half and a text half: the class of the image half, which is taken."""


@checked
def load_model(
    model: str | Path | nn.Module,
    tokenizer: Any = None,
    *,
    device: Device | Literal["auto"] | None = None,
    dtype: Floating = torch.float32,
    name: str | None = None,
) -> SubjectModel:
    """A model to study.

    Args:
        model: "bundled" (English text), "othello" (games on 6 x 6 squares), a folder or hub id that transformers can
            load, a GGUF file (here, or of the hub: a hub id and the file's name, `owner/name/file.gguf`), or any
            nn.Module. What class it becomes (causal language model,
            reward model, encoder, image model) its config says; of a CLIP or SigLIP, the image half is taken. Of a
            hub id, the files of an earlier download serve where the hub cannot be reached.
        tokenizer: for a module: its tokenizer. For the others it is found beside the model, as is the image processor.
        device: where to put it; CUDA where there is one if not given (a module stays where it is). "auto" spreads a
            model over all there is (needs the package accelerate).
        dtype: precision of the weights as loaded (a module keeps its own; a GGUF file's blocks are unpacked to it).
        name: what SAEs trained on it remember as `metadata.model`; the given name or path if not given.

    Raises:
        FileError: there is no such model, or it cannot be read.
        ConfigError: a GGUF file without the extra `gguf`.
    """
    if isinstance(model, nn.Module):
        if device is not None and hasattr(model, "hf_device_map"):
            raise ConfigError("the module is spread over devices already (hf_device_map): leave device out")
        return _quick(SubjectModel(model if device is None else model.to(device), tokenizer, name))
    file = gguf_file(model)
    source = source_of(model) if file is None else str(file.parent)
    local = Path(source).is_dir()
    where = reaching(source)
    has_tokenizer = not local or _has(source, TOKENIZER_FILES)
    if file is not None:
        where["gguf_file"], has_tokenizer = file.name, check_gguf(file)
    with readable_errors(str(model)):
        module = _pretrained(source, where, dtype, "auto" if device == "auto" else None)
        reads_images = getattr(module, "main_input_name", "") == "pixel_values"
        processor = None
        if reads_images and (not local or _has(source, PROCESSOR_FILES)):
            from transformers.models.auto.image_processing_auto import AutoImageProcessor

            processor = AutoImageProcessor.from_pretrained(source, **where)
        if tokenizer is None and not reads_images and has_tokenizer:
            from transformers.models.auto.tokenization_auto import AutoTokenizer

            tokenizer = AutoTokenizer.from_pretrained(source, **where)
    if device != "auto":
        nn.Module.to(module, device or default_device())
    return _quick(SubjectModel(module.eval().requires_grad_(False), tokenizer, name or str(model), processor))


def default_device() -> torch.device:
    """CUDA where there is one, of several this process's own; the CPU elsewhere."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def _quick(model: SubjectModel) -> SubjectModel:
    """The model; a warning where this processor is slow in the precision of its weights."""
    weight = next((p for p in model.module.parameters() if p.is_floating_point()), None)
    if weight is not None and weight.dtype in (torch.float16, torch.bfloat16):
        speed = kernels.speed(weight.dtype, weight.device)
        if speed < kernels.SLOW:
            how = f"{1 / speed:.0f} times slower than float32" if speed else "not able to multiply"
            warnings.warn(
                f"{model.name} is in {str(weight.dtype).removeprefix('torch.')}, in which this processor is {how}: "
                "load it with dtype=torch.float32 (of a module, give module.float()), or use a GPU",
                stacklevel=3,
            )
    return model


def source_of(model: str | Path) -> str:
    """A folder that exists, or what can be a hub id (`name` or `user/name`)."""
    if str(model) in SHIPPED:
        return str(SHIPPED[str(model)])
    path = Path(model).expanduser()
    if path.is_dir():
        return str(path)
    text = str(model)
    near = nearest(text, list(SHIPPED))
    if near is not None and "/" not in text and not path.exists():
        raise FileError(f"there is no model {text!r} here. Did you mean {near}?")
    beside = path.parent != Path() and path.parent.is_dir()
    if isinstance(model, Path) or text.startswith((".", "/", "~")) or text.count("/") > 1 or beside or path.exists():
        raise FileError(
            f"{text} is not a folder: give a model folder, a GGUF file, a Hugging Face id, or 'bundled'"
            + path_meant(path)
        )
    return text


def reaching(source: str) -> dict[str, Any]:
    """What transformers is told of where to look: of a hub id that cannot be reached, here alone."""
    return {} if Path(source).is_dir() or reachable(source) else {"local_files_only": True}


def _has(folder: str, patterns: tuple[str, ...]) -> bool:
    return any(next(Path(folder).glob(pattern), None) is not None for pattern in patterns)


def _pretrained(source: str, where: dict[str, Any], dtype: torch.dtype, device_map: str | None) -> nn.Module:
    """The model that a config describes, with its weights."""
    cls, config = described(source, where)
    unpacked: dict[str, Any] = {}
    if "gguf_file" in where:  # whose blocks would stay packed where kernels for them are
        from transformers.utils.quantization_config import GgufConfig

        unpacked["quantization_config"] = GgufConfig(dequantize=True)
    module, loaded = cls.from_pretrained(
        source, config=config, dtype=dtype, device_map=device_map, output_loading_info=True, **where, **unpacked
    )
    missing = [key for key in loaded["missing_keys"] if "pooler" not in key]  # a pooler reads, no hook point follows it
    if missing:
        raise FileError(f"its weights lack {len(missing)} that {type(module).__name__} needs, as {sorted(missing)[0]}")
    return module


def described(source: str, where: dict[str, Any]) -> tuple[Any, Any]:
    """The class that a config names, an AutoModel where it names none that transformers has; and the config."""
    transformers = import_module("transformers")  # for classes by name

    config = transformers.AutoConfig.from_pretrained(source, **where)
    default = transformers.AutoModelForCausalLM if "gguf_file" in where else transformers.AutoModel
    _check_config(Path(source), config)
    if config.model_type in EYES:
        return getattr(transformers, EYES[config.model_type]), config.vision_config
    return getattr(transformers, (config.architectures or [""])[0], default), config


def _check_config(folder: Path, config: Any) -> None:
    """More layers than weights would be built for hours; a share of NaN, or -2 heads, show when the model runs."""
    n_weights = sum(len(safetensors_shapes(file)) for file in folder.glob("*.safetensors")) if folder.is_dir() else 0
    for part in (config, *(getattr(config, name, None) for name in ("text_config", "vision_config"))):
        layers = getattr(part, "num_hidden_layers", 0)
        if n_weights and isinstance(layers, int) and layers > n_weights:
            raise FileError(f"its config.json speaks of {layers:,} layers, there are {n_weights} weights in all")
        for name, value in vars(part).items() if part is not None else ():
            share = name.endswith(("drop", "dropout", "dropout_prob"))
            if name.startswith(("n_", "num_")) and isinstance(value, int) and value < 0:
                raise FileError(f"its config.json says that {name} is {value}")
            if isinstance(value, float) and not (0 <= value <= 1 if share else math.isfinite(value)):
                raise FileError(f"its config.json says that {name} is {value}")


@contextmanager
def readable_errors(name: str) -> Iterator[None]:
    """No progress bars, no report of unused weights; whatever goes wrong becomes one line."""
    from transformers.utils import logging

    bars, verbosity = logging.is_progress_bar_enabled(), logging.get_verbosity()
    logging.disable_progress_bar()
    logging.set_verbosity_error()
    try:
        yield
    except Exception as error:  # transformers and tokenizers raise what they like, `Exception` itself among it
        reason = one_line(str(error).strip().partition("\n")[0] or type(error).__name__).rstrip(".")
        raise FileError(
            f"cannot load the model {name!r}: {reason}{offline()}. "
            "Give 'bundled', a folder with config.json and weights, a GGUF file, or a Hugging Face id that can be "
            "reached."
        ) from error
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()
