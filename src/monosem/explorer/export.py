"""Sharing without a server: a static site, or one feature in one file."""

from __future__ import annotations

import shutil
from base64 import b64encode
from concurrent.futures import ThreadPoolExecutor
from html import escape
from pathlib import Path
from typing import Any

from monosem.analysis import KeptImages
from monosem.errors import ConfigError
from monosem.explorer.answers import to_json
from monosem.explorer.chunks import write_chunk
from monosem.explorer.dictionary import Dictionary
from monosem.explorer.export_features import second_process, write_features
from monosem.explorer.metas import meta_latent, meta_latents
from monosem.explorer.page import Page
from monosem.explorer.search import firings_json
from monosem.explorer.shapes import Abilities
from monosem.explorer.site import Site
from monosem.explorer.table import rows_of
from monosem.features.card import feature_card
from monosem.features.files import PART
from monosem.features.store import ROOM
from monosem.files import write_bytes, write_text, writing
from monosem.work import doing, each

ROWS_A_FILE, WORDS_A_FILE, METAS_A_FILE = 1024, 128, 64
MARK = "monosem-export.json"
STATIC: Abilities = {
    "prompt": "a static site has no model: run `monosem explore` for prompts",
    "map": None,
    "notes": "a static site cannot keep notes: run `monosem explore`",
    "context": "a static site has only the passages that were harvested",
    "rewards": "a static site has no model",
}


def export_site(dictionaries: dict[str, Dictionary], folder: str | Path, page: Page | None = None) -> Path:
    """Write a static site; docs/explorer_api.md names its files.

    Args:
        dictionaries: what to show.
        folder: new, empty, or an earlier export, whose place it takes.
        page: the built page; the package's own if not given.

    Raises:
        ConfigError: the folder holds something else.
        FileError: the page is not built.
    """
    folder, page = Path(folder), page or Page()
    index = page.static_index()
    if folder.exists() and (not folder.is_dir() or (any(folder.iterdir()) and not (folder / MARK).is_file())):
        raise ConfigError(f"{folder} holds something else: choose a new or empty folder for the export")
    site = Site(dictionaries)
    try:
        write_bytes(folder / MARK, to_json({"format": "monosem export", "dictionaries": list(dictionaries)}))
        with writing(folder):
            for old in ("data", "assets"):
                shutil.rmtree(folder / old, ignore_errors=not (folder / old).exists())
        for name, path in page.paths.items():
            write_bytes(folder / name, index.encode() if name == "index.html" else path.read_bytes())
        overview = site.overview()
        summaries = [
            {**summary, "path": summary["name"], "can": _can(summary["can"])} for summary in overview["dictionaries"]
        ]
        write_chunk(folder, "dictionaries", {**overview, "static": True, "dictionaries": summaries})
        with second_process(dictionaries, folder), ThreadPoolExecutor(1) as aside:
            for dictionary in dictionaries.values():
                laid_out = aside.submit(site.geometry.map, dictionary) if dictionary.can["map"] is None else None
                _write_dictionary(site, dictionary, folder)
                _write_words(dictionary, folder)
                write_features(site, dictionary, folder)
                if laid_out is not None:
                    with doing(f"laying out the map of {dictionary.name}"):
                        write_chunk(folder, f"d/{dictionary.name}/map", laid_out.result())
        _write_comparisons(site, folder)
    finally:
        site.close()
    return folder


def _can(can: Abilities) -> Abilities:
    return {**STATIC, "map": can["map"]}


