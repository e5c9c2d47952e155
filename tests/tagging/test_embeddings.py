"""Embeddings on disk: resumed, whole or absent, and the same tags as from the pixels."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from support.image_files import encoded, scene

from pvp_fast.cli import run
from pvp_fast.clip.backbone import Backbone
from pvp_fast.demo import demo_set
from pvp_fast.errors import ArtifactError, InputError
from pvp_fast.loaders import ItemSource
from pvp_fast.tagging.embeddings import MANIFEST, EmbeddingStore, embed_images
from pvp_fast.tagging.tagger import Tagger


@pytest.fixture
def backbone(pocket: Backbone) -> Backbone:
    return pocket


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    folder = tmp_path / "in"
    folder.mkdir()
    for number in range(20):
        data = encoded(scene(80, 70, number))
        (folder / f"{number:02d}.jpg").write_bytes(data[:500] if number in (0, 7, 19) else data)
    return folder


def test_a_stopped_run_goes_on_and_nothing_is_twice(
    backbone: Backbone, pictures: Path, tmp_path: Path
) -> None:
    class Stopped(Exception):
        pass

    done = []

    def stop_after(limit: int):
        def progress(listed: int) -> None:
            done.append(listed)
            if listed >= limit:
                raise Stopped

        return progress

    options = {"batch_size": 3, "shard_rows": 4, "regions": True}
    out = tmp_path / "out"
    for limit in (9, 15):
        with pytest.raises(Stopped):
            embed_images(backbone, pictures, out, progress=stop_after(limit), **options)
        assert not EmbeddingStore(out).complete
    store = embed_images(backbone, pictures, out, progress=done.append, **options)
    whole = embed_images(backbone, pictures, tmp_path / "whole", batch_size=3, regions=True)
    assert store.complete
    assert len(store) == 17
    assert [Path(f.key).stem for f in store.failures] == ["00", "07", "19"]
    rows = [
        row for batch in store.batches(2) for row in zip(batch.keys, batch.indices, strict=True)
    ]
    assert rows == [row for b in whole.batches() for row in zip(b.keys, b.indices, strict=True)]
    assert [index for _, index in rows] == [n for n in range(20) if n not in (0, 7, 19)]
    for one, other in zip(store.batches(99), whole.batches(99), strict=False):
        assert torch.equal(one.z, other.z[: len(one.z)])
        assert one.regions is not None
    assert embed_images(backbone, pictures, out, **options).complete
    with pytest.raises(ArtifactError, match="regions"):
        embed_images(backbone, pictures, out)
    with pytest.raises(ArtifactError, match="tile"):
        embed_images(backbone, pictures, out, tile=0.5, **options)


def test_another_source_cannot_finish_the_folder(
    backbone: Backbone, pictures: Path, tmp_path: Path
) -> None:
    def items(name: str, broken: bool) -> Iterator[tuple[str, bytes]]:
        data = encoded(scene(40, 40))
        for number in range(8):
            if broken and number == 6:
                raise ConnectionError("gone")
            yield f"{name}{number}", data

    out = tmp_path / "out"
    with pytest.raises(ConnectionError):
        embed_images(backbone, items("a", True), out, batch_size=2, shard_rows=2)
    with pytest.raises(InputError, match="unchanged"):
        embed_images(backbone, items("b", False), out, batch_size=2, shard_rows=2)
    store = embed_images(backbone, items("a", False), out, batch_size=2, shard_rows=2)
    assert [k for b in store.batches() for k in b.keys] == [f"a{n}" for n in range(8)]


def keys(store: EmbeddingStore, size: int = 1024) -> list[str]:
    """Names of the rows, failures and all, each with a place of its own."""
    rows = [Path(k).name for b in store.batches(size) for k in b.keys]
    indices = [i for b in store.batches(size) for i in b.indices]
    assert len(rows) == len(store) == len(set(indices))
    assert not {f.index for f in store.failures} & set(indices)
    return sorted([*rows, *(Path(f.key).name for f in store.failures)])


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.rglob("*.jpg"))


def vectors(store: EmbeddingStore) -> dict[str, torch.Tensor]:
    return {k: z for b in store.batches(2) for k, z in zip(b.keys, b.z, strict=True)}


def same(one: EmbeddingStore, other: EmbeddingStore) -> bool:
    """Whether they hold the same images, encoded alike up to the batch they were in."""
    mine, yours = vectors(one), vectors(other)
    return mine.keys() == yours.keys() and all(
        torch.allclose(mine[k], yours[k], atol=2e-3) for k in mine
    )


SMALL: dict[str, int] = {"batch_size": 3, "shard_rows": 4}


def test_a_folder_that_has_grown_is_gone_on_with(
    backbone: Backbone, pictures: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    embed_images(backbone, pictures, out, **SMALL)
    before = {path.name: path.stat().st_mtime_ns for path in out.glob("*.safetensors")}
    assert embed_images(backbone, pictures, out, **SMALL).complete
    (pictures / "sub").mkdir()
    for name in ("00a.jpg", "05b.jpg", "zz.jpg", "sub/x.jpg"):  # at the front, amid, at the end
        shutil.copy(pictures / "01.jpg", pictures / name)
    store = embed_images(backbone, [pictures], out, **SMALL)
    assert keys(store, 2) == names(pictures)
    assert (len(store), len(store.failures)) == (21, 3)
    assert all((out / name).stat().st_mtime_ns == stamp for name, stamp in before.items())
    assert same(store, embed_images(backbone, pictures, tmp_path / "whole"))


@pytest.mark.parametrize("how", ["replaced", "touched", "removed", "another source"])
def test_a_source_that_has_changed_is_an_error_or_done_anew(
    backbone: Backbone, pictures: Path, tmp_path: Path, how: str
) -> None:
    out = tmp_path / "out"
    embed_images(backbone, pictures, out, **SMALL)
    source, manifest = pictures, (out / MANIFEST).read_bytes()
    if how == "replaced":
        (pictures / "05.jpg").write_bytes(encoded(scene(90, 30, 99)))
    elif how == "touched":
        os.utime(pictures / "05.jpg", (5, 5))
    elif how == "removed":
        (pictures / "05.jpg").unlink()
        (pictures / "07.jpg").unlink()  # this one had failed: nothing is lost with it
    else:
        source = tmp_path / "other"
        source.mkdir()
        shutil.copy(pictures / "01.jpg", source / "1.jpg")
    with pytest.raises(InputError, match="--redo"):
        embed_images(backbone, source, out, **SMALL)
    assert (out / MANIFEST).read_bytes() == manifest
    store = embed_images(backbone, source, out, redo=True, **SMALL)
    assert store.complete
    assert keys(store, 2) == keys(store) == names(source)
    assert same(store, embed_images(backbone, source, tmp_path / "whole"))
    assert keys(embed_images(backbone, source, out, **SMALL)) == names(source)


def test_failures_are_tried_again_and_damage_is_remembered(
    backbone: Backbone, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    good = (pictures / "01.jpg").read_bytes()
    (pictures / "03.jpg").write_bytes(b"")  # still being copied
    store = embed_images(backbone, pictures, out, **SMALL)
    assert [Path(f.key).stem for f in store.failures] == ["00", "03", "07", "19"]
    again = embed_images(backbone, pictures, out, **SMALL)
    assert keys(again) == names(pictures)
    indices = {Path(f.key).stem: f.index for f in again.failures}
    assert indices["00"] == 0  # not read again
    assert indices["03"] > 19
    forced = embed_images(backbone, pictures, out, retry_failed=True, **SMALL)
    assert all(f.index > 19 for f in forced.failures)
    for name in ("00", "03", "07"):
        (pictures / f"{name}.jpg").write_bytes(good)
    monkeypatch.chdir(tmp_path)
    mended = embed_images(backbone, "in", out, **SMALL)  # another spelling, the same images
    assert [Path(f.key).stem for f in mended.failures] == ["19"]
    assert keys(mended, 2) == names(pictures)


def test_what_is_known_as_often_as_it_was_listed(
    backbone: Backbone, pictures: Path, tmp_path: Path
) -> None:
    twice = [pictures / "01.jpg", pictures / "02.jpg", pictures / "01.jpg"]
    out = tmp_path / "out"
    assert len(embed_images(backbone, twice, out)) == 3
    assert len(embed_images(backbone, twice, out)) == 3
    assert len(embed_images(backbone, [*twice, pictures / "02.jpg"], out)) == 4
    data = encoded(scene(40, 40))
    items = [("same", data), ("same", data), ("other", data)]
    for _ in range(2):
        assert len(embed_images(backbone, iter(items), tmp_path / "items")) == 3


def test_parts_of_a_source_are_folders_of_their_own(
    backbone: Backbone, pictures: Path, tmp_path: Path
) -> None:
    stores = [
        embed_images(backbone, pictures, tmp_path / str(rank), rank=rank, world=2, **SMALL)
        for rank in range(2)
    ]
    assert sorted(keys(stores[0]) + keys(stores[1])) == names(pictures)
    with pytest.raises(InputError, match="part"):
        embed_images(backbone, pictures, tmp_path / "0", rank=1, world=2)
    with pytest.raises(InputError, match="rank"):
        embed_images(backbone, pictures, tmp_path / "2", rank=2, world=2)


def test_a_full_disk_leaves_what_was_whole(backbone: Backbone, tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(disk)]
    if shutil.which("mount") is None or subprocess.run(command, check=False).returncode:
        pytest.skip("needs the right to mount a small tmpfs")
    try:
        data = encoded(scene(30, 30))
        items = [(str(n), data) for n in range(200)]
        options = {"batch_size": 20, "shard_rows": 20}
        with pytest.raises(OSError, match="space"):
            embed_images(backbone, ItemSource(items), disk, **options)
        store = EmbeddingStore(disk)
        assert not store.complete
        assert 0 < sum(len(b.keys) for b in store.batches()) == len(store) < 200
        assert not list(disk.glob("*.tmp"))
        subprocess.run(["mount", "-o", "remount,size=4m", str(disk)], check=True)
        store = embed_images(backbone, ItemSource(items), disk, **options)
        assert [k for b in store.batches() for k in b.keys] == [k for k, _ in items]
    finally:
        subprocess.run(["umount", str(disk)], check=True)


@pytest.mark.parametrize("local", [False, True])
def test_tags_from_embeddings_are_those_of_the_pixels(
    local: bool,
    artifact: Path,
    request: pytest.FixtureRequest,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    pictures = tmp_path / "in"
    pictures.mkdir()
    for path in sorted(demo_set().glob("*.jpg"))[:6]:
        shutil.copy(path, pictures)
    (pictures / "0.jpg").write_bytes(b"")
    trained = request.getfixturevalue("local_run") / "artifact" if local else artifact
    tags, out = ["tag", str(trained), "--threshold", "0"], str(tmp_path / "out")
    assert run(["embed", str(pictures), "--out", out, *["--regions"] * local]) == 3
    assert "0.jpg: empty" in capsys.readouterr().err
    rows = []
    for source in (["--embeddings", out], [str(pictures)]):
        assert run([*tags, *source]) == 3
        rows.append([json.loads(text) for text in capsys.readouterr().out.splitlines()])
    for one, other in zip(*rows, strict=True):
        assert one["image"] == other["image"]
        assert one.get("error") == other.get("error")
        scores = {tag["name"]: tag["score"] for tag in one["tags"]}
        assert scores == pytest.approx({t["name"]: t["score"] for t in other["tags"]}, abs=0.01)
    assert run([*tags, str(pictures), "--embeddings", out]) == 2
    if local:
        bare = str(tmp_path / "bare")
        assert run(["embed", str(pictures), "--out", bare]) == 3
        with pytest.raises(ArtifactError, match="--regions"):
            list(Tagger.load(trained).tag_embeddings(EmbeddingStore(bare)))
        other = str(tmp_path / "other")
        assert run(["embed", str(pictures), "--out", other, "--regions", "--tile", "0"]) == 3
        with pytest.raises(ArtifactError, match=r"--tile 0\.75"):
            list(Tagger.load(trained).tag_embeddings(EmbeddingStore(other)))
        assert run(["embed", str(pictures), "--out", other, "--regions"]) == 1


def read_all(folder: Path, backbone: Backbone) -> None:
    store = EmbeddingStore(folder)
    store.check_backbone(backbone.fingerprint)
    list(store.batches())


@pytest.mark.parametrize("damage", ["shard gone", "shard cut", "manifest cut", "other model"])
def test_a_damaged_folder_is_named(
    backbone: Backbone, pictures: Path, tmp_path: Path, damage: str
) -> None:
    out = tmp_path / "out"
    embed_images(backbone, pictures, out)
    (shard,) = out.glob("*.safetensors")
    manifest = out / MANIFEST
    if damage == "shard gone":
        shard.unlink()
    elif damage == "shard cut":
        os.truncate(shard, 2000)
    elif damage == "manifest cut":
        os.truncate(manifest, 50)
    else:
        found = json.loads(manifest.read_text())
        found["backbone"]["fingerprint"] = "0" * 64
        manifest.write_text(json.dumps(found))
        with pytest.raises(ArtifactError, match="another CLIP"):
            embed_images(backbone, pictures, out)
    with pytest.raises(ArtifactError):
        read_all(out, backbone)
