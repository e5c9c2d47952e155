"""How many threads: what is said, affinity, and the quotas of control groups, real and written."""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from pvp_fast.cli.app import run
from pvp_fast.errors import InputError
from pvp_fast.threads import budget as threads

GROUPS = Path("/sys/fs/cgroup/cpu")  # version 1, where a test may make one


@pytest.fixture(autouse=True)
def _nothing_said(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.delenv(threads.VARIABLE, raising=False)
    yield
    threads.set_budget(None)


def process(tmp_path: Path, groups: str, mounts: str) -> Path:
    """A folder as /proc/self; ``{}`` stands for where control groups are mounted."""
    proc = tmp_path / "self"
    proc.mkdir()
    (proc / "cgroup").write_text(groups)
    there = str(tmp_path / "cgroup with space").replace(" ", "\\040")
    (proc / "mountinfo").write_text(mounts.format(there))
    return proc


def group(tmp_path: Path, name: str, **files: str) -> None:
    folder = tmp_path / "cgroup with space" / name
    folder.mkdir(parents=True, exist_ok=True)
    for file, text in files.items():
        (folder / file.replace("__", ".")).write_text(text)


V2 = "41 31 0:38 / {} rw,relatime shared:9 - cgroup2 cgroup2 rw\n"
V1 = "32 31 0:29 / {} rw,relatime - cgroup cgroup rw,cpu,cpuacct\n"


def test_version_two_takes_the_least_quota_up_to_the_root(tmp_path: Path) -> None:
    proc = process(tmp_path, "0::/pod/box\n", V2)
    group(tmp_path, "pod/box", cpu__max="max 100000\n")
    assert threads.cpu_quota(proc) is None
    group(tmp_path, "pod", cpu__max="250000 100000\n")
    assert threads.cpu_quota(proc) == 2.5
    group(tmp_path, "pod/box", cpu__max="50000 100000\n")
    assert threads.cpu_quota(proc) == 0.5


def test_version_one_reads_its_own_controller(tmp_path: Path) -> None:
    proc = process(tmp_path, "4:memory:/other\n1:cpuacct,cpu:/docker/abc\n0::/\n", V1)
    group(tmp_path, "docker", cpu__cfs_quota_us="-1\n", cpu__cfs_period_us="100000\n")
    assert threads.cpu_quota(proc) is None
    group(tmp_path, "docker/abc", cpu__cfs_quota_us="300000\n", cpu__cfs_period_us="100000\n")
    assert threads.cpu_quota(proc) == 3


def test_a_container_that_mounts_its_own_group_finds_it_at_the_mount(tmp_path: Path) -> None:
    mounts = "32 31 0:29 /docker/abc {} ro - cgroup cgroup rw,cpu\n"
    proc = process(tmp_path, "1:cpu:/docker/abc\n", mounts)
    group(tmp_path, ".", cpu__cfs_quota_us="200000\n", cpu__cfs_period_us="100000\n")
    assert threads.cpu_quota(proc) == 2


def test_a_group_outside_the_name_space_and_a_damaged_file_limit_nothing(tmp_path: Path) -> None:
    proc = process(tmp_path, "0::/../../box\n", V2)
    group(tmp_path, ".", cpu__max="nonsense\n")
    assert threads.cpu_quota(proc) is None
    assert threads.cpu_quota(tmp_path / "nowhere") is None


@pytest.mark.skipif(not os.access(GROUPS, os.W_OK), reason="no control group can be made here")
def test_a_real_quota_is_the_budget_of_whoever_is_in_the_group() -> None:
    folder = GROUPS / f"pvp-fast-test-{os.getpid()}"
    try:
        folder.mkdir()
        (folder / "cpu.cfs_quota_us").write_text("100000")  # one CPU
    except OSError as error:
        pytest.skip(f"no quota can be set here: {error}")
    code = (
        f"import os, pathlib; pathlib.Path({str(folder / 'cgroup.procs')!r}).write_text('0')\n"
        "from pvp_fast.threads import budget as t; t.tell_openmp()\n"
        "print(t.cpu_quota(), t.budget(), os.environ.get('OMP_NUM_THREADS'))"
    )
    environment = {k: v for k, v in os.environ.items() if k != "OMP_NUM_THREADS"}
    try:
        out = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, env=environment
        )
    finally:
        folder.rmdir()
    assert out.stdout.split() == ["1.0", "1", "1" if threads.affinity() > 1 else "None"], out.stderr


