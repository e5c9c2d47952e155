"""Damaged and unusual files, by the command line and by the Tagger: one sentence, no traceback."""

from __future__ import annotations

import hashlib
import io
import json
import os
import shutil
import struct
import sys
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image, ImageOps
from safetensors.torch import load_file, save_file
from support.artifacts import NAMES

from pvp_fast.artifact import MANIFEST
from pvp_fast.cli import run
from pvp_fast.demo import demo_set
from pvp_fast.errors import ImageError
from pvp_fast.tagging.tagger import Tagger


def photo(number: int = 0) -> Image.Image:
    return Image.open(sorted(demo_set().glob("*.jpg"))[number]).convert("RGB")


def encoded(image: Image.Image, kind: str, **options: Any) -> bytes:
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


def unusual() -> dict[str, tuple[bytes, Image.Image]]:
    """Files that are right but rare, and the RGB picture each stands for."""
    first, second = photo(0), photo(1)
    gray = first.convert("L")
    cmyk = encoded(first.convert("CMYK"), "JPEG")
    deep = gray.convert("I").point(lambda value: value * 257).convert("I;16")
    palette = first.quantize(64)
    turned = Image.Exif()
    turned[0x0112] = 6
    rotated = encoded(first, "JPEG", exif=turned)
    moving = {"save_all": True, "append_images": [second], "lossless": True}
    gif = encoded(palette, "GIF", save_all=True, append_images=[second.quantize(64)])
    return {
        "gray.png": (encoded(gray, "PNG"), gray.convert("RGB")),
        "gray and alpha.png": (encoded(gray.convert("LA"), "PNG"), gray.convert("RGB")),
        "palette.png": (encoded(palette, "PNG"), palette.convert("RGB")),
        "cmyk.jpg": (cmyk, Image.open(io.BytesIO(cmyk)).convert("RGB")),
        "deep.png": (encoded(deep, "PNG"), gray.convert("RGB")),
        "deep.tif": (encoded(deep, "TIFF"), gray.convert("RGB")),
        "turned.jpg": (rotated, ImageOps.exif_transpose(Image.open(io.BytesIO(rotated)))),
        "moving.webp": (encoded(first, "WEBP", **moving), first),
        "moving.png": (encoded(first, "PNG", save_all=True, append_images=[second]), first),
        "moving.gif": (gif, palette.convert("RGB")),
        "second frame cut off.gif": (gif[:-200], palette.convert("RGB")),
        "é 図 🐕 'quoted\".png": (encoded(first, "PNG"), first),
    }


