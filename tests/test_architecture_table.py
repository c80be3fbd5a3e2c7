"""Every architecture behind every transform through every operation: exact by an identity, or refused in words."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from architecture_table import ARCHITECTURES, DOCS, OPERATIONS, REFUSED, TRANSFORMS, made, refusal, written
from torch import Tensor

import monosem as ms
from monosem.errors import MonosemError
from monosem.sae import SAE, BatchTopKSAE
from monosem.sae.transform import TransformKind
from monosem.training.revival import RevivalConfig

D, N, ROWS, DEAD = 6, 24, 60, 5
CELLS = [(architecture, transform) for architecture in ARCHITECTURES for transform in made(architecture)]


def rows(shape: tuple[int, ...], seed: int) -> Tensor:
    """Rows of correlated entries, far from 0."""
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(shape[-1], shape[-1], generator=generator, dtype=torch.float64)
    return torch.randn(ROWS, *shape, generator=generator, dtype=torch.float64) @ mixing + 2


class Cell:
    """One SAE with all that is random, and what it reads and must predict."""

    def __init__(self, architecture: str, transform: TransformKind) -> None:
        name, options = ARCHITECTURES[architecture]
        self.sae = SAE.registry[name](D, N, transform=transform, dtype=torch.float64, **options)
        self.x = rows(self.sae.in_shape, 1)
        self.target = None if self.sae.subtract_b_dec else rows(self.sae.out_shape, 2)
        generator = torch.Generator().manual_seed(3)
        with torch.no_grad():
            for parameter in self.sae.parameters():
                parameter.copy_(0.5 * torch.randn(parameter.shape, generator=generator, dtype=torch.float64))
            for parameter in (self.sae.get_parameter(name) for name in self.sae.unit_rows):
                parameter.flatten(1).div_(parameter.flatten(1).norm(dim=1, keepdim=True))
            if name.startswith("jumprelu"):
                self.sae.get_parameter("threshold").abs_()
        if isinstance(self.sae, BatchTopKSAE):
            self.sae.running_threshold.fill_(0.2)
            self.sae.threshold_weight.fill_(0.5)
        self.sae.fit_transforms(self.x, self.target)

    @property
    def goal(self) -> Tensor:
        return self.x if self.target is None else self.target

    def error(self, sae: SAE) -> Tensor:
        """Of an SAE, squared, in the units that it is trained in."""
        raw = self.x.flatten(1)
        goal = sae.target_transform(self.goal.flatten(1), raw)
        return (goal - sae.target_transform(sae(self.x).reconstruction.flatten(1), raw)).pow(2).sum()


def same(found: SAE, cell: Cell) -> None:
    """The same reconstructions, and the same latents on."""
    before, after = cell.sae(cell.x), found(cell.x)
    assert after.codes.l0().sum() > 0
    torch.testing.assert_close(after.reconstruction, before.reconstruction, rtol=1e-8, atol=1e-8)
    assert torch.equal(after.codes.to_dense() > 0, before.codes.to_dense() > 0)


def fold(cell: Cell, _: Path) -> None:
    folded = ms.fold(cell.sae)
    assert folded.transform.kind == folded.target_transform.kind == "none"
    same(folded, cell)


def unfold(cell: Cell, _: Path) -> None:
    kind, wanted = cell.sae.transform, cell.sae.target_transform
    bare = ms.fold(cell.sae) if kind.kind == "none" else _bare(cell)
    cell.sae = bare
    same(ms.unfold(bare, kind, wanted), cell)


def _bare(cell: Cell) -> SAE:
    """Of the same weights, without transforms."""
    name = cell.sae.architecture
    bare = SAE.registry[name](
        D,
        N,
        transform="none",
        dtype=torch.float64,
        d_out=None if cell.sae.subtract_b_dec else cell.sae.d_out,
        **cell.sae.settings,
    )
    known = {key: value for key, value in cell.sae.state_dict().items() if "transform." not in key}
    bare.load_state_dict(known, strict=False)
    return bare


def silence(sae: SAE) -> None:
    """Let the first latents be on nowhere."""
    if sae.architecture == "matching_pursuit":
        sae.W_dec[:DEAD] = 0
    else:
        sae.b_enc[:DEAD] = -1e4


def prune(cell: Cell, _: Path) -> None:
    sae = cell.sae
    silence(sae)
    small = ms.prune(sae, range(DEAD, N))
    before, after = sae(cell.x), small(cell.x)
    torch.testing.assert_close(after.codes.to_dense(), before.codes.to_dense()[..., DEAD:])
    torch.testing.assert_close(after.reconstruction, before.reconstruction)


def convert(cell: Cell, _: Path) -> None:
    other = ms.convert(cell.sae, "jumprelu")
    same(other, cell)
    torch.testing.assert_close(other.encode(cell.x).to_dense(), cell.sae.encode(cell.x).to_dense())


def fix_suppression(cell: Cell, _: Path) -> None:
    with torch.enable_grad():
        fixed = ms.fix_suppression(cell.sae, cell.x, cell.target)
    assert torch.equal(fixed.encode(cell.x).to_dense(), cell.sae.encode(cell.x).to_dense())
    assert cell.error(fixed) < cell.error(cell.sae)


def pursue(cell: Cell, _: Path) -> None:
    sae, raw = cell.sae, cell.goal.flatten(1)
    codes = ms.pursue(sae, cell.goal, k=3)
    rebuilt = sae.target_transform(sae.decode(codes, cell.x).flatten(1), raw)
    products = (sae.target_transform(raw) - rebuilt) @ sae.W_dec.T
    assert codes.l0().max() <= 3
    assert products[codes.to_dense() != 0].abs().max() < 1e-8


def save(cell: Cell, folder: Path) -> None:
    cell.sae.save(folder)
    again = SAE.load(folder)
    assert repr(again) == repr(cell.sae)
    assert torch.equal(again(cell.x).reconstruction, cell.sae(cell.x).reconstruction)


def evaluate(cell: Cell, _: Path) -> None:
    sae, goal = cell.sae.float(), cell.goal.float().double().flatten(1)
    if cell.target is not None:
        with pytest.raises(MonosemError, match="target=y"):
            ms.evaluate(sae, cell.x)
    controls = sae.transform.kind in ("centre_scale", "layer_norm")
    report = ms.evaluate(sae, cell.x, target=cell.target, controls=controls)
    error = goal - sae(cell.x.float()).reconstruction.flatten(1).double()
    fvu = error.pow(2).sum() / (goal - goal.mean(0)).pow(2).sum()
    assert report["fvu"].value == pytest.approx(fvu.item(), rel=1e-6)
    assert list(report.columns) == ["SAE", "mean", *(["PCA", "neurons", "random"] if controls else [])]
    assert report.columns["mean"]["fvu"].value == pytest.approx(1)


def revival(method: str) -> Callable[[Cell, Path], None]:
    """Latents that are said to be dead change otherwise than by the loss alone, the others just by it."""

    def run(cell: Cell, folder: Path) -> None:
        if method == "resample":
            silence(cell.sae)
        cell.sae.save(folder)
        ends: list[SAE] = []
        for chosen in ("none", method):
            sae = SAE.load(folder)
            config = ms.TrainingConfig(
                batch_size=ROWS, clip_gradient=None, revival=RevivalConfig.model_validate({"method": chosen})
            )
            trainer = ms.Trainer(sae, config, total_tokens=8 * ROWS)
            trainer.tokens_since_fired[:DEAD] = 10**6
            trainer.tokens = 0 if method == "resample" else 10**6
            with torch.enable_grad():
                assert trainer.step(cell.x, cell.target).loss.isfinite()
            ends.append(sae)
        every = torch.arange(N)
        encoders, decoders = ([sae.part(every)[side] for sae in ends] for side in (0, 2))
        for without, with_it in (encoders, decoders):
            assert torch.equal(with_it[DEAD:], without[DEAD:])
        assert any((with_it[:DEAD] != without[:DEAD]).any() for without, with_it in (encoders, decoders))

    return run


RUN: dict[str, Callable[[Cell, Path], None]] = {
    "fold": fold,
    "unfold": unfold,
    "prune": prune,
    "convert": convert,
    "fix_suppression": fix_suppression,
    "pursue": pursue,
    "save": save,
    "evaluate": evaluate,
    **{name: revival(name) for name in ("aux_k", "ghost", "ghost_scaled", "pre_activation", "resample")},
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_no_step_of_training_leaves_memory_behind(architecture: str, dtype: torch.dtype) -> None:
    """Gradients are kept for the next step where it asks for their memory, and nowhere else."""
    name, options = ARCHITECTURES[architecture]
    sae = SAE.registry[name](D, N, dtype=dtype, **options)
    trainer, held = ms.Trainer(sae), list[int]()
    for seed in range(6):
        x = rows(sae.in_shape, seed).to(dtype)
        trainer.step(x, None if sae.subtract_b_dec else rows(sae.out_shape, seed).to(dtype))
        held.append(trainer.buffers.held)
    assert held[-1] == held[1]


@torch.no_grad()
@pytest.mark.parametrize("operation", OPERATIONS)
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_cell_is_exact_or_refused_in_words(operation: str, architecture: str, tmp_path: Path) -> None:
    for transform in made(architecture):
        cell, known = Cell(architecture, transform), refusal(operation, architecture, transform)
        if known is None:
            RUN[operation](cell, tmp_path / transform)
            continue
        with pytest.raises(MonosemError, match=known.words):
            RUN[operation](cell, tmp_path / transform)


def test_what_cannot_be_made_is_refused_in_words() -> None:
    for architecture in ARCHITECTURES:
        for transform in TRANSFORMS:
            known = refusal("make", architecture, transform)
            if known is not None:
                with pytest.raises(MonosemError, match=known.words):
                    Cell(architecture, transform)


def test_the_table_has_every_architecture_and_is_in_the_docs() -> None:
    assert {name for name, _ in ARCHITECTURES.values()} == set(SAE.registry)
    assert set(RUN) == set(OPERATIONS) >= {name for known in REFUSED for name in known.operations} - {"make"}
    page = DOCS.read_text()
    assert written(page) == page
