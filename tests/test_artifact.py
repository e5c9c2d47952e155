"""What an artifact folder holds, and how damage to it is found."""

from __future__ import annotations

import dataclasses
import json
from hashlib import sha256
from pathlib import Path

import pytest
import torch
from safetensors.torch import save
from support.artifacts import every_tensor, make

from pvp_fast.artifact import MANIFEST, TENSORS, TRAINING, Artifact, TrainingState
from pvp_fast.errors import ArtifactError, InputError
from pvp_fast.modules.scoring import Head, LocalBranch

LOCAL = pytest.mark.parametrize("local", [False, True])


def check_same(found: Artifact, expected: Artifact) -> None:
    assert found.version == expected.version
    assert found.vocabulary.names == expected.vocabulary.names
    assert (found.config, found.metrics) == (expected.config, expected.metrics)
    have, want = every_tensor(found), every_tensor(expected)
    assert set(have) == set(want)
    for name, value in want.items():
        assert torch.equal(have[name], value), name


@LOCAL
def test_a_saved_artifact_loads_with_the_same_bits(tmp_path: Path, local: bool) -> None:
    artifact = make(local=local)
    artifact.save(tmp_path / "x")
    check_same(Artifact.load(tmp_path / "x"), artifact)


def test_saving_over_another_leaves_only_the_new(tmp_path: Path) -> None:
    make(0).save(tmp_path)
    make(1).save(tmp_path)
    assert Artifact.load(tmp_path).version == make(1).version != make(0).version
    assert len(list(tmp_path.iterdir())) == 3
    check_same(Artifact.load(tmp_path), make(1))


def test_tagging_reads_no_training_state(tmp_path: Path) -> None:
    """Not one byte of it: the file may even be gone."""
    artifact = make()
    artifact.save(tmp_path)
    (path,) = tmp_path.glob(f"*{TRAINING}")
    payload = path.read_bytes()
    path.unlink()
    loaded = Artifact.load(tmp_path)
    assert loaded.version == artifact.version
    z = artifact.head.adapter.original
    assert torch.equal(loaded.head.cosines(z), artifact.head.cosines(z))
    with pytest.raises(ArtifactError, match=f"{TRAINING} is missing"):
        _ = loaded.training
    path.write_bytes(payload)
    assert torch.equal(loaded.training.pixels, artifact.training.pixels)


def test_a_loaded_artifact_saves_the_training_state_it_has_not_read(tmp_path: Path) -> None:
    make().save(tmp_path / "a")
    Artifact.load(tmp_path / "a").save(tmp_path / "b")
    check_same(Artifact.load(tmp_path / "b"), make())
    again = Artifact.load(tmp_path / "a")
    again.save(tmp_path / "a")  # over itself
    check_same(Artifact.load(tmp_path / "a"), make())
    # A state that another artifact has replaced cannot be read: it is not left out in silence.
    late = Artifact.load(tmp_path / "a")
    make(1).save(tmp_path / "a")
    with pytest.raises(ArtifactError, match="missing"):
        late.save(tmp_path / "c")
    assert not (tmp_path / "c").exists()


def test_an_artifact_may_have_no_training_state(tmp_path: Path) -> None:
    bare = dataclasses.replace(make(), state=None)
    bare.save(tmp_path)
    assert len(list(tmp_path.iterdir())) == 2
    loaded = Artifact.load(tmp_path)
    assert loaded.version == make().version  # it names what tags
    with pytest.raises(ArtifactError, match="no training state"):
        _ = loaded.training


def test_the_version_covers_what_decides_a_tag_and_nothing_else() -> None:
    artifact = make(local=True)
    head, old = artifact.head, artifact.training
    assert head.local is not None
    branch = head.local
    others = [
        dataclasses.replace(head, thresholds=head.thresholds.flip(0)),
        dataclasses.replace(head, platt=head.platt + 1),
        dataclasses.replace(head, local=None),
        dataclasses.replace(head, local=LocalBranch(branch.vectors, branch.weight, torch.ones(1))),
        make(1, local=True).head,
    ]
    versions = {dataclasses.replace(artifact, head=other).version for other in others}
    versions.add(
        dataclasses.replace(artifact, backbone={**artifact.backbone, "fingerprint": ""}).version
    )
    assert len(versions | {artifact.version}) == len(others) + 2
    state = dataclasses.replace(old, pixels=old.pixels + 1)
    assert dataclasses.replace(artifact, state=state, config={}).version == artifact.version


