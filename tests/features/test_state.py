"""A harvest's state: against brute force, at any cut into batches, merged, saved."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from streams import LATENTS, LENGTH, SMALL, Stream, assert_equal

from monosem.codes import SparseCodes
from monosem.errors import ConfigError, FileError
from monosem.features import Harvest, HarvestSettings
from monosem.features.streaming import BINS_AN_OCTAVE, LOWEST_EXPONENT, N_BINS, SAMPLE_BINS, bins_of, hashes

Passage = tuple[float, int, int, list[int], list[float], int]


def firings(stream: Stream, latent: int) -> list[tuple[float, int, int]]:
    """(activation, context, offset) of a latent, by plain loops."""
    found: list[tuple[float, int, int]] = []
    for context in range(len(stream.batch)):
        for offset in range(LENGTH):
            if stream.kept[context, offset] and stream.dense[context, offset, latent] > 0:
                found.append((float(stream.dense[context, offset, latent]), context, offset))
    return found


def strongest(stream: Stream, latent: int, n: int, before: int, after: int) -> list[Passage]:
    """A latent's best place in each text, strongest first, with its window."""
    best: dict[int, tuple[float, int, int]] = {}
    for value, context, offset in firings(stream, latent):
        content = int(stream.batch.content[context, offset])
        if value > best.get(content, (0, 0, 0))[0]:
            best[content] = (value, context, offset)
    passages: list[Passage] = []
    for value, context, offset in sorted(best.values(), key=lambda place: -place[0])[:n]:
        document = int(stream.batch.document[context, offset])
        window = range(max(0, offset - before), min(LENGTH, offset + after + 1))
        window = [q for q in window if not stream.batch.padding[context, q]]
        activations = [float(stream.dense[context, q, latent]) for q in window]
        tokens = [int(stream.batch.tokens[context, q]) for q in window]
        passages.append((value, document, int(stream.batch.position[context, offset]), tokens, activations, offset))
    return passages


@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    n=st.sampled_from([1, 3, 7, 100]),
    window=st.sampled_from([(0, 0), (2, 1), (20, 8)]),
    cuts=st.lists(st.integers(1, 20), max_size=6),
)
def test_the_strongest_are_those_of_brute_force_one_per_text(
    letter_tokenizer: type, seed: int, n: int, window: tuple[int, int], cuts: list[int]
) -> None:
    stream = Stream(seed, letter_tokenizer)
    harvest = stream.harvest(cuts, settings=HarvestSettings(top=n, before=window[0], after=window[1]))
    for latent in range(LATENTS):
        expected = strongest(stream, latent, n, *window)
        slots = [i for i in range(harvest.layout.n_top) if harvest.slots.place[latent, i] >= 0]
        slots = sorted(slots, key=lambda i: -harvest.slots.activation[latent, i])[:n]
        assert len(slots) == len(expected)
        for slot, (value, document, position, tokens, activations, offset) in zip(slots, expected, strict=True):
            row = {name: column[latent, slot] for name, column in harvest.slots._asdict().items()}
            assert (row["activation"], row["document"], row["position"]) == (value, document, position)
            assert row["place"] & 0xFFFF == offset
            assert row["tokens"][: len(tokens)].tolist() == tokens
            shown = row["shades"][: len(tokens)] * (row["scale"] / 255)
            np.testing.assert_allclose(shown, activations, atol=max(activations) / 255 + 1e-9)
            assert ((row["shades"][: len(tokens)] > 0) == (np.array(activations) > 0)).all()


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 10_000), cuts=st.lists(st.integers(1, 20), max_size=4))
def test_totals_are_exact(letter_tokenizer: type, seed: int, cuts: list[int]) -> None:
    stream = Stream(seed, letter_tokenizer)
    harvest = stream.harvest(cuts)
    dense = stream.dense[stream.kept].double().numpy()
    assert harvest.n_tokens == len(dense)
    assert np.array_equal(harvest.totals.count, (dense > 0).sum(0))
    np.testing.assert_allclose(harvest.totals.sum, dense.sum(0), rtol=1e-12)
    np.testing.assert_allclose(harvest.totals.square, (dense**2).sum(0), rtol=1e-12)
    assert np.array_equal(harvest.totals.max, dense.max(0).astype(np.float32))
    edges = 2.0 ** (LOWEST_EXPONENT + np.arange(N_BINS + 1) / BINS_AN_OCTAVE)
    edges[0], edges[-1] = 0, np.inf
    for latent in range(LATENTS):
        on = dense[dense[:, latent] > 0, latent]
        assert np.array_equal(harvest.totals.histogram[latent], np.histogram(on, edges)[0])
    tokens = Counter(stream.batch.tokens[stream.kept].tolist())
    assert {t: c for t, c in enumerate(harvest.token_counts) if c} == dict(tokens)


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 10_000), scale=st.sampled_from([0.2, 1.0, 4.0]))
def test_samples_are_those_of_smallest_hash_in_every_bin(letter_tokenizer: type, seed: int, scale: float) -> None:
    """Bins a third of an octave wide below the final maximum, and one for the rest."""
    stream = Stream(seed, letter_tokenizer, scale)
    harvest = stream.harvest([3, 7])
    first = stream.harvest([]).slots.place[0, 0] >> 48 << 48
    for latent in range(LATENTS):
        found = firings(stream, latent)
        coarse = bins_of(np.array([value for value, *_ in found])) // 2
        places = np.array([first + (context << 16) + offset for _, context, offset in found])
        keys = hashes(SMALL.seed, np.full(len(found), latent), places)
        group = np.where(coarse > coarse.max() - SAMPLE_BINS, coarse, -1)
        expected: set[int] = set()
        for g in set(group.tolist()):
            members = np.flatnonzero(group == g)
            expected |= set(places[members[np.argsort(keys[members])[: SMALL.sample]]].tolist())
        slots = slice(harvest.layout.n_top, harvest.layout.slots - SMALL.near)
        held = harvest.slots.place[latent, slots]
        assert sorted(held[held >= 0].tolist()) == sorted(expected)


