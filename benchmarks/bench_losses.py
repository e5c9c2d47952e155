"""Losses and spatial softmax pooling, forward and backward: ours against plain PyTorch and others.

``python benchmarks/bench_losses.py [--json FILE]`` prints the table: on a CUDA device where there
is one, in bfloat16, else on the CPU, in float32 at the sizes it can do in a second. ``--losses``,
``--categories``, ``--batches``, ``--widths``, ``--dtype`` and ``--contenders`` choose;
``--seconds`` is the most that it may take.
``--cpu-time`` counts the CPU time of one thread, which other work on the machine disturbs less.
``pytest benchmarks/bench_losses.py`` times the same cases with pytest-benchmark.

A call takes raw features and class vectors and gives the loss and the gradients of both and of the
scale: normalisation, similarity, loss. Contenders run interleaved in this process over several sets
of inputs in turn; each is first checked against float64. Libraries that are missing, or that need
another device, are named with the reason.

TFLOP/s counts 6 B C D operations (the matrix products forward and backward; times L for pooling),
whatever a contender really does. The roofline is the larger of these at the measured rate of matrix
products and the bytes of inputs and gradients at the measured bandwidth. Memory is the peak within
a call beyond its inputs, gradients included. On a CUDA device, "+ graph" replays the call as a CUDA
graph, without the launches' cost.
"""

from __future__ import annotations

import argparse
import math
import os
import sys
import time
from collections.abc import Callable, Collection
from itertools import cycle
from pathlib import Path
from typing import Any

os.environ.setdefault("KMP_BLOCKTIME", "0")  # idle threads sleep, as in bench_topk.py

import pytest
import torch

sys.path.insert(0, str(Path(__file__).resolve().parent))
from common import (
    Clock,
    Contender,
    limits,
    machine,
    peak_memory,
    rotate,
    table,
    timings,
    write_results,
)
from loss_cases import CATEGORIES, LOSSES, Case, Inputs, cases, error, truth
from loss_contenders import Forward, Unavailable, contenders
from peaks import Peaks, measure_gpu_peaks, measure_peaks

DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
# Beyond twice the error of eager PyTorch plus 1e-4, ours is wrong; beyond this, anyone is.
WRONG = {torch.float32: 1e-3, torch.float16: 2e-2, torch.bfloat16: 5e-2}
GRAPHED_WORK = 1e11  # multiply-adds beyond which launches cost nothing


def default_device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def default_dtype(device: torch.device) -> torch.dtype:
    return torch.bfloat16 if device.type == "cuda" else torch.float32


def device_peaks(device: torch.device) -> Peaks:
    if device.type == "cuda":
        return measure_gpu_peaks(device)
    return measure_peaks(torch.get_num_threads())


def floor_ms(case: Case, peaks: Peaks) -> float | None:
    """What no version can beat: arithmetic or memory, whichever takes longer."""
    rate = peaks.float32 if case.dtype == torch.float32 else peaks.bfloat16 or peaks.float32
    if rate is None or peaks.bandwidth is None:
        return None
    return 1e3 * max(case.flops / rate, case.moved / peaks.bandwidth)


