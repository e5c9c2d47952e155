"""Caption files: tags added as trainers want them, told from the user's text, and taken back."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

from pvp_fast.cli import run
from pvp_fast.errors import InputError
from pvp_fast.sinks import open_sink
from pvp_fast.sinks.captions import RECORD, CaptionStyle, forget, is_text, untag
from pvp_fast.tagging.tagger import Tag, TagResult

V1 = "0123456789ab"


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    path = tmp_path / "trip.jpg"
    path.write_bytes(b"x")
    return path


def put(photo: Path, *names: str, **options: Any) -> str | None:
    with open_sink("txt", sys.stdout, V1, **options) as sink:
        tags = tuple(Tag(n, 0.5, i) for i, n in enumerate(names))
        return sink.write(TagResult(str(photo), tags))


@pytest.mark.parametrize(
    "prose",
    [
        "A dog on a beach.\n",
        "We went to the sea and it rained",
        "Rome, 2019. The last day!",
        "dog, cat\nand a second line that says more\n",
    ],
)
def test_prose_is_left_alone_unless_asked(photo: Path, prose: str) -> None:
    caption = photo.with_suffix(".txt")
    caption.write_text(prose, encoding="utf-8")
    assert "--into-text" in (put(photo, "dog", "tree") or "")
    assert caption.read_text() == prose
    assert put(photo, "tree", into_text=True) is None
    assert ", tree" in caption.read_text()
    ((path, _, new),) = untag(str(photo), ".txt")
    assert (path, new) == (caption, prose.encode())
    assert put(photo, "sea") is None  # ours are in it now: it was asked for
    forget(caption)


@pytest.mark.parametrize(
    "foreign",
    [
        '{"caption": "x"}',
        '["a", "b"]',
        '"cat", "dog"',
        "#cat #dog",
        "cat\tdog",
        "猫，狗",
        "cat; sun",
    ],
)
def test_what_tags_behind_commas_would_spoil_is_left_alone(photo: Path, foreign: str) -> None:
    path = photo.with_suffix(".txt")
    path.write_text(foreign, encoding="utf-8")
    assert "holds text" in (put(photo, "dog") or "")
    assert path.read_text("utf-8") == foreign


@pytest.mark.parametrize(
    "there", ["cat, ", "cat,", "  ", "", "\ufeffcat", "cat, sun\r\n", "cat ,\n", "[cat], (sun:1.2)"]
)
def test_what_was_there_comes_back_to_the_byte(photo: Path, there: str) -> None:
    path = photo.with_suffix(".txt")
    path.write_bytes(there.encode())
    for tags in (["dog", "teddy bear"], ["cow"]):
        assert put(photo, *tags) is None
    assert b"dog, teddy bear, cow" in path.read_bytes()
    assert run(["untag", str(photo)]) == 0
    assert path.read_bytes() == there.encode()


def test_one_tag_in_other_spellings_is_there_already(photo: Path) -> None:
    path = photo.with_suffix(".txt")
    path.write_text("teddy_bear, (DOG:1.3), [cat], crane \\(bird\\), cafe\u0301")
    before = path.read_bytes()
    assert put(photo, "teddy bear", "dog", "cat", "crane (bird)", "café") is None
    assert path.read_bytes() == before


@pytest.mark.parametrize("tags", ["dog, big red ball\n", "1girl, solo", "sks", ""])
def test_lists_of_tags_are_added_to(photo: Path, tags: str) -> None:
    assert not is_text(tags, CaptionStyle())
    caption = photo.with_suffix(".txt")
    caption.write_text(tags, encoding="utf-8")
    assert put(photo, "tree") is None
    assert "tree" in caption.read_text()
    ((_, _, new),) = untag(str(photo), ".txt")
    assert new == tags.encode()


@pytest.mark.parametrize(
    ("style", "expected"),
    [
        (CaptionStyle(), "teddy bear, crane (bird)\n"),
        (CaptionStyle(separator="; "), "teddy bear; crane (bird)\n"),
        (CaptionStyle(separator="|"), "teddy bear|crane (bird)\n"),
        (CaptionStyle(prefix="sks"), "sks, teddy bear, crane (bird)\n"),
        (CaptionStyle(underscores=True, escape=True), "teddy_bear, crane_\\(bird\\)\n"),
        (CaptionStyle(ending=".caption"), "teddy bear, crane (bird)\n"),
    ],
)
def test_styles(photo: Path, style: CaptionStyle, expected: str) -> None:
    assert put(photo, "teddy bear", "crane (bird)", style=style) is None
    caption = photo.with_suffix(style.ending)
    assert caption.read_text(encoding="utf-8") == expected
    assert put(photo, "crane (bird)", style=style) is None
    assert caption.read_text(encoding="utf-8") == expected
    assert untag(str(photo), style.ending) == [(caption, expected.encode(), None)]


def test_a_wrong_style_is_refused() -> None:
    for wrong in ({"ending": "txt"}, {"ending": "../x"}, {"separator": " "}, {"separator": "a\n"}):
        with pytest.raises(InputError, match=next(iter(wrong))):
            CaptionStyle(**wrong)  # type: ignore[arg-type]


def test_replacing_takes_back_ours_alone(photo: Path) -> None:
    caption = photo.with_suffix(".txt")
    caption.write_text("sks, dog\n", encoding="utf-8")
    assert put(photo, "dog", "cat", "car") is None
    caption.write_text("sks, dog, cat, car, mine\n", encoding="utf-8")
    assert put(photo, "tree", "car", replace=True) is None
    assert caption.read_text(encoding="utf-8") == "sks, dog, mine, tree, car\n"
    assert put(photo, "sea") is None
    ((_, _, new),) = untag(str(photo), ".txt")
    assert new == b"sks, dog, mine\n"


def test_two_images_of_one_caption_are_reported(photo: Path) -> None:
    photo.with_suffix(".png").write_bytes(b"x")
    (photo.parent / "trip.mp4").write_bytes(b"x")  # no image, no trouble
    assert "trip.png" in (put(photo, "dog") or "")
    assert "trip.jpg" in (put(photo.with_suffix(".png"), "dog") or "")
    assert not photo.with_suffix(".txt").exists()


def test_a_run_goes_on_and_a_dry_one_says_what_it_would_do(photo: Path) -> None:
    said: list[str] = []
    caption = photo.with_suffix(".txt")
    assert put(photo, "dog", "cat", dry_run=True, say=said.append) is None
    assert said == [f"{caption} (new)", "  + dog, cat"]
    assert sorted(p.name for p in photo.parent.iterdir()) == ["trip.jpg"]
    assert put(photo, "dog") is None
    with open_sink("txt", sys.stdout, V1, append=True) as sink:
        assert sink.has(str(photo))
    with open_sink("txt", sys.stdout, V1, append=True, settings="top_k=3") as sink:
        assert not sink.has(str(photo))
    photo.write_bytes(b"another")
    with open_sink("txt", sys.stdout, V1, append=True) as sink:
        assert not sink.has(str(photo))
    with (photo.parent / RECORD).open("a") as stream:
        stream.write('{"file": "trip.t')  # cut off by a crash
    assert len(untag(str(photo), ".txt")) == 1


def test_line_ends_and_marks_come_back(photo: Path) -> None:
    caption = photo.with_suffix(".txt")
    for old in (b"\xef\xbb\xbfdog, cat\r\n", b"dog", b"dog ,cat", b"\n"):
        caption.write_bytes(old)
        assert put(photo, "tree") is None
        ((_, _, new),) = untag(str(photo), ".txt")
        assert new == old
        forget(caption)
