"""The page for everybody: axe-core finds nothing, every text can be read, and nothing moves under slow answers."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import monosem as ms
from monosem.explorer import heads
from monosem.explorer.page import Page
from monosem.features import Explanation, Explanations, FeatureStore
from monosem.models import SubjectModel

sync_api = pytest.importorskip("playwright.sync_api", reason="Playwright is not installed: the page is not tested")
axe_core = pytest.importorskip("axe_playwright_python.sync_playwright", reason="axe-core is not installed")
Look = Callable[..., Any]
MOST_SHIFT = 0.05
LEAST_CONTRAST = 4.5
SLOWER = 4
"""Times that the processor is slower; the browser spends them, waiting at full speed."""
WIDTHS = {"wide": 1280, "narrow": 400}
LYING_OVER = ("home", "overview", "graph")
"""Views with texts over what they are no part of."""

# Of every text that is seen: its contrast with what lies under it, as the style sheet mixes the colours.
CONTRASTS = r"""
() => {
  const numbers = (color) => {
    const found = color.match(/-?[\d.]+(e-?\d+)?/g).map(Number)
    const unit = color.startsWith('color(') ? 1 : 255
    return [...found.slice(0, 3).map((each) => each / unit), found[3] ?? 1]
  }
  const over = ([r, g, b, a], under) => [r, g, b].map((each, i) => each * a + under[i] * (1 - a))
  const light = (color) => color.map((c) => (c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4))
    .reduce((sum, c, i) => sum + c * [0.2126, 0.7152, 0.0722][i], 0)
  const under = (element) => {
    if (!element) return [1, 1, 1]
    return over(numbers(getComputedStyle(element).backgroundColor), under(element.parentElement))
  }
  const found = []
  const walk = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT)
  while (walk.nextNode()) {
    const element = walk.currentNode.parentElement
    if (!walk.currentNode.data.trim() || element.closest('option, :disabled, .hidden, noscript, script')) continue
    if (!element.checkVisibility()) continue
    const ground = under(element)
    const style = getComputedStyle(element)
    const ink = over(numbers(element.closest('svg') ? style.fill : style.color), ground)
    const [low, high] = [light(ink), light(ground)].sort((a, b) => a - b)
    const said = `${element.tagName}.${element.className} ${walk.currentNode.data.trim()}`
    found.push([(high + 0.05) / (low + 0.05), said])
  }
  return found.sort((a, b) => a[0] - b[0])
}
"""

# Marks what is the third or later of its kind in a row: all that is in it (tags, classes, attributes, whether they
# and the text are empty) stands twice in what comes before it there.
AGAIN = """
() => {
  const kinds = new Map()
  const named = (e) => e.getAttributeNames().sort().map((name) => name + Boolean(e.getAttribute(name).trim()))
  const said = (e) => Boolean(e.textContent.trim())
  const kind = (e) => [e.tagName, [...e.classList].sort(), named(e), e.role, e.type, said(e)].join()
  const fill = (element) => {
    const all = new Set([kind(element)])
    for (const child of element.children) for (const each of fill(child)) all.add(each)
    kinds.set(element, all)
    return all
  }
  fill(document.body)
  for (const parent of kinds.keys()) {
    const seen = new Map()
    for (const child of parent.children) {
      const all = [...kinds.get(child)]
      child.toggleAttribute('data-again', all.every((each) => seen.get(each) >= 2))
      for (const each of all) seen.set(each, (seen.get(each) ?? 0) + 1)
    }
  }
  return document.querySelectorAll('[data-again]').length
}
"""

# Adds up what moves, notes every frame after the first paint in which nothing of the page is there, and holds every
# answer back until it is let through.
WATCH = """
window.shift = 0
window.moved = []
window.blank = 0
window.frames = 0
window.held = []
window.asking = 0
const box = ({ x, y, width, height }) => [x, y, width, height].map(Math.round).join(' ')
new PerformanceObserver((list) => {
  for (const entry of list.getEntries()) {
    if (entry.hadRecentInput) continue
    window.shift += entry.value
    for (const { node, previousRect, currentRect } of entry.sources) {
      const what = (node?.outerHTML ?? node?.data ?? '').slice(0, 80)
      window.moved.push(`${window.last}: ${entry.value} ${box(previousRect)} -> ${box(currentRect)} ${what}`)
    }
  }
}).observe({ type: 'layout-shift', buffered: true })
const frame = () => new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))
const ask = window.fetch
window.fetch = async (address, settings) => {
  window.asking += 1
  const answer = await ask(address, settings)
  window.asking -= 1
  await new Promise((go) => window.held.push({ go, address: String(address) }))
  return answer
}
window.letThrough = async () => {
  do await frame()
  while (window.asking)
  const one = window.held.pop()
  if (one) window.last = one.address
  one?.go()
  await frame()
  return Boolean(one)
}
let changed = true
let bare = false
new MutationObserver(() => (changed = true)).observe(document, {
  subtree: true, childList: true, characterData: true, attributes: true,
})
const look = () => {
  if (performance.getEntriesByName('first-contentful-paint').length) {
    if (changed) {
      const main = document.querySelector('main')
      bare = !main?.innerText.trim() && !main?.querySelector('.waiting, svg, canvas')
      changed = false
    }
    window.frames += 1
    if (bare) window.blank += 1
  }
  requestAnimationFrame(look)
}
requestAnimationFrame(look)
"""


@pytest.fixture(scope="module")
def base(
    run_folder: Path,
    second: Any,
    browser: Any,
    start: Any,
    reward_model: Path,
    bundled: SubjectModel,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[str]:
    """The built page on two dictionaries, the first with all that can stand beside one; its model is loaded."""
    folder = shutil.copytree(run_folder, tmp_path_factory.mktemp("accessible") / "small")
    sae = ms.load_sae(folder)
    ms.meta_sae(sae, 16, k=3, tokens=3000, controls=False, progress=False).save(folder / "meta_sae")
    ms.trace(bundled, sae, "The king of", progress=False).save(folder / "graphs" / "king")
    store = FeatureStore(folder)
    for maker in ("rules", "a model"):
        items = [Explanation(latents=[4], text=f"what {maker} says", explainer=maker)]
        Explanations(store.path, maker, items).save()
    with start([folder, second.folder / "features"], Page(), reward=str(reward_model)) as client:
        client.get("/api/compare", a="small", b="second")
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(heads, "DOCUMENTS", 12)
            client.send("POST", "/api/d/small/heads", {})
        client.send("POST", "/api/d/small/token-sets", {})
        yield client.base


def views(latent: int = 4) -> dict[str, tuple[str, str]]:
    """Views that are looked at most: the address of each, and what is there once it is whole."""
    return {
        "home": ("/", "td a"),
        "overview": ("/d/small?limit=8&where=rate+%3C+0.9", "tr[data-index] .name, .sql"),
        "feature": (f"/d/small/f/{latent}", ".passage"),
        "prompt": ("/d/small/prompt?q=The+river", ".cell[data-i]"),
        "two prompts": ("/d/small/prompt?q=She+ran.&r=He+ran.", "th .differs .other"),
        "search": ("/d/small/search?q=the", ".result mark"),
        "all dictionaries": ("/search?q=war", ".result mark"),
        "compare": ("/compare?a=small&b=second", ".pair"),
        "notes": ("/d/small/notes", "main p"),
    }


def further(latent: int = 4) -> dict[str, tuple[str, str]]:
    """The others."""
    return {
        "effects on a token": ("/d/small/prompt?q=The+river&target=+of&order=total", ".cell[data-i]"),
        "search for a token": ("/d/small/search?q=the&kind=token", ".result mark"),
        "map of labels": ("/d/small?shade=labels", "tr[data-index] .name"),
        "heads": ("/d/small/heads", ".text"),
        "graphs": ("/d/small/graphs", "tbody tr"),
        "graph": ("/d/small/graphs/king", "canvas"),
        "token sets": ("/d/small/token-sets", "tbody tr"),
        "features of a class": ("/d/small/token-sets?class=none", "main a[href*='/f/']"),
        "meta-latents": ("/d/small/meta", "main a[href*='/f/']"),
        "a meta-latent": ("/d/small/meta/0", "main a[href*='/f/']"),
        "rating": ("/d/small/rate", "main input"),
        "game": ("/d/small/guess", ".option"),
    }


def written(latent: int = 4) -> dict[str, tuple[str, str]]:
    """Views whose texts are written while they are looked at."""
    text = "q=The+river&t=0&n=6"
    answers = "a=She+ran.&b=He+said+nothing."
    return {
        "playground": (f"/d/small/play?{text}&f={latent}:add:9&dose={latent}", "[aria-label=dose-response] .knee"),
        "doctor": (
            f"/d/small/doctor?{text}&avoid={latent}&f={latent}",
            "[aria-label=avoid] p.text, [aria-label=avoid] p.small",
        ),
        "rewards": (f"/d/small/rewards?q=Who%3F&{answers}", ".sum"),
    }


def whole(visit: Any, sign: str) -> None:
    """Wait until a view is there, and nothing of it is waited for."""
    visit.sees(sign)
    visit.expect(visit.page.locator(".waiting, .stale")).to_have_count(0, timeout=60_000)
    visit.page.evaluate("() => new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))")


def wrong(page: Any, *rules: str) -> list[str]:
    """What axe-core finds on a page as it is, by all its rules or some; of rows of one kind in the first two."""
    options = {"resultTypes": ["violations"], **({"runOnly": list(rules)} if rules else {})}
    context = {"exclude": [["[data-again]"]]} if page.evaluate(AGAIN) else None
    found = axe_core.Axe().run(page, context=context, options=options).response["violations"]
    return [f"{each['id']}: {each['help']}: {node['html'][:200]}" for each in found for node in each["nodes"]]


@pytest.mark.parametrize(
    ("odd", "found"),
    [
        ("<button>ok</button>", None),
        ("<button></button>", "button-name"),
        ("<button aria-label=''></button>", "button-name"),
        ("<img src='x'>", "image-alt"),
        ("<b><button class='icon'></button></b>", "button-name"),
    ],
)
def test_a_fault_in_one_row_of_many_is_found(browser: Any, odd: str, found: str | None) -> None:
    """Rows of which each is like two before it are not read by axe; any other is, wherever it stands."""
    rows = ["<li><button>ok</button></li>"] * 9
    with browser.new_page() as page:
        page.set_content(
            f"<html lang=en><title>rows</title><main><h1>rows</h1><ul>{''.join([*rows, f'<li>{odd}</li>', *rows])}</ul>"
        )
        assert page.evaluate(AGAIN) >= 16
        assert [line.partition(":")[0] for line in wrong(page)] == ([found] if found else [])


@pytest.fixture(scope="module")
def window(look: Look, base: str) -> Iterator[Any]:
    """One for all views, each of which is loaded anew: a window of its own takes the browser as long as a view."""
    with look(base, color_scheme="light") as visit:
        yield visit


@pytest.mark.parametrize("view", views() | further() | written())
def test_axe_finds_nothing_and_every_text_can_be_read(window: Any, view: str) -> None:
    path, sign = (views() | further() | written())[view]
    page = window.page
    window.errors.clear()
    page.emulate_media(color_scheme="light")
    window.open(path)
    whole(window, sign)
    if view == "home":
        page.keyboard.press("?")
        window.sees("dialog h1")
        assert wrong(page) == []
        page.keyboard.press("Escape")
    assert wrong(page) == []
    for scheme in ("light", "dark"):
        page.emulate_media(color_scheme=scheme)
        contrasts = page.evaluate(CONTRASTS)
        assert len(contrasts) > 10
        assert [each for each in contrasts if each[0] < LEAST_CONTRAST] == [], scheme
    if view in LYING_OVER:
        assert wrong(page, "color-contrast") == []
    assert window.errors == []


@pytest.mark.parametrize(("width", "slower"), [("wide", 1), ("narrow", 1), ("narrow", SLOWER)])
def test_whatever_answer_comes_late_no_page_is_blank_and_nothing_moves(
    look: Look, base: str, width: str, slower: int
) -> None:
    """Answers are let through one by one, the newest first: what each of them moves is seen, on any machine.

    A slower processor has more frames between them, in which no page may be blank, however wide.
    """
    wrong = {}
    others = further() | written()
    with look(base, new=True) as visit:
        page = visit.page
        page.set_viewport_size({"width": WIDTHS[width], "height": 900})
        page.add_init_script(WATCH)
        visit.context.new_cdp_session(page).send("Emulation.setCPUThrottlingRate", {"rate": slower})
        for view, (path, sign) in (
            views() if slower > 1 else others if width == "narrow" else views() | others
        ).items():
            visit.open(path)
            page.locator("header nav").wait_for()
            while page.evaluate("() => window.letThrough()"):
                pass
            whole(visit, sign)
            shift, blank, frames, moved = page.evaluate("[window.shift, window.blank, window.frames, window.moved]")
            assert frames > 3
            if blank or shift > MOST_SHIFT:
                wrong[view] = (blank, shift, moved)
    assert wrong == {}
