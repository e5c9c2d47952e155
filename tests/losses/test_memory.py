"""The promise of the fused losses on a CPU: no array of the size of the scores, (B, C), (N, N) of
pairs, or (B, L, C) of regions.

Measured on the process from outside of PyTorch's allocator, so that what the extension takes
counts too: the most that each loss with its gradients adds to the peak of a process of its own.
"""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

ROWS, CATEGORIES = 4096, 10_000
SCORES = 4 * ROWS * CATEGORIES  # bytes

MEASURE = f"""
import json, resource, sys
import torch
from pvp_fast import losses, spatial_softmax_pool

def peak():
    # Not ru_maxrss where it can be helped: a child starts with its parent's.
    try:
        with open("/proc/self/status") as stream:
            return 1024 * next(int(line.split()[1]) for line in stream if line.startswith("VmHWM"))
    except OSError:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

def run(name, rows, categories, backend):
    generator = torch.Generator().manual_seed(0)
    x, w = (torch.randn(n, 8, generator=generator, requires_grad=True) for n in (rows, categories))
    indices = torch.randint(categories, (2 * rows,), generator=generator)
    y = losses.CSRLabels(torch.arange(0, 2 * rows + 1, 2), indices)
    if name == "clip":
        x = torch.randn(2 * rows, 8, generator=generator, requires_grad=True)
        w = torch.randn(2 * rows, 8, generator=generator, requires_grad=True)
        value = losses.clip_loss(x, w, scale=9.0, backend=backend)
    elif name == "pool":
        x = torch.randn(rows // 256 + 1, 196, 8, generator=generator, requires_grad=True)
        value = spatial_softmax_pool(x, w, backend=backend).sum()
    elif backend == "chunked":
        value = losses.chunked_loss(lambda s, t: (s.sigmoid() - t) ** 2, x, w, y, scale=9.0)
    else:
        options = {{}} if backend == "ref" else {{"backend": backend}}
        function = getattr(losses, name + ("_loss_ref" if backend == "ref" else "_loss"))
        value = function(x, w, y, scale=9.0, **options)
    torch.autograd.grad(value, (x, w))

backend, found = sys.argv[1], {{}}
for name in sys.argv[2:]:
    run(name, 64, 64, backend)  # libraries and their threads
    before = peak()
    run(name, {ROWS}, {CATEGORIES}, backend)
    found[name] = peak() - before
print(json.dumps(found))
"""


def taken(backend: str, *names: str) -> dict[str, int]:
    """Bytes that each loss added to the peak of one process."""
    command = [sys.executable, "-c", MEASURE, backend, *names]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found: dict[str, int] = json.loads(done.stdout)
    return found


@pytest.mark.parametrize("backend", ["auto", "native", "torch"])
def test_no_scores_in_memory(backend: str) -> None:
    names = ("asl", "clip", "pool") if backend == "auto" else (
        "bce", "siglip", "focal", "asl", "ranking", "clip", "pool",
    )  # fmt: skip
    for name, size in taken(backend, *names).items():
        assert size < SCORES / 3, f"{name} by {backend} took {size / 2**20:.0f} MiB"


def test_no_scores_in_memory_for_a_loss_of_ones_own() -> None:
    assert taken("chunked", "custom")["custom"] < SCORES / 3


def test_the_measure_sees_scores_in_memory() -> None:
    assert taken("ref", "bce")["bce"] > SCORES
