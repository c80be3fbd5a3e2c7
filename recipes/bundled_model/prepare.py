"""Read the source texts, train the tokenizer, and write one array of tokens per source and split.

    python recipes/bundled_model/prepare.py TEXT_FOLDER [--work FOLDER]

TEXT_FOLDER holds `{wikipedia,books,wikinews,tinystories}_{train,valid}.jsonl.gz` and `speeches.jsonl.gz`, each line an
object with a "text". Written to the work folder: `tokenizer.json`, `train.npy` (documents shuffled and packed, each
preceded by the end-of-text token), `valid_SOURCE.npy` and `valid_SOURCE.bytes` (the number of UTF-8 bytes behind it).
"""

import argparse
import gzip
import json
import random
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

SOURCES = ["wikipedia", "books", "wikinews", "tinystories"]
TRAIN_ONLY = ["speeches"]
VOCAB_SIZE = 4096
END_OF_TEXT = "<|endoftext|>"


def read(path: Path) -> list[str]:
    with gzip.open(path, "rt", encoding="utf-8") as lines:
        return [json.loads(line)["text"].strip() for line in lines]


def train_tokenizer(documents: list[str]) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB_SIZE,
        special_tokens=[END_OF_TEXT],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=True,
    )
    tokenizer.train_from_iterator(documents, trainer)
    return tokenizer


def pack(tokenizer: Tokenizer, documents: list[str]) -> np.ndarray:
    """All documents end to end, each behind one end-of-text token."""
    end_of_text = tokenizer.token_to_id(END_OF_TEXT)
    parts: list[np.ndarray] = []
    for start in range(0, len(documents), 1000):
        for encoding in tokenizer.encode_batch(documents[start : start + 1000]):
            parts.append(np.array([end_of_text, *encoding.ids], dtype=np.uint16))
    return np.concatenate(parts)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("text_folder", type=Path)
    parser.add_argument("--work", type=Path, default=Path(__file__).parent / "work")
    options = parser.parse_args()
    options.work.mkdir(parents=True, exist_ok=True)

    documents: list[str] = []
    for source in SOURCES:
        documents += read(options.text_folder / f"{source}_train.jsonl.gz")
    for source in TRAIN_ONLY:
        documents += read(options.text_folder / f"{source}.jsonl.gz")
    random.Random(0).shuffle(documents)

    tokenizer = train_tokenizer([text[:8000] for text in documents])
    tokenizer.save(str(options.work / "tokenizer.json"))

    train = pack(tokenizer, documents)
    np.save(options.work / "train.npy", train)
    n_bytes = sum(len(text.encode()) for text in documents)
    print(f"train: {len(documents):,} documents, {len(train):,} tokens, {n_bytes / len(train):.2f} bytes a token")
    for source in SOURCES:
        held_out = read(options.text_folder / f"{source}_valid.jsonl.gz")
        tokens = pack(tokenizer, held_out)
        np.save(options.work / f"valid_{source}.npy", tokens)
        n_bytes = sum(len(text.encode()) for text in held_out)
        (options.work / f"valid_{source}.bytes").write_text(str(n_bytes))
        print(f"{source}, held out: {len(tokens):,} tokens, {n_bytes / len(tokens):.2f} bytes a token")


if __name__ == "__main__":
    main()
