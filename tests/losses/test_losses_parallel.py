"""Losses on two processes, over category shards and in DDP, equal the single-process ones."""

from __future__ import annotations

import gc

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
import torch.nn.functional as F
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.checkpoint import checkpoint

from pvp_fast import losses
from pvp_fast.errors import InputError
from pvp_fast.losses import CSRLabels, parallel
from pvp_fast.losses.parallel import ClassShards

B, C, D = 9, 11, 6
SETTINGS = {
    "asl": {"gamma_pos": 0.5, "gamma_neg": 3.0, "detach_focal_weight": False},
    "bce": {"reduction": "sum"},
    "focal": {"reduction": "batchmean"},
    "siglip": {},
    "ranking": {"margin": 0.7},
    "clip": {},
}
SIZES = [(4, 7), (11, 0)]


def problem(kind, dtype=torch.float64):
    generator = torch.Generator().manual_seed(3)
    rows = C if kind == "clip" else B
    x, w = (torch.randn(n, D, generator=generator, dtype=dtype) for n in (rows, C))
    positive = torch.rand(rows, C, generator=generator) < 0.3
    positive[0], positive[1] = False, True
    tensors = {
        "x": x,
        "w": w,
        "scale": torch.tensor(3.0, dtype=dtype),
        "bias": torch.tensor(-0.4, dtype=dtype),
        "weight": torch.rand(C, generator=generator, dtype=dtype) + 0.5,
    }
    if kind in ("clip", "ranking"):
        del tensors["bias"]  # it cancels
    if kind == "clip":
        del tensors["weight"]
    return {name: value.requires_grad_() for name, value in tensors.items()}, positive


def lists(positive, repeat=False):
    offsets = F.pad(positive.sum(1).cumsum(0), (1, 0))
    indices = positive.nonzero()[:, 1]
    if repeat:  # every category named twice
        offsets, indices = offsets * 2, indices.repeat_interleave(2)
    return CSRLabels(offsets, indices)


def evaluate(loss, tensors, arguments, settings):
    """Loss and the gradient of every tensor."""
    rest = {name: value for name, value in tensors.items() if name not in ("x", "w")}
    value = loss(tensors["x"], tensors["w"], *arguments, **rest, **settings)
    return [value.detach(), *torch.autograd.grad(value, list(tensors.values()))]


def shard(tensors, rows):
    return {
        name: value.detach()[rows].requires_grad_() if name in ("w", "weight") else value
        for name, value in tensors.items()
    }


def difference(kind, sizes, labels):
    """Largest difference between the sharded and the single-process loss and gradients."""
    tensors, positive = problem(kind)
    shards = ClassShards(sizes[dist.get_rank()])
    rows = slice(shards.first, shards.first + shards.n_local)
    whole, local = [], []
    if kind != "clip":
        whole = [positive if labels == "dense" else lists(positive)]
        local = [positive[:, rows] if labels == "dense" else lists(positive, labels == "twice")]
    want = evaluate(getattr(losses, f"{kind}_loss"), tensors, whole, SETTINGS[kind])
    got = evaluate(
        getattr(shards, f"{kind}_loss"), shard(tensors, rows), local, dict(SETTINGS[kind])
    )
    names = ["loss", *tensors]
    errors = [
        (have - (full[rows] if name in ("w", "weight") else full)).abs()
        for name, full, have in zip(names, want, got, strict=True)
    ]
    return max(float(error.max()) for error in errors if error.numel())


def raised(work):
    try:
        work()
    except InputError as error:
        return str(error)
    return ""


class Classifier(nn.Module):
    """A fused loss with class vectors, scale and bias that learn."""

    def __init__(self, kind, wrapped):
        super().__init__()
        tensors, _ = problem(kind, torch.float32)
        self.kind, self.wrapped = kind, wrapped
        # In one order: DDP pairs the parameters of its processes by their places.
        for name in [n for n in ("w", "scale", "bias") if n in tensors]:
            setattr(self, name, nn.Parameter(tensors[name].detach().clone()))

    def forward(self, x, y):
        rest = {name: value for name, value in self.named_parameters() if name != "w"}
        fused = getattr(losses, f"{self.kind}_loss")

        def run(x, w):
            return fused(x, w, y, regime="chunked", **rest)

        with torch.autocast("cpu", torch.bfloat16, enabled=self.wrapped == "autocast"):
            if self.wrapped == "checkpoint":
                return checkpoint(run, x, self.w, use_reentrant=False)
            return run(x, self.w)


