"""Several latents at once: a group, the features nearest to a direction, what one dictionary has and another lacks."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from monosem.errors import ConfigError, MismatchError
from monosem.explain.evidence import Evidence
from monosem.explain.find import Found, find_rule
from monosem.explain.rules import NAME, Rules
from monosem.explain.say import Sayer
from monosem.explain.strongest import strongest_first
from monosem.features import Clause, Explanation, Explanations, FeatureStore, Rule
from monosem.features.files import PART
from monosem.sae import SAE

COUNTERPART = 0.7
"""Cosine from which a latent of another dictionary counts as the same feature."""


def explain_group(store: FeatureStore, latents: Sequence[int]) -> Explanation:
    """What several latents fire on together: by a rule that holds wherever that of one of them does.

    What more of them share comes first.

    Raises:
        ConfigError: fewer than two latents, or one that is not there.
        DataError: the store is not of text, or too old.
    """
    wanted = sorted({int(latent) for latent in latents})
    if len(wanted) < 2 or wanted[0] < 0 or wanted[-1] >= store.n_latents:
        raise ConfigError(f"a group is of two latents at least, of 0 to {store.n_latents - 1}: got {list(latents)}")
    shares: dict[Clause, tuple[float, float, float]] = {}
    parts = {part: Evidence(store, part) for part in sorted({latent // PART for latent in wanted})}
    for part, evidence in parts.items():
        for latent in (latent for latent in wanted if latent // PART == part):
            found = find_rule(evidence, latent)
            found = None if found is None else strongest_first(evidence, latent, found)
            known = zip(found.rule.clauses, found.strong, found.precise, strict=True) if found else ()
            for clause, strong, precise in known:
                for bare, share in _single(clause):
                    before = shares.get(bare, (0.0, 0.0, 0.0))
                    shares[bare] = before[0] + clause.share * share, before[1] + strong * share, max(before[2], precise)
    n = len(wanted)
    order = sorted(shares, key=lambda clause: (-shares[clause][1], clause.model_dump_json()))
    clauses = tuple(clause.model_copy(update={"share": min(1.0, shares[clause][0] / n)}) for clause in order)
    strong, precise = (tuple(shares[clause][i] for clause in order) for i in (1, 2))
    together = Found(Rule(clauses=clauses), 0.0, tuple(share / n for share in strong), precise)
    text = Sayer(next(iter(parts.values()))).line(together) if clauses else "nothing plain"
    return Explanation(latents=wanted, text=text, explainer=NAME, rule=together.rule if clauses else None)


def _single(clause: Clause) -> list[tuple[Clause, float]]:
    """A clause of words by themselves as one of each, so that what several latents share is found; and its share."""
    bare = clause.model_copy(update={"share": 0.0})
    if len(clause.words) < 2 or bare != Clause(words=clause.words):
        return [(bare, 1.0)]
    return [(Clause(words=(word,)), 1 / len(clause.words)) for word in clause.words]


@torch.no_grad()
def explain_direction(store: FeatureStore, sae: SAE, direction: Float[Tensor, " d_out"], n: int = 3) -> Explanation:
    """What a direction in the model's activations is made of: the features whose decoder rows point most alike.

    Args:
        store: the dictionary's features; their explanations are made where they are lacking.
        sae: the dictionary.
        direction: such as a probe, a steering vector, a row of another dictionary.
        n: how many features to name.

    Raises:
        MismatchError: the direction is of another width.
        ConfigError: it is zero or not finite.
    """
    rows = sae.decoder_directions(range(sae.n_latents)).float().flatten(1)
    if direction.numel() != rows.shape[1]:
        raise MismatchError(f"the direction has {direction.numel()} numbers, a decoder row {rows.shape[1]}")
    flat = direction.detach().to(rows).flatten()
    if not torch.isfinite(flat).all() or not flat.norm() > 0:
        raise ConfigError("a direction is finite and not zero")
    cosines = torch.nn.functional.cosine_similarity(rows, flat[None], dim=1)
    best = cosines.topk(min(n, len(cosines)))
    said = _said(store, best.indices.tolist())
    named = [
        f"{cosine:.2f} of {latent} ({said.get(latent, store[latent].title)})"
        for cosine, latent in zip(best.values.tolist(), best.indices.tolist(), strict=True)
    ]
    sure = max(0.0, min(1.0, float(best.values[0])))
    return Explanation(latents=best.indices.tolist(), text="; ".join(named), explainer=NAME, sure=sure)


@torch.no_grad()
def explain_difference(store: FeatureStore, sae: SAE, other: SAE, counterpart: float = COUNTERPART) -> Explanations:
    """What a dictionary has and another of the same activations lacks: its features without a counterpart there.

    Args:
        store: the dictionary's features.
        sae: the dictionary.
        other: the other one.
        counterpart: cosine of decoder rows from which two latents are the same feature.

    Returns:
        Explanations of the features that fire and have none, the least alike first.

    Raises:
        MismatchError: the decoder rows are of different widths.
    """
    ours, theirs = (
        torch.nn.functional.normalize(one.decoder_directions(range(one.n_latents)).float().flatten(1), dim=1)
        for one in (sae, other)
    )
    if ours.shape[1] != theirs.shape[1]:
        raise MismatchError(f"decoder rows of {ours.shape[1]} and of {theirs.shape[1]} numbers have no cosine")
    closest = torch.cat([(part @ theirs.T).amax(1) for part in ours.split(1024)])
    fires = set(store.table(where="count > 0", limit=None, columns=["latent"]).column("latent").to_pylist())
    alone = [latent for latent in closest.argsort().tolist() if closest[latent] < counterpart and latent in fires]
    made = {item.latents[0]: item for item in reversed(Rules().explain(store, alone))}
    return Explanations(store.path, NAME, [made[latent] for latent in alone if latent in made])


def _said(store: FeatureStore, latents: Sequence[int]) -> dict[int, str]:
    known = store.explanations()
    found = {latent: known[latent].text for latent in latents if known.get(latent) is not None}
    lacking = [latent for latent in latents if latent not in found]
    if lacking and store.words is not None:
        found |= {item.latents[0]: item.text for item in reversed(Rules(estimate=False).explain(store, lacking))}
    return found
