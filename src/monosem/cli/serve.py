"""monosem serve"""

from __future__ import annotations

from typing import Annotated

import typer


def serve(
    names: Annotated[
        list[str], typer.Argument(metavar="RUN...", help="Run folders; or published dictionaries, by name or path.")
    ],
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 takes any that is free.")] = 8321,
    host: Annotated[str, typer.Option(help="Address to listen on; 0.0.0.0 lets other machines in.")] = "127.0.0.1",
    allow_host: Annotated[
        list[str] | None, typer.Option(help="A name under which others call this machine; may be repeated.")
    ] = None,
    model: Annotated[str | None, typer.Option(help="Of a dictionary whose files do not say it: its model.")] = None,
    hook: Annotated[str | None, typer.Option(help="Likewise: the hook point that it reads.")] = None,
) -> None:
    r"""Serve the models of runs over the OpenAI protocol, with their features: any client can use a steered model.

    /v1/models, /v1/completions, and /v1/chat/completions for models with a chat template; streams, stop, seed, usage,
    temperature, top_p, max_tokens, n, logprobs. Two more fields: "interventions", a list of edits as data, such as
    {"edit": "Add", "latents": [12], "amount": 3.0}, and "features", {"top": 5} or {"latents": [12]}, which shows what
    fires on every token. A field that is not known is refused. docs/serving.md shows each.

        monosem serve runs/demo
        curl http://127.0.0.1:8321/v1/completions -H 'Content-Type: application/json' \
             -d '{"model": "demo", "prompt": "The history of", "max_tokens": 20}'

    The models are loaded before it answers. Texts asked for at the same time take turns, a token each; a client that
    hangs up ends its own. Only this machine can reach the default address; there is no password and no key is asked
    for, so that with --host 0.0.0.0 whoever reaches the machine can run the model. What a client sends is data:
    nothing of it is executed. It is the same server as `monosem explore`: runs with features are on its page too.
    """
    from pathlib import Path

    from monosem.cli.console import console
    from monosem.explorer import Alone, is_loopback
    from monosem.explorer import serve as run_server
    from monosem.runs import open_run

    stores: list[Path] = []
    alone: list[Alone] = []
    for name in names:
        path = open_run(name, model, hook).path
        if (path / "features" / "index.json").is_file():
            stores.append(path)
        else:
            alone.append(Alone(path.name, path))

    def ready(addresses: list[str]) -> None:
        console().print(f"Serving at {addresses[0]}/v1 (Ctrl-C stops)", soft_wrap=True, highlight=False)
        if not is_loopback(host):
            known = " or ".join(addresses[1:] or addresses)
            console().print(
                f"Open to the network, without a password: whoever reaches {known} can run the model. "
                "Other names of this machine: --allow-host NAME.",
                soft_wrap=True,
                highlight=False,
            )

    try:
        run_server(stores, host, port, ready, allow_host or [], alone, loaded=True)
    except KeyboardInterrupt:  # before it served
        return
