"""What people say of features."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field
from typing_extensions import TypedDict

from monosem.explorer.shapes.common import ListCount, Words


class Note(TypedDict):
    """What people say of a feature."""

    latent: int
    label: str | None
    comment: str | None
    starred: bool
    lists: list[str]
    changed: str | None


class Notes(TypedDict):
    """All notes of a dictionary, as a file."""

    format: Literal["monosem notes"]
    format_version: Literal[1]
    dictionary: str
    name: str
    notes: list[Note]
    lists: list[ListCount]


class Imported(TypedDict):
    """How many notes were taken in."""

    imported: int


class NoteChange(BaseModel):
    """What changes in a note; what is left out stays."""

    model_config = ConfigDict(extra="forbid")

    label: Words | None = Field(default=None, max_length=500)
    comment: Words | None = Field(default=None, max_length=20_000)
    starred: bool | None = None
    lists: list[Annotated[Words, Field(max_length=200)]] | None = Field(default=None, max_length=100)
    """Names of the lists that it is on."""


class KeptNote(NoteChange):
    """A note of a file of notes."""

    latent: int = Field(ge=0, strict=True)
    changed: str | None = Field(default=None, pattern=r"^\d{4}-\d\d-\d\dT[\d:.]{5,15}(Z|[+-]\d\d:\d\d)$")


class NoteFile(BaseModel):
    """Exported notes."""

    format: Literal["monosem notes"]
    format_version: Literal[1]
    dictionary: str
    notes: list[dict[str, Any]] = Field(max_length=1_000_000)
