"""Top-k tagging against NumPy float64 and plain PyTorch: ties, thresholds, views, errors."""

from __future__ import annotations

import math
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pvp_fast import native
from pvp_fast.errors import BackendError, InputError
from pvp_fast.topk.index import TagIndex, TopK, topk, topk_ref
from pvp_fast.topk.ops import engine
from pvp_fast.topk.panels import Panels, pack_on_device

BACKENDS = ("native", "torch")


def exact_top(scores: np.ndarray, k: int, kept: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Scores and indices of the k best of each row by (descending score, ascending category)."""
    values = np.full((scores.shape[0], k), -np.inf)
    indices = np.full((scores.shape[0], k), -1)
    for row in range(scores.shape[0]):
        inside = np.flatnonzero(kept[row])
        order = inside[np.lexsort((inside, -scores[row, inside]))][:k]
        values[row, : len(order)], indices[row, : len(order)] = scores[row, order], order
    return values, indices


def integers(generator: torch.Generator, rows: int, columns: int, top: int = 3) -> torch.Tensor:
    """Small whole numbers: every float32 sum is exact, and ties are everywhere."""
    return torch.randint(-top, top + 1, (rows, columns), generator=generator).float()


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    rows=st.integers(1, 40),
    categories=st.integers(1, 203),
    width=st.integers(1, 67),
    k=st.integers(1, 300),
    threshold=st.one_of(st.none(), st.integers(-20, 20)),
    per_category=st.booleans(),
    with_bias=st.booleans(),
    scale=st.sampled_from([1.0, -2.0, 0.5, 0.0]),
    backend=st.sampled_from(BACKENDS),
    seed=st.integers(0, 2**31),
)
def test_equals_a_full_sort_when_sums_are_exact(
    rows, categories, width, k, threshold, per_category, with_bias, scale, backend, seed
):
    generator = torch.Generator().manual_seed(seed)
    x, w = integers(generator, rows, width), integers(generator, categories, width)
    bias = integers(generator, 1, categories)[0] if with_bias else None
    if per_category:
        threshold = integers(generator, 1, categories, 9)[0]
    got = topk(x, w, k, threshold, bias, scale, normalize=False, backend=backend)

    scores = scale * (x.double().numpy() @ w.double().numpy().T)
    if bias is not None:
        scores = scores + bias.numpy()
    lowest = -np.inf if threshold is None else np.asarray(threshold)
    values, indices = exact_top(scores, k, scores >= lowest)
    np.testing.assert_array_equal(got.indices.numpy(), indices)
    np.testing.assert_array_equal(got.scores.numpy(), values)
    np.testing.assert_array_equal(got.counts.numpy(), (indices >= 0).sum(1))


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    rows=st.integers(1, 30),
    categories=st.integers(1, 301),
    width=st.integers(1, 130),
    k=st.integers(1, 300),
    power=st.sampled_from([-140, -60, 0, 60]),
    seed=st.integers(0, 2**31),
)
def test_close_to_float64_at_every_magnitude(rows, categories, width, k, power, seed):
    """Denormal to huge: scores within the rounding of a chain of width fused multiply-adds."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(rows, width, generator=generator)
    w = torch.randn(categories, width, generator=generator) * 2.0**power
    got = topk(x, w, k, normalize=False, backend="native")
    scores = x.double().numpy() @ w.double().numpy().T
    magnitude = np.abs(x.double().numpy()) @ np.abs(w.double().numpy()).T
    error = (width + 1) * (2.0**-24 * magnitude + 2.0**-149)
    kept = min(k, categories)
    assert (got.counts == kept).all()
    chosen = got.indices.numpy()[:, :kept]
    for row in range(rows):
        assert len(set(chosen[row])) == kept
        found = scores[row, chosen[row]]
        bound = error[row].max()
        assert (np.abs(got.scores.numpy()[row, :kept] - found) <= error[row, chosen[row]]).all()
        # No category left out beats the worst one kept by more than rounding.
        left_out = np.delete(scores[row], chosen[row])
        assert left_out.size == 0 or left_out.max() <= found.min() + 2 * bound
    assert (got.scores[:, :kept].diff(dim=1) <= 0).all()


@pytest.mark.parametrize("backend", BACKENDS)
def test_reference_agrees(backend):
    generator = torch.Generator().manual_seed(1)
    x, w = torch.randn(9, 24, generator=generator), torch.randn(77, 24, generator=generator)
    lowest = torch.rand(77, generator=generator)
    got = topk(x, w, 6, lowest, scale=3.0, backend=backend)
    reference = topk_ref(x.double(), w.double(), 6, lowest, scale=3.0)
    assert torch.equal(got.indices, reference.indices)
    assert torch.equal(got.counts, reference.counts)
    torch.testing.assert_close(got.scores, reference.scores.float())


@pytest.mark.parametrize("backend", BACKENDS)
def test_ties_go_to_the_lower_category(backend):
    w = torch.ones(100, 4)
    w[50:] = 2
    got = topk(torch.ones(2, 4), w, 60, normalize=False, backend=backend)
    assert got.indices[0].tolist() == [*range(50, 100), *range(10)]
    signed_zero = topk(
        torch.tensor([[1.0], [-1.0]]), torch.zeros(5, 1), 5, normalize=False, backend=backend
    )
    assert signed_zero.indices.tolist() == [[0, 1, 2, 3, 4]] * 2


@pytest.mark.parametrize("backend", BACKENDS)
def test_infinite_scores_are_ordinary_scores(backend):
    w = torch.tensor([[3e38], [1.0], [-3e38], [2.0]])
    got = topk(torch.full((1, 1), 3e38), w, 4, normalize=False, backend=backend)
    assert got.indices.tolist() == [[0, 3, 1, 2]]
    assert got.scores[0].tolist()[0] == math.inf
    assert got.scores[0].tolist()[3] == -math.inf
    assert got.counts.tolist() == [4]
    bias = torch.tensor([0.0, -math.inf, 0.0, 0.0])
    off = topk(torch.ones(1, 1), torch.ones(4, 1), 4, -9.0, bias, backend=backend)
    assert off.indices.tolist() == [[0, 2, 3, -1]]


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_threshold_may_leave_nothing(backend):
    got = topk(torch.ones(3, 2), torch.ones(5, 2), 2, math.inf, backend=backend)
    assert got.counts.tolist() == [0, 0, 0]
    assert (got.indices == -1).all()
    assert (got.scores == -math.inf).all()
    equal = topk(torch.ones(1, 2), torch.ones(5, 2), 2, 2.0, normalize=False, backend=backend)
    assert equal.counts.tolist() == [2], "a score equal to the threshold is kept"


@pytest.mark.parametrize("backend", BACKENDS)
def test_no_rows(backend):
    got = topk(torch.empty(0, 3), torch.ones(4, 3), 7, backend=backend)
    assert [tuple(part.shape) for part in got] == [(0, 7), (0, 7), (0,)]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_nan_score_is_an_error_that_names_the_row(backend, value):
    x = torch.ones(40, 3)
    x[17, 1] = x[33, 0] = value
    w = torch.ones(70, 3)
    w[50] = torch.tensor([1.0, -1.0, 0.0])
    w[60] = 0.0  # infinity times zero
    with pytest.raises(InputError, match="row 17 "):
        topk(x, w, 1, backend=backend)


def test_views_are_read_in_place():
    generator = torch.Generator().manual_seed(2)
    wide = integers(generator, 30, 40)
    w = integers(generator, 90, 20)
    index = TagIndex(w, normalize=False)
    for view in (wide[::3, ::2], wide.T[:10, :20], wide[:1, 5:25].expand(7, 20)):
        expected = index.topk(view.clone(memory_format=torch.contiguous_format), 5)
        for got in (index.topk(view, 5), index.topk(view.numpy(), 5)):
            assert all(torch.equal(a, b) for a, b in zip(got, expected, strict=True))
    columns = TagIndex(w.T.contiguous().T, normalize=False)
    assert torch.equal(columns.topk(wide[:, :20], 5).indices, index.topk(wide[:, :20], 5).indices)


def test_numpy_and_dlpack():
    x, w = np.eye(3, 4, dtype=np.float32), np.eye(4, dtype=np.float32)
    x.flags.writeable = False
    assert topk(x, w, 1).indices.ravel().tolist() == [0, 1, 2]

    class Foreign:
        def __init__(self, tensor):
            self.tensor = tensor

        def __dlpack__(self, **options):
            return self.tensor.__dlpack__(**options)

        def __dlpack_device__(self):
            return self.tensor.__dlpack_device__()

    assert topk(Foreign(torch.eye(3, 4)), Foreign(torch.eye(4)), 1).indices.ravel().tolist() == [
        0, 1, 2,
    ]  # fmt: skip


def test_normalisation_is_of_w_alone():
    w = torch.tensor([[3.0, 4.0], [0.0, 0.0], [1e-30, 0.0], [0.0, 1e30]])
    index = TagIndex(w)
    torch.testing.assert_close(
        index.w, torch.tensor([[0.6, 0.8], [0.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
    )
    assert index.topk(torch.tensor([[10.0, 0.0]]), 1).scores.item() == 10.0
    assert torch.equal(TagIndex(w, normalize=False).w, w)
    assert len(index) == 4
    assert "categories=4, width=2" in repr(index)


def test_inputs_and_settings_are_left_alone():
    generator = torch.Generator().manual_seed(3)
    x, w = torch.randn(5, 8, generator=generator), torch.randn(9, 8, generator=generator)
    copies = x.clone(), w.clone()
    w.requires_grad_(True)
    got = topk(x.requires_grad_(True), w, 3)
    assert not got.scores.requires_grad
    assert torch.equal(x.detach(), copies[0])
    assert torch.equal(w.detach(), copies[1])
    index = TagIndex(copies[1])
    before = index.topk(copies[0], 3).scores
    copies[1].zero_()
    assert torch.equal(index.topk(copies[0], 3).scores, before), "the index owns its vectors"


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "int8", "auto"])
def test_a_default_device_is_for_what_its_program_makes(dtype: str, tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    w, x = (torch.randn(40, 16, generator=generator) for _ in range(2))

    def searched() -> list[torch.Tensor]:
        index = TagIndex(w, dtype)
        found = [*index.topk(x, k=3, threshold=0.5)]
        index.add(w[:3])
        index.update([7], w[:1])
        index.remove([0, 2])
        index.save(tmp_path / "index.safetensors")
        return [*found, *TagIndex.load(tmp_path / "index.safetensors").topk(x, k=3)]

    expected = searched()
    with torch.device("meta"):
        assert all(map(torch.equal, searched(), expected))


@pytest.mark.parametrize("threshold", [None, -1.0])
def test_denormals_survive_flush_to_zero(threshold):
    x, w = torch.full((1, 1), 2.0**-100), torch.tensor([[2.0**-40], [2.0**-39]])
    index = TagIndex(w, normalize=False)
    if not torch.set_flush_denormal(True):
        pytest.skip("this processor cannot flush denormals")
    try:
        got = index.topk(x, 2, threshold)
    finally:
        torch.set_flush_denormal(False)
    assert got.indices.tolist() == [[1, 0]]
    assert got.scores.tolist() == [[2.0**-139, 2.0**-140]]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"x": torch.ones(2, 5)}, "x has 5 columns but the index has width 4"),
        ({"x": torch.ones(4)}, r"try x\[None\]"),
        ({"x": torch.ones(2, 4, dtype=torch.float16)}, r"x is torch.float16.*x\.float\(\)"),
        ({"x": np.ones((2, 4))}, r"x is float64.*astype"),
        ({"x": np.ones((2, 4), np.float32)[::-1]}, r"ascontiguousarray\(x\)"),
        ({"x": [[1.0] * 4]}, "x is a list"),
        ({"x": torch.ones(2, 4).to_sparse()}, "to_dense"),
        ({"x": torch.ones(2, 4, device="meta")}, r"x is on meta.*x\.to\('cpu'\)"),
        ({"k": 0}, "k is 0"),
        ({"k": True}, "k is True"),
        ({"k": 1.5}, "k is 1.5"),
        ({"threshold": math.nan}, "threshold is NaN"),
        ({"threshold": torch.ones(2)}, r"threshold has shape \(2,\).*\(3,\)"),
        ({"threshold": torch.tensor([0, 0, math.nan])}, "threshold has a NaN for category 2"),
        ({"bias": torch.ones(3, 1)}, r"bias has shape \(3, 1\)"),
        ({"bias": torch.tensor([0, math.nan, 0])}, "bias has a NaN for category 1"),
        ({"scale": math.inf}, "scale is inf"),
        ({"scale": 1e300}, "infinite in float32"),
        ({"backend": "triton"}, "'auto', 'native', 'cuda', 'torch'"),
    ],
)
def test_bad_arguments(arguments, message):
    index = TagIndex(torch.ones(3, 4))
    with pytest.raises(InputError, match=message):
        index.topk(**{"x": torch.ones(2, 4), "k": 1, **arguments})


