"""An image tower in 8-bit integers on a CPU, by ONNX Runtime, for processors without fast halves.

The matrices of a transformer become integers once, with a scale for each output; the file lies in
the cache, named by the model's fingerprint. What flows between them gets a scale as it passes. That
scale is one a call, so images go one by one: in a batch each would depend on its neighbours. A
processor without VNNI adds pairs of products in 16 bits, where 8-bit weights overflow: there they
have 7. Texts, regions and whatever needs a gradient stay in float32.
"""

from __future__ import annotations

import os
import tempfile
import threading
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from pvp_fast.errors import BackendError, InputError
from pvp_fast.files import cache_folder

_PRODUCTS = ("Gemm", "MatMul")
_MOST = 1_500_000_000  # weights: protocol buffers end at 2 GiB, and some stay in float32


def require(visual: nn.Module) -> None:
    """Do nothing where this tower can be computed in 8 bits.

    Raises:
        BackendError: the packages are missing.
        InputError: it is convolutional, or too large for one file.
    """
    try:
        import onnx  # noqa: F401
        import onnxruntime  # noqa: F401
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise BackendError(f"precision='int8' ({error}): pip install 'pvp_fast[int8]'") from error
    if any(isinstance(module, nn.BatchNorm2d) for module in visual.modules()):
        raise InputError(
            f"precision='int8': {type(visual).__name__} is convolutional and would gain nothing; "
            "give 'float32' or 'bfloat16'"
        )
    every = sum(weight.numel() for weight in visual.parameters())
    if every > _MOST:
        raise InputError(
            f"precision='int8': {every / 1e9:.1f} billion weights do not fit one ONNX file; give "
            "'float32' or 'bfloat16'"
        )


class Int8Tower:
    """Features (B, D) of pixels, as the tower gives them but for the rounding.

    Args:
        visual: an image tower in float32 on the CPU.
        size: (H, W) of its pixels. name: of its weights, for the cache.
    """

    def __init__(self, visual: nn.Module, size: tuple[int, int], name: str) -> None:
        self._visual, self._size, self._name = visual, size, name
        self._lock = threading.Lock()  # streams meet here, and one of them makes the file
        self._session: Any = None

    def __call__(self, pixels: Tensor) -> Tensor:
        """(B, 3, H, W) float32 -> (B, D) float32."""
        with self._lock:
            if self._session is None:
                self._session = self._opened()
        images = pixels.detach().contiguous().numpy()
        every = [self._session.run(None, {"pixels": image[None]})[0] for image in images]
        return torch.cat([torch.from_numpy(z) for z in every])

    def _opened(self) -> Any:
        import onnxruntime

        bits = 8 if _has_vnni() else 7
        path = cache_folder() / "int8" / f"{self._name[:24]}.{bits}.onnx"
        if not path.exists():
            try:
                path.parent.mkdir(parents=True, exist_ok=True)
                self._quantise(path, bits)
            except OSError as error:
                raise InputError(
                    f"precision='int8': {path} cannot be written ({error.strerror or error}); "
                    "give another folder with PVP_FAST_CACHE"
                ) from error
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1  # streams work side by side
        options.log_severity_level = 3
        return onnxruntime.InferenceSession(str(path), options, ["CPUExecutionProvider"])

    def _quantise(self, path: Path, bits: int) -> None:
        from onnxruntime.quantization import QuantType, quantize_dynamic

        with tempfile.TemporaryDirectory(prefix=".int8.", dir=path.parent) as folder:
            plain, whole = Path(folder) / "float32.onnx", Path(folder) / path.name
            _export(self._visual, self._size, plain)
            quantize_dynamic(
                plain,
                whole,
                op_types_to_quantize=list(_PRODUCTS),
                per_channel=True,
                reduce_range=bits == 7,
                weight_type=QuantType.QInt8,
            )
            os.replace(whole, path)


def _export(visual: nn.Module, size: tuple[int, int], path: Path) -> None:
    """The tower as ONNX in float32, its weights in a file beside it."""
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about operators of torchvision, which is not used
        graph = torch.export.export(
            _Features(visual),
            (torch.zeros(2, 3, *size),),
            dynamic_shapes={"pixels": {0: torch.export.Dim("batch", min=1)}},
        )
        program = torch.onnx.export(
            graph, input_names=["pixels"], output_names=["features"], dynamo=True, verbose=False
        )
    if program is None:
        raise BackendError("torch.onnx.export made no program")
    program.save(path, external_data=True)


class _Features(nn.Module):
    def __init__(self, visual: nn.Module) -> None:
        super().__init__()
        self.visual = visual

    def forward(self, pixels: Tensor) -> Tensor:
        features = self.visual(pixels)
        pooled: Tensor = features[0] if isinstance(features, tuple) else features  # CoCa: tokens
        return pooled


def _has_vnni() -> bool:
    able = torch.cpu.get_capabilities()
    if able.get("architecture") not in ("x86_64", "AMD64"):
        return True  # Arm's products do not saturate
    return bool(able.get("avx512_vnni") or able.get("avx_vnni"))
