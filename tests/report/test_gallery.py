"""The gallery of a tagged set: what it says, what it escapes, and how it works in a browser."""

from __future__ import annotations

import json
import os
import random
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from support.pages import text

from pvp_fast.cli import run
from pvp_fast.demo import demo_set
from pvp_fast.errors import InputError
from pvp_fast.evaluation import read_folder
from pvp_fast.report.gallery import (
    Entry,
    build_gallery,
    locate,
    read_tags,
    with_labels,
    with_thumbnails,
)
from pvp_fast.tagging import Tag, TagResult

EVIL = "</script><script>alert(1)</script><img src=x onerror='alert(2)'>{{ data }}"
NAMES = ("dog", "cat", "teddy bear", EVIL)
MANY = 3000
THRESHOLD = 0.3


def make_entries() -> list[Entry]:
    """Thousands of entries over a few real thumbnails, with scores drawn from a fixed seed."""
    draw = random.Random(3)
    few = [Entry(path.name) for path in sorted(demo_set().glob("*.jpg"))[:4]]
    pictures = [entry.thumbnail for entry in with_thumbnails(few, demo_set(), size=48)]
    entries = []
    for number in range(MANY):
        tags = tuple((name, round(draw.random(), 3)) for name in NAMES if draw.random() < 0.5)
        truth = frozenset(name for name in NAMES if draw.random() < 0.3)
        picture = pictures[number % len(pictures)]
        entries.append(Entry(f"photo {number:04}.jpg", tags, None, truth, picture))
    entries[7] = replace(entries[7], name=f"{EVIL}.jpg")
    return [*entries, Entry("broken & torn.jpg", error="damaged: <b>")]


ENTRIES = make_entries()
GOOD = [entry for entry in ENTRIES if entry.error is None]


def counts(least: float, words: str = "", tag: str | None = None) -> str:
    """What the page must say for a threshold, a search and a chosen tag."""
    images = tags = right = 0
    for entry in GOOD:
        kept = [name for name, score in entry.tags if score >= least]
        hit = words in entry.name.lower() or any(words in name.lower() for name in kept)
        if not hit or (tag is not None and tag not in kept):
            continue
        images += 1
        tags += len(kept)
        right += sum(name in (entry.truth or ()) for name in kept)
    return f"{images} of {len(GOOD)} images, {tags} tags" + (f", {right} right" if tags else "")


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("gallery") / "index.html"
    path.write_text(build_gallery(ENTRIES, title=EVIL, threshold=THRESHOLD), encoding="utf-8")
    return path.as_uri()


@pytest.fixture
def page(browser: Any, address: str) -> Iterator[Any]:
    tab = browser.new_page(viewport={"width": 1280, "height": 900})
    complaints: list[str] = []
    requests: list[str] = []
    tab.on("console", lambda message: complaints.append(message.text))
    tab.on("pageerror", lambda error: complaints.append(str(error)))
    tab.on("dialog", lambda dialog: complaints.append(dialog.message))
    tab.on("request", lambda request: requests.append(request.url))
    tab.goto(address)
    yield tab
    assert complaints == []
    assert [u for u in requests if not u.startswith(("file:", "data:"))] == []
    tab.close()


def says(page: Any, expected: str) -> None:
    page.wait_for_function(
        "want => document.getElementById('count').innerText === want", arg=expected
    )


def test_hostile_names_stay_text() -> None:
    page = build_gallery(ENTRIES, title=EVIL)
    assert "<script>alert" not in page
    assert "<img src=x" not in page
    assert "<b>" not in page
    assert page.count("</script>") == 2
    assert "broken &amp; torn.jpg" in page


def test_the_slider_filters_live(page: Any) -> None:
    says(page, counts(THRESHOLD))
    page.locator("#threshold").focus()
    page.keyboard.press("ArrowRight")
    says(page, counts(0.31))
    page.keyboard.press("End")
    says(page, counts(1.0))
    page.keyboard.press("Home")
    says(page, counts(0.0))
    # Counts beside the tags follow too, most frequent first.
    shown = [row.split("\n")[-1] for row in page.locator("#tags button").all_inner_texts()]
    expected = sorted((sum(n == t for e in GOOD for t, _ in e.tags) for n in NAMES), reverse=True)
    assert [int(n) for n in shown] == expected


