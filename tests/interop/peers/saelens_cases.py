"""Every architecture that SAELens writes, in version 6's files and in those of versions before it."""

import json
from functools import partial
from pathlib import Path

import torch
from common import D, F, K, randomise, run, write
from sae_lens.saes.batchtopk_sae import BatchTopKTrainingSAE, BatchTopKTrainingSAEConfig
from sae_lens.saes.gated_sae import GatedSAE, GatedSAEConfig
from sae_lens.saes.jumprelu_sae import JumpReLUSAE, JumpReLUSAEConfig
from sae_lens.saes.matryoshka_batchtopk_sae import MatryoshkaBatchTopKTrainingSAE, MatryoshkaBatchTopKTrainingSAEConfig
from sae_lens.saes.sae import SAE, SAEMetadata
from sae_lens.saes.standard_sae import StandardSAE, StandardSAEConfig
from sae_lens.saes.topk_sae import TopKSAE, TopKSAEConfig
from sae_lens.saes.transcoder import (
    JumpReLUSkipTranscoder,
    JumpReLUSkipTranscoderConfig,
    JumpReLUTranscoder,
    JumpReLUTranscoderConfig,
    SkipTranscoder,
    SkipTranscoderConfig,
    Transcoder,
    TranscoderConfig,
)

D_OUT = 6


def metadata(**more: object) -> SAEMetadata:
    """Of a place in a small model."""
    known = {
        "model_name": "pythia-70m-deduped",
        "hook_name": "blocks.3.hook_resid_post",
        "context_size": 128,
        "prepend_bos": True,
        "dataset_path": "some/text",
    }
    return SAEMetadata(**{**known, **more})


def one(folder: Path, kind: type, config: type, **options: object) -> None:
    """An SAE, saved and used."""
    sae = kind(config(d_in=D, d_sae=F, metadata=metadata(), **options))
    randomise(sae)
    sae.save_model(folder / "sae")
    back = SAE.load_from_disk(folder / "sae")
    write(folder, back.encode, back)


def transcoder(folder: Path, kind: type, config: type, **options: object) -> None:
    """A transcoder of another width."""
    more = {"hook_name": "blocks.3.mlp.hook_in", "hook_name_out": "blocks.3.hook_mlp_out"}
    sae = kind(config(d_in=D, d_sae=F, d_out=D_OUT, apply_b_dec_to_input=False, metadata=metadata(**more), **options))
    randomise(sae)
    sae.save_model(folder / "sae")
    back = SAE.load_from_disk(folder / "sae")
    write(folder, back.encode, back)


def trained(folder: Path, kind: type, config: type, **options: object) -> None:
    """As a training run leaves it for use."""
    sae = kind(config(d_in=D, d_sae=F, k=K, metadata=metadata(), **options))
    randomise(sae)
    sae.topk_threshold = torch.tensor(0.7, dtype=torch.double)
    sae.save_inference_model(folder / "sae")
    back = SAE.load_from_disk(folder / "sae")
    write(folder, back.encode, back)


def older(folder: Path, hook: dict[str, object], **options: object) -> None:
    """The files of a version before 6, in which all stands on one level."""
    one(folder, StandardSAE, StandardSAEConfig)
    path = folder / "sae" / "cfg.json"
    config = json.loads(path.read_text())
    config |= config.pop("metadata")
    for name in ("hook_name", "sae_lens_version", "sae_lens_training_version", "reshape_activations"):
        config.pop(name, None)
    config |= {"activation_fn_str": "relu", "activation_fn_kwargs": {}, "finetuning_scaling_factor": False}
    path.write_text(json.dumps({**config, **hook, **options}))
    back = SAE.load_from_disk(folder / "sae")
    write(folder, back.encode, back)


def older_topk(folder: Path) -> None:
    """TopK as versions before 6 say it: an activation function of the standard architecture."""
    one(folder, TopKSAE, TopKSAEConfig, k=K)
    path = folder / "sae" / "cfg.json"
    config = json.loads(path.read_text())
    config |= config.pop("metadata")
    for name in ("k", "sae_lens_version", "sae_lens_training_version"):
        config.pop(name, None)
    config |= {"architecture": "standard", "activation_fn_str": "topk", "activation_fn_kwargs": {"k": K}}
    path.write_text(json.dumps(config))
    back = SAE.load_from_disk(folder / "sae")
    write(folder, back.encode, back)


run(
    {
        "standard": partial(one, kind=StandardSAE, config=StandardSAEConfig),
        "standard_unsubtracted": partial(one, kind=StandardSAE, config=StandardSAEConfig, apply_b_dec_to_input=False),
        "standard_layer_norm": partial(
            one, kind=StandardSAE, config=StandardSAEConfig, normalize_activations="layer_norm"
        ),
        "topk": partial(one, kind=TopKSAE, config=TopKSAEConfig, k=K),
        "topk_layer_norm_unsubtracted": partial(
            one, kind=TopKSAE, config=TopKSAEConfig, k=K, normalize_activations="layer_norm", apply_b_dec_to_input=False
        ),
        "topk_rescaled": partial(one, kind=TopKSAE, config=TopKSAEConfig, k=K, rescale_acts_by_decoder_norm=True),
        "standard_row_norm": partial(
            one, kind=StandardSAE, config=StandardSAEConfig, normalize_activations="constant_norm_rescale"
        ),
        "gated": partial(one, kind=GatedSAE, config=GatedSAEConfig),
        "jumprelu": partial(one, kind=JumpReLUSAE, config=JumpReLUSAEConfig),
        "jumprelu_unsubtracted": partial(one, kind=JumpReLUSAE, config=JumpReLUSAEConfig, apply_b_dec_to_input=False),
        "transcoder": partial(transcoder, kind=Transcoder, config=TranscoderConfig),
        "skip_transcoder": partial(transcoder, kind=SkipTranscoder, config=SkipTranscoderConfig),
        "jumprelu_transcoder": partial(transcoder, kind=JumpReLUTranscoder, config=JumpReLUTranscoderConfig),
        "jumprelu_skip_transcoder": partial(
            transcoder, kind=JumpReLUSkipTranscoder, config=JumpReLUSkipTranscoderConfig
        ),
        "batchtopk": partial(trained, kind=BatchTopKTrainingSAE, config=BatchTopKTrainingSAEConfig),
        "matryoshka": partial(
            trained,
            kind=MatryoshkaBatchTopKTrainingSAE,
            config=MatryoshkaBatchTopKTrainingSAEConfig,
            matryoshka_widths=[6, 12, F],
        ),
        "version_5": partial(older, hook={"hook_name": "blocks.3.hook_resid_post", "hook_layer": 3}),
        "version_3": partial(
            older,
            hook={"hook_point": "blocks.3.hook_resid_post", "hook_point_layer": 3, "normalize_activations": False},
        ),
        "version_5_topk": older_topk,
    }
)