@settings(max_examples=20, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    cuts=st.lists(st.integers(1, 20), max_size=5),
    where=st.integers(1, 10),
    backwards=st.booleans(),
)
def test_partial_harvests_add_up_to_one_of_all(
    letter_tokenizer: type, seed: int, cuts: list[int], where: int, backwards: bool
) -> None:
    stream = Stream(seed, letter_tokenizer)
    where = min(where, len(stream.batch) - 1)
    parts = [stream.harvest(cuts, 0, where), stream.harvest([], where)]
    merged = parts[1].merge(parts[0]) if backwards else parts[0].merge(parts[1])
    assert_equal(merged, stream.harvest([4, 9]), sums=1e-12)


def test_merging_three_in_any_grouping_is_the_same(letter_tokenizer: type) -> None:
    stream = Stream(1, letter_tokenizer)

    def parts() -> list[Harvest]:
        return [stream.harvest([], *bounds) for bounds in ((0, 5), (5, 8), (8, len(stream.batch)))]

    a, b, c = parts()
    left = a.merge(b).merge(c)
    a, b, c = parts()
    assert_equal(left, c.merge(a).merge(b), sums=1e-12)


def test_what_does_not_belong_together_does_not_merge(letter_tokenizer: type) -> None:
    stream = Stream(1, letter_tokenizer)
    with pytest.raises(ConfigError, match="contexts 3 to 8 of random"):
        stream.harvest([], 0, 6).merge(stream.harvest([], 3, 8))
    with pytest.raises(ConfigError, match="different settings"):
        stream.harvest([], 0, 6).merge(stream.harvest([], 6, 8, SMALL.model_copy(update={"seed": 6})))


def test_another_seed_keeps_other_samples_and_the_same_strongest(letter_tokenizer: type) -> None:
    stream = Stream(1, letter_tokenizer)
    a, b = stream.harvest([]), stream.harvest([], settings=SMALL.model_copy(update={"seed": 6}))
    n = a.layout.n_top
    assert np.array_equal(np.sort(a.slots.place[:, :n]), np.sort(b.slots.place[:, :n]))
    assert not np.array_equal(np.sort(a.slots.place[:, n:]), np.sort(b.slots.place[:, n:]))


