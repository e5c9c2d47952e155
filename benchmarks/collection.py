"""A mixed collection of thousands of files, tagged and embedded in runs that are killed.

``python benchmarks/collection.py --files 10000 --json FILE``. For every output and loader that is
installed: the collection of ``tests/support/collection.py`` is made, runs over it are killed at
steps drawn from a seed, files are added, mended and replaced between the runs, and what is there in
the end must be that of one clean run, bit for bit; every file seen must be read, a failure or
passed over. The CLIP is a tiny one with random weights. Not a measurement of speed.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
from importlib.util import find_spec
from pathlib import Path
from typing import Any

sys.path[:0] = [str(Path(__file__).parents[1] / "tests")]

from common import write_results  # noqa: E402
from support.collection import Collection  # noqa: E402
from support.killed_runs import tiny_artifact, trial  # noqa: E402

TRIALS = [
    ("jsonl", None),
    ("embed", None),
    ("ray", None),
    ("jsonl", "dali"),
    ("embed", "dali"),
    ("sqlite", None),
    ("parquet", None),
    ("csv", None),
]


def installed(mode: str, backend: str | None) -> bool:
    """Whether a trial can run here."""
    if mode == "ray" and find_spec("ray") is None:
        return False
    if backend == "dali":
        return find_spec("nvidia") is not None and find_spec("nvidia.dali") is not None
    return True


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--files", type=int, default=10_000)
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", nargs="*", help="modes")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    found: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory(prefix="collection-", dir=Path.cwd()) as folder:
        artifact = tiny_artifact(Path(folder))
        whole = Collection(Path(folder) / "photos", options.files, options.seed)
        for mode, backend in TRIALS:
            if not installed(mode, backend) or (options.only and mode not in options.only):
                continue
            work = Path(folder) / f"{mode}-{backend}"
            work.mkdir()
            photos = whole.copy(work / "photos")
            found.append(
                trial(
                    mode,
                    artifact,
                    work,
                    photos,
                    kills=options.kills,
                    seed=options.seed,
                    backend=backend,
                )
            )
            shutil.rmtree(work)
            print(found[-1], flush=True)
            if options.json:
                write_results(options.json, {"seed": options.seed, "trials": found})
    if any(row["faults"] for row in found):
        sys.exit(1)


if __name__ == "__main__":
    main()
