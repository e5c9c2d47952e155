"""Batched top-k tagging on the CPU against torch and NumPy: D = 512, k = 10, float32 and bfloat16.

``python benchmarks/bench_topk.py`` prints the table (``--full`` adds C = 1 000 000);
``pytest benchmarks/bench_topk.py`` times our side with pytest-benchmark and fails if it disagrees
with NumPy in float64. Packing the class vectors (``TagIndex``) is reported apart. Work per call:
2 B C D floating-point operations over 4 C D bytes of class vectors.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

sys.path.insert(0, str(Path(__file__).resolve().parent))
from common import machine, race, table

from pvp_fast import TagIndex
from pvp_fast.topk import TopK

WIDTH, KEPT = 512, 10
CATEGORIES, BATCHES = (1_000, 10_000, 100_000), (1, 12, 64, 256)


class Problem:
    """Unit queries and class vectors, and every contender's way to the k best."""

    def __init__(self, categories: int, batch: int) -> None:
        generator = torch.Generator().manual_seed(categories + batch)
        unit = torch.nn.functional.normalize
        self.w = unit(torch.randn(categories, WIDTH, generator=generator), dim=1)
        self.x = unit(torch.randn(batch, WIDTH, generator=generator), dim=1)
        start = time.perf_counter()
        self.index = TagIndex(self.w, normalize=False)
        self.pack_ms = 1e3 * (time.perf_counter() - start)
        self.w16, self.x16 = self.w.bfloat16(), self.x.bfloat16()

    def ours(self) -> TopK:
        return self.index.topk(self.x, KEPT)

    def torch_float32(self) -> object:
        return torch.topk(self.x @ self.w.T, KEPT)

    def torch_bfloat16(self) -> object:
        return torch.topk(self.x16 @ self.w16.T, KEPT)

    def numpy_float32(self) -> object:
        scores = self.x.numpy() @ self.w.numpy().T
        rows = np.arange(len(scores))[:, None]
        best = np.argpartition(scores, -KEPT, axis=1)[:, -KEPT:]
        return best[rows, np.argsort(-scores[rows, best], axis=1, kind="stable")]

    def check(self) -> None:
        """Ours are the k best of float64 up to float32 rounding, for at most 64 of the rows."""
        got = self.ours()
        exact = self.x[:64].double() @ self.w.double().T
        best = exact.topk(KEPT).values
        found = exact.gather(1, got.indices[:64])
        torch.testing.assert_close(found, best, rtol=0, atol=1e-6)
        torch.testing.assert_close(got.scores[:64].double(), found, rtol=0, atol=1e-6)


@pytest.mark.parametrize("categories", CATEGORIES)
@pytest.mark.parametrize("batch", BATCHES)
def test_topk(benchmark: Callable[[Callable[[], TopK]], TopK], categories: int, batch: int) -> None:
    problem = Problem(categories, batch)
    problem.check()
    benchmark(problem.ours)


def measure(categories: int, batch: int, rounds: int) -> list[str]:
    problem = Problem(categories, batch)
    problem.check()
    times = race(
        {
            "ours": problem.ours,
            "torch f32": problem.torch_float32,
            "torch bf16": problem.torch_bfloat16,
            "NumPy f32": problem.numpy_float32,
        },
        rounds=rounds,
    )
    ours = times["ours"]
    alike = min(times["torch f32"], times["NumPy f32"])
    operations, size = 2 * batch * categories * WIDTH, 4 * categories * WIDTH
    return [
        f"{categories:,}",
        f"{batch}",
        *(f"{value:.3f}" for value in times.values()),
        f"{alike / ours:.2f}",
        f"{operations / ours / 1e6:.0f}",
        f"{size / ours / 1e6:.1f}",
        f"{problem.pack_ms:.1f}",
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--full", action="store_true", help="add C = 1 000 000 (about 6 GB)")
    parser.add_argument("--rounds", type=int, default=9, help="interleaved rounds (median)")
    options = parser.parse_args()
    header = ["C", "B", "ours ms", "torch f32", "torch bf16", "NumPy f32"]
    header += ["best f32 / ours", "GFLOP/s", "GB/s of w", "pack ms"]
    categories = (*CATEGORIES, 1_000_000) if options.full else CATEGORIES
    rows = [measure(c, b, options.rounds) for c in categories for b in BATCHES]
    print(f"D = {WIDTH}, k = {KEPT}, float32; {machine()}\n")
    print(table(header, rows))


if __name__ == "__main__":
    main()
