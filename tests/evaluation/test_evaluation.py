"""Data set readers on small made-up sets, and the ladder on the demo set."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from support.artifacts import make

from pvp_fast.demo import demo_set
from pvp_fast.errors import InputError
from pvp_fast.evaluation import Features, ladder, read_dataset


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")


def test_folder_reads_the_demo_set() -> None:
    found = read_dataset("folder", demo_set())
    assert all(path.is_file() for path in found.paths)
    assert found.labels.shape == (len(found.paths), 70)
    assert ((found.labels == 1).sum(0) > 0).all()
    assert set(found.labels.unique().tolist()) == {-1, 1}


def test_voc_keeps_difficult_labels(tmp_path: Path) -> None:
    write(tmp_path / "ImageSets/Main/cat_test.txt", "000001  1\n000002 -1\n")
    write(tmp_path / "ImageSets/Main/dog_test.txt", "000001  0\n000002  1\n")
    found = read_dataset("voc", tmp_path)
    assert found.names == ("cat", "dog")
    assert found.labels.tolist() == [[1, 0], [-1, 1]]
    assert found.paths[0] == tmp_path / "JPEGImages" / "000001.jpg"


def test_coco_instances(tmp_path: Path) -> None:
    data = {
        "categories": [{"id": 18, "name": "dog"}, {"id": 3, "name": "car"}],
        "images": [{"id": 2, "file_name": "b.jpg"}, {"id": 1, "file_name": "a.jpg"}],
        "annotations": [{"image_id": 2, "category_id": 18}, {"image_id": 2, "category_id": 18}],
    }
    write(tmp_path / "annotations/instances_val2014.json", json.dumps(data))
    found = read_dataset("coco", tmp_path)
    assert found.names == ("car", "dog")
    assert [p.name for p in found.paths] == ["a.jpg", "b.jpg"]
    assert found.labels.tolist() == [[-1, -1], [-1, 1]]


def test_nuswide_lists(tmp_path: Path) -> None:
    write(tmp_path / "ImageList/TestImagelist.txt", "actor\\0001.jpg\nbird\\0002.jpg\n")
    write(tmp_path / "TrainTestLabels/Labels_sky_Test.txt", "1\n0\n")
    found = read_dataset("nuswide", tmp_path)
    assert found.names == ("sky",)
    assert found.labels.tolist() == [[1], [-1]]
    assert found.paths[0] == tmp_path / "Flickr" / "actor" / "0001.jpg"


def test_paths_in_data_files_stay_inside(tmp_path: Path) -> None:
    data = {"categories": ["a"], "photos": {"../secret.jpg": {"labels": ["a"]}}}
    write(tmp_path / "labels.json", json.dumps(data))
    with pytest.raises(InputError, match="outside"):
        read_dataset("folder", tmp_path)


@pytest.mark.parametrize("kind", ["voc", "coco", "nuswide", "folder", "imagenet"])
def test_missing_data_is_one_clear_error(kind: str, tmp_path: Path) -> None:
    with pytest.raises(InputError):
        read_dataset(kind, tmp_path)


def test_ladder_matches_categories_by_name_and_lists_the_rest() -> None:
    artifact = make()
    z = artifact.tensors["original"]  # every image is a category's own original vector
    labels = torch.tensor([[1, -1, -1], [-1, 1, -1], [-1, -1, 1]], dtype=torch.int8)
    features = Features(z, labels, ("Hot-Dog", "zeppelin", "dog"), ((Path("x.jpg"), "damaged"),))
    found = ladder([artifact, make(1)], features)
    assert found.unmatched == ("zeppelin",)
    assert (found.images, found.failures) == (3, 1)
    names = [rung.name for rung in found.rungs]
    assert names[0] == "zero-shot CLIP"
    assert names[-1] == "+ dual adapter"
    assert all(len(rung.map) == 2 for rung in found.rungs)
    assert "±" in found.table()
    # Image 2 is labelled dog and looks like hot dog; image 0 the other way round.
    assert found.rungs[0].map[0] < 100
    with pytest.raises(InputError, match="no category"):
        ladder([artifact], Features(z, labels[:, :1], ("zeppelin",), ()))
