"""bfloat16 and int8 indexes, changing an index, and its file."""

from __future__ import annotations

import copy
import importlib.util
import json
import math
import os
import pickle
import re
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors import safe_open

from pvp_fast import native
from pvp_fast.errors import ArtifactError, BackendError, InputError
from pvp_fast.topk import panels as topk_pack
from pvp_fast.topk.index import TagIndex, TopK, topk
from pvp_fast.topk.panels import DTYPES

ISAS = native.call("isas")
slow = settings(max_examples=120, deadline=None, suppress_health_check=[HealthCheck.too_slow])


def random(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def same(a: TopK, b: TopK) -> bool:
    return all(torch.equal(left, right) for left, right in zip(a, b, strict=True))


def problem(rows: int, categories: int, width: int, seed: int = 0):
    x, w = random(seed, rows, width), random(seed + 1, categories, width)
    w[categories // 2 :: 7] = w[0].clone()  # duplicates: the tie rule is at work
    return x, w


@pytest.mark.parametrize("dtype", ["bfloat16", "int8"])
@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("rows", [*range(1, 14), 25, 241])
def test_every_instruction_set_gives_the_same_bits(dtype, isa, rows, monkeypatch):
    x, w = problem(rows, 165, 37, seed=rows)
    index, lowest = TagIndex(w, dtype), torch.linspace(-0.2, 0.2, 165)
    monkeypatch.setenv("PVP_FAST_ISA", "portable")
    expected = index.topk(x, 9, lowest, bias=lowest, scale=0.7)
    monkeypatch.setenv("PVP_FAST_ISA", isa)
    assert same(index.topk(x, 9, lowest, bias=lowest, scale=0.7), expected)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("rows", [1, 6, 7, 30, 52])
@pytest.mark.parametrize("width", [129, 256, 301])
def test_long_chains_and_many_panels_have_the_same_bits(dtype, isa, rows, width, monkeypatch):
    """Chains that are cut into parts, a row against several panels, panels fetched ahead."""
    x, w = problem(rows, 229, width, seed=rows)
    index, bias = TagIndex(w, dtype), torch.linspace(-0.1, 0.1, 229)
    monkeypatch.setenv("PVP_FAST_ISA", "portable")
    expected = index.topk(x, 5, 0.0, bias=bias, scale=0.7, per_category_threshold=bias)
    monkeypatch.setenv("PVP_FAST_ISA", isa)
    got = index.topk(x, 5, 0.0, bias=bias, scale=0.7, per_category_threshold=bias)
    assert same(got, expected)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("rows", [15, 16, 17, 32, 33, 100, 270, 530])
@pytest.mark.parametrize("width", [60, 64, 133])
def test_many_rows_by_int8_have_the_bits_of_float32(isa, rows, width, monkeypatch):
    """AMX has registers of 16 rows, tiles of 32, 8 of them at a time, blocks of 512."""
    monkeypatch.setenv("PVP_FAST_ISA", isa)
    x, w = problem(rows, 333, width, seed=rows)
    bias = torch.linspace(-0.1, 0.1, 333)
    rest = {"bias": bias, "scale": 0.7, "per_category_threshold": bias}
    for centre in (0.0, 1.0):
        expected = TagIndex(w + centre).topk(x, 5, 0.0, **rest)
        assert same(TagIndex(w + centre, "int8").topk(x, 5, 0.0, **rest), expected)


@pytest.mark.parametrize("isa", ISAS)
def test_bfloat16_is_the_documented_chain(isa, monkeypatch):
    """Pairs, the odd member first (topk/topk.h). Every step is exact in float64, then rounded."""
    monkeypatch.setenv("PVP_FAST_ISA", isa)
    x, w = random(8, 3, 61), random(9, 40, 61)
    got = TagIndex(w, "bfloat16", normalize=False).topk(x, 40)
    a, b = (np.pad(v.bfloat16().double().numpy(), ((0, 0), (0, 1))) for v in (x, w))
    for row in range(3):
        # A product of two bfloat16 has 16 bits, the sum with a float32 may need more than 53: then
        # float64 would round twice, so the few such steps are told by their exponents.
        total = np.zeros(40, np.float32)
        for pair in range(31):
            for d in (2 * pair + 1, 2 * pair):
                product = a[row, d] * b[:, d]
                size = np.log2(np.abs(np.stack([product, total.astype(np.float64)])) + 1e-300)
                spread = np.abs(size[0] - size[1])
                assert ((spread < 28) | (product == 0) | (total == 0)).all()
                total = (product + total.astype(np.float64)).astype(np.float32)
        expected = total[got.indices[row].numpy()]
        np.testing.assert_array_equal(got.scores[row].numpy(), expected)


@slow
@given(
    rows=st.integers(1, 30),
    categories=st.integers(1, 203),
    width=st.integers(1, 130),
    k=st.integers(1, 300),
    power=st.sampled_from([-60, 0, 60]),
    seed=st.integers(0, 2**31),
)
def test_bfloat16_is_close_to_float64_on_rounded_inputs(rows, categories, width, k, power, seed):
    x, w = random(seed, rows, width), random(seed + 1, categories, width) * 2.0**power
    got = TagIndex(w, "bfloat16", normalize=False).topk(x, k)
    a, b = x.bfloat16().double(), w.bfloat16().double()
    exact, size = a @ b.T, a.abs() @ b.abs().T
    kept = min(k, categories)
    assert (got.counts == kept).all()
    chosen = got.indices[:, :kept]
    error = (width + 1) * 2.0**-24 * size + width * 2.0**-125
    found = exact.gather(1, chosen)
    assert ((got.scores[:, :kept].double() - found).abs() <= error.gather(1, chosen)).all()
    best = exact.topk(kept).values
    assert (best - found.sort(descending=True).values <= 2 * error.amax(1, keepdim=True)).all()


@slow
@given(
    rows=st.integers(1, 30),
    categories=st.integers(1, 301),
    width=st.integers(1, 130),
    k=st.integers(1, 300),
    power=st.sampled_from([-140, -60, -40, 0, 45, 60]),
    outlier=st.booleans(),
    per_category=st.booleans(),
    with_bias=st.booleans(),
    scale=st.sampled_from([1.0, -2.0, 0.5, 0.0, 1e-30, 1e30]),
    isa=st.sampled_from(ISAS),
    seed=st.integers(0, 2**31),
)
def test_int8_gives_the_bits_of_float32(
    rows, categories, width, k, power, outlier, per_category, with_bias, scale, isa, seed
):
    """Recall 1.0 by construction, whatever the data: also where 8 bits tell nothing."""
    x, w = problem(rows, categories, width, seed)
    w = w * 2.0**power
    if outlier:  # all but one component of these rows round to zero
        w[::3, 0] *= 1e4
        x[::2, -1] *= 1e6
    bias = random(seed + 2, categories) if with_bias else None
    threshold = random(seed + 3, categories) if per_category else None
    index = TagIndex(w, "int8", normalize=False)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PVP_FAST_ISA", isa)
        try:
            expected = TagIndex(w, normalize=False).topk(x, k, threshold, bias, scale)
        except InputError as error:  # sums that overflow both ways
            with pytest.raises(InputError, match=re.escape(str(error))):
                index.topk(x, k, threshold, bias, scale)
            return
        assert same(index.topk(x, k, threshold, bias, scale), expected)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("shape", ["centred", "huge components", "clusters", "lengths"])
@pytest.mark.parametrize("k", [1, 10, 400])
def test_int8_gives_the_bits_of_float32_on_all_kinds_of_rows(shape, k, isa, monkeypatch):
    """Rows like CLIP's (a common mean), near-duplicates (long short lists), rows of all lengths."""
    monkeypatch.setenv("PVP_FAST_ISA", isa)
    w = random(1, 1700, 72)
    if shape == "centred":
        w = w + 3 * random(2, 72)
    elif shape == "huge components":
        w = w + 40 * (torch.arange(72) % 24 == 5)
    elif shape == "clusters":
        w = random(2, 3, 72)[torch.arange(1700) % 3] + 0.02 * w
    else:
        w = w * torch.exp(3 * random(2, 1700, 1))
    x = torch.nn.functional.normalize(w[::130] + 0.3 * random(3, *w[::130].shape), dim=1)
    off = torch.where(random(4, 1700) > 0, -torch.inf, 1e3 * random(5, 1700))
    index, exact = TagIndex(w, "int8", normalize=False), TagIndex(w, normalize=False)
    for bias, scale, threshold in [(None, 1.0, None), (off, 100.0, None), (None, -1.0, 0.2)]:
        assert same(
            index.topk(x, k, threshold, bias, scale), exact.topk(x, k, threshold, bias, scale)
        )


def test_int8_on_real_names_needs_few_rescores_and_misses_nothing(shared_data):
    path = shared_data / "embeddings" / "lvis_v1_clip_a+cname.npy"
    w = torch.from_numpy(np.load(path, allow_pickle=False)).float()
    w = w if w.shape[0] > w.shape[1] else w.T.contiguous()
    x = torch.nn.functional.normalize(w[::9] + 0.02 * random(1, *w[::9].shape), dim=1)
    assert same(TagIndex(w, "int8").topk(x, 10), TagIndex(w).topk(x, 10))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("rows", "categories"), [(4, 90001), (130, 3000)])
def test_the_number_of_threads_changes_nothing(dtype, rows, categories):
    x, w = problem(rows, categories, 96, seed=rows)
    index, before = TagIndex(w, dtype), torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        expected = index.topk(x, 40)
        torch.set_num_threads(3)
        assert same(index.topk(x, 40), expected)
    finally:
        torch.set_num_threads(before)
    with ThreadPoolExecutor(4) as pool:
        assert all(same(r, expected) for r in pool.map(lambda _: index.topk(x, 40), range(12)))


@pytest.mark.parametrize("isa", ISAS)
def test_bfloat16_counts_denormals_as_zero(isa, monkeypatch):
    monkeypatch.setenv("PVP_FAST_ISA", isa)
    small = torch.tensor([[2.0**-130], [2.0**-100], [2.0**-60]])
    got = TagIndex(small, "bfloat16", normalize=False).topk(torch.full((1, 1), 2.0**-40), 3)
    assert got.indices.tolist() == [[2, 0, 1]]  # 2^-140 underflows to a tie with 0
    assert got.scores.tolist() == [[2.0**-100, 0.0, 0.0]]
    # The caller's own arithmetic keeps its denormals.
    assert (torch.tensor(2.0**-100) * 2.0**-40).item() == 2.0**-140


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_nan_score_is_an_error_that_names_the_row(dtype, value):
    x, w = torch.ones(40, 3), torch.ones(70, 3)
    x[17, 1] = x[33, 0] = value
    w[60] = 0.0  # infinity times zero
    with pytest.raises(InputError, match="row 17 "):
        TagIndex(w, dtype).topk(x, 1)


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_torch_backend_agrees(dtype):
    x, w = random(1, 9, 24), random(2, 77, 24)
    index = TagIndex(w, dtype)
    got, plain = index.topk(x, 6), index.topk(x, 6, backend="torch")
    assert torch.equal(got.indices, plain.indices)
    torch.testing.assert_close(got.scores, plain.scores, rtol=1e-5, atol=1e-5)


def test_one_threshold_beside_one_per_category():
    index = TagIndex(torch.eye(4))
    x = torch.tensor([[0.9, 0.5, 0.3, 0.1]])
    each = torch.tensor([0.95, 0.0, 0.0, 0.0])
    got = index.topk(x, 4, 0.2, per_category_threshold=each)
    assert got.indices.tolist() == [[1, 2, -1, -1]]
    with pytest.raises(InputError, match="threshold is an array too"):
        index.topk(x, 4, each, per_category_threshold=each)


@pytest.mark.parametrize("dtype", DTYPES)
def test_strides_and_numpy(dtype):
    x, w = random(3, 12, 40), random(4, 90, 20)
    index = TagIndex(w, dtype)
    expected = index.topk(x[::2, ::2].contiguous(), 5)
    assert same(index.topk(x[::2, ::2], 5), expected)
    assert same(index.topk(x.numpy()[::2, ::2], 5), expected)


# Changing an index


@slow
@given(
    dtype=st.sampled_from(list(DTYPES)),
    width=st.integers(1, 40),
    start=st.integers(1, 70),
    steps=st.lists(st.sampled_from(["add", "update", "remove"]), min_size=1, max_size=5),
    seed=st.integers(0, 2**31),
)
def test_a_changed_index_is_one_built_afresh(dtype, width, start, steps, seed):
    generator = np.random.default_rng(seed)
    rows = random(seed, start, width)
    index = TagIndex(rows, dtype)
    for turn, step in enumerate(steps):
        count = int(generator.integers(1, 40))
        if step == "add":
            new = random(seed + turn + 1, count, width)
            index.add(new)
            rows = torch.cat([rows, new])
            continue
        count = min(count, len(rows) - (step == "remove"))
        chosen = torch.from_numpy(generator.permutation(len(rows))[:count].copy())
        if step == "update":
            new = random(seed + turn + 1, count, width)
            index.update(chosen, new)
            rows = rows.clone()
            rows[chosen] = new
        else:
            order = index.remove(chosen)
            assert set(order.tolist()) == set(range(len(rows))) - set(chosen.tolist())
            rows = rows[order]
    x = random(seed + 99, 5, width)
    fresh = TagIndex(rows, dtype)
    assert len(index) == len(fresh) == len(rows)
    assert torch.equal(index.w, fresh.w)
    assert same(index.topk(x, 7), fresh.topk(x, 7))


@pytest.mark.parametrize("dtype", DTYPES)
def test_an_index_without_memory_to_grow_stays_as_it_was(dtype, monkeypatch):
    x, w = problem(5, 40, 12)
    index = TagIndex(w, dtype)
    before, calls = index.topk(x, 50), []

    def enlarged(tensor: torch.Tensor, size: int) -> torch.Tensor:
        calls.append(size)
        if len(calls) == (2 if dtype == "int8" else 1):  # int8: the panels fit, the rows do not
            raise MemoryError
        return real(tensor, size)

    real = topk_pack._enlarged
    monkeypatch.setattr(topk_pack, "_enlarged", enlarged)
    with pytest.raises(MemoryError):
        index.add(random(3, 300, 12))
    assert torch.equal(index.w, TagIndex(w, dtype).w)
    assert same(index.topk(x, 50), before)
    index.add(random(3, 300, 12))
    assert same(index.topk(x, 9), TagIndex(torch.cat([w, random(3, 300, 12)]), dtype).topk(x, 9))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("copied", [copy.deepcopy, lambda i: pickle.loads(pickle.dumps(i))])
def test_a_copy_changes_alone(dtype, copied):
    x, w = problem(5, 70, 12)
    index = TagIndex(w, dtype)
    before, other = index.topk(x, 9), copied(index)
    new = random(3, 2, 12)
    other.update([1, 69], new)
    other.add(new)
    assert same(index.topk(x, 9), before)
    w = torch.cat([w, new])
    w[[1, 69]] = new
    assert torch.equal(other.w, TagIndex(w, dtype).w)
    assert same(other.topk(x, 9), TagIndex(w, dtype).topk(x, 9))


@pytest.mark.parametrize("dtype", DTYPES)
def test_what_answers_and_what_it_takes(dtype, monkeypatch):
    index = TagIndex(random(1, 70, 12), dtype)
    assert index.isa in ISAS
    monkeypatch.setenv("PVP_FAST_ISA", "portable")
    assert index.isa == "portable"
    words = {"float32": 12, "bfloat16": 6, "int8": 3 + 5}[dtype]
    kept = 4 * (70 * 12 + 12) if dtype == "int8" else 0  # the rows and the centre
    assert index.nbytes == 4 * 96 * words + kept
    index.add(random(2, 40, 12))
    assert index.nbytes > 4 * 96 * words + kept


def test_what_cannot_be_changed():
    index = TagIndex(torch.eye(3))
    for call, message in [
        (lambda: index.add(torch.ones(1, 4)), "4 columns but the index has width 3"),
        (lambda: index.add(torch.full((1, 3), math.nan)), "NaN"),
        (lambda: index.update([0, 0], torch.ones(2, 3)), "twice"),
        (lambda: index.update([0], torch.ones(2, 3)), "2 rows for 1 indices"),
        (lambda: index.update([3], torch.ones(1, 3)), "categories 0 to 2"),
        (lambda: index.remove([-1]), "categories 0 to 2"),
        (lambda: index.remove([0.5]), "integers"),
        (lambda: index.remove([0, 1, 2]), "an index keeps one"),
    ]:
        with pytest.raises(InputError, match=message):
            call()
    assert torch.equal(index.w, torch.eye(3))
    assert index.remove([]).tolist() == [0, 1, 2]


def test_unknown_dtypes_and_int8_of_any_width():
    with pytest.raises(InputError, match="'float16'; choose one of float32, bfloat16, int8"):
        TagIndex(torch.ones(1, 1), "float16")
    with pytest.raises(InputError, match="int8 sums fit 32 bits"):
        TagIndex(torch.ones(1, 65537), "int8")
    with pytest.raises(BackendError, match="needs w on the CPU"):
        TagIndex(torch.ones(2, 2, device="meta"), "int8", normalize=False)


# The file


@pytest.mark.parametrize("dtype", DTYPES)
def test_saved_and_mapped_again(dtype, tmp_path):
    x, w = problem(20, 101, 33)
    index, path = TagIndex(w, dtype), tmp_path / "tags.safetensors"
    index.save(path)
    before = path.read_bytes()
    loaded = TagIndex.load(path)
    assert same(loaded.topk(x, 8), index.topk(x, 8))
    assert (loaded.dtype, len(loaded), loaded.width) == (dtype, 101, 33)
    with safe_open(str(path), framework="pt") as stored:  # any safetensors reader can
        assert "panels" in stored.keys()  # noqa: SIM118
        assert stored.metadata()["dtype"] == dtype
    loaded.update([4], random(5, 1, 33))
    loaded.add(random(6, 3, 33))
    index.update([4], random(5, 1, 33))
    index.add(random(6, 3, 33))
    assert same(loaded.topk(x, 8), index.topk(x, 8))
    assert path.read_bytes() == before, "a loaded index changes its own copy"
    loaded.save(path)
    assert same(TagIndex.load(path, verify=False).topk(x, 8), index.topk(x, 8))


def test_a_loaded_index_is_the_file_in_memory(tmp_path):
    """Nothing is copied: the panels lie inside the mapping of the file."""
    path = tmp_path / "tags.safetensors"
    TagIndex(random(0, 4000, 64)).save(path)
    index = TagIndex.load(path)
    assert index._packed is not None
    address = index._packed.data.data_ptr()
    maps = Path("/proc/self/maps")
    if not maps.exists():
        pytest.skip("needs /proc")
    for line in maps.read_text().splitlines():
        if line.endswith(str(path)):
            low, high = (int(part, 16) for part in line.split()[0].split("-"))
            if low <= address < high:
                return
    raise AssertionError("the panels are not inside the mapped file")


def test_another_process_reads_it(tmp_path):
    path, w = tmp_path / "tags.safetensors", random(0, 50, 8)
    index = TagIndex(w, "bfloat16")
    index.save(path)
    code = (
        "import sys, torch; from pvp_fast import TagIndex;"
        "print(TagIndex.load(sys.argv[1]).topk(torch.ones(1, 8), 5).indices.tolist())"
    )
    result = subprocess.run(
        [sys.executable, "-c", code, str(path)],
        capture_output=True,
        text=True,
        check=True,
        # Elsewhere than in a checkout, whose own pvp_fast/ would hide the installed one.
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
    )
    assert json.loads(result.stdout) == index.topk(torch.ones(1, 8), 5).indices.tolist()


def test_files_that_are_none(tmp_path):
    path = tmp_path / "tags.safetensors"
    with pytest.raises(ArtifactError, match="cannot be read"):
        TagIndex.load(path)
    TagIndex(random(0, 9, 8)).save(path)
    whole = path.read_bytes()
    for data, message in [
        (b"", "header is damaged"),
        (b"\xff" * 64, "header is damaged"),
        (whole[:-1], "bytes where"),
        (whole + b"0", "bytes where"),
        (whole[:-1] + b"\x55", "SHA-256"),
        (whole.replace(b'"width": "8"', b'"width": "9"'), "contradicts"),
    ]:
        path.write_bytes(data)
        with pytest.raises(ArtifactError, match=message):
            TagIndex.load(path)


def test_a_damaged_file_is_refused_or_unchanged(tmp_path):
    path = Path(__file__).parent.parent / "fuzz" / "fuzz_index.py"
    spec = importlib.util.spec_from_file_location("fuzz_index", path)
    assert spec is not None
    assert spec.loader is not None
    fuzzer = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(fuzzer)
    assert fuzzer.fuzz(tmp_path, seed=0, cases=300) == 300


# torch.library


@pytest.mark.parametrize("thresholds", [None, torch.zeros(37)])
@pytest.mark.parametrize("dtype", ["bfloat16", "int8"])
def test_operator_is_registered_right(dtype, thresholds):
    query = (*TagIndex(random(4, 37, 8), dtype)._read_by("native"), 37, -1.0, thresholds, None, 2.0)
    out = torch.empty(5, 3), torch.empty(5, 3, dtype=torch.int64), torch.empty(5, dtype=torch.int64)
    torch.library.opcheck(torch.ops.pvp_fast.topk.default, (random(5, 5, 8), *query, *out))


@pytest.mark.parametrize("dtype", DTYPES)
def test_compiles_without_a_graph_break(dtype):
    index = TagIndex(random(6, 40, 8), dtype)

    def tag(x: torch.Tensor) -> TopK:
        return index.topk(torch.nn.functional.normalize(x, dim=1), 3, 0.1)

    compiled = torch.compile(tag, backend="aot_eager", fullgraph=True)
    for rows in (4, 9):
        x = random(rows, rows, 8)
        assert same(compiled(x), tag(x))


def test_int8_equals_the_function_form():
    x, w = problem(7, 60, 16)
    assert same(TagIndex(w, "int8").topk(x, 4), topk(x, w, 4))


@pytest.mark.parametrize("width", [33, 512])
def test_auto_is_int8_where_its_bounds_tell_categories_apart(width):
    """The same answer either way, by the way that is faster."""
    x, w = problem(5, 1100, width)
    many, few = TagIndex(w, "auto"), TagIndex(w[:900], "auto")
    assert (many.dtype, few.dtype) == ("int8", "float32")
    assert same(many.topk(x, 9), TagIndex(w).topk(x, 9))
    # One component outshines the others: they round to nothing, and all would be scored again.
    w[:, 0] = 1e4 * torch.linspace(-1, 1, 1100).sign()
    loose = TagIndex(w, "auto", normalize=False)
    assert loose.dtype == "float32"
    w[7] = 1e30  # not quantised; among the sample or not, the answer is float32's
    wild = TagIndex(w, "auto", normalize=False)
    assert same(wild.topk(x, 9), TagIndex(w, normalize=False).topk(x, 9))


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("k", [1, 10, 40, 700])
def test_int8_is_float32_where_short_lists_overflow(isa, k, monkeypatch):
    """Rows near one another: the bounds leave most categories open, in lists that hold few."""
    monkeypatch.setenv("PVP_FAST_ISA", isa)
    w = random(1, 1, 40) + 1e-3 * random(2, 650, 40)
    w[300:340] = w[3]
    x = torch.cat([w[:3] + 1e-3 * random(3, 3, 40), random(4, 4, 40), w[3:4] * 1e20])
    index, exact = TagIndex(w, "int8"), TagIndex(w)
    bias = 1e-4 * random(5, 650)
    bias[::50] = -math.inf
    for options in ({}, {"bias": bias}, {"threshold": 0.5}, {"per_category_threshold": bias}):
        assert same(index.topk(x, k, **options), exact.topk(x, k, **options))
