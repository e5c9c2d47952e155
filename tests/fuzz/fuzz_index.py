"""Damage a saved TagIndex at random and load it: ArtifactError or the same answers, nothing else.

Without the check of the SHA-256 a damaged file may load; searching it then gives some answer or an
InputError, and never reads outside the file. Deterministic in the seed.
``python tests/fuzz/fuzz_index.py [seconds] [seed]`` runs it for long.
"""

from __future__ import annotations

import contextlib
import importlib.util
import random
import sys
import tempfile
import time
from pathlib import Path

import torch

from pvp_fast import TagIndex
from pvp_fast.errors import ArtifactError, InputError
from pvp_fast.topk.panels import DTYPES


def _damage() -> object:
    path = Path(__file__).with_name("fuzz_artifact.py")
    spec = importlib.util.spec_from_file_location("fuzz_artifact", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.damage


damage = _damage()


def fuzz(folder: Path, seed: int, *, cases: int | None = None, seconds: float = 60.0) -> int:
    """Run the given number of cases, or for so many seconds; returns how many ran."""
    generator = torch.Generator().manual_seed(0)
    x, w = torch.randn(3, 6, generator=generator), torch.randn(37, 6, generator=generator)
    files, expected = [], []
    for dtype in DTYPES:
        index = TagIndex(w, dtype)
        index.save(folder / "whole")
        files.append((folder / "whole").read_bytes())
        expected.append(index.topk(x, 5))
    target, end, count = folder / "damaged", time.monotonic() + seconds, 0
    while count < cases if cases is not None else time.monotonic() < end:
        rng = random.Random(f"{seed}/{count}")
        which = rng.randrange(len(files))
        target.unlink(missing_ok=True)  # an earlier mapping keeps its own file
        target.write_bytes(damage(files[which], rng))
        try:
            got = TagIndex.load(target).topk(x, 5)
        except ArtifactError:
            pass
        else:
            for a, b in zip(got, expected[which], strict=True):
                if not torch.equal(a, b):
                    raise AssertionError(f"case {count} of seed {seed}: a damaged file answered")
        with contextlib.suppress(ArtifactError, InputError):
            TagIndex.load(target, verify=False).topk(x, 5)
        count += 1
    return count


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as work:
        length = float(sys.argv[1]) if len(sys.argv) > 1 else 60.0
        start = int(sys.argv[2]) if len(sys.argv) > 2 else 0
        print(fuzz(Path(work), start, seconds=length), "cases, none got through")
