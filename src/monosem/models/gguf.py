"""GGUF files: a language model with its tokenizer in one file, as llama.cpp has them. transformers reads them.

Their readers trust every count and offset. So the header is walked here first, against the size of the file.
Format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""

from __future__ import annotations

import importlib.util
import math
import mmap
import re
import struct
from pathlib import Path
from typing import Any

from monosem.errors import ConfigError, FileError
from monosem.hub import offline, reachable

SCALARS = {0: "<B", 1: "<b", 2: "<H", 3: "<h", 4: "<I", 5: "<i", 6: "<f", 7: "<?", 10: "<Q", 11: "<q", 12: "<d"}
STRING, ARRAY = 8, 9
VERSIONS = (2, 3)
PACKAGES = ("gguf", "accelerate")
LAYER = re.compile(r"(?:^|\.)blk\.(\d+)\.")


def gguf_file(model: str | Path) -> Path | None:
    """The GGUF file that a name means: a file, the one in a folder without config.json, or a file of the hub (fetched).

    None where another kind of model is meant.

    Raises:
        FileError: there is no such file, or a folder has several.
    """
    path, name = Path(model).expanduser(), str(model)
    if path.is_dir():
        inside = [] if (path / "config.json").exists() else sorted(path.glob("*.gguf"))
        if len(inside) > 1:
            raise FileError(f"{name} has {len(inside)} GGUF files: name one, as {inside[0]}")
        return inside[0] if inside else None
    if path.suffix != ".gguf" or path.is_file():
        return path if path.suffix == ".gguf" else None
    if isinstance(model, Path) or name.startswith((".", "/", "~")) or name.count("/") < 2 or path.parent.is_dir():
        raise FileError(f"{name} is no file: give a GGUF file, or owner/name/FILE.gguf of the hub")
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import HfHubHTTPError

    owner, repository, inside = name.split("/", 2)
    repository = f"{owner}/{repository}"
    try:
        return Path(hf_hub_download(repository, inside, local_files_only=not reachable(repository)))
    except (HfHubHTTPError, OSError, ValueError) as error:  # none such, not reached, no name of a repository
        reason = str(error).strip().partition("\n")[0].rstrip(".")
        raise FileError(f"cannot get {inside} of {repository} from the hub{offline()}: {reason}") from error


def check_gguf(path: Path) -> bool:
    """See that a GGUF file holds what its header says. True if it has a tokenizer too.

    Raises:
        ConfigError: the extra `gguf` is not installed.
        FileError: it is no GGUF file, is cut short or damaged, or is one part of several.
    """
    missing = [name for name in PACKAGES if importlib.util.find_spec(name) is None]
    if missing:
        raise ConfigError(f"a GGUF file needs the package {missing[0]}: pip install 'monosem[gguf]'")
    if not path.stat().st_size:
        raise FileError(f"{path} is empty, not a GGUF file")
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        facts = _Header(path, data).checked()
    return "tokenizer.ggml.model" in facts


class _Header:
    """Counts, then named values, then the table of tensors, then (aligned) what they hold; little-endian."""

    def __init__(self, path: Path, data: mmap.mmap) -> None:
        self.path, self.data, self.at = path, data, 0

    def checked(self) -> dict[str, Any]:
        """The named values; of an array, how many."""
        if self.data[:4] != b"GGUF":
            raise FileError(f"{self.path} is not a GGUF file: it does not begin with GGUF")
        self.at = 4
        version, n_tensors, n_values = self._take("<I"), self._take("<Q"), self._take("<Q")
        if version not in VERSIONS:
            raise FileError(f"{self.path} is GGUF of version {version}: versions 2 and 3 are read, little-endian")
        facts: dict[str, Any] = {}
        for _ in range(n_values):
            name = self._text()
            facts[name] = self._value(self._take("<I"), name)
        self._check_facts(facts)
        tensors = [self._tensor() for _ in range(n_tensors)]
        self._check_tensors(facts, tensors)
        return facts

    def _take(self, form: str) -> Any:
        size = struct.calcsize(form)
        self._skip(size)
        return struct.unpack_from(form, self.data, self.at - size)[0]

    def _skip(self, size: int) -> None:
        self.at += size
        if self.at > len(self.data):
            raise FileError(
                f"{self.path} is cut short or damaged: its header goes on after its {len(self.data):,} bytes"
            )

    def _text(self) -> str:
        start = self.at + 8
        self._skip(self._take("<Q"))
        try:
            return self.data[start : self.at].decode()
        except UnicodeDecodeError:
            raise FileError(f"{self.path} is damaged: a name at byte {start} is not UTF-8") from None

    def _value(self, kind: int, name: str) -> Any:
        if kind in SCALARS:
            return self._take(SCALARS[kind])
        if kind == STRING:
            return self._text()
        if kind != ARRAY:
            raise FileError(f"{self.path}: {name} has a type {kind} that GGUF does not have")
        inner, count = self._take("<I"), self._take("<Q")
        if inner in SCALARS:
            self._skip(count * struct.calcsize(SCALARS[inner]))
        elif inner == STRING:
            for _ in range(count):
                self._skip(self._take("<Q"))
        else:
            raise FileError(f"{self.path}: {name} is an array of type {inner}, which is not read")
        return count

    def _check_facts(self, facts: dict[str, Any]) -> None:
        if not isinstance(facts.get("general.architecture"), str):
            raise FileError(f"{self.path} does not say what model it is: general.architecture is no text")
        parts = facts.get("split.count", 1)
        if isinstance(parts, int) and parts > 1:
            raise FileError(f"{self.path} is one of {parts} parts: join them with llama-gguf-split --merge")
        alignment = facts.get("general.alignment", 32)
        if not isinstance(alignment, int) or alignment < 1 or alignment & (alignment - 1):
            raise FileError(f"{self.path}: general.alignment is {alignment}, not a power of two")

    def _tensor(self) -> tuple[str, list[int], int, int]:
        """Name, shape, type and offset."""
        name, n_axes = self._text(), self._take("<I")
        if n_axes > 4:
            raise FileError(f"{self.path}: {name} has {n_axes} axes, and GGUF has at most 4")
        return name, [self._take("<Q") for _ in range(n_axes)], self._take("<I"), self._take("<Q")

    def _check_tensors(self, facts: dict[str, Any], tensors: list[tuple[str, list[int], int, int]]) -> None:
        from gguf import GGML_QUANT_SIZES

        sizes: dict[int, tuple[int, int]] = {int(kind): size for kind, size in GGML_QUANT_SIZES.items()}
        alignment = facts.get("general.alignment", 32)
        start = -(-self.at // alignment) * alignment
        for name, shape, kind, offset in tensors:
            if kind not in sizes:
                raise FileError(f"{self.path}: {name} is of type {kind}, which is not known")
            block, size = sizes[kind]
            if shape and shape[0] % block:
                raise FileError(f"{self.path}: rows of {name} have {shape[0]} values, no multiple of {block}")
            end = start + offset + math.prod(shape) // block * size
            if end > len(self.data):
                raise FileError(f"{self.path} is cut short: {name} ends at byte {end:,} of {len(self.data):,}")
        layers = {match[1] for name, *_ in tensors if (match := LAYER.search(name))}
        width = next((shape[0] for name, shape, *_ in tensors if name == "token_embd.weight" and shape), None)
        for what, found in (("block_count", len(layers)), ("embedding_length", width)):
            key = f"{facts['general.architecture']}.{what}"
            if facts.get(key) != found:  # without it transformers would take a size of its own
                raise FileError(f"{self.path} says that its {key} is {facts.get(key)}, and holds weights of {found}")
