"""Damage to valid files, by kind: bits, ends, and what stands in the fields of their headers."""

from __future__ import annotations

import copy
import gzip
import io
import json
import random
import re
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

VALUES: list[Any] = [
    None,
    True,
    False,
    0,
    -1,
    1,
    2**31,
    2**63,
    10**30,
    1e308,
    -0.5,
    float("nan"),
    float("inf"),
    "",
    "x",
    "\ud83d",
    "a\0b",
    "../../etc/passwd",
    "/dev/zero",
    "é" * 100,
    [],
    {},
    [[]],
    [1, "x", None],
    {"a": 1},
    {"": {"": []}},
]
YAML_WORDS = ["2001-99-99", "!!int x", "!!float x", "!!bool 7", "!!timestamp q", "*a", "&a [*a]", "? [1]", "1e999"]
YAML_WORDS += ["0x", ".inf", "!!binary ü", "!!python/name:os.system", "|", "{", "[" * 300, "'", "<<", "~"]


def bits(content: bytes, rng: random.Random) -> bytes:
    """A few bits turned, bytes overwritten, cut, doubled or put in."""
    data = bytearray(content)
    for _ in range(rng.choice([1, 1, 2, 5, 20])):
        if not data:
            break
        place, size = rng.randrange(len(data)), rng.choice([1, 1, 2, 8, 64])
        if rng.random() < 0.5:  # headers and footers say more than what is between
            place = rng.choice([rng.randrange(min(len(data), 256)), len(data) - 1 - rng.randrange(min(len(data), 256))])
        match rng.randrange(7):
            case 0 | 1:
                data[place] ^= 1 << rng.randrange(8)
            case 2:
                data[place : place + size] = rng.randbytes(size)
            case 3:
                data[place : place + size] = rng.choice([b"\0", b"\xff"]) * size
            case 4:
                del data[place : place + size]
            case 5:
                data[place:place] = data[place : place + size]
            case _:
                del data[place:]
    return bytes(data)


def tree(value: Any, rng: random.Random) -> Any:
    """A field replaced, dropped, renamed, moved, doubled or buried deep."""
    value = copy.deepcopy(value)
    places: list[tuple[Any, Any]] = []

    def walk(node: Any) -> None:
        children = list(node.items()) if isinstance(node, dict) else list(enumerate(node))
        for key, child in children[:50]:
            places.append((node, key))
            if isinstance(child, dict | list):
                walk(child)

    if isinstance(value, dict | list):
        walk(value)
    if not places or rng.random() < 0.03:
        return rng.choice(VALUES)
    for _ in range(rng.choice([1, 1, 1, 2, 4])):
        node, key = rng.choice(places)
        if (isinstance(node, list) and not -len(node) <= key < len(node)) or (
            isinstance(node, dict) and key not in node
        ):
            continue
        match rng.randrange(8):
            case 0 | 1 | 2:
                node[key] = copy.deepcopy(rng.choice(VALUES))
            case 3:
                del node[key]
            case 4 if isinstance(node, dict):
                node[rng.choice(["x", "", key.upper(), f"{key}s"])] = node.pop(key)
            case 5:
                other, there = rng.choice(places)
                if isinstance(other, dict) and there in other:
                    node[key] = copy.deepcopy(other[there])
            case 6:
                for _ in range(rng.choice([3, 60, 150])):
                    node[key] = [node[key]]
            case _ if isinstance(node[key], int | float):
                node[key] = rng.choice(
                    [-node[key], node[key] * 1000, node[key] + 1, node[key] * 10**12, str(node[key])]
                )
            case _:
                node[key] = [node[key]] * rng.choice([0, 2, 300])
    return value


def json_text(content: bytes, rng: random.Random) -> bytes:
    """A file of JSON, or of lines of it."""
    if rng.random() < 0.25:
        return bits(content, rng)
    lines = content.decode().splitlines()
    whole = len(lines) < 2 or not lines[0].startswith("{") or not lines[0].endswith("}")
    if rng.random() < 0.05:
        return rng.choice(
            [b"[" * 100_000, b'{"a":' * 100_000, b"9" * 6_000, b"", b"null", b"\xff\xfe\0", b"1", b"1\n2\n"]
        )
    if whole:
        return json.dumps(tree(json.loads(content), rng)).encode()
    number = rng.randrange(len(lines))
    lines[number] = rng.choice(
        [json.dumps(tree(json.loads(lines[number]), rng)), "1", "\udcff", "[]", "", lines[number][:5]]
    )
    return ("\n".join(lines) + "\n").encode("utf-8", "surrogateescape")


def yaml_text(content: bytes, rng: random.Random) -> bytes:
    """A file of YAML of one value a line."""
    import yaml

    if rng.random() < 0.2:
        return bits(content, rng)
    if rng.random() < 0.4:
        changed = tree(yaml.safe_load(content), rng)
        return json.dumps(changed).encode()
    lines = content.decode().splitlines()
    for _ in range(rng.choice([1, 1, 3])):
        number = rng.randrange(len(lines))
        key, colon, _ = lines[number].partition(":")
        lines[number] = (
            f"{key}{colon} {rng.choice(YAML_WORDS)}" if rng.random() < 0.8 else f"{key}: &a {key}\n{key}: *a"
        )
    return "\n".join(lines).encode()


