"""How many threads this process may keep busy: said once, else what the machine grants it.

A container shows all CPUs of its machine and stops the process for the rest of every period in
which it has used up its quota, so more threads than the quota are slower than as many. Affinity
(taskset, cpuset) and the quota of every control group above the process count, of both versions.
"""

from __future__ import annotations

import math
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from pvp_fast.errors import InputError

VARIABLE = "PVP_FAST_THREADS"
MOST_STREAMS = 16  # each holds a batch and what the encoder makes of it
_PROC = Path("/proc/self")
_ARENAS = 2
_M_ARENA_MAX = -8  # glibc's malloc.h
_said: int | None = None


class Streams(NamedTuple):
    """``number`` threads that work side by side, each with ``threads`` of OpenMP."""

    number: int
    threads: int


def set_budget(threads: int | None) -> None:
    """Say how many threads this process may use; None: what the environment or the machine says.

    Raises:
        InputError: less than one.
    """
    global _said
    if threads is not None and threads < 1:
        raise InputError(f"threads is {threads}; give at least 1")
    _said = threads


def said() -> int | None:
    """What :func:`set_budget` was given, else ``PVP_FAST_THREADS``, else None.

    Raises:
        InputError: the variable holds no such number.
    """
    if _said is not None:
        return _said
    text = os.environ.get(VARIABLE, "").strip()
    if not text:
        return None
    if not text.isascii() or not text.isdigit() or int(text) < 1:
        raise InputError(f"{VARIABLE}={text!r}: give a number of threads, at least 1")
    return int(text)


def budget() -> int:
    """Threads of this process: what was said, else its CPUs within its quota."""
    return said() or available_cpus()


def encoder_budget() -> int:
    """Threads of the encoder and top-k.

    Unless a number was said, no more than torch's own, which ``OMP_NUM_THREADS`` and
    ``torch.set_num_threads`` set.
    """
    import torch

    return said() or min(available_cpus(), torch.get_num_threads())


def streams() -> Streams:
    """How the encoder's threads are dealt out to streams: as many as possible, alike."""
    total = encoder_budget()
    threads = -(-total // MOST_STREAMS)
    return Streams(total // threads, threads)


def available_cpus() -> int:
    """CPUs this process may use: its affinity, cut to its quota, rounded up."""
    quota = cpu_quota()
    return affinity() if quota is None else max(1, min(affinity(), math.ceil(quota)))


def affinity() -> int:
    """CPUs this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def cpu_quota(proc: Path = _PROC) -> float | None:
    """CPUs' worth of time that control groups allow this process, or None without a limit.

    Args:
        proc: the process's folder in /proc.
    """
    found = (limit for folder in _groups(proc) if (limit := _limit(folder)) is not None)
    return min(found, default=None)


def tell_openmp() -> None:
    """Let an OpenMP that is not yet loaded keep to the budget, and sleep while it waits.

    For a program's first lines: it writes ``OMP_NUM_THREADS`` where torch would not see a limit,
    and ``OMP_WAIT_POLICY``, each unless it is set, for this process and those it starts. GNU
    OpenMP's workers spin at the end of every parallel loop for the slowest of them; where other
    processes use the same CPUs they hold up the very thread they wait for, and a step of training
    takes a hundred times as long. Asleep, they cost a twentieth of it on an idle machine.
    """
    if "torch" in sys.modules:
        return
    if "GOMP_SPINCOUNT" not in os.environ:
        os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    if budget() < affinity():
        os.environ.setdefault("OMP_NUM_THREADS", str(budget()))


def few_arenas() -> None:
    """Let GNU's malloc keep two arenas of freed memory in place of up to eight a CPU.

    For a program's first lines: for this process and those it starts, unless ``MALLOC_ARENA_MAX``
    is set. What one thread has freed another's arena cannot have, so two streams and the threads
    that read photos held a hundred MiB more than they use, at the same speed.
    """
    if "torch" in sys.modules or "MALLOC_ARENA_MAX" in os.environ or os.name != "posix":
        return
    import ctypes

    malloc = ctypes.CDLL(None)
    if hasattr(malloc, "gnu_get_libc_version"):  # others have other parameters, or none
        os.environ["MALLOC_ARENA_MAX"] = str(_ARENAS)
        malloc.mallopt(_M_ARENA_MAX, _ARENAS)


def _limit(folder: Path) -> float | None:
    """The quota of one control group, of either version."""
    try:
        if (folder / "cpu.max").exists():
            quota, period = (folder / "cpu.max").read_text().split()
        else:
            quota = (folder / "cpu.cfs_quota_us").read_text()
            period = (folder / "cpu.cfs_period_us").read_text()
        limit = float(quota) / float(period)
    except (OSError, ValueError, ZeroDivisionError):  # the root has none; "max": no limit
        return None
    return limit if limit > 0 else None  # version 1 writes -1 for none


def _groups(proc: Path) -> Iterator[Path]:
    """Folders of the control groups that hold this process, from its own up to each root."""
    try:
        lines = (proc / "cgroup").read_text().splitlines()
        mounts = (proc / "mountinfo").read_text().splitlines()
    except OSError:  # no Linux, or no /proc
        return
    mine: dict[str, str] = {}
    for line in lines:  # 4:cpu,cpuacct:/user.slice, and 0::/user.slice in version 2
        _, controllers, group = line.split(":", 2)
        for controller in controllers.split(","):
            mine[controller] = group
    for line in mounts:
        before, _, after = line.partition(" - ")
        root, mount = (field.encode().decode("unicode_escape") for field in before.split()[3:5])
        kind, _, options = after.split(" ", 2)
        if kind == "cgroup2":
            here = mine.get("")
        elif kind == "cgroup" and "cpu" in options.split(","):
            here = mine.get("cpu")
        else:
            continue
        if here is not None:
            yield from _upwards(Path(mount), _within(here, root))


def _within(group: str, root: str) -> str:
    """A group's path below what is mounted, which in a container may be the group itself."""
    if root == "/":
        return group
    return group[len(root) :] if f"{group}/".startswith(f"{root}/") else "/"


def _upwards(mount: Path, group: str) -> Iterator[Path]:
    folder = mount / group.strip("/")
    if ".." in folder.parts:  # a group outside this process's name space
        folder = mount
    yield folder
    while folder != mount:
        folder = folder.parent
        yield folder
