"""Tasks that a model takes from examples in its prompt: their vector, and how well it does with it in their place."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from random import Random
from typing import Literal, NamedTuple, get_args

import torch
from jaxtyping import Float
from torch import Tensor

from monosem.errors import ConfigError, DataError
from monosem.interventions import Replace
from monosem.kernels import index_add_
from monosem.models import Replay, SubjectModel
from monosem.spelling import listed
from monosem.steering.reading import batches, last_positions

Pair = tuple[str, str]
Way = Literal["replace", "add"]
Put = Callable[[Float[Tensor, "rows d"]], Float[Tensor, "rows d"]]


class Score(NamedTuple):
    """How well answers are given."""

    each: list[float]
    """Of each pair the negative log-likelihood of the whole answer, in nats."""
    right: float
    """Share of the pairs whose answer is at every token the likeliest."""

    @property
    def nll(self) -> float:
        """Mean over the pairs."""
        return sum(self.each) / len(self.each)


@dataclass(frozen=True)
class Form:
    """How examples are written: `hot -> cold`, one after another. The task's vector stands where the query ends."""

    query: str = "{input} ->"
    answer: str = " {output}"
    between: str = "\n"

    def __post_init__(self) -> None:
        if "{input}" not in self.query or "{output}" not in self.answer:
            raise ConfigError("a form's query has {input} in it, its answer {output}")

    def asked(self, word: str) -> str:
        """The query alone."""
        return self.query.replace("{input}", word)

    def told(self, pair: Pair) -> str:
        """An example."""
        return self.asked(pair[0]) + self.answer.replace("{output}", pair[1])

    def few_shot(self, examples: Sequence[Pair], word: str) -> str:
        """Examples, and the query behind them."""
        return self.between.join([*map(self.told, examples), self.asked(word)])


class Questions:
    """Prompts and their answers as one batch, ready to be asked again and again."""

    def __init__(self, model: SubjectModel, prompts: Sequence[str], answers: Sequence[str]) -> None:
        """Read them.

        Raises:
            DataError: an answer's tokens do not begin where the prompt's end.
        """
        self.model = model
        self.batch = model.padded([p + a for p, a in zip(prompts, answers, strict=True)])
        alone = model.padded(list(prompts))
        self.ends = last_positions(alone)
        rows, length = len(prompts), self.batch["input_ids"].shape[1]
        columns = torch.arange(length, device=model.device).expand(rows, length)
        self.at_end = columns == self.ends[:, None]
        self.is_answer = (columns > self.ends[:, None]) & self.batch["attention_mask"].bool()
        short = self.batch["input_ids"][:, : alone["input_ids"].shape[1]]
        if bool(((short != alone["input_ids"]) & alone["attention_mask"].bool()).any()) or not bool(
            self.is_answer.any(1).all()
        ):
            raise DataError(
                "a prompt's last token is read together with the answer: begin the answer of the form with a space, or "
                "end the query with another sign"
            )

    @contextmanager
    def again(self, hook: str) -> Iterator[None]:
        """Within this block, in which nothing else is asked, what comes before a hook point is not computed anew."""
        example = {name: x[:1] for name, x in self.batch.items()}
        with Replay(self.model, [hook], example).of(self.batch):
            yield

    def asked(self, hook: str | None = None, put: Put | None = None) -> tuple[Float[Tensor, " pairs"], Tensor]:
        """Negative log-likelihoods of the answers, with gradient to what `put` makes of the ends of the prompts."""
        edit = (
            nullcontext() if hook is None or put is None else self.model.edit([Replace(hook, put, where=self.at_end)])
        )
        with edit:
            logits = self.model._call(self.batch).logits[:, :-1]
        wanted, mask = self.batch["input_ids"][:, 1:], self.is_answer[:, 1:]
        log_p, answers, pair = logits[mask].float().log_softmax(-1), wanted[mask], mask.nonzero()[:, 0]
        none = torch.zeros(len(mask), dtype=log_p.dtype, device=log_p.device)
        nll = index_add_(none.clone(), pair, -log_p.gather(-1, answers[:, None])[:, 0])
        right = index_add_(none, pair, (log_p.argmax(-1) != answers).to(none)) == 0
        return nll, right

    @torch.no_grad()
    def score(self, hook: str | None = None, put: Put | None = None) -> Score:
        """How well they are answered."""
        nll, right = self.asked(hook, put)
        return Score(nll.tolist(), float(right.float().mean()))


def split(pairs: Sequence[Pair], sizes: Sequence[int], shots: int, seed: int) -> list[list[Pair]]:
    """Shuffle, and divide into parts of these sizes and the rest, from which examples are drawn: `shots` at least.

    Raises:
        DataError: there are too few, or some are no pairs of texts.
    """
    if min(*sizes, shots) < 1:
        raise ConfigError("there must be one pair at least for each use, and one example")
    least = shots + sum(sizes)
    if len(pairs) < least:
        parts = " + ".join(map(str, sizes))
        raise DataError(f"{len(pairs)} pairs are too few: {shots} examples and {parts} to ask make {least}")
    for pair in pairs:
        if len(pair) != 2 or not all(isinstance(part, str) and part for part in pair):
            raise DataError(f"pairs are (input, output), two texts, got {pair!r}")
    mixed = list(pairs)
    Random(seed).shuffle(mixed)
    parts_, start = list[list[Pair]](), 0
    for size in sizes:
        parts_.append(mixed[start : start + size])
        start += size
    return [*parts_, mixed[start:]]


def zero_shot(model: SubjectModel, form: Form, pairs: Sequence[Pair]) -> Questions:
    """The queries alone, with their answers."""
    return Questions(model, [form.asked(a) for a, _ in pairs], [form.answer.replace("{output}", b) for _, b in pairs])


def few_shot_prompts(form: Form, examples: Sequence[Pair], pairs: Sequence[Pair], shots: int, seed: int) -> list[str]:
    """Each query behind examples drawn for it."""
    random = Random(seed)
    return [form.few_shot(random.sample(list(examples), shots), word) for word, _ in pairs]


@torch.no_grad()
def at_ends(model: SubjectModel, hook: str, prompts: Sequence[str]) -> Float[Tensor, "prompts d"]:
    """Activations at the last token of each prompt."""
    model.hook_point(hook).require_rows()
    found: list[Tensor] = []
    for batch in batches(model, prompts):
        x = model.capture(batch, [hook])[hook].float()
        found.append(x[torch.arange(len(x), device=x.device), last_positions(batch)])
    return torch.cat(found)


def put(vector: Float[Tensor, " d"], way: Way) -> Put:
    """The function that brings a vector in."""
    if way == "replace":
        return lambda rows: vector.expand_as(rows)
    return lambda rows: rows + vector


def require_way(way: str) -> None:
    """Raise ConfigError for an unknown one."""
    if way not in get_args(Way):
        raise ConfigError(f"unknown way {way!r}: choose one of {listed(way, get_args(Way))}")
