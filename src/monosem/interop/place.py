"""Where a dictionary of another library stands: a folder or a file, looked at without reading its numbers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from monosem.errors import FileError
from monosem.files import Stored, plain_values, read_json, read_yaml, stored_tensors

WEIGHTS = (".safetensors", ".npz", ".pt", ".pth")
"""How the names of files end that hold tensors."""
REMEDY = "download it again"


@dataclass(frozen=True)
class Place:
    """A folder with the files of a dictionary, or the one file that it is."""

    path: Path
    source: str
    """Where it came from, as its metadata will say."""
    revision: str | None = None
    """The commit on the hub that it is of."""
    _tensors: dict[Path, dict[str, Stored]] = field(default_factory=dict[Path, dict[str, Stored]], repr=False)

    @property
    def folder(self) -> Path:
        """The folder, or the one in which the file stands."""
        return self.path.parent if self.path.is_file() else self.path

    @property
    def words(self) -> tuple[str, ...]:
        """The names of the folders that lead to it, and its own: some layouts say by them what nothing else says."""
        local = self.path.resolve().parts
        return tuple(self.source.removeprefix("hf://").split("/")) if self.source.startswith("hf://") else local

    @cached_property
    def files(self) -> list[str]:
        """The names of the files in the folder; of a file, its own alone."""
        if self.path.is_file():
            return [self.path.name]
        try:
            return sorted(file.name for file in self.folder.iterdir() if file.is_file())
        except OSError as error:
            raise FileError(f"{self.folder} cannot be read ({error.strerror}): {REMEDY}") from error

    @cached_property
    def weights(self) -> list[str]:
        """Those of them that hold tensors."""
        return [name for name in self.files if name.endswith(WEIGHTS)]

    def has(self, *names: str) -> bool:
        """Whether there are files of all these names."""
        return all((self.folder / name).is_file() for name in names)

    def json(self, name: str, above: bool = False) -> dict[str, Any]:
        """What a file of JSON says that stands beside the tensors; nothing if there is none.

        Args:
            name: its name.
            above: look for it in the folders above too, up to three.

        Raises:
            FileError: it is damaged, or holds something else than names and values.
        """
        folders = [self.folder, *self.folder.parents[:3]] if above else [self.folder]
        path = next((folder / name for folder in folders if (folder / name).is_file()), None)
        return {} if path is None else read_json(path, dict[str, Any], remedy=REMEDY)

    def yaml(self, name: str) -> dict[str, Any]:
        """As `json`, of a file of YAML."""
        return read_yaml(self.folder / name, dict[str, Any], REMEDY) if self.has(name) else {}

    def tensors(self, name: str) -> Mapping[str, Stored]:
        """The tensors in one of the files, not read yet; none if there is no such file.

        Raises:
            FileError: it is damaged.
        """
        path = self.folder / name
        if path not in self._tensors:
            self._tensors[path] = stored_tensors(path, REMEDY) if path.is_file() else {}
        return self._tensors[path]

    def only(self) -> Mapping[str, Stored]:
        """The tensors of the one file that holds any; none if there are several or none."""
        return self.tensors(self.weights[0]) if len(self.weights) == 1 else {}

    def values(self, name: str) -> dict[str, Any]:
        """What a PyTorch file says beside its tensors."""
        return plain_values(self.folder / name, REMEDY) if name.endswith((".pt", ".pth")) else {}