@pytest.mark.parametrize(
    ("w", "message"),
    [
        (torch.ones(0, 4), "no rows"),
        (torch.ones(3, 0), "D >= 1"),
        (torch.tensor([[0.0], [math.nan]]), "NaN.*row 1"),
        (torch.tensor([[math.inf], [0.0]]), "infinity in row 0"),
        (torch.ones(3, 4, dtype=torch.bfloat16), "w is torch.bfloat16"),
    ],
)
def test_bad_class_vectors(w, message):
    with pytest.raises(InputError, match=message):
        TagIndex(w)


def test_an_explicit_backend_runs_or_raises():
    gpu = torch.device("cuda", 0)
    with pytest.raises(BackendError, match="'cuda': it needs tensors on a GPU, not on cpu"):
        TagIndex(torch.ones(3, 4)).topk(torch.ones(2, 4), 1, backend="cuda")
    with pytest.raises(BackendError, match="'native': it works on a CPU, not on cuda:0"):
        engine("native", gpu, 1)
    with pytest.raises(BackendError, match="'cuda': it keeps at most 256, k is 257"):
        engine("cuda", gpu, 257)
    assert [engine("auto", torch.device(name), 1) for name in ("cpu", "cuda", "mps")] == [
        "native", "torch", "torch",
    ]  # fmt: skip


