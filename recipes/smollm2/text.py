"""Text for SmolLM2's dictionary: the bundled text, of which a third of the documents are made into conversations.

An instruct model is used in its chat template. No conversations are bundled, so they are made by rule: the question
asks for what the document is (of an article its title, of a book its beginning), the answer is the document's own
words; some go on for a second turn. A document is in one of both forms, never in both.
"""

from __future__ import annotations

import argparse
import json
import random
from collections.abc import Iterator
from pathlib import Path

from monosem.data import Document, Documents, read_documents

SHARE = 1 / 3
LONGEST = 1_500
"""Characters of an answer."""
ASK = {
    "wikipedia": ["Tell me about {title}.", "What do you know about {title}?", "Explain to a student: {title}"],
    "wikinews": ['Write a news report with the headline "{title}".', "{title}. What happened?"],
    "tinystories": ["Tell me a short story for children.", "Can you write a simple story?", "A bedtime story, please!"],
    "books": ["Go on in the same style:\n\n{start}", "I am reading {title}. What comes after this?\n\n{start}"],
}
MORE = ["Go on.", "Tell me more.", "And then?", "Thanks! What else?"]


def answers(text: str) -> Iterator[str]:
    """The document in pieces of at most about LONGEST characters, cut between paragraphs."""
    piece = ""
    for paragraph in filter(None, (p.strip() for p in text.split("\n"))):
        if piece and len(piece) + len(paragraph) > LONGEST:
            yield piece
            piece = ""
        piece += ("\n" if piece else "") + paragraph
    if piece:
        yield piece


def conversation(document: Document, choose: random.Random) -> list[dict[str, str]]:
    """A question, an answer, and in one of three conversations a second turn; nothing if the document is too short."""
    pieces = [piece for piece in answers(document.text) if len(piece) <= 2 * LONGEST]
    start = ""
    if document.source == "books":
        start, pieces = (pieces[0][:600], pieces[1:]) if pieces else ("", [])
    if not pieces:
        return []
    messages: list[dict[str, str]] = []
    for turn, piece in enumerate(pieces[: choose.choice([1, 1, 2])]):
        question = choose.choice(MORE if turn else ASK[document.source])
        messages.append({"role": "user", "content": question.format(title=document.title, start=start)})
        messages.append({"role": "assistant", "content": piece})
    return messages


def write(split: str, path: Path, seed: int) -> None:
    """A line for each document: `text`, or `messages`."""
    choose, counts = random.Random(seed), {"text": 0, "messages": 0}
    new = path.with_name(f".{path.name}.new")
    with new.open("w", encoding="utf-8") as file:
        documents = read_documents(split)
        assert isinstance(documents, Documents)  # too small for a stream
        for document in documents:
            messages = conversation(document, choose) if choose.random() < SHARE else []
            words: dict[str, object] = {"messages": messages} if messages else {"text": document.text}
            counts[next(iter(words))] += 1
            row = {**words, "source": document.source + (" chat" if messages else ""), "title": document.title}
            file.write(json.dumps(row, ensure_ascii=False) + "\n")
    new.replace(path)
    print(f"{path}: {counts['text']:,} documents and {counts['messages']:,} conversations")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="where train.jsonl and held_out.jsonl are written (20 MB)")
    folder = parser.parse_args().folder
    folder.mkdir(parents=True, exist_ok=True)
    for seed, (split, name) in enumerate({"bundled": "train.jsonl", "bundled:held_out": "held_out.jsonl"}.items()):
        if not (folder / name).is_file():
            write(split, folder / name, seed)


if __name__ == "__main__":
    main()
