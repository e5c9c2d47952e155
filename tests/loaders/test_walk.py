"""What a folder, a glob, a list and a mixture give; what is passed over; what cannot be read."""

from __future__ import annotations

import io
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.image_files import encoded, scene, write_shard

from pvp_fast.clip.preprocess import Preprocess
from pvp_fast.errors import ImageError, InputError
from pvp_fast.loaders import FileSource, ImageStream, ListSource, PartSource, Search, open_source
from pvp_fast.loaders.ignore import Patterns
from pvp_fast.loaders.sources import find_images

PHOTO = encoded(scene(40, 30))


def put(root: Path, *names: str, data: bytes = PHOTO) -> None:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(data)


def listed(source: FileSource, root: Path) -> list[str]:
    """Keys relative to a folder; those that cannot be read with a mark."""
    keys = []
    for sample in source.samples(None):
        bad = isinstance(sample.image, ImageError)
        keys.append(("! " if bad else "") + os.path.relpath(sample.key, root))
    return keys


def test_folders_are_walked_in_order_and_links_to_files_are_files(tmp_path: Path) -> None:
    root = tmp_path / "in"
    put(root, "1.jpg", "ü.webp", "b/2.PNG", "b/c.d/3.jpeg")
    put(tmp_path, "store/annexed")
    (root / "link.png").symlink_to(tmp_path / "store" / "annexed")
    (root / "relative.jpg").symlink_to("b/2.PNG")
    (root / "gone.jpg").symlink_to("../nowhere")
    (root / "self.jpg").symlink_to("self.jpg")
    source = FileSource([root])
    assert listed(source, root) == [
        "1.jpg",
        "! gone.jpg",
        "link.png",
        "relative.jpg",
        "! self.jpg",
        "ü.webp",
        "b/2.PNG",
        "b/c.d/3.jpeg",
    ]
    assert source.count() == 8
    (gone,) = (s.image.reason for s in source.samples(None) if s.key.endswith("gone.jpg"))
    assert "a link that leads nowhere: ../nowhere" in gone
    assert [p.name for p in find_images([str(root / "*.jpg"), root / "b"])][-2:] == [
        "2.PNG",
        "3.jpeg",
    ]


def test_every_ending_that_can_be_read_is_taken_and_the_rest_is_counted(tmp_path: Path) -> None:
    taken = ["a.jfif", "a.JPE", "a.jp2", "a.tga", "a.pgm", "a.avif", "a.qoi", "a.dib", "a.mpo"]
    put(tmp_path, *taken, "a.svg", "b.SVG", "a.xcf", "a.jxl", "a.mp4", "a.xmp", "noending")
    source = FileSource([tmp_path])
    assert sorted(listed(source, tmp_path)) == sorted(taken)
    assert source.passed.counts[".svg"] == 2
    assert source.passed.counts[".jxl"] == 1
    assert source.passed.counts["other files"] == 3
    assert len(source.passed) + len(taken) == len(os.listdir(tmp_path))
    assert str(source.passed).startswith("2 .svg, 1 .")
    assert str(source.passed).endswith("3 other files")


def test_hidden_names_and_the_folders_of_network_storage(tmp_path: Path) -> None:
    put(
        tmp_path,
        "a.jpg",
        "._a.jpg",
        ".DS_Store",
        ".cache/b.jpg",
        "@eaDir/a.jpg/SYNOPHOTO_THUMB_XL.jpg",
        "#recycle/old.jpg",
        "$RECYCLE.BIN/S-1-5/old.jpg",
        "@Recycle/old.jpg",
        "x/.Trashes/old.jpg",
        "x/.thumbnails/b.jpg",
        "x/lost+found/f.jpg",
        "x/@Recently-Snapshot/s.jpg",
        "x/__MACOSX/._b.jpg",
    )
    source = FileSource([tmp_path])
    assert listed(source, tmp_path) == ["a.jpg"]
    files = sum(len(f) for _, _, f in os.walk(tmp_path))
    assert len(source.passed) + 1 == files
    everything = listed(FileSource([tmp_path], Search(hidden=True)), tmp_path)
    assert len(everything) == files - 3  # AppleDouble and .DS_Store are no pictures
    named = FileSource([tmp_path / ".cache", tmp_path / "@eaDir"])  # asked for by name
    assert len(listed(named, tmp_path)) == 2


def test_links_to_folders_are_entered_by_option_and_no_loop_is_walked(tmp_path: Path) -> None:
    root = tmp_path / "in"
    put(root, "a/1.jpg")
    put(tmp_path, "elsewhere/2.jpg")
    (root / "a" / "up").symlink_to(root)
    (root / "a" / "self").symlink_to(".")
    (root / "z").symlink_to(tmp_path / "elsewhere")
    (root / "zz").symlink_to(tmp_path / "elsewhere")
    source = FileSource([root])
    assert listed(source, root) == ["a/1.jpg"]
    assert source.passed.counts == {"links to folders": 4}
    source = FileSource([root], Search(follow=True))
    assert listed(source, root) == ["a/1.jpg", "z/2.jpg"]
    assert source.passed.counts == {"links to folders": 3}


