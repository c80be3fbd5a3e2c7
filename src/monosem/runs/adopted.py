"""A dictionary that was trained elsewhere, in a run folder of its own: evaluated, harvested and explored like any."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from monosem.errors import ConfigError, FileError
from monosem.files import read_json, write_text
from monosem.interop.addresses import listed_layer
from monosem.interop.load import holds_dictionary, load_sae, names_published
from monosem.runs.config import RunConfig
from monosem.runs.folder import Run
from monosem.sae import SAE, save_sae
from monosem.work import alone_in, doing

RUNS = Path("runs")
HELD_OUT = "bundled:held_out"
README = """\
# A dictionary that was trained elsewhere

It came from {source}, in files of {layout}; `sae/` holds it in ours. `run.yaml` names its model and hook point.

| | |
|---|---|
| `sae/` | the dictionary: `cfg.json`, `sae.safetensors`; in Python `ms.load_sae("{path}")` |
| `features/` | statistics and passages of every latent: `monosem harvest {path}`, then `monosem explore {path}` |
| `evaluation.json` | metrics on held-out text with 95 % intervals: `monosem eval {path}` |
"""


def open_run(name: str | Path, model: str | None = None, hook: str | None = None) -> Run:
    """The run of that name; of a dictionary that was trained elsewhere, one made for it in `runs/`.

    Args:
        name: a run folder, or whatever `ms.load_sae` takes: a path or a published name.
        model: the model that it is of, where its files do not say it.
        hook: what it reads there.

    Raises:
        FileError: there is no such thing, or it cannot be read.
        ConfigError: it does not say its model or its hook point, and they were not given; or a run that says them is
            said to be of others.
    """
    path = Path(name)
    if (path / "run.yaml").is_file():
        run = Run(path)
        for key, given, own in (("model", model, run.config.model), ("hook", hook, run.config.hook)):
            if given is not None and given != own:
                where = f"leave --{key} out, or change {key} in {path / 'run.yaml'}"
                # a run of several, or of vectors, has none to tell
                itself = "itself" if own is None else f"itself, {own!r}, not {given!r}"
                raise ConfigError(f"{name} is a run, which says its {key} {itself}: {where}")
        return run
    nothing = path.is_dir() and not holds_dictionary(path)
    if nothing or not (path.exists() or listed_layer(path) or names_published(name)):
        return Run(path)  # which says what it lacks
    folder = RUNS / slug(str(name))
    if _holds(folder, name) and model is None and hook is None:
        return Run(folder)
    with doing("loading the dictionary"):
        sae = load_sae(name)
    described = _described(sae, folder, str(name), model, hook)
    with alone_in(folder):
        save_sae(sae, folder / "sae")
        known = sae.metadata
        words = {"source": known.source or name, "layout": known.layout or "monosem", "path": folder}
        write_text(folder / "README.md", README.format(**words))
        described.write(folder / "run.yaml")
    return Run(folder)


def slug(name: str) -> str:
    """A folder's name for a dictionary's."""
    parts = name.removeprefix("hf://").strip("/").split("/")
    return re.sub(r"[^\w.=-]+", "_", "--".join(part for part in parts if part not in ("", ".", ".."))) or "sae"


def _holds(folder: Path, name: str | Path) -> bool:
    """Whether the dictionary was put there before; of one that is here, unless its files are newer."""
    config = folder / "sae" / "cfg.json"
    if not (folder / "run.yaml").is_file() or not config.is_file():
        return False
    path = Path(name)
    if path.exists():
        files = [path] if path.is_file() else [file for file in path.iterdir() if file.is_file()]
        return all(file.stat().st_mtime <= config.stat().st_mtime for file in files)
    return "format" in read_json(config, dict[str, Any])


def _described(sae: SAE, folder: Path, name: str, model: str | None, hook: str | None) -> RunConfig:
    """What its metadata say, as a run's description."""
    known = sae.metadata
    models: str | list[str] | None = model or known.models or known.model
    hooks: str | list[str] | None = hook or known.hooks or known.hook
    if model is not None:
        known.model = model
    if hook is not None:
        known.hook = hook
    where = f" (it says {known.original_hook!r})" if known.original_hook else ""
    if not models:
        raise ConfigError(f"the files of {name} do not say of which model it is: --model OWNER/NAME{where}")
    if not hooks:
        raise ConfigError(f"the files of {name} do not say what it reads{where}: --hook resid_post.LAYER, or the like")
    content: dict[str, Any] = {
        "output": str(folder),
        "model": models,
        "hook": hooks,
        "target": known.target_hooks or known.target_hook,
        "tokens": max(1, known.tokens_trained),
        "sae": {"architecture": sae.architecture, "n_latents": sae.n_latents, **sae.settings},
        "activations": {"context_length": known.context_length, "prepend_bos": known.prepend_bos},
        "evaluation": {"text": HELD_OUT},
    }
    try:
        return RunConfig.of(content)
    except ConfigError as error:
        raise FileError(f"{name} cannot be described as a run: {error}") from error