def test_no_score_reads_as_certainty(page: Any) -> None:
    scores = "[1, 0.995, 0.9949, 0.5, 0.005, 0.0049, 0].map(digits)"
    assert page.evaluate(scores) == [">0.99", ">0.99", "0.99", "0.50", "0.01", "<0.01", "<0.01"]


def test_search_finds_tags_and_files(page: Any) -> None:
    page.keyboard.press("/")
    assert page.evaluate("document.activeElement.id") == "search"
    page.keyboard.type("Teddy")
    says(page, counts(THRESHOLD, "teddy"))
    assert page.locator("#tags button").count() == 1
    page.keyboard.press("Escape")
    says(page, counts(THRESHOLD))
    page.fill("#search", "photo 0012")
    says(page, counts(THRESHOLD, "photo 0012"))
    assert page.locator(".card").count() == 1
    page.fill("#search", "no such thing")
    says(page, counts(THRESHOLD, "no such thing"))


def test_a_tag_is_chosen_and_let_go_by_keyboard(page: Any) -> None:
    button = page.locator("#tags button", has_text="teddy bear")
    button.focus()
    page.keyboard.press("Enter")
    says(page, counts(THRESHOLD, tag="teddy bear"))
    assert "teddy bear" in text(page, "#what")
    # Best first, and the focus stays where it was.
    first = page.locator(".card").first.locator(".hit b").inner_text()
    best = max(s for e in GOOD for t, s in e.tags if t == "teddy bear")
    assert first == f"{best:.2f}"
    assert page.evaluate("document.activeElement.getAttribute('aria-pressed')") == "true"
    label = page.locator("#hist").get_attribute("aria-label")
    total = sum(t == "teddy bear" for e in GOOD for t, _ in e.tags)
    assert label == f"histogram of {total} scores"
    page.keyboard.press("Enter")
    says(page, counts(THRESHOLD))


def test_pictures_open_and_arrows_turn_pages(page: Any) -> None:
    page.locator(".card").nth(2).focus()
    page.keyboard.press("Enter")
    assert text(page, "#file") == GOOD[2].name
    page.keyboard.press("ArrowRight")
    assert text(page, "#file") == GOOD[3].name
    page.keyboard.press("ArrowLeft")
    page.keyboard.press("ArrowLeft")
    assert text(page, "#file") == GOOD[1].name
    page.keyboard.press("Escape")
    assert not page.locator("#large").is_visible()
    page.wait_for_function("document.activeElement.className === 'card'")
    assert page.evaluate("document.activeElement.title") == GOOD[1].name


def test_thousands_of_pictures_come_as_they_are_needed(page: Any) -> None:
    first = page.locator(".card").count()
    assert 0 < first <= 180
    page.evaluate("window.scrollTo(0, document.body.scrollHeight)")
    page.wait_for_function("n => document.querySelectorAll('.card').length > n", arg=first)
    assert page.locator(".card").count() < MANY


def test_failures_and_calibration_are_listed(page: Any) -> None:
    page.click("#failures summary")
    assert "broken & torn.jpg" in text(page, "#failures")
    assert "damaged: <b>" in text(page, "#failures")
    page.click("#calibration summary")
    rows = page.locator("#calibration tbody tr").count()
    assert rows == len(NAMES)
    assert page.locator("#calibration circle").count() == 10


@pytest.mark.parametrize("width", [1280, 768, 390, 320])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_nothing_sticks_out(page: Any, width: int, scheme: str) -> None:
    page.emulate_media(color_scheme=scheme)
    page.set_viewport_size({"width": width, "height": 900})
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    if width < 760:
        assert not page.locator("#tags").is_visible()
        page.click("#narrow")
        assert page.locator("#tags").is_visible()
        assert page.evaluate("document.documentElement.scrollWidth") <= width


# --- reading ----------------------------------------------------------------------------------


