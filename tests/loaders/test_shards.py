"""Images in, results and failures out: whatever a tar shard's members are called and however they
lie."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import os
import shutil
import subprocess
import tarfile
from collections.abc import Callable, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from support.image_files import encoded, scene, write_shard

from pvp_fast.clip.preprocess import Preprocess
from pvp_fast.errors import InputError
from pvp_fast.loaders import ImageStream
from pvp_fast.loaders.sources import passed_over

SMALL = Preprocess(8)
PHOTO = encoded(scene(40, 30))
OTHER = encoded(scene(40, 30, 1))
PNG = encoded(scene(24, 24), "PNG")
HAS_DALI = find_spec("nvidia") is not None and find_spec("nvidia.dali") is not None
BACKENDS = [
    "torch",
    pytest.param("dali", marks=pytest.mark.skipif(not HAS_DALI, reason="needs nvidia-dali")),
]
Members = list[tuple[str, bytes]]


def put(path: Path, members: Members, mode: str = "w", **options: Any) -> Path:
    with tarfile.open(path, mode, **options) as tar:
        for name, data in members:
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    return path


def read(path: Path, **options: Any) -> tuple[list[str], dict[str, str], dict[str, Mapping]]:
    """Keys without the shard's name, reasons of the failures, metadata by key."""
    with ImageStream(path, SMALL, 4, **options) as stream:
        metadata = {
            os.path.relpath(key, path): found
            for batch in stream
            for key, found in zip(batch.keys, batch.metadata, strict=True)
        }
    failures = {os.path.relpath(f.key, path): f.reason for f in stream.failures}
    assert stream.read + stream.failed == stream.listed
    return list(metadata), failures, metadata


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("ending", [".tar", ".tar.gz", ".TGZ", ".tar.bz2", ".tar.xz"])
def test_names_of_every_sort_give_every_image(tmp_path: Path, backend: str, ending: str) -> None:
    members: Members = [
        ("IMG.2024.01.jpg", PHOTO),
        ("IMG.2024.01.json", b'{"n": 1}'),
        ("IMG.2024.02.jpg", OTHER),
        ("IMG.2024.02.json", b'{"n": 2}'),
        ("both.jpg", PHOTO),
        ("both.png", PNG),
        ("both.txt", b"two of one stem"),
        ("eyes.left.jpg", PHOTO),
        ("eyes.right.jpg", OTHER),
        ("eyes.json", b'{"n": 3}'),
        ("plain", PHOTO),
        ("README", b"no picture"),
        ("v1.2/dir.jpg", PHOTO),
        ("./dot/a.JPG", PHOTO),
        ("twice.jpg", PHOTO),
        ("twice.jpg", OTHER),
        ("3 spaces . jpg.jpeg", PHOTO),
        ("ünï/漢字.jfif", PHOTO),
        ("n" * 120 + "/" + "m" * 150 + ".jpg", PHOTO),
        ("._both.jpg", b"\x00\x05\x16\x07"),
        ("__MACOSX/._x.jpg", b"\x00\x05\x16\x07"),
        (".DS_Store", b"..."),
        ("bad.jpg", b"no picture"),
        ("twice.jpg", PNG),
    ]
    mode = {".tar": "w", ".tar.gz": "w:gz", ".TGZ": "w:gz", ".tar.bz2": "w:bz2", ".tar.xz": "w:xz"}
    path = put(tmp_path / f"s{ending}", members, mode[ending], format=tarfile.PAX_FORMAT)
    keys, failures, metadata = read(path, backend=backend)
    assert keys == [
        "IMG.2024.01",
        "IMG.2024.02",
        "both.jpg",
        "both.png",
        "eyes.left",
        "eyes.right",
        "plain",
        "v1.2/dir",
        "dot/a",
        "twice.jpg",
        "twice.jpg#2",
        "3 spaces . jpg",
        "ünï/漢字",
        "n" * 120 + "/" + "m" * 150,
        "twice",
    ]
    assert list(failures) == ["bad"]
    assert [metadata[k].get("json") for k in keys[:2]] == [{"n": 1}, {"n": 2}]
    assert metadata["both.png"]["txt"] == "two of one stem"
    assert metadata["eyes.left"]["json"] == metadata["eyes.right"]["json"] == {"n": 3}


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("format", [tarfile.PAX_FORMAT, tarfile.GNU_FORMAT])
def test_long_names_of_both_kinds_of_header(tmp_path: Path, backend: str, format: int) -> None:
    names = [f"{'long' * 40}/{'name' * 30}{n}.jpg" for n in range(6)]
    path = put(tmp_path / "s.tar", [(name, PHOTO) for name in names], format=format)
    keys, failures, _ = read(path, backend=backend)
    assert (keys, failures) == ([n.removesuffix(".jpg") for n in names], {})


