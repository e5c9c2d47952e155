"""Batched top-k tagging on the CPU: ours against torch, NumPy, FAISS and usearch; D = 512, k = 10.

``python benchmarks/bench_topk.py --json FILE`` runs the table (``--categories`` and ``--batches``
other sizes; ``--vectors FILE.npy`` tiles real class vectors with noise instead of random ones;
``--without usearch "FAISS SQ"`` leaves out what memory is too small for). Contenders run
interleaved in this process, over several sets of queries in turn. FAISS (with and without its BLAS
path) and usearch take part where they are installed. ``pytest benchmarks/bench_topk.py`` times our
side with pytest-benchmark. Everything timed is first checked against float64. Packing the class
vectors is reported apart. Work per call: 2 B C D operations over the bytes of the class vectors.

Five thread pools live in this process (ours, torch's, FAISS's and two of OpenBLAS). By default the
idle threads of each spin for a while after its turn and slow the next contender down several times,
so all are told to sleep instead.

``PVP_FAST_ISA=avx2`` shows a processor without AVX-512 on one that has it, where the others are
held to the same by ATEN_CPU_CAPABILITY=avx2, MKL_ENABLE_INSTRUCTIONS=AVX2, DNNL_MAX_CPU_ISA=AVX2,
OPENBLAS_CORETYPE=Haswell and FAISS_SIMD_LEVEL=AVX2; usearch cannot be held. The results say what
each library then reported (OpenBLAS where threadpoolctl is installed). ``--cpu-time`` with
OMP_NUM_THREADS=1 leaves out the time that other processes take of a shared machine.
"""

from __future__ import annotations

import argparse
import contextlib
import math
import os
import sys
import time
from collections.abc import Callable, Sequence
from itertools import cycle
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # all read when the libraries are loaded
os.environ.setdefault("KMP_BLOCKTIME", "0")
os.environ.setdefault("OPENBLAS_THREAD_TIMEOUT", "4")

import numpy as np
import pytest
import torch

sys.path.insert(0, str(Path(__file__).resolve().parent))
from common import Clock, limits, machine, race, table, write_results
from peaks import Peaks, measure_peaks

from pvp_fast import TagIndex, native
from pvp_fast.topk.index import TopK
from pvp_fast.topk.panels import DTYPES, faster_dtype

WIDTH, KEPT, QUERY_SETS = 512, 10, 4
CATEGORIES, BATCHES = (10, 80, 1_000, 10_000, 100_000), (1, 12, 64, 256)
BYTES = {"float32": 4, "bfloat16": 2, "int8": 1}


def unit(values: torch.Tensor) -> torch.Tensor:
    return torch.nn.functional.normalize(values, dim=1)


def class_vectors(categories: int, path: Path | None) -> torch.Tensor:
    """(C, D) unit rows: random, or real ones repeated with noise of a third of their spread."""
    generator = torch.Generator().manual_seed(categories)
    if path is None:
        return unit(torch.randn(categories, WIDTH, generator=generator))
    real = torch.from_numpy(np.load(path, allow_pickle=False)).float()
    real = unit(real if real.shape[1] == WIDTH else real.T.contiguous())
    rows = real[torch.arange(categories) % len(real)]
    spread = (real - real.mean(0)).norm(dim=1).mean() / WIDTH**0.5
    noise = torch.randn(categories, WIDTH, generator=generator) * spread / 3
    return unit(rows + noise)


