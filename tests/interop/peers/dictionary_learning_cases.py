"""All classes of dictionary_learning, saved as its training saves them."""

import json
import sys
from functools import partial
from pathlib import Path

import torch

sys.path.append(str(Path(__file__).parent))
from common import D, F, K, randomise, run, write
from dictionary_learning.dictionary import (
    AutoEncoder,
    AutoEncoderNew,
    GatedAutoEncoder,
    JumpReluAutoEncoder,
)
from dictionary_learning.trainers.batch_top_k import BatchTopKSAE
from dictionary_learning.trainers.matryoshka_batch_top_k import MatryoshkaBatchTopKSAE
from dictionary_learning.trainers.top_k import AutoEncoderTopK
from dictionary_learning.utils import load_dictionary


def one(folder: Path, kind: type, threshold: float | None = None, **options: object) -> None:
    """A dictionary in the folder of its trainer."""
    ae = kind(D, F, **options)
    randomise(ae)
    if threshold is not None:
        ae.threshold.fill_(threshold)
    if kind is AutoEncoder:  # whose loader makes decoder rows unit vectors
        ae.normalize_decoder()
    home = folder / "resid_post_layer_3" / "trainer_0"
    home.mkdir(parents=True, exist_ok=True)
    torch.save(ae.state_dict(), home / "ae.pt")
    trainer = {
        "dict_class": kind.__name__,
        "trainer_class": "Trainer",
        "activation_dim": D,
        "dict_size": F,
        "layer": 3,
        "lm_name": "EleutherAI/pythia-70m-deduped",
        "submodule_name": "resid_post_layer_3",
        **({"k": K} if "k" in options else {}),
    }
    (home / "config.json").write_text(json.dumps({"trainer": trainer, "buffer": {"ctx_len": 128, "io": "out"}}))
    back = load_dictionary(str(home), "cpu")[0]
    write(folder, back.encode, back)


run(
    {
        "standard": partial(one, kind=AutoEncoder),
        "standard_new": partial(one, kind=AutoEncoderNew),
        "gated": partial(one, kind=GatedAutoEncoder),
        "jump_relu": partial(one, kind=JumpReluAutoEncoder),
        "top_k": partial(one, kind=AutoEncoderTopK, k=K),
        "batch_top_k": partial(one, kind=BatchTopKSAE, k=K, threshold=0.7),
        "batch_top_k_untrained": partial(one, kind=BatchTopKSAE, k=K),
        "matryoshka": partial(one, kind=MatryoshkaBatchTopKSAE, k=K, threshold=0.7, group_sizes=[6, 6, 12]),
    }
)