@LOCAL
def test_folders_of_format_1_are_read(tmp_path: Path, local: bool) -> None:
    """One file with every tensor, as it was before: written here by hand."""
    artifact = make(local=local)
    head, training = artifact.head, artifact.training
    tensors = {k: v for k, v in vars(training).items() if v is not None}
    for name, value in head.adapter.state_dict().items():
        tensors[name if name in ("original", "text", "visual") else f"adapter.{name}"] = value
    tensors |= {"platt": head.platt, "thresholds": head.thresholds}
    if head.local is not None:
        tensors |= {
            "local": head.local.vectors,
            "local_weight": head.local.weight,
            "local_temperature": head.local.temperature,
        }
    payload = save(tensors)
    manifest = {
        "format": 1,
        "tensors": "0123456789abcdef.artifact.safetensors",
        "sha256": sha256(payload).hexdigest(),
        "vocabulary": artifact.vocabulary.to_dict(),
        "backbone": artifact.backbone,
        "config": artifact.config,
        "metrics": artifact.metrics,
    }
    (tmp_path / manifest["tensors"]).write_bytes(payload)
    (tmp_path / MANIFEST).write_text(json.dumps(manifest), encoding="utf-8")
    old = Artifact.load(tmp_path)
    check_same(old, artifact)
    old.save(tmp_path)
    assert json.loads((tmp_path / MANIFEST).read_text())["format"] == 2
    assert len(list(tmp_path.iterdir())) == 3
    check_same(Artifact.load(tmp_path), artifact)


@pytest.mark.parametrize("ending", [TENSORS, TRAINING])
def test_one_flipped_byte_is_found(tmp_path: Path, ending: str) -> None:
    make().save(tmp_path)
    (path,) = tmp_path.glob(f"*{ending}")
    payload = bytearray(path.read_bytes())
    payload[-1] ^= 1
    path.write_bytes(payload)
    with pytest.raises(ArtifactError, match="damaged"):
        _ = Artifact.load(tmp_path).training


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("format", 99),
        ("format", None),
        ("tensors", "../elsewhere"),
        ("tensors", {"file": "../elsewhere", "sha256": ""}),
        ("training", {"file": "../elsewhere", "sha256": ""}),
        ("training", {}),
        ("vocabulary", 3),
    ],
)
def test_a_changed_manifest_is_refused(tmp_path: Path, key: str, value: object) -> None:
    make().save(tmp_path)
    manifest = json.loads((tmp_path / MANIFEST).read_text())
    (tmp_path / MANIFEST).write_text(json.dumps({**manifest, key: value}))
    with pytest.raises(ArtifactError):
        Artifact.load(tmp_path)


def test_what_does_not_fit_is_named(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match=MANIFEST):
        Artifact.load(tmp_path)
    good = make()
    with pytest.raises(InputError, match="thresholds has shape"):
        Head(good.head.adapter, good.head.platt, torch.ones(2))
    with pytest.raises(ArtifactError, match="2 categories of width 8"):
        Artifact(good.vocabulary, good.backbone, good.head.take([0, 1]))
    few = TrainingState(torch.ones(2, 8), torch.ones(2, 1, 3, 4, 4), torch.ones(2, 6))
    with pytest.raises(ArtifactError, match="2 categories, the vocabulary 3"):
        _ = dataclasses.replace(good, state=few).training
    both = make(local=True)
    with pytest.raises(ArtifactError, match="local branch"):
        _ = dataclasses.replace(both, state=good.training).training


def test_another_backbone_is_refused() -> None:
    make().check_backbone("ab" * 32)
    with pytest.raises(ArtifactError, match="tiny"):
        make().check_backbone("cd" * 32)
