"""What the explorer's server answers in, on a real run and on a synthesised dictionary of a million features.

    python benchmarks/explorer.py [RUN] [--latents 1000000] [--seconds 30] [--readers 50]

RUN is a harvested run (runs/demo, which `make demo` makes). The server is a process of its own; times are those of a
client on the same machine, JSON parsed. Memory is the server's peak less that of a process that only loads the model.
"""

import argparse
import json
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.client import HTTPConnection, HTTPException
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import pyarrow as pa

from monosem.features import FeatureStore
from monosem.features.files import StoreWriter

PROMPT = {"text": "The old king went down to the river, and when he had come to the water he said", "top": 32}
WORDS = ("river", "Germany", "war", "more", "not", "king", "London", "water", "the%20river", "because", "1990", "know")
ANSWERS = 2_000
"""In thirty seconds."""
LOAD_ONLY = "import monosem as ms; m = ms.load_model('bundled'); m('warm'); print(open('/proc/self/status').read())"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", nargs="?", default="runs/demo")
    parser.add_argument("--latents", type=int, default=1_000_000)
    parser.add_argument("--seconds", type=float, default=30)
    parser.add_argument("--readers", type=int, default=50)
    options = parser.parse_args()
    like = FeatureStore(options.run)
    with tempfile.TemporaryDirectory() as folder:
        wide = Path(folder) / "wide"
        widen(like, wide, options.latents)
        with serving(Path(options.run), wide) as (client, process):
            near, far = (d["name"] for d in client.get("/api/dictionaries")["dictionaries"])
            one_feature(client, near, like.n_latents)
            pages(client, far, options.latents)
            prompts(client, near)
            at_once(client, near, far, like.n_latents, options.readers, options.seconds)
            memory(process.pid)


def widen(like: FeatureStore, folder: Path, n: int) -> None:
    """The rows of a real table of features many times over, with noise; the other tables of its first latents."""
    real, rng = like.table(limit=None), np.random.default_rng(0)
    writer = StoreWriter(folder, "00000000")
    for first in range(0, n, 65_536):
        rows = real.take(pa.array(rng.integers(0, len(real), min(65_536, n - first))))
        noisy = rows.column("max").to_numpy() * rng.uniform(0.9, 1.1, len(rows)).astype(np.float32)
        rows = rows.set_column(0, "latent", pa.array(np.arange(first, first + len(rows)), pa.int32()))
        rows = rows.set_column(rows.schema.get_field_index("max"), "max", pa.array(noisy))
        writer.write("features", rows, first)
    tables = {**like.index["tables"], "features": writer.tables["features"]}
    for name, table in tables.items():
        if name != "features":
            shutil.copytree(like.path / name, folder / name)
            assert table is like.index["tables"][name]
    (folder / "index.json").write_text(json.dumps({**like.index, "n_latents": n, "tables": tables}))


class Client:
    """Asks over one connection."""

    def __init__(self, host: str, port: int) -> None:
        self.host, self.port = host, port
        self.connection = HTTPConnection(host, port, timeout=60)

    def again(self) -> "Client":
        """Another connection."""
        return Client(self.host, self.port)

    def get(self, path: str, body: Any = None) -> Any:
        headers = {} if body is None else {"Content-Type": "application/json"}
        content = None if body is None else json.dumps(body)
        self.connection.request("GET" if body is None else "POST", path, content, headers)
        answer = self.connection.getresponse()
        read = answer.read()
        if answer.status != 200:
            raise RuntimeError(f"{path}: {answer.status} {read[:300]!r}")
        return json.loads(read)

    def milliseconds(self, path: str, body: Any = None) -> float:
        begun = time.perf_counter()
        self.get(path, body)
        return 1000 * (time.perf_counter() - begun)


