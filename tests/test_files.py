"""Files that are whole or absent, and paths that stay inside their root."""

from __future__ import annotations

import contextlib
import errno
import json
import math
import os
import signal
import stat
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from pvp_fast.errors import InputError
from pvp_fast.files import atomic_write, json_text, safe_join


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "a" / "file.txt"
    with atomic_write(path, "w") as stream:
        stream.write("old")

    def interrupted() -> None:
        with atomic_write(path, "w") as stream:
            stream.write("half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert path.read_text() == "old"
    assert [p.name for p in path.parent.iterdir()] == ["file.txt"]


@pytest.mark.skipif(not hasattr(os, "O_TMPFILE"), reason="needs files without a name")
def test_a_killed_write_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    try:
        os.close(os.open(tmp_path, os.O_TMPFILE | os.O_RDWR))
    except OSError as error:
        pytest.skip(f"this file system has no files without a name: {error}")
    path = tmp_path / "file.txt"
    path.write_text("old")
    code = (
        "import os, signal, sys\nfrom pvp_fast.files import atomic_write\n"
        "with atomic_write(sys.argv[1], 'w') as stream:\n    stream.write('half')\n"
        "    stream.flush()\n    os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    ended = subprocess.run([sys.executable, "-c", code, str(path)])
    assert ended.returncode == -signal.SIGKILL
    assert path.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["file.txt"]


@pytest.mark.parametrize("named", [False, True])
def test_with_and_without_a_name_a_write_is_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, named: bool
) -> None:
    if named:  # as on file systems that have no others, and outside Linux
        monkeypatch.delattr(os, "O_TMPFILE", raising=False)
    path = tmp_path / "file.txt"
    umask = os.umask(0o027)
    try:
        with atomic_write(path, "w") as stream:
            stream.write("new")
            names = [p.suffix for p in tmp_path.iterdir()]
        with pytest.raises(KeyError), atomic_write(path, "w"):
            raise KeyError
    finally:
        os.umask(umask)
    assert names == ([".tmp"] if named else names)
    assert path.read_text() == "new"
    assert path.stat().st_mode & 0o777 == 0o640
    assert [p.name for p in tmp_path.iterdir()] == ["file.txt"]


@pytest.mark.parametrize("bad", ["../x", "/etc/passwd", "a/../../x", "link/x"])
def test_paths_do_not_leave_the_root(tmp_path: Path, bad: str) -> None:
    root = tmp_path / "root"
    root.mkdir()
    (root / "link").symlink_to(tmp_path)
    with pytest.raises(InputError, match="outside"):
        safe_join(root, bad)
    assert safe_join(root, "a/b") == root / "a" / "b"


def test_json_has_null_where_a_number_is_not_finite() -> None:
    value = {"a": [1.5, math.nan], "b": {"c": (math.inf, -math.inf)}, "d": "NaN", "e": True}
    text = json_text(value, indent=1)

    def never(name: str) -> None:
        raise AssertionError(name)

    found = json.loads(text, parse_constant=never)
    assert found == {"a": [1.5, None], "b": {"c": [None, None]}, "d": "NaN", "e": True}
    assert math.isnan(value["a"][1])  # the caller's own is as it was


def write(path: Path, text: str = "new") -> None:
    with atomic_write(path, "w") as stream:
        stream.write(text)


def test_a_link_stays_a_link_and_its_file_is_replaced(tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    real = tmp_path / "there" / "real.txt"
    real.write_text("old")
    (tmp_path / "one").symlink_to("two")
    (tmp_path / "two").symlink_to(Path("there") / "real.txt")
    write(tmp_path / "one")
    assert (tmp_path / "one").is_symlink()
    assert (tmp_path / "two").is_symlink()
    assert real.read_text() == "new"
    (tmp_path / "dangling").symlink_to("there/later.txt")
    write(tmp_path / "dangling")
    assert (tmp_path / "there" / "later.txt").read_text() == "new"
    (tmp_path / "round").symlink_to("round")
    with pytest.raises(OSError, match=r"[Ll]evels of symbolic links"):
        write(tmp_path / "round")
    assert not list(tmp_path.rglob("*.tmp"))


def test_a_folder_is_no_file(tmp_path: Path) -> None:
    with pytest.raises(IsADirectoryError):
        write(tmp_path)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs FIFOs")
def test_what_is_no_regular_file_is_written_directly(tmp_path: Path) -> None:
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    (tmp_path / "link").symlink_to("fifo")
    with ThreadPoolExecutor(1) as reader:
        for path in (fifo, tmp_path / "link"):
            found = reader.submit(fifo.read_text)
            write(path)
            assert found.result() == "new"
    assert stat.S_ISFIFO(fifo.stat().st_mode)
    write(Path(os.devnull))
    assert stat.S_ISCHR(os.stat(os.devnull).st_mode)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["fifo", "link"]


@pytest.mark.skipif(sys.platform != "linux", reason="needs /dev/fd")
@pytest.mark.parametrize("name", ["/dev/stdout", "/dev/fd/1", "/proc/self/fd/1", "link", "-"])
def test_the_descriptors_of_this_process_are_not_opened_anew(tmp_path: Path, name: str) -> None:
    code = (
        "import sys\nfrom pvp_fast.files import open_output\n"
        "print('before')\n"
        "with open_output(sys.argv[1], 'w') as stream:\n    stream.write('new\\n')\n"
        "print('after')\n"
    )
    (tmp_path / "link").symlink_to("/dev/stdout")
    out = tmp_path / "out"
    out.write_text("old\n")
    with out.open("a") as stream:  # as the shell's >> does
        line = [sys.executable, "-c", code, name]
        subprocess.run(line, stdout=stream, cwd=tmp_path, check=True)
    assert out.read_text() == "old\nbefore\nnew\nafter\n"


def test_owner_mode_and_attributes_of_a_replaced_file_stay(tmp_path: Path) -> None:
    path = tmp_path / "x"
    path.write_text("old")
    path.chmod(0o640)
    if hasattr(os, "setxattr"):
        with contextlib.suppress(OSError):
            os.setxattr(path, "user.note", b"mine")
    root = hasattr(os, "geteuid") and os.geteuid() == 0
    if root:
        os.chown(path, 1234, 4321)
    before = path.stat()
    kept = {k: os.getxattr(path, k) for k in os.listxattr(path)} if hasattr(os, "listxattr") else {}
    write(path)
    after = path.stat()
    assert path.read_text() == "new"
    assert after.st_ino != before.st_ino
    assert (after.st_mode, after.st_uid, after.st_gid) == (
        before.st_mode,
        before.st_uid,
        before.st_gid,
    )
    if hasattr(os, "listxattr"):
        assert {k: os.getxattr(path, k) for k in os.listxattr(path)} == kept


def refusing(code: int) -> Callable[..., Any]:
    def refuse(*_: Any, **__: Any) -> Any:
        raise OSError(code, os.strerror(code))

    return refuse


@pytest.mark.parametrize("name", ["chmod", "chown", "fsync", "listxattr", "setxattr"])
@pytest.mark.parametrize("code", [errno.ENOTSUP, errno.EINVAL, errno.ENOSYS])
def test_what_a_share_refuses_does_not_end_a_write(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, code: int
) -> None:
    path = tmp_path / "x"
    path.write_text("old")
    monkeypatch.setattr(os, name, refusing(code), raising=False)
    write(path)
    assert path.read_text() == "new"


@pytest.mark.parametrize("name", ["chmod", "chown"])
def test_no_permission_for_a_luxury_does_not_end_a_write(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    path = tmp_path / "x"
    path.write_text("old")
    monkeypatch.setattr(os, name, refusing(errno.EPERM), raising=False)
    write(path)
    assert path.read_text() == "new"


@pytest.mark.parametrize("code", [errno.EIO, errno.ENOSPC, errno.EDQUOT])
def test_what_did_not_reach_the_disk_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    path = tmp_path / "x"
    path.write_text("old")
    monkeypatch.setattr(os, "fsync", refusing(code))
    with pytest.raises(OSError, match=os.strerror(code)):
        write(path)
    assert path.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["x"]


def test_a_name_as_long_as_names_may_be(tmp_path: Path) -> None:
    path = tmp_path / ("é" * 120 + ".jsonl")  # 246 of 255 bytes
    write(path)
    write(path, "newer")
    assert path.read_text() == "newer"


def test_a_file_that_is_a_mount_of_its_own_is_filled_anew(tmp_path: Path) -> None:
    outside, inside = tmp_path / "outside", tmp_path / "inside"
    for path in (outside, inside):
        path.write_text("old")
    command = ["mount", "--bind", str(outside), str(inside)]
    if os.name != "posix" or os.geteuid() != 0 or subprocess.run(command, check=False).returncode:
        pytest.skip("mounting needs root")
    try:
        write(inside)
        assert outside.read_text() == "new"
    finally:
        subprocess.run(["umount", str(inside)], check=True)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["inside", "outside"]


@pytest.mark.skipif(not hasattr(os, "O_TMPFILE"), reason="files without a name")
def test_a_new_file_has_no_other_name_before_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So that a kill at any moment leaves it whole or nothing at all."""
    path, named = tmp_path / "new", []
    link = os.link

    def linked(source: str, name: Path, **options: Any) -> None:
        link(source, name, **options)
        named.append(Path(name))
        raise KeyboardInterrupt  # as a kill: nothing comes behind it

    monkeypatch.setattr(os, "link", linked)
    with pytest.raises(KeyboardInterrupt), atomic_write(path) as stream:
        stream.write(b"whole")
    if not named:
        pytest.skip("this file system has none")
    assert named == [path]
    assert list(tmp_path.iterdir()) == [path]
    assert path.read_bytes() == b"whole"
    assert stat.S_IMODE(path.stat().st_mode) == 0o666 & ~_umask()


def test_what_is_called_before_a_file_is_replaced_keeps_the_old_one(tmp_path: Path) -> None:
    def refuse() -> None:
        raise ValueError("no")

    for path in (tmp_path / "new", tmp_path / "old"):
        if path.name == "old":
            path.write_bytes(b"old")
        with pytest.raises(ValueError, match="no"), atomic_write(path, before=refuse) as stream:
            stream.write(b"other")
    assert [p.name for p in tmp_path.iterdir()] == ["old"]
    assert (tmp_path / "old").read_bytes() == b"old"


def _umask() -> int:
    umask = os.umask(0)
    os.umask(umask)
    return umask