def bomb(width: int, height: int) -> bytes:
    """A PNG of a few bytes that claims to be huge; with no body, only its header can tell."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return (
            struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
        )

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", b"") + chunk(b"IEND", b"")


def bad() -> dict[str, tuple[bytes, str]]:
    """Files that are no picture, and what the reason must say."""
    whole = {kind: encoded(photo(), kind) for kind in ("JPEG", "PNG", "WEBP", "TIFF")}
    flipped = bytearray(whole["PNG"])
    flipped[len(flipped) // 2] ^= 0x10
    screen = struct.pack("<HHBBB", 65535, 65535, 0x80, 0, 0) + bytes(6)
    frame = b"," + struct.pack("<HHHHB", 0, 0, 65535, 65535, 0) + b"\x02\x02\x44\x01\x00;"
    huge_gif = b"GIF89a" + screen + frame
    return {
        "zero.jpg": (b"", "zero bytes"),
        "text.jpg": (b"this is no picture\n", "not an image"),
        "only a header.jpg": (whole["JPEG"][:2], "not an image"),
        "cut.jpg": (whole["JPEG"][: len(whole["JPEG"]) // 2], "damaged"),
        "cut.png": (whole["PNG"][: len(whole["PNG"]) // 2], "damaged"),
        "cut.webp": (whole["WEBP"][: len(whole["WEBP"]) // 2], "damaged"),
        "cut.tif": (whole["TIFF"][: len(whole["TIFF"]) // 2], ""),
        "flipped.png": (bytes(flipped), "damaged"),
        "bomb.png": (bomb(100_000, 100_000), "too large"),
        "over the limit.png": (bomb(60_000, 1_700), "too large: 60000x1700"),
        "bomb.gif": (huge_gif, "too large"),
        "drawing.png": (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "not an image"),
        "böse 図.png": (b"\0" * 100, "not an image"),
    }


def test_unusual_files_are_tagged_as_the_picture_they_stand_for(
    artifact: Path, tagger: Tagger, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    files = unusual()
    for name, (data, _) in files.items():
        (tmp_path / name).write_bytes(data)
    paths = [tmp_path / name for name in files]
    expected = tagger.tag([picture for _, picture in files.values()], threshold=0)
    found = tagger.tag(paths, threshold=0)
    for name, one, other in zip(files, found, expected, strict=True):
        assert one.error is None, name
        assert [t.index for t in one.tags] == [t.index for t in other.tags], name
        # A JPEG is turned after it was resized, its axes in the other order: up to 2 levels apart.
        near = 0.02 if name == "turned.jpg" else 1e-5
        for a, b in zip(one.tags, other.tags, strict=True):
            assert a.score == pytest.approx(b.score, abs=near), name
    capsys.readouterr()
    assert run(["tag", str(artifact), *map(str, paths), "--threshold", "0"]) == 0
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [Path(row["image"]).name for row in rows] == list(files)
    for row, result in zip(rows, found, strict=True):
        assert [tag["name"] for tag in row["tags"]] == [tag.name for tag in result.tags]


def test_bad_images_are_listed_with_their_reason_and_the_rest_is_tagged(
    artifact: Path, tagger: Tagger, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    files = bad()
    paths = []
    for number, (name, (data, _)) in enumerate(files.items()):
        (tmp_path / name).write_bytes(data)
        good = tmp_path / f"good {number}.jpg"
        shutil.copy(sorted(demo_set().glob("*.jpg"))[number], good)
        paths += [tmp_path / name, good]
    paths += [tmp_path / "missing.jpg", tmp_path / "no-*.jpg", good]
    reasons = {name: reason for name, (_, reason) in files.items()}
    reasons |= {"missing.jpg": "no such file", "no-*.jpg": "no such file"}

    capsys.readouterr()
    line = ["tag", str(artifact), *map(str, paths), "--threshold", "0", "--batch-size", "3"]
    assert run(line) == 3
    captured = capsys.readouterr()
    assert "Traceback" not in captured.err
    rows = [json.loads(text) for text in captured.out.splitlines()]
    assert [row["image"] for row in rows] == [str(path) for path in paths]
    complaints = captured.err.splitlines()
    assert len(complaints) == len(reasons) + 1
    for row in rows:
        name = Path(row["image"]).name
        if name in reasons:
            assert reasons[name] in row["error"], name
            assert row["error"], name
            assert row["tags"] == []
            assert sum(f"{name}: {row['error']}" in text for text in complaints) == 1, name
        else:
            assert "error" not in row
            assert len(row["tags"]) == len(NAMES)
    assert complaints[-1] == (
        f"{len(paths) - len(reasons)} images tagged; {len(reasons)} failed, each named above"
    )

    for path, result in zip(paths, tagger.tag(paths, threshold=0), strict=True):
        assert (result.error is not None) == (path.name in reasons), path.name
        assert reasons.get(path.name, "") in (result.error or "")
    for name, (data, reason) in files.items():
        (result,) = tagger.tag(data)
        assert result.error is not None, name
        assert reason in result.error
    with pytest.raises(ImageError, match="zero bytes"):
        tagger.tag(paths, errors="raise")


@pytest.mark.skipif(sys.platform != "linux", reason="other systems refuse such names")
@pytest.mark.parametrize("format", ["jsonl", "csv", "table"])
@pytest.mark.parametrize("encoding", ["utf-8", "ascii"])
def test_a_file_name_that_stdout_cannot_spell(
    artifact: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, format: str, encoding: str
) -> None:
    shutil.copy(sorted(demo_set().glob("*.jpg"))[0], tmp_path / "é.jpg")
    with open(os.fsencode(tmp_path) + b"/not-utf-8-\xff.jpg", "wb"):
        pass
    raw = io.BytesIO()
    stdout = io.TextIOWrapper(raw, encoding=encoding, write_through=True)
    with monkeypatch.context() as patch:
        patch.setattr(sys, "stdout", stdout)
        code = run(["tag", str(artifact), str(tmp_path), "--format", format, "--threshold", "0"])
    assert code == 3
    text = raw.getvalue().decode(encoding)
    assert "zero bytes" in text
    assert "dog" in text


def test_a_folder_without_images_is_an_error(
    artifact: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "notes.txt").write_text("nothing to see", encoding="utf-8")
    assert run(["tag", str(artifact), str(tmp_path)]) == 1
    assert "no image" in one_line(capsys)


def one_line(capsys: pytest.CaptureFixture[str]) -> str:
    captured = capsys.readouterr()
    assert "Traceback" not in captured.err
    assert captured.out == ""
    lines = captured.err.splitlines()
    assert len(lines) == 1, captured.err
    assert lines[0].startswith("pvp-fast: ")
    return lines[0]


Damage = Callable[[Path], None]


def manifest(**changes: Any) -> Damage:
    def damage(folder: Path) -> None:
        found = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        for key, value in changes.items():
            if value is None:
                del found[key]
            elif isinstance(value, dict):
                found[key] = {k: v for k, v in (found[key] | value).items() if v != "gone"}
            else:
                found[key] = value
        (folder / MANIFEST).write_text(json.dumps(found), encoding="utf-8")

    return damage


def tensors_of(folder: Path) -> Path:
    return next(folder.glob("*.artifact.safetensors"))


def flip(folder: Path) -> None:
    path = tensors_of(folder)
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 0x04
    path.write_bytes(data)


def cut(folder: Path) -> None:
    path = tensors_of(folder)
    path.write_bytes(path.read_bytes()[:-100])


def without(name: str) -> Damage:
    """The tensor is missing although every checksum is right."""

    def damage(folder: Path) -> None:
        path = tensors_of(folder)
        save_file({k: v for k, v in load_file(path).items() if k != name}, path)
        manifest(tensors={"sha256": hashlib.sha256(path.read_bytes()).hexdigest()})(folder)

    return damage


def half_a_manifest(folder: Path) -> None:
    text = (folder / MANIFEST).read_text(encoding="utf-8")
    (folder / MANIFEST).write_text(text[: len(text) // 2], encoding="utf-8")


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (flip, "SHA-256"),
        (cut, "SHA-256"),
        (lambda folder: tensors_of(folder).unlink(), "missing"),
        (lambda folder: (folder / MANIFEST).unlink(), "artifact.json is missing"),
        (lambda folder: (folder / MANIFEST).write_bytes(b""), "cannot be read"),
        (lambda folder: (folder / MANIFEST).write_bytes(b"\xff\xfe{"), "cannot be read"),
        (lambda folder: (folder / MANIFEST).write_bytes(b"[" * 100_000), "cannot be read"),
        (half_a_manifest, "cannot be read"),
        (without("text"), "'text'"),
        (without("thresholds"), "'thresholds'"),
        (without("adapter.query_adapter.up"), "adapter"),
        (manifest(tensors={"sha256": "gone"}), "sha256"),
        (manifest(tensors=None), "tensors"),
        (manifest(training=None), "training"),
        (manifest(vocabulary=None), "vocabulary"),
        (manifest(backbone=None), "backbone"),
        (manifest(format=99), "format 99"),
        (manifest(backbone={"fingerprint": "0" * 64}), "not with this backbone"),
        (manifest(backbone={"fingerprint": "gone"}), "not with this backbone"),
        (manifest(backbone={"name": "gone"}), "name"),
        (manifest(backbone={"name": 3}), "which backbone"),
        (manifest(backbone={"name": "No-Such-Model"}), "No-Such-Model"),
        (manifest(backbone={"embed_dim": 7}), "width 7"),
    ],
)
def test_a_damaged_artifact_is_one_sentence(
    artifact: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    damage: Damage,
    says: str,
) -> None:
    folder = tmp_path / "artifact"
    shutil.copytree(artifact, folder)
    damage(folder)
    capsys.readouterr()
    assert run(["tag", str(folder), str(sorted(demo_set().glob("*.jpg"))[0])]) == 1
    assert says in one_line(capsys)


@pytest.mark.parametrize(
    ("name", "data", "says"),
    [
        ("empty.txt", b"", "empty (0 bytes)"),
        ("blank.txt", b"\n \n\n", "no sentence"),
        ("empty.json", b"[]", "no sentence"),
        ("cut.json", b'{"annotations": [{"caption": "A dog runs."}, {"capt', "cut off"),
        ("cut.jsonl", b'{"text": "A dog runs."}\n{"text": "A c', "line 2"),
        ("latin1.txt", "A dog in a café.\n".encode("latin-1"), "UTF-8"),
        ("latin1.json", '["A dog in a café."]'.encode("latin-1"), "UTF-8"),
        ("wide.txt", "A dog runs.\n".encode("utf-16"), "UTF-16"),
        ("instances.json", b'{"annotations": [{"bbox": [1, 2, 3, 4]}]}', "captions_*.json"),
        ("zipped.json", b"PK\x03\x04\x00\x00", "binary"),
        ("deep.json", b"[" * 100_000, "JSON"),
    ],
)
@pytest.mark.parametrize("command", ["sentences", "train"])
def test_a_bad_captions_file_is_one_sentence(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    command: str,
    name: str,
    data: bytes,
    says: str,
) -> None:
    file = tmp_path / name
    file.write_bytes(data)
    line = {
        "sentences": ["sentences", "--vocabulary", "voc2007", "--label", str(file)],
        "train": ["train", "--vocabulary", "voc2007", "--captions", str(file)],
    }[command]
    if command == "train":
        line += ["--out", str(tmp_path / "run")]
    assert run(line) == 1
    message = one_line(capsys)
    assert says in message
    assert name in message
    assert not (tmp_path / "run").exists()


def test_captions_about_other_things_are_one_sentence(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "stranger.txt"
    file.write_text("The mountain sleeps.\n", encoding="utf-8")
    assert run(["sentences", "--vocabulary", "voc2007", "--label", str(file)]) == 1
    message = one_line(capsys)
    assert "none of the 1 sentences of" in message
    assert "stranger.txt" in message
    assert "synonyms" in message


@pytest.mark.parametrize(
    ("kind", "file", "data", "says"),
    [
        ("folder", "labels.json", b"", "labels.json"),
        ("folder", "labels.json", b'{"categories": ["dog"], "photos": {', "labels.json"),
        ("folder", "labels.json", b'{"categories": ["dog"], "photos": {}}', "no image"),
        ("folder", "labels.json", b"[" * 100_000, "labels.json"),
        ("voc", "ImageSets/Main/dog_test.txt", b"000001 1\n000002\n", "'000002'"),
        ("voc", "ImageSets/Main/dog_test.txt", b"000001 many\n", "'000001 many'"),
        ("voc", "ImageSets/Main/dog_test.txt", b"000001 300\n", "-1, 0 or 1"),
        ("voc", "ImageSets/Main/dog_test.txt", b"\xff\xfe 1\n", "dog_test.txt"),
        ("voc", "ImageSets/Main/dog_test.txt", b"", "no image"),
        ("coco", "annotations/instances_val2014.json", b"{}", "instances_val2014.json"),
        ("coco", "annotations/instances_val2014.json", b"[1]", "instances_val2014.json"),
        ("coco", "annotations/instances_val2014.json", b'{"images": [', "instances_val2014.json"),
        ("nuswide", "TrainTestLabels/Labels_dog_Test.txt", b"1\n0\n1\n", "3 labels for 2"),
        ("nuswide", "TrainTestLabels/Labels_dog_Test.txt", b"1\nyes\n", "line 2 is 'yes'"),
        ("nuswide", "TrainTestLabels/Labels_dog_Test.txt", b"1\n-1\n", "give 0 or 1"),
    ],
)
def test_a_bad_dataset_file_is_one_sentence(
    artifact: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    kind: str,
    file: str,
    data: bytes,
    says: str,
) -> None:
    (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / file).write_bytes(data)
    if kind == "nuswide":
        (tmp_path / "ImageList").mkdir()
        (tmp_path / "ImageList" / "TestImagelist.txt").write_text("a\\1.jpg\na\\2.jpg\n")
    capsys.readouterr()
    assert run(["evaluate", str(artifact), "--dataset", kind, "--path", str(tmp_path)]) == 1
    assert says in one_line(capsys)
