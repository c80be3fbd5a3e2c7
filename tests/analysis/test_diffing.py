"""Two models by one crosscoder: latent scaling by least squares, planted artefacts, identical models, refusals."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch

import monosem as ms
from monosem.analysis import CausalCheck, ModelDiff
from monosem.errors import ConfigError, MismatchError
from monosem.models import SubjectModel

HOOK, D = "resid_post.0", 6


def relu_crosscoder(decoders: torch.Tensor, encoders: torch.Tensor) -> ms.Crosscoder:
    """With such rows (latents, source, d), and no transform."""
    n, sources, d = decoders.shape
    made = ms.Crosscoder(d, n, n_sources=sources, k=1, sparsity="l1", transform="none")
    with torch.no_grad():
        made.W_dec.copy_(decoders.flatten(1))
        made.W_enc.copy_(encoders.flatten(1))
        made.b_enc.zero_()
        made.b_dec.zero_()
    return made


def test_a_beta_is_the_least_squares_solution() -> None:
    torch.manual_seed(0)
    crosscoder = relu_crosscoder(torch.randn(5, 2, D), torch.randn(5, 2, D))
    with torch.no_grad():
        crosscoder.b_dec.normal_()
    x = torch.randn(200, 2, D)
    found = ms.latent_scaling(crosscoder, x.split(70))
    codes = crosscoder.encode(x).to_dense().detach().double()
    rows = crosscoder.W_dec.detach().double().view(5, 2, D)
    centred = x.double() - crosscoder.b_dec.detach().double().view(2, D)
    for latent in range(5):
        own = int(rows[latent].norm(dim=-1).argmax())
        assert int(found.own[latent]) == own
        for source in range(2):
            without = codes.clone()
            without[:, latent] = 0
            design = (codes[:, latent, None] * rows[latent, own]).reshape(-1, 1)
            for name, y in (
                ("error", centred[:, source] - without @ rows[:, source]),
                ("reconstruction", codes @ rows[:, source]),
            ):
                wanted = torch.linalg.lstsq(design, y.reshape(-1, 1)).solution
                assert float(getattr(found, name)[latent, source]) == pytest.approx(float(wanted), abs=1e-5)


def test_wrongly_exclusive_latents_are_told_from_those_that_are_exclusive() -> None:
    """Three features of the second model: its own; shrunk to nothing in the first's row; in another latent there."""
    torch.manual_seed(0)
    amounts = torch.rand(400, 3) * (torch.rand(400, 3) < 0.3)
    axes = torch.eye(D)
    x = torch.stack([amounts[:, 1:2] * 0.6 * axes[1] + amounts[:, 2:] * axes[2], amounts @ axes[:3]], 1)
    decoders, encoders = torch.zeros(4, 2, D), torch.zeros(4, 2, D)
    for latent in range(3):
        decoders[latent, 1] = encoders[latent, 1] = axes[latent]
    decoders[3, 0] = encoders[3, 0] = axes[2]
    crosscoder = relu_crosscoder(decoders, encoders)
    scaling = ms.latent_scaling(crosscoder, [x])
    torch.testing.assert_close(scaling.ratio("error"), torch.tensor([0.0, 0.6, 0.0, 0.0]), atol=1e-5, rtol=0)
    torch.testing.assert_close(scaling.ratio("reconstruction"), torch.tensor([0.0, 0.0, 1.0, 1.0]), atol=1e-5, rtol=0)
    nothing = torch.zeros(0)
    diff = ModelDiff(
        ("a", "b"),
        crosscoder.relative_norms()[:, 1].detach(),
        nothing,
        scaling,
        CausalCheck(nothing.long(), nothing, nothing, nothing, nothing),
        400,
    )
    assert diff.kinds == ["only b", "only b", "only b", "only a"]
    assert diff.confirmed.tolist() == [True, False, False, False]


@pytest.fixture
def trained(tiny: SubjectModel) -> tuple[ms.Crosscoder, str]:
    text = "".join(chr(97 + int(i)) for i in torch.randint(0, 26, (6000,), generator=torch.Generator().manual_seed(0)))
    return ms.Crosscoder(tiny.d_model, 32, k=4), text