def test_patterns_leave_out_and_take_back(tmp_path: Path) -> None:
    put(tmp_path, "a.jpg", "raw/a.jpg", "raw/keep.jpg", "x/raw/a.jpg", "x/b.png", "x/y/b.png")
    put(tmp_path, "x/.pvpignore", data=b"# ours\n*.png\n!y/*.png\n")

    def kept(*exclude: str) -> list[str]:
        return listed(FileSource([tmp_path], Search(exclude=exclude)), tmp_path)

    assert kept() == ["a.jpg", "raw/a.jpg", "raw/keep.jpg", "x/raw/a.jpg", "x/y/b.png"]
    assert kept("raw/") == ["a.jpg", "x/y/b.png"]
    assert kept("/raw/**", "!raw/keep.jpg") == [
        "a.jpg",
        "raw/keep.jpg",
        "x/raw/a.jpg",
        "x/y/b.png",
    ]
    assert kept("**/a.jpg") == ["raw/keep.jpg", "x/y/b.png"]
    assert kept("[!a].jpg", "k*p.jpg") == ["a.jpg", "raw/a.jpg", "x/raw/a.jpg", "x/y/b.png"]
    source = FileSource([f"{tmp_path}/**/*.jpg"], Search(exclude=("raw",)))
    assert listed(source, tmp_path) == ["a.jpg"]
    assert Patterns(["*.jpg"]).verdict("a.png", False) is None


def test_brackets_in_names_are_brackets(tmp_path: Path) -> None:
    put(tmp_path, "trip [2019]/a.jpg", "trip [2019]/b [x].jpg", "trip 2/c.jpg", "d*.jpg", "dd.jpg")
    for name, expected in (
        ("trip [2019]", ["a.jpg", "b [x].jpg"]),
        ("trip [2019]/*.jpg", ["a.jpg", "b [x].jpg"]),
        ("trip [2019]/b [x].jpg", ["b [x].jpg"]),
        ("trip [0-9]/*", ["c.jpg"]),
        ("d*.jpg", ["d*.jpg"]),
        ("trip*/*.jp[g]", ["c.jpg", "a.jpg", "b [x].jpg"]),
        ("trip {2,3}/c.jpg", ["c.jpg", "! c.jpg"]),
    ):
        found = listed(FileSource([f"{tmp_path}/{name}"]), tmp_path)
        assert ["! " * key.startswith("! ") + Path(key).name for key in found] == expected, name


def test_a_glob_takes_pictures_or_what_its_own_ending_says(tmp_path: Path) -> None:
    put(tmp_path, "a.jpg", "a.xmp", "a.svg", "deep/b.jpg", "c.dat", "@eaDir/t.jpg")
    source = FileSource([f"{tmp_path}/*"])
    assert listed(source, tmp_path) == ["a.jpg", "deep/b.jpg"]
    assert source.passed.counts == {
        ".svg": 1,
        "other files": 2,
        "in thumbnail and recycle folders": 1,
    }
    assert listed(FileSource([f"{tmp_path}/*.dat"]), tmp_path) == ["c.dat"]
    assert listed(FileSource([f"{tmp_path}/**/*.jpg"]), tmp_path) == ["a.jpg", "deep/b.jpg"]


@pytest.fixture
def unprivileged() -> Iterator[Path]:
    """A folder, and a process that permissions bind."""
    root = Path(tempfile.mkdtemp())
    root.chmod(0o755)
    if os.geteuid():
        yield root
    else:
        put(root, "seen.jpg", "locked/hidden.jpg", "x/also.jpg", "x/secret.jpg")
        (root / "locked").chmod(0)
        (root / "x" / "secret.jpg").chmod(0)
        os.seteuid(65534)
        try:
            yield root
        finally:
            os.seteuid(0)
    shutil.rmtree(root)


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="changes its user")
def test_what_may_not_be_read_is_a_failure_and_the_rest_goes_on(unprivileged: Path) -> None:
    with ImageStream(unprivileged, Preprocess(8)) as stream:
        keys = [os.path.relpath(key, unprivileged) for batch in stream for key in batch.keys]
    assert keys == ["seen.jpg", "x/also.jpg"]
    reasons = {os.path.relpath(f.key, unprivileged): f.reason for f in stream.failures}
    assert set(reasons) == {"locked", "x/secret.jpg"}
    assert "folder cannot be read: Permission denied" in reasons["locked"]
    assert "Permission denied" in reasons["x/secret.jpg"]