def test_the_cuda_backend_says_why_it_cannot_run():
    reason = native.call("cuda_status")
    if not reason:
        pytest.skip("CUDA works here")
    with pytest.raises(BackendError, match=re.escape(reason)):
        engine("cuda", torch.device("cuda", 0), 1)


def test_both_packings_agree():
    w = torch.randn(71, 9, generator=torch.Generator().manual_seed(9))
    assert torch.equal(pack_on_device(w), Panels.of(w, "float32").data)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("thresholds", [None, torch.zeros(37)])
def test_operator_is_registered_right(backend, thresholds):
    index = TagIndex(torch.randn(37, 8, generator=torch.Generator().manual_seed(4)))
    x = torch.randn(5, 8, generator=torch.Generator().manual_seed(5))
    out = torch.empty(5, 3), torch.empty(5, 3, dtype=torch.int64), torch.empty(5, dtype=torch.int64)
    query = (*index._read_by(backend), 37, -1.0, thresholds, None, 2.0)
    torch.library.opcheck(torch.ops.pvp_fast.topk.default, (x, *query, *out))


@pytest.mark.parametrize("backend", BACKENDS)
def test_compiles_without_a_graph_break(backend):
    index = TagIndex(torch.randn(40, 8, generator=torch.Generator().manual_seed(6)))

    def tag(x: torch.Tensor) -> TopK:
        return index.topk(torch.nn.functional.normalize(x, dim=1), 3, 0.1, backend=backend)

    compiled = torch.compile(tag, backend="aot_eager", fullgraph=True)
    for rows in (4, 9):
        x = torch.randn(rows, 8, generator=torch.Generator().manual_seed(rows))
        assert all(torch.equal(a, b) for a, b in zip(compiled(x), tag(x), strict=True))