@pytest.mark.parametrize("kind", ["", "gz"])
def test_links_inside_a_shard_are_images_of_their_own(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "s.tar"
    with tarfile.open(path, f"w:{kind}") as tar:

        def add(name: str, data: bytes = b"", link: str = "", kind: bytes = b"0") -> None:
            member = tarfile.TarInfo(name)
            member.size, member.linkname, member.type = len(data), link, kind
            tar.addfile(member, io.BytesIO(data))

        add("a/1.jpg", PHOTO)
        add("a/2.jpg", link="a/1.jpg", kind=tarfile.LNKTYPE)
        add("a/3.jpg", link="1.jpg", kind=tarfile.SYMTYPE)
        add("b/4.jpg", link="../a/2.jpg", kind=tarfile.SYMTYPE)
        add("a/5.jpg", link="/etc/passwd", kind=tarfile.SYMTYPE)
        add("a/6.jpg", link="../../../etc/passwd", kind=tarfile.LNKTYPE)
        add("a/7.json", link="a/1.jpg", kind=tarfile.LNKTYPE)
    keys, failures, _ = read(path)
    assert keys == ["a/1", "a/2", "a/3", "b/4"]
    assert list(failures) == ["a/5", "a/6"]
    assert all("a link to" in reason for reason in failures.values())


def test_a_hard_link_as_tar_itself_writes_it(tmp_path: Path) -> None:
    (tmp_path / "x.jpg").write_bytes(PHOTO)
    os.link(tmp_path / "x.jpg", tmp_path / "y.jpg")
    with tarfile.open(tmp_path / "s.tar", "w") as tar:
        for name in ("x.jpg", "y.jpg"):
            tar.add(tmp_path / name, name)
        assert [m.islnk() for m in tar.getmembers()] == [False, True]
    assert read(tmp_path / "s.tar")[0] == ["x", "y"]


@pytest.mark.parametrize("first", ["images", "texts"])
def test_samples_that_do_not_lie_together_are_one_word(tmp_path: Path, first: str) -> None:
    images = [(f"{n:02d}.jpg", PHOTO) for n in range(12)]
    texts = [(f"{n:02d}.json", b"{}") for n in range(12)]
    order = [*images, *texts] if first == "images" else [*texts, *images]
    path = put(tmp_path / "s.tar", [*order, ("orphan.json", b"{}")])
    with ImageStream(path, SMALL) as stream:
        assert sum(len(batch) for batch in stream) == 12
    assert [Path(f.key).name for f in stream.failures] == ["orphan"]
    assert str(stream.passed) == (
        "1 shards whose samples do not lie together: their texts were left out"
    )


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("a.json", b"{"),
        ("a.json", b"[" * 100_000),
        ("a.json", b"\xff\xfe"),
        ("a.cls", b"dog"),
        ("a.cls", b"9" * 5000),
        ("a.txt", b"caf\xe9"),
        ("a.transcript", b"\x80"),
    ],
)
@pytest.mark.parametrize("mode", ["w", "w:gz"])
def test_unreadable_metadata_never_cost_the_image(
    tmp_path: Path, name: str, data: bytes, mode: str
) -> None:
    path = put(tmp_path / "s.tar", [("a.jpg", PHOTO), (name, data)], mode)
    keys, failures, metadata = read(path)
    assert (keys, failures) == (["a"], {})
    assert list(metadata["a"]["__unreadable__"]) == [name[2:]]


