"""Live activations: every token once, with its right activation, well mixed, and any pool again from its number."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from monosem.activations import IterableActivations, LiveActivations, VectorActivations, activations, batches
from monosem.activations.live import probe_rows
from monosem.data import Document, PackedText
from monosem.errors import ConfigError, DataError, HookError
from monosem.models import SubjectModel

VOCABULARY = 1500
SHAPES = [
    {"context_length": 16, "buffer_tokens": 320, "prepend_bos": True},
    {"context_length": 16, "buffer_tokens": 640, "prepend_bos": False},
    {"context_length": 7, "buffer_tokens": 300, "prepend_bos": True},
]


class NumberTokenizer:
    """Texts are token ids with spaces between."""

    bos_token_id, eos_token_id = 0, 1

    def __call__(self, texts: list[str], **_: Any) -> dict[str, list[list[int]]]:
        return {"input_ids": [[int(word) for word in text.split()] for text in texts]}

    def get_vocab(self) -> dict[str, int]:
        return {str(i): i for i in range(VOCABULARY)}


@pytest.fixture(scope="module")
def texts() -> list[str]:
    """60 documents of 1 to 40 tokens, in which no token stands twice."""
    generator = torch.Generator().manual_seed(0)
    ids, found = iter(range(2, VOCABULARY)), list[str]()
    for length in torch.randint(1, 40, (60,), generator=generator).tolist():
        found.append(" ".join(str(next(ids)) for _ in range(length)))
    return found


@pytest.fixture(scope="module")
def model(make_gpt2: Callable[..., nn.Module]) -> SubjectModel:
    """A random GPT-2 in float64, of which the first coordinate of `embed` is the token id."""
    module = make_gpt2(seed=2, width=16, layers=2, heads=2, vocabulary=VOCABULARY, dtype=torch.float64)
    with torch.no_grad():
        module.get_parameter("transformer.wte.weight")[:, 0] = torch.arange(VOCABULARY)
        module.get_parameter("transformer.wpe.weight")[:, 0] = 0
    return SubjectModel(module, NumberTokenizer(), "numbers")


def blocks(source: LiveActivations, n: int) -> list[tuple[int, int]]:
    """(token, document) of the first n blocks of the stream, by one read; special tokens have document -1."""
    per_block = max(1, int(source._block_contexts))
    batch = PackedText(
        source.contexts.documents,
        source.contexts.tokenizer,
        source.context_length,
        prepend_bos=bool(source.metadata.prepend_bos),
        seed=source.seed,
    ).read(0, n * per_block)
    return list(zip(batch.tokens.reshape(-1).tolist(), batch.document.reshape(-1).tolist(), strict=True))


@pytest.mark.parametrize("shape", SHAPES)
def test_every_token_of_the_blocks_comes_once_in_its_own_pool_or_the_next(
    model: SubjectModel, texts: list[str], shape: dict[str, Any]
) -> None:
    source = LiveActivations(model, "embed", texts, seed=3, **shape)
    pools = [Counter(source.make_pool(number)[:, 0].long().tolist()) for number in range(5)]
    read = [blocks(source, n) for n in range(6)]
    for n in range(5):
        block = Counter(token for token, document in read[n + 1][len(read[n]) :] if document >= 0)
        own, following = pools[n], pools[n + 1] if n < 4 else Counter()
        if n < 4:
            assert not block - (own + following)
    real = Counter(token for token, document in read[5] if document >= 0)
    before_last = Counter(token for token, document in read[4] if document >= 0)
    found = sum(pools, Counter[int]())
    assert not found - real, "a token came that is not in the blocks, or came too often"
    assert not before_last - found, "a token of the first four blocks never came"
    assert min(found) >= 2, "a special token came"


@pytest.mark.parametrize("hook", ["resid_post.1", "mlp_mid.0"])
def test_rows_are_what_a_plain_capture_gives(model: SubjectModel, texts: list[str], hook: str) -> None:
    """With one pool over, every row of the first three blocks is there, once."""
    source = LiveActivations(model, hook, texts, context_length=16, buffer_tokens=160, seed=1)
    rows = torch.cat([source.make_pool(number) for number in range(4)])
    text = PackedText([Document(t) for t in texts], NumberTokenizer(), 16, seed=1).read(0, 40)
    expected = torch.cat(
        [
            model.capture(tokens[None], [hook])[hook][0][real]
            for tokens, real in zip(text.tokens, ~text.special, strict=True)
        ]
    )
    n_sure = int((~text.special[:30]).sum())
    distances = torch.cdist(expected, rows.double(), compute_mode="donot_use_mm_for_euclid_dist")
    nearest = distances.argmin(1)
    assert (distances[:n_sure].min(1).values < 1e-3).all()
    assert len(set(nearest[:n_sure].tolist())) == n_sure
    assert (distances.min(0).values < 1e-3).all(), "a row is of no token"
    assert rows.dtype == torch.float32
    assert rows.shape[1] == source.d_in == expected.shape[1]


def test_a_pool_made_by_a_fresh_source_is_the_same_to_the_bit(model: SubjectModel, texts: list[str]) -> None:
    def fresh(seed: int = 5) -> LiveActivations:
        return LiveActivations(model, "resid_post.0", texts, context_length=16, buffer_tokens=320, seed=seed)

    one = fresh()
    in_order = [one.pool(number) for number in range(4)]
    for number in (3, 1, 0):
        assert torch.equal(fresh().pool(number), in_order[number])
    assert torch.equal(one.pool(1), in_order[1])
    assert not torch.equal(fresh(6).pool(1)[:50], in_order[1][:50])


def test_batches_from_any_place_are_the_batches_of_the_whole(model: SubjectModel, texts: list[str]) -> None:
    def fresh() -> LiveActivations:
        return LiveActivations(model, "resid_post.0", texts, context_length=16, buffer_tokens=320)

    stream = batches(fresh(), 100)
    first = [next(stream) for _ in range(12)]
    for i in (0, 2, 3, 7):
        again = batches(fresh(), 100, first[i][1])
        for j in range(i + 1, i + 4):
            x, place = next(again)
            assert torch.equal(x, first[j][0])
            assert place == first[j][1]


def test_special_tokens_are_left_out_or_kept_as_asked(model: SubjectModel, texts: list[str]) -> None:
    def tokens(**options: Any) -> list[int]:
        source = LiveActivations(model, "embed", texts, context_length=16, buffer_tokens=320, **options)
        pools = [source.make_pool(number) for number in range(3)]
        return [int(x) for x in torch.cat(pools)[:, 0]]

    without, with_them = tokens(exclude_special=True), tokens(exclude_special=False)
    assert min(without) >= 2
    assert {0, 1} <= set(with_them)
    assert Counter(t for t in with_them if t >= 2) == Counter(without)
    assert 0 not in tokens(exclude_special=False, prepend_bos=False)


def test_a_pool_mixes_many_documents_and_two_blocks(model: SubjectModel, texts: list[str]) -> None:
    document_of = {int(word): i for i, text in enumerate(texts) for word in text.split()}
    source = LiveActivations(model, "embed", texts, context_length=16, buffer_tokens=400, seed=7)
    pools = [source.make_pool(number)[:, 0].long().tolist() for number in range(2)]
    size = len(blocks(source, 1))
    both = blocks(source, 2)
    first = {token for token, document in both[:size] if document >= 0}
    second = {token for token, document in both[size:] if document >= 0}
    share = sum(token in first for token in pools[1]) / len(pools[1])
    assert 0.3 < share < 0.7
    assert set(pools[1]) <= first | second
    documents = [document_of[token] for token in pools[1]]
    neighbours = sum(a == b for a, b in itertools.pairwise(documents)) / len(documents)
    by_chance = sum((n / len(documents)) ** 2 for n in Counter(documents).values())
    assert neighbours < by_chance + 0.06
    assert len(set(documents)) >= 20
    from_first = [token in first for token in pools[1]]
    halves = [sum(half) / len(half) for half in (from_first[: len(documents) // 2], from_first[len(documents) // 2 :])]
    assert abs(halves[0] - halves[1]) < 0.2


def test_activations_that_are_not_finite_are_named_with_hook_and_context(
    make_gpt2: Callable[..., nn.Module], texts: list[str]
) -> None:
    module = make_gpt2(seed=2, width=16, layers=2, heads=2, vocabulary=VOCABULARY)
    model = SubjectModel(module, NumberTokenizer(), "numbers")
    source = LiveActivations(model, "embed", texts, context_length=16, buffer_tokens=320)
    batch = source.contexts.read(0, 60)
    context, position = 45, 9
    token = batch.tokens[context, position]
    assert not (batch.tokens[:45] == token).any()
    with torch.no_grad():
        module.get_parameter("transformer.wte.weight")[token] = float("nan")
    for number in range(2):
        source.make_pool(number)
    with pytest.raises(DataError, match="embed are not finite in context 45, position 9"):
        source.make_pool(2)


def test_what_cannot_be_read_is_said_before_anything_is_run(model: SubjectModel, texts: list[str]) -> None:
    with pytest.raises(ConfigError, match="context_length 65 is longer than the model's own 64"):
        activations(model, "embed", texts, context_length=65)
    with pytest.raises(HookError, match=r"resid_post\.0"):
        activations(model, "resid_post.2", texts)
    with pytest.raises(DataError, match="empty"):
        activations(model, "embed", ["", " "])
    with pytest.raises(DataError, match="no tokenizer"):
        activations(SubjectModel(model.module), "embed", texts)
    with pytest.raises(ConfigError, match="name the hook point"):
        activations(model)


def test_an_sae_can_remember_where_the_activations_came_from(model: SubjectModel, texts: list[str]) -> None:
    source = activations(model, "blocks.1.hook_resid_post", texts, context_length=16)
    known = source.metadata
    assert (known.model, known.hook, known.context_length, known.prepend_bos) == ("numbers", "resid_post.1", 16, True)
    assert known.model_fingerprint == model.fingerprint()
    assert known.exclude_special is True
    assert known.text == "60 texts given as a list"


def test_the_probe_stands_for_rows_that_the_model_gives_again(model: SubjectModel, texts: list[str]) -> None:
    source = LiveActivations(model, "resid_post.1", texts, context_length=16, buffer_tokens=320)
    probe = source.probe()
    assert probe["tokens"].shape == probe["kept"].shape == (2, 16)
    x = source.probe_activations(probe)
    whole = model.capture(probe["tokens"].long(), ["resid_post.1"])["resid_post.1"].float()
    assert torch.equal(x, whole[probe["kept"]])
    assert torch.equal(x, probe_rows(model, "resid_post.1", probe))


def test_activations_takes_what_the_face_promises(model: SubjectModel, texts: list[str]) -> None:
    x = torch.randn(20, 4)
    assert isinstance(activations(x), VectorActivations)
    assert isinstance(activations(x.numpy()), VectorActivations)
    assert isinstance(activations(iter([x])), IterableActivations)
    live = activations(model, "embed", texts, context_length=8)
    assert isinstance(live, LiveActivations)
    assert activations(live) is live


def test_the_default_context_is_the_model_s_own(model: SubjectModel, texts: list[str]) -> None:
    assert LiveActivations(model, "embed", texts).context_length == 64


def test_rows_carry_no_gradient(model: SubjectModel, texts: list[str]) -> None:
    rows: Tensor = LiveActivations(model, "embed", texts, context_length=16, buffer_tokens=64).pool(0)
    assert not rows.requires_grad
