"""Pairs of answers, of which people have chosen one: read, and written as one text each."""

from __future__ import annotations

import gzip
import hashlib
import json
from pathlib import Path
from typing import NamedTuple

HUMAN, ASSISTANT = "\n\nHuman:", "\n\nAssistant:"
ASKED, ANSWERED = 400, 500
"""Characters of a question (its last ones) and of an answer (its first ones) that are read."""
TEST = 5
"""Every fifth question is held out, told by its hash, so that no question is on both sides."""


class Pair(NamedTuple):
    """A question and two answers."""

    question: str
    chosen: str
    rejected: str

    @property
    def held_out(self) -> bool:
        """Whether it is kept from training."""
        return int(hashlib.sha256(self.question.encode()).hexdigest(), 16) % TEST == 0

    def texts(self) -> tuple[str, str]:
        """With the chosen and with the rejected answer, as the model reads them."""
        return dialogue(self.question, self.chosen), dialogue(self.question, self.rejected)


def dialogue(question: str, answer: str) -> str:
    """In the model's chat template, without a system prompt; the reward is read at the answer's last token."""
    return asked(question) + answer.strip()[:ANSWERED].rstrip()


def asked(question: str) -> str:
    """Up to where the answer begins."""
    return f"<|im_start|>user\n{question.strip()[-ASKED:]}<|im_end|>\n<|im_start|>assistant\n"


def read_pairs(path: Path) -> list[Pair]:
    """Of JSON lines (.jsonl, .jsonl.gz) with `chosen` and `rejected`, dialogues that differ in their last answer."""
    found: list[Pair] = []
    with gzip.open(path, "rt", encoding="utf-8") if path.suffix == ".gz" else path.open(encoding="utf-8") as lines:
        for line in lines:
            row = json.loads(line)
            sides = [row[side].rpartition(ASSISTANT) for side in ("chosen", "rejected")]
            question = sides[0][0].rpartition(HUMAN)[2].strip()
            chosen, rejected = (side[2].strip() for side in sides)
            if question and chosen and rejected and chosen != rejected:
                found.append(Pair(question, chosen, rejected))
    return found
