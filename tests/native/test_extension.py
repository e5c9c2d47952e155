"""The compiled part alone: the same bits everywhere, threads, the GIL, arguments."""

from __future__ import annotations

import subprocess
import sys
import sysconfig
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from fractions import Fraction

import numpy as np
import pytest
import torch
from support.waiting import PATIENCE, until

from pvp_fast import native
from pvp_fast.errors import BackendError
from pvp_fast.topk.index import TagIndex

ISAS = native.call("isas")


@pytest.fixture
def threads():
    """Sets torch's thread count, which the extension follows, and puts it back."""
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


def problem(rows: int, categories: int, width: int, seed: int = 0):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(rows, width, generator=generator)
    w = torch.randn(categories, width, generator=generator)
    w[categories // 2 :: 7] = w[0]  # duplicates: the tie rule is at work
    return x, TagIndex(w)


def same(a, b) -> bool:
    return all(torch.equal(left, right) for left, right in zip(a, b, strict=True))


def test_portable_is_always_there():
    assert ISAS[-1] == "portable"
    info = native.call("build_info")
    assert info["isas"] == ISAS
    assert {"compiler", "openmp", "cuda"} <= set(info)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("rows", [*range(1, 14), 25, 241])
def test_every_instruction_set_gives_the_same_bits(isa, rows, monkeypatch):
    x, index = problem(rows, 165, 37, seed=rows)
    lowest = torch.linspace(-0.2, 0.2, 165)
    monkeypatch.setenv("PVP_FAST_ISA", "portable")
    expected = index.topk(x, 9, lowest, bias=lowest, scale=0.7)
    monkeypatch.setenv("PVP_FAST_ISA", isa)
    assert same(index.topk(x, 9, lowest, bias=lowest, scale=0.7), expected)


@pytest.mark.parametrize("isa", ISAS)
def test_the_sum_is_the_documented_chain(isa, monkeypatch):
    """fma in ascending d, as in csrc/topk/topk.h, replayed in exact rational arithmetic."""
    monkeypatch.setenv("PVP_FAST_ISA", isa)
    generator = torch.Generator().manual_seed(8)
    x, w = torch.randn(1, 61, generator=generator), torch.randn(5, 61, generator=generator)
    got = TagIndex(w, normalize=False).topk(x, 5, scale=3.0, bias=torch.full((5,), 0.1))
    for score, category in zip(got.scores[0], got.indices[0], strict=True):
        total = np.float32(0)
        for a, b in zip(x[0].numpy(), w[category].numpy(), strict=True):
            total = nearest_float32(
                Fraction(float(a)) * Fraction(float(b)) + Fraction(float(total))
            )
        total = nearest_float32(3 * Fraction(float(total)) + Fraction(float(np.float32(0.1))))
        assert score.item() == total


def nearest_float32(value: Fraction) -> np.float32:
    """Round a Fraction once, to nearest, ties to even (float64 first would round twice)."""
    guess = np.float32(float(value))
    around = [
        np.nextafter(guess, np.float32(-np.inf)),
        guess,
        np.nextafter(guess, np.float32(np.inf)),
    ]
    return min(around, key=lambda f: (abs(Fraction(float(f)) - value), int(f.view(np.uint32)) & 1))


@pytest.mark.parametrize(("rows", "categories"), [(1, 90001), (3, 30000), (130, 700), (500, 330)])
def test_the_number_of_threads_changes_nothing(rows, categories, threads):
    x, index = problem(rows, categories, 96, seed=rows)
    threads(1)
    expected = index.topk(x, 40)
    for count in (2, 3, 7):
        threads(count)
        assert same(index.topk(x, 40), expected)


@pytest.mark.parametrize("count", [1, 3])
def test_the_first_nan_row_is_named_whatever_the_threads(count, threads):
    x, index = problem(600, 300, 96)
    x[[599, 311, 450]] = torch.nan
    threads(count)
    with pytest.raises(ValueError, match="row 311 "):
        index.topk(x, 3)


def test_more_rows_than_one_wave(threads):
    x, index = problem(4200, 40, 64)
    threads(2)
    whole = index.topk(x, 4)
    halves = [index.topk(x[:77], 4), index.topk(x[77:], 4)]
    assert same(whole, [torch.cat(parts) for parts in zip(*halves, strict=True)])
    x[4100] = torch.nan
    with pytest.raises(ValueError, match="row 4100 "):
        index.topk(x, 4)


def test_two_threads_share_one_index():
    x, index = problem(64, 2000, 48)
    expected = index.topk(x, 12)
    with ThreadPoolExecutor(4) as pool:
        results = list(pool.map(lambda _: index.topk(x, 12), range(24)))
    assert all(same(result, expected) for result in results)


def pack_search_refuse(module, x, w):
    """Each kind of call once, with arrays of its own: the scores and indices of a search."""
    panels = np.empty((-(-len(w) // 32), w.shape[1], 32), np.float32)
    module.pack(w=w, panels=panels)
    scores, indices = np.empty((len(x), 5), np.float32), np.empty((len(x), 5), np.int64)
    counts = np.empty(len(x), np.int64)
    asked = {"panels": panels, "categories": len(w), "threshold": -np.inf, "thresholds": None,
             "bias": None, "scale": 1.0, "scores": scores, "indices": indices, "counts": counts,
             "threads": 1}  # fmt: skip
    assert module.topk(x=x, **asked) == -1
    with pytest.raises(ValueError, match=r"^x, float64"):
        module.topk(x=x.astype(np.float64), **asked)
    return scores.tobytes() + indices.tobytes()


def test_calls_of_many_threads_meet():
    """On a Python without a GIL they do so in the bindings, too."""
    draw = np.random.default_rng(0)
    x, w = (draw.standard_normal((n, 24), np.float32) for n in (5, 100))
    module, ready = native.extension(), threading.Barrier(8)
    expected = pack_search_refuse(module, x, w)

    def work(_):
        ready.wait(PATIENCE)
        return all(pack_search_refuse(module, x, w) == expected for _ in range(200))

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(work, range(8)))


def test_the_gil_is_released(threads):
    """While one thread searches, another one runs Python."""
    threads(1)
    x, index = problem(256, 20000, 256)

    def seen():
        steps, span = [], []

        def search():
            span.append(time.perf_counter())
            index.topk(x, 5)
            span.append(time.perf_counter())

        worker = threading.Thread(target=search)
        worker.start()
        while worker.is_alive():
            steps.append(time.perf_counter())
            time.sleep(0)
        worker.join()
        third = (span[1] - span[0]) / 3
        return sum(span[0] + third < at < span[1] - third for at in steps) > 3

    until(seen)  # a busy machine may not run this thread in the middle of every search


def test_an_unknown_instruction_set_is_an_error(monkeypatch):
    monkeypatch.setenv("PVP_FAST_ISA", "z80")
    x, index = problem(1, 4, 4)
    with pytest.raises(BackendError, match=r"'z80' is not available.*portable.*PVP_FAST_ISA"):
        index.topk(x, 1)


@pytest.mark.skipif(not sysconfig.get_config_var("Py_GIL_DISABLED"), reason="this Python has a GIL")
def test_a_free_threaded_python_stays_so():
    code = "import sys; from pvp_fast import _C; print(sys._is_gil_enabled(), _C.isas()[0])"
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code], capture_output=True, text=True
    )
    assert done.stdout.split() == ["False", native.extension().isas()[0]], done.stderr


def test_imports_without_torch():
    """The extension knows no torch: it loads in a process that has not imported it."""
    path = native.extension().__file__
    code = (
        "import importlib.util, sys;"
        f"spec = importlib.util.spec_from_file_location('pvp_fast._C', {path!r});"
        "module = importlib.util.module_from_spec(spec); spec.loader.exec_module(module);"
        "assert 'torch' not in sys.modules; print(module.isas()[-1])"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert result.stdout.strip() == "portable"