def test_what_is_said_comes_before_the_environment_and_the_machine(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(threads, "affinity", lambda: 8)
    monkeypatch.setattr(threads, "cpu_quota", lambda: 2.5)
    assert threads.budget() == 3
    monkeypatch.setenv(threads.VARIABLE, "5")
    assert threads.budget() == 5
    threads.set_budget(7)
    assert (threads.budget(), threads.encoder_budget()) == (7, 7)
    threads.set_budget(None)
    for wrong in ("0", "-1", "two", "²"):
        monkeypatch.setenv(threads.VARIABLE, wrong)
        with pytest.raises(InputError, match=threads.VARIABLE):
            threads.budget()
    with pytest.raises(InputError, match="threads is 0"):
        threads.set_budget(0)


@pytest.mark.parametrize(
    ("total", "count", "each"), [(1, 1, 1), (2, 2, 1), (16, 16, 1), (17, 8, 2), (64, 16, 4)]
)
def test_streams_use_the_budget_and_never_more(total: int, count: int, each: int) -> None:
    threads.set_budget(total)
    assert threads.streams() == (count, each)


def test_the_command_line_says_it_and_shows_it(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["--threads", "3", "info"]) == 0
    assert "3 (said by --threads or PVP_FAST_THREADS)" in capsys.readouterr().out
    assert run(["info"]) == 0  # the next command starts anew
    assert "CPUs by affinity" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("given", "policy"),
    [({}, "PASSIVE"), ({"OMP_WAIT_POLICY": "ACTIVE"}, "ACTIVE"), ({"GOMP_SPINCOUNT": "9"}, None)],
)
def test_waiting_workers_sleep_unless_the_user_says_otherwise(
    monkeypatch: pytest.MonkeyPatch, given: dict[str, str], policy: str | None
) -> None:
    monkeypatch.setattr(os, "environ", dict(given))
    with monkeypatch.context() as patch:
        patch.delitem(sys.modules, "torch", raising=False)  # a program's first lines
        threads.tell_openmp()
    assert os.environ.get("OMP_WAIT_POLICY") == policy
    os.environ.clear()
    monkeypatch.setitem(sys.modules, "torch", torch)
    threads.tell_openmp()  # too late: nothing is written
    threads.few_arenas()
    assert not os.environ


def test_freed_memory_stays_in_few_arenas_unless_the_user_says_otherwise() -> None:
    """Blocks that eight threads hold at once, counted by malloc itself."""
    code = (
        "import ctypes, os, tempfile, threading\n"
        "from pvp_fast.threads.budget import few_arenas; few_arenas()\n"
        "libc = ctypes.CDLL(None); libc.malloc.restype = ctypes.c_void_p\n"
        "meet = threading.Barrier(8)\n"
        "def work():\n"
        "    meet.wait(); libc.malloc(1000); meet.wait()\n"
        "threads = [threading.Thread(target=work) for _ in range(8)]\n"
        "[t.start() for t in threads]; [t.join() for t in threads]\n"
        "libc.fopen.restype = ctypes.c_void_p; path = tempfile.mktemp().encode()\n"
        "out = ctypes.c_void_p(libc.fopen(path, b'w'))\n"
        "libc.malloc_info(0, out); libc.fclose(out); text = open(path).read(); os.unlink(path)\n"
        "print(text.count('<heap nr='), os.environ['MALLOC_ARENA_MAX'])"
    )
    if not hasattr(ctypes.CDLL(None), "gnu_get_libc_version"):
        pytest.skip("another malloc than GNU's")
    plain = {k: v for k, v in os.environ.items() if k != "MALLOC_ARENA_MAX"}
    found = {}
    for given in ({}, {"MALLOC_ARENA_MAX": "6"}):
        out = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, env={**plain, **given}
        )
        assert out.returncode == 0, out.stderr
        found[len(given)] = [int(word) for word in out.stdout.split()]
    assert found[0] == [2, 2]
    assert found[1] == [6, 6]
