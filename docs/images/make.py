"""Makes the explorer's pictures again: `python docs/images/make.py runs/demo [--beside RUN] [--smollm2 RUN] ...`.

It takes the run of `make demo`, another run of the same model with another seed for the comparison, the run of `make
smollm2`, and the runs of recipes/smollm2_transcoders; a picture whose run is not given stays as it is. Runs are copied:
nothing is written into them. What needs other things is not made here: `circuit.png` (four transcoders), `rewards.png`
(a reward model), `rating.png` (two explainers), `optimised.png` and `dose.svg` (docs/vision.md and docs/steering.md say
how).

LOOK at each picture afterwards.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from playwright.sync_api import Page as Window
from playwright.sync_api import sync_playwright

import monosem as ms
from monosem.explorer import open_dictionaries
from monosem.explorer.app import make_app
from monosem.explorer.page import Page
from monosem.explorer.server import Server, listen

HERE = Path(__file__).parent
BROWSERS = ("chromium", "chromium-browser", "google-chrome")
WAIT = 600_000
"""Milliseconds."""
TEXT = "She put her hand upon the river bank and looked down at the water."
PROMPTS = ("The king of France was a great man. The queen of France was a great", "The king of England was a great")

LONG = (
    "On a cold and rainy day in the middle of October Mary and John went to the store in the old part of the town by "
    "the river. They bought bread, apples and a large bottle of fresh milk, and after they had paid for everything at "
    "the counter, John gave the bottle of milk to"
)


@contextmanager
def served(runs: list[Path]) -> Iterator[str]:
    """The address of a server of some runs."""
    with listen("127.0.0.1", 0) as listening:
        server = Server(make_app(open_dictionaries(runs), page=Page()))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]}, daemon=True)
        thread.start()
        while not server.started:
            time.sleep(0.01)
        try:
            yield f"http://127.0.0.1:{listening.getsockname()[1]}"
        finally:
            server.should_exit = True
            thread.join(timeout=20)


class Camera:
    """A window of a browser, and what is kept of it."""

    def __init__(self, window: Window, base: str) -> None:
        self.window, self.base = window, base

    def open(self, path: str, sign: str, width: int = 1280) -> None:
        """Go to an address and wait until all of it is there."""
        self.window.set_viewport_size({"width": width, "height": 900})
        self.window.goto(self.base + path)
        self.settle(sign)

    def settle(self, sign: str) -> None:
        """Wait for something, and that nothing is waited for."""
        self.window.locator(sign).first.wait_for()
        self.window.wait_for_load_state("networkidle")
        self.window.wait_for_function("!document.querySelector('main .waiting, main .stale, main [aria-busy=true]')")

    def take(self, name: str, height: int = 900, of: str | None = None) -> None:
        """Keep what is in sight, or an element, as docs/images/NAME.png."""
        path = HERE / f"{name}.png"
        self.window.mouse.move(0, 0)
        if of is None:
            width = self.window.viewport_size["width"] if self.window.viewport_size else 1280
            self.window.set_viewport_size({"width": width, "height": height})
            self.window.wait_for_timeout(500)
            self.window.screenshot(path=path)
        else:
            self.window.locator(of).first.screenshot(path=path)
        print(f"{path.name}  {path.stat().st_size // 1024} KB", flush=True)


def of_the_demo(camera: Camera, run: Path) -> dict[str, Callable[[], None]]:
    """The pictures that the demo's run is enough for."""
    api = camera.window.request
    notable = api.get(f"{camera.base}/api/d/demo").json()["notable"]
    first, second = notable[0], notable[1]
    page = f"/d/demo/f/{first}"

    def overview() -> None:
        camera.open("/d/demo", "tr[data-index] .name")
        camera.settle("canvas")
        camera.take("overview")

    def feature() -> None:
        camera.open(page, ".passage")
        camera.take("feature")

    def explanation() -> None:
        camera.open(f"/d/demo/f/{second}", ".explanations")
        camera.take("explanation", 560)

    def ablated() -> None:
        answers = iter(range(11))
        camera.open(page, ".passage")
        with camera.window.expect_event("response", lambda answer: next(answers, None) is None):
            camera.window.get_by_role("button", name="ablate").click()
        to_passages = "(it) => scrollTo(0, it.getBoundingClientRect().top + scrollY - 60)"
        camera.window.locator(".evidence").evaluate(to_passages)
        camera.take("ablated", 434)

    def prompt() -> None:
        camera.open(f"/d/demo/prompt?q={TEXT}", ".cell[data-i]")
        camera.take("prompt")

    def prompts() -> None:
        camera.open("/d/demo/prompt?q=She looked at the river.&r=She looked at the clock.", ".cell[data-i]")
        camera.take("prompts")

    def meaning() -> None:
        camera.open("/d/demo/search?q=countries&kind=meaning", ".result .line .token, .result .line mark")
        camera.take("meaning")

    def play() -> None:
        strong = 0.8 * api.get(f"{camera.base}/api/d/demo/f/{first}").json()["max"]
        written = f"/d/demo/play?q=The old man&t=0&n=30&f={first}:add:{strong:.1f}"
        camera.open(written, "[aria-label=Steered] .tokens, section:nth-child(2) .tokens")
        camera.take("play", 560)
        camera.open(f"{written}&dose={first}", "[aria-label=dose-response] .knee")
        camera.take("doses", 1060)

    def doctor() -> None:
        text = "The war was one of the most important battles of the century, and the king was killed."
        asked = {"prompt": text, "chat": False, "answers": []}
        found = api.post(f"{camera.base}/api/d/demo/diagnose", data=asked, timeout=WAIT).json()
        unusual = [each["latent"] for each in found["prompt"]["unusual"]]
        latent = next(latent for latent in unusual if found["features"][str(latent)]["name"])
        camera.open(f"/d/demo/doctor?q={text}&f={latent}&avoid={latent}&n=30", "[aria-label=avoid] p.text")
        camera.take("doctor", 1300)

    def heads() -> None:
        camera.window.request.post(f"{camera.base}/api/d/demo/heads", data={}, timeout=WAIT)
        camera.open("/d/demo/heads?h=3.1", ".text", 1180)
        camera.take("heads", 1180)

    def graph() -> None:
        model, sae = ms.load_model("bundled"), ms.load_sae(run)
        for name, text in zip(("france", "england"), PROMPTS, strict=True):
            ms.trace(model, sae, text, progress=False).save(run / "graphs" / name)
        camera.open("/d/demo/graphs/france", "canvas")
        camera.take("graph", 860)
        camera.open("/d/demo/graphs/france?beside=england", "canvas")
        camera.take("graphs", 860)

    made = (overview, feature, explanation, ablated, prompt, prompts, meaning, play, doctor, heads, graph)
    return {each.__name__: each for each in made}


