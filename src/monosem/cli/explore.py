"""monosem explore"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def explore(
    paths: Annotated[list[Path], typer.Argument(help="Run folders or feature stores.")],
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 takes any that is free.")] = 8321,
    host: Annotated[str, typer.Option(help="Address to listen on; others can reach this machine's own.")] = "127.0.0.1",
    open_page: Annotated[bool, typer.Option("--open/--no-open", help="Open the page in a browser.")] = True,
    export: Annotated[
        Path | None, typer.Option(help="Write a static site into this folder, for any file server, and stop.")
    ] = None,
    feature: Annotated[int | None, typer.Option(help="A feature, to be written with --html.")] = None,
    html: Annotated[Path | None, typer.Option(help="Write --feature into this one file, and stop.")] = None,
) -> None:
    """Explore features on a page: what they fire on, search, prompts, comparison, notes.

    The page is served to this machine alone until Ctrl-C; everything on it is also a JSON API (/api/openapi.json).
    Notes are kept beside the store, in STORE.notes.sqlite.
    """
    from monosem.cli.console import console
    from monosem.errors import ConfigError
    from monosem.explorer import export_feature, export_site, open_dictionaries
    from monosem.runs import feature_folders
    from monosem.work import doing, job

    paths = [folder for path in paths for folder in feature_folders(path)]
    if (feature is None) != (html is None):
        raise ConfigError("one feature in one file takes both: --feature 123 --html feature.html")
    opened = open_dictionaries(paths)
    for missing in opened.missing:
        console().print(f"Left out: {missing['words']}", soft_wrap=True, highlight=False)
    if html is not None and feature is not None:
        with job(), doing("writing the feature"):
            written = export_feature(opened, feature, html)
        console().print(f"Written: {written}")
    elif export is not None:
        with job(), doing("writing the site"):
            written = export_site(opened, export)
        console().print(f"Written: {written}. Serve it with any file server.")
    else:
        show(list(paths), host, port, open_page)


def show(paths: list[Path], host: str = "127.0.0.1", port: int = 8321, open_page: bool = True) -> None:
    """Serve stores until Ctrl-C, and say where."""
    from monosem.cli.console import console
    from monosem.explorer import open_browser, serve

    def ready(address: str) -> None:
        console().print(f"Exploring at {address} (Ctrl-C stops)", soft_wrap=True)
        if open_page:
            open_browser(address)

    try:
        serve(paths, host, port, ready)
    except KeyboardInterrupt:  # uvicorn has shut down in order, and passes it on
        return
