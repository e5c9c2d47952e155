"""In which numbers a frozen model computes: chosen by what multiplies fastest on the device.

Weights are cast once. Autocast would cast frozen ones anew in every call, which costs more than a
slow product. Half the bits are worth it only where the device has products of them, and not on
every CPU that says so: by VDPBF16PS they were twice as fast as float32's on the AMD cores measured
and two thirds as fast on the Xeon, whose AMX units are several times as fast. So a CPU is asked by
a product of a tower's size, once a process. The same holds with a gradient to the input, given the
layers of :mod:`pvp_fast.clip.frozen`. Integers (:mod:`pvp_fast.clip.int8`) are for who asks.
"""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from functools import cache

import torch
from torch import nn
from torch.nn import functional as F

from pvp_fast.clip.int8 import require
from pvp_fast.clip.usual import known
from pvp_fast.errors import InputError
from pvp_fast.threads.streams import limit_this_thread

DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16}
_SMALL = 20_000_000  # weights below which loading, not multiplying, takes the time
_GAIN = 1.3  # what the whole tower keeps of a product's gain is less
_SHAPE = (512, 768, 2304)  # rows, and the attention's input product of a ViT-B


def resolve(precision: str, model: nn.Module) -> str:
    """What a model computes in, where its weights lie: ``auto`` becomes one of the others.

    Raises:
        InputError: no such precision, or one that its device has no arithmetic for.
    """
    device = next(model.parameters()).device
    if precision == "float16" and device.type == "cpu":
        raise InputError("precision='float16': for GPUs; on a CPU use 'bfloat16' or 'float32'")
    if precision == "int8":
        if device.type != "cpu":
            raise InputError(f"precision='int8': for CPUs; on {device} use 'bfloat16' or 'float16'")
        require(model.visual)  # type: ignore[arg-type]
    return _fastest(model, device) if precision == "auto" else known(precision)


def cast(model: nn.Module, precision: str) -> None:
    """Cast the weights in place; convolutional towers then lie with their channels last.

    On a CPU in float32 as well: a third to two thirds more images/s, with and without a gradient.
    """
    if precision in DTYPES:
        model.to(DTYPES[precision])
    last = precision in DTYPES or next(model.parameters()).device.type == "cpu"
    if last and any(isinstance(m, nn.BatchNorm2d) for m in model.modules()):
        model.to(memory_format=torch.channels_last)


def _fastest(model: nn.Module, device: torch.device) -> str:
    if sum(weight.numel() for weight in model.parameters()) < _SMALL:
        return "float32"
    if any(weight.dtype == torch.float64 for weight in model.parameters()):
        return "float32"  # as they are
    if device.type == "cuda":
        native = torch.cuda.is_bf16_supported(including_emulation=False)
        return "bfloat16" if native else "float16"
    if device.type != "cpu" or not _has_bfloat16():
        return "float32"
    return "bfloat16" if bfloat16_gain() >= _GAIN else "float32"


def _has_bfloat16() -> bool:
    able = torch.cpu.get_capabilities()
    return any(able.get(name) for name in ("amx_bf16", "avx512_bf16", "bf16", "arm_bf16"))


@cache
def bfloat16_gain() -> float:
    """How many times as fast one thread multiplies in bfloat16 as in float32 here, measured."""
    with ThreadPoolExecutor(1, initializer=limit_this_thread, initargs=(1,)) as pool:
        return pool.submit(_measure).result()


@torch.no_grad()
def _measure() -> float:
    rows, width, out = _SHAPE
    chance = torch.Generator().manual_seed(0)
    x = torch.randn(rows, width, generator=chance)
    w = torch.randn(out, width, generator=chance)
    best: dict[torch.dtype, float] = {}
    for _ in range(4):  # in turns, so that a busy machine slows both
        for dtype in (torch.float32, torch.bfloat16):
            a, b = x.to(dtype), w.to(dtype)
            start = time.thread_time()
            F.linear(a, b)
            best[dtype] = min(time.thread_time() - start, best.get(dtype, float("inf")))
    return best[torch.float32] / best[torch.bfloat16]
