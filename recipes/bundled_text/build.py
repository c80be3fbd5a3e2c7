"""Choose the bundled text: two small Parquet files, one to train on and one held out.

    python recipes/bundled_text/build.py TEXT_FOLDER [--out FOLDER]

TEXT_FOLDER holds `{wikipedia,books,wikinews,tinystories}_{train,valid}.jsonl.gz`, each line an object with a "text"
and, where known, "title", "author" and "year". Written to the out folder: `train.parquet` (from `*_train` alone),
`held_out.parquet` (from `*_valid` alone) and a README. Columns: text, source, title, licence, credit, all strings.

Documents are taken in a seeded shuffle until each source has its share of the bytes; one that has too little gives all
it has, and the others take over the rest. Books are cut at paragraph ends into passages of 1,000 to 1,500 words, taken
in rounds: one passage from every author, then a second from every author who has one, and so on.
"""

import argparse
import gzip
import json
import random
from collections import defaultdict
from collections.abc import Iterable, Iterator
from itertools import zip_longest
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

SHARES = {"wikipedia": 0.45, "books": 0.27, "wikinews": 0.18, "tinystories": 0.10}  # of the bytes
TEXT_BYTES = {"train": 17.3e6, "held_out": 2.2e6}  # before compression
MAX_FILE_BYTES = 6.0e6  # both files together
MIN_WORDS = 60
PASSAGE_WORDS = 1000, 1500
LICENCES = {
    "wikipedia": "CC BY-SA 3.0",
    "books": "public domain",
    "wikinews": "CC BY 2.5",
    "tinystories": "CDLA-Sharing-1.0",
}
CREDITS = {
    "wikipedia": "English Wikipedia, 2015",
    "books": "{author}, {year}",
    "wikinews": "English Wikinews",
    "tinystories": "TinyStories, Ronen Eldan and Yuanzhi Li, 2023",
}

README = """# Bundled text

Real English text that comes with monosem, so that everything works at once and without a network: `train.parquet` to
fit on, `held_out.parquet` to measure on. No document is in both, nor any author of a book. {file_bytes:.1f} MB in all.

{table}

A row is a document; the columns are strings:

| column | what |
|---|---|
| text | the document, plain text |
| source | `wikipedia`, `books`, `wikinews` or `tinystories` |
| title | of the article or the book; empty for tinystories |
| licence | of this row's text |
| credit | where the text is from: the author and year of a book, else the collection |

## Licences and credits

- wikipedia, [CC BY-SA 3.0](https://creativecommons.org/licenses/by-sa/3.0/): articles of English Wikipedia as of 2015,
  by its contributors; the history of an article, at `https://en.wikipedia.org/wiki/TITLE`, names them. Changed: reduced
  to plain text, and cut at the paragraph that reaches 1,500 words.
- books, public domain: works of 1929 or before by {n_authors} authors, named row by row; the year is that of the work,
  which for a translation is not that of the English text. Changed: cut into passages of {low:,} to {high:,} words.
  Collected in mlschmitt/classic-books-markdown, whose README states that all titles are from the public domain.
- wikinews, [CC BY 2.5](https://creativecommons.org/licenses/by/2.5/): articles of English Wikinews, mostly of 2004 to
  2010, by its contributors; see `https://en.wikinews.org/wiki/TITLE`. Changed: reduced to plain text.
- tinystories, [CDLA-Sharing-1.0](https://cdla.dev/sharing-1-0/): Ronen Eldan and Yuanzhi Li, "TinyStories: How Small
  Can Language Models Be and Still Speak Coherent English?", 2023; stories written by GPT-3.5 and GPT-4.

Each row keeps its own licence. Whoever passes the files on passes on this page, and the Wikipedia and TinyStories rows
under the licences they came with.

## How it was made

    python recipes/bundled_text/build.py TEXT_FOLDER

Documents under {min_words} words were dropped, and the others taken in a seeded shuffle until each source had its share
of the bytes, as far as there was enough of each: {shares}.
Of the books, every author gives one passage before any gives a second. The training documents are among those the
bundled language model was trained on; the held-out ones are not.

## Limits

English only, and no dialogue of today, no web pages, no code. Wikipedia and Wikinews lost what templates had produced,
so a value or a link is missing here and there ("atomic weight of,"). The books hold the views and the words of their
time, some of them offensive. Nothing was checked for truth.
"""


def read(path: Path) -> list[dict[str, str]]:
    with gzip.open(path, "rt", encoding="utf-8") as lines:
        return [json.loads(line) for line in lines]


def n_words(text: str) -> int:
    return len(text.split())


def passages(text: str) -> Iterator[str]:
    """Stretches of whole paragraphs, as short as they can be within PASSAGE_WORDS; what does not fit is left out."""
    low, high = PASSAGE_WORDS
    part: list[str] = []
    words = 0
    for paragraph in text.split("\n\n"):
        part.append(paragraph)
        words += n_words(paragraph)
        if words >= low:
            if words <= high:
                yield "\n\n".join(part).strip()
            part, words = [], 0