def npy(content: bytes, rng: random.Random) -> bytes:
    """Another shape or type in the header."""
    if rng.random() < 0.4:
        return bits(content, rng)
    shapes = [
        "(10,)",
        "()",
        "(1000000, 1000000)",
        f"({2**62},)",
        "(-1, 3)",
        "(0, 3)",
        "(3, 0)",
        "3",
        "('a',)",
        "(" * 90,
    ]
    types = ["'|O'", "'<c8'", "'<V2'", "'|S3'", "'<M8[s]'", "[('a', '<f4'), ('b', '<f4')]", "'<f2'", "'>f8'", "'x'"]
    words = rng.choice([f"'shape': {rng.choice(shapes)}, ", f"'descr': {rng.choice(types)}, "])
    name = words.partition(":")[0]
    header = {
        "'descr'": "'descr': '<f4', ",
        "'fortran_order'": "'fortran_order': False, ",
        "'shape'": "'shape': (40, 6), ",
    }
    header[name] = words
    text = ("{" + "".join(header.values()) + "}").ljust(150).encode() + b"\n"
    return b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text + content[128:]


def npz(content: bytes, rng: random.Random) -> bytes:
    """Members changed, renamed, doubled, in other kinds of compression."""
    if rng.random() < 0.4:
        return bits(content, rng)
    source, target = zipfile.ZipFile(io.BytesIO(content)), io.BytesIO()
    with zipfile.ZipFile(target, "w", rng.choice([0, 8, 12, 14])) as archive:
        for name in source.namelist():
            data = source.read(name)
            for _ in range(rng.choice([0, 1, 1, 1, 2])):
                label = rng.choice([name, name, name.upper(), "x", "../a.npy", "labels.npy"])
                if label not in archive.namelist():
                    archive.writestr(label, npy(data, rng) if rng.random() < 0.6 else data)
    return target.getvalue()


def packed(inner: Callable[[bytes, random.Random], bytes]) -> Callable[[bytes, random.Random], bytes]:
    """A .gz, damaged outside or inside."""

    def change(content: bytes, rng: random.Random) -> bytes:
        if rng.random() < 0.4:
            return bits(content, rng)
        return gzip.compress(inner(gzip.decompress(content), rng), 1)

    return change


def safetensors(content: bytes, rng: random.Random) -> bytes:
    """Another header: names, types, shapes, places."""
    if rng.random() < 0.4:
        return bits(content, rng)
    size = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + size])
    if "harvest" in header.get("__metadata__", {}) and rng.random() < 0.5:
        about = json.loads(header["__metadata__"]["harvest"])
        header["__metadata__"]["harvest"] = json.dumps(tree(about, rng))
    elif rng.random() < 0.5:
        name = rng.choice([name for name in header if name != "__metadata__"])
        entry = header[name]
        match rng.randrange(3):
            case 0:
                entry["shape"] = entry["shape"][::-1]
            case 1:
                entry["dtype"] = rng.choice(["I32", "U32", "F32"])
            case _:
                header[rng.choice([name + "x", "probe.x", "W_enc"])] = header.pop(name)
    else:
        header = tree(header, rng)
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + content[8 + size :]


def parquet(content: bytes, rng: random.Random) -> bytes:
    """Bits; or a column that is missing, of another type, or of empty values."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    if rng.random() < 0.5:
        return bits(content, rng)
    table = pq.read_table(io.BytesIO(content))
    place = rng.randrange(table.num_columns)
    name, column = table.column_names[place], table.column(place)
    match rng.randrange(6):
        case 0:
            table = table.drop_columns([name])
        case 1:
            table = table.set_column(place, name, pa.array(["x"] * len(table)))
        case 2:
            table = table.set_column(place, name, pa.nulls(len(table), column.type))
        case 3:
            table = table.slice(0, rng.randrange(len(table) + 1))
        case 4:
            table = table.set_column(place, name, pa.array([rng.choice([-1, 2**40, 10**9])] * len(table)))
        case _:
            table = pa.concat_tables([table, table])
    file = io.BytesIO()
    pq.write_table(table, file)
    return file.getvalue()


def png(content: bytes, rng: random.Random) -> bytes:
    """Chunks of a picture with sound sums around wrong words."""
    if rng.random() < 0.5:
        return bits(content, rng)
    header = bytearray(content[16:29])
    header[rng.randrange(len(header))] = rng.choice([0, 1, 3, 4, 6, 16, 255])
    chunk = b"IHDR" + bytes(header)
    return content[:12] + chunk + zlib.crc32(chunk).to_bytes(4, "big") + content[33:]


def gguf(content: bytes, rng: random.Random) -> bytes:
    """What stands behind a name in the header: a type, a length, a count, a number, a shape, a place."""
    if rng.random() < 0.4:
        return bits(content, rng)
    data = bytearray(content)
    names = [match.span() for match in re.finditer(rb"(general|llama|tokenizer|blk|token_embd|output)[\w.]+", content)]
    for _ in range(rng.choice([1, 1, 1, 3])):
        first, last = rng.choice(names)
        place = rng.choice([first - 8, *range(last, last + 28, 4)])
        size = rng.choice([4, 8])
        number = rng.choice([0, 1, 2, 3, 7, 8, 9, 12, 64, 260, 2**16, 2**31, 2**32 - 1, 2**62, rng.getrandbits(63)])
        data[place : place + size] = (number % 2 ** (8 * size)).to_bytes(size, "little")
    return bytes(data)


BY_NAME: list[tuple[str, Callable[[bytes, random.Random], bytes]]] = [
    (".jsonl.gz", packed(json_text)),
    (".txt.gz", packed(bits)),
    (".gz", packed(bits)),
    (".jsonl", json_text),
    (".json", json_text),
    (".yaml", yaml_text),
    (".npy", npy),
    (".npz", npz),
    (".safetensors", safetensors),
    (".parquet", parquet),
    (".png", png),
    (".gguf", gguf),
]


def damage(path: Path, rng: random.Random) -> None:
    """Change a file in a way that suits its name."""
    change = next((change for end, change in BY_NAME if path.name.endswith(end)), bits)
    path.write_bytes(change(path.read_bytes(), rng))
