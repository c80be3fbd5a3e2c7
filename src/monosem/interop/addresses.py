"""circuit-tracer's sets that hold no tensors: a config.yaml lists where the transcoder of each layer stands."""

from __future__ import annotations

from pathlib import Path, PurePosixPath
from typing import Any

from monosem.errors import ConfigError, FileError
from monosem.interop.circuit_tracer import metadata_of
from monosem.interop.downloads import HUB, LISTED_LAYER, LISTING, HubName, downloaded, hub_name
from monosem.interop.layout import refusal
from monosem.interop.place import Place
from monosem.sae import SAE

SET = "transcoders"
ACROSS = "cross_layer_transcoder"


def listed_layer(path: Path) -> bool:
    """Whether a path that does not exist may be that of one layer in a list that does."""
    return LISTED_LAYER.fullmatch(path.name) is not None and lists(Place(path.parent, str(path.parent)))


def lists(place: Place) -> bool:
    """Whether there are addresses, and no tensors, in a folder."""
    return place.path.is_dir() and not place.weights and SET in place.yaml(LISTING)


def followed(place: Place) -> tuple[Place, dict[str, Any], int | None] | None:
    """Where an address leads, what the list says of all, and the layer; None of a place that is no list.

    `SET/layer_3` is the fourth of a list, whose addresses are `hf://owner/name/path`, with `?revision=` or `@` and a
    revision at their ends, or paths beside it. Of a set across layers all stand in one folder, which is read whole.

    Raises:
        ConfigError: it lists several, and none is named.
        FileError: it lists no addresses, or not that one.
    """
    one = None if place.path.exists() else LISTED_LAYER.fullmatch(place.path.name)
    home = place if one is None else Place(place.path.parent, place.source.rpartition("/")[0], place.revision)
    if not lists(home):
        return None
    config = home.yaml(LISTING)
    addresses = config[SET]
    if not isinstance(addresses, list) or not addresses or not all(isinstance(address, str) for address in addresses):
        raise FileError(f"{home.source}: {SET} in {LISTING} should be a list of addresses: download it again")
    if config.get("model_kind") == ACROSS:
        folders = {_folder(_parsed(home, address)) for address in addresses}
        if one is not None:
            raise refusal(place, "it is one layer of a set across layers", f"name the set, {home.source}")
        if len(folders) > 1:
            raise refusal(place, "its layers stand in several folders", "use circuit-tracer")
        return _at(home, *folders), config, None
    if one is None and len(addresses) > 1:
        raise ConfigError(
            f"{home.source} is a set of {len(addresses)} transcoders, one a layer: name the one to read, as "
            f"{home.source}/layer_0 (which is {addresses[0]})"
        )
    layer = int(one[1]) if one is not None else 0
    if layer >= len(addresses):
        raise FileError(f"{home.source} lists layers 0 to {len(addresses) - 1}, not {layer}: name one of these")
    return _at(home, _parsed(home, addresses[layer])), config, layer


def _parsed(home: Place, address: str) -> HubName | PurePosixPath:
    """A name on the hub, or a path beside the list."""
    if address.startswith(HUB):
        name = hub_name(address)
        if name is None or not name.path:
            raise FileError(f"{home.source} lists {address!r}, which is no address on the hub: mend its {LISTING}")
        return name
    inside = PurePosixPath(address)
    if inside.is_absolute() or ".." in inside.parts or not (home.folder / inside).exists():
        raise FileError(
            f"{home.source} lists {address!r}, which is neither {HUB}owner/name/path nor a file beside its {LISTING}: "
            "mend it"
        )
    return inside


def _folder(address: HubName | PurePosixPath) -> HubName | PurePosixPath:
    if isinstance(address, HubName):
        return address._replace(path=address.path.rpartition("/")[0])
    return address.parent


def _at(home: Place, address: HubName | PurePosixPath) -> Place:
    if isinstance(address, HubName):
        return downloaded(address)
    return Place(home.folder / address, f"{home.source}/{address}", home.revision)


def described(sae: SAE, config: dict[str, Any], layer: int | None, place: Place) -> SAE:
    """It, with what the list says where its own files do not.

    Raises:
        ConfigError: the list says that it is a transcoder, and its files do not.
    """
    said = metadata_of(config, layer)
    if sae.autoencodes and said.target_hook not in (None, said.hook):
        raise refusal(place, "it is listed as a transcoder, and its files are an autoencoder's", "name the files")
    for name in ("model", "hook", "target_hook", "original_hook"):
        if getattr(sae.metadata, name) is None and sae.metadata.hooks is None:
            setattr(sae.metadata, name, getattr(said, name))
    if sae.metadata.model is None:
        sae.metadata.model = said.model
    return sae
