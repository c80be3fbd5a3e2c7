"""Make the catalogue of published dictionaries: see README.md beside this file.

python recipes/catalogue/build.py sae_lens-6.54.12-py3-none-any.whl
"""

from __future__ import annotations

import gzip
import itertools
import json
import math
import re
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

HERE = Path(__file__).parent
DATA = HERE.parents[1] / "src/monosem/interop/catalogue.json.gz"
WIDTHS = {  # that stand in no name, but in the files themselves
    "Goodfire/": 65536,
    "qresearch/": 65536,
    "andyrdt/": 131072,
    "fnlp/Llama-Scope-R1": 32768,
    "jbloom/GPT2-Small-SAEs": 24576,
}
COLUMNS = ("id", "path", "site", "layer", "width", "l0", "architecture")

MODELS = {  # as TransformerLens calls them: as the hub does
    "gpt2-small": "openai-community/gpt2",
    "gemma-2b": "google/gemma-2b",
    "gemma-2b-it": "google/gemma-2b-it",
    "gemma-2-2b": "google/gemma-2-2b",
    "gemma-2-9b": "google/gemma-2-9b",
    "gemma-2-9b-it": "google/gemma-2-9b-it",
    "gemma-2-27b": "google/gemma-2-27b",
    "mistral-7b": "mistralai/Mistral-7B-v0.1",
    "pythia-70m-deduped": "EleutherAI/pythia-70m-deduped",
    "google/gemma-3-270m-pt": "google/gemma-3-270m",
    **{f"qwen3-{size}b": f"Qwen/Qwen3-{size}B" for size in ("0.6", "1.7", "4", "8", "14")},
}
OTHER_MODELS = {"gemma-scope-9b-it-res": "google/gemma-2-9b-it"}  # where the registry names another than the files
PARTS = {"mntss-gemma-2-2b-2.5m-clt-as-per-layer"}  # of a set that more.yaml has, which SAELens takes apart
LICENCES = {"google/gemma-scope-": "cc-by-4.0"}
ARCHITECTURES = {
    "gemma_2": "jumprelu",
    "gemma_3": "jumprelu",
    "gemma_2_transcoder": "jumprelu transcoder",
    "llama_scope": "jumprelu",
    "llama_scope_r1_distill": "jumprelu",
    "qwen_scope": "topk",
    "goodfire": "relu",
    "deepseek_r1": "relu",
    "connor_rob_hook_z": "relu",
    "mwhanna_transcoder": "relu transcoder",
    "temporal": "temporal",
}
NAMED_ARCHITECTURES = ("matryoshka", "batch_top_k", "topk", "gated", "panneal", "jumprelu", "vanilla", "standard")
SITES = (  # what stands in a name, and the site that it means; the first that is found counts
    (r"transcoder|mntss/clt", "mlp_in > mlp_out"),
    (r"embedding", "embed"),
    (r"hook_resid_pre", "resid_pre"),
    (r"hook_resid_mid", "resid_mid"),
    (r"resid_post", "resid_post"),
    (r"hook_z|gemma-scope-\w+-\w+-att/|gemma-scope-2.*/attn_out", "attn_z"),
    (r"hook_attn_out|attn-out|__att-sm", "attn_out"),
    (r"hook_mlp_out|mlp_out|mlp-out|gemma-scope-\w+-\w+-mlp/|LXM|__mlp-sm", "mlp_out"),
    (r"LXA-", "attn_out"),
    (r"gemma-scope-\w+-\w+-res/|LXR|/L\d+R/|layer\d+\.sae\.pt|Goodfire|__res-sm|SAE-l\d+|temporalSAEs", "resid_post"),
)
LAYER = r"layer_?(\d+)|blocks\.(\d+)\.|[-/]L(\d+)(?:R|A|M|TC)\b|SAE-l(\d+)|_L(\d+)_|^(\d+)-"
WIDTH = r"width_(\d+[km])|[-_]w-?(\d+k)|width-2pow(\d+)|[-_](\d+k)(?:_|-|$)|resid_pre_(\d{4,})$|_(\d{4,6})(?::v\d)?$"


def main(wheel: Path) -> None:
    """Write the file, and say what is in it."""
    with zipfile.ZipFile(wheel) as archive:
        registry = yaml.load(archive.read("sae_lens/pretrained_saes.yaml"), yaml.CSafeLoader)
    version = wheel.name.split("-")[1]
    releases = [_registered(name, release) for name, release in sorted(registry.items()) if name not in PARTS]
    releases += _more(yaml.safe_load((HERE / "more.yaml").read_text()))
    for release in releases:
        release["source"] = release.pop("from", None) or f"SAELens {version}"
    catalogue = {
        "what": "published sparse autoencoders, transcoders and crosscoders",
        "taken_from": f"the registry of SAELens {version} (facts only) and recipes/catalogue/more.yaml",
        "to_add": "recipes/catalogue/README.md",
        "columns": list(COLUMNS),
        "releases": releases,
    }
    content = json.dumps(catalogue, separators=(",", ":"), ensure_ascii=False).encode()
    DATA.write_bytes(gzip.compress(content, 9, mtime=0))
    rows = [row for release in releases for row in release["rows"]]
    print(f"{len(releases)} releases, {len(rows):,} dictionaries, {DATA.stat().st_size:,} bytes")
    for number, column in enumerate(COLUMNS):
        print(f"  {column}: {sum(row[number] is not None for row in rows):,} known")


