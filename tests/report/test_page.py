"""The demo's page in a real browser: slider, filter, keyboard, narrow and wide.

Needs playwright (not among the requirements) and a Chromium on PATH; skips without either.
"""

from __future__ import annotations

import os
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from support.pages import text

from pvp_fast.demo import demo_set
from pvp_fast.report.page import Page, Picture, build_page, png_uri

NAMES = (*(f"category {n}" for n in range(11)), "a rather long name of a thing")
THRESHOLD = 0.42


def make_page() -> Page:
    """Twelve pictures with scores drawn from a fixed seed, a ladder over several seeds."""
    import torch

    draw = random.Random(5)
    pictures = []
    for path in sorted(demo_set().glob("*.jpg"))[:12]:
        truth = tuple(1 if draw.random() < 0.2 else -1 for _ in NAMES)
        scores = tuple(round(draw.random(), 4) for _ in NAMES)
        pictures.append(Picture(path.name, path.read_bytes(), scores, truth))
    rungs = ("zero-shot CLIP", "pseudo visual prompts", "text prompts + transfer", "+ dual adapter")
    spread = {"map_sd": 10.2, "cf1_sd": 10.4, "of1_sd": 10.3}
    line = tuple((float(s), 5.0 / (s + 1), 30.0 + s) for s in range(20))
    return Page(
        names=NAMES,
        sentences=6000,
        examples=("A dog runs.",),
        timings=(("labelled the sentences", 1.0), ("trained the three stages", 60.0)),
        rows=tuple({"name": n, "map": 61.3, "cf1": 52.4, "of1": 60.5, **spread} for n in rungs),
        pictures=tuple(pictures),
        prompts=(png_uri(torch.zeros(8, 8, 3, dtype=torch.uint8)),) * len(NAMES),
        curves=(("visual", line), ("text", line), ("adapter", line)),
        threshold=THRESHOLD,
    )


PAGE = make_page()


def counts(least: float, category: int = -1) -> str:
    """What the page must say for a threshold and a filter."""
    shown = right = wrong = missed = 0
    for picture in PAGE.pictures:
        truth = {i for i, t in enumerate(picture.truth) if t > 0}
        if category >= 0 and category not in truth:
            continue
        order = sorted(range(len(NAMES)), key=lambda i: -picture.scores[i])
        given = {i for i in order[:5] if picture.scores[i] >= least}
        shown += 1
        right += len(given & truth)
        wrong += len(given - truth)
        missed += len(truth - given)
    return f"{shown} pictures: {right} right, {wrong} wrong, {missed} missed"


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> str:
    given = os.environ.get("PVP_FAST_TEST_PAGE")
    if given:  # a real page, to look at its layout
        return Path(given).resolve().as_uri()
    path = tmp_path_factory.mktemp("page") / "index.html"
    path.write_text(build_page(PAGE), encoding="utf-8")
    return path.as_uri()


@pytest.fixture
def page(browser: Any, address: str) -> Iterator[Any]:
    tab = browser.new_page(viewport={"width": 1280, "height": 900})
    tab.complaints = []
    tab.requests = []
    tab.on("console", lambda message: tab.complaints.append(message.text))
    tab.on("pageerror", lambda error: tab.complaints.append(str(error)))
    tab.on("request", lambda request: tab.requests.append(request.url))
    tab.goto(address)
    yield tab
    assert tab.complaints == []
    assert [u for u in tab.requests if not u.startswith(("file:", "data:"))] == []
    tab.close()


def test_it_opens_at_its_threshold_with_every_picture(page: Any) -> None:
    assert text(page, "#value") == f"{THRESHOLD:.2f}"
    assert text(page, "#count") == counts(THRESHOLD)
    assert page.locator(".card:visible").count() == len(PAGE.pictures)
    loaded = "[...document.querySelectorAll('.card img')].every(i => i.complete && i.naturalWidth)"
    page.wait_for_function(loaded)


def test_no_score_reads_as_certainty(page: Any) -> None:
    scores = "[1, 0.995, 0.9949, 0.5, 0.005, 0.0049, 0].map(digits)"
    assert page.evaluate(scores) == [">0.99", ">0.99", "0.99", "0.50", "0.01", "<0.01", "<0.01"]


def test_the_slider_moves_by_keys_and_by_pointer(page: Any) -> None:
    slider = page.locator("#threshold")
    slider.focus()
    page.keyboard.press("ArrowRight")
    assert text(page, "#value") == "0.43"
    assert text(page, "#count") == counts(0.43)
    page.keyboard.press("End")
    assert text(page, "#value") == "1.00"
    assert text(page, "#count") == counts(1.0)
    assert page.locator(".tags .ok, .tags .bad").count() == 0
    page.keyboard.press("Home")
    assert text(page, "#count") == counts(0.0)
    assert page.locator(".tags .ok, .tags .bad").count() == 5 * len(PAGE.pictures)
    box = slider.bounding_box()
    page.mouse.click(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    least = float(text(page, "#value"))
    assert 0.4 <= least <= 0.6
    assert text(page, "#count") == counts(least)


def test_the_filter_shows_one_categorys_pictures(page: Any) -> None:
    present = {i for p in PAGE.pictures for i, t in enumerate(p.truth) if t > 0}
    options = page.locator("#category option").all_inner_texts()
    assert options == ["all pictures", *(n for i, n in enumerate(NAMES) if i in present)]
    for wanted in sorted(present):
        page.select_option("#category", str(wanted))
        assert text(page, "#count") == counts(THRESHOLD, wanted)
        having = sum(p.truth[wanted] > 0 for p in PAGE.pictures)
        assert page.locator(".card:visible").count() == having
    page.select_option("#category", "-1")
    assert text(page, "#count") == counts(THRESHOLD)


def test_the_keyboard_reaches_slider_then_filter(page: Any) -> None:
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.id") == "threshold"
    outline = "getComputedStyle(document.activeElement).outlineStyle"
    assert page.evaluate(outline) == "solid"
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.id") == "category"
    page.keyboard.press("ArrowDown")
    chosen = int(page.locator("#category").input_value())
    assert chosen >= 0
    assert text(page, "#count") == counts(THRESHOLD, chosen)


CELLS = """[...document.querySelectorAll('td')].map(cell => {
  const range = document.createRange(); range.selectNodeContents(cell);
  return range.getBoundingClientRect().height / parseFloat(getComputedStyle(cell).fontSize);
})"""


@pytest.mark.parametrize("width", [1280, 1100, 768, 390, 320])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_nothing_wraps_or_sticks_out(page: Any, width: int, scheme: str) -> None:
    page.emulate_media(color_scheme=scheme)
    page.set_viewport_size({"width": width, "height": 900})
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert max(page.evaluate(CELLS)) < 1.8  # one line each
    pictures = os.environ.get("PVP_FAST_TEST_SCREENSHOTS")
    if pictures:
        page.screenshot(path=f"{pictures}/{width}-{scheme}.png", full_page=True)
