"""Several dictionaries from one description: hooks, grid and dictionaries of a run.yaml, each a description of its own.

Every dictionary of `dictionaries` (or the one that the file describes without them) is multiplied by `hooks` and by
`grid`. A key that a dictionary sets itself is not varied for it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from fnmatch import fnmatchcase
from itertools import product
from typing import Any

from monosem.errors import ConfigError, HookError
from monosem.runs.config import COMMON, RunConfig, all_keys
from monosem.sae import SAE
from monosem.spelling import meant

OWN = ("hook", "target", "sae", "loss", "training", "tokens")
SHARED = ("training.batch_size", "training.checkpoint_minutes")
NAME = re.compile(r"\w[\w.+=-]*")

Values = dict[str, Any]
"""Values by dotted key, as in `--set`."""


def describe_each(config: RunConfig, hook_points: Sequence[str] = ()) -> dict[str, RunConfig]:
    """The description of each dictionary, by name; one that a file describes alone has the empty name.

    Patterns of hook points are resolved. Each description, run by itself, gives the same dictionary.

    Args:
        config: the whole description.
        hook_points: those of the model, in the order of its forward pass.

    Raises:
        ConfigError: a key that all dictionaries share, one that no architecture has, or a name twice.
        HookError: a pattern fits no hook point.
    """
    base = config.model_dump(exclude={"hooks", "grid", "dictionaries"})
    grid = {"hook": _expand(config.hooks, hook_points)} if config.hooks is not None else {}
    grid |= config.grid
    _check_keys("grid", grid)
    found: dict[str, RunConfig] = {}
    used: set[str] = set()
    for name, given in (config.dictionaries or {"": None}).items():
        if name and not NAME.fullmatch(name):
            raise ConfigError(
                f"dictionaries: {name!r} must be letters, digits and any of . + = - _, as a folder's name"
            )
        own = dict(_flat(given or {}))
        _check_keys(f"dictionaries.{name}", own)
        for chosen in _combinations({key: values for key, values in grid.items() if key not in own}):
            values = _fitting_architecture(base, own, chosen)
            used |= set(values)
            full_name = _named(name, {key: value for key, value in values.items() if key in chosen})
            member = _member(base, values, full_name, hook_points)
            if full_name in found and member != found[full_name]:
                raise ConfigError(f"two dictionaries would be called {full_name!r}: name them in `dictionaries`")
            found[full_name] = member
    idle = [key for key in grid if key not in used]
    if idle:
        raise ConfigError(f"grid.{idle[0]}: none of the dictionaries has it to vary")
    if any(member.loss.end_to_end for member in found.values()):  # all learn from the same batches
        for member in found.values():
            member.activations.by_context = True
    return found


def _flat(nested: Values, prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in nested.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value


def _check_keys(where: str, values: Values) -> None:
    for key in values:
        known = all_keys()
        if key not in known and key.partition(".")[0] not in OWN:
            raise ConfigError(f"{where}: unknown key {key!r}{meant(key, known)}")
        if key.partition(".")[0] not in OWN or key in SHARED:
            raise ConfigError(
                f"{where}: all dictionaries of a run share {key}; of its own each has {', '.join(OWN)} "
                f"(without {', '.join(SHARED)})"
            )


def _combinations(grid: dict[str, list[Any]]) -> Iterator[Values]:
    for values in product(*grid.values()):
        yield dict(zip(grid, values, strict=True))


def _fitting_architecture(base: Values, own: Values, chosen: Values) -> Values:
    """The values of one dictionary; where its architecture is chosen, without those from the grid that it lacks."""
    values = {**own, **chosen}
    kind = SAE.registry.get(values.get("sae.architecture", ""))
    if kind is None:
        return values
    known = {f"sae.{name}" for name in (*kind.parameters_of(), *COMMON, "architecture", "n_latents")}
    return {key: v for key, v in values.items() if key in own or not key.startswith("sae.") or key in known}


def _member(base: Values, values: Values, name: str, hook_points: Sequence[str]) -> RunConfig:
    content = {key: dict(value) if isinstance(value, dict) else value for key, value in base.items()}
    kind = SAE.registry.get(values.get("sae.architecture", ""))
    if kind is not None:  # the parameters that all have in common are those of the common architecture
        known = (*kind.parameters_of(), *COMMON, "architecture", "n_latents")
        content["sae"] = {key: value for key, value in content["sae"].items() if key in known}
    for key, value in values.items():
        _set(content, key, value)
    content["hook"], content["target"] = _places(content["hook"], content["target"], hook_points)
    content["output"] = f"{base['output']}/{name}" if name else base["output"]
    try:
        return RunConfig.of(content)
    except ConfigError as error:
        raise ConfigError(f"dictionary {name}: {error}" if name else str(error)) from error


def _set(content: Values, key: str, value: Any) -> None:
    *parents, last = key.split(".")
    for parent in parents:
        content[parent] = dict(content.get(parent) or {})
        content = content[parent]
    content[last] = value


def _places(hook: Any, target: Any, hook_points: Sequence[str]) -> tuple[Any, Any]:
    """Hook and target without patterns."""
    if isinstance(hook, list) or (isinstance(hook, str) and "*" in hook):
        return _expand(hook, hook_points), None if target is None else _expand(target, hook_points)
    if isinstance(target, str) and "*" in target:
        target = target.replace("*", str(hook).rpartition(".")[2])
    return hook, target


def _expand(names: str | list[str], hook_points: Sequence[str]) -> list[str]:
    """Hook points, patterns replaced by those that fit them."""
    found: list[str] = []
    for name in [names] if isinstance(names, str) else names:
        fitting = [point for point in hook_points if fnmatchcase(point, name)] if "*" in name else [name]
        if not fitting:
            kinds = dict.fromkeys(point.partition(".")[0] for point in hook_points)
            raise HookError(
                f"no hook point fits the pattern {name!r}: there are {', '.join(kinds)} (such as attn_out.*)"
            )
        found += [point for point in fitting if point not in found]
    return found


def _named(name: str, chosen: Values) -> str:
    parts = [name] if name else []
    for key, value in chosen.items():
        short = key.rpartition(".")[2]
        equals = "=" if short[-1].isdigit() else ""
        parts.append(f"{short}{equals}{value}" if isinstance(value, int | float) else str(value))
    return re.sub(r"[^\w.+=-]", "_", "-".join(parts))