def test_images_stay_inside_their_root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = tmp_path / "photos"
    root.mkdir()
    (root / "a.jpg").write_bytes(b"")
    (tmp_path / "secret.jpg").write_bytes(b"")
    assert locate("a.jpg", root) == root / "a.jpg"
    assert locate(str(root / "a.jpg"), root) == root / "a.jpg"
    monkeypatch.chdir(tmp_path)
    assert locate("photos/a.jpg", Path("photos")) == root / "a.jpg"
    for name in ("../secret.jpg", str(tmp_path / "secret.jpg"), "secret.jpg/../../secret.jpg"):
        with pytest.raises(InputError, match="outside"):
            locate(name, root)
    os.symlink(tmp_path / "secret.jpg", root / "link.jpg")
    with pytest.raises(InputError, match="outside"):
        locate("link.jpg", root)


def test_lines_with_the_old_name_of_an_image_are_read(tmp_path: Path) -> None:
    path = tmp_path / "t.jsonl"
    result = TagResult("a.jpg", (Tag("dog", 0.5, 0),)).to_dict()
    old = {"key": "b.jpg", "tags": result["tags"], "error": None}
    path.write_text("".join(json.dumps(line) + "\n" for line in (result, old)))
    assert read_tags(path) == [Entry(n, (("dog", 0.5),)) for n in ("a.jpg", "b.jpg")]


@pytest.mark.parametrize(
    "line",
    ["[]", "{", '{"image": 3, "tags": []}', '{"image": "a", "tags": [{"name": "x", "score": 2}]}'],
)
def test_a_bad_line_is_named(tmp_path: Path, line: str) -> None:
    path = tmp_path / "t.jsonl"
    path.write_text('{"image": "a", "tags": []}\n' + line + "\n")
    with pytest.raises(InputError, match="line 2"):
        read_tags(path)
    path.write_text("\n")
    with pytest.raises(InputError, match="no image"):
        read_tags(path)


def test_labels_are_matched_by_path() -> None:
    dataset = read_folder(demo_set())
    tagged = [Entry(path.name, (("Person", 0.5),)) for path in dataset.paths[:20]]
    for entry, row in zip(with_labels(tagged, demo_set(), dataset), dataset.labels, strict=False):
        assert entry.truth is not None
        assert len(entry.truth) == int((row > 0).sum())
        assert ("Person" in entry.truth) == bool(row[dataset.names.index("person")] > 0)
    with pytest.raises(InputError, match="other images"):
        with_labels([Entry("nothing.jpg")], demo_set(), dataset)


def test_bad_arguments_are_named() -> None:
    with pytest.raises(InputError, match="size"):
        with_thumbnails([], demo_set(), size=4)
    with pytest.raises(InputError, match="threshold"):
        build_gallery(ENTRIES[:1], threshold=2)


def test_the_command_from_tags_and_from_an_artifact(
    artifact: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    photos = tmp_path / "photos"
    photos.mkdir()
    for path in sorted(demo_set().glob("*.jpg"))[:3]:
        shutil.copy(path, photos)
    (photos / "empty.jpg").write_bytes(b"")
    names = sorted(path.name for path in photos.iterdir())
    labels = {"categories": ["dog", "cat"], "photos": {names[1]: {"labels": ["dog"]}}}
    (photos / "labels.json").write_text(json.dumps(labels))
    rows = [{"image": str(photos / n), "tags": [{"name": "dog", "score": 0.7}]} for n in names]
    (tmp_path / "tags.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    out = str(tmp_path / "page.html")
    line = ["report", str(tmp_path / "tags.jsonl"), str(photos), "-o", out]
    assert run([*line, "--labels", str(photos)]) == 3  # one could not be read
    found = Path(out).read_text(encoding="utf-8")
    assert "3 images · 1 tags · 1 with labels · 1 could not be read" in found
    assert found.count("data:image/jpeg") == 3
    assert run(["report", str(artifact), str(photos), "-o", out]) == 3
    assert "empty.jpg" in Path(out).read_text(encoding="utf-8")
    assert "3 images shown; 1 failed, each named above" in capsys.readouterr().err
    assert run(["report", str(tmp_path / "tags.jsonl"), str(tmp_path / "no"), "-o", out]) == 1
    assert "root" in capsys.readouterr().err


def test_what_was_passed_over_stands_beside_the_rest() -> None:
    page = build_gallery([Entry("a.jpg", (("dog", 0.9),))], passed="2 .svg, 3 <hidden>")
    assert "1 images · 1 tags · passed over: 2 .svg, 3 &lt;hidden&gt;" in page
