"""Sharded indexes give the bits of one index, on processes and inside one."""

from __future__ import annotations

import math

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from pvp_fast.errors import InputError
from pvp_fast.topk.index import TagIndex
from pvp_fast.topk.sharded import ShardedTagIndex, SplitTagIndex

SIZES = (37, 64)


def problem():
    generator = torch.Generator().manual_seed(1)
    x = torch.randint(-2, 3, (7, 9), generator=generator).float()
    w = torch.randint(-2, 3, (sum(SIZES), 9), generator=generator).float()
    lowest = torch.randint(-5, 5, (sum(SIZES),), generator=generator).float()
    bias = lowest.flip(0).clone()
    bias[::5] = -math.inf  # present at -inf in one shard, absent in another
    return x, w, lowest, bias


def same(a, b):
    return all(torch.equal(left, right) for left, right in zip(a, b, strict=True))


@pytest.mark.parametrize("k", [1, 5, 50, 300])
@pytest.mark.parametrize("sizes", [SIZES, (1, 1, 99), (101,)])
def test_shards_of_one_process(k, sizes):
    x, w, lowest, bias = problem()
    whole = TagIndex(w)
    split = SplitTagIndex([TagIndex(part) for part in w.split(sizes)])
    assert len(split) == len(whole)
    for arguments in ((), (0.5,), (lowest, bias), (None, bias, 2.0)):
        assert same(split.topk(x, k, *arguments), whole.topk(x, k, *arguments))
    both = {"per_category_threshold": lowest, "bias": bias, "scale": 2.0}
    assert same(split.topk(x, k, 0.5, **both), whole.topk(x, k, 0.5, **both))


def test_shards_that_do_not_fit():
    with pytest.raises(InputError, match="empty"):
        SplitTagIndex([])
    with pytest.raises(InputError, match=r"widths \[2, 3\]"):
        SplitTagIndex([TagIndex(torch.ones(1, 2)), TagIndex(torch.ones(1, 3))])
    split = SplitTagIndex([TagIndex(torch.ones(2, 2)), TagIndex(torch.ones(1, 2))])
    with pytest.raises(InputError, match=r"bias has shape \(2,\).*\(3,\)"):
        split.topk(torch.ones(1, 2), 1, bias=torch.ones(2))
    with pytest.raises(InputError, match=r"per_category_threshold has shape \(4,\).*\(3,\)"):
        split.topk(torch.ones(1, 2), 1, per_category_threshold=torch.ones(4))


def test_without_a_process_group():
    with pytest.raises(InputError, match="init_process_group"):
        ShardedTagIndex(torch.ones(2, 2))


def raised(work):
    try:
        work()
    except InputError as error:
        return str(error)
    return ""


class Broken:
    """A DLPack object whose owner fails."""

    def __dlpack__(self, **options):
        raise RuntimeError("out of pages")

    def __dlpack_device__(self):
        return 1, 0


def worker(rank, folder):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/init", rank=rank, world_size=2)
    x, w, lowest, bias = problem()
    rows = slice(0, SIZES[0]) if rank == 0 else slice(SIZES[0], None)
    index, whole = ShardedTagIndex(w[rows]), TagIndex(w)
    results = {"len": len(index), "offset": index.offset}
    for k in (1, 5, 50, 300):
        results[f"plain {k}"] = same(index.topk(x, k), whole.topk(x, k))
        results[f"sharded {k}"] = same(
            index.topk(x, k, lowest[rows], bias[rows]), whole.topk(x, k, lowest, bias)
        )
        part = {"per_category_threshold": lowest[rows], "bias": bias[rows], "scale": 2.0}
        both = {"per_category_threshold": lowest, "bias": bias, "scale": 2.0}
        results[f"sharded minima {k}"] = same(
            index.topk(x, k, 0.5, **part), whole.topk(x, k, 0.5, **both)
        )
    wrong = bias[rows].clone()
    if rank == 1:
        wrong[3] = math.nan
    results["bias"] = raised(lambda: index.topk(x, 2, bias=wrong))
    nan = x.clone()
    nan[4, 0] = math.nan
    results["nan"] = raised(lambda: index.topk(nan, 2))
    results["broken"] = raised(lambda: index.topk(Broken() if rank else x, 2))
    results["k"] = raised(lambda: index.topk(x, 2 + rank))
    results["w"] = raised(lambda: ShardedTagIndex(torch.full((2, 2), math.nan if rank else 1.0)))
    results["width"] = raised(lambda: ShardedTagIndex(torch.ones(2, 2 + rank)))
    torch.save(results, f"{folder}/{rank}")
    dist.barrier()  # no rank closes its sockets while another still reads
    dist.destroy_process_group()


def test_two_processes(tmp_path):
    mp.spawn(worker, args=(str(tmp_path),), nprocs=2)
    first, second = (torch.load(tmp_path / str(rank), weights_only=True) for rank in (0, 1))
    assert (first.pop("offset"), second.pop("offset")) == (0, SIZES[0])
    assert first == second, "both ranks see the same answers and errors"
    assert first["len"] == sum(SIZES)
    assert all(first[name] is True for name in first if name[:5] in ("plain", "shard"))
    assert "rank 1: bias has a NaN for category 3" in first["bias"]
    assert "row 4 " in first["nan"]
    assert "rank 1: RuntimeError: out of pages" in first["broken"], "no rank waits for another"
    assert "[[7, 2], [7, 3]]" in first["k"]
    assert "rank 1: w has a NaN" in first["w"]
    assert "widths [2, 3]" in first["width"]
