"""The libraries that monosem is measured against, each in a virtual environment of its own (their pins clash).

python benchmarks/peers.py            # set up all of them; what is there already is left alone
"""

import subprocess
import sys
import venv
from pathlib import Path

HOME = Path(__file__).parent / ".peers"
TORCH = "torch==2.13.0"
INSTALLS: dict[str, list[list[str]]] = {
    "saelens": [[TORCH], ["sae-lens"]],
    "sparsify": [[TORCH], ["eai-sparsify"]],
    # Its own requirements ask for an old nnsight that brings another torch; the trainers need neither.
    "dictionary_learning": [
        [TORCH],
        ["--no-deps", "dictionary-learning"],
        ["einops", "tqdm", "datasets", "nnsight<0.4"],
    ],
    "sae_dashboard": [[TORCH], ["sae-dashboard==0.8.0", "pyarrow<22"]],
}
TRAINERS = ("saelens", "sparsify", "dictionary_learning")
"""Those that train."""
UNWANTED = {"sae_dashboard": "torchaudio"}
"""What a peer brings and then fails on: built for another torch."""


def python_of(peer: str) -> Path | None:
    """The interpreter of a peer's environment, if it is set up."""
    folder = HOME / peer
    return folder / "bin" / "python" if (folder / ".ready").exists() else None


def set_up(peer: str) -> bool:
    """Make a peer's environment; says so and returns False where that fails."""
    folder = HOME / peer
    if python_of(peer):
        return True
    venv.create(folder, with_pip=True)
    for packages in INSTALLS[peer]:
        command = [folder / "bin" / "python", "-m", "pip", "install", "--quiet", *packages]
        if subprocess.run(command, check=False).returncode:
            print(f"{peer}: cannot be installed ({' '.join(packages)})", file=sys.stderr)
            return False
    if peer in UNWANTED:
        subprocess.run([folder / "bin" / "python", "-m", "pip", "uninstall", "--yes", UNWANTED[peer]], check=False)
    (folder / ".ready").touch()
    return True


if __name__ == "__main__":
    for name in INSTALLS:
        print(f"{name}: {'ready' if set_up(name) else 'not available'}", flush=True)