@pytest.mark.gpu
@pytest.mark.parametrize("backend", ["auto", "cuda"])
@pytest.mark.parametrize(("rows", "categories", "k"), [(1, 5, 9), (33, 500, 20), (70, 3001, 200)])
def test_cuda_tensors(backend, rows, categories, k):
    if backend == "cuda" and native.call("cuda_status"):
        pytest.skip(native.call("cuda_status"))
    generator = torch.Generator().manual_seed(7)
    x, w = integers(generator, rows, 40), integers(generator, categories, 40)
    bias = integers(generator, 1, categories)[0]
    expected = topk(x, w, k, 0.0, bias, normalize=False)
    got = topk(x.cuda(), w.cuda(), k, 0.0, bias.cuda(), normalize=False, backend=backend)
    assert all(part.device.type == "cuda" for part in got)
    assert all(torch.equal(a.cpu(), b) for a, b in zip(got, expected, strict=True))
    with pytest.raises(InputError, match="x is on cpu but the index is on cuda"):
        TagIndex(w.cuda()).topk(x, 1)
    x[rows - 1] = math.nan
    with pytest.raises(InputError, match=f"row {rows - 1} "):
        topk(x.cuda(), w.cuda(), k, normalize=False, backend=backend)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_cuda_kernels_in_bfloat16_and_in_a_graph(dtype):
    if native.call("cuda_status"):
        pytest.skip(native.call("cuda_status"))
    generator = torch.Generator().manual_seed(8)
    x, w = integers(generator, 90, 136), integers(generator, 3001, 136)
    expected = TagIndex(w, dtype, normalize=False).topk(x, 20, -5.0)
    index, queries = TagIndex(w.cuda(), dtype, normalize=False), x.cuda()
    side = torch.cuda.Stream()
    with torch.cuda.stream(side):
        got = index.topk(queries, 20, -5.0, backend="cuda")
    side.synchronize()
    assert all(torch.equal(a.cpu(), b) for a, b in zip(got, expected, strict=True))
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = index.topk(queries, 20, -5.0, backend="cuda")
    queries[3, 5] = math.nan
    graph.replay()
    torch.cuda.synchronize()
    assert captured.counts[3].item() == -1
    assert torch.equal(captured.indices[4:].cpu(), expected.indices[4:])
