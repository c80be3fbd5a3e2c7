"""The API of what features do: to a passage, a next token, a text that is written, a reward; and of mending prompts."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Annotated

from fastapi import FastAPI, Query
from fastapi.responses import Response, StreamingResponse

from monosem.explorer import shapes
from monosem.explorer.answers import answer, to_json
from monosem.explorer.doctor import avoided, diagnosed
from monosem.explorer.doses import Doses, told_doses
from monosem.explorer.effects import ablated_context, total_effects
from monosem.explorer.lanes import Lanes
from monosem.explorer.rewards import compared_rewards
from monosem.explorer.site import Site

Number = Annotated[int, Query(ge=0, le=2**31 - 1)]


def add_effect_routes(app: FastAPI, site: Site, lanes: Lanes) -> None:
    """Add them."""

    @app.get("/api/d/{name}/f/{latent}/effects", response_model=shapes.Ablated)
    async def effects(name: str, latent: int, text: str, context: Number) -> Response:
        """What ablating a feature does to each token of a harvested context."""
        return await lanes.model.run(lambda: answer(ablated_context(site.subjects, site[name], text, context, latent)))

    @app.post("/api/d/{name}/total", response_model=shapes.Totals)
    async def total(name: str, asked: shapes.AskedTotal) -> Response:
        """What features add to the logit of a next token, by ablating each over a whole prompt."""
        return await lanes.model.run(lambda: answer(total_effects(site.subjects, site[name], asked)))

    @app.post("/api/d/{name}/f/{latent}/doses", responses={200: {"content": {"application/x-ndjson": {}}}})
    async def doses(name: str, latent: int, asked: shapes.AskedDoses) -> Response:
        """Effect and fluency of texts steered with a feature, dose by dose, each a line of JSON."""
        dictionary = site[name]
        dictionary.check(latent)
        made = await lanes.model.run(
            lambda: site.subjects.ask(dictionary, lambda sae, model: Doses(dictionary, asked, latent, sae, model))
        )

        async def lines() -> AsyncIterator[bytes]:
            async for told in told_doses(site.subjects, made):
                yield to_json(told) + b"\n"

        return StreamingResponse(lines(), media_type="application/x-ndjson", headers={"cache-control": "no-store"})

    @app.post("/api/d/{name}/diagnose", response_model=shapes.Diagnosis)
    async def diagnose(name: str, asked: shapes.AskedDiagnosis) -> Response:
        """Which features a prompt and its answers trigger that are unusual."""
        return await lanes.model.run(lambda: answer(diagnosed(site.subjects, site[name], asked)))

    @app.post("/api/d/{name}/avoid", response_model=shapes.Avoidance)
    async def avoid(name: str, asked: shapes.AskedAvoidance) -> Response:
        """Which words of a prompt trigger features, and prompts in which they fire less."""
        return await lanes.model.run(lambda: answer(avoided(site.subjects, site[name], asked)))

    @app.post("/api/d/{name}/rewards", response_model=shapes.Rewards)
    async def rewards(name: str, asked: shapes.AskedRewards) -> Response:
        """What a reward model gives two answers, and the features that make the difference."""
        return await lanes.model.run(lambda: answer(compared_rewards(site.subjects, site[name], asked)))
