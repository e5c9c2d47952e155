"""The compiled part: use pvp_fast.topk and pvp_fast.losses instead.

Arrays show their memory by the buffer protocol, for example NumPy arrays; None is one left out. Of
CUDA memory an address stands for it. ValueError says what an argument must look like.
"""

from collections.abc import Mapping
from typing import Any

CUDA_MAX_K: int

def pack(*, w: object, panels: object) -> None: ...
def encode_int8(*, w: object, centre: object, words: object) -> None: ...
def topk(
    *,
    x: object,
    panels: object,
    categories: int,
    threshold: float,
    thresholds: object | None,
    bias: object | None,
    scale: float,
    scores: object,
    indices: object,
    counts: object,
    threads: int,
    vectors: object | None = None,
    centre: object | None = None,
) -> int: ...
def topk_cuda(
    *,
    x: int,
    rows: int,
    width: int,
    row_stride: int,
    column_stride: int,
    panels: int,
    dtype: str,
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
) -> None: ...
def topk_cuda_parts(*, dtype: str, rows: int, categories: int) -> int: ...
def loss(
    *,
    products: object,
    kind: str,
    settings: Mapping[str, float],
    scale: float,
    bias: float,
    threads: int,
    labels: object | None = None,
    offsets: object | None = None,
    indices: object | None = None,
    first: int = 0,
    x_inverse_norm: object | None = None,
    w_inverse_norm: object | None = None,
    weight: object | None = None,
) -> tuple[float, float, float]: ...
def infonce(
    *,
    products: object,
    scale: float,
    first: int,
    threads: int,
    row_top: object,
    row_total: object,
    column_top: object,
    column_total: object,
    aimed: object,
    x_inverse_norm: object | None = None,
    w_inverse_norm: object | None = None,
    targets: object | None = None,
    row_share: object | None = None,
    column_share: object | None = None,
) -> None: ...
def infonce_gradient(
    *,
    products: object,
    scale: float,
    first: int,
    threads: int,
    row_top: object,
    row_inverse: object,
    column_top: object,
    column_inverse: object,
    gradients: object,
    x_inverse_norm: object | None = None,
    w_inverse_norm: object | None = None,
    targets: object | None = None,
    row_share: object | None = None,
    column_share: object | None = None,
) -> float: ...
def pool(
    *,
    products: object,
    offsets: object,
    temperature: float,
    threads: int,
    pooled: object,
    top: object,
    inverse_total: object,
    z_inverse_norm: object | None = None,
    w_inverse_norm: object | None = None,
) -> None: ...
def pool_gradient(
    *,
    products: object,
    offsets: object,
    temperature: float,
    threads: int,
    pooled: object,
    top: object,
    inverse_total: object,
    g: object,
    gradients: object,
    z_inverse_norm: object | None = None,
    w_inverse_norm: object | None = None,
) -> float: ...
def ascends(*, offsets: object, indices: object, categories: int) -> bool: ...
def project(
    *, gradients: object, t: object, inverse_norm: object | None, factor: float, threads: int
) -> None: ...
def norms(
    *,
    t: object,
    norms: object,
    inverse: object,
    least: float,
    most: float,
    known: bool,
    threads: int,
) -> bool: ...
def cuda_status() -> str: ...
def isa(dtype: str = "") -> str: ...
def isas() -> list[str]: ...
def build_info() -> dict[str, Any]: ...
