"""A tagger as one graph of tensors, for programs that run without this package.

The graph takes normalised pixels and gives calibrated probabilities. Names, thresholds and what
makes pixels of a photo travel inside the file, as JSON under the key ``pvp_fast``.
"""

from __future__ import annotations

import copy
import io
import json
import os
import warnings
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pvp_fast.errors import BackendError, InputError
from pvp_fast.files import atomic_write
from pvp_fast.modules.adapters import ResidualAdapter
from pvp_fast.tagging.tagger import Tagger

METADATA = "pvp_fast"
FORMATS = (".pt2", ".onnx")


class TaggerModule(nn.Module):
    """Image tower, query adapter and calibrated class vectors in one module, on the CPU in float32.

    Args:
        tagger: its weights are copied.

    Raises:
        InputError: the artifact has a local branch, whose pooling is no standard operator.
    """

    visual: nn.Module
    query_adapter: ResidualAdapter
    vectors: Tensor
    intercept: Tensor

    def __init__(self, tagger: Tagger) -> None:
        super().__init__()
        artifact, backbone = tagger.artifact, tagger.backbone
        if artifact.has_local:
            raise InputError(
                "the artifact has a local branch, which cannot be exported; train without --local"
            )
        tower: Any = backbone.model.visual
        self.visual = copy.deepcopy(tower).float().cpu().requires_grad_(False)
        head = artifact.head.to("cpu")
        self.query_adapter = head.adapter.query_adapter.requires_grad_(False)
        vectors, intercept, _ = head.linear()
        self.register_buffer("vectors", vectors)
        self.register_buffer("intercept", intercept)
        self.eval()

    def forward(self, pixels: Tensor) -> Tensor:
        """(B, 3, S, S) normalised float32 pixels -> (B, C) probabilities."""
        features = self.visual(pixels)
        if isinstance(features, tuple):  # CoCa: pooled features and tokens
            features = features[0]
        queries = self.query_adapter.queries(F.normalize(features, dim=-1))
        return torch.sigmoid(queries @ self.vectors.T + self.intercept)


def metadata(tagger: Tagger) -> dict[str, Any]:
    """What a program needs beside the graph: labels, thresholds (C,) and the preprocessing."""
    return {
        "version": 1,
        "artifact": tagger.artifact.version,
        "labels": list(tagger.artifact.vocabulary.names),
        "thresholds": tagger.artifact.head.thresholds.tolist(),
        "preprocess": asdict(tagger.backbone.preprocess),
        "input": "pixels: (B, 3, size, size) float32, RGB in [0, 1], minus mean, over std",
        "output": "probabilities: (B, labels) float32",
    }


def export(tagger: Tagger, path: str | os.PathLike[str]) -> None:
    """Write a ``.pt2`` (torch.export) or ``.onnx`` file whose batch may have any size.

    ``torch.export.load(path, extra_files={"pvp_fast": ""})`` gives the first back, any ONNX
    runtime the second, with the metadata in the model's ``metadata_props``.

    Raises:
        InputError: another ending, or an artifact with a local branch.
        BackendError: ``.onnx`` without the packages it needs.
    """
    target = Path(path)
    if target.suffix not in FORMATS:
        raise InputError(f"path {str(path)!r} ends in {target.suffix!r}; use .pt2 or .onnx")
    module = TaggerModule(tagger)
    size = tagger.backbone.preprocess.size
    example = torch.zeros(2, 3, size, size)
    text = json.dumps(metadata(tagger), ensure_ascii=False)
    written = (
        _pt2(module, example, text) if target.suffix == ".pt2" else _onnx(module, example, text)
    )
    with atomic_write(target) as stream:
        stream.write(written)


def _graph(module: TaggerModule, example: Tensor) -> torch.export.ExportedProgram:
    dynamic = {"pixels": {0: torch.export.Dim("batch", min=1)}}
    with torch.no_grad():
        return torch.export.export(module, (example,), dynamic_shapes=dynamic)


def _pt2(module: TaggerModule, example: Tensor, text: str) -> bytes:
    buffer = io.BytesIO()
    torch.export.save(_graph(module, example), buffer, extra_files={METADATA: text})
    return buffer.getvalue()


def _onnx(module: TaggerModule, example: Tensor, text: str) -> bytes:
    try:
        import onnx
        import onnxscript  # noqa: F401  (torch.onnx needs it, and says so late)
    except ImportError as error:
        raise BackendError(
            f"ONNX needs onnx and onnxscript ({error}): pip install 'pvp_fast[onnx]'"
        ) from error
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about operators of torchvision, which is not used
        program = torch.onnx.export(
            _graph(module, example),
            input_names=["pixels"],
            output_names=["probabilities"],
            dynamo=True,
            verbose=False,
        )
    if program is None:
        raise BackendError("torch.onnx.export made no program")
    model = program.model_proto
    onnx.helper.set_model_props(model, {METADATA: text})
    onnx.checker.check_model(model)
    written: bytes = model.SerializeToString()
    return written
