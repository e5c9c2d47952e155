"""The compiled part. Addresses are integers; strides count elements. Use pvp_fast.topk and
pvp_fast.losses instead."""

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
    device: int,
    stream: int,
    dtype: str,
) -> None: ...
def topk_cuda_parts(dtype: str, rows: int, categories: int) -> int: ...
def loss(
    products: int,
    rows: int,
    columns: int,
    row_factor: int,
    column_factor: int,
    scale: float,
    bias: float,
    dense: int,
    label_stride: int,
    partial: bool,
    offsets: int,
    indices: int,
    first: int,
    weight: int,
    kind: str,
    gamma_pos: float,
    gamma_neg: float,
    clip: float,
    eps: float,
    detach: bool,
    alpha: float,
    gamma: float,
    margin: float,
    threads: int,
    isa: str,
    sums: int,
    scratch: int,
) -> None: ...
def project(
    gradients: int,
    gradients_half: bool,
    rows_of: int,
    rows_half: bool,
    inverse: int,
    rows: int,
    width: int,
    factor: float,
    threads: int,
    isa: str,
) -> None: ...
def cuda_status() -> str: ...
def isas() -> list[str]: ...
def build_info() -> dict[str, Any]: ...
