"""What heads bring from each token, taken apart by what has written it there."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from monosem.circuits.sites import Dictionaries, sites_of
from monosem.errors import ConfigError
from monosem.interventions.number import number_of
from monosem.interventions.way import Put, Site, Way
from monosem.kernels import index_add_
from monosem.models import EditContext, SubjectModel
from monosem.models.blocks import NormWeights, block_module, block_norm, block_of, matrix, norm_weights, value_matrix


class Source(NamedTuple):
    """Something that has written to the stream at a token, and what a head brings of it."""

    head: int
    token: int
    """Its place in the text."""
    place: str
    """The hook point where it is written: "embed", "attn_out.L" or "mlp_out.L" (`attn_z.L` of features of an SAE
    there); "bias" of the norm and of values."""
    latent: int
    """-1: what no dictionary explains there."""
    value: float

    @property
    def name(self) -> str:
        return self.place if self.latent < 0 else f"{self.place} {self.latent}"


@dataclass(frozen=True)
class Sources:
    """All parts of what heads bring, as columns."""

    heads: Int[Tensor, " parts"]
    tokens: Int[Tensor, " parts"]
    places: Int[Tensor, " parts"]
    latents: Int[Tensor, " parts"]
    values: Float[Tensor, " parts"]
    names: list[str] = field(repr=False)
    """Of places."""

    def top(self, k: int = 10) -> list[Source]:
        """The largest, whatever their sign."""
        return [self[i] for i in self.values.abs().topk(min(k, len(self.values))).indices.tolist()]

    def __getitem__(self, i: int) -> Source:
        place = self.names[int(self.places[i])]
        return Source(int(self.heads[i]), int(self.tokens[i]), place, int(self.latents[i]), float(self.values[i]))

    def __len__(self) -> int:
        return len(self.values)

    @property
    def total(self) -> float:
        """What heads bring in all."""
        return float(self.values.sum())

    def by_place(self) -> dict[str, float]:
        """The sums of what each place has written, features and rest apart."""
        found: dict[str, float] = {}
        for place, name in enumerate(self.names):
            for words, chosen in ((f"{name} features", self.latents >= 0), (name, self.latents < 0)):
                picked = chosen & (self.places == place)
                if bool(picked.any()):
                    found[words] = float(self.values[picked].sum())
        return found


@torch.no_grad()
def sources_of(
    model: SubjectModel,
    tokens: Int[Tensor, " pos"],
    layer: int,
    pattern: Float[Tensor, "heads sources"],
    readers: Float[Tensor, "heads d_head"],
    dictionaries: Dictionaries,
) -> Sources:
    """As `DirectAttribution.sources`: of each head's reader of values, where its query has so much attention."""
    block = block_of(model)
    given = sites_of(model, dictionaries) if dictionaries else []
    places = [f"{kind}.{i}" for i in range(layer) for kind in ("attn_out", "mlp_out")]
    writers = {site.write.replace("attn_z.", "attn_out."): site for site in given}
    late = [site.write for place, site in writers.items() if place not in places]
    if late:
        raise ConfigError(
            f"{late[0]} is nothing that layers before {layer} have added: give {', '.join(places) or 'none'}"
        )
    written, stream = _written(model, tokens, layer, places, list(writers.values()))
    weight, bias, kv_heads = value_matrix(model, block, layer)
    norm = block_norm(model, layer, block.attention_norm)
    by_value = weight.to(readers).unflatten(0, (kv_heads, -1)).repeat_interleave(len(readers) // kv_heads, dim=0)
    plain = torch.einsum("hd,hdi->hi", readers, by_value)
    before = norm.read_before(plain)
    looked = pattern / norm.scale(stream.to(readers))[:, 0]
    columns: list[tuple[Tensor, Tensor, Tensor, Tensor, Tensor]] = []
    names = ["embed", *places, *(site.write for site in given if site.write not in places), "bias"]

    def add(place: str, latent: Tensor, token: Tensor, values: Float[Tensor, "entries heads"]) -> None:
        n, heads = values.shape
        columns.append(
            (
                torch.arange(heads).repeat(n),
                token.cpu().repeat_interleave(heads),
                torch.full((n * heads,), names.index(place)),
                latent.cpu().long().repeat_interleave(heads),
                values.flatten().cpu(),
            )
        )

    every = torch.arange(len(tokens))
    for place, x in written.items():
        rest = x.to(readers)
        site = writers.get(place)
        if site is not None:
            token = site.kept.nonzero()[:, 1][site.entries.rows()]
            rows = _added(model, site, place, written, site.sae.decoder_directions(site.entries.indices.long()), token)
            codes = site.entries.values.to(readers)
            values = codes[:, None] * (rows.to(readers) @ before.T) * looked[:, token].T
            add(site.write, site.entries.indices, token, values)
            rest = rest - index_add_(torch.zeros_like(rest), token, codes[:, None] * rows.to(readers))
        add(place, torch.full_like(every, -1), every, rest @ before.T * looked.T)
    constant = torch.zeros(len(readers)).to(readers)
    if norm.bias is not None:
        constant = constant + plain @ norm.bias.to(readers)
    if bias is not None:
        own = bias.to(readers).unflatten(0, (kv_heads, -1)).repeat_interleave(len(readers) // kv_heads, dim=0)
        constant = constant + (readers * own).sum(-1)
    add("bias", torch.full_like(every, -1), every, (pattern * constant[:, None]).T)
    heads, at, where, latents, values = (torch.cat(column) for column in zip(*columns, strict=True))
    return Sources(heads, at, where, latents, values, names)


def _written(
    model: SubjectModel, tokens: Int[Tensor, " pos"], layer: int, places: list[str], sites: list[Site]
) -> tuple[dict[str, Tensor], Tensor]:
    """What each place has added at every token, the embedding first; and the stream that all of it makes."""
    seen: dict[str, Tensor] = {}

    def keep(name: str) -> Put:
        def look(x: Tensor, context: EditContext) -> Tensor:
            seen[name] = x[0].clone()
            return x

        return look

    def looking(site: Site) -> Put:
        def look(x: Tensor, context: EditContext) -> Tensor:
            site.look(x, context)
            return x

        return look

    way = Way(model, sites, tokens[None], number_of(model, lambda _: torch.zeros(1)))
    functions = [(site.write, looking(site)) for site in sites]
    way.run([*functions, *((name, keep(name)) for name in ("embed", *places, f"resid_pre.{layer}"))])
    return {name: seen[name] for name in ("embed", *places)}, seen[f"resid_pre.{layer}"]


def _added(
    model: SubjectModel, site: Site, place: str, written: dict[str, Tensor], rows: Tensor, token: Tensor
) -> Float[Tensor, "entries d"]:
    """Decoder rows as what they add to the stream: those of the heads side by side through the output matrix."""
    if not site.write.startswith("attn_z."):
        return rows
    block, layer = block_of(model), int(place.rpartition(".")[2])
    rows = rows @ matrix(block_module(model, layer, block.output))[0].to(rows).T
    if block.after_attention is None:
        return rows
    assert site.x is not None
    output, bias = matrix(block_module(model, layer, block.output))
    raw = site.x[0] @ output.to(site.x).T + (0 if bias is None else bias.to(site.x))
    norm: NormWeights = norm_weights(block_module(model, layer, block.after_attention))
    rows = (rows - rows.mean(-1, keepdim=True) if norm.centred else rows) * norm.weight.to(rows)
    return rows / norm.scale(raw).to(rows)[token]
