"""Graphs for other programs, and the callable in the form of transformers' pipelines."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from support.artifacts import NAMES

from pvp_fast import Tagger
from pvp_fast.cli import run
from pvp_fast.demo import demo_set
from pvp_fast.errors import ImageError, InputError
from pvp_fast.pictures import open_image
from pvp_fast.tagging.export import TaggerModule, export


@pytest.fixture(scope="module")
def photos() -> list[Path]:
    return sorted(demo_set().glob("*.jpg"))[:5]


@pytest.fixture(scope="module")
def pixels(tagger: Tagger, photos: list[Path]) -> torch.Tensor:
    return torch.stack([tagger.backbone.preprocess(open_image(path)) for path in photos])


@pytest.fixture(scope="module")
def right(tagger: Tagger, pixels: torch.Tensor) -> np.ndarray:
    """(B, C) probabilities by the tagger itself."""
    z, _ = tagger.encode(pixels)
    rows = tagger.tag_features(z, top_k=None, threshold=0.0)
    table = np.zeros((len(rows), len(tagger.artifact.vocabulary.names)), np.float32)
    for row, tags in zip(table, rows, strict=True):
        for tag in tags:
            row[tag.index] = tag.score
    return table


def check_metadata(text: str, tagger: Tagger) -> None:
    found = json.loads(text)
    assert found["labels"] == list(NAMES)
    assert found["thresholds"] == tagger.artifact.head.thresholds.tolist()
    assert found["preprocess"]["size"] == tagger.backbone.preprocess.size


def test_the_module_tags_as_the_tagger(tagger: Tagger, pixels: torch.Tensor, right) -> None:
    module = TaggerModule(tagger)
    np.testing.assert_allclose(module(pixels).numpy(), right, atol=2e-5)
    assert not any(p.requires_grad for p in module.parameters())
    before = tagger.artifact.head.platt.clone()
    module.intercept.zero_()
    assert torch.equal(tagger.artifact.head.platt, before)


def test_torch_export(
    artifact: Path, tagger: Tagger, pixels: torch.Tensor, right, tmp_path: Path
) -> None:
    path = tmp_path / "tagger.pt2"
    assert run(["export", str(artifact), str(path)]) == 0
    extra = {"pvp_fast": ""}
    program = torch.export.load(path, extra_files=extra)
    check_metadata(extra["pvp_fast"], tagger)
    for size in (1, 2, 5):  # any batch
        found = program.module()(pixels[:size])
        np.testing.assert_allclose(found.detach().numpy(), right[:size], atol=2e-5)
    assert [p.name for p in tmp_path.iterdir()] == ["tagger.pt2"]


def test_onnx(artifact: Path, tagger: Tagger, pixels: torch.Tensor, right, tmp_path: Path) -> None:
    pytest.importorskip("onnx")
    pytest.importorskip("onnxscript")
    runtime = pytest.importorskip("onnxruntime")
    path = tmp_path / "tagger.onnx"
    assert run(["export", str(artifact), str(path)]) == 0
    session = runtime.InferenceSession(path, providers=["CPUExecutionProvider"])
    check_metadata(session.get_modelmeta().custom_metadata_map["pvp_fast"], tagger)
    for size in (1, 2, 5):
        (found,) = session.run(["probabilities"], {"pixels": pixels[:size].numpy()})
        np.testing.assert_allclose(found, right[:size], atol=5e-5)


def test_weights_over_two_gib_are_a_second_file(
    artifact: Path,
    tagger: Tagger,
    pixels: torch.Tensor,
    right,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pytest.importorskip("onnx_ir")
    runtime = pytest.importorskip("onnxruntime")
    monkeypatch.setattr("pvp_fast.tagging.export._ONE_FILE", 1 << 20)
    path = tmp_path / "new" / "tagger.onnx"
    assert run(["export", str(artifact), str(path)]) == 0
    weights = f"tagger.onnx.{tagger.artifact.version}.data"
    assert sorted(p.name for p in path.parent.iterdir()) == ["tagger.onnx", weights]
    assert path.stat().st_size < 1 << 20 < path.with_name(weights).stat().st_size
    session = runtime.InferenceSession(path, providers=["CPUExecutionProvider"])
    check_metadata(session.get_modelmeta().custom_metadata_map["pvp_fast"], tagger)
    (found,) = session.run(["probabilities"], {"pixels": pixels.numpy()})
    np.testing.assert_allclose(found, right, atol=5e-5)


def test_another_ending_is_refused(tagger: Tagger, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="pt2 or"):
        export(tagger, tmp_path / "tagger.pt")
    assert not list(tmp_path.iterdir())


def test_as_a_pipeline_of_transformers(tagger: Tagger, photos: list[Path]) -> None:
    one = tagger(photos[0], threshold=0.0, top_k=2)
    assert len(one) == 2
    assert one[0].keys() == {"label", "score"}
    assert one[0]["score"] >= one[1]["score"]
    several = tagger([str(path) for path in photos], threshold=0.0, top_k=2)
    assert len(several) == len(photos)
    assert [d["label"] for d in several[0]] == [d["label"] for d in one]
    assert several[0][0]["score"] == pytest.approx(one[0]["score"], abs=1e-5)
    assert tagger([photos[0]], threshold=0.0, top_k=2) == [one]
    assert tagger([]) == []
    with pytest.raises(ImageError):
        tagger([photos[0], b"no image"])