def test_identical_models_have_no_exclusive_latent_and_the_same_effects(
    tiny: SubjectModel, trained: tuple[ms.Crosscoder, str]
) -> None:
    crosscoder, text = trained
    both = ms.ModelSet([tiny, tiny])
    source = ms.activations(both, HOOK, [text], buffer_tokens=512)
    ms.train(crosscoder, source, tokens=2000, config=ms.TrainingConfig(batch_size=64), progress=False)
    options: dict[str, Any] = {"text": [text], "rows": 500, "contexts": 4, "checked": 4, "progress": False}
    diff = ms.diff_models(crosscoder, both, names=("it", "itself"), **options)
    assert set(diff.kinds) <= {"shared", "silent"}
    assert len(diff.of("shared")) > 4
    assert not diff.confirmed.any()
    torch.testing.assert_close(diff.shares, torch.full((32,), 0.5))
    torch.testing.assert_close(diff.cosines, torch.ones(32))
    torch.testing.assert_close(diff.scaling.error[:, 0], diff.scaling.error[:, 1], equal_nan=True)
    assert diff.causal.agreement.tolist() == pytest.approx([1.0] * 4, abs=1e-5)
    assert diff.causal.exchanged.tolist() == pytest.approx([1.0] * 4, abs=1e-5)
    assert diff.causal.size.tolist() == pytest.approx([1.0] * 4, abs=1e-5)
    assert float(diff.causal.by_chance.max()) < 0.999
    assert "it and itself" in str(diff)

    other = copy.deepcopy(tiny.module)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.copy_(torch.randn_like(parameter) * 0.3)
    strange = ms.ModelSet([tiny, SubjectModel(other, tiny.tokenizer, "other")])
    with pytest.warns(UserWarning, match="mean norm"):
        apart = ms.diff_models(crosscoder, strange, **options)
    assert float(apart.causal.agreement.nan_to_num().abs().mean()) < 0.9


def test_what_cannot_be_compared_is_refused(tiny: SubjectModel, trained: tuple[ms.Crosscoder, str]) -> None:
    crosscoder, text = trained
    both = ms.ModelSet([tiny, tiny])
    options: dict[str, Any] = {"text": [text], "progress": False}
    with pytest.raises(ConfigError, match="models must be a ModelSet"):
        ms.diff_models(crosscoder, tiny, HOOK, **options)  # type: ignore[arg-type]
    for models in (ms.ModelSet([tiny]), ms.ModelSet([tiny] * 3)):
        with pytest.raises(ConfigError, match="compares two models"):
            ms.diff_models(crosscoder, models, HOOK, **options)
    for sae in (ms.TopKSAE(tiny.d_model, 32, k=4), ms.Crosscoder(tiny.d_model, 32, n_sources=3, k=4)):
        with pytest.raises(ConfigError, match=r"needs a crosscoder|must be a Crosscoder"):
            ms.diff_models(sae, both, HOOK, **options)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="say where"):
        ms.diff_models(crosscoder, both, **options)
    outside: list[dict[str, Any]] = [{"rows": 0}, {"checked": -1}, {"contexts": 0}, {"names": ("a", "a")}]
    for wrong in outside:
        with pytest.raises(ConfigError, match="at least 1"):
            ms.diff_models(crosscoder, both, HOOK, **options, **wrong)
    with pytest.raises(MismatchError):
        ms.diff_models(ms.Crosscoder(tiny.d_model + 1, 32, k=4), both, HOOK, **options)
    with pytest.raises(ConfigError, match=r"two models or more|must be a Crosscoder"):
        ms.latent_scaling(ms.TopKSAE(4, 8, k=2), [])  # type: ignore[arg-type]
    nothing = torch.zeros(0)
    empty = CausalCheck(nothing.long(), nothing, nothing, nothing, nothing)
    diff = ModelDiff(("a", "b"), nothing, nothing, ms.latent_scaling(crosscoder, []), empty, 1)
    with pytest.raises(ConfigError, match="no kind"):
        diff.of("only c")