def graphed(forward: Forward, sets: list[Inputs]) -> Contender:
    """One CUDA graph for each set of inputs, replayed in turn."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for inputs in sets * 2:
            inputs.backward(forward)
    torch.cuda.current_stream().wait_stream(side)
    graphs = []
    for inputs in sets:
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            inputs.backward(forward)
        graphs.append(graph)
    turn = cycle(graphs)
    return lambda: next(turn).replay()


class Race:
    """The contenders of one case that run and are right; the others with the reason."""

    def __init__(self, case: Case, chosen: Collection[str] = ()) -> None:
        self.case = case
        bytes_of_a_set = case.moved / 2
        self.sets = [case.inputs(seed) for seed in range(4 if bytes_of_a_set < 1 << 28 else 2)]
        self.exact = truth(self.sets[0])
        self.forwards: dict[str, Forward] = {}
        self.errors: dict[str, float] = {}
        self.skipped: dict[str, str] = {}
        self.wrong: list[str] = []
        for name, prepare in contenders(case).items():
            if not chosen or name in chosen:
                self._admit(name, prepare)
        bound = 2 * self.errors.get("PyTorch eager", WRONG[case.dtype] / 2) + 1e-4
        for name in list(self.forwards):
            if not self.errors[name] <= (bound if self.own(name) else WRONG[case.dtype]):
                self.skipped[name] = f"wrong: error {self.errors[name]:.1e}"
                self.wrong += [name] if self.own(name) else []
                del self.forwards[name]

    @staticmethod
    def own(name: str) -> bool:
        return name.startswith("pvp_fast")

    def _admit(self, name: str, prepare: Callable[[Case], Forward]) -> None:
        try:
            forward = prepare(self.case)
            self.errors[name] = error(self.sets[0].backward(forward), self.exact)
            self.forwards[name] = forward
        except Unavailable as reason:
            self.skipped[name] = str(reason)
        except torch.OutOfMemoryError:
            self.skipped[name] = "out of memory"
        # Whatever another library dies of is its own affair, and shown; ours fails the run.
        except Exception as reason:
            text = str(reason).strip().splitlines() or [""]
            self.skipped[name] = f"{type(reason).__name__}: {text[0]}"[:160]
            self.wrong += [name] if self.own(name) else []
        if self.case.device.type == "cuda":
            torch.cuda.empty_cache()

    def calls(self) -> dict[str, Contender]:
        found: dict[str, Contender] = {}
        for name, forward in self.forwards.items():
            found[name] = rotate(lambda inputs, f=forward: inputs.backward(f), self.sets)
            if self.case.device.type == "cuda" and self.case.work <= GRAPHED_WORK:
                try:
                    found[f"{name} + graph"] = graphed(forward, self.sets)
                except Exception as reason:
                    # What a graph cannot hold synchronises with the host, which is worth knowing.
                    text = str(reason).strip().splitlines() or [""]
                    self.skipped[f"{name} + graph"] = text[0][:160]
                    torch.cuda.synchronize()
        return found

    def rows(
        self, rounds: int, peaks: Peaks, clock: Clock = time.perf_counter
    ) -> list[dict[str, Any]]:
        case, calls = self.case, self.calls()
        memory = {
            name: peak_memory(call, case.device)
            for name, call in calls.items()
            if not name.endswith("+ graph")
        }
        times = timings(
            calls, rounds=rounds, warmup=2, device=case.device, least_ms=1.0, clock=clock
        )
        least = floor_ms(case, peaks)
        size = {
            "loss": case.loss, "rows": case.rows, "regions": case.regions,
            "categories": case.categories, "width": case.width,
            "dtype": str(case.dtype).removeprefix("torch."),
        }  # fmt: skip
        rows = [
            {
                **size,
                "contender": name,
                "ms": time.median,
                "p20_ms": time.p20,
                "p80_ms": time.p80,
                "tflops": case.flops / time.median / 1e9,
                "of_roofline": None if least is None else least / time.median,
                "peak_bytes": memory.get(name),
                "error": self.errors.get(name.removesuffix(" + graph")),
            }
            for name, time in times.items()
        ]
        return rows + [{**size, "contender": n, "skipped": why} for n, why in self.skipped.items()]


def show(rows: list[dict[str, Any]]) -> str:
    """A Markdown table; ratios are of one case's eager PyTorch, or of the first contender's."""
    header = ["loss", "B", "L", "C", "D", "contender", "ms", "p20", "p80", "TFLOP/s", "% roofline",
              "peak MiB", "error", "times eager"]  # fmt: skip
    body = []
    eager: dict[tuple[Any, ...], float] = {}

    def case_of(row: dict[str, Any]) -> tuple[Any, ...]:
        return tuple(row[name] for name in ("loss", "rows", "regions", "categories", "width"))

    for row in rows:
        if row["contender"] == "PyTorch eager" and "ms" in row:
            eager[case_of(row)] = row["ms"]
    for row in rows:
        if "ms" not in row:
            continue
        base = eager.get(case_of(row))
        share, memory, off = row["of_roofline"], row["peak_bytes"], row["error"]
        loss, batch, regions, categories, width = case_of(row)
        body.append(
            [
                loss,
                f"{batch:,}",
                f"{regions}" if regions > 1 else "",
                f"{categories:,}",
                f"{width}",
                row["contender"],
                *(f"{row[name]:.3f}" for name in ("ms", "p20_ms", "p80_ms")),
                f"{row['tflops']:.3g}",
                "" if share is None else f"{100 * share:.0f}",
                "" if memory is None else f"{memory / 2**20:,.1f}",
                "" if off is None else f"{off:.0e}",
                "" if base is None else f"{base / row['ms']:.2f}",
            ]
        )
    text = table(header, body)
    reasons: dict[str, list[str]] = {}
    for row in rows:
        if "skipped" in row:
            of = f"{row['loss']} {row['rows']}×{row['categories']}×{row['width']}"
            reasons.setdefault(f"{row['contender']}: {row['skipped']}", []).append(of)
    left_out = [
        f"- {reason} ({of[0]}{f' and {len(of) - 1} more' if len(of) > 1 else ''})"
        for reason, of in reasons.items()
    ]
    return text + ("\n\nNot measured:\n" + "\n".join(left_out) if left_out else "")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "case" not in metafunc.fixturenames:
        return
    device = default_device()
    found = cases(device, default_dtype(device), quick=metafunc.config.getoption("quick"))
    pairs = [(case, name) for case in found for name in contenders(case)]
    ids = [f"{case.loss} {case.size} {name}" for case, name in pairs]
    metafunc.parametrize(("case", "contender"), pairs, ids=ids)


def test_loss(benchmark: Any, case: Case, contender: str) -> None:
    sets = [case.inputs(seed) for seed in range(2)]
    try:
        forward = contenders(case)[contender](case)
        found = sets[0].backward(forward)
    except Unavailable as reason:
        pytest.skip(str(reason))
    off = error(found, truth(sets[0]))
    assert off <= WRONG[case.dtype]
    call = rotate(lambda inputs: inputs.backward(forward), sets)

    def run() -> None:
        call()
        if case.device.type == "cuda":
            torch.cuda.synchronize()

    benchmark.group = f"{case.loss} {case.size}"
    benchmark.extra_info |= {"error": off, "peak_bytes": peak_memory(call, case.device)}
    benchmark(run)
    torch.compiler.reset()


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--losses", nargs="+", choices=LOSSES, default=LOSSES)
    parser.add_argument("--categories", type=int, nargs="+", default=CATEGORIES)
    parser.add_argument("--batches", type=int, nargs="+", default=())
    parser.add_argument("--widths", type=int, nargs="+", default=(768,))
    parser.add_argument("--dtype", choices=DTYPES)
    parser.add_argument("--contenders", nargs="+", default=(), help="by their names in the table")
    parser.add_argument("--device", type=torch.device, default=default_device())
    parser.add_argument("--rounds", type=int, default=9, help="interleaved rounds (median)")
    parser.add_argument("--seconds", type=float, default=math.inf, help="start no case after these")
    parser.add_argument(
        "--cpu-time", action="store_true", help="of one thread, for a machine with other work"
    )
    parser.add_argument("--quick", action="store_true", help="tiny sizes, to see that all runs")
    parser.add_argument("--json", type=Path, help="write the results here")
    options = parser.parse_args()
    device = options.device
    dtype = DTYPES[options.dtype] if options.dtype else default_dtype(device)
    start = time.monotonic()
    clock = time.process_time if options.cpu_time else time.perf_counter
    if options.cpu_time:
        torch.set_num_threads(1)
    peaks = device_peaks(device)
    rows: list[dict[str, Any]] = []
    wrong, left_out = [], []
    sizes = [
        tuple(v) for v in (options.losses, options.categories, options.batches, options.widths)
    ]
    for case in cases(device, dtype, *sizes, quick=options.quick):
        if time.monotonic() - start > options.seconds:
            left_out.append(f"{case.loss} {case.size}")
            continue
        print(f"{time.monotonic() - start:6.0f} s  {case.loss} {case.size}", file=sys.stderr)
        race = Race(case, options.contenders)
        rows += race.rows(options.rounds, peaks, clock)
        wrong += [f"{case.loss} {case.size} {name}: {race.skipped[name]}" for name in race.wrong]
        torch.compiler.reset()
        if device.type == "cuda":
            torch.cuda.empty_cache()
    print(f"{machine(device)}, {str(dtype).removeprefix('torch.')}\npeaks: {peaks.to_dict()}\n")
    print(show(rows))
    if left_out:
        print(f"\nout of time: {len(left_out)} cases, from {left_out[0]}")
    if wrong:
        print("\nWRONG:\n" + "\n".join(wrong))
    if options.json is not None:
        record = {"limits": limits(), "peaks": peaks.to_dict(), "rows": rows}
        write_results(options.json, record, device)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
