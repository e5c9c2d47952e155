"""The compiled part. Addresses are integers; strides count elements. Use pvp_fast.topk instead."""

from typing import Any

LANES: int
INT8_STATS: int  # rows of LANES words after the steps of an int8 panel
INT8_WIDTH: int  # most width for int8
CUDA_MAX_K: int  # only where build_info()["cuda"] names a compiler

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
    dtype: str = "float32",
    vectors: int = 0,
    centre: int = 0,
) -> int: ...
def topk_cuda(
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
    scores: int,
    indices: int,
    counts: int,
    part_values: int,
    part_categories: int,
    nan_row: int,
    device: int,
    stream: int,
) -> None: ...
def topk_cuda_parts(rows: int, categories: int) -> int: ...
def cuda_status() -> str: ...
def isas() -> list[str]: ...
def build_info() -> dict[str, Any]: ...
