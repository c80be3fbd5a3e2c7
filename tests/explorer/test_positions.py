"""Prompts and contexts obey the rules of the SAE, whatever these are and whatever its model is."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import monosem as ms
from monosem.errors import DataError
from monosem.explorer.correlation import correlated
from monosem.explorer.dictionary import Dictionary, open_dictionaries
from monosem.explorer.shapes import Question
from monosem.explorer.subject import Subjects
from monosem.models import SubjectModel

TEXTS = [f"the {'old ' * (i % 7)}king went down to the river, and {'never ' * (i % 3)}came home." for i in range(60)]
ROBERTA: dict[str, Any] = {
    "vocab_size": 40,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 24,
    "max_position_embeddings": 98,
    "pad_token_id": 1,
    "bos_token_id": 0,
    "eos_token_id": 2,
    "num_labels": 1,
}


def made(folder: Path, model: SubjectModel, **rules: Any) -> Dictionary:
    """A small dictionary of a model, trained by some rules and harvested."""
    model.module.save_pretrained(folder / "model")  # pyright: ignore[reportCallIssue]
    model.tokenizer.save_pretrained(folder / "model")
    loaded = ms.load_model(str(folder / "model"))
    path = folder / "texts.txt"
    path.with_suffix(".jsonl").write_text("".join(f'{{"text": "{t}"}}\n' for t in TEXTS))
    text = str(path.with_suffix(".jsonl"))
    source = ms.activations(loaded, "resid_post.0", text, context_length=64, buffer_tokens=1024, **rules)
    sae = ms.TopKSAE(source.d_in, 32, k=4)
    config = ms.TrainingConfig(batch_size=64)
    trained = ms.train(sae, source, tokens=640, config=config, progress=False).sae
    trained.save(folder / "run/sae")
    ms.harvest(trained, folder / "run/features", loaded, text=text, tokens=600, progress=False)
    return open_dictionaries([folder / "run"])["run"]


@pytest.mark.filterwarnings("ignore:activations at")
@pytest.mark.parametrize("kind", ["RobertaModel", "RobertaForMaskedLM", "RobertaForSequenceClassification"])
def test_encoders_and_reward_models_answer_prompts(tmp_path: Path, roberta_tokenizer: Any, kind: str) -> None:
    import transformers

    torch.manual_seed(0)
    module = getattr(transformers, kind)(transformers.RobertaConfig(**ROBERTA)).eval()
    dictionary = made(tmp_path, SubjectModel(module, roberta_tokenizer))
    subjects = Subjects()
    found = subjects.prompt(dictionary, Question(text="an old king \ud83d", target="k"))
    names = roberta_tokenizer.convert_ids_to_tokens([token["token"] for token in found["tokens"]])
    assert (names[0], names[-1], names[1:5]) == ("<s>", "</s>", ["a", "n", " ", "o"])
    special = [token["special"] for token in found["tokens"]]
    assert special == [name in ("<s>", "</s>", "<unk>") for name in names]
    assert [bool(token["features"]) for token in found["tokens"]] == [not s for s in special]
    assert found["next"] == []
    assert found["text"] == "an old king \ufffd"
    assert subjects.read(dictionary, "king").logits is None
    subjects.close()


@pytest.mark.filterwarnings("ignore:activations at")
@pytest.mark.parametrize(
    "rules",
    [{"skip_first": 4}, {"packing": False}, {"packing": False, "last_only": True}, {"max_norm_ratio": 1.0}],
    ids=str,
)
def test_prompts_and_contexts_read_the_positions_that_training_reads(
    tmp_path: Path, tiny: SubjectModel, rules: dict[str, Any]
) -> None:
    dictionary, subjects = made(tmp_path, tiny, **rules), Subjects()
    found = subjects.prompt(dictionary, Question(text=TEXTS[3]))
    read = [i for i, token in enumerate(found["tokens"]) if not token["special"]]
    words = len(found["tokens"]) - 1
    assert [i for i, token in enumerate(found["tokens"]) if token["features"]] == read
    if "skip_first" in rules:
        assert read == list(range(4, 1 + words))
    elif "last_only" in rules:
        assert read == [words]
    elif "max_norm_ratio" in rules:
        norms = tiny.capture(TEXTS[3], ["resid_post.0"])["resid_post.0"][0].norm(dim=-1)
        limit = dictionary.sae().metadata.max_norm or {}
        assert read == [i for i in range(1, 1 + words) if norms[i] <= limit["resid_post.0"]]
        assert 0 < len(read) < words
    else:
        assert read == list(range(1, 1 + words))
    latent = int(dictionary.rates.argmax())
    for example in dictionary.store[latent].top[:3]:
        whole = subjects.context(dictionary, example.text, example.context, latent)
        peak = list(zip(whole["document"], whole["position"], strict=True)).index((example.document, example.position))
        assert whole["activations"][peak] == pytest.approx(example.activation, rel=1e-3)
    if "skip_first" in rules:
        with pytest.raises(DataError, match="no position that the SAE reads"):
            subjects.read(dictionary, "the")
    there, _, n = correlated(subjects, dictionary, dictionary)
    assert n >= 40
    assert there.similarities[latent] == pytest.approx(1, abs=1e-3)
    subjects.close()