def test_samples_are_uniform(letter_tokenizer: type) -> None:
    """Over many seeds every firing of a bin is sampled equally often."""
    stream = Stream(2, letter_tokenizer, scale=0.0)  # all activations are 1: one bin
    seen: Counter[int] = Counter()
    for seed in range(300):
        harvest = stream.harvest([], settings=SMALL.model_copy(update={"seed": seed}))
        held = harvest.slots.place[3, harvest.layout.n_top : -SMALL.near]
        seen.update(held[held >= 0].tolist())
    n = len(firings(stream, 3))
    expected = 300 * SMALL.sample / n
    assert len(seen) == n
    assert max(abs(count - expected) for count in seen.values()) < 5 * expected**0.5


def test_near_misses_were_off_and_close(letter_tokenizer: type) -> None:
    stream = Stream(3, letter_tokenizer)
    harvest = stream.harvest([5])
    off = stream.pre.masked_fill(stream.on, 0)
    third = off.topk(3).values[..., -1]
    n = 0
    for latent in range(LATENTS):
        for slot in range(harvest.layout.slots - SMALL.near, harvest.layout.slots):
            place = int(harvest.slots.place[latent, slot])
            if place >= 0:
                n += 1
                context, offset = place >> 16 & 0xFFFFFFFF, place & 0xFFFF
                assert stream.kept[context, offset]
                assert not stream.on[context, offset, latent]
                assert harvest.slots.activation[latent, slot] == off[context, offset, latent] >= third[context, offset]
    assert n == LATENTS * SMALL.near


def test_stored_zeros_and_batches_without_codes_are_nothing(letter_tokenizer: type) -> None:
    stream = Stream(0, letter_tokenizer)
    stream.dense[..., 4] = 0
    batch, kept, codes, _ = stream.part(0, len(stream.batch))
    values, indices = codes.to_dense().topk(LATENTS, dim=-1)
    harvest = Harvest(LATENTS, 128, LENGTH, text="random", settings=SMALL)
    harvest.add(batch, kept, SparseCodes.from_top_k(values, indices.int(), LATENTS))
    plain = Harvest(LATENTS, 128, LENGTH, text="random", settings=SMALL)
    plain.add(batch, kept, codes)
    assert_equal(harvest, plain)
    assert harvest.totals.count[4] == 0
    empty = Harvest(LATENTS, 128, LENGTH, settings=SMALL)
    empty.add(batch, kept, SparseCodes.from_dense(0 * codes.to_dense()))
    empty.add(batch, kept & False, codes[:0])
    assert empty.n_tokens == int(kept.sum())
    assert (empty.slots.place == -1).all()


def test_memory_is_fixed_and_below_8_kib_a_latent() -> None:
    harvest = Harvest(4096, 4096, 256)
    n = harvest.settings.silent_windows
    columns = {name: np.zeros((n, *empty.shape[1:]), empty.dtype) for name, empty in harvest.windows.kept()[1].items()}
    harvest.windows.add(np.arange(n, dtype=np.uint64), columns)
    assert 8000 < harvest.memory_per_latent <= 8192


def test_a_state_loads_back_as_it_was_saved_and_goes_on(letter_tokenizer: type, tmp_path: Path) -> None:
    stream = Stream(4, letter_tokenizer)
    whole, part = stream.harvest([6]), stream.harvest([], 0, 6)
    part.save(tmp_path / "state.safetensors")
    loaded = Harvest.load(tmp_path / "state.safetensors")
    assert_equal(loaded, part)
    batch, kept, codes, off = stream.part(6, len(stream.batch))
    best = off.topk(3)
    loaded.add(batch, kept, codes, lambda rows: (best.values[rows], best.indices[rows]))
    assert_equal(loaded, whole)


@pytest.mark.parametrize("damage", ["missing", "torn", "another file"])
def test_a_damaged_state_is_named(letter_tokenizer: type, tmp_path: Path, damage: str) -> None:
    from safetensors.numpy import save_file

    path = tmp_path / "state.safetensors"
    Stream(4, letter_tokenizer).harvest([]).save(path)
    if damage == "missing":
        path.unlink()
    elif damage == "torn":
        path.write_bytes(path.read_bytes()[:3000])
    else:
        save_file({"x": np.zeros(3)}, path)
    with pytest.raises(FileError, match=r"state\.safetensors"):
        Harvest.load(path)