def ddp_difference(kind, wrapped):
    """Largest difference of a gradient in DDP, a half of the rows each, from one process's."""
    tensors, positive = problem(kind, torch.float32)
    x = tensors["x"].detach()[:8]
    alone, shared = Classifier(kind, ""), DistributedDataParallel(Classifier(kind, wrapped))
    alone(x, positive[:8]).backward()
    half = slice(4 * dist.get_rank(), 4 * dist.get_rank() + 4)
    shared(x[half], positive[:8][half]).backward()
    pairs = zip(alone.parameters(), shared.parameters(), strict=True)
    return max(float((a.grad - s.grad).abs().max() / a.grad.abs().max()) for a, s in pairs)


def worker(rank, folder):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/init", rank=rank, world_size=2)
    results = {}
    # Few scores a chunk, so that every loss runs in several; then all at once.
    for chunk in (20, parallel.CHUNK):
        parallel.CHUNK = chunk
        for sizes in SIZES:
            for kind in SETTINGS:
                forms = {"clip": [""], "ranking": ["lists", "twice"]}.get(kind, ["dense", "lists"])
                for labels in forms:
                    name = f"{kind} {labels} {sizes} {chunk}"
                    results[name] = difference(kind, sizes, labels)
    in_ddp = {
        f"{kind} {wrapped}": ddp_difference(kind, wrapped)
        for kind in SETTINGS
        if kind != "clip"  # its pairs are those of the batch a process has
        for wrapped in ("", "checkpoint", "autocast")
    }
    shards = ClassShards(2)
    x, w = torch.randn(3, D), torch.randn(2, D)
    positive = torch.zeros(3, 2, dtype=torch.bool)
    outside = CSRLabels(torch.tensor([0, 1, 1, 1]), torch.tensor([4]))
    errors = {
        "shard": raised(lambda: shards.asl_loss(x, torch.randn(3, D), positive)),
        "width": raised(lambda: shards.bce_loss(x[:, 1:], w, positive)),
        "outside": raised(lambda: shards.siglip_loss(x, w, outside)),
        "dense": raised(lambda: shards.ranking_loss(x, w, positive)),
        "pairs": raised(lambda: shards.clip_loss(x, w)),
        "empty": raised(lambda: ClassShards(0)),
    }
    saved = {"differences": results, "ddp": in_ddp, "errors": errors}
    torch.save(saved, f"{folder}/{rank}.pt")
    gc.collect()  # a DDP module that outlives its group aborts the process at its end
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def outcome(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ranks")
    mp.spawn(worker, (str(folder),), nprocs=2)
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(2)]


def test_equal_to_one_process(outcome):
    for rank in outcome:
        # 4 entrywise losses x 2 label forms + ranking x 2 + clip, for two sizes and two chunks.
        assert len(rank["differences"]) == 11 * 2 * 2
        for name, error in rank["differences"].items():
            assert error < 1e-12, name  # NaN is not


def test_fused_losses_in_ddp_have_the_gradients_of_one_process(outcome):
    for rank in outcome:
        assert len(rank["ddp"]) == 5 * 3
        for name, error in rank["ddp"].items():
            assert error < 1e-5, name


def test_errors_name_the_argument(outcome):
    expected = {
        "shard": "w is (3, 6); this rank's shard is (2, D)",
        "width": "x is (3, 5)",
        "outside": "y.indices run from 4 to 4",
        "dense": "needs CSRLabels",
        "pairs": "x has 3 rows and the shards 4",
        "empty": "[0, 0]",
    }
    for rank in outcome:
        for name, text in expected.items():
            assert text in rank["errors"][name], name


def test_without_a_process_group():
    with pytest.raises(InputError, match="init_process_group"):
        ClassShards(3)