class Problem:
    """Class vectors of one C and every contender's way to the k best of a batch."""

    def __init__(self, w: torch.Tensor, without: Sequence[str] = ()) -> None:
        self.w, self.without = w, tuple(without)
        self.indexes: dict[str, TagIndex] = {}
        self.pack_ms: dict[str, float] = {}
        for dtype in DTYPES:
            start = time.perf_counter()
            self.indexes[dtype] = TagIndex(w, dtype, normalize=False)
            self.pack_ms[dtype] = 1e3 * (time.perf_counter() - start)
        self.w16 = w.bfloat16()
        self.others = {**self._faiss(), **self._usearch()}

    def _wanted(self, name: str) -> bool:
        return not name.startswith(self.without)

    def queries(self, batch: int) -> list[torch.Tensor]:
        """Unit rows near class vectors, as images are near their tags' names."""
        generator = torch.Generator().manual_seed(batch)
        sets = []
        for _ in range(QUERY_SETS):
            rows = torch.randint(len(self.w), (batch,), generator=generator)
            noise = torch.randn(batch, WIDTH, generator=generator) / WIDTH**0.5
            sets.append(unit(self.w[rows] + noise))
        return sets

    def contenders(self, batch: int) -> dict[str, Callable[[], object]]:
        sets = self.queries(batch)
        sets16 = [x.bfloat16() for x in sets]

        def over(call: Callable[[Any], object], inputs: list[Any]) -> Callable[[], object]:
            turn = cycle(inputs)
            return lambda: call(next(turn))

        ours = {
            f"ours {dtype}": over(lambda x, index=index: index.topk(x, KEPT), sets)
            for dtype, index in self.indexes.items()
        }
        everyone = {
            **ours,
            "torch float32": over(lambda x: torch.topk(x @ self.w.T, KEPT), sets),
            "torch bfloat16": over(lambda x: torch.topk(x @ self.w16.T, KEPT), sets16),
            "NumPy float32": over(self._numpy, [x.numpy() for x in sets]),
            **{name: over(call, [x.numpy() for x in sets]) for name, call in self.others.items()},
        }
        return {name: call for name, call in everyone.items() if self._wanted(name)}

    def _numpy(self, x: np.ndarray) -> np.ndarray:
        scores = x @ self.w.numpy().T
        rows = np.arange(len(scores))[:, None]
        best = np.argpartition(scores, -KEPT, axis=1)[:, -KEPT:]
        return best[rows, np.argsort(-scores[rows, best], axis=1, kind="stable")]

    def _faiss(self) -> dict[str, Callable[[Any], object]]:
        try:
            import faiss
        except ImportError:
            return {}
        faiss.omp_set_num_threads(torch.get_num_threads())
        product = faiss.METRIC_INNER_PRODUCT
        quantizer = faiss.ScalarQuantizer
        kinds = {
            "FAISS flat": lambda: faiss.IndexFlatIP(WIDTH),
            "FAISS SQbf16": lambda: faiss.IndexScalarQuantizer(WIDTH, quantizer.QT_bf16, product),
            "FAISS SQ8": lambda: faiss.IndexScalarQuantizer(WIDTH, quantizer.QT_8bit, product),
        }
        indexes = {name: make() for name, make in kinds.items() if self._wanted(name)}
        for index in indexes.values():
            index.train(self.w.numpy())
            index.add(self.w.numpy())
        usual = faiss.cvar.distance_compute_blas_threshold

        def flat(x: np.ndarray, threshold: int) -> object:
            faiss.cvar.distance_compute_blas_threshold = threshold
            return indexes["FAISS flat"].search(x, KEPT)

        return {
            "FAISS flat": lambda x: flat(x, usual),
            "FAISS flat, BLAS": lambda x: flat(x, 1),
            "FAISS SQbf16": lambda x: indexes["FAISS SQbf16"].search(x, KEPT),
            "FAISS SQ8": lambda x: indexes["FAISS SQ8"].search(x, KEPT),
        }

    def _usearch(self) -> dict[str, Callable[[Any], object]]:
        if not self._wanted("usearch"):
            return {}
        try:
            from usearch.index import MetricKind, search
        except ImportError:
            return {}
        threads = torch.get_num_threads()

        def exact(x: np.ndarray) -> object:
            return search(self.w.numpy(), x, KEPT, MetricKind.IP, exact=True, threads=threads)

        return {"usearch exact": exact}

    def check(self, batch: int) -> dict[str, float]:
        """Recall of ours against float64, up to 64 rows; float32 and int8 must agree in bits."""
        x = self.queries(batch)[0][:64]
        exact = torch.cat([x.double() @ part.double().T for part in self.w.split(1 << 16)], dim=1)
        best = exact.topk(min(KEPT, len(self.w))).values
        answers = {dtype: index.topk(x, KEPT) for dtype, index in self.indexes.items()}
        for got in (answers["float32"], answers["int8"]):
            torch.testing.assert_close(exact.gather(1, got.indices), best, rtol=0, atol=1e-6)
        for a, b in zip(answers["float32"], answers["int8"], strict=True):
            if not torch.equal(a, b):
                raise AssertionError("int8 differs from float32")
        wanted = exact.topk(best.shape[1]).indices
        return {
            dtype: (got.indices[:, :, None] == wanted[:, None]).any(2).double().mean().item()
            for dtype, got in answers.items()
        }


