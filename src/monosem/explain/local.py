"""LocalJudge: a language model on this machine as a judge; it needs no endpoint, and its chances are exact."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from monosem.arguments import checked
from monosem.errors import ConfigError
from monosem.explain.questions import Answer, Question
from monosem.explain.replies import understood
from monosem.explain.written import Writes
from monosem.models import SubjectModel, load_model
from monosem.work import doing, job

AT_ONCE = 8
DIGITS = tuple("0123456789")


class LocalJudge(Writes):
    """Any causal model that `ms.load_model` takes, asked for the chances of its next token. Deterministic.

    Choices are judged by the chance of their first token, in small and capital letters, with and without a space
    before. Simulation is "all at once" (Bills et al., 2023): all tokens are listed with unknown activations, and in one
    pass the chances of the digits 0 to 9 are read at each, of which 9 counts as 10.
    """

    @checked
    def __init__(self, model: SubjectModel | str, name: str | None = None) -> None:
        """Take a model, or load one.

        Raises:
            ConfigError: it writes no text.
        """
        self.model = load_model(model) if isinstance(model, str) else model
        self.name = name or self.model.name
        if not self.model.writes_text or self.model.tokenizer is None:
            raise ConfigError(f"{self.name} writes no text: a judge is a language model with a tokenizer")
        self._with_space = {word: self._first_tokens(word) for word in DIGITS}

    def __repr__(self) -> str:
        return f"LocalJudge({self.name!r})"

    def answer(self, questions: Sequence[Question], progress: bool = True) -> list[Answer]:
        """One answer a question, in their order; equal questions are asked once."""
        found: dict[Question, Answer] = {}
        ask = list(dict.fromkeys(questions))
        chosen = sorted((q for q in ask if q.choices), key=lambda q: len(q.text))
        with job(progress), doing(f"asking {self.name}", len(ask), unit="questions") as stage:
            for at in range(0, len(chosen), AT_ONCE):
                part = chosen[at : at + AT_ONCE]
                found |= dict(zip(part, self._choose(part), strict=True))
                stage.advance(len(part))
            for question in ask:
                if question not in found:
                    found[question] = self._simulate(question) if question.tokens else self._write(question)
                    stage.advance(1)
        return [found[question] for question in questions]

    def _prompt(self, question: Question) -> list[int]:
        """Token ids of a question, up to where the answer begins."""
        tokenizer = self.model.tokenizer
        if getattr(tokenizer, "chat_template", None):
            messages = [
                {"role": "system", "content": question.instructions},
                {"role": "user", "content": question.text},
            ]
            text = tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
            return self.model.tokens(text, prepend_bos=False)[0].tolist()
        return self.model.tokens(f"{question.instructions}\n\n{question.text}\n\nAnswer:")[0].tolist()

    def _fits(self, ids: Sequence[int], more: int = 0) -> bool:
        return self.model.context_length is None or len(ids) + more <= self.model.context_length

    def _choose(self, questions: Sequence[Question]) -> list[Answer]:
        prompts = [self._prompt(question) for question in questions]
        fit = [i for i, ids in enumerate(prompts) if self._fits(ids)]
        answers = [Answer(trouble="too long for the model")] * len(questions)
        if fit:
            for i, logits in zip(fit, self._next([prompts[i] for i in fit]), strict=True):
                answers[i] = Answer(chances=self._chances(logits, questions[i].choices))
        return answers

    def _next(self, prompts: Sequence[Sequence[int]]) -> Tensor:
        """(prompts, vocabulary) log-probabilities of the token behind each."""
        hidden = self._hidden(prompts)
        last = torch.tensor([len(ids) - 1 for ids in prompts], device=hidden.device)
        return self._logits(hidden[torch.arange(len(prompts), device=hidden.device), last])

    @torch.no_grad()
    def _hidden(self, prompts: Sequence[Sequence[int]]) -> Tensor:
        longest = max(map(len, prompts))
        ids = torch.tensor([[*p, *[0] * (longest - len(p))] for p in prompts])
        mask = torch.tensor([[1] * len(p) + [0] * (longest - len(p)) for p in prompts])
        return self.model.capture({"input_ids": ids, "attention_mask": mask}, ["final_norm"])["final_norm"]

    @torch.no_grad()
    def _logits(self, hidden: Tensor) -> Tensor:
        module: Any = self.model.module
        return module.get_output_embeddings()(hidden).float().log_softmax(-1).cpu()

    def _first_tokens(self, word: str) -> list[int]:
        forms = {form for w in (word, word.capitalize(), word.upper()) for form in (w, f" {w}")}
        found = {self.model.tokens(form, prepend_bos=False)[0].tolist()[0] for form in forms}
        blank = set(self.model.tokens(" ", prepend_bos=False)[0].tolist())
        return sorted(found - blank) or sorted(found)

    def _chances(self, logits: Tensor, choices: Sequence[str]) -> tuple[float, ...]:
        for choice in choices:
            if choice not in self._with_space:
                self._with_space[choice] = self._first_tokens(choice)
        values = torch.stack([logits[self._with_space[choice]].logsumexp(0) for choice in choices])
        return tuple(values.softmax(0).tolist())

    def _simulate(self, question: Question) -> Answer:
        text = question.text.partition("\n\nTokens:")[0]
        head = Question(
            question.instructions.replace("JSON list", "list"), f"{text}\n\nToken and activation, tab between:"
        )
        ids, read = self._prompt(head), list[int]()
        unknown = self.model.tokens("unknown\n", prepend_bos=False)[0].tolist()
        for token in question.tokens:
            ids += self.model.tokens(f"{token.strip() or ' '}\t", prepend_bos=False)[0].tolist()
            read.append(len(ids) - 1)
            ids += unknown
        if not self._fits(ids):
            return Answer(trouble="too long for the model")
        logits = self._logits(self._hidden([ids])[0, read])
        digits = torch.stack([logits[:, self._with_space[digit]].logsumexp(-1) for digit in DIGITS], -1).softmax(-1)
        expected = digits.numpy() @ np.arange(10) * (10 / 9)
        return Answer(numbers=tuple(expected.tolist()))

    def _write(self, question: Question) -> Answer:
        ids = self._prompt(question)
        if not self._fits(ids, question.most_tokens):
            return Answer(trouble="too long for the model")
        module: Any = self.model.module
        tokens = torch.tensor([ids], device=self.model.device)
        with torch.no_grad():
            out = module.generate(
                tokens,
                attention_mask=torch.ones_like(tokens),
                max_new_tokens=question.most_tokens,
                do_sample=False,
                pad_token_id=self.model.tokenizer.eos_token_id,
            )[0, len(ids) :]
        cut = len(out) >= question.most_tokens and out[-1].item() != self.model.tokenizer.eos_token_id
        return understood(question, self.model.tokenizer.decode(out, skip_special_tokens=True), cut=cut)
