"""Top-k tagging on a CUDA device: the fused kernel against torch.topk of a matrix product; k = 10.

``python benchmarks/bench_topk_gpu.py --json FILE`` prints the table; ``pytest
benchmarks/bench_topk_gpu.py`` times ours with pytest-benchmark. Contenders run interleaved over
several sets of queries in turn and are first checked against float64; each also as a CUDA graph,
without its launches. The roofline is the larger of 2 B C D operations at the measured rate of
matrix products of the dtype, and the class vectors' and queries' bytes at the measured bandwidth.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from itertools import cycle
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parent))
from common import Contender, machine, rotate, table, timings, write_results
from peaks import Peaks, measure_gpu_peaks

from pvp_fast import TagIndex, native

WIDTH, KEPT, SETS = 512, 10, 4
CATEGORIES, BATCHES = (1_000, 10_000, 100_000, 1_000_000), (1, 64, 1024)
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def unit(rows: int, seed: int) -> Tensor:
    generator = torch.Generator("cuda").manual_seed(seed)
    return F.normalize(torch.randn(rows, WIDTH, generator=generator, device="cuda"), dim=1)


def searches(w: Tensor, dtype: str) -> dict[str, Callable[[Tensor], tuple[Tensor, Tensor]]]:
    """(scores, indices) of queries in float32, by each contender."""
    index = TagIndex(w, dtype, normalize=False)
    narrow = w.to(DTYPES[dtype])

    def plain(x: Tensor) -> tuple[Tensor, Tensor]:
        found = torch.topk(x.to(narrow.dtype) @ narrow.T, min(KEPT, len(narrow)))
        return found.values, found.indices

    def ours(backend: str) -> Callable[[Tensor], tuple[Tensor, Tensor]]:
        return lambda x: index.topk(x, KEPT, backend=backend)[:2]

    found = {"torch.topk(x @ w.T)": plain, "pvp_fast torch": ours("torch")}
    return found if native.call("cuda_status") else {"pvp_fast cuda": ours("cuda"), **found}


def worst(found: tuple[Tensor, Tensor], x: Tensor, w: Tensor) -> float:
    """How far the true scores of the kept categories lie below the k best, at most 64 rows."""
    exact = x[:64].double() @ w.double().T
    kept = exact.gather(1, found[1][:64].clamp(min=0)).sort(1, descending=True).values
    return (exact.topk(kept.shape[1]).values - kept).max().item()


def graphed(search: Callable[[Tensor], Any], sets: list[Tensor]) -> Contender:
    graphs = []
    for x in sets:
        search(x)
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            search(x)
        graphs.append(graph)
    turn = cycle(graphs)
    return lambda: next(turn).replay()


def measure(w: Tensor, batch: int, dtype: str, rounds: int, peaks: Peaks) -> list[dict[str, Any]]:
    sets = [unit(batch, seed) for seed in range(SETS)]
    calls: dict[str, Contender] = {}
    errors, notes = {}, {}
    for name, search in searches(w, dtype).items():
        errors[name] = worst(search(sets[0]), sets[0], w)
        calls[name] = rotate(search, sets)
        try:
            calls[f"{name} + graph"] = graphed(search, sets)
        except RuntimeError as reason:
            notes[f"{name} + graph"] = str(reason).splitlines()[0]
            torch.cuda.synchronize()
    times = timings(calls, rounds=rounds, device="cuda", least_ms=1.0)
    flops = 2 * batch * len(w) * WIDTH
    moved = (len(w) + batch) * WIDTH * DTYPES[dtype].itemsize
    least = 1e3 * max(flops / getattr(peaks, dtype), moved / peaks.bandwidth)
    size = {"categories": len(w), "batch": batch, "width": WIDTH, "k": KEPT, "dtype": dtype}
    rows = [
        {
            **size, "contender": name, "ms": time.median, "p20_ms": time.p20, "p80_ms": time.p80,
            "tflops": flops / time.median / 1e9, "of_roofline": least / time.median,
            "error": errors[name.removesuffix(" + graph")],
        }
        for name, time in times.items()
    ]  # fmt: skip
    return rows + [{**size, "contender": name, "skipped": why} for name, why in notes.items()]


def show(rows: list[dict[str, Any]]) -> str:
    header = ["C", "B", "dtype", "contender", "ms", "p20", "p80", "TFLOP/s", "% roofline", "error"]
    body = [
        [
            f"{row['categories']:,}", f"{row['batch']}", row["dtype"], row["contender"],
            *(f"{row[name]:.4f}" for name in ("ms", "p20_ms", "p80_ms")),
            f"{row['tflops']:.3g}", f"{100 * row['of_roofline']:.0f}", f"{row['error']:.0e}",
        ]
        for row in rows
        if "ms" in row
    ]  # fmt: skip
    notes = {f"{row['contender']}: {row['skipped']}" for row in rows if "skipped" in row}
    return "\n".join([table(header, body), *(f"- {note}" for note in sorted(notes))])


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("categories", CATEGORIES)
@pytest.mark.parametrize("batch", BATCHES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_topk_gpu(benchmark: Any, dtype: str, batch: int, categories: int) -> None:
    w, x = unit(categories, 1), unit(batch, 2)
    search = next(iter(searches(w, dtype).values()))
    assert worst(search(x), x, w) <= (5e-3 if dtype == "bfloat16" else 1e-5)

    def run() -> None:
        search(x)
        torch.cuda.synchronize()

    benchmark(run)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--categories", type=int, nargs="+", default=CATEGORIES)
    parser.add_argument("--rounds", type=int, default=9, help="interleaved rounds (median)")
    parser.add_argument("--json", type=Path, help="write the results here")
    options = parser.parse_args()
    if not torch.cuda.is_available():
        print("no CUDA device")
        return 0
    device = torch.device("cuda")
    peaks = measure_gpu_peaks(device)
    rows = []
    for categories in options.categories:
        w = unit(categories, 1)
        for dtype in DTYPES:
            for batch in BATCHES:
                rows += measure(w, batch, dtype, options.rounds, peaks)
    print(f"D = {WIDTH}, k = {KEPT}; {machine(device)}\npeaks: {peaks.to_dict()}\n\n{show(rows)}")
    if options.json is not None:
        write_results(options.json, {"peaks": peaks.to_dict(), "rows": rows}, device)
    limit = {"float32": 1e-5, "bfloat16": 5e-3}
    wrong = [r for r in rows if r["contender"].startswith("pvp_fast") and "ms" in r]
    wrong = [r for r in wrong if not r["error"] <= limit[r["dtype"]]]
    for row in wrong:
        print(f"WRONG: {row}")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
