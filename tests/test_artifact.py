"""What an artifact folder holds, and how damage to it is found."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path

import pytest
import torch
from support.artifacts import make
from torch.nn import functional as F

from pvp_fast.artifact import MANIFEST, TENSORS, Artifact, probability
from pvp_fast.errors import ArtifactError
from pvp_fast.info import describe_artifact


def test_a_saved_artifact_loads_with_the_same_bits(tmp_path: Path) -> None:
    artifact = make()
    artifact.save(tmp_path / "x")
    loaded = Artifact.load(tmp_path / "x")
    assert loaded.version == artifact.version
    assert loaded.vocabulary.names == artifact.vocabulary.names
    assert (loaded.config, loaded.metrics) == ({"a": 1}, {"m": 2.0})
    assert set(loaded.tensors) == set(artifact.tensors)
    for name, value in artifact.tensors.items():
        assert torch.equal(loaded.tensors[name], value), name
    x = F.normalize(torch.ones(2, 8), dim=-1)
    with torch.no_grad():
        assert torch.equal(loaded.adapter()(x), artifact.adapter()(x))


def test_saving_over_another_leaves_only_the_new(tmp_path: Path) -> None:
    make(0).save(tmp_path)
    make(1).save(tmp_path)
    assert Artifact.load(tmp_path).version == make(1).version != make(0).version
    assert len(list(tmp_path.iterdir())) == 2


def test_one_flipped_byte_is_found(tmp_path: Path) -> None:
    make().save(tmp_path)
    (path,) = tmp_path.glob(f"*{TENSORS}")
    payload = bytearray(path.read_bytes())
    payload[-1] ^= 1
    path.write_bytes(payload)
    with pytest.raises(ArtifactError, match="damaged"):
        Artifact.load(tmp_path)


@pytest.mark.parametrize(
    ("key", "value"), [("format", 99), ("tensors", "../elsewhere"), ("vocabulary", 3)]
)
def test_a_changed_manifest_is_refused(tmp_path: Path, key: str, value: object) -> None:
    make().save(tmp_path)
    manifest = json.loads((tmp_path / MANIFEST).read_text())
    (tmp_path / MANIFEST).write_text(json.dumps({**manifest, key: value}))
    with pytest.raises(ArtifactError):
        Artifact.load(tmp_path)


def test_missing_files_tensors_and_shapes_are_named(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match=MANIFEST):
        Artifact.load(tmp_path)
    good = make()
    lacking = {k: v for k, v in good.tensors.items() if k != "text"}
    with pytest.raises(ArtifactError, match="'text'"):
        Artifact(good.vocabulary, good.backbone, lacking)
    with pytest.raises(ArtifactError, match="thresholds"):
        Artifact(good.vocabulary, good.backbone, {**good.tensors, "thresholds": torch.ones(2)})


def test_another_backbone_is_refused() -> None:
    make().check_backbone("ab" * 32)
    with pytest.raises(ArtifactError, match="tiny"):
        make().check_backbone("cd" * 32)


def test_probability_is_the_logistic_of_the_line() -> None:
    p = probability(torch.tensor([[0.5, 0.0]]), torch.tensor([[2.0, -1.0], [3.0, 0.0]]))
    torch.testing.assert_close(p, torch.tensor([[0.5, 0.5]]))


def test_a_metric_without_a_value_is_null_in_the_manifest(tmp_path: Path) -> None:
    artifact = dataclasses.replace(make(), metrics={"held_out_map": {"text": math.nan}})
    artifact.save(tmp_path)
    assert "NaN" not in (tmp_path / "artifact.json").read_text(encoding="utf-8")
    assert Artifact.load(tmp_path).metrics == {"held_out_map": {"text": None}}
    assert describe_artifact(tmp_path)["held-out mAP, text"] == "none"
