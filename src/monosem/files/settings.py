"""Settings that a program or a file gives: what does not fit is refused in a line."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ValidationError

from monosem.errors import ConfigError
from monosem.files.checked import one_line
from monosem.spelling import meant

if TYPE_CHECKING:
    Settings = BaseModel
else:

    class _Worded(type(BaseModel)):
        """Of classes that are called by users. What stands inside others is checked with them, and named there."""

        def __call__(cls, *args: Any, **values: Any) -> Any:
            try:
                return super().__call__(*args, **values)
            except ValidationError as error:
                raise ConfigError(refused(cls, error)) from error

    class Settings(BaseModel, metaclass=_Worded):
        """A pydantic model whose constructor raises a `ConfigError` of one line."""


def named_folder(path: str | Path, name: str = "path") -> Path:
    """A folder to write into, which has a name.

    Raises:
        ConfigError: it has none: what an unset variable of a shell gives would be the folder one happens to be in.
    """
    if not str(path).strip():
        raise ConfigError(f"{name}: no folder has the empty name: name one, or '.' for the folder you are in")
    return Path(path)


def refused(settings: type[BaseModel], error: ValidationError) -> str:
    """What is wrong with the first value that does not fit."""
    first = error.errors(include_url=False)[0]
    where = ".".join(str(part) for part in first["loc"])
    if first["type"] == "extra_forbidden":
        known = list(settings.model_fields)
        return f"{settings.__name__} has no setting {where!r}; it has {', '.join(known)}{meant(where, known)}"
    what = f": {where}" if where else ""
    return one_line(f"{settings.__name__}{what}: {first['msg'].lower()}, got {first['input']!r}")
