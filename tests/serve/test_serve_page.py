"""The service's page and what it may add: by plain requests, and in a real browser."""

from __future__ import annotations

import os
import random
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from support.pages import text
from support.waiting import PATIENCE, until

from pvp_fast import Tagger
from pvp_fast.demo import demo_set
from pvp_fast.errors import InputError

pytest.importorskip("fastapi")
pytest.importorskip("uvicorn")
pytest.importorskip("prometheus_client")

from support.service import Server, check, expected, get, post, serving

from pvp_fast.serve import ServeConfig
from pvp_fast.serve.added import WithAdded
from pvp_fast.serve.page import page as served
from pvp_fast.sinks.table import shown as digits

JPEG = {"content-type": "image/jpeg"}
PHOTOS = sorted(demo_set().glob("*.jpg"))[:6]


@pytest.fixture(scope="module")
def server(tagger: Tagger) -> Iterator[Server]:
    with serving(tagger, max_added=3) as running:
        yield running


def test_what_was_there_keeps_every_bit_and_the_new_is_merged_in(tagger: Tagger) -> None:
    data = PHOTOS[0].read_bytes()
    names = ("giraffe", "kite")
    alone = Tagger.from_names(names, backbone=tagger.backbone)
    right = expected(tagger, data, threshold=0.0, top_k=9) | expected(
        alone, data, threshold=0.0, top_k=9
    )
    with serving(tagger, max_added=2) as server:
        where = {"url": f"{server.url}/tag", "content": data, "headers": JPEG}
        first = post(**where, params={"threshold": 0, "top_k": 9}).json()
        for name in names:
            answer = post(f"{server.url}/categories", json={"name": f"  {name} "})
            assert answer.status_code == 200, answer.text
            assert answer.json()["name"] == name
        body = post(**where, params={"threshold": 0, "top_k": 9}).json()
        (result,) = body["results"]
        check(result, right)
        assert body["artifact"] == answer.json()["artifact"]
        assert body["artifact"].startswith(first["artifact"])
        assert body["artifact"] != first["artifact"]
        scores = [tag["score"] for tag in result["tags"]]
        assert scores == sorted(scores, reverse=True)
        own = {tag["name"]: tag["score"] for tag in first["results"][0]["tags"]}
        assert own.items() <= {tag["name"]: tag["score"] for tag in result["tags"]}.items()
        (two,) = post(**where, params={"threshold": 0, "top_k": 2}).json()["results"]
        assert two["tags"] == result["tags"][:2]
        assert post(f"{server.url}/categories", json={"name": "cow"}).status_code == 409
        assert get(f"{server.url}/healthz").json()["categories"] == len(right)


@pytest.mark.parametrize(
    ("request_", "status"),
    [
        ({"json": {"name": "dog"}}, 400),  # there already
        ({"json": {"name": "ÄPFEL"}}, 400),
        ({"json": {"name": " "}}, 400),
        ({"json": {"name": "x" * 101}}, 400),
        ({"json": {"name": "a\u202eb"}}, 400),
        ({"json": {"name": "a\x00b"}}, 400),
        ({"content": b'{"name": "\\ud800"}', "headers": {"content-type": "application/json"}}, 400),
        ({"json": {"name": 3}}, 400),
        ({"json": []}, 400),
        ({"content": b"{", "headers": {"content-type": "application/json"}}, 400),
        ({"content": b'{"name": "x"}', "headers": {"content-type": "text/plain"}}, 415),
        ({"json": {"name": "x" * 5000}}, 413),
    ],
)
def test_what_cannot_be_added(server: Server, request_: dict, status: int) -> None:
    before = get(f"{server.url}/about").json()
    answer = post(f"{server.url}/categories", **request_)
    assert answer.status_code == status, answer.text
    assert answer.json()["detail"]
    assert get(f"{server.url}/about").json() == before


