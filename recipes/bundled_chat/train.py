"""Fine-tune the bundled model on dialogues made of the bundled text: see README.md."""

from __future__ import annotations

import argparse
import json
import random
import re
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

import monosem as ms
from monosem.data import read_documents
from monosem.data.documents import Document

TEMPLATE = (
    "{% for m in messages %}{{ '\n\nHuman: ' if m['role'] == 'user' else '\n\nAssistant: ' }}{{ m['content'] }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '\n\nAssistant:' }}{% endif %}"
)
LENGTH, BATCH, RATE = 128, 8, 3e-4
ASKS = ("Go on: {}", "What comes after this? {}", "Please continue the text. {}")


def dialogues(documents: list[Document], seed: int) -> Iterator[tuple[str, str]]:
    """What the user says and what the assistant answers, without end."""
    rng = random.Random(seed)
    while True:
        document = rng.choice(documents)
        sentences = re.findall(r"[^.!?]+[.!?]+", rng.choice(document.text.split("\n")))
        if len(sentences) < 2:
            continue
        begin, answer = sentences[0].strip(), "".join(sentences[1:4]).strip()
        if document.title and rng.random() < 0.3:
            yield f"Tell me about {document.title}.", f"{begin} {answer}"
        else:
            yield rng.choice(ASKS).format(begin), answer


def rows(model: ms.SubjectModel, said: Iterator[tuple[str, str]]) -> tuple[Tensor, Tensor]:
    """(batch, length) tokens, and labels: those of the assistant's words, else -100."""
    end = model.tokenizer.eos_token_id
    tokens, labels = torch.full((BATCH, LENGTH), end), torch.full((BATCH, LENGTH), -100)
    for row in range(BATCH):
        asked, answer = next(said)
        first, second = (
            model.tokenizer(text, add_special_tokens=False)["input_ids"]
            for text in (f"\n\nHuman: {asked}\n\nAssistant:", f" {answer}")
        )
        both = [end, *first, *second, end][:LENGTH]
        tokens[row, : len(both)] = torch.tensor(both)
        answered = slice(min(1 + len(first), LENGTH), len(both))
        labels[row, answered] = tokens[row, answered]
    return tokens, labels


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path, help="where the model is written (17 MB)")
    parser.add_argument("--steps", type=int, default=300)
    options = parser.parse_args()
    torch.manual_seed(0)
    model = ms.load_model("bundled")
    said = dialogues([one for one in read_documents("bundled") if one.text], 0)  # pyright: ignore[reportGeneralTypeIssues]
    module = model.module.train()
    module.requires_grad_(True)
    optimizer = torch.optim.AdamW(module.parameters(), lr=RATE, weight_decay=0.0)
    losses: list[float] = []
    for step in range(options.steps):
        tokens, labels = rows(model, said)
        loss = module(input_ids=tokens, labels=labels).loss
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(module.parameters(), 1.0)
        for group in optimizer.param_groups:
            group["lr"] = RATE * min(1.0, (step + 1) / 20) * (1 - step / options.steps)
        optimizer.step()
        losses.append(loss.item())
        if (step + 1) % 25 == 0:
            print(f"step {step + 1} of {options.steps}: loss {sum(losses[-25:]) / 25:.3f}", flush=True)
    model.tokenizer.chat_template = TEMPLATE
    module.eval().save_pretrained(options.folder)  # pyright: ignore[reportCallIssue]
    model.tokenizer.save_pretrained(options.folder)
    facts = {"steps": options.steps, "first": sum(losses[:25]) / 25, "last": sum(losses[-25:]) / 25}
    (options.folder / "chat_tuning.json").write_text(json.dumps(facts))


if __name__ == "__main__":
    main()
