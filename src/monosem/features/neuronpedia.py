"""Features for Neuronpedia: batches for its upload API, sent or only written, and files as it exports them."""

from __future__ import annotations

import gzip
import http.client
import json
import re
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from monosem.errors import ConfigError, DataError, FileError
from monosem.features.feature import Example, Feature, TokenWeight
from monosem.features.store import FeatureStore
from monosem.files import as_json, read_json, replacing, write_json
from monosem.work import each

BATCH = 128
"""Features that one call takes at most."""
LOGITS, TOKENS, LONGEST = 20, 1024, 512
"""Of a feature, tokens at each end of its logits; of an example, tokens; of an explanation, characters: at most."""
ADDRESS = "https://www.neuronpedia.org"
ROUTE = "/api/feature/upload-batch"
SENT = "uploaded.json"
TRIES, WAIT = 4, 2.0
NAME = re.compile(r"[a-z0-9][a-z0-9._-]*")


def write_batches(
    store: FeatureStore,
    folder: str | Path,
    *,
    model_id: str,
    source: str,
    latents: Sequence[int] | None = None,
    examples: int = 20,
    progress: bool = True,
) -> list[Path]:
    """Write what would be uploaded: batch-0000.json and on, of at most 128 features each, as the API takes them.

    Latents that never fired are left out: a feature has at least one example there.

    Args:
        store: the features.
        folder: where to; batches that are there already are not written again.
        model_id: the model's id on Neuronpedia, such as "gpt2-small".
        source: the source's id there, layer first, such as "6-my-saes".
        latents: which; all if not given.
        examples: of each, the strongest.
        progress: show a line.

    Returns:
        The files.

    Raises:
        ConfigError: a name is none that Neuronpedia takes, or the store is not of text.
        FileError: the folder has batches of another source.
    """
    folder, chosen = Path(folder), list(range(store.n_latents)) if latents is None else list(latents)
    _check(store, model_id, source, examples)
    plan = {"model_id": model_id, "source": source, "latents": chosen, "examples": examples, "store": store.n_tokens}
    _same_plan(folder, plan)
    firsts, written = range(0, len(chosen), BATCH), list[Path]()
    for first in each("writing batches", firsts, BATCH, "features") if progress else firsts:
        path = folder / f"batch-{first // BATCH:04d}.json"
        written.append(path)
        if not path.is_file():
            features = [feature for feature in store.features(chosen[first : first + BATCH]) if feature.top]
            content = [_uploaded(feature, store, examples) for feature in features]
            write_json(path, {"modelId": model_id, "source": source, "features": content})
    return written


def _check(store: FeatureStore, model_id: str, source: str, examples: int) -> None:
    for what, name in (("model_id", model_id), ("source", source)):
        if not NAME.fullmatch(name):
            raise ConfigError(f"{what} must be of lower-case letters, digits, dots and dashes, got {name!r}")
    if not re.match(r"\d+-", source):
        raise ConfigError(f"a source of Neuronpedia begins with its layer, as '6-my-saes', got {source!r}")
    if examples < 1:
        raise ConfigError(f"a feature has at least 1 example there, got {examples}")
    if store.pictures is not None or store.rows is not None:
        raise ConfigError("Neuronpedia shows text: this store is of images or of ready vectors")


def _same_plan(folder: Path, plan: dict[str, Any]) -> None:
    path = folder / "batches.json"
    if path.is_file():
        if read_json(path, dict[str, Any], remedy="delete the folder") != json.loads(as_json(plan)):
            raise FileError(f"{folder} has batches of another source or choice: give a new folder, or delete it")
        return
    write_json(path, plan)


def _uploaded(feature: Feature, store: FeatureStore, examples: int) -> dict[str, Any]:
    explained = store.explanations().of(feature.latent)
    return {
        "index": feature.latent,
        "density": feature.rate,
        "topLogits": _logits(feature.promoted),
        "bottomLogits": _logits(feature.suppressed),
        "explanations": [{"text": one.text[:LONGEST]} for one in explained if one.text.strip()],
        "activations": [_activation(example) for example in feature.top[:examples]],
    }


def _logits(weights: Sequence[TokenWeight]) -> list[dict[str, Any]]:
    return [{"token": one.text, "value": one.weight} for one in weights[:LOGITS] if one.text]


def _activation(example: Example) -> dict[str, Any]:
    tokens, values = joined(example)
    return {"tokens": tokens[:TOKENS], "values": values[:TOKENS]}


def joined(example: Example) -> tuple[list[str], list[float]]:
    """Its tokens and activations; tokens without a text of their own, which Neuronpedia refuses, with the next one."""
    tokens, values, waiting = list[str](), list[float](), 0.0
    for text, value in zip(example.texts, example.activations.tolist(), strict=True):
        waiting = max(waiting, float(value))
        if text:
            tokens.append(text)
            values.append(round(waiting, 5))
            waiting = 0.0
    if waiting and values:
        values[-1] = max(values[-1], round(waiting, 5))
    return tokens or [" "], values or [0.0]


# Sending --------------------------------------------------------------------------------------------------------------


