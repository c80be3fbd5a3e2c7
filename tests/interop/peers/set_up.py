"""The libraries whose files are read and written, each in a virtual environment of its own, and what they make.

python tests/interop/peers/set_up.py FOLDER           # set them up, and write all cases into FOLDER/cases
python tests/interop/peers/set_up.py FOLDER --freeze  # and put them into tests/data/interop
"""

import os
import shutil
import subprocess
import sys
import venv
from pathlib import Path

HERE = Path(__file__).parent
ROOT = HERE.parents[2]
TORCH = ["torch"]
"""Of the version that the project is tested with; no package that comes after it may bring another."""
INSTALLS: dict[str, list[list[str]]] = {
    "saelens": [TORCH, ["sae-lens"]],
    # Its own requirements ask for an old nnsight, and that for a torchvision, which is built for another torch than the
    # one here may be: saving and loading need neither.
    "dictionary_learning": [
        TORCH,
        ["--no-deps", "dictionary-learning", "nnsight<0.4"],
        [
            "einops",
            "tqdm",
            "datasets",
            "zstandard",
            "transformers",
            "accelerate",
            "diffusers",
            "python-socketio[client]",
        ],
    ],
    "sparsify": [TORCH, ["eai-sparsify"]],
    "circuit_tracer": [TORCH, ["circuit-tracer"]],
}
OURS = ["numba", "jaxtyping", "pillow", "pydantic", "duckdb", "pyarrow", "scipy", "rich", "safetensors", "pyyaml"]
"""What our package needs of those that splice an SAE into models of other libraries."""
ADAPTERS: dict[str, list[list[str]]] = {
    # numpy below 2 is what the second one asks for, and with it older packages
    "transformer_lens_2": [
        TORCH,
        ["transformer-lens<3", *OURS, "pyarrow<19", "numba<0.62", "scipy<1.16", "datasets<4"],
        ["--no-deps", "circuit-tracer"],
        ["nnsight>=0.5", "einops"],
    ],
    "transformer_lens_4": [TORCH, ["transformer-lens>=4,<5", *OURS]],
    "nnsight": [TORCH, ["nnsight>=0.5", *OURS]],
}


def set_up(folder: Path, library: str) -> Path:
    """The library's interpreter; what is there already is left alone, what was begun is gone on with."""
    home = folder / library
    python = home / "bin" / "python"
    unfinished = home / "unfinished"
    if unfinished.exists() or not python.exists():
        print(f"setting up {library}", flush=True)
        home.mkdir(parents=True, exist_ok=True)
        unfinished.touch()
        venv.create(home, with_pip=True)
        (pinned,) = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if line.startswith("torch==")]
        constraints = home / "constraints.txt"
        constraints.write_text(pinned + "\n")
        for packages in (INSTALLS | ADAPTERS)[library]:
            command = [python, "-m", "pip", "install", "--quiet", "--constraint", constraints, *packages]
            subprocess.run(command, check=True)
        unfinished.unlink()
    return python


def main() -> None:
    """Set up, and write the cases."""
    folder = Path(sys.argv[1]).resolve()
    cases = folder / "cases"
    shutil.rmtree(cases, ignore_errors=True)
    for library in INSTALLS:
        python = set_up(folder, library)
        script = HERE / f"{library}_cases.py"
        environment = {**os.environ, "HF_HUB_OFFLINE": "1", "TRITON_INTERPRET": "0"}
        environment.pop("PYTHONPATH", None)
        subprocess.run([python, script.name, cases / library], cwd=HERE, env=environment, check=True)
        version = subprocess.run([python, "-m", "pip", "list"], capture_output=True, text=True, check=True).stdout
        names = ("sae-lens", "dictionary-learning", "eai-sparsify", "circuit-tracer")
        print(*(" ".join(line.split()) for line in version.splitlines() if line.startswith(names)), flush=True)
    for library in ADAPTERS:
        set_up(folder, library)
    if "--freeze" in sys.argv:
        shutil.rmtree(ROOT / "tests" / "data" / "interop", ignore_errors=True)
        shutil.copytree(cases, ROOT / "tests" / "data" / "interop")


if __name__ == "__main__":
    main()
