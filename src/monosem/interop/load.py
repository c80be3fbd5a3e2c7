"""load_sae: a dictionary by its path or its published name, in whosever files it is."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import torch

from monosem.arguments import Device, checked
from monosem.errors import ConfigError, FileError
from monosem.interop.addresses import described, followed, listed_layer, lists
from monosem.interop.catalogue import PublishedSAE, published
from monosem.interop.downloads import HUB, downloaded, hub_name
from monosem.interop.layout import Layout, assemble
from monosem.interop.layouts import LAYOUTS
from monosem.interop.place import WEIGHTS, Place
from monosem.sae import SAE
from monosem.sae.files import load_sae as load_own
from monosem.spelling import nearest, path_meant

DEEPEST = 4
"""Folders below the one given in which dictionaries are looked for, to list them."""
LISTED = 12


@checked
def load_sae(
    path_or_name: str | Path,
    device: Device | None = None,
    *,
    revision: str | None = None,
    lazy: bool = False,
) -> SAE:
    """A dictionary, in our files or in those of another library, here or on the Hugging Face hub.

    Whose files they are is seen from what is in them. It encodes raw activations as its own library does, and its
    metadata say where it came from; what cannot be computed exactly here is refused. No code in a file is executed.

    Args:
        path_or_name: a folder or a file; a run; "owner/name/path" or "hf://owner/name/path" of the hub, with
            "@REVISION" at its end if one is meant; or a name of SAELens's, "release/id" (`ms.catalogue` lists what is
            published). What stands at a path goes before a name.
        device: where to put it.
        revision: of the hub: branch, tag or commit; "main" if not given. The commit stands in the metadata.
        lazy: leave the decoders of another library's cross-layer transcoder in their files; of these, the rows of
            latents that are on are then read when they are wanted. The files must stay as they are meanwhile.

    Raises:
        FileError: there is no such thing, it is damaged, or of no layout that is known.
        ConfigError: it cannot be used here exactly, or a folder holds several; the message says what to do.
    """
    path = Path(path_or_name).expanduser()
    if not str(path_or_name).startswith(HUB) and (os.path.lexists(path) or listed_layer(path)):
        if revision is not None:
            raise ConfigError(f"{path} is here, not on the hub: leave revision out")
        return read_place(Place(path, str(path)), device, lazy)
    known = published(str(path_or_name))
    name = hub_name(known.name if known is not None else str(path_or_name))
    if name is None or not names_published(path_or_name):
        raise FileError(
            f"{path} does not exist: give a folder or a file, or a published name (monosem saes lists them)"
            f"{path_meant(path)}"
        )
    sae = read_place(downloaded(name, revision), device, lazy)
    if known is not None:
        _complete(sae, known)
    return sae


def _complete(sae: SAE, known: PublishedSAE) -> None:
    """What the catalogue knows of it and its files do not say."""
    metadata, (reads, _, predicts) = sae.metadata, (known.site or "").partition(" > ")
    metadata.model = metadata.model or known.model
    if metadata.hook or metadata.hooks or not isinstance(known.layer, int) or len(sae.in_shape) > 1 or not reads:
        return
    metadata.hook = f"{reads}.{known.layer}"
    if predicts and not sae.autoencodes:
        metadata.target_hook = f"{predicts}.{known.layer}"


def names_published(path_or_name: str | Path) -> bool:
    """Whether it can be the name of something on the hub, and is no path beside which there is something here."""
    name, path = str(path_or_name), Path(path_or_name)
    if name.startswith(HUB) or published(name) is not None:
        return True
    beside = any(folder != Path() and folder.is_dir() for folder in path.parents)
    return hub_name(name) is not None and not isinstance(path_or_name, Path) and not beside


def holds_dictionary(path: Path) -> bool:
    """Whether there is a dictionary in a folder, ours or another library's, or several."""
    place = Place(path, str(path))
    return own_folder(place) is not None or layout_of(place) is not None or lists(place) or any(_inside(place))


def read_place(place: Place, device: torch.device | str | None = None, lazy: bool = False) -> SAE:
    """The dictionary in files that are here, or to which an address in them leads.

    Raises:
        FileError, ConfigError: as `load_sae`.
    """
    led = followed(place)
    if led is None:
        return _read(place, device, lazy)
    elsewhere, config, layer = led
    return described(_read(elsewhere, device, lazy), config, layer, elsewhere)


def _read(place: Place, device: torch.device | str | None, lazy: bool) -> SAE:
    own = own_folder(place)
    if own is not None:
        return load_own(own, device)
    layout = layout_of(place)
    if layout is not None:
        return assemble(layout.read(place), place, layout.name, device, lazy)
    inside = sorted({inner.path for inner in _inside(place)})
    if len(inside) == 1:
        inner = Place(inside[0], place.source, place.revision)
        return _read(inner, device, lazy)
    if inside:
        names = [path.relative_to(place.folder).as_posix() for path in inside]
        more = f" and {len(names) - LISTED} more" if len(names) > LISTED else ""
        raise ConfigError(
            f"{place.source} holds {len(inside)} dictionaries: name one, as {place.source}/{names[0]} "
            f"(there are {', '.join(names[:LISTED])}{more})"
        )
    raise _unknown(place)


def own_folder(place: Place) -> Path | None:
    """The folder, if what stands in it is ours, or of a run of ours."""
    named = place.path.is_file() and place.path.name not in ("cfg.json", "sae.safetensors")
    for folder in () if named else (place.folder, place.folder / "sae"):
        if Place(folder, place.source).json("cfg.json").get("format") == "monosem":
            return folder
    return None


def layout_of(place: Place) -> Layout | None:
    """The layout of the files in a place, if it is one that is known.

    Raises:
        FileError: a file in it is damaged.
    """
    return next((layout for layout in LAYOUTS if layout.recognises(place)), None)


def _inside(place: Place, depth: int = DEEPEST) -> Iterator[Place]:
    """Dictionaries in a folder of folders."""
    if place.path.is_file() or not depth:
        return
    try:
        folders = sorted(path for path in place.folder.iterdir() if path.is_dir() and not path.name.startswith("."))
        files = [name for name in place.weights if len(place.weights) > 1]
    except OSError as error:
        raise FileError(f"{place.folder} cannot be read ({error.strerror})") from error
    for path in [*folders, *(place.folder / name for name in files)]:
        inner = Place(path, f"{place.source}/{path.name}", place.revision)
        if own_folder(inner) is not None or layout_of(inner) is not None:
            yield inner
        elif path.is_dir():
            yield from _inside(inner, depth - 1)


def _unknown(place: Place) -> FileError:
    if place.path.is_file() and not place.weights:
        return FileError(
            f"{place.source} is no file of tensors ({', '.join(WEIGHTS)}): give a dictionary's folder or file"
        )
    if not place.weights:
        near = nearest(place.path.name, [path.name for path in place.folder.parent.iterdir()])
        hint = f". Did you mean {near}?" if near else ""
        return FileError(
            f"{place.source} holds no SAE (no cfg.json, no sae/cfg.json, no file of tensors): give the folder that "
            f"`sae.save`, a run or another library has written{hint}"
        )
    names = sorted(place.tensors(place.weights[0]))
    shown = ", ".join(names[:8]) or "none"
    known = "; ".join(f"{layout.name}: {layout.looks_like}" for layout in LAYOUTS)
    return FileError(
        f"{place.source} is of no layout that is known: {place.weights[0]} has the tensors {shown}. Known are {known}"
    )
