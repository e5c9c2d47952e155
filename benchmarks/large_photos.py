"""Phone photos of 108 megapixels: CPU seconds to tag one, and the memory that two at once add.

``python benchmarks/large_photos.py PHOTOS [--json FILE]``. A mosaic of PHOTOS, 12000 x 9000 pixels,
is saved as phones do (quality 95, 4:2:0, as a plain and a progressive JPEG) and tagged by the
pocket model on two threads. The memory is the most that is resident while it is tagged, less what
was resident before; Linux only.
"""

from __future__ import annotations

import argparse
import re
import statistics
import sys
import tempfile
import time
from pathlib import Path

from PIL import Image

sys.path.insert(0, str(Path(__file__).resolve().parent))
from common import write_results

from pvp_fast import Backbone, Tagger
from pvp_fast.threads.budget import set_budget

SIDES = (12_000, 9_000)
TILE = 750


def mosaic(photos: list[Path], path: Path, *, progressive: bool) -> None:
    whole = Image.new("RGB", SIDES)
    places = [(x, y) for x in range(0, SIDES[0], TILE) for y in range(0, SIDES[1], TILE)]
    for number, place in enumerate(places):
        with Image.open(photos[number % len(photos)]) as photo:
            whole.paste(photo.convert("RGB").resize((TILE, TILE)), place)
    whole.save(path, "JPEG", quality=95, progressive=progressive)


def resident(field: str) -> float:
    """MiB: VmRSS, what is resident now, or VmHWM, the most since :func:`forget_the_most`."""
    status = Path("/proc/self/status").read_text()
    found = re.search(rf"{field}:\s+(\d+) kB", status)
    assert found is not None
    return int(found.group(1)) / 1024


def forget_the_most() -> None:
    Path("/proc/self/clear_refs").write_text("5")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("photos", type=Path)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    photos = sorted(options.photos.glob("*.jpg"))
    set_budget(2)
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        names = ["cat", "dog", "car", "pizza"]
        tagger = Tagger.from_names(names, backbone=Backbone.load("pocket"), cache=folder)
        list(tagger.tag([str(photo) for photo in photos[:64]]))  # all is loaded
        for progressive in (False, True):
            path = Path(folder) / "photo.jpg"
            mosaic(photos, path, progressive=progressive)
            seconds, added = [], []
            for _ in range(options.rounds):
                before = resident("VmRSS")
                forget_the_most()
                begin = time.process_time()
                results = list(tagger.tag([str(path)] * 4))
                seconds.append((time.process_time() - begin) / 4)
                added.append(resident("VmHWM") - before)
                assert all(result.error is None for result in results)
            rows.append(
                {
                    "jpeg": "progressive" if progressive else "baseline",
                    "megabytes": round(path.stat().st_size / 1e6, 1),
                    "cpu_seconds_each": statistics.median(seconds),
                    "cpu_seconds_least": min(seconds),
                    "added_mib": max(added),
                }
            )
            print(rows[-1], flush=True)
    if options.json:
        sides = {"width": SIDES[0], "height": SIDES[1], "threads": 2, "rounds": options.rounds}
        write_results(options.json, {**sides, "rows": rows})


if __name__ == "__main__":
    main()
