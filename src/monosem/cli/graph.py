"""monosem graph"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def graph(
    dictionaries: Annotated[
        list[str],
        typer.Argument(metavar="RUN...", help="Dictionaries: run folders, files, published names; or `neurons`."),
    ],
    prompt: Annotated[str, typer.Option(help="The text to explain.")],
    target: Annotated[
        list[str] | None,
        typer.Option(
            metavar="TOKEN", help="A token to explain, given twice for the difference; the likeliest if left out."
        ),
    ] = None,
    position: Annotated[int, typer.Option(help="The token at which it is said; negative: from the end.")] = -1,
    model: Annotated[str | None, typer.Option(help="The model, if the dictionaries do not know it.")] = None,
    features: Annotated[int, typer.Option(min=0, help="So many features at most.")] = 2_000,
    nodes: Annotated[float, typer.Option(min=0.01, max=1, help="Prune to nodes with this share of influence.")] = 1.0,
    edges: Annotated[float, typer.Option(min=0.01, max=1, help="Prune to edges with this share of influence.")] = 1.0,
    verify: Annotated[
        int, typer.Option(min=0, help="Test it by so many interventions on nodes, edges and groups each.")
    ] = 0,
    save: Annotated[Path | None, typer.Option(help="Write the graph into this folder.")] = None,
    html: Annotated[Path | None, typer.Option(help="Write it as one HTML file.")] = None,
    json: Annotated[Path | None, typer.Option(help="Write it as Neuronpedia and circuit-tracer read it.")] = None,
    heads: Annotated[
        int, typer.Option(min=0, help="Keep through which attention heads so many of the strongest edges go.")
    ] = 0,
    top: Annotated[int, typer.Option(min=1, help="Lines for each target.")] = 8,
) -> None:
    """Trace a circuit: which features, errors and tokens make what a model says of a prompt.

    Dictionaries may be of any kinds and places: transcoders in the place of MLPs, SAEs in that of the stream, of
    attention or of its heads. An MLP without one is an error alone. What is printed:

        ' dog' (59.7%) = +15.742        the target: its logit less the mean logit
          +3.912  error mlp_out.3 ...   what each source adds to it, the largest first; all of them add up to it

    then the features that most of it passes, each with what made it, and the audit: how exactly all rows add up, and
    what share of them features explain. `--verify 20` takes 60 things away in the model itself and compares.

        monosem graph runs/demo --prompt "Once upon a time there was a little"
        monosem graph runs/t0 runs/t1 runs/t2 --prompt "..." --target " Mary" --target " John" --save graphs/mary

    Features are called as the runs' feature stores call them. A graph saved into RUN/graphs/NAME is on the page that
    `monosem explore RUN` serves.

    In Python: `ms.trace(model, [transcoder, sae], prompt)`; saved graphs are read by `ms.Graph.load(folder)`.
    """
    from monosem.circuits import trace
    from monosem.circuits.graph.show import as_text
    from monosem.cli.console import console
    from monosem.errors import ConfigError
    from monosem.files import require_place
    from monosem.interop.load import load_sae
    from monosem.models import load_model
    from monosem.runs.graph_labels import label_graph
    from monosem.work import doing, job

    if target is not None and len(target) > 2:
        raise ConfigError(f"--target is given once, or twice for a difference, not {len(target)} times")
    if not prompt:
        raise ConfigError("--prompt is empty: there is nothing to trace")
    require_place(save, "folder")
    for place in (html, json):
        require_place(place)
    loaded = ["neurons" if name == "neurons" else load_sae(name) for name in dictionaries]
    known = list(dict.fromkeys(sae.metadata.model for sae in loaded if not isinstance(sae, str)))
    name = model or next((each for each in known if each), None)
    if name is None:
        raise ConfigError("the dictionaries do not say of which model they are: --model bundled")
    with job(), doing(f"loading {name}"):
        subject = load_model(name)
    asked = None if target is None else target[0] if len(target) == 1 else (target[0], target[1])
    given = "neurons" if loaded == ["neurons"] else [sae for sae in loaded if not isinstance(sae, str)]
    if len(loaded) > 1 and "neurons" in loaded:
        raise ConfigError("neurons of all layers stand alone: in Python, ms.trace takes {'mlp_mid.3': 'neurons', ...}")
    made = trace(subject, given, prompt, asked, position=position, max_features=features)
    label_graph(made, dictionaries)
    if nodes < 1 or edges < 1:
        made = made.pruned(nodes, edges)
    if heads:
        with job():
            made.keep_heads(heads)
    out = console()
    out.print(as_text(made, top), markup=False, soft_wrap=True)
    out.print()
    out.print(str(made.audit()), markup=False, soft_wrap=True)
    if verify:
        with job():
            found = made.verify(verify)
        out.print()
        out.print(str(found), markup=False, soft_wrap=True)
    if save is not None:
        made.save(save)
        out.print(f"written: {save}", markup=False, soft_wrap=True)
    if html is not None:
        made.html(html)
        out.print(f"written: {html}", markup=False, soft_wrap=True)
    if json is not None:
        made.to_json(json)
        out.print(f"written: {json}", markup=False, soft_wrap=True)