def upload(folder: str | Path, key: str, *, address: str = ADDRESS, progress: bool = True) -> int:
    """Send the batches that `write_batches` has written, one call each; those that were sent before are not again.

    The model, the source set and the source must be there already, and the source set yours.

    Args:
        folder: the folder of the batches.
        key: your API key there.
        address: where; another for a server of your own.
        progress: show a line.

    Returns:
        How many were sent.

    Raises:
        DataError: the server refused one, with its words; what was sent before is remembered.
        FileError: there are no batches, or the server cannot be reached.
    """
    folder = Path(folder)
    paths = sorted(folder.glob("batch-*.json"))
    if not paths:
        raise FileError(
            f"{folder} has no batches: write them first (write_batches, or monosem export --to neuronpedia)"
        )
    record = folder / SENT
    known: dict[str, list[str]] = read_json(record, dict[str, list[str]]) if record.is_file() else {}
    done = known.setdefault(address, [])
    left = [path for path in paths if path.name not in done]
    for path in each("uploading batches", left, 1, "batches") if progress else left:
        content = read_json(path, dict[str, Any])
        if content["features"]:
            _post(address, key, content, path.name)
        done.append(path.name)
        write_json(record, known)
    return len(left)


def _post(address: str, key: str, content: dict[str, Any], name: str) -> None:
    """One call; again, a little later, where the server is busy or the connection breaks."""
    where = urlsplit(address)
    kinds = {"https": http.client.HTTPSConnection, "http": http.client.HTTPConnection}
    if where.scheme not in kinds or not where.hostname:
        raise ConfigError(f"{address!r} is no address: give https://HOST")
    headers = {"Content-Type": "application/json", "x-api-key": key}
    said = ""
    for attempt in range(TRIES):
        if attempt:
            time.sleep(WAIT * 2 ** (attempt - 1))
        connection = kinds[where.scheme](where.hostname, where.port, timeout=300)
        try:
            connection.request("POST", where.path.rstrip("/") + ROUTE, as_json(content), headers)
            answer = connection.getresponse()
            said = f"{answer.status} {answer.read(2000).decode('utf-8', 'replace')}"
            if answer.status < 300:
                return
            if answer.status != 429 and answer.status < 500:
                raise DataError(f"{address} refused {name}: {' '.join(said.split())[:400]}")
        except (OSError, http.client.HTTPException) as error:
            said = str(error) or type(error).__name__
        finally:
            connection.close()
    raise FileError(f"{name} cannot be sent to {address} ({' '.join(said.split())[:400]}): run the same again later")


# Files, as Neuronpedia keeps and imports them ------------------------------------------------------------------------


def write_export(
    store: FeatureStore,
    folder: str | Path,
    *,
    model_id: str,
    source: str,
    latents: Sequence[int] | None = None,
    examples: int = 20,
    progress: bool = True,
) -> Path:
    """Write features, activations and explanations as files of JSON lines, as Neuronpedia exports and imports them.

    FOLDER/MODEL/SOURCE/features/batch-0.jsonl.gz and on, beside activations/ and explanations/.

    Args:
        store: the features.
        folder: where to.
        model_id: as in `write_batches`.
        source: as in `write_batches`.
        latents: which; all if not given.
        examples: of each, the strongest.
        progress: show a line.

    Returns:
        FOLDER/MODEL/SOURCE.

    Raises:
        ConfigError: as `write_batches`.
        FileError: the files cannot be written.
    """
    chosen = list(range(store.n_latents)) if latents is None else list(latents)
    _check(store, model_id, source, examples)
    home = Path(folder) / model_id / source
    common = {"modelId": model_id, "layer": source}
    firsts = range(0, len(chosen), BATCH)
    for first in each("writing files", firsts, BATCH, "features") if progress else firsts:
        features = store.features(chosen[first : first + BATCH])
        number = first // BATCH
        _lines(home / f"features/batch-{number}.jsonl.gz", (_neuron(f, common, source) for f in features))
        _lines(home / f"activations/batch-{number}.jsonl.gz", _activations(features, common, examples))
        explained = (one for f in features for one in store.explanations().of(f.latent))
        rows = ({**common, "index": str(one.latents[0]), "description": one.text} for one in explained)
        _lines(home / f"explanations/batch-{number}.jsonl.gz", rows)
    return home


def _neuron(feature: Feature, common: dict[str, str], source: str) -> dict[str, Any]:
    edges, counts = feature.histogram.edges, feature.histogram.counts
    top, bottom = feature.promoted[:LOGITS], feature.suppressed[:LOGITS]
    return {
        **common,
        "index": str(feature.latent),
        "sourceSetName": source.partition("-")[2],
        "maxActApprox": feature.max or 0.0,
        "frac_nonzero": feature.rate,
        "topkCosSimIndices": [one.latent for one in feature.neighbours],
        "topkCosSimValues": [one.cosine for one in feature.neighbours],
        "pos_str": [one.text for one in top],
        "pos_values": [one.weight for one in top],
        "neg_str": [one.text for one in bottom],
        "neg_values": [one.weight for one in bottom],
        "freq_hist_data_bar_values": ((edges[:-1] + edges[1:]) / 2).tolist(),
        "freq_hist_data_bar_heights": counts.tolist(),
    }


def _activations(features: Sequence[Feature], common: dict[str, str], examples: int) -> Iterator[dict[str, Any]]:
    for feature in features:
        for number, example in enumerate(feature.top[:examples]):
            tokens, values = joined(example)
            most, least = max(values), min(values)
            yield {
                "id": f"{common['layer']}-{feature.latent}-{number}",
                **common,
                "index": str(feature.latent),
                "tokens": tokens,
                "values": values,
                "maxValue": most,
                "maxValueTokenIndex": values.index(most),
                "minValue": least,
            }


def _lines(path: Path, rows: Iterator[dict[str, Any]]) -> None:
    with replacing(path) as new, gzip.GzipFile(new, "wb", mtime=0) as file:
        for row in rows:
            file.write(as_json(row).encode() + b"\n")