def in_rounds(groups: Iterable[list[dict[str, str]]]) -> list[dict[str, str]]:
    """The first of every group, then the second of every group that has one, and so on."""
    return [row for turn in zip_longest(*groups) for row in turn if row is not None]


def book_passages(books: list[dict[str, str]], shuffle: random.Random) -> list[dict[str, str]]:
    """One passage an author, then a second, and so on; an author's books take turns too."""
    authors: dict[str, list[list[dict[str, str]]]] = defaultdict(list)
    for book in books:
        parts = [{**book, "text": text} for text in passages(book["text"])]
        shuffle.shuffle(parts)
        authors[book["author"]].append(parts)
    groups = [in_rounds(group) for group in authors.values()]
    shuffle.shuffle(groups)
    return in_rounds(groups)


def budgets(total: float, available: dict[str, int]) -> dict[str, float]:
    """Bytes to take from each source: its share of the total, where the scarce give all and the others the rest."""
    scarce = {source: float(n) for source, n in available.items() if n <= SHARES[source] * total}
    while True:
        others = {source: share for source, share in SHARES.items() if source not in scarce}
        left = total - sum(scarce.values())
        result = {source: left * share / sum(others.values()) for source, share in others.items()}
        more = {source: float(available[source]) for source in others if available[source] < result[source]}
        if not more:
            return scarce | result
        scarce |= more


def choose(text_folder: Path, split: str, total: float, shuffle: random.Random) -> list[dict[str, str]]:
    """The rows of one file, shuffled."""
    documents: dict[str, list[dict[str, str]]] = {}
    for source in SHARES:
        rows = read(text_folder / f"{source}_{split}.jsonl.gz")
        shuffle.shuffle(rows)
        rows = book_passages(rows, shuffle) if source == "books" else rows
        documents[source] = [row for row in rows if n_words(row["text"]) >= MIN_WORDS]
    available = {source: sum(len(row["text"].encode()) for row in rows) for source, rows in documents.items()}
    chosen: list[dict[str, str]] = []
    for source, budget in budgets(total, available).items():
        taken = 0
        for row in documents[source]:
            if taken >= budget:
                break
            text = row["text"].strip()
            taken += len(text.encode())
            credit = CREDITS[source].format(author=row.get("author"), year=row.get("year"))
            about = {"source": source, "title": row.get("title", ""), "licence": LICENCES[source], "credit": credit}
            chosen.append({"text": text, **about})
    shuffle.shuffle(chosen)
    return chosen


def write(path: Path, rows: list[dict[str, str]]) -> None:
    table = pa.Table.from_pylist(rows, schema=pa.schema([(name, pa.string()) for name in rows[0]]))
    # One page for all the text, so that zstd can look back over the whole of it.
    pq.write_table(
        table,
        path,
        compression="zstd",
        compression_level=22,
        use_dictionary=["source", "licence", "credit"],  # pyright: ignore[reportArgumentType]
        write_statistics=False,
        row_group_size=len(rows),
        write_batch_size=len(rows),
        data_page_size=1 << 28,
        max_rows_per_page=len(rows),
    )


def summary(splits: dict[str, list[dict[str, str]]]) -> str:
    lines = ["| split | source | documents | bytes | share | words |", "|---|---|---|---|---|---|"]
    for split, rows in splits.items():
        total = sum(len(row["text"].encode()) for row in rows)
        for source in [*SHARES, "all"]:
            texts = [row["text"] for row in rows if source in (row["source"], "all")]
            n_bytes, words = sum(len(text.encode()) for text in texts), sum(n_words(text) for text in texts)
            lines.append(f"| {split} | {source} | {len(texts):,} | {n_bytes:,} | {n_bytes / total:.0%} | {words:,} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("text_folder", type=Path)
    default = Path(__file__).resolve().parents[2] / "src/monosem/data/bundled"
    parser.add_argument("--out", type=Path, default=default)
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)

    splits: dict[str, list[dict[str, str]]] = {}
    for split, source_split in {"train": "train", "held_out": "valid"}.items():
        splits[split] = choose(options.text_folder, source_split, TEXT_BYTES[split], random.Random(0))
        write(options.out / f"{split}.parquet", splits[split])
    file_bytes = sum((options.out / f"{split}.parquet").stat().st_size for split in splits)
    table = summary(splits)
    print(table)
    print(f"{file_bytes:,} bytes in both files")
    low, high = PASSAGE_WORDS
    books = [row for rows in splits.values() for row in rows if row["source"] == "books"]
    readme = README.format(
        table=table,
        file_bytes=file_bytes / 1e6,
        n_authors=len({row["credit"].rsplit(", ", 1)[0] for row in books}),
        low=low,
        high=high,
        min_words=MIN_WORDS,
        shares=", ".join(f"{source} {share:.0%}" for source, share in SHARES.items()),
    )
    (options.out / "README.md").write_text(readme)
    if file_bytes > MAX_FILE_BYTES:
        raise SystemExit(f"over {MAX_FILE_BYTES / 1e6} MB: lower TEXT_BYTES")


if __name__ == "__main__":
    main()