def of_two(camera: Camera) -> None:
    """The demo beside a run of another seed."""
    camera.open("/compare?a=demo&b=seed1", ".pair")
    camera.take("compare")


def of_smollm2(camera: Camera) -> None:
    """SmolLM2's dictionary."""
    camera.open("/d/smollm2/search?q=Germany", ".result mark")
    camera.take("smollm2_search")
    camera.open("/d/smollm2/search?q=war&kind=meaning", ".result mark")
    latent = camera.window.locator(".result a").first.get_attribute("href")
    camera.open(str(latent), ".passage")
    camera.take("smollm2_feature")


def of_the_transcoders(camera: Camera, runs: Path, folder: Path) -> None:
    """A graph of SmolLM2's thirty transcoders, as one file."""
    coders = [ms.load_sae(run) for run in sorted(runs.glob("mlp_in.*"))]
    graph = ms.trace(ms.load_model(str(coders[0].metadata.model)), coders, LONG, max_features=2000)
    print(graph.audit())
    path = graph.pruned(0.35, 0.9).html(folder / "circuit.html")
    camera.base = ""
    camera.open(path.as_uri(), "canvas")
    camera.take("smollm2_circuit", 1000)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="of make demo")
    parser.add_argument("--beside", type=Path, help="a run of another seed")
    parser.add_argument("--smollm2", type=Path, help="of make smollm2")
    parser.add_argument("--transcoders", type=Path, help="of recipes/smollm2_transcoders, a folder of runs")
    parser.add_argument("--only", nargs="*", help="of the demo's pictures these alone")
    given = parser.parse_args()
    browser_path = next((path for name in BROWSERS if (path := shutil.which(name))), None)
    if browser_path is None:
        sys.exit(f"no browser: install one of {', '.join(BROWSERS)}")
    with tempfile.TemporaryDirectory() as temporary, sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=browser_path, args=["--no-sandbox"])
        window = browser.new_page(color_scheme="light")
        window.set_default_timeout(WAIT)

        def copied(run: Path, name: str) -> Path:
            leave = shutil.ignore_patterns("checkpoints", "*.notes.sqlite")
            return shutil.copytree(run, Path(temporary) / name, ignore=leave)

        demo = copied(given.run, "demo")
        with served([demo]) as base:
            for name, make in of_the_demo(Camera(window, base), demo).items():
                if not given.only or name in given.only:
                    make()
        if given.beside:
            with served([demo, copied(given.beside, "seed1")]) as base:
                of_two(Camera(window, base))
        if given.smollm2:
            with served([copied(given.smollm2, "smollm2")]) as base:
                of_smollm2(Camera(window, base))
        if given.transcoders:
            of_the_transcoders(Camera(window, ""), given.transcoders, Path(temporary))
        browser.close()


if __name__ == "__main__":
    main()
