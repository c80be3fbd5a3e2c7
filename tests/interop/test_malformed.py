"""Damaged files of other libraries: read as they are, or refused in one line, soon, and nothing in them is executed."""

from __future__ import annotations

import io
import os
import pickle
import random
import shutil
import sys
import time
import warnings
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

import monosem as ms
from monosem.errors import FileError, MonosemError

sys.path.append(str(Path(__file__).parents[1] / "fuzz"))
from mutate import damage

FROZEN = Path(__file__).parents[1] / "data" / "interop"
CASES = int(os.environ.get("FUZZ_CASES", "84"))
KINDS = {
    "saelens": FROZEN / "saelens" / "jumprelu" / "sae",
    "saelens older": FROZEN / "saelens" / "version_3" / "sae",
    "saelens skip": FROZEN / "saelens" / "skip_transcoder" / "sae",
    "dictionary_learning": FROZEN / "dictionary_learning" / "batch_top_k" / "resid_post_layer_3" / "trainer_0",
    "dictionary_learning nested": FROZEN / "dictionary_learning" / "matryoshka" / "resid_post_layer_3" / "trainer_0",
    "dictionary_learning gated": FROZEN / "dictionary_learning" / "gated" / "resid_post_layer_3" / "trainer_0",
    "sparsify": FROZEN / "sparsify" / "topk" / "layers.3",
    "sparsify skip": FROZEN / "sparsify" / "skip_transcoder" / "layers.1.mlp",
    "circuit-tracer": FROZEN / "circuit_tracer" / "layers_jumprelu" / "set",
    "circuit-tracer across": FROZEN / "circuit_tracer" / "across_jumprelu" / "set",
    "openai": FROZEN / "openai",
    "goodfire": FROZEN / "goodfire",
}
RAN = "monosem_ran_what_a_file_holds"


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A valid copy of each kind."""
    root = tmp_path_factory.mktemp("whole")
    draw = torch.Generator().manual_seed(0)
    for name, path in KINDS.items():
        if path.exists():
            shutil.copytree(path, root / name)
            continue
        (root / name).mkdir()
        W, b, c = (torch.randn(shape, generator=draw) for shape in ((15, 6), (15,), (6,)))
        content = {"pre_bias": c, "encoder.weight": W, "latent_bias": b, "decoder.weight": W.T.contiguous()}
        content |= {"activation": "TopK", "activation_state_dict": {"k": 3, "postact_fn": "ReLU"}}
        if name == "goodfire":
            content = {"encoder_linear.weight": W, "encoder_linear.bias": b, "decoder_linear.weight": W.T.contiguous()}
            content |= {"decoder_linear.bias": c}
        torch.save(content, root / name / "3.pt")
    return root


@pytest.mark.parametrize("kind", KINDS)
def test_damaged_files_are_read_or_refused_in_one_line(kind: str, whole: Path, tmp_path: Path) -> None:
    wrong, refused = list[str](), 0
    named = "layer_1.safetensors" if kind == "circuit-tracer" else ""
    ms.load_sae(whole / kind / named)
    for number in range(CASES):
        rng, folder = random.Random(f"{kind} {number}"), tmp_path / "case"
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(whole / kind, folder)
        files = [folder / named] if named else sorted(path for path in folder.rglob("*") if path.is_file())
        damage(rng.choice(files), rng)
        begun = time.monotonic()
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                ms.load_sae(folder / named)
        except MonosemError as error:
            refused += 1
            if "\n" in str(error) or len(str(error)) > 2_000:
                wrong.append(f"case {number}: {str(error)[:300]!r}")
        except Exception as error:  # noqa: BLE001 - what is looked for
            wrong.append(f"case {number}: {type(error).__name__} {error!s:.200}")
        if time.monotonic() - begun > 10:
            wrong.append(f"case {number}: took {time.monotonic() - begun:.0f} s")
    assert not wrong, "\n".join(wrong[:20])
    assert refused > CASES / 4


class Code:
    """What a pickle may do."""

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.putenv, (RAN, "yes")  # pyright: ignore


def write_pickle(path: Path) -> None:
    torch.save({"encoder_linear.weight": torch.ones(3, 2), "x": Code()}, path)


def write_plain_pickle(path: Path) -> None:
    path.write_bytes(pickle.dumps(Code()))


def write_bomb(path: Path) -> None:
    buffer = io.BytesIO()
    torch.save({"encoder_linear.weight": torch.zeros(2000, 2000)}, buffer)
    with zipfile.ZipFile(buffer) as source, zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as target:
        for name in source.namelist():
            target.writestr(name, source.read(name))


def write_repeated_rows(path: Path) -> None:
    torch.save({"encoder_linear.weight": torch.zeros(1, 1).expand(10**6, 10**6)}, path)


def write_cut(path: Path) -> None:
    torch.save({"encoder_linear.weight": torch.zeros(200, 200)}, path)
    path.write_bytes(path.read_bytes()[:50_000])


@pytest.mark.parametrize(
    ("write", "words"),
    [
        (write_pickle, "holds posix.putenv, which would have to be executed"),
        (write_plain_pickle, "would have to be executed"),
        (write_bomb, "as a bomb would"),
        (write_repeated_rows, "takes more than the file has"),
        (write_cut, "cannot be read"),
    ],
)
def test_pickles_with_code_bombs_and_cut_files_are_refused_in_one_line(
    tmp_path: Path, write: object, words: str
) -> None:
    path = tmp_path / "x.pt"
    write(path)  # type: ignore[operator]
    with pytest.raises(FileError, match=words) as refused:
        ms.load_sae(path)
    assert "\n" not in str(refused.value)
    assert "weights_only=False" in str(refused.value) or "executed" not in words
    assert RAN not in os.environ


def test_headers_that_promise_too_much_and_numbers_that_are_none_are_refused(tmp_path: Path) -> None:
    case = tmp_path / "sae"
    shutil.copytree(FROZEN / "saelens" / "jumprelu" / "sae", case)
    tensors = load_file(case / "sae_weights.safetensors")
    save_file({**tensors, "W_dec": tensors["W_dec"] * float("nan")}, case / "sae_weights.safetensors")
    with pytest.raises(FileError, match=r"is of no use, 192 of the 192 numbers of W_dec are not finite"):
        ms.load_sae(case)
    save_file({**tensors, "b_dec": torch.ones(7)}, case / "sae_weights.safetensors")
    with pytest.raises(FileError, match=r"b_dec in .* should be of shape \(8,\) and is \(7,\)"):
        ms.load_sae(case)
    (case / "sae_weights.safetensors").write_bytes((10**12).to_bytes(8, "little") + b"{}")
    with pytest.raises(FileError, match="cannot be read"):
        ms.load_sae(case)
    np.savez(tmp_path / "x.npz", W_enc=np.ones((3, 2)))
    with pytest.raises(FileError, match=r"is of no layout that is known: x\.npz has the tensors W_enc"):
        ms.load_sae(tmp_path / "x.npz")
