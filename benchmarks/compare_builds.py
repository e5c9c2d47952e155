"""Two builds of the package side by side: is any case slower than it was?

``[PHOTOS=FOLDER] python benchmarks/compare_builds.py OLD_PYTHON [--cpu] [--json FILE]``

OLD_PYTHON is the interpreter of an environment that holds the other build; the one that runs this
script holds the new one. Each build lives in a process of its own, that waits while the other is
timed; every round times every case on both, the cases in random order and which build comes first
by a coin. A case's ratio is the median over the rounds of new time / old time of the same round.
With ``--cpu`` the time is what the process and its threads computed, on a machine that has other
work; the reading of photos is then the loader's on one thread.
"""

from __future__ import annotations

import argparse
import atexit
import itertools
import os
import random
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

# Set before torch starts its threads; idle ones sleep, so that the waiting process costs nothing.
os.environ.setdefault("KMP_BLOCKTIME", "0")
os.environ.setdefault("GOMP_SPINCOUNT", "0")

import torch

ENTRYWISE = ("asl", "bce", "focal", "siglip", "ranking")
SIZES = ((32, 20), (32, 80), (256, 1_000), (512, 80), (1_024, 4_585), (64, 20_000))
TOPK = tuple((b, c) for b in (1, 12, 64, 256) for c in (20, 1_000, 10_000, 100_000))
LEAST_MS = 8.0


def _loss(kind: str, rows: int, categories: int, half: bool) -> Callable[[], object]:
    from pvp_fast import losses

    generator = torch.Generator().manual_seed(rows + categories)
    dtype = torch.bfloat16 if half else torch.float32
    x, w = (torch.randn(n, 512, generator=generator).to(dtype) for n in (rows, categories))
    y = torch.rand(rows, categories, generator=generator) < 2.5 / categories
    function = getattr(losses, f"{kind}_loss")

    def step() -> None:
        a, b = x.detach().requires_grad_(), w.detach().requires_grad_()
        function(a, b, y, scale=20.0).backward()

    return step


def _clip(pairs: int) -> Callable[[], object]:
    from pvp_fast.losses import clip_loss

    generator = torch.Generator().manual_seed(pairs)
    x, w = (torch.randn(pairs, 512, generator=generator) for _ in range(2))

    def step() -> None:
        a, b = x.detach().requires_grad_(), w.detach().requires_grad_()
        clip_loss(a, b, scale=20.0).backward()

    return step


def _pool(rows: int, categories: int) -> Callable[[], object]:
    from pvp_fast import spatial_softmax_pool

    generator = torch.Generator().manual_seed(rows + categories)
    z = torch.randn(rows, 49, 512, generator=generator)
    w = torch.randn(categories, 512, generator=generator)

    def step() -> None:
        a, b = z.detach().requires_grad_(), w.detach().requires_grad_()
        spatial_softmax_pool(a, b, temperature=50.0).sum().backward()

    return step


def _topk(rows: int, categories: int, dtype: str) -> Callable[[], object]:
    from pvp_fast import TagIndex

    generator = torch.Generator().manual_seed(rows + categories)
    index = TagIndex(torch.randn(categories, 512, generator=generator), dtype)
    x = torch.randn(rows, 512, generator=generator)
    return lambda: index.topk(x, 10)


def _turned(files: list[str]) -> list[str]:
    """Copies of JPEGs with the request to be turned by 90 degrees, as phones write it."""
    # One directory of one entry: 0x0112, a short, 6.
    tiff = b"MM\0*\0\0\0\x08\0\1\1\x12\0\3\0\0\0\1\0\6\0\0\0\0\0\0"
    exif = b"Exif\0\0" + tiff
    block = b"\xff\xe1" + (len(exif) + 2).to_bytes(2, "big") + exif
    folder = Path(tempfile.mkdtemp(prefix="turned-"))
    atexit.register(shutil.rmtree, folder)
    for file in files:
        data = Path(file).read_bytes()
        (folder / Path(file).name).write_bytes(data[:2] + block + data[2:])
    return sorted(str(file) for file in folder.iterdir())


def _load(mode: str, workers: int, turned: bool) -> Callable[[], object]:
    """PHOTOS from the environment: what turn, alpha and profile cost JPEGs with and without."""
    from pvp_fast.loaders import ImageStream

    try:
        from pvp_fast.clip.preprocess import Preprocess
    except ImportError:  # where it lay before
        from pvp_fast.preprocess import Preprocess  # type: ignore[import-not-found, no-redef]

    files = sorted(str(f) for f in Path(os.environ["PHOTOS"]).iterdir())
    if turned:
        files = _turned(files)

    def read() -> None:
        stream = ImageStream(
            files, Preprocess(224), 32, backend="torch", workers=workers, mode=mode
        )
        assert sum(len(batch.pixels) for batch in stream) == len(files)

    return read