@pytest.mark.parametrize("categories", CATEGORIES)
@pytest.mark.parametrize("batch", BATCHES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_topk(
    benchmark: Callable[[Callable[[], TopK]], TopK], dtype: str, batch: int, categories: int
) -> None:
    w = class_vectors(categories, None)
    index = TagIndex(w, dtype, normalize=False)
    generator = torch.Generator().manual_seed(batch)
    x = unit(torch.randn(batch, WIDTH, generator=generator))
    got = benchmark(lambda: index.topk(x, KEPT))
    best = (x.double() @ w.double().T).topk(KEPT).values
    tolerance = 2e-3 if dtype == "bfloat16" else 1e-6
    torch.testing.assert_close(got.scores.double(), best, rtol=0, atol=tolerance)


def measure(problem: Problem, batch: int, rounds: int, clock: Clock) -> dict[str, Any]:
    categories = len(problem.w)
    recall = problem.check(batch)
    warmup = 1 if categories > 500_000 else 2
    times = race(problem.contenders(batch), rounds=rounds, warmup=warmup, least_ms=1.0, clock=clock)
    return {
        "categories": categories, "batch": batch, "width": WIDTH, "k": KEPT,
        "ms": times, "recall": recall, "pack_ms": problem.pack_ms, "auto": faster_dtype(problem.w),
    }  # fmt: skip


def shares(row: dict[str, Any], peaks: Peaks) -> dict[str, Any]:
    """What part of the peaks ours reach in a row of the table."""
    operations = 2 * row["batch"] * row["categories"] * WIDTH
    share = {}
    for dtype in DTYPES:
        seconds = row["ms"][f"ours {dtype}"] / 1e3
        peak = getattr(peaks, dtype)
        size = BYTES[dtype] * row["categories"] * WIDTH
        share[dtype] = {
            "gflops": operations / seconds / 1e9,
            "gb_per_s": size / seconds / 1e9,
            "of_peak": None if peak is None else operations / seconds / peak,
            "of_bandwidth": None if peaks.bandwidth is None else size / seconds / peaks.bandwidth,
        }
    return share


def show(rows: list[dict[str, Any]]) -> str:
    """One line a size: milliseconds of all, then ours against the best other of its kind.

    "auto" is the time of the dtype that ``TagIndex(w, "auto")`` takes for float32's answer.
    """
    names = list(rows[0]["ms"])
    full = [n for n in names if not n.startswith("ours") and "bf" not in n and "SQ" not in n]
    header = ["C", "B", *names, "f32: best other / ours", "/ auto", "bf16: torch / ours",
              "int8: torch bf16 / ours", "bf16 % peak", "bf16 GB/s"]  # fmt: skip
    body = []
    for row in rows:
        ms, bf16 = row["ms"], row["ours"]["bfloat16"]
        torch16 = ms.get("torch bfloat16", math.nan)
        body.append(
            [
                f"{row['categories']:,}",
                f"{row['batch']}",
                *(f"{ms[name]:.3f}" for name in names),
                f"{min(ms[name] for name in full) / ms['ours float32']:.2f}",
                f"{min(ms[name] for name in full) / ms['ours ' + row['auto']]:.2f}",
                f"{torch16 / ms['ours bfloat16']:.2f}",
                f"{torch16 / ms['ours int8']:.2f}",
                "" if bf16["of_peak"] is None else f"{100 * bf16['of_peak']:.0f}",
                f"{bf16['gb_per_s']:.0f}",
            ]
        )
    return table(header, body)


def instruction_sets() -> dict[str, str]:
    """What every contender that can tell says it runs on."""
    said = {f"ours {dtype}": native.isa(dtype) for dtype in DTYPES}
    said["torch"] = torch.backends.cpu.get_cpu_capability()
    with contextlib.suppress(ImportError, AttributeError):
        import faiss

        said["FAISS"] = faiss.SIMDConfig.get_level_name()
    with contextlib.suppress(ImportError):
        from usearch.index import Index

        said["usearch"] = Index(ndim=WIDTH, metric="ip", dtype="f32").hardware_acceleration
    with contextlib.suppress(ImportError):
        from threadpoolctl import threadpool_info

        for pool in threadpool_info():
            if pool["internal_api"] == "openblas":
                said[f"OpenBLAS {pool['version']}"] = pool["architecture"]
    return said


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--categories",
        type=int,
        nargs="+",
        default=CATEGORIES,
        help="12 kB each, of all contenders",
    )
    parser.add_argument("--batches", type=int, nargs="+", default=BATCHES)
    parser.add_argument("--without", nargs="+", default=(), help="others whose names begin so")
    parser.add_argument("--rounds", type=int, default=9, help="interleaved rounds (median)")
    parser.add_argument("--vectors", type=Path, help="real class vectors, (C, 512) .npy")
    parser.add_argument("--cpu-time", action="store_true", help="of this process, for one thread")
    parser.add_argument("--json", type=Path, help="write the results here")
    options = parser.parse_args()
    peaks = measure_peaks(torch.get_num_threads())
    rows = []
    for categories in options.categories:
        problem = Problem(class_vectors(categories, options.vectors), options.without)
        clock = time.process_time if options.cpu_time else time.perf_counter
        rows += [measure(problem, batch, options.rounds, clock) for batch in options.batches]
        peaks = peaks.best(measure_peaks(torch.get_num_threads()))  # of all moments of the run
    for row in rows:
        row["ours"] = shares(row, peaks)
    print(f"D = {WIDTH}, k = {KEPT}; {machine()}\npeaks: {peaks.to_dict()}\n")
    print(show(rows))
    if options.json is not None:
        data = "random" if options.vectors is None else f"{options.vectors.stem}, tiled with noise"
        record = {"data": data, "limits": limits(), "instruction_sets": instruction_sets()}
        write_results(options.json, {**record, "peaks": peaks.to_dict(), "rows": rows})


if __name__ == "__main__":
    main()
