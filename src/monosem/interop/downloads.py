"""Dictionaries on the Hugging Face hub (the extra `hub`): fetched once, then read from its cache."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from monosem.errors import ConfigError, FileError
from monosem.files import one_line, read_text
from monosem.hub import offline, reachable
from monosem.interop.place import WEIGHTS, Place

HUB = "hf://"
ADDRESS = re.compile(
    r"(?P<repo>[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*)(?:@(?P<of_repo>refs/\w+/\w+|[^/@?]+))?"
    r"(?:/(?P<path>[^@?]*))?(?:@(?P<of_path>[^@?]+)|\?revision=(?P<asked>[^&?]+))?"
)
LISTING = "config.yaml"
"""In which a set of circuit-tracer's may list where its transcoders stand."""
LISTED_LAYER = re.compile(r"layer_(\d+)")
"""One of these, below the set's name."""
CONFIGS = (".json", ".yaml", ".yml")
LISTED = 12


class HubName(NamedTuple):
    """A repository and a path in it, and the revision, where the name says it."""

    repo: str
    path: str
    revision: str | None = None

    def __str__(self) -> str:
        return HUB + f"{self.repo}/{self.path}".rstrip("/")


def hub_name(text: str) -> HubName | None:
    """What "hf://owner/name/path" or "owner/name/path" names; None if it is no such name.

    A revision stands behind the repository or at the end: "owner/name@REVISION/path", "owner/name/path@REVISION",
    "owner/name/path?revision=REVISION".
    """
    found = ADDRESS.fullmatch(text.removeprefix(HUB).strip("/"))
    path = (found["path"] or "").strip("/") if found else ""
    if found is None or ".." in path.split("/"):
        return None
    return HubName(found["repo"], path, found["of_repo"] or found["of_path"] or found["asked"])


def downloaded(name: HubName, revision: str | None = None) -> Place:
    """Where the files of a dictionary stand here, fetched if they are not yet.

    Raises:
        ConfigError: huggingface_hub is not installed, the name is of several dictionaries, or says another revision.
        FileError: there is no such repository, revision or path, or the hub cannot be reached.
    """
    if revision is not None and name.revision not in (None, revision):
        raise ConfigError(f"{name} is named at revision {name.revision!r}, and revision={revision!r}: give one")
    revision = revision or name.revision
    try:
        import huggingface_hub
    except ImportError as error:
        raise ConfigError(f"{name} needs the package huggingface_hub: pip install 'monosem[hub]'") from error
    if not reachable(name.repo):
        return _cached(name, revision)
    with _loading(name, revision):
        about = huggingface_hub.HfApi().model_info(name.repo, revision=revision)
    wanted = _chosen(name, [file.rfilename for file in about.siblings or []])
    with _loading(name, revision):
        folder = Path(huggingface_hub.snapshot_download(name.repo, revision=revision, allow_patterns=wanted))
    return Place(folder / name.path, str(name), folder.name)  # whose name is the commit, which its cache remembers


def _chosen(name: HubName, files: list[str]) -> list[str]:
    """Which files of a repository the dictionary of that name needs.

    Raises:
        FileError: there is nothing of that name.
        ConfigError: there are several dictionaries.
    """
    inside = [file for file in files if not name.path or file == name.path or file.startswith(name.path + "/")]
    holders = sorted({str(PurePosixPath(file).parent) for file in inside if file.endswith(WEIGHTS)})
    here = name.path or "."
    listing = _listing(name, files)
    if listing is not None:
        return [listing]
    if not holders and name.path in files:  # of vectors, JSON
        return [name.path]
    if not holders:
        folders = {str(parent) for file in files for parent in PurePosixPath(file).parents} | set(files)
        near = difflib.get_close_matches(name.path, folders, 1)
        hint = f". Did you mean {HUB}{name.repo}/{near[0]}?" if near else ""
        raise FileError(f"{name} holds no file of tensors among the {len(files):,} files of {name.repo}{hint}")
    if here in files or here in holders:  # the file, or a folder with tensors of its own
        own = [file for file in inside if file == name.path or str(PurePosixPath(file).parent) == here]
    elif len(holders) == 1:
        own = inside
    else:
        names = [holder.removeprefix(name.path).strip("/") for holder in holders]
        more = f" and {len(names) - LISTED:,} more" if len(names) > LISTED else ""
        raise ConfigError(
            f"{name} holds {len(names):,} dictionaries: name one, as {name}/{names[0]} "
            f"(there are {', '.join(names[:LISTED])}{more})"
        )
    above = {str(parent) for file in own for parent in PurePosixPath(file).parents}
    beside = [file for file in files if file.endswith(CONFIGS) and str(PurePosixPath(file).parent) in above]
    return sorted({*own, *beside})


def _listing(name: HubName, files: list[str]) -> str | None:
    """The file that lists where a set's transcoders stand, or one of them: beside it are no tensors."""
    folder = PurePosixPath(name.path)
    if name.path not in files and LISTED_LAYER.fullmatch(folder.name):
        below = any(file.startswith(f"{name.path}/") for file in files)
        folder = folder if below else folder.parent
    inside = [PurePosixPath(file) for file in files if folder in PurePosixPath(file).parents]
    beside = folder / LISTING
    return str(beside) if beside in inside and not any(file.suffix in WEIGHTS for file in inside) else None


def _cached(name: HubName, revision: str | None) -> Place:
    """What an earlier call has fetched: a snapshot, of which nobody knows whether the rest of it is here.

    Raises:
        FileError: there is none.
    """
    from huggingface_hub.constants import HF_HUB_CACHE
    from huggingface_hub.file_download import repo_folder_name

    at = "" if revision is None else f" at revision {revision!r}"
    home = Path(HF_HUB_CACHE) / repo_folder_name(repo_id=name.repo, repo_type="model")
    ref = home / "refs" / (revision or "main")
    commit = read_text(ref).strip() if ref.is_file() else str(revision)
    folder = home / "snapshots" / commit
    files = [path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()]
    there = any(file == name.path or file.startswith(f"{name.path}/".lstrip("/")) for file in files)
    if not there and _listing(name, files) is None:
        raise _not_cached(name, at)
    _chosen(name, files)
    return Place(folder / name.path, str(name), commit)


def _not_cached(name: HubName, at: str) -> FileError:
    return FileError(
        f"{name}{at} is not in the cache, and the hub cannot be reached{offline()}: go online, or give a path here"
    )


@contextmanager
def _loading(name: HubName, revision: str | None) -> Iterator[None]:
    """What huggingface_hub raises, in one line."""
    from huggingface_hub.errors import (
        EntryNotFoundError,
        GatedRepoError,
        HfHubHTTPError,
        HFValidationError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    at = "" if revision is None else f" at revision {revision!r}"
    try:
        yield
    except LocalEntryNotFoundError as error:
        raise _not_cached(name, at) from error
    except GatedRepoError as error:
        raise FileError(
            f"{name} is shown to those alone who have agreed to its terms: agree on its page of the hub, then log in "
            "(hf auth login)"
        ) from error
    except RevisionNotFoundError as error:
        raise FileError(f"{name.repo} has no revision {revision!r}: give a branch, a tag or a commit") from error
    except RepositoryNotFoundError as error:
        raise FileError(
            f"there is no repository {name.repo} on the hub, or it is not yours to see: monosem saes lists what is "
            "published"
        ) from error
    except (EntryNotFoundError, HfHubHTTPError, HFValidationError, OSError, ValueError) as error:
        raise FileError(f"{name}{at} cannot be loaded: {one_line(error)}") from error
