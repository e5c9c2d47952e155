"""Keywords inside images, by exiftool: merged, recorded and taken back; pixels as they were."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from pvp_fast.cli import run
from pvp_fast.demo import demo_set
from pvp_fast.errors import InputError
from pvp_fast.sinks import open_sink
from pvp_fast.tagging.tagger import Tag, TagResult

V1 = "0123456789ab"
pytestmark = pytest.mark.skipif(shutil.which("exiftool") is None, reason="needs exiftool")


@pytest.fixture(params=["jpg", "png", "tif"])
def photo(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    path = tmp_path / f"-photo é.{request.param}"
    Image.open(sorted(demo_set().glob("*.jpg"))[0]).convert("RGB").save(path)
    return path


def put(photo: Path, *names: str, **options: Any) -> str | None:
    with open_sink("xmp", sys.stdout, V1, inside=True, **options) as sink:
        tags = tuple(Tag(n, 0.5, i) for i, n in enumerate(names))
        return sink.write(TagResult(str(photo), tags))


def read(photo: Path) -> dict[str, Any]:
    line = ["exiftool", "-json", "-XMP:Subject", "-XMP:HierarchicalSubject", "-XMP:Rating"]
    done = subprocess.run([*line, str(photo)], capture_output=True, check=True)
    (found,) = json.loads(done.stdout)
    return found


def test_into_an_image_and_out_of_it(photo: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pixels = Image.open(photo).convert("RGB").tobytes()
    stamp = photo.stat().st_mtime_ns // 10**9
    said: list[str] = []
    bytes_ = photo.read_bytes()
    assert put(photo, "dog", "cat", dry_run=True, say=said.append) is None
    assert said == [f"{photo} (changed)", "  + dc:subject: dog, cat"]
    assert photo.read_bytes() == bytes_
    assert put(photo, "dog", "teddy bear") is None
    assert read(photo)["Subject"] == ["dog", "teddy bear"]
    assert Image.open(photo).convert("RGB").tobytes() == pixels
    assert photo.stat().st_mtime_ns // 10**9 == stamp
    with open_sink("xmp", sys.stdout, V1, inside=True, append=True) as sink:
        assert sink.has(str(photo))
    with open_sink("xmp", sys.stdout, V1, inside=True, append=True, settings="x") as sink:
        assert not sink.has(str(photo))
    assert put(photo, "car", "dog", replace=True) is None
    assert read(photo)["Subject"] == ["car", "dog"]
    assert [p.name for p in photo.parent.iterdir()] == [photo.name]
    assert run(["untag", str(photo), "--inside"]) == 0
    assert "Subject" not in read(photo)
    assert Image.open(photo).convert("RGB").tobytes() == pixels


def test_the_user_s_keywords_stay(photo: Path) -> None:
    line = ["-XMP-dc:Subject=Hund", "-XMP-lr:HierarchicalSubject=Tiere|Hund", "-XMP-xmp:Rating=4"]
    tool = ["exiftool", "-q", "-overwrite_original", *line, str(photo)]
    subprocess.run(tool, check=True)
    assert put(photo, "dog") is None
    found = read(photo)
    assert found["Subject"] == ["Hund", "dog"]
    assert found["HierarchicalSubject"] == ["Tiere|Hund", "dog"]
    assert found["Rating"] == 4
    assert run(["untag", str(photo), "--inside"]) == 0
    assert read(photo)["Subject"] == "Hund"
    assert read(photo)["HierarchicalSubject"] == "Tiere|Hund"


def test_what_exiftool_refuses_is_that_image_s_trouble(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "text.jpg"
    path.write_bytes(b"no image at all")
    assert "cannot be written" in (put(path, "dog") or "")
    assert path.read_bytes() == b"no image at all"
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(InputError, match="exiftool"):
        put(path, "dog")


def keywords(photo: Path) -> dict[str, list[str]]:
    """As programs see them: each list, and what the Metadata Working Group's rule makes of both."""
    line = ["exiftool", "-use", "MWG", "-json", "-IPTC:Keywords", "-XMP:Subject", "-MWG:Keywords"]
    done = subprocess.run([*line, "-G1", str(photo)], capture_output=True, check=True)
    (found,) = json.loads(done.stdout)
    found.pop("SourceFile")
    return {name: [v] if isinstance(v, str) else v for name, v in found.items()}


@pytest.mark.parametrize(
    ("digest", "charset", "subject"),
    [(False, "UTF8", False), (True, "", True), (True, "UTF8", False), (False, "", True)],
)
def test_where_iptc_keywords_are_every_reader_sees_both(
    tmp_path: Path, digest: bool, charset: str, subject: bool
) -> None:
    photo = tmp_path / "a.jpg"
    Image.open(sorted(demo_set().glob("*.jpg"))[0]).convert("RGB").save(photo)
    line = [f"-IPTC:CodedCharacterSet={charset}"] * bool(charset)
    line += ["-IPTC:Keywords=Hund", "-IPTC:Keywords=Dog", "-IPTC:City=Köln"]
    line += ["-XMP-dc:Subject=Hund"] * subject
    write = ["exiftool", "-q", "-overwrite_original"]
    subprocess.run([*write, *line, str(photo)], check=True)
    if digest:
        subprocess.run([*write, "-Photoshop:IPTCDigest=new", str(photo)], check=True)
    before = keywords(photo)
    said: list[str] = []
    put(photo, "dog", "bär", dry_run=True, say=said.append)
    assert "  + IPTC: bär" in said
    assert keywords(photo) == before
    put(photo, "dog", "bär", "写真")
    found = keywords(photo)
    iptc = ["Hund", "Dog", "bär"] + ["写真"] * bool(charset)  # Latin-1 cannot hold the last
    assert found["IPTC:Keywords"] == iptc
    xmp = ["Hund", "dog", "bär", "写真"] if subject else ["Hund", "Dog", "bär", "写真"]
    assert found["XMP-dc:Subject"] == xmp
    assert {"Hund", "bär"} <= set(found["MWG:Keywords"])  # by the rule
    put(photo, "cat", "dog", replace=True)
    found = keywords(photo)
    assert found["IPTC:Keywords"] == ["Hund", "Dog", "cat"]
    assert set(found["XMP-dc:Subject"]) == (
        {"Hund", "cat", "dog"} if subject else {"Hund", "Dog", "cat"}
    )
    assert run(["untag", str(photo), "--inside"]) == 0
    assert keywords(photo) == before
    if shutil.which("exiv2"):
        shown = subprocess.run(["exiv2", "-PIv", str(photo)], capture_output=True, check=False)
        assert b"Hund" in shown.stdout
        assert b"cat" not in shown.stdout


def test_images_without_iptc_keywords_get_none(photo: Path) -> None:
    put(photo, "dog")
    found = keywords(photo)
    assert found["XMP-dc:Subject"] == ["dog"]
    assert "IPTC:Keywords" not in found
