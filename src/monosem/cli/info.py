"""monosem info"""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from monosem.runs import Run


def info(
    what: Annotated[
        str,
        typer.Argument(
            help="A run folder, an SAE (a folder, a file or a published name), or a model (bundled, a folder, a GGUF "
            "file, a hub id)."
        ),
    ],
) -> None:
    """Say what a run, an SAE or a model is."""
    from monosem.cli.console import console
    from monosem.errors import FileError
    from monosem.interop.addresses import listed_layer
    from monosem.interop.catalogue import published
    from monosem.interop.load import holds_dictionary
    from monosem.interop.place import WEIGHTS
    from monosem.models.gguf import gguf_file
    from monosem.spelling import path_meant

    path, out = Path(what), console()
    local = path.parent == Path() or path.parent.is_dir()
    meant = path_meant(path) if local and what != "bundled" and not listed_layer(path) else ""
    if meant:  # before a hub is asked for a model of this name
        raise FileError(f"there is no run, SAE or model {what!r} here (of a hub, give OWNER/NAME){meant}")
    if (path / "run.yaml").is_file():
        _show(out, _run(path))
        return
    if path.exists():
        foreign = path.is_file() and path.suffix in (*WEIGHTS, ".json", ".jsonl")
        if foreign or (path.is_dir() and holds_dictionary(path)):
            _show(out, _sae(what))
            return
        if not (path / "config.json").is_file() and gguf_file(path) is None:
            raise FileError(
                f"{path} is no run (run.yaml), no SAE (cfg.json) and no model (config.json, or a GGUF file)"
            )
    elif any((listed_layer(path), published(what), what.startswith("hf://"))) or (
        what.count("/") > 1 and gguf_file(what) is None
    ):
        _show(out, _sae(what))
        return
    _show(out, _model(what))


def _run(path: Path) -> dict[str, Any]:
    from monosem.runs import Run

    run = Run(path)
    if run.config.several:
        return _several(run)
    config, history = run.config, run.history()
    facts: dict[str, Any] = {
        "run": run.path,
        "model": _joined(config.model),
        "hook": config.reads,
        "data": config.text or config.images or config.vectors,
        "state": "finished" if run.finished else f"stopped; go on with: monosem train {run.path}/run.yaml",
        "tokens": f"{int(history[-1].get('tokens', 0)) if history else 0:,} of {config.tokens:,}",
    }
    if run.finished:
        facts |= _sae(path / "sae")
    if (path / "evaluation.json").is_file():
        report = run.evaluation()
        for name in ("fvu", "l0", "loss_recovered_mean", "dead_share"):
            if name in report.metrics:
                value = report[name]
                span = f"  [{value.low:.4g}, {value.high:.4g}]" if value.low is not None else ""
                facts[f"held-out {name}"] = f"{value.value:.4g}{span}"
    if (path / "features" / "index.json").is_file():
        facts |= _explained(run)
    return facts


def _explained(run: Run) -> dict[str, Any]:
    """How many features are explained, by whom, and some of what is said."""
    store = run.features()
    said = store.explanations()
    if not len(said):
        return {"explanations": f"none: monosem explain {run.path}"}
    by = Counter(item.explainer for item in said)
    facts: dict[str, Any] = {"explanations": ", ".join(f"{n:,} by {name}" for name, n in by.items())}
    for latent in store.notable(5):
        item = said.get(latent)
        if item is not None:
            facts[f"feature {latent}"] = item.text
    return facts


def _several(run: Run) -> dict[str, Any]:
    """A line for each dictionary."""
    members = run.members
    state = "finished" if run.finished else f"stopped; go on with: monosem train {run.path}/run.yaml"
    facts: dict[str, Any] = {"run": run.path, "model": _joined(run.config.model), "state": state}
    facts["dictionaries"] = len(members)
    for name, member in members.items():
        figures = member.config.reads
        if (member.path / "evaluation.json").is_file():
            report = member.evaluation()
            figures += f"  L0 {report['l0'].value:.1f}  FVU {report['fvu'].value:.4f}"
        facts[name] = figures if member.finished else f"{figures}  not finished"
    return facts


def _joined(model: str | list[str] | None) -> str:
    return " + ".join(model) if isinstance(model, list) else model or "none (ready vectors)"


def _sae(path: str | Path) -> dict[str, Any]:
    from monosem.interop.load import load_sae

    sae = load_sae(path)
    facts: dict[str, Any] = {
        "SAE": type(sae).__name__,
        "n_latents": f"{sae.n_latents:,}",
        "d_in": sae.d_in,
        **sae.settings,
        "transform": sae.transform.extra_repr(),
        "parameters": f"{sum(p.numel() for p in sae.parameters()):,} ({str(sae.W_enc.dtype).removeprefix('torch.')})",
    }
    known = sae.metadata.model_dump(exclude_none=True)
    fingerprint = known.pop("fingerprint", {})
    facts |= {f"trained: {name}": value for name, value in known.items()}
    facts |= {f"probe batch: {name}": f"{value:.4g}" for name, value in fingerprint.items()}
    return facts


def _model(name: str) -> dict[str, Any]:
    from monosem.models import load_model

    model = load_model(name)
    points = model.hook_points
    kinds = list(dict.fromkeys(point.partition(".")[0] for point in points))
    if model.n_layers and "embed" in kinds:
        layers = f".0-{model.n_layers - 1}"
        points = [kind if kind in ("embed", "final_norm") else kind + layers for kind in kinds]
    return {
        "model": model.name,
        "family": model.family,
        "parameters": f"{sum(p.numel() for p in model.module.parameters()):,}",
        "layers": model.n_layers,
        "d_model": model.d_model,
        "context": model.context_length,
        "vocabulary": len(model.tokenizer) if model.tokenizer is not None else "no tokenizer",
        "fingerprint": model.fingerprint(),
        "hook points": ", ".join(points),
    }


def _show(console: Any, facts: dict[str, Any]) -> None:
    from rich.table import Table

    table = Table(box=None, show_header=False)
    table.add_column(style="dim")
    table.add_column(overflow="fold")
    for name, value in facts.items():
        table.add_row(name, str(value))
    console.print(table)
