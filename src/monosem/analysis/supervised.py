"""ms.supervised_dictionary: one direction for every value of every attribute, from labelled inputs: the skyline."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from monosem.arguments import checked
from monosem.errors import ConfigError, DataError
from monosem.interventions import AddVector, Where
from monosem.models import SubjectModel

Method = Literal["means", "least_squares"]
Values = Sequence[Hashable]


@dataclass(frozen=True)
class SupervisedDictionary:
    """Activations as a mean and one direction for the value of every attribute: x = mean + sum_i u[i, value_i]."""

    mean: Float[Tensor, " d"]
    values: dict[str, list[Hashable]]
    """The values of every attribute, in the order of the rows of its directions."""
    directions: dict[str, Float[Tensor, "values d"]]
    """Of every attribute; weighted by how often each value came, they add up to zero."""
    fvu: float
    """Fraction of variance unexplained on the inputs that it was made of."""
    hook: str | None = None
    position: int = -1
    """Of the token at which the activations stand; negative: from the end of each text."""

    def of(self, attribute: str, values: Values) -> Float[Tensor, "n d"]:
        """The directions of some values of an attribute.

        Raises:
            ConfigError: it has no such attribute or value.
        """
        known = {value: row for row, value in enumerate(self._values(attribute))}
        new = [value for value in values if value not in known]
        if new:
            raise ConfigError(f"attribute {attribute!r} was never {new[0]!r} where this dictionary was made")
        return self.directions[attribute][[known[value] for value in values]]

    def reconstruct(self, attributes: Mapping[str, Values]) -> Float[Tensor, "n d"]:
        """What activations would be of inputs that have these values; of attributes left out, the mean.

        Raises:
            ConfigError: there is no such attribute or value, or the attributes have unequal numbers of values.
        """
        n = _same_length(attributes)
        rows = self.mean.expand(n, -1)
        for attribute, values in attributes.items():
            rows = rows + self.of(attribute, values)
        return rows

    def change(self, old: Mapping[str, Values], new: Mapping[str, Values]) -> Float[Tensor, "n d"]:
        """What to add to activations so that attributes that were `old` are `new`: 0 where both are the same.

        Raises:
            ConfigError: there is no such attribute or value, or `old` and `new` do not name the same.
        """
        if set(old) != set(new) or not new:
            raise ConfigError(f"old and new must name the same attributes, got {list(old)} and {list(new)}")
        if _same_length(old) != _same_length(new):
            raise ConfigError("old and new must have one value for each input")
        return torch.stack([self.of(name, new[name]) - self.of(name, old[name]) for name in new]).sum(0)

    def edit(self, old: Mapping[str, Values], new: Mapping[str, Values], where: Any = None) -> AddVector:
        """The intervention: x - u[old] + u[new] in each row of the batch, at the dictionary's position.

        with model.edit([dictionary.edit({"name": ["Mary"]}, {"name": ["Tom"]})]):
            logits = model(prompt)

        Args:
            old: the values that the inputs have, one for each row of the batch.
            new: those that they are to have.
            where: at which positions, if not at the dictionary's own; see `ms.Where`.

        Raises:
            ConfigError: there is no such attribute or value, or the dictionary does not know its hook point.
        """
        return self._adding(self.change(old, new), where)

    def removal(self, values: Mapping[str, Values]) -> Float[Tensor, "n d"]:
        """What to add to activations of inputs that have these values so that their directions are taken out.

        What is left is what the dictionary does not say: `reconstruct` is the test of whether attributes suffice,
        this whether they are necessary.

        Raises:
            ConfigError: there is no such attribute or value, or the attributes have unequal numbers of values.
        """
        return self.mean - self.reconstruct(values)

    def removed(self, values: Mapping[str, Values], where: Any = None) -> AddVector:
        """The intervention: x - u[value] of every attribute in each row of the batch, at the dictionary's position.

        Raises:
            ConfigError: there is no such attribute or value, or the dictionary does not know its hook point.
        """
        return self._adding(self.removal(values), where)

    def read(self, x: Float[Tensor, "n d"], attribute: str) -> list[Hashable]:
        """The value of an attribute that lies nearest to each row: argmax <x - mean, u> - |u|^2 / 2.

        Raises:
            ConfigError: it has no such attribute.
        """
        known, rows = self._values(attribute), self.directions[attribute]
        scores = (x.to(rows) - self.mean) @ rows.T - rows.pow(2).sum(1) / 2
        return [known[i] for i in scores.argmax(1).tolist()]

    def _adding(self, change: Float[Tensor, "n d"], where: Any) -> AddVector:
        if self.hook is None:
            raise ConfigError("this dictionary was made of rows alone: give hook=... to edit a model")
        return AddVector(self.hook, change, where=where or Where(positions=self.position))

    def _values(self, attribute: str) -> list[Hashable]:
        if attribute not in self.values:
            raise ConfigError(f"there is no attribute {attribute!r}: there are {', '.join(self.values)}")
        return self.values[attribute]

    def __str__(self) -> str:
        sizes = ", ".join(f"{name} ({len(values)} values)" for name, values in self.values.items())
        at = "" if self.hook is None else f" at {self.hook}, token {self.position}"
        return f"{sizes}{at}: FVU {self.fvu:.3f} where it was made"


@checked
def supervised_dictionary(
    model: SubjectModel | None,
    inputs: Any,
    attributes: Mapping[str, Values],
    *,
    hook: str | None = None,
    position: int = -1,
    method: Method = "means",
) -> SupervisedDictionary:
    """Directions for values of known attributes: what the best dictionary could have, if it were told what to find.

    dictionary = ms.supervised_dictionary(model, prompts, {"object": names, "subject": others}, hook="resid_post.2")
    with model.edit([dictionary.edit({"subject": ["Mary"]}, {"subject": ["Tom"]})]): ...

    means: u[i, v] = mean of x where attribute i is v - mean of x. Exact where attributes are independent.
    least_squares: all u together, so that the squared error is least; exact where attributes go together too. Both
    are centred: weighted by how often its values came, the directions of an attribute add up to zero.

    Source: Makelov, Lange & Nanda, Towards Principled Evaluations of Sparse Autoencoders, 2024.

    Args:
        model: the model; None where `inputs` are rows of activations already.
        inputs: texts of any lengths, or what the model reads; or rows (n, d).
        attributes: by name, the value that each input has.
        hook: where the activations stand.
        position: the token at which they do; negative: from the end of each text.
        method: "means" or "least_squares".

    Raises:
        ConfigError: no attributes, another number of values than inputs, an attribute of a single value.
        HookError: the model has no such place.
    """
    n = _same_length(attributes)
    for name, values in attributes.items():
        if len(set(values)) < 2:
            raise ConfigError(f"attribute {name!r} has the same value everywhere: there is nothing to learn of it")
    if model is not None and hook is None:
        raise ConfigError("say where: supervised_dictionary(..., hook='resid_post.2')")
    if model is None and not hasattr(inputs, "__array__"):
        raise ConfigError("without a model inputs are rows of activations, a tensor (n, d)")
    x = torch.as_tensor(inputs) if model is None else rows_at(model, str(hook), inputs, position)
    if x.ndim != 2 or len(x) != n:
        raise ConfigError(f"{n} values of every attribute, but activations of shape {tuple(x.shape)}: one row an input")
    x = x.detach().double()
    mean = x.mean(0)
    known = {name: sorted(set(values), key=repr) for name, values in attributes.items()}
    marks = [_one_hot(attributes[name], known[name]).to(x.device) for name in attributes]
    rows = _by_means(x - mean, marks) if method == "means" else _by_least_squares(x - mean, marks)
    rebuilt = torch.stack([mark @ row for mark, row in zip(marks, rows, strict=True)]).sum(0)
    fvu = float((x - mean - rebuilt).pow(2).sum() / (x - mean).pow(2).sum())
    directions = {name: row.float() for name, row in zip(attributes, rows, strict=True)}
    return SupervisedDictionary(mean.float(), known, directions, fvu, hook, position)


def rows_at(model: SubjectModel, hook: str, inputs: Any, position: int = -1) -> Float[Tensor, "n d"]:
    """Activations at one token of every input.

    Args:
        model: the model.
        hook: where.
        inputs: texts of any lengths, or what the model reads.
        position: of the token; negative: from the end of each text.

    Raises:
        DataError: a text has no such token.
        HookError: the model has no such place.
    """
    model.hook_point(hook).require_rows()
    given = _as_batch(model, inputs)
    mask = given.get("attention_mask")
    size = max(len(value) for value in given.values())
    at_once = model.contexts_at_once(max(1, next(iter(given.values())).shape[1]))
    found: list[Tensor] = []
    for start in range(0, size, at_once):
        x = model.capture({name: value[start : start + at_once] for name, value in given.items()}, [hook])[hook]
        part: Bool[Tensor, "n pos"] | None = None if mask is None else mask[start : start + at_once].bool()
        found.append(x[torch.arange(len(x), device=x.device), _places(x, part, position)])
    return torch.cat(found)


def _as_batch(model: SubjectModel, inputs: Any) -> dict[str, Tensor]:
    if isinstance(inputs, str):
        inputs = [inputs]
    if isinstance(inputs, list | tuple):
        return model.padded(list(inputs))
    model.inputs.arguments(inputs, model.device)  # does the model read such
    return dict(inputs) if isinstance(inputs, Mapping) else {model.inputs.main or "": inputs}


def _places(x: Tensor, mask: Bool[Tensor, "n pos"] | None, position: int) -> Int[Tensor, " n"]:
    """The column of the wanted token in each row; padding may stand on either side."""
    mask = torch.ones(x.shape[:2], dtype=torch.bool, device=x.device) if mask is None else mask
    lengths = mask.sum(1)
    number = torch.full_like(lengths, position) + (lengths if position < 0 else 0)
    if bool(((number < 0) | (number >= lengths)).any()):
        raise DataError(f"a text of {int(lengths.min())} tokens has no token {position}")
    return ((mask.cumsum(1) - 1 == number[:, None]) & mask).long().argmax(1)


def _same_length(attributes: Mapping[str, Values]) -> int:
    sizes = {name: len(values) for name, values in attributes.items()}
    if not sizes or len(set(sizes.values())) > 1:
        raise ConfigError(f"attributes need one value for each input, got {sizes or 'none'}")
    return next(iter(sizes.values()))


def _one_hot(values: Values, known: list[Hashable]) -> Float[Tensor, "n values"]:
    row = {value: i for i, value in enumerate(known)}
    return torch.eye(len(known), dtype=torch.float64)[[row[value] for value in values]]


def _by_means(x: Float[Tensor, "n d"], marks: list[Float[Tensor, "n values"]]) -> list[Float[Tensor, "values d"]]:
    return [mark.T @ x / mark.sum(0)[:, None] for mark in marks]


def _by_least_squares(
    x: Float[Tensor, "n d"], marks: list[Float[Tensor, "n values"]]
) -> list[Float[Tensor, "values d"]]:
    """Of the solutions, which differ by what moves between attributes, the centred one."""
    design = torch.cat([mark - mark.mean(0) for mark in marks], 1)
    solved = torch.linalg.pinv(design, rtol=1e-9) @ x
    parts = solved.split([mark.shape[1] for mark in marks])
    return [part - mark.mean(0) @ part for part, mark in zip(parts, marks, strict=True)]