@pytest.mark.skipif(sys.platform != "linux", reason="other systems refuse such names")
def test_names_that_cannot_be_are_failures_of_their_own(tmp_path: Path) -> None:
    put(tmp_path, "a.jpg")
    with open(os.fsencode(tmp_path) + b"/not-utf8-\xff.jpg", "wb") as stream:
        stream.write(PHOTO)
    names = [str(tmp_path), "n" * 5000 + ".jpg", "zero\0byte.jpg", str(tmp_path / "a.jpg" / "b")]
    with ImageStream(names, Preprocess(8)) as images:
        keys = [key for batch in images for key in batch.keys]
    assert [os.path.basename(k) for k in keys] == ["a.jpg", "not-utf8-\udcff.jpg"]
    assert [f.key for f in images.failures] == names[1:]
    assert "too long" in images.failures[0].reason
    assert "null" in images.failures[1].reason  # each Python has its own words
    with pytest.raises(InputError, match="too long"):
        FileSource(["n" * 5000])


def test_devices_and_pipes_are_never_opened(tmp_path: Path) -> None:
    put(tmp_path, "a.jpg")
    os.mkfifo(tmp_path / "pipe.jpg")
    (tmp_path / "null.jpg").symlink_to("/dev/null")
    source = FileSource([tmp_path])
    assert listed(source, tmp_path) == ["a.jpg"]
    assert source.passed.counts == {"devices and pipes": 2}


def test_lists_stdin_shards_and_mixtures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = tmp_path / "in"
    put(root, "a.jpg", "b c.jpg", "sub/d.jpg")
    write_shard(root / "Z.TAR", {"s1.jpg": PHOTO, "s2.jpg": PHOTO})
    put(root, "list.txt", data="\ufeff# ours\r\na.jpg\r\nsub\n../../etc/passwd\n".encode())
    put(root, "a.txt", data=b"a photo of a dog, running\n")
    put(root, "names.LST", data=b"b c.jpg\n")
    shard = ["Z.TAR/s1", "Z.TAR/s2"]
    assert listed(FileSource([root]), root) == [*shard, "a.jpg", "b c.jpg", "sub/d.jpg"]
    assert listed(FileSource([root / "list.txt"]), root)[:2] == ["a.jpg", "sub/d.jpg"]
    mixture = [str(root / n) for n in ("a.txt", "list.txt", "names.LST", "Z.TAR", "sub", "*.jpg")]
    found = listed(FileSource(mixture), root)
    assert found[:3] == ["! a.txt", "a.jpg", "sub/d.jpg"]
    assert found[4:] == ["b c.jpg", "Z.TAR/s1", "Z.TAR/s2", "sub/d.jpg", "a.jpg", "b c.jpg"]

    class Stdin:
        buffer = io.BytesIO(b"a.jpg\nb c.jpg\r\n\nsub\n")

    monkeypatch.chdir(root)
    monkeypatch.setattr(sys, "stdin", Stdin)
    source = FileSource(["-"])
    assert (source.count(), listed(source, root)) == (3, ["a.jpg", "b c.jpg", "sub/d.jpg"])
    Stdin.buffer = io.BytesIO(b"b c.jpg\0" + os.fsencode(root / "a.jpg") + b"\0")
    assert listed(FileSource(["-"]), root) == ["b c.jpg", "a.jpg"]
    Stdin.buffer = io.BytesIO(b"\n")
    with pytest.raises(InputError, match="no image in -"):
        list(FileSource(["-"]).samples(None))


@pytest.mark.parametrize(
    "written",
    [
        "a.jpg\r\n b.jpg \r\n# c.jpg\r\n\r\n#d.jpg\r\nü.jpg\r\n".encode("utf-8-sig"),
        "a.jpg\n b.jpg \n# c.jpg\n#d.jpg\nü.jpg".encode("utf-16"),
        "\ufeffa.jpg\n b.jpg \n#d.jpg\nü.jpg\n".encode("utf-16-be"),
        "a.jpg\0 b.jpg \0#d.jpg\0ü.jpg\0".encode(),
        "./a.jpg\n./ b.jpg \n./#d.jpg\nü.jpg".encode(),
        "  a.jpg\t\n b.jpg \n#d.jpg\nü.jpg".encode(),
    ],
)
def test_a_list_however_it_is_written(tmp_path: Path, written: bytes) -> None:
    names = ["a.jpg", " b.jpg ", "#d.jpg", "ü.jpg"]
    put(tmp_path, *names)
    (tmp_path / "list.txt").write_bytes(written)
    assert listed(FileSource([tmp_path / "list.txt"]), tmp_path) == names
    assert [s.key for s in ListSource(tmp_path / "list.txt").samples(None)] == [
        os.path.join(tmp_path, name) for name in names
    ]
    assert ListSource(tmp_path / "list.txt").count() == 4


