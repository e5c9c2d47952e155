"""The compiled part. Addresses are integers; strides count elements. Use pvp_fast.topk instead."""

from typing import Any

LANES: int

def pack(
    w: int, categories: int, width: int, row_stride: int, column_stride: int, packed: int
) -> None: ...
def topk(
    x: int,
    rows: int,
    width: int,
    row_stride: int,
    column_stride: int,
    packed: int,
    categories: int,
    k: int,
    threshold: float,
    thresholds: int,
    bias: int,
    scale: float,
    threads: int,
    isa: str,
    scores: int,
    indices: int,
    counts: int,
) -> int: ...
def isas() -> list[str]: ...
def build_info() -> dict[str, Any]: ...
