"""One kernel at a size that fills a GPU, launched three times: what a profiler is pointed at.

``ncu --launch-skip 2 --launch-count 1 -k regex:NAME python benchmarks/profile_kernels.py NAME``
"""

from __future__ import annotations

import argparse
from collections.abc import Callable

import torch


def elementwise() -> Callable[[], object]:
    from pvp_fast.kernels.entrywise import elementwise_loss_

    scores = torch.randn(1024, 20_000, device="cuda")  # 80 MB
    y = torch.rand(scores.shape, device="cuda") < 1e-3
    return lambda: elementwise_loss_(scores, y, "asl")


def pool() -> Callable[[], object]:
    from pvp_fast.kernels.pool import pool_fwd as launch

    z = torch.randn(256, 196, 768, device="cuda").bfloat16()
    w = torch.randn(80, 768, device="cuda").bfloat16()
    heat = torch.full((1,), 50.0, device="cuda")
    return lambda: launch(z, w, None, heat)


def topk() -> Callable[[], object]:
    from pvp_fast import TagIndex

    index = TagIndex(torch.randn(100_000, 512, device="cuda"), "bfloat16")
    x = torch.nn.functional.normalize(torch.randn(64, 512, device="cuda"), dim=1)
    return lambda: index.topk(x, 10, backend="cuda")


KERNELS = {"elementwise": elementwise, "pool": pool, "topk": topk}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("name", choices=KERNELS)
    options = parser.parse_args()
    call = KERNELS[options.name]()
    for _ in range(3):
        call()
    torch.cuda.synchronize()


if __name__ == "__main__":
    main()