def _registered(name: str, release: dict[str, Any]) -> dict[str, Any]:
    repo, loader = release["repo_id"], release["conversion_func"]
    rows = [_row(repo, loader, sae) for sae in release["saes"]]
    model = OTHER_MODELS.get(name, MODELS.get(release["model"], release["model"]))
    licence = next((licence for start, licence in LICENCES.items() if repo.startswith(start)), None)
    return {"release": name, "model": model, "repo": repo, "licence": licence, "rows": rows}


def _row(repo: str, loader: str | None, sae: dict[str, Any]) -> list[Any]:
    path = str(sae["path"]) if isinstance(sae["path"], str) else ""
    whole = f"{repo}/{path}"
    names = [path, sae["id"]] if isinstance(sae["path"], str) else [sae["id"]]
    layer = next((number for name in names if (number := _first(LAYER, name)) is not None), None)
    site = next((site for word, site in SITES if re.search(word, f"{whole}/{sae['id']}")), None)
    architecture = ARCHITECTURES.get(loader or "")
    if architecture == "jumprelu" and ">" in (site or ""):
        architecture = "jumprelu skip_transcoder" if path.endswith("_affine") else "jumprelu transcoder"
    if architecture is None:
        found = next((word for word in NAMED_ARCHITECTURES if re.search(word, whole.lower())), None)
        renamed = {"batch_top_k": "batchtopk", "panneal": "relu", "vanilla": "relu", "standard": "relu"}
        architecture = renamed.get(found or "", found) if loader == "dictionary_learning_1" else found
        architecture = None if architecture == "standard" else architecture
        if "andyrdt" in repo:
            architecture = "batchtopk"
    l0 = sae.get("l0") or _first(r"average_l0_(\d+)", path)
    return [sae["id"], path or None, site, layer, _width(repo, whole, str(sae.get("neuronpedia"))), l0, architecture]


def _first(pattern: str, name: str) -> int | None:
    match = re.search(pattern, name)
    return int(next(group for group in match.groups() if group is not None)) if match else None


def _width(repo: str, name: str, neuronpedia: str) -> int | None:
    """Latents; labels such as 16k and 1m are powers of two, but for Qwen's 80k."""
    if times := re.search(r"LX(?:R|A|M|TC)-(\d+)x", repo):
        return 4096 * int(times[1])
    for start, width in WIDTHS.items():
        if repo.startswith(start):
            return width
    match = re.search(WIDTH, name, re.IGNORECASE) or re.search(r"-(\d+k)(?:_|$)", neuronpedia)
    if match is None:
        return None
    label = next(group for group in match.groups() if group is not None).lower()
    if "2pow" in match[0]:
        return 2 ** int(label)
    if label.isdigit():
        return int(label)
    thousands = int(label[:-1]) * (1000 if label[-1] == "m" else 1)
    if "SAE-Res-Qwen" in repo:
        return 1024 * thousands
    return 2 ** round(math.log2(thousands * 1000))


# What the registry lacks --------------------------------------------------------------------------------------------


def _more(entries: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Releases of more.yaml, with what is between braces filled in."""
    found: dict[str, dict[str, Any]] = {}
    for entry in entries:
        for filled in _filled(entry):
            words: dict[str, Any] = {key: filled.get(key) for key in ("release", "model", "repo", "licence", "from")}
            words["model"] = MODELS.get(words["model"], words["model"])
            release = found.setdefault(filled["release"], {**words, "rows": []})
            path = filled.get("path")
            row = {"id": path or filled["release"], **{name: filled.get(name) for name in COLUMNS[1:]}}
            row["width"] = row["width"] or _width(filled["repo"], filled["repo"], "")
            release["rows"].append([row[name] for name in COLUMNS])
    return list(found.values())


def _filled(entry: dict[str, Any]) -> Iterator[dict[str, Any]]:
    each = entry.get("each", {})
    for chosen in itertools.product(*(_choices(name, values) for name, values in each.items())):
        labels = {key: label for choice in chosen for key, label, _ in choice}
        facts = {key: fact for choice in chosen for key, _, fact in choice}
        if "layers" in labels:
            facts["layer"] = [int(layer) for layer in str(labels["layers"]).split("_")]
        known = {key: value for key, value in {**entry, **facts}.items() if key != "each"}
        yield {key: value.format(**labels) if isinstance(value, str) else value for key, value in known.items()}


def _choices(name: str, values: Any) -> list[list[tuple[str, Any, Any]]]:
    """Of each choice: keys, what is filled in for them, and what it means."""
    if isinstance(values, dict):
        return [[(name, label, fact)] for label, fact in values.items()]
    if isinstance(values, str):
        first, last = map(int, values.split("-"))
        return [[(name, number, number)] for number in range(first, last + 1)]
    keys = name.split("_")
    parts = [str(value).split("/") if len(keys) > 1 else [value] for value in values]
    facts = [[int(part) if str(part).isdigit() else part for part in choice] for choice in parts]
    return [list(zip(keys, choice, fact, strict=True)) for choice, fact in zip(parts, facts, strict=True)]


if __name__ == "__main__":
    main(Path(sys.argv[1]))