@contextmanager
def serving(*paths: Path) -> Iterator[tuple[Client, Any]]:
    command = [sys.executable, "-m", "monosem.cli.main", "explore", *map(str, paths), "--no-open", "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            line = process.stdout.readline()
            address = urlsplit(next(word for word in line.split() if word.startswith("http://")))
            yield Client(str(address.hostname), int(address.port or 0)), process
        finally:
            process.terminate()


def one_feature(client: Client, name: str, n: int) -> None:
    latents = np.random.default_rng(1).choice(n, 220, replace=False).tolist()
    spent = [client.milliseconds(f"/api/d/{name}/f/{latent}") for latent in latents][20:]
    median, slow = statistics.median(spent), float(np.quantile(spent, 0.95))
    show("one feature, median (95 % quantile)", f"{median:.1f} ms ({slow:.1f})", median, 20)


def pages(client: Client, name: str, n: int) -> None:
    spent: list[float] = []
    for i in range(42):
        filters = f"range=rate,0.001,0.01&range=max,{2 + i / 20},&sort=-max&limit=50&offset={50 * (i % 5)}"
        spent.append(client.milliseconds(f"/api/d/{name}/features?{filters}"))
    median, slow = statistics.median(spent[2:]), float(np.quantile(spent[2:], 0.95))
    show(f"a filtered, sorted page of {n:,} features", f"{median:.0f} ms ({slow:.0f})", median, 150)
    print(f"    the first view of that dictionary: {client.milliseconds(f'/api/d/{name}'):.0f} ms")


def prompts(client: Client, name: str) -> None:
    first = client.milliseconds(f"/api/d/{name}/prompt", PROMPT)
    spent = statistics.median(client.milliseconds(f"/api/d/{name}/prompt", PROMPT) for _ in range(10))
    print(f"    a prompt of 20 tokens: {spent:.0f} ms; the first, which loads the model: {first / 1000:.1f} s")


def at_once(client: Client, near: str, far: str, n: int, readers: int, seconds: float) -> None:
    """Each reader opens features, pages of both tables and, one time in ten, a search, one after the other."""
    stop, errors = time.monotonic() + seconds, list[str]()
    spent: list[list[float]] = [[] for _ in range(readers)]

    def read(reader: int) -> None:
        own, rng = client.again(), np.random.default_rng(reader)
        while time.monotonic() < stop:
            latent = int(rng.integers(n))
            features = [f"/api/d/{near}/f/{(latent + i) % n}" for i in range(6)]
            paths = [
                *features,
                *(f"/api/d/{near}/features?sort=-max&limit=50&offset={latent + i}" for i in range(2)),
                f"/api/d/{far}/features?range=rate,0.001,0.01&sort=-max&limit=50",
                f"/api/d/{near}/search?q={WORDS[int(rng.integers(len(WORDS)))]}",
            ]
            try:
                spent[reader].append(own.milliseconds(paths[int(rng.integers(len(paths)))]))
            except (OSError, HTTPException, ValueError, RuntimeError) as error:
                errors.append(repr(error))
                own = client.again()

    threads = [threading.Thread(target=read, args=[i]) for i in range(readers)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    every = [milliseconds for of_reader in spent for milliseconds in of_reader]
    slow, each = float(np.quantile(every, 0.99)) / 1000, seconds / len(every)
    show(f"errors, {readers} readers for {seconds:.0f} s", f"{len(errors)}", len(errors), 0)
    show("seconds for each answer", f"{each:.4f} ({len(every):,})", each, 30 / ANSWERS)
    show("seconds of the slowest answer in a hundred", f"{slow:.2f}", slow, 1)
    for error in errors[:3]:
        print(f"    {error}")


def memory(server: int) -> None:
    alone = subprocess.run([sys.executable, "-c", LOAD_ONLY], capture_output=True, text=True, check=True).stdout
    model, peak = peak_of(alone), peak_of(Path(f"/proc/{server}/status").read_text())
    show("server's peak memory beyond the model", f"{peak - model:.0f} MiB ({peak:.0f})", peak - model, 500)


def peak_of(status: str) -> float:
    """MiB, of the text of /proc/PID/status."""
    (line,) = (line for line in status.splitlines() if line.startswith("VmHWM:"))
    return int(line.split()[1]) / 1024


def show(what: str, measured: str, value: float, bar: float) -> None:
    print(f"{what:<52} {measured:>20}   bar {bar:g}: {'met' if value <= bar else 'missed'}", flush=True)


if __name__ == "__main__":
    main()