def cases(quick: bool, cpu: bool) -> dict[str, Callable[[], Callable[[], object]]]:
    """Name of each case -> what prepares it."""
    found: dict[str, Callable[[], Callable[[], object]]] = {}
    for kind in ENTRYWISE:
        for rows, columns in SIZES[:1] if quick else SIZES:
            for half in (False, True):
                name = f"{kind} {'bfloat16' if half else 'float32'} B={rows} C={columns}"
                found[name] = lambda k=kind, b=rows, c=columns, h=half: _loss(k, b, c, h)  # type: ignore[misc]
    for pairs in (32,) if quick else (32, 256, 1_024):
        found[f"clip float32 N={pairs}"] = lambda n=pairs: _clip(n)  # type: ignore[misc]
    for rows, columns in ((4, 20),) if quick else ((32, 80), (64, 1_000)):
        found[f"pool float32 B={rows} L=49 C={columns}"] = lambda b=rows, c=columns: _pool(b, c)  # type: ignore[misc]
    for dtype in ("float32", "bfloat16", "int8"):
        for rows, columns in TOPK[:2] if quick else TOPK:
            found[f"topk {dtype} B={rows} C={columns}"] = lambda b=rows, c=columns, d=dtype: _topk(
                b, c, d
            )  # type: ignore[misc]
    if os.environ.get("PHOTOS"):
        for mode, turned in itertools.product(("exact", "fast"), (False, True)):
            name = f"load {mode} photos{' that lie on their side' if turned else ''}"
            found[name] = lambda m=mode, t=turned: _load(m, 1 if cpu else 2, t)  # type: ignore[misc]
    return found


def serve(quick: bool, cpu: bool) -> None:
    """The worker: a case's name in, the milliseconds of one call out."""
    clock = time.process_time if cpu else time.perf_counter
    ready: dict[str, tuple[Callable[[], object], int]] = {}
    makers = cases(quick, cpu)
    for line in sys.stdin:
        name = line.strip()
        if name not in ready:
            call = makers[name]()
            call()
            begin = clock()
            call()
            once = 1e3 * (clock() - begin)
            ready[name] = (call, max(1, min(200, round(LEAST_MS / max(once, 1e-3)))))
        call, times = ready[name]
        begin = clock()
        for _ in range(times):
            call()
        print(1e3 * (clock() - begin) / times, flush=True)


class Build:
    """One build in its process."""

    def __init__(self, python: str, options: list[str]) -> None:
        command = [python, "-P", __file__, "--worker", *options]
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def time(self, name: str) -> float:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        print(name, file=self._process.stdin, flush=True)
        return float(self._process.stdout.readline())

    def close(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("old", nargs="?", help="the Python of the other build's environment")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--quick", action="store_true", help="a few tiny cases")
    parser.add_argument("--cpu", action="store_true", help="time what is computed, not the clock")
    parser.add_argument("--only", default="", help="the cases whose names hold this pattern")
    parser.add_argument("--json", type=Path, help="write the results here")
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        return serve(options.quick, options.cpu)
    if options.old is None:
        parser.error("name the Python of the other build's environment")

    sys.path.insert(0, str(Path(__file__).resolve().parent))
    from common import write_results

    known = cases(options.quick, options.cpu)
    names = [name for name in known if re.search(options.only, name)]
    passed_on = [f"--{name}" for name in ("quick", "cpu") if getattr(options, name)]
    pythons = {"old": options.old, "new": sys.executable}
    builds = {which: Build(python, passed_on) for which, python in pythons.items()}
    times: dict[str, dict[str, list[float]]] = {n: {"old": [], "new": []} for n in names}
    for turn in range(options.rounds):
        draw = random.Random(turn)
        for name in draw.sample(names, len(names)):
            for which in draw.sample(("old", "new"), 2):
                times[name][which].append(builds[which].time(name))
    for build in builds.values():
        build.close()
    rows = []
    for name in names:
        old, new = times[name]["old"], times[name]["new"]
        ratios = sorted(b / a for a, b in zip(old, new, strict=True))
        quarter = len(ratios) // 4
        rows.append(
            {
                "case": name,
                "old_ms": statistics.median(old),
                "new_ms": statistics.median(new),
                "ratio": statistics.median(ratios),
                "ratio_p25": ratios[quarter],
                "ratio_p75": ratios[-1 - quarter],
            }
        )
        print(
            f"{name:40} {rows[-1]['old_ms']:9.3f} -> {rows[-1]['new_ms']:9.3f} ms   "
            f"x{rows[-1]['ratio']:.2f} ({rows[-1]['ratio_p25']:.2f} to {rows[-1]['ratio_p75']:.2f})"
        )
    if options.json:
        clock = "CPU" if options.cpu else "wall"
        write_results(options.json, {"rounds": options.rounds, "clock": clock, "rows": rows})
    return None


if __name__ == "__main__":
    main()
