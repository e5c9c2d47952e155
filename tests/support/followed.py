"""Which files of the package a call of a loss goes through, as a reader of it would."""

from __future__ import annotations

import sys
from pathlib import Path
from types import FrameType
from typing import Any

import torch

import pvp_fast
from pvp_fast.losses import asl_loss

PACKAGE = Path(pvp_fast.__file__).parent


def files_of_asl_loss(backend: str, regime: str = "auto", categories: int = 300) -> set[str]:
    """Of one forward and backward, every gradient with it, as "losses/asl" or "kernels/entrywise".

    Counted is what is executed, however shortly; packages' ``__init__`` do nothing but import.
    """
    torch.manual_seed(0)
    x, w = (torch.randn(n, 12, requires_grad=True) for n in (9, categories))
    scale = torch.tensor(9.0, requires_grad=True)
    weight = torch.rand(categories, requires_grad=backend != "native")
    y = torch.rand(9, categories) < 0.1
    ran: set[str] = set()

    def note(frame: FrameType, event: str, _argument: Any) -> None:
        if event == "call":
            ran.add(frame.f_code.co_filename)

    options: dict[str, Any] = {"scale": scale, "weight": weight, "backend": backend}
    options["regime"] = regime
    asl_loss(x, w, y, **options)  # what is imported late is imported
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        sys.setprofile(note)
        asl_loss(x, w, y, **options).backward()
    finally:
        sys.setprofile(None)
        torch.set_num_threads(threads)
    kernels = PACKAGE.parent / "kernels"  # of an editable installation
    names = set()
    for path in map(Path, ran):
        root = PACKAGE.parent if path.is_relative_to(kernels) else PACKAGE
        if path.is_relative_to(root):
            names.add(path.relative_to(root).with_suffix("").as_posix())
    return names - {"__init__", "losses/__init__"}