def test_nothing_is_added_unless_asked_for_and_by_whom(tagger: Tagger) -> None:
    with serving(tagger) as server:
        assert post(f"{server.url}/categories", json={"name": "cow"}).status_code == 404
        assert get(f"{server.url}/about").json()["room"] == 0
    with serving(tagger, max_added=1, token="secret") as server:
        assert post(f"{server.url}/categories", json={"name": "cow"}).status_code == 401
        head = {"authorization": "Bearer secret"}
        answer = post(f"{server.url}/categories", json={"name": "cow"}, headers=head)
        assert answer.status_code == 200
    with pytest.raises(InputError, match="max_added"):
        ServeConfig(max_added=-1)


def test_the_command_asks_for_a_token_where_others_can_reach_it(
    artifact: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from pvp_fast.cli import run

    monkeypatch.delenv("PVP_FAST_TOKEN", raising=False)
    line = ["serve", str(artifact), "--host", "0.0.0.0", "--max-added", "3"]
    assert run(line) == 1
    assert "max_added" in capsys.readouterr().err


def test_answers_while_categories_are_added_are_of_one_vocabulary(tagger: Tagger) -> None:
    """Each answer has the categories of the version that it names, no more and no fewer."""
    names = ["giraffe", "kite", "cow"]
    versions, grown = {}, WithAdded(tagger)
    own = set(tagger.artifact.vocabulary.labels)
    versions[grown.version] = own
    for count, name in enumerate(names, 1):
        grown = grown.grown(name)
        versions[grown.version] = own | set(names[:count])
    data = PHOTOS[0].read_bytes()

    with serving(tagger, max_added=3, max_batch=4) as server, ThreadPoolExecutor(9) as pool:

        def ask(number: int) -> None:
            files = [("images", (str(i), data)) for i in range(3)]
            params = {"threshold": 0, "top_k": 20}
            body = post(f"{server.url}/tag", files=files, params=params).json()
            for result in body["results"]:
                assert {tag["name"] for tag in result["tags"]} == versions[body["artifact"]]

        asked = [pool.submit(ask, number) for number in range(24)]
        for name in names:
            assert post(f"{server.url}/categories", json={"name": name}).status_code == 200
        for call in asked:
            call.result()
        ask(0)
        assert get(f"{server.url}/about").json()["artifact"] == grown.version


def test_the_page_may_run_nothing_but_its_own(server: Server) -> None:
    answer = get(server.url)
    policy = answer.headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    assert answer.text == served()[0]
    assert "http" not in answer.text.replace("http-equiv", "")  # asks nobody else


@pytest.fixture
def tab(browser: Any, server: Server) -> Iterator[Any]:
    tab = browser.new_page(viewport={"width": 1200, "height": 900})
    tab.set_default_timeout(1000 * PATIENCE)
    tab.complaints = []
    tab.requests = []
    tab.on("console", lambda message: tab.complaints.append(message.text))
    tab.on("pageerror", lambda error: tab.complaints.append(str(error)))
    tab.on("request", lambda request: tab.requests.append(request.url))
    tab.goto(server.url)
    yield tab
    assert tab.complaints == []
    assert [u for u in tab.requests if not u.startswith((server.url, "blob:", "data:"))] == []
    tab.close()


def wait(tab: Any, expression: str) -> None:
    """Not ``wait_for_function``, which evaluates text in the page: its policy forbids that."""
    until(lambda: bool(tab.evaluate(expression)))


def shown(tab: Any) -> list[list[str]]:
    """The tags of each photo, as they stand there."""
    cards = tab.locator(".card")
    return [cards.nth(i).locator("li").all_inner_texts() for i in range(cards.count())]


def right(tagger: Tagger, least: float) -> list[list[str]]:
    found = tagger.tag([str(path) for path in PHOTOS], threshold=0.0, top_k=30)
    kept = [[t for t in result.tags if round(t.score, 6) >= least][:8] for result in found]
    return [[f"{t.name}\n{digits(t.score)}" for t in tags] or ["no tag"] for tags in kept]


def test_drop_move_type(tab: Any, tagger: Tagger, tmp_path: Path) -> None:
    """Photos are tagged, the threshold moves, and a new name is known on all of them."""
    tab.set_input_files("#files", [str(path) for path in PHOTOS])
    wait(tab, f"document.getElementById('said').innerText === '{len(PHOTOS)} tagged'")
    loaded = "[...document.querySelectorAll('.card img')].every(i => i.complete && i.naturalWidth)"
    wait(tab, loaded)
    for least in ("0", "0.5", "0.9"):
        tab.locator("#threshold").fill(least)
        assert text(tab, "#value") == f"{float(least):.2f}"
        assert shown(tab) == right(tagger, float(least))
    bad = tmp_path / "<img src=x onerror=alert(1)>.jpg"
    bad.write_bytes(b"no image")
    tab.set_input_files("#files", [str(bad)])
    wait(tab, "document.getElementById('said').innerText.endsWith('1 not')")
    last = tab.locator(".card").last
    assert last.locator("h2").inner_text() == bad.name
    assert last.locator("li.bad").count() == 1
    tab.locator("#threshold").fill("0")
    tab.locator("#name").fill("giraffe")
    tab.keyboard.press("Enter")
    wait(tab, f"document.querySelectorAll('.card li.new').length === {len(PHOTOS)}")
    assert all("giraffe" in new for new in tab.locator(".card li.new").all_inner_texts())
    assert text(tab, "#what").startswith(f"{len(tagger.artifact.vocabulary) + 1} categories")
    tab.locator("#name").fill("GIRAFFE")
    tab.keyboard.press("Enter")
    wait(tab, "document.getElementById('said').className === 'wrong'")
    assert "there already" in text(tab, "#said")
    # The browser itself says what a refused request was.
    tab.complaints[:] = [c for c in tab.complaints if "400" not in c]


@pytest.mark.parametrize("width", [1200, 400])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_nothing_sticks_out(tab: Any, width: int, scheme: str, tmp_path: Path) -> None:
    tab.emulate_media(color_scheme=scheme)
    tab.set_viewport_size({"width": width, "height": 900})
    long = tmp_path / f"{'x' * 120}.jpg"
    long.write_bytes(PHOTOS[0].read_bytes())
    tab.set_input_files("#files", [*map(str, PHOTOS[1:]), str(long)])
    wait(tab, f"document.getElementById('said').innerText === '{len(PHOTOS)} tagged'")
    assert tab.evaluate("document.documentElement.scrollWidth") <= width
    box = tab.locator("#add").bounding_box()
    assert box["x"] + box["width"] <= width
    colours = (
        tab.evaluate(f"getComputedStyle(document.body).{what}.match(/\\d+/g).map(Number)")
        for what in ("backgroundColor", "color")
    )
    back, front = map(sum, colours)
    assert (back > front) == (scheme == "light")
    pictures = os.environ.get("PVP_FAST_TEST_SCREENSHOTS")
    if pictures:
        tab.screenshot(path=f"{pictures}/serve-{width}-{scheme}.png")


def test_a_full_service_is_asked_again(tab: Any, server: Server) -> None:
    """503 with Retry-After is waited for; the photo is tagged in the end."""
    refused = []

    def busy(route: Any) -> None:
        if len(refused) < 2:
            refused.append(route.request.url)
            body = '{"detail": "too many images wait"}'
            route.fulfill(status=503, headers={"Retry-After": "0.01"}, body=body)
        else:
            route.continue_()

    tab.route("**/tag*", busy)
    tab.set_input_files("#files", [str(random.Random(0).choice(PHOTOS))])
    wait(tab, "document.getElementById('said').innerText === '1 tagged'")
    assert len(refused) == 2
    tab.complaints[:] = [c for c in tab.complaints if "503" not in c]
