"""What `monosem train` can be given: architectures, and the keys of a run.yaml, as their docstrings tell."""

from __future__ import annotations

import ast
import inspect
import textwrap

from pydantic import BaseModel
from rich.console import Console
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from monosem.runs import RunConfig
from monosem.sae import SAE


def list_architectures(console: Console) -> None:
    """Of each: when to use it, its equations, its parameters with their defaults, its source."""
    console.print(Text("Architectures (sae.architecture; more in docs/architectures.md)", style="bold"))
    console.print(
        "t: the input's transform, u: the target's, d: the activations' width; W_enc and W_dec: a row per latent.\n"
    )
    for name, kind in sorted(SAE.registry.items()):
        equations, source = _equations_and_source(kind)
        parameters = ", ".join(f"sae.{key}{_default(value)}" for key, value in kind.parameters_of().items())
        console.print(Text.assemble((name, "bold cyan"), f"  {kind.good_for}"))
        console.print(Padding(Text(equations, style="green"), (0, 0, 0, 4)))
        console.print(Padding(Text(parameters), (0, 0, 0, 2)))
        console.print(Padding(Text(source, style="dim"), (0, 0, 1, 2)))


def list_keys(console: Console) -> None:
    """Every key of a run.yaml, with its default and its meaning."""
    table = Table(title="Keys", title_justify="left", box=None)
    for column in ("key", "default", "meaning"):
        table.add_column(column)
    _add_keys(table, RunConfig, "")
    console.print(table)
    console.print("\nThe parameters of each architecture: monosem train --help")


def _equations_and_source(kind: type[SAE]) -> tuple[str, str]:
    """The summary, if it has an equation, the indented blocks, and the source, of a class's docstring."""
    summary, *paragraphs = (inspect.getdoc(kind) or "").split("\n\n")
    lines = [summary] if " = " in summary else []
    lines += [textwrap.dedent(p) for p in paragraphs if p.startswith("    ")]
    source = next((p for p in paragraphs if p.startswith("Source: ")), "")
    return "\n".join(lines), " ".join(source.split())


def _default(value: object) -> str:
    return "" if value is None or value is inspect.Parameter.empty else f"={value}"


def _add_keys(table: Table, model: type[BaseModel], prefix: str) -> None:
    documented = _attribute_docs(model)
    for name, info in model.model_fields.items():
        if isinstance(info.default, BaseModel):
            _add_keys(table, type(info.default), f"{prefix}{name}.")
        else:
            default = "" if info.default is None else str(info.default)
            table.add_row(f"{prefix}{name}", default, documented.get(name, ""))


def _attribute_docs(model: type) -> dict[str, str]:
    """The docstrings under the fields of a class."""
    body = ast.parse(textwrap.dedent(inspect.getsource(model))).body[0]
    assert isinstance(body, ast.ClassDef)
    docs: dict[str, str] = {}
    for field, below in zip(body.body, body.body[1:], strict=False):
        if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name) and isinstance(below, ast.Expr):
            docs[field.target.id] = " ".join(str(ast.literal_eval(below.value)).split())
    return docs