def test_lists_that_lead_back_to_themselves_end(tmp_path: Path) -> None:
    put(tmp_path, "a.jpg", "b.jpg")
    (tmp_path / "one.txt").write_text("a.jpg\ntwo.txt\n")
    (tmp_path / "two.txt").write_text("b.jpg\none.txt\n")
    (tmp_path / "self.lst").write_text("self.lst\na.jpg\n")
    assert listed(FileSource([tmp_path / "one.txt"]), tmp_path) == ["a.jpg", "b.jpg", "! one.txt"]
    assert listed(FileSource([tmp_path / "self.lst"]), tmp_path) == ["! self.lst", "a.jpg"]


def test_names_that_are_odd_and_folders_that_are_deep(tmp_path: Path) -> None:
    names = [
        "trailing .jpg",
        "dot..jpg",
        "new\nline.jpg",
        "\u202egpj.jpg",
        "a\u0301.jpg",
        "\x1b[31m.jpg",
    ]
    names += [
        "á.jpg",
        "#x.jpg",
        "-r.jpg",
        "~.jpg",
        "con.jpg",
        "{1..3}.jpg",
        "{a,b}.jpg",
        "http:.jpg",
    ]
    put(tmp_path, *names)
    assert sorted(listed(FileSource([tmp_path]), tmp_path)) == sorted(names)
    for name in names:
        assert listed(FileSource([tmp_path / name]), tmp_path) == [name]
    here = os.getcwd()
    try:
        os.chdir(tmp_path)
        for _ in range(40):  # together longer than any path may be
            os.mkdir("x" * 120)
            os.chdir("x" * 120)
        Path("deep.jpg").write_bytes(PHOTO)
    finally:
        os.chdir(here)
    found = list(FileSource([tmp_path]).samples(None))
    assert sum(isinstance(sample.image, ImageError) for sample in found) == 1
    assert len(found) == len(names) + 1
    shutil.rmtree(tmp_path, ignore_errors=True)


@pytest.mark.skipif(not hasattr(os, "truncate"), reason="needs sparse files")
def test_sparse_files_of_a_tebibyte_are_read_or_refused(tmp_path: Path) -> None:
    put(tmp_path, "photo.jpg", "nothing.png", "a.webp")
    (tmp_path / "nothing.png").write_bytes(b"")
    for name in ("photo.jpg", "nothing.png"):
        os.truncate(tmp_path / name, 1 << 40)
    os.truncate(tmp_path / "a.webp", 200)
    with ImageStream(tmp_path, Preprocess(8)) as stream:
        assert [Path(key).name for batch in stream for key in batch.keys] == ["photo.jpg"]
    assert sorted(Path(f.key).name for f in stream.failures) == ["a.webp", "nothing.png"]


def test_links_in_a_list_are_its_owners(tmp_path: Path) -> None:
    put(tmp_path, "store/blob")
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.jpg").symlink_to("../store/blob")
    put(tmp_path, "in/list.txt", data=b"a.jpg\n../store/blob\n")
    with ImageStream(ListSource(tmp_path / "in" / "list.txt"), Preprocess(8)) as stream:
        assert [Path(k).name for batch in stream for k in batch.keys] == ["a.jpg"]
    assert ["outside" in f.reason for f in stream.failures] == [True]


def test_parts_share_the_images_and_later_ones_move_none(tmp_path: Path) -> None:
    put(tmp_path, *(f"{n:03d}.jpg" for n in range(60)))
    parts = [open_source(tmp_path, part=(i, 3)) for i in (1, 2, 3)]
    before = [{s.key for s in part.samples(None)} for part in parts]
    assert [len(keys) for keys in before] == [part.count() for part in parts]
    assert len(set().union(*before)) == sum(map(len, before)) == 60
    assert min(map(len, before)) > 8
    put(tmp_path, "0000.jpg", "zzz.jpg")
    after = [{s.key for s in part.samples(None)} for part in parts]
    assert all(old <= new for old, new in zip(before, after, strict=True))
    for wrong in ((0, 3), (4, 3), (1, 0)):
        with pytest.raises(InputError, match="shard"):
            PartSource(parts[0], *wrong)


def test_nothing_found_is_an_error_that_says_what_was_seen(tmp_path: Path) -> None:
    put(tmp_path, "a.svg", "b.mp4", ".c.jpg")
    with (
        pytest.raises(InputError, match=r"no image in .*1 \.svg, 1 hidden, 1 other files"),
        ImageStream(tmp_path, Preprocess(8)) as stream,
    ):
        list(stream)
    for nothing in (tmp_path / "none", f"{tmp_path}/*.jpg", [tmp_path / "x", "y{1..2}.tar"]):
        with pytest.raises(InputError, match="no such file"):
            open_source(nothing)
