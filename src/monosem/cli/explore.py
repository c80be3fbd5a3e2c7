"""monosem explore"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer


def explore(
    names: Annotated[
        list[str],
        typer.Argument(
            metavar="PATHS...", help="Run folders or feature stores; or published dictionaries, by name or path."
        ),
    ],
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 takes any that is free.")] = 8321,
    host: Annotated[str, typer.Option(help="Address to listen on; 0.0.0.0 lets other machines in.")] = "127.0.0.1",
    allow_host: Annotated[
        list[str] | None, typer.Option(help="A name under which others call this machine; may be repeated.")
    ] = None,
    open_page: Annotated[bool, typer.Option("--open/--no-open", help="Open the page in a browser.")] = True,
    export: Annotated[
        Path | None,
        typer.Option(help="Write a static site into this folder, and stop. It opens by double click or from a server."),
    ] = None,
    feature: Annotated[int | None, typer.Option(help="A feature, to be written with --html.")] = None,
    html: Annotated[Path | None, typer.Option(help="Write --feature into this one file, and stop.")] = None,
    tokens: Annotated[
        int, typer.Option(min=1, help="Of a published dictionary without features yet: tokens to harvest.")
    ] = 200_000,
    model: Annotated[str | None, typer.Option(help="Of a dictionary whose files do not say it: its model.")] = None,
    hook: Annotated[str | None, typer.Option(help="Likewise: the hook point that it reads.")] = None,
    reward: Annotated[
        str | None,
        typer.Option(help="A reward model beside: its rewards of two answers, by the same dictionary's features."),
    ] = None,
) -> None:
    """Explore features on a page: what they fire on, search, prompts, comparison, notes.

    The page is served to this machine alone until Ctrl-C; everything on it is also a JSON API (/api/openapi.json).
    Notes are kept beside the store, in STORE.notes.sqlite. A published dictionary (monosem saes) is fetched, and its
    features are harvested first, into a run folder in runs/.
    """
    from monosem.cli.console import console
    from monosem.errors import ConfigError
    from monosem.explorer import export_feature, export_site, open_dictionaries
    from monosem.files import require_place
    from monosem.runs import feature_folders, open_run, run_harvest
    from monosem.work import doing, job

    if (feature is None) != (html is None):
        raise ConfigError("one feature in one file takes both: --feature 123 --html feature.html")
    require_place(html)
    require_place(export, "folder")
    paths: list[Path] = []
    for name in names:
        if any((Path(name) / known).is_file() for known in ("run.yaml", "index.json", "features/index.json")):
            paths += feature_folders(Path(name))
            continue
        run = open_run(name, model, hook)
        if not (run.path / "features" / "index.json").is_file():
            run_harvest(run, tokens=tokens)
        paths.append(run.path)
    opened = open_dictionaries(paths)
    for missing in opened.missing:
        console().print(f"Left out: {missing['words']}", soft_wrap=True, highlight=False)
    if html is not None and feature is not None:
        with job(), doing("writing the feature"):
            written = export_feature(opened, feature, html)
        console().print(f"Written: {written}")
    elif export is not None:
        with job():
            written = export_site(opened, export)
        console().print(f"Written: {written}. Open {written / 'index.html'}, or serve the folder with any file server.")
    else:
        show(list(paths), host, port, open_page, allow_host or [], reward=reward)


def show(
    paths: list[Path],
    host: str = "127.0.0.1",
    port: int = 8321,
    open_page: bool = True,
    allowed: Sequence[str] = (),
    at: str = "",
    reward: str | None = None,
) -> None:
    """Serve stores until Ctrl-C, say where, and open the page at an address of its own."""
    from monosem.cli.console import console
    from monosem.explorer import is_loopback, open_browser, serve

    def ready(addresses: list[str]) -> None:
        console().print(f"Exploring at {addresses[0]}{at} (Ctrl-C stops)", soft_wrap=True)
        if not is_loopback(host):
            known = " or ".join(addresses[1:] or addresses)
            console().print(
                f"Open to the network, without a password: whoever reaches {known} can "
                "read these dictionaries and the texts they were harvested on, run the model, and change notes. "
                "Other names of this machine: --allow-host NAME.",
                soft_wrap=True,
            )
        if open_page:
            open_browser(addresses[0] + at)

    try:
        serve(paths, host, port, ready, allowed, reward=reward)
    except KeyboardInterrupt:  # before it served
        return