def _write_dictionary(site: Site, dictionary: Dictionary, folder: Path) -> None:
    home = f"d/{dictionary.name}"
    about = site.dictionary(dictionary.name)
    write_chunk(folder, f"{home}/index", {**about, "path": dictionary.name, "can": _can(about["can"])})
    write_chunk(folder, f"{home}/notes", site.notes(dictionary.name))
    pictures = dictionary.store.pictures
    for number, png in pictures.every() if pictures is not None else ():
        write_bytes(folder / f"data/{home}/image/{number}.png", png)
    kept = dictionary.optimised
    for latent, png in () if kept is None else kept.every():
        write_bytes(folder / f"data/{home}/made/{latent}.png", png)
    if dictionary.meta is not None:
        write_chunk(folder, f"{home}/meta/index", meta_latents(dictionary))
        for first in range(0, dictionary.meta.n_latents, METAS_A_FILE):
            numbers = range(first, min(dictionary.meta.n_latents, first + METAS_A_FILE))
            metas = [meta_latent(dictionary, number) for number in numbers]
            write_chunk(folder, f"{home}/meta/{first // METAS_A_FILE}", metas)
    for first in range(0, dictionary.n_latents, ROWS_A_FILE):
        latents = range(first, min(dictionary.n_latents, first + ROWS_A_FILE))
        rows = {"first": first, "rows": rows_of(dictionary, latents)}
        write_chunk(folder, f"{home}/table/{first // ROWS_A_FILE}", rows)
    for part in range(0 if dictionary.store.rows is not None else -(-dictionary.n_latents // PART)):
        write_chunk(folder, f"{home}/passages/{part}", _passages(dictionary, part))


def _passages(dictionary: Dictionary, part: int) -> dict[str, Any]:
    found = dictionary.store.passages(part)
    passages = [
        {"text": found.text_names[facts["text"]], "context": facts["context"], "texts": found.texts(found.first + i)}
        for i, facts in enumerate(found.facts)
    ]
    return {"first": found.first, "room": ROOM, "passages": passages}


def _write_words(dictionary: Dictionary, folder: Path) -> None:
    """The words that features fire on, in the order in which JavaScript sorts, and the first of each file."""
    home, words, known = f"d/{dictionary.name}/words", dictionary.store.words, list[str]()
    if words is not None:
        found = dictionary.store.tables.run("select text from words where word in (select word from word_features)")
        known = sorted(found.column("text").to_pylist(), key=lambda word: word.encode("utf-16-be", "surrogatepass"))
    firsts = range(0, len(known), WORDS_A_FILE)
    write_chunk(folder, f"{home}/index", {"words": len(known), "first": [known[first] for first in firsts]})
    if words is None:
        return
    for first in each(f"writing words of {dictionary.name}", firsts, WORDS_A_FILE, "words"):
        chunk = {word: firings_json(words, words.find(word)) for word in known[first : first + WORDS_A_FILE]}
        write_chunk(folder, f"{home}/{first // WORDS_A_FILE}", chunk)


def _write_comparisons(site: Site, folder: Path) -> None:
    names = list(site.dictionaries)
    for i, a in enumerate(names):
        for b in names[i + 1 :]:
            first, second = site[a], site[b]
            if first.can["map"] is None and second.can["map"] is None and first.width == second.width:
                with doing(f"comparing {a} and {b}"):
                    write_chunk(folder, f"compare/{a}/{b}", site.geometry.compare(first, second))


# One feature ----------------------------------------------------------------------------------------------------------

STYLE = (
    "body{font:15px/1.5 system-ui,sans-serif;max-width:62em;margin:2em auto;padding:0 1em;color-scheme:light dark}"
    "code{font-family:ui-monospace,monospace}footer{margin-top:2em;opacity:.6}"
)
POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"


def feature_html(dictionary: Dictionary, latent: int) -> str:
    """One feature as a page that needs nothing else: no script, no other file.

    Raises:
        IndexError: there is no such latent.
    """
    feature = dictionary.store[dictionary.check(latent)]
    note = dictionary.notes[latent]
    title = f"{dictionary.name}, feature {latent}: {note['label'] or feature.title}"
    parts = [f"<h1>{escape(title)}</h1>"]
    if note["comment"]:
        parts.append(f"<p>{escape(note['comment'])}</p>")
    parts.append(feature_card(feature))
    if dictionary.optimised is not None and latent in dictionary.optimised.facts:
        parts.append(_made_image(dictionary.optimised, latent))
    about = f"{dictionary.index['architecture']} SAE, {dictionary.n_latents:,} latents"
    place = f" at {dictionary.hook} of {dictionary.model_name}" if dictionary.hook and dictionary.model_name else ""
    parts.append(
        f"<footer>{escape(about + place)}; {dictionary.store.n_tokens:,} {feature.things}. Made with monosem.</footer>"
    )
    head = (
        f'<meta charset="utf-8"><meta http-equiv="Content-Security-Policy" content="{POLICY}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)}</title><style>{STYLE}</style>"
    )
    return f'<!doctype html>\n<html lang="en"><head>{head}</head>\n<body>{"".join(parts)}</body></html>\n'


def _made_image(kept: KeptImages, latent: int) -> str:
    """The image made for a feature, with how strongly it fires there and on others."""
    facts, content = kept.facts[latent], b64encode(kept.png(latent)).decode()
    best, number = facts["natural"], facts["n_natural"]
    natural = "" if best is None else f", {best:.3g} on the best of {number:,} natural ones"
    random = f"{facts['random']:.3g} on those made for {facts['n_random']} random directions"
    said = f"Made for it: {facts['activation']:.3g} on this image{natural}, {random}."
    style = "width:176px;image-rendering:pixelated"
    return f'<p><img src="data:image/png;base64,{content}" alt="made for the feature" style="{style}"><br>{said}</p>'


def export_feature(dictionaries: dict[str, Dictionary], latent: int, file: str | Path) -> Path:
    """Write one feature into one HTML file.

    Raises:
        ConfigError: several dictionaries were given, or there is no such latent.
    """
    if len(dictionaries) != 1:
        raise ConfigError("--feature N --html FILE shows a feature of one dictionary: give one path")
    (dictionary,) = dictionaries.values()
    try:
        html = feature_html(dictionary, latent)
    except IndexError as error:
        raise ConfigError(str(error)) from error
    path = Path(file)
    write_text(path, html)
    return path
