"""A tagger as one graph of tensors, for programs that run without this package.

The graph takes normalised pixels and gives calibrated probabilities. Names, thresholds and what
makes pixels of a photo travel inside the file, as JSON under the key ``pvp_fast``.
"""

from __future__ import annotations

import copy
import json
import os
import tempfile
import warnings
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pvp_fast.errors import BackendError, InputError
from pvp_fast.files import atomic_write, sync_file, sync_folder
from pvp_fast.modules.adapters import ResidualAdapter
from pvp_fast.tagging.tagger import Tagger

METADATA = "pvp_fast"
FORMATS = (".pt2", ".onnx")
# Protocol buffers end at 2 GiB; the graph itself and its names need some of that.
_ONE_FILE = (2 << 30) - (64 << 20)


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
        "input": "pixels: (B, 3, height, width) float32, RGB in [0, 1], minus mean, over std",
        "output": "probabilities: (B, labels) float32",
    }


def export(tagger: Tagger, path: str | os.PathLike[str]) -> None:
    """Write a ``.pt2`` (torch.export) or ``.onnx`` file whose batch may have any size.

    ``torch.export.load(path, extra_files={"pvp_fast": ""})`` gives the first back, any ONNX
    runtime the second, with the metadata in the model's ``metadata_props``. One ONNX file holds 2
    GiB at most: the weights of a larger tower go into a second one beside it, named by file and
    artifact, ``tagger.onnx.0123456789ab.data``; the two belong together.

    Raises:
        InputError: another ending, or an artifact with a local branch.
        BackendError: ``.onnx`` without the packages it needs.
        OSError: it cannot be written.
    """
    target = Path(path)
    if target.suffix not in FORMATS:
        raise InputError(f"path {str(path)!r} ends in {target.suffix!r}; use .pt2 or .onnx")
    module = TaggerModule(tagger)
    example = torch.zeros(2, 3, *tagger.backbone.image_size)
    text = json.dumps(metadata(tagger), ensure_ascii=False)
    if target.suffix == ".pt2":
        with atomic_write(target) as stream:
            torch.export.save(_graph(module, example), stream, extra_files={METADATA: text})
        return
    program = _onnx(module, example, text)
    tensors = (*module.parameters(), *module.buffers())
    if sum(tensor.nbytes for tensor in tensors) > _ONE_FILE:
        _two_files(program, target, f"{target.name}.{tagger.artifact.version}.data")
    else:
        _one_file(program, target)


def _graph(module: TaggerModule, example: Tensor) -> torch.export.ExportedProgram:
    dynamic = {"pixels": {0: torch.export.Dim("batch", min=1)}}
    with torch.no_grad():
        return torch.export.export(module, (example,), dynamic_shapes=dynamic)


def _onnx(module: TaggerModule, example: Tensor, text: str) -> torch.onnx.ONNXProgram:
    try:
        import onnx  # noqa: F401  (torch.onnx needs both, and says so late)
        import onnxscript  # noqa: F401
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
    program.model.metadata_props[METADATA] = text
    return program


def _one_file(program: torch.onnx.ONNXProgram, target: Path) -> None:
    import onnx

    model = program.model_proto
    onnx.checker.check_model(model)
    with atomic_write(target) as stream:
        stream.write(model.SerializeToString())


def _two_files(program: torch.onnx.ONNXProgram, target: Path, data: str) -> None:
    """The graph in one file and the weights in another, which is in place first."""
    import onnx
    import onnx_ir

    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{target.name[:32]}.", dir=target.parent) as folder:
        written = Path(folder) / target.name
        onnx_ir.save(program.model, written, external_data=data)
        onnx.checker.check_model(written)
        for name in (data, target.name):
            with open(written.with_name(name), "rb") as stream:
                sync_file(stream.fileno())
            os.replace(written.with_name(name), target.with_name(name))
    sync_folder(target.parent)