def test_shards_lie_in_folders_beside_photos(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(PHOTO)
    (tmp_path / "sub").mkdir()
    write_shard(tmp_path / "sub" / "s.tar", {"1.jpg": PHOTO})
    put(tmp_path / "sub" / "t.tar.gz", [("2.jpg", PHOTO)], "w:gz")
    keys, failures, _ = read(tmp_path)
    assert (keys, failures) == (["a.jpg", "sub/s.tar/1", "sub/t.tar.gz/2"], {})
    with pytest.raises(InputError, match="unpack it"):
        read(tmp_path, shuffle=True)


def test_the_ending_does_not_matter_where_the_content_speaks(tmp_path: Path) -> None:
    put(tmp_path / "really-gz.tar", [("1.jpg", PHOTO)], "w:gz")
    put(tmp_path / "really-plain.tar.gz", [("2.jpg", PHOTO)])
    assert read(tmp_path)[0] == ["really-gz.tar/1", "really-plain.tar.gz/2"]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("pack", [bytes, gzip.compress, bz2.compress, lzma.compress])
@pytest.mark.parametrize("whole", [False, True])
def test_archives_one_after_the_other_in_one_file(
    tmp_path: Path, pack: Callable[[bytes], bytes], whole: bool, backend: str
) -> None:
    """As cat makes them, of packed ones or before they are packed; --append is one archive."""
    both = [
        put(tmp_path / f"{n}.tar", [(f"{n}.jpg", PHOTO), (f"{n}.txt", b"x")]).read_bytes()
        for n in "ab"
    ]
    path = tmp_path / "both.tar"
    path.write_bytes(pack(b"".join(both)) if whole else b"".join(map(pack, both)))
    keys, failures, metadata = read(path, backend=backend)
    assert (keys, failures) == (["a", "b"], {})
    assert metadata["b"]["txt"] == "x"
    path.write_bytes(pack(both[0]) + pack(b"notes behind the end" * 99))
    assert read(path)[:2] == (["a"], {})


def test_a_shard_packed_in_pieces(tmp_path: Path) -> None:
    """As bgzip and pigz -i write them: many gzip members, one archive."""
    data = put(tmp_path / "s.tar", [(f"{n}.jpg", PHOTO) for n in range(9)]).read_bytes()
    pieces = [gzip.compress(data[at : at + 700]) for at in range(0, len(data), 700)]
    (tmp_path / "s.tar").write_bytes(b"".join(pieces))
    assert read(tmp_path / "s.tar")[:2] == ([str(n) for n in range(9)], {})


@pytest.mark.parametrize("options", ["v7", "oldgnu", "gnu", "ustar", "posix"])
@pytest.mark.skipif(shutil.which("tar") is None, reason="needs tar")
def test_what_tar_writes(tmp_path: Path, options: str) -> None:
    (tmp_path / "p").mkdir()
    for name in ("a.jpg", "ü b.jpg", "n" * 60 + ".jpg"):
        (tmp_path / "p" / name).write_bytes(PHOTO)
    with open(tmp_path / "p" / "sparse.jpg", "wb") as hole:
        hole.truncate(1 << 20)
    line = ["tar", f"--format={options}", "--sort=name", "-cf", "s.tar", "p"]
    assert subprocess.run(line, cwd=tmp_path, check=False).returncode == 0
    keys, failures, _ = read(tmp_path / "s.tar")
    assert keys == ["p/a", "p/" + "n" * 60, "p/ü b"]
    assert list(failures) == ["p/sparse"]
    if options in ("gnu", "posix"):
        subprocess.run([*line[:2], "--sparse", *line[2:]], cwd=tmp_path, check=True)
        keys, failures, _ = read(tmp_path / "s.tar")
        assert keys == ["p/a", "p/" + "n" * 60, "p/ü b"]
        assert "sparse" in failures["p/sparse"]


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"\x28\xb5\x2f\xfd" + bytes(60), "zstd"),
        (b"PK\x03\x04" + bytes(60), "ZIP"),
        (b"", "empty file"),
        (b"\x1f\x8b" + bytes(60), "damaged shard"),
        (b"BZh9" + bytes(60), "damaged shard"),
        (b"\xfd7zXZ\0" + bytes(60), "damaged shard"),
    ],
)
def test_what_is_no_shard_that_is_read_is_one_failure(
    tmp_path: Path, data: bytes, reason: str
) -> None:
    for name in ("a.tar", "b.tar.zst", "c.TZST"):
        (tmp_path / name).write_bytes(data)
        failures = read(tmp_path / name)[1]
        assert list(failures) == ["."]
        assert reason in failures["."]


def test_a_shard_with_nothing_in_it(tmp_path: Path) -> None:
    empty = put(tmp_path / "empty.tar", [])
    with pytest.raises(InputError, match="no image"):
        read(empty)
    full = put(tmp_path / "full.tar", [("", PHOTO), ("/etc/a.jpg", PHOTO), ("../b.jpg", PHOTO)])
    with ImageStream([str(empty), str(full)], SMALL) as stream:
        assert sum(len(batch.keys) for batch in stream) == 3
    assert not stream.failures


@pytest.mark.parametrize("cut", [40, 400, -600])
def test_a_compressed_shard_that_breaks_off_is_one_failure(tmp_path: Path, cut: int) -> None:
    raw = io.BytesIO()
    with tarfile.open(fileobj=raw, mode="w") as tar:
        for n in range(8):
            member = tarfile.TarInfo(f"{n}.jpg")
            member.size = len(PHOTO)
            tar.addfile(member, io.BytesIO(PHOTO))
    path = tmp_path / "s.tar.gz"
    path.write_bytes(gzip.compress(raw.getvalue(), mtime=0)[:cut])
    with ImageStream(path, SMALL) as stream:
        keys = [key for batch in stream for key in batch.keys]
    assert [f.key for f in stream.failures if f.key == str(path)] == [str(path)]
    assert len(stream.failures) <= 2
    assert "shard" in stream.failures[-1].reason
    assert keys == [f"{path}/{n}" for n in range(len(keys))]


def test_resuming_a_compressed_shard(tmp_path: Path) -> None:
    path = put(tmp_path / "s.tgz", [(f"{n}.jpg", PHOTO) for n in range(10)], "w:gz")
    first = ImageStream(path, SMALL, 3)
    seen = list(next(iter(first)).keys)
    state = first.state_dict()
    first.close()
    with ImageStream(path, SMALL, 4) as second:
        second.load_state_dict(state)
        seen += [key for batch in second for key in batch.keys]
    assert seen == [f"{path}/{n}" for n in range(10)]
    assert second.count() is None
    assert len(passed_over(second)) == 0
